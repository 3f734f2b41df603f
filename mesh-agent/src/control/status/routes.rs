//! What is said on a route: `status.parents[]` of Gateway API. Pure.

use std::time::SystemTime;

use serde_json::{Value, json};

use super::conditions::{Wanted, follow_on};
use super::programmed::{ON_ROUTES, Said};
use crate::discovery::RouteStatus;
use crate::discovery::status::{CONTROLLER, ConditionType, ParentStatus};

/// Most entries that Gateway API allows in `status.parents`, everybody's together.
const PARENTS_MAX: usize = 32;

/// What is known of a route beside its object.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known<'a> {
    /// What became of the version that is in force.
    pub(super) status: Option<&'a RouteStatus>,
    /// What is wrong with the version that is not.
    pub(super) problem: Option<&'a str>,
}

/// The new `status.parents`; `None`: what is there is right, or nothing can be said yet.
pub(super) fn parents(
    object: &Value,
    generation: Option<i64>,
    known: Known<'_>,
    said: &Said,
    now: SystemTime,
) -> Option<Value> {
    let present = object["status"]["parents"].as_array().map(Vec::as_slice).unwrap_or_default();
    let is_ours = |entry: &&Value| entry["controllerName"] == CONTROLLER;
    let (ours, others): (Vec<&Value>, Vec<&Value>) = present.iter().partition(is_ours);
    let wanted = entries(object, generation, known, said)?;
    let room = PARENTS_MAX.saturating_sub(others.len());
    let wanted: Vec<Value> = wanted
        .into_iter()
        .take(room)
        .map(|(parent, conditions)| {
            let before = ours.iter().find(|entry| entry["parentRef"] == parent);
            let before = before.map_or(&Value::Null, |entry| &entry["conditions"]);
            let conditions = follow_on(before, &conditions, generation, now);
            json!({"parentRef": parent, "controllerName": CONTROLLER, "conditions": conditions})
        })
        .collect();
    if ours.iter().copied().eq(&wanted) {
        return None;
    }
    Some(others.into_iter().cloned().chain(wanted).collect())
}

/// What is said now of the nodes.
pub(super) fn present(object: &Value, generation: Option<i64>) -> Option<Said> {
    let entries = object["status"]["parents"].as_array()?;
    let mut ours = entries.iter().filter(|entry| entry["controllerName"] == CONTROLLER);
    ours.find_map(|entry| Said::present(&entry["conditions"], ON_ROUTES, generation, &Value::Null))
}

type Entries = Vec<(Value, Vec<Wanted>)>;

/// `None` while the version that the object has now has not been looked at.
fn entries(object: &Value, generation: Option<i64>, known: Known<'_>, said: &Said) -> Option<Entries> {
    match (known.status, known.problem) {
        (Some(status), _) if status.generation == generation => Some(of_status(status, said)),
        (status, Some(problem)) => Some(refused(object, status.is_some(), problem, said)),
        (Some(_), None) => None,
        // No parent of it is a Service.
        (None, None) => Some(Vec::new()),
    }
}

/// Where a parent does not take the route, there is nothing to be in force.
fn of_status(status: &RouteStatus, said: &Said) -> Entries {
    let entry = |parent: &ParentStatus| {
        let is_accepted =
            parent.conditions.iter().any(|one| one.kind == ConditionType::Accepted && one.status);
        let on_nodes = is_accepted.then(|| said.condition(ON_ROUTES));
        let conditions = parent.conditions.iter().map(|condition| Wanted {
            kind: condition_name(condition.kind),
            is_true: condition.status,
            reason: format!("{:?}", condition.reason),
            message: condition.message.clone(),
            since: condition.last_transition_time,
        });
        (json!(parent.parent_ref), conditions.chain(on_nodes).collect())
    };
    status.parents.iter().map(entry).collect()
}

/// As Gateway API spells it.
fn condition_name(kind: ConditionType) -> &'static str {
    match kind {
        ConditionType::Accepted => "Accepted",
        ConditionType::ResolvedRefs => "ResolvedRefs",
        ConditionType::PartiallyInvalid => "PartiallyInvalid",
    }
}

