//! The mesh's own processes: one control, one agent per node.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::mount::{MsFlags, mount};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::cgroup;
use super::exec::Entry;
use super::names::Names;
use super::network;
use super::pods::{sandbox_dir, spawn, tail};
use super::state::{Agent, Control, Enrolment, Lab, Node};
use super::world::plan::fabric_ips;
use crate::{build, clock, ebpf, shell};

/// Port of the certificate authority.
const CA_PORT: u16 = 15012;

/// What `lab restart` calls the control process; no node can have the name.
pub const CONTROL: &str = "control";

/// How long an agent may take to end when it is asked to: it lets connections finish.
const END_PATIENCE: Duration = Duration::from_secs(60);

/// How long a process may take to become ready.
const READY_PATIENCE: Duration = Duration::from_secs(30);

/// A process of the mesh that was just started.
struct Started {
    child: Child,
    admin: SocketAddr,
    log: PathBuf,
    what: String,
}

/// Finds the agent, building it where it is missing.
pub fn find_agent() -> Result<PathBuf> {
    let dir = shell::executable_dir()?;
    let agent = dir.join("mesh-agent");
    if !agent.exists() || !dir.join(ebpf::OBJECT_NAME).exists() {
        shell::say(format!("mesh-agent or its kernel programs are not in {} yet", dir.display()));
        build::run()?;
    }
    if !agent.exists() {
        bail!("{} is missing: use `cargo xtask`, which builds and runs in one profile", agent.display());
    }
    let object = dir.join(ebpf::OBJECT_NAME);
    for (built, sources) in [(&agent, build::AGENT_SOURCES), (&object, build::KERNEL_SOURCES)] {
        if let Some(source) = build::newer_source(built, &sources) {
            let (built, source) = (built.display(), source.display());
            shell::say(format!("{built} is older than {source}: `cargo xtask build` brings it up to date"));
        }
    }
    Ok(agent)
}

/// Starts control and every node's agent, and waits until they are ready.
pub fn start(lab: &mut Lab, names: &Names, agent: &Path) -> Result<()> {
    mount_bpf()?;
    for dir in ["tokens", "control-state"] {
        private_dir(&lab.dir.join(dir))?;
    }
    for node in &lab.nodes {
        write_token(&token_file(&lab.dir, &node.name))?;
    }
    let (control, started) = start_control(lab, names, agent)?;
    lab.control = Some(control);
    lab.save()?;
    started.wait_ready()?;
    let roots = roots_file(&lab.dir);
    if !roots.exists() {
        bail!("control is ready, but wrote no {}", roots.display());
    }
    let mut waiting = Vec::new();
    for index in 0..lab.nodes.len() {
        let (agent, started) = start_agent(lab, names, &lab.nodes[index], agent)?;
        lab.nodes[index].agent = Some(agent);
        waiting.push(started);
    }
    lab.save()?;
    waiting.into_iter().try_for_each(Started::wait_ready)
}

/// Starts control (when `what` is `control`) or a node's agent anew. One that still runs gets `signal` before, and ends first.
pub fn restart(lab: &mut Lab, names: &Names, what: &str, signal: Signal) -> Result<()> {
    let binary = find_agent()?;
    let started = if what == CONTROL {
        let control = lab.control.as_ref().context("this lab has no mesh")?;
        end(&control.cgroup, signal)?;
        let (control, started) = start_control(lab, names, &binary)?;
        lab.control = Some(control);
        started
    } else {
        let index = lab.node_number(what)? - 1;
        let node = &lab.nodes[index];
        ensure!(node.agent.is_some(), "this lab has no mesh");
        end(&node.agent_cgroup(), signal)?;
        let (agent, started) = start_agent(lab, names, node, &binary)?;
        lab.nodes[index].agent = Some(agent);
        started
    };
    lab.save()?;
    started.wait_ready()
}

