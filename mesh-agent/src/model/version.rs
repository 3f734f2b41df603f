//! Versions: of the mesh's state as it is published, and of the objects that it is made of.

use std::collections::BTreeMap;
use std::sync::Arc;

/// One publication of the mesh's state: how often each part of it has been replaced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Publication {
    /// The registry's snapshot.
    pub registry: u64,
    /// The set of policies.
    pub policies: u64,
    /// The table of routes.
    pub routes: u64,
}

impl Publication {
    /// True when whoever has taken up this one has taken up the other too.
    pub fn covers(&self, other: &Self) -> bool {
        self.registry >= other.registry && self.policies >= other.policies && self.routes >= other.routes
    }
}

/// Objects by UID, each with the `metadata.generation` that was read.
pub type Generations = BTreeMap<Arc<str>, i64>;

/// Which version of each object stands in a publication. Only objects of an API have versions.
#[derive(Clone, Debug, Default)]
pub struct Versions {
    /// The first publication with them.
    pub publication: Publication,
    /// Routes, policies and settings that are in it as they were written.
    pub generations: Arc<Generations>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_publication_covers_another_when_no_part_of_it_is_older() {
        let at = |registry, policies, routes| Publication { registry, policies, routes };
        for (one, other, expected) in [
            (at(2, 2, 2), at(2, 2, 2), true),
            (at(3, 2, 2), at(2, 2, 2), true),
            (at(1, 3, 3), at(2, 2, 2), false),
            (at(3, 1, 3), at(2, 2, 2), false),
            (at(3, 3, 1), at(2, 2, 2), false),
        ] {
            assert_eq!(one.covers(&other), expected, "{one:?} {other:?}");
        }
    }
}
