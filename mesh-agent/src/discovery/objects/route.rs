//! Routes of Gateway API (HTTPRoute, GRPCRoute, TLSRoute, TCPRoute), read into the model as far as one object goes.
//!
//! In a cluster the API server has checked an object before anybody reads it; a directory has no such guard, so the
//! same checks are here. A rule that cannot be read or carried out is refused by itself and its siblings live. What
//! concerns the route as a whole (its parents, its host names) refuses the object.
//!
//! Whether the services that are named exist is `compile`'s part: backends stand here as they are written.
//!
//! Reading order: this file, `http`, `grpc`, `plain` (rules of each kind), `matches`, `filters`, `cors`, `backends`, `strict`
//! (reading without passing over unknown fields).

use std::collections::BTreeSet;
use std::sync::Arc;

use gateway_api::httproutes::HttpRouteParentRefs;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Fault, FieldPath, Key};
use crate::model::{RouteKind, RouteRule, ServiceName};

mod backends;
mod cors;
mod filters;
mod grpc;
mod http;
mod matches;
mod plain;
mod strict;
#[cfg(test)]
mod tests;

/// Most rules of one route, as the CRDs have it.
const RULES_MAX: usize = 16;
/// Most matches of all rules of one route together, as the CRD of HTTPRoute has it.
const MATCHES_MAX: usize = 128;
/// Most parents of one route.
const PARENTS_MAX: usize = 32;
/// Most host names of one route.
const HOSTNAMES_MAX: usize = 16;

/// A route.
#[derive(Clone, Debug)]
pub struct Route {
    /// When it was made, in seconds since 1970, where the object says so.
    pub created_s: Option<u64>,
    /// `metadata.generation`.
    pub generation: Option<i64>,
    /// Host names, lower case.
    pub hostnames: Vec<Arc<str>>,
    /// The services it is for. Parents of other kinds are somebody else's.
    pub parents: Vec<Parent>,
    /// Rules that can be carried out, provided that their backends exist. A backend that cannot be one, whatever
    /// exists, is `Invalid` already.
    pub rules: Vec<Arc<RouteRule>>,
    /// Rules that cannot.
    pub refused: Vec<Refused>,
    /// What its author should know and what changes nothing.
    pub remarks: Vec<Fault>,
}

/// A `parentRefs` entry that names a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parent {
    /// Its place in the list, from 0.
    pub index: usize,
    /// The service.
    pub service: ServiceName,
    /// Only this port.
    pub port: Option<u16>,
    /// Only the port of this name.
    pub section: Option<Arc<str>>,
}

/// A rule that cannot be carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Its place in the object, from 0.
    pub rule: usize,
    /// In a word.
    pub reason: RefusedReason,
    /// Field and message.
    pub fault: Fault,
}

/// Why a rule cannot be carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusedReason {
    /// A value that means nothing, or nothing that the mesh can do.
    UnsupportedValue,
    /// Filters that contradict each other.
    IncompatibleFilters,
}

/// What is wrong with a rule.
#[derive(Debug)]
struct Flaw {
    reason: RefusedReason,
    fault: Fault,
}

impl From<Fault> for Flaw {
    fn from(fault: Fault) -> Self {
        Self { reason: RefusedReason::UnsupportedValue, fault }
    }
}

/// `spec`, with rules unread.
#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    parent_refs: Option<Vec<HttpRouteParentRefs>>,
    hostnames: Option<Vec<String>>,
    rules: Option<Vec<Value>>,
    /// Concerns gateways only.
    use_default_gateways: Option<Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    creation_timestamp: Option<String>,
    generation: Option<i64>,
}

/// Reads a route of this kind.
///
/// # Errors
/// Something that concerns the route as a whole cannot be read.
pub fn accept(key: &Key, kind: RouteKind, object: &Value) -> Result<Route, Fault> {
    let metadata: Metadata = strict::read_loosely(&object["metadata"], &FieldPath::of("metadata"))?;
    let spec_field = FieldPath::of("spec");
    let spec: Spec = strict::read(&object["spec"], &spec_field)?;
    let mut remarks = Vec::new();
    let parents = parents(key, spec.parent_refs.as_deref().unwrap_or_default(), &mut remarks)?;
    let hostnames = hostnames(kind, spec.hostnames.as_deref().unwrap_or_default())?;
    let (rules, refused) = rules(key, kind, spec.rules)?;
    Ok(Route {
        created_s: metadata.creation_timestamp.as_deref().map(created_s).transpose()?,
        generation: metadata.generation,
        hostnames,
        parents,
        rules,
        refused,
        remarks,
    })
}

fn created_s(text: &str) -> Result<u64, Fault> {
    let timestamp: Option<jiff::Timestamp> = text.parse().ok();
    timestamp.and_then(|at| u64::try_from(at.as_second()).ok()).ok_or_else(|| {
        let field = FieldPath::of("metadata.creationTimestamp");
        Fault::at(field, format!("{text:?} is not a time: write it like 2026-01-31T12:00:00Z"))
    })
}