/// Starts a node's new agent beside the running one, and asks that one to end when the new one is ready to take over.
pub fn replace(lab: &mut Lab, names: &Names, node: &str) -> Result<()> {
    let binary = find_agent()?;
    let index = lab.node_number(node)? - 1;
    let node = &lab.nodes[index];
    let before = node.agent.as_ref().context("this lab has no mesh")?.pid;
    let (agent, started) = start_agent(lab, names, node, &binary)?;
    started.wait_ready()?;
    kill(Pid::from_raw(before.cast_signed()), Signal::SIGTERM)
        .with_context(|| format!("the agent of {} (process {before}) does not run", node.name))?;
    lab.nodes[index].agent = Some(agent);
    lab.save()
}

/// Sends a signal to the processes of a cgroup and waits until they are gone.
pub fn end(cgroup: &Path, signal: Signal) -> Result<()> {
    for pid in cgroup::processes(cgroup) {
        // One that ended by itself meanwhile is what we want.
        let _ = kill(Pid::from_raw(pid), signal);
    }
    let deadline = clock::now() + END_PATIENCE;
    loop {
        let alive = cgroup::processes(cgroup);
        if alive.is_empty() {
            return Ok(());
        }
        ensure!(
            clock::now() < deadline,
            "processes {alive:?} go on {END_PATIENCE:?} after {signal}; use --kill"
        );
        thread::sleep(Duration::from_millis(2));
    }
}

fn start_control(lab: &Lab, names: &Names, agent: &Path) -> Result<(Control, Started)> {
    let address = SocketAddr::new(fabric_ips()[0], CA_PORT).to_string();
    let mut command = words([
        (agent.as_os_str(), "control".as_ref()),
        ("--state-dir".as_ref(), lab.dir.join("control-state").as_os_str()),
        ("--listen".as_ref(), address.as_ref()),
        ("--join-tokens-dir".as_ref(), lab.dir.join("tokens").as_os_str()),
        ("--trust-bundle-out".as_ref(), roots_file(&lab.dir).as_os_str()),
    ]);
    command.extend(source_of_objects(lab));
    command.extend(lab.control_args.iter().cloned());
    let cgroup = cgroup::root()?.join(names.cgroup()).join("control");
    cgroup::create(&cgroup)?;
    let entry = Entry {
        cgroup: cgroup.clone(),
        netns: network::netns_path(&names.fabric_netns()),
        cpus: None,
        pod: None,
    };
    let log = lab.dir.join("logs/control.log");
    let started = launch("control", &entry, &command, log.clone())?;
    let (pid, admin) = (started.child.id(), started.admin.to_string());
    Ok((Control { pid, admin, address, log, cgroup, alive: true, command }, started))
}

fn start_agent(lab: &Lab, names: &Names, node: &Node, agent: &Path) -> Result<(Agent, Started)> {
    let pin_dir = names.pin_dir(&node.name);
    let sandboxes = sandbox_dir(&lab.dir, &node.name);
    fs::create_dir_all(&sandboxes)?;
    let access_log = lab.dir.join("logs").join(format!("{}.access.json", node.name));
    let ca = format!("https://{}", SocketAddr::new(fabric_ips()[0], CA_PORT));
    let workers = match &node.cpus {
        Some(cpus) => cpus.len(),
        None => thread::available_parallelism()?.get(),
    };
    let mut command = words([
        (agent.as_os_str(), "node".as_ref()),
        ("--node".as_ref(), node.name.as_ref()),
        ("--pin-dir".as_ref(), pin_dir.as_os_str()),
        ("--ca-address".as_ref(), ca.as_ref()),
        ("--ca-roots".as_ref(), roots_file(&lab.dir).as_os_str()),
        ("--join-token-file".as_ref(), token_file(&lab.dir, &node.name).as_os_str()),
        ("--workers".as_ref(), workers.to_string().as_ref()),
    ]);
    command.extend(source_of_objects(lab));
    if lab.enrolment == Enrolment::Files {
        let pods = node.pods_cgroup();
        command.extend(words([
            ("--sandbox-dir".as_ref(), sandboxes.as_os_str()),
            ("--cgroup".as_ref(), pods.as_os_str()),
        ]));
    }
    // An agent takes each flag once, and these are some that people choose otherwise.
    for (flag, value) in [("--access-log", access_log.as_os_str()), ("--service-vips", "all".as_ref())] {
        if !lab.agent_args.iter().any(|word| word.split('=').next() == Some(flag)) {
            command.extend(words([(flag.as_ref(), value)]));
        }
    }
    command.extend(lab.agent_args.iter().cloned());
    let entry =
        Entry { cgroup: node.agent_cgroup(), netns: node.netns.clone(), cpus: node.cpus.clone(), pod: None };
    let log = lab.dir.join("logs").join(format!("{}.log", node.name));
    let started = launch(&format!("the agent of {}", node.name), &entry, &command, log.clone())?;
    let (pid, admin) = (started.child.id(), started.admin.to_string());
    Ok((Agent { pid, admin, pin_dir, log, access_log, alive: true, command }, started))
}

