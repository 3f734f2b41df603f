//! How a set of policies is replaced: as a whole, by one writer, under any number of readers.

use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::watch;

use super::PolicySet;

/// Read handle on the current set. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Policies {
    current: Arc<ArcSwap<PolicySet>>,
    version: watch::Receiver<u64>,
}

/// The single writer.
#[derive(Debug)]
pub struct Writer {
    current: Arc<ArcSwap<PolicySet>>,
    version: watch::Sender<u64>,
}

/// A set without policies, under the default mesh-wide settings, and its writer.
pub fn new() -> (Writer, Policies) {
    let current = Arc::new(ArcSwap::from_pointee(PolicySet::default()));
    let (sender, receiver) = watch::channel(0);
    (Writer { current: current.clone(), version: sender }, Policies { current, version: receiver })
}

impl Policies {
    /// The newest set. Hold it for one decision, not longer.
    pub fn current(&self) -> Arc<PolicySet> {
        self.current.load_full()
    }

    /// Tells when a newer set is there (open connections must then be judged again); the value counts publications.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.version.clone()
    }
}

impl Writer {
    /// Replaces the set as a whole and returns how many times that has been done.
    pub fn publish(&self, set: PolicySet) -> u64 {
        self.current.store(Arc::new(set));
        self.version.send_modify(|version| *version += 1);
        *self.version.borrow()
    }
}
