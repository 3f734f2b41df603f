//! The simulated API server as a process in the lab's fabric, and what it tells.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Options;
use crate::bench::stage::Stage;
use crate::bench::{account, interrupt};
use crate::lab::exec::Entry;
use crate::lab::names::Names;
use crate::lab::world::plan::fabric_ips;
use crate::lab::{cgroup, network, pods, world};
use crate::{clock, shell};

/// Port of the API, in the lab's fabric.
const PORT: u16 = 6443;

/// The program, which lies beside this one.
const PROGRAM: &str = "weft-scale";

/// How long an answer may take longer than what was ordered.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running simulator.
pub struct Simulator {
    child: Child,
    orders: ChildStdin,
    answers: Receiver<String>,
    cgroup: PathBuf,
    log: PathBuf,
    /// The kubeconfig that leads to it.
    pub kubeconfig: String,
}

/// What an agent asked for and got.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Counts {
    /// Requests by verb and kind.
    pub requests: BTreeMap<String, u64>,
    /// Bytes of lists.
    pub list_bytes: u64,
    /// Bytes of watches.
    pub watch_bytes: u64,
    /// Events of watches.
    pub watch_events: u64,
    /// Bookmarks of watches.
    pub bookmarks: u64,
}

impl Counts {
    /// What was added since `before`.
    pub fn since(&self, before: &Self) -> Self {
        let grown =
            |(what, now): (&String, &u64)| (what.clone(), now - before.requests.get(what).unwrap_or(&0));
        Self {
            requests: self.requests.iter().map(grown).filter(|(_, more)| *more > 0).collect(),
            list_bytes: self.list_bytes - before.list_bytes,
            watch_bytes: self.watch_bytes - before.watch_bytes,
            watch_events: self.watch_events - before.watch_events,
            bookmarks: self.bookmarks - before.bookmarks,
        }
    }

    /// Requests by verb.
    pub fn by_verb(&self) -> BTreeMap<&str, u64> {
        let mut verbs = BTreeMap::new();
        for (what, count) in &self.requests {
            *verbs.entry(what.split(' ').next().unwrap_or_default()).or_insert(0) += count;
        }
        verbs
    }
}

/// How much of the cluster is in the agent's maps.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Filled {
    services: u32,
    services_wanted: u32,
    addresses: u32,
    addresses_wanted: u32,
}

impl Filled {
    /// All of it.
    pub fn is_complete(&self) -> bool {
        self.services == self.services_wanted && self.addresses == self.addresses_wanted
    }
}

/// What was changed.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Changes {
    /// Changes.
    pub changes: u64,
    /// Events that they made.
    pub events: u64,
    /// Seconds.
    pub seconds: f64,
    /// Of them: readiness.
    pub readiness: u64,
    /// Of them: pods replaced.
    pub replaced: u64,
    /// Of them: labels.
    pub relabelled: u64,
    /// How late a change was made at worst.
    pub late_max_ms: f64,
}

/// How long changes took to be in the kernel.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Arrivals {
    /// All.
    pub all: Times,
    /// Pod addresses come and gone.
    pub addresses: Times,
    /// Endpoints come and gone.
    pub endpoints: Times,
    /// Some that took longest, one by one.
    pub slowest: Vec<Slow>,
    /// Those that never came.
    pub never_seen: u64,
}

/// A change that took long.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Slow {
    /// What it was.
    pub what: String,
    /// When it happened, after the first change.
    pub after_s: f64,
    /// From change to map.
    pub took_ms: f64,
}

/// Times.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Times {
    /// How many.
    pub count: u64,
    /// Half took at most this.
    pub p50_ms: Option<f64>,
    /// Of a hundred one took longer.
    pub p99_ms: Option<f64>,
    /// The longest.
    pub max_ms: Option<f64>,
}

impl Simulator {
    /// Starts it, with the objects of the lab's world beside its own.
    pub fn start(stage: &Stage, options: &Options) -> Result<Self> {
        let program = find_program()?;
        let names = Names::new(&stage.lab.name)?;
        let cgroup = cgroup::root()?.join(names.cgroup()).join("api");
        cgroup::create(&cgroup)?;
        let address = SocketAddr::new(fabric_ips()[0], PORT);
        let (given, kubeconfig) = (stage.lab.dir.join("given.json"), stage.lab.dir.join("kubeconfig"));
        fs::write(&given, serde_json::to_vec(&objects(&stage.lab.world)?)?)?;
        fs::write(&kubeconfig, kubeconfig_text(address))?;
        let pin_dir = &stage
            .lab
            .nodes
            .first()
            .and_then(|node| node.agent.as_ref())
            .context("the node has an agent")?
            .pin_dir;
        let mut words = vec![program.display().to_string(), "--listen".into(), address.to_string()];
        words.extend([
            "--pins".into(),
            pin_dir.display().to_string(),
            "--given".into(),
            given.display().to_string(),
        ]);
        for (flag, size) in [
            ("--nodes", options.nodes),
            ("--pods", options.pods),
            ("--services", options.services),
            ("--endpoints", options.endpoints),
            ("--namespaces", options.namespaces),
        ] {
            words.extend([flag.to_owned(), size.to_string()]);
        }
        let netns = network::netns_path(&names.fabric_netns());
        let entry = Entry { cgroup: cgroup.clone(), netns, cpus: None, pod: None };
        let log = stage.lab.dir.join("logs/api.log");
        let mut child = spawn(&entry, &words, &log)?;
        let (orders, output) = (child.stdin.take(), child.stdout.take());
        let (orders, output) = orders.zip(output).context("the simulator's input and output are pipes")?;
        let kubeconfig = kubeconfig.display().to_string();
        let mut simulator = Self { child, orders, answers: lines(output), cgroup, log, kubeconfig };
        simulator.answer::<Value>(PATIENCE)?;
        Ok(simulator)
    }

