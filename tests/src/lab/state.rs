//! What `lab up --json` says, as far as tests need it.

use std::net::IpAddr;
use std::path::PathBuf;

use serde::Deserialize;

/// What `lab up --json` says, as far as tests need it.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct State {
    pub(crate) dir: PathBuf,
    pub(crate) world: PathBuf,
    pub(crate) nodes: Vec<Node>,
    /// Present when the agents are fed by an API server.
    #[serde(default)]
    pub(crate) api: Option<serde_json::Value>,
    pub(crate) control: Option<Process>,
    pub(crate) pods: Vec<Pod>,
    pub(crate) services: Vec<Service>,
}

/// A node.
#[derive(Clone, Debug, Deserialize)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its network namespace.
    pub netns: PathBuf,
    /// Its addresses on the fabric.
    pub ips: Vec<IpAddr>,
    /// Its cgroup.
    pub cgroup: PathBuf,
    /// The cgroup above its pods'.
    #[serde(rename = "podsCgroup")]
    pub pods_cgroup: PathBuf,
    /// Its agent.
    pub agent: Option<Process>,
}

/// A process of the mesh.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Process {
    /// Its number.
    pub pid: i32,
    /// Its admin address.
    pub admin: String,
    /// What it prints.
    pub log: PathBuf,
    /// Its access log; control has none.
    #[serde(default)]
    pub access_log: PathBuf,
    /// Where it pins; control pins nothing.
    #[serde(default)]
    pub pin_dir: PathBuf,
    /// What it was started with.
    pub command: Vec<String>,
}

/// A pod.
#[derive(Clone, Debug, Deserialize)]
pub struct Pod {
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its node.
    pub node: String,
    /// Its UID.
    pub uid: String,
    /// Its addresses, IPv4 first.
    pub ips: Vec<IpAddr>,
    /// Its network namespace.
    pub netns: PathBuf,
    /// Its cgroup.
    pub cgroup: PathBuf,
    /// The cgroup of its commands: its own, or one below.
    pub container: PathBuf,
    /// The cgroup of the process that keeps its place, where the lab is laid out as kubelet's.
    pub sandbox: Option<PathBuf>,
}

/// A service.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Service {
    pub(crate) name: String,
    pub(crate) namespace: String,
    #[serde(rename = "clusterIPs")]
    pub(crate) cluster_ips: Vec<IpAddr>,
}
