//! Which node a pod's token stands for, with an API in memory.

use std::time::{Duration, SystemTime};

use data_encoding::BASE64URL_NOPAD;
use serde_json::{Value, json};

use super::fake_api::FakeApi;
use super::workload;
use crate::control::callers::Unknown;
use crate::control::review::{Expected, Reviews};
use crate::lifecycle::clock;
use crate::model::MeshConfig;
use crate::registry::{self, Snapshot, Writer};
use crate::telemetry::Telemetry;

const USER: &str = "system:serviceaccount:weft-system:weft-agent";
const POD: &str = "/api/v1/namespaces/weft-system/pods/agent-9";

pub(super) fn expected() -> Expected {
    Expected {
        audience: "weft-control".to_owned(),
        namespace: "weft-system".to_owned(),
        account: "weft-agent".to_owned(),
    }
}

/// A token that says these things of itself; its signature is `mark`.
pub(super) fn token(audience: &str, user: &str, lasts: i64, mark: &str) -> String {
    let now = clock::wall().duration_since(SystemTime::UNIX_EPOCH).expect("later").as_secs();
    let expires = i64::try_from(now).expect("small") + lasts;
    let payload = json!({"aud": [audience], "sub": user, "exp": expires}).to_string();
    format!("e30.{}.{mark}", BASE64URL_NOPAD.encode(payload.as_bytes()))
}

fn good(mark: &str) -> String {
    token("weft-control", USER, 3600, mark)
}

/// What the API server says of a good token that is bound to this pod.
pub(super) fn bound_to(name: &str, uid: &str) -> Value {
    json!({
        "authenticated": true,
        "audiences": ["weft-control"],
        "user": {"username": USER, "extra": {
            "authentication.kubernetes.io/pod-name": [name],
            "authentication.kubernetes.io/pod-uid": [uid],
        }},
    })
}

struct Scene {
    api: FakeApi,
    reviews: Reviews,
    writer: Writer,
}

/// Agents' pods `agent-1` on node-1 and `agent-2` on node-2.
fn scene() -> Scene {
    let api = FakeApi::default();
    let (writer, registry) = registry::new();
    let pods = vec![
        workload("weft-system", "agent-1", "weft-agent", "node-1"),
        workload("weft-system", "agent-2", "weft-agent", "node-2"),
    ];
    writer.publish(Snapshot::new(MeshConfig::default(), pods, Vec::new()));
    let reviews = Reviews::new(api.client(), expected(), registry, Telemetry::without_access_log());
    Scene { api, reviews, writer }
}

async fn node(scene: &Scene, token: &str) -> Result<String, Unknown> {
    scene.reviews.node_of(token).await.map(|node| node.to_string())
}

fn refused(answer: Result<String, Unknown>) -> String {
    match answer {
        Err(Unknown::Refused(why)) => why,
        other => panic!("not refused: {other:?}"),
    }
}

#[tokio::test]
async fn a_token_stands_for_the_node_of_its_pod_and_is_reviewed_once() {
    let scene = scene();
    for (mark, pod, expected) in [("one", "agent-1", "node-1"), ("two", "agent-2", "node-2")] {
        scene.api.review(&good(mark), bound_to(pod, &format!("weft-system-{pod}")));
        for _ in 0..50 {
            assert_eq!(node(&scene, &good(mark)).await.as_deref(), Ok(expected));
        }
    }
    assert_eq!(scene.api.requests("POST").len(), 2, "{:?}", scene.api.requests("POST"));
    assert_eq!(scene.api.requests("GET").len(), 0, "discovery knows the pods");
}

#[tokio::test]
async fn requests_with_one_token_wait_for_one_answer() {
    let scene = scene();
    scene.api.review(&good("one"), bound_to("agent-1", "weft-system-agent-1"));
    let token = good("one");
    let all = futures_util::future::join_all((0..100).map(|_| node(&scene, &token))).await;
    assert!(all.iter().all(|one| one.as_deref() == Ok("node-1")), "{all:?}");
    assert_eq!(scene.api.requests("POST").len(), 1);
}

#[tokio::test]
async fn tokens_that_do_not_even_claim_to_be_an_agents_are_refused_without_a_question() {
    let scene = scene();
    for (token, why) in [
        (String::new(), "not one of a service account"),
        ("a.b".to_owned(), "not one of a service account"),
        ("a.!.c".to_owned(), "not one of a service account"),
        ("x".repeat(100_000), "not one of a service account"),
        (token("kubernetes", USER, 3600, "x"), "its audience is not weft-control"),
        (token("weft-control", USER, -1, "x"), "it has expired"),
        (token("weft-control", "system:serviceaccount:shop:web", 3600, "x"), "not one of service account"),
        (
            token("weft-control", "system:serviceaccount:shop:weft-agent", 3600, "x"),
            "not one of service account",
        ),
    ] {
        let said = refused(node(&scene, &token).await);
        assert!(said.contains(why), "{said}");
    }
    assert_eq!(scene.api.requests("POST").len(), 0);
}

