//! Weft in the cluster: deploy/ as it stands, applied with kubectl, and ready when its own probes say so.
//!
//! The API server is older than three things in deploy/, which are taken out on the way: rules in the expression language (a
//! newer server checks them), version v1 of PodDisruptionBudgets (here it is v1beta1), and an update of the agents that starts
//! the new one first (`maxSurge`; here the old one leaves first). Nothing else is changed.

use std::path::Path;
use std::process::Command;

use serde::Deserialize;
use serde_json::{Value, json};

use super::{Cluster, PATIENCE, is_ready};
use crate::wait;

/// Weft's namespace.
pub const SYSTEM: &str = "weft-system";

/// How long a first start may take: the agents wait for the trust bundle, which the kubelet looks for once a minute.
const INSTALL_PATIENCE: std::time::Duration = std::time::Duration::from_secs(240);

/// Applies deploy/, unless it is there, and waits until every agent and the control plane are ready.
///
/// # Panics
/// When they are not in time: the message has what Kubernetes says about them.
#[track_caller]
pub fn install(cluster: &Cluster) {
    let there = cluster.kubectl(&["get", "daemonset", "--namespace", SYSTEM, "weft-agent"]).output();
    if !there.is_ok_and(|output| output.status.success()) {
        cluster.apply(&definitions());
        cluster.kubectl_ok(&["wait", "--for=condition=Established", "--timeout=60s", "crd", "--all"]);
        cluster.apply(&rendered("deploy/base"));
    }
    wait_ready(cluster);
}

/// Waits until as many agents as nodes, and the control plane, are ready.
#[track_caller]
pub fn wait_ready(cluster: &Cluster) {
    let deadline = wait::now() + INSTALL_PATIENCE;
    loop {
        let pods = cluster.get(&["--namespace", SYSTEM, "pods"]);
        let pods = pods["items"].as_array().cloned().unwrap_or_default();
        let of = |component: &str| {
            let own = move |pod: &&Value| {
                pod["metadata"]["labels"]["app.kubernetes.io/component"] == component
                    && pod["metadata"]["deletionTimestamp"].is_null()
            };
            pods.iter().filter(own).filter(|pod| is_ready(pod)).count()
        };
        if of("agent") == cluster.nodes().len() && of("control") >= 1 && pods.iter().all(is_ready) {
            return;
        }
        assert!(wait::now() < deadline, "Weft is not ready after {INSTALL_PATIENCE:?}:\n{}", look(cluster));
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
}

/// What Kubernetes says about Weft's own pods, and the ends of their logs.
pub fn look(cluster: &Cluster) -> String {
    let own = ["--namespace", SYSTEM];
    let mut told = String::new();
    let selectors = ["app.kubernetes.io/component=agent", "app.kubernetes.io/component=control"];
    let mut questions: Vec<Vec<&str>> = vec![vec!["get", "pods", "-o", "wide"], vec!["get", "events"]];
    questions.extend(selectors.map(|selector| vec!["logs", "--tail=40", "--prefix", "--selector", selector]));
    for question in questions {
        if let Ok(output) = cluster.kubectl(&[&own[..], &question].concat()).output() {
            told += &String::from_utf8_lossy(&output.stdout);
            told += &String::from_utf8_lossy(&output.stderr);
        }
    }
    told
}

/// Waits until the agents have taken in every pod of a namespace that is theirs.
#[track_caller]
pub fn wait_enrolled(cluster: &Cluster, namespace: &str) {
    wait::within(PATIENCE, &format!("pods of {namespace} are enrolled"), || {
        let pods = cluster.get(&["--namespace", namespace, "pods"]);
        let missing = pods["items"].as_array()?.iter().any(|pod| {
            let node = pod["spec"]["nodeName"].as_str().unwrap_or_default();
            let name = pod["metadata"]["name"].as_str().unwrap_or_default();
            !is_enrolled(cluster, node, namespace, name)
        });
        (!missing).then_some(())
    });
}

/// Whether the agent of a node has caught a pod.
pub fn is_enrolled(cluster: &Cluster, node: &str, namespace: &str, pod: &str) -> bool {
    let (_, page) = cluster.page(node, "/workloads");
    let listed: Value = serde_json::from_str(&page).unwrap_or_default();
    let of = |one: &Value| one["namespace"] == namespace && one["name"] == pod && one["captured"] == true;
    let list = listed.as_array().or_else(|| listed["workloads"].as_array());
    list.is_some_and(|list| list.iter().any(of))
}

/// The definitions of our kinds.
fn definitions() -> String {
    rendered("deploy/crds")
}

/// A directory of kustomize, as the API server of the tests can read it.
///
/// # Panics
/// When kubectl cannot render it.
#[track_caller]
pub fn rendered(directory: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let cluster = Cluster::running();
    let build = cluster.state["buildDir"].as_str().expect("a cluster has programs");
    let kubectl = Path::new(build).join("bin/kubectl");
    let output =
        Command::new(kubectl).arg("kustomize").arg(root.join(directory)).output().expect("kubectl starts");
    assert!(
        output.status.success(),
        "kubectl kustomize {directory}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    for_an_older_server(&String::from_utf8_lossy(&output.stdout))
}

/// Takes out what the API server of the tests is too old for. It comes out as one list in JSON, which is read alike by all: a
/// word like `off` is no text to every reader of YAML.
pub fn for_an_older_server(documents: &str) -> String {
    let mut kept = Vec::new();
    for document in serde_yaml_ng::Deserializer::from_str(documents) {
        let mut document = Value::deserialize(document).expect("kubectl prints YAML");
        without_rules(&mut document);
        if document["kind"] == "PodDisruptionBudget" {
            document["apiVersion"] = "policy/v1beta1".into();
        }
        if document["kind"] == "DaemonSet" {
            document["spec"]["updateStrategy"]["rollingUpdate"] = json!({ "maxUnavailable": 1 });
        }
        kept.push(document);
    }
    json!({ "apiVersion": "v1", "kind": "List", "items": kept }).to_string()
}

fn without_rules(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.remove("x-kubernetes-validations");
            map.values_mut().for_each(without_rules);
        }
        Value::Array(items) => items.iter_mut().for_each(without_rules),
        _ => {}
    }
}
