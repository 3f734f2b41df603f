//! One HTTP connection of a client: who is on it, and what its requests may ask for.
//!
//! Beside station 5. It holds facts; [`super::request`] acts on them.

use std::rc::Rc;
use std::sync::Arc;

use super::downstream::Seen;
use super::guard::Violation;
use super::upstream::{Caller, Upstreams};
use crate::capture::Origin;
use crate::model::{
    AppProtocol, ClientAddr, EndpointAddr, OriginalDst, Path, ServiceName, SpiffeId, Workload,
};
use crate::proxy::open::{CloseSignal, Registered};
use crate::proxy::worker::{Local, Served};
use crate::registry::Destination;
use crate::telemetry::Reporter;

/// A client's connection whose requests are read.
#[derive(Debug)]
pub struct Connection {
    /// The worker.
    pub local: Rc<Local>,
    /// The pod of this node that it belongs to: the client's (outbound) or the server's (inbound).
    pub served: Rc<Served>,
    /// The client's address.
    pub client: ClientAddr,
    /// The client, where the mesh knows it.
    pub source: Option<Arc<Workload>>,
    /// The client's verified identity. A pod of this node is known by its namespace, which the kernel vouches for.
    pub proven: Option<SpiffeId>,
    /// It was recognised as a probe of the node's kubelet.
    pub node_probe: bool,
    /// Which half of the journey this is.
    pub side: Side,
    /// Raised when the connection must end.
    pub close: Rc<CloseSignal>,
    /// Connections to servers.
    pub upstreams: Rc<Upstreams>,
    /// What the guard has seen; `None` until serving begins.
    pub seen: Option<Arc<Seen>>,
}

/// Which half of the journey.
#[derive(Debug)]
pub enum Side {
    /// A pod of this node dialled.
    Outbound {
        /// What it dialled.
        origin: Origin,
        /// What that stands for.
        destination: Destination,
    },
    /// A pod of this node was dialled.
    Inbound {
        /// Its address and port.
        address: EndpointAddr,
        /// What the client dialled.
        dialled: OriginalDst,
        /// The service behind that, if it is one.
        service: Option<ServiceName>,
        /// The way that the bytes came.
        path: Path,
        /// Key exchange group, through a tunnel.
        key_exchange: Option<&'static str>,
    },
}

impl Connection {
    /// What the guard refused, if it did.
    pub fn violation(&self) -> Option<Violation> {
        self.seen.as_ref()?.violation()
    }

    /// Enters something that outlives the HTTP on this connection among what is open; nobody judges it again here.
    pub fn enter(&self) -> Registered {
        self.local.open.enter(self.served.pod.clone(), None)
    }

    /// Asks for connections to servers, as the pod of this node that it belongs to.
    pub fn caller<'a>(&'a self, own: &'a Workload) -> Caller<'a> {
        Caller {
            local: &self.local,
            pod: &self.served.pod,
            client: self.client,
            dialled: self.dialled(),
            source: own,
            upstreams: &self.upstreams,
        }
    }

    /// Which end of the journey tells about it.
    pub fn reporter(&self) -> Reporter {
        match self.side {
            Side::Outbound { .. } => Reporter::Source,
            Side::Inbound { .. } => Reporter::Destination,
        }
    }

    /// What the client dialled.
    pub fn dialled(&self) -> OriginalDst {
        match &self.side {
            Side::Outbound { origin, .. } => origin.dialled,
            Side::Inbound { dialled, .. } => *dialled,
        }
    }

    /// The service that was dialled.
    pub fn service(&self) -> Option<ServiceName> {
        match &self.side {
            Side::Outbound { destination: Destination::Service(service, _), .. } => {
                Some(service.name.clone())
            }
            Side::Outbound { .. } => None,
            Side::Inbound { service, .. } => service.clone(),
        }
    }
}

/// Whether a server behind a port with this hint is spoken to in HTTP/2. Without a hint the server gets what its client
/// speaks: a client that begins with HTTP/2 would do so without a mesh, too.
pub fn speaks_h2(hint: Option<AppProtocol>, client_speaks_h2: bool) -> bool {
    match hint {
        Some(AppProtocol::Http2 | AppProtocol::Grpc) => true,
        Some(AppProtocol::WebSocket) => false,
        Some(AppProtocol::Http1 | AppProtocol::Tls | AppProtocol::Opaque) | None => client_speaks_h2,
    }
}
