//! A running cluster: two real nodes with pods of a real Kubernetes, which several tests share.
//!
//! Files in reading order: this one (kubectl, nodes, agents' windows), [`manifest`] (what tests apply), [`mesh`] (Weft's own
//! manifests, made fit for an older API server), [`tap`] (packets on a node's links).
//!
//! `cargo xtask test --cluster` makes the cluster, names it in `WEFT_TEST_CLUSTER`, and removes it.

pub mod manifest;

pub mod mesh;

pub mod tap;

use std::fs::File;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use serde_json::Value;

use crate::lab::release_dir;
use crate::probe::Probe;
use crate::seen::{self, Metrics};
use crate::wait;

/// Names the cluster.
pub const CLUSTER: &str = "WEFT_TEST_CLUSTER";

/// How long Kubernetes may take to do what it is told. Starting a pod takes two seconds, on a machine with nothing else to do.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Where agents answer on their nodes.
const AGENT_ADMIN: &str = "127.0.0.1:15020";

/// A cluster.
#[derive(Debug)]
pub struct Cluster {
    name: String,
    state: Value,
}

impl Cluster {
    /// The cluster that tests share.
    ///
    /// # Panics
    /// When there is none: the message says how to get one.
    #[track_caller]
    pub fn running() -> Self {
        let name = std::env::var(CLUSTER).unwrap_or_else(|_| {
            panic!("{CLUSTER} names no cluster: run `sudo cargo xtask test --cluster`, which makes one")
        });
        let output = xtask(&["status", "--name", &name, "--json"]).output().expect("xtask starts");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
        Self { name, state: serde_json::from_slice(&output.stdout).expect("`cluster status` prints JSON") }
    }

    /// Its kubeconfig, which holds inside [`Cluster::control_netns`].
    pub fn kubeconfig(&self) -> PathBuf {
        self.state["kubeconfig"].as_str().expect("a cluster has a kubeconfig").into()
    }

    /// The network namespace of the control plane.
    pub fn control_netns(&self) -> PathBuf {
        self.state["netns"].as_str().expect("a cluster has a network").into()
    }

    /// The names of its nodes.
    pub fn nodes(&self) -> Vec<String> {
        let nodes = self.state["nodes"].as_array().expect("a cluster has nodes");
        nodes.iter().map(|node| node["name"].as_str().expect("a node has a name").to_owned()).collect()
    }

    fn node(&self, name: &str) -> &Value {
        let nodes = self.state["nodes"].as_array().expect("a cluster has nodes");
        nodes.iter().find(|node| node["name"] == name).unwrap_or_else(|| panic!("there is no node {name}"))
    }

    /// A node's address.
    pub fn node_ip(&self, name: &str) -> std::net::IpAddr {
        self.node(name)["ip"].as_str().and_then(|ip| ip.parse().ok()).expect("a node has an address")
    }

    /// `kubectl`, to be run by the caller.
    pub fn kubectl(&self, words: &[&str]) -> Command {
        let mut command = xtask(&["kubectl", "--name", &self.name, "--"]);
        command.args(words);
        command
    }

