//! The process `mesh-agent node`: the agent of one node.
//!
//! Order of start: log and windows, discovery (so that there is a state), identity, the turn (another agent of this node may
//! have it), kernel programs, probes, workers, capture. Ready when every pod that is there has been caught and has its
//! certificate, and before that while nothing is missing but the turn.
//! Order of stop: capture gives the turn to the next agent or says goodbye to the programs, workers let connections end,
//! records are flushed. Pins stay.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::Error;
use super::process::Process;
use super::standby::Standby;
use super::trust;
use super::windows::{LateDiscovery, add_mesh, first_state, report_discovery};
use crate::admin::{Windows, views};
use crate::capture::groups::Groups;
use crate::capture::sandbox::{Files, Sandboxes};
use crate::capture::{self, Capture, FastPath, KernelCallers, KernelOrigins, Left};
use crate::config::{NodeSettings, ServiceVips, SpliceMode};
use crate::identity::Identities;
use crate::identity::line::Line;
use crate::kernel::turn::{self, Claimed};
use crate::kernel::{self, Kernel, probes};
use crate::lifecycle::{Block, Readiness, Trigger, clock, shutdown, tasks};
use crate::model::WorkloadUid;
use crate::policy::Policies;
use crate::registry::Registry;
use crate::telemetry::Telemetry;
use crate::{admin, discovery, identity, notices, policy, progress, proxy, registry, route};

