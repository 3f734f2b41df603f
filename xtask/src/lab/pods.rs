//! Pods: made, announced to their node's agent, started, ended.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};

use super::exec::{Entry, names_dir, pod_entry};
use super::names::Names;
use super::network::{self, PodLink};
use super::state::{Lab, Node, Pod};
use super::world::plan::{Plan, PlannedPod};
use super::{cgroup, hosts};

/// A planned pod's entry in the lab's state, before anything of it exists.
pub fn describe(names: &Names, dir: &Path, node: &Node, planned: &PlannedPod) -> Pod {
    let netns = if planned.host_network {
        node.netns.clone()
    } else {
        network::netns_path(&names.pod_netns(&planned.namespace, &planned.name))
    };
    let file_stem = file_stem(&planned.namespace, &planned.name);
    let runs = !planned.command.is_empty();
    Pod {
        name: planned.name.clone(),
        namespace: planned.namespace.clone(),
        node: planned.node.clone(),
        uid: planned.uid.clone(),
        ips: planned.ips.clone(),
        netns,
        cgroup: node.pods_cgroup().join(&file_stem),
        service_account: planned.service_account.clone(),
        meshed: planned.meshed && !planned.host_network,
        pid: None,
        log: runs.then(|| dir.join("logs").join(format!("{file_stem}.log"))),
        command: planned.command.clone(),
        env: planned.env.clone(),
    }
}

/// Makes the network and cgroups of pods.
pub fn create(lab: &Lab, pods: &[&Pod]) -> Result<()> {
    let mut links = Vec::new();
    for pod in pods {
        let node = lab.node(&pod.node)?;
        cgroup::create(&pod.cgroup)?;
        if pod.netns != node.netns {
            let (netns, node_netns) = (netns_name(&pod.netns)?, netns_name(&node.netns)?);
            links.push(PodLink {
                netns,
                node_number: lab.node_number(&pod.node)?,
                node_netns,
                ips: &pod.ips,
            });
        }
    }
    if links.is_empty() { Ok(()) } else { network::create_pods(&links) }
}

/// Writes the name files of every namespace. They are rewritten in place, since running pods see them through a bind mount.
pub fn write_names(dir: &Path, plan: &Plan) -> Result<()> {
    for pod in &plan.pods {
        let own = names_dir(dir, &pod.namespace);
        fs::create_dir_all(&own).with_context(|| format!("cannot make {}", own.display()))?;
        fs::write(own.join("hosts"), hosts::hosts(&pod.namespace, plan))?;
        fs::write(own.join("resolv.conf"), hosts::resolv_conf(&pod.namespace))?;
    }
    Ok(())
}

/// Tells a node's agent of a pod, as a container runtime's hook does in a cluster. Pods on the node's own network are not told.
pub fn announce(lab: &Lab, pod: &Pod) -> Result<()> {
    if pod.netns == lab.node(&pod.node)?.netns {
        return Ok(());
    }
    let path = sandbox_file(&lab.dir, pod);
    let sandbox = serde_json::json!({
        "namespace": pod.namespace, "name": pod.name, "uid": pod.uid, "netns": pod.netns, "cgroup": pod.cgroup,
    });
    // The dot keeps the unfinished file from being read as a sandbox.
    let temporary = path.with_file_name(format!(".{}_{}", pod.namespace, pod.name));
    let written = fs::write(&temporary, format!("{sandbox}\n")).and_then(|()| fs::rename(&temporary, &path));
    written.with_context(|| format!("cannot write {}", path.display()))
}

/// Starts a pod's command, if it has one.
pub fn start(lab: &Lab, pod: &mut Pod) -> Result<()> {
    let Some(log) = &pod.log else { return Ok(()) };
    let child = spawn(&pod_entry(lab, pod)?, &pod.command, log, Stdio::null())
        .with_context(|| format!("cannot start the pod {}/{}", pod.namespace, pod.name))?;
    pod.pid = Some(child.id());
    Ok(())
}

/// Ends a pod and removes all of it.
pub fn remove(lab: &Lab, pod: &Pod) -> Result<()> {
    cgroup::kill(&pod.cgroup)?;
    let _ = fs::remove_file(sandbox_file(&lab.dir, pod));
    if pod.netns != lab.node(&pod.node)?.netns {
        network::remove_namespaces([netns_name(&pod.netns)?])?;
    }
    cgroup::remove(&pod.cgroup)
}

/// Starts a command at its place, its output appended to `log`.
pub fn spawn(entry: &Entry, command: &[String], log: &Path, stdin: Stdio) -> Result<Child> {
    let log = File::options()
        .create(true)
        .append(true)
        .open(log)
        .with_context(|| format!("cannot write to {}", log.display()))?;
    let executable = std::env::current_exe().context("cannot find the running executable")?;
    let mut child = Command::new(executable);
    child.args(["lab-init", &serde_json::to_string(entry)?, "--"]).args(command);
    child.stdin(stdin).stdout(log.try_clone()?).stderr(log);
    Ok(child.spawn()?)
}

/// The directory in which a node's agent finds its pods.
pub fn sandbox_dir(run_dir: &Path, node: &str) -> PathBuf {
    run_dir.join("sandboxes").join(node)
}

fn sandbox_file(run_dir: &Path, pod: &Pod) -> PathBuf {
    sandbox_dir(run_dir, &pod.node).join(format!("{}.json", file_stem(&pod.namespace, &pod.name)))
}

/// `NAMESPACE_POD`: neither name can hold the underscore.
fn file_stem(namespace: &str, pod: &str) -> String {
    format!("{namespace}_{pod}")
}

fn netns_name(path: &Path) -> Result<&str> {
    path.file_name().and_then(|name| name.to_str()).context("a network namespace has a name")
}
