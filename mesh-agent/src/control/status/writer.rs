//! When is it written? While this replica leads: after a change has settled, one object after the other, and only what
//! differs.

use std::collections::HashMap;
use std::time::Duration;

use kube::api::{DynamicObject, Patch, PatchParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::objects::{Judged, Key, RouteSubject, Seen, Subject};
use super::routes::Known;
use super::{mesh, policies, routes, xmesh};
use crate::control::cluster::{FIELD_MANAGER, Standing};
use crate::discovery::{Discovery, RouteStatus};
use crate::lifecycle::{Shutdown, clock, tasks};
use crate::model::{RouteKind, TrustDomain};
use crate::registry::Registry;
use crate::telemetry::Telemetry;

/// How long changes are gathered before a pass, at least; up to half as long again at random. Pods come and go in bursts,
/// and status is for people.
const GATHER: Duration = Duration::from_millis(1000);
/// A pass without a reason. It costs no request where nothing differs.
const LOOK: Duration = Duration::from_secs(30);
/// Pause between two writes: at most 20 a second, however much there is to say.
const WRITE_PAUSE: Duration = Duration::from_millis(50);
/// Longest write.
const WRITE_TIME_MAX: Duration = Duration::from_secs(10);
/// Failures in a row after which the rest waits for the next pass: the API is away, or refuses us.
const FAILURES_MAX: usize = 3;

/// Writes status.
pub struct Writer {
    /// The API.
    pub client: Client,
    /// Whether this replica leads, and what is wrong with its keys.
    pub standing: Standing,
    /// What became of routes.
    pub discovery: Discovery,
    /// Who is there to be selected.
    pub registry: Registry,
    /// Where writes are counted.
    pub telemetry: Telemetry,
    /// What certificates are signed for.
    pub trust_domain: TrustDomain,
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer").finish_non_exhaustive()
    }
}

/// Starts writing, until shutdown.
pub fn start(writer: Writer, shutdown: Shutdown) {
    tasks::spawn("control status", async move {
        tokio::select! {
            () = shutdown.requested() => {}
            () = writer.run() => {}
        }
    });
}

/// Follows every kind for as long as it lives.
struct Followers(Vec<JoinHandle<()>>);

impl Drop for Followers {
    fn drop(&mut self) {
        self.0.iter().for_each(JoinHandle::abort);
    }
}

impl Writer {
    async fn run(self) {
        let mut leads = self.standing.leads.clone();
        loop {
            if leads.wait_for(|leads| *leads).await.is_err() {
                return;
            }
            tokio::select! {
                _ = leads.wait_for(|leads| !*leads) => {}
                () = self.write_while_leading() => {}
            }
        }
    }

    async fn write_while_leading(&self) {
        let seen = Seen::default();
        let follow =
            |subject| tasks::spawn("control objects", seen.clone().follow(self.client.clone(), subject));
        let _followers = Followers(Subject::ALL.map(follow).into());
        let (mut states, mut fault) = (self.registry.changes(), self.standing.fault.clone());
        let mut maker = xmesh::Maker::default();
        loop {
            tokio::select! {
                () = seen.changed() => {}
                _ = states.changed() => {}
                _ = fault.changed() => {}
                () = tokio::time::sleep(LOOK) => {}
            }
            tokio::time::sleep(GATHER.mul_f64(1.0 + fastrand::f64() / 2.0)).await;
            maker.look(&self.client, &seen).await;
            self.pass(&seen).await;
        }
    }

    /// Writes what differs now.
    async fn pass(&self, seen: &Seen) {
        let mut failures = 0;
        for (key, object, status) in self.differences(seen) {
            failures = if self.write(seen, key, &object, status).await { 0 } else { failures + 1 };
            if failures >= FAILURES_MAX {
                return;
            }
            tokio::time::sleep(WRITE_PAUSE).await;
        }
    }

