//! What objects of the API become, good and bad, and kinds that are not there.

use super::*;

fn with(mut object: Value, path: &str, value: Value) -> Value {
    *object.pointer_mut(path).unwrap() = value;
    object
}

fn policy(version: u64, spec: Value) -> Value {
    json!({
        "apiVersion": "weft.dev/v1alpha1", "kind": "AuthorizationPolicy",
        "metadata": {"name": "p", "namespace": "shop", "resourceVersion": version.to_string(),
            "creationTimestamp": "2026-01-01T00:00:00Z", "somethingNew": true},
        "spec": spec,
    })
}

#[tokio::test(start_paused = true)]
async fn objects_come_change_finish_and_go() {
    let script = Script::default();
    script.lists("pods", Reply::list(7, &[]));
    let finished =
        with(pod("b", "10.0.0.2", 10), "/status", json!({"podIP": "10.0.0.2", "phase": "Succeeded"}));
    let events = [
        ("ADDED", pod("a", "10.0.0.1", 8)),
        ("ADDED", pod("b", "10.0.0.2", 9)),
        ("MODIFIED", finished),
        ("ADDED", pod("c", "10.0.0.2", 11)),
        ("MODIFIED", pod("a", "10.0.0.9", 12)),
        ("ADDED", pod("d", "10.0.0.4", 13)),
        ("DELETED", pod("d", "10.0.0.4", 14)),
    ];
    script.watches("pods", Reply::watch(&events, End::Never));
    let running = run(&script);
    running.until_pods(&["a", "c"]).await;
    assert_eq!(running.problems(), [""; 0]);
    let snapshot = running.registry.snapshot();
    let a = snapshot.workloads().find(|pod| &*pod.name.name == "a").unwrap();
    assert_eq!(a.addresses, ["10.0.0.9".parse::<std::net::IpAddr>().unwrap()]);
}

#[tokio::test(start_paused = true)]
async fn a_burst_of_changes_is_one_publication() {
    let script = Script::default();
    script.lists("pods", Reply::list(7, &[]));
    let names: Vec<String> = (0..100).map(|number| format!("p{number}")).collect();
    let events: Vec<_> =
        (0..100u64).map(|n| ("ADDED", pod(&names[n as usize], &format!("10.0.1.{n}"), 8 + n))).collect();
    script.watches("pods", Reply::watch(&[("BOOKMARK", bookmark(7))], End::Clean));
    script.watches("pods", Reply::watch(&events, End::Never).at_once());
    let running = run(&script);
    running.until("100 pods", |running| running.pods().len() == 100).await;
    assert_eq!(running.registry.snapshot().version, 2);
}

#[tokio::test(start_paused = true)]
async fn a_change_of_what_the_mesh_does_not_keep_is_not_published() {
    let script = Script::default();
    script.lists("pods", Reply::list(7, &[pod("a", "10.0.0.1", 3)]));
    let condition = with(pod("a", "10.0.0.1", 8), "/metadata/managedFields", json!([]));
    script.watches("pods", Reply::watch(&[("MODIFIED", condition)], End::Never));
    let running = run(&script);
    running.until_pods(&["a"]).await;
    seconds(10).await;
    let report = running.feeds.report().into_iter().find(|feed| feed.kind == "Pod").unwrap();
    assert_eq!(report.resource_version.as_deref(), Some("8"));
    assert_eq!(running.registry.snapshot().version, 1);
}

