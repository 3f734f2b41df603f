//! A pod: what the mesh takes from `v1` Pod.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1 as k8s;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde::Deserialize;

use super::metadata::Metadata;
use super::{Fault, FieldPath, Protocol};

/// Annotation: destination ports that are left alone on the way out.
pub const SKIP_OUTBOUND: &str = "weft.dev/skip-outbound-ports";
/// Annotation: local ports that are left alone on the way in.
pub const SKIP_INBOUND: &str = "weft.dev/skip-inbound-ports";
/// Label: `disabled` keeps the pod's connections out of the kernel's fast path.
pub const SPLICE_LABEL: &str = "weft.dev/splice";

/// Annotation that kubelet puts on the mirror of a static pod.
const MIRROR: &str = "kubernetes.io/config.mirror";
/// Annotation with the hash of a static pod's manifest, which is what the node calls the pod.
const MANIFEST_HASH: &str = "kubernetes.io/config.hash";

/// A pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// UID, where there is one.
    pub uid: Option<Arc<str>>,
    /// Labels.
    pub labels: Arc<BTreeMap<String, String>>,
    /// Owner, from `ownerReferences` or the `app` labels.
    pub owner: Option<Arc<str>>,
    /// Node; empty while not scheduled.
    pub node: Arc<str>,
    /// Service account.
    pub service_account: Arc<str>,
    /// Addresses, canonical.
    pub addresses: Vec<IpAddr>,
    /// Declared ports.
    pub ports: Vec<ContainerPort>,
    /// The pod's own word on enrolment.
    pub mesh: Option<bool>,
    /// May be spliced.
    pub splice: Option<bool>,
    /// The pod's own word on [`super::FORWARD_CLIENT_CERT`].
    pub forward_client_cert: Option<bool>,
    /// See [`SKIP_OUTBOUND`].
    pub skip_outbound_ports: BTreeSet<u16>,
    /// See [`SKIP_INBOUND`].
    pub skip_inbound_ports: BTreeSet<u16>,
    /// Ports that kubelet's probes dial.
    pub probe_ports: BTreeSet<u16>,
    /// See [`crate::model::Workload::manifest_hash`].
    pub manifest_hash: Option<Arc<str>>,
    /// Shares the node's network.
    pub host_network: bool,
    /// Passes its readiness checks.
    pub ready: bool,
    /// Has been told to stop.
    pub terminating: bool,
    /// Has ended; its addresses may belong to others by now.
    pub finished: bool,
}

/// One declared port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerPort {
    /// Name, which Services may target.
    pub name: Option<Arc<str>>,
    /// Number.
    pub port: u16,
    /// Protocol.
    pub protocol: Protocol,
}

