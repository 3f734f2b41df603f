//! What the lab remembers, and what `lab up --json` and `lab status --json` say.

use std::fs::{self, File};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use super::names::Names;
use super::world::plan::Given;

/// How far `lab up` has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Still being made, or left half made.
    Starting,
    /// Complete.
    Up,
}

/// How agents find the pods of their node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Enrolment {
    /// The lab tells them, by a file per pod.
    #[default]
    Files,
    /// By control groups, named as kubelet's driver `cgroupfs` and containerd name them.
    Groups,
    /// By control groups, named as kubelet's driver `systemd` and containerd name them.
    GroupsSystemd,
}

impl Enrolment {
    /// The cgroup above all pods of a node.
    pub fn pods_root(self, node: &Path) -> PathBuf {
        node.join(match self {
            Self::Files => "pods",
            Self::Groups => "kubepods",
            Self::GroupsSystemd => "kubepods.slice",
        })
    }

    /// A pod's cgroup; `quality` is empty for a guaranteed pod.
    pub fn pod(self, node: &Path, uid: &str, quality: &str) -> PathBuf {
        let root = self.pods_root(node);
        match self {
            Self::Files | Self::Groups => root.join(quality).join(format!("pod{uid}")),
            Self::GroupsSystemd => {
                let uid = uid.replace('-', "_");
                let slice =
                    if quality.is_empty() { "kubepods".to_owned() } else { format!("kubepods-{quality}") };
                let level = if quality.is_empty() { root } else { root.join(format!("{slice}.slice")) };
                level.join(format!("{slice}-pod{uid}.slice"))
            }
        }
    }

    /// A container's cgroup below its pod's.
    pub fn container(self, pod: &Path, id: &str) -> PathBuf {
        let id = id.replace('-', "").repeat(2);
        pod.join(match self {
            Self::Files | Self::Groups => id,
            Self::GroupsSystemd => format!("cri-containerd-{id}.scope"),
        })
    }
}

/// A lab.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Lab {
    /// Its name.
    pub name: String,
    /// How far it has come.
    pub phase: Phase,
    /// All its files.
    pub dir: PathBuf,
    /// The completed world. Agents watch it; edit it while the lab runs.
    pub world: PathBuf,
    /// The directory that the world was copied from.
    pub source: PathBuf,
    /// Node n and all its processes run on CPU n-1.
    pub pin_cpus: bool,
    /// How agents find pods.
    pub enrolment: Enrolment,
    /// More arguments of every node's agent.
    pub agent_args: Vec<String>,
    /// More arguments of control.
    pub control_args: Vec<String>,
    /// Its nodes.
    pub nodes: Vec<Node>,
    /// The API server that agents and control are fed by; absent when they read the world's files.
    pub api: Option<Api>,
    /// The control process; absent without a mesh.
    pub control: Option<Control>,
    /// Its pods.
    pub pods: Vec<Pod>,
    /// Its services.
    pub services: Vec<Service>,
    /// Names of the files that the lab wrote into `world`.
    pub world_files: Vec<String>,
    /// What was given to whom, so that applying again changes little.
    pub given: Given,
}

/// A node.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Path of its network namespace.
    pub netns: PathBuf,
    /// Its IPv4 address on the fabric.
    pub ip: IpAddr,
    /// Its addresses on the fabric.
    pub ips: Vec<IpAddr>,
    /// Its cgroup.
    pub cgroup: PathBuf,
    /// The cgroup above its pods'.
    pub pods_cgroup: PathBuf,
    /// The cgroup of its agent.
    pub agent_cgroup: PathBuf,
    /// The CPUs it is held to; absent for all.
    pub cpus: Option<Vec<usize>>,
    /// Its agent; absent without a mesh.
    pub agent: Option<Agent>,
}

/// A node's agent.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Agent {
    /// Process.
    pub pid: u32,
    /// Admin address, in the host's network namespace.
    pub admin: String,
    /// Where it pins its kernel objects.
    pub pin_dir: PathBuf,
    /// What it prints.
    pub log: PathBuf,
    /// Its access log.
    pub access_log: PathBuf,
    /// Whether it runs, when this was said.
    pub alive: bool,
    /// What it was started with.
    pub command: Vec<String>,
}

/// The API server.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Api {
    /// Process.
    pub pid: u32,
    /// Address, on the fabric.
    pub address: String,
    /// A kubeconfig of its administrator.
    pub kubeconfig: PathBuf,
    /// What of the world was brought into it.
    pub known: PathBuf,
    /// What it prints.
    pub log: PathBuf,
    /// What it was started with.
    pub command: Vec<String>,
}

/// The control process.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Control {
    /// Process.
    pub pid: u32,
    /// Admin address, in the host's network namespace.
    pub admin: String,
    /// Address of the certificate authority, on the fabric.
    pub address: String,
    /// What it prints.
    pub log: PathBuf,
    /// Its cgroup.
    pub cgroup: PathBuf,
    /// Whether it runs, when this was said.
    pub alive: bool,
    /// What it was started with.
    pub command: Vec<String>,
}

