//! A metric family that cannot grow without end.
//!
//! Label values come from what users deploy, and a mesh lives long: a family holds at most `max` label sets, and every
//! further one is counted under its folded form (names become `other`), so totals stay right and memory stays bounded.

use std::collections::HashSet;
use std::hash::Hash;

use parking_lot::Mutex;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};

/// Label sets that know their folded form.
pub(super) trait Fold: Clone + Eq + Hash + EncodeLabelSet {
    /// The same with every unbounded value replaced by `other`; must have few distinct results.
    fn folded(&self) -> Self;
}

/// A [`Family`] with a bound.
#[derive(Debug)]
pub(super) struct Bounded<L, M, C = fn() -> M> {
    family: Family<L, M, C>,
    known: Mutex<HashSet<L>>,
    max: usize,
    folds: Counter,
}

impl<L: Fold, M: Clone, C: MetricConstructor<M>> Bounded<L, M, C> {
    /// Bounds `family`; each label set that is folded counts in `folds`.
    pub(super) fn new(family: Family<L, M, C>, max: usize, folds: Counter) -> Self {
        Self { family, known: Mutex::default(), max, folds }
    }

    /// The metric of this label set, or of its folded form when the family is full.
    pub(super) fn resolve(&self, labels: &L) -> M {
        if self.admits(labels) {
            return self.family.get_or_create_owned(labels);
        }
        self.folds.inc();
        self.family.get_or_create_owned(&labels.folded())
    }

    fn admits(&self, labels: &L) -> bool {
        let mut known = self.known.lock();
        known.contains(labels) || (known.len() < self.max && known.insert(labels.clone()))
    }
}
