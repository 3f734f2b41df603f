//! A running lab: made for one test, and gone with it, also when the test panics.
//!
//! Files in reading order: [`state`] (what a lab consists of), this one (making it, its pods, its end), `look` (what a test
//! asks it), `change` (what a test does to it), `leftovers` (that nothing stays).

pub mod state;

mod look;

mod change;

mod leftovers;

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use nix::sched::{CloneFlags, setns};
use nix::unistd::geteuid;
use tempfile::TempDir;

use leftovers::{leftovers, sweep};
use state::State;
pub use state::{Node, Pod, Process};

use crate::probe::Probe;
use crate::world::World;

/// Where labs keep their files.
const RUN_ROOT: &str = "/run/weft-lab";

/// Names what the agents of all labs are fed by: `kubernetes`, or `files` as when it is absent.
const SOURCE: &str = "WEFT_LAB_SOURCE";

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
        if let Some(fed_by) = std::env::var_os(SOURCE) {
            up.arg("--source").arg(fed_by);
        }
        let chosen = options.arguments.iter().any(|argument| argument == "--enrolment");
        if let Some(enrolment) = std::env::var_os("WEFT_LAB_ENROLMENT").filter(|_| !chosen) {
            up.arg("--enrolment").arg(enrolment);
        }
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

    /// Starts a probe by hand, in a control group and a network namespace of the caller's choice: a container runtime's part.
    #[track_caller]
    pub fn probe_at(&self, what: &str, cgroup: &Path, netns: &Path) -> Probe {
        let mut command = at(cgroup, netns, &[&program("weft-probe").to_string_lossy()]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        Probe::new(what, command.spawn().expect("a shell starts"))
    }

    /// Starts a command by hand, in a control group and a network namespace of the caller's choice.
    #[track_caller]
    pub fn spawn_at(&self, cgroup: &Path, netns: &Path, words: &[&str]) -> Running {
        let mut command = at(cgroup, netns, words);
        Running(command.stdin(Stdio::null()).spawn().expect("a shell starts"))
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

    /// Runs `mesh-agent`.
    #[track_caller]
    pub fn mesh_agent(&self, words: &[&str]) -> Output {
        Command::new(release_dir().join("mesh-agent")).args(words).output().expect("mesh-agent runs")
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

/// A command that joins a control group, enters a network namespace and becomes `words`.
fn at(cgroup: &Path, netns: &Path, words: &[&str]) -> Command {
    fs::create_dir_all(cgroup).expect("the control group can be made");
    let mut command = Command::new("sh");
    command.args([
        "-c",
        "echo $$ > \"$0/cgroup.procs\" && net=$1 && shift && exec nsenter --net=\"$net\" -- \"$@\"",
    ]);
    command.arg(cgroup).arg(netns).args(words);
    command
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
pub fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a process has an executable");
    let path = test.ancestors().nth(2).expect("a test stands in target/PROFILE/deps").join(name);
    assert!(path.exists(), "{} is missing: run `sudo cargo xtask test`", path.display());
    path
}
