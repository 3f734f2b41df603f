//! Which prefixes does a path lie below? A tree of segments, walked down once and then up again, longest prefix first.

use std::collections::HashMap;
use std::sync::Arc;

use super::paths::Places;

/// The candidates of every prefix.
#[derive(Debug)]
pub(super) struct Prefixes {
    /// The root, which is the empty prefix, comes first.
    nodes: Vec<Node>,
}

#[derive(Debug, Default)]
struct Node {
    children: HashMap<Arc<str>, usize>,
    /// The node above; the root is its own.
    parent: usize,
    places: Places,
}

impl Prefixes {
    pub(super) fn new() -> Self {
        Self { nodes: vec![Node::default()] }
    }

    /// The candidates at a prefix, to be added to.
    pub(super) fn at(&mut self, prefix: &str) -> &mut Places {
        let mut node = 0;
        for segment in segments(prefix.trim_end_matches('/')) {
            node = match self.nodes[node].children.get(segment) {
                Some(child) => *child,
                None => self.grow(node, segment),
            };
        }
        &mut self.nodes[node].places
    }

    fn grow(&mut self, parent: usize, segment: &str) -> usize {
        let child = self.nodes.len();
        self.nodes.push(Node { parent, ..Node::default() });
        self.nodes[parent].children.insert(segment.into(), child);
        child
    }

    /// What `judge` finds at the longest prefix at which it finds something.
    pub(super) fn longest<R>(&self, path: &str, mut judge: impl FnMut(&Places) -> Option<R>) -> Option<R> {
        let mut node = segments(path)
            .try_fold(0, |node, segment| self.nodes[node].children.get(segment).copied().ok_or(node))
            .unwrap_or_else(|deepest| deepest);
        loop {
            let Node { parent, places, .. } = &self.nodes[node];
            if let Some(found) = judge(places) {
                return Some(found);
            }
            if node == 0 {
                return None;
            }
            node = *parent;
        }
    }
}

/// The segments of a path. One that does not begin with a slash (`*`, or nothing) has none and lies below the root only.
fn segments(path: &str) -> impl Iterator<Item = &str> {
    path.strip_prefix('/').into_iter().flat_map(|rest| rest.split('/'))
}
