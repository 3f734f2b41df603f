//! Kinds that this Kubernetes does not have by itself: EndpointSlices of version v1, the Gateway API's routes, and where there
//! are no nodes (so that nobody applies deploy/) Weft's own.

use std::fs;

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_yaml_ng::Value;

use super::cache::Extent;
use super::control_plane::{apply, kubectl};
use super::state::Cluster;
use crate::shell;

/// Manifests of the kinds, and what a whole cluster needs for names.
const KINDS: [&str; 2] = [
    include_str!("../../../tests/cluster/endpointslices.yaml"),
    include_str!("../../../tests/cluster/routes.yaml"),
];
const NAMES: &str = include_str!("../../../tests/cluster/names.yaml");

/// Where Weft's own kinds are described, below the workspace.
const OWN_KINDS: &str = "deploy/crds";

/// Rules in the expression language, which came later than this API server.
const RULES: &str = "x-kubernetes-validations";

/// Applies them and waits until they are served.
pub fn teach(cluster: &Cluster, extent: Extent) -> Result<()> {
    let mut documents: Vec<String> = KINDS.map(str::to_owned).into();
    match extent {
        Extent::Cluster => documents.push(NAMES.to_owned()),
        Extent::ApiServer => documents.extend(own_kinds()?),
    }
    apply(cluster, &documents.join("\n---\n"))?;
    let mut wait = kubectl(cluster);
    wait.args(["wait", "--for=condition=Established", "--timeout=30s", "crd", "--all"]);
    shell::run(wait.stdout(std::process::Stdio::null()))
}

/// Weft's kinds as this API server can read them.
fn own_kinds() -> Result<Vec<String>> {
    let dir = shell::workspace_dir().join(OWN_KINDS);
    let Ok(entries) = fs::read_dir(&dir) else { return Ok(Vec::new()) };
    let mut files: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    files.sort();
    files
        .iter()
        .map(|file| without_rules(&fs::read_to_string(file)?).with_context(|| format!("{}", file.display())))
        .collect()
}

/// The documents that are CRDs, without rules in the expression language: an API server that does not know them drops or
/// refuses them, depending on how it is asked.
pub fn without_rules(text: &str) -> Result<String> {
    let mut kept = Vec::new();
    for document in serde_yaml_ng::Deserializer::from_str(text) {
        let mut document = Value::deserialize(document)?;
        strip(&mut document);
        // What else lies beside them is for kubectl, not for the server.
        if document.get("kind").and_then(Value::as_str) == Some("CustomResourceDefinition") {
            kept.push(serde_yaml_ng::to_string(&document)?);
        }
    }
    Ok(kept.join("---\n"))
}

fn strip(value: &mut Value) {
    match value {
        Value::Mapping(map) => {
            map.remove(RULES);
            map.values_mut().for_each(strip);
        }
        Value::Sequence(items) => items.iter_mut().for_each(strip),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn definitions_lose_their_rules_at_every_depth_and_nothing_else() {
        let text = "kind: CustomResourceDefinition\nspec:\n  a:\n  - x-kubernetes-validations: [{rule: 'self > 1'}]\n    type: object\n\
                    ---\nkind: Kustomization\nresources: [a.yaml]\n";
        let kept = without_rules(text).unwrap();
        assert_eq!(kept, "kind: CustomResourceDefinition\nspec:\n  a:\n  - type: object\n");
    }
}
