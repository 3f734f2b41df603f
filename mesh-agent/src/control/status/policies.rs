//! What is said on an AuthorizationPolicy: `status.ancestors[]` of GEP-713, and on how many nodes it is in force. Pure.
//!
//! The one ancestor that we speak about is the namespace whose pods the policy selects: pods have no names to be relied on.

use std::time::SystemTime;

use serde_json::{Map, Value, json};

use super::conditions::{Wanted, follow_on};
use super::objects::Judged;
use super::programmed::{PROGRAMMED, Said, differing};
use crate::discovery::objects::Object;
use crate::discovery::status::CONTROLLER;
use crate::model::AuthorizationPolicy;
use crate::registry::Snapshot;

/// What is new in the status; `None`: what is there is right.
pub(super) fn status(
    object: &Value,
    generation: Option<i64>,
    judged: &Judged,
    snapshot: &Snapshot,
    said: &Said,
    now: SystemTime,
) -> Option<Value> {
    let mut fields = Map::new();
    said.write(&mut fields);
    fields.insert("ancestors".to_owned(), ancestors(object, generation, judged, snapshot, said, now));
    differing(&object["status"], fields)
}

/// What is said now of the nodes.
pub(super) fn present(object: &Value, generation: Option<i64>) -> Option<Said> {
    let entries = object["status"]["ancestors"].as_array()?;
    let ours = entries.iter().find(|entry| entry["controllerName"] == CONTROLLER)?;
    Said::present(&ours["conditions"], PROGRAMMED, generation, &object["status"])
}

fn ancestors(
    object: &Value,
    generation: Option<i64>,
    judged: &Judged,
    snapshot: &Snapshot,
    said: &Said,
    now: SystemTime,
) -> Value {
    let present = object["status"]["ancestors"].as_array().map(Vec::as_slice).unwrap_or_default();
    let is_ours = |entry: &&Value| entry["controllerName"] == CONTROLLER;
    let (ours, others): (Vec<&Value>, Vec<&Value>) = present.iter().partition(is_ours);
    let before = ours.first().map_or(&Value::Null, |entry| &entry["conditions"]);
    let wanted = [accepted(judged, snapshot), said.condition(PROGRAMMED)];
    let conditions = follow_on(before, &wanted, generation, now);
    let reference = json!({"group": "", "kind": "Namespace", "name": object["metadata"]["namespace"]});
    let entry = json!({"ancestorRef": reference, "controllerName": CONTROLLER, "conditions": conditions});
    if ours.len() == 1 && *ours[0] == entry {
        return object["status"]["ancestors"].clone();
    }
    others.into_iter().cloned().chain([entry]).collect()
}

fn accepted(judged: &Judged, snapshot: &Snapshot) -> Wanted {
    let said = |is_true, reason, message: String| Wanted::new("Accepted", is_true, reason, message);
    match judged {
        Judged::Good(object) => match &**object {
            Object::AuthorizationPolicy(policy) if selects_any(policy, snapshot) => {
                said(true, "Accepted", "in force".to_owned())
            }
            _ => said(false, "TargetNotFound", "it selects no pod of the mesh now".to_owned()),
        },
        Judged::Refusing(fault) => {
            let message =
                format!("{fault}; until it is mended it refuses everybody at the pods that it selects");
            said(false, "Invalid", message)
        }
        Judged::Bad(fault) => {
            let message = format!(
                "{fault}; the last good version stays in force, and without one it refuses everybody at the pods that it \
                 selects, as far as they can be read"
            );
            said(false, "Invalid", message)
        }
    }
}

