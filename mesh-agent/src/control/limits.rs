//! How often may one node ask?
//!
//! A token bucket per node, so that a node gone wild costs the others nothing. Pure: time is an argument.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use crate::lifecycle::Bucket;

/// Requests for certificates that a node may make at once: a full restart with a certificate for every pod, several
/// times over.
const BURST: f64 = 1000.0;

/// Requests per second that it may keep up. 200 pods with certificates of a few seconds (a test) need about 100; with
/// the usual 24 hours a node needs one per pod and day.
const PER_SECOND: f64 = 200.0;

/// The buckets of all nodes.
#[derive(Debug)]
pub struct Limits {
    burst: f64,
    per_second: f64,
    buckets: HashMap<Arc<str>, Bucket>,
}

/// Those of requests for certificates.
impl Default for Limits {
    fn default() -> Self {
        Self::new(BURST, PER_SECOND)
    }
}

impl Limits {
    /// What each node may do at once, and per second.
    pub fn new(burst: f64, per_second: f64) -> Self {
        Self { burst, per_second, buckets: HashMap::new() }
    }

    /// Takes one token of the node's; false when it has none. Nodes are known ones (they have shown a good token), so the map
    /// does not grow with what strangers send.
    pub fn admit(&mut self, node: &Arc<str>, now: Instant) -> bool {
        let bucket = self.buckets.entry(node.clone()).or_insert_with(|| Bucket::full(self.burst, now));
        bucket.take(self.burst, self.per_second, now)
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
