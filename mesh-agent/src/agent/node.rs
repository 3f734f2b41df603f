//! `mesh-agent node`: the agent of one node.
//!
//! Order of start: log, admin address, discovery (so that there is a state), kernel programs, probes, identity, workers,
//! capture. Ready when every pod that is there has been caught and every SVID it needs has been asked for.
//! Order of stop: capture says goodbye to the programs, workers let connections end, records are flushed. Pins stay.

use std::sync::Arc;

use anyhow::Context as _;
use tokio::sync::mpsc;

use super::windows;
use crate::capture::{self, KernelOrigins};
use crate::config::{NodeSettings, ServiceVips, SpliceMode};
use crate::kernel::{Kernel, probes};
use crate::lifecycle::Readiness;
use crate::telemetry::{Telemetry, log};
use crate::{admin, discovery, identity, policy, proxy, registry};

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// Whatever keeps the agent from starting. Once it runs, it keeps running.
pub fn run(settings: NodeSettings) -> anyhow::Result<()> {
    log::install(&settings.log)?;
    // Before any thread: it reads and clears variables of the environment.
    let inherited = admin::inherit()?;
    raise_descriptor_limit();
    let telemetry = Telemetry::start(&settings.telemetry)?;
    let readiness = Readiness::default();
    let starting = readiness.block("start-up");
    let capturing = readiness.block("capture");

    let runtime = super::control_runtime().context("cannot start the control runtime")?;
    let entered = runtime.enter();
    let shutdown = super::shutdown_on_signal();

    let (registry_writer, registry) = registry::new();
    let (policy_writer, policies) = policy::new();
    let discovery = discovery::start(
        discovery::Settings { dir: settings.config_dir.clone() },
        registry_writer,
        policy_writer,
        shutdown.clone(),
    )?;

    let mut kernel = Kernel::load(&settings.kernel)?;
    let splice = settings.splice == SpliceMode::Auto && fast_path_is_sound(&mut kernel, &telemetry);
    kernel.attach(&settings.kernel.cgroup)?;

    let mesh = registry.snapshot().config.clone();
    let identities = identity::start(settings.ca.identity(&mesh), telemetry.clone(), shutdown.clone())?;

    let (senders, receivers): (Vec<_>, Vec<_>) =
        (0..settings.workers.get()).map(|_| mpsc::unbounded_channel()).unzip();
    let handles = proxy::Handles {
        registry: registry.clone(),
        policies: policies.clone(),
        credentials: Arc::new(identities.clone()),
        origins: Arc::new(KernelOrigins(kernel.maps().clone())),
        telemetry: telemetry.clone(),
    };
    let workers = proxy::start_workers(proxy::Settings::default(), &handles, receivers, &shutdown)?;

    let wanted = identities.clone();
    let capture = capture::start(
        capture::Settings {
            node: settings.node.as_str().into(),
            sandbox_dir: settings.sandbox_dir.clone(),
            all_services: settings.service_vips == ServiceVips::All,
            splice,
        },
        kernel,
        capture::Handles {
            registry: registry.clone(),
            policies: policies.clone(),
            telemetry: telemetry.clone(),
            workers: senders,
            wanted_identities: Box::new(move |ids| wanted.set_wanted(ids)),
        },
        capturing,
        shutdown.clone(),
    )?;

    let listener = match inherited {
        Some(listener) => listener,
        None => admin::bind(&settings.admin)?,
    };
    let shown = windows::Sources { registry, policies, discovery, identities, capture };
    let server =
        admin::serve(listener, windows::node(telemetry.clone(), readiness, shown), shutdown.clone())?;
    tracing::info!(node = settings.node, admin = %server.address(), workers = settings.workers, splice, "agent runs");
    drop(starting);
    drop(entered);

    runtime.block_on(shutdown.requested());
    workers.join();
    telemetry.flush_access_log();
    server.join();
    Ok(())
}

/// Runs the probes, tells about each, and says whether the fast path may be used.
fn fast_path_is_sound(kernel: &mut Kernel, telemetry: &Telemetry) -> bool {
    let results = match probes::run(kernel) {
        Ok(results) => results,
        Err(error) => {
            tracing::warn!(error = ?anyhow::Error::from(error), "the fast path could not be probed and stays off");
            return false;
        }
    };
    let mut sound = true;
    for result in results {
        telemetry.probe_result(result.name, result.failure.is_none());
        if let Some(failure) = result.failure {
            tracing::warn!(
                probe = result.name,
                failure,
                "this kernel fails a probe: the fast path stays off"
            );
            sound = false;
        }
    }
    sound
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
