//! The process `mesh-agent control`: objects of the mesh into a registry, and the certificate authority over it.

use super::Error;
use super::process::Process;
use super::windows::{LateDiscovery, add_mesh, first_state, report_discovery};
use crate::config::{ControlSettings, RotateRootSettings};
use crate::control::Control;
use crate::control::ca::{self, Phase};
use crate::{discovery, policy, registry, route, telemetry};

/// Runs the control plane until it is asked to stop.
///
/// # Errors
/// Whatever keeps it from starting; once it runs, it keeps running.
pub fn run(settings: &ControlSettings) -> Result<(), Error> {
    let process = Process::begin(&settings.log, &telemetry::Settings::default(), &settings.admin)?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Error::Runtime)?;
    let objects = process.readiness.block("objects");
    let authority = process.readiness.block("certificate authority");
    let (registry_writer, registry) = registry::new();
    let (policy_writer, policies) = policy::new();
    let (route_writer, _routes) = route::new();
    let found = LateDiscovery::default();
    report_discovery(&process.telemetry, &registry, &found);
    let windows = add_mesh(process.windows(), &registry, &policies, &found, |_| false);
    let (telemetry, shutdown) = (process.telemetry.clone(), process.shutdown.clone());
    let server = process.serve(windows, &runtime)?;

    let done = runtime.block_on(async {
        let source = settings.objects.clone();
        let stop = shutdown.clone();
        let started =
            discovery::start(source, registry_writer, policy_writer, route_writer, &telemetry, stop).await?;
        let _first = found.set(started.clone());
        if !first_state(&started, &shutdown).await {
            return Ok(());
        }
        drop(objects);
        let control = Control::open(settings.control(&registry.snapshot().config), registry.clone())?;
        tracing::info!(address = %control.local_addr(), "the certificate service listens");
        drop(authority);
        control.run(shutdown).await?;
        Ok(())
    });
    if done.is_ok() {
        server.join();
    }
    done
}

/// Carries out one stage of a root rotation.
///
/// # Errors
/// The stage does not come next or comes too early; a file is unusable or cannot be written.
pub fn rotate_root(settings: &RotateRootSettings) -> Result<Phase, Error> {
    Ok(ca::rotate(&settings.state_dir, settings.stage, settings.patience())?)
}
