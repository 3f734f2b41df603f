//! Routes as the Gateway API's tests of meshes replay them (v1.6.1), in a lab: the same requests, asserted harder. Where a
//! redirect leads in full, which path, query and host the server received, and what the route's status says.
//!
//! Every case is asked from both nodes, so that each backend is reached on the same node and across nodes.

use mesh_tests::Ask;
use mesh_tests::http::routes::{self, route};
use mesh_tests::http::scene::{Case, Scene, answered, to};

fn get(target: &str) -> Ask {
    Ask::get(target)
}

#[test]
fn requests_are_matched_by_path_header_query_and_method() {
    let scene = Scene::up();
    // MeshHTTPRouteSimpleSameNamespace
    scene.run(
        &routes::everything_to("all", "echo:80", "echo-v1:8080"),
        "echo",
        80,
        &[to("echo-v1", get("/")), to("echo-v1", get("/any?x"))],
    );
    // MeshTrafficSplit, MeshHTTPRouteMatching
    let matching = route(
        "HTTPRoute",
        "echo/matching",
        &["echo:80"],
        "- matches: [{path: {type: PathPrefix, value: /}}, {headers: [{name: version, value: one}]}]\n  \
           backendRefs: [{name: echo-v1, port: 8080}]\n\
         - matches: [{path: {type: PathPrefix, value: /v2}}, {headers: [{name: version, value: two}]}]\n  \
           backendRefs: [{name: echo-v2, port: 8080}]\n\
         - matches: [{path: {type: Exact, value: /only}}]\n  backendRefs: [{name: echo-v2, port: 8080}]\n\
         - matches: [{path: {type: PathPrefix, value: /method}, method: POST}]\n  backendRefs: [{name: echo-v2, port: 8080}]\n\
         - matches: [{path: {type: RegularExpression, value: \"/re/[0-9]+/x\"}}]\n  backendRefs: [{name: echo-v2, port: 8080}]",
    );
    let cases = [
        to("echo-v2", get("/v2")),
        to("echo-v1", get("/")),
        to("echo-v1", get("/example")),
        to("echo-v1", get("/").header("version", "one")),
        to("echo-v2", get("/v2/example")),
        to("echo-v2", get("/").header("version", "two")),
        to("echo-v2", get("/v2/")),
        // A prefix is whole segments.
        to("echo-v1", get("/v2example")),
        to("echo-v1", get("/foo/v2/example")),
        to("echo-v1", get("/V2")),
        to("echo-v2", get("/").header("VERSION", "two")),
        to("echo-v1", get("/").header("version", "Two")),
        to("echo-v2", get("/only")),
        to("echo-v1", get("/only/")),
        to("echo-v1", get("/only/more")),
        to("echo-v1", get("/method")),
        to("echo-v2", get("/method").method("POST")),
        to("echo-v2", get("/re/12/x")),
        to("echo-v1", get("/re/12/x/y")),
        // The normal form of a path is what counts.
        to("echo-v2", get("/a/../v2/x")),
        to("echo-v2", get("/%76%32/x")),
    ];
    scene.run(&matching, "echo", 80, &cases);
    // MeshHTTPRouteQueryParamMatching
    let query = route(
        "HTTPRoute",
        "echo/query",
        &["echo:80"],
        "- matches: [{queryParams: [{name: animal, value: whale}]}]\n  backendRefs: [{name: echo-v1, port: 8080}]\n\
         - matches: [{queryParams: [{name: animal, value: dolphin}]}]\n  backendRefs: [{name: echo-v2, port: 8080}]\n\
         - matches: [{queryParams: [{name: animal, value: dolphin}, {name: color, value: blue}]}, {queryParams: [{name: ANIMAL, value: Whale}]}]\n  backendRefs: [{name: echo-v1, port: 8080}]\n\
         - matches: [{path: {type: PathPrefix, value: /path1}, queryParams: [{name: animal, value: whale}]}]\n  backendRefs: [{name: echo-v2, port: 8080}]\n\
         - matches: [{headers: [{name: version, value: one}], queryParams: [{name: animal, value: whale}]}]\n  backendRefs: [{name: echo-v2, port: 8080}]\n\
         - matches: [{path: {type: Exact, value: /path5}}]\n  backendRefs: [{name: echo-v1, port: 8080}]\n\
         - matches: [{queryParams: [{name: animal, value: hydra}]}]\n  backendRefs: [{name: echo-v2, port: 8080}]",
    );
    let cases = [
        to("echo-v2", get("/path1?animal=whale")),
        to("echo-v1", get("/?animal=whale")),
        to("echo-v2", get("/?animal=dolphin")),
        to("echo-v1", get("/?animal=dolphin&color=blue")),
        to("echo-v1", get("/?ANIMAL=Whale")),
        to("echo-v1", get("/?animal=whale&otherparam=irrelevant")),
        to("echo-v2", get("/?animal=dolphin&color=yellow")),
        to("echo-v1", get("/?color=blue&animal=dolphin")),
        to("echo-v2", get("/?animal=whale").header("version", "one")),
        to("echo-v2", get("/path1/more?animal=whale").header("version", "one")),
        // An exact path wins over a query.
        to("echo-v1", get("/path5?animal=hydra")),
        to("echo-v2", get("/?animal=hydra")),
        // The first of several counts.
        to("echo-v1", get("/?animal=whale&animal=dolphin")),
        answered(404, get("/")),
        answered(404, get("/?animal=horse")),
        answered(404, get("/?animal=whalesong")),
        answered(404, get("/?unrelated=whale&animal")),
    ];
    scene.run(&query, "echo", 80, &cases);
    scene.lab.down();
}

