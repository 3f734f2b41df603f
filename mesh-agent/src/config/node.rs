//! Flags of `mesh-agent node` to settings.

use std::env;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use mesh_common::WORKERS_MAX;

use super::checks::Checks;
use super::flags::{LogFormatFlag, NodeFlags, ProcessFlags, ServiceVipsFlag, SpliceFlag};
use super::{Invalid, source};
use crate::model::MeshConfig;
use crate::telemetry::log::{LogFormat, LogSettings, parse_filter};
use crate::telemetry::{self, Sink};
use crate::{admin, discovery, identity, kernel};

/// Where the kernel programs are when they are not beside the executable.
const INSTALLED_OBJECT: &str = "/usr/lib/weft/weft.bpf.o";
/// Name of the object file beside the executable.
const OBJECT_NAME: &str = "weft.bpf.o";
/// Below it, one pin directory per node.
const PIN_ROOT: &str = "/sys/fs/bpf/weft";
/// Age of the heartbeat from which new connections follow the pod's failure mode.
const HEARTBEAT_AGE_MAX: Duration = Duration::from_secs(1);

/// Whose dialled service addresses the agent translates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServiceVips {
    /// Enrolled pods' only; something else (kube-proxy) serves the others.
    Enrolled,
    /// Every pod's: there is nothing else on the node that does.
    All,
}

/// The same-node fast path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpliceMode {
    /// On where the kernel passes its probes and the mesh wants it.
    Auto,
    /// Off.
    Off,
}

/// The part of `identity::Settings` that flags know; the rest is in the mesh's own configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaSettings {
    /// `https://HOST:PORT`.
    pub address: String,
    /// Name in the CA's certificate, when it is not the host of the address.
    pub server_name: Option<String>,
    /// Trust roots, PEM.
    pub roots: PathBuf,
    /// This node's token.
    pub token_file: PathBuf,
}

impl CaSettings {
    /// Completed with what the mesh's configuration says.
    pub fn identity(&self, mesh: &MeshConfig) -> identity::Settings {
        identity::Settings {
            trust_domain: mesh.trust_domain.clone(),
            ca_address: self.address.clone(),
            ca_server_name: self.server_name.clone(),
            ca_roots: self.roots.clone(),
            federated_roots: Vec::new(),
            token_file: self.token_file.clone(),
            certificate_ttl: mesh.certificate_ttl,
        }
    }
}

/// Everything a node's agent needs to know from its command line.
#[derive(Clone, Debug)]
pub struct NodeSettings {
    /// Name of this node.
    pub node: String,
    /// Where the mesh's objects come from.
    pub objects: discovery::Settings,
    /// Directory of the node's running pods; `None`: found by their control groups.
    pub sandbox_dir: Option<PathBuf>,
    /// Programs, pins and control group.
    pub kernel: kernel::Settings,
    /// The certificate authority.
    pub ca: CaSettings,
    /// Whose dialled service addresses are translated.
    pub service_vips: ServiceVips,
    /// The same-node fast path.
    pub splice: SpliceMode,
    /// How long connections may go on once the next agent of this node has taken over.
    pub drain_deadline: Duration,
    /// Made once the agent is ready or stands by.
    pub started_file: Option<PathBuf>,
    /// Threads that carry connections.
    pub workers: NonZeroUsize,
    /// Metrics and access records.
    pub telemetry: telemetry::Settings,
    /// The process log.
    pub log: LogSettings,
    /// Read-only windows.
    pub admin: admin::Settings,
}

/// What `--uninstall` needs to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UninstallSettings {
    /// Name of this node.
    pub node: String,
    /// Where its maps and links are pinned.
    pub pin_dir: PathBuf,
}

/// Checks the flags of an agent.
pub(super) fn settings(flags: NodeFlags) -> Result<NodeSettings, Vec<Invalid>> {
    let mut checks = Checks::default();
    check_node(&mut checks, &flags.node);
    if flags.source.access.kubeconfig.is_some() && !flags.source.kubernetes {
        checks.refuse("--kubeconfig", "means nothing without --kubernetes");
    }
    let objects = source::settings(&mut checks, flags.source);
    // clap has made sure of these: each is required unless --uninstall is given.
    if let Some(dir) = &flags.sandbox_dir {
        checks.directory("--sandbox-dir", dir, "the directory that lists this node's running pods");
        if flags.cgroup.is_none() {
            checks
                .refuse("--cgroup", "name the control group (v2) above the pods: sandbox files do not tell");
        }
    }
    let ca = CaSettings {
        address: flags.ca_address.unwrap_or_default(),
        server_name: flags.ca_server_name,
        roots: flags.ca_roots.unwrap_or_default(),
        token_file: flags.join_token_file.unwrap_or_default(),
    };
    check_ca(&mut checks, &ca, matches!(objects, discovery::Settings::Kubernetes(_)));
    let kernel = kernel::Settings {
        object: object(&mut checks, flags.bpf_object),
        pin_dir: pin_dir(&mut checks, flags.pin_dir, &flags.node),
        cgroup: cgroup(&mut checks, flags.cgroup),
        heartbeat_age_max: HEARTBEAT_AGE_MAX,
    };
    let access_log = sink(&flags.access_log);
    let (log, admin) = process(&mut checks, &flags.process);
    let settings = NodeSettings {
        node: flags.node,
        objects,
        sandbox_dir: flags.sandbox_dir,
        kernel,
        ca,
        service_vips: match flags.service_vips {
            ServiceVipsFlag::Enrolled => ServiceVips::Enrolled,
            ServiceVipsFlag::All => ServiceVips::All,
        },
        splice: match flags.splice {
            SpliceFlag::Auto => SpliceMode::Auto,
            SpliceFlag::Off => SpliceMode::Off,
        },
        drain_deadline: checks.time("--drain-deadline", &flags.drain_deadline),
        started_file: flags.started_file,
        workers: workers(&mut checks, flags.workers),
        telemetry: telemetry::Settings { access_log, ..telemetry::Settings::default() },
        log,
        admin,
    };
    checks.pass(settings)
}

