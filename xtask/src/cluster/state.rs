//! What a cluster remembers, and what `cluster status --json` says.

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::cache::{Build, Extent};
use super::names::Names;
use crate::clock;
use crate::lab::exec::Entry;
use crate::lab::pods::spawn;

/// How long a process may take to end after SIGKILL.
const END_PATIENCE: Duration = Duration::from_secs(20);

/// A cluster.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Cluster {
    /// Its name.
    pub name: String,
    /// Whether `cluster up` has come to its end.
    pub complete: bool,
    /// All its files.
    pub dir: PathBuf,
    /// Where its programs lie.
    pub build_dir: PathBuf,
    /// The API server's URL, as its own programs reach it.
    pub url: String,
    /// Who reads this may do everything there.
    pub kubeconfig: PathBuf,
    /// The network namespace from which the API server is reached.
    pub netns: PathBuf,
    /// The processes of the control plane, in the order of their start.
    pub daemons: Vec<Daemon>,
    /// The nodes; none where only the API server was asked for.
    pub nodes: Vec<Node>,
}

/// A node.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Node {
    /// What Kubernetes calls it.
    pub name: String,
    /// Its number, from 1.
    pub number: u8,
    /// Its address.
    pub ip: Ipv4Addr,
    /// Its network namespace.
    pub netns: PathBuf,
    /// Its control group in the unified hierarchy.
    pub cgroup: PathBuf,
    /// Its files.
    pub dir: PathBuf,
    /// What runs everything in it.
    pub daemon: Daemon,
}

/// A process that is started and ended by name.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Daemon {
    /// Its name.
    pub name: String,
    /// Where it runs.
    pub entry: Entry,
    /// What it was started with.
    pub command: Vec<String>,
    /// What it prints.
    pub log: PathBuf,
    /// The running process.
    pub process: Option<Process>,
}

/// A process, told apart from a later one of the same id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Process {
    /// Its id.
    pub pid: i32,
    /// When it was started, in the kernel's ticks since the machine's start.
    pub start_ticks: u64,
}

impl Process {
    /// A process that runs now.
    pub fn of(pid: i32) -> Result<Self> {
        let start_ticks = start_ticks(pid).with_context(|| format!("process {pid} has ended already"))?;
        Ok(Self { pid, start_ticks })
    }

    /// Whether it still runs.
    pub fn is_alive(self) -> bool {
        start_ticks(self.pid) == Some(self.start_ticks)
    }

    /// Ends it at once, and waits until it is gone.
    pub fn kill(self) -> Result<()> {
        let deadline = clock::now() + END_PATIENCE;
        while self.is_alive() {
            match kill(Pid::from_raw(self.pid), Signal::SIGKILL) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(e) => return Err(e).with_context(|| format!("cannot end process {}", self.pid)),
            }
            ensure!(clock::now() < deadline, "process {} does not end", self.pid);
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}

/// When a process was started; `None` when it is gone or only waits to be reaped.
fn start_ticks(pid: i32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything; the fields count from behind it (proc_pid_stat(5)).
    let mut fields = text.rsplit_once(") ")?.1.split(' ');
    if fields.next()? == "Z" {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

impl Daemon {
    /// Starts it, unless it runs.
    pub fn start(&mut self) -> Result<()> {
        if self.is_alive() {
            return Ok(());
        }
        let child = spawn(&self.entry, &self.command, &self.log, std::process::Stdio::null())
            .with_context(|| format!("cannot start {}", self.name))?;
        self.process = Some(Process::of(i32::try_from(child.id())?)?);
        Ok(())
    }

    /// Ends it as a power cut would.
    pub fn kill(&mut self) -> Result<()> {
        match self.process.take() {
            Some(process) => process.kill().with_context(|| format!("cannot end {}", self.name)),
            None => Ok(()),
        }
    }

    /// Whether it runs.
    pub fn is_alive(&self) -> bool {
        self.process.is_some_and(Process::is_alive)
    }
}

impl Cluster {
    /// Reads a cluster's state.
    pub fn load(names: &Names) -> Result<Self> {
        let path = state_file(&names.run_dir());
        let Ok(text) = fs::read_to_string(&path) else {
            bail!(
                "there is no cluster named {}: run `cargo xtask cluster up{}`",
                names.cluster(),
                names.option()
            );
        };
        let down = format!("run `cargo xtask cluster down{}`", names.option());
        let cluster: Self = serde_json::from_str(&text)
            .with_context(|| format!("{} is not readable; {down}", path.display()))?;
        ensure!(cluster.complete, "cluster {} is only half up: {down}", names.cluster());
        Ok(cluster)
    }

    /// Writes the state, whole or not at all.
    pub fn save(&self) -> Result<()> {
        let path = state_file(&self.dir);
        let temporary = path.with_extension("new");
        let written = fs::write(&temporary, serde_json::to_vec_pretty(self)?)
            .and_then(|()| fs::rename(&temporary, &path));
        written.with_context(|| format!("cannot write {}", path.display()))
    }

    /// What was built.
    pub fn build(&self) -> Build {
        Build { dir: self.build_dir.clone() }
    }

    /// How much of a cluster it is.
    pub fn extent(&self) -> Extent {
        if self.nodes.is_empty() { Extent::ApiServer } else { Extent::Cluster }
    }

    /// A process of the control plane.
    pub fn daemon(&mut self, name: &str) -> Result<&mut Daemon> {
        let found = self.daemons.iter_mut().find(|daemon| daemon.name == name);
        found.with_context(|| format!("this cluster runs no {name}"))
    }

    /// A node by its name or number.
    pub fn node(&mut self, name: &str) -> Result<&mut Node> {
        let known = self.nodes.iter().map(|node| node.name.clone()).collect::<Vec<_>>().join(", ");
        let found = self.nodes.iter_mut().find(|node| node.name == name || node.number.to_string() == name);
        found.with_context(|| format!("there is no node {name}; this cluster has: {known}"))
    }
}

/// Takes the cluster's lock for as long as the result lives.
///
/// # Errors
/// When another command holds it.
pub fn lock(run_dir: &Path) -> Result<Flock<File>> {
    let dir = File::open(run_dir).with_context(|| format!("cannot open {}", run_dir.display()))?;
    Flock::lock(dir, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| {
        anyhow::anyhow!(
            "another `cargo xtask cluster` command works on this cluster ({error}): try again later"
        )
    })
}

fn state_file(run_dir: &Path) -> PathBuf {
    run_dir.join("state.json")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_told_apart_from_another_of_its_id() {
        let own = Process::of(i32::try_from(std::process::id()).unwrap()).unwrap();
        assert!(own.is_alive());
        assert!(!Process { start_ticks: own.start_ticks + 1, ..own }.is_alive());
    }

    #[test]
    fn a_process_that_waits_to_be_reaped_has_ended() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let process = Process::of(i32::try_from(child.id()).unwrap()).unwrap();
        process.kill().unwrap();
        assert!(!process.is_alive());
        child.wait().unwrap();
    }
}
