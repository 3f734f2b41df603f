//! How things are said: metrics, access records and logs.
//!
//! Layer 1, beside every station of the walk: the other rooms report here what happened, and nobody decides anything by
//! it. It never blocks the data path, never opens a connection, and never asks for the time (times and durations are
//! arguments).
//!
//! Reading order: [`labels`] (whose connection it was), [`bounded`] (why cardinality cannot run away), [`connection`]
//! (the hot path), [`outcome`], [`latency`] and [`request`] (the same for HTTP requests), [`families`] (every metric there
//! is), `control` (those of the control plane), [`process`] (the process about itself), [`exposition`] (what `/metrics` says), [`reference`] (docs/metrics.md),
//! [`record`], [`request_record`], [`printable`] and [`access_log`] (one JSON line per connection and per request),
//! [`trace`] (which trace a request belongs to), [`log`] (the process log).
#![forbid(unsafe_code)]

pub mod access_log;
mod bounded;
pub mod connection;
mod control;
pub mod exposition;
mod families;
pub mod labels;
mod latency;
pub mod log;
pub mod outcome;
pub mod printable;
mod process;
pub mod record;
pub mod reference;
pub mod request;
pub mod request_record;
pub mod trace;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;

pub use access_log::{AccessLog, Sink};
pub use connection::ConnectionMetrics;
pub use exposition::Format;
pub use labels::{ConnectionLabels, Reporter, RequestLabels};
pub use outcome::{CutBy, MethodClass, Protocol, RequestOutcome, grpc_status, is_grpc_content};
pub use printable::Printable;
pub use record::{AccessRecord, DestinationRecord, SourceRecord, TlsRecord};
pub use request::RequestMetrics;
pub use request_record::{HttpRecord, RequestRecord};
pub use trace::{Sampling, TraceContext};

use families::Families;

/// Default of [`Settings::label_sets_max`].
///
/// One label set of the connection families costs about 1.5 KiB (a 14-bucket histogram, the counters of the endings
/// seen), so 10,000 of them hold about 15 MiB and make a scrape of about 30 MB. One of the request families with two answers
/// seen costs 3.2 KiB and 6 kB of a scrape (measured with 5,000 of them), so 10,000 hold about 32 MiB and make 60 MB.
pub const LABEL_SETS_MAX: usize = 10_000;

/// What the wiring decides about telemetry.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Most label sets that one metric family may hold; further ones are counted under the workload `other`.
    pub label_sets_max: usize,
    /// Where access records go.
    pub access_log: Sink,
    /// Access records that may wait for the writer before further ones are dropped and counted. A connection's holds about
    /// 500 bytes and a request's, whose texts are bounded (see [`printable`]), at most about 2 KiB, so the default of
    /// 16,384 costs 8 to 32 MiB while the disk stands still.
    pub access_queue_len_max: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self { label_sets_max: LABEL_SETS_MAX, access_log: Sink::Off, access_queue_len_max: 16_384 }
    }
}

/// Why telemetry could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The access log cannot be opened for appending.
    #[error("the access log {path} cannot be opened for appending")]
    AccessLog {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The writer thread of the access log did not start.
    #[error("the thread that writes the access log did not start")]
    Thread(#[source] io::Error),
    /// The log filter cannot be read.
    #[error(
        "{filter:?} is not a log filter: write a level (info) or directives (info,mesh_agent::proxy=debug)"
    )]
    Filter {
        /// The filter as written.
        filter: String,
        /// Which directive is wrong.
        #[source]
        source: tracing_subscriber::filter::ParseError,
    },
    /// Logging was set up before.
    #[error("logging has been set up already")]
    LogInstalled,
}

/// How a certificate renewal went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewal {
    /// A new certificate is in use.
    Success,
    /// The CA could not be reached or answered late.
    CaUnavailable,
    /// The CA answered and refused.
    CaRefused,
    /// The answer was not a usable certificate.
    Invalid,
}

impl Renewal {
    /// Stable metric label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::CaUnavailable => "ca_unavailable",
            Self::CaRefused => "ca_refused",
            Self::Invalid => "invalid",
        }
    }
}

