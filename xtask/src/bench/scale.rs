//! One agent in a large cluster: how long it needs to start, what it holds, and how soon a change is in the kernel.
//!
//! The agent, its kernel programs and the pods of its node are real; the rest of the cluster is shown to it by
//! `weft-scale`, which serves the API as a large cluster would and changes it at a given rate.
//!
//! Files: this one (what is measured), [`agent`] (an agent fed by an API server), [`simulator`] (the other end), [`table`] (what is
//! shown).

mod agent;

mod simulator;

mod table;

use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Args;
use serde::Serialize;

use super::report::Report;
use super::stage::{Stage, namespace_yaml, pod_yaml};
use super::{Effort, account, interrupt};
use crate::clock;
use crate::shell::say;
use agent::Agent;
use simulator::{Counts, Simulator};

/// The lab.
const LAB: &str = "bench-scale";

/// How long the agent is left alone before its memory is read.
const SETTLE: Duration = Duration::from_secs(3);

/// How long the maps may take to hold everything once the agent says that it is ready.
const FILL_PATIENCE: Duration = Duration::from_secs(120);

/// `bench scale`.
#[derive(Args, Clone, Debug, Serialize)]
pub struct Options {
    /// Nodes, the agent's own among them.
    #[arg(long, default_value_t = 1000)]
    nodes: u32,
    /// Pods of the other nodes.
    #[arg(long, default_value_t = 50_000)]
    pods: u32,
    /// Services, each with one EndpointSlice.
    #[arg(long, default_value_t = 10_000)]
    services: u32,
    /// Endpoints of all services together.
    #[arg(long, default_value_t = 100_000)]
    endpoints: u32,
    /// Namespaces that they lie in.
    #[arg(long, default_value_t = 100)]
    namespaces: u32,
    /// Pods that change their readiness or labels, or are replaced, per second.
    #[arg(long, default_value_t = 100.0)]
    changes_per_second: f64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            nodes: 1000,
            pods: 50_000,
            services: 10_000,
            endpoints: 100_000,
            namespaces: 100,
            changes_per_second: 100.0,
        }
    }
}

/// Everything that was measured.
#[derive(Clone, Debug, Default, Serialize)]
struct Measured {
    ready_s: f64,
    filled_s: f64,
    start: Counts,
    start_cpu_s: f64,
    rss_mb_start: f64,
    rss_mb_peak: f64,
    rss_mb_churn: f64,
    kernel_mb: f64,
    idle: Window,
    churn: Window,
    changes: simulator::Changes,
    arrivals: simulator::Arrivals,
}

/// What happened in a time.
#[derive(Clone, Debug, Default, Serialize)]
struct Window {
    seconds: f64,
    agent_cores: f64,
    others_cores: f64,
    counts: Counts,
}

/// Runs the bench.
pub fn run(effort: &Effort, options: &Options) -> Result<Report> {
    ensure!(options.changes_per_second > 0.0, "--changes-per-second must be above 0");
    let stage = Stage::up(LAB, &world(), &["--nodes", "1"])?;
    let mut simulator = Simulator::start(&stage, options)?;
    let measured = measure(&stage, &mut simulator, options, effort.long_seconds)?;
    Ok(table::report(options, &measured))
}

/// What really runs on the agent's node: three pods, a service and a policy between them.
fn world() -> String {
    let pods: String =
        ["web", "orders-1", "orders-2"].map(|name| pod_yaml(name, "node-1", ", role: real")).concat();
    let service = "---\napiVersion: v1\nkind: Service\nmetadata: {name: orders, namespace: bench}\n\
                   spec: {selector: {role: real}, ports: [{name: http, port: 80, targetPort: 8080, protocol: TCP}]}\n";
    let policy = "---\napiVersion: weft.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: orders, namespace: bench}\n\
                  spec:\n  action: ALLOW\n  targetRefs: [{kind: Pod, selector: {matchLabels: {app: orders-1}}}]\n  \
                  rules: [{sources: [{type: ServiceAccount, serviceAccount: {name: web}}]}]\n";
    namespace_yaml() + &pods + service + policy
}

fn measure(stage: &Stage, simulator: &mut Simulator, options: &Options, seconds: f64) -> Result<Measured> {
    let mut measured = Measured::default();
    let begin = clock::now();
    let agent = Agent::start(stage, simulator)?;
    measured.ready_s = clock::now().duration_since(begin).as_secs_f64();
    say(format!("the agent is ready after {:.1} s", measured.ready_s));
    let deadline = clock::now() + FILL_PATIENCE;
    loop {
        let filled = simulator.in_kernel()?;
        if filled.is_complete() {
            break;
        }
        agent.check()?;
        ensure!(
            clock::now() < deadline,
            "{FILL_PATIENCE:?} after the agent was ready the kernel lacks something: {filled:?}"
        );
        interrupt::sleep(Duration::from_millis(100))?;
    }
    measured.filled_s = clock::now().duration_since(begin).as_secs_f64();
    measured.start = simulator.counts()?;
    measured.start_cpu_s = account::cpu_s(&agent.cgroup)?;
    interrupt::sleep(SETTLE)?;
    measured.rss_mb_start = agent.rss_mb()?;
    measured.kernel_mb = agent.kernel_mb()?;
    say(format!("idle for {:.0} s", seconds / 2.0));
    measured.idle = window(&agent, simulator, |_| interrupt::sleep(Duration::from_secs_f64(seconds / 2.0)))?;
    say(format!("{} changes per second for {seconds:.0} s", options.changes_per_second));
    measured.churn = window(&agent, simulator, |simulator| {
        measured.changes = simulator.churn(options.changes_per_second, seconds)?;
        Ok(())
    })?;
    measured.arrivals = simulator.arrivals()?;
    measured.rss_mb_churn = agent.rss_mb()?;
    measured.rss_mb_peak = agent.peak_mb()?;
    agent.check()?;
    Ok(measured)
}

/// Measures what is used while `happening` happens.
fn window(
    agent: &Agent,
    simulator: &mut Simulator,
    happening: impl FnOnce(&mut Simulator) -> Result<()>,
) -> Result<Window> {
    let (counts, cpu, simulated) = (simulator.counts()?, account::cpu_s(&agent.cgroup)?, simulator.cpu_s()?);
    let moment = account::Moment::now()?;
    happening(simulator)?;
    let between = moment.until(&account::Moment::now()?);
    let agent_cores = (account::cpu_s(&agent.cgroup)? - cpu) / between.seconds;
    let simulator_cores = (simulator.cpu_s()? - simulated) / between.seconds;
    Ok(Window {
        seconds: between.seconds,
        agent_cores,
        others_cores: (between.busy - agent_cores - simulator_cores).max(0.0),
        counts: simulator.counts()?.since(&counts),
    })
}
