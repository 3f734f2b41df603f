//! Lists and watches that go wrong.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_list_is_read_page_by_page_and_its_version_is_where_the_watch_begins() {
    let script = Script::default();
    script.lists("pods", Reply::page(7, "b/2=", &[pod("a", "10.0.0.1", 3)]));
    script.lists("pods", Reply::list(7, &[pod("b", "10.0.0.2", 4)]));
    let running = run(&script);
    running.until_pods(&["a", "b"]).await;
    running.until("a watch", |running| running.script.questions("pods").len() == 3).await;
    assert_eq!(script.questions("pods"), ["list", "list continue=b%2F2%3D", "watch resourceVersion=7"]);
    let pods: Vec<_> = script.uris().into_iter().filter(|uri| uri.starts_with("/api/v1/pods")).collect();
    assert_eq!(pods[0], "/api/v1/pods?limit=500");
    assert!(pods[2].contains("&allowWatchBookmarks=true&timeoutSeconds=2"), "{}", pods[2]);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_published_before_every_kind_has_been_listed() {
    let script = Script::default();
    script.lists("pods", Reply::list(7, &[pod("a", "10.0.0.1", 3)]));
    script.lists("authorizationpolicies", Reply::retry(503, 60));
    let running = run(&script);
    seconds(55).await;
    assert!(!running.is_published());
    assert_eq!(running.state("Pod").0, "watching");
    assert_eq!(running.state("AuthorizationPolicy").0, "failing");
    running.until_pods(&["a"]).await;
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_ends_goes_on_from_the_last_bookmark_without_a_list() {
    let script = Script::default();
    script.lists("pods", Reply::list(7, &[]));
    let events = [("ADDED", pod("a", "10.0.0.1", 8)), ("BOOKMARK", bookmark(20))];
    script.watches("pods", Reply::watch(&events, End::Clean));
    script.watches("pods", Reply::watch(&[("ADDED", pod("b", "10.0.0.2", 21))], End::Never));
    let running = run(&script);
    running.until_pods(&["a", "b"]).await;
    assert_eq!(script.questions("pods"), ["list", "watch resourceVersion=7", "watch resourceVersion=20"]);
    assert!(running.has_metric("weft_discovery_lists_total{kind=\"Pod\"} 1"));
}

#[tokio::test(start_paused = true)]
async fn a_watch_cut_in_the_middle_of_a_line_goes_on_after_the_last_whole_one() {
    for end in [End::Cut, End::Clean] {
        let script = Script::default();
        script.lists("pods", Reply::list(7, &[]));
        let cut = Reply::watch(&[("ADDED", pod("a", "10.0.0.1", 8))], end);
        script.watches("pods", cut.and("{\"type\":\"DELETED\",\"object\":{\"metadata\":{\"name\":\"a\""));
        script.watches("pods", Reply::watch(&[("ADDED", pod("b", "10.0.0.2", 9))], End::Never));
        let running = run(&script);
        running.until_pods(&["a", "b"]).await;
        assert_eq!(script.questions("pods")[1..], ["watch resourceVersion=7", "watch resourceVersion=8"]);
        assert!(running.has_metric("weft_discovery_failures_total{kind=\"Pod\",reason=\"cut\"} 1"));
        assert!(running.has_metric("weft_discovery_connected{kind=\"Pod\"} 1"));
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_too_old_is_listed_anew_within_a_second_and_what_is_not_listed_is_gone() {
    let as_event = Reply::watch(&[("ADDED", pod("b", "10.0.0.2", 8)), ("ERROR", gone())], End::Clean);
    for expired in [as_event, Reply::error(410, "too old resource version")] {
        let script = Script::default();
        script.lists("pods", Reply::list(7, &[pod("a", "10.0.0.1", 3)]));
        script.watches("pods", expired);
        script.lists("pods", Reply::list(30, &[pod("c", "10.0.0.3", 29)]));
        let running = run(&script);
        running.until_pods(&["c"]).await;
        running.until("a watch", |running| running.script.asked("pods").len() == 4).await;
        let asked = script.asked("pods");
        assert_eq!(asked[3].1, "watch resourceVersion=30");
        assert!(asked[2].0 - asked[1].0 < Duration::from_secs(1));
    }
}

#[tokio::test(start_paused = true)]
async fn a_version_from_the_future_is_listed_anew() {
    let script = Script::default();
    script.lists("pods", Reply::list(7, &[]));
    let cause = json!({"reason": "ResourceVersionTooLarge", "message": "Too large resource version"});
    let status =
        json!({"code": 504, "reason": "Timeout", "details": {"causes": [cause], "retryAfterSeconds": 1}});
    script.watches("pods", Reply::watch(&[("ERROR", status)], End::Clean));
    script.lists("pods", Reply::list(2, &[pod("a", "10.0.0.1", 2)]));
    let running = run(&script);
    running.until_pods(&["a"]).await;
}

#[tokio::test(start_paused = true)]
async fn a_list_whose_place_has_expired_begins_anew() {
    let script = Script::default();
    script.lists("pods", Reply::page(7, "more", &[pod("a", "10.0.0.1", 3)]));
    script.lists("pods", Reply::error(410, "The provided continue parameter is too old"));
    script.lists("pods", Reply::list(9, &[pod("b", "10.0.0.2", 8)]));
    let running = run(&script);
    running.until_pods(&["b"]).await;
    assert_eq!(script.questions("pods")[..3], ["list", "list continue=more", "list"]);
}

#[tokio::test(start_paused = true)]
async fn an_interrupted_list_changes_nothing() {
    let script = Script::default();
    script.lists("pods", Reply::list(7, &[pod("a", "10.0.0.1", 3), pod("b", "10.0.0.2", 4)]));
    script.watches("pods", Reply::watch(&[("ERROR", gone())], End::Clean));
    script.lists("pods", Reply::page(9, "more", &[pod("c", "10.0.0.3", 8)]));
    script.lists("pods", Reply::retry(500, 60));
    script.lists("pods", Reply::list(10, &[pod("d", "10.0.0.4", 9)]));
    let running = run(&script);
    running.until_pods(&["a", "b"]).await;
    seconds(50).await;
    assert_eq!(running.pods(), ["a", "b"]);
    assert_eq!(running.state("Pod").1.unwrap().0, "server_error");
    running.until_pods(&["d"]).await;
    assert_eq!(running.state("Pod"), ("watching", None));
}

#[tokio::test(start_paused = true)]
async fn the_time_that_the_api_asks_for_is_given() {
    let script = Script::default();
    script.lists("pods", Reply::retry(429, 17));
    let running = run(&script);
    running.until_pods(&[]).await;
    let asked = script.asked("pods");
    assert!(asked[1].0 - asked[0].0 >= Duration::from_secs(17));
    assert!(running.has_metric("weft_discovery_failures_total{kind=\"Pod\",reason=\"throttled\"} 1"));
}

#[tokio::test(start_paused = true)]
async fn who_is_refused_is_told_so_and_goes_on_asking() {
    for (status, reason, text) in
        [(401, "unauthorized", "credentials"), (403, "forbidden", "a role is missing: no")]
    {
        let script = Script::default();
        for _ in 0..5 {
            script.lists("pods", Reply::error(status, "no"));
        }
        let running = run(&script);
        running.until("a failure", |running| running.state("Pod").1.is_some()).await;
        let (_, failure) = running.state("Pod");
        let (found, message) = failure.unwrap();
        assert!(found == reason && message.contains(text), "{found}: {message}");
        assert!(!running.is_published());
        running.until_pods(&[]).await;
        assert_eq!(running.state("Pod"), ("watching", None));
    }
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_outlives_its_time_is_given_up() {
    let script = Script::default();
    script.lists("pods", Reply::list(7, &[]));
    script.watches("pods", Reply::watch(&[("ADDED", pod("a", "10.0.0.1", 8))], End::Never));
    script.watches("pods", Reply::watch(&[("ADDED", pod("b", "10.0.0.2", 9))], End::Never));
    let running = run(&script);
    let began = clock::now();
    running.until_pods(&["a", "b"]).await;
    let lasted = (clock::now() - began).as_secs();
    assert!((260..=310).contains(&lasted), "{lasted} s");
    assert_eq!(script.questions("pods").last().unwrap(), "watch resourceVersion=8");
    assert!(running.has_metric("weft_discovery_failures_total{kind=\"Pod\",reason=\"stalled\"} 1"));
}

#[tokio::test(start_paused = true)]
async fn what_is_known_stays_while_the_api_is_away_and_it_is_asked_ever_more_rarely() {
    let script = Script::default();
    script.lists("pods", Reply::list(7, &[pod("a", "10.0.0.1", 3)]));
    for _ in 0..12 {
        script.watches("pods", Reply::error(500, "etcd is away"));
    }
    let running = run(&script);
    running.until_pods(&["a"]).await;
    seconds(100).await;
    assert_eq!(running.pods(), ["a"]);
    assert!(running.has_metric("weft_discovery_connected{kind=\"Pod\"} 0"));
    assert!(running.has_metric("weft_discovery_objects{kind=\"Pod\"} 1"));
    let failures = script.questions("pods").len();
    assert!((6..=11).contains(&failures), "{failures} questions in 100 s");
    running.until("a watch", |running| running.state("Pod").0 == "watching").await;
    assert!(script.questions("pods")[1..].iter().all(|question| question == "watch resourceVersion=7"));
}

#[tokio::test(start_paused = true)]
async fn watches_that_end_at_once_are_not_asked_for_without_pause() {
    let script = Script::default();
    script.lists("pods", Reply::list(7, &[]));
    for _ in 0..100 {
        script.watches("pods", Reply::watch(&[], End::Clean));
    }
    let running = run(&script);
    running.until_pods(&[]).await;
    seconds(10).await;
    assert!(script.questions("pods").len() < 10);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_makes_no_sense_is_listed_anew() {
    let script = Script::default();
    script.lists("pods", Reply::list(7, &[pod("a", "10.0.0.1", 3)]));
    script.watches("pods", Reply::watch(&[], End::Never).and("<html>Bad Gateway</html>\n"));
    script.lists("pods", Reply::list(9, &[pod("b", "10.0.0.2", 8)]));
    let running = run(&script);
    running.until_pods(&["b"]).await;
    assert!(running.has_metric("weft_discovery_failures_total{kind=\"Pod\",reason=\"unreadable\"} 1"));
}
