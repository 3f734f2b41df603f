//! Definitions are current and structural; they refuse what they can, and nothing that agents would take.

use mesh_agent::discovery::{self, crds};
use serde_json::{Value, json};

use crate::{documents, root, schema, yaml_files};

#[test]
fn definitions_are_those_of_the_code() {
    let dir = root().join("deploy/crds");
    let expected = crds::files();
    if std::env::var_os("WEFT_REGENERATE").is_some() {
        for (name, text) in &expected {
            std::fs::write(dir.join(name), text).expect("the definition can be written");
        }
    }
    let listed = |name: &String| dir.join(name);
    let mut found = yaml_files(&dir);
    found.retain(|path| !path.ends_with("kustomization.yaml"));
    assert_eq!(found, expected.iter().map(|(name, _)| listed(name)).collect::<Vec<_>>());
    for (name, text) in expected {
        let written = std::fs::read_to_string(listed(&name)).expect("readable");
        assert!(written == text, "deploy/crds/{name} is out of date: run `cargo xtask crds`");
    }
}

#[test]
fn schemas_are_structural_and_keep_what_they_do_not_know() {
    for crd in crds::all() {
        let (root, kind) = (schema_of(&crd), &crd["spec"]["names"]["kind"]);
        schema::each(root, "", &mut |path, part| {
            assert!(part["type"].is_string(), "{kind}{path} has no type");
            for foreign in ["nullable", "$ref", "oneOf", "anyOf", "allOf", "const"] {
                assert!(part[foreign].is_null(), "{kind}{path} says {foreign}");
            }
            let lists_fields = part["properties"].is_object();
            let ours = path.is_empty()
                || path == ".spec"
                || path.starts_with(".spec.")
                || path.starts_with(".spec[");
            if lists_fields && ours {
                assert_eq!(part["x-kubernetes-preserve-unknown-fields"], true, "{kind}{path} prunes");
            }
        });
        assert_eq!(crd["spec"]["versions"][0]["subresources"], json!({"status": {}}), "{kind}");
        assert_eq!(crd["spec"]["names"]["categories"], json!(["weft"]), "{kind}");
    }
}

#[test]
fn every_rule_can_be_evaluated_within_the_api_servers_budget() {
    for crd in crds::all() {
        let kind = &crd["spec"]["names"]["kind"];
        let compiled = kube_cel::compile_schema(schema_of(&crd));
        assert!(!compiled.has_errors(), "{kind}: {:?}", compiled.compilation_errors());
        // The API server multiplies a rule's cost by how often it may stand in one object: every list on the way is
        // bounded.
        let mut bounds = vec![(String::new(), 1_u64)];
        schema::each(schema_of(&crd), "", &mut |path, part| {
            let factor =
                bounds.iter().filter(|(list, _)| path.starts_with(&format!("{list}[]")) || list.is_empty());
            let times: u64 = factor.map(|(_, items)| items).product();
            if part["type"] == "array" && path.starts_with(".spec") {
                let items = part["maxItems"].as_u64().unwrap_or_else(|| panic!("{kind}{path} has no bound"));
                bounds.push((path.to_owned(), items));
            }
            for rule in part["x-kubernetes-validations"].as_array().into_iter().flatten() {
                assert!(times <= TIMES_MAX, "{kind}{path}: {times} times {}", rule["rule"]);
                assert!(rule["message"].is_string(), "{kind}{path}: a rule says what to do");
            }
        });
    }
}

/// A rule may cost ten million units in one object, and a simple one (a few comparisons) costs up to ten.
const TIMES_MAX: u64 = 1_000_000;

#[test]
fn examples_are_good_objects_for_the_api_server_and_for_agents() {
    let dir = root().join("deploy/examples");
    let loaded = discovery::load(&dir).expect("readable");
    let problems: Vec<String> = loaded.problems.iter().map(ToString::to_string).collect();
    assert!(problems.is_empty(), "{problems:#?}");
    let mut of_kind = std::collections::BTreeMap::<String, usize>::new();
    for path in yaml_files(&dir) {
        for object in documents(&path) {
            let kind = object["kind"].as_str().expect("a kind").to_owned();
            if let Some(crd) = crds::all().iter().find(|crd| crd["spec"]["names"]["kind"] == kind.as_str()) {
                let found = schema::problems(schema_of(crd), &object);
                assert!(found.is_empty(), "{}: {found:#?}", path.display());
            }
            *of_kind.entry(kind).or_default() += 1;
        }
    }
    for crd in crds::all() {
        let kind = crd["spec"]["names"]["kind"].as_str().expect("a kind");
        assert!(of_kind.contains_key(kind), "there is no example of {kind}");
    }
}

#[test]
fn what_the_api_server_can_refuse_is_refused_there_and_by_agents() {
    for (spec, field) in bad_policies() {
        assert_refused("AuthorizationPolicy", &spec, field);
    }
    for (spec, field) in bad_configs() {
        assert_refused("MeshConfig", &spec, field);
    }
}