#[test]
fn headers_of_requests_and_answers_are_set_added_and_removed() {
    let scene = Scene::up();
    let edit = "set: [{name: X-Header-Set, value: set-overwrites-values}], add: [{name: X-Header-Add, value: add-appends-values}], remove: [X-Header-Remove]";
    let several = "set: [{name: X-Header-Set-1, value: header-set-1}, {name: X-Header-Set-2, value: header-set-2}], \
                   add: [{name: X-Header-Add-1, value: header-add-1}, {name: X-Header-Add-2, value: header-add-2}, {name: X-Header-Add-3, value: header-add-3}], \
                   remove: [X-Header-Remove-1, X-Header-Remove-2]";
    // On the rule (MeshHTTPRouteRequestHeaderModifier) and on the backend (...BackendRequestHeaderModifier).
    let on_rule = |path: &str, edit: &str| {
        format!(
            "- matches: [{{path: {{type: PathPrefix, value: {path}}}}}]\n  \
               filters: [{{type: RequestHeaderModifier, requestHeaderModifier: {{{edit}}}}}]\n  \
               backendRefs: [{{name: echo-v1, port: 8080}}]\n"
        )
    };
    let on_backend = |path: &str, edit: &str| {
        format!(
            "- matches: [{{path: {{type: PathPrefix, value: {path}}}}}]\n  backendRefs:\n  - name: echo-v1\n    port: 8080\n    \
               filters: [{{type: RequestHeaderModifier, requestHeaderModifier: {{{edit}}}}}]\n"
        )
    };
    for rule in [&on_rule as &dyn Fn(&str, &str) -> String, &on_backend] {
        let rules = [
            rule("/set", "set: [{name: X-Header-Set, value: set-overwrites-values}]"),
            rule("/add", "add: [{name: X-Header-Add, value: add-appends-values}]"),
            rule("/remove", "remove: [X-Header-Remove]"),
            rule("/multiple", several),
            rule("/case-insensitivity", edit),
        ];
        let cases = [
            to("echo-v1", get("/set").header("some-other-header", "val"))
                .seen("header x-header-set", "set-overwrites-values")
                .seen("header some-other-header", "val"),
            to("echo-v1", get("/set").header("x-header-set", "some-other-value"))
                .seen("header x-header-set", "set-overwrites-values"),
            to("echo-v1", get("/add").header("some-other-header", "val"))
                .seen("header x-header-add", "add-appends-values")
                .seen("header some-other-header", "val"),
            to("echo-v1", get("/add").header("x-header-add", "some-other-value"))
                .seen("header x-header-add", "some-other-value,add-appends-values"),
            to("echo-v1", get("/remove").header("x-header-remove", "val"))
                .seen("header x-header-remove", "-"),
            to(
                "echo-v1",
                get("/multiple")
                    .header("x-header-set-2", "set-val-2")
                    .header("x-header-add-2", "add-val-2")
                    .header("x-header-remove-2", "remove-val-2")
                    .header("another-header", "another-header-val"),
            )
            .seen("header x-header-set-1", "header-set-1")
            .seen("header x-header-set-2", "header-set-2")
            .seen("header x-header-add-1", "header-add-1")
            .seen("header x-header-add-2", "add-val-2,header-add-2")
            .seen("header x-header-add-3", "header-add-3")
            .seen("header another-header", "another-header-val")
            .seen("header x-header-remove-2", "-"),
            to(
                "echo-v1",
                // HTTP/1.1 on the wire would keep capitals; the names are the same.
                get("/case-insensitivity")
                    .header("x-header-set", "original-val-set")
                    .header("x-header-add", "original-val-add")
                    .header("x-header-remove", "original-val-remove")
                    .header("another-header", "another-header-val"),
            )
            .seen("header x-header-set", "set-overwrites-values")
            .seen("header x-header-add", "original-val-add,add-appends-values")
            .seen("header x-header-remove", "-")
            .seen("header another-header", "another-header-val"),
        ];
        scene.run(&route("HTTPRoute", "echo/edits", &["echo:80"], &rules.concat()), "echo", 80, &cases);
    }
    // The server sends `x-old: from-the-server`.
    let of_answers = route(
        "HTTPRoute",
        "echo/edits",
        &["echo:80"],
        "- matches: [{path: {type: PathPrefix, value: /answers}}]\n  filters:\n  - type: ResponseHeaderModifier\n    \
           responseHeaderModifier: {set: [{name: X-Set, value: s}], add: [{name: X-Old, value: added}], remove: [X-Server]}\n  \
           backendRefs: [{name: echo-v1, port: 8080}]",
    );
    let cases = [to("echo-v1", get("/answers"))
        .header("x-set", "s")
        .header("x-old", "from-the-server,added")
        .header("x-server", "-")
        .seen("header x-set", "-")];
    scene.run(&of_answers, "echo", 80, &cases);
    scene.lab.down();
}

