//! A histogram that counts with two atomic additions and no lock.
//!
//! Requests are counted far more often than connections, from every worker at once; the library's histogram takes a mutex
//! for each observation.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::{MetricType, TypedMetric};

/// Upper bounds of the buckets, in microseconds: from half a millisecond, since requests between pods of one node are faster
/// than a whole one, to a minute, beyond which only streams live. What is slower than the last counts in `+Inf`.
pub(super) const BOUNDS_US: [u64; 15] = [
    500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000,
    5_000_000, 10_000_000, 60_000_000,
];

/// How long requests took. Clones share their numbers.
#[derive(Clone, Debug, Default)]
pub(super) struct Latency(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// Observations per bucket, not cumulative; the last one is beyond every bound.
    buckets: [AtomicU64; BOUNDS_US.len() + 1],
    /// Enough for 584,000 years of waiting.
    sum_us: AtomicU64,
}

impl Latency {
    /// Counts one.
    pub(super) fn observe(&self, duration: Duration) {
        let us = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let bucket = BOUNDS_US.partition_point(|bound| *bound < us);
        self.0.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.0.sum_us.fetch_add(us, Ordering::Relaxed);
    }
}

impl TypedMetric for Latency {
    const TYPE: MetricType = MetricType::Histogram;
}

impl EncodeMetric for Latency {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        let bounds = BOUNDS_US.iter().map(|us| *us as f64 / 1e6).chain([f64::INFINITY]);
        let counts = self.0.buckets.iter().map(|count| count.load(Ordering::Relaxed));
        let buckets: Vec<(f64, u64)> = bounds.zip(counts).collect();
        // Counted from the buckets and not on its own, so that both agree whatever is observed meanwhile.
        let count = buckets.iter().map(|(_, count)| count).sum();
        let sum = self.0.sum_us.load(Ordering::Relaxed) as f64 / 1e6;
        encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}
