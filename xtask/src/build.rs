//! What is built for the lab: the kernel programs and the agent, in the one optimised profile.

use anyhow::Result;

use crate::{ebpf, shell};

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
