//! Bringing the kernel's tables to a wanted state, in an order that never opens a hole: verdicts before the addresses
//! that lead to them, endpoints before the frontends that count them, removals last.

use std::collections::HashSet;
use std::fmt::Debug;
use std::hash::Hash;

use zerocopy::{FromBytes, IntoBytes};

use super::compile::Tables;
use super::tracked::Tracked;
use crate::kernel::{Error, Maps, Table};

/// Writes tables to the kernel.
#[derive(Debug, Default)]
pub struct Applied {
    taken_over: bool,
}

impl Applied {
    /// Writes what is new or changed and removes what is gone. Keys that an earlier agent left are removed at the first
    /// call. A value that cannot be written is reported and tried again at the next call; the rest goes on.
    pub fn apply(&mut self, maps: &Maps, tables: &mut Tables) -> Vec<Error> {
        let mut errors = Vec::new();
        let first = !std::mem::replace(&mut self.taken_over, true);
        let mut writer = Writer { errors: &mut errors, first };
        writer.put(&maps.verdicts, &mut tables.verdicts);
        writer.put(&maps.skip_ports, &mut tables.skip_ports);
        // The kernel counts in these: as the value is always 0, only an endpoint that it does not know is written.
        writer.put(&maps.open, &mut tables.open);
        writer.put(&maps.backends, &mut tables.backends);
        writer.put(&maps.frontends, &mut tables.frontends);
        writer.put(&maps.addresses, &mut tables.addresses);
        writer.put(&maps.held, &mut tables.held);
        writer.put(&maps.workloads, &mut tables.workloads);
        writer.remove(&maps.workloads, &mut tables.workloads);
        writer.remove(&maps.held, &mut tables.held);
        writer.remove(&maps.addresses, &mut tables.addresses);
        writer.remove(&maps.frontends, &mut tables.frontends);
        writer.remove(&maps.backends, &mut tables.backends);
        writer.remove(&maps.open, &mut tables.open);
        writer.remove(&maps.skip_ports, &mut tables.skip_ports);
        writer.remove(&maps.verdicts, &mut tables.verdicts);
        errors
    }
}

/// The numbers that an earlier agent's entries speak of. What cannot be read is left out: its entries are removed soon.
pub fn numbers_left(maps: &Maps) -> HashSet<u32> {
    let mut numbers = HashSet::new();
    numbers.extend(maps.open.keys().unwrap_or_default());
    numbers.extend(maps.backends.keys().unwrap_or_default().iter().map(|key| key.service));
    numbers.extend(maps.skip_ports.keys().unwrap_or_default().iter().map(|key| key.workload));
    let verdicts = maps.verdicts.keys().unwrap_or_default();
    numbers.extend(verdicts.iter().flat_map(|key| [key.source, key.destination]));
    numbers.extend(values(&maps.verdicts).map(|verdict| verdict.policy));
    numbers.extend(values(&maps.addresses).map(|local| local.id));
    numbers.extend(values(&maps.workloads).map(|workload| workload.id));
    numbers.extend(values(&maps.frontends).map(|frontend| frontend.service));
    numbers
}

fn values<K, V>(table: &Table<K, V>) -> impl Iterator<Item = V>
where
    K: IntoBytes + FromBytes,
    V: IntoBytes + FromBytes,
{
    let keys = table.keys().unwrap_or_default();
    keys.into_iter().filter_map(|key| table.get(&key).ok().flatten())
}

struct Writer<'a> {
    errors: &'a mut Vec<Error>,
    first: bool,
}

impl Writer<'_> {
    fn put<K, V>(&mut self, table: &Table<K, V>, tracked: &mut Tracked<K, V>)
    where
        K: IntoBytes + FromBytes + Hash + Eq + Copy + Debug,
        V: IntoBytes + FromBytes + PartialEq + Copy,
    {
        for (key, value) in tracked.to_put() {
            match table.put(&key, &value) {
                Ok(()) => tracked.written(&key),
                Err(error) => self.errors.push(error),
            }
        }
    }

    fn remove<K, V>(&mut self, table: &Table<K, V>, tracked: &mut Tracked<K, V>)
    where
        K: IntoBytes + FromBytes + Hash + Eq + Copy + Debug,
        V: IntoBytes + FromBytes + PartialEq + Copy,
    {
        let mut gone = tracked.to_remove();
        if self.first {
            match table.keys() {
                Ok(keys) => gone.extend(keys.into_iter().filter(|key| tracked.get(key).is_none())),
                Err(error) => self.errors.push(error),
            }
        }
        for key in gone {
            match table.remove(&key) {
                Ok(_was_there) => tracked.written(&key),
                Err(error) => self.errors.push(error),
            }
        }
    }
}