#[test]
fn redirects_say_where_to_in_full() {
    let scene = Scene::up();
    let redirect = |path: &str, redirect: &str| {
        format!(
            "- matches: [{{path: {{type: PathPrefix, value: {path}}}}}]\n  \
               filters: [{{type: RequestRedirect, requestRedirect: {{{redirect}}}}}]\n"
        )
    };
    let rules = [
        redirect("/host", "hostname: example.org"),
        redirect("/host-301", "hostname: example.org, statusCode: 301"),
        redirect("/303", "hostname: example.org, statusCode: 303"),
        redirect("/307", "hostname: example.org, statusCode: 307"),
        redirect("/308", "hostname: example.org, statusCode: 308"),
        redirect(
            "/original-prefix",
            "path: {type: ReplacePrefixMatch, replacePrefixMatch: /replacement-prefix}",
        ),
        redirect("/full", "path: {type: ReplaceFullPath, replaceFullPath: /full-path-replacement}"),
        redirect(
            "/prefix-and-host",
            "hostname: example.org, path: {type: ReplacePrefixMatch, replacePrefixMatch: /replacement-prefix}",
        ),
        redirect(
            "/full-and-host",
            "hostname: example.org, path: {type: ReplaceFullPath, replaceFullPath: /replacement-full}",
        ),
        redirect("/port", "port: 8083"),
        redirect("/port-and-host", "port: 8083, hostname: example.org"),
        redirect("/port-and-host-and-status", "port: 8083, hostname: example.org, statusCode: 301"),
        redirect("/scheme", "scheme: https"),
        redirect("/scheme-and-host", "scheme: https, hostname: example.org"),
        redirect("/scheme-and-host-and-status", "scheme: https, hostname: example.org, statusCode: 301"),
        redirect("/scheme-and-port", "scheme: https, port: 8443"),
        redirect("/strip", "path: {type: ReplacePrefixMatch, replacePrefixMatch: /}"),
    ];
    let at = |status, target: &str, location: &str| {
        answered(status, get(target).host("echo")).header("location", location)
    };
    let cases = [
        at(302, "/host", "http://example.org/host"),
        at(302, "/host/deep?q=1&r=%2F", "http://example.org/host/deep?q=1&r=%2F"),
        at(301, "/host-301", "http://example.org/host-301"),
        at(303, "/303/x", "http://example.org/303/x"),
        at(307, "/307/x", "http://example.org/307/x"),
        at(308, "/308/x", "http://example.org/308/x"),
        at(302, "/original-prefix/lemon", "http://echo/replacement-prefix/lemon"),
        at(302, "/original-prefix", "http://echo/replacement-prefix"),
        at(302, "/full/path/original?q=1", "http://echo/full-path-replacement?q=1"),
        at(302, "/prefix-and-host/lemon", "http://example.org/replacement-prefix/lemon"),
        at(302, "/full-and-host/x", "http://example.org/replacement-full"),
        at(302, "/strip/lemon", "http://echo/lemon"),
        at(302, "/strip", "http://echo/"),
        at(302, "/port", "http://echo:8083/port"),
        at(302, "/port-and-host", "http://example.org:8083/port-and-host"),
        at(301, "/port-and-host-and-status", "http://example.org:8083/port-and-host-and-status"),
        at(302, "/scheme", "https://echo/scheme"),
        at(302, "/scheme-and-host", "https://example.org/scheme-and-host"),
        at(301, "/scheme-and-host-and-status", "https://example.org/scheme-and-host-and-status"),
        at(302, "/scheme-and-port", "https://echo:8443/scheme-and-port"),
    ];
    // A route has at most 16 rules.
    let (first, rest) = rules.split_at(16);
    let yaml = [("echo/redirects", first), ("echo/more-redirects", rest)]
        .map(|(name, rules)| route("HTTPRoute", name, &["echo:80"], &rules.concat()));
    scene.run(&routes::all(&yaml), "echo", 80, &cases);
    // A port that is not the scheme's own stays when nothing is said of either (Gateway API, `port`).
    let port = redirect("/host", "hostname: example.org");
    let cases =
        [answered(302, get("/host").host("echo:8080")).header("location", "http://example.org:8080/host")];
    scene.run(&route("HTTPRoute", "echo/redirects", &["echo:8080"], &port), "echo", 8080, &cases);
    assert!(
        scene.servers.iter().all(|server| server.requests().iter().all(|request| request["path"] == "/host")),
        "no server is asked but before the route was there"
    );
    scene.lab.down();
}