/// How often one looks whether the agent is ready.
const STARTED_EVERY: Duration = Duration::from_millis(100);
/// How long readiness waits for the certificates of the pods that are there at start. After that the agent serves what it
/// can: pods without a certificate are refused one by one, not the whole node.
const CERTIFICATES_WAIT: Duration = Duration::from_secs(10);

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// Whatever keeps the agent from starting; once it runs, it keeps running.
pub fn run(settings: &NodeSettings) -> Result<(), Error> {
    let claimed = turn::claim(&settings.kernel.pin_dir)?;
    let process = Process::begin(&settings.log, &settings.telemetry, || match &claimed {
        Claimed::Now(_) => admin::bind(&settings.admin).map(Into::into),
        Claimed::Later(_) => admin::bind_when_free(&settings.admin),
    })?;
    raise_descriptor_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("control")
        .enable_all()
        .build()
        .map_err(Error::Runtime)?;
    let entered = runtime.enter();
    let (telemetry, readiness, asked) =
        (process.telemetry.clone(), process.readiness.clone(), process.shutdown.clone());
    let (stop, stopping) = shutdown::channel();
    let objects = readiness.block("objects");
    let trusting = readiness.block("trust bundle");
    let mut capturing = readiness.block("capture");
    let mut certifying = readiness.block("certificates");
    if let Some(file) = settings.started_file.clone() {
        tasks::spawn("started file", tell_started(file, readiness.clone()));
    }

    let (registry_writer, registry) = registry::new();
    let (policy_writer, policies) = policy::new();
    let (route_writer, routes) = route::new();
    let found = LateDiscovery::default();
    let parts = LateParts::default();
    report_discovery(&telemetry, &registry, &found);
    let windows = windows(&process, settings, &registry, &policies, &found, &parts);
    let server = process.serve(windows, &runtime)?;

    let (source, ends) = (settings.objects.clone(), stopping.clone());
    let started = discovery::start(source, registry_writer, policy_writer, route_writer, &telemetry, ends);
    let discovery = runtime.block_on(started)?;
    let _first = found.set(discovery.clone());
    if !runtime.block_on(first_state(&discovery, &asked)) {
        server.join();
        return Ok(());
    }
    drop(objects);
    if !runtime.block_on(trust::published(&settings.ca.roots, trusting, &asked)) {
        server.join();
        return Ok(());
    }

    let mesh = registry.snapshot().config.clone();
    let ca = settings.ca.identity(&mesh);
    let identities = identity::start(ca.clone(), telemetry.clone(), stopping.clone())?;
    let mut sandboxes = sandboxes(settings)?;
    let succeeds_another = matches!(claimed, Claimed::Later(_));
    let turn = match claimed {
        Claimed::Now(turn) => turn,
        Claimed::Later(waiting) => {
            let mut standby = Standby {
                node: &settings.node,
                sandboxes: &mut sandboxes,
                registry: &registry,
                identities: &identities,
                certificates_wait: CERTIFICATES_WAIT,
            };
            let turn = runtime.block_on(standby.wait(waiting, vec![capturing, certifying], &asked))?;
            let Some(turn) = turn else {
                server.join();
                return Ok(());
            };
            capturing = readiness.block("capture");
            certifying = readiness.block("certificates");
            turn
        }
    };

    let mut kernel = Kernel::load(&settings.kernel)?;
    // Before the probes: where the agent is itself below this group, they run with the programs that are attached there.
    let attached = settings.kernel.cgroup.as_deref().or_else(|| sandboxes.attach_point()).map(Path::to_owned);
    attached.as_deref().map(|group| kernel.attach(group)).transpose()?;
    let fast_path = match settings.splice {
        SpliceMode::Auto => probe(&mut kernel, &telemetry),
        SpliceMode::Off => FastPath::Off,
    };
    kernel::release_boot_memory();

    let (senders, receivers): (Vec<_>, Vec<_>) =
        (0..settings.workers.get()).map(|_| mpsc::unbounded_channel()).unzip();
    let handles = proxy::Handles {
        registry: registry.clone(),
        policies: policies.clone(),
        routes: routes.clone(),
        credentials: Arc::new(identities.clone()),
        origins: Arc::new(KernelOrigins(kernel.maps().clone())),
        callers: Arc::new(KernelCallers::new(attached.as_deref())),
        telemetry: telemetry.clone(),
    };
    let (drain, draining) = shutdown::channel();
    let leaving = proxy::Leaving { draining, stopping };
    let workers = proxy::start_workers(proxy::Settings::default(), &handles, receivers, &leaving)?;

    let wanted = identities.clone();
    let capture = capture::start(
        capture::Settings {
            node: settings.node.as_str().into(),
            sandboxes,
            attached,
            all_services: settings.service_vips == ServiceVips::All,
            fast_path,
            succeeds_another,
        },
        turn,
        kernel,
        capture::Handles {
            registry: registry.clone(),
            policies: policies.clone(),
            routes: routes.clone(),
            telemetry: telemetry.clone(),
            workers: senders,
            wanted_identities: Box::new(move |ids| wanted.set_wanted(ids)),
        },
        capturing,
        asked.clone(),
    )?;
    if let discovery::Settings::Kubernetes(access) = &settings.objects {
        let client = runtime.block_on(access.client())?;
        notices::start(client, &settings.node, capture.states(), asked.clone());
    }
    let line = Line::new(&ca, identities.trust())?;
    // An agent that leaves has said its last: the next one speaks for the node.
    progress::start(line, discovery.versions(), capture.in_kernel(), asked.clone());
    tasks::spawn("first certificates", first_certificates(identities.clone(), capture.clone(), certifying));

    let _first = parts.set(Parts { identities, capture: capture.clone() });

    runtime.block_on(asked.requested());
    match runtime.block_on(capture.left()) {
        Left::Succeeded => {
            drain.fire();
            tasks::spawn("drain deadline", stop_after(settings.drain_deadline, stop));
        }
        Left::Alone => stop.fire(),
    }
    drop(entered);
    workers.join();
    telemetry.flush_access_log();
    server.join();
    Ok(())
}

/// Makes the file once nothing blocks; one that an earlier agent left is removed first.
async fn tell_started(file: PathBuf, readiness: Readiness) {
    if let Err(error) = std::fs::remove_file(&file).or_else(absent_is_well) {
        tracing::warn!(%error, file = %file.display(), "an old --started-file cannot be removed");
    }
    while !readiness.is_ready() {
        tokio::time::sleep(STARTED_EVERY).await;
    }
    if let Err(error) = std::fs::write(&file, "") {
        tracing::warn!(%error, file = %file.display(), "--started-file cannot be made");
    }
}

