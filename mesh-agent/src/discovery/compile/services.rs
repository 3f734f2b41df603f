//! Services and their endpoints: from EndpointSlices where a service has any, else from its selector.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::workloads::{Compiled, zone};
use super::{Finding, in_rank_order};
use crate::discovery::objects::pod::Pod;
use crate::discovery::objects::service::{Port, Service, Target};
use crate::discovery::objects::slice::{Slice, SliceEndpoint};
use crate::discovery::objects::{Key, Kind, Object, Objects, Protocol};
use crate::discovery::problem::{Fault, FieldPath};
use crate::model::{self, Endpoint, EndpointState, ServiceName, ServicePort};

/// What endpoints are looked up in.
struct World<'a> {
    objects: &'a Objects,
    slices: HashMap<(&'a str, &'a str), Vec<&'a Slice>>,
    pods: HashMap<&'a str, Vec<&'a Compiled<'a>>>,
    pods_by_name: HashMap<(&'a str, &'a str), &'a Compiled<'a>>,
}

pub(super) fn compile(
    objects: &Objects,
    pods: &[Compiled<'_>],
    findings: &mut Vec<Finding>,
) -> Vec<model::Service> {
    let world = World::new(objects, pods);
    let mut owners: HashMap<IpAddr, &Key> = HashMap::new();
    let mut services = Vec::new();
    for (key, entry) in in_rank_order(objects, Kind::Service) {
        let Object::Service(service) = &*entry.object else { continue };
        if service.external_name {
            continue;
        }
        let mut vips = Vec::new();
        for vip in &service.vips {
            match owners.get(vip) {
                None => vips.push(*vip),
                Some(first) => {
                    let message =
                        format!("{vip} is the ClusterIP of {first} already, so this one is not served");
                    let fault = Fault::at(FieldPath::of("spec.clusterIP"), message);
                    findings.push(Finding { key: key.clone(), fault });
                }
            }
        }
        owners.extend(vips.iter().map(|vip| (*vip, key)));
        services.push(world.service(key, service, vips));
    }
    services.sort_by(|a, b| a.name.cmp(&b.name));
    services
}

impl<'a> World<'a> {
    fn new(objects: &'a Objects, compiled: &'a [Compiled<'a>]) -> Self {
        let mut slices: HashMap<_, Vec<_>> = HashMap::new();
        for (key, entry) in objects.of_kind(Kind::EndpointSlice) {
            if let Object::EndpointSlice(slice @ Slice { service: Some(service), .. }) = &*entry.object {
                slices.entry((&*key.namespace, &**service)).or_default().push(slice);
            }
        }
        let mut pods: HashMap<_, Vec<_>> = HashMap::new();
        let mut pods_by_name = HashMap::new();
        for pod in compiled {
            let name = &pod.workload.name;
            pods.entry(&*name.namespace).or_default().push(pod);
            pods_by_name.insert((&*name.namespace, &*name.name), pod);
        }
        Self { objects, slices, pods, pods_by_name }
    }

    fn service(&self, key: &Key, service: &Service, vips: Vec<IpAddr>) -> model::Service {
        model::Service {
            name: ServiceName { namespace: key.namespace.clone(), name: key.name.clone() },
            vips,
            ports: service
                .ports
                .iter()
                .filter(|port| port.protocol != Protocol::Sctp)
                .map(|port| ServicePort {
                    name: (!port.name.is_empty()).then(|| port.name.clone()),
                    port: port.port,
                    udp: port.protocol == Protocol::Udp,
                    app_protocol: port.app_protocol.clone(),
                    endpoints: self.endpoints(key, service, port),
                })
                .collect(),
            traffic_distribution: service.distribution,
        }
    }

    fn endpoints(&self, key: &Key, service: &Service, port: &Port) -> Vec<Endpoint> {
        let mut endpoints = match self.slices.get(&(&*key.namespace, &*key.name)) {
            Some(slices) => self.of_slices(key, slices, port),
            None => self.of_selector(key, service, port),
        };
        endpoints.retain(|endpoint| service.families.is_none_or(|f| f.hold(endpoint.address.ip())));
        endpoints.sort_by_key(|endpoint| endpoint.address);
        endpoints.dedup_by_key(|endpoint| endpoint.address);
        endpoints
    }

    fn of_slices(&self, key: &Key, slices: &[&Slice], port: &Port) -> Vec<Endpoint> {
        let mut endpoints = Vec::new();
        for slice in slices {
            let number = slice.ports.iter().find(|p| p.name == port.name && p.protocol == port.protocol);
            let Some(number) = number.map(|port| port.port) else { continue };
            endpoints.extend(slice.endpoints.iter().map(|endpoint| self.of_slice(key, endpoint, number)));
        }
        endpoints
    }

    fn of_slice(&self, key: &Key, endpoint: &SliceEndpoint, port: u16) -> Endpoint {
        let pod = endpoint.pod.as_deref().and_then(|name| self.pods_by_name.get(&(&*key.namespace, name)));
        let workload = pod.map(|pod| &pod.workload);
        let node = endpoint.node.clone().or_else(|| workload.map(|workload| workload.node.clone()));
        Endpoint {
            address: SocketAddr::new(endpoint.address, port),
            workload: workload.map(|workload| workload.uid.clone()),
            zone: endpoint.zone.clone().or_else(|| zone(self.objects, node.as_ref()?)),
            node,
            state: endpoint.state,
        }
    }

    /// A service without a selector and without slices has no endpoints.
    fn of_selector(&self, key: &Key, service: &Service, port: &Port) -> Vec<Endpoint> {
        if service.selector.is_empty() {
            return Vec::new();
        }
        let mut endpoints = Vec::new();
        for Compiled { pod, workload } in self.pods.get(&*key.namespace).into_iter().flatten() {
            let selected = service.selector.iter().all(|(label, value)| pod.labels.get(label) == Some(value));
            let Some(number) = target(pod, port).filter(|_| selected) else { continue };
            endpoints.extend(workload.addresses.iter().map(|ip| Endpoint {
                address: SocketAddr::new(*ip, number),
                workload: Some(workload.uid.clone()),
                node: (!workload.node.is_empty()).then(|| Arc::clone(&workload.node)),
                zone: workload.zone.clone(),
                state: state(pod, service),
            }));
        }
        endpoints
    }
}

/// The pod's port behind a service port; a pod that does not declare the name is no endpoint of it.
fn target(pod: &Pod, port: &Port) -> Option<u16> {
    match &port.target {
        Target::Number(number) => Some(*number),
        Target::Name(name) => pod
            .ports
            .iter()
            .find(|declared| declared.name.as_ref() == Some(name) && declared.protocol == port.protocol)
            .map(|declared| declared.port),
    }
}

fn state(pod: &Pod, service: &Service) -> EndpointState {
    match (pod.ready || service.publish_not_ready, pod.terminating) {
        (true, false) => EndpointState::Ready,
        (true, true) => EndpointState::Draining,
        (false, _) => EndpointState::NotReady,
    }
}