    /// What was asked for so far.
    pub fn counts(&mut self) -> Result<Counts> {
        self.order("counts")?;
        self.answer(PATIENCE)
    }

    /// How much is in the maps.
    pub fn in_kernel(&mut self) -> Result<Filled> {
        self.order("kernel")?;
        self.answer(PATIENCE)
    }

    /// Changes the cluster for a while.
    pub fn churn(&mut self, per_s: f64, seconds: f64) -> Result<Changes> {
        self.order(&format!("churn {per_s} {seconds}"))?;
        self.answer(Duration::from_secs_f64(seconds) + PATIENCE)
    }

    /// How long the changes took, once the last has come or is given up.
    pub fn arrivals(&mut self) -> Result<Arrivals> {
        self.order("arrivals")?;
        self.answer(PATIENCE)
    }

    /// CPU time that it has used, in seconds.
    pub fn cpu_s(&self) -> Result<f64> {
        account::cpu_s(&self.cgroup)
    }

    fn order(&mut self, line: &str) -> Result<()> {
        let sent = writeln!(self.orders, "{line}").and_then(|()| self.orders.flush());
        sent.with_context(|| {
            format!("the simulator takes no orders; the end of its log:\n{}", pods::tail(&self.log))
        })
    }

    fn answer<T: DeserializeOwned>(&mut self, patience: Duration) -> Result<T> {
        let deadline = clock::now() + patience;
        loop {
            match self.answers.recv_timeout(Duration::from_millis(50)) {
                Ok(line) => {
                    return serde_json::from_str(&line).with_context(|| format!("the simulator said {line}"));
                }
                Err(RecvTimeoutError::Timeout) => {
                    interrupt::check()?;
                    ensure!(clock::now() < deadline, "the simulator does not answer within {patience:?}");
                }
                Err(RecvTimeoutError::Disconnected) => {
                    let status = self.child.wait()?;
                    bail!(
                        "the simulator ended with {status}; the end of its log:\n{}",
                        pods::tail(&self.log)
                    );
                }
            }
        }
    }
}

fn find_program() -> Result<PathBuf> {
    let program = shell::executable_dir()?.join(PROGRAM);
    if !program.exists() {
        shell::say(format!("building {PROGRAM}"));
        shell::run(shell::cargo().args(["build", "--release", "--package", "mesh-tests", "--bin", PROGRAM]))?;
    }
    ensure!(
        program.exists(),
        "{} is missing: use `cargo xtask`, which runs and builds in one profile",
        program.display()
    );
    Ok(program)
}

/// Starts a command at its place, to be spoken with.
fn spawn(entry: &Entry, words: &[String], log: &Path) -> Result<Child> {
    let log = File::create(log).with_context(|| format!("cannot write to {}", log.display()))?;
    let mut command = Command::new(std::env::current_exe().context("cannot find the running executable")?);
    command.args(["lab-init", &serde_json::to_string(entry)?, "--"]).args(words);
    Ok(command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log).spawn()?)
}

fn lines(output: impl std::io::Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

/// The objects of a world.
fn objects(world: &Path) -> Result<Vec<Value>> {
    let mut objects = Vec::new();
    for file in world::read(world)? {
        for (_, document) in file.documents {
            let object: Value = serde_json::to_value(&document.value)?;
            if !object.is_null() {
                objects.push(object);
            }
        }
    }
    Ok(objects)
}

fn kubeconfig_text(api: SocketAddr) -> String {
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: simulated\n\
         clusters: [{{name: simulated, cluster: {{server: \"http://{api}\"}}}}]\n\
         users: [{{name: agent, user: {{token: simulated}}}}]\n\
         contexts: [{{name: simulated, context: {{cluster: simulated, user: agent}}}}]\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_told_apart_from_those_before() {
        let counts = |list: u64, watch: u64| Counts {
            requests: [
                ("list pods".to_owned(), list),
                ("watch pods".to_owned(), watch),
                ("list nodes".to_owned(), list),
            ]
            .into(),
            ..Counts::default()
        };
        let grown = counts(5, 7).since(&counts(3, 7));
        assert_eq!(grown.by_verb(), [("list", 4)].into());
        assert_eq!(counts(1, 2).by_verb(), [("list", 2), ("watch", 2)].into());
    }
}
