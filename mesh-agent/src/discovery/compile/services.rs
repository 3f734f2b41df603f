//! Services and their endpoints: from EndpointSlices where a service has any, else from its selector.
//!
//! What a service is made of is kept in an index, from the part to the service, so that a part that changes leads to the
//! services to be made again.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::workloads::{Moved, living, name as name_of_pod, zone};
use crate::discovery::objects::pod::Pod;
use crate::discovery::objects::service::{Port, Service, Target};
use crate::discovery::objects::slice::{Slice, SliceEndpoint};
use crate::discovery::objects::{Key, Kind, Object, Objects, Protocol};
use crate::discovery::problem::{Fault, FieldPath};
use crate::model::{self, Endpoint, EndpointState, ServiceName, ServicePort, Workload, WorkloadName};
use crate::registry::Snapshot;

/// Services between changes.
#[derive(Debug, Default)]
pub(super) struct Services {
    /// Services as they were looked at last, without those that are DNS aliases.
    written: HashMap<ServiceName, Arc<Object>>,
    /// Slices as they were looked at last.
    slices: HashMap<Key, Arc<Object>>,
    /// Names of each service's slices, in order.
    slices_of: HashMap<ServiceName, Vec<Arc<str>>>,
    /// The services whose slices name a pod, once per endpoint.
    referring: HashMap<WorkloadName, Vec<Arc<str>>>,
    /// The services that ask for an address.
    wanting: HashMap<IpAddr, Vec<ServiceName>>,
    /// By namespace, the services whose endpoints follow from their selector.
    selecting: HashMap<Arc<str>, BTreeSet<Arc<str>>>,
}

/// What became of the services of a step.
#[derive(Debug, Default)]
pub(super) struct Made {
    /// For the registry.
    pub(super) changes: Vec<(ServiceName, Option<Arc<model::Service>>)>,
    /// Everything that is wrong with the services that were looked at.
    pub(super) faults: BTreeMap<Key, Vec<Fault>>,
}

/// What services are made from.
#[derive(Clone, Copy)]
pub(super) struct World<'a> {
    pub(super) objects: &'a Objects,
    /// The pods as they are, the services as they were.
    pub(super) mesh: &'a Snapshot,
}

impl Services {
    /// Makes every service again that these changes touch.
    pub(super) fn follow(&mut self, world: World<'_>, changed: &BTreeSet<Key>, moved: &[Moved]) -> Made {
        let mut touched = BTreeSet::new();
        let mut nodes = BTreeSet::new();
        for key in changed {
            match key.kind {
                Kind::EndpointSlice => self.follow_slice(world.objects, key, &mut touched),
                Kind::Service => self.follow_service(world.objects, key, &mut touched),
                Kind::Node => drop(nodes.insert(&*key.name)),
                _ => {}
            }
        }
        moved.iter().for_each(|pod| self.follow_pod(pod, &mut touched));
        if !nodes.is_empty() {
            // A node's zone is its endpoints' zone. Nodes change so rarely that an index would not pay.
            let is_there = |endpoint: &Endpoint| endpoint.node.as_ref().is_some_and(|n| nodes.contains(&**n));
            let has_one = |service: &&Arc<model::Service>| {
                service.ports.iter().any(|port| port.endpoints.iter().any(is_there))
            };
            touched.extend(world.mesh.services().filter(has_one).map(|service| service.name.clone()));
        }
        let mut made = Made::default();
        for name in touched {
            self.make(world, name, &mut made);
        }
        made
    }

    fn follow_slice(&mut self, objects: &Objects, key: &Key, touched: &mut BTreeSet<ServiceName>) {
        if let Some(old) = self.slices.remove(key)
            && let Some((service, slice)) = owned(key, &old)
        {
            if let Some(names) = self.slices_of.get_mut(&service) {
                names.retain(|name| *name != key.name);
                if names.is_empty() {
                    self.slices_of.remove(&service);
                }
            }
            for pod in pods_of(key, slice) {
                if let Some(services) = self.referring.get_mut(&pod) {
                    if let Some(place) = services.iter().position(|name| *name == service.name) {
                        services.swap_remove(place);
                    }
                    if services.is_empty() {
                        self.referring.remove(&pod);
                    }
                }
            }
            touched.insert(service);
        }
        let Some(entry) = objects.get(key) else { return };
        let Some((service, slice)) = owned(key, &entry.object) else { return };
        let names = self.slices_of.entry(service.clone()).or_default();
        if let Err(place) = names.binary_search(&key.name) {
            names.insert(place, key.name.clone());
        }
        for pod in pods_of(key, slice) {
            self.referring.entry(pod).or_default().push(service.name.clone());
        }
        self.slices.insert(key.clone(), entry.object.clone());
        touched.insert(service);
    }