#[test]
fn rewrites_are_what_the_server_receives() {
    let scene = Scene::up();
    let rewrite = |path: &str, rewrite: &str, more: &str| {
        format!(
            "- matches: [{{path: {{type: PathPrefix, value: {path}}}}}]\n  \
               filters: [{{type: URLRewrite, urlRewrite: {{{rewrite}}}}}{more}]\n  backendRefs: [{{name: echo-v1, port: 8080}}]\n"
        )
    };
    let prefix = |to: &str| format!("path: {{type: ReplacePrefixMatch, replacePrefixMatch: {to}}}");
    let full = |to: &str| format!("path: {{type: ReplaceFullPath, replaceFullPath: {to}}}");
    let edit = ", {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: X-Header-Set, value: set-overwrites-values}], add: [{name: X-Header-Add, value: add-appends-values}], remove: [X-Header-Remove]}}";
    let rules = [
        rewrite("/prefix/one", &prefix("/one"), ""),
        rewrite("/strip-prefix", &prefix("/"), ""),
        rewrite("/full/one", &full("/one"), ""),
        rewrite("/full/rewrite-path-and-modify-headers", &full("/test"), edit),
        rewrite("/prefix/rewrite-path-and-modify-headers", &prefix("/prefix"), edit),
        rewrite("/host", "hostname: rewritten.example", ""),
        rewrite("/host-and-path", &format!("hostname: rewritten.example, {}", prefix("/both")), ""),
    ];
    let at = |target: &str, path: &str| to("echo-v1", get(target)).seen("path", path);
    let edited = |case: Case| {
        case.seen("header x-header-set", "set-overwrites-values")
            .seen("header x-header-add", "header-val-2,add-appends-values")
            .seen("header x-header-remove", "-")
    };
    let with_headers = |target: &str, path: &str| {
        let ask = get(target)
            .header("x-header-set", "header-val-1")
            .header("x-header-add", "header-val-2")
            .header("x-header-remove", "header-val-3");
        edited(to("echo-v1", ask).seen("path", path))
    };
    let cases = [
        at("/prefix/one/two", "/one/two").seen("host", "test.example"),
        at("/prefix/one", "/one"),
        at("/prefix/one/two?a=%2F&b", "/one/two").seen("query", "a=%2F&b"),
        at("/strip-prefix/three", "/three"),
        at("/strip-prefix", "/"),
        at("/strip-prefix/", "/"),
        at("/full/one/two", "/one"),
        at("/full/one/two?q=1", "/one").seen("query", "q=1"),
        with_headers("/full/rewrite-path-and-modify-headers/test", "/test"),
        with_headers("/prefix/rewrite-path-and-modify-headers/one", "/prefix/one"),
        at("/host/x", "/host/x").seen("host", "rewritten.example"),
        at("/host-and-path/x", "/both/x").seen("host", "rewritten.example"),
    ];
    scene.run(&route("HTTPRoute", "echo/rewrites", &["echo:80"], &rules.concat()), "echo", 80, &cases);
    scene.lab.down();
}

