//! The process `mesh-agent node`: the agent of one node.
//!
//! Order of start: log and windows, discovery (so that there is a state), kernel programs, probes, identity, workers,
//! capture. Ready when every pod that is there has been caught and has its certificate.
//! Order of stop: capture says goodbye to the programs, workers let connections end, records are flushed. Pins stay.

use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::Error;
use super::process::Process;
use super::trust;
use super::windows::{LateDiscovery, add_mesh, first_state, report_discovery};
use crate::admin::{Windows, views};
use crate::capture::groups::Groups;
use crate::capture::sandbox::{Files, Sandboxes};
use crate::capture::{self, Capture, FastPath, KernelCallers, KernelOrigins};
use crate::config::{NodeSettings, ServiceVips, SpliceMode};
use crate::identity::Identities;
use crate::kernel::{self, Kernel, probes};
use crate::lifecycle::{Block, clock, tasks};
use crate::model::WorkloadUid;
use crate::policy::Policies;
use crate::registry::Registry;
use crate::telemetry::Telemetry;
use crate::{discovery, identity, policy, proxy, registry, route};

/// How long readiness waits for the certificates of the pods that are there at start. After that the agent serves what it
/// can: pods without a certificate are refused one by one, not the whole node.
const CERTIFICATES_WAIT: Duration = Duration::from_secs(10);

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// Whatever keeps the agent from starting; once it runs, it keeps running.
pub fn run(settings: &NodeSettings) -> Result<(), Error> {
    let process = Process::begin(&settings.log, &settings.telemetry, &settings.admin)?;
    raise_descriptor_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("control")
        .enable_all()
        .build()
        .map_err(Error::Runtime)?;
    let entered = runtime.enter();
    let (telemetry, shutdown) = (process.telemetry.clone(), process.shutdown.clone());
    let objects = process.readiness.block("objects");
    let trusting = process.readiness.block("trust bundle");
    let capturing = process.readiness.block("capture");
    let certifying = process.readiness.block("certificates");

    let (registry_writer, registry) = registry::new();
    let (policy_writer, policies) = policy::new();
    let (route_writer, routes) = route::new();
    let found = LateDiscovery::default();
    let parts = LateParts::default();
    report_discovery(&telemetry, &registry, &found);
    let windows = windows(&process, settings, &registry, &policies, &found, &parts);
    let server = process.serve(windows, &runtime)?;

    let (source, stop) = (settings.objects.clone(), shutdown.clone());
    let started = discovery::start(source, registry_writer, policy_writer, route_writer, &telemetry, stop);
    let discovery = runtime.block_on(started)?;
    let _first = found.set(discovery.clone());
    if !runtime.block_on(first_state(&discovery, &shutdown)) {
        server.join();
        return Ok(());
    }
    drop(objects);
    if !runtime.block_on(trust::published(&settings.ca.roots, trusting, &shutdown)) {
        server.join();
        return Ok(());
    }

    let mut kernel = Kernel::load(&settings.kernel)?;
    let sandboxes = sandboxes(settings)?;
    // Before the probes: where the agent is itself below this group, they run with the programs that are attached there.
    let attached = settings.kernel.cgroup.as_deref().or_else(|| sandboxes.attach_point()).map(Path::to_owned);
    attached.as_deref().map(|group| kernel.attach(group)).transpose()?;
    let fast_path = match settings.splice {
        SpliceMode::Auto => probe(&mut kernel, &telemetry),
        SpliceMode::Off => FastPath::Off,
    };
    kernel::release_boot_memory();

    let mesh = registry.snapshot().config.clone();
    let identities = identity::start(settings.ca.identity(&mesh), telemetry.clone(), shutdown.clone())?;

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
    let workers = proxy::start_workers(proxy::Settings::default(), &handles, receivers, &shutdown)?;

    let wanted = identities.clone();
    let capture = capture::start(
        capture::Settings {
            node: settings.node.as_str().into(),
            sandboxes,
            attached,
            all_services: settings.service_vips == ServiceVips::All,
            fast_path,
        },
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
        shutdown.clone(),
    )?;
    tasks::spawn("first certificates", first_certificates(identities.clone(), capture.clone(), certifying));

    let _first = parts.set(Parts { identities, capture });
    drop(entered);

    runtime.block_on(shutdown.requested());
    workers.join();
    telemetry.flush_access_log();
    server.join();
    Ok(())
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
                |state| json!(state.problems.iter().chain(&state.left_out).collect::<Vec<_>>()),
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
