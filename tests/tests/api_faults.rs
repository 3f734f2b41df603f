//! That the small API server fails as it is told to, and no further: what tests of faults stand on.

use std::pin::Pin;
use std::time::Duration;

use futures_util::{Stream, StreamExt as _};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::Api;
use kube::api::{ListParams, WatchEvent, WatchParams};
use mesh_tests::api::faults::{Fault, What, busiest};
use mesh_tests::api::review::Token;
use mesh_tests::api::stage::{Stage, client, on_small_stage};
use mesh_tests::wait::now;
use serde_json::{Value, json};

type Events = Pin<Box<dyn Stream<Item = kube::Result<WatchEvent<ConfigMap>>> + Send>>;

async fn watch(stage: &Stage) -> Events {
    let from = stage.server().revision().to_string();
    let params = WatchParams::default().timeout(60);
    Box::pin(stage.api::<ConfigMap>().watch(&params, &from).await.expect("a watch begins"))
}

async fn next(events: &mut Events) -> Option<kube::Result<WatchEvent<ConfigMap>>> {
    tokio::time::timeout(Duration::from_secs(5), events.next()).await.expect("something comes in time")
}

#[test]
fn a_status_is_given_as_often_as_ordered_with_the_time_to_wait() {
    on_small_stage(|stage| async move {
        let path = stage.path("configmaps");
        let what = What::Status { code: 429, retry_after: Some(7) };
        stage.order(Fault::new(what).verb("list").on("configmaps").times(1));
        assert_eq!(stage.get(&stage.path("secrets")).await.0, 200);
        let request = http::Request::get(&path).body(kube::client::Body::empty()).unwrap();
        let response = stage.client().send(request).await.unwrap();
        // Whoever asks again is told something else: the order was for one request.
        assert_eq!(
            (response.status().as_u16(), response.headers()["retry-after"].to_str().unwrap()),
            (429, "7")
        );
        assert_eq!(stage.get(&path).await.0, 200);
        for code in [500, 503, 401] {
            stage.order(Fault::status(code).on("configmaps"));
            assert_eq!(stage.get(&path).await.0, code);
            stage.server().clear();
            assert_eq!(stage.get(&path).await.0, 200);
        }
    });
}

#[test]
fn a_user_is_forbidden_what_is_ordered_and_may_ask_before() {
    on_small_stage(|stage| async move {
        stage.server().add_token("secret", Token::user("somebody", &[]));
        stage.order(Fault::status(403).verb("list").on("secrets").of("somebody"));
        let somebody = client(&stage.server().kubeconfig(Some("secret"))).await;
        let secrets: Api<k8s_openapi::api::core::v1::Secret> = Api::all(somebody.clone());
        let refused = secrets.list(&ListParams::default()).await.unwrap_err().to_string();
        let wanted = "secrets is forbidden: User \"somebody\" cannot list resource \"secrets\" in API group \"\" at the cluster scope";
        assert!(refused.contains(wanted), "{refused}");
        assert_eq!(stage.get("/api/v1/secrets").await.0, 200, "the administrator may");
        let may = async |resource: &str| {
            let review = json!({
                "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview", "metadata": {},
                "spec": { "resourceAttributes": { "verb": "list", "resource": resource } },
            });
            let review: k8s_openapi::api::authorization::v1::SelfSubjectAccessReview =
                serde_json::from_value(review).unwrap();
            let reviews = Api::all(somebody.clone());
            reviews.create(&kube::api::PostParams::default(), &review).await.unwrap().status.unwrap().allowed
        };
        assert!(!may("secrets").await);
        assert!(may("pods").await);
    });
}

#[test]
fn who_has_no_token_is_not_known() {
    on_small_stage(|stage| async move {
        stage.server().add_token("secret", Token::user("somebody", &[]));
        stage.server().add_token("elsewhere", Token::account("default", "default", "weft-control"));
        for (token, code) in [
            (None, Some(401)),
            (Some("none"), Some(401)),
            (Some("elsewhere"), Some(401)),
            (Some("secret"), None),
        ] {
            stage.server().need_token();
            let pods: Api<Pod> = Api::all(client(&stage.server().kubeconfig(token)).await);
            match (pods.list(&ListParams::default()).await, code) {
                (Ok(_), None) => {}
                (Err(kube::Error::Api(status)), Some(code)) => assert_eq!(status.code, code, "{token:?}"),
                (answer, _) => panic!("{token:?}: {answer:?}"),
            }
        }
    });
}

