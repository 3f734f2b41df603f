//! One measurement: a server in one pod, a client in another, and what it cost.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use super::account::{self, Moment};
use super::interrupt;
use super::stage::Stage;
use crate::app::bench::client::Measured;
use crate::app::bench::server::Seen;
use crate::clock;

/// How long agents may take to count the connections of a run: the kernel's events reach them a little later.
const COUNT_PATIENCE: Duration = Duration::from_secs(1);

/// Threads of a server that answers many short connections: more than any client opens at a time.
const ACCEPT_THREADS: usize = 40;

/// What a server and a client are told to do.
pub struct Traffic {
    /// The server's port.
    pub port: u16,
    /// The server's part of its command line.
    pub server_words: Vec<String>,
    /// The client's.
    pub client_words: Vec<String>,
    /// Connections that the client opens; as many as it counts when absent.
    pub connections: Option<u64>,
}

/// What is sent over plain TCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Kind {
    /// Round trips of this many bytes each way on one connection.
    RoundTrips(usize),
    /// One stream.
    Bulk,
    /// New connections, this many at a time, 64 bytes each way on each.
    Connections(usize),
}

impl Kind {
    /// Name in tables.
    pub fn name(self) -> String {
        match self {
            Self::RoundTrips(size) if size >= 1024 => format!("round trips {} KiB", size / 1024),
            Self::RoundTrips(size) => format!("round trips {size} B"),
            Self::Bulk => "bulk, 1 stream".to_owned(),
            Self::Connections(many) => format!("new connections, {many} at a time"),
        }
    }

    /// The server's port. Each kind has its own, for an agent may learn what a port is used for.
    pub fn port(self) -> u16 {
        match self {
            Self::RoundTrips(0..1024) => 7001,
            Self::RoundTrips(1024..16384) => 7002,
            Self::RoundTrips(_) => 7003,
            Self::Bulk => 7010,
            Self::Connections(1) => 7020,
            Self::Connections(_) => 7021,
        }
    }

    /// What the ends are told to do.
    pub fn traffic(self) -> Traffic {
        Traffic {
            port: self.port(),
            server_words: self.server_words(),
            client_words: self.client_words(),
            connections: (!matches!(self, Self::Connections(_))).then_some(1),
        }
    }

    fn server_words(self) -> Vec<String> {
        let threads = ACCEPT_THREADS.to_string();
        match self {
            Self::RoundTrips(size) => vec!["echo".into(), "--size".into(), size.to_string()],
            Self::Bulk => vec!["sink".into()],
            Self::Connections(_) => {
                vec!["echo".into(), "--size".into(), "64".into(), "--threads".into(), threads]
            }
        }
    }

    fn client_words(self) -> Vec<String> {
        match self {
            Self::RoundTrips(size) => vec!["round-trips".into(), "--size".into(), size.to_string()],
            Self::Bulk => vec!["bulk".into()],
            Self::Connections(many) => vec!["connections".into(), "--concurrency".into(), many.to_string()],
        }
    }
}

/// From where to where, and who stands between.
pub struct Path<'a> {
    /// The lab.
    pub stage: &'a Stage,
    /// The client's pod.
    pub client: &'a str,
    /// The server's pod.
    pub server: &'a str,
    /// Where the client dials.
    pub dial: Dial,
    /// Cgroups of the proxies or agents on the way.
    pub proxies: Vec<PathBuf>,
    /// The proxies' or agents' processes whose memory is read during each run; none when it does not matter.
    pub pids: Vec<u32>,
}

/// Where a client dials.
#[derive(Clone, Copy, Debug)]
pub enum Dial {
    /// The server's own address.
    Server,
    /// This address: a service's.
    Address(IpAddr),
    /// A proxy in the client's pod, which listens at the server's port and this much.
    Proxy(u16),
}

