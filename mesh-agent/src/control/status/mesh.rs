//! What is said on MeshConfigs: which one is in force, and whether control works by it. Pure.

use std::time::SystemTime;

use serde_json::Value;

use super::conditions::{Wanted, follow_on};
use super::objects::Judged;
use crate::model::TrustDomain;

/// What control itself has to say.
#[derive(Clone, Copy, Debug)]
pub(super) struct Own<'a> {
    /// What is wrong with the CA's keys.
    pub(super) fault: Option<&'a str>,
    /// The trust domain that this process started with.
    pub(super) started_with: &'a TrustDomain,
    /// The one that is written now.
    pub(super) written: &'a TrustDomain,
}

/// The place of a MeshConfig among all: the earliest is in force.
pub(super) fn rank(object: &Value) -> (String, String) {
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
    (text("creationTimestamp"), text("name"))
}

/// The new `status.conditions`; `None`: what is there is right. `in_force` names the one that is.
pub(super) fn conditions(
    object: &Value,
    generation: Option<i64>,
    judged: &Judged,
    in_force: &str,
    own: Own<'_>,
    now: SystemTime,
) -> Option<Value> {
    let wanted = if object["metadata"]["name"] == in_force {
        vec![accepted(judged), programmed(own)]
    } else {
        let message = format!("there can be one MeshConfig only; {in_force} came first and is in force");
        vec![Wanted::new("Accepted", false, "Conflicted", message)]
    };
    let present = &object["status"]["conditions"];
    let conditions = follow_on(present, &wanted, generation, now);
    (conditions != *present).then_some(conditions)
}

fn accepted(judged: &Judged) -> Wanted {
    match judged {
        Judged::Good(_) => Wanted::new("Accepted", true, "Accepted", "in force"),
        Judged::Refusing(fault) | Judged::Bad(fault) => {
            let message = format!(
                "{fault}; the last good version stays in force, and without one nobody is admitted by default"
            );
            Wanted::new("Accepted", false, "Invalid", message)
        }
    }
}

fn programmed(own: Own<'_>) -> Wanted {
    let said = |is_true, reason, message: &str| Wanted::new("Programmed", is_true, reason, message);
    if let Some(fault) = own.fault {
        let message = format!("the certificate authority goes on with its last good keys: {fault}");
        return said(false, "CertificateAuthority", &message);
    }
    if own.started_with != own.written {
        let message = format!(
            "certificates are still signed for {}; restart control and the agents to change the trust domain to {}",
            own.started_with, own.written
        );
        return said(false, "RestartNeeded", &message);
    }
    said(true, "Programmed", "control works by these settings")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn object(name: &str, spec: &Value) -> Value {
        json!({"apiVersion": "weft.dev/v1alpha1", "kind": "MeshConfig", "metadata": {"name": name}, "spec": spec})
    }

    fn ask(object: &Value, fault: Option<&str>, written: &str) -> Option<Value> {
        let (ours, written) = ("cluster.local".parse().expect("valid"), written.parse().expect("valid"));
        let own = Own { fault, started_with: &ours, written: &written };
        conditions(object, Some(1), &Judged::of_mesh_config(object), "default", own, SystemTime::UNIX_EPOCH)
    }

    fn reasons(conditions: &Value) -> Vec<(&str, &str, &str)> {
        let text = |one: &'_ Value, field: &str| {
            one[field].as_str().map(str::to_owned).expect("text").leak() as &str
        };
        let all = conditions.as_array().expect("a list").iter();
        all.map(|one| (text(one, "type"), text(one, "status"), text(one, "reason"))).collect()
    }

    #[test]
    fn the_first_is_in_force_and_the_second_is_told_which() {
        let good = ask(&object("default", &json!({})), None, "cluster.local").expect("new");
        assert_eq!(reasons(&good), [("Accepted", "True", "Accepted"), ("Programmed", "True", "Programmed")]);
        let second = ask(&object("other", &json!({})), None, "cluster.local").expect("new");
        assert_eq!(reasons(&second), [("Accepted", "False", "Conflicted")]);
        assert!(second[0]["message"].as_str().expect("text").contains("default"), "{second}");
        let mut settled = object("default", &json!({}));
        settled["status"]["conditions"] = good;
        assert_eq!(ask(&settled, None, "cluster.local"), None);
        let early = json!({"metadata": {"name": "z", "creationTimestamp": "2020-01-01T00:00:00Z"}});
        let late = json!({"metadata": {"name": "a", "creationTimestamp": "2021-01-01T00:00:00Z"}});
        assert!(rank(&early) < rank(&late));
    }

    #[test]
    fn what_keeps_control_from_working_by_it_is_said() {
        for (spec, fault, written, expected) in [
            (
                json!({"ca": {}}),
                None,
                "cluster.local",
                [("Accepted", "False", "Invalid"), ("Programmed", "True", "Programmed")],
            ),
            (
                json!({}),
                Some("x"),
                "cluster.local",
                [("Accepted", "True", "Accepted"), ("Programmed", "False", "CertificateAuthority")],
            ),
            (
                json!({}),
                None,
                "other.example",
                [("Accepted", "True", "Accepted"), ("Programmed", "False", "RestartNeeded")],
            ),
        ] {
            let said = ask(&object("default", &spec), fault, written).expect("new");
            assert_eq!(reasons(&said), expected);
        }
    }
}
