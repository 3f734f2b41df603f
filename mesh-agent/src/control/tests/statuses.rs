//! The status writer over an API in memory, with discovery from a directory of the same objects.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::watch;

use super::fake_api::FakeApi;
use super::reviewing::expected;
use super::{domain, until};
use crate::control::cluster::Standing;
use crate::control::reports::Leading;
use crate::control::reports::desk::Desk;
use crate::control::status::{self, Writer};
use crate::discovery;
use crate::lifecycle::{Trigger, clock, shutdown};
use crate::progress::wire::{InForce, Report};
use crate::telemetry::Telemetry;
use crate::{policy, registry, route};

const ROUTE: &str = "/apis/gateway.networking.k8s.io/v1/namespaces/shop/httproutes/split";
const POLICY: &str = "/apis/weft.dev/v1alpha1/namespaces/shop/authorizationpolicies/web";
const MESH: &str = "/apis/weft.dev/v1alpha1/meshconfigs/default";
const XMESHES: &str = "/apis/gateway.networking.x-k8s.io/v1alpha1/xmeshes";
const XMESH: &str = "/apis/gateway.networking.x-k8s.io/v1alpha1/xmeshes/weft";
const SECOND: &str = "/apis/weft.dev/v1alpha1/meshconfigs/second";

struct Scene {
    api: FakeApi,
    leads: watch::Sender<bool>,
    fault: watch::Sender<Option<String>>,
    desk: Desk,
    dir: tempfile::TempDir,
    _trigger: Trigger,
}

fn route() -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": {"name": "split", "namespace": "shop", "uid": "of-route", "generation": 1},
        "spec": {"parentRefs": [{"group": "", "kind": "Service", "name": "orders", "port": 80}],
            "rules": [{"backendRefs": [{"name": "orders", "port": 80}]}]},
    })
}

fn agent(node: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": format!("agent-{node}"), "namespace": "weft-system"},
        "spec": {"serviceAccountName": "weft-agent", "nodeName": node, "hostNetwork": true,
            "containers": [{"name": "agent", "image": "weft"}]},
    })
}

/// Agents on two nodes.
async fn scene() -> Scene {
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "orders", "namespace": "shop"},
        "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 80}]},
    });
    let dir = tempfile::tempdir().expect("a directory");
    for (name, object) in [("service.json", &service), ("route.json", &route())] {
        std::fs::write(dir.path().join(name), object.to_string()).expect("written");
    }
    for node in ["node-1", "node-2"] {
        std::fs::write(dir.path().join(format!("{node}.json")), agent(node).to_string()).expect("written");
    }
    let api = FakeApi::default();
    api.put(ROUTE, route());
    api.put(
        POLICY,
        json!({
            "apiVersion": "weft.dev/v1alpha1", "kind": "AuthorizationPolicy",
            "metadata": {"name": "web", "namespace": "shop", "uid": "of-policy", "generation": 3},
            "spec": {"targetRefs": [{"kind": "Pod", "selector": {}}], "action": "ALLOW"},
        }),
    );
    for (path, created) in [(MESH, "2020-01-01T00:00:00Z"), (SECOND, "2021-01-01T00:00:00Z")] {
        let name = path.rsplit('/').next().expect("a name");
        api.put(
            path,
            json!({
                "apiVersion": "weft.dev/v1alpha1", "kind": "MeshConfig",
                "metadata": {"name": name, "uid": format!("of-{name}"), "generation": 1, "creationTimestamp": created},
                "spec": {},
            }),
        );
    }
    let (trigger, shutdown) = shutdown::channel();
    let (registry_writer, registry) = registry::new();
    let telemetry = Telemetry::without_access_log();
    let source = discovery::Settings::Directory(dir.path().to_owned());
    let (policies, routes) = (policy::new().0, route::new().0);
    let discovery = discovery::start(source, registry_writer, policies, routes, &telemetry, shutdown.clone());
    let discovery = discovery.await.expect("starts");
    let desk = Desk::new(Leading::alone());
    let ((leads, leading), (fault, faulty)) = (watch::channel(false), watch::channel(None));
    let writer = Writer {
        client: api.client(),
        standing: Standing { leads: leading, fault: faulty },
        discovery,
        registry,
        telemetry,
        trust_domain: domain("cluster.local"),
        heard: desk.heard(),
        agents: expected(),
    };
    status::start(writer, shutdown);
    Scene { api, leads, fault, desk, dir, _trigger: trigger }
}

