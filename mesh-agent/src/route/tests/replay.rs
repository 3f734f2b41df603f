//! What the mesh tests of the Gateway API conformance suite (v1.6.1) ask, replayed against the router with stricter
//! assertions: `Location` in full, and path, query, host and every header as the backend receives them. Routes and
//! requests are our own, written from the facts of each test. Replayed, not conformant: only the real suite can say that.

use http::Method;

use super::fixtures::*;
use crate::model::{BackendTarget, Filter, PathEdit, RouteBackend};
use crate::route::RequestRouter;

/// `MeshHTTPRouteSimpleSameNamespace`.
#[test]
fn a_rule_without_matches_takes_everything() {
    let router = router(vec![http("simple", vec![rule(vec![every()], "echo-v1")])]);
    check(
        &router,
        &[
            ("GET /", &[], "echo-v1 echo/"),
            ("POST /any/path?x=1&y", &[("a", "b")], "echo-v1 echo/any/path?x=1&y a=b"),
            ("OPTIONS *", &[], "echo-v1 echo*"),
        ],
    );
}

/// `MeshTrafficSplit`.
#[test]
fn exact_paths_part_traffic() {
    let rules = vec![rule(vec![exact("/v1")], "echo-v1"), rule(vec![exact("/v2")], "echo-v2")];
    check(
        &router(vec![http("split", rules)]),
        &[
            ("GET /v1", &[], "echo-v1 echo/v1"),
            ("GET /v2", &[], "echo-v2 echo/v2"),
            ("GET /v2?v1", &[], "echo-v2 echo/v2?v1"),
            ("GET /v2/", &[], "404"),
            ("GET /V2", &[], "404"),
            ("GET /", &[], "404"),
        ],
    );
}

/// `MeshHTTPRouteMatching`.
#[test]
fn prefixes_match_by_whole_segments_and_headers_beside_them() {
    let rules = vec![
        rule(vec![prefix("/"), every().header("version", "one")], "echo-v1"),
        rule(vec![prefix("/v2"), every().header("version", "two")], "echo-v2"),
    ];
    check(
        &router(vec![http("matching", rules)]),
        &[
            ("GET /", &[], "echo-v1 echo/"),
            ("GET /example", &[], "echo-v1 echo/example"),
            ("GET /", &[("version", "one")], "echo-v1 echo/ version=one"),
            ("GET /v2", &[], "echo-v2 echo/v2"),
            ("GET /v2/example", &[], "echo-v2 echo/v2/example"),
            ("GET /", &[("version", "two")], "echo-v2 echo/ version=two"),
            ("GET /", &[("VERSION", "two")], "echo-v2 echo/ version=two"),
            ("GET /v2/", &[], "echo-v2 echo/v2/"),
            ("GET /v2example", &[], "echo-v1 echo/v2example"),
            ("GET /foo/v2/example", &[], "echo-v1 echo/foo/v2/example"),
            ("GET /", &[("version", "Two")], "echo-v1 echo/ version=Two"),
        ],
    );
}

/// `MeshHTTPRouteRequestHeaderModifier` and, on a backend, `MeshHTTPRouteBackendRequestHeaderModifier`.
#[test]
fn request_headers_are_set_added_and_removed_by_rules_and_by_backends_alike() {
    let edits = [
        ("/set", edit(&[("X-Header-Set", "set-overwrites-values")], &[], &[])),
        ("/add", edit(&[], &[("X-Header-Add", "add-appends-values")], &[])),
        ("/remove", edit(&[], &[], &["X-Header-Remove"])),
        (
            "/multiple",
            edit(
                &[("X-Header-Set-1", "header-set-1"), ("X-Header-Set-2", "header-set-2")],
                &[("X-Header-Add-1", "header-add-1"), ("X-Header-Add-2", "header-add-2")],
                &["X-Header-Remove-1", "X-Header-Remove-2"],
            ),
        ),
        (
            "/case-insensitivity",
            edit(&[("X-Header-Set", "header-set")], &[("X-Header-Add", "header-add")], &["X-Header-Remove"]),
        ),
    ];
    let of_rules = |(path, edit): &(&str, _)| {
        rule(vec![prefix(path)], "echo-v1").filter(Filter::RequestHeaders(Clone::clone(edit)))
    };
    let of_backends = |(path, edit): &(&str, _)| {
        let filters = vec![Filter::RequestHeaders(Clone::clone(edit))];
        split(vec![prefix(path)], vec![RouteBackend { filters, ..to("echo-v1", 1) }])
    };
    for rules in [edits.iter().map(of_rules).collect(), edits.iter().map(of_backends).collect()] {
        check_header_edits(&router(vec![http("headers", rules)]));
    }
}

