//! How an API server is read, as far as the mesh goes by it: lists in pages, selectors, watches, bookmarks, metadata alone.
//! The same tests hold for the small server and for the real one (`WEFT_TEST_KUBECONFIG`); what an old one lacks is told in
//! `tests/README.md`.

use std::pin::Pin;
use std::time::Duration;

use futures_util::{Stream, StreamExt as _};
use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod};
use kube::ResourceExt as _;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams};
use mesh_tests::api::stage::{Stage, on_stage};
use serde_json::{Value, json};

/// How long an event may take.
const PATIENCE: Duration = Duration::from_secs(10);

type Events<K> = Pin<Box<dyn Stream<Item = kube::Result<WatchEvent<K>>> + Send>>;

async fn watch(api: &Api<ConfigMap>, params: &WatchParams, from: &str) -> Events<ConfigMap> {
    Box::pin(api.watch(params, from).await.expect("a watch begins"))
}

/// The next event, in short: `ADDED one`.
async fn next(events: &mut Events<ConfigMap>) -> String {
    let event = tokio::time::timeout(PATIENCE, events.next()).await.expect("an event comes in time");
    match event {
        None => "END".to_owned(),
        Some(Ok(WatchEvent::Added(map))) => format!("ADDED {}", map.name_any()),
        Some(Ok(WatchEvent::Modified(map))) => format!("MODIFIED {}", map.name_any()),
        Some(Ok(WatchEvent::Deleted(map))) => format!("DELETED {}", map.name_any()),
        Some(Ok(WatchEvent::Bookmark(_))) => "BOOKMARK".to_owned(),
        Some(Ok(WatchEvent::Error(status))) => format!("ERROR {} {}", status.code, status.reason),
        Some(Err(error)) => format!("BROKEN {error}"),
    }
}

/// The revision of the server now, by an empty list.
async fn revision(stage: &Stage) -> String {
    let nothing = ListParams::default().labels("weft.dev/none=none");
    stage.api::<ConfigMap>().list(&nothing).await.unwrap().metadata.resource_version.unwrap()
}

fn names<K: kube::ResourceExt>(items: &[K]) -> Vec<String> {
    items.iter().map(|item| item.name_any()).collect()
}

async fn maps(stage: &Stage, maps: &[&str]) {
    for name in maps {
        stage.config_map(name, json!({ "w": "1" })).await;
    }
}

#[test]
fn a_list_is_given_in_pages_as_it_was_at_the_first() {
    on_stage(|stage| async move {
        maps(&stage, &["a", "b", "c", "d", "e"]).await;
        let api = stage.api::<ConfigMap>();
        let mine = ListParams::default().limit(2).labels("w=1");
        let first = api.list(&mine).await.unwrap();
        assert_eq!(names(&first.items), ["a", "b"]);
        // What happens meanwhile is not in it.
        maps(&stage, &["bb"]).await;
        api.delete("d", &DeleteParams::default()).await.unwrap();
        let mut all = names(&first.items);
        let mut token = first.metadata.continue_.clone().unwrap();
        while !token.is_empty() {
            let page = api.list(&mine.clone().continue_token(&token)).await.unwrap();
            assert_eq!(page.metadata.resource_version, first.metadata.resource_version);
            all.extend(names(&page.items));
            token = page.metadata.continue_.unwrap_or_default();
        }
        assert_eq!(all, ["a", "b", "c", "d", "e"]);
        let now = api.list(&ListParams::default().labels("w=1")).await.unwrap();
        assert_eq!(names(&now.items), ["a", "b", "bb", "c", "e"]);
        assert_eq!(now.metadata.continue_.unwrap_or_default(), "");
    });
}

