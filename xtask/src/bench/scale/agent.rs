//! A node's agent that gets what it knows from an API server, started as if none had ever run there.

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;

use super::simulator::Simulator;
use crate::bench::stage::Stage;
use crate::bench::{account, interrupt};
use crate::clock;
use crate::lab::exec::Entry;
use crate::lab::{agents, pods};
use crate::shell;

/// How long the agent may take to become ready: it reads hundreds of megabytes first.
const READY_PATIENCE: Duration = Duration::from_secs(300);

/// A running agent.
pub struct Agent {
    child: std::cell::RefCell<Child>,
    log: PathBuf,
    /// Its control group, in which it is alone.
    pub cgroup: PathBuf,
}

impl Agent {
    /// Ends the lab's own agent, takes all of it out of the kernel, and starts one in its place with the same words but for
    /// where objects come from. Returns when it is ready.
    pub fn start(stage: &Stage, simulator: &Simulator) -> Result<Self> {
        let node = stage.lab.nodes.first().context("the lab has a node")?;
        let lab_agent = node.agent.as_ref().context("the node has an agent")?;
        let cgroup = node.agent_cgroup();
        // What a bench starts does not hear SIGTERM: it inherits the signals that the bench itself waits for (`interrupt`).
        agents::end(&cgroup, Signal::SIGKILL)?;
        uninstall(&lab_agent.command, &node.name, &lab_agent.pin_dir)?;
        let entry = Entry { cgroup: cgroup.clone(), netns: node.netns.clone(), cpus: None, pod: None };
        let listener = TcpListener::bind("127.0.0.1:0").context("cannot listen for admin pages")?;
        let admin = listener.local_addr()?;
        let command = fed_by_api(&lab_agent.command, &simulator.kubeconfig)?;
        let child = pods::spawn(&entry, &command, &lab_agent.log, Stdio::from(OwnedFd::from(listener)))?;
        let agent = Self { child: child.into(), log: lab_agent.log.clone(), cgroup };
        let deadline = clock::now() + READY_PATIENCE;
        while !agents::is_ready(admin) {
            agent.check()?;
            ensure!(
                clock::now() < deadline,
                "the agent is not ready after {READY_PATIENCE:?}; the end of its log:\n{}",
                pods::tail(&agent.log)
            );
            interrupt::sleep(Duration::from_millis(20))?;
        }
        Ok(agent)
    }

    /// Fails when it has ended.
    pub fn check(&self) -> Result<()> {
        if let Some(status) = self.child.borrow_mut().try_wait()? {
            bail!("the agent ended with {status}; the end of its log:\n{}", pods::tail(&self.log));
        }
        Ok(())
    }

    fn pid(&self) -> u32 {
        self.child.borrow().id()
    }

    /// Resident memory.
    pub fn rss_mb(&self) -> Result<f64> {
        Ok(account::rss_kib(self.pid())? * 1024.0 / 1e6)
    }

    /// The most resident memory that it ever had.
    pub fn peak_mb(&self) -> Result<f64> {
        Ok(account::peak_rss_kib(self.pid())? * 1024.0 / 1e6)
    }

    /// Memory of the maps that it holds, as the kernel counts it.
    pub fn kernel_mb(&self) -> Result<f64> {
        let mut maps = BTreeMap::new();
        for entry in fs::read_dir(format!("/proc/{}/fdinfo", self.pid()))?.flatten() {
            let text = fs::read_to_string(entry.path()).unwrap_or_default();
            let number = |name: &str| {
                text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok())
            };
            if let (Some(id), Some(bytes)) = (number("map_id:"), number("memlock:")) {
                maps.insert(id, bytes);
            }
        }
        Ok(maps.values().sum::<u64>() as f64 / 1e6)
    }
}

/// The words of an agent that reads files, with an API server in their place.
fn fed_by_api(words: &[String], kubeconfig: &str) -> Result<Vec<String>> {
    let mut words = words.to_vec();
    let at = words.iter().position(|word| word == "--config-dir").context("the lab's agent reads files")?;
    words.splice(at..=at + 1, ["--kubernetes".to_owned(), "--kubeconfig".to_owned(), kubeconfig.to_owned()]);
    Ok(words)
}

fn uninstall(words: &[String], node: &str, pin_dir: &std::path::Path) -> Result<()> {
    let program = words.first().context("an agent's command has a program")?;
    let mut command = Command::new(program);
    command.args(["node", "--node", node, "--uninstall", "--pin-dir"]).arg(pin_dir);
    shell::run(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_that_read_files_asks_the_api_server_and_stays_the_same_otherwise() {
        let words = ["mesh-agent", "node", "--config-dir", "/w", "--workers", "2"].map(str::to_owned);
        let wanted = ["mesh-agent", "node", "--kubernetes", "--kubeconfig", "/k", "--workers", "2"];
        assert_eq!(fed_by_api(&words, "/k").unwrap(), wanted);
        assert!(fed_by_api(&words[..2], "/k").is_err());
    }
}
