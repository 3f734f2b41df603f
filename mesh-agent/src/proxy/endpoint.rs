//! From what was dialled to where the bytes go: one endpoint, and whether it is reached through a tunnel.
//!
//! Stations 4 to 6 of the walk: it asks the registry and balance and joins their answers. No I/O.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::balance::{self, Locality, OpenConnections};
use crate::capture::Origin;
use crate::model::{EndpointAddr, TrafficDistribution, Workload};
use crate::registry::{Destination, Snapshot};

use super::tunnel;

/// Where to, and how.
#[derive(Clone, Debug)]
pub struct Target {
    /// Pod IP and port, or the dialled address itself.
    pub address: EndpointAddr,
    /// The pod behind it, where the mesh knows it.
    pub workload: Option<Arc<Workload>>,
}

impl Target {
    /// The workload to which a tunnel leads; `None`: plain TCP. A pod that dials itself never leaves its own loopback.
    pub fn tunnelled(&self, source: &Workload) -> Option<&Arc<Workload>> {
        let workload = self.workload.as_ref()?;
        let meshed = workload.enrolled
            && !workload.host_network
            && !workload.skip_inbound_ports.contains(&self.address.port())
            && workload.uid != source.uid;
        meshed.then_some(workload)
    }
}

/// Picks an endpoint for a connection that `source` dialled. `tried` are those that were not there; the kernel's choice is
/// taken unless it is one of them. `None`: no endpoint takes connections.
pub fn pick(
    mesh: &Snapshot,
    destination: &Destination,
    origin: Origin,
    source: &Workload,
    tried: &[SocketAddr],
    open: &OpenConnections,
    rng: &mut fastrand::Rng,
) -> Option<Target> {
    let address = match destination {
        Destination::Service(service, _) => {
            let port = destination.service_port();
            let endpoints = port.map_or(&[][..], |port| port.endpoints_for(origin.dialled.ip()));
            let drawn = origin.drawn.map(EndpointAddr::addr).filter(|drawn| {
                !tried.contains(drawn) && endpoints.iter().any(|endpoint| endpoint.address == *drawn)
            });
            match drawn {
                Some(drawn) => drawn,
                None => choose(endpoints, source, service.traffic_distribution, tried, open, rng)?,
            }
        }
        Destination::Workload(_) | Destination::External => {
            Some(origin.dialled.addr()).filter(|dialled| !tried.contains(dialled))?
        }
    };
    Some(Target { address: EndpointAddr::new(address), workload: mesh.workload_by_ip(address.ip()).cloned() })
}

fn choose(
    endpoints: &[crate::model::Endpoint],
    source: &Workload,
    distribution: TrafficDistribution,
    tried: &[SocketAddr],
    open: &OpenConnections,
    rng: &mut fastrand::Rng,
) -> Option<SocketAddr> {
    let counts = |address| open.open(address);
    let index = balance::pick(endpoints, Locality::of(source), distribution, &counts, tried, rng)?;
    endpoints.get(index).map(|endpoint| endpoint.address)
}

/// Whether the dialled address leads back into the agent: the pod's own listeners, or any pod's tunnel port.
pub fn is_loop(mesh: &Snapshot, source: &Workload, origin: Origin, own_ports: &[u16]) -> bool {
    let dialled = origin.dialled;
    let own = dialled.ip().is_loopback()
        || dialled.ip().is_unspecified()
        || source.addresses.contains(&dialled.ip());
    let to_agent_of_peer = dialled.port() == tunnel::PORT
        && mesh.workload_by_ip(dialled.ip()).is_some_and(|workload| workload.enrolled);
    to_agent_of_peer || own && (dialled.port() == tunnel::PORT || own_ports.contains(&dialled.port()))
}