/// This agent's part in a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TunnelRole {
    /// It dialled.
    Client,
    /// It accepted.
    Server,
}

impl TunnelRole {
    /// Stable metric label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Server => "server",
        }
    }
}

/// What became of a copy that `RequestMirror` asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mirrored {
    /// The mirror answered, with whatever status.
    Answered,
    /// It could not be reached, or broke off.
    Failed,
    /// It could not keep up with the request's body, and the copy was given up.
    Dropped,
}

impl Mirrored {
    /// Stable metric label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::Failed => "failed",
            Self::Dropped => "dropped",
        }
    }
}

/// The handle through which every room reports. Cheap to clone; all clones speak of the same numbers.
#[derive(Clone)]
pub struct Telemetry(Arc<Inner>);

struct Inner {
    families: Families,
    access_log: AccessLog,
    before_scrape: Mutex<Vec<Hook>>,
}

type Hook = Arc<dyn Fn(&Telemetry) + Send + Sync>;

impl Telemetry {
    /// Metrics and access records as `settings` say.
    ///
    /// # Errors
    /// The access log's file cannot be opened, or its thread not be started.
    pub fn start(settings: &Settings) -> Result<Self, Error> {
        let families = Families::new(settings.label_sets_max);
        let access_log = AccessLog::start(
            &settings.access_log,
            settings.access_queue_len_max,
            families.access_records_dropped.clone(),
        )?;
        Ok(Self(Arc::new(Inner { families, access_log, before_scrape: Mutex::default() })))
    }

    /// Metrics only, with default limits: for tests and tools.
    pub fn without_access_log() -> Self {
        Self::start(&Settings::default())
            .expect("no file is opened and no thread started when records are off")
    }

    // Connections.

    /// The resolved counters of one label set. Costs a lock and a hash of the labels: callers keep the `Arc` for as long
    /// as they have connections with these labels.
    pub fn connection_metrics(&self, labels: &ConnectionLabels) -> Arc<ConnectionMetrics> {
        self.0.families.connections.resolve(labels)
    }

    /// Hands an access record to the writer. Never blocks: when the queue is full the record is dropped and counted.
    pub fn record(&self, record: AccessRecord) {
        self.0.access_log.record(record);
    }

    /// Whether access records go anywhere; callers may spare themselves the work of making one.
    pub fn records_connections(&self) -> bool {
        self.0.access_log.is_on()
    }

    /// Makes the writer open the access log's file anew (SIGHUP).
    pub fn reopen_access_log(&self) {
        self.0.access_log.reopen();
    }

    /// Waits until every record handed over so far is written. Blocks: for the end of the process and for tests.
    pub fn flush_access_log(&self) {
        self.0.access_log.flush();
    }

    // Requests.

    /// The resolved counters of one label set of requests. Costs a lock that readers share and a hash of the labels:
    /// callers keep the `Arc` for as long as they have requests with these labels.
    pub fn request_metrics(&self, labels: &RequestLabels) -> Arc<RequestMetrics> {
        self.0.families.requests.resolve(labels)
    }

    /// Hands a request's record to the writer. Never blocks: when the queue is full the record is dropped and counted.
    /// [`Telemetry::records_connections`] says whether to make one.
    pub fn record_request(&self, record: RequestRecord) {
        self.0.access_log.record_request(record);
    }

    /// A request was refused before it was routed; `reason` is a stable label such as `head_too_large`.
    pub fn http_refused(&self, reason: &'static str) {
        self.0.families.http_refused(reason).inc();
    }

    /// A request goes to another endpoint; `reason` is a stable label of what the one before did.
    pub fn http_retried(&self, reason: &'static str) {
        self.0.families.http_retries(reason).inc();
    }

    /// A copy for a mirror came to this.
    pub fn http_mirrored(&self, result: Mirrored) {
        self.0.families.http_mirrored(result.label()).inc();
    }

    // Identity.

    /// When the certificate in use for this identity expires.
    pub fn certificate_expires(&self, spiffe_id: &str, at: SystemTime) {
        let seconds = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
        self.0.families.certificate_expiry(spiffe_id).set(i64::try_from(seconds).unwrap_or(i64::MAX));
    }

