//! The hot path: counting one connection's opening and closing through handles resolved beforehand.
//!
//! A caller resolves [`ConnectionMetrics`] once per (source, destination, path) and keeps the `Arc`; after that an
//! opening is two atomic additions and a closing about six plus the histogram's uncontended lock.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

use super::bounded::{Bounded, Fold};
use super::labels::ConnectionLabels;
use crate::model::Ending;

/// Upper bounds of the duration buckets, in seconds: 1 ms to 1 h, for connections that carry one request as well as for
/// those that live as long as a database pool.
pub(super) const DURATION_BUCKETS_SECONDS: [f64; 14] =
    [0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0];

/// Variants of [`Ending`]; a variant beyond it is still counted, by the slower way.
const ENDINGS: usize = 17;

/// [`ConnectionLabels`] and how the connection ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ClosedLabels {
    #[prometheus(flatten)]
    connection: ConnectionLabels,
    ending: &'static str,
}

/// [`ConnectionLabels`] and why the connection was refused.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct DeniedLabels {
    #[prometheus(flatten)]
    connection: ConnectionLabels,
    reason: String,
}

/// [`ConnectionLabels`] and a direction.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct DirectionLabels {
    #[prometheus(flatten)]
    connection: ConnectionLabels,
    direction: &'static str,
}

impl Fold for ClosedLabels {
    fn folded(&self) -> Self {
        Self { connection: self.connection.folded(), ending: self.ending }
    }
}

impl Fold for DeniedLabels {
    // The reason names a policy, and policies are what users write: it folds as well.
    fn folded(&self) -> Self {
        Self { connection: self.connection.folded(), reason: "other".to_owned() }
    }
}

/// The families behind all [`ConnectionMetrics`].
#[derive(Debug)]
pub(super) struct Connections {
    pub(super) opened: Family<ConnectionLabels, Counter>,
    pub(super) open: Family<ConnectionLabels, Gauge>,
    pub(super) bytes: Family<DirectionLabels, Counter>,
    pub(super) duration: Family<ConnectionLabels, Histogram, fn() -> Histogram>,
    shared: Arc<Shared>,
    resolved: Mutex<HashMap<ConnectionLabels, Arc<ConnectionMetrics>>>,
    max: usize,
    folds: Counter,
}

/// What a [`ConnectionMetrics`] needs when a new ending or reason turns up.
#[derive(Debug)]
struct Shared {
    closed: Bounded<ClosedLabels, Counter>,
    denied: Bounded<DeniedLabels, Counter>,
}

impl Connections {
    /// `closed` and `denied` are the families to bound; the others are bounded by [`Connections::resolve`] itself.
    pub(super) fn new(
        closed: Family<ClosedLabels, Counter>,
        denied: Family<DeniedLabels, Counter>,
        max: usize,
        folds: Counter,
    ) -> Self {
        let shared = Shared {
            closed: Bounded::new(closed, max, folds.clone()),
            denied: Bounded::new(denied, max, folds.clone()),
        };
        Self {
            opened: Family::default(),
            open: Family::default(),
            bytes: Family::default(),
            duration: Family::new_with_constructor(|| Histogram::new(DURATION_BUCKETS_SECONDS)),
            shared: Arc::new(shared),
            resolved: Mutex::default(),
            max,
            folds,
        }
    }

    /// The handles of this label set, or of its folded form once `max` label sets are known.
    pub(super) fn resolve(&self, labels: &ConnectionLabels) -> Arc<ConnectionMetrics> {
        let mut resolved = self.resolved.lock();
        if let Some(metrics) = resolved.get(labels) {
            return metrics.clone();
        }
        // Bytes have two series per label set, so half as many label sets fit below the same bound.
        let labels = if resolved.len() < self.max.div_ceil(2) {
            labels.clone()
        } else {
            self.folds.inc();
            labels.folded()
        };
        resolved.entry(labels).or_insert_with_key(|labels| Arc::new(self.handles(labels))).clone()
    }

    fn handles(&self, labels: &ConnectionLabels) -> ConnectionMetrics {
        let bytes = |direction| {
            self.bytes.get_or_create_owned(&DirectionLabels { connection: labels.clone(), direction })
        };
        ConnectionMetrics {
            opened: self.opened.get_or_create_owned(labels),
            open: self.open.get_or_create_owned(labels),
            sent: bytes("sent"),
            received: bytes("received"),
            duration: self.duration.get_or_create_owned(labels),
            closed: Default::default(),
            labels: labels.clone(),
            shared: self.shared.clone(),
        }
    }
}

/// Counts the connections of one label set. Share it by `Arc`; every method takes `&self` and never blocks for long.
///
/// Every connection that is `opened` must be `closed` exactly once; a refused one is only `denied`.
pub struct ConnectionMetrics {
    labels: ConnectionLabels,
    opened: Counter,
    open: Gauge,
    sent: Counter,
    received: Counter,
    duration: Histogram,
    closed: [OnceLock<Counter>; ENDINGS],
    shared: Arc<Shared>,
}

impl ConnectionMetrics {
    /// The labels it counts under (folded, if they were).
    pub fn labels(&self) -> &ConnectionLabels {
        &self.labels
    }

    /// A connection was admitted.
    pub fn opened(&self) {
        self.opened.inc();
        self.open.inc();
    }

    /// Bytes of a connection that goes on: client to server, and back. For connections that live long.
    pub fn transferred(&self, bytes_sent: u64, bytes_received: u64) {
        self.sent.inc_by(bytes_sent);
        self.received.inc_by(bytes_received);
    }

    /// A connection ended. The bytes are those not yet given to [`ConnectionMetrics::transferred`]: `bytes_sent` went
    /// from the client to the server, `bytes_received` back, whichever side reports.
    pub fn closed(&self, ending: Ending, bytes_sent: u64, bytes_received: u64, duration: Duration) {
        self.open.dec();
        self.transferred(bytes_sent, bytes_received);
        self.duration.observe(duration.as_secs_f64());
        match self.closed.get(ending as usize) {
            Some(counter) => counter.get_or_init(|| self.closed_counter(ending)).inc(),
            None => self.closed_counter(ending).inc(),
        };
    }

    /// A connection was refused before any byte reached the application. `reason` is a policy's `namespace/name` or a
    /// stable label such as `default_deny`, never formatted text.
    pub fn denied(&self, reason: &str) {
        let labels = DeniedLabels { connection: self.labels.clone(), reason: reason.to_owned() };
        self.shared.denied.resolve(&labels).inc();
    }

    fn closed_counter(&self, ending: Ending) -> Counter {
        self.shared.closed.resolve(&ClosedLabels { connection: self.labels.clone(), ending: ending.label() })
    }
}

impl fmt::Debug for ConnectionMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectionMetrics").field("labels", &self.labels).finish_non_exhaustive()
    }
}
