//! `meshctl uninstall`: out of the cluster, and out of its nodes' kernels.
//!
//! The kernel programs stay when an agent ends, by design. So each node gets a short-lived pod of the agent's own making that
//! takes them out (`mesh-agent node --uninstall`) before the rest goes. Enrolled pods run on, without the mesh. Our kinds,
//! and with them everybody's policies, stay unless they are named.

use std::collections::BTreeMap;
use std::io::Write;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Pod, PodSpec};
use kube::Api;
use kube::api::{DeleteParams, ListParams, ObjectMeta, PostParams};
use serde_json::Value;

use super::wait::Patience;
use super::{apply, manifests};
use crate::cli::cluster::{AGENTS, Cluster, NAMESPACE, node_of, why};
use crate::cli::flags::{Meshctl, UninstallFlags};
use crate::cli::{Error, Found};

/// Marks the pods that clean nodes.
const CLEANERS: &str = "app.kubernetes.io/name=weft,app.kubernetes.io/component=cleaner";

/// Carries out the command.
pub(in crate::cli) fn run(
    line: &Meshctl,
    flags: &UninstallFlags,
    out: &mut dyn Write,
) -> Result<Found, Error> {
    let cluster = Cluster::connect(&line.cluster)?;
    let patience = Patience::of(&flags.timeout)?;
    cluster.wait(async {
        let left = clean_nodes(&cluster, patience, out).await?;
        remove(&cluster, flags.crds, patience, out).await?;
        if left.is_empty() {
            writeln!(out, "Weft is gone; pods run on without it")?;
            return Ok(Found::Good);
        }
        writeln!(
            out,
            "kernel programs may be left on {}: run `mesh-agent node --node NAME --uninstall` there, or restart the node",
            left.join(", ")
        )?;
        Ok(Found::Bad)
    })
}

/// Ends the agents and takes their programs out of the kernels. Returns the nodes where that did not come to an end.
async fn clean_nodes(
    cluster: &Cluster,
    patience: Patience,
    out: &mut dyn Write,
) -> Result<Vec<String>, Error> {
    let sets = Api::<DaemonSet>::namespaced(cluster.client.clone(), NAMESPACE);
    let failed = |what: &str| {
        let what = what.to_owned();
        move |error| Error::Api { what, why: why(&error) }
    };
    let Some(set) = sets.get_opt("weft-agent").await.map_err(failed("DaemonSet weft-agent"))? else {
        writeln!(out, "there is no DaemonSet weft-agent: no node is cleaned")?;
        return Ok(Vec::new());
    };
    let spec = set.spec.and_then(|spec| spec.template.spec).unwrap_or_default();
    let mut nodes: Vec<String> =
        cluster.pods(AGENTS).await?.iter().filter_map(|pod| node_of(pod).map(str::to_owned)).collect();
    nodes.sort();
    // First the agents, so that none puts back what is taken out.
    sets.delete("weft-agent", &DeleteParams::default()).await.map_err(failed("the end of the agents"))?;
    writeln!(out, "daemonset.apps/weft-agent deleted")?;
    while !cluster.pods(AGENTS).await?.is_empty() && !patience.is_over() {
        patience.pause().await;
    }
    let pods = Api::<Pod>::namespaced(cluster.client.clone(), NAMESPACE);
    for node in &nodes {
        let made = pods.create(&PostParams::default(), &cleaner(&spec, node)).await;
        made.map_err(failed("a pod that cleans a node"))?;
    }
    let mut left: Vec<String> = nodes;
    loop {
        let found = cluster.pods(CLEANERS).await?;
        let done = |node: &String| {
            let mut mine = found.iter().filter(|pod| node_of(pod) == Some(node));
            mine.any(|pod| {
                pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Succeeded")
            })
        };
        for node in left.extract_if(.., |node| done(node)) {
            writeln!(out, "node/{node} cleaned")?;
        }
        if left.is_empty() || patience.is_over() {
            break;
        }
        patience.pause().await;
    }
    let all = ListParams::default().labels(CLEANERS);
    pods.delete_collection(&DeleteParams::default(), &all)
        .await
        .map_err(failed("the end of the cleaners"))?;
    Ok(left)
}