#[test]
fn a_page_says_how_many_follow() {
    on_stage(|stage| async move {
        maps(&stage, &["a", "b", "c"]).await;
        let (_, page) = stage.get(&stage.path("configmaps?limit=2")).await;
        // A real server may have put its own certificate bundle there.
        let total = stage.api::<ConfigMap>().list(&ListParams::default()).await.unwrap().items.len();
        assert_eq!(page["metadata"]["remainingItemCount"], total - 2, "{page}");
        let (code, answer) = stage.get(&stage.path("configmaps?limit=2&continue=nonsense")).await;
        assert_eq!((code, &answer["reason"]), (400, &json!("BadRequest")), "{answer}");
    });
}

#[test]
fn labels_select_by_equality_and_by_sets() {
    on_stage(|stage| async move {
        for (name, labels) in [
            ("one", json!({ "app": "web", "tier": "front" })),
            ("two", json!({ "app": "api", "tier": "back" })),
            ("three", json!({ "app": "web" })),
        ] {
            stage.config_map(name, labels).await;
        }
        let api = stage.api::<ConfigMap>();
        for (selector, wanted) in [
            ("app=web", vec!["one", "three"]),
            ("app=web,tier=front", vec!["one"]),
            ("app in (web, api),tier", vec!["one", "two"]),
            ("app,tier notin (back)", vec!["one", "three"]),
            ("app,!tier", vec!["three"]),
            ("app,app!=web", vec!["two"]),
        ] {
            let mut found = names(&api.list(&ListParams::default().labels(selector)).await.unwrap().items);
            found.sort();
            let mut wanted: Vec<String> = wanted.into_iter().map(str::to_owned).collect();
            wanted.sort();
            assert_eq!(found, wanted, "{selector}");
        }
        let (code, answer) = stage.get(&stage.path("configmaps?labelSelector=a%20b%20(c")).await;
        assert_eq!(code, 400, "{answer}");
    });
}

#[test]
fn fields_select_the_pods_of_a_node_and_others_are_refused() {
    on_stage(|stage| async move {
        for (name, node) in [("one", "n1"), ("two", "n2"), ("three", "n1")] {
            stage.pod(name, node).await;
        }
        let pods = stage.api::<Pod>();
        let of = |fields: &str| ListParams::default().fields(fields);
        let mut found = names(&pods.list(&of("spec.nodeName=n1")).await.unwrap().items);
        found.sort();
        assert_eq!(found, ["one", "three"]);
        assert_eq!(names(&pods.list(&of("metadata.name=two")).await.unwrap().items), ["two"]);
        assert_eq!(names(&pods.list(&of("spec.nodeName!=n1")).await.unwrap().items), ["two"]);
        let patch = Patch::Merge(json!({ "status": { "phase": "Running" } }));
        pods.patch_status("two", &PatchParams::default(), &patch).await.unwrap();
        assert_eq!(names(&pods.list(&of("status.phase=Running")).await.unwrap().items), ["two"]);
        let refused = pods.list(&of("spec.hostNetwork=true")).await.unwrap_err().to_string();
        assert!(refused.contains("field label not supported"), "{refused}");
    });
}

#[test]
fn a_watch_tells_what_happens_after_a_revision() {
    on_stage(|stage| async move {
        maps(&stage, &["before"]).await;
        let from = revision(&stage).await;
        let api = stage.api::<ConfigMap>();
        maps(&stage, &["one"]).await;
        let mine = WatchParams::default().labels("w=1").timeout(30);
        let mut events = watch(&api, &mine, &from).await;
        assert_eq!(next(&mut events).await, "ADDED one");
        let patch = Patch::Merge(json!({ "data": { "i": "2" } }));
        api.patch("one", &PatchParams::default(), &patch).await.unwrap();
        assert_eq!(next(&mut events).await, "MODIFIED one");
        maps(&stage, &["two"]).await;
        assert_eq!(next(&mut events).await, "ADDED two");
        api.delete("one", &DeleteParams::default()).await.unwrap();
        assert_eq!(next(&mut events).await, "DELETED one");
    });
}

