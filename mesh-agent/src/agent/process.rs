//! What every long-running process has: log, metrics, readiness, read-only windows, and an end on request.

use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};

use super::Error;
use crate::admin::{self, Server, Windows};
use crate::lifecycle::{Readiness, Shutdown, Trigger, shutdown, tasks};
use crate::telemetry::log::{self, LogSettings};
use crate::telemetry::{self, Telemetry};

/// The parts that all rooms of a process share.
#[derive(Debug)]
pub struct Process {
    /// Through which every room reports.
    pub telemetry: Telemetry,
    /// What start-up still waits for.
    pub readiness: Readiness,
    /// Learns that the process stops.
    pub shutdown: Shutdown,
    trigger: Trigger,
    admin: admin::Listener,
}

impl Process {
    /// Sets up log and metrics and opens the admin socket (`open`), unless one is inherited. To be called first, while the
    /// process has one thread: it reads and clears the variables of an inherited socket.
    ///
    /// # Errors
    /// The log filter or the access log cannot be used, or `open` fails.
    pub fn begin(
        log: &LogSettings,
        telemetry: &telemetry::Settings,
        open: impl FnOnce() -> Result<admin::Listener, admin::Error>,
    ) -> Result<Self, Error> {
        let inherited = admin::inherit()?;
        log::install(log)?;
        let listener = inherited.map_or_else(open, |inherited| Ok(inherited.into()))?;
        let (trigger, shutdown) = shutdown::channel();
        let telemetry = Telemetry::start(telemetry)?;
        Ok(Self { telemetry, readiness: Readiness::default(), shutdown, trigger, admin: listener })
    }

    /// The windows that every process has; add those of its rooms before [`Process::serve`].
    pub fn windows(&self) -> Windows {
        Windows::new(self.telemetry.clone(), self.readiness.clone())
    }

    /// Opens the windows and follows signals on `runtime`: SIGTERM and SIGINT stop the process, SIGHUP opens the access
    /// log anew.
    ///
    /// # Errors
    /// The admin thread or a signal handler cannot be set up.
    pub fn serve(self, windows: Windows, runtime: &Runtime) -> Result<Server, Error> {
        let server = admin::serve(self.admin, windows, self.shutdown)?;
        let address = server.address();
        let _entered = runtime.enter();
        let listen = |kind| signal(kind).map_err(Error::Runtime);
        let mut terminate = listen(SignalKind::terminate())?;
        let mut interrupt = listen(SignalKind::interrupt())?;
        let mut hangup = listen(SignalKind::hangup())?;
        let (trigger, telemetry) = (self.trigger, self.telemetry);
        tasks::spawn("signals", async move {
            loop {
                tokio::select! {
                    _ = terminate.recv() => break,
                    _ = interrupt.recv() => break,
                    _ = hangup.recv() => telemetry.reopen_access_log(),
                }
            }
            tracing::info!("asked to stop");
            trigger.fire();
        });
        tracing::info!(%address, version = env!("CARGO_PKG_VERSION"), "windows are open");
        Ok(server)
    }
}
