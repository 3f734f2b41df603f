//! The hot path of HTTP: counting one request's beginning and end through handles resolved beforehand.
//!
//! As with connections, a caller resolves [`RequestMetrics`] once per (source, destination, route, protocol) and keeps the
//! `Arc`. After that a request costs about seven atomic additions and no lock: the counter of its (method, code, gRPC
//! status) is found in a short list that only ever grows.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, OnceLock};

use parking_lot::RwLock;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

use super::bounded::{Bounded, Fold};
use super::labels::RequestLabels;
use super::latency::Latency;
use super::outcome::{Code, CutBy, GrpcCode, MethodClass, RequestOutcome};

/// Answers (method, code, gRPC status) of one label set that are found without a lock; further ones are counted by the
/// slower way. A REST interface shows about a dozen, gRPC at most 18. Cost: 32 bytes each, whether used or not.
const ANSWERS: usize = 24;

/// Variants of [`CutBy`].
const CUTTERS: usize = 3;

/// How a request was answered, in labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answer {
    method: MethodClass,
    code: Code,
    grpc_status: GrpcCode,
}

impl Answer {
    fn of(outcome: &RequestOutcome) -> Self {
        Self {
            method: outcome.method,
            code: Code::of(outcome.status),
            grpc_status: GrpcCode::of(outcome.grpc_status),
        }
    }
}

/// [`RequestLabels`] and how the request was answered.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct AnsweredLabels {
    #[prometheus(flatten)]
    request: RequestLabels,
    #[prometheus(flatten)]
    answer: Answer,
}

/// [`RequestLabels`] and the policy that refused the request.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct DeniedLabels {
    #[prometheus(flatten)]
    request: RequestLabels,
    policy: String,
}

/// [`RequestLabels`] and who broke the request off.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct CutLabels {
    #[prometheus(flatten)]
    request: RequestLabels,
    by: &'static str,
}

impl Fold for AnsweredLabels {
    // Servers choose the code: with exact ones the folded series alone could be tens of thousands.
    fn folded(&self) -> Self {
        let answer = Answer { code: self.answer.code.folded(), ..self.answer };
        Self { request: self.request.folded(), answer }
    }
}

impl Fold for DeniedLabels {
    // Policies are what users write: their names fold as well.
    fn folded(&self) -> Self {
        Self { request: self.request.folded(), policy: "other".to_owned() }
    }
}

impl Fold for CutLabels {
    fn folded(&self) -> Self {
        Self { request: self.request.folded(), by: self.by }
    }
}

/// The families behind all [`RequestMetrics`].
#[derive(Debug)]
pub(super) struct Requests {
    pub(super) in_flight: Family<RequestLabels, Gauge>,
    pub(super) request_bytes: Family<RequestLabels, Counter>,
    pub(super) response_bytes: Family<RequestLabels, Counter>,
    pub(super) duration: Family<RequestLabels, Latency>,
    shared: Arc<Shared>,
    resolved: RwLock<HashMap<RequestLabels, Arc<RequestMetrics>>>,
    max: usize,
    folds: Counter,
}

/// What a [`RequestMetrics`] needs when a new answer or policy turns up.
#[derive(Debug)]
struct Shared {
    answered: Bounded<AnsweredLabels, Counter>,
    denied: Bounded<DeniedLabels, Counter>,
    cut_short: Bounded<CutLabels, Counter>,
}

impl Requests {
    /// `answered`, `denied` and `cut_short` are the families to bound; the others are bounded by [`Requests::resolve`].
    pub(super) fn new(
        answered: Family<AnsweredLabels, Counter>,
        denied: Family<DeniedLabels, Counter>,
        cut_short: Family<CutLabels, Counter>,
        max: usize,
        folds: Counter,
    ) -> Self {
        let shared = Shared {
            answered: Bounded::new(answered, max, folds.clone()),
            denied: Bounded::new(denied, max, folds.clone()),
            cut_short: Bounded::new(cut_short, max, folds.clone()),
        };
        Self {
            in_flight: Family::default(),
            request_bytes: Family::default(),
            response_bytes: Family::default(),
            duration: Family::default(),
            shared: Arc::new(shared),
            resolved: RwLock::default(),
            max,
            folds,
        }
    }