fn selects_any(policy: &AuthorizationPolicy, snapshot: &Snapshot) -> bool {
    let cluster_wide = *policy.name.namespace == *snapshot.config.system_namespace;
    let policy = AuthorizationPolicy { cluster_wide, ..policy.clone() };
    snapshot.workloads().any(|workload| workload.enrolled && policy.selects(workload))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::reports::Count;
    use crate::control::tests::workload;
    use crate::model::MeshConfig;

    fn policy(namespace: &str, spec: &Value) -> Value {
        json!({
            "apiVersion": "weft.dev/v1alpha1", "kind": "AuthorizationPolicy",
            "metadata": {"name": "p", "namespace": namespace, "generation": 1}, "spec": spec,
        })
    }

    fn spec(app: &str, rules: &Value) -> Value {
        json!({"targetRefs": [{"kind": "Pod", "selector": {"matchLabels": {"app": app}}}], "action": "ALLOW", "rules": rules})
    }

    fn ask(object: &Value) -> Option<Value> {
        let mut pod = workload("shop", "web", "web", "node-1");
        pod.labels = std::sync::Arc::new([("app".to_owned(), "web".to_owned())].into());
        let snapshot = Snapshot::new(MeshConfig::default(), vec![pod], Vec::new());
        let judged = Judged::of_policy(object);
        let count = Count { ready: 1, total: 2, lacking: vec!["node-2".into()] };
        let said = Said::new(&count, !matches!(judged, Judged::Good(_)));
        let generation = object["metadata"]["generation"].as_i64();
        status(object, generation, &judged, &snapshot, &said, SystemTime::UNIX_EPOCH)
    }

    #[test]
    fn a_policy_is_told_whether_it_is_in_force_and_why_not() {
        let bad_cidr = json!([{"sources": [{"type": "CIDR", "cidr": "10.0.0.0/99"}]}]);
        let later = json!([{"sources": [{"type": "JWT", "issuer": "x"}]}]);
        for (object, status, reason, said) in [
            (policy("shop", &spec("web", &json!([]))), "True", "Accepted", "in force"),
            (policy("weft-system", &spec("web", &json!([]))), "True", "Accepted", "in force"),
            (policy("shop", &spec("db", &json!([]))), "False", "TargetNotFound", "no pod"),
            (policy("bank", &spec("web", &json!([]))), "False", "TargetNotFound", "no pod"),
            (policy("shop", &spec("web", &bad_cidr)), "False", "Invalid", "spec.rules[0].sources[0].cidr"),
            (policy("shop", &spec("web", &later)), "False", "Invalid", "not supported yet"),
            (policy("shop", &json!({"action": "ALLOW", "typo": 1})), "False", "Invalid", "typo"),
        ] {
            let status_now = ask(&object).expect("something new");
            assert_eq!((&status_now["nodesReady"], &status_now["nodesTotal"]), (&json!(1), &json!(2)));
            let ancestors = &status_now["ancestors"];
            let programmed = &ancestors[0]["conditions"][1];
            let expected = if reason == "Invalid" { "Invalid" } else { "Pending" };
            assert_eq!(
                (&programmed["type"], &programmed["reason"]),
                (&json!("Programmed"), &json!(expected))
            );
            assert_eq!(ancestors[0]["ancestorRef"]["name"], object["metadata"]["namespace"]);
            let condition = &ancestors[0]["conditions"][0];
            assert_eq!(
                (&condition["status"], &condition["reason"]),
                (&json!(status), &json!(reason)),
                "{condition}"
            );
            assert!(condition["message"].as_str().expect("text").contains(said), "{condition}");
        }
    }

    #[test]
    fn what_is_right_is_left_alone_and_others_entries_always() {
        let mut object = policy("shop", &spec("web", &json!([])));
        let other =
            json!({"ancestorRef": {"kind": "Gateway", "name": "g"}, "controllerName": "example.net/x"});
        object["status"]["ancestors"] = json!([other]);
        let written = ask(&object).expect("something new");
        let entries = &written["ancestors"];
        assert_eq!((&entries[0], entries.as_array().map(Vec::len)), (&other, Some(2)));
        object["status"] = written.clone();
        assert_eq!(ask(&object), None);
        assert_eq!(
            present(&object, Some(1)).map(|said| said.condition(PROGRAMMED).message).as_deref(),
            Some("in force on 1 of 2 nodes; not on node-2")
        );
        object["status"]["nodesReady"] = json!(2);
        assert_eq!(ask(&object), Some(written), "somebody changed a number");
        object["metadata"]["generation"] = json!(2);
        assert_eq!(
            ask(&object).expect("observed anew")["ancestors"][1]["conditions"][0]["observedGeneration"],
            2
        );
        assert_eq!(present(&object, Some(2)), None);
    }
}