/// The object as a whole cannot be used. Its parents that are Services are told, as written.
fn refused(object: &Value, has_last_good: bool, problem: &str, said: &Said) -> Entries {
    let message = match has_last_good {
        true => format!("this version cannot be used and the last good one stays in force: {problem}"),
        false => format!("it cannot be used: {problem}"),
    };
    let parents = object["spec"]["parentRefs"].as_array().map(Vec::as_slice).unwrap_or_default();
    let services = parents.iter().filter(|parent| parent["group"] == "" && parent["kind"] == "Service");
    services
        .map(|parent| {
            let mut parent = parent.clone();
            if parent["namespace"].is_null() {
                parent["namespace"] = object["metadata"]["namespace"].clone();
            }
            let accepted = Wanted::new("Accepted", false, "UnsupportedValue", message.clone());
            (parent, vec![accepted, said.condition(ON_ROUTES)])
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::reports::Count;
    use crate::discovery::status::{Condition, LayerName, ParentRef, Reason};
    use crate::model::{RouteKind, ServiceName};

    fn status(generation: i64, accepted: bool) -> RouteStatus {
        let service = ServiceName { namespace: "shop".into(), name: "orders".into() };
        let reason = if accepted { Reason::Accepted } else { Reason::NoMatchingParent };
        let condition = Condition {
            kind: ConditionType::Accepted,
            status: accepted,
            reason,
            message: "in force on port 80".to_owned(),
            observed_generation: Some(generation),
            last_transition_time: Some(SystemTime::UNIX_EPOCH),
        };
        RouteStatus {
            kind: RouteKind::Http,
            namespace: "shop".into(),
            name: "r".into(),
            generation: Some(generation),
            hostnames: Vec::new(),
            rules: 1,
            refused_rules: Vec::new(),
            parents: vec![ParentStatus {
                parent_ref: ParentRef::new(&service, Some(80), None),
                controller_name: CONTROLLER,
                layer: LayerName::Producer,
                ports: vec![80],
                conditions: vec![condition],
            }],
        }
    }

    fn object(parents: &Value) -> Value {
        json!({"metadata": {"namespace": "shop", "name": "r"}, "status": {"parents": parents},
            "spec": {"parentRefs": [{"group": "", "kind": "Service", "name": "orders"}, {"name": "a-gateway"}]}})
    }

    fn ask(
        object: &Value,
        generation: i64,
        status: Option<&RouteStatus>,
        problem: Option<&str>,
    ) -> Option<Value> {
        let now = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(100);
        let count = Count { ready: 2, total: 2, ..Count::default() };
        let said = Said::new(&count, problem.is_some());
        parents(object, Some(generation), Known { status, problem }, &said, now)
    }

    fn others() -> Value {
        json!({"parentRef": {"name": "a-gateway"}, "controllerName": "example.net/gateway", "conditions": [
            {"type": "Accepted", "status": "True", "reason": "Accepted", "message": "", "lastTransitionTime": "2020-01-01T00:00:00Z"}]})
    }

    #[test]
    fn our_entry_is_written_beside_others_and_then_left_alone() {
        let written =
            ask(&object(&json!([others()])), 1, Some(&status(1, true)), None).expect("something new");
        assert_eq!(written[0], others());
        assert_eq!(written[1]["controllerName"], CONTROLLER);
        let parent =
            json!({"group": "", "kind": "Service", "namespace": "shop", "name": "orders", "port": 80});
        assert_eq!(written[1]["parentRef"], parent);
        assert_eq!(written[1]["conditions"][0]["lastTransitionTime"], "1970-01-01T00:00:00Z");
        let programmed = &written[1]["conditions"][1];
        assert_eq!(
            (&programmed["type"], &programmed["status"]),
            (&json!("weft.dev/Programmed"), &json!("True"))
        );
        let said = present(&object(&written), Some(1)).map(|said| said.condition(ON_ROUTES).message);
        assert_eq!(said.as_deref(), Some("in force on 2 of 2 nodes"));
        assert_eq!(ask(&object(&written), 1, Some(&status(1, true)), None), None, "nothing is different");
        let reordered = json!([written[1], written[0]]);
        assert_eq!(ask(&object(&reordered), 1, Some(&status(1, true)), None), None, "the order is nobody's");
    }

    #[test]
    fn a_change_keeps_what_did_not_change_and_entries_go_with_their_parent() {
        let first = ask(&object(&json!([others()])), 1, Some(&status(1, true)), None).expect("new");
        let second = ask(&object(&first), 2, Some(&status(2, true)), None).expect("another generation");
        assert_eq!(second[1]["conditions"][0]["observedGeneration"], 2);
        assert_eq!(
            second[1]["conditions"][0]["lastTransitionTime"],
            first[1]["conditions"][0]["lastTransitionTime"]
        );
        let gone = RouteStatus { parents: Vec::new(), ..status(3, true) };
        assert_eq!(ask(&object(&second), 3, Some(&gone), None), Some(json!([others()])));
        assert_eq!(ask(&object(&second), 3, None, None), Some(json!([others()])));
        assert_eq!(ask(&object(&json!([others()])), 1, None, None), None, "a route of a gateway alone");
    }

    #[test]
    fn where_a_route_is_not_accepted_nothing_is_said_of_nodes() {
        let written = ask(&object(&json!([])), 1, Some(&status(1, false)), None).expect("something new");
        assert_eq!(written[0]["conditions"].as_array().map(Vec::len), Some(1), "{written}");
    }

    #[test]
    fn a_version_that_was_not_looked_at_yet_is_not_spoken_about() {
        assert_eq!(ask(&object(&json!([])), 2, Some(&status(1, true)), None), None);
    }

    #[test]
    fn a_version_that_cannot_be_used_says_so_and_which_is_in_force() {
        for (known, said) in
            [(Some(status(1, true)), "last good one stays in force: x"), (None, "cannot be used: x")]
        {
            let written = ask(&object(&json!([])), 2, known.as_ref(), Some("x")).expect("something new");
            assert_eq!(written.as_array().map(Vec::len), Some(1), "the gateway is not ours");
            let condition = &written[0]["conditions"][0];
            assert_eq!(
                (&condition["status"], &condition["reason"]),
                (&json!("False"), &json!("UnsupportedValue"))
            );
            assert!(condition["message"].as_str().expect("text").contains(said), "{condition}");
            assert_eq!(written[0]["conditions"][1]["reason"], "Invalid");
        }
    }

    #[test]
    fn there_are_never_more_entries_than_gateway_api_allows() {
        let full: Vec<Value> = (0..PARENTS_MAX).map(|_| others()).collect();
        assert_eq!(ask(&object(&json!(full)), 1, Some(&status(1, true)), None), None);
    }
}