fn parents(
    key: &Key,
    written: &[HttpRouteParentRefs],
    remarks: &mut Vec<Fault>,
) -> Result<Vec<Parent>, Fault> {
    let field = FieldPath::of("spec.parentRefs");
    at_most(written.len(), PARENTS_MAX, &field)?;
    let mut parents: Vec<Parent> = Vec::new();
    for (index, written) in written.iter().enumerate() {
        let field = field.index(index);
        match (written.group.as_deref(), written.kind.as_deref()) {
            (Some(""), Some("Service")) => {}
            (_, Some("Service")) => {
                let message = "a Service is of the core group: write group: \"\", or this parent is nobody's";
                remarks.push(Fault::at(field, message));
                continue;
            }
            _ => continue,
        }
        let parent = parent(key, index, written, &field)?;
        if parents.iter().any(|other| Parent { index, ..other.clone() } == parent) {
            return Err(Fault::at(field, "is the same parent as one before: parents must be distinct"));
        }
        parents.push(parent);
    }
    Ok(parents)
}

fn parent(
    key: &Key,
    index: usize,
    written: &HttpRouteParentRefs,
    field: &FieldPath,
) -> Result<Parent, Fault> {
    let service = backends::service_name(key, written.namespace.as_deref(), &written.name, field)?;
    let port = written.port.map(|port| super::port(port, || field.key("port"))).transpose()?;
    let section = written.section_name.as_deref().filter(|name| !name.is_empty());
    if let Some(name) = section {
        super::check_name(name, 253).map_err(|message| Fault::at(field.key("sectionName"), message))?;
    }
    Ok(Parent { index, service, port, section: section.map(Into::into) })
}

fn hostnames(kind: RouteKind, written: &[String]) -> Result<Vec<Arc<str>>, Fault> {
    let field = FieldPath::of("spec.hostnames");
    if kind == RouteKind::Tcp && !written.is_empty() {
        return Err(Fault::at(field, "unknown field: a TCPRoute sees no host names"));
    }
    at_most(written.len(), HOSTNAMES_MAX, &field)?;
    written
        .iter()
        .enumerate()
        .map(|(index, name)| {
            let precise = name.strip_prefix("*.").unwrap_or(name);
            matches::hostname(precise, || field.index(index)).map(|()| name.as_str().into())
        })
        .collect()
}

type Rules = (Vec<Arc<RouteRule>>, Vec<Refused>);

fn rules(key: &Key, kind: RouteKind, written: Option<Vec<Value>>) -> Result<Rules, Fault> {
    let field = FieldPath::of("spec.rules");
    let written = match (written, kind) {
        // The CRD's own default, one rule that matches everything, exists for HTTPRoute alone.
        (None, RouteKind::Http) => vec![json!({})],
        (None, _) => return Err(Fault::at(field, "missing: write at least one rule")),
        (Some(rules), _) if rules.is_empty() => return Err(Fault::at(field, "write at least one rule")),
        (Some(rules), _) => rules,
    };
    at_most(written.len(), RULES_MAX, &field)?;
    let mut names = BTreeSet::new();
    let (mut good, mut refused) = (Vec::new(), Vec::new());
    for (index, rule) in written.iter().enumerate() {
        let read = match kind {
            RouteKind::Http => http::accept(key, index, rule),
            RouteKind::Grpc => grpc::accept(key, index, rule),
            RouteKind::Tls | RouteKind::Tcp => plain::accept(key, kind, index, rule),
        };
        match read.and_then(|rule| unique(rule, &mut names)) {
            Ok(rule) => good.push(Arc::new(rule)),
            Err(Flaw { reason, fault }) => refused.push(Refused { rule: index, reason, fault }),
        }
    }
    let matches: usize = good.iter().map(|rule| rule.matches.len()).sum();
    if matches > MATCHES_MAX {
        let message =
            format!("{matches} matches in all: a route can have {MATCHES_MAX}; split it into several routes");
        return Err(Fault::at(field, message));
    }
    Ok((good, refused))
}

/// Names of rules are theirs alone.
fn unique(rule: RouteRule, names: &mut BTreeSet<Arc<str>>) -> Result<RouteRule, Flaw> {
    let Some(name) = &rule.name else { return Ok(rule) };
    let field = rule_field(rule.index).key("name");
    super::check_name(name, 253).map_err(|message| Fault::at(field.clone(), message))?;
    if !names.insert(name.clone()) {
        return Err(Fault::at(field, format!("{name:?} is the name of a rule before this one")).into());
    }
    Ok(rule)
}

fn rule_field(index: usize) -> FieldPath {
    FieldPath::of("spec.rules").index(index)
}

fn at_most(len: usize, max: usize, field: &FieldPath) -> Result<(), Fault> {
    if len <= max {
        Ok(())
    } else {
        Err(Fault::at(field.clone(), format!("{len} entries: there can be {max}")))
    }
}
