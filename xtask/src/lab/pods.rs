//! Pods: made, announced to their node's agent, started, ended.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::exec::{Entry, FAILURES, names_dir, pod_entry};
use super::names::Names;
use super::network::{self, PodLink};
use super::state::{Enrolment, Lab, Node, Pod};
use super::world::plan::{Plan, PlannedPod};
use super::{cgroup, hosts};
use crate::{clock, shell};

/// How long a pod's command may take to listen on the ports that the pod declares.
const START_PATIENCE: Duration = Duration::from_secs(5);

/// How much of a log is shown when its process fails, in lines.
const LOG_TAIL_LINES: usize = 40;

/// A planned pod's entry in the lab's state, before anything of it exists.
pub fn describe(names: &Names, lab: &Lab, node: &Node, planned: &PlannedPod) -> Pod {
    let netns = if planned.host_network {
        node.netns.clone()
    } else {
        network::netns_path(&names.pod_netns(&planned.namespace, &planned.name))
    };
    let file_stem = file_stem(&planned.namespace, &planned.name);
    let runs = !planned.command.is_empty();
    let (cgroup, container, sandbox) = cgroups(lab.enrolment, node, planned, &file_stem);
    Pod {
        name: planned.name.clone(),
        namespace: planned.namespace.clone(),
        node: planned.node.clone(),
        uid: planned.uid.clone(),
        ips: planned.ips.clone(),
        netns,
        cgroup,
        container,
        sandbox,
        service_account: planned.service_account.clone(),
        meshed: planned.meshed && !planned.host_network,
        pid: None,
        log: runs.then(|| lab.dir.join("logs").join(format!("{file_stem}.log"))),
        command: planned.command.clone(),
        env: planned.env.clone(),
        ports: planned.ports.clone(),
    }
}

/// A pod's cgroup, its commands' and its placeholder's. Where they are laid out as kubelet's, there are pods of every quality
/// of service.
fn cgroups(
    enrolment: Enrolment,
    node: &Node,
    planned: &PlannedPod,
    file_stem: &str,
) -> (PathBuf, PathBuf, Option<PathBuf>) {
    if enrolment == Enrolment::Files {
        let own = node.pods_cgroup().join(file_stem);
        return (own.clone(), own, None);
    }
    let quality = match planned.uid.as_bytes().first() {
        Some(b'0'..=b'4') => "besteffort",
        Some(b'5'..=b'9') => "",
        _ => "burstable",
    };
    let own = enrolment.pod(&node.cgroup, &planned.uid, quality);
    let turned: String = planned.uid.chars().rev().collect();
    let (container, sandbox) = (enrolment.container(&own, &planned.uid), enrolment.container(&own, &turned));
    (own, container, Some(sandbox))
}

