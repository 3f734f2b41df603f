//! The lab's cgroups: where its processes live, and how they are found and ended.
//!
//! Only the unified hierarchy (cgroup2) is used, wherever it is mounted.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::clock;

/// How long killed processes may take to leave their cgroup.
const KILL_PATIENCE: Duration = Duration::from_secs(5);

/// The mount point of cgroup2.
pub fn root() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts").context("cannot read /proc/mounts")?;
    mount_point(&mounts)
        .map(PathBuf::from)
        .context("cgroup2 is not mounted: run `mount -t cgroup2 none /sys/fs/cgroup/unified`")
}

fn mount_point(mounts: &str) -> Option<&str> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let point = fields.next()?;
        (fields.next()? == "cgroup2").then_some(point)
    })
}

/// A hierarchy of cgroup v1.
#[derive(Debug, PartialEq, Eq)]
pub struct OlderRoot {
    /// Its mount point.
    pub path: PathBuf,
    /// Its controllers.
    pub controllers: Vec<String>,
}

/// The hierarchies of cgroup v1 that are mounted beside cgroup2.
pub fn older_roots() -> Result<Vec<OlderRoot>> {
    let mounts = fs::read_to_string("/proc/mounts").context("cannot read /proc/mounts")?;
    Ok(older_mounts(&mounts))
}

fn older_mounts(mounts: &str) -> Vec<OlderRoot> {
    let of_line = |line: &str| {
        let mut fields = line.split(' ').skip(1);
        let (path, kind, options) = (fields.next()?, fields.next()?, fields.next()?);
        let controllers = options.split(',').map(str::to_owned).collect();
        (kind == "cgroup").then(|| OlderRoot { path: path.into(), controllers })
    };
    mounts.lines().filter_map(of_line).collect()
}

/// Makes a cgroup and those above it.
pub fn create(path: &Path) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("cannot make the cgroup {}", path.display()))
}

/// Moves the calling process into a cgroup.
pub fn join(path: &Path) -> Result<()> {
    fs::write(path.join("cgroup.procs"), "0")
        .with_context(|| format!("cannot join the cgroup {}", path.display()))
}

/// The processes of a cgroup and of those below it.
pub fn processes(path: &Path) -> Vec<i32> {
    let own = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
    let mut found: Vec<i32> = own.lines().filter_map(|line| line.parse().ok()).collect();
    for child in children(path) {
        found.extend(processes(&child));
    }
    found
}

/// Ends every process of a cgroup and of those below it, and waits until they are gone.
///
/// # Errors
/// When some are still there after [`KILL_PATIENCE`].
pub fn kill(path: &Path) -> Result<()> {
    let deadline = clock::now() + KILL_PATIENCE;
    loop {
        let alive = processes(path);
        if alive.is_empty() {
            return Ok(());
        }
        if clock::now() > deadline {
            bail!("processes {alive:?} of {} do not end", path.display());
        }
        // cgroup.kill (Linux 5.14) also catches processes that fork meanwhile; without it, rounds do.
        if fs::write(path.join("cgroup.kill"), "1").is_err() {
            for pid in alive {
                // A process that ended by itself meanwhile is what we want.
                let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL);
            }
        }
        thread::sleep(Duration::from_millis(2));
    }
}

/// Removes a cgroup with those below it; absent is fine.
pub fn remove(path: &Path) -> Result<()> {
    for child in children(path) {
        remove(&child)?;
    }
    // A zombie leaves cgroup.procs before it leaves the cgroup: the kernel says EBUSY for a moment.
    let deadline = clock::now() + KILL_PATIENCE;
    loop {
        match fs::remove_dir(path) {
            Err(e) if e.kind() == std::io::ErrorKind::ResourceBusy && clock::now() < deadline => {
                thread::sleep(Duration::from_millis(2));
            }
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(e).with_context(|| format!("cannot remove the cgroup {}", path.display()));
            }
            _ => return Ok(()),
        }
    }
}

fn children(path: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(path) else { return Vec::new() };
    entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn older_hierarchies_are_found_with_their_controllers() {
        let hybrid = "cgroup /sys/fs/cgroup/cpu cgroup rw,relatime,cpu 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        let roots = older_mounts(hybrid);
        assert_eq!(roots.len(), 1);
        assert_eq!(roots[0].path, Path::new("/sys/fs/cgroup/cpu"));
        assert!(roots[0].controllers.iter().any(|name| name == "cpu"));
    }

    #[test]
    fn cgroup2_is_found_on_hybrid_and_on_pure_hosts() {
        let hybrid =
            "cgroup /sys/fs/cgroup/cpu cgroup rw 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        assert_eq!(mount_point(hybrid), Some("/sys/fs/cgroup/unified"));
        assert_eq!(mount_point("cgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\n"), Some("/sys/fs/cgroup"));
        assert_eq!(mount_point("proc /proc proc rw 0 0\n"), None);
    }
}
