//! What is said on an AuthorizationPolicy: `status.ancestors[]` of GEP-713. Pure.
//!
//! The one ancestor that we speak about is the namespace whose pods the policy selects: pods have no names to be relied on.

use std::time::SystemTime;

use serde_json::{Value, json};

use super::conditions::{Wanted, follow_on};
use super::objects::Judged;
use crate::discovery::objects::Object;
use crate::discovery::status::CONTROLLER;
use crate::model::AuthorizationPolicy;
use crate::registry::Snapshot;

/// The new `status.ancestors`; `None`: what is there is right.
pub(super) fn ancestors(
    object: &Value,
    generation: Option<i64>,
    judged: &Judged,
    snapshot: &Snapshot,
    now: SystemTime,
) -> Option<Value> {
    let present = object["status"]["ancestors"].as_array().map(Vec::as_slice).unwrap_or_default();
    let is_ours = |entry: &&Value| entry["controllerName"] == CONTROLLER;
    let (ours, others): (Vec<&Value>, Vec<&Value>) = present.iter().partition(is_ours);
    let before = ours.first().map_or(&Value::Null, |entry| &entry["conditions"]);
    let conditions = follow_on(before, &[accepted(judged, snapshot)], generation, now);
    let reference = json!({"group": "", "kind": "Namespace", "name": object["metadata"]["namespace"]});
    let entry = json!({"ancestorRef": reference, "controllerName": CONTROLLER, "conditions": conditions});
    if ours.len() == 1 && *ours[0] == entry {
        return None;
    }
    Some(others.into_iter().cloned().chain([entry]).collect())
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
        ancestors(
            object,
            object["metadata"]["generation"].as_i64(),
            &judged,
            &snapshot,
            SystemTime::UNIX_EPOCH,
        )
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
            let ancestors = ask(&object).expect("something new");
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
        assert_eq!((&written[0], written.as_array().map(Vec::len)), (&other, Some(2)));
        object["status"]["ancestors"] = written;
        assert_eq!(ask(&object), None);
        object["metadata"]["generation"] = json!(2);
        assert_eq!(ask(&object).expect("observed anew")[1]["conditions"][0]["observedGeneration"], 2);
    }
}
