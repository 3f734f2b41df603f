//! Hosts, headers, query parameters, expressions and calls: what matches and what does not.

use http::HeaderValue;

use super::fixtures::*;
use crate::model::RequestMatch;
use crate::route::RequestRouter;

/// A router for one alternative.
fn only(alternative: RequestMatch) -> RequestRouter {
    router(vec![http("only", vec![rule(vec![alternative], "x")])])
}

#[track_caller]
fn matches(router: &RequestRouter, sent: &Sent, expected: bool) {
    assert_eq!(router.find(&sent.head()).is_some(), expected, "{sent:?}");
}

#[test]
fn hosts_match_without_port_and_case() {
    let router = router(vec![
        http("exact", vec![rule(vec![every()], "x")]).hosts(&["shop.example"]),
        http("wild", vec![rule(vec![every()], "x")]).hosts(&["*.wild.example"]),
    ]);
    let long = format!("{}.wild.example", "x".repeat(300));
    let table = [
        (Some("shop.example"), true),
        (Some("SHOP.Example:8080"), true),
        (Some("shop.example."), true),
        (Some("a.shop.example"), false),
        (Some("a.wild.example"), true),
        (Some("a.b.WILD.example:1"), true),
        (Some("wild.example"), false),
        (Some(".wild.example"), false),
        (Some("awild.example"), false),
        (Some("wild.example.com"), false),
        (Some(&long), false),
        (Some(""), false),
        (None, false),
    ];
    for (host, expected) in table {
        matches(&router, &Sent::new("GET /", &[]).to(host), expected);
    }
}

#[test]
fn a_header_of_several_lines_is_one_value() {
    let listed = only(every().header("list", "a,b"));
    matches(&listed, &Sent::new("GET /", &[("list", "a"), ("list", "b")]), true);
    matches(&listed, &Sent::new("GET /", &[("list", "a,b")]), true);
    matches(&listed, &Sent::new("GET /", &[("list", "b"), ("list", "a")]), false);
    matches(&listed, &Sent::new("GET /", &[("list", "a")]), false);
    matches(&listed, &Sent::new("GET /", &[]), false);
    let cookie = only(every().header("cookie", "a=1; b=2"));
    matches(&cookie, &Sent::new("GET /", &[("cookie", "a=1"), ("cookie", "b=2")]), true);
    matches(&only(every().header("empty", "=")), &Sent::new("GET /", &[("empty", "")]), true);
}

#[test]
fn the_host_header_is_the_authority() {
    let router = only(every().header("host", "echo:80"));
    matches(&router, &Sent::new("GET /", &[]).to(Some("echo:80")), true);
    matches(&router, &Sent::new("GET /", &[("host", "echo:80")]).to(Some("other")), false);
    matches(&router, &Sent::new("GET /", &[]).to(None), false);
}

#[test]
fn expressions_match_whole_values_and_text_only() {
    let router = only(every().header("a", "~[0-9]+.*"));
    matches(&router, &Sent::new("GET /", &[("a", "12x")]), true);
    matches(&router, &Sent::new("GET /", &[("a", "x12")]), false);
    let mut sent = Sent::new("GET /", &[]);
    sent.headers.insert("a", HeaderValue::from_bytes(b"1\xff").expect("obs-text is allowed"));
    matches(&router, &sent, false);

    let router = only(regex("/a/[0-9]+"));
    matches(&router, &Sent::new("GET /a/12?q", &[]), true);
    matches(&router, &Sent::new("GET /a/12/", &[]), false);
    matches(&router, &Sent::new("GET /b/a/12", &[]), false);
}

#[test]
fn query_parameters_are_decoded_and_the_first_counts() {
    let router = only(every().query("a b", "c&d"));
    let table = [
        ("GET /?a+b=c%26d", true),
        ("GET /?a%20b=c%26d", true),
        ("GET /?x=1&&a+b=c%26d&y", true),
        ("GET /?a+b=c&d", false),
        ("GET /?a+b=1&a+b=c%26d", false),
        ("GET /?a+b=c%26d&a+b=1", true),
        ("GET /?A+b=c%26d", false),
        ("GET /", false),
    ];
    for (line, expected) in table {
        matches(&router, &Sent::new(line, &[]), expected);
    }
    let literal = only(every().query("p", "=%zz%4"));
    matches(&literal, &Sent::new("GET /?p=%zz%4", &[]), true);
    matches(&only(every().query("flag", "=")), &Sent::new("GET /?flag", &[]), true);
    matches(&only(every().query("a", "=x=y")), &Sent::new("GET /?a=x=y", &[]), true);
    matches(&only(every().query("a", "~[ä]")), &Sent::new("GET /?a=%C3%A4", &[]), true);
    matches(&only(every().query("a", "~.*")), &Sent::new("GET /?a=%FF", &[]), false);
}

#[test]
fn the_rule_says_which_alternative_and_prefix_matched() {
    let alternatives = vec![exact("/a"), prefix("/b/c/"), every().header("x", "1")];
    let router = router(vec![http("many", vec![rule(alternatives, "x")])]);
    for (line, alternative, prefix) in
        [("GET /a", 0, None), ("GET /b/c/d", 1, Some("/b/c")), ("GET /z", 2, Some(""))]
    {
        let sent = Sent::new(line, &[("x", "1")]);
        let found = router.find(&sent.head()).expect("a rule");
        assert_eq!((found.alternative, found.prefix.as_deref()), (alternative, prefix), "{line}");
        assert_eq!(found.request_match().is_some_and(|one| one.headers.len() == 1), alternative == 2);
    }
}

#[test]
fn calls_are_matched_by_service_and_method() {
    let rules = vec![
        rule(vec![call("=shop.Cart", "=Add")], "add"),
        rule(vec![call("=shop.Cart", "")], "cart"),
        rule(vec![call("", "=Check")], "check"),
        rule(vec![call(r"~shop\..*", "~Get.*")], "get"),
    ];
    check(
        &router(vec![grpc("calls", rules)]),
        &[
            ("POST /shop.Cart/Add", &[], "add echo/shop.Cart/Add"),
            ("POST /shop.Cart/Remove", &[], "cart echo/shop.Cart/Remove"),
            ("POST /shop.Cart/Check", &[], "cart echo/shop.Cart/Check"),
            ("POST /grpc.health.v1.Health/Check", &[], "check echo/grpc.health.v1.Health/Check"),
            ("POST /shop.Stock/GetAll", &[], "get echo/shop.Stock/GetAll"),
            ("POST /shop.Stock/Put", &[], "404"),
            ("POST /shop.cart/add", &[], "404"),
            ("POST /shop.Cart/Add/more", &[], "404"),
            ("POST /shop.Cart", &[], "404"),
            ("POST /shop.Cart/", &[], "404"),
        ],
    );
    let all = router(vec![grpc("all", vec![rule(vec![call("", "")], "x")])]);
    check(&all, &[("GET /not/a/call", &[], "x echo/not/a/call")]);
}

#[test]
fn no_route_and_no_rule_match_nothing() {
    matches(&router(Vec::new()), &Sent::new("GET /", &[]), false);
    matches(&router(vec![http("empty", Vec::new())]), &Sent::new("GET /", &[]), false);
}