    /// The handles of this label set, or of its folded form once `max` label sets are known.
    pub(super) fn resolve(&self, labels: &RequestLabels) -> Arc<RequestMetrics> {
        if let Some(metrics) = self.resolved.read().get(labels) {
            return metrics.clone();
        }
        let mut resolved = self.resolved.write();
        let is_full = resolved.len() >= self.max && !resolved.contains_key(labels);
        let labels = if is_full {
            self.folds.inc();
            labels.folded()
        } else {
            labels.clone()
        };
        resolved.entry(labels).or_insert_with_key(|labels| Arc::new(self.handles(labels))).clone()
    }

    fn handles(&self, labels: &RequestLabels) -> RequestMetrics {
        RequestMetrics {
            in_flight: self.in_flight.get_or_create_owned(labels),
            request_bytes: self.request_bytes.get_or_create_owned(labels),
            response_bytes: self.response_bytes.get_or_create_owned(labels),
            duration: self.duration.get_or_create_owned(labels),
            answers: Default::default(),
            cut_short: Default::default(),
            labels: labels.clone(),
            shared: self.shared.clone(),
        }
    }
}

/// Counts the requests of one label set. Share it by `Arc`; every method takes `&self` and never blocks for long.
///
/// Every request that is `opened` must be `done` or `cut_short` exactly once; one that policy refused is only `denied`.
pub struct RequestMetrics {
    labels: RequestLabels,
    in_flight: Gauge,
    request_bytes: Counter,
    response_bytes: Counter,
    duration: Latency,
    /// In the order of their first appearance, so that what is frequent tends to be found first.
    answers: [OnceLock<(Answer, Counter)>; ANSWERS],
    cut_short: [OnceLock<Counter>; CUTTERS],
    shared: Arc<Shared>,
}

impl RequestMetrics {
    /// The labels it counts under (folded, if they were).
    pub fn labels(&self) -> &RequestLabels {
        &self.labels
    }

    /// A request's head was taken on.
    pub fn opened(&self) {
        self.in_flight.inc();
    }

    /// Body bytes of a request that goes on, and of its response. For streams that live long.
    pub fn transferred(&self, sent_bytes: u64, received_bytes: u64) {
        self.request_bytes.inc_by(sent_bytes);
        self.response_bytes.inc_by(received_bytes);
    }

    /// A request's response went out whole, wherever it came from.
    pub fn done(&self, outcome: &RequestOutcome) {
        self.in_flight.dec();
        self.transferred(outcome.sent_bytes, outcome.received_bytes);
        self.duration.observe(outcome.duration);
        self.answered(Answer::of(outcome));
    }

    /// A request was broken off by `by` before its response was out whole; `outcome.status` is that of the head that went
    /// out, if one did. It counts like one that is done, except that its duration says nothing about the server and is
    /// left out.
    pub fn cut_short(&self, outcome: &RequestOutcome, by: CutBy) {
        self.in_flight.dec();
        self.transferred(outcome.sent_bytes, outcome.received_bytes);
        self.answered(Answer::of(outcome));
        self.cut_short[by as usize].get_or_init(|| self.cut_counter(by)).inc();
    }

    /// The client went away: [`RequestMetrics::cut_short`] by [`CutBy::Client`].
    pub fn abandoned(&self, outcome: &RequestOutcome) {
        self.cut_short(outcome, CutBy::Client);
    }

    /// A policy refused a request that was not `opened`: it counts as answered with `outcome`'s code, and as denied. Bytes
    /// and duration are left out: the application did not see it. `policy` is its `namespace/name`, or a stable label
    /// such as `default_deny`, never formatted text.
    pub fn denied(&self, outcome: &RequestOutcome, policy: &str) {
        self.answered(Answer::of(outcome));
        let labels = DeniedLabels { request: self.labels.clone(), policy: policy.to_owned() };
        self.shared.denied.resolve(&labels).inc();
    }

    fn answered(&self, answer: Answer) {
        for slot in &self.answers {
            // A slot is taken by whoever comes first and keeps its answer for good.
            let (found, counter) = slot.get_or_init(|| (answer, self.answer_counter(answer)));
            if *found == answer {
                counter.inc();
                return;
            }
        }
        self.answer_counter(answer).inc();
    }

    fn answer_counter(&self, answer: Answer) -> Counter {
        self.shared.answered.resolve(&AnsweredLabels { request: self.labels.clone(), answer })
    }

    fn cut_counter(&self, by: CutBy) -> Counter {
        self.shared.cut_short.resolve(&CutLabels { request: self.labels.clone(), by: by.label() })
    }
}

impl fmt::Debug for RequestMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestMetrics").field("labels", &self.labels).finish_non_exhaustive()
    }
}
