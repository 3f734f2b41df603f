//! Discovery from the Kubernetes API and discovery from a directory come to the same state: one history of objects goes
//! into both, and what they publish is compared. Then the API fails in every way that can be ordered: the last state stays,
//! the end is the same, and nobody storms a server that is back.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::{Duration, Instant};

use mesh_agent::discovery::{self, Access, Discovery, Settings};
use mesh_agent::lifecycle::{Trigger, shutdown};
use mesh_agent::policy::{self, Policies};
use mesh_agent::registry::{self, Registry};
use mesh_agent::route::{self, Routes};
use mesh_agent::telemetry::Telemetry;
use mesh_tests::ApiServer;
use mesh_tests::api::faults::{Fault, What, busiest};
use mesh_tests::wait::now;
use serde_json::{Value, json};
use tempfile::TempDir;

/// Longer than the longest pause of an agent that lost the API.
const PATIENCE: Duration = Duration::from_secs(60);

/// How many kinds an agent reads.
const KINDS: usize = 12;

/// A running discovery.
struct Reader {
    registry: Registry,
    policies: Policies,
    routes: Routes,
    discovery: Discovery,
    _stop: Trigger,
}

impl Reader {
    async fn start(settings: Settings) -> Self {
        let (registry_writer, registry) = registry::new();
        let (policy_writer, policies) = policy::new();
        let (route_writer, routes) = route::new();
        let (stop, shutdown) = shutdown::channel();
        let telemetry = Telemetry::without_access_log();
        let started =
            discovery::start(settings, registry_writer, policy_writer, route_writer, &telemetry, shutdown);
        let discovery = started.await.expect("discovery starts");
        Self { registry, policies, routes, discovery, _stop: stop }
    }

    /// What it has published, a line for each thing.
    fn state(&self) -> BTreeSet<String> {
        let (snapshot, policies, routes) =
            (self.registry.snapshot(), self.policies.current(), self.routes.current());
        let mut lines = BTreeSet::from([format!("{:?}", snapshot.config)]);
        lines.extend(snapshot.workloads().map(|workload| format!("{workload:?}")));
        lines.extend(snapshot.services().map(|service| format!("{service:?}")));
        lines.extend(policies.policies().map(|policy| format!("{policy:?}")));
        lines.extend(routes.attached().map(|attached| format!("{attached:?}")));
        // Where an object stands differs: a file and a line, or nowhere.
        let problems = self.discovery.problems();
        lines.extend(problems.iter().map(|one| format!("{:?} {:?} {}", one.object, one.field, one.message)));
        lines
    }
}

/// One world in two places.
struct Twins {
    server: ApiServer,
    dir: TempDir,
    _kubeconfig: TempDir,
    api: Reader,
    files: Reader,
    objects: BTreeMap<String, Value>,
    random: fastrand::Rng,
    count: u32,
}