/// One fault each, and the field that the API server names.
fn bad_policies() -> Vec<(Value, &'static str)> {
    let with = |field: &str, value: Value| {
        let mut spec =
            json!({"targetRefs": [{"kind": "Pod", "selector": {}}], "action": "ALLOW", "rules": [{}]});
        spec[field] = value;
        spec
    };
    let rule = |rule: Value| with("rules", json!([rule]));
    let source = |source: Value| rule(json!({"sources": [source]}));
    let http = |http: Value| {
        let mut spec = rule(json!({"http": [http]}));
        spec["enforcementLevel"] = json!("Application");
        spec
    };
    let target = |target: Value| with("targetRefs", json!([target]));
    vec![
        (with("targetRefs", json!([])), ".spec.targetRefs"),
        (with("action", json!("allow")), ".spec.action"),
        (with("enforcementLevel", json!("Both")), ".spec.enforcementLevel"),
        (with("rules", Value::Null), ".spec.rules"),
        (target(json!({"kind": "Service", "selector": {}})), ".spec.targetRefs[0]"),
        (target(json!({"kind": "Pod", "group": "apps", "selector": {}})), ".spec.targetRefs[0]"),
        (target(json!({"kind": "Pod"})), ".spec.targetRefs[0]"),
        (
            target(
                json!({"kind": "Pod", "selector": {"matchExpressions": [{"key": "a", "operator": "In"}]}}),
            ),
            "matchExpressions[0]",
        ),
        (rule(json!({"sources": null})), ".spec.rules[0].sources"),
        (rule(json!({"networkAttributes": {"ports": [0]}})), "ports[0]"),
        (rule(json!({"networkAttributes": {"ports": [65536]}})), "ports[0]"),
        (rule(json!({"http": [{"methods": ["GET"]}]})), "spec"),
        (source(json!({"type": "SPIFFE"})), ".spec.rules[0].sources[0]"),
        (source(json!({"type": "AnyAuthenticated", "cidr": "10.0.0.0/8"})), ".spec.rules[0].sources[0]"),
        (source(json!({"type": "CIDR", "cidr": "everywhere"})), "sources[0].cidr"),
        (source(json!({"type": "SPIFFE", "spiffe": "https://a"})), "sources[0].spiffe"),
        (source(json!({"type": "JWT", "issuer": "https://a"})), "sources[0].type"),
        (
            source(json!({"type": "ServiceAccount", "serviceAccount": {"name": "Web"}})),
            "sources[0].serviceAccount.name",
        ),
        (http(json!({"methods": ["*"]})), "methods"),
        (http(json!({"methods": ["GET /"]})), "methods[0]"),
        (http(json!({"paths": [{"type": "Exact", "value": "x"}]})), "paths[0].value"),
        (http(json!({"headers": [{"name": "a"}]})), "headers[0]"),
        (http(json!({"headers": [{"name": "a", "type": "Present", "value": "x"}]})), "headers[0]"),
        (http(json!({"headers": [{"name": "a", "type": "Prefix", "value": ""}]})), "headers[0]"),
        (http(json!({"headers": [{"name": "a b", "value": "x"}]})), "headers[0].name"),
        (http(json!({"grpcMethods": [{}], "methods": ["POST"]})), "http[0]"),
        (http(json!({"grpcMethods": [{"service": "a-b"}]})), "grpcMethods[0].service"),
    ]
}

fn bad_configs() -> Vec<(Value, &'static str)> {
    vec![
        (json!({"trustDomain": "Example"}), ".spec.trustDomain"),
        (json!({"certificates": {"ttl": "1d"}}), "certificates.ttl"),
        (json!({"certificates": {"ttl": "500ms"}}), "certificates.ttl"),
        (json!({"protocolDetection": {"timeout": "11s"}}), "protocolDetection.timeout"),
        (json!({"telemetry": {"tracing": {"sampling": 101}}}), "sampling"),
        (json!({"defaultInbound": "Open"}), "defaultInbound"),
        (json!({"fastPath": {"splice": "on"}}), "fastPath.splice"),
    ]
}

fn assert_refused(kind: &str, spec: &Value, field: &str) {
    let object = json!({
        "apiVersion": "weft.dev/v1alpha1", "kind": kind, "metadata": {"name": "a"}, "spec": spec,
    });
    let all = crds::all();
    let crd = all.iter().find(|crd| crd["spec"]["names"]["kind"] == kind).expect("a definition");
    let found = schema::problems(schema_of(crd), &object);
    assert!(found.iter().any(|one| one.contains(field)), "the API server takes {spec}, or says {found:?}");
    let refused = refused_by_agents(&object);
    assert!(refused, "agents take {spec}, which the API server refuses");
}

fn refused_by_agents(object: &Value) -> bool {
    let dir = tempfile::tempdir().expect("a temporary directory");
    std::fs::write(dir.path().join("object.json"), object.to_string()).expect("written");
    !discovery::load(dir.path()).expect("readable").problems.is_empty()
}

fn schema_of(crd: &Value) -> &Value {
    &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
}
