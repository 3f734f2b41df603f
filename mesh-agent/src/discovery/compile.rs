//! Objects become the registry's state, the set of policies and the routes. The same for every source.
//!
//! A [`Compiler`] follows its objects: it is told which of them changed and makes again what depends on those. After
//! every step its state is the one that a compiler would have which had seen nothing before; a test holds it to that.
//!
//! Reading order: this file, `workloads` (pods), `services` (services and their endpoints), `routes`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::objects::{Entry, Key, Kind, Object, Objects};
use super::problem::Fault;
use super::status::RouteStatus;
use crate::model::{AuthorizationPolicy, DefaultInbound, MeshConfig, Service, ServiceName};
use crate::policy::PolicySet;
use crate::registry::{Changed, Snapshot};
use crate::route::Attachment;

mod routes;
mod services;
#[cfg(test)]
mod tests;
mod workloads;

pub use routes::Routes;

/// What objects mean, for those who look once.
#[derive(Debug)]
pub struct Compiled {
    /// For the registry.
    pub snapshot: Snapshot,
    /// For the policy room.
    pub policies: PolicySet,
    /// For the route room: which routes hold for which service port and client.
    pub attachments: Vec<Attachment>,
    /// What became of each route.
    pub route_statuses: Vec<RouteStatus>,
    /// What is wrong between objects; the rest goes on.
    pub findings: Vec<Finding>,
}

/// A fault that shows only beside other objects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The object to mend.
    pub key: Key,
    /// What is wrong.
    pub fault: Fault,
}

/// What a change of objects means. What did not change is `None`.
#[derive(Debug)]
pub struct Step {
    /// The state of the registry.
    pub snapshot: Snapshot,
    /// What of it is new. `None`: this is the first state.
    pub changed: Option<Changed>,
    /// The set of policies.
    pub policies: Option<PolicySet>,
    /// Which routes hold where, and what became of each.
    pub routes: Option<Routes>,
    /// True when [`Compiler::findings`] has something else to say.
    pub findings_changed: bool,
}

/// Follows objects.
#[derive(Debug, Default)]
pub struct Compiler {
    /// The state so far.
    mesh: Snapshot,
    has_begun: bool,
    pods: workloads::Pods,
    services: services::Services,
    routes: routes::Memory,
    of_config: Vec<Finding>,
    /// Faults of pods and services.
    of_objects: BTreeMap<Key, Vec<Fault>>,
    of_routes: Vec<Finding>,
}

/// Compiles the objects once.
pub fn compile(objects: &Objects) -> Compiled {
    let mut compiler = Compiler::default();
    let step = compiler.follow(objects, &objects.keys().cloned().collect());
    let routes = step.routes.unwrap_or_default();
    Compiled {
        snapshot: step.snapshot,
        policies: step.policies.unwrap_or_default(),
        attachments: routes.attachments,
        route_statuses: routes.statuses,
        findings: compiler.findings(),
    }
}

impl Compiler {
    /// Takes note of what changed. The first call must name every object.
    pub fn follow(&mut self, objects: &Objects, changed: &BTreeSet<Key>) -> Step {
        let is_first = !std::mem::replace(&mut self.has_begun, true);
        let mut findings_changed = false;
        let mut news = Changed::default();
        let before = self.mesh.config.clone();
        if is_first || has_kind(changed, |kind| kind == Kind::MeshConfig) {
            let mut findings = Vec::new();
            self.mesh.config = mesh_config(objects, &mut findings);
            news.config = self.mesh.config != before;
            findings_changed |= self.of_config != findings;
            self.of_config = findings;
        }
        let trusts_other = self.mesh.config.trust_domain != before.trust_domain;
        let seeds = self.pods_to_settle(objects, changed, trusts_other);
        let world = workloads::World { objects, config: &self.mesh.config, mesh: &self.mesh };
        let settled = self.pods.settle(world, seeds);
        findings_changed |= self.note(settled.faults);
        news.workloads.extend(settled.changes.iter().map(|(uid, _)| uid.clone()));
        self.mesh.change_workloads(settled.changes);

        let world = services::World { objects, mesh: &self.mesh };
        let made = self.services.follow(world, changed, &settled.moved);
        findings_changed |= self.note(made.faults);
        news.services.extend(made.changes.iter().map(|(name, _)| name.clone()));
        let reshaped = made.changes.iter().any(|(name, new)| reshaped(&self.mesh, name, new.as_ref()));
        self.mesh.change_services(made.changes);

        let touches_routes = |kind| matches!(kind, Kind::Route(_) | Kind::Service);
        let routes = (is_first || reshaped || has_kind(changed, touches_routes)).then(|| {
            let mut findings = Vec::new();
            let routes = routes::compile(objects, &self.mesh, &mut self.routes, &mut findings);
            findings_changed |= self.of_routes != findings;
            self.of_routes = findings;
            routes
        });
        let is_policy = |kind| kind == Kind::AuthorizationPolicy;
        let policies =
            (is_first || news.config || has_kind(changed, is_policy)).then(|| self.policies(objects));
        Step {
            snapshot: self.mesh.clone(),
            changed: (!is_first).then_some(news),
            policies,
            routes,
            findings_changed,
        }
    }