impl Twins {
    async fn start(seed: u64) -> Self {
        let server = ApiServer::with_mesh_kinds();
        let (dir, kubeconfig) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        let file = kubeconfig.path().join("config");
        fs::write(&file, server.kubeconfig(None)).unwrap();
        let files = Reader::start(Settings::Directory(dir.path().to_owned())).await;
        let access = Access { kubeconfig: Some(file), context: None };
        let api = Reader::start(Settings::Kubernetes(access)).await;
        api.discovery.first_state().await;
        let (objects, random) = (BTreeMap::new(), fastrand::Rng::with_seed(seed));
        let mut twins = Self { server, dir, _kubeconfig: kubeconfig, api, files, objects, random, count: 0 };
        // What a cluster has from the start.
        for name in ["default", "kube-node-lease", "kube-public", "kube-system"] {
            twins.put(namespace(name, "disabled"));
        }
        for name in ["red", "blue"] {
            twins.put(namespace(name, "enabled"));
            twins.put(
                json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": format!("node-{name}") } }),
            );
        }
        for account in 0..3 {
            twins.put(json!({
                "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": format!("sa-{account}"), "namespace": "red" },
            }));
        }
        twins
    }

    /// Writes an object in both places.
    fn put(&mut self, mut object: Value) {
        self.count += 1;
        let key = key(&object);
        // As old as it was when it was new.
        let old = self.objects.get(&key);
        let since = format!("2026-01-01T{:02}:{:02}:00Z", self.count / 60 % 24, self.count % 60);
        object["metadata"]["creationTimestamp"] =
            old.map_or_else(|| since.into(), |old| old["metadata"]["creationTimestamp"].clone());
        object["metadata"]["uid"] =
            old.map_or_else(|| format!("uid-{}", self.count).into(), |old| old["metadata"]["uid"].clone());
        let temporary = self.dir.path().join(".new");
        fs::write(&temporary, object.to_string()).unwrap();
        fs::rename(&temporary, self.dir.path().join(format!("{key}.yaml"))).unwrap();
        self.objects.insert(key, object.clone());
        let (kind, name) = (&object["kind"], &object["metadata"]["name"]);
        // The server has these already, with a UID of its own.
        if kind == "Namespace"
            && name.as_str().is_some_and(|name| name == "default" || name.starts_with("kube-"))
        {
            return;
        }
        self.server.put(object);
    }

    /// Removes an object in both places.
    fn remove(&mut self, key: &str) {
        let object = self.objects.remove(key).expect("it was put");
        fs::remove_file(self.dir.path().join(format!("{key}.yaml"))).unwrap();
        let (group, plural) = match object["kind"].as_str().unwrap() {
            "Pod" => ("", "pods"),
            "Service" => ("", "services"),
            "EndpointSlice" => ("discovery.k8s.io", "endpointslices"),
            "AuthorizationPolicy" => ("weft.dev", "authorizationpolicies"),
            "HTTPRoute" => ("gateway.networking.k8s.io", "httproutes"),
            kind => panic!("{kind} is not removed here"),
        };
        let metadata = &object["metadata"];
        let name =
            format!("{}/{}", metadata["namespace"].as_str().unwrap(), metadata["name"].as_str().unwrap());
        assert!(self.server.delete(group, plural, &name), "{name} was there");
    }

    /// Something happens.
    fn step(&mut self) {
        let number = self.random.u32(0..8);
        let space = if self.random.bool() { "red" } else { "blue" };
        let wanted = match self.random.u32(0..9) {
            0..=3 => self.pod(space, number),
            4 => self.service(space, number % 3),
            5 => self.slice(space, number % 3),
            6 => self.policy(space, number % 3),
            7 => self.route(space, number % 3),
            _ => {
                let mode = if self.random.bool() { "enabled" } else { "disabled" };
                return self.put(namespace(space, mode));
            }
        };
        let key = key(&wanted);
        if self.objects.contains_key(&key) && self.random.u32(0..3) == 0 {
            self.remove(&key);
        } else {
            self.put(wanted);
        }
    }

    fn pod(&mut self, space: &str, number: u32) -> Value {
        let net = if space == "red" { 1 } else { 2 };
        let node = if number.is_multiple_of(2) { "node-red" } else { "node-blue" };
        let phase = if self.random.u32(0..6) == 0 { "Succeeded" } else { "Running" };
        let ready = if self.random.bool() { "True" } else { "False" };
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": format!("pod-{number}"), "namespace": space,
                "labels": { "app": format!("app-{}", self.random.u32(0..3)) },
            },
            "spec": {
                "nodeName": node, "serviceAccountName": format!("sa-{}", number % 3),
                "containers": [{ "name": "main", "image": "example.test/main:1", "ports": [{ "containerPort": 8080 }] }],
            },
            "status": {
                "phase": phase, "podIP": format!("10.0.{net}.{number}"), "podIPs": [{ "ip": format!("10.0.{net}.{number}") }],
                "conditions": [{ "type": "Ready", "status": ready }],
            },
        })
    }

    fn service(&mut self, space: &str, number: u32) -> Value {
        let net = if space == "red" { 1 } else { 2 };
        let ip = format!("10.96.{net}.{number}");
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": { "name": format!("svc-{number}"), "namespace": space },
            "spec": {
                "clusterIP": ip, "clusterIPs": [ip], "selector": { "app": format!("app-{number}") },
                "ports": [{ "name": "http", "port": 80 + self.random.u32(0..2), "targetPort": 8080, "protocol": "TCP" }],
            },
        })
    }

    fn slice(&mut self, space: &str, number: u32) -> Value {
        let net = if space == "red" { 1 } else { 2 };
        let ready = self.random.bool();
        let endpoints: Vec<Value> = (0..self.random.u32(1..4))
            .map(|pod| json!({
                "addresses": [format!("10.0.{net}.{pod}")], "conditions": { "ready": ready, "serving": ready },
                "targetRef": { "kind": "Pod", "name": format!("pod-{pod}"), "namespace": space },
            }))
            .collect();
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {
                "name": format!("svc-{number}-x"), "namespace": space,
                "labels": { "kubernetes.io/service-name": format!("svc-{number}") },
            },
            "endpoints": endpoints, "ports": [{ "name": "http", "port": 8080, "protocol": "TCP" }],
        })
    }

    fn policy(&mut self, space: &str, number: u32) -> Value {
        let action = if self.random.bool() { "ALLOW" } else { "DENY" };
        let account = format!("sa-{}", self.random.u32(0..3));
        json!({
            "apiVersion": "weft.dev/v1alpha1", "kind": "AuthorizationPolicy",
            "metadata": { "name": format!("policy-{number}"), "namespace": space },
            "spec": {
                "targetRefs": [{ "kind": "Pod", "selector": { "matchLabels": { "app": format!("app-{number}") } } }],
                "action": action,
                "rules": [{ "sources": [{ "type": "ServiceAccount", "serviceAccount": { "namespace": "red", "name": account } }] }],
            },
        })
    }

    fn route(&mut self, space: &str, number: u32) -> Value {
        let service =
            |name: u32| json!({ "group": "", "kind": "Service", "name": format!("svc-{name}"), "port": 80 });
        json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
            "metadata": { "name": format!("route-{number}"), "namespace": space },
            "spec": { "parentRefs": [service(number)], "rules": [{ "backendRefs": [service(self.random.u32(0..3))] }] },
        })
    }

    /// Waits until both have published the same, the objects of now.
    async fn agree(&self, what: &str) {
        let deadline = now() + PATIENCE;
        loop {
            let (api, files) = (self.api.state(), self.files.state());
            if api == files {
                // A change may be on its way to both: the same again a moment later.
                tokio::time::sleep(Duration::from_millis(150)).await;
                if self.api.state() == api && self.files.state() == api {
                    return;
                }
            }
            if now() > deadline {
                let only = |a: &BTreeSet<String>, b: &BTreeSet<String>| {
                    a.difference(b).cloned().collect::<Vec<_>>().join("\n")
                };
                panic!(
                    "{what}: only from the API:\n{}\nonly from files:\n{}",
                    only(&api, &files),
                    only(&files, &api)
                );
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Watches that run, one per kind that is served.
    async fn settle(&self) {
        self.agree("before the fault").await;
    }

    /// The requests since then come one kind after the other: each kind lists once and watches once, with little over for
    /// a second try.
    fn no_burst(&self, since: Instant) {
        let requests = self.server.requests_since(since);
        let busiest = busiest(&requests, Duration::from_secs(1));
        assert!(busiest <= 4 * KINDS, "{busiest} requests within a second: {requests:?}");
    }
}

fn namespace(name: &str, mesh: &str) -> Value {
    let labels = json!({ "kubernetes.io/metadata.name": name, "weft.dev/mesh": mesh });
    json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name, "labels": labels } })
}

