//! What the mesh looks like now: who is where, behind which address.
//!
//! Layer 2, a deciding room: one writer publishes immutable snapshots, any number of readers hold one for as long as a
//! decision takes. It never learns where the knowledge came from (files or the Kubernetes API).
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::watch;

use crate::model::{
    MeshConfig, OriginalDst, Service, ServiceName, ServicePort, Workload, WorkloadName, WorkloadUid,
};

#[cfg(test)]
mod tests;

/// One state of the mesh. Immutable.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// Counts up by one per publication.
    pub version: u64,
    /// Mesh-wide settings.
    pub config: MeshConfig,
    workloads: HashMap<WorkloadUid, Arc<Workload>>,
    by_ip: HashMap<IpAddr, Arc<Workload>>,
    by_name: HashMap<WorkloadName, Arc<Workload>>,
    services: Vec<Arc<Service>>,
    by_frontend: HashMap<(IpAddr, u16), (Arc<Service>, usize)>,
}

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

impl Snapshot {
    /// Builds the lookup tables. Pods of the host network are not found by IP: the address is the node's, not theirs.
    ///
    /// Where two pods claim one address, neither is found by it: the wrong one of them would be worse than none. Sources
    /// settle such conflicts before, so this is the last line.
    pub fn new(config: MeshConfig, workloads: Vec<Workload>, mut services: Vec<Service>) -> Self {
        services.sort_by(|a, b| a.name.cmp(&b.name));
        let mut snapshot = Self { config, ..Self::default() };
        let mut contested = Vec::new();
        for workload in workloads.into_iter().map(Arc::new) {
            if !workload.host_network {
                for ip in &workload.addresses {
                    let other = snapshot.by_ip.insert(*ip, workload.clone());
                    contested.extend(other.filter(|other| other.uid != workload.uid).map(|_| *ip));
                }
            }
            snapshot.by_name.insert(workload.name.clone(), workload.clone());
            snapshot.workloads.insert(workload.uid.clone(), workload);
        }
        snapshot.by_ip.retain(|ip, _| !contested.contains(ip));
        for service in services.into_iter().map(Arc::new) {
            for (index, port) in service.ports.iter().enumerate().filter(|(_, port)| !port.udp) {
                for vip in &service.vips {
                    snapshot.by_frontend.insert((*vip, port.port), (service.clone(), index));
                }
            }
            snapshot.services.push(service);
        }
        snapshot
    }

    /// By UID.
    pub fn workload(&self, uid: &WorkloadUid) -> Option<&Arc<Workload>> {
        self.workloads.get(uid)
    }

    /// By one of its addresses (canonical).
    pub fn workload_by_ip(&self, ip: IpAddr) -> Option<&Arc<Workload>> {
        self.by_ip.get(&ip)
    }

    /// By namespace and name.
    pub fn workload_by_name(&self, name: &WorkloadName) -> Option<&Arc<Workload>> {
        self.by_name.get(name)
    }

    /// Every workload, in no order.
    pub fn workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.workloads.values()
    }

    /// Workloads of one node, in no order.
    pub fn workloads_on<'a>(&'a self, node: &'a str) -> impl Iterator<Item = &'a Arc<Workload>> {
        self.workloads.values().filter(move |workload| &*workload.node == node)
    }

    /// By namespace and name.
    pub fn service(&self, name: &ServiceName) -> Option<&Arc<Service>> {
        let index = self.services.binary_search_by(|service| service.name.cmp(name)).ok()?;
        self.services.get(index)
    }

    /// Every service, sorted by name.
    pub fn services(&self) -> &[Arc<Service>] {
        &self.services
    }

    /// What the dialled address stands for.
    pub fn resolve(&self, dialled: OriginalDst) -> Destination {
        if let Some((service, index)) = self.by_frontend.get(&(dialled.ip(), dialled.port())) {
            return Destination::Service(service.clone(), *index);
        }
        match self.by_ip.get(&dialled.ip()) {
            Some(workload) => Destination::Workload(workload.clone()),
            None => Destination::External,
        }
    }
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
    /// Replaces the state as a whole and returns its version.
    pub fn publish(&self, mut snapshot: Snapshot) -> u64 {
        snapshot.version = self.current.load().version + 1;
        let version = snapshot.version;
        self.current.store(Arc::new(snapshot));
        self.version.send_replace(version);
        version
    }
}
