//! A running lab: made for one test, and gone with it, also when the test panics.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use serde::Deserialize;
use serde_json::Value;
use tempfile::TempDir;

use crate::probe::Probe;
use crate::seen::{self, Metrics};
use crate::wait::{self, eventually};
use crate::world::World;

/// Where labs keep their files.
const RUN_ROOT: &str = "/run/weft-lab";

/// A lab.
#[derive(Debug)]
pub struct Lab {
    name: String,
    state: State,
    /// Holds the world that the lab was made from.
    source: TempDir,
}

/// What a lab shall be like beyond its world.
#[derive(Clone, Debug, Default)]
pub struct Options {
    arguments: Vec<String>,
}

/// What `lab up --json` says, as far as tests need it.
#[derive(Clone, Debug, Deserialize)]
pub struct State {
    dir: PathBuf,
    world: PathBuf,
    nodes: Vec<Node>,
    control: Option<Process>,
    pods: Vec<Pod>,
    services: Vec<Service>,
}

/// A node.
#[derive(Clone, Debug, Deserialize)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its network namespace.
    pub netns: PathBuf,
    /// Its addresses on the fabric.
    pub ips: Vec<IpAddr>,
    /// Its cgroup.
    pub cgroup: PathBuf,
    /// Its agent.
    pub agent: Option<Process>,
}

/// A process of the mesh.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Process {
    /// Its number.
    pub pid: i32,
    /// Its admin address.
    pub admin: String,
    /// What it prints.
    pub log: PathBuf,
    /// Its access log; control has none.
    #[serde(default)]
    pub access_log: PathBuf,
    /// Where it pins; control pins nothing.
    #[serde(default)]
    pub pin_dir: PathBuf,
    /// What it was started with.
    pub command: Vec<String>,
}

/// A pod.
#[derive(Clone, Debug, Deserialize)]
pub struct Pod {
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its node.
    pub node: String,
    /// Its UID.
    pub uid: String,
    /// Its addresses, IPv4 first.
    pub ips: Vec<IpAddr>,
    /// Its network namespace.
    pub netns: PathBuf,
    /// Its cgroup.
    pub cgroup: PathBuf,
}

/// A service.
#[derive(Clone, Debug, Deserialize)]
pub struct Service {
    name: String,
    namespace: String,
    #[serde(rename = "clusterIPs")]
    cluster_ips: Vec<IpAddr>,
}

impl Options {
    /// One more argument for `lab up`, for example `--agent-arg`.
    #[must_use]
    pub fn arg(mut self, argument: &str) -> Self {
        self.arguments.push(argument.to_owned());
        self
    }

    /// One more argument for every agent.
    #[must_use]
    pub fn agent_arg(self, argument: &str) -> Self {
        self.arg("--agent-arg").arg(argument)
    }
}

impl Lab {
    /// Makes a lab of this world.
    ///
    /// # Panics
    /// When it does not come up, and without root: the message says what to do.
    #[track_caller]
    pub fn up(world: &World) -> Self {
        Self::up_with(world, &Options::default())
    }

    /// [`Lab::up`] with options.
    #[track_caller]
    pub fn up_with(world: &World, options: &Options) -> Self {
        Self::try_up(world, options).unwrap_or_else(|error| panic!("lab up failed:\n{error}"))
    }