#[track_caller]
fn check_header_edits(router: &RequestRouter) {
    check(
        router,
        &[
            (
                "GET /set",
                &[("some-other-header", "val")],
                "echo-v1 echo/set some-other-header=val x-header-set=set-overwrites-values",
            ),
            (
                "GET /set",
                &[("some-other-header", "val"), ("x-header-set", "some-other-value")],
                "echo-v1 echo/set some-other-header=val x-header-set=set-overwrites-values",
            ),
            (
                "GET /add",
                &[("some-other-header", "val")],
                "echo-v1 echo/add some-other-header=val x-header-add=add-appends-values",
            ),
            (
                "GET /add",
                &[("x-header-add", "some-other-value")],
                "echo-v1 echo/add x-header-add=some-other-value,add-appends-values",
            ),
            ("GET /remove", &[("x-header-remove", "val"), ("kept", "1")], "echo-v1 echo/remove kept=1"),
            (
                "GET /multiple",
                &[
                    ("x-header-set-2", "set-val-2"),
                    ("x-header-add-2", "add-val-2"),
                    ("x-header-remove-2", "remove-val-2"),
                    ("another-header", "another-header-val"),
                ],
                "echo-v1 echo/multiple another-header=another-header-val x-header-add-1=header-add-1 \
                 x-header-add-2=add-val-2,header-add-2 x-header-set-1=header-set-1 x-header-set-2=header-set-2",
            ),
            (
                "GET /case-insensitivity",
                &[
                    ("x-header-set", "original"),
                    ("X-HEADER-ADD", "original"),
                    ("x-Header-REMOVE", "original"),
                ],
                "echo-v1 echo/case-insensitivity x-header-add=original,header-add x-header-set=header-set",
            ),
        ],
    );
}

/// `MeshHTTPRouteRedirectHostAndStatus` and the three provisional `MeshHTTPRoute30xRedirect`.
#[test]
fn redirects_name_host_and_status() {
    let to = |path: &str, status| {
        rule(vec![prefix(path)], "echo-v1").filter(redirecting(status, None, Some("example.org"), None, None))
    };
    let rules = vec![
        rule(vec![prefix("/hostname-redirect")], "echo-v1").filter(redirecting(
            302,
            None,
            Some("example.org"),
            None,
            None,
        )),
        to("/301", 301),
        to("/303", 303),
        to("/307", 307),
        to("/308", 308),
    ];
    check(
        &router(vec![http("redirect", rules)]),
        &[
            ("GET /hostname-redirect", &[], "302 http://example.org/hostname-redirect"),
            ("GET /hostname-redirect/?a=b&c", &[], "302 http://example.org/hostname-redirect/?a=b&c"),
            ("GET /301", &[], "301 http://example.org/301"),
            ("POST /303", &[], "303 http://example.org/303"),
            ("PUT /307", &[], "307 http://example.org/307"),
            ("GET /308", &[], "308 http://example.org/308"),
            ("GET /309", &[], "404"),
        ],
    );
}

/// `MeshHTTPRouteRedirectPath`.
#[test]
fn redirects_change_paths() {
    let full = |path: &str| Some(PathEdit::Full(path.into()));
    let new_prefix = |path: &str| Some(PathEdit::Prefix(path.into()));
    let at = |path: &str, filter| rule(vec![prefix(path)], "echo-v1").filter(filter);
    let rules = vec![
        at("/original-prefix", redirecting(302, None, None, None, new_prefix("/replacement-prefix"))),
        at("/full", redirecting(302, None, None, None, full("/full-path-replacement"))),
        at("/path-and-host", redirecting(302, None, Some("example.org"), None, new_prefix("/new"))),
        at("/path-and-status", redirecting(301, None, None, None, new_prefix("/new"))),
        at("/full-path-and-host", redirecting(302, None, Some("example.org"), None, full("/new"))),
        at("/full-path-and-status", redirecting(301, None, None, None, full("/new"))),
    ];
    check(
        &router(vec![http("redirect", rules)]),
        &[
            ("GET /original-prefix/lemon", &[], "302 http://echo/replacement-prefix/lemon"),
            ("GET /original-prefix", &[], "302 http://echo/replacement-prefix"),
            ("GET /full/path/original", &[], "302 http://echo/full-path-replacement"),
            ("GET /full/path?kept=1", &[], "302 http://echo/full-path-replacement?kept=1"),
            ("GET /path-and-host/lemon", &[], "302 http://example.org/new/lemon"),
            ("GET /path-and-status/lemon", &[], "301 http://echo/new/lemon"),
            ("GET /full-path-and-host/lemon", &[], "302 http://example.org/new"),
            ("GET /full-path-and-status/lemon", &[], "301 http://echo/new"),
        ],
    );
}

