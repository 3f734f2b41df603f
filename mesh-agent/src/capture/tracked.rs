//! What one of the kernel's tables shall hold, and where the kernel's copy is behind.
//!
//! Whoever compiles sets and unsets; whoever writes takes what is behind and says what has been written. A value that
//! changes and changes back before it is written costs nothing. It never talks to the kernel.

use std::collections::HashMap;
use std::hash::Hash;

/// Room for what is behind that is kept when nothing is. A change of a large service is a few hundred entries.
const BEHIND_KEPT: usize = 1024;

/// One table.
#[derive(Clone, Debug)]
pub struct Tracked<K, V> {
    wanted: HashMap<K, V>,
    /// Keys whose value in the kernel is not the wanted one, with that value.
    behind: HashMap<K, Option<V>>,
}

impl<K, V> Default for Tracked<K, V> {
    fn default() -> Self {
        Self { wanted: HashMap::new(), behind: HashMap::new() }
    }
}

impl<K: Hash + Eq + Copy, V: PartialEq + Copy> Tracked<K, V> {
    /// What the table shall hold under the key.
    pub fn get(&self, key: &K) -> Option<&V> {
        self.wanted.get(key)
    }

    /// Everything that it shall hold, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.wanted.iter()
    }

    /// How much that is.
    pub fn len(&self) -> usize {
        self.wanted.len()
    }

    /// True when it shall hold nothing.
    pub fn is_empty(&self) -> bool {
        self.wanted.is_empty()
    }

    /// It shall hold this.
    pub fn set(&mut self, key: K, value: V) {
        let before = self.wanted.insert(key, value);
        self.note(key, before);
    }

    /// It shall not hold the key.
    pub fn unset(&mut self, key: &K) -> Option<V> {
        let before = self.wanted.remove(key);
        self.note(*key, before);
        before
    }

    /// It shall hold this and nothing else. For tables that are small.
    pub fn set_all(&mut self, wanted: HashMap<K, V>) {
        let gone: Vec<K> = self.wanted.keys().filter(|key| !wanted.contains_key(key)).copied().collect();
        for key in gone {
            self.unset(&key);
        }
        for (key, value) in wanted {
            self.set(key, value);
        }
    }

    fn note(&mut self, key: K, before: Option<V>) {
        let in_kernel = self.behind.get(&key).copied().unwrap_or(before);
        if in_kernel == self.wanted.get(&key).copied() {
            self.behind.remove(&key);
        } else {
            self.behind.insert(key, in_kernel);
        }
    }

    /// Keys that are missing in the kernel or have another value there, with the wanted one.
    pub fn to_put(&self) -> Vec<(K, V)> {
        self.behind.keys().filter_map(|key| Some((*key, *self.wanted.get(key)?))).collect()
    }

    /// Keys that are in the kernel and shall not be.
    pub fn to_remove(&self) -> Vec<K> {
        self.behind.keys().filter(|key| !self.wanted.contains_key(key)).copied().collect()
    }

    /// The kernel has the wanted value, or none where none is wanted.
    pub fn written(&mut self, key: &K) {
        self.behind.remove(key);
        // At the start all of a table is behind, and a hash map that has been large is large to look through for ever.
        if self.behind.is_empty() && self.behind.capacity() > BEHIND_KEPT {
            self.behind = HashMap::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_from_the_kernel_is_behind() {
        let mut table = Tracked::default();
        table.set(1, 'a');
        table.set(2, 'b');
        assert_eq!((table.to_put().len(), table.to_remove()), (2, vec![]));
        table.written(&1);
        table.unset(&2);
        assert_eq!((table.to_put(), table.to_remove()), (vec![], vec![]), "2 never got there");
        table.set(1, 'c');
        table.set(1, 'a');
        assert_eq!(table.to_put(), [], "there and back is no change");
        table.unset(&1);
        assert_eq!((table.to_put(), table.to_remove()), (vec![], vec![1]));
        table.set(1, 'a');
        assert_eq!((table.to_put(), table.to_remove()), (vec![], vec![]), "the kernel still has it");
        table.set_all([(3, 'd')].into());
        assert_eq!((table.to_put(), table.to_remove()), (vec![(3, 'd')], vec![1]));
    }

    #[test]
    fn what_was_behind_at_the_start_is_not_looked_through_for_ever() {
        let mut table = Tracked::default();
        for round in 1..=2 {
            (0..100_000).for_each(|key| table.set(key, round));
            for (key, _) in table.to_put() {
                table.written(&key);
            }
            assert!(table.behind.capacity() <= BEHIND_KEPT, "round {round}: {}", table.behind.capacity());
        }
        (0..100).for_each(|key| table.set(key, 0));
        assert_eq!(table.to_put().len(), 100);
    }

    #[test]
    fn what_could_not_be_written_stays_behind() {
        let mut table = Tracked::default();
        table.set(1, 'a');
        table.set(1, 'b');
        assert_eq!(table.to_put(), [(1, 'b')]);
        assert_eq!(table.to_put(), [(1, 'b')], "nobody said that it was written");
    }
}