/// Makes the network and cgroups of pods.
pub fn create(lab: &Lab, pods: &[&Pod]) -> Result<()> {
    let mut links = Vec::new();
    for pod in pods {
        let node = lab.node(&pod.node)?;
        for group in [&pod.cgroup, &pod.container].into_iter().chain(&pod.sandbox) {
            cgroup::create(group)?;
        }
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

/// A pod's place in the network; none for a pod on its node's own.
fn link<'a>(lab: &'a Lab, pod: &'a Pod) -> Result<Option<PodLink<'a>>> {
    let node = lab.node(&pod.node)?;
    if pod.netns == node.netns {
        return Ok(None);
    }
    let (netns, node_netns) = (netns_name(&pod.netns)?, netns_name(&node.netns)?);
    Ok(Some(PodLink { netns, node_number: lab.node_number(&pod.node)?, node_netns, ips: &pod.ips }))
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

/// Tells a node's agent of a pod: by a file, as a container runtime's hook can in a cluster, or by starting the process that
/// keeps the pod's place, as every container runtime does. Pods on the node's own network have no file.
pub fn announce(lab: &Lab, pod: &Pod) -> Result<()> {
    if let Some(sandbox) = &pod.sandbox {
        let entry = Entry { cgroup: sandbox.clone(), netns: pod.netns.clone(), cpus: None, pod: None };
        let pause = ["sleep".to_owned(), "infinity".to_owned()];
        let started = spawn(&entry, &pause, Path::new("/dev/null"), Stdio::null());
        return started.map(drop).with_context(|| format!("cannot start {}/{}", pod.namespace, pod.name));
    }
    if pod.netns == lab.node(&pod.node)?.netns {
        return Ok(());
    }
    let path = sandbox_file(&lab.dir, pod);
    let sandbox = serde_json::json!({
        "namespace": pod.namespace, "name": pod.name, "uid": pod.uid, "netns": pod.netns, "cgroup": pod.cgroup,
    });
    // Only `.json` files are read as sandboxes.
    let temporary = path.with_extension("json.new");
    let written = fs::write(&temporary, format!("{sandbox}\n")).and_then(|()| fs::rename(&temporary, &path));
    written.with_context(|| format!("cannot write {}", path.display()))
}

/// Starts the commands of pods, and waits until each runs and listens on the ports that its pod declares.
///
/// # Errors
/// When a command cannot be run. One that ends, or does not listen in time, is only told: both are states a pod can have.
pub fn start(lab: &Lab, pods: &mut [&mut Pod]) -> Result<()> {
    let mut started = Vec::new();
    for pod in pods {
        let Some(log) = &pod.log else { continue };
        let child = spawn(&pod_entry(lab, pod)?, &pod.command, log, Stdio::null())
            .with_context(|| format!("cannot start the pod {}/{}", pod.namespace, pod.name))?;
        pod.pid = Some(child.id());
        started.push((child, &**pod));
    }
    let deadline = clock::now() + START_PATIENCE;
    started.iter_mut().try_for_each(|(child, pod)| wait_started(child, pod, deadline))
}

fn wait_started(child: &mut Child, pod: &Pod, deadline: Instant) -> Result<()> {
    let (name, log) =
        (format!("{}/{}", pod.namespace, pod.name), pod.log.as_deref().unwrap_or_else(|| Path::new("")));
    loop {
        let entered = !is_still_entering(child.id());
        if let Some(status) = child.try_wait()? {
            let end = tail(log);
            let failed_to_enter = !entered && status.code().is_some_and(|code| FAILURES.contains(&code));
            ensure!(!failed_to_enter, "the pod {name} cannot be started:\n{end}");
            shell::say(format!("the pod {name} ended with {status}; see {}", log.display()));
            return Ok(());
        }
        if entered && pod.ports.iter().all(|port| is_listening(child.id(), *port)) {
            return Ok(());
        }
        if clock::now() > deadline {
            shell::say(format!(
                "the pod {name} does not listen on {:?} yet; see {}",
                pod.ports,
                log.display()
            ));
            return Ok(());
        }
        thread::sleep(Duration::from_millis(2));
    }
}

/// Whether a process has not become the pod's command yet.
fn is_still_entering(pid: u32) -> bool {
    let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    // A process that has just ended has no words any more: it never became the command, or it did and is gone.
    words.is_empty() || words.split(|byte| *byte == 0).nth(1) == Some(b"lab-init")
}

/// Whether something listens on a TCP port in the network namespace of a process. Looking does not connect.
fn is_listening(pid: u32, port: u16) -> bool {
    let suffix = format!(":{port:04X}");
    ["tcp", "tcp6"].iter().any(|table| {
        let text = fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap_or_default();
        text.lines().skip(1).any(|line| {
            let mut fields = line.split_whitespace().skip(1);
            // Local address, remote address, state; 0A is TCP_LISTEN (include/net/tcp_states.h).
            fields.next().is_some_and(|local| local.ends_with(&suffix)) && fields.nth(1) == Some("0A")
        })
    })
}

/// The last lines of a log.
pub fn tail(log: &Path) -> String {
    let text = fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n")
}

/// Ends a pod and removes all of it.
pub fn remove(lab: &Lab, pod: &Pod) -> Result<()> {
    cgroup::kill(&pod.cgroup)?;
    let _ = fs::remove_file(sandbox_file(&lab.dir, pod));
    if let Some(link) = link(lab, pod)? {
        network::remove_pod(&link)?;
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
