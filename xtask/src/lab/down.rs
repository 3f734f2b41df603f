//! The end of a lab, whatever state it is in.
//!
//! Nothing here trusts the state file: a lab's things are found by their names, so a lab whose `up` was killed half-way
//! goes as completely as any other.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::names::{Names, PIN_ROOT};
use super::{cgroup, network, state};
use crate::{clock, shell};

/// How long another command on the same lab may take to end.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);

/// How often things are removed again: an `ip` whose `lab up` was just killed may still be making some.
const ROUNDS: usize = 10;

/// Removes a lab. It is no error when there is none.
pub fn down(names: &Names) -> Result<()> {
    let run_dir = names.run_dir();
    let deadline = clock::now() + LOCK_PATIENCE;
    let lock = loop {
        match state::lock(&run_dir) {
            Ok(lock) => break Some(lock),
            Err(_) if !run_dir.exists() => break None,
            Err(error) if clock::now() > deadline => return Err(error),
            Err(_) => thread::sleep(Duration::from_millis(50)),
        }
    };
    let mut left = Vec::new();
    for _ in 0..ROUNDS {
        remove_everything(names)?;
        left = leftovers(names);
        if left.is_empty() {
            break;
        }
        thread::sleep(Duration::from_millis(50));
    }
    drop(lock);
    if !left.is_empty() {
        bail!("lab {} is down, but this is left: {}", names.lab(), left.join(", "));
    }
    Ok(())
}

/// Removes all that has the lab's names. Each step is tried even when one before it failed; the first failure is told.
pub fn remove_everything(names: &Names) -> Result<()> {
    let mut steps = Vec::new();
    let cgroup = cgroup::root()?.join(names.cgroup());
    steps.push(cgroup::kill(&cgroup));
    for pins in pin_dirs(names) {
        steps.push(remove_dir(&pins));
    }
    let namespaces = network::namespaces(&names.netns_prefix());
    steps.push(network::remove_namespaces(namespaces.iter().map(String::as_str)));
    steps.push(cgroup::remove(&cgroup));
    steps.push(remove_dir(&names.run_dir()));
    for parent in [cgroup.parent(), names.run_dir().parent(), Some(Path::new(PIN_ROOT))].into_iter().flatten()
    {
        // Other labs may be in it; then it stays.
        let _ = fs::remove_dir(parent);
    }
    steps.into_iter().collect()
}

/// What of a lab is still there.
pub fn leftovers(names: &Names) -> Vec<String> {
    let mut left: Vec<String> = network::namespaces(&names.netns_prefix());
    left.extend(pin_dirs(names).iter().map(|dir| dir.display().to_string()));
    if let Ok(root) = cgroup::root() {
        let cgroup = root.join(names.cgroup());
        left.extend(cgroup::processes(&cgroup).iter().map(|pid| format!("process {pid}")));
        left.extend(cgroup.exists().then(|| cgroup.display().to_string()));
    }
    left.extend(names.run_dir().exists().then(|| names.run_dir().display().to_string()));
    left
}

/// Runs `lab down`.
pub fn run(names: &Names) -> Result<()> {
    let was_there = !leftovers(names).is_empty();
    down(names)?;
    shell::say(match was_there {
        true => format!("lab {} is down; nothing of it is left", names.lab()),
        false => format!("there is no lab {}", names.lab()),
    });
    Ok(())
}

fn pin_dirs(names: &Names) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(PIN_ROOT) else { return Vec::new() };
    let own = |name: &str| name.starts_with(&names.pin_prefix());
    entries.flatten().filter(|e| e.file_name().to_str().is_some_and(own)).map(|e| e.path()).collect()
}

fn remove_dir(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}