/// The flags that say where objects come from.
fn source_of_objects(lab: &Lab) -> Vec<String> {
    let path = |path: &Path| path.to_string_lossy().into_owned();
    match &lab.api {
        None => vec!["--config-dir".to_owned(), path(&lab.world)],
        Some(api) => {
            vec!["--kubernetes".to_owned(), "--kubeconfig".to_owned(), path(&api.kubeconfig)]
        }
    }
}

fn words<const N: usize>(pairs: [(&std::ffi::OsStr, &std::ffi::OsStr); N]) -> Vec<String> {
    pairs.into_iter().flat_map(|(a, b)| [a, b]).map(|word| word.to_string_lossy().into_owned()).collect()
}

/// Starts a process with a listener for its admin pages. A socket stays in the namespace it was made in, so the pages can
/// be read from the host although the process is in the lab.
fn launch(what: &str, entry: &Entry, command: &[String], log: PathBuf) -> Result<Started> {
    let listener = TcpListener::bind("127.0.0.1:0").context("cannot listen for admin pages on 127.0.0.1")?;
    let admin = listener.local_addr()?;
    let child = spawn(entry, command, &log, Stdio::from(OwnedFd::from(listener)))
        .with_context(|| format!("cannot start {what}"))?;
    Ok(Started { child, admin, log, what: what.to_owned() })
}

impl Started {
    /// Waits until the process says that it is ready.
    fn wait_ready(mut self) -> Result<()> {
        let deadline = clock::now() + READY_PATIENCE;
        while !is_ready(self.admin) {
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended with {status}; the end of its log:\n{}", self.what, tail(&self.log));
            }
            if clock::now() > deadline {
                let waited = READY_PATIENCE.as_secs();
                bail!(
                    "{} is not ready after {waited} s; the end of its log:\n{}",
                    self.what,
                    tail(&self.log)
                );
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

/// Whether `GET /readyz` answers 200.
pub fn is_ready(admin: SocketAddr) -> bool {
    let ask = || -> std::io::Result<bool> {
        let patience = Duration::from_secs(1);
        let mut stream = TcpStream::connect_timeout(&admin, patience)?;
        stream.set_read_timeout(Some(patience))?;
        stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\r\n")?;
        let mut head = [0; 12];
        stream.read_exact(&mut head)?;
        Ok(head.ends_with(b" 200"))
    };
    ask().unwrap_or(false)
}

fn mount_bpf() -> Result<()> {
    const BPFFS: &str = "/sys/fs/bpf";
    let mounts = fs::read_to_string("/proc/mounts")?;
    if mounts.lines().any(|line| line.split(' ').nth(1) == Some(BPFFS)) {
        return Ok(());
    }
    mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::empty(), Some("mode=0700"))
        .with_context(|| format!("cannot mount bpffs at {BPFFS}; does this kernel have CONFIG_BPF_SYSCALL?"))
}

fn private_dir(path: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.with_context(|| format!("cannot make {}", path.display()))
}

/// The secret by which control knows a node.
fn write_token(path: &Path) -> Result<()> {
    let mut random = [0u8; 32];
    File::open("/dev/urandom")?.read_exact(&mut random)?;
    let token: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(file.write_all(token.as_bytes())?)
}

fn token_file(run_dir: &Path, node: &str) -> PathBuf {
    run_dir.join("tokens").join(node)
}

fn roots_file(run_dir: &Path) -> PathBuf {
    run_dir.join("roots.pem")
}
