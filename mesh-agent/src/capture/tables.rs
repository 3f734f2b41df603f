//! Bringing the kernel's tables to a wanted state, in an order that never opens a hole: verdicts before the addresses
//! that lead to them, endpoints before the frontends that count them, removals last.

use std::collections::{HashMap, HashSet};
use std::fmt::Debug;
use std::hash::Hash;

use zerocopy::{FromBytes, IntoBytes};

use super::compile::Tables;
use crate::kernel::{Error, Maps, Table};

/// What the tables hold now, as far as this agent wrote it.
#[derive(Debug, Default)]
pub struct Applied {
    tables: Tables,
    taken_over: bool,
}

impl Applied {
    /// Writes what is new or changed and removes what is gone. Keys that an earlier agent left are removed at the first
    /// call. A value that cannot be written is reported and tried again at the next call; the rest goes on.
    pub fn apply(&mut self, maps: &Maps, wanted: Tables) -> Vec<Error> {
        let mut errors = Vec::new();
        let first = !std::mem::replace(&mut self.taken_over, true);
        let old = &mut self.tables;
        let mut writer = Writer { errors: &mut errors, first };
        writer.put(&maps.verdicts, &mut old.verdicts, &wanted.verdicts);
        writer.put(&maps.skip_ports, &mut old.skip_ports, &wanted.skip_ports);
        writer.put_missing(&maps.open, &mut old.open, &wanted.open);
        writer.put(&maps.backends, &mut old.backends, &wanted.backends);
        writer.put(&maps.frontends, &mut old.frontends, &wanted.frontends);
        writer.put(&maps.addresses, &mut old.addresses, &wanted.addresses);
        writer.put(&maps.held, &mut old.held, &wanted.held);
        writer.put(&maps.workloads, &mut old.workloads, &wanted.workloads);
        writer.remove(&maps.workloads, &mut old.workloads, &wanted.workloads);
        writer.remove(&maps.held, &mut old.held, &wanted.held);
        writer.remove(&maps.addresses, &mut old.addresses, &wanted.addresses);
        writer.remove(&maps.frontends, &mut old.frontends, &wanted.frontends);
        writer.remove(&maps.backends, &mut old.backends, &wanted.backends);
        writer.remove(&maps.open, &mut old.open, &wanted.open);
        writer.remove(&maps.skip_ports, &mut old.skip_ports, &wanted.skip_ports);
        writer.remove(&maps.verdicts, &mut old.verdicts, &wanted.verdicts);
        errors
    }
}

struct Writer<'a> {
    errors: &'a mut Vec<Error>,
    first: bool,
}

impl Writer<'_> {
    fn put<K, V>(&mut self, table: &Table<K, V>, old: &mut HashMap<K, V>, wanted: &HashMap<K, V>)
    where
        K: IntoBytes + FromBytes + Hash + Eq + Copy + Debug,
        V: IntoBytes + FromBytes + PartialEq + Copy,
    {
        for (key, value) in wanted {
            if old.get(key) == Some(value) {
                continue;
            }
            match table.put(key, value) {
                Ok(()) => drop(old.insert(*key, *value)),
                Err(error) => self.errors.push(error),
            }
        }
    }

    /// For values that the kernel counts in: written once, then left alone.
    fn put_missing<K, V>(&mut self, table: &Table<K, V>, old: &mut HashMap<K, V>, wanted: &HashMap<K, V>)
    where
        K: IntoBytes + FromBytes + Hash + Eq + Copy + Debug,
        V: IntoBytes + FromBytes + PartialEq + Copy,
    {
        let missing: HashMap<K, V> = wanted
            .iter()
            .filter(|(key, _)| !old.contains_key(key))
            .map(|(key, value)| (*key, *value))
            .collect();
        self.put(table, old, &missing);
    }

    fn remove<K, V>(&mut self, table: &Table<K, V>, old: &mut HashMap<K, V>, wanted: &HashMap<K, V>)
    where
        K: IntoBytes + FromBytes + Hash + Eq + Copy + Debug,
        V: IntoBytes + FromBytes,
    {
        let mut gone: HashSet<K> = old.keys().filter(|key| !wanted.contains_key(key)).copied().collect();
        if self.first {
            match table.keys() {
                Ok(keys) => gone.extend(keys.into_iter().filter(|key| !wanted.contains_key(key))),
                Err(error) => self.errors.push(error),
            }
        }
        for key in gone {
            match table.remove(&key) {
                Ok(_was_there) => drop(old.remove(&key)),
                Err(error) => self.errors.push(error),
            }
        }
    }
}
