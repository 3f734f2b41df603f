//! Whether the backends that routes name exist and can be sent what the route carries.

use std::sync::Arc;

use crate::discovery::objects::{Key, Kind, Object, Objects};
use crate::discovery::problem::FieldPath;
use crate::discovery::status::Reason;
use crate::model::{AppProtocol, BackendTarget, Filter, RouteKind, RouteRule, ServiceName};
use crate::registry::Snapshot;

/// A reference that leads nowhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Broken {
    place: Place,
    pub(super) reason: Reason,
    pub(super) message: Arc<str>,
}

/// Where a reference stands: rule (its place among those in force, and as written), backend, filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    rule: usize,
    written: usize,
    backend: Option<usize>,
    filter: Option<usize>,
}

impl Broken {
    pub(super) fn field(&self) -> FieldPath {
        let rule = FieldPath::of("spec.rules").index(self.place.written);
        let owner = match self.place.backend {
            Some(backend) => rule.key("backendRefs").index(backend),
            None => rule,
        };
        match self.place.filter {
            Some(filter) => owner.key("filters").index(filter).key("requestMirror").key("backendRef"),
            None => owner,
        }
    }
}

/// What references are looked up in.
pub(super) struct World<'a> {
    pub(super) objects: &'a Objects,
    pub(super) services: &'a Snapshot,
}

impl World<'_> {
    /// Every reference of the rules that leads nowhere.
    pub(super) fn broken(&self, kind: RouteKind, rules: &[Arc<RouteRule>]) -> Vec<Broken> {
        let all = rules.iter().enumerate().flat_map(|(index, rule)| targets(index, rule));
        all.filter_map(|(place, target)| {
            let (reason, message) = self.check(kind, target).err()?;
            Some(Broken { place, reason, message: message.into() })
        })
        .collect()
    }

    fn check(&self, kind: RouteKind, target: &BackendTarget) -> Result<(), (Reason, String)> {
        let (name, port) = match target {
            BackendTarget::Invalid { reason } => return Err((Reason::InvalidKind, reason.to_string())),
            BackendTarget::Service { name, port } => (name, *port),
        };
        let service = self
            .services
            .service(name)
            .ok_or_else(|| (Reason::BackendNotFound, missing(self.objects, name)))?;
        let has = |udp: bool| service.ports.iter().find(|one| one.port == port && one.udp == udp);
        let speaks_tls =
            |protocol| matches!(kind, RouteKind::Grpc | RouteKind::Http) && protocol == AppProtocol::Tls;
        let unsupported =
            |what: &str| Err((Reason::UnsupportedProtocol, format!("port {port} of Service {name} {what}")));
        match (has(false), has(true)) {
            (Some(found), _) if found.protocol().is_some_and(speaks_tls) => {
                unsupported("speaks TLS by itself, which requests cannot be sent through")
            }
            (Some(_), _) => Ok(()),
            (None, Some(_)) => unsupported("is a UDP port"),
            (None, None) => Err((Reason::BackendNotFound, format!("Service {name} has no port {port}"))),
        }
    }
}

/// Why there is no such service.
pub(super) fn missing(objects: &Objects, name: &ServiceName) -> String {
    let key = Key { kind: Kind::Service, namespace: name.namespace.clone(), name: name.name.clone() };
    match objects.get(&key).map(|entry| &*entry.object) {
        Some(Object::Service(_)) => format!("Service {name} is an ExternalName, which the mesh leaves alone"),
        _ => format!("there is no Service {name}"),
    }
}

/// Everything that a rule refers to.
fn targets(index: usize, rule: &RouteRule) -> Vec<(Place, &BackendTarget)> {
    let place = |backend, filter| Place { rule: index, written: rule.index, backend, filter };
    let mut found = mirrors(&rule.filters, |filter| place(None, Some(filter)));
    for (index, backend) in rule.backends.iter().enumerate() {
        found.push((place(Some(index), None), &backend.target));
        found.extend(mirrors(&backend.filters, |filter| place(Some(index), Some(filter))));
    }
    found
}

fn mirrors(filters: &[Filter], place: impl Fn(usize) -> Place) -> Vec<(Place, &BackendTarget)> {
    let mirrors = filters.iter().enumerate().filter_map(|(index, filter)| match filter {
        Filter::Mirror(mirror) => Some((place(index), &mirror.backend)),
        _ => None,
    });
    mirrors.collect()
}

/// The rules with every broken reference turned into one that says so. Rules without one stay the same objects.
pub(super) fn without_broken(rules: &[Arc<RouteRule>], broken: &[Broken]) -> Vec<Arc<RouteRule>> {
    let mut rules = rules.to_vec();
    for Broken { place, message, .. } in broken {
        let rule = Arc::make_mut(&mut rules[place.rule]);
        let invalid = BackendTarget::Invalid { reason: message.clone() };
        let filters = match (place.backend, place.filter) {
            (Some(backend), None) => {
                rule.backends[backend].target = invalid;
                continue;
            }
            (Some(backend), Some(_)) => &mut rule.backends[backend].filters,
            (None, _) => &mut rule.filters,
        };
        if let Some(Filter::Mirror(mirror)) = place.filter.and_then(|index| filters.get_mut(index)) {
            mirror.backend = invalid;
        }
    }
    rules
}
