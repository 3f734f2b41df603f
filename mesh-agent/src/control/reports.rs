//! What nodes say is in force on them: heard by the one replica that leads, counted, and forgotten when they fall silent.
//!
//! A caller is known as for certificates, before anything that it says is read; a node speaks for itself alone. What is
//! heard is kept in memory: a new leader hears it anew with each node's next report.
//!
//! Reading order: `nodes` (who has said what), [`desk`] (one call).

pub mod desk;
mod nodes;

pub use desk::Leading;
pub use nodes::Count;

use std::collections::BTreeSet;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::watch;

use crate::lifecycle::clock;
use nodes::{Expected, Nodes};

/// What has been heard. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Heard {
    nodes: Arc<Mutex<Nodes>>,
    /// Told when what is counted may differ.
    changed: watch::Sender<()>,
}

impl Default for Heard {
    fn default() -> Self {
        Self { nodes: Arc::default(), changed: watch::Sender::new(()) }
    }
}

impl Heard {
    /// Nodes that have reported lately.
    pub fn reporting(&self) -> usize {
        self.nodes.lock().reporting(clock::now())
    }

    /// Tells when what [`Heard::expecting`] counts may differ.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Begins to count, among these nodes. Nothing is heard until that is over.
    pub fn expecting(&self, nodes: &BTreeSet<Arc<str>>) -> Counting<'_> {
        let mut held = self.nodes.lock();
        held.forget_silent(clock::now());
        let expected = held.expected(nodes);
        Counting { nodes: held, expected }
    }

    /// Forgets everything: another replica hears it now.
    pub fn forget(&self) {
        *self.nodes.lock() = Nodes::default();
    }
}

/// Counts nodes, object by object.
#[derive(Debug)]
pub struct Counting<'a> {
    nodes: MutexGuard<'a, Nodes>,
    expected: Expected,
}

impl Counting<'_> {
    /// On how many nodes this version of the object, or a later one, is in force.
    pub fn count(&self, uid: &str, generation: i64) -> Count {
        self.nodes.count(uid, generation, &self.expected)
    }

    /// Whether every node has reported.
    pub fn is_complete(&self) -> bool {
        self.expected.has_all_reported()
    }
}