#[test]
fn rules_have_names_and_answer_for_origins_that_ask_first() {
    let scene = Scene::up();
    // MeshHTTPRouteNamedRule
    let named = "- name: named\n  matches: [{path: {type: PathPrefix, value: /named}}]\n  backendRefs: [{name: echo-v1, port: 8080}]\n\
                 - matches: [{path: {type: PathPrefix, value: /unnamed}}]\n  backendRefs: [{name: echo-v2, port: 8080}]";
    let cases = [
        to("echo-v1", get("/named/x")).seen("path", "/named/x"),
        to("echo-v2", get("/unnamed")).seen("path", "/unnamed"),
        answered(404, get("/")),
    ];
    scene.run(&route("HTTPRoute", "echo/names", &["echo:80"], named), "echo", 80, &cases);
    for (path, rule) in [("/named/x", "named"), ("/unnamed", "1")] {
        let record = scene.lab.record("node-1", path, |record| record["http"]["path"] == path);
        assert_eq!(
            (&record["http"]["rule"], &record["http"]["route"]),
            (&rule.into(), &"HTTPRoute/echo/names".into())
        );
    }
    // CORS (Fetch standard, section 3.2): what a browser asks before, and what it looks at after.
    let cors = "- filters:\n  - type: CORS\n    cors:\n      allowOrigins: [\"https://app.example\", \"https://*.shop.example\"]\n      \
                allowMethods: [GET, PUT]\n      allowHeaders: [x-token]\n      exposeHeaders: [x-server]\n      maxAge: 600\n      \
                allowCredentials: true\n  backendRefs: [{name: echo-v1, port: 8080}]";
    let preflight = |origin: &str, method: &str| {
        get("/cors")
            .method("OPTIONS")
            .header("origin", origin)
            .header("access-control-request-method", method)
    };
    let cases = [
        to("echo-v1", get("/cors").header("origin", "https://app.example"))
            .header("access-control-allow-origin", "https://app.example")
            .header("access-control-allow-credentials", "true")
            .header("access-control-expose-headers", "x-server"),
        to("echo-v1", get("/cors").header("origin", "https://a.shop.example"))
            .header("access-control-allow-origin", "https://a.shop.example"),
        to("echo-v1", get("/cors").header("origin", "https://evil.example"))
            .header("access-control-allow-origin", "-"),
        to("echo-v1", get("/cors")).header("access-control-allow-origin", "-"),
    ];
    scene.run(&route("HTTPRoute", "echo/cors", &["echo:80"], cors), "echo", 80, &cases);
    for (origin, method, allowed) in
        [("https://app.example", "PUT", true), ("https://evil.example", "PUT", false)]
    {
        let answer = scene.clients[0].ask(scene.vip("echo", 80), preflight(origin, method));
        assert_eq!(answer.pod(), "", "the agent answers what a browser asks before: {answer:?}");
        let origin_back = answer.header("access-control-allow-origin");
        assert_eq!(origin_back.as_deref(), allowed.then_some(origin), "{answer:?}");
        if allowed {
            let methods = answer.header("access-control-allow-methods").unwrap_or_default();
            assert!(methods.contains("PUT"), "{answer:?}");
            assert_eq!(answer.header("access-control-max-age").as_deref(), Some("600"), "{answer:?}");
        }
    }
    scene.lab.down();
}