/// `MeshHTTPRouteRedirectPort` and `MeshHTTPRouteSchemeRedirect`.
#[test]
fn redirects_change_port_and_scheme() {
    let at = |path: &str, filter| rule(vec![prefix(path)], "echo-v1").filter(filter);
    let (host, port) = (Some("example.org"), Some(8083));
    let rules = vec![
        at("/port", redirecting(302, None, None, port, None)),
        at("/port-and-host", redirecting(302, None, host, port, None)),
        at("/port-and-status", redirecting(301, None, None, port, None)),
        at("/port-and-host-and-status", redirecting(301, None, host, port, None)),
        at("/scheme", redirecting(302, Some("https"), None, None, None)),
        at("/scheme-and-host", redirecting(302, Some("https"), host, None, None)),
        at("/scheme-and-status", redirecting(301, Some("https"), None, None, None)),
        at("/scheme-and-host-and-status", redirecting(301, Some("https"), host, None, None)),
    ];
    check(
        &router(vec![http("redirect", rules)]),
        &[
            ("GET /port", &[], "302 http://echo:8083/port"),
            ("GET /port-and-host", &[], "302 http://example.org:8083/port-and-host"),
            ("GET /port-and-status", &[], "301 http://echo:8083/port-and-status"),
            ("GET /port-and-host-and-status", &[], "301 http://example.org:8083/port-and-host-and-status"),
            ("GET /scheme", &[], "302 https://echo/scheme"),
            ("GET /scheme-and-host", &[], "302 https://example.org/scheme-and-host"),
            ("GET /scheme-and-status", &[], "301 https://echo/scheme-and-status"),
            ("GET /scheme-and-host-and-status", &[], "301 https://example.org/scheme-and-host-and-status"),
        ],
    );
}

/// `MeshHTTPRouteRewritePath`, and `HTTPRouteRewriteHost`, which has no mesh twin.
#[test]
fn rewrites_change_path_and_host_and_keep_the_query() {
    let at = |path: &str, edit| rule(vec![prefix(path)], "echo-v1").filter(rewriting(None, Some(edit)));
    let headers = || {
        Filter::RequestHeaders(edit(
            &[("X-Header-Set", "set")],
            &[("X-Header-Add", "add")],
            &["X-Header-Remove"],
        ))
    };
    let rules = vec![
        at("/prefix/one", PathEdit::Prefix("/one".into())),
        at("/strip-prefix", PathEdit::Prefix("/".into())),
        at("/full/one", PathEdit::Full("/one".into())),
        at("/full/with-headers", PathEdit::Full("/test".into())).filter(headers()),
        at("/prefix/with-headers", PathEdit::Prefix("/prefix".into())).filter(headers()),
        rule(vec![prefix("/host")], "echo-v2").filter(rewriting(Some("one.example.org"), None)),
        rule(vec![prefix("/both")], "echo-v2")
            .filter(rewriting(Some("test.example.org"), Some(PathEdit::Full("/x".into())))),
    ];
    let edited: &[(&str, &str)] = &[("x-header-remove", "1"), ("x-header-set", "2"), ("x-header-add", "3")];
    check(
        &router(vec![http("rewrite", rules)]),
        &[
            ("GET /prefix/one/two", &[], "echo-v1 echo/one/two"),
            ("GET /strip-prefix", &[], "echo-v1 echo/"),
            ("GET /strip-prefix/three", &[], "echo-v1 echo/three"),
            ("GET /strip-prefix/three/?q=%2F", &[], "echo-v1 echo/three/?q=%2F"),
            ("GET /full/one/two", &[], "echo-v1 echo/one"),
            ("GET /full/with-headers/x", edited, "echo-v1 echo/test x-header-add=3,add x-header-set=set"),
            (
                "GET /prefix/with-headers/one",
                edited,
                "echo-v1 echo/prefix/one x-header-add=3,add x-header-set=set",
            ),
            ("GET /host/x?y", &[], "echo-v2 one.example.org/host/x?y"),
            ("GET /both/x?y", &[], "echo-v2 test.example.org/x?y"),
        ],
    );
}

