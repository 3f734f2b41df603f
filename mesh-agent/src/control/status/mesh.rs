//! What is said on MeshConfigs: which one is in force, whether control works by it, and on how many nodes. Pure.

use std::time::SystemTime;

use serde_json::{Map, Value};

use super::conditions::{Wanted, follow_on};
use super::objects::Judged;
use super::programmed::{PROGRAMMED, READY, Said, TOTAL, differing};
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

/// What is new in the status; `None`: what is there is right. `in_force` names the one that is.
pub(super) fn status(
    object: &Value,
    generation: Option<i64>,
    judged: &Judged,
    in_force: &str,
    own: Own<'_>,
    said: &Said,
    now: SystemTime,
) -> Option<Value> {
    // A number that is not written below is taken away.
    let mut fields: Map<String, Value> =
        [READY, TOTAL].map(|name| (name.to_owned(), Value::Null)).into_iter().collect();
    let wanted = if object["metadata"]["name"] == in_force {
        said.write(&mut fields);
        vec![accepted(judged), own.fault().unwrap_or_else(|| said.condition(PROGRAMMED))]
    } else {
        let message = format!("there can be one MeshConfig only; {in_force} came first and is in force");
        vec![Wanted::new("Accepted", false, "Conflicted", message)]
    };
    let conditions = follow_on(&object["status"]["conditions"], &wanted, generation, now);
    fields.insert("conditions".to_owned(), conditions);
    differing(&object["status"], fields)
}

/// What is said now of the nodes.
pub(super) fn present(object: &Value, generation: Option<i64>, own: Own<'_>) -> Option<Said> {
    let status = &object["status"];
    let said = Said::present(&status["conditions"], PROGRAMMED, generation, status)?;
    Some(if own.fault().is_some() { said.numbers_only() } else { said })
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

impl Own<'_> {
    /// What keeps control itself from working by the settings.
    fn fault(&self) -> Option<Wanted> {
        let said = |reason, message| Some(Wanted::new(PROGRAMMED, false, reason, message));
        if let Some(fault) = self.fault {
            let message = format!("the certificate authority goes on with its last good keys: {fault}");
            return said("CertificateAuthority", message);
        }
        if self.started_with != self.written {
            let message = format!(
                "certificates are still signed for {}; restart control and the agents to change the trust domain to {}",
                self.started_with, self.written
            );
            return said("RestartNeeded", message);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::reports::Count;
    use serde_json::json;

    fn object(name: &str, spec: &Value) -> Value {
        json!({"apiVersion": "weft.dev/v1alpha1", "kind": "MeshConfig", "metadata": {"name": name}, "spec": spec})
    }

    fn ask(object: &Value, fault: Option<&str>, written: &str) -> Option<Value> {
        let (ours, written) = ("cluster.local".parse().expect("valid"), written.parse().expect("valid"));
        let own = Own { fault, started_with: &ours, written: &written };
        let judged = Judged::of_mesh_config(object);
        let count = Count { ready: 2, total: 2, ..Count::default() };
        let said = Said::new(&count, !matches!(judged, Judged::Good(_)));
        status(object, Some(1), &judged, "default", own, &said, SystemTime::UNIX_EPOCH)
    }

    fn reasons(status: &Value) -> Vec<(&str, &str, &str)> {
        let text = |one: &'_ Value, field: &str| {
            one[field].as_str().map(str::to_owned).expect("text").leak() as &str
        };
        let all = status["conditions"].as_array().expect("a list").iter();
        all.map(|one| (text(one, "type"), text(one, "status"), text(one, "reason"))).collect()
    }

    #[test]
    fn the_first_is_in_force_and_the_second_is_told_which() {
        let good = ask(&object("default", &json!({})), None, "cluster.local").expect("new");
        assert_eq!(reasons(&good), [("Accepted", "True", "Accepted"), ("Programmed", "True", "Programmed")]);
        let second = ask(&object("other", &json!({})), None, "cluster.local").expect("new");
        assert_eq!(reasons(&second), [("Accepted", "False", "Conflicted")]);
        let message = &second["conditions"][0]["message"];
        assert!(message.as_str().expect("text").contains("default"), "{second}");
        assert_eq!((&second["nodesReady"], &good["nodesReady"]), (&Value::Null, &json!(2)));
        let mut settled = object("default", &json!({}));
        settled["status"] = good;
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
                [("Accepted", "False", "Invalid"), ("Programmed", "False", "Invalid")],
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
            assert_eq!((&said["nodesReady"], &said["nodesTotal"]), (&json!(2), &json!(2)));
        }
    }
}