    fn follow_service(&mut self, objects: &Objects, key: &Key, touched: &mut BTreeSet<ServiceName>) {
        let name = name(key);
        let old = self.written.remove(&name);
        for vip in old.iter().filter_map(|object| served(object)).flat_map(|service| &service.vips) {
            let Some(wanting) = self.wanting.get_mut(vip) else { continue };
            wanting.retain(|other| *other != name);
            touched.extend(wanting.iter().cloned());
            if wanting.is_empty() {
                self.wanting.remove(vip);
            }
        }
        if let Some(entry) = objects.get(key)
            && let Some(service) = served(&entry.object)
        {
            for vip in &service.vips {
                let wanting = self.wanting.entry(*vip).or_default();
                touched.extend(wanting.iter().cloned());
                if !wanting.contains(&name) {
                    wanting.push(name.clone());
                }
            }
            self.written.insert(name.clone(), entry.object.clone());
        }
        touched.insert(name);
    }

    fn follow_pod(&self, pod: &Moved, touched: &mut BTreeSet<ServiceName>) {
        let service =
            |name: &Arc<str>| ServiceName { namespace: pod.key.namespace.clone(), name: name.clone() };
        // Slices say themselves whether an endpoint is ready: of the pod they take who and where it is.
        let place = |workload: &Option<Arc<Workload>>| {
            workload.as_ref().map(|workload| (workload.uid.clone(), workload.node.clone()))
        };
        if place(&pod.old) != place(&pod.new) {
            touched.extend(self.referring.get(&name_of_pod(&pod.key)).into_iter().flatten().map(service));
        }
        for name in self.selecting.get(&pod.key.namespace).into_iter().flatten().map(service) {
            let Some(written) = self.written.get(&name).and_then(|object| served(object)) else { continue };
            if [&pod.old, &pod.new].into_iter().flatten().any(|workload| selects(written, &workload.labels)) {
                touched.insert(name);
            }
        }
    }

    fn make(&mut self, world: World<'_>, name: ServiceName, made: &mut Made) {
        let key = key(&name);
        let faults = made.faults.entry(key.clone()).or_default();
        let written = self.written.get(&name).cloned();
        let new = written.as_deref().and_then(served).map(|service| {
            let vips = self.vips(world.objects, &name, service, faults);
            self.service(world, &key, service, vips)
        });
        let selects = written.as_deref().and_then(served).is_some_and(|service| !service.selector.is_empty())
            && !self.slices_of.contains_key(&name);
        self.note_selecting(&name, selects);
        if world.mesh.service(&name).map(|old| &**old) != new.as_ref() {
            made.changes.push((name, new.map(Arc::new)));
        }
    }

    fn note_selecting(&mut self, name: &ServiceName, selects: bool) {
        if selects {
            self.selecting.entry(name.namespace.clone()).or_default().insert(name.name.clone());
        } else if let Some(names) = self.selecting.get_mut(&name.namespace) {
            names.remove(&name.name);
            if names.is_empty() {
                self.selecting.remove(&name.namespace);
            }
        }
    }

    /// The addresses that no earlier service has.
    fn vips(
        &self,
        objects: &Objects,
        name: &ServiceName,
        service: &Service,
        faults: &mut Vec<Fault>,
    ) -> Vec<IpAddr> {
        let mut vips = Vec::new();
        for vip in &service.vips {
            let wanting = self.wanting.get(vip).into_iter().flatten();
            let first = wanting.min_by_key(|name| (objects.get(&key(name)).map(|entry| entry.rank), *name));
            match first {
                Some(first) if first != name => {
                    let first = key(first);
                    let message =
                        format!("{vip} is the ClusterIP of {first} already, so this one is not served");
                    faults.push(Fault::at(FieldPath::of("spec.clusterIP"), message));
                }
                _ => vips.push(*vip),
            }
        }
        vips
    }

