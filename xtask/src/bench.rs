//! How fast the mesh is, beside the same thing without it, measured in one run on one machine.
//!
//! Reading order: [`splice`], [`tunnel`], [`http`], [`memory`] and [`scale`] (what is measured and what it must reach), [`rounds`] (variants take
//! turns, so that what disturbs the machine disturbs all alike), [`traffic`] (one measurement), [`stage`] (the labs it
//! happens in), [`haproxy`] and [`envoy`] (the peers) on [`peer`], [`wire`] (is it really encrypted), [`account`] (CPU, memory and metrics), [`report`]
//! (tables and JSON), [`interrupt`]. docs/benchmarks.md says how to read the results.
//!
//! A mark that is missed is a result; a measurement that went wrong is a failure. Only the second makes the command fail.

mod splice;

mod tunnel;

mod http;

mod memory;

mod scale;

mod rounds;

mod traffic;

mod stage;

mod haproxy;

mod envoy;

mod peer;

mod wire;

mod account;

mod report;

mod interrupt;

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::{Args, Subcommand};
use nix::fcntl::{Flock, FlockArg};

use crate::shell;
use report::Report;

/// Where the benches keep their files while they run.
const RUN_DIR: &str = "/run/weft-bench";

/// The benches.
#[derive(Clone, Subcommand)]
pub enum Which {
    /// Two pods on one node: no mesh, spliced, and meshed without the splice.
    Splice,
    /// Two pods on two nodes: no mesh, Weft, and HAProxy with mutual TLS.
    Tunnel,
    /// HTTP requests on one or two nodes: no mesh, Weft with a route, HAProxy and Envoy.
    Http(http::Options),
    /// The agent's memory: by enrolled pods, and by open connections.
    Memory,
    /// One agent in a large simulated cluster: its start, memory, CPU, and how soon a change is in the kernel.
    Scale(scale::Options),
    /// All of them.
    All,
}

/// `bench`.
#[derive(Args)]
pub struct Options {
    #[command(subcommand)]
    which: Which,
    /// How often every variant is measured; medians are shown.
    #[arg(long, global = true, default_value_t = 5)]
    rounds: usize,
    /// How long one measurement takes, in seconds [default: 1; scale: 30]
    #[arg(long, global = true)]
    seconds: Option<f64>,
    /// Measure only what has this text in its name, for example "64 B".
    #[arg(long, global = true, value_name = "TEXT")]
    only: Option<String>,
    /// Write the results as JSON to a file, or to standard output with `-`.
    #[arg(long, global = true, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// How much is measured.
#[derive(Clone, Debug)]
pub struct Effort {
    /// Rounds.
    pub rounds: usize,
    /// Seconds per measurement.
    pub seconds: f64,
    /// Seconds per measurement where one needs many.
    pub long_seconds: f64,
    /// Only measures with this text in their name.
    pub only: Option<String>,
}

impl Effort {
    /// Whether a measure of this name is wanted.
    pub fn wants(&self, name: &str) -> bool {
        self.only.as_ref().is_none_or(|text| name.contains(text.as_str()))
    }
}

/// Runs benches, prints tables, writes JSON.
pub fn run(options: &Options) -> Result<ExitCode> {
    shell::require_root("the benches make network namespaces and load kernel programs")?;
    ensure!(options.rounds > 0, "--rounds must be at least 1");
    let (seconds, long_seconds) = (options.seconds.unwrap_or(1.0), options.seconds.unwrap_or(30.0));
    ensure!(seconds > 0.0 && seconds <= 600.0, "--seconds must be between 0 and 600");
    let _alone = alone()?;
    interrupt::watch()?;
    let effort = Effort { rounds: options.rounds, seconds, long_seconds, only: options.only.clone() };
    let benches = benches(&options.which);
    let machine = report::machine();
    let to_stdout = options.json.as_ref().is_some_and(|path| path.as_os_str() == "-");
    let mut reports = Vec::new();
    for bench in &benches {
        let report = bench(&effort)?;
        let text = report.text(&machine);
        if to_stdout {
            eprint!("{text}")
        } else {
            print!("{text}")
        }
        reports.push(report);
    }
    let json = serde_json::to_string_pretty(&report::json(&machine, &effort, &reports))?;
    match &options.json {
        Some(_) if to_stdout => println!("{json}"),
        Some(path) => fs::write(path, json).with_context(|| format!("cannot write {}", path.display()))?,
        None => {}
    }
    let wrong: Vec<String> = reports.iter().flat_map(|report| report.wrong.clone()).collect();
    ensure!(wrong.is_empty(), "some measurements went wrong:\n  {}", wrong.join("\n  "));
    Ok(ExitCode::SUCCESS)
}

/// A bench with its own options.
type Bench = Box<dyn Fn(&Effort) -> Result<Report>>;

fn benches(which: &Which) -> Vec<Bench> {
    let http = |options: http::Options| -> Bench { Box::new(move |effort| http::run(effort, &options)) };
    let scale = |options: scale::Options| -> Bench { Box::new(move |effort| scale::run(effort, &options)) };
    match which {
        Which::Splice => vec![Box::new(splice::run)],
        Which::Tunnel => vec![Box::new(tunnel::run)],
        Which::Http(options) => vec![http(options.clone())],
        Which::Memory => vec![Box::new(memory::run)],
        Which::Scale(options) => vec![scale(options.clone())],
        Which::All => {
            let http = http(http::Options::default());
            let scale = scale(scale::Options::default());
            vec![Box::new(splice::run), Box::new(tunnel::run), http, Box::new(memory::run), scale]
        }
    }
}

/// Two benches at once would measure each other.
fn alone() -> Result<Flock<File>> {
    fs::create_dir_all(RUN_DIR).with_context(|| format!("cannot make {RUN_DIR}"))?;
    let dir = File::open(RUN_DIR).with_context(|| format!("cannot open {RUN_DIR}"))?;
    Flock::lock(dir, FlockArg::LockExclusiveNonblock)
        .map_err(|(_, error)| anyhow::anyhow!("another `cargo xtask bench` is running ({error})"))
}
