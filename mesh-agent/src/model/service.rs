//! A service: a stable address in front of endpoints.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::WorkloadUid;

/// `namespace/name`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceName {
    /// Kubernetes namespace.
    pub namespace: Arc<str>,
    /// Service name.
    pub name: Arc<str>,
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl fmt::Debug for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// `Service.spec.trafficDistribution`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum TrafficDistribution {
    /// Every ready endpoint alike.
    #[default]
    Any,
    /// Endpoints of the client's node, while it has ready ones.
    PreferSameNode,
    /// Endpoints of the client's zone, while it has ready ones (`PreferSameZone`, and its old name `PreferClose`).
    PreferSameZone,
}

/// Whether an endpoint takes new connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndpointState {
    /// Takes connections.
    Ready,
    /// Terminating, still serving: keeps its connections, takes new ones only if no endpoint is ready.
    Draining,
    /// Takes none.
    NotReady,
}

/// One address behind a service port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Pod IP and target port.
    pub address: SocketAddr,
    /// The pod, when the mesh knows it.
    pub workload: Option<WorkloadUid>,
    /// Its node.
    pub node: Option<Arc<str>>,
    /// Its zone.
    pub zone: Option<Arc<str>>,
    /// Whether it takes connections.
    pub state: EndpointState,
}

/// One port of a service with its endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Name, if any.
    pub name: Option<Arc<str>>,
    /// Port that clients dial.
    pub port: u16,
    /// True for UDP (and then never captured).
    pub udp: bool,
    /// `appProtocol`, as written.
    pub app_protocol: Option<Arc<str>>,
    /// Endpoints, sorted by address.
    pub endpoints: Vec<Endpoint>,
}

impl ServicePort {
    /// Endpoints of the dialled address's family. A dual-stack service lists each pod once per family, and a connection
    /// cannot change family on the way (KEP-563).
    pub fn endpoints_for(&self, dialled: IpAddr) -> &[Endpoint] {
        // Sorted by address, and IPv4 sorts before IPv6.
        let first_v6 = self.endpoints.partition_point(|endpoint| endpoint.address.is_ipv4());
        let (v4, v6) = self.endpoints.split_at(first_v6);
        if dialled.to_canonical().is_ipv4() { v4 } else { v6 }
    }
}

/// One service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Namespace and name.
    pub name: ServiceName,
    /// ClusterIPs; empty for a headless service.
    pub vips: Vec<IpAddr>,
    /// Ports.
    pub ports: Vec<ServicePort>,
    /// Which endpoints a client prefers.
    pub traffic_distribution: TrafficDistribution,
}
