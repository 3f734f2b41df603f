//! Which of several alternatives that match wins. Each case has its routes given in both orders.

use http::Method;

use super::fixtures::*;
use crate::model::{RequestMatch, Route};

/// The winner of `winner` and `loser`, which both match, is the first.
#[track_caller]
fn wins(winner: Route, loser: Route, sent: &Sent) {
    for routes in [vec![winner.clone(), loser.clone()], vec![loser, winner.clone()]] {
        let router = router(routes);
        let found = router.find(&sent.head()).expect("both match");
        assert_eq!(found.route, winner.name);
    }
}

/// One alternative beats another across routes, even when the loser is older, first by name and first in its rule list.
#[track_caller]
fn narrower(winner: RequestMatch, loser: RequestMatch, line: &str) {
    let sent = Sent::new(line, &[("a", "1"), ("b", "2")]);
    wins(
        http("z", vec![rule(vec![winner], "w")]).rank(9),
        http("a", vec![rule(vec![loser], "l")]).rank(1),
        &sent,
    );
}

#[test]
fn exact_path_then_regex_then_longest_prefix() {
    narrower(exact("/a/b"), regex("/a/.*"), "GET /a/b");
    narrower(exact("/a/b"), prefix("/a/b").header("a", "1").method(Method::GET), "GET /a/b");
    narrower(regex("/a.*"), prefix("/a/b/c").header("a", "1"), "GET /a/b/c");
    narrower(prefix("/a/b"), prefix("/a").method(Method::GET).header("a", "1"), "GET /a/b/c");
    narrower(prefix("/a"), prefix("/").query("q", "1"), "GET /a?q=1");
}

#[test]
fn then_method_then_headers_then_query() {
    for path in [exact, prefix, regex] {
        let at = || path("/a");
        let line = "GET /a?p=1&q=2";
        narrower(at().method(Method::GET), at().header("a", "1").header("b", "2").query("p", "1"), line);
        narrower(at().header("a", "1").header("b", "2"), at().header("a", "1").query("p", "1"), line);
        narrower(at().query("p", "1").query("q", "2"), at().query("p", "1"), line);
        narrower(at().query("p", "1"), at(), line);
    }
}

#[test]
fn then_age_then_name_then_place() {
    let one = || vec![rule(vec![every()], "x")];
    let sent = Sent::new("GET /", &[]);
    wins(http("b", one()).rank(1), http("a", one()).rank(2), &sent);
    wins(http("a", one()), http("b", one()), &sent);
    wins(http("a/z", one()), http("b/a", one()), &sent);
    // By "{namespace}/{name}" as one text: `-` stands before `/`.
    wins(http("a-b/z", one()), http("a/z", one()), &sent);

    let rules = vec![rule(vec![prefix("/no"), every()], "first"), rule(vec![every()], "second")];
    let router = router(vec![http("places", rules)]);
    let found = router.find(&sent.head()).expect("both match");
    assert_eq!((found.rule.index, found.alternative), (0, 1));
}

#[test]
fn a_narrower_host_wins_over_everything_else() {
    let sent = Sent::new("GET /a", &[]).to(Some("x.y.example"));
    let narrow = || vec![rule(vec![exact("/a").method(Method::GET)], "x")];
    let wide = || vec![rule(vec![every()], "x")];
    let hosts = ["x.y.example", "*.y.example", "*.example"];
    for pair in hosts.windows(2) {
        wins(http("z", wide()).hosts(&pair[..1]).rank(9), http("a", narrow()).hosts(&pair[1..]), &sent);
    }
    wins(http("z", wide()).hosts(&hosts[2..]).rank(9), http("a", narrow()), &sent);
    // The narrowest of a route's own hosts counts.
    wins(
        http("z", wide()).hosts(&["*.example", "x.y.example"]),
        http("a", narrow()).hosts(&hosts[1..2]),
        &sent,
    );
    // A wider host is asked when no rule of the narrower one matches.
    wins(
        http("z", wide()).hosts(&hosts[2..]),
        http("a", vec![rule(vec![exact("/b")], "x"), rule(vec![prefix("/b")], "x")]).hosts(&hosts[..1]),
        &sent,
    );
}

#[test]
fn calls_by_service_then_method_then_headers_then_age() {
    let wins_call = |winner: RequestMatch, loser: RequestMatch| {
        let sent = Sent::new("POST /shop.Cart/Add", &[("a", "1"), ("b", "2")]);
        let winner = grpc("z", vec![rule(vec![winner], "w")]).rank(9);
        wins(winner, grpc("a", vec![rule(vec![loser], "l")]).rank(1), &sent);
    };
    wins_call(call("=shop.Cart", "=Add"), call("=shop.Cart", "~A.*").header("a", "1"));
    wins_call(call("=shop.Cart", "~A.*"), call("=shop.Cart", "").header("a", "1"));
    wins_call(call("=shop.Cart", ""), call("~shop.*", "=Add"));
    wins_call(call("~shop.*", "=Add"), call("~.*Cart", "~Add|Remove").header("a", "1"));
    wins_call(call("~shop.*", ""), call("", "=Add").header("a", "1"));
    wins_call(call("", "=Add"), call("", "~A.*").header("a", "1"));
    wins_call(call("", "~A.*"), call("", "").header("a", "1"));
    wins_call(call("", "").header("a", "1").header("b", "2"), call("", "").header("a", "1"));
    let one = || vec![rule(vec![call("=shop.Cart", "=Add")], "x")];
    wins(grpc("b", one()).rank(1), grpc("a", one()).rank(2), &Sent::new("POST /shop.Cart/Add", &[]));
}