/// Checks the flags of `--uninstall`.
pub(super) fn uninstall(flags: &NodeFlags) -> Result<UninstallSettings, Vec<Invalid>> {
    let mut checks = Checks::default();
    check_node(&mut checks, &flags.node);
    let pin_dir = pin_dir(&mut checks, flags.pin_dir.clone(), &flags.node);
    checks.pass(UninstallSettings { node: flags.node.clone(), pin_dir })
}

/// Checks the flags that every long-running process has.
pub(super) fn process(checks: &mut Checks, flags: &ProcessFlags) -> (LogSettings, admin::Settings) {
    if let Err(error) = parse_filter(&flags.log) {
        checks.refuse("--log", error.to_string());
    }
    let format = match flags.log_format {
        LogFormatFlag::Text => LogFormat::Text,
        LogFormatFlag::Json => LogFormat::Json,
    };
    (LogSettings { filter: flags.log.clone(), format }, admin::Settings { listen: flags.admin_listen })
}

/// As asked, or the CPUs that this process may use (the affinity mask, less where a control group's quota gives less).
/// The kernel programs know at most `WORKERS_MAX` workers.
fn workers(checks: &mut Checks, flag: Option<NonZeroUsize>) -> NonZeroUsize {
    if let Some(count) = flag.filter(|count| count.get() > WORKERS_MAX) {
        checks.refuse("--workers", format!("{count} are too many; at most {WORKERS_MAX} can be used"));
    }
    let cpus = || thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    let most = NonZeroUsize::new(WORKERS_MAX).unwrap_or(NonZeroUsize::MIN);
    flag.unwrap_or_else(cpus).min(most)
}

fn sink(text: &str) -> Sink {
    match text {
        "off" => Sink::Off,
        "-" => Sink::Stdout,
        path => Sink::File(path.into()),
    }
}

/// A node's name is a DNS subdomain (RFC 1123); it also becomes a directory's name.
fn check_node(checks: &mut Checks, node: &str) {
    let label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if node.len() > 253 || !node.split('.').all(label) {
        checks.refuse(
            "--node",
            format!("{node:?} is not a node's name; use spec.nodeName (a-z, 0-9, '-' and '.')"),
        );
    }
}

fn check_ca(checks: &mut Checks, ca: &CaSettings, in_cluster: bool) {
    let address = &ca.address;
    let uri: Option<hyper::Uri> = address.parse().ok();
    let usable = uri.is_some_and(|uri| {
        uri.scheme_str() == Some("https")
            && uri.host().is_some_and(|host| !host.is_empty())
            && uri.port_u16().is_some_and(|port| port != 0)
            && matches!(uri.path(), "" | "/")
    });
    if !usable {
        checks.refuse("--ca-address", format!("{address:?} is not an address; write https://HOST:PORT"));
    }
    // In a cluster the control plane makes it, and the agent waits for it.
    if !in_cluster {
        let purpose = "the PEM file that control writes with --trust-bundle-out";
        checks.readable_file("--ca-roots", &ca.roots, purpose);
    }
    checks.readable_file("--join-token-file", &ca.token_file, "the file with this node's join token");
}

fn object(checks: &mut Checks, flag: Option<PathBuf>) -> PathBuf {
    let beside = env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join(OBJECT_NAME)));
    let path = flag.unwrap_or_else(|| match beside {
        Some(beside) if beside.exists() => beside,
        _ => INSTALLED_OBJECT.into(),
    });
    checks.readable_file("--bpf-object", &path, "the kernel programs; `cargo xtask build-ebpf` makes them");
    path
}

fn pin_dir(checks: &mut Checks, flag: Option<PathBuf>, node: &str) -> PathBuf {
    let path = flag.unwrap_or_else(|| Path::new(PIN_ROOT).join(node));
    if !path.is_absolute() {
        checks
            .refuse("--pin-dir", format!("{} is not absolute; name a directory on a bpffs", path.display()));
    }
    path
}

fn cgroup(checks: &mut Checks, flag: Option<PathBuf>) -> Option<PathBuf> {
    let path = flag?;
    if !path.join("cgroup.procs").exists() {
        let problem = format!("{} is not a control group (v2); name the one above the pods", path.display());
        checks.refuse("--cgroup", problem);
    }
    Some(path)
}