    fn service(&self, world: World<'_>, key: &Key, service: &Service, vips: Vec<IpAddr>) -> model::Service {
        model::Service {
            name: name(key),
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
                    endpoints: self.endpoints(world, key, service, port),
                })
                .collect(),
            traffic_distribution: service.distribution,
        }
    }

    fn endpoints(&self, world: World<'_>, key: &Key, service: &Service, port: &Port) -> Vec<Endpoint> {
        let mut endpoints = match self.slices_of.get(&name(key)) {
            Some(names) => self.of_slices(world, key, names, port),
            None => of_selector(world, key, service, port),
        };
        endpoints.retain(|endpoint| service.families.is_none_or(|f| f.hold(endpoint.address.ip())));
        endpoints.sort_by_key(|endpoint| endpoint.address);
        endpoints.dedup_by_key(|endpoint| endpoint.address);
        endpoints.shrink_to_fit();
        endpoints
    }

    fn of_slices(&self, world: World<'_>, key: &Key, names: &[Arc<str>], port: &Port) -> Vec<Endpoint> {
        let mut endpoints = Vec::new();
        for name in names {
            let slice =
                Key { kind: Kind::EndpointSlice, namespace: key.namespace.clone(), name: name.clone() };
            let Some(Object::EndpointSlice(slice)) = self.slices.get(&slice).map(|object| &**object) else {
                continue;
            };
            let number = slice.ports.iter().find(|p| p.name == port.name && p.protocol == port.protocol);
            let Some(number) = number.map(|port| port.port) else { continue };
            endpoints.extend(slice.endpoints.iter().map(|endpoint| of_slice(world, key, endpoint, number)));
        }
        endpoints
    }
}

fn name(key: &Key) -> ServiceName {
    ServiceName { namespace: key.namespace.clone(), name: key.name.clone() }
}

fn key(name: &ServiceName) -> Key {
    Key { kind: Kind::Service, namespace: name.namespace.clone(), name: name.name.clone() }
}

/// The service, unless it is a DNS alias.
fn served(object: &Object) -> Option<&Service> {
    match object {
        Object::Service(service) if !service.external_name => Some(service),
        _ => None,
    }
}

/// The slice and the service that it belongs to.
fn owned<'a>(key: &Key, object: &'a Object) -> Option<(ServiceName, &'a Slice)> {
    let Object::EndpointSlice(slice) = object else { return None };
    let service = slice.service.clone()?;
    Some((ServiceName { namespace: key.namespace.clone(), name: service }, slice))
}

fn pods_of<'a>(key: &'a Key, slice: &'a Slice) -> impl Iterator<Item = WorkloadName> + 'a {
    let pods = slice.endpoints.iter().filter_map(|endpoint| endpoint.pod.clone());
    pods.map(|name| WorkloadName { namespace: key.namespace.clone(), name })
}

fn of_slice(world: World<'_>, key: &Key, endpoint: &SliceEndpoint, port: u16) -> Endpoint {
    let pod = endpoint.pod.clone().map(|name| WorkloadName { namespace: key.namespace.clone(), name });
    let workload = pod.and_then(|name| world.mesh.workload_by_name(&name));
    let node = endpoint.node.clone().or_else(|| workload.map(|workload| workload.node.clone()));
    Endpoint {
        address: SocketAddr::new(endpoint.address, port),
        workload: workload.map(|workload| workload.uid.clone()),
        zone: endpoint.zone.clone().or_else(|| zone(world.objects, node.as_ref()?)),
        node,
        state: endpoint.state,
    }
}

/// A service without a selector and without slices has no endpoints.
fn of_selector(world: World<'_>, key: &Key, service: &Service, port: &Port) -> Vec<Endpoint> {
    if service.selector.is_empty() {
        return Vec::new();
    }
    let mut endpoints = Vec::new();
    for (pod_key, _) in world.objects.in_namespace(Kind::Pod, &key.namespace) {
        let Some((_, pod)) = living(world.objects, pod_key) else { continue };
        let Some(number) = target(pod, port).filter(|_| selects(service, &pod.labels)) else { continue };
        // A pod whose address is another's is none.
        let Some(workload) = world.mesh.workload_by_name(&name_of_pod(pod_key)) else { continue };
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

pub(super) fn selects(service: &Service, labels: &BTreeMap<String, String>) -> bool {
    service.selector.iter().all(|(label, value)| labels.get(label) == Some(value))
}

/// The pod's port behind a service port; a pod that does not declare the name is no endpoint of it.
pub(super) fn target(pod: &Pod, port: &Port) -> Option<u16> {
    match &port.target {
        Target::Number(number) => Some(*number),
        Target::Name(name) => pod
            .ports
            .iter()
            .find(|declared| declared.name.as_ref() == Some(name) && declared.protocol == port.protocol)
            .map(|declared| declared.port),
    }
}

pub(super) fn state(pod: &Pod, service: &Service) -> EndpointState {
    match (pod.ready || service.publish_not_ready, pod.terminating) {
        (true, false) => EndpointState::Ready,
        (true, true) => EndpointState::Draining,
        (false, _) => EndpointState::NotReady,
    }
}