#[test]
fn a_deletion_is_told_with_the_last_object_and_a_new_revision() {
    on_stage(|stage| async move {
        let made = stage.config_map("one", json!({ "w": "1" })).await;
        let api = stage.api::<ConfigMap>();
        let from = made["metadata"]["resourceVersion"].as_str().unwrap();
        let mut events = watch(&api, &WatchParams::default().labels("w=1").timeout(30), from).await;
        api.delete("one", &DeleteParams::default()).await.unwrap();
        let event = tokio::time::timeout(PATIENCE, events.next()).await.unwrap();
        let Some(Ok(WatchEvent::Deleted(gone))) = event else { panic!("{event:?}") };
        assert_eq!(gone.data.as_ref().unwrap()["i"], "one");
        let revision = |text: &str| text.parse::<u64>().unwrap();
        assert!(revision(&gone.resource_version().unwrap()) > revision(from));
        // So a watch that starts there does not hear of it again.
        maps(&stage, &["two"]).await;
        let after = gone.resource_version().unwrap();
        let mut events = watch(&api, &WatchParams::default().labels("w=1").timeout(30), &after).await;
        assert_eq!(next(&mut events).await, "ADDED two");
    });
}

#[test]
fn a_watch_with_a_selector_tells_who_comes_and_who_goes() {
    on_stage(|stage| async move {
        let made = stage.config_map("one", json!({ "w": "0" })).await;
        let from = made["metadata"]["resourceVersion"].as_str().unwrap();
        let api = stage.api::<ConfigMap>();
        let mut events = watch(&api, &WatchParams::default().labels("w=1").timeout(30), from).await;
        let label = |value: &str| Patch::Merge(json!({ "metadata": { "labels": { "w": value } } }));
        let params = PatchParams::default();
        api.patch("one", &params, &label("1")).await.unwrap();
        assert_eq!(next(&mut events).await, "ADDED one");
        let now = api.patch("one", &params, &label("2")).await.unwrap();
        let event = tokio::time::timeout(PATIENCE, events.next()).await.unwrap();
        let Some(Ok(WatchEvent::Deleted(gone))) = event else { panic!("{event:?}") };
        assert_eq!(gone.labels()["w"], "1", "as it was when it was meant last");
        assert_eq!(gone.resource_version(), now.resource_version());
    });
}

#[test]
fn a_watch_by_node_hears_of_its_pods_alone() {
    on_stage(|stage| async move {
        let from = revision(&stage).await;
        let pods = stage.api::<Pod>();
        let of = WatchParams::default().fields("spec.nodeName=n1").timeout(30);
        stage.pod("other", "n2").await;
        stage.pod("mine", "n1").await;
        let mut events = Box::pin(pods.watch(&of, &from).await.unwrap());
        let event = tokio::time::timeout(PATIENCE, events.next()).await.unwrap();
        let Some(Ok(WatchEvent::Added(pod))) = event else { panic!("{event:?}") };
        assert_eq!(pod.name_any(), "mine");
    });
}

#[test]
fn a_watch_from_nothing_tells_first_what_is_there() {
    on_stage(|stage| async move {
        maps(&stage, &["a", "b"]).await;
        let api = stage.api::<ConfigMap>();
        let quiet = WatchParams::default().labels("w=1").timeout(30).disable_bookmarks();
        let mut events = watch(&api, &quiet, "0").await;
        let mut first = vec![next(&mut events).await, next(&mut events).await];
        first.sort();
        assert_eq!(first, ["ADDED a", "ADDED b"]);
        maps(&stage, &["c"]).await;
        assert_eq!(next(&mut events).await, "ADDED c");
    });
}