/// [`until`] for a clock that stands still: a minute may have to pass.
async fn until_at_last(what: &str, mut condition: impl FnMut() -> bool) {
    let holds = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(200), holds).await.is_ok(), "in vain: {what}");
}

/// `type=status reason` of each condition.
fn said(conditions: &Value) -> Vec<String> {
    let text = |one: &Value, field: &str| one[field].as_str().unwrap_or("?").to_owned();
    let all = conditions.as_array().map(Vec::as_slice).unwrap_or_default().iter();
    all.map(|one| format!("{}={} {}", text(one, "type"), text(one, "status"), text(one, "reason"))).collect()
}

impl Scene {
    fn conditions(&self, path: &str) -> Vec<String> {
        let status = self.api.get(path).expect("there")["status"].clone();
        match path {
            ROUTE => said(&status["parents"][0]["conditions"]),
            POLICY => said(&status["ancestors"][0]["conditions"]),
            _ => said(&status["conditions"]),
        }
    }

    /// A node says that these are in force; it has said `number` things in this series before.
    fn report(&self, node: &str, number: u64, all: &[(&str, i64)]) {
        let in_force =
            |(uid, generation): &(&str, i64)| InForce { uid: (*uid).to_owned(), generation: *generation };
        let in_force = all.iter().map(in_force).collect();
        let report = Report { series: 1, number, in_force, gone: Vec::new() };
        let heard = self.desk.take(&node.into(), &report).expect("good").into_inner();
        assert!(!heard.begin_again);
    }

    /// `ready/total` of the policy's status.
    fn nodes(&self) -> String {
        let status = self.api.get(POLICY).expect("there")["status"].clone();
        format!("{}/{}", status["nodesReady"], status["nodesTotal"])
    }
}

const EVERYTHING: [(&str, i64); 3] = [("of-policy", 3), ("of-route", 1), ("of-default", 1)];

#[tokio::test]
async fn the_leader_alone_writes_and_then_there_is_nothing_to_do() {
    let scene = scene().await;
    scene.report("node-1", 0, &EVERYTHING);
    scene.report("node-2", 0, &EVERYTHING);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(scene.api.requests("").len(), 0, "it does not lead");
    scene.leads.send_replace(true);
    until("everything is said", || scene.api.requests("PATCH").len() >= 4).await;
    until("the route is told", || !scene.conditions(ROUTE).is_empty()).await;
    let route =
        ["Accepted=True Accepted", "ResolvedRefs=True ResolvedRefs", "weft.dev/Programmed=True Programmed"];
    assert_eq!(scene.conditions(ROUTE), route);
    assert_eq!(scene.conditions(POLICY), ["Accepted=False TargetNotFound", "Programmed=True Programmed"]);
    assert_eq!(scene.nodes(), "2/2");
    assert_eq!(scene.conditions(MESH), ["Accepted=True Accepted", "Programmed=True Programmed"]);
    assert_eq!(scene.conditions(SECOND), ["Accepted=False Conflicted"]);
    tokio::time::sleep(Duration::from_secs(3)).await;
    let quiet = scene.api.requests("").len();
    assert_eq!(scene.api.requests("PATCH").len(), 4, "{:?}", scene.api.requests("PATCH"));
    // Something else changes.
    let other = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "other"}});
    std::fs::write(scene.dir.path().join("other.json"), other.to_string()).expect("written");
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(scene.api.requests("").len(), quiet, "open watches and no request");
}

