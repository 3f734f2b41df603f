//! The shapes of the answers, and how the registry and the policies are put into them. docs/meshctl.md shows them;
//! fields may be added, none is renamed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use serde::Serialize;
use serde_json::{Value, json};

use crate::identity::CertificateInfo;
use crate::lifecycle::clock::wall_rfc3339;
use crate::model::{
    DefaultInbound, Endpoint, EndpointState, Requirement, Rule, Selector, SpiffeId, TrafficDistribution,
    WorkloadUid,
};
use crate::policy::PolicySet;
use crate::registry::Snapshot;

/// `/workloads`: every pod the mesh knows, sorted by name. `captured` says which of them this agent has caught.
pub fn workloads(snapshot: &Snapshot, captured: impl Fn(&WorkloadUid) -> bool) -> Value {
    let mut workloads: Vec<_> = snapshot.workloads().collect();
    workloads.sort_by(|a, b| a.name.cmp(&b.name));
    workloads
        .into_iter()
        .map(|workload| {
            json!({
                "namespace": workload.name.namespace,
                "name": workload.name.name,
                "uid": workload.uid.0,
                "owner": workload.owner,
                "node": workload.node,
                "zone": workload.zone,
                "addresses": workload.addresses,
                "serviceAccount": workload.service_account,
                "identity": workload.identity.as_str(),
                "enrolled": workload.enrolled,
                "captured": captured(&workload.uid),
                "splice": splice_label(workload.splice),
                "hostNetwork": workload.host_network,
                "ready": workload.ready,
                "terminating": workload.terminating,
            })
        })
        .collect()
}

fn splice_label(splice: Option<bool>) -> &'static str {
    match splice {
        None => "auto",
        Some(true) => "enabled",
        Some(false) => "disabled",
    }
}

/// `/services`: every service with its endpoints.
pub fn services(snapshot: &Snapshot) -> Value {
    let ports = |service: &crate::model::Service| -> Vec<Value> {
        service
            .ports
            .iter()
            .map(|port| {
                json!({
                    "name": port.name,
                    "port": port.port,
                    "protocol": if port.udp { "UDP" } else { "TCP" },
                    "appProtocol": port.app_protocol,
                    "endpoints": port.endpoints.iter().map(|one| endpoint(snapshot, one)).collect::<Vec<_>>(),
                })
            })
            .collect()
    };
    let mut services: Vec<_> = snapshot.services().collect();
    services.sort_by(|a, b| a.name.cmp(&b.name));
    services
        .into_iter()
        .map(|service| {
            json!({
                "namespace": service.name.namespace,
                "name": service.name.name,
                "clusterIPs": service.vips,
                "trafficDistribution": match service.traffic_distribution {
                    TrafficDistribution::Any => Value::Null,
                    TrafficDistribution::PreferSameNode => "PreferSameNode".into(),
                    TrafficDistribution::PreferSameZone => "PreferSameZone".into(),
                },
                "ports": ports(service),
            })
        })
        .collect()
}

fn endpoint(snapshot: &Snapshot, endpoint: &Endpoint) -> Value {
    let workload = endpoint.workload.as_ref().and_then(|uid| snapshot.workload(uid));
    json!({
        "address": endpoint.address,
        "workload": workload.map(|workload| workload.name.to_string()),
        "node": endpoint.node,
        "zone": endpoint.zone,
        "state": match endpoint.state {
            EndpointState::Ready => "ready",
            EndpointState::Draining => "draining",
            EndpointState::NotReady => "notReady",
        },
    })
}

/// `/policies`: the default, and every policy sorted by name.
pub fn policies(set: &PolicySet) -> Value {
    let mut policies: Vec<_> = set.policies().collect();
    policies.sort_by(|a, b| a.name.cmp(&b.name));
    let policies: Vec<Value> = policies
        .into_iter()
        .map(|policy| {
            json!({
                "namespace": policy.name.namespace,
                "name": policy.name.name,
                "action": policy.action.label(),
                "clusterWide": policy.cluster_wide,
                "selectors": policy.selectors.iter().map(selector).collect::<Vec<_>>(),
                "rules": policy.rules.iter().map(rule).collect::<Vec<_>>(),
                "unusable": policy.unusable,
            })
        })
        .collect();
    let default_inbound = match set.default_inbound() {
        DefaultInbound::Permissive => "Permissive",
        DefaultInbound::Authenticated => "Authenticated",
        DefaultInbound::Deny => "Deny",
        DefaultInbound::Audit => "Audit",
    };
    json!({"defaultInbound": default_inbound, "policies": policies})
}

