//! All that the server knows: the kinds it serves, their objects, and the tokens of its users.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};

use super::resource::{self, Kept, Resource};
use super::review::Token;
use super::store::{Key, Store};

/// Namespaces that every cluster has.
const NAMESPACES: &[&str] = &["default", "kube-node-lease", "kube-public", "kube-system"];

/// What the server knows.
#[derive(Debug)]
pub struct State {
    /// Objects.
    pub store: Store,
    /// Users by their bearer tokens.
    pub tokens: BTreeMap<String, Token>,
    built_in: Vec<Arc<Resource>>,
    defined: Vec<Arc<Resource>>,
}

impl Default for State {
    fn default() -> Self {
        Self::new()
    }
}

impl State {
    /// A cluster that was just made.
    pub fn new() -> Self {
        let built_in = resource::built_in();
        let (store, tokens, defined) = (Store::default(), BTreeMap::new(), Vec::new());
        let mut state = Self { store, tokens, built_in, defined };
        for name in NAMESPACES {
            let mut namespace = json!({
                "apiVersion": "v1", "kind": "Namespace",
                "metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name}},
                "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"},
            });
            namespace["metadata"]["uid"] = new_uid().into();
            namespace["metadata"]["creationTimestamp"] = time_now().into();
            state.store.put(&namespaces(), Key::new(None, name), namespace);
        }
        state
    }

    /// Serves a kind without a definition.
    pub fn serve(&mut self, resource: Resource) {
        self.built_in.push(Arc::new(resource));
    }

    /// Reads the CustomResourceDefinitions anew.
    pub fn read_definitions(&mut self) {
        let kept = definitions();
        let definitions = self.store.all(&kept);
        self.defined =
            definitions.flat_map(|stored| resource::of_definition(&stored.object)).map(Arc::new).collect();
    }

    /// All kinds in all versions.
    pub fn resources(&self) -> impl Iterator<Item = &Arc<Resource>> {
        self.built_in.iter().chain(&self.defined)
    }

    /// A kind by its place in paths.
    pub fn resource(&self, group: &str, version: &str, plural: &str) -> Option<Arc<Resource>> {
        let is_it =
            |r: &&Arc<Resource>| &*r.kept.group == group && r.version == version && &*r.kept.plural == plural;
        self.resources().find(is_it).cloned()
    }

    /// Whether a namespace is there, and whether it ends.
    pub fn namespace(&self, name: &str) -> Option<bool> {
        let stored = self.store.get(&namespaces(), &Key::new(None, name))?;
        Some(!stored.object["metadata"]["deletionTimestamp"].is_null())
    }

    /// The API groups with their versions.
    pub fn groups(&self) -> BTreeMap<Arc<str>, Vec<String>> {
        let mut groups: BTreeMap<Arc<str>, Vec<String>> = BTreeMap::new();
        for resource in self.resources().filter(|resource| !resource.kept.group.is_empty()) {
            let versions = groups.entry(Arc::clone(&resource.kept.group)).or_default();
            if !versions.contains(&resource.version) {
                versions.push(resource.version.clone());
            }
        }
        groups
    }

    /// The entry of a group in the list of groups.
    pub fn describe_group(group: &str, versions: &[String]) -> Value {
        let entry =
            |version: &String| json!({ "groupVersion": format!("{group}/{version}"), "version": version });
        let versions: Vec<Value> = versions.iter().map(entry).collect();
        json!({ "name": group, "preferredVersion": versions[0], "versions": versions })
    }
}

/// Where namespaces are kept.
pub fn namespaces() -> Kept {
    Kept::new("", "namespaces")
}

/// Where CustomResourceDefinitions are kept.
pub fn definitions() -> Kept {
    Kept::new("apiextensions.k8s.io", "customresourcedefinitions")
}

/// A UID that no other object has.
pub fn new_uid() -> String {
    let random = fastrand::u128(..);
    let hex = format!("{random:032x}");
    // Version 4 (RFC 9562): random.
    format!("{}-{}-4{}-a{}-{}", &hex[..8], &hex[8..12], &hex[13..16], &hex[17..20], &hex[20..])
}

/// The time as metadata writes it.
pub fn time_now() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
