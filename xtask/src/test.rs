//! The checks: everything that must hold before a change is taken.

use anyhow::Result;
use clap::Args;

use crate::{ebpf, setup, shell};

/// What to run.
#[derive(Args)]
pub struct Options {
    /// Passed on to `cargo nextest run`, for example a filter.
    #[arg(last = true)]
    nextest: Vec<String>,
}

/// What the tests do that needs root.
const WHY_ROOT: &str = "the tests load kernel programs and make network namespaces";

/// Sets up, builds and tests.
pub fn run(options: &Options) -> Result<()> {
    shell::require_root(WHY_ROOT)?;
    setup::run()?;
    ebpf::run()?;
    // Builds the agent too: apart from the tests it would be compiled twice, since their dependencies ask for other features.
    shell::say("building and running all tests");
    let mut tests = shell::cargo();
    tests.args(["nextest", "run", "--workspace", "--release"]).args(&options.nextest);
    shell::run(&mut tests)
}

/// The tests, and formatting and lints before them.
pub fn ci(options: &Options) -> Result<()> {
    shell::require_root(WHY_ROOT)?;
    shell::say("checking the formatting");
    shell::run(shell::cargo().args(["fmt", "--all", "--check"]))?;
    shell::say("checking the lints");
    let lints = ["clippy", "--workspace", "--all-targets", "--release", "--", "-D", "warnings"];
    shell::run(shell::cargo().args(lints))?;
    run(options)
}
