//! What a cluster looks like: its processes, and its nodes as Kubernetes sees them.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::control_plane::kubectl;
use super::node::init_process;
use super::state::Cluster;
use crate::clock;
use crate::lab::pods::tail;

/// How long nodes may take to be ready. About 15 s on an idle machine.
const NODES_PATIENCE: Duration = Duration::from_secs(180);

/// Prints a cluster.
pub fn print(cluster: &Cluster, json: bool) -> Result<()> {
    if json {
        println!("{}", serde_json::to_string_pretty(cluster)?);
        return Ok(());
    }
    println!("cluster {}: {} (kubeconfig {})", cluster.name, cluster.url, cluster.kubeconfig.display());
    for daemon in &cluster.daemons {
        let how = if daemon.is_alive() { "runs" } else { "does not run" };
        println!("  {:<24} {how}, log {}", daemon.name, daemon.log.display());
    }
    let ready = ready_nodes(cluster).unwrap_or_default();
    for node in &cluster.nodes {
        let how = match (init_process(node).is_ok(), ready.contains(&node.name)) {
            (false, _) => "is off",
            (true, false) => "runs, not ready",
            (true, true) => "ready",
        };
        println!("  {:<24} {how}, {}, log {}", node.name, node.ip, node.daemon.log.display());
    }
    Ok(())
}

/// Waits until every node says that it is ready.
pub fn wait_nodes_ready(cluster: &Cluster) -> Result<()> {
    let deadline = clock::now() + NODES_PATIENCE;
    loop {
        let ready = ready_nodes(cluster).unwrap_or_default();
        let Some(waiting) = cluster.nodes.iter().find(|node| !ready.contains(&node.name)) else {
            return Ok(());
        };
        for node in &cluster.nodes {
            let log = tail(&node.daemon.log);
            ensure!(node.daemon.is_alive(), "{} ended; the end of its log:\n{log}", node.name);
        }
        ensure!(
            clock::now() < deadline,
            "{} is not ready after {NODES_PATIENCE:?}; the end of the kubelet's log:\n{}",
            waiting.name,
            tail(&cluster.dir.join("logs").join(format!("{}-kubelet.log", waiting.name)))
        );
        thread::sleep(Duration::from_millis(200));
    }
}

/// The names of the nodes that Kubernetes takes for ready.
fn ready_nodes(cluster: &Cluster) -> Result<Vec<String>> {
    if cluster.nodes.is_empty() {
        return Ok(Vec::new());
    }
    let output = kubectl(cluster).args(["get", "nodes", "-o", "json", "--request-timeout=5s"]).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let listed: Value = serde_json::from_slice(&output.stdout)?;
    let items = listed["items"].as_array().context("a list has items")?;
    let is_ready = |node: &&Value| {
        let conditions = node["status"]["conditions"].as_array();
        conditions.is_some_and(|all| all.iter().any(|one| one["type"] == "Ready" && one["status"] == "True"))
    };
    Ok(items
        .iter()
        .filter(is_ready)
        .filter_map(|node| node["metadata"]["name"].as_str().map(str::to_owned))
        .collect())
}
