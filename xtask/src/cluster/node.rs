//! A node: its own processes, mounts, network and control groups, and in them a container runtime, kubelet and kube-proxy.
//!
//! Files: [`config`] (what its programs are told), [`init`] (its first process, inside). This one starts it, ends it as a power
//! cut would, and runs commands in it.

pub mod config;

pub mod init;

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use super::names::{Names, node_ip, node_name, pod_range};
use super::pki::Pki;
use super::state::{Cluster, Daemon, Node, Process};
use crate::lab::exec::Entry;
use crate::lab::pods::tail;
use crate::lab::{cgroup, network};
use crate::{clock, shell};

/// How long a node's first process may take to come.
const INIT_PATIENCE: Duration = Duration::from_secs(20);

/// All that a node's first process has to know.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// What Kubernetes calls it.
    pub name: String,
    /// Its address.
    pub ip: std::net::Ipv4Addr,
    /// The addresses of its pods.
    pub pod_range: String,
    /// Its files.
    pub dir: PathBuf,
    /// The cluster's files.
    pub cluster_dir: PathBuf,
    /// Where its programs lie.
    pub build_dir: PathBuf,
    /// Its control group below the root of every hierarchy.
    pub cgroup: PathBuf,
    /// Who the kubelet is.
    pub kubelet_kubeconfig: PathBuf,
    /// Who kube-proxy is.
    pub proxy_kubeconfig: PathBuf,
    /// By which the kubelet knows its callers.
    pub client_ca: PathBuf,
}

/// Describes a node and writes its plan; nothing is started yet.
pub fn describe(cluster: &Cluster, names: &Names, number: u8, pki: &Pki) -> Result<Node> {
    let name = node_name(number);
    let dir = cluster.dir.join(&name);
    fs::create_dir_all(&dir)?;
    let unified = cgroup::root()?.join(names.node_cgroup(number));
    let plan = Plan {
        name: name.clone(),
        ip: node_ip(number),
        pod_range: pod_range(number),
        dir: dir.clone(),
        cluster_dir: cluster.dir.clone(),
        build_dir: cluster.build_dir.clone(),
        cgroup: names.node_cgroup(number),
        kubelet_kubeconfig: pki.kubeconfig(&name),
        proxy_kubeconfig: pki.kubeconfig("proxy"),
        client_ca: pki.path("ca.crt"),
    };
    let plan_file = dir.join("plan.json");
    fs::write(&plan_file, serde_json::to_vec_pretty(&plan)?)?;
    let netns = network::netns_path(&names.node_netns(number));
    let entry = Entry { cgroup: unified.join("system"), netns: netns.clone(), cpus: None, pod: None };
    let own = std::env::current_exe().context("cannot find the running executable")?.display().to_string();
    let daemon = Daemon {
        name: name.clone(),
        entry,
        command: vec![own, "cluster-node".to_owned(), plan_file.display().to_string()],
        log: cluster.dir.join("logs").join(format!("{name}.log")),
        process: None,
    };
    Ok(Node { name, number, ip: node_ip(number), netns, cgroup: unified, dir, daemon })
}

/// Starts a node. What its pods were is forgotten, as a machine's memory is; images and the kubelet's files are kept.
pub fn start(node: &mut Node) -> Result<()> {
    make_cgroups(node)?;
    let _ = fs::remove_file(pid_file(&node.dir));
    node.daemon.start()?;
    let deadline = clock::now() + INIT_PATIENCE;
    while !pid_file(&node.dir).exists() {
        ensure!(
            node.daemon.is_alive(),
            "{} ended; the end of its log:\n{}",
            node.name,
            tail(&node.daemon.log)
        );
        ensure!(clock::now() < deadline, "{} has no first process after {INIT_PATIENCE:?}", node.name);
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Cuts a node's power: its first process is killed, and the kernel kills all others with it.
pub fn stop(node: &mut Node) -> Result<()> {
    if let Ok(init) = init_process(node) {
        init.kill()?;
    }
    node.daemon.kill()?;
    cgroup::kill(&node.cgroup)?;
    // A machine that starts has no control groups of pods that it once ran.
    super::down::remove_cgroups(node.cgroup.strip_prefix(cgroup::root()?)?)
}

/// The node's first process.
pub fn init_process(node: &Node) -> Result<Process> {
    let file = pid_file(&node.dir);
    let text = fs::read_to_string(&file).with_context(|| format!("{} does not run", node.name))?;
    let process: Process = serde_json::from_str(&text)?;
    ensure!(process.is_alive(), "{} does not run", node.name);
    Ok(process)
}

/// A command in a node, to be run by the caller. It is nobody's pod.
pub fn command(node: &Node, words: &[OsString]) -> Result<Command> {
    let init = init_process(node)?;
    let mut command = Command::new("nsenter");
    command
        .args(["--mount", "--pid", "--net", "--uts", "--ipc", "--target", &init.pid.to_string(), "--"])
        .args(words);
    command.env("PATH", init::PATH);
    Ok(command)
}

/// Imports an image archive.
pub fn import(node: &Node, archive: &Path) -> Result<()> {
    let words = ["ctr", "--namespace", "k8s.io", "images", "import"].map(OsString::from);
    let words = [&words[..], &[archive.into()]].concat();
    shell::run(command(node, &words)?.stdin(Stdio::null()).stdout(std::io::stderr()))
}

/// Makes the node's control groups in every hierarchy; a kubelet wants its root to be there.
fn make_cgroups(node: &Node) -> Result<()> {
    let unified = cgroup::root()?;
    let below = node.cgroup.strip_prefix(&unified)?;
    cgroup::create(&node.daemon.entry.cgroup)?;
    let older = cgroup::older_roots()?;
    for needed in ["memory", "cpu", "cpuset", "pids"] {
        let there = older.iter().any(|root| root.controllers.iter().any(|controller| controller == needed));
        if !there {
            bail!(
                "the {needed} controller is not mounted as a cgroup v1 hierarchy; this version of Kubernetes and its \
                 runtime are run with them beside cgroup v2 (boot with systemd.unified_cgroup_hierarchy=0)"
            );
        }
    }
    for root in older {
        cgroup::create(&root.path.join(below))?;
        if root.controllers.iter().any(|controller| controller == "cpuset") {
            inherit_cpuset(&root.path, below)?;
        }
    }
    Ok(())
}

/// A new cpuset of cgroup v1 is empty, and nothing can run in it.
fn inherit_cpuset(root: &Path, below: &Path) -> Result<()> {
    let mut parent = root.to_owned();
    for part in below {
        let child = parent.join(part);
        for file in ["cpuset.cpus", "cpuset.mems"] {
            let value = fs::read_to_string(parent.join(file))?;
            let place = child.join(file);
            fs::write(&place, value.trim()).with_context(|| format!("cannot write {}", place.display()))?;
        }
        parent = child;
    }
    Ok(())
}

fn pid_file(dir: &Path) -> PathBuf {
    dir.join("init.json")
}