#[tokio::test]
async fn whatever_the_api_server_finds_wrong_with_a_token_refuses_it() {
    let scene = scene();
    let change = |change: &dyn Fn(&mut Value)| {
        let mut status = bound_to("agent-1", "weft-system-agent-1");
        change(&mut status);
        status
    };
    let extra = |status: &mut Value, key: &str, value: Value| {
        status["user"]["extra"][format!("authentication.kubernetes.io/{key}")] = value;
    };
    for (mark, status, why) in [
        ("forged", json!({"authenticated": false, "error": "invalid bearer token"}), "invalid bearer token"),
        ("empty", json!({}), "refuses it"),
        ("audience", change(&|status| status["audiences"] = json!(["kubernetes"])), "audience"),
        (
            "unaware",
            change(&|status| drop(status.as_object_mut().map(|s| s.remove("audiences")))),
            "audience",
        ),
        ("user", change(&|status| status["user"]["username"] = json!("admin")), "service account"),
        ("unbound", change(&|status| status["user"]["extra"] = json!({})), "not bound to a pod"),
        ("no-uid", change(&|status| extra(status, "pod-uid", json!([]))), "not bound to a pod"),
        ("two", change(&|status| extra(status, "pod-name", json!(["a", "b"]))), "not bound to a pod"),
        ("other-uid", change(&|status| extra(status, "pod-uid", json!(["old"]))), "not there"),
        ("node", change(&|status| extra(status, "node-name", json!(["node-2"]))), "node-2"),
    ] {
        scene.api.review(&good(mark), status);
        let said = refused(node(&scene, &good(mark)).await);
        assert!(said.contains(why), "{mark}: {said}");
    }
    scene.api.review(&good("agrees"), change(&|status| extra(status, "node-name", json!(["node-1"]))));
    assert_eq!(node(&scene, &good("agrees")).await.as_deref(), Ok("node-1"));
}

#[tokio::test]
async fn a_pod_that_discovery_does_not_know_yet_is_looked_up() {
    let scene = scene();
    scene.api.review(&good("nine"), bound_to("agent-9", "uid-9"));
    let pod = |uid: &str, phase: &str| {
        json!({"metadata": {"name": "agent-9", "uid": uid}, "spec": {"nodeName": "node-9", "containers": []},
            "status": {"phase": phase}})
    };
    scene.api.put(POD, pod("uid-9", "Running"));
    assert_eq!(node(&scene, &good("nine")).await.as_deref(), Ok("node-9"));
    assert_eq!(node(&scene, &good("nine")).await.as_deref(), Ok("node-9"));
    assert_eq!(scene.api.requests("GET").len(), 1, "remembered for a moment");
    for (mark, uid, phase) in [("old", "uid-8", "Running"), ("over", "uid-9", "Failed")] {
        scene.api.review(&good(mark), bound_to("agent-9", "uid-9"));
        scene.api.put(POD, pod(uid, phase));
        assert!(refused(node(&scene, &good(mark)).await).contains("not there"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_good_answer_ends_with_the_pod_at_once_and_by_itself_within_a_minute() {
    let scene = scene();
    scene.api.review(&good("one"), bound_to("agent-1", "weft-system-agent-1"));
    assert_eq!(node(&scene, &good("one")).await.as_deref(), Ok("node-1"));
    scene.api.review(&good("one"), json!({"authenticated": false}));
    assert_eq!(node(&scene, &good("one")).await.as_deref(), Ok("node-1"), "believed for a while");
    tokio::time::advance(Duration::from_secs(61)).await;
    refused(node(&scene, &good("one")).await);

    scene.api.review(&good("two"), bound_to("agent-2", "weft-system-agent-2"));
    assert_eq!(node(&scene, &good("two")).await.as_deref(), Ok("node-2"));
    scene.writer.publish(Snapshot::new(MeshConfig::default(), Vec::new(), Vec::new()));
    refused(node(&scene, &good("two")).await);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_repeated_for_seconds_only() {
    let scene = scene();
    for _ in 0..10 {
        refused(node(&scene, &good("one")).await);
    }
    assert_eq!(scene.api.requests("POST").len(), 1);
    scene.api.review(&good("one"), bound_to("agent-1", "weft-system-agent-1"));
    tokio::time::advance(Duration::from_secs(6)).await;
    assert_eq!(node(&scene, &good("one")).await.as_deref(), Ok("node-1"));
}

#[tokio::test]
async fn an_api_server_that_is_away_means_try_again_and_never_an_open_door() {
    let scene = scene();
    scene.api.review(&good("one"), bound_to("agent-1", "weft-system-agent-1"));
    scene.api.set_away(true);
    for _ in 0..3 {
        let answer = node(&scene, &good("one")).await;
        assert!(matches!(answer, Err(Unknown::Unavailable(_))), "{answer:?}");
    }
    scene.api.set_away(false);
    assert_eq!(node(&scene, &good("one")).await.as_deref(), Ok("node-1"));
    scene.api.set_away(true);
    assert_eq!(node(&scene, &good("one")).await.as_deref(), Ok("node-1"), "known for a minute");
}

#[tokio::test]
async fn strangers_cannot_make_us_a_burden_to_the_api_server() {
    let scene = scene();
    let mut busy = 0;
    for number in 0..1000 {
        match node(&scene, &good(&format!("made-up-{number}"))).await {
            Err(Unknown::Unavailable(_)) => busy += 1,
            other => drop(refused(other)),
        }
    }
    assert!(busy > 300, "{busy}");
    assert!(scene.api.requests("POST").len() < 700, "{}", scene.api.requests("POST").len());
}
