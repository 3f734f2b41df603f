//! Until when? Kinds that are served, agents and control planes that are ready.

use std::io::Write;
use std::time::{Duration, Instant};

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use kube::Api;
use serde_json::Value;

use super::apply;
use crate::cli::Error;
use crate::cli::cluster::{Cluster, NAMESPACE, why};
use crate::lifecycle::clock;

/// Between two looks. A person waits, and the API server is asked for two objects.
const PAUSE: Duration = Duration::from_millis(500);

/// How long somebody is willing to wait.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    until: Instant,
}

impl Patience {
    /// From a duration such as `5m`.
    pub(super) fn of(text: &str) -> Result<Self, Error> {
        let length: Result<jiff::SignedDuration, _> = text.parse();
        let length = length.ok().and_then(|length| Duration::try_from(length).ok());
        let length = length.ok_or_else(|| Error::Setting {
            setting: format!("--timeout {text}"),
            problem: "write a time such as 90s or 5m".to_owned(),
        })?;
        Ok(Self { until: clock::now() + length })
    }

    pub(super) fn is_over(self) -> bool {
        clock::now() >= self.until
    }

    pub(super) async fn pause(self) {
        tokio::time::sleep(PAUSE).await;
    }
}

/// Waits until the API server serves the kinds.
pub(super) async fn until_established(
    cluster: &Cluster,
    definitions: impl Iterator<Item = &Value>,
    patience: Patience,
) -> Result<(), Error> {
    for definition in definitions {
        let api = apply::api(&cluster.client, definition);
        let name = definition["metadata"]["name"].as_str().unwrap_or_default();
        loop {
            let found = api.get(name).await;
            let found = found
                .map_err(|error| Error::Api { what: format!("the definition {name}"), why: why(&error) })?;
            let conditions = found.data["status"]["conditions"].as_array().cloned().unwrap_or_default();
            let established =
                |condition: &Value| condition["type"] == "Established" && condition["status"] == "True";
            if conditions.iter().any(established) {
                break;
            }
            if patience.is_over() {
                return Err(Error::NotServed(name.to_owned()));
            }
            patience.pause().await;
        }
    }
    Ok(())
}

/// Waits until all of the mesh's own pods are ready and of the version that was applied; says what is missing when it
/// changes. `false` when patience ran out.
pub(super) async fn until_ready(
    cluster: &Cluster,
    patience: Patience,
    out: &mut dyn Write,
) -> Result<bool, Error> {
    let mut said = String::new();
    loop {
        let missing = [control(cluster).await?, agents(cluster).await?];
        let missing: Vec<String> = missing.into_iter().flatten().collect();
        if missing.is_empty() {
            return Ok(true);
        }
        let text = missing.join("; ");
        if text != said {
            writeln!(out, "waiting for {text}")?;
            said = text;
        }
        if patience.is_over() {
            writeln!(out, "not ready in time: meshctl check --cluster says more")?;
            return Ok(false);
        }
        patience.pause().await;
    }
}

async fn control(cluster: &Cluster) -> Result<Option<String>, Error> {
    let api = Api::<Deployment>::namespaced(cluster.client.clone(), NAMESPACE);
    let found = api.get("weft-control").await;
    let found =
        found.map_err(|error| Error::Api { what: "Deployment weft-control".to_owned(), why: why(&error) })?;
    let (spec, status) = (found.spec.unwrap_or_default(), found.status.unwrap_or_default());
    let wanted = spec.replicas.unwrap_or(1);
    let current = status.observed_generation >= found.metadata.generation;
    let ready = if current { status.updated_replicas.min(status.ready_replicas).unwrap_or(0) } else { 0 };
    Ok((ready < wanted).then(|| format!("weft-control: {ready} of {wanted} ready")))
}

async fn agents(cluster: &Cluster) -> Result<Option<String>, Error> {
    let api = Api::<DaemonSet>::namespaced(cluster.client.clone(), NAMESPACE);
    let found = api.get("weft-agent").await;
    let found =
        found.map_err(|error| Error::Api { what: "DaemonSet weft-agent".to_owned(), why: why(&error) })?;
    let status = found.status.unwrap_or_default();
    let current = status.observed_generation >= found.metadata.generation;
    let wanted = status.desired_number_scheduled;
    let ready = status.updated_number_scheduled.unwrap_or(0).min(status.number_ready);
    Ok((!current || ready < wanted).then(|| format!("weft-agent: {ready} of {wanted} nodes ready")))
}