fn key(object: &Value) -> String {
    let metadata = &object["metadata"];
    let namespace = metadata["namespace"].as_str().unwrap_or("-");
    format!("{}.{namespace}.{}", object["kind"].as_str().unwrap(), metadata["name"].as_str().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_history_ends_in_one_state_by_files_and_by_the_api() {
    for seed in 1..4 {
        let mut twins = Twins::start(seed).await;
        for step in 1..=200 {
            twins.step();
            if step % 40 == 0 {
                twins.agree(&format!("seed {seed}, step {step}")).await;
            }
        }
        assert!(
            twins.api.registry.snapshot().workloads().count() > 2,
            "the history left something to compare"
        );
        twins.no_burst(now() - PATIENCE);
    }
}

/// Orders faults, lets things happen under them, takes them back, and waits for the same end.
async fn heals(seed: u64, faults: Vec<Fault>) -> Duration {
    let mut twins = Twins::start(seed).await;
    for _ in 0..30 {
        twins.step();
    }
    twins.settle().await;
    let begun = now();
    let counted = faults.iter().any(|fault| fault.times.is_some());
    // What is told before it is asked about: an open watch may meet its fault at once.
    let ordered = faults.clone();
    faults.into_iter().for_each(|fault| twins.server.order(fault));
    for _ in 0..30 {
        twins.step();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(!counted || twins.server.ordered() != ordered, "the faults were met: {ordered:?}");
    twins.server.clear();
    let back = now();
    twins.agree("after the fault").await;
    twins.no_burst(begun);
    back.elapsed()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_that_is_too_old_is_listed_anew_within_seconds() {
    let expire = || Fault::new(What::Expire).times(1);
    let took =
        heals(11, vec![expire().verb("watch").on("pods"), expire().verb("watch").on("services")]).await;
    assert!(took < Duration::from_secs(20), "{took:?}, where a relist needs a second");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_is_cut_inside_a_line_goes_on() {
    heals(12, vec![Fault::new(What::Cut).verb("watch").times(5)]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_refuses_for_a_while_is_asked_again_later() {
    let refuse = |code, retry_after| Fault::new(What::Status { code, retry_after }).times(6);
    let cut = Fault::new(What::Cut).verb("watch").times(3);
    heals(13, vec![cut, refuse(500, None), refuse(503, None), refuse(429, Some(2))]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_forbidden_a_kind_for_a_while_has_the_others() {
    let forbid =
        |code, on: &str| [Fault::status(code).on(on), Fault::new(What::Cut).verb("watch").on(on).times(1)];
    heals(14, [forbid(403, "services"), forbid(401, "pods")].concat()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_that_stalls_or_has_no_bookmarks_loses_nothing() {
    let stall = Fault::new(What::Stall).verb("watch").on("pods");
    let (none, late) =
        (Fault::new(What::NoBookmarks).verb("watch"), Fault::new(What::LateBookmarks { ms: 500 }));
    heals(15, vec![stall, none, late, Fault::new(What::Delay { ms: 200 }).verb("list")]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_state_stays_while_the_api_is_away_and_nobody_storms_it_after() {
    let mut twins = Twins::start(16).await;
    for _ in 0..40 {
        twins.step();
    }
    twins.settle().await;
    let before = twins.api.state();
    twins.server.down();
    for _ in 0..20 {
        twins.step();
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(twins.api.state(), before, "the last state stays");
    }
    assert_ne!(twins.files.state(), before, "something happened meanwhile");
    let back = now();
    twins.server.up();
    twins.agree("after the server is back").await;
    twins.no_burst(back);
    assert!(twins.server.requests_since(back).len() <= 6 * KINDS, "{:?}", twins.server.counts());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_object_is_told_and_keeps_its_last_good_version() {
    let mut twins = Twins::start(17).await;
    for _ in 0..40 {
        twins.step();
    }
    let good = twins.policy("red", 0);
    twins.put(good.clone());
    twins.settle().await;
    let (policies, problems) = (twins.api.policies.current(), twins.api.discovery.problem_count());
    let mut bad = good.clone();
    bad["spec"]["rules"][0]["sources"][0]["nmae"] = "x".into();
    twins.put(bad);
    let deadline = now() + PATIENCE;
    while twins.api.discovery.problem_count() == problems {
        assert!(now() < deadline, "the problem is never told");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let told = twins.api.discovery.problems();
    let problem = told.iter().find(|one| one.object.as_deref() == Some("AuthorizationPolicy red/policy-0"));
    let problem = problem.unwrap_or_else(|| panic!("{told:?}"));
    assert!(
        problem.message.contains("nmae") || problem.field.as_deref().is_some_and(|f| f.contains("nmae")),
        "{problem}"
    );
    let lines =
        |set: &policy::PolicySet| set.policies().map(|one| format!("{one:?}")).collect::<BTreeSet<_>>();
    assert_eq!(lines(&twins.api.policies.current()), lines(&policies), "the last good version stays");
    twins.agree("with a bad object").await;
    twins.put(good);
    twins.agree("mended").await;
    assert_eq!(twins.api.discovery.problem_count(), problems);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_pods_come_in_slow_pages() {
    let twins = Twins::start(18).await;
    for number in 0..10_000 {
        twins.server.put(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": format!("many-{number}"), "namespace": "red", "uid": format!("many-{number}") },
            "spec": { "nodeName": "node-red", "containers": [{ "name": "main", "image": "example.test/main:1" }] },
            "status": { "phase": "Running", "podIP": format!("10.1.{}.{}", number / 250, number % 250) },
        }));
    }
    twins.server.order(Fault::new(What::Delay { ms: 100 }).verb("list").on("pods"));
    twins.server.order(Fault::new(What::Expire).verb("list").on("pods").times(1));
    twins.server.order(Fault::new(What::Expire).verb("watch").on("pods").times(1));
    let (begun, deadline) = (now(), now() + PATIENCE);
    while twins.api.registry.snapshot().workloads().count() < 10_000
        || twins.server.count("list", "pods") < 21
    {
        assert!(now() < deadline, "{:?}", twins.server.counts());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    twins.no_burst(begun);
}
