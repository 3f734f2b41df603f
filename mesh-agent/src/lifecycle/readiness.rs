//! Ready means: nothing blocks any more. Each part of start-up holds a [`Block`] and drops it when it is done.

use std::collections::BTreeSet;
use std::sync::Arc;

use parking_lot::Mutex;

/// The list of what start-up still waits for.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<Mutex<BTreeSet<&'static str>>>);

impl Readiness {
    /// Not ready until the returned block is dropped.
    pub fn block(&self, name: &'static str) -> Block {
        self.0.lock().insert(name);
        Block { list: self.clone(), name }
    }

    /// What is still waited for, sorted.
    pub fn pending(&self) -> Vec<&'static str> {
        self.0.lock().iter().copied().collect()
    }

    /// True when nothing blocks.
    pub fn is_ready(&self) -> bool {
        self.0.lock().is_empty()
    }
}

/// Holds readiness back; dropping it lets go.
#[derive(Debug)]
pub struct Block {
    list: Readiness,
    name: &'static str,
}

impl Drop for Block {
    fn drop(&mut self) {
        self.list.0.lock().remove(self.name);
    }
}
