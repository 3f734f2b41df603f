//! What changed between two states, so that who follows the registry need not compare them.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use crate::model::{ServiceName, WorkloadUid};

/// How many publications a snapshot remembers. A reader that missed more looks at everything, which at 100 publications a
/// second means that it was away for more than half a second.
const REMEMBERED_MAX: usize = 64;

/// Things that were added, replaced or removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// Settings of the mesh.
    pub config: bool,
    /// Workloads.
    pub workloads: HashSet<WorkloadUid>,
    /// Services.
    pub services: HashSet<ServiceName>,
}

impl Changed {
    /// True when it names nothing.
    pub fn is_empty(&self) -> bool {
        !self.config && self.workloads.is_empty() && self.services.is_empty()
    }

    fn merge(&mut self, other: &Self) {
        self.config |= other.config;
        self.workloads.extend(other.workloads.iter().cloned());
        self.services.extend(other.services.iter().cloned());
    }
}

/// The last publications, newest last.
#[derive(Clone, Debug, Default)]
pub(super) struct History(VecDeque<Arc<Changed>>);

impl History {
    pub(super) fn followed_by(&self, changed: Changed) -> Self {
        let mut next = self.clone();
        if next.0.len() == REMEMBERED_MAX {
            next.0.pop_front();
        }
        next.0.push_back(Arc::new(changed));
        next
    }

    /// What the last `count` publications changed; `None` when they are not remembered.
    pub(super) fn last(&self, count: u64) -> Option<Changed> {
        let first = self.0.len().checked_sub(usize::try_from(count).ok()?)?;
        let mut sum = Changed::default();
        self.0.iter().skip(first).for_each(|changed| sum.merge(changed));
        Some(sum)
    }
}
