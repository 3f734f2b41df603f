//! What is built for the lab: the kernel programs and the agent, in the one optimised profile.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::Result;

use crate::{ebpf, shell};

/// What the agent is made from.
pub const AGENT_SOURCES: [&str; 2] = ["mesh-agent/src", "mesh-common/src"];

/// What the kernel programs are made from.
pub const KERNEL_SOURCES: [&str; 2] = ["mesh-ebpf/src", "mesh-common/src"];

/// Builds everything that a lab runs.
pub fn run() -> Result<()> {
    ebpf::run()?;
    agent()
}

/// Builds mesh-agent and meshctl.
pub fn agent() -> Result<()> {
    shell::say("building mesh-agent and meshctl");
    shell::run(shell::cargo().args(["build", "--release", "--package", "mesh-agent"]))
}

/// Writes `deploy/crds/` anew from the types of our kinds. A test of mesh-agent does it, and otherwise compares: so this
/// program need not know the types.
pub fn definitions() -> Result<()> {
    let test = ["test", "--release", "--package", "mesh-agent", "--test", "deploy", "definitions_are_those"];
    shell::run(shell::cargo().env("WEFT_REGENERATE", "1").args(test))
}

/// A source file that is newer than a built file, so that nobody tries a change that is not in what runs.
pub fn newer_source(built: &Path, sources: &[&str]) -> Option<PathBuf> {
    let built = fs::metadata(built).and_then(|about| about.modified()).ok()?;
    sources.iter().find_map(|dir| newer_in(&shell::workspace_dir().join(dir), built))
}

fn newer_in(dir: &Path, than: SystemTime) -> Option<PathBuf> {
    fs::read_dir(dir).ok()?.flatten().find_map(|entry| {
        let about = entry.metadata().ok()?;
        if about.is_dir() {
            return newer_in(&entry.path(), than);
        }
        about.modified().is_ok_and(|changed| changed > than).then(|| entry.path())
    })
}