#[tokio::test(start_paused = true)]
async fn the_last_good_version_of_a_bad_object_stays_until_it_is_mended_or_deleted() {
    let script = Script::default();
    script.lists("pods", Reply::list(7, &[pod("a", "10.0.0.1", 3)]));
    let bad = with(pod("a", "10.0.0.1", 8), "/status", json!({"podIP": "10.0.0.300"}));
    script.watches("pods", Reply::watch(&[("MODIFIED", bad.clone())], End::Clean));
    // Listed anew, the bad version is still the bad version.
    script.watches("pods", Reply::error(410, "too old"));
    script.lists("pods", Reply::list(9, std::slice::from_ref(&bad)));
    script.watches("pods", Reply::watch(&[("ADDED", pod("b", "10.0.0.2", 10))], End::Never));
    let running = run(&script);
    running.until_pods(&["a", "b"]).await;
    assert_eq!(running.problems(), ["Pod shop/a: status.podIP: \"10.0.0.300\" is not an IP address"]);

    let script = Script::default();
    script.lists("pods", Reply::list(7, &[pod("a", "10.0.0.1", 3)]));
    script.watches("pods", Reply::watch(&[("MODIFIED", bad.clone()), ("DELETED", bad)], End::Never));
    let running = run(&script);
    running.until_pods(&[]).await;
    assert_eq!(running.problems(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_policy_that_cannot_be_read_refuses_in_its_place() {
    let script = Script::default();
    let everybody = json!([{"kind": "Pod", "selector": {}}]);
    let misspelt = json!({"targetRefs": everybody, "action": "ALLOW", "rulez": []});
    script.lists("authorizationpolicies", Reply::list(7, &[policy(3, misspelt)]));
    let good = json!({"targetRefs": everybody, "action": "ALLOW", "rules": [{}]});
    let running = run(&script);
    running.until("a state", Running::is_published).await;
    let problems = running.problems();
    assert!(
        problems[0].starts_with("AuthorizationPolicy shop/p: spec.rulez: unknown field `rulez`"),
        "{problems:?}"
    );
    assert!(running.policies.current().policies().next().unwrap().unusable.is_some());

    let script = Script::default();
    script.lists("authorizationpolicies", Reply::list(7, &[policy(3, good)]));
    let running = run(&script);
    running.until("a state", Running::is_published).await;
    assert_eq!(running.problems(), [""; 0]);
    assert!(running.policies.current().policies().next().unwrap().unusable.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_mesh_config_that_cannot_be_used_holds_the_start_until_it_is_mended() {
    let config = |version: u64, spec: Value| json!({"metadata": {"name": "mesh", "resourceVersion": version.to_string()}, "spec": spec});
    let script = Script::default();
    script.lists("meshconfigs", Reply::list(7, &[config(3, json!({"trustDomains": "x"}))]));
    script.watches("meshconfigs", Reply::watch(&[], End::Never));
    let running = run(&script);
    seconds(60).await;
    assert!(!running.is_published());

    let script = Script::default();
    script.lists("meshconfigs", Reply::list(7, &[config(3, json!({"trustDomains": "x"}))]));
    script.watches(
        "meshconfigs",
        Reply::watch(&[("MODIFIED", config(8, json!({"trustDomain": "x.example"})))], End::Never),
    );
    let running = run(&script);
    running.until("a state", Running::is_published).await;
    assert_eq!(running.registry.snapshot().config.trust_domain.to_string(), "x.example");
}

#[tokio::test(start_paused = true)]
async fn a_kind_that_is_not_served_holds_nothing_and_is_found_when_it_comes() {
    let script = Script::default();
    for _ in 0..2 {
        script.lists("httproutes", Reply::error(404, ""));
    }
    let route = json!({"metadata": {"name": "r", "namespace": "shop", "resourceVersion": "3"},
        "spec": {"parentRefs": [{"group": "", "kind": "Service", "name": "web", "port": 80}]}});
    script.lists("httproutes", Reply::list(7, &[route]));
    let running = run(&script);
    running.until("a state", Running::is_published).await;
    assert_eq!(running.state("HTTPRoute"), ("not served", None));
    assert_eq!(running.problems(), [""; 0], "nobody needs routes");
    running.until("the route", |running| running.report.lock().routes.len() == 1).await;
    let asked = script.asked("httproutes");
    let waited = (asked[2].0 - asked[1].0).as_secs();
    assert!((44..=76).contains(&waited), "{waited} s");
    assert_eq!(running.state("HTTPRoute"), ("watching", None));
}

#[tokio::test(start_paused = true)]
async fn an_older_version_of_a_kind_is_read_where_the_newest_is_not_served() {
    let script = Script::default();
    script.lists("tlsroutes", Reply::error(404, ""));
    script.lists("tlsroutes", Reply::error(404, ""));
    let running = run(&script);
    running.until("a state", Running::is_published).await;
    let feed = running.feeds.report().into_iter().find(|feed| feed.kind == "TLSRoute").unwrap();
    assert_eq!((feed.state, feed.api_version), ("watching", Some("v1alpha2")));
}

/// An API server that has just started does not know its CustomResourceDefinitions yet.
#[tokio::test(start_paused = true)]
async fn policies_are_not_taken_for_gone_because_their_kind_is_missing_for_a_moment() {
    let everybody = json!([{"kind": "Pod", "selector": {}}]);
    let deny = policy(3, json!({"targetRefs": everybody, "action": "DENY", "rules": [{}]}));
    let script = Script::default();
    script.lists("authorizationpolicies", Reply::error(404, ""));
    script.lists("authorizationpolicies", Reply::list(7, &[deny]));
    let running = run(&script);
    running.until("a state", Running::is_published).await;
    assert_eq!(running.policies.current().policies().count(), 1);

    let script = Script::default();
    for _ in 0..3 {
        script.lists("authorizationpolicies", Reply::error(404, ""));
    }
    let running = run(&script);
    running.until("a state", Running::is_published).await;
    let problems = running.problems();
    assert!(
        problems[0].starts_with("AuthorizationPolicy: the API does not serve this kind: install"),
        "{problems:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn of_two_pods_with_one_address_the_older_wins_and_then_the_name() {
    let older = with(pod("z", "10.0.0.1", 5), "/metadata/creationTimestamp", json!("2025-01-01T00:00:00Z"));
    for (pods, winner) in
        [([pod("b", "10.0.0.1", 3), pod("a", "10.0.0.1", 4)], "a"), ([pod("a", "10.0.0.1", 4), older], "z")]
    {
        let script = Script::default();
        script.lists("pods", Reply::list(7, &pods));
        let running = run(&script);
        running.until_pods(&[winner]).await;
        assert_eq!(running.problems().len(), 1);
    }
}
