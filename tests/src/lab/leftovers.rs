//! What is left when a lab has ended, and labs whose tests could not end them.

use std::fs;

use super::state::State;
use super::{RUN_ROOT, xtask};

/// What is left of a lab, found without asking the lab's own code.
pub(super) fn leftovers(name: &str, state: &State) -> Vec<String> {
    let netns = state.pods.iter().map(|pod| &pod.netns).chain(state.nodes.iter().map(|node| &node.netns));
    let cgroups = state.pods.iter().map(|pod| &pod.cgroup).chain(state.nodes.iter().map(|node| &node.cgroup));
    let agents = || state.nodes.iter().filter_map(|node| node.agent.as_ref());
    let pins = agents().map(|agent| &agent.pin_dir);
    let places = netns.chain(cgroups).chain(pins).chain([&state.dir]);
    let mut left: Vec<String> =
        places.filter(|place| place.exists()).map(|place| place.display().to_string()).collect();
    let processes = agents().chain(state.control.as_ref()).map(|process| process.pid);
    left.extend(processes.filter(|pid| !is_gone(*pid)).map(|pid| format!("process {pid}")));
    left.extend(strangers(name));
    left
}

/// Processes that were started for the lab, by their command lines.
fn strangers(name: &str) -> Vec<String> {
    let mark = format!("{RUN_ROOT}/{name}/");
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    let lines = processes.flatten().filter_map(|process| {
        let line = fs::read(process.path().join("cmdline")).ok()?;
        Some((process.file_name(), String::from_utf8_lossy(&line).replace('\0', " ")))
    });
    let own = lines.filter(|(_, line)| line.contains(&mark));
    own.map(|(pid, line)| format!("process {}: {line}", pid.to_string_lossy())).collect()
}

/// Whether a process has ended.
pub(super) fn is_gone(pid: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The state follows the name, which is in parentheses. A zombie is gone but for its parent.
    status.rsplit(") ").next().is_none_or(|rest| rest.is_empty() || rest.starts_with(['Z', 'X']))
}

/// Ends labs whose test was killed before it could.
pub(super) fn sweep() {
    let Ok(labs) = fs::read_dir(RUN_ROOT) else { return };
    for lab in labs.flatten() {
        let name = lab.file_name().to_string_lossy().into_owned();
        let owner = name.strip_prefix("test-").and_then(|rest| rest.split('-').next()?.parse().ok());
        if owner.is_some_and(|pid: i32| is_gone(pid)) {
            let _ = xtask().args(["lab", "down", "--name", &name]).output();
        }
    }
}
