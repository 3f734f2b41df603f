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

/// What the clients of a port speak, as far as its author says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AppProtocol {
    /// HTTP/1.1, or HTTP/2 where the client begins with its preface.
    Http1,
    /// HTTP/2 without TLS.
    Http2,
    /// gRPC, so HTTP/2 without TLS.
    Grpc,
    /// WebSocket, so HTTP/1.1 with an upgrade.
    WebSocket,
    /// TLS that client and server speak with each other.
    Tls,
    /// Bytes that nobody is to look into.
    Opaque,
}

impl AppProtocol {
    /// Reads `appProtocol`: a name of Kubernetes (KEP-3726) or of IANA, or one that other meshes use. `None`: not known.
    pub fn of_field(text: &str) -> Option<Self> {
        match text {
            "http" | "http1" => Some(Self::Http1),
            "h2c" | "http2" | "kubernetes.io/h2c" => Some(Self::Http2),
            "grpc" => Some(Self::Grpc),
            "ws" | "kubernetes.io/ws" => Some(Self::WebSocket),
            "tls" | "https" | "wss" | "kubernetes.io/wss" => Some(Self::Tls),
            "tcp" | "linkerd.io/opaque" => Some(Self::Opaque),
            _ => None,
        }
    }

    /// Reads a port's name: the protocol, alone or before a hyphen (`http`, `http-admin`). `None`: says nothing.
    pub fn of_port_name(name: &str) -> Option<Self> {
        Self::of_field(name.split_once('-').map_or(name, |(protocol, _)| protocol))
    }

    /// True when what is spoken is HTTP that an agent can read.
    pub fn is_http(self) -> bool {
        matches!(self, Self::Http1 | Self::Http2 | Self::Grpc | Self::WebSocket)
    }
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
    /// What its clients speak: from `appProtocol`, and only where there is none from the name. `None`: its author does
    /// not say, or says something the mesh does not know.
    pub fn protocol(&self) -> Option<AppProtocol> {
        match (&self.app_protocol, &self.name) {
            (Some(text), _) => AppProtocol::of_field(text),
            (None, Some(name)) => AppProtocol::of_port_name(name),
            (None, None) => None,
        }
    }

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

#[cfg(test)]
mod tests {
    use super::*;

    fn port(name: Option<&str>, app_protocol: Option<&str>) -> ServicePort {
        ServicePort {
            name: name.map(Into::into),
            port: 80,
            udp: false,
            app_protocol: app_protocol.map(Into::into),
            endpoints: Vec::new(),
        }
    }

    #[test]
    fn a_port_says_what_it_carries_by_app_protocol_then_by_name() {
        use AppProtocol::*;
        let cases = [
            (None, None, None),
            (None, Some("http"), Some(Http1)),
            (None, Some("kubernetes.io/h2c"), Some(Http2)),
            (None, Some("http2"), Some(Http2)),
            (None, Some("grpc"), Some(Grpc)),
            (None, Some("kubernetes.io/ws"), Some(WebSocket)),
            (None, Some("kubernetes.io/wss"), Some(Tls)),
            (None, Some("https"), Some(Tls)),
            (None, Some("tls"), Some(Tls)),
            (None, Some("linkerd.io/opaque"), Some(Opaque)),
            (None, Some("tcp"), Some(Opaque)),
            (None, Some("mysql"), None),
            (Some("http"), None, Some(Http1)),
            (Some("http-admin"), None, Some(Http1)),
            (Some("grpc-web"), None, Some(Grpc)),
            (Some("h2c"), None, Some(Http2)),
            (Some("tcp-echo"), None, Some(Opaque)),
            (Some("httpx"), None, None),
            (Some("web"), None, None),
            // What the field says counts even where the mesh does not know it.
            (Some("http"), Some("mysql"), None),
            (Some("http"), Some("linkerd.io/opaque"), Some(Opaque)),
        ];
        for (name, app_protocol, expected) in cases {
            assert_eq!(port(name, app_protocol).protocol(), expected, "{name:?} {app_protocol:?}");
        }
    }
}