#[test]
fn a_running_watch_expires_on_order() {
    on_small_stage(|stage| async move {
        let mut events = watch(&stage).await;
        stage.order(Fault::new(What::Expire).verb("watch").times(1));
        let Some(Ok(WatchEvent::Error(status))) = next(&mut events).await else { panic!("no error is told") };
        assert_eq!((status.code, status.reason.as_str()), (410, "Expired"));
        assert!(next(&mut events).await.is_none());
    });
}

#[test]
fn a_page_that_follows_expires_on_order_and_when_all_is_forgotten() {
    on_small_stage(|stage| async move {
        for name in ["a", "b", "c"] {
            stage.config_map(name, json!({})).await;
        }
        let (_, page) = stage.get(&stage.path("configmaps?limit=1")).await;
        let follow = stage
            .path(&format!("configmaps?limit=1&continue={}", page["metadata"]["continue"].as_str().unwrap()));
        stage.order(Fault::new(What::Expire).verb("list").times(1));
        let (code, answer) = stage.get(&follow).await;
        assert_eq!((code, &answer["reason"]), (410, &json!("Expired")));
        assert_eq!(stage.get(&follow).await.0, 200);
        stage.config_map("d", json!({})).await;
        stage.server().forget();
        assert_eq!(stage.get(&follow).await.0, 410);
    });
}

