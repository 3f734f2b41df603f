//! What a lab is doing now, for people and for machines.

use std::fmt::Write;

use anyhow::Result;

use super::state::Lab;
use super::{cgroup, names::Names};

/// Brings what changes by itself up to date: which processes live.
///
/// A process counts when it is in its own cgroup: a number that was given to another process since does not.
pub fn refresh(lab: &mut Lab) {
    let lives = |pid: u32, cgroup: &std::path::Path| {
        i32::try_from(pid).is_ok_and(|pid| cgroup::processes(cgroup).contains(&pid))
    };
    if let Some(control) = &mut lab.control {
        control.alive = lives(control.pid, &control.cgroup);
    }
    for node in &mut lab.nodes {
        let cgroup = node.agent_cgroup();
        if let Some(agent) = &mut node.agent {
            agent.alive = lives(agent.pid, &cgroup);
        }
    }
    for pod in &mut lab.pods {
        pod.pid = pod.pid.filter(|pid| lives(*pid, &pod.cgroup));
    }
}

/// Runs `lab status`.
pub fn run(names: &Names, json: bool) -> Result<()> {
    let mut lab = Lab::load(names)?;
    refresh(&mut lab);
    print(&lab, json)
}

/// Prints a lab to standard output.
pub fn print(lab: &Lab, json: bool) -> Result<()> {
    if json {
        println!("{}", serde_json::to_string_pretty(lab)?);
    } else {
        print!("{}", table(lab));
    }
    Ok(())
}

fn table(lab: &Lab) -> String {
    let mut text = format!("lab {} ({:?}), world {}\n", lab.name, lab.phase, lab.world.display());
    if let Some(api) = &lab.api {
        let (pid, kubeconfig) = (api.pid, api.kubeconfig.display());
        let _ = writeln!(text, "api       pid {pid}, http://{}, kubeconfig {kubeconfig}", api.address);
    }
    let state = |alive: bool| if alive { "runs" } else { "DEAD" };
    if let Some(control) = &lab.control {
        let (pid, admin) = (control.pid, &control.admin);
        let _ = writeln!(text, "control   {} pid {pid}, admin http://{admin}", state(control.alive));
    }
    for node in &lab.nodes {
        let agent = node.agent.as_ref().map_or_else(
            || "no agent".to_owned(),
            |agent| format!("agent {} pid {}, admin http://{}", state(agent.alive), agent.pid, agent.admin),
        );
        let _ = writeln!(text, "node      {:<24} {:<16} {agent}", node.name, node.ip.to_string());
    }
    for pod in &lab.pods {
        let name = format!("{}/{}", pod.namespace, pod.name);
        let ip = pod.ips.first().map(ToString::to_string).unwrap_or_default();
        let mesh = if pod.meshed { "meshed" } else { "plain" };
        let runs = match (pod.pid, pod.command.is_empty()) {
            (Some(pid), _) => format!("pid {pid}"),
            (None, true) => "no command".to_owned(),
            (None, false) => "ENDED".to_owned(),
        };
        let _ = writeln!(text, "pod       {name:<24} {ip:<16} {:<10} {mesh:<7} {runs}", pod.node);
    }
    for service in &lab.services {
        let name = format!("{}/{}", service.namespace, service.name);
        let _ = writeln!(text, "service   {name:<24} {}", service.cluster_ip);
    }
    text
}
