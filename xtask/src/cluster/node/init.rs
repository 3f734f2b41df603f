//! A node's first process: makes the node around itself, then keeps its programs running.
//!
//! The node's root shows this machine's files with a memory of its own above them, so that the usual paths are free for it and
//! nothing that happens there reaches the machine. Mounts, processes and host name are its own; the kernel's settings are the
//! machine's, so those that a kubelet would change are hidden behind files.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, wait};
use nix::unistd::{pivot_root, sethostname};

use super::config::{self, Program};
use super::{Plan, pid_file};
use crate::clock;
use crate::cluster::cache::Build;
use crate::cluster::state::Process;

/// Where a node's programs look for others.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// How long the container runtime may take to answer.
const RUNTIME_PATIENCE: Duration = Duration::from_secs(60);

/// How long a program that ended stays ended. Long enough not to fill the log, short enough for no test to wait.
const RESTART_PAUSE: Duration = Duration::from_secs(1);

/// What a kubelet would set for the whole machine.
const KERNEL_SETTINGS: [(&str, &str); 6] = [
    ("kernel/keys/root_maxbytes", "25000000"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
];

/// `cluster-node`.
#[derive(Args)]
pub struct Options {
    /// The node's plan.
    plan: PathBuf,
    /// This is the first process.
    #[arg(long)]
    first: bool,
}

/// Runs the node until it is ended.
pub fn run(options: &Options) -> Result<ExitCode> {
    let plan: Plan = serde_json::from_str(&fs::read_to_string(&options.plan)?)?;
    if !options.first {
        return outside(&plan, &options.plan);
    }
    // Should the one outside be killed, nothing may stay.
    set_pdeathsig(Signal::SIGKILL)?;
    // Changing the root changes it for the one outside too, who looks at /proc first: its end of the pipe says when it has.
    io::stdin().read_to_end(&mut Vec::new())?;
    set_up(&plan)?;
    supervise(&plan)
}

/// Starts the first process in namespaces of its own, and stays as long as it does.
fn outside(plan: &Plan, plan_file: &Path) -> Result<ExitCode> {
    unshare(
        CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWPID
            | CloneFlags::CLONE_NEWUTS
            | CloneFlags::CLONE_NEWIPC,
    )
    .context("cannot make the node's namespaces")?;
    let own = std::env::current_exe()?;
    let mut first = Command::new(own)
        .args(["cluster-node".as_ref(), plan_file.as_os_str(), "--first".as_ref()])
        .stdin(Stdio::piped())
        .spawn()?;
    let held = first.stdin.take().context("the first process has no standard input")?;
    let process = Process::of(i32::try_from(first.id())?)
        .with_context(|| format!("the node's first process ended at once ({:?})", first.try_wait()))?;
    let (file, temporary) = (pid_file(&plan.dir), plan.dir.join("init.json.new"));
    fs::write(&temporary, serde_json::to_vec(&process)?)?;
    fs::rename(temporary, file)?;
    drop(held);
    let status = first.wait()?;
    eprintln!("the node ended: {status}");
    Ok(ExitCode::FAILURE)
}

/// Root, mounts and names.
fn set_up(plan: &Plan) -> Result<()> {
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .context("cannot keep mounts from spreading")?;
    sethostname(&plan.name)?;
    let root = make_root(plan)?;
    populate(plan, &root)?;
    std::env::set_current_dir(&root)?;
    fs::create_dir(".old")?;
    pivot_root(".", ".old").context("cannot change the root")?;
    std::env::set_current_dir("/")?;
    umount2("/.old", MntFlags::MNT_DETACH)?;
    fs::remove_dir("/.old")?;
    // What pods mount with propagation shall arrive.
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SHARED, none)?;
    link_packages(&Build { dir: plan.build_dir.clone() }.node_packages(), Path::new("/"))?;
    hide_kernel_settings(plan)
}

/// An overlay of this machine's root.
fn make_root(plan: &Plan) -> Result<PathBuf> {
    let (layers, root) = (plan.dir.join("layers"), plan.dir.join("root"));
    fs::create_dir_all(&layers)?;
    fs::create_dir_all(&root)?;
    mount(Some("tmpfs"), &layers, Some("tmpfs"), MsFlags::empty(), None::<&str>)?;
    let (upper, work) = (layers.join("upper"), layers.join("work"));
    fs::create_dir(&upper)?;
    fs::create_dir(&work)?;
    let options = format!("lowerdir=/,upperdir={},workdir={}", upper.display(), work.display());
    mount(Some("overlay"), &root, Some("overlay"), MsFlags::empty(), Some(options.as_str()))
        .context("cannot mount an overlay of the root; does this kernel have CONFIG_OVERLAY_FS?")?;
    Ok(root)
}

