//! Endpoints of a service: what the mesh takes from `discovery.k8s.io/v1` EndpointSlice.

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::discovery::v1 as k8s;
use serde::Deserialize;

use super::metadata::Metadata;
use super::{Fault, FieldPath, Protocol};
use crate::model::EndpointState;

/// Label that names the service.
const SERVICE_LABEL: &str = "kubernetes.io/service-name";

/// A slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// The service, in the slice's namespace; a slice without one belongs to nobody.
    pub service: Option<Arc<str>>,
    /// Ports that every endpoint of the slice has.
    pub ports: Vec<Port>,
    /// Endpoints; none when the slice holds host names.
    pub endpoints: Vec<SliceEndpoint>,
}

/// One port of the slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Name of the service's port; empty when that has none.
    pub name: Arc<str>,
    /// Port of the endpoints.
    pub port: u16,
    /// Protocol.
    pub protocol: Protocol,
}

/// One endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceEndpoint {
    /// Its address (of several, Kubernetes asks consumers to take the first).
    pub address: IpAddr,
    /// The pod behind it, in the slice's namespace.
    pub pod: Option<Arc<str>>,
    /// Node.
    pub node: Option<Arc<str>>,
    /// Zone.
    pub zone: Option<Arc<str>>,
    /// Whether it takes connections.
    pub state: EndpointState,
}

/// A slice as it is written, as far as it is read.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Raw {
    metadata: Metadata,
    address_type: String,
    ports: Option<Vec<k8s::EndpointPort>>,
    endpoints: Option<Vec<k8s::Endpoint>>,
}

/// Takes what the mesh needs. Hints are not read yet.
///
/// # Errors
/// An address, port or protocol that cannot be read.
pub fn accept(slice: &Raw) -> Result<Slice, Fault> {
    let labels = slice.metadata.labels.as_ref();
    let endpoints =
        if slice.address_type == "FQDN" { &[] } else { slice.endpoints.as_deref().unwrap_or(&[]) };
    Ok(Slice {
        service: labels.and_then(|labels| labels.get(SERVICE_LABEL)).map(|name| name.as_str().into()),
        ports: ports(slice)?,
        endpoints: endpoints
            .iter()
            .enumerate()
            .filter_map(|(index, endpoint)| accept_endpoint(index, endpoint).transpose())
            .collect::<Result<_, Fault>>()?,
    })
}

fn ports(slice: &Raw) -> Result<Vec<Port>, Fault> {
    let mut found = Vec::new();
    for (index, port) in slice.ports.iter().flatten().enumerate() {
        let field = || FieldPath::of("ports").index(index);
        // No number means "every port", which Services never produce.
        let Some(number) = port.port else { continue };
        found.push(Port {
            name: port.name.as_deref().unwrap_or_default().into(),
            port: super::port(number, || field().key("port"))?,
            protocol: super::protocol(port.protocol.as_deref(), || field().key("protocol"))?,
        });
    }
    Ok(found)
}

fn accept_endpoint(index: usize, endpoint: &k8s::Endpoint) -> Result<Option<SliceEndpoint>, Fault> {
    let Some(address) = endpoint.addresses.first() else { return Ok(None) };
    let field = || FieldPath::of("endpoints").index(index).key("addresses").index(0);
    let pod = endpoint.target_ref.as_ref().filter(|target| target.kind.as_deref() == Some("Pod"));
    Ok(Some(SliceEndpoint {
        address: super::address(address, field)?,
        pod: pod.and_then(|target| target.name.as_deref()).map(Into::into),
        node: endpoint.node_name.as_deref().map(Into::into),
        zone: endpoint.zone.as_deref().map(Into::into),
        state: state(endpoint.conditions.as_ref()),
    }))
}

/// An absent `ready` counts as true and an absent `serving` as `ready` (EndpointConditions in the API reference).
fn state(conditions: Option<&k8s::EndpointConditions>) -> EndpointState {
    let ready = conditions.and_then(|c| c.ready).unwrap_or(true);
    let serving = conditions.and_then(|c| c.serving).unwrap_or(ready);
    let terminating = conditions.and_then(|c| c.terminating).unwrap_or(false);
    match (ready, serving, terminating) {
        (_, true, true) => EndpointState::Draining,
        (true, _, _) => EndpointState::Ready,
        (false, _, _) => EndpointState::NotReady,
    }
}