fn absent_is_well(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

async fn stop_after(deadline: Duration, stop: Trigger) {
    tokio::time::sleep(deadline).await;
    tracing::info!(?deadline, "connections that are still open end now");
    stop.fire();
}

/// What the windows show of rooms that start after them.
#[derive(Debug)]
struct Parts {
    identities: Identities,
    capture: Capture,
}

type LateParts = Arc<OnceLock<Parts>>;

/// The windows are open from the beginning, so that one can see what the start waits for.
fn windows(
    process: &Process,
    settings: &NodeSettings,
    registry: &Registry,
    policies: &Policies,
    discovery: &LateDiscovery,
    parts: &LateParts,
) -> Windows {
    let (caught, certified, complaints) = (parts.clone(), parts.clone(), parts.clone());
    let is_caught = move |uid: &WorkloadUid| {
        let pods = caught.get().map(|parts| parts.capture.state());
        pods.is_some_and(|state| state.pods.iter().any(|(_, pod)| pod.uid == *uid))
    };
    let windows = process.windows().of_node(settings.node.as_str());
    add_mesh(windows, registry, policies, discovery, is_caught)
        .view("/certificates", move || {
            certified.get().map_or_else(|| json!([]), |parts| certificates(&parts.identities, &parts.capture))
        })
        .view("/node-problems", move || {
            let state = complaints.get().map(|parts| parts.capture.state());
            state.map_or_else(
                || json!([]),
                |state| {
                    let all = state.problems.iter().chain(&state.left_out);
                    json!(all.map(ToString::to_string).collect::<Vec<_>>())
                },
            )
        })
}

/// Where the pods of this node are looked for.
fn sandboxes(settings: &NodeSettings) -> Result<Sandboxes, Error> {
    if let Some(dir) = &settings.sandbox_dir {
        return Ok(Sandboxes::Files(Files(dir.clone())));
    }
    let mut groups = Groups::of_this_node().map_err(Error::Cgroups)?;
    if let Some(group) = &settings.kernel.cgroup {
        groups.attach_only_to(group);
    }
    Ok(Sandboxes::Groups(Box::new(groups)))
}

/// Runs the probes, tells about each, and says which pods may use the fast path.
fn probe(kernel: &mut Kernel, telemetry: &Telemetry) -> FastPath {
    let results = match probes::run(kernel) {
        Ok(results) => results,
        Err(error) => {
            tracing::warn!(%error, "the fast path could not be probed and stays off");
            return FastPath::Off;
        }
    };
    let mut fast_path = FastPath::On;
    for result in results {
        telemetry.probe_result(result.name, result.failure.is_none());
        let Some(failure) = result.failure else { continue };
        if let Some((_, way)) = probes::VOUCHABLE.iter().find(|(name, _)| *name == result.name) {
            tracing::warn!(
                probe = result.name,
                way,
                failure,
                "only pods labelled weft.dev/splice=enabled are spliced"
            );
            if fast_path == FastPath::On {
                fast_path = FastPath::OptIn;
            }
        } else {
            tracing::warn!(probe = result.name, failure, "a probe failed: the fast path stays off");
            fast_path = FastPath::Off;
        }
    }
    fast_path
}

/// Holds readiness until the pods that are there at start have their certificates, within bounds.
async fn first_certificates(identities: Identities, capture: Capture, block: Block) {
    let deadline = clock::now() + CERTIFICATES_WAIT;
    // Capture publishes its first state within milliseconds; a node without pods never gets one to wait for.
    tokio::time::sleep(Duration::from_millis(100)).await;
    for (pod, _) in &capture.state().pods {
        let left = deadline.saturating_duration_since(clock::now());
        let identity = pod.workload().identity.clone();
        if !identities.wait_for(&identity, left).await {
            tracing::warn!(%identity, "no certificate yet");
        }
    }
    drop(block);
}

/// One line per identity that this node's pods need, whether it has a certificate yet or not.
fn certificates(identities: &Identities, capture: &Capture) -> Value {
    let mut wanted: std::collections::BTreeMap<String, Vec<String>> = std::collections::BTreeMap::new();
    for (pod, _) in &capture.state().pods {
        let workload = pod.workload();
        wanted.entry(workload.identity.to_string()).or_default().push(workload.name.to_string());
    }
    let held = identities.certificates();
    let now = clock::wall();
    let line = |(identity, pods): (String, Vec<String>)| {
        let Some(info) = held.iter().find(|info| info.id.as_str() == identity) else {
            return views::Certificate { identity, state: "pending".to_owned(), pods, ..Default::default() };
        };
        views::Certificate {
            identity,
            state: if info.not_after > now { "valid" } else { "expired" }.to_owned(),
            serial: Some(info.serial.clone()),
            not_before: Some(clock::wall_rfc3339(info.not_before)),
            not_after: Some(clock::wall_rfc3339(info.not_after)),
            pods,
            ..Default::default()
        }
    };
    json!(wanted.into_iter().map(line).collect::<Vec<_>>())
}

/// Each connection takes up to three descriptors; the soft limit is often 1024.
fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_soft, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}