/// The file systems that a node has, and the directories of the cluster.
fn populate(plan: &Plan, root: &Path) -> Result<()> {
    let fresh = |kind: &str, place: &str| {
        let path = root.join(place);
        fs::create_dir_all(&path)?;
        mount(Some(kind), &path, Some(kind), MsFlags::empty(), None::<&str>)
            .with_context(|| format!("cannot mount {kind} at /{place} of the node"))
    };
    let bind = |source: &Path, place: &Path| {
        let path = root.join(place.strip_prefix("/").unwrap_or(place));
        fs::create_dir_all(&path)?;
        mount(Some(source), &path, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)
            .with_context(|| format!("cannot show {} in the node", source.display()))
    };
    fresh("proc", "proc")?;
    fresh("sysfs", "sys")?;
    bind(Path::new("/sys/fs/cgroup"), Path::new("/sys/fs/cgroup"))?;
    fresh("bpf", "sys/fs/bpf")?;
    // Some kernels are built without; only debugging wants it.
    let _ = fresh("tracefs", "sys/kernel/tracing");
    bind(Path::new("/dev"), Path::new("/dev"))?;
    for place in ["run", "var/log"] {
        fresh("tmpfs", place)?;
    }
    for dir in ["run/netns", "run/lock"] {
        fs::create_dir_all(root.join(dir))?;
    }
    bind(&plan.cluster_dir, &plan.cluster_dir)?;
    bind(&plan.build_dir, &plan.build_dir)?;
    for (dir, place) in [("kubelet", "/var/lib/kubelet"), ("containerd", "/var/lib/containerd")] {
        let kept = plan.dir.join(dir);
        fs::create_dir_all(&kept)?;
        bind(&kept, Path::new(place))?;
    }
    Ok(())
}

/// Puts a link at the usual path for every file of the unpacked packages.
fn link_packages(packages: &Path, root: &Path) -> Result<()> {
    let mut dirs = vec![PathBuf::new()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(packages.join(&dir))?.flatten() {
            let below = dir.join(entry.file_name());
            let place = root.join(&below);
            if entry.file_type()?.is_dir() {
                fs::create_dir_all(&place)?;
                dirs.push(below);
            } else {
                let _ = fs::remove_file(&place);
                symlink(entry.path(), &place).with_context(|| format!("cannot link {}", place.display()))?;
            }
        }
    }
    Ok(())
}

fn hide_kernel_settings(plan: &Plan) -> Result<()> {
    let none = None::<&str>;
    for (name, value) in KERNEL_SETTINGS {
        let (hidden, file) = (PathBuf::from("/proc/sys").join(name), plan.dir.join("settings").join(name));
        if let Some(parent) = file.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&file, value)?;
        mount(Some(&file), &hidden, none, MsFlags::MS_BIND, none)
            .with_context(|| format!("cannot hide {}", hidden.display()))?;
    }
    Ok(())
}

/// Starts the programs and starts anew what ends. Orphans are reaped on the way, as a first process must.
fn supervise(plan: &Plan) -> Result<ExitCode> {
    let programs = config::write(plan)?;
    let [runtime, others @ ..] = &programs;
    let mut running = HashMap::new();
    running.insert(start(plan, runtime)?, runtime);
    wait_for_runtime()?;
    for image in images(plan)? {
        let imported = ctr(&["images", "import"]).arg(&image).stdout(Stdio::null()).status()?;
        if !imported.success() {
            bail!("{} cannot be imported: {imported}", image.display());
        }
    }
    for program in others {
        running.insert(start(plan, program)?, program);
    }
    loop {
        let ended = match wait()? {
            WaitStatus::Exited(pid, code) => (pid.as_raw(), format!("exit code {code}")),
            WaitStatus::Signaled(pid, signal, _) => (pid.as_raw(), signal.to_string()),
            _ => continue,
        };
        if let Some(program) = running.remove(&ended.0) {
            eprintln!("{} ended: {}", program.name, ended.1);
            thread::sleep(RESTART_PAUSE);
            running.insert(start(plan, program)?, program);
        }
    }
}

fn start(plan: &Plan, program: &Program) -> Result<i32> {
    let (name, arguments) = program.words.split_first().context("a program has a name")?;
    let path = plan.cluster_dir.join("logs").join(format!("{}-{}.log", plan.name, program.name));
    let log = File::options().create(true).append(true).open(&path)?;
    let mut command = Command::new(name);
    command.args(arguments).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    command.env_clear().env("PATH", PATH).env("HOME", "/root");
    let child = command.spawn().with_context(|| format!("cannot start {name}"))?;
    Ok(i32::try_from(child.id())?)
}

fn wait_for_runtime() -> Result<()> {
    let deadline = clock::now() + RUNTIME_PATIENCE;
    while !ctr(&["version"]).stdout(Stdio::null()).stderr(Stdio::null()).status()?.success() {
        if clock::now() > deadline {
            bail!("containerd does not answer after {RUNTIME_PATIENCE:?}");
        }
        thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

fn ctr(words: &[&str]) -> Command {
    let mut command = Command::new("/usr/bin/ctr");
    command.args(["--namespace", "k8s.io"]).args(words).env("PATH", PATH);
    command
}

/// The archives that every node of the cluster gets.
fn images(plan: &Plan) -> Result<Vec<PathBuf>> {
    let mut found: Vec<PathBuf> =
        fs::read_dir(plan.cluster_dir.join("images"))?.flatten().map(|entry| entry.path()).collect();
    found.sort();
    Ok(found)
}
