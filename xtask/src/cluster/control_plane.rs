//! The control plane: etcd, the API server, and for a whole cluster the controllers, the scheduler and the bridge.
//!
//! An API server alone listens on this machine's loopback, where tests reach it. That of a whole cluster lives in a network
//! namespace of its own, with the nodes around it, and is reached from there only.

use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::cache::Extent;
use super::names::{CONTROL_IP, POD_RANGE, SERVICE_RANGE};
use super::pki::Pki;
use super::state::{Cluster, Daemon};
use crate::lab::exec::Entry;
use crate::lab::pods::tail;
use crate::{clock, shell};

/// The program that fills in for what this Kubernetes lacks: names, and EndpointSlices of version v1.
pub const BRIDGE: &str = "weft-cluster-bridge";

/// What the API server is called among the daemons.
pub const API_SERVER: &str = "kube-apiserver";

/// How long the API server may take to be ready. About 4 s on an idle machine.
const READY_PATIENCE: Duration = Duration::from_secs(90);

/// How soon a node that says nothing is not ready any more. Kubernetes' own 40 s would make tests of lost nodes slow.
const NODE_GRACE: &str = "--node-monitor-grace-period=10s";

/// Ports of the control plane.
#[derive(Clone, Copy, Debug)]
pub struct Ports {
    etcd: u16,
    etcd_peer: u16,
    /// The API server's.
    pub api: u16,
}

impl Ports {
    /// Those of a whole cluster, whose network is its own.
    pub fn usual() -> Self {
        Self { etcd: 2379, etcd_peer: 2380, api: 6443 }
    }

    /// Ports that are free on this machine's loopback now.
    pub fn free() -> Result<Self> {
        let listeners: Vec<TcpListener> =
            (0..3).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<_, _>>()?;
        let ports: Vec<u16> =
            listeners.iter().map(|one| Ok(one.local_addr()?.port())).collect::<Result<_>>()?;
        Ok(Self { etcd: ports[0], etcd_peer: ports[1], api: ports[2] })
    }
}

/// Describes the daemons; none is started yet.
pub fn describe(
    cluster: &Cluster,
    extent: Extent,
    ports: Ports,
    pki: &Pki,
    entry: &Entry,
) -> Result<Vec<Daemon>> {
    let daemon = |name: &str, command: Vec<String>| Daemon {
        name: name.to_owned(),
        entry: entry.clone(),
        command,
        log: cluster.dir.join("logs").join(format!("{name}.log")),
        process: None,
    };
    let build = cluster.build();
    let program = |name: &str| build.program(name).display().to_string();
    let mut daemons = vec![
        daemon("etcd", etcd(&build.etcd().display().to_string(), &cluster.dir, ports)),
        daemon(API_SERVER, api_server(&program(API_SERVER), extent, ports, pki)),
    ];
    if extent == Extent::Cluster {
        let admin = pki.kubeconfig("admin").display().to_string();
        daemons.push(daemon(
            "kube-controller-manager",
            controllers(&program("kube-controller-manager"), cluster, pki),
        ));
        let scheduler = ["--leader-elect=false", "--bind-address=127.0.0.1"].map(str::to_owned);
        let mut words = vec![program("kube-scheduler"), format!("--kubeconfig={admin}")];
        words.extend(scheduler);
        daemons.push(daemon("kube-scheduler", words));
        let bridge = shell::executable_dir()?.join(BRIDGE).display().to_string();
        let listen = format!("{CONTROL_IP}:53");
        daemons
            .push(daemon(BRIDGE, vec![bridge, format!("--kubeconfig={admin}"), format!("--dns={listen}")]));
    }
    Ok(daemons)
}

fn etcd(program: &str, dir: &Path, ports: Ports) -> Vec<String> {
    let (client, peer) =
        (format!("http://127.0.0.1:{}", ports.etcd), format!("http://127.0.0.1:{}", ports.etcd_peer));
    vec![
        program.to_owned(),
        format!("--data-dir={}", dir.join("etcd").display()),
        format!("--listen-client-urls={client}"),
        format!("--advertise-client-urls={client}"),
        format!("--listen-peer-urls={peer}"),
        format!("--initial-advertise-peer-urls={peer}"),
        format!("--initial-cluster=default={peer}"),
        // Nothing here has to outlive a power cut of the machine, and a disk under load would slow every write.
        "--unsafe-no-fsync".to_owned(),
    ]
}