impl Dial {
    fn target(self, path: &Path<'_>, port: u16) -> Result<SocketAddr> {
        Ok(match self {
            Self::Server => {
                let ips = &path.stage.pod(path.server)?.ips;
                SocketAddr::new(*ips.first().context("a pod has an address")?, port)
            }
            Self::Address(address) => SocketAddr::new(address, port),
            Self::Proxy(offset) => SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port + offset),
        })
    }
}

/// Which CPU each end stays on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Ends {
    /// The client's.
    pub client_cpu: usize,
    /// The server's.
    pub server_cpu: usize,
}

/// What one measurement gave.
#[derive(Clone, Debug, Serialize)]
pub struct Sample {
    /// The client's word.
    pub client: Measured,
    /// The server's word.
    pub server: Seen,
    /// CPU time of everything in the lab while the client ran, in seconds.
    pub cpu_path_s: f64,
    /// CPU time of the proxies or agents alone, in seconds.
    pub cpu_proxies_s: f64,
    /// CPU that others used meanwhile, in cores.
    pub foreign_cores: f64,
    /// CPU that the hypervisor took, in cores.
    pub stolen_cores: f64,
    /// Connections that the agents say were opened, by path.
    pub paths: BTreeMap<String, f64>,
    /// Requests that the client's agent counted, by route.
    pub routes: BTreeMap<String, f64>,
    /// Resident memory of the proxies or agents towards the end of the run, in KiB.
    pub rss_kib: Vec<f64>,
}

impl Sample {
    /// Whether nothing went wrong.
    pub fn is_clean(&self) -> bool {
        self.client.error_count == 0 && self.server.error_count == 0
    }

    /// Per second: connections or round trips.
    pub fn rate(&self) -> f64 {
        self.client.count as f64 / self.client.seconds
    }

    /// Gbit/s of a stream.
    pub fn gbit_s(&self) -> f64 {
        self.client.bytes as f64 * 8.0 / 1e9 / self.client.seconds
    }
}

/// Measures once.
pub fn measure(path: &Path<'_>, traffic: &Traffic, ends: Ends, seconds: f64) -> Result<Sample> {
    interrupt::check()?;
    let words = traffic.server_words.clone();
    let mut server = Server::start(path.stage, path.server, traffic.port, ends.server_cpu, words)?;
    let target = path.dial.target(path, traffic.port)?;
    let words = traffic.client_words.clone();
    let mut client = client_command(path, target, ends.client_cpu, seconds, words)?;
    let opened = counted(path, Family::Connections)?;
    let requests = counted(path, Family::Requests)?;
    let (all, proxies) = (account::cpu_s(&path.stage.cgroup()?)?, cpu_of(&path.proxies)?);
    let before = Moment::now()?;
    let (output, rss_kib) = run_client(&mut client, path, seconds)?;
    let between = before.until(&Moment::now()?);
    let cpu_path_s = account::cpu_s(&path.stage.cgroup()?)? - all;
    let cpu_proxies_s = cpu_of(&path.proxies)? - proxies;
    ensure!(output.status.success(), "the client in {} ended with {}", path.client, output.status);
    let client: Measured =
        serde_json::from_slice(&output.stdout).context("the client's result is not readable")?;
    let paths = wait_counted(path, &opened, traffic.connections.unwrap_or(client.count_all))?;
    let routes = account::growth(&requests, &counted(path, Family::Requests)?);
    let server = server.end()?;
    let foreign_cores = (between.busy - cpu_path_s / between.seconds).max(0.0);
    Ok(Sample {
        client,
        server,
        cpu_path_s,
        cpu_proxies_s,
        foreign_cores,
        stolen_cores: between.stolen,
        paths,
        routes,
        rss_kib,
    })
}

/// Runs a client to its end, and reads the proxies' memory when most of its time has passed.
fn run_client(client: &mut Command, path: &Path<'_>, seconds: f64) -> Result<(Output, Vec<f64>)> {
    let child = client.stdout(Stdio::piped()).spawn().context("cannot start the client")?;
    let mut rss_kib = Vec::new();
    if !path.pids.is_empty() {
        thread::sleep(Duration::from_secs_f64(seconds * 0.9));
        rss_kib = path.pids.iter().map(|pid| account::rss_kib(*pid)).collect::<Result<_>>()?;
    }
    Ok((child.wait_with_output().context("cannot wait for the client")?, rss_kib))
}

