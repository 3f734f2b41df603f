//! Routes are attached to service ports: layers, conflicts between kinds, and what their conditions say (GEP-1294).
//!
//! Reading order: this file (which route has which port), `references` (whether backends exist), `conditions`.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::{Finding, in_rank_order};
use crate::discovery::objects::route::{Parent, Route};
use crate::discovery::objects::{Entry, Key, Kind, Object, Objects};
use crate::discovery::problem::{Fault, FieldPath};
use crate::discovery::status::{LayerName, RouteStatus};
use crate::model::{self, AppProtocol, RouteKind, RouteName, ServiceName, ServicePort};
use crate::registry::Snapshot;
use crate::route::Attachment;
use references::Broken;

mod conditions;
mod references;
#[cfg(test)]
mod tests;

/// The kinds, in the order in which one of them wins a port.
const KINDS: [RouteKind; 4] = [RouteKind::Grpc, RouteKind::Http, RouteKind::Tls, RouteKind::Tcp];

/// Routes without a time of creation are younger than all that have one, and of each other the first written is older.
const WRITTEN: u64 = 1 << 63;

/// Routes as they were compiled last, so that those that did not change stay the very same objects and need not be
/// compiled into a router again.
#[derive(Debug, Default)]
pub(super) struct Memory(HashMap<Key, Remembered>);

#[derive(Debug)]
struct Remembered {
    object: Arc<Object>,
    broken: Vec<Broken>,
    route: Arc<model::Route>,
}

/// What the routes mean.
#[derive(Debug, Default)]
pub struct Routes {
    /// Which routes hold for which service port and client.
    pub attachments: Vec<Attachment>,
    /// What became of each route.
    pub statuses: Vec<RouteStatus>,
}

/// A route on its way.
struct Candidate<'a> {
    key: &'a Key,
    written: &'a Route,
    route: Arc<model::Route>,
    broken: Vec<Broken>,
    /// For each parent, what became of it.
    standings: Vec<Standing>,
}

/// A route at one parent.
#[derive(Debug)]
enum Standing {
    /// It has none of the parent's ports.
    Unmatched(String),
    /// These are its ports unless another kind has them.
    Matched { won: Vec<u16>, lost: Vec<(u16, RouteName)> },
}

/// Where routes of one layer meet: service, port, and the client namespace of consumer routes.
type Spot = (ServiceName, u16, Option<Arc<str>>);

pub(super) fn compile(
    objects: &Objects,
    services: &Snapshot,
    memory: &mut Memory,
    findings: &mut Vec<Finding>,
) -> Routes {
    let mut candidates: Vec<_> = KINDS
        .iter()
        .flat_map(|kind| in_rank_order(objects, Kind::Route(*kind)))
        .filter_map(|(key, entry)| candidate(key, entry, objects, services, memory))
        .collect();
    let attachments = attach(&mut candidates);
    memory.0.retain(|key, _| objects.get(key).is_some());
    let mut statuses: Vec<_> =
        candidates.iter().map(|candidate| conditions::status(candidate, findings)).collect();
    statuses.sort_by(|a, b| (&a.namespace, a.kind, &a.name).cmp(&(&b.namespace, b.kind, &b.name)));
    Routes { attachments, statuses }
}

fn candidate<'a>(
    key: &'a Key,
    entry: &'a Entry,
    objects: &Objects,
    services: &Snapshot,
    memory: &mut Memory,
) -> Option<Candidate<'a>> {
    let (Object::Route(written), Kind::Route(kind)) = (&*entry.object, key.kind) else { return None };
    let world = references::World { objects, services };
    let broken = world.broken(kind, &written.rules);
    let rank = written.created_s.unwrap_or(WRITTEN | entry.rank);
    let known = memory.0.get(key).filter(|known| {
        Arc::ptr_eq(&known.object, &entry.object) && known.broken == broken && known.route.rank == rank
    });
    let route = match known {
        Some(known) => known.route.clone(),
        None => Arc::new(model::Route {
            name: RouteName { kind, namespace: key.namespace.clone(), name: key.name.clone() },
            rank,
            hostnames: written.hostnames.clone(),
            rules: references::without_broken(&written.rules, &broken),
        }),
    };
    let remembered =
        Remembered { object: entry.object.clone(), broken: broken.clone(), route: route.clone() };
    memory.0.insert(key.clone(), remembered);
    let standing = |parent| match ports(kind, parent, objects, services) {
        Ok(ports) => Standing::Matched { won: ports, lost: Vec::new() },
        Err(message) => Standing::Unmatched(message),
    };
    let standings = written.parents.iter().map(standing).collect();
    Some(Candidate { key, written, route, broken, standings })
}