#[tokio::test]
async fn others_entries_and_newer_versions_are_respected() {
    let scene = scene().await;
    let other = json!({"parentRef": {"name": "gate"}, "controllerName": "example.net/x", "conditions": []});
    let mut with_other = route();
    with_other["status"]["parents"] = json!([other]);
    scene.api.put(ROUTE, with_other);
    scene.leads.send_replace(true);
    let parents = || scene.api.get(ROUTE).expect("there")["status"]["parents"].clone();
    until("ours is beside it", || parents().as_array().map(Vec::len) == Some(2)).await;
    assert_eq!(parents()[0], other);
    // Somebody takes ours away; it comes back, once.
    let mut without = scene.api.get(ROUTE).expect("there");
    without["status"]["parents"] = json!([other]);
    scene.api.put(ROUTE, without);
    until("ours is back", || parents().as_array().map(Vec::len) == Some(2)).await;
}

#[tokio::test]
async fn a_fault_of_the_keys_is_told_on_the_mesh_config_and_taken_back() {
    let scene = scene().await;
    scene.report("node-1", 0, &EVERYTHING);
    scene.report("node-2", 0, &EVERYTHING);
    scene.leads.send_replace(true);
    until("all is well", || scene.conditions(MESH).len() == 2).await;
    scene.fault.send_replace(Some("x".to_owned()));
    until("it is told", || scene.conditions(MESH)[1] == "Programmed=False CertificateAuthority").await;
    scene.fault.send_replace(None);
    until("it is taken back", || scene.conditions(MESH)[1] == "Programmed=True Programmed").await;
}

#[tokio::test]
async fn an_api_that_was_away_gets_what_it_missed() {
    let scene = scene().await;
    scene.leads.send_replace(true);
    until("all is well", || scene.conditions(MESH).len() == 2).await;
    scene.api.set_away(true);
    scene.fault.send_replace(Some("x".to_owned()));
    tokio::time::sleep(Duration::from_secs(3)).await;
    scene.api.set_away(false);
    until("it is told", || scene.conditions(MESH)[1] == "Programmed=False CertificateAuthority").await;
}

/// How often an XMesh was made.
fn made(api: &FakeApi) -> usize {
    api.requests("POST").iter().filter(|request| request.ends_with(XMESHES)).count()
}

