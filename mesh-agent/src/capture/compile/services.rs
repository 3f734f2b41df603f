//! Service addresses and the endpoints behind them.

use std::collections::{BTreeMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use mesh_common::{Address, Backend, BackendKey, Frontend, FrontendKey, frontend};

use super::{Inputs, LocalPods, Numbers, Tables};
use crate::balance;
use crate::model::{Endpoint, Service, ServiceName, ServicePort, WorkloadUid};
use crate::registry::Snapshot;
use crate::route::RouteTable;

/// IP protocol number of TCP.
const TCP: u16 = 6;

/// What services are looked up in.
pub(super) struct World<'a> {
    pub(super) inputs: &'a Inputs<'a>,
    /// The state of the last time.
    pub(super) before: &'a Snapshot,
    pub(super) local: &'a LocalPods<'a>,
    pub(super) zone: Option<&'a str>,
}

/// Where a service is dialled; of two ports with one number the last counts.
type Frontends<'a> = BTreeMap<(IpAddr, u16), &'a ServicePort>;

/// Makes these services again. What goes goes first, so that an address can move from one service to another.
pub(super) fn set(
    tables: &mut Tables,
    numbers: &mut Numbers,
    world: &World<'_>,
    services: &HashSet<ServiceName>,
) {
    for name in services {
        let kept = frontends(world.inputs.snapshot.service(name));
        for (place, _) in frontends(world.before.service(name)) {
            if !kept.contains_key(&place) {
                remove(tables, numbers, place);
            }
        }
    }
    for service in services.iter().filter_map(|name| world.inputs.snapshot.service(name)) {
        for (place, port) in frontends(Some(service)) {
            enter(tables, numbers, world, service, place, port);
        }
    }
}

fn frontends(service: Option<&Arc<Service>>) -> Frontends<'_> {
    let Some(service) = service else { return Frontends::new() };
    let ports = service.ports.iter().filter(|port| !port.udp);
    ports.flat_map(|port| service.vips.iter().map(move |vip| ((*vip, port.port), port))).collect()
}

fn key((vip, port): (IpAddr, u16)) -> FrontendKey {
    FrontendKey { address: Address::from(vip), port, protocol: TCP, reserved: 0 }
}

fn remove(tables: &mut Tables, numbers: &mut Numbers, place: (IpAddr, u16)) {
    let Some(old) = tables.frontends.unset(&key(place)) else { return };
    for index in 0..old.count {
        remove_backend(tables, numbers, BackendKey { service: old.service, index });
    }
    numbers.give_back(old.service);
}

fn remove_backend(tables: &mut Tables, numbers: &mut Numbers, key: BackendKey) {
    if let Some(old) = tables.backends.unset(&key) {
        give_back(tables, numbers, &old);
    }
}

fn give_back(tables: &mut Tables, numbers: &mut Numbers, old: &Backend) {
    let address = SocketAddr::new(old.address.into(), old.port);
    if let Some(number) = numbers.give_back_endpoint(address) {
        tables.open.unset(&number);
    }
}

fn enter(
    tables: &mut Tables,
    numbers: &mut Numbers,
    world: &World<'_>,
    service: &Service,
    place: (IpAddr, u16),
    port: &ServicePort,
) {
    let (inputs, vip) = (world.inputs, place.0);
    let client = balance::Locality { node: inputs.node, zone: world.zone };
    let family = port.endpoints_for(vip);
    let chosen: Vec<&Endpoint> = balance::preferred(family, client, service.traffic_distribution)
        .map(|(_, endpoint)| endpoint)
        .collect();
    let is_local =
        |endpoint: &&Endpoint| endpoint.workload.as_ref().is_some_and(|uid| world.local.contains_key(uid));
    let has_local = chosen.iter().any(is_local);
    let is_routed = inputs.routes.is_attached(&service.name, port.port);
    let old = tables.frontends.get(&key(place)).copied();
    let number = old.map_or_else(|| numbers.take(), |old| old.service);
    let count = u32::try_from(chosen.len()).unwrap_or(u32::MAX);
    for (index, endpoint) in (0..count).zip(&chosen) {
        // The new endpoint first: it may be the old one, whose number then never is without a use.
        let (id, is_new) = numbers.take_endpoint(endpoint.address);
        if is_new {
            tables.open.set(id, 0);
        }
        let key = BackendKey { service: number, index };
        let before = tables.backends.get(&key).copied();
        let address = Address::from(endpoint.address.ip());
        tables
            .backends
            .set(key, Backend { address, port: endpoint.address.port(), reserved: 0, endpoint: id });
        if let Some(before) = before {
            give_back(tables, numbers, &before);
        }
    }
    for index in count..old.map_or(0, |old| old.count) {
        remove_backend(tables, numbers, BackendKey { service: number, index });
    }
    let flags =
        if has_local { frontend::HAS_LOCAL } else { 0 } | if is_routed { frontend::ROUTED } else { 0 };
    tables.frontends.set(key(place), Frontend { service: number, count, flags, reserved: 0 });
}

/// Adds the services that have an endpoint which is one of these pods.
pub(super) fn with_endpoints_of(
    before: &Snapshot,
    mesh: &Snapshot,
    pods: &HashSet<&WorkloadUid>,
    found: &mut HashSet<ServiceName>,
) {
    // Endpoints are in their service's namespace. Pods are caught and released so rarely that an index would not pay.
    let states = |uid: &&WorkloadUid| [before.workload(uid), mesh.workload(uid)];
    let namespaces: HashSet<_> =
        pods.iter().flat_map(states).flatten().map(|pod| &pod.name.namespace).collect();
    if namespaces.is_empty() {
        return;
    }
    let is_one = |endpoint: &Endpoint| endpoint.workload.as_ref().is_some_and(|uid| pods.contains(uid));
    let has_one = |service: &&Arc<Service>| {
        namespaces.contains(&service.name.namespace)
            && service.ports.iter().any(|port| port.endpoints.iter().any(is_one))
    };
    found.extend(mesh.services().filter(has_one).map(|service| service.name.clone()));
}

/// Adds the services that have routes on a port in one of the tables and not in the other.
pub(super) fn whose_routes_differ(before: &RouteTable, now: &RouteTable, found: &mut HashSet<ServiceName>) {
    for one in before.attached().chain(now.attached()) {
        if before.is_attached(one.service, one.port) != now.is_attached(one.service, one.port) {
            found.insert(one.service.clone());
        }
    }
}
