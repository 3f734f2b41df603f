//! What lies in `deploy/` is true: definitions are those of the code, examples are good objects, manifests have no
//! field that their kind does not know.
//!
//! Files: `crds` (definitions and examples), `schema` (the part of the API server's checks that they need), `manifests` (what kubectl applies).

#[path = "deploy/crds.rs"]
mod crds;
#[path = "deploy/manifests.rs"]
mod manifests;
#[path = "deploy/schema.rs"]
mod schema;

use std::path::{Path, PathBuf};

/// The root of the workspace.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the workspace").to_owned()
}

/// Every YAML file below a directory, by path.
fn yaml_files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let entries = std::fs::read_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    for entry in entries {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(yaml_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "yaml") {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// The documents of a file, without empty ones.
fn documents(path: &Path) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_yaml_ng::Deserializer::from_str(&text)
        .map(|document| {
            serde::Deserialize::deserialize(document)
                .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        })
        .filter(|value: &serde_json::Value| !value.is_null())
        .collect()
}