/// A selector as `kubectl get -l` takes it.
fn selector(selector: &Selector) -> String {
    let labels = selector.match_labels.iter().map(|(key, value)| format!("{key}={value}"));
    let expressions = selector.expressions.iter().map(|requirement| match requirement {
        Requirement::In(key, values) => format!("{key} in ({})", values.join(",")),
        Requirement::NotIn(key, values) => format!("{key} notin ({})", values.join(",")),
        Requirement::Exists(key) => key.clone(),
        Requirement::DoesNotExist(key) => format!("!{key}"),
    });
    labels.chain(expressions).collect::<Vec<_>>().join(",")
}

fn rule(rule: &Rule) -> Value {
    let sources = rule.sources.as_ref().map(|all| all.iter().map(ToString::to_string).collect::<Vec<_>>());
    let mut shown = json!({"sources": sources, "ports": rule.ports});
    if let Some(http) = &rule.http {
        shown["http"] = http.iter().map(ToString::to_string).collect();
    }
    shown
}

/// One line of `/certificates`. The wiring fills it from what `identity` holds.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Certificate {
    /// SPIFFE id.
    pub identity: String,
    /// `valid`, `pending` (none yet), or `expired`.
    pub state: String,
    /// Serial number of the leaf, hexadecimal.
    pub serial: Option<String>,
    /// RFC 3339.
    pub not_before: Option<String>,
    /// RFC 3339.
    pub not_after: Option<String>,
    /// When the next renewal is due, RFC 3339.
    pub renew_at: Option<String>,
    /// Pods of this node that use it, `namespace/name`.
    pub pods: Vec<String>,
    /// Why the last attempt to renew failed, if it did.
    pub error: Option<String>,
}

/// `/certificates`: what is held, and what is wanted and not there yet, sorted by identity. `users` are the identities
/// that this node needs, each with its pods.
pub fn certificates(
    held: &[CertificateInfo],
    users: &BTreeMap<SpiffeId, Vec<String>>,
    now: SystemTime,
) -> Vec<Certificate> {
    let pods = |id: &SpiffeId| users.get(id).cloned().unwrap_or_default();
    let held_ids: BTreeSet<&SpiffeId> = held.iter().map(|info| &info.id).collect();
    let pending = users.keys().filter(|id| !held_ids.contains(id)).map(|id| Certificate {
        identity: id.to_string(),
        state: "pending".to_owned(),
        pods: pods(id),
        ..Certificate::default()
    });
    let there = held.iter().map(|info| Certificate {
        identity: info.id.to_string(),
        state: if now < info.not_after { "valid" } else { "expired" }.to_owned(),
        serial: Some(info.serial.clone()),
        not_before: Some(wall_rfc3339(info.not_before)),
        not_after: Some(wall_rfc3339(info.not_after)),
        pods: pods(&info.id),
        ..Certificate::default()
    });
    let mut all: Vec<Certificate> = there.chain(pending).collect();
    all.sort_by(|a, b| a.identity.cmp(&b.identity));
    all
}

/// One line of `/connections`: open ones only. The wiring fills it from what `proxy` and `capture` hold.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Connection {
    /// Client, `namespace/name`, or its address outside the mesh.
    pub source: String,
    /// Server, `namespace/name`, or its address outside the mesh.
    pub destination: String,
    /// What was dialled.
    pub dialled: Option<String>,
    /// The endpoint.
    pub endpoint: Option<String>,
    /// `source` or `destination`.
    pub reporter: String,
    /// `splice`, `direct`, `tunnel` or `plain`.
    pub path: String,
    /// RFC 3339.
    pub opened: String,
    /// Payload from client to server so far.
    pub bytes_sent: u64,
    /// Payload from server to client so far.
    pub bytes_received: u64,
}

/// One line of `/problems`: an object that was refused, or another fact that an operator should know.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Problem {
    /// Where it was read: `file:line`, or the API object.
    pub location: String,
    /// The object, `Kind namespace/name`, if it got that far.
    pub object: Option<String>,
    /// What is wrong and what to do.
    pub message: String,
}
