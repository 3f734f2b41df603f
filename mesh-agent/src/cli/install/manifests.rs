//! The files of `deploy/` as they were when this binary was made, and what a kustomization makes of them.
//!
//! It carries out the part of kustomize that `deploy/` uses: bases, resources and strategic merge patches. A test checks that
//! nothing else is used and that no file is forgotten here.

use serde::Deserialize;
use serde_json::Value;

use super::merge;
use crate::cli::Error;

macro_rules! deploy {
    ($path:literal) => {
        ($path, include_str!(concat!("../../../../deploy/", $path)))
    };
}

/// Path below `deploy/`, and text.
pub(crate) const FILES: &[(&str, &str)] = &[
    deploy!("base/agent.yaml"),
    deploy!("base/agent-rbac.yaml"),
    deploy!("base/control.yaml"),
    deploy!("base/control-rbac.yaml"),
    deploy!("base/kustomization.yaml"),
    deploy!("base/namespace.yaml"),
    deploy!("base/roles.yaml"),
    deploy!("crds/kustomization.yaml"),
    deploy!("crds/weft.dev_authorizationpolicies.yaml"),
    deploy!("crds/weft.dev_meshconfigs.yaml"),
    deploy!("overlays/debug/agent.yaml"),
    deploy!("overlays/debug/control.yaml"),
    deploy!("overlays/debug/kustomization.yaml"),
    deploy!("overlays/kind/agent.yaml"),
    deploy!("overlays/kind/control.yaml"),
    deploy!("overlays/kind/kustomization.yaml"),
    deploy!("overlays/strict/kustomization.yaml"),
    deploy!("overlays/strict/mesh-config.yaml"),
];

/// The overlays that there are.
pub(crate) fn overlays() -> Vec<&'static str> {
    let names = FILES.iter().filter_map(|(path, _)| path.strip_prefix("overlays/")?.split('/').next());
    let mut names: Vec<_> = names.collect();
    names.dedup();
    names
}

/// The objects of an overlay, or of the base, in the order in which they are to be made: kinds, namespace, the rest,
/// objects of our own kinds.
pub(crate) fn render(overlay: Option<&str>) -> Result<Vec<Value>, Error> {
    let dir = match overlay {
        None => "base".to_owned(),
        Some(name) if overlays().contains(&name) => format!("overlays/{name}"),
        Some(name) => {
            return Err(Error::Overlay { name: name.to_owned(), known: overlays().join(", ") });
        }
    };
    let mut objects = kustomize(&dir);
    objects.sort_by_key(|object| match object["kind"].as_str().unwrap_or_default() {
        "CustomResourceDefinition" => 0,
        "Namespace" => 1,
        _ if object["apiVersion"].as_str().is_some_and(|version| version.starts_with("weft.dev/")) => 3,
        _ => 2,
    });
    Ok(objects)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Kustomization {
    #[serde(default)]
    bases: Vec<String>,
    #[serde(default)]
    resources: Vec<String>,
    #[serde(default)]
    patches_strategic_merge: Vec<String>,
}

fn kustomize(dir: &str) -> Vec<Value> {
    let text = text(&format!("{dir}/kustomization.yaml"));
    let list: Kustomization = serde_yaml_ng::from_str(text).expect("a test has read it");
    let mut objects: Vec<Value> = list.bases.iter().flat_map(|base| kustomize(&join(dir, base))).collect();
    for resource in &list.resources {
        objects.extend(documents(text_of(dir, resource)));
    }
    for patch in list.patches_strategic_merge.iter().flat_map(|patch| documents(text_of(dir, patch))) {
        let patched = objects.iter_mut().find(|object| is_same(object, &patch));
        merge::merge(patched.expect("a test has looked that each patch has an object"), &patch);
    }
    objects
}

fn text_of(dir: &str, file: &str) -> &'static str {
    text(&join(dir, file))
}

fn text(path: &str) -> &'static str {
    let found = FILES.iter().find(|(known, _)| *known == path);
    found
        .map(|(_, text)| *text)
        .unwrap_or_else(|| unreachable!("{path} is in the list, as a test has looked"))
}

/// `..` goes up.
fn join(dir: &str, path: &str) -> String {
    let mut parts: Vec<&str> = dir.split('/').collect();
    for part in path.split('/') {
        match part {
            ".." => drop(parts.pop()),
            "." => {}
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// The documents of a file.
pub(crate) fn documents(text: &str) -> Vec<Value> {
    let all = serde_yaml_ng::Deserializer::from_str(text);
    let read = |document| Value::deserialize(document).expect("a test has read it");
    all.map(read).filter(|object| !object.is_null()).collect()
}

fn is_same(object: &Value, other: &Value) -> bool {
    let name = |object: &Value| {
        (object["apiVersion"].clone(), object["kind"].clone(), object["metadata"]["name"].clone())
    };
    name(object) == name(other)
}