fn api_server(program: &str, extent: Extent, ports: Ports, pki: &Pki) -> Vec<String> {
    let file = |flag: &str, name: &str| format!("--{flag}={}", pki.path(name).display());
    let bind = if extent == Extent::Cluster { "0.0.0.0" } else { "127.0.0.1" };
    let mut words = vec![
        program.to_owned(),
        format!("--etcd-servers=http://127.0.0.1:{}", ports.etcd),
        format!("--bind-address={bind}"),
        format!("--advertise-address={CONTROL_IP}"),
        format!("--secure-port={}", ports.api),
        file("tls-cert-file", "apiserver.crt"),
        file("tls-private-key-file", "apiserver.key"),
        file("client-ca-file", "ca.crt"),
        file("kubelet-client-certificate", "kubelet-client.crt"),
        file("kubelet-client-key", "kubelet-client.key"),
        format!("--service-cluster-ip-range={SERVICE_RANGE}"),
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local".to_owned(),
        file("service-account-signing-key-file", "accounts.key"),
        file("service-account-key-file", "accounts.pub"),
        file("token-auth-file", "tokens.csv"),
        "--authorization-mode=Node,RBAC".to_owned(),
        "--allow-privileged=true".to_owned(),
        "--kubelet-preferred-address-types=InternalIP".to_owned(),
        // Version v1 of EndpointSlices comes by a custom resource of that name, which the built-in older one would shadow.
        "--runtime-config=discovery.k8s.io/v1beta1=false".to_owned(),
    ];
    words.extend(match extent {
        Extent::Cluster => ["--endpoint-reconciler-type=lease", "--enable-admission-plugins=NodeRestriction"]
            .map(str::to_owned),
        // Without controllers no namespace gets its default account, and pods without one would be refused.
        Extent::ApiServer => {
            ["--endpoint-reconciler-type=none", "--disable-admission-plugins=ServiceAccount"]
                .map(str::to_owned)
        }
    });
    words
}

fn controllers(program: &str, cluster: &Cluster, pki: &Pki) -> Vec<String> {
    let file = |flag: &str, name: &str| format!("--{flag}={}", pki.path(name).display());
    vec![
        program.to_owned(),
        format!("--kubeconfig={}", pki.kubeconfig("admin").display()),
        file("service-account-private-key-file", "accounts.key"),
        file("root-ca-file", "ca.crt"),
        file("cluster-signing-cert-file", "ca.crt"),
        file("cluster-signing-key-file", "ca.key"),
        format!("--flex-volume-plugin-dir={}", cluster.dir.join("plugins").display()),
        format!("--cluster-cidr={POD_RANGE}"),
        // EndpointSlices are the bridge's.
        "--controllers=*,-endpointslice,-endpointslicemirroring".to_owned(),
        NODE_GRACE.to_owned(),
        "--node-monitor-period=2s".to_owned(),
        "--leader-elect=false".to_owned(),
        "--bind-address=127.0.0.1".to_owned(),
    ]
}

/// Starts etcd and the API server, waits until it is ready, then starts the others.
pub fn start(cluster: &mut Cluster) -> Result<()> {
    for name in ["etcd", API_SERVER] {
        cluster.daemon(name)?.start()?;
        cluster.save()?;
    }
    wait_ready(cluster)?;
    for index in 0..cluster.daemons.len() {
        cluster.daemons[index].start()?;
        cluster.save()?;
    }
    Ok(())
}

/// Waits until the API server says that it is ready.
pub fn wait_ready(cluster: &mut Cluster) -> Result<()> {
    let deadline = clock::now() + READY_PATIENCE;
    while !is_ready(cluster) {
        for name in ["etcd", API_SERVER] {
            let daemon = cluster.daemon(name)?;
            ensure!(daemon.is_alive(), "{name} ended; the end of its log:\n{}", tail(&daemon.log));
        }
        if clock::now() > deadline {
            let log = tail(&cluster.daemon(API_SERVER)?.log);
            bail!("the API server is not ready after {READY_PATIENCE:?}; the end of its log:\n{log}");
        }
        thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

fn is_ready(cluster: &Cluster) -> bool {
    let asked = kubectl(cluster).args(["get", "--raw", "/readyz"]).output();
    asked.is_ok_and(|output| output.status.success() && output.stdout == b"ok")
}

/// `kubectl` as somebody who may do everything, from where the API server can be reached.
pub fn kubectl(cluster: &Cluster) -> Command {
    let mut command = Command::new("nsenter");
    command
        .arg(format!("--net={}", cluster.netns.display()))
        .arg("--")
        .arg(cluster.build().program("kubectl"));
    command.env("KUBECONFIG", &cluster.kubeconfig);
    // It would otherwise keep what it found out about one cluster below the home directory, and believe it of the next.
    command.arg(format!("--cache-dir={}", cluster.dir.join("kubectl-cache").display()));
    command
}

/// Applies documents.
pub fn apply(cluster: &Cluster, documents: &str) -> Result<()> {
    let mut command = kubectl(cluster);
    // The old client knows no schema of newer kinds.
    command.args(["apply", "--server-side", "--force-conflicts", "--validate=false", "-f", "-"]);
    shell::feed(&mut command, documents).context("the cluster does not take what its tests need")
}
