//! The end of a cluster, whatever state it is in.
//!
//! Nothing here trusts the state file alone: processes are found by the cluster's control groups, and everything else by its
//! names, so a cluster whose `up` was killed half-way goes as completely as any other.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use nix::mount::{MntFlags, umount2};

use super::names::Names;
use crate::lab::{cgroup, network};
use crate::shell;

/// Removes a cluster. It is no error when there is none.
pub fn run(names: &Names) -> Result<()> {
    let was_there = !leftovers(names)?.is_empty();
    remove_everything(names)?;
    let left = leftovers(names)?;
    ensure!(left.is_empty(), "cluster {} is down, but this is left: {}", names.cluster(), left.join(", "));
    shell::say(match was_there {
        true => format!("cluster {} is down; nothing of it is left", names.cluster()),
        false => format!("there is no cluster {}", names.cluster()),
    });
    Ok(())
}

/// Each step is tried even when one before it failed; the first failure is told.
pub fn remove_everything(names: &Names) -> Result<()> {
    let mut steps = Vec::new();
    // Nodes and the control plane are in it, and every container, whatever namespaces it is in.
    steps.push(cgroup::kill(&cgroup::root()?.join(names.cgroup())));
    steps.push(unmount_below(&names.run_dir()));
    let namespaces = network::namespaces(&names.netns_prefix());
    steps.push(network::remove_namespaces(namespaces.iter().map(String::as_str)));
    steps.push(remove_cgroups(&names.cgroup()));
    steps.push(match fs::remove_dir_all(names.run_dir()) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("cannot remove {}", names.run_dir().display()))
        }
        _ => Ok(()),
    });
    if let Some(parent) = names.run_dir().parent() {
        // Other clusters may be in it; then it stays.
        let _ = fs::remove_dir(parent);
    }
    steps.into_iter().collect()
}

/// Removes a control group, by its place below the root, from every hierarchy.
pub fn remove_cgroups(below: &Path) -> Result<()> {
    for path in places_of(below)? {
        cgroup::remove(&path)?;
        if let Some(parent) = path.parent().filter(|_| below.components().count() > 1) {
            // Others may be in it; then it stays.
            let _ = fs::remove_dir(parent);
        }
    }
    Ok(())
}

/// What of a cluster is still there.
fn leftovers(names: &Names) -> Result<Vec<String>> {
    let mut left: Vec<String> = network::namespaces(&names.netns_prefix());
    for path in places_of(&names.cgroup())? {
        left.extend(path.exists().then(|| path.display().to_string()));
    }
    left.extend(mounts_below(&names.run_dir())?.iter().map(|path| format!("mount {}", path.display())));
    left.extend(names.run_dir().exists().then(|| names.run_dir().display().to_string()));
    Ok(left)
}

fn places_of(below: &Path) -> Result<Vec<PathBuf>> {
    let mut places = vec![cgroup::root()?.join(below)];
    places.extend(cgroup::older_roots()?.into_iter().map(|root| root.path.join(below)));
    Ok(places)
}

fn unmount_below(dir: &Path) -> Result<()> {
    for path in mounts_below(dir)?.iter().rev() {
        umount2(path, MntFlags::MNT_DETACH).with_context(|| format!("cannot unmount {}", path.display()))?;
    }
    Ok(())
}

/// A node's mounts are its own; here there should be none.
fn mounts_below(dir: &Path) -> Result<Vec<PathBuf>> {
    let mounts = fs::read_to_string("/proc/mounts").context("cannot read /proc/mounts")?;
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(1)).map(PathBuf::from);
    Ok(points.filter(|point| point.starts_with(dir)).collect())
}
