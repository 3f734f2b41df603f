//! Tunnels between connections: kept warm for the next one, so that handshakes are paid once.
//!
//! Station 7 of the walk. One pool per worker, keyed by the two pods: an identity never borrows another's tunnel, and no
//! tunnel outlives its pods. Last in, first out, so that a burst's surplus ages out. It opens nothing itself.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::ClientConfig;

use super::carrier::Carrier;
use crate::model::WorkloadUid;

/// Who talks to whom.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Pair {
    /// The client pod.
    pub source: WorkloadUid,
    /// The server pod.
    pub destination: WorkloadUid,
}

/// A tunnel of the pool.
#[derive(Debug)]
pub struct Pooled {
    /// The tunnel.
    pub carrier: Box<Carrier>,
    /// What the handshake was made with: a renewed SVID makes a new configuration, and this tunnel stale.
    pub config: Arc<ClientConfig>,
    idle_since: Instant,
}

/// The idle tunnels of one worker.
#[derive(Debug)]
pub struct Pool {
    idle: RefCell<HashMap<Pair, Vec<Pooled>>>,
    per_pair_max: usize,
    idle_max: Duration,
}

impl Pool {
    /// An empty pool.
    pub fn new(per_pair_max: usize, idle_max: Duration) -> Self {
        Self { idle: RefCell::default(), per_pair_max, idle_max }
    }

    /// The most recently used tunnel that is alive and was made with `config`; others of its like are closed on the way.
    pub fn take(&self, pair: &Pair, config: &Arc<ClientConfig>, now: Instant) -> Option<Box<Carrier>> {
        let mut idle = self.idle.borrow_mut();
        let tunnels = idle.get_mut(pair)?;
        while let Some(pooled) = tunnels.pop() {
            if self.is_usable(&pooled, now) && Arc::ptr_eq(&pooled.config, config) {
                return Some(pooled.carrier);
            }
        }
        None
    }

    /// Keeps a tunnel for the next connection, or closes it when there are enough.
    pub fn put(&self, pair: Pair, carrier: Box<Carrier>, config: Arc<ClientConfig>, now: Instant) {
        let mut idle = self.idle.borrow_mut();
        let tunnels = idle.entry(pair).or_default();
        if tunnels.len() < self.per_pair_max {
            tunnels.push(Pooled { carrier, config, idle_since: now });
        }
    }

    /// Closes what has been idle for too long or is dead, and everything between pods that `lives` does not know.
    pub fn sweep(&self, now: Instant, mut lives: impl FnMut(&WorkloadUid) -> bool) {
        self.idle.borrow_mut().retain(|pair, tunnels| {
            if !lives(&pair.source) || !lives(&pair.destination) {
                return false;
            }
            tunnels.retain(|pooled| self.is_usable(pooled, now));
            !tunnels.is_empty()
        });
    }

    /// How many tunnels are idle.
    pub fn len(&self) -> usize {
        self.idle.borrow().values().map(Vec::len).sum()
    }

    /// Whether no tunnel is idle.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn is_usable(&self, pooled: &Pooled, now: Instant) -> bool {
        now.saturating_duration_since(pooled.idle_since) < self.idle_max && pooled.carrier.looks_alive()
    }
}