#[test]
fn a_watch_has_a_bookmark_before_it_ends_in_time() {
    on_stage(|stage| async move {
        maps(&stage, &["one"]).await;
        let (from, api) = (revision(&stage).await, stage.api::<ConfigMap>());
        let mut events = watch(&api, &WatchParams::default().labels("w=none").timeout(4), &from).await;
        // What is not meant moves the bookmark on all the same.
        maps(&stage, &["two"]).await;
        let event = tokio::time::timeout(PATIENCE, events.next()).await.unwrap();
        let Some(Ok(WatchEvent::Bookmark(mark))) = event else { panic!("{event:?}") };
        let revision = |text: &str| text.parse::<u64>().unwrap();
        assert!(revision(&mark.metadata.resource_version) > revision(&from));
        let mut last = next(&mut events).await;
        while last == "BOOKMARK" {
            last = next(&mut events).await;
        }
        assert_eq!(last, "END");
    });
}

#[test]
fn a_watch_from_too_far_back_is_told_that_it_expired() {
    on_stage(|stage| async move {
        maps(&stage, &["one", "two"]).await;
        // A real server forgets with time; what was before it started is always too old.
        let from = if let Some(server) = stage.small() {
            let from = server.revision() - 1;
            server.forget();
            from.to_string()
        } else {
            "1".to_owned()
        };
        let mut events = watch(&stage.api(), &WatchParams::default().timeout(30), &from).await;
        let told = next(&mut events).await;
        // Old servers say `Gone`, new ones `Expired`.
        assert!(told == "ERROR 410 Expired" || told == "ERROR 410 Gone", "{told}");
    });
}

#[test]
fn a_list_of_the_future_is_refused() {
    on_stage(|stage| async move {
        let (code, answer) = stage
            .get(&stage.path("configmaps?resourceVersion=99999999&resourceVersionMatch=NotOlderThan"))
            .await;
        assert_eq!((code, &answer["reason"]), (504, &json!("Timeout")), "{answer}");
        assert!(answer["message"].as_str().unwrap().contains("Too large resource version"), "{answer}");
    });
}

#[test]
fn a_list_that_need_not_be_new_is_answered() {
    on_stage(|stage| async move {
        maps(&stage, &["one"]).await;
        let since = revision(&stage).await;
        let api = stage.api::<ConfigMap>();
        let params = ListParams::default().labels("w=1");
        assert!(api.list(&params.clone().at("0")).await.is_ok());
        let not_older = params.at(&since).matching(kube::api::VersionMatch::NotOlderThan);
        assert_eq!(names(&api.list(&not_older).await.unwrap().items), ["one"]);
    });
}

#[test]
fn initial_events_end_with_a_bookmark_that_says_so() {
    on_stage(|stage| async move {
        // Streaming lists are newer than the real server that tests run against: `tests/README.md` says what bridges it.
        if stage.minor() < 27 {
            let (code, answer) =
                stage.get(&stage.path("configmaps?watch=true&sendInitialEvents=true&timeoutSeconds=1")).await;
            assert!(
                code == 200 || code >= 400,
                "an old server takes or refuses what it does not know: {answer}"
            );
            return;
        }
        maps(&stage, &["a", "b"]).await;
        let mut events =
            watch(&stage.api(), &WatchParams::default().labels("w=1").initial_events().timeout(30), "").await;
        assert_eq!((next(&mut events).await, next(&mut events).await), ("ADDED a".into(), "ADDED b".into()));
        let event = tokio::time::timeout(PATIENCE, events.next()).await.unwrap();
        let Some(Ok(WatchEvent::Bookmark(mark))) = event else { panic!("{event:?}") };
        assert_eq!(mark.metadata.annotations["k8s.io/initial-events-end"], "true");
        let path = stage.path("configmaps?watch=true&sendInitialEvents=true");
        assert_eq!(stage.get(&path).await.0, 422, "it must be said how new the state shall be");
    });
}