/// A pod as it is written, as far as it is read.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Raw {
    metadata: Metadata,
    spec: Option<Spec>,
    status: Option<Status>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    containers: Option<Vec<Container>>,
    init_containers: Option<Vec<Container>>,
    node_name: Option<String>,
    host_network: Option<bool>,
    service_account_name: Option<String>,
    /// The older name of the field.
    service_account: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Container {
    ports: Option<Vec<k8s::ContainerPort>>,
    liveness_probe: Option<k8s::Probe>,
    readiness_probe: Option<k8s::Probe>,
    startup_probe: Option<k8s::Probe>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Status {
    phase: Option<String>,
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
    #[serde(rename = "podIPs")]
    pod_ips: Option<Vec<k8s::PodIP>>,
    conditions: Option<Vec<Condition>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Condition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
}

/// Takes what the mesh needs.
///
/// # Errors
/// An address, port, label or annotation of ours that cannot be read.
pub fn accept(pod: &Raw) -> Result<Pod, Fault> {
    let metadata = &pod.metadata;
    let spec = pod.spec.as_ref();
    let status = pod.status.as_ref();
    let addresses = addresses(status)?;
    let phase = status.and_then(|status| status.phase.as_deref());
    let service_account = spec
        .and_then(|spec| spec.service_account_name.as_deref().or(spec.service_account.as_deref()))
        .filter(|name| !name.is_empty())
        .unwrap_or("default");
    super::check_name(service_account, 253)
        .map_err(|message| Fault::at(FieldPath::of("spec.serviceAccountName"), message))?;
    Ok(Pod {
        uid: metadata.uid.as_deref().filter(|uid| !uid.is_empty()).map(Into::into),
        labels: Arc::new(metadata.labels.clone().unwrap_or_default()),
        owner: owner(pod),
        node: spec.and_then(|spec| spec.node_name.as_deref()).unwrap_or_default().into(),
        service_account: service_account.into(),
        ready: is_ready(status, phase, !addresses.is_empty()),
        addresses,
        ports: ports(spec)?,
        mesh: super::mesh_label(metadata)?,
        splice: super::switch(metadata.labels.as_ref(), "labels", SPLICE_LABEL)?,
        forward_client_cert: super::forward_client_cert(metadata)?,
        skip_outbound_ports: port_list(pod, SKIP_OUTBOUND)?,
        skip_inbound_ports: port_list(pod, SKIP_INBOUND)?,
        probe_ports: spec.map(probe_ports).unwrap_or_default(),
        manifest_hash: manifest_hash(pod),
        host_network: spec.and_then(|spec| spec.host_network).unwrap_or(false),
        terminating: metadata.deletion_timestamp.is_some(),
        finished: matches!(phase, Some("Succeeded" | "Failed")),
    })
}

fn addresses(status: Option<&Status>) -> Result<Vec<IpAddr>, Fault> {
    let Some(status) = status else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for (index, ip) in status.pod_ips.iter().flatten().enumerate() {
        let field = || FieldPath::of("status.podIPs").index(index).key("ip");
        found.push(super::address(&ip.ip, field)?);
    }
    if let Some(ip) = status.pod_ip.as_deref().filter(|ip| !ip.is_empty()) {
        let ip = super::address(ip, || FieldPath::of("status.podIP"))?;
        if !found.contains(&ip) {
            found.insert(0, ip);
        }
    }
    Ok(found)
}

/// A pod whose status says nothing about readiness counts as ready once it has an address: worlds written by hand have
/// no kubelet to set conditions.
fn is_ready(status: Option<&Status>, phase: Option<&str>, has_address: bool) -> bool {
    let conditions = status.and_then(|status| status.conditions.as_ref());
    let condition = conditions.and_then(|list| list.iter().find(|condition| condition.kind == "Ready"));
    match (condition, conditions) {
        (Some(condition), _) => condition.status == "True",
        (None, Some(list)) if !list.is_empty() => false,
        (None, _) => has_address && matches!(phase, None | Some("Running")),
    }
}

fn ports(spec: Option<&Spec>) -> Result<Vec<ContainerPort>, Fault> {
    let mut found = Vec::new();
    for (c, container) in spec.iter().flat_map(|spec| spec.containers.iter().flatten()).enumerate() {
        for (p, port) in container.ports.iter().flatten().enumerate() {
            let field = || FieldPath::of("spec.containers").index(c).key("ports").index(p);
            found.push(ContainerPort {
                name: port.name.as_deref().map(Into::into),
                port: super::port(port.container_port, || field().key("containerPort"))?,
                protocol: super::protocol(port.protocol.as_deref(), || field().key("protocol"))?,
            });
        }
    }
    Ok(found)
}

/// The ports of every liveness, readiness and startup probe, init containers' (which may be sidecars) among them. A name is
/// one of the container's own ports, as kubelet has it; one that is none leads nowhere. A probe of another host is not ours.
fn probe_ports(spec: &Spec) -> BTreeSet<u16> {
    let mut found = BTreeSet::new();
    for container in spec.containers.iter().chain(&spec.init_containers).flatten() {
        let probes = [&container.liveness_probe, &container.readiness_probe, &container.startup_probe];
        for probe in probes.into_iter().flatten() {
            let http = probe.http_get.as_ref().filter(|http| http.host.as_deref().is_none_or(str::is_empty));
            let tcp = probe.tcp_socket.as_ref().filter(|tcp| tcp.host.as_deref().is_none_or(str::is_empty));
            let asked = http.map(|http| &http.port).or_else(|| tcp.map(|tcp| &tcp.port));
            let port = match asked {
                Some(IntOrString::Int(port)) => Some(*port),
                Some(IntOrString::String(name)) => named_port(container, name),
                None => probe.grpc.as_ref().map(|grpc| grpc.port),
            };
            found.extend(port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0));
        }
    }
    found
}

fn named_port(container: &Container, name: &str) -> Option<i32> {
    let mut ports = container.ports.iter().flatten();
    let by_name = ports.find(|port| port.name.as_deref() == Some(name)).map(|port| port.container_port);
    by_name.or_else(|| name.parse().ok())
}

fn manifest_hash(pod: &Raw) -> Option<Arc<str>> {
    let annotations = pod.metadata.annotations.as_ref()?;
    let by_node = pod.metadata.owner_references.iter().flatten().any(|owner| owner.kind == "Node");
    let is_mirror = by_node && annotations.contains_key(MIRROR);
    annotations
        .get(MANIFEST_HASH)
        .filter(|hash| is_mirror && !hash.is_empty())
        .map(|hash| hash.as_str().into())
}

fn port_list(pod: &Raw, annotation: &str) -> Result<BTreeSet<u16>, Fault> {
    let Some(text) = pod.metadata.annotations.as_ref().and_then(|map| map.get(annotation)) else {
        return Ok(BTreeSet::new());
    };
    let entries = text.split(',').map(str::trim).filter(|entry| !entry.is_empty());
    entries
        .map(|entry| match entry.parse::<u16>() {
            Ok(port) if port != 0 => Ok(port),
            _ => Err(Fault::at(
                FieldPath::of("metadata.annotations").key(annotation),
                format!("{entry:?} is not a port: write a list like \"22,9100\""),
            )),
        })
        .collect()
}

/// For a ReplicaSet the Deployment behind it, whose name is the ReplicaSet's without the template hash.
fn owner(pod: &Raw) -> Option<Arc<str>> {
    let labels = pod.metadata.labels.as_ref();
    let label = |name: &str| labels.and_then(|labels| labels.get(name)).filter(|value| !value.is_empty());
    let references = pod.metadata.owner_references.iter().flatten();
    let controller = references.clone().find(|reference| reference.controller == Some(true));
    if let Some(reference) = controller.or_else(|| references.clone().next()) {
        let hash = label("pod-template-hash").filter(|_| reference.kind == "ReplicaSet");
        let deployment = hash.and_then(|hash| reference.name.strip_suffix(hash.as_str())?.strip_suffix('-'));
        return Some(deployment.unwrap_or(&reference.name).into());
    }
    label("app").or_else(|| label("app.kubernetes.io/name")).map(|name| name.as_str().into())
}
