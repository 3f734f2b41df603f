//! A service: what the mesh takes from `v1` Service.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1 as k8s;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde::Deserialize;

use super::{Fault, FieldPath, Protocol};
use crate::model::TrafficDistribution;

/// A service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// A DNS alias for something elsewhere, which the mesh leaves alone.
    pub external_name: bool,
    /// ClusterIPs, canonical; empty for a headless service.
    pub vips: Vec<IpAddr>,
    /// Address families of its endpoints; `None`: every family.
    pub families: Option<Families>,
    /// Labels of its pods; empty: endpoints come from slices only.
    pub selector: BTreeMap<String, String>,
    /// Ports.
    pub ports: Vec<Port>,
    /// Which endpoints a client prefers.
    pub distribution: TrafficDistribution,
    /// Endpoints count as ready whatever their pods say.
    pub publish_not_ready: bool,
}

/// IPv4, IPv6 or both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Families {
    /// IPv4.
    pub v4: bool,
    /// IPv6.
    pub v6: bool,
}

impl Families {
    /// Whether the address is of one of them.
    pub fn hold(self, ip: IpAddr) -> bool {
        if ip.is_ipv6() { self.v6 } else { self.v4 }
    }
}

/// One port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Name; empty when it has none, as in EndpointSlices.
    pub name: Arc<str>,
    /// Port that clients dial.
    pub port: u16,
    /// Protocol.
    pub protocol: Protocol,
    /// `appProtocol`, as written.
    pub app_protocol: Option<Arc<str>>,
    /// Port of the pod.
    pub target: Target,
}

/// `targetPort`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A number.
    Number(u16),
    /// A declared port of each pod.
    Name(Arc<str>),
}

/// A service as it is written, as far as it is read.
#[derive(Debug, Deserialize)]
pub struct Raw {
    #[serde(default)]
    spec: Option<k8s::ServiceSpec>,
}

/// Takes what the mesh needs.
///
/// # Errors
/// An address, port, protocol or `trafficDistribution` that cannot be read.
pub fn accept(service: &Raw) -> Result<Service, Fault> {
    let spec = service.spec.clone().unwrap_or_default();
    let vips = vips(&spec)?;
    Ok(Service {
        external_name: spec.type_.as_deref() == Some("ExternalName"),
        families: families(&spec, &vips),
        vips,
        selector: spec.selector.clone().unwrap_or_default(),
        ports: spec
            .ports
            .iter()
            .flatten()
            .enumerate()
            .map(|(index, port)| accept_port(port, &FieldPath::of("spec.ports").index(index)))
            .collect::<Result<_, Fault>>()?,
        distribution: distribution(spec.traffic_distribution.as_deref())?,
        publish_not_ready: spec.publish_not_ready_addresses.unwrap_or(false),
    })
}

fn vips(spec: &k8s::ServiceSpec) -> Result<Vec<IpAddr>, Fault> {
    let real = |ip: &str| !ip.is_empty() && ip != "None";
    let mut found = Vec::new();
    for (index, ip) in spec.cluster_ips.iter().flatten().enumerate().filter(|(_, ip)| real(ip)) {
        found.push(super::address(ip, || FieldPath::of("spec.clusterIPs").index(index))?);
    }
    if let Some(ip) = spec.cluster_ip.as_deref().filter(|ip| real(ip)) {
        let ip = super::address(ip, || FieldPath::of("spec.clusterIP"))?;
        if !found.contains(&ip) {
            found.insert(0, ip);
        }
    }
    Ok(found)
}

fn families(spec: &k8s::ServiceSpec, vips: &[IpAddr]) -> Option<Families> {
    if let Some(list) = spec.ip_families.as_ref().filter(|list| !list.is_empty()) {
        let has = |family: &str| list.iter().any(|entry| entry == family);
        return Some(Families { v4: has("IPv4"), v6: has("IPv6") });
    }
    let of_vips = Families { v4: vips.iter().any(IpAddr::is_ipv4), v6: vips.iter().any(IpAddr::is_ipv6) };
    (!vips.is_empty()).then_some(of_vips)
}

fn accept_port(port: &k8s::ServicePort, field: &FieldPath) -> Result<Port, Fault> {
    let number = super::port(port.port, || field.key("port"))?;
    let target = match &port.target_port {
        None | Some(IntOrString::Int(0)) => Target::Number(number),
        Some(IntOrString::Int(target)) => Target::Number(super::port(*target, || field.key("targetPort"))?),
        Some(IntOrString::String(name)) => Target::Name(name.as_str().into()),
    };
    Ok(Port {
        name: port.name.as_deref().unwrap_or_default().into(),
        port: number,
        protocol: super::protocol(port.protocol.as_deref(), || field.key("protocol"))?,
        app_protocol: port.app_protocol.as_deref().map(Into::into),
        target,
    })
}

fn distribution(text: Option<&str>) -> Result<TrafficDistribution, Fault> {
    match text {
        None => Ok(TrafficDistribution::Any),
        Some("PreferSameNode") => Ok(TrafficDistribution::PreferSameNode),
        Some("PreferSameZone" | "PreferClose") => Ok(TrafficDistribution::PreferSameZone),
        Some(other) => Err(Fault::at(
            FieldPath::of("spec.trafficDistribution"),
            format!("{other:?} is not known: use PreferSameNode, PreferSameZone or PreferClose"),
        )),
    }
}