    /// The identity is not held any more: its series ends.
    pub fn certificate_dropped(&self, spiffe_id: &str) {
        self.0.families.forget_certificate(spiffe_id);
    }

    /// A renewal went this way.
    pub fn certificate_renewed(&self, result: Renewal) {
        self.0.families.certificate_renewals(result.label()).inc();
    }

    // Tunnels.

    /// A tunnel is up (in use or pooled).
    pub fn tunnel_opened(&self) {
        self.0.families.tunnels_open.inc();
    }

    /// A tunnel is gone.
    pub fn tunnel_closed(&self) {
        self.0.families.tunnels_open.dec();
    }

    /// A tunnel handshake ended; `result` is `success` or a stable label of the failure (`Ending::label`, say).
    pub fn tunnel_handshake(&self, role: TunnelRole, result: &'static str) {
        self.0.families.tunnel_handshakes(role.label(), result).inc();
    }

    // Kernel and capture.

    /// What a boot-time probe found.
    pub fn probe_result(&self, probe: &'static str, passed: bool) {
        self.0.families.probe_result(probe).set(i64::from(passed));
    }

    /// Whether the same-node fast path is on.
    pub fn splice_enabled(&self, enabled: bool) {
        self.0.families.splice_enabled.set(i64::from(enabled));
    }

    /// How many pods of this node are caught.
    pub fn enrolled_pods(&self, count: usize) {
        self.0.families.enrolled_pods.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// One event arrived from the kernel programs.
    pub fn kernel_event(&self, kind: &'static str) {
        self.0.families.kernel_events(kind).inc();
    }

    /// What the kernel's own counter for this verdict and reason stands at, summed over CPUs. The kernel counts, so the
    /// value replaces the one before.
    pub fn kernel_verdicts(&self, verdict: &'static str, reason: &'static str, total: u64) {
        self.0
            .families
            .kernel_verdicts(verdict, reason)
            .inner()
            .store(total, std::sync::atomic::Ordering::Relaxed);
    }

    // Discovery.

    /// The version of the registry snapshot in use, and how many objects were refused while it was made.
    pub fn discovery(&self, version: u64, problems: usize) {
        self.0.families.discovery_version.set(i64::try_from(version).unwrap_or(i64::MAX));
        self.0.families.discovery_problems.set(i64::try_from(problems).unwrap_or(i64::MAX));
    }

    /// Whether changes of objects of this kind arrive.
    pub fn discovery_connected(&self, kind: &'static str, connected: bool) {
        self.0.families.feeds.connected(kind).set(i64::from(connected));
    }

    /// The API said something about a kind, of which it now has so many objects.
    pub fn discovery_heard(&self, kind: &'static str, objects: usize, at: SystemTime) {
        let seconds = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
        self.0.families.feeds.objects(kind).set(i64::try_from(objects).unwrap_or(i64::MAX));
        self.0.families.feeds.last_event(kind).set(i64::try_from(seconds).unwrap_or(i64::MAX));
    }

    /// All objects of a kind were listed.
    pub fn discovery_listed(&self, kind: &'static str) {
        self.0.families.feeds.lists(kind).inc();
    }

    /// Asking for a kind went wrong; `reason` is a stable label such as `unreachable`.
    pub fn discovery_failed(&self, kind: &'static str, reason: &'static str) {
        self.0.families.feeds.failures(kind, reason).inc();
    }

    // Reading.

    /// Runs before each scrape, to fetch numbers that somebody else counts (kernel maps). Must not block for long: the
    /// admin thread waits for it.
    pub fn before_scrape(&self, hook: impl Fn(&Self) + Send + Sync + 'static) {
        self.0.before_scrape.lock().push(Arc::new(hook));
    }

    /// All metrics as text.
    pub fn scrape(&self, format: Format) -> String {
        // Cloned out, so that a hook may itself register hooks.
        let hooks: Vec<Hook> = self.0.before_scrape.lock().clone();
        for hook in hooks {
            hook(self);
        }
        exposition::encode(&self.0.families.registry, format)
    }
}

impl fmt::Debug for Telemetry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Telemetry").field("access_log", &self.0.access_log).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