    /// What is wrong between objects now.
    pub fn findings(&self) -> Vec<Finding> {
        let of_objects = self.of_objects.iter().flat_map(|(key, faults)| {
            faults.iter().map(|fault| Finding { key: key.clone(), fault: fault.clone() })
        });
        self.of_config.iter().cloned().chain(of_objects).chain(self.of_routes.iter().cloned()).collect()
    }

    /// Replaces what was said of these objects; true when it is something else now.
    fn note(&mut self, faults: BTreeMap<Key, Vec<Fault>>) -> bool {
        let mut differs = false;
        for (key, faults) in faults {
            let old = if faults.is_empty() {
                self.of_objects.remove(&key).unwrap_or_default()
            } else {
                self.of_objects.insert(key, faults.clone()).unwrap_or_default()
            };
            differs |= old != faults;
        }
        differs
    }

    /// Pods that changed, and those that read of an object that did.
    fn pods_to_settle(&self, objects: &Objects, changed: &BTreeSet<Key>, all: bool) -> BTreeSet<Key> {
        if all {
            let known = objects.of_kind(Kind::Pod).map(|(key, _)| key.clone());
            return known.chain(changed.iter().filter(|key| key.kind == Kind::Pod).cloned()).collect();
        }
        let mut seeds = BTreeSet::new();
        for key in changed {
            let in_namespace = |namespace: &str| {
                objects.in_namespace(Kind::Pod, namespace).map(|(key, _)| key.clone()).collect::<Vec<_>>()
            };
            match key.kind {
                Kind::Pod => drop(seeds.insert(key.clone())),
                Kind::Namespace => seeds.extend(in_namespace(&key.name)),
                Kind::ServiceAccount => {
                    let has_account = |pod: &Key| {
                        let pod = workloads::living(objects, pod);
                        pod.is_some_and(|(_, pod)| pod.service_account == key.name)
                    };
                    seeds.extend(in_namespace(&key.namespace).into_iter().filter(has_account));
                }
                Kind::Node => seeds.extend(self.mesh.workloads_on(&key.name).map(|workload| {
                    let name = workload.name.clone();
                    Key { kind: Kind::Pod, namespace: name.namespace, name: name.name }
                })),
                _ => {}
            }
        }
        seeds
    }

    fn policies(&self, objects: &Objects) -> PolicySet {
        let config = &self.mesh.config;
        PolicySet::new(
            policies(objects, &config.system_namespace),
            config.default_inbound,
            config.trust_domain.clone(),
        )
    }
}

fn has_kind(changed: &BTreeSet<Key>, wanted: impl Fn(Kind) -> bool) -> bool {
    changed.iter().any(|key| wanted(key.kind))
}

/// Whether routes can see the difference: a service's endpoints are nothing to them.
fn reshaped(mesh: &Snapshot, name: &ServiceName, new: Option<&Arc<Service>>) -> bool {
    let has_address = |service: &Arc<Service>| !service.vips.is_empty();
    mesh.service(name).map(has_address) != new.map(has_address)
}

/// The earliest `MeshConfig`; one that cannot be used and has no good version admits nobody by default.
fn mesh_config(objects: &Objects, findings: &mut Vec<Finding>) -> MeshConfig {
    let configs = in_rank_order(objects, Kind::MeshConfig);
    for (key, _) in configs.iter().skip(1) {
        let message = format!("there can be one MeshConfig only; {} is in force", configs[0].0);
        findings.push(Finding { key: (*key).clone(), fault: Fault::whole(message) });
    }
    match configs.first().map(|(_, entry)| &*entry.object) {
        Some(Object::MeshConfig(config)) => config.clone(),
        Some(_) => MeshConfig { default_inbound: DefaultInbound::Deny, ..MeshConfig::default() },
        None => MeshConfig::default(),
    }
}

fn policies(objects: &Objects, system_namespace: &str) -> Vec<Arc<AuthorizationPolicy>> {
    let entries = objects.of_kind(Kind::AuthorizationPolicy);
    let written = entries.filter_map(|(_, entry)| match &*entry.object {
        Object::AuthorizationPolicy(policy) => Some(policy),
        _ => None,
    });
    written
        .map(|policy| {
            let cluster_wide = &*policy.name.namespace == system_namespace;
            Arc::new(AuthorizationPolicy { cluster_wide, ..(**policy).clone() })
        })
        .collect()
}

/// Objects of a kind, earliest first: the order in which conflicts are settled.
fn in_rank_order(objects: &Objects, kind: Kind) -> Vec<(&Key, &Entry)> {
    let mut entries: Vec<_> = objects.of_kind(kind).collect();
    entries.sort_by_key(|(_, entry)| entry.rank);
    entries
}