/// Ports of the parent that a route of this kind can have; at least one, or why there is none.
fn ports(
    kind: RouteKind,
    parent: &Parent,
    objects: &Objects,
    services: &Snapshot,
) -> Result<Vec<u16>, String> {
    let name = &parent.service;
    let service = services.service(name).ok_or_else(|| references::missing(objects, name))?;
    if service.vips.is_empty() {
        return Err(format!("Service {name} has no ClusterIP, so nobody dials it as a service"));
    }
    let asked = |port: &&ServicePort| {
        !port.udp
            && parent.port.is_none_or(|number| number == port.port)
            && parent.section.as_ref().is_none_or(|section| port.name.as_ref() == Some(section))
    };
    let asked: Vec<&ServicePort> = service.ports.iter().filter(asked).collect();
    let Some(first) = asked.first() else {
        return Err(format!("Service {name} has no such TCP port"));
    };
    let mut ports: Vec<u16> =
        asked.iter().filter(|port| carries(kind, port.protocol())).map(|port| port.port).collect();
    ports.sort_unstable();
    if ports.is_empty() {
        let message = "says by its appProtocol or name that it carries something else";
        return Err(format!(
            "port {} of Service {name} {message} than a {} is for",
            first.port,
            kind.label()
        ));
    }
    Ok(ports)
}

/// Whether a port can have routes of this kind, by what its author says of it. A port that says nothing can.
fn carries(kind: RouteKind, protocol: Option<AppProtocol>) -> bool {
    match kind {
        RouteKind::Grpc | RouteKind::Http => protocol.is_none_or(AppProtocol::is_http),
        RouteKind::Tls => protocol.is_none_or(|protocol| protocol == AppProtocol::Tls),
        RouteKind::Tcp => true,
    }
}

/// Settles which kind has which port and gives each port the routes that won it.
fn attach(candidates: &mut [Candidate<'_>]) -> Vec<Attachment> {
    let mut claims: BTreeMap<Spot, Vec<usize>> = BTreeMap::new();
    for (index, candidate) in candidates.iter().enumerate().filter(|(_, one)| one.is_usable()) {
        for (spot, _) in candidate.claims() {
            let routes = claims.entry(spot).or_default();
            // Two parents of one route may name one port.
            if routes.last() != Some(&index) {
                routes.push(index);
            }
        }
    }
    // Candidates come by kind, so the first has the kind that wins.
    let winners: BTreeMap<Spot, RouteName> = claims
        .iter()
        .map(|(spot, routes)| (spot.clone(), candidates[routes[0]].route.name.clone()))
        .collect();
    for candidate in candidates.iter_mut().filter(|one| one.is_usable()) {
        candidate.give_way(&winners);
    }
    claims
        .into_iter()
        .map(|((service, port, consumer), routes)| {
            let kind = candidates[routes[0]].route.name.kind;
            let routes = routes.iter().map(|index| candidates[*index].route.clone());
            let routes = routes.filter(|route| route.name.kind == kind).collect();
            Attachment { service, port, consumer, routes }
        })
        .collect()
}

impl Candidate<'_> {
    /// A route without a rule that can be carried out has no say on any port.
    fn is_usable(&self) -> bool {
        !self.route.rules.is_empty()
    }

    fn layer(&self, parent: &Parent) -> LayerName {
        if parent.service.namespace == self.key.namespace { LayerName::Producer } else { LayerName::Consumer }
    }

    fn spot(&self, parent: &Parent, port: u16) -> Spot {
        let consumer = self.layer(parent) == LayerName::Consumer;
        (parent.service.clone(), port, consumer.then(|| self.key.namespace.clone()))
    }

    /// The spots it wants, each with its parent's place in `standings`.
    fn claims(&self) -> Vec<(Spot, usize)> {
        let parents = self.written.parents.iter().zip(&self.standings).enumerate();
        parents
            .flat_map(|(place, (parent, standing))| {
                let ports = match standing {
                    Standing::Matched { won, .. } => won.as_slice(),
                    Standing::Unmatched(_) => &[],
                };
                ports.iter().map(move |port| (self.spot(parent, *port), place))
            })
            .collect()
    }

    /// Leaves ports to the kind that won them.
    fn give_way(&mut self, winners: &BTreeMap<Spot, RouteName>) {
        for (spot, place) in self.claims() {
            let winner = &winners[&spot];
            let Standing::Matched { won, lost } = &mut self.standings[place] else { continue };
            if winner.kind != self.route.name.kind {
                won.retain(|port| *port != spot.1);
                lost.push((spot.1, winner.clone()));
            }
        }
    }

    fn finding(&self, field: FieldPath, message: impl Into<String>) -> Finding {
        Finding { key: self.key.clone(), fault: Fault::at(field, message) }
    }
}
