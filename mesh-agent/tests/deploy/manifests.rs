//! Every file below `deploy/` that kubectl reads: no field that its kind does not know, and what an operator relies on.

use std::collections::BTreeSet;
use std::path::Path;

use k8s_openapi::api::{apps::v1 as apps, core::v1 as core, networking::v1 as networking};
use k8s_openapi::api::{policy::v1 as disruption, rbac::v1 as rbac};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use mesh_agent::discovery::resources::{AuthorizationPolicy, MeshConfig};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::{documents, root, yaml_files};

/// Directories of files for kubectl. (`worlds/` is for the lab, and has kinds of other people's.)
const DIRS: [&str; 4] = ["deploy/base", "deploy/overlays", "deploy/crds", "deploy/examples"];

fn files() -> Vec<std::path::PathBuf> {
    DIRS.iter().flat_map(|dir| yaml_files(&root().join(dir))).collect()
}

#[test]
fn no_manifest_has_a_field_that_its_kind_does_not_know() {
    let mut problems = Vec::new();
    for path in files() {
        for object in documents(&path) {
            let mut lost = Vec::new();
            match read_back(&object) {
                Ok(read) => missing(&object, &read, "", &mut lost),
                Err(error) => lost.push(error),
            }
            let name = &object["metadata"]["name"];
            problems.extend(lost.into_iter().map(|what| format!("{}: {name}: {what}", path.display())));
        }
    }
    assert!(problems.is_empty(), "{problems:#?}");
}

/// The object as its kind's type understands it.
fn read_back(object: &Value) -> Result<Value, String> {
    fn through<T: DeserializeOwned + Serialize>(object: &Value) -> Result<Value, String> {
        let typed: T = serde_json::from_value(object.clone()).map_err(|error| error.to_string())?;
        serde_json::to_value(typed).map_err(|error| error.to_string())
    }
    match object["kind"].as_str().unwrap_or_default() {
        "Namespace" => through::<core::Namespace>(object),
        "ServiceAccount" => through::<core::ServiceAccount>(object),
        "Service" => through::<core::Service>(object),
        "DaemonSet" => through::<apps::DaemonSet>(object),
        "Deployment" => through::<apps::Deployment>(object),
        "NetworkPolicy" => through::<networking::NetworkPolicy>(object),
        "PodDisruptionBudget" => through::<disruption::PodDisruptionBudget>(object),
        "ClusterRole" => through::<rbac::ClusterRole>(object),
        "ClusterRoleBinding" => through::<rbac::ClusterRoleBinding>(object),
        "Role" => through::<rbac::Role>(object),
        "RoleBinding" => through::<rbac::RoleBinding>(object),
        "CustomResourceDefinition" => through::<CustomResourceDefinition>(object),
        "AuthorizationPolicy" => through::<AuthorizationPolicy>(object),
        "MeshConfig" => through::<MeshConfig>(object),
        "Kustomization" => through::<Kustomization>(object),
        kind => Err(format!("nobody here knows the kind {kind:?}")),
    }
}

/// The part of kustomize that is used here.
#[derive(serde::Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Kustomization {
    api_version: String,
    kind: String,
    #[serde(default)]
    bases: Vec<String>,
    #[serde(default)]
    resources: Vec<String>,
    #[serde(default)]
    patches_strategic_merge: Vec<String>,
}

/// What was written and did not come back.
fn missing(written: &Value, read: &Value, field: &str, lost: &mut Vec<String>) {
    match (written, read) {
        (Value::Object(written), Value::Object(read)) => {
            for (name, value) in written {
                let field = format!("{field}.{name}");
                match read.get(name) {
                    Some(read) => missing(value, read, &field, lost),
                    // Empty and absent are the same to the API server.
                    None if is_empty(value) => {}
                    None => lost.push(format!("{field} is not known")),
                }
            }
        }
        (Value::Array(written), Value::Array(read)) if written.len() == read.len() => {
            for (index, (written, read)) in written.iter().zip(read).enumerate() {
                missing(written, read, &format!("{field}[{index}]"), lost);
            }
        }
        (written, read) if written == read => {}
        (Value::Number(written), Value::Number(read)) if written.as_f64() == read.as_f64() => {}
        _ => lost.push(format!("{field}: {written} is read as {read}")),
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Array(list) => list.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::String(text) => text.is_empty(),
        value => value.is_null(),
    }
}

