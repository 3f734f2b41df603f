//! Objects to the API server, by server-side apply, so that what others have set is told and not overwritten.

use std::io::Write;

use kube::api::{DynamicObject, Patch, PatchParams};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Api, Client};
use serde_json::Value;

use super::wait::{self, Patience};
use crate::cli::Error;
use crate::cli::cluster::{Cluster, why};

/// As whom we own fields.
const FIELD_MANAGER: &str = "meshctl";

/// Kinds that belong to no namespace.
const OF_THE_CLUSTER: [&str; 6] =
    ["CustomResourceDefinition", "Namespace", "ClusterRole", "ClusterRoleBinding", "MeshConfig", "XMesh"];

/// The minor version of the cluster's Kubernetes.
pub(in crate::cli) async fn minor_version(cluster: &Cluster) -> Result<u32, Error> {
    let version = cluster.client.apiserver_version().await;
    let version = version.map_err(|error| Error::Api { what: "its version".to_owned(), why: why(&error) })?;
    // Some say `27+`.
    let digits: String = version.minor.chars().take_while(char::is_ascii_digit).collect();
    Ok(digits.parse().unwrap_or(u32::MAX))
}

/// Applies all, each after what it needs, and says so.
pub(super) async fn all(
    cluster: &Cluster,
    objects: &[Value],
    force: bool,
    patience: Patience,
    out: &mut dyn Write,
) -> Result<(), Error> {
    let is_definition = |object: &&Value| object["kind"] == "CustomResourceDefinition";
    let mut params = PatchParams::apply(FIELD_MANAGER);
    params.force = force;
    for object in objects.iter().filter(is_definition) {
        apply(cluster, object, &params, out).await?;
    }
    // Objects of a kind can be made a moment after the kind itself.
    wait::until_established(cluster, objects.iter().filter(is_definition), patience).await?;
    for object in objects.iter().filter(|object| !is_definition(object)) {
        apply(cluster, object, &params, out).await?;
    }
    Ok(())
}

async fn apply(
    cluster: &Cluster,
    object: &Value,
    params: &PatchParams,
    out: &mut dyn Write,
) -> Result<(), Error> {
    let name = name(object);
    let failed = |error| Error::Apply { object: name.clone(), why: why(&error) };
    let bare = object["metadata"]["name"].as_str().unwrap_or_default();
    let api = api(&cluster.client, object);
    let applied = api.patch(bare, params, &Patch::Apply(object)).await.map_err(failed)?;
    let new = applied.metadata.generation.is_none_or(|generation| generation == 1);
    writeln!(out, "{name} {}", if new { "applied" } else { "configured" })?;
    Ok(())
}

/// The API that an object belongs to.
pub(super) fn api(client: &Client, object: &Value) -> Api<DynamicObject> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (api_version, kind) = (text(&object["apiVersion"]), text(&object["kind"]));
    let (group, version) = api_version.split_once('/').unwrap_or(("", &api_version));
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, &kind));
    if OF_THE_CLUSTER.contains(&&*kind) {
        return Api::all_with(client.clone(), &resource);
    }
    let namespace = object["metadata"]["namespace"].as_str().unwrap_or("default");
    Api::namespaced_with(client.clone(), namespace, &resource)
}

/// As kubectl says it: `kind.group/name`.
pub(super) fn name(object: &Value) -> String {
    let kind = object["kind"].as_str().unwrap_or_default().to_lowercase();
    let group =
        object["apiVersion"].as_str().and_then(|version| version.split_once('/')).map(|(group, _)| group);
    let group = group.map(|group| format!(".{group}")).unwrap_or_default();
    format!("{kind}{group}/{}", object["metadata"]["name"].as_str().unwrap_or_default())
}
