//! What is said of a route: conditions for its status, findings for the list of problems.

use super::super::Finding;
use super::{Candidate, Standing};
use crate::discovery::objects::route::{Parent, Refused, RefusedReason};
use crate::discovery::problem::FieldPath;
use crate::discovery::status::{
    CONTROLLER, Condition, ConditionType, ParentRef, ParentStatus, Reason, RefusedRule, RouteStatus,
};
use crate::model::RouteName;

/// The status of a route. Everything that its author should mend becomes a finding too.
pub(super) fn status(candidate: &Candidate<'_>, findings: &mut Vec<Finding>) -> RouteStatus {
    let written = candidate.written;
    findings
        .extend(written.remarks.iter().map(|fault| candidate.finding(fault.field.clone(), &fault.message)));
    findings.extend(
        written.refused.iter().map(|one| candidate.finding(one.fault.field.clone(), &one.fault.message)),
    );
    findings.extend(candidate.broken.iter().map(|one| candidate.finding(one.field(), &*one.message)));
    let parents = written.parents.iter().zip(&candidate.standings);
    RouteStatus {
        kind: candidate.route.name.kind,
        namespace: candidate.route.name.namespace.clone(),
        name: candidate.route.name.name.clone(),
        generation: written.generation,
        hostnames: written.hostnames.clone(),
        rules: candidate.route.rules.len(),
        refused_rules: written.refused.iter().map(refused_rule).collect(),
        parents: parents.map(|(parent, standing)| at_parent(candidate, parent, standing, findings)).collect(),
    }
}

fn refused_rule(refused: &Refused) -> RefusedRule {
    let fault = &refused.fault;
    RefusedRule { rule: refused.rule, field: fault.field.to_string(), message: fault.message.clone() }
}

fn at_parent(
    candidate: &Candidate<'_>,
    parent: &Parent,
    standing: &Standing,
    findings: &mut Vec<Finding>,
) -> ParentStatus {
    let (status, reason, message) = accepted(candidate, standing);
    // Rules that cannot be carried out have findings of their own.
    if matches!(reason, Reason::NoMatchingParent | Reason::Conflicted) {
        let field = FieldPath::of("spec.parentRefs").index(parent.index);
        findings.push(candidate.finding(field, &message));
    }
    let condition = |kind, (status, reason, message)| Condition {
        kind,
        status,
        reason,
        message,
        observed_generation: candidate.written.generation,
        last_transition_time: None,
    };
    let mut conditions = vec![
        condition(ConditionType::Accepted, (status, reason, message)),
        condition(ConditionType::ResolvedRefs, resolved(candidate)),
    ];
    if candidate.is_usable() && !candidate.written.refused.is_empty() {
        let message = dropped(&candidate.written.refused);
        conditions
            .push(condition(ConditionType::PartiallyInvalid, (true, Reason::UnsupportedValue, message)));
    }
    let ports = match standing {
        Standing::Matched { won, .. } if candidate.is_usable() => won.clone(),
        Standing::Matched { .. } | Standing::Unmatched(_) => Vec::new(),
    };
    ParentStatus {
        parent_ref: ParentRef::new(&parent.service, parent.port, parent.section.clone()),
        controller_name: CONTROLLER,
        layer: candidate.layer(parent),
        ports,
        conditions,
    }
}

type Said = (bool, Reason, String);

/// Attached to a part of the parent is attached.
fn accepted(candidate: &Candidate<'_>, standing: &Standing) -> Said {
    if !candidate.is_usable() {
        let refused = &candidate.written.refused;
        let contradict = refused.iter().all(|one| one.reason == RefusedReason::IncompatibleFilters);
        let reason = if contradict { Reason::IncompatibleFilters } else { Reason::UnsupportedValue };
        return (false, reason, format!("no rule can be carried out: {}", faults(refused)));
    }
    match standing {
        Standing::Unmatched(message) => (false, Reason::NoMatchingParent, message.clone()),
        Standing::Matched { won, lost } if won.is_empty() => (false, Reason::Conflicted, taken(lost)),
        Standing::Matched { won, lost } => {
            let ports: Vec<_> = won.iter().map(ToString::to_string).collect();
            let mut message = format!("in force on port {}", ports.join(", "));
            if !lost.is_empty() {
                message = format!("{message}; {}", taken(lost));
            }
            (true, Reason::Accepted, message)
        }
    }
}

fn taken(lost: &[(u16, RouteName)]) -> String {
    let one = |(port, winner): &(u16, RouteName)| {
        let RouteName { kind, namespace, name } = winner;
        format!("port {port} has {}s, which come first ({namespace}/{name})", kind.label())
    };
    lost.iter().map(one).collect::<Vec<_>>().join("; ")
}

fn resolved(candidate: &Candidate<'_>) -> Said {
    let Some(first) = candidate.broken.first() else {
        return (true, Reason::ResolvedRefs, "every backend exists".to_owned());
    };
    let all = candidate.broken.iter().map(|one| format!("{}: {}", one.field(), one.message));
    (false, first.reason, all.collect::<Vec<_>>().join("; "))
}

/// Gateway API asks that the message begins like this.
fn dropped(refused: &[Refused]) -> String {
    let places: Vec<_> = refused.iter().map(|one| one.rule.to_string()).collect();
    format!("Dropped Rule {}: {}", places.join(", "), faults(refused))
}

fn faults(refused: &[Refused]) -> String {
    let one = |refused: &Refused| format!("{}: {}", refused.fault.field, refused.fault.message);
    refused.iter().map(one).collect::<Vec<_>>().join("; ")
}
