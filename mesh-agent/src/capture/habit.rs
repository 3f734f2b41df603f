//! Splice by habit: which ports are worth a place in the sockmap.
//!
//! Joining two sockets costs a hash insertion at each end and, for bulk, a slower send until eviction. A port whose
//! connections exchange a handful of messages, or stream in bulk, is better off as plain direct TCP; one whose
//! connections carry many small exchanges gains. Past connections tell which it is. Pure: time is an argument.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What a port is remembered under.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PortKey {
    /// Namespace and owner of the destination.
    pub owner: (Arc<str>, Arc<str>),
    /// Destination port.
    pub port: u16,
}

/// What one spliced connection looked like.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// Messages that the client sent.
    pub sends: u64,
    /// Bytes both ways.
    pub bytes: u64,
    /// A receiver fell behind.
    pub demoted: bool,
}

/// Connections to see before a habit is believed.
const CONNECTIONS_MIN: u32 = 16;
/// Messages per connection below which the insertion does not pay for itself.
const SENDS_MIN: f64 = 4.0;
/// Share of demoted connections above which a port counts as bulk.
const DEMOTED_MAX: f64 = 0.5;
/// Weight of the newest connection in the running averages.
const WEIGHT: f64 = 0.1;
/// How long a port stays on plain direct TCP before it is tried again: habits change with deployments.
const RETRY_AFTER: Duration = Duration::from_secs(60);

#[derive(Debug)]
struct Habit {
    connections: u32,
    sends: f64,
    demoted: f64,
    direct_since: Option<Instant>,
}

/// All ports of this node's pods.
#[derive(Debug, Default)]
pub struct Habits {
    ports: HashMap<PortKey, Habit>,
}

impl Habits {
    /// Takes note of a connection that is over. True when the port's verdict changed.
    pub fn note(&mut self, key: PortKey, seen: Seen, now: Instant) -> bool {
        let habit = self.ports.entry(key).or_insert(Habit {
            connections: 0,
            sends: SENDS_MIN * 4.0,
            demoted: 0.0,
            direct_since: None,
        });
        habit.connections = habit.connections.saturating_add(1);
        #[expect(clippy::cast_precision_loss, reason = "an average; counts stay far below 2^52")]
        let sends = seen.sends as f64;
        habit.sends += WEIGHT * (sends.min(1000.0) - habit.sends);
        habit.demoted += WEIGHT * (f64::from(u8::from(seen.demoted)) - habit.demoted);
        let direct =
            habit.connections >= CONNECTIONS_MIN && (habit.sends < SENDS_MIN || habit.demoted > DEMOTED_MAX);
        if direct && habit.direct_since.is_none() {
            habit.direct_since = Some(now);
            return true;
        }
        false
    }

    /// Ports that are on plain direct TCP now.
    pub fn direct_ports(&self) -> impl Iterator<Item = &PortKey> {
        self.ports.iter().filter(|(_, habit)| habit.direct_since.is_some()).map(|(key, _)| key)
    }

    /// Lets ports try the fast path again whose time is up. True when there was one.
    pub fn forget_old(&mut self, now: Instant) -> bool {
        let before = self.ports.len();
        self.ports.retain(|_, habit| {
            habit.direct_since.is_none_or(|since| now.saturating_duration_since(since) < RETRY_AFTER)
        });
        self.ports.len() != before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> PortKey {
        PortKey { owner: ("shop".into(), "orders".into()), port: 80 }
    }

    fn after(seen: Seen, connections: u32) -> bool {
        let mut habits = Habits::default();
        let now = crate::lifecycle::clock::now();
        for _ in 0..connections {
            habits.note(key(), seen, now);
        }
        habits.direct_ports().next().is_some()
    }

    #[test]
    fn one_shot_ports_leave_the_sockmap_after_enough_connections() {
        let one_shot = Seen { sends: 1, bytes: 200, demoted: false };
        assert!(!after(one_shot, CONNECTIONS_MIN - 1));
        assert!(after(one_shot, 40));
    }

    #[test]
    fn bulk_ports_leave_the_sockmap() {
        assert!(after(Seen { sends: 10_000, bytes: 1 << 30, demoted: true }, 40));
    }

    #[test]
    fn chatty_ports_stay_spliced() {
        assert!(!after(Seen { sends: 500, bytes: 100_000, demoted: false }, 1000));
    }

    #[test]
    fn a_port_is_tried_again_after_a_while() {
        let mut habits = Habits::default();
        let now = crate::lifecycle::clock::now();
        for _ in 0..40 {
            habits.note(key(), Seen { sends: 1, bytes: 1, demoted: false }, now);
        }
        assert!(!habits.forget_old(now + RETRY_AFTER / 2));
        assert!(habits.forget_old(now + RETRY_AFTER));
        assert!(habits.direct_ports().next().is_none());
    }
}
