//! How a process becomes a process of a pod or a node: cgroup, network namespace, names, then `execve` in place.
//!
//! Since the command replaces this program, its exit code, signals, standard input and output are its own.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use clap::Args;
use nix::fcntl::{FcntlArg, fcntl};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, CpuSet, sched_setaffinity, setns, unshare};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{Pid, close, dup2_stdin, getpid, setsid};
use serde::{Deserialize, Serialize};

use super::names::Names;
use super::state::{Lab, Pod};
use crate::shell;

/// The exit codes by which this program says that the command never ran, as container tools have them: 125 the lab failed,
/// 126 the command cannot be run, 127 it is not there.
pub const FAILURES: std::ops::RangeInclusive<i32> = 125..=127;

/// `lab exec`.
#[derive(Args)]
pub struct Options {
    /// The lab.
    #[arg(long, default_value = super::DEFAULT_NAME)]
    name: String,
    /// The pod, as NAMESPACE/POD.
    pod: String,
    /// The command and its arguments.
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

/// `lab-init`: what the lab starts its processes through.
#[derive(Args)]
pub struct InitOptions {
    /// An [`Entry`] as JSON.
    entry: String,
    /// What to become.
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

/// Where a process goes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Entry {
    /// Cgroup to join.
    pub cgroup: PathBuf,
    /// Network namespace to enter.
    pub netns: PathBuf,
    /// CPUs to stay on; absent for all.
    pub cpus: Option<Vec<usize>>,
    /// Pod-only things.
    pub pod: Option<PodEntry>,
}

/// What a process of a pod finds around itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PodEntry {
    /// Host name.
    pub hostname: String,
    /// Directory with the `hosts` and `resolv.conf` to see.
    pub names_dir: PathBuf,
    /// Environment.
    pub env: Vec<(String, String)>,
}

/// The entry of a pod.
pub fn pod_entry(lab: &Lab, pod: &Pod) -> Result<Entry> {
    let mut env = vec![
        ("HOSTNAME".to_owned(), pod.name.clone()),
        ("POD_NAME".to_owned(), pod.name.clone()),
        ("POD_NAMESPACE".to_owned(), pod.namespace.clone()),
        ("NODE_NAME".to_owned(), pod.node.clone()),
    ];
    env.extend(pod.ips.first().map(|ip| ("POD_IP".to_owned(), ip.to_string())));
    env.extend(pod.env.iter().cloned());
    let names_dir = names_dir(&lab.dir, &pod.namespace);
    Ok(Entry {
        cgroup: pod.container.clone(),
        netns: pod.netns.clone(),
        cpus: lab.node(&pod.node)?.cpus.clone(),
        pod: Some(PodEntry { hostname: pod.name.clone(), names_dir, env }),
    })
}

/// Where the name files of a namespace lie.
pub fn names_dir(run_dir: &Path, namespace: &str) -> PathBuf {
    run_dir.join("names").join(namespace)
}

/// Runs `lab exec`; returns only on failure.
pub fn run(options: &Options) -> ExitCode {
    let enter_pod = || {
        let lab = Lab::load_up(&Names::new(&options.name)?)?;
        let entry = pod_entry(&lab, lab.pod(&options.pod)?)?;
        let mut command = prepare(&options.command)?;
        enter(&entry, &mut command)?;
        Ok(command)
    };
    become_command(enter_pod())
}

/// Runs `lab-init`; returns only on failure.
pub fn init(options: &InitOptions) -> ExitCode {
    become_command(enter_as_daemon(options))
}

/// Enters, with nothing of the caller left but output and errors.
///
/// A socket on standard input is a listener for the command: it becomes descriptor 3, the first of systemd's socket
/// activation (sd_listen_fds(3)). Every other descriptor is closed: what this program's caller had open (a build lock, a
/// test's pipe) must not live as long as the lab.
fn enter_as_daemon(options: &InitOptions) -> Result<Command> {
    let entry: Entry = serde_json::from_str(&options.entry).context("the entry is not readable")?;
    let mut command = prepare(&options.command)?;
    close_inherited()?;
    if is_socket_on_stdin() {
        hand_over_listener(&mut command)?;
    }
    setsid().context("cannot leave the terminal's session")?;
    raise_file_limit()?;
    if entry.pod.is_some() {
        let home = std::env::var_os("HOME").unwrap_or_else(|| "/root".into());
        command.env_clear().env("HOME", home).env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.current_dir("/");
    }
    enter(&entry, &mut command)?;
    Ok(command)
}

