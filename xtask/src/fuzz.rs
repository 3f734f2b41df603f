//! Long fuzz runs: every target in mesh-agent/fuzz, or those that are asked for, for so many seconds each.
//!
//! What a run finds lies in mesh-agent/fuzz/artifacts afterwards, and is run again with
//! `cargo +nightly fuzz run --fuzz-dir mesh-agent/fuzz TARGET FILE`. Corpora stay in mesh-agent/fuzz/corpus, so that the next
//! run goes on from there.

use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use crate::shell::{self, answer, say};

/// The newest cargo-fuzz that was tried.
const CARGO_FUZZ_VERSION: &str = "0.13.2";

/// Where the targets are, from the root of the workspace.
const FUZZ_DIR: &str = "mesh-agent/fuzz";

/// What is run, and for how long.
#[derive(Args)]
pub struct Options {
    /// Only this target; may be given several times.
    #[arg(long = "target", value_name = "NAME")]
    targets: Vec<String>,
    /// How long each target runs, in seconds.
    #[arg(long, default_value_t = 600)]
    seconds: u64,
    /// Only list the targets.
    #[arg(long)]
    list: bool,
}

/// Installs what is missing, then runs target after target. All of them run, also after one that found something.
pub fn run(options: &Options) -> Result<()> {
    require_nightly()?;
    cargo_fuzz()?;
    let all = targets()?;
    if options.list {
        all.iter().for_each(|target| println!("{target}"));
        return Ok(());
    }
    for wanted in &options.targets {
        ensure!(all.contains(wanted), "no fuzz target `{wanted}`; there are: {}", all.join(", "));
    }
    let chosen = if options.targets.is_empty() { &all } else { &options.targets };
    let mut failed = Vec::new();
    for target in chosen {
        say(format!("fuzzing {target} for {} s", options.seconds));
        let limit = format!("-max_total_time={}", options.seconds);
        if let Err(error) = shell::run(fuzz("run").args([target.as_str(), "--", &limit])) {
            say(format!("{error:#}"));
            failed.push(target.as_str());
        }
    }
    ensure!(failed.is_empty(), "{} failed; see {FUZZ_DIR}/artifacts", failed.join(", "));
    say(format!("nothing was found by {}", chosen.join(", ")));
    Ok(())
}

fn targets() -> Result<Vec<String>> {
    let output = fuzz("list").output().context("cannot run cargo-fuzz")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "the fuzz targets cannot be listed: {}", said.trim());
    Ok(String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect())
}

/// `cargo fuzz` by the nightly compiler, which alone has the sanitizers.
fn fuzz(subcommand: &str) -> Command {
    let mut command = Command::new("rustup");
    // This program was started by a cargo of the pinned toolchain, which must not be the one that builds here.
    command.env_remove("CARGO").env_remove("RUSTUP_TOOLCHAIN").current_dir(shell::workspace_dir());
    command.args(["run", "nightly", "cargo", "fuzz", subcommand, "--fuzz-dir", FUZZ_DIR]);
    command
}

fn require_nightly() -> Result<()> {
    if answer("rustup", &["run", "nightly", "rustc", "--version"]).is_some() {
        return Ok(());
    }
    bail!("fuzzing needs nightly Rust: run `rustup toolchain install nightly --profile minimal`")
}

fn cargo_fuzz() -> Result<()> {
    if answer("cargo-fuzz", &["--version"]).is_some() {
        return Ok(());
    }
    say(format!("cargo-fuzz: missing, building {CARGO_FUZZ_VERSION}"));
    shell::run(shell::cargo().args(["install", "--locked", "cargo-fuzz", "--version", CARGO_FUZZ_VERSION]))
}
