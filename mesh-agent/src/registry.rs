//! What the mesh looks like now: who is where, behind which address.
//!
//! Layer 2, a deciding room: one writer publishes immutable snapshots, any number of readers hold one for as long as a
//! decision takes. It never learns where the knowledge came from (files or the Kubernetes API).
//!
//! A snapshot is derived from the one before and shares with it what did not change, and it tells what did
//! ([`Snapshot::changed_since`]).
//!
//! Reading order: this file, `snapshot` (how one follows from another), `shards` (the map behind), `change`.
#![forbid(unsafe_code)]

use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::watch;

use crate::model::{
    MeshConfig, OriginalDst, Service, ServiceName, ServicePort, Workload, WorkloadName, WorkloadUid,
};

mod change;
mod shards;
mod snapshot;
#[cfg(test)]
mod tests;

pub use change::Changed;
pub use snapshot::Snapshot;

/// What a dialled address stands for.
#[derive(Clone, Debug)]
pub enum Destination {
    /// A service's ClusterIP and port; the index is into `service.ports`.
    Service(Arc<Service>, usize),
    /// A pod's own IP.
    Workload(Arc<Workload>),
    /// Nothing that the mesh knows.
    External,
}

impl Destination {
    /// The service port, when it is a service.
    pub fn service_port(&self) -> Option<&ServicePort> {
        match self {
            Self::Service(service, index) => service.ports.get(*index),
            Self::Workload(_) | Self::External => None,
        }
    }
}

/// Read handle. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Registry {
    current: Arc<ArcSwap<Snapshot>>,
    version: watch::Receiver<u64>,
}

/// The single writer.
#[derive(Debug)]
pub struct Writer {
    current: Arc<ArcSwap<Snapshot>>,
    version: watch::Sender<u64>,
}

/// An empty registry and its writer.
pub fn new() -> (Writer, Registry) {
    let current = Arc::new(ArcSwap::from_pointee(Snapshot::default()));
    let (sender, receiver) = watch::channel(0);
    (Writer { current: current.clone(), version: sender }, Registry { current, version: receiver })
}

impl Registry {
    /// The newest state.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// Tells when a newer state is there; the value is its version.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.version.clone()
    }
}

impl Writer {
    /// Replaces the state as a whole and returns its version. Readers that follow changes look at everything.
    pub fn publish(&self, snapshot: Snapshot) -> u64 {
        self.replace(snapshot.numbered(self.current.load().version + 1))
    }

    /// Replaces the state by one that follows from it by this change, and returns its version.
    pub fn publish_change(&self, snapshot: Snapshot, changed: Changed) -> u64 {
        let next = snapshot.following(&self.current.load(), changed);
        self.replace(next)
    }

    fn replace(&self, snapshot: Snapshot) -> u64 {
        let version = snapshot.version;
        self.current.store(Arc::new(snapshot));
        self.version.send_replace(version);
        version
    }
}
