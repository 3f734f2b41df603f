//! What the compiler must come to, written down the plain way: everything from nothing, no index, no memory.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::super::services::{state, target};
use super::super::workloads::{uid, workload, zone};
use super::super::{Finding, in_rank_order, mesh_config};
use crate::discovery::objects::pod::Pod;
use crate::discovery::objects::service::{Port, Service};
use crate::discovery::objects::slice::{Slice, SliceEndpoint};
use crate::discovery::objects::{Key, Kind, Object, Objects, Protocol};
use crate::discovery::problem::{Fault, FieldPath};
use crate::model::{self, Endpoint, MeshConfig, ServiceName, ServicePort, Workload, WorkloadUid};
use crate::registry::Snapshot;

/// Pods and services of these objects, and what is wrong with them.
pub(super) fn compile(objects: &Objects) -> (Snapshot, Vec<Finding>) {
    let mut findings = Vec::new();
    let config = mesh_config(objects, &mut findings);
    let pods = workloads(objects, &config, &mut findings);
    let services = services(objects, &pods, &mut findings);
    let workloads = pods.into_iter().map(|pod| pod.workload).collect();
    (Snapshot::new(config, workloads, services), findings)
}

/// A pod and what became of it.
#[derive(Debug)]
struct Compiled<'a> {
    pod: &'a Pod,
    workload: Workload,
}

fn workloads<'a>(
    objects: &'a Objects,
    config: &MeshConfig,
    findings: &mut Vec<Finding>,
) -> Vec<Compiled<'a>> {
    let mut pods: Vec<(&Key, &Pod)> = in_rank_order(objects, Kind::Pod)
        .into_iter()
        .filter_map(|(key, entry)| match &*entry.object {
            Object::Pod(pod) if !pod.finished => Some((key, &**pod)),
            _ => None,
        })
        .collect();
    // A stopping pod's address may already be somebody else's; the living one keeps it.
    pods.sort_by_key(|(_, pod)| pod.terminating);
    let mut taken = Taken::default();
    let mut compiled = Vec::with_capacity(pods.len());
    for (key, pod) in pods {
        let uid = uid(key, pod);
        match taken.claim(key, pod, &uid) {
            Err(fault) => findings.push(Finding { key: key.clone(), fault }),
            Ok(()) => {
                let (workload, fault) = workload(objects, config, key, pod);
                findings.extend(fault.map(|fault| Finding { key: key.clone(), fault }));
                compiled.push(Compiled { pod, workload });
            }
        }
    }
    compiled.sort_by(|a, b| a.workload.name.cmp(&b.workload.name));
    compiled
}

/// Who has which UID and address.
#[derive(Default)]
struct Taken<'a> {
    uids: HashMap<WorkloadUid, &'a Key>,
    addresses: HashMap<IpAddr, &'a Key>,
}

impl<'a> Taken<'a> {
    /// An address that two pods claim cannot tell one's identity from the other's, so the later pod is refused whole.
    fn claim(&mut self, key: &'a Key, pod: &Pod, uid: &WorkloadUid) -> Result<(), Fault> {
        if let Some(first) = self.uids.get(uid) {
            let message = format!("{uid} is the UID of {first} already, so this pod is left out");
            return Err(Fault::at(FieldPath::of("metadata.uid"), message));
        }
        let own = if pod.host_network { &[] } else { pod.addresses.as_slice() };
        if let Some((ip, first)) = own.iter().find_map(|ip| Some((ip, self.addresses.get(ip)?))) {
            let message = format!("{ip} is the address of {first} already, so this pod is left out");
            return Err(Fault::at(FieldPath::of("status.podIP"), message));
        }
        self.uids.insert(uid.clone(), key);
        self.addresses.extend(own.iter().map(|ip| (*ip, key)));
        Ok(())
    }
}

/// What endpoints are looked up in.
struct World<'a> {
    objects: &'a Objects,
    slices: HashMap<(&'a str, &'a str), Vec<&'a Slice>>,
    pods: HashMap<&'a str, Vec<&'a Compiled<'a>>>,
    pods_by_name: HashMap<(&'a str, &'a str), &'a Compiled<'a>>,
}

fn services(objects: &Objects, pods: &[Compiled<'_>], findings: &mut Vec<Finding>) -> Vec<model::Service> {
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