/// `MeshHTTPRouteQueryParamMatching`.
#[test]
fn query_parameters_match_alone_together_and_beside_paths() {
    let rules = vec![
        rule(vec![every().query("animal", "whale")], "whale"),
        rule(vec![every().query("animal", "dolphin")], "dolphin"),
        rule(vec![every().query("animal", "dolphin").query("color", "blue")], "blue-dolphin"),
        rule(vec![prefix("/path1").query("animal", "whale")], "path1-whale"),
        rule(vec![prefix("/path2").query("animal", "whale").header("version", "one")], "path2-one"),
        rule(
            vec![prefix("/path3").query("animal", "shark"), prefix("/path4").query("animal", "kraken")],
            "either",
        ),
        rule(vec![prefix("/path5")], "path5"),
        rule(vec![every().query("animal", "hydra")], "hydra"),
    ];
    check(
        &router(vec![http("query", rules)]),
        &[
            ("GET /?animal=whale", &[], "whale echo/?animal=whale"),
            ("GET /?animal=dolphin", &[], "dolphin echo/?animal=dolphin"),
            ("GET /?animal=dolphin&color=yellow", &[], "dolphin echo/?animal=dolphin&color=yellow"),
            ("GET /?color=blue&animal=dolphin", &[], "blue-dolphin echo/?color=blue&animal=dolphin"),
            ("GET /?color=blue", &[], "404"),
            ("GET /?animal=dog", &[], "404"),
            ("GET /?animal=whaledolphin", &[], "404"),
            ("GET /", &[], "404"),
            ("GET /path1?animal=whale", &[], "path1-whale echo/path1?animal=whale"),
            ("GET /path1?animal=dolphin", &[], "dolphin echo/path1?animal=dolphin"),
            (
                "GET /path2?animal=whale",
                &[("version", "one")],
                "path2-one echo/path2?animal=whale version=one",
            ),
            ("GET /path2?animal=whale", &[], "whale echo/path2?animal=whale"),
            ("GET /path3?animal=shark", &[], "either echo/path3?animal=shark"),
            ("GET /path4?animal=kraken", &[], "either echo/path4?animal=kraken"),
            ("GET /path3?animal=kraken", &[], "404"),
            ("GET /path5?animal=hydra", &[], "path5 echo/path5?animal=hydra"),
            ("GET /?animal=hydra", &[], "hydra echo/?animal=hydra"),
        ],
    );
}

/// `HTTPRouteMethodMatching` and `HTTPRoutePathMatchOrder`, which have no mesh twins.
#[test]
fn methods_match_and_narrower_paths_win() {
    let rules = vec![
        rule(vec![every().method(Method::POST)], "post"),
        rule(vec![every().method(Method::GET)], "get"),
        rule(vec![prefix("/path1").method(Method::GET)], "path1"),
        rule(vec![every().method(Method::PUT).header("version", "one")], "put-one"),
        rule(vec![exact("/match/exact")], "exact"),
        rule(vec![exact("/match")], "match"),
        rule(vec![prefix("/match/prefix/one")], "longer"),
        rule(vec![prefix("/match/")], "shorter"),
        rule(vec![prefix("/match/prefix/one/two")], "longest"),
    ];
    check(
        &router(vec![http("methods", rules)]),
        &[
            ("POST /", &[], "post echo/"),
            ("GET /", &[], "get echo/"),
            ("HEAD /", &[], "404"),
            ("GET /path1", &[], "path1 echo/path1"),
            ("POST /path1", &[], "post echo/path1"),
            ("PUT /", &[("version", "one")], "put-one echo/ version=one"),
            ("PUT /", &[], "404"),
            ("GET /match/exact", &[], "exact echo/match/exact"),
            ("GET /match/exact/no", &[], "shorter echo/match/exact/no"),
            ("GET /match", &[], "match echo/match"),
            ("GET /match/", &[], "shorter echo/match/"),
            ("GET /match/prefix/one", &[], "longer echo/match/prefix/one"),
            ("GET /match/prefix/one/two/three", &[], "longest echo/match/prefix/one/two/three"),
            ("GET /match/prefix/onetwo", &[], "shorter echo/match/prefix/onetwo"),
        ],
    );
}