    fn differences(&self, seen: &Seen) -> Vec<(Key, DynamicObject, Value)> {
        let snapshot = self.registry.snapshot();
        let known = self.discovery.routes();
        let statuses: HashMap<(RouteKind, &str, &str), &RouteStatus> =
            known.iter().map(|one| ((one.kind, &*one.namespace, &*one.name), one)).collect();
        let now = clock::wall();
        let mut all = Vec::new();
        for kind in [RouteKind::Http, RouteKind::Grpc, RouteKind::Tls, RouteKind::Tcp] {
            for (key, object) in seen.of(Subject::Route(RouteSubject::from(kind))) {
                let value = json!(object);
                let generation = object.metadata.generation;
                let status = statuses.get(&(kind, key.namespace.as_str(), key.name.as_str())).copied();
                let is_current = status.is_some_and(|status| status.generation == generation);
                let problem = if is_current { None } else { Judged::problem_of_route(kind, &value) };
                let known = Known { status, problem: problem.as_deref() };
                let parents = routes::parents(&value, generation, known, now);
                all.extend(parents.map(|parents| (key, object, json!({"parents": parents}))));
            }
        }
        for (key, object) in seen.of(Subject::AuthorizationPolicy) {
            let (value, generation) = (json!(object), object.metadata.generation);
            let judged = Judged::of_policy(&value);
            let ancestors = policies::ancestors(&value, generation, &judged, &snapshot, now);
            all.extend(ancestors.map(|ancestors| (key, object, json!({"ancestors": ancestors}))));
        }
        all.extend(xmesh::differences(seen, &snapshot.config.system_namespace, now));
        let fault = self.standing.fault.borrow().clone();
        let own = mesh::Own {
            fault: fault.as_deref(),
            started_with: &self.trust_domain,
            written: &snapshot.config.trust_domain,
        };
        let mut configs: Vec<_> = seen
            .of(Subject::MeshConfig)
            .into_iter()
            .map(|(key, object)| (key, json!(object), object))
            .collect();
        configs.sort_by_key(|(_, value, _)| mesh::rank(value));
        let in_force = configs.first().map(|(key, ..)| key.name.clone()).unwrap_or_default();
        for (key, value, object) in configs {
            let judged = Judged::of_mesh_config(&value);
            let conditions =
                mesh::conditions(&value, object.metadata.generation, &judged, &in_force, own, now);
            all.extend(conditions.map(|conditions| (key, object, json!({"conditions": conditions}))));
        }
        all
    }

    /// Writes one status; false when that failed. One that comes too late is no failure: the newer object is on its way to
    /// us, and is looked at then.
    async fn write(&self, seen: &Seen, key: Key, object: &DynamicObject, status: Value) -> bool {
        let Some(resource) = seen.resource(key.subject) else { return true };
        let api: Api<DynamicObject> = match key.namespace.as_str() {
            "" => Api::all_with(self.client.clone(), &resource),
            namespace => Api::namespaced_with(self.client.clone(), namespace, &resource),
        };
        let version = object.metadata.resource_version.clone();
        let patch = Patch::Merge(json!({
            "apiVersion": resource.api_version,
            "kind": resource.kind,
            "metadata": {"resourceVersion": version},
            "status": status,
        }));
        let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        let written = api.patch_status(&key.name, &params, &patch);
        match tokio::time::timeout(WRITE_TIME_MAX, written).await {
            Ok(Ok(answer)) => {
                tracing::debug!(object = %key, "status written");
                self.telemetry.status_written("written");
                seen.wrote(&key, object.metadata.resource_version.as_ref(), answer);
                true
            }
            Ok(Err(kube::Error::Api(status))) if status.is_conflict() || status.code == 404 => {
                self.telemetry.status_written("conflict");
                true
            }
            Ok(Err(error)) => {
                tracing::warn!(object = %key, %error, "its status cannot be written");
                self.telemetry.status_written("failed");
                false
            }
            Err(_elapsed) => {
                tracing::warn!(object = %key, "its status was not written in time");
                self.telemetry.status_written("failed");
                false
            }
        }
    }
}
