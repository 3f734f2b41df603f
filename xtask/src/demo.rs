//! The demo: what Weft promises, shown with the real output of real programs, each promise with a check mark or a cross.
//!
//! Reading order: [`report`] (how facts are told), [`stage`] (the labs and what runs in them), then the acts in the order
//! in which they are shown: [`call`], [`wire`] with [`capture`], [`refusal`], [`routes`], [`latency`] with [`pingpong`], [`kernel`],
//! [`numbers`]; and [`evidence`] (access records and metrics, from which several acts read).
//!
//! Nothing here is canned: a fact that does not hold is shown as a cross and makes the exit code 1.

pub mod report;

pub mod stage;

pub mod call;

pub mod wire;

pub mod capture;

pub mod refusal;

pub mod routes;

pub mod latency;

pub mod pingpong;

pub mod kernel;

pub mod numbers;

pub mod evidence;

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::shell::{self, say};
use crate::{build, setup};
use report::Report;
use stage::Stage;

/// `demo`.
#[derive(Args)]
pub struct Options {
    /// Print the facts as one JSON document; progress goes to standard error.
    #[arg(long)]
    json: bool,
    /// Leave the lab running, and say how to use and how to remove it.
    #[arg(long)]
    keep: bool,
    /// The lab's name.
    #[arg(long, default_value = "demo")]
    name: String,
    /// Use what is installed and built, as it is.
    #[arg(long)]
    no_build: bool,
}

/// The programs that the demo runs in pods.
#[derive(Subcommand)]
pub enum Part {
    /// Send back what arrives, on one CPU.
    Pong(pingpong::PongOptions),
    /// Measure round trips, on one CPU.
    Ping(pingpong::PingOptions),
}

/// Runs the demo. Exit code 1 says that a promise did not hold.
pub fn run(options: &Options) -> Result<ExitCode> {
    shell::require_root("the demo makes network namespaces and loads kernel programs")?;
    let interrupt = Interrupt::watch()?;
    let mut report = Report::new(options.json);
    if !options.no_build {
        setup::run()?;
        build::run()?;
    }
    let mut stage = Stage::new(&options.name, interrupt.clone())?;
    let shown = show(&mut stage, &mut report);
    let keep = options.keep && shown.is_ok();
    if !keep {
        say("taking the lab down");
        stage.down().context("the demo's lab could not be removed")?;
    }
    if interrupt.has_come() {
        bail!("interrupted; the lab is down");
    }
    shown?;
    if keep {
        report.kept(&stage);
    }
    report.finish()
}

/// Runs a part.
pub fn run_part(part: &Part) -> Result<ExitCode> {
    match part {
        Part::Pong(options) => pingpong::pong(options),
        Part::Ping(options) => pingpong::ping(options),
    }
}

/// The acts in their order.
fn show(stage: &mut Stage, report: &mut Report) -> Result<()> {
    stage.up()?;
    call::show(stage, report)?;
    wire::show(stage, report)?;
    refusal::show(stage, report)?;
    routes::show(stage, report)?;
    latency::show(stage, report)?;
    kernel::show(stage, report)?;
    numbers::show(stage, report)
}

/// Ctrl-C, or another wish that the demo may end.
#[derive(Clone)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// From now on the usual signals only set a mark. The programs that this one starts are not affected.
    fn watch() -> Result<Self> {
        let mark = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            signal_hook::flag::register(signal, Arc::clone(&mark)).context("cannot watch for Ctrl-C")?;
        }
        Ok(Self(mark))
    }

    /// Whether one came.
    pub fn has_come(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Fails once one came.
    pub fn check(&self) -> Result<()> {
        if self.has_come() {
            bail!("interrupted");
        }
        Ok(())
    }
}