/// A pod.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pod {
    /// Name.
    pub name: String,
    /// Namespace.
    pub namespace: String,
    /// Node.
    pub node: String,
    /// UID.
    pub uid: String,
    /// Addresses, IPv4 first.
    pub ips: Vec<IpAddr>,
    /// Path of its network namespace.
    pub netns: PathBuf,
    /// Its cgroup.
    pub cgroup: PathBuf,
    /// The cgroup of its commands: its own, or one below.
    pub container: PathBuf,
    /// The cgroup of the process that only keeps the pod's place, where there is one.
    pub sandbox: Option<PathBuf>,
    /// Service account.
    pub service_account: String,
    /// Enrolled.
    pub meshed: bool,
    /// Its command's process; null when it has none or it ended.
    pub pid: Option<u32>,
    /// What its command prints; null when it has none.
    pub log: Option<PathBuf>,
    /// What the lab starts in it.
    pub command: Vec<String>,
    /// Its environment.
    pub env: Vec<(String, String)>,
    /// The TCP ports that it declares.
    pub ports: Vec<u16>,
}

/// A service.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Service {
    /// Name.
    pub name: String,
    /// Namespace.
    pub namespace: String,
    /// Primary address, or `None` when headless.
    #[serde(rename = "clusterIP")]
    pub cluster_ip: String,
    /// All addresses.
    #[serde(rename = "clusterIPs")]
    pub cluster_ips: Vec<IpAddr>,
    /// Ports as written.
    pub ports: serde_json::Value,
}

impl Lab {
    /// Reads a lab's state.
    pub fn load(names: &Names) -> Result<Self> {
        let path = state_file(&names.run_dir());
        let Ok(text) = fs::read_to_string(&path) else {
            bail!("there is no lab named {}: run `cargo xtask lab up{}`", names.lab(), name_option(names));
        };
        let down = format!("run `cargo xtask lab down{}`", name_option(names));
        serde_json::from_str(&text).with_context(|| format!("{} is not readable; {down}", path.display()))
    }

    /// Reads the state of a lab that is complete.
    pub fn load_up(names: &Names) -> Result<Self> {
        let lab = Self::load(names)?;
        if lab.phase != Phase::Up {
            bail!(
                "lab {} is only half up: wait for its `lab up`, or run `cargo xtask lab down{}`",
                names.lab(),
                name_option(names)
            );
        }
        Ok(lab)
    }

    /// Writes the state, whole or not at all.
    pub fn save(&self) -> Result<()> {
        let path = state_file(&self.dir);
        let temporary = path.with_extension("new");
        let written = fs::write(&temporary, serde_json::to_vec_pretty(self)?)
            .and_then(|()| fs::rename(&temporary, &path));
        written.with_context(|| format!("cannot write {}", path.display()))
    }

    /// A pod by `NAMESPACE/NAME`.
    pub fn pod(&self, namespaced: &str) -> Result<&Pod> {
        let (namespace, name) = namespaced
            .split_once('/')
            .with_context(|| format!("`{namespaced}`: name the pod as NAMESPACE/POD"))?;
        self.pods.iter().find(|pod| pod.namespace == namespace && pod.name == name).with_context(|| {
            let known: Vec<String> =
                self.pods.iter().map(|pod| format!("{}/{}", pod.namespace, pod.name)).collect();
            format!("lab {} has no pod {namespaced}; it has: {}", self.name, known.join(", "))
        })
    }

    /// A node by its name.
    pub fn node(&self, name: &str) -> Result<&Node> {
        self.nodes.iter().find(|node| node.name == name).with_context(|| format!("there is no node {name}"))
    }

    /// The number of a node, from 1.
    pub fn node_number(&self, name: &str) -> Result<usize> {
        let index = self.nodes.iter().position(|node| node.name == name);
        Ok(1 + index.with_context(|| format!("there is no node {name}"))?)
    }
}

impl Node {
    /// The cgroup above its pods'.
    pub fn pods_cgroup(&self) -> PathBuf {
        self.pods_cgroup.clone()
    }

    /// The cgroup of its agent.
    pub fn agent_cgroup(&self) -> PathBuf {
        self.agent_cgroup.clone()
    }
}

/// ` --name NAME`, or nothing for the default name.
pub fn name_option(names: &Names) -> String {
    if names.lab() == super::DEFAULT_NAME { String::new() } else { format!(" --name {}", names.lab()) }
}

/// Takes the lab's lock for as long as the result lives.
///
/// # Errors
/// When another command holds it.
pub fn lock(run_dir: &Path) -> Result<Flock<File>> {
    let dir = File::open(run_dir).with_context(|| format!("cannot open {}", run_dir.display()))?;
    Flock::lock(dir, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| {
        anyhow::anyhow!(
            "another `cargo xtask lab` command works on this lab at the moment ({error}): try again later"
        )
    })
}

fn state_file(run_dir: &Path) -> PathBuf {
    run_dir.join("state.json")
}