    /// [`Lab::up_with`], for worlds that shall be refused: gives what `lab up` said then.
    ///
    /// # Errors
    /// `lab up` failed. Nothing of the lab is left.
    #[track_caller]
    pub fn try_up(world: &World, options: &Options) -> Result<Self, String> {
        assert!(
            geteuid().is_root(),
            "this test loads kernel programs and makes network namespaces: run `sudo cargo xtask test`"
        );
        sweep();
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("test-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let source = tempfile::tempdir().expect("a temporary directory can be made");
        for (file, text) in world.files() {
            fs::write(source.path().join(file), text).expect("the world can be written");
        }
        let mut up = xtask();
        up.args(["lab", "up", "--json", "--name", &name, "--world"])
            .arg(source.path())
            .args(&options.arguments);
        let output = up.output().unwrap_or_else(|error| {
            panic!("{}: {error}; run `sudo cargo xtask test`", xtask_path().display())
        });
        if !output.status.success() {
            assert!(!Path::new(RUN_ROOT).join(&name).exists(), "a lab that failed leaves nothing");
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        let state = serde_json::from_slice(&output.stdout).expect("`lab up --json` prints the lab");
        Ok(Self { name, state, source })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The directory of all its files.
    pub fn dir(&self) -> &Path {
        &self.state.dir
    }

    /// The directory that agents watch.
    pub fn world_dir(&self) -> &Path {
        &self.state.world
    }

    /// A pod, `NAMESPACE/NAME`.
    #[track_caller]
    pub fn pod(&self, namespaced: &str) -> &Pod {
        let found =
            self.state.pods.iter().find(|pod| format!("{}/{}", pod.namespace, pod.name) == namespaced);
        found.unwrap_or_else(|| panic!("the world has no pod {namespaced}"))
    }

    /// A port of a pod's IPv4 address.
    #[track_caller]
    pub fn v4(&self, pod: &str, port: u16) -> SocketAddr {
        let ip = self.pod(pod).ips.iter().find(|ip| ip.is_ipv4());
        SocketAddr::new(*ip.expect("a pod has an IPv4 address"), port)
    }

    /// A port of a pod's IPv6 address.
    #[track_caller]
    pub fn v6(&self, pod: &str, port: u16) -> SocketAddr {
        let ip = self.pod(pod).ips.iter().find(|ip| ip.is_ipv6());
        SocketAddr::new(*ip.expect("a pod has an IPv6 address"), port)
    }

    /// A port of a pod's IPv4 address as an IPv4-mapped IPv6 address.
    #[track_caller]
    pub fn mapped(&self, pod: &str, port: u16) -> SocketAddr {
        mapped(self.v4(pod, port))
    }

    /// A port of a service's primary address.
    #[track_caller]
    pub fn vip(&self, service: &str, port: u16) -> SocketAddr {
        SocketAddr::new(self.vips(service)[0], port)
    }

    /// All addresses of a service.
    #[track_caller]
    pub fn vips(&self, service: &str) -> &[IpAddr] {
        let found =
            self.state.services.iter().find(|one| format!("{}/{}", one.namespace, one.name) == service);
        &found.unwrap_or_else(|| panic!("the world has no service {service}")).cluster_ips
    }

    /// A node.
    #[track_caller]
    pub fn node(&self, name: &str) -> &Node {
        let found = self.state.nodes.iter().find(|node| node.name == name);
        found.unwrap_or_else(|| panic!("the lab has no node {name}"))
    }

    /// All nodes.
    pub fn nodes(&self) -> &[Node] {
        &self.state.nodes
    }

    /// A node's agent.
    #[track_caller]
    pub fn agent(&self, node: &str) -> &Process {
        self.node(node).agent.as_ref().expect("the lab has a mesh")
    }

    /// The control process.
    #[track_caller]
    pub fn control(&self) -> &Process {
        self.state.control.as_ref().expect("the lab has a mesh")
    }

    /// A command in a pod, to be run by the caller.
    pub fn command(&self, pod: &str, words: &[&str]) -> Command {
        let mut command = xtask();
        command.args(["lab", "exec", "--name", &self.name, pod, "--"]).args(words);
        command
    }

    /// Runs a command in a pod until it ends.
    #[track_caller]
    pub fn exec(&self, pod: &str, words: &[&str]) -> Output {
        self.command(pod, words).stdin(Stdio::null()).output().expect("`lab exec` starts")
    }

    /// Runs a command in a pod; gives what it printed.
    ///
    /// # Panics
    /// When it fails.
    #[track_caller]
    pub fn exec_ok(&self, pod: &str, words: &[&str]) -> String {
        let output = self.exec(pod, words);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{words:?} in {pod}: {}\n{stderr}", output.status);
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Starts a command in a pod with piped input and output.
    #[track_caller]
    pub fn spawn(&self, pod: &str, words: &[&str]) -> Running {
        let mut command = self.command(pod, words);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        Running(command.spawn().expect("`lab exec` starts"))
    }

    /// Starts a probe in a pod.
    #[track_caller]
    pub fn probe(&self, pod: &str) -> Probe {
        let program = program("weft-probe");
        let mut command = self.command(pod, &[&program.to_string_lossy()]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        Probe::new(pod, command.spawn().expect("`lab exec` starts"))
    }

    /// Runs a closure in a pod's network namespace, on a thread of its own.
    ///
    /// The thread stays in the test's cgroup, so what it connects to is *not* caught: it is somebody who got at the pod's
    /// network past the mesh.
    #[track_caller]
    pub fn in_pod<T: Send>(&self, pod: &str, run: impl FnOnce() -> T + Send) -> T {
        in_netns(&self.pod(pod).netns, run)
    }

    /// Runs a closure in a node's network namespace, on a thread of its own.
    #[track_caller]
    pub fn in_node<T: Send>(&self, node: &str, run: impl FnOnce() -> T + Send) -> T {
        in_netns(&self.node(node).netns, run)
    }

    /// A page of a node's agent: status and body.
    #[track_caller]
    pub fn page(&self, node: &str, path: &str) -> (u16, String) {
        seen::get(&self.agent(node).admin, path).unwrap_or_else(|error| {
            panic!("{path} of {node}: {error:#}\nits log ends with:\n{}", self.log_tail(node))
        })
    }

    /// A JSON page of a node's agent.
    #[track_caller]
    pub fn view(&self, node: &str, path: &str) -> Value {
        let (status, body) = self.page(node, path);
        serde_json::from_str(&body).unwrap_or_else(|error| panic!("{path}: {status} {error}: {body}"))
    }

    /// The metrics of a node's agent.
    #[track_caller]
    pub fn metrics(&self, node: &str) -> Metrics {
        Metrics::parse(&self.page(node, "/metrics").1)
    }

    /// The access records of a node's agent, oldest first.
    #[track_caller]
    pub fn access_records(&self, node: &str) -> Vec<Value> {
        seen::records(&fs::read_to_string(&self.agent(node).access_log).unwrap_or_default())
    }

    /// Waits for an access record that fits.
    ///
    /// # Panics
    /// When none comes; the message has those that came.
    #[track_caller]
    pub fn record(&self, node: &str, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
        let deadline = wait::now() + wait::PATIENCE;
        loop {
            let records = self.access_records(node);
            if let Some(found) = records.iter().find(|record| fits(record)) {
                return found.clone();
            }
            if wait::now() > deadline {
                let last: Vec<String> = records.iter().rev().take(8).map(Value::to_string).collect();
                panic!("{node} wrote no record of {what}; the last are\n{}", last.join("\n"));
            }
            thread::sleep(std::time::Duration::from_millis(10));
        }
    }

    /// Waits until a metric of a node, summed over the series with these labels, is at least `least`.
    #[track_caller]
    pub fn metric_reaches(&self, node: &str, family: &str, labels: &[(&str, &str)], least: f64) {
        let deadline = wait::now() + wait::PATIENCE;
        loop {
            let metrics = self.metrics(node);
            if metrics.sum(family, labels) >= least {
                return;
            }
            assert!(
                wait::now() < deadline,
                "{family} {labels:?} of {node} stays below {least}:\n{}",
                metrics.family(family)
            );
            thread::sleep(std::time::Duration::from_millis(20));
        }
    }

    /// Writes a file into the world that the agents watch, without waiting for them.
    #[track_caller]
    pub fn write(&self, file: &str, yaml: &str) {
        // Renamed over, so that no agent reads half of it.
        let temporary = self.state.world.join(format!(".{file}.new"));
        fs::write(&temporary, yaml).expect("the world can be written");
        fs::rename(&temporary, self.state.world.join(file)).expect("the world can be written");
    }

    /// Writes a file into the world and waits until every agent that lives has taken a new state.
    ///
    /// What the state means for the kernel's tables follows within moments; assert with [`eventually`].
    #[track_caller]
    pub fn apply(&self, file: &str, yaml: &str) {
        self.change(|| self.write(file, yaml));
    }

    /// Removes a file of the world and waits as [`Lab::apply`] does.
    #[track_caller]
    pub fn remove(&self, file: &str) {
        self.change(|| fs::remove_file(self.state.world.join(file)).expect("the file is there"));
    }

    /// Makes a change of the world and waits until every living agent has a new state.
    #[track_caller]
    pub fn change(&self, change: impl FnOnce()) {
        let versions = || -> Vec<Option<f64>> {
            let agents = self.state.nodes.iter().filter_map(|node| node.agent.as_ref());
            agents
                .map(|agent| {
                    let (_, body) = seen::get(&agent.admin, "/metrics").ok()?;
                    Some(Metrics::parse(&body).sum("weft_discovery_version", &[]))
                })
                .collect()
        };
        let before = versions();
        change();
        eventually("every agent takes the changed world", || {
            let now = versions();
            before.iter().zip(&now).all(|(before, now)| before.is_none() || now > before).then_some(())
        });
    }

    /// Makes a pod ready, or not, and waits until every living agent knows.
    #[track_caller]
    pub fn set_ready(&self, pod: &str, ready: bool) {
        let uid = format!("uid: {}", self.pod(pod).uid);
        let quoted = format!("uid: \"{}\"", self.pod(pod).uid);
        let state =
            |ready| format!("{{type: \"Ready\", status: \"{}\"}}", if ready { "True" } else { "False" });
        let files = fs::read_dir(&self.state.world).expect("the world is there").flatten();
        for file in files.map(|file| file.path()).filter(|file| file.extension().is_some_and(|e| e == "yaml"))
        {
            let text = fs::read_to_string(&file).expect("the world can be read");
            let documents = text.split("\n---\n").map(|document| {
                let is_it = document.contains(&uid) || document.contains(&quoted);
                if is_it { document.replace(&state(!ready), &state(ready)) } else { document.to_owned() }
            });
            let changed = documents.collect::<Vec<_>>().join("\n---\n");
            if changed != text {
                let name = file.file_name().expect("a file has a name").to_string_lossy().into_owned();
                return self.apply(&name, &changed);
            }
        }
        panic!("no file says that {pod} is {}", if ready { "not ready" } else { "ready" });
    }

    /// Starts a node's agent by hand, with some of its flags changed, its log in a file of its own.
    ///
    /// It runs in the node's network namespace as always, its admin pages on 127.0.0.1:15020 in there.
    #[track_caller]
    pub fn impostor(&self, node: &str, flags: &[(&str, &str)]) -> (Running, PathBuf) {
        let mut words = self.agent(node).command.clone();
        for (flag, value) in flags {
            let place = words.iter().position(|word| word == flag);
            words[place.expect("the agent was started with this flag") + 1] = (*value).to_owned();
        }
        let log = self.state.dir.join("logs/impostor.log");
        let file = fs::File::create(&log).expect("the log can be written");
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.node(node).netns.display())).arg("--").args(words);
        let stdio = file.try_clone().expect("a descriptor is free");
        let child = command.stdin(Stdio::null()).stdout(stdio).stderr(file).spawn();
        (Running(child.expect("nsenter (util-linux) is installed")), log)
    }

    /// Replaces the world: pods are started, ended and changed.
    #[track_caller]
    pub fn apply_world(&mut self, world: &World) {
        for (file, text) in world.files() {
            fs::write(self.source.path().join(file), text).expect("the world can be written");
        }
        self.lab_command(&["apply", "--json"]);
    }

    /// Kills a node's agent with SIGKILL and waits until it is gone.
    #[track_caller]
    pub fn kill_agent(&self, node: &str) {
        self.kill(self.agent(node));
    }

    /// Kills a process of the mesh with SIGKILL and waits until it is gone.
    #[track_caller]
    pub fn kill(&self, process: &Process) {
        let pid = Pid::from_raw(process.pid);
        kill(pid, Signal::SIGKILL).expect("the process runs");
        eventually("the killed process is gone", || is_gone(process.pid).then_some(()));
    }

    /// Starts a node's agent anew; one that runs is asked to end first.
    #[track_caller]
    pub fn restart_agent(&mut self, node: &str) {
        self.lab_command(&["restart", node, "--json"]);
    }

    /// Starts control anew; one that runs is asked to end first.
    #[track_caller]
    pub fn restart_control(&mut self) {
        self.lab_command(&["restart", "control", "--json"]);
    }

    #[track_caller]
    fn lab_command(&mut self, words: &[&str]) {
        let output =
            xtask().arg("lab").args(words).args(["--name", &self.name]).output().expect("xtask runs");
        assert!(output.status.success(), "lab {words:?}:\n{}", String::from_utf8_lossy(&output.stderr));
        self.state = serde_json::from_slice(&output.stdout).expect("the lab is printed");
    }

    /// Runs `meshctl` against a node's agent.
    #[track_caller]
    pub fn meshctl(&self, node: &str, words: &[&str]) -> Output {
        let agent = format!("http://{}", self.agent(node).admin);
        let mut meshctl = Command::new(release_dir().join("meshctl"));
        meshctl.args(["--agent", &agent]).args(words).output().expect("meshctl runs")
    }

    /// Runs `mesh-agent`.
    #[track_caller]
    pub fn mesh_agent(&self, words: &[&str]) -> Output {
        Command::new(release_dir().join("mesh-agent")).args(words).output().expect("mesh-agent runs")
    }

    /// The end of a node's agent's log.
    pub fn log_tail(&self, node: &str) -> String {
        let log = self.node(node).agent.as_ref().map(|agent| &agent.log);
        let text = log.and_then(|log| fs::read_to_string(log).ok()).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }

    /// Ends the lab now.
    ///
    /// # Panics
    /// When `lab down` fails, or something of the lab is left.
    #[track_caller]
    pub fn down(self) {
        let (name, state) = (self.name.clone(), self.state.clone());
        drop(self);
        let left = leftovers(&name, &state);
        assert!(left.is_empty(), "after `lab down` there still is: {left:?}");
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if thread::panicking() {
            for node in &self.state.nodes {
                eprintln!("--- end of the log of {}\n{}", node.name, self.log_tail(&node.name));
            }
        }
        let down = xtask().args(["lab", "down", "--name", &self.name]).output();
        let failed = match &down {
            Ok(output) if output.status.success() => None,
            Ok(output) => Some(String::from_utf8_lossy(&output.stderr).into_owned()),
            Err(error) => Some(error.to_string()),
        };
        let left = leftovers(&self.name, &self.state);
        if thread::panicking() {
            failed.iter().chain(&left).for_each(|trouble| eprintln!("lab down: {trouble}"));
        } else {
            assert!(failed.is_none() && left.is_empty(), "lab down: {failed:?}, left: {left:?}");
        }
    }
}

/// Runs a closure in a network namespace, on a thread of its own. Sockets that it returns stay there.
#[track_caller]
fn in_netns<T: Send>(path: &Path, run: impl FnOnce() -> T + Send) -> T {
    let netns = fs::File::open(path).expect("the network namespace is there");
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            setns(&netns, CloneFlags::CLONE_NEWNET).expect("root may enter a network namespace");
            run()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// A command in a pod; killed when dropped.
#[derive(Debug)]
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What is left of a lab, found without asking the lab's own code.
fn leftovers(name: &str, state: &State) -> Vec<String> {
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

fn is_gone(pid: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The state follows the name, which is in parentheses. A zombie is gone but for its parent.
    status.rsplit(") ").next().is_none_or(|rest| rest.is_empty() || rest.starts_with(['Z', 'X']))
}

/// Ends labs whose test was killed before it could.
fn sweep() {
    let Ok(labs) = fs::read_dir(RUN_ROOT) else { return };
    for lab in labs.flatten() {
        let name = lab.file_name().to_string_lossy().into_owned();
        let owner = name.strip_prefix("test-").and_then(|rest| rest.split('-').next()?.parse().ok());
        if owner.is_some_and(|pid: i32| is_gone(pid)) {
            let _ = xtask().args(["lab", "down", "--name", &name]).output();
        }
    }
}

/// The same address as an IPv6 socket sees it.
pub fn mapped(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(v4) => SocketAddr::new(v4.to_ipv6_mapped().into(), address.port()),
        IpAddr::V6(_) => address,
    }
}

/// The same address without the IPv4-mapped form.
pub fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Where `cargo xtask build` puts its binaries.
pub fn release_dir() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    target.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target")).join("release")
}

fn xtask_path() -> PathBuf {
    release_dir().join("xtask")
}

fn xtask() -> Command {
    Command::new(xtask_path())
}

/// A program of this package stands two directories above the running test, which is in `deps`.
pub(crate) fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a process has an executable");
    let path = test.ancestors().nth(2).expect("a test stands in target/PROFILE/deps").join(name);
    assert!(path.exists(), "{} is missing: run `sudo cargo xtask test`", path.display());
    path
}