    /// Runs `kubectl`; gives what it printed.
    ///
    /// # Panics
    /// When it fails.
    #[track_caller]
    pub fn kubectl_ok(&self, words: &[&str]) -> String {
        let output = self.kubectl(words).stdin(Stdio::null()).output().expect("kubectl starts");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "kubectl {words:?}: {stderr}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Applies documents, server-side.
    #[track_caller]
    pub fn apply(&self, documents: &str) {
        use std::io::Write;
        let words = ["apply", "--server-side", "--force-conflicts", "--validate=false", "-f", "-"];
        let mut child = self.kubectl(&words);
        child.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = child.spawn().expect("kubectl starts");
        let written = child.stdin.take().expect("a pipe").write_all(documents.as_bytes());
        let output = child.wait_with_output().expect("kubectl ends");
        assert!(output.status.success(), "{}\n{documents}", String::from_utf8_lossy(&output.stderr));
        written.expect("kubectl reads what it is to apply");
    }

    /// An object, or a list of them.
    #[track_caller]
    pub fn get(&self, words: &[&str]) -> Value {
        let text = self.kubectl_ok(&[&["get", "-o", "json"][..], words].concat());
        serde_json::from_str(&text).expect("kubectl prints JSON")
    }

    /// A pod.
    #[track_caller]
    pub fn pod(&self, namespace: &str, name: &str) -> Value {
        self.get(&["--namespace", namespace, "pod", name])
    }

    /// A pod's address.
    #[track_caller]
    pub fn pod_ip(&self, namespace: &str, name: &str) -> std::net::IpAddr {
        let pod = self.pod(namespace, name);
        let ip = pod["status"]["podIP"].as_str().and_then(|ip| ip.parse().ok());
        ip.unwrap_or_else(|| panic!("{namespace}/{name} has no address: {}", pod["status"]))
    }

    /// The address of a Service.
    #[track_caller]
    pub fn service_ip(&self, namespace: &str, name: &str) -> std::net::IpAddr {
        let service = self.get(&["--namespace", namespace, "service", name]);
        let ip = service["spec"]["clusterIP"].as_str().and_then(|ip| ip.parse().ok());
        ip.unwrap_or_else(|| panic!("{namespace}/{name} has no address"))
    }

    /// Waits until all pods of a namespace are ready.
    #[track_caller]
    pub fn wait_ready(&self, namespace: &str) {
        wait::within(PATIENCE, &format!("pods of {namespace} are ready"), || {
            let pods = self.get(&["--namespace", namespace, "pods"]);
            let pods = pods["items"].as_array()?;
            (!pods.is_empty() && pods.iter().all(is_ready)).then_some(())
        });
    }

    /// Starts a probe in a pod that has the tests' image.
    #[track_caller]
    pub fn probe(&self, namespace: &str, pod: &str) -> Probe {
        let mut command =
            self.kubectl(&["--namespace", namespace, "exec", "--stdin", pod, "--", "weft-probe"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        Probe::new(&format!("{namespace}/{pod}"), command.spawn().expect("kubectl starts"))
    }

    /// Runs a command in a pod until it ends.
    #[track_caller]
    pub fn exec(&self, namespace: &str, pod: &str, words: &[&str]) -> Output {
        let exec = ["--namespace", namespace, "exec", pod, "--"];
        self.kubectl(&[&exec[..], words].concat()).stdin(Stdio::null()).output().expect("kubectl starts")
    }

    /// A command on a node, outside of all pods, to be run by the caller.
    pub fn node_command(&self, node: &str, words: &[String]) -> Command {
        let mut command = xtask(&["exec", "--name", &self.name, node, "--"]);
        command.args(words).stdin(Stdio::null());
        command
    }

    /// Runs a command on a node, outside of all pods; gives what it printed.
    #[track_caller]
    pub fn on_node(&self, node: &str, words: &[&str]) -> String {
        let words: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
        let output = self.node_command(node, &words).output().expect("xtask starts");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{words:?} on {node}: {stderr}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Runs a closure in a node's network namespace.
    #[track_caller]
    pub fn in_node<T: Send>(&self, node: &str, run: impl FnOnce() -> T + Send) -> T {
        in_netns(&self.node(node)["netns"].as_str().expect("a node has a network").into(), run)
    }

    /// Runs a closure in the control plane's network namespace: a client from outside all nodes.
    #[track_caller]
    pub fn outside<T: Send>(&self, run: impl FnOnce() -> T + Send) -> T {
        in_netns(&self.control_netns(), run)
    }

    /// A page of a node's agent.
    #[track_caller]
    pub fn page(&self, node: &str, path: &str) -> (u16, String) {
        let read = self.in_node(node, || seen::get(AGENT_ADMIN, path));
        read.unwrap_or_else(|error| panic!("{path} of the agent of {node}: {error:#}"))
    }

    /// The metrics of a node's agent.
    #[track_caller]
    pub fn metrics(&self, node: &str) -> Metrics {
        Metrics::parse(&self.page(node, "/metrics").1)
    }

    /// Another of xtask's commands for this cluster: `["node", "stop", "node-1"]`.
    ///
    /// # Panics
    /// When it fails.
    #[track_caller]
    pub fn switch(&self, words: &[&str]) {
        let (command, rest) = words.split_first().expect("a command");
        let output = xtask(&[command, "--name", &self.name]).args(rest).output().expect("xtask starts");
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Runs `meshctl` as somebody who may do everything, from where the API server is reached.
    #[track_caller]
    pub fn meshctl(&self, words: &[&str]) -> Output {
        let netns = format!("--net={}", self.control_netns().display());
        let mut command = Command::new("nsenter");
        command.arg(netns).arg("--").arg(release_dir().join("meshctl")).args(words);
        command.env("KUBECONFIG", self.kubeconfig()).stdin(Stdio::null()).output().expect("meshctl starts")
    }
}

/// A namespace of one test; it goes with it.
#[derive(Debug)]
pub struct Namespace<'a> {
    cluster: &'a Cluster,
    /// Its name.
    pub name: String,
}

impl<'a> Namespace<'a> {
    /// Makes it. `labels` as in YAML: `weft.dev/mesh: enabled`.
    #[track_caller]
    pub fn new(cluster: &'a Cluster, name: &str, labels: &str) -> Self {
        let name = format!("{name}-{:04x}", fastrand::u16(..));
        cluster.apply(&manifest::namespace(&name, labels));
        Self { cluster, name }
    }

    /// One that is part of the mesh.
    #[track_caller]
    pub fn meshed(cluster: &'a Cluster, name: &str) -> Self {
        Self::new(cluster, name, "weft.dev/mesh: enabled")
    }
}

impl Drop for Namespace<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            let events =
                self.cluster.kubectl(&["--namespace", &self.name, "get", "pods,events", "-o", "wide"]);
            tell(events);
        }
        let mut delete = self.cluster.kubectl(&["delete", "namespace", &self.name, "--wait=false"]);
        // The next test does not need it gone; a cluster that is ended takes it along.
        let _ = delete.stdout(Stdio::null()).status();
    }
}

fn tell(mut command: Command) {
    if let Ok(output) = command.output() {
        eprintln!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    }
}

/// Whether a pod is ready, or has done what it was for.
pub fn is_ready(pod: &Value) -> bool {
    if pod["status"]["phase"] == "Succeeded" {
        return true;
    }
    let conditions = pod["status"]["conditions"].as_array();
    conditions.is_some_and(|all| all.iter().any(|one| one["type"] == "Ready" && one["status"] == "True"))
}

fn xtask(words: &[&str]) -> Command {
    let mut command = Command::new(release_dir().join("xtask"));
    command.arg("cluster").args(words);
    command
}

#[track_caller]
fn in_netns<T: Send>(path: &PathBuf, run: impl FnOnce() -> T + Send) -> T {
    let netns = File::open(path).expect("the network namespace is there");
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            setns(&netns, CloneFlags::CLONE_NEWNET).expect("root may enter a network namespace");
            run()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