#[test]
fn a_stream_is_cut_inside_a_line() {
    on_small_stage(|stage| async move {
        let from = stage.server().revision();
        stage.order(Fault::new(What::Cut).verb("watch").times(1));
        let path = stage.path(&format!("configmaps?watch=true&resourceVersion={from}"));
        let request = http::Request::get(path).body(kube::client::Body::empty()).unwrap();
        let response = stage.client().send(request).await.unwrap();
        stage.config_map("one", json!({})).await;
        let mut body = response.into_body();
        let mut seen = Vec::new();
        let end = loop {
            match http_body_util::BodyExt::frame(&mut body).await {
                Some(Ok(frame)) => seen.extend_from_slice(frame.data_ref().unwrap()),
                end => break end,
            }
        };
        assert!(matches!(end, Some(Err(_))), "the connection breaks off");
        assert!(seen.starts_with(br#"{"type":"ADDED""#) && !seen.contains(&b'\n'));
        let mut events = watch(&stage).await;
        stage.config_map("two", json!({})).await;
        assert!(matches!(next(&mut events).await, Some(Ok(WatchEvent::Added(_)))), "once was ordered");
    });
}

#[test]
fn a_watch_stalls_until_the_order_is_taken_back() {
    on_small_stage(|stage| async move {
        stage.order(Fault::new(What::Stall).verb("watch"));
        let mut events = watch(&stage).await;
        stage.config_map("one", json!({})).await;
        let silence = tokio::time::timeout(Duration::from_millis(300), events.next()).await;
        assert!(silence.is_err(), "{silence:?}");
        stage.server().clear();
        assert!(next(&mut events).await.is_none(), "it ends");
    });
}

#[test]
fn bookmarks_come_late_or_never_as_ordered() {
    on_small_stage(|stage| async move {
        stage.server().set_bookmarks_every(Duration::from_millis(100));
        let mut events = watch(&stage).await;
        assert!(matches!(next(&mut events).await, Some(Ok(WatchEvent::Bookmark(_)))));
        stage.order(Fault::new(What::NoBookmarks).verb("watch"));
        let mut without = watch(&stage).await;
        let silence = tokio::time::timeout(Duration::from_millis(400), without.next()).await;
        assert!(silence.is_err(), "{silence:?}");
        stage.server().clear();
        stage.order(Fault::new(What::LateBookmarks { ms: 700 }).verb("watch"));
        let (mut late, begun) = (watch(&stage).await, now());
        assert!(matches!(next(&mut late).await, Some(Ok(WatchEvent::Bookmark(_)))));
        assert!(begun.elapsed() >= Duration::from_millis(700));
    });
}

#[test]
fn each_page_of_a_list_of_ten_thousand_pods_comes_late() {
    on_small_stage(|stage| async move {
        for number in 0..10_000 {
            stage.server().put(json!({
                "apiVersion": "v1", "kind": "Pod", "metadata": { "name": format!("p{number:05}"), "namespace": "many" },
                "spec": { "nodeName": "n1" }, "status": { "phase": "Running" },
            }));
        }
        stage.order(Fault::new(What::Delay { ms: 20 }).verb("list").on("pods"));
        let pods: Api<Pod> = Api::namespaced(stage.client(), "many");
        let (mut params, mut found, mut pages, begun) = (ListParams::default().limit(500), 0, 0, now());
        loop {
            let page = pods.list(&params).await.unwrap();
            (found, pages) = (found + page.items.len(), pages + 1);
            match page.metadata.continue_ {
                Some(token) if !token.is_empty() => params = params.continue_token(&token),
                _ => break,
            }
        }
        assert_eq!((found, pages), (10_000, 20));
        assert!(begun.elapsed() >= Duration::from_millis(20 * 20));
    });
}

#[test]
fn a_server_that_is_down_refuses_and_comes_back_on_its_port() {
    on_small_stage(|stage| async move {
        stage.config_map("one", json!({})).await;
        let mut events = watch(&stage).await;
        stage.server().down();
        let refused = stage.api::<ConfigMap>().list(&ListParams::default()).await;
        assert!(refused.is_err());
        assert!(!matches!(next(&mut events).await, Some(Ok(_))), "streams end with it");
        let refused = tokio::net::TcpStream::connect(stage.server().address()).await.unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
        stage.server().up();
        assert_eq!(stage.api::<ConfigMap>().list(&ListParams::default()).await.unwrap().items.len(), 1);
    });
}

#[test]
fn a_kind_vanishes_and_comes_back_with_its_objects() {
    on_small_stage(|stage| async move {
        stage.config_map("one", json!({})).await;
        let mut events = watch(&stage).await;
        stage.order(Fault::new(What::Vanish).on("configmaps"));
        assert!(next(&mut events).await.is_none());
        assert_eq!(stage.get(&stage.path("configmaps")).await.0, 404);
        let (_, core) = stage.get("/api/v1").await;
        assert!(core["resources"].as_array().unwrap().iter().all(|one| one["name"] != "configmaps"));
        stage.server().clear();
        assert_eq!(stage.get(&stage.path("configmaps/one")).await.0, 200);
    });
}

#[test]
fn requests_are_counted_by_verb_and_kind() {
    on_small_stage(|stage| async move {
        let begun = now();
        for _ in 0..3 {
            stage.get(&stage.path("configmaps")).await;
        }
        stage.get(&stage.path("configmaps/none")).await;
        let _events = watch(&stage).await;
        let server = stage.server();
        assert_eq!((server.count("list", "configmaps"), server.count("get", "configmaps")), (3, 1));
        assert_eq!((server.count("watch", "configmaps"), server.count("list", "pods")), (1, 0));
        let requests = server.requests_since(begun);
        assert_eq!(busiest(&requests, Duration::from_secs(60)), 5);
        assert_eq!(busiest(&[], Duration::from_secs(1)), 0);
    });
}

#[test]
fn orders_reach_a_server_in_a_process_of_its_own() {
    on_small_stage(|stage| async move {
        let fault = json!({ "verb": "list", "resource": "configmaps", "times": 1, "what": { "status": { "code": 500 } } });
        let kind = "application/json";
        assert_eq!(stage.ask("POST", "/_faults", kind, &fault).await.0, 200);
        assert_eq!(stage.get("/_faults").await.1.as_array().unwrap().len(), 1);
        assert_eq!(stage.get(&stage.path("configmaps")).await.0, 500);
        assert_eq!(stage.get(&stage.path("configmaps")).await.0, 200);
        assert_eq!(stage.get("/_requests").await.1["list configmaps"], 2);
        for what in [
            json!("expire"),
            json!("cut"),
            json!("stall"),
            json!("vanish"),
            json!("noBookmarks"),
            json!({ "delay": { "ms": 1 } }),
        ] {
            assert_eq!(
                stage.ask("POST", "/_faults", kind, &json!({ "resource": "secrets", "what": what })).await.0,
                200,
                "{what}"
            );
        }
        assert_eq!(stage.ask("POST", "/_faults", kind, &json!({ "what": "nonsense" })).await.0, 400);
        assert_eq!(stage.ask("DELETE", "/_faults", kind, &Value::Null).await.0, 200);
        assert_eq!(stage.get("/_faults").await.1, json!([]));
        assert_eq!(stage.ask("POST", "/_down?ms=200", kind, &Value::Null).await.0, 200);
        let deadline = now() + Duration::from_secs(5);
        let mut refused = false;
        while now() < deadline {
            let is_refused = tokio::net::TcpStream::connect(stage.server().address()).await.is_err();
            if refused && !is_refused {
                return;
            }
            refused |= is_refused;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("it was never down, or never came back");
    });
}
