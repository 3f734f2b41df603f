//! Objects become the registry's state and the set of policies. Pure, and the same for every source.
//!
//! Reading order: this file, `workloads` (pods), `services` (services and their endpoints), `routes`.

use std::sync::Arc;

use super::objects::{Entry, Key, Kind, Object, Objects};
use super::problem::Fault;
use super::status::RouteStatus;
use crate::model::{AuthorizationPolicy, DefaultInbound, MeshConfig};
use crate::policy::PolicySet;
use crate::registry::Snapshot;
use crate::route::Attachment;

mod routes;
mod services;
#[cfg(test)]
mod tests;
mod workloads;

pub use routes::Memory;

/// What the objects mean.
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

/// Compiles the objects. With the memory of the last time, routes that did not change stay the same objects.
pub fn compile(objects: &Objects, memory: &mut Memory) -> Compiled {
    let mut findings = Vec::new();
    let config = mesh_config(objects, &mut findings);
    let pods = workloads::compile(objects, &config, &mut findings);
    let services = services::compile(objects, &pods, &mut findings);
    let routes = routes::compile(objects, &services, memory, &mut findings);
    let policies = PolicySet::new(
        policies(objects, &config.system_namespace),
        config.default_inbound,
        config.trust_domain.clone(),
    );
    let workloads = pods.into_iter().map(|pod| pod.workload).collect();
    Compiled {
        snapshot: Snapshot::new(config, workloads, services),
        policies,
        attachments: routes.attachments,
        route_statuses: routes.statuses,
        findings,
    }
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