#[test]
fn unknown_fields_are_found_at_any_depth() {
    let text = r#"{"kind": "DaemonSet", "spec": {"template": {"spec": {"hostNetwork": true, "hostPid": true,
        "containers": [{"name": "a", "imagePullPolicy": "Never", "securityContext": {"capabilites": {"add": ["BPF"]}}}]}}}}"#;
    let object: Value = serde_json::from_str(text).expect("JSON");
    let mut lost = Vec::new();
    missing(&object, &read_back(&object).expect("readable"), "", &mut lost);
    lost.sort();
    let expected = [
        ".spec.template.spec.containers[0].securityContext.capabilites is not known",
        ".spec.template.spec.hostPid is not known",
    ];
    assert_eq!(lost, expected);
}

#[test]
fn every_file_is_named_by_a_kustomization_and_every_name_is_a_file() {
    let mut named = BTreeSet::new();
    let mut lists = 0;
    for path in files().iter().filter(|path| path.ends_with("kustomization.yaml")) {
        lists += 1;
        let dir = path.parent().expect("a file is in a directory");
        let list: Kustomization = serde_json::from_value(documents(path).remove(0)).expect("a kustomization");
        for base in &list.bases {
            let base = dir.join(base).join("kustomization.yaml");
            assert!(base.exists(), "{}: there is no {}", path.display(), base.display());
        }
        for file in list.resources.iter().chain(&list.patches_strategic_merge) {
            assert!(dir.join(file).is_file(), "{}: there is no {file}", path.display());
            named.insert(dir.join(file));
        }
    }
    let examples = root().join("deploy/examples");
    for path in files() {
        let stands_alone = path.ends_with("kustomization.yaml") || path.starts_with(&examples);
        assert!(stands_alone || named.contains(&path), "no kustomization names {}", path.display());
    }
    assert_eq!(lists, 5);
}

fn base_object(kind: &str, name: &str) -> Value {
    let mut all = yaml_files(&root().join("deploy/base")).into_iter().flat_map(|path| documents(&path));
    all.find(|object| object["kind"] == kind && object["metadata"]["name"] == name)
        .unwrap_or_else(|| panic!("deploy/base has no {kind} {name}"))
}

#[test]
fn the_programs_know_every_flag_and_variable_that_they_are_given() {
    use clap::{CommandFactory, Parser};
    let program = mesh_agent::config::MeshAgent::command();
    for (kind, name, task) in [("DaemonSet", "weft-agent", "node"), ("Deployment", "weft-control", "control")]
    {
        let container = base_object(kind, name)["spec"]["template"]["spec"]["containers"][0].clone();
        let words = |field: &str| -> Vec<String> {
            serde_json::from_value(container[field].clone()).expect("a list of words")
        };
        assert_eq!(words("command"), ["/usr/bin/mesh-agent", task]);
        // The node's name comes from the environment.
        let given = (task == "node").then(|| "--node=n1".to_owned());
        let line = words("command").into_iter().chain(words("args")).chain(given);
        let read = mesh_agent::config::MeshAgent::try_parse_from(line);
        assert!(read.is_ok(), "{name}: {}", read.expect_err("refused"));
        let task = program.find_subcommand(task).expect("a task");
        for variable in container["env"].as_array().expect("variables") {
            let variable = variable["name"].as_str().expect("a name");
            let known =
                task.get_arguments().any(|argument| argument.get_env().is_some_and(|env| env == variable));
            assert!(known, "{name}: nobody reads {variable}");
        }
    }
}

