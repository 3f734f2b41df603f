//! What does the API server learn about our own kinds? The CustomResourceDefinitions, made from [`super::resources`].
//!
//! `deploy/crds/` holds them as files; `cargo xtask crds` writes those anew, and a test says when they are out of date.
//! The schemas leave out what would let a stored object mean something else than its author wrote: `null` is no value,
//! unknown fields are kept so that agents can refuse them by name (docs/decisions/0012), and nothing but a plain text is
//! filled in by default.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use serde_json::{Map, Value, json};

use super::resources::{AuthorizationPolicy, MeshConfig};

/// Said at the top of each file.
const HEADER: &str =
    "# Generated from mesh-agent/src/discovery/resources/: do not edit. `cargo xtask crds` writes it anew.\n";

/// All of them, as they are to be applied.
pub fn all() -> Vec<Value> {
    [AuthorizationPolicy::crd(), MeshConfig::crd()].iter().map(definition).collect()
}

/// Name and text of the file of each.
pub fn files() -> Vec<(String, String)> {
    let file = |crd: Value| {
        let kind = crd["spec"]["names"]["plural"].as_str().unwrap_or_default();
        let group = crd["spec"]["group"].as_str().unwrap_or_default();
        let text = serde_yaml_ng::to_string(&crd).expect("a tree of texts, numbers and lists is YAML");
        (format!("{group}_{kind}.yaml"), format!("{HEADER}{text}"))
    };
    all().into_iter().map(file).collect()
}

fn definition(crd: &CustomResourceDefinition) -> Value {
    let mut crd = serde_json::to_value(crd).expect("a definition is a tree of texts, numbers and lists");
    for version in crd["spec"]["versions"].as_array_mut().into_iter().flatten() {
        let schema = &mut version["schema"]["openAPIV3Schema"];
        tidy(schema);
        keep_unknown_fields(schema);
        // Metadata is the API server's own; what is unknown in the status was not written by a user.
        keep_unknown_fields(&mut schema["properties"]["spec"]);
    }
    crd
}

/// Takes out of a schema, and of all below it, what derives add and the API server should not have.
fn tidy(schema: &mut Value) {
    let Value::Object(fields) = schema else { return };
    for foreign in ["nullable", "title", "additionalProperties"] {
        // A map's values have a schema; only the bare `false` of refused unknown fields has no place here.
        if !fields.get(foreign).is_some_and(Value::is_object) {
            fields.remove(foreign);
        }
    }
    if fields.get("default").is_some_and(|default| default.as_str().is_none_or(str::is_empty)) {
        fields.remove("default");
    }
    // Formats that only Rust knows; the bounds beside them say the same.
    if fields.get("format").and_then(Value::as_str).is_some_and(|format| format.starts_with("uint")) {
        fields.remove("format");
    }
    for (name, below) in fields.iter_mut() {
        match name.as_str() {
            "properties" => each_value(below, tidy),
            "items" | "additionalProperties" => tidy(below),
            _ => {}
        }
    }
}

/// An object that lists its fields prunes the others, however its parent is marked, so each is marked by itself.
fn keep_unknown_fields(schema: &mut Value) {
    let Value::Object(fields) = schema else { return };
    if fields.contains_key("properties") {
        fields.insert("x-kubernetes-preserve-unknown-fields".to_owned(), json!(true));
    }
    if let Some(items) = fields.get_mut("items") {
        keep_unknown_fields(items);
    }
    let is_root = fields.get("properties").is_some_and(|all| all.get("spec").is_some());
    if let Some(below) = fields.get_mut("properties").filter(|_| !is_root) {
        each_value(below, keep_unknown_fields);
    }
}

fn each_value(fields: &mut Value, change: fn(&mut Value)) {
    fields.as_object_mut().into_iter().flat_map(Map::values_mut).for_each(change);
}