fn client_command(
    path: &Path<'_>,
    target: SocketAddr,
    cpu: usize,
    seconds: f64,
    words: Vec<String>,
) -> Result<Command> {
    let mut all: Vec<String> = ["xtask", "app", "bench-client", "--target"].map(str::to_owned).to_vec();
    all.extend([
        target.to_string(),
        "--cpu".into(),
        cpu.to_string(),
        "--seconds".into(),
        seconds.to_string(),
    ]);
    all.extend(words);
    let mut command = path.stage.command(path.client, all.into_iter().map(OsString::from))?;
    command.stdin(Stdio::null()).stderr(Stdio::inherit());
    Ok(command)
}

fn cpu_of(cgroups: &[PathBuf]) -> Result<f64> {
    cgroups.iter().map(|cgroup| account::cpu_s(cgroup)).sum()
}

/// What agents count.
#[derive(Clone, Copy)]
enum Family {
    /// Opened connections, by path.
    Connections,
    /// Requests, by route.
    Requests,
}

/// What the client's pod has done so far, as the agents of the lab count it.
fn counted(way: &Path<'_>, family: Family) -> Result<BTreeMap<String, f64>> {
    let (name, label) = match family {
        Family::Connections => ("weft_connections_opened_total", "path"),
        Family::Requests => ("weft_http_requests_total", "route"),
    };
    let mut sums = BTreeMap::new();
    for agent in way.stage.lab.nodes.iter().filter_map(|node| node.agent.as_ref()) {
        let page = account::metrics(&agent.admin)?;
        let by = format!("source_workload=\"{}\"", way.client);
        for (key, count) in account::sums_by_label(&page, name, &["reporter=\"source\"", &by], label) {
            *sums.entry(key).or_insert(0.0) += count;
        }
    }
    Ok(sums)
}

/// What the agents have counted since `before`; waits until it is all that the client says, or [`COUNT_PATIENCE`] is over.
fn wait_counted(
    way: &Path<'_>,
    before: &BTreeMap<String, f64>,
    wanted: u64,
) -> Result<BTreeMap<String, f64>> {
    let deadline = clock::now() + COUNT_PATIENCE;
    loop {
        let grown = account::growth(before, &counted(way, Family::Connections)?);
        let counted: f64 = grown.values().sum();
        if counted >= wanted as f64 || clock::now() > deadline || way.stage.lab.control.is_none() {
            return Ok(grown);
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// A server in a pod; killed when dropped.
pub struct Server {
    child: Child,
    says: BufReader<ChildStdout>,
}

impl Server {
    /// Starts it, and waits until it listens.
    pub fn start(stage: &Stage, pod: &str, port: u16, cpu: usize, words: Vec<String>) -> Result<Self> {
        let mut all: Vec<String> = ["xtask", "app", "bench-server", "--port"].map(str::to_owned).to_vec();
        all.extend([port.to_string(), "--cpu".into(), cpu.to_string()]);
        all.extend(words);
        let mut command = stage.command(pod, all.into_iter().map(OsString::from))?;
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start the server")?;
        let says = BufReader::new(child.stdout.take().context("the server has no standard output")?);
        let mut server = Self { child, says };
        let mut line = String::new();
        server.says.read_line(&mut line)?;
        ensure!(line.trim() == "listening", "the server in {pod} does not listen on port {port}");
        Ok(server)
    }

    /// Ends it; what it saw.
    pub fn end(&mut self) -> Result<Seen> {
        drop(self.child.stdin.take());
        let mut said = String::new();
        self.says.read_to_string(&mut said)?;
        self.child.wait()?;
        serde_json::from_str(&said).context("the server's result is not readable")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
