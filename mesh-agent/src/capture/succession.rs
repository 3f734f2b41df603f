//! Coming after another agent of this node, and making way for the next.
//!
//! During an update two agents are there at once. The kernel's tables have one writer, whoever holds [`Turn`]; connections go
//! to whichever agent's listeners the tables name, so none is refused in between. The agent that makes way stops writing,
//! beats on until the next one does, and serves what it has accepted to its end.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::time::Duration;

use mesh_common::{Address, PODS_MAX, WORKERS_MAX};

use super::heart::Heart;
use crate::kernel::turn::Turn;
use crate::kernel::{Error, Maps, cgroup};
use crate::lifecycle::clock;

/// How long the next agent may take from its turn to its first sign of life: it loads programs, probes them, opens listeners
/// in every pod. Meanwhile the tables stay as they are and this agent serves.
const SUCCESSION_MAX: Duration = Duration::from_secs(15);
/// How often the agent that makes way looks whether it has been succeeded.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// How an agent's time with the tables ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// The next agent of this node writes them, and has the pods.
    Succeeded,
    /// Nobody does: new connections follow the pods' failure mode.
    Alone,
}

/// Makes way for the next agent if there is one. The heart is stopped in either case.
pub(super) async fn make_way(turn: Turn, heart: Heart) -> Left {
    match turn.is_awaited() {
        Ok(true) => {}
        Ok(false) => return Left::Alone,
        Err(error) => {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "cannot tell whether another agent waits"
            );
            return Left::Alone;
        }
    }
    tracing::info!("making way for the next agent of this node");
    drop(turn);
    let deadline = clock::now() + SUCCESSION_MAX;
    while clock::now() < deadline {
        if heart.is_succeeded().unwrap_or(false) {
            return Left::Succeeded;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    tracing::error!(waited = ?SUCCESSION_MAX, "the next agent of this node did not take the pods over");
    Left::Alone
}

/// Tells the programs which control group is the agent's own, and forgets those that are gone. Another agent of this node
/// may still be there to finish its connections.
pub(super) fn introduce(maps: &Maps) -> Result<(), Error> {
    let mounts = cgroup::Mounts::of_self().unwrap_or_default();
    let Some(root) = mounts.unified else { return Ok(()) };
    let alive = cgroup::ids_below(&root);
    for gone in maps.agents.keys()?.into_iter().filter(|group| !alive.contains(group)) {
        maps.agents.remove(&gone)?;
    }
    match cgroup::own(&root).and_then(|own| cgroup::id(&own).ok()) {
        Some(own) => maps.agents.put(&own, &1),
        None => Ok(()),
    }
}

/// Forgets what is recorded about connections of an agent that is gone; its sockets died with it.
pub(super) fn forget_connections(maps: &Maps) {
    for key in maps.clients.keys().unwrap_or_default() {
        let _ = maps.clients.remove(&key);
    }
    for key in maps.dials.keys().unwrap_or_default() {
        let _ = maps.dials.remove(&key);
    }
}

/// Slots of the programs' list of listeners. Until the tables are written anew, an earlier agent's entries lead there: a pod
/// keeps its slot, so that none of them leads to another pod's listener meanwhile.
#[derive(Debug, Default)]
pub(super) struct Slots {
    inherited: HashMap<Address, u32>,
}

impl Slots {
    /// With what an earlier agent's entries say.
    pub(super) fn left_in(maps: &Maps) -> Self {
        let keys = maps.addresses.keys().unwrap_or_default();
        let entries = keys.into_iter().filter_map(|key| Some((key, maps.addresses.get(&key).ok()??)));
        Self {
            inherited: entries
                .filter(|(_, local)| local.workers > 0)
                .map(|(key, local)| (key, local.slot))
                .collect(),
        }
    }

    /// A pod's slot: the one that it had, or a free one. They come in steps of `WORKERS_MAX`: one listener per worker.
    pub(super) fn free(&self, pod: &[IpAddr], used: &HashSet<u32>) -> Option<u32> {
        let step = u32::try_from(WORKERS_MAX).expect("small");
        let all = || (0..PODS_MAX).map(|index| index * step).filter(|slot| !used.contains(slot));
        let inherited: HashSet<u32> = self.inherited.values().copied().collect();
        let own = pod.iter().find_map(|ip| self.inherited.get(&Address::from(*ip)));
        own.copied()
            .filter(|slot| !used.contains(slot))
            .or_else(|| all().find(|slot| !inherited.contains(slot)))
            .or_else(|| all().next())
    }

    /// No entry of an earlier agent is left.
    pub(super) fn settle(&mut self) {
        self.inherited.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_keeps_the_slot_that_an_earlier_agent_gave_it() {
        let step = u32::try_from(WORKERS_MAX).unwrap();
        let ip = |last: u8| IpAddr::from([10, 0, 0, last]);
        let inherited = [(Address::from(ip(1)), 0), (Address::from(ip(2)), step)].into();
        let mut slots = Slots { inherited };
        let none = HashSet::new();
        assert_eq!(slots.free(&[ip(2)], &none), Some(step));
        assert_eq!(slots.free(&[ip(3)], &none), Some(2 * step), "another pod gets a slot that nobody had");
        assert_eq!(slots.free(&[ip(2)], &[step].into()), Some(2 * step), "no slot is given twice");
        slots.settle();
        assert_eq!(slots.free(&[ip(3)], &none), Some(0));
    }

    #[test]
    fn every_slot_can_be_used_where_an_earlier_agent_had_them_all() {
        let step = u32::try_from(WORKERS_MAX).unwrap();
        let address = |index: u32| Address::from(IpAddr::from(index.to_be_bytes()));
        let slots = Slots { inherited: (0..PODS_MAX).map(|index| (address(index), index * step)).collect() };
        let stranger = [IpAddr::from([255, 0, 0, 1])];
        assert_eq!(slots.free(&stranger, &HashSet::new()), Some(0));
        let all = (0..PODS_MAX).map(|index| index * step).collect();
        assert_eq!(slots.free(&stranger, &all), None);
    }
}
