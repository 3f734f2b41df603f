//! A map whose changed copy costs what changed: a copy shares every shard but those that are written to.
//!
//! Looking up costs one hash, as in a plain map. It knows nothing of what it holds.

use std::borrow::Borrow;
use std::fmt;
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::Arc;

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

/// Shards of a map. Writing to a copy clones one shard and the list of shards, which is least work for about 50,000
/// entries at the square root of their number.
const SHARDS: usize = 256;

type Shard<K, V> = Arc<HashTable<(K, V)>>;

/// The map. A clone costs one reference.
pub(super) struct Shards<K, V> {
    hasher: RandomState,
    shards: Arc<[Shard<K, V>]>,
}

impl<K, V> Default for Shards<K, V> {
    fn default() -> Self {
        let empty = Arc::new(HashTable::new());
        Self { hasher: RandomState::new(), shards: (0..SHARDS).map(|_| empty.clone()).collect() }
    }
}

impl<K, V> Clone for Shards<K, V> {
    fn clone(&self) -> Self {
        Self { hasher: self.hasher.clone(), shards: self.shards.clone() }
    }
}

/// Its size only: a mesh has tens of thousands of entries.
impl<K, V> fmt::Debug for Shards<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shards").field("len", &self.len()).finish_non_exhaustive()
    }
}

/// The table uses the highest and the lowest bits of a hash; the shard follows from others.
fn shard_of(hash: u64) -> usize {
    usize::try_from(hash >> 40).map_or(0, |bits| bits % SHARDS)
}

impl<K, V> Shards<K, V> {
    pub(super) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.len()).sum()
    }

    /// Every value, in no order.
    pub(super) fn values(&self) -> impl Iterator<Item = &V> {
        self.shards.iter().flat_map(|shard| shard.iter()).map(|(_, value)| value)
    }
}

impl<K: Hash + Eq + Clone, V: Clone> Shards<K, V> {
    pub(super) fn get<Q: Hash + Eq + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        let hash = self.hasher.hash_one(key);
        let found = self.shards[shard_of(hash)].find(hash, |(held, _)| held.borrow() == key);
        found.map(|(_, value)| value)
    }

    pub(super) fn insert(&mut self, key: K, value: V) {
        let hash = self.hasher.hash_one(&key);
        let hasher = self.hasher.clone();
        let shard = self.shard(hash);
        match shard.entry(hash, |(held, _)| *held == key, |(held, _)| hasher.hash_one(held)) {
            Entry::Occupied(mut entry) => entry.get_mut().1 = value,
            Entry::Vacant(entry) => drop(entry.insert((key, value))),
        }
    }

    pub(super) fn remove<Q: Hash + Eq + ?Sized>(&mut self, key: &Q)
    where
        K: Borrow<Q>,
    {
        // Looking first spares the clone of a shard where there is nothing to remove.
        if self.get(key).is_none() {
            return;
        }
        let hash = self.hasher.hash_one(key);
        if let Ok(entry) = self.shard(hash).find_entry(hash, |(held, _)| held.borrow() == key) {
            entry.remove();
        }
    }

    fn shard(&mut self, hash: u64) -> &mut HashTable<(K, V)> {
        Arc::make_mut(&mut Arc::make_mut(&mut self.shards)[shard_of(hash)])
    }
}