/// `MeshHTTPRouteNamedRule`. Upstream expects `/named` of a request for `/unnamed` and does not notice; this does.
#[test]
fn rules_with_and_without_names_live_together() {
    let mut named = rule(vec![prefix("/named")], "echo-v1");
    named.name = Some("named-rule".into());
    let router = router(vec![http("names", vec![named, rule(vec![prefix("/unnamed")], "echo-v2")])]);
    check(
        &router,
        &[("GET /named", &[], "echo-v1 echo/named"), ("GET /unnamed", &[], "echo-v2 echo/unnamed")],
    );
    let matched = router.find(&Sent::new("GET /named", &[]).head()).expect("a rule").clone();
    assert_eq!(matched.rule.name.as_deref(), Some("named-rule"));
}

/// `HTTPRouteInvalidBackendRef...`, which has no mesh twin: an answer of 500 for the share of the backend.
#[test]
fn unresolved_absent_and_weightless_backends_answer_500() {
    let invalid = RouteBackend { target: BackendTarget::Invalid { reason: "not found".into() }, ..to("", 1) };
    let rules = vec![
        split(vec![prefix("/invalid")], vec![invalid.clone()]),
        split(vec![prefix("/none")], Vec::new()),
        split(vec![prefix("/weightless")], vec![to("echo-v1", 0), to("echo-v2", 0)]),
        split(vec![prefix("/half")], vec![to("echo-v1", 1), invalid]),
    ];
    let router = router(vec![http("broken", rules)]);
    check(
        &router,
        &[("GET /invalid", &[], "500"), ("GET /none", &[], "500"), ("GET /weightless", &[], "500")],
    );
    let failed = count(&router, &Sent::new("GET /half", &[]), "500", 1000);
    assert!((450..=550).contains(&failed), "{failed} of 1000 failed");
}

/// `MeshHTTPRouteWeight` and `MeshGRPCRouteWeight`: the third backend weighs nothing and need not exist.
#[test]
fn weights_share_traffic_and_zero_gets_none() {
    let backends = || {
        let gone = RouteBackend { target: BackendTarget::Invalid { reason: "no such".into() }, ..to("", 0) };
        vec![to("echo-v1", 70), to("echo-v2", 30), gone]
    };
    let web = router(vec![http("weight", vec![split(vec![every()], backends())])]);
    let calls = router(vec![grpc("weight", vec![split(vec![call("", "")], backends())])]);
    for (router, line) in [(&web, "GET /"), (&calls, "POST /grpcecho.GrpcEcho/Echo")] {
        let sent = Sent::new(line, &[]);
        let target = sent.head().path.to_owned();
        let first = count(router, &sent, &format!("echo-v1 echo{target}"), 5000);
        let second = count(router, &sent, &format!("echo-v2 echo{target}"), 5000);
        assert!(first.abs_diff(3500) < 175 && second.abs_diff(1500) < 175, "{first} and {second} of 5000");
        assert_eq!(count(router, &sent, "500", 5000), 0);
    }
}

fn count(router: &RequestRouter, sent: &Sent, expected: &str, requests: usize) -> usize {
    let mut random = fastrand::Rng::with_seed(42);
    (0..requests).filter(|_| outcome(router, sent, &mut random) == expected).count()
}

/// `MeshGRPCRouteRequestHeaderModifier`, keyed by a header as upstream does.
#[test]
fn grpc_routes_match_headers_and_edit_them() {
    let case = |name: &str, edit| {
        rule(vec![call("", "").header("x-test-case", name)], "echo-v1").filter(Filter::RequestHeaders(edit))
    };
    let rules = vec![
        case("set", edit(&[("x-header-set", "set")], &[], &[])),
        case("add", edit(&[], &[("x-header-add", "add")], &[])),
        case("remove", edit(&[], &[], &["x-header-remove"])),
        case("all", edit(&[("x-header-set", "set")], &[("x-header-add", "add")], &["x-header-remove"])),
    ];
    let line = "POST /grpcecho.GrpcEcho/Echo";
    let path = "echo-v1 echo/grpcecho.GrpcEcho/Echo";
    check(
        &router(vec![grpc("headers", rules)]),
        &[
            (
                line,
                &[("x-test-case", "set"), ("x-header-set", "old")],
                &format!("{path} x-header-set=set x-test-case=set"),
            ),
            (
                line,
                &[("x-test-case", "add"), ("x-header-add", "old")],
                &format!("{path} x-header-add=old,add x-test-case=add"),
            ),
            (
                line,
                &[("x-test-case", "remove"), ("x-header-remove", "old")],
                &format!("{path} x-test-case=remove"),
            ),
            (
                line,
                &[("x-test-case", "all"), ("x-header-remove", "old")],
                &format!("{path} x-header-add=add x-header-set=set x-test-case=all"),
            ),
            (line, &[("x-test-case", "other")], "404"),
        ],
    );
}
