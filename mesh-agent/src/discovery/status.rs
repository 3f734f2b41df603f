//! What became of each route, in the words of Gateway API: conditions per parent.
//!
//! In a cluster this will be written to the object; a directory of files has nowhere to write it, so it is shown.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use serde::{Serialize, Serializer};

use crate::model::{RouteKind, ServiceName};

/// Who speaks in these conditions (`controllerName`).
pub const CONTROLLER: &str = "weft.dev/mesh";

/// One route.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteStatus {
    /// Kind.
    #[serde(serialize_with = "kind")]
    pub kind: RouteKind,
    /// Namespace.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
    /// `metadata.generation` of the object that this speaks about; files have none.
    pub generation: Option<i64>,
    /// Host names that requests must carry; none: any.
    pub hostnames: Vec<Arc<str>>,
    /// How many of its rules are in force wherever it is accepted.
    pub rules: usize,
    /// Rules that are not.
    pub refused_rules: Vec<RefusedRule>,
    /// One per parent that is a service, in the order written.
    pub parents: Vec<ParentStatus>,
}

/// A rule that cannot be carried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RefusedRule {
    /// Its place in the object, from 0.
    pub rule: usize,
    /// The field.
    pub field: String,
    /// What is wrong.
    pub message: String,
}

/// The route at one of its parents.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ParentStatus {
    /// Which parent.
    pub parent_ref: ParentRef,
    /// Always [`CONTROLLER`].
    pub controller_name: &'static str,
    /// For whom it holds.
    pub layer: LayerName,
    /// Ports of the service on which it is in force, in order.
    pub ports: Vec<u16>,
    /// Accepted, ResolvedRefs, and PartiallyInvalid where it is true.
    pub conditions: Vec<Condition>,
}

/// `parentRef`, as written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ParentRef {
    /// The core group, which is the empty text.
    pub group: &'static str,
    /// `Service`.
    pub kind: &'static str,
    /// Namespace of the service.
    pub namespace: Arc<str>,
    /// Name of the service.
    pub name: Arc<str>,
    /// Only this port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Only the port of this name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub section_name: Option<Arc<str>>,
}

impl ParentRef {
    /// A service.
    pub fn new(service: &ServiceName, port: Option<u16>, section: Option<Arc<str>>) -> Self {
        let (namespace, name) = (service.namespace.clone(), service.name.clone());
        Self { group: "", kind: "Service", namespace, name, port, section_name: section }
    }
}

/// For which clients a route holds (GEP-1294).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum LayerName {
    /// Written beside the service: for clients whose namespace has no routes of its own for it.
    Producer,
    /// Written in another namespace: for clients of that namespace.
    Consumer,
}

/// One condition.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// Which.
    #[serde(rename = "type")]
    pub kind: ConditionType,
    /// Whether it is true.
    #[serde(serialize_with = "truth")]
    pub status: bool,
    /// Why, in a word.
    pub reason: Reason,
    /// Why, for people.
    pub message: String,
    /// The generation of the object that was looked at; files have none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Since when this process has seen the condition with this status.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "time")]
    pub last_transition_time: Option<SystemTime>,
}

/// Gateway API's conditions of routes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum ConditionType {
    /// It is in force on some port of the parent.
    Accepted,
    /// Everything it refers to exists.
    ResolvedRefs,
    /// Some of its rules are not in force.
    PartiallyInvalid,
}

/// Gateway API's reasons, and `Conflicted`, which GEP-1294 asks for without giving it a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Reason {
    /// It is.
    Accepted,
    /// There is no such service or port, or the port carries something else.
    NoMatchingParent,
    /// No rule can be carried out, or some cannot.
    UnsupportedValue,
    /// No rule can be carried out, since filters contradict each other.
    IncompatibleFilters,
    /// Routes of another kind have the port.
    Conflicted,
    /// They are.
    ResolvedRefs,
    /// A backend is not a Service.
    InvalidKind,
    /// A backend does not exist.
    BackendNotFound,
    /// A backend speaks what the route cannot send.
    UnsupportedProtocol,
}

impl RouteStatus {
    /// What tells it from others.
    fn identity(&self) -> (RouteKind, Arc<str>, Arc<str>) {
        (self.kind, self.namespace.clone(), self.name.clone())
    }
}

/// Dates conditions: one that had its status before keeps the time of then, any other has it from now.
pub(super) fn date(statuses: &mut [RouteStatus], before: &[RouteStatus], now: SystemTime) {
    let before: HashMap<_, _> = before.iter().map(|status| (status.identity(), status)).collect();
    for status in statuses {
        let old = before.get(&status.identity());
        for parent in &mut status.parents {
            let old = old.and_then(|old| old.parents.iter().find(|old| old.parent_ref == parent.parent_ref));
            for condition in &mut parent.conditions {
                let same = |old: &&Condition| old.kind == condition.kind && old.status == condition.status;
                let old = old.and_then(|old| old.conditions.iter().find(same));
                condition.last_transition_time = old.map_or(Some(now), |old| old.last_transition_time);
            }
        }
    }
}

fn kind<S: Serializer>(kind: &RouteKind, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(kind.label())
}

/// As Kubernetes writes the status of a condition.
fn truth<S: Serializer>(status: &bool, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(if *status { "True" } else { "False" })
}

/// In whole seconds, as Kubernetes writes times.
fn time<S: Serializer>(time: &Option<SystemTime>, serializer: S) -> Result<S::Ok, S::Error> {
    match time.and_then(|time| jiff::Timestamp::try_from(time).ok()) {
        Some(time) => serializer.serialize_str(&format!("{time:.0}")),
        None => serializer.serialize_none(),
    }
}