#[test]
fn metadata_alone_is_given_to_who_asks_for_it() {
    on_stage(|stage| async move {
        let name = format!("{}-node", stage.namespace());
        let node = json!({
            "apiVersion": "v1", "kind": "Node", "metadata": { "name": name, "labels": { "weft-test": name } },
            "spec": { "podCIDR": "10.0.0.0/24" },
        });
        let nodes: Api<Node> = Api::all(stage.client());
        nodes.create(&PostParams::default(), &serde_json::from_value(node).unwrap()).await.unwrap();
        let label = format!("weft-test={name}");
        let listed = nodes.list_metadata(&ListParams::default().labels(&label)).await;
        let read = nodes.get_metadata(&name).await;
        let from =
            listed.as_ref().ok().and_then(|list| list.metadata.resource_version.clone()).unwrap_or_default();
        // Whatever was answered, the node goes: nodes are in no namespace that would take it along.
        let watched = async {
            let params = WatchParams::default().labels(&label).timeout(30);
            let mut events = Box::pin(nodes.watch_metadata(&params, &from).await?);
            nodes.delete(&name, &DeleteParams::default()).await?;
            Ok::<_, kube::Error>(
                tokio::time::timeout(PATIENCE, events.next()).await.expect("an event comes in time"),
            )
        };
        let watched = watched.await;
        let listed = listed.unwrap();
        assert_eq!(names(&listed.items), [name.as_str()]);
        assert_eq!(serde_json::to_value(&listed.items[0]).unwrap()["kind"], "PartialObjectMetadata");
        assert_eq!(read.unwrap().labels()["weft-test"], name);
        let Some(WatchEvent::Deleted(gone)) = watched.unwrap().transpose().unwrap() else {
            panic!("no deletion is told")
        };
        assert_eq!(gone.name_any(), name);
    });
}

#[test]
fn all_namespaces_are_listed_together() {
    on_stage(|stage| async move {
        maps(&stage, &["one"]).await;
        let all: Api<ConfigMap> = Api::all(stage.client());
        let found = all.list(&ListParams::default().labels("w=1")).await.unwrap();
        let mine = found.items.iter().filter(|map| map.namespace().as_deref() == Some(stage.namespace()));
        assert_eq!(mine.map(|map| map.name_any()).collect::<Vec<_>>(), ["one"]);
        let (_, listed) = stage
            .get(&format!("/api/v1/configmaps?fieldSelector=metadata.namespace%3D{}", stage.namespace()))
            .await;
        assert_eq!(listed["kind"], "ConfigMapList");
        let items = listed["items"].as_array().unwrap();
        assert!(items.iter().all(|item| item["metadata"]["namespace"] == stage.namespace()), "{listed}");
        assert!(
            items.iter().all(|item| item["kind"] == Value::Null),
            "items of built-in kinds do not say what they are"
        );
    });
}

#[test]
fn a_server_says_what_it_is_and_what_it_serves() {
    on_stage(|stage| async move {
        assert_eq!(stage.get("/version").await.1["major"], "1");
        assert_eq!(stage.get("/readyz").await.0, 200);
        assert_eq!(stage.get("/livez").await.0, 200);
        assert_eq!(stage.get("/api").await.1["versions"], json!(["v1"]));
        let (_, core) = stage.get("/api/v1").await;
        let pods =
            core["resources"].as_array().unwrap().iter().find(|one| one["name"] == "pods").unwrap().clone();
        assert_eq!((&pods["kind"], &pods["namespaced"]), (&json!("Pod"), &json!(true)));
        assert!(pods["verbs"].as_array().unwrap().contains(&json!("watch")), "{pods}");
        let (_, groups) = stage.get("/apis").await;
        let groups: Vec<_> =
            groups["groups"].as_array().unwrap().iter().map(|group| group["name"].clone()).collect();
        assert!(
            groups.contains(&json!("discovery.k8s.io")) && groups.contains(&json!("coordination.k8s.io")),
            "{groups:?}"
        );
        let (code, answer) = stage.get("/apis/none.example.test/v1").await;
        assert_eq!(code, 404, "{answer}");
    });
}
