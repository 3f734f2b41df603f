//! A cluster of any size, as its API server would show it to one agent: lists, watches, and changes at a given rate.
//!
//! Nothing runs behind it. Objects are computed from their number when they are asked for, so that 50,000 pods cost no
//! memory here; only what the changes have changed is remembered. The program also looks into the agent's pinned maps and
//! tells how long each change took from the socket to the kernel: both ends of that time are read from one clock.
//!
//! ```text
//! weft-scale --listen ADDRESS:PORT --pins DIR [--given FILE]
//!            [--nodes N] [--namespaces N] [--pods N] [--services N] [--endpoints N]
//! ```
//!
//! `--given` is a JSON array of objects that are served beside the computed ones: those of the pods that really run. Then it
//! takes commands, one per line of standard input, and answers each with a line of JSON:
//!
//! | command | answer |
//! |---|---|
//! | `counts` | requests by verb and kind, bytes of lists and watches, so far |
//! | `kernel` | how many services and pod addresses are in the agent's maps, of how many |
//! | `churn RATE SECONDS` | what was changed |
//! | `arrivals` | how long the changes since the last such question took to reach the kernel |
//!
//! Reading order: [`plan`] (which object has which number, name and address), [`template`] and [`drawing`] (its JSON),
//! [`cluster`] (what has changed), [`log`] (who is told), [`query`], [`api`] and [`body`] (HTTP), [`counts`], [`churn`], [`kernel`] and
//! [`waiting`] (has it arrived), [`clock`].

pub mod cluster;
pub mod drawing;
pub mod plan;
pub mod template;

pub mod log;

pub mod api;
pub mod body;
pub mod counts;
pub mod query;

pub mod churn;
pub mod clock;
pub mod kernel;
pub mod waiting;

use std::io::{BufRead, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use cluster::Cluster;
use counts::Counts;
use kernel::Kernel;
use plan::Sizes;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match run(&words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// What the command line says.
struct Options {
    listen: SocketAddr,
    pins: PathBuf,
    given: Option<PathBuf>,
    sizes: Sizes,
}

fn options(words: &[String]) -> Result<Options> {
    let (mut listen, mut pins, mut given, mut sizes) = (None, None, None, Sizes::default());
    for pair in words.chunks(2) {
        let [flag, value] = pair else { bail!("{} needs a value", pair[0]) };
        let number = || value.parse::<u32>().with_context(|| format!("{flag} {value}: not a number"));
        match flag.as_str() {
            "--listen" => listen = Some(value.parse().with_context(|| format!("--listen {value}"))?),
            "--pins" => pins = Some(PathBuf::from(value)),
            "--given" => given = Some(PathBuf::from(value)),
            "--nodes" => sizes.nodes = number()?,
            "--namespaces" => sizes.namespaces = number()?,
            "--pods" => sizes.pods = number()?,
            "--services" => sizes.services = number()?,
            "--endpoints" => sizes.endpoints = number()?,
            _ => bail!("there is no flag {flag}"),
        }
    }
    sizes.check()?;
    Ok(Options {
        listen: listen.context("--listen is missing")?,
        pins: pins.context("--pins is missing")?,
        given,
        sizes,
    })
}

fn run(words: &[String]) -> Result<()> {
    let options = options(words)?;
    let given = match &options.given {
        None => Vec::new(),
        Some(path) => {
            let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
            serde_json::from_slice(&text).with_context(|| format!("{}", path.display()))?
        }
    };
    let cluster = Arc::new(Cluster::new(options.sizes, given)?);
    let counts = Arc::new(Counts::default());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(serve(options, cluster, counts))
}

/// Serves the API and obeys standard input until that ends.
async fn serve(options: Options, cluster: Arc<Cluster>, counts: Arc<Counts>) -> Result<()> {
    let listener = TcpListener::bind(options.listen)
        .await
        .with_context(|| format!("cannot listen on {}", options.listen))?;
    tell(&json!({"listening": listener.local_addr()?.to_string()}));
    let waiting = waiting::start(options.pins.clone());
    let serving = api::serve(
        listener,
        api::Api { cluster: cluster.clone(), counts: counts.clone(), waiting: waiting.clone() },
    );
    let obeying = async {
        let mut commands = read_commands();
        while let Some(command) = commands.recv().await {
            let words: Vec<&str> = command.split_whitespace().collect();
            match words.as_slice() {
                [] => {}
                ["counts"] => tell(&counts.told()),
                ["kernel"] => tell(&in_kernel(&options, &cluster)?),
                ["churn", rate, seconds] => {
                    let order = churn::Order { per_s: rate.parse()?, seconds: seconds.parse()? };
                    tell(&churn::run(&cluster, &waiting, &order).await?);
                }
                ["arrivals"] => tell(&churn::settle(&waiting).await?),
                _ => bail!("`{command}` is not a command"),
            }
        }
        Ok(())
    };
    tokio::select! {
        ended = serving => ended,
        ended = obeying => ended,
    }
}

/// How much of the cluster the kernel knows.
fn in_kernel(options: &Options, cluster: &Cluster) -> Result<Value> {
    let kernel = Kernel::open(&options.pins)?;
    let plan = cluster.plan();
    let (mut services, mut addresses) = (0, 0);
    for service in 0..plan.sizes.services {
        let wanted = plan.members(service).filter(|pod| cluster.pod(*pod).ready).count();
        services += u32::from(kernel.endpoint_count(plan.cluster_ip(service))? == Some(wanted));
    }
    for pod in 0..plan.sizes.pods {
        addresses += u32::from(kernel.has_address(cluster.pod(pod).ip)?);
    }
    Ok(json!({
        "services": services, "servicesWanted": plan.sizes.services,
        "addresses": addresses, "addressesWanted": plan.sizes.pods,
    }))
}

/// Lines of standard input, until it ends.
fn read_commands() -> mpsc::UnboundedReceiver<String> {
    let (sender, receiver) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

fn tell(line: &Value) {
    let mut out = std::io::stdout().lock();
    // Nobody may be there to hear it any more.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}
