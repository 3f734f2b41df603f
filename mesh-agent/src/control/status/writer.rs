//! When is it written? While this replica leads: after a change has settled, one object after the other, and only what
//! differs.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kube::api::{DynamicObject, Patch, PatchParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::objects::{Judged, Key, RouteSubject, Seen, Subject};
use super::programmed::{Pace, SETTLED_AFTER, Said};
use super::routes::Known;
use super::{mesh, policies, routes, xmesh};
use crate::control::cluster::{FIELD_MANAGER, Standing};
use crate::control::reports::{Counting, Heard};
use crate::control::review::Expected;
use crate::discovery::{Discovery, RouteStatus};
use crate::lifecycle::{Shutdown, clock, tasks};
use crate::model::{RouteKind, TrustDomain, Workload};
use crate::registry::{Registry, Snapshot};
use crate::telemetry::Telemetry;

/// How long changes are gathered before a pass, at least; up to half as long again at random. Pods come and go in bursts,
/// and status is for people.
const GATHER: Duration = Duration::from_millis(1000);
/// A pass without a reason. It costs no request where nothing differs.
const LOOK: Duration = Duration::from_secs(30);
/// The same, while numbers of nodes are held back.
const LOOK_SOON: Duration = Duration::from_secs(5);
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
    /// What nodes say is in force.
    pub heard: Heard,
    /// Whose pods are agents.
    pub agents: Expected,
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

/// What this leader knows of its own time.
#[derive(Debug)]
struct Term {
    began: Instant,
    /// When each object's status was written.
    written: BTreeMap<Key, Instant>,
    /// Something is known that is not written yet, on purpose.
    holds_back: bool,
}

impl Term {
    fn telling<'a>(&'a self, counting: &'a Counting<'a>) -> Telling<'a> {
        let now = clock::now();
        let is_old = now.saturating_duration_since(self.began) >= SETTLED_AFTER;
        Telling { term: self, counting, is_settled: is_old || counting.is_complete(), now, holds_back: false }
    }
}

/// Says of one object after the other on how many nodes it is in force.
struct Telling<'a> {
    term: &'a Term,
    counting: &'a Counting<'a>,
    is_settled: bool,
    now: Instant,
    holds_back: bool,
}

impl Telling<'_> {
    fn say(&mut self, key: &Key, object: &DynamicObject, present: Option<Said>, is_refused: bool) -> Said {
        let uid = object.metadata.uid.as_deref().unwrap_or_default();
        let known =
            Said::new(&self.counting.count(uid, object.metadata.generation.unwrap_or_default()), is_refused);
        let written_at = self.term.written.get(key).copied();
        let (said, is_held) =
            Pace { is_settled: self.is_settled, written_at, now: self.now }.next(present, known);
        self.holds_back |= is_held;
        said
    }
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
            self.heard.forget();
        }
    }

    async fn write_while_leading(&self) {
        let seen = Seen::default();
        let follow =
            |subject| tasks::spawn("control objects", seen.clone().follow(self.client.clone(), subject));
        let _followers = Followers(Subject::ALL.map(follow).into());
        let (mut states, mut fault) = (self.registry.changes(), self.standing.fault.clone());
        let mut maker = xmesh::Maker::default();
        let mut heard = self.heard.changes();
        let mut term = Term { began: clock::now(), written: BTreeMap::new(), holds_back: false };
        loop {
            tokio::select! {
                () = seen.changed() => {}
                _ = states.changed() => {}
                _ = fault.changed() => {}
                _ = heard.changed() => {}
                () = tokio::time::sleep(if term.holds_back { LOOK_SOON } else { LOOK }) => {}
            }
            tokio::time::sleep(GATHER.mul_f64(1.0 + fastrand::f64() / 2.0)).await;
            maker.look(&self.client, &seen).await;
            self.pass(&seen, &mut term).await;
        }
    }

    /// Writes what differs now.
    async fn pass(&self, seen: &Seen, term: &mut Term) {
        let mut failures = 0;
        for (key, object, status) in self.differences(seen, term) {
            let is_written = self.write(seen, &key, &object, status).await;
            failures = if is_written { 0 } else { failures + 1 };
            if failures >= FAILURES_MAX {
                return;
            }
            term.written.insert(key, clock::now());
            tokio::time::sleep(WRITE_PAUSE).await;
        }
    }

    fn differences(&self, seen: &Seen, term: &mut Term) -> Vec<(Key, DynamicObject, Value)> {
        let snapshot = self.registry.snapshot();
        let counting = self.heard.expecting(&self.nodes(&snapshot));
        let mut telling = term.telling(&counting);
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
                let present = routes::present(&value, generation);
                let said = telling.say(&key, &object, present, problem.is_some());
                let parents = routes::parents(&value, generation, known, &said, now);
                all.extend(parents.map(|parents| (key, object, json!({"parents": parents}))));
            }
        }
        for (key, object) in seen.of(Subject::AuthorizationPolicy) {
            let (value, generation) = (json!(object), object.metadata.generation);
            let judged = Judged::of_policy(&value);
            let present = policies::present(&value, generation);
            let said = telling.say(&key, &object, present, !matches!(judged, Judged::Good(_)));
            let status = policies::status(&value, generation, &judged, &snapshot, &said, now);
            all.extend(status.map(|status| (key, object, status)));
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
            let (judged, generation) = (Judged::of_mesh_config(&value), object.metadata.generation);
            let present = mesh::present(&value, generation, own);
            let said = telling.say(&key, &object, present, !matches!(judged, Judged::Good(_)));
            let status = mesh::status(&value, generation, &judged, &in_force, own, &said, now);
            all.extend(status.map(|status| (key, object, status)));
        }
        term.holds_back = telling.holds_back;
        term.written.retain(|key, _| seen.has(key));
        all
    }

    /// Nodes with a pod of the agents' account.
    fn nodes(&self, snapshot: &Snapshot) -> BTreeSet<Arc<str>> {
        let is_agent = |pod: &&Arc<Workload>| {
            *pod.name.namespace == *self.agents.namespace && *pod.service_account == *self.agents.account
        };
        let agents = snapshot.workloads().filter(is_agent).filter(|pod| !pod.node.is_empty());
        agents.map(|pod| pod.node.clone()).collect()
    }

    /// Writes one status; false when that failed. One that comes too late is no failure: the newer object is on its way to
    /// us, and is looked at then.
    async fn write(&self, seen: &Seen, key: &Key, object: &DynamicObject, status: Value) -> bool {
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
                seen.wrote(key, object.metadata.resource_version.as_ref(), answer);
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