/// The agent's own pod, with another task and an end.
fn cleaner(agent: &PodSpec, node: &str) -> Pod {
    let mut spec = agent.clone();
    spec.restart_policy = Some("OnFailure".to_owned());
    spec.node_name = Some(node.to_owned());
    // It needs the kernel and nobody's certificate.
    let needed = ["bpf", "cgroup"];
    if let Some(volumes) = &mut spec.volumes {
        volumes.retain(|volume| needed.contains(&volume.name.as_str()));
    }
    for container in &mut spec.containers {
        container.args = Some(vec!["--uninstall".to_owned()]);
        (container.startup_probe, container.readiness_probe, container.liveness_probe) = (None, None, None);
        if let Some(mounts) = &mut container.volume_mounts {
            mounts.retain(|mount| needed.contains(&mount.name.as_str()));
        }
    }
    let labels = CLEANERS.split(',').filter_map(|label| label.split_once('='));
    let labels: BTreeMap<_, _> = labels.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    Pod {
        metadata: ObjectMeta {
            generate_name: Some("weft-cleaner-".to_owned()),
            namespace: Some(NAMESPACE.to_owned()),
            labels: Some(labels),
            ..ObjectMeta::default()
        },
        spec: Some(spec),
        status: None,
    }
}

/// Deletes what an installation makes, last things first.
async fn remove(
    cluster: &Cluster,
    with_kinds: bool,
    patience: Patience,
    out: &mut dyn Write,
) -> Result<(), Error> {
    let is_kind = |object: &Value| object["kind"] == "CustomResourceDefinition";
    let mut objects = manifests::render(None)?;
    let minor = apply::minor_version(cluster).await?;
    super::settings::suit(&mut objects, minor);
    for object in objects.iter().rev().filter(|object| with_kinds || !is_kind(object)) {
        let (api, name) = (apply::api(&cluster.client, object), apply::name(object));
        let bare = object["metadata"]["name"].as_str().unwrap_or_default();
        match api.delete(bare, &DeleteParams::default()).await {
            Ok(_) => writeln!(out, "{name} deleted")?,
            Err(kube::Error::Api(status)) if status.is_not_found() => {}
            Err(error) => return Err(Error::Apply { object: name, why: why(&error) }),
        }
    }
    let namespace = serde_json::json!({"apiVersion": "v1", "kind": "Namespace"});
    let namespaces = apply::api(&cluster.client, &namespace);
    while namespaces.get_opt(NAMESPACE).await.is_ok_and(|found| found.is_some()) {
        if patience.is_over() {
            writeln!(out, "namespace/{NAMESPACE} is still being deleted")?;
            break;
        }
        patience.pause().await;
    }
    remove_xmesh(cluster, out).await
}

/// The one object outside of its namespace that the control plane makes, which is not there any more to make it again. One
/// that a person has made stays.
async fn remove_xmesh(cluster: &Cluster, out: &mut dyn Write) -> Result<(), Error> {
    let xmesh = serde_json::json!({
        "apiVersion": "gateway.networking.x-k8s.io/v1alpha1", "kind": "XMesh", "metadata": {"name": "weft"},
    });
    let (api, name) = (apply::api(&cluster.client, &xmesh), apply::name(&xmesh));
    let failed = |error| Error::Apply { object: name.clone(), why: why(&error) };
    // Where the kind is not served there is none.
    let found = api.get_opt("weft").await.map_err(failed)?;
    let is_ours = |labels: BTreeMap<String, String>| {
        labels.get("app.kubernetes.io/name").is_some_and(|name| name == "weft")
    };
    if found.is_some_and(|found| found.metadata.labels.is_some_and(is_ours)) {
        api.delete("weft", &DeleteParams::default()).await.map_err(failed)?;
        writeln!(out, "{name} deleted")?;
    }
    Ok(())
}
