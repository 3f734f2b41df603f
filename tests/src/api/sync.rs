//! A directory of objects, brought into an API server: what is new is made, what changed is written, what is gone is
//! deleted. A client like any other, so it does for a real server too.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use kube::api::{Api, DeleteParams, DynamicObject, ListParams, PostParams};
use kube::core::GroupVersionKind;
use kube::discovery::{ApiCapabilities, ApiResource, Scope, pinned_kind};
use kube::{Client, ResourceExt as _};
use serde::Deserialize as _;
use serde_json::{Value, json};

use super::write::text;

/// What was brought in before, by identity.
pub type Known = BTreeMap<Identity, Value>;

/// What tells objects apart.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Identity {
    /// Namespaces and definitions come first, for others need them.
    rank: u8,
    api_version: String,
    kind: String,
    namespace: String,
    name: String,
}

/// Kinds that were asked for.
type Kinds = BTreeMap<(String, String), (ApiResource, ApiCapabilities)>;

/// Identifies objects.
///
/// # Errors
/// One has no kind or no name.
pub fn identify(objects: Vec<Value>) -> Result<Known> {
    let of = |object: Value| {
        let metadata = &object["metadata"];
        let (kind, name) = (text(&object["kind"]), text(&metadata["name"]));
        ensure!(!kind.is_empty() && !name.is_empty(), "an object has no kind or no name: {object}");
        let rank = match kind {
            "Namespace" => 0,
            "CustomResourceDefinition" => 1,
            _ => 2,
        };
        let identity = Identity {
            rank,
            api_version: text(&object["apiVersion"]).to_owned(),
            kind: kind.to_owned(),
            namespace: text(&metadata["namespace"]).to_owned(),
            name: name.to_owned(),
        };
        Ok((identity, object))
    };
    objects.into_iter().map(of).collect()
}

/// Reads every `.yaml`, `.yml` and `.json` file of a directory.
///
/// # Errors
/// A file cannot be read or is no YAML.
pub fn read(dir: &Path) -> Result<Vec<Value>> {
    let mut paths: Vec<_> = fs::read_dir(dir)
        .with_context(|| format!("cannot read {}", dir.display()))?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    paths.sort();
    let is_meant = |path: &&std::path::PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        !name.starts_with('.') && [".yaml", ".yml", ".json"].iter().any(|ending| name.ends_with(ending))
    };
    let mut objects = Vec::new();
    for path in paths.iter().filter(is_meant) {
        let content = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        objects.extend(parse(&content).with_context(|| format!("in {}", path.display()))?);
    }
    Ok(objects)
}

/// Reads the objects of a text.
///
/// # Errors
/// It is no YAML.
pub fn parse(content: &str) -> Result<Vec<Value>> {
    let documents = serde_yaml_ng::Deserializer::from_str(content).map(Value::deserialize);
    let objects = documents.collect::<Result<Vec<_>, _>>()?;
    Ok(objects.into_iter().filter(|object| !object.is_null()).collect())
}

/// Brings a server from `known` to `wanted`. What is not in `known` and not in `wanted` is left alone. Gives the last
/// revision of each kind that was written.
///
/// # Errors
/// The server refuses something.
pub async fn sync(client: &Client, known: &Known, wanted: &Known) -> Result<BTreeMap<String, u64>> {
    let (mut kinds, mut written) = (Kinds::new(), BTreeMap::new());
    for identity in known.keys().rev().filter(|identity| !wanted.contains_key(identity)) {
        let (api, _) = api_of(client, &mut kinds, identity).await?;
        delete(&api, identity).await?;
        // The answer to a deletion need not say the revision of the end; a list does.
        let nothing = ListParams::default().labels("weft.dev/none=none");
        let now = api.list(&nothing).await?.metadata.resource_version.unwrap_or_default();
        written.insert(identity.kind.clone(), now.parse().unwrap_or_default());
    }
    for (identity, object) in wanted {
        if known.get(identity) == Some(object) {
            continue;
        }
        let (api, capabilities) = api_of(client, &mut kinds, identity).await?;
        let put = put(&api, &capabilities, identity, object).await;
        let put =
            put.with_context(|| format!("{} {}/{}", identity.kind, identity.namespace, identity.name))?;
        written.insert(identity.kind.clone(), put);
    }
    Ok(written)
}

async fn api_of(
    client: &Client,
    kinds: &mut Kinds,
    identity: &Identity,
) -> Result<(Api<DynamicObject>, ApiCapabilities)> {
    let key = (identity.api_version.clone(), identity.kind.clone());
    if !kinds.contains_key(&key) {
        let (group, version) = identity.api_version.split_once('/').unwrap_or(("", &identity.api_version));
        let found = pinned_kind(client, &GroupVersionKind::gvk(group, version, &identity.kind)).await;
        let found = found.with_context(|| format!("{} {} is not served", key.0, key.1))?;
        kinds.insert(key.clone(), found);
    }
    let (resource, capabilities) = kinds[&key].clone();
    let api = match (&capabilities.scope, identity.namespace.as_str()) {
        (Scope::Cluster, _) => Api::all_with(client.clone(), &resource),
        (Scope::Namespaced, "") => Api::namespaced_with(client.clone(), "default", &resource),
        (Scope::Namespaced, namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
    };
    Ok((api, capabilities))
}

async fn put(
    api: &Api<DynamicObject>,
    capabilities: &ApiCapabilities,
    identity: &Identity,
    object: &Value,
) -> Result<u64> {
    let mut new: DynamicObject = serde_json::from_value(object.clone())?;
    let mut live = api.get_opt(&identity.name).await?;
    if let Some(old) = &live
        && new.metadata.uid.is_some()
        && new.metadata.uid != old.metadata.uid
    {
        delete(api, identity).await?;
        live = None;
    }
    let mut live = match live {
        None => {
            new.metadata.resource_version = None;
            api.create(&PostParams::default(), &new).await?
        }
        Some(old) => {
            new.metadata.resource_version = old.resource_version();
            // What a running cluster writes of its own.
            new.metadata.finalizers = old.metadata.finalizers;
            api.replace(&identity.name, &PostParams::default(), &new).await?
        }
    };
    let has_status = capabilities.subresources.iter().any(|(subresource, _)| subresource.plural == "status");
    if has_status && !object["status"].is_null() {
        let mut status: DynamicObject = serde_json::from_value(object.clone())?;
        status.metadata.resource_version = live.resource_version();
        status.metadata.uid = live.uid();
        live = api.replace_status(&identity.name, &PostParams::default(), &status).await?;
    }
    Ok(live.resource_version().unwrap_or_default().parse().unwrap_or_default())
}

async fn delete(api: &Api<DynamicObject>, identity: &Identity) -> Result<()> {
    let at_once = DeleteParams::default().grace_period(0);
    match api.delete(&identity.name, &at_once).await {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        deleted => Ok(deleted.map(drop)?),
    }
}

/// Reads what [`write_known`] wrote; nothing when there is no such file.
///
/// # Errors
/// The file is not what was written.
pub fn read_known(file: &Path) -> Result<Known> {
    match fs::read(file) {
        Err(_) => Ok(Known::new()),
        Ok(bytes) => identify(serde_json::from_slice(&bytes)?),
    }
}

/// Remembers in a file what was brought in.
///
/// # Errors
/// The file cannot be written.
pub fn write_known(file: &Path, known: &Known) -> Result<()> {
    let objects: Vec<&Value> = known.values().collect();
    fs::write(file, json!(objects).to_string()).with_context(|| format!("cannot write {}", file.display()))
}