fn prepare(words: &[OsString]) -> Result<Command> {
    let (program, arguments) = words.split_first().context("no command is given")?;
    let mut command = Command::new(program);
    command.args(arguments);
    Ok(command)
}

/// Moves the calling process. The cgroup comes first, so that no socket is ever made outside it.
fn enter(entry: &Entry, command: &mut Command) -> Result<()> {
    super::cgroup::join(&entry.cgroup)?;
    if let Some(cpus) = &entry.cpus {
        let mut set = CpuSet::new();
        for &cpu in cpus {
            set.set(cpu).with_context(|| format!("there is no CPU {cpu}"))?;
        }
        sched_setaffinity(Pid::from_raw(0), &set)
            .with_context(|| format!("cannot stay on the CPUs {cpus:?}"))?;
    }
    let netns = File::open(&entry.netns).with_context(|| format!("cannot open {}", entry.netns.display()))?;
    setns(netns, CloneFlags::CLONE_NEWNET)
        .with_context(|| format!("cannot enter {}", entry.netns.display()))?;
    if let Some(pod) = &entry.pod {
        see_names(pod)?;
        let path = std::env::var("PATH").unwrap_or_else(|_| "/usr/sbin:/usr/bin:/sbin:/bin".to_owned());
        command.env("PATH", format!("{}:{path}", shell::executable_dir()?.display()));
        command.envs(pod.env.iter().map(|(name, value)| (name, value)));
    }
    Ok(())
}

/// Puts the pod's host name and name files in place of the host's, for this process and its children.
fn see_names(pod: &PodEntry) -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS)
        .context("cannot unshare mounts and host name")?;
    // Slave, not private: a namespace that the lab unmounts later must not live on here.
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&str>)
        .context("cannot keep mounts from spreading")?;
    // The kernel takes 64 bytes; a longer name is cut, as kubelet does.
    let hostname: String = pod.hostname.chars().take(63).collect();
    nix::unistd::sethostname(hostname).context("cannot set the host name")?;
    for name in ["hosts", "resolv.conf"] {
        let place = Path::new("/etc").join(name);
        if name == "resolv.conf" && !place.exists() {
            continue;
        }
        let source = pod.names_dir.join(name);
        mount(Some(&source), &place, None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .with_context(|| format!("cannot put {} in place of {}", source.display(), place.display()))?;
    }
    Ok(())
}

/// Replaces this program; what comes back is why it could not.
fn become_command(command: Result<Command>) -> ExitCode {
    let mut command = match command {
        Ok(command) => command,
        Err(error) => {
            eprintln!("error: {error:#}");
            return ExitCode::from(125);
        }
    };
    let error = command.exec();
    eprintln!("error: cannot run {}: {error}", command.get_program().to_string_lossy());
    ExitCode::from(if error.kind() == std::io::ErrorKind::NotFound { 127 } else { 126 })
}

fn close_inherited() -> Result<()> {
    let listed = fs::read_dir("/proc/self/fd").context("cannot list the open files")?;
    let open: Vec<i32> =
        listed.flatten().filter_map(|fd| fd.file_name().to_string_lossy().parse().ok()).collect();
    for fd in open.into_iter().filter(|fd| *fd > 2) {
        // The directory listing itself is among them and closed by now.
        let _ = close(fd);
    }
    Ok(())
}

fn is_socket_on_stdin() -> bool {
    fs::read_link("/proc/self/fd/0").is_ok_and(|target| target.to_string_lossy().starts_with("socket:"))
}

fn hand_over_listener(command: &mut Command) -> Result<()> {
    let fd = fcntl(std::io::stdin(), FcntlArg::F_DUPFD(3)).context("cannot hand over the listener")?;
    if fd != 3 {
        bail!("the listener became descriptor {fd} instead of 3");
    }
    dup2_stdin(File::open("/dev/null")?).context("cannot close standard input")?;
    // `exec` keeps the process id, so the receiver sees itself named.
    command.env("LISTEN_FDS", "1").env("LISTEN_PID", getpid().to_string());
    Ok(())
}

/// Proxies and servers hold many connections: let them use all that the kernel grants.
fn raise_file_limit() -> Result<()> {
    let granted = fs::read_to_string("/proc/sys/fs/nr_open").ok().and_then(|text| text.trim().parse().ok());
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("cannot read the limit of open files")?;
    let wanted = granted.unwrap_or(hard).max(hard);
    let raise = || setrlimit(Resource::RLIMIT_NOFILE, wanted, wanted);
    raise()
        .or_else(|_| setrlimit(Resource::RLIMIT_NOFILE, hard, hard))
        .context("cannot raise the limit of open files")
}
