//! How often may one node ask?
//!
//! A token bucket per node, so that a node gone wild costs the others nothing. Pure: time is an argument.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

/// Requests that a node may make at once: a full restart with a certificate for every pod, several times over.
const BURST: f64 = 1000.0;

/// Requests per second that it may keep up. 200 pods with certificates of a few seconds (a test) need about 100; with
/// the usual 24 hours a node needs one per pod and day.
const PER_SECOND: f64 = 200.0;

/// The buckets of all nodes.
#[derive(Debug, Default)]
pub struct Limits {
    buckets: HashMap<Arc<str>, Bucket>,
}

/// One bucket.
#[derive(Debug)]
pub(super) struct Bucket {
    tokens: f64,
    filled_at: Instant,
}

impl Bucket {
    /// One that holds all it can.
    pub(super) fn full(burst: f64, now: Instant) -> Self {
        Self { tokens: burst, filled_at: now }
    }

    /// Takes one token; false when there is none.
    pub(super) fn take(&mut self, burst: f64, per_second: f64, now: Instant) -> bool {
        let elapsed = now.saturating_duration_since(self.filled_at);
        self.tokens = (self.tokens + elapsed.as_secs_f64() * per_second).min(burst);
        self.filled_at = now;
        let admitted = self.tokens >= 1.0;
        if admitted {
            self.tokens -= 1.0;
        }
        admitted
    }
}

impl Limits {
    /// Takes one token of the node's; false when it has none. Nodes are known ones (they have shown a good token), so the map
    /// does not grow with what strangers send.
    pub fn admit(&mut self, node: &Arc<str>, now: Instant) -> bool {
        let bucket = self.buckets.entry(node.clone()).or_insert_with(|| Bucket::full(BURST, now));
        bucket.take(BURST, PER_SECOND, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lifecycle::clock;
    use std::time::Duration;

    #[test]
    fn a_node_that_asks_too_often_is_held_back_and_others_are_not() {
        let (mut limits, start) = (Limits::default(), clock::now());
        let (wild, calm): (Arc<str>, Arc<str>) = ("wild".into(), "calm".into());
        let admitted = (0..5000).filter(|_| limits.admit(&wild, start)).count();
        assert_eq!(admitted, 1000);
        assert!(limits.admit(&calm, start));
        let later = start + Duration::from_millis(50);
        assert_eq!((0..5000).filter(|_| limits.admit(&wild, later)).count(), 10);
    }
}