#[tokio::test(start_paused = true)]
async fn an_xmesh_is_made_where_the_kind_is_served_and_made_again_once_a_minute_at_most() {
    let scene = scene().await;
    scene.leads.send_replace(true);
    tokio::time::sleep(Duration::from_secs(600)).await;
    let asked = scene.api.requests("GET").iter().filter(|request| request.ends_with(XMESHES)).count();
    assert!((9..=22).contains(&asked), "asked {asked} times in ten minutes for a kind that is not served");
    scene.api.serve("xmeshes");
    until_at_last("it is made", || scene.api.get(XMESH).is_some()).await;
    until_at_last("it is accepted", || scene.conditions(XMESH) == ["Accepted=True Accepted"]).await;
    let there = scene.api.get(XMESH).expect("made");
    assert_eq!(there["spec"], json!({"controllerName": "weft.dev/mesh"}), "and nothing else");
    assert!(there["status"]["supportedFeatures"].as_array().is_some_and(|features| features.len() > 10));
    let writes = || scene.api.requests("P").len();
    let before = writes();
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(writes(), before, "nothing changes, nothing is written");

    for round in 2..=4 {
        let started = clock::now();
        scene.api.delete(XMESH);
        until_at_last("it is made again", || made(&scene.api) == round).await;
        let took = clock::now().duration_since(started);
        // The first is long made; what follows at once waits for its minute.
        assert_eq!(took > Duration::from_secs(55), round > 2, "{took:?} in round {round}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_spec_of_an_xmesh_belongs_to_others_and_parameters_must_be_a_mesh_config() {
    let scene = scene().await;
    scene.api.serve("xmeshes");
    let theirs = json!({
        "apiVersion": "gateway.networking.x-k8s.io/v1alpha1", "kind": "XMesh",
        "metadata": {"name": "weft", "generation": 1}, "spec": {"controllerName": "example.net/mesh"},
    });
    scene.api.put(XMESH, theirs.clone());
    let mut ours = theirs.clone();
    ours["metadata"]["name"] = json!("ours");
    ours["spec"] = json!({
        "controllerName": "weft.dev/mesh", "description": "by hand",
        "parametersRef": {"group": "weft.dev", "kind": "MeshConfig", "name": "default"},
    });
    let path = format!("{XMESHES}/ours");
    scene.api.put(&path, ours.clone());
    scene.leads.send_replace(true);
    until_at_last("it is accepted", || scene.conditions(&path) == ["Accepted=True Accepted"]).await;
    scene.api.delete(MESH);
    // Then the second is in force, and the first is not there.
    until_at_last("it is refused", || scene.conditions(&path) == ["Accepted=False InvalidParameters"]).await;
    let refused = scene.api.get(&path).expect("there");
    assert_eq!((&refused["spec"], &refused["status"]["supportedFeatures"]), (&ours["spec"], &Value::Null));
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert_eq!(made(&scene.api), 0, "there is one of ours");
    let untouched = scene.api.get(XMESH).expect("there");
    assert_eq!((&untouched["spec"], &untouched["status"]), (&theirs["spec"], &Value::Null));
    // Without it there is none of ours, and the name is another's.
    scene.api.delete(&path);
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert_eq!(made(&scene.api), 0);
}

#[tokio::test]
async fn a_policy_says_on_how_many_nodes_it_is_in_force_and_which_lack_it() {
    let scene = scene().await;
    scene.leads.send_replace(true);
    until("nobody has it", || scene.nodes() == "0/2").await;
    assert_eq!(scene.conditions(POLICY)[1], "Programmed=False Pending");
    scene.report("node-1", 0, &EVERYTHING);
    scene.report("node-2", 0, &[("of-policy", 2)]);
    until("one is behind", || scene.nodes() == "1/2").await;
    let message =
        scene.api.get(POLICY).expect("there")["status"]["ancestors"][0]["conditions"][1]["message"].clone();
    assert_eq!(message, "in force on 1 of 2 nodes; not on node-2");
    scene.report("node-2", 1, &[("of-policy", 3)]);
    until("both have it", || scene.nodes() == "2/2").await;
    assert_eq!(scene.conditions(POLICY)[1], "Programmed=True Programmed");
    until("the route lacks one", || {
        scene.conditions(ROUTE).contains(&"weft.dev/Programmed=False Pending".to_owned())
    })
    .await;
    // Another version of the policy: nobody has that.
    let mut changed = scene.api.get(POLICY).expect("there");
    changed["metadata"]["generation"] = json!(4);
    scene.api.put(POLICY, changed);
    until("nobody has it", || scene.nodes() == "0/2").await;
    // An agent that is gone is not waited for.
    std::fs::remove_file(scene.dir.path().join("node-2.json")).expect("removed");
    scene.report("node-1", 1, &[("of-policy", 4)]);
    until("all that are left have it", || scene.nodes() == "1/1").await;
}

#[tokio::test]
async fn a_new_leader_does_not_take_back_what_the_one_before_wrote() {
    let scene = scene().await;
    scene.report("node-1", 0, &EVERYTHING);
    scene.report("node-2", 0, &EVERYTHING);
    scene.leads.send_replace(true);
    until("everything is said", || scene.api.requests("PATCH").len() >= 4).await;
    assert_eq!(scene.nodes(), "2/2");
    scene.leads.send_replace(false);
    until("it is forgotten", || scene.desk.heard().reporting() == 0).await;
    let before = scene.api.requests("PATCH").len();
    scene.leads.send_replace(true);
    scene.report("node-1", 0, &EVERYTHING);
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(scene.api.requests("PATCH").len(), before, "one node has not found the leader yet");
    // The other has lost the policy, and all have reported: nothing is to be waited for any more.
    scene.report("node-2", 0, &EVERYTHING[1..]);
    until("a node lacks it", || scene.nodes() == "1/2").await;
    assert_eq!(scene.conditions(ROUTE)[2], "weft.dev/Programmed=True Programmed");
}