#[test]
fn images_carry_the_version_of_this_release() {
    let expected = format!("weft.dev/weft:{}", env!("CARGO_PKG_VERSION"));
    for (kind, name) in [("DaemonSet", "weft-agent"), ("Deployment", "weft-control")] {
        let object = base_object(kind, name);
        assert_eq!(object["spec"]["template"]["spec"]["containers"][0]["image"], expected.as_str());
    }
}

#[test]
fn nothing_is_privileged_and_every_right_has_its_reason_beside_it() {
    let path = root().join("deploy/base/agent.yaml");
    let text = std::fs::read_to_string(&path).expect("readable");
    for object in documents(&path).iter().filter(|object| object["kind"] == "DaemonSet") {
        let security = &object["spec"]["template"]["spec"]["containers"][0]["securityContext"];
        assert!(security["privileged"].is_null());
        assert_eq!(security["readOnlyRootFilesystem"], true);
        assert_eq!(security["capabilities"]["drop"], serde_json::json!(["ALL"]));
        for capability in security["capabilities"]["add"].as_array().expect("a list") {
            let line = text.lines().find(|line| {
                line.trim_start().starts_with(&format!("- {} ", capability.as_str().expect("a name")))
            });
            assert!(line.is_some_and(|line| line.contains("# ")), "{capability} has no reason beside it");
        }
    }
    for right in ["hostNetwork: true", "hostPID: true", "hostPath:"] {
        for (at, _) in text.lines().enumerate().filter(|(_, line)| line.contains(right)) {
            // In the lines before it, since a mount's reason stands at the mount.
            let before = text.lines().skip(at.saturating_sub(2)).take(2);
            let explained = before.into_iter().any(|line| line.trim_start().starts_with('#'));
            assert!(explained || right == "hostPath:", "{right} (line {}) has no reason before it", at + 1);
        }
    }
    let control = base_object("Deployment", "weft-control");
    let pod = &control["spec"]["template"]["spec"];
    assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
    assert_eq!(pod["containers"][0]["securityContext"]["allowPrivilegeEscalation"], false);
    assert!(pod["hostNetwork"].is_null() && pod["hostPID"].is_null());
}

#[test]
fn roles_have_no_wildcards_and_agents_write_events_only() {
    for path in yaml_files(&root().join("deploy/base")) {
        for object in documents(&path) {
            let kind = object["kind"].as_str().unwrap_or_default();
            if !matches!(kind, "ClusterRole" | "Role") {
                continue;
            }
            let of_agent = object["metadata"]["name"] == "weft-agent";
            let mut events = 0;
            for rule in object["rules"].as_array().expect("rules") {
                for part in ["apiGroups", "resources", "verbs"] {
                    let values = rule[part].as_array().expect("a list");
                    assert!(!values.contains(&Value::from("*")), "{}: {rule}", path.display());
                }
                if !of_agent {
                    continue;
                }
                if rule["resources"] == json!(["events"]) {
                    events += 1;
                    assert_eq!(rule["apiGroups"], json!(["events.k8s.io"]));
                    assert_eq!(rule["verbs"], json!(["create", "patch"]), "agents read no Events");
                } else {
                    assert_eq!(rule["verbs"], json!(["list", "watch"]), "{}: {rule}", path.display());
                }
            }
            assert_eq!(events, usize::from(of_agent));
        }
    }
}

#[test]
fn bindings_lead_to_roles_and_accounts_that_are_there() {
    for path in yaml_files(&root().join("deploy/base")) {
        for object in documents(Path::new(&path)) {
            if !object["kind"].as_str().unwrap_or_default().ends_with("RoleBinding")
                && object["kind"] != "RoleBinding"
            {
                continue;
            }
            let role = &object["roleRef"];
            base_object(role["kind"].as_str().expect("a kind"), role["name"].as_str().expect("a name"));
            for subject in object["subjects"].as_array().expect("subjects") {
                let account = base_object("ServiceAccount", subject["name"].as_str().expect("a name"));
                assert_eq!(account["metadata"]["namespace"], subject["namespace"]);
            }
        }
    }
}
