//! What a rule may say about requests, and each mistake with its place.

use crate::discovery::testing::{World, pod};
use crate::model::{
    GrpcMethod, HeaderCondition, HeaderPattern, HttpMatch, PathPattern, RequestPath, Rule, SpiffeId,
    WorkloadName,
};
use crate::policy::{Facts, Refusal, Request};

/// A policy whose only alternative stands at line 7, column 12.
fn text(action: &str, http: &str) -> String {
    format!(
        "apiVersion: weft.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: shop}}\nspec:\n\
         \x20 {{targetRefs: [{{kind: Pod, selector: {{}}}}], action: {action}, enforcementLevel: Application,\n\
         \x20 rules: [{{http:\n         [{http}]}}]}}\n"
    )
}

fn accepted(http: &str) -> Option<Vec<HttpMatch>> {
    let (compiled, problems) = World::new(&[("a.yaml", &text("ALLOW", http))]).load();
    assert!(problems.is_empty(), "{problems:?}");
    let policy = compiled.policies.policies().next().expect("one policy").clone();
    assert_eq!(policy.unusable, None);
    let [Rule { http, .. }] = policy.rules.as_slice() else { panic!("one rule") };
    http.clone()
}

#[test]
fn every_field_is_read() {
    let path = |pattern| HttpMatch { paths: Some(vec![pattern]), ..HttpMatch::default() };
    let header = |value| HttpMatch {
        headers: Some(vec![HeaderPattern { name: http::HeaderName::from_static("x-tier"), value }]),
        ..HttpMatch::default()
    };
    let call = |service: Option<&str>, method: Option<&str>| HttpMatch {
        grpc_methods: Some(vec![GrpcMethod {
            service: service.map(Into::into),
            method: method.map(Into::into),
        }]),
        ..HttpMatch::default()
    };
    let methods = |list: &[http::Method]| HttpMatch { methods: Some(list.to_vec()), ..HttpMatch::default() };
    let table = [
        ("{}", HttpMatch::default()),
        ("{methods: [GET, PURGE]}", methods(&[http::Method::GET, "PURGE".parse().expect("a token")])),
        ("{methods: []}", methods(&[])),
        ("{paths: [{type: Exact, value: /a}]}", path(PathPattern::Exact("/a".into()))),
        ("{paths: [{type: Exact, value: '*'}]}", path(PathPattern::Exact("*".into()))),
        ("{paths: [{type: Exact, value: /a%40b}]}", path(PathPattern::Exact("/a@b".into()))),
        ("{paths: [{type: PathPrefix, value: /a/}]}", path(PathPattern::Prefix("/a".into()))),
        ("{paths: [{type: PathPrefix, value: /}]}", path(PathPattern::Prefix("".into()))),
        (
            "{paths: [{type: Template, value: '/u/{id}'}]}",
            path(PathPattern::template("/u/{id}").expect("a template")),
        ),
        ("{headers: [{name: X-Tier, value: gold}]}", header(HeaderCondition::Exact("gold".into()))),
        ("{headers: [{name: x-tier, type: Prefix, value: g}]}", header(HeaderCondition::Prefix("g".into()))),
        ("{headers: [{name: x-tier, type: Present}]}", header(HeaderCondition::Present)),
        ("{grpcMethods: [{service: a.b.C, method: Do_2}]}", call(Some("a.b.C"), Some("Do_2"))),
        ("{grpcMethods: [{service: '*', method: Do}]}", call(None, Some("Do"))),
        ("{grpcMethods: [{}]}", call(None, None)),
    ];
    for (http, expected) in table {
        assert_eq!(accepted(http), Some(vec![expected]), "{http}");
    }
    assert_eq!(accepted(""), Some(vec![]));
}

#[test]
fn each_mistake_is_named_where_it_stands_and_refuses_everybody() {
    let table = [
        (
            "{method: [GET]}",
            "7:12: [0].method: unknown field `method`, expected one of `methods`, `paths`, `headers`, `grpcMethods`",
        ),
        (
            "{methods: null}",
            "7:11: [0].methods: null can be read in two ways: leave the field out for no restriction, or write an empty value",
        ),
        ("{methods: [get]}", "7:22: [0].methods[0]: \"get\" is another method than GET: write GET"),
        ("{methods: [\"*\"]}", "7:22: [0].methods[0]: leave `methods` out for every method"),
        ("{methods: [GET, 'A B']}", "7:27: [0].methods[1]: \"A B\" is not a method"),
        ("{paths: [{value: /a}]}", "7:20: [0].paths[0]: missing field `type`"),
        (
            "{paths: [{type: Prefix, value: /a}]}",
            "7:27: [0].paths[0].type: unknown variant `Prefix`, expected one of `Exact`, `PathPrefix`, `Template`",
        ),
        (
            "{paths: [{type: Exact, value: a}]}",
            "7:41: [0].paths[0].value: the path does not begin with a slash",
        ),
        (
            "{paths: [{type: Exact, value: ''}]}",
            "7:41: [0].paths[0].value: the path does not begin with a slash",
        ),
        (
            "{paths: [{type: Exact, value: '/a?b'}]}",
            "7:41: [0].paths[0].value: contains a query, but only the path is compared",
        ),
        ("{paths: [{type: Exact, value: '/a#b'}]}", "7:41: [0].paths[0].value: the path contains a fragment"),
        (
            "{paths: [{type: Exact, value: /a%2}]}",
            "7:41: [0].paths[0].value: the path contains a percent sign that begins no escape",
        ),
        (
            "{paths: [{type: Exact, value: /a/../b}]}",
            "7:41: [0].paths[0].value: \"/a/../b\" is not in normal form, which is \"/b\"",
        ),
        (
            "{paths: [{type: Exact, value: '/u/{id}'}]}",
            "7:41: [0].paths[0].value: contains braces: use type Template, or write %7B and %7D",
        ),
        (
            "{paths: [{type: PathPrefix, value: '*'}]}",
            "7:46: [0].paths[0].value: the path does not begin with a slash",
        ),
        (
            "{paths: [{type: PathPrefix, value: /%61}]}",
            "7:46: [0].paths[0].value: \"/%61\" is not in normal form, which is \"/a\"",
        ),
        (
            "{paths: [{type: Template, value: '/v{n}'}]}",
            "7:44: [0].paths[0].value: \"v{n}\" is neither a plain segment nor {name} nor {name=**}, where a name is made of letters, digits and '_'",
        ),
        (
            "{paths: [{type: Template, value: '/{}'}]}",
            "7:44: [0].paths[0].value: \"{}\" is neither a plain segment nor {name} nor {name=**}, where a name is made of letters, digits and '_'",
        ),
        ("{paths: [{type: Template, value: '/{a}/{a}'}]}", "7:44: [0].paths[0].value: names {a} twice"),
        (
            "{paths: [{type: Template, value: '/{a=**}/b'}]}",
            "7:44: [0].paths[0].value: continues behind {a=**}, which takes everything to the end",
        ),
        (
            "{paths: [{type: Template, value: '/{a}/../b'}]}",
            "7:44: [0].paths[0].value: \"/..\" is not in normal form, which is \"/\"",
        ),
        (
            "{headers: [{name: ':path', value: a}]}",
            "7:29: [0].headers[0].name: \":path\" is not a header name",
        ),
        ("{headers: [{name: a}]}", "7:22: [0].headers[0]: type Exact needs `value`"),
        (
            "{headers: [{name: a, type: Present, value: b}]}",
            "7:54: [0].headers[0].value: does not belong to type Present",
        ),
        (
            "{headers: [{name: a, type: Prefix, value: ''}]}",
            "7:53: [0].headers[0].value: begins every value: use type Present",
        ),
        (
            "{headers: [{name: a, value: ' b'}]}",
            "7:39: [0].headers[0].value: \" b\" is not the value of any header",
        ),
        (
            "{grpcMethods: [{service: /a.B}]}",
            "7:36: [0].grpcMethods[0].service: \"/a.B\" is not the name of a gRPC service: write for example shop.v1.Orders",
        ),
        (
            "{grpcMethods: [{service: a.B, method: a.B}]}",
            "7:49: [0].grpcMethods[0].method: \"a.B\" is not the name of a gRPC method: write for example List",
        ),
        (
            "{grpcMethods: [{}], methods: [POST]}",
            "7:40: [0].methods: cannot stand beside grpcMethods, which says method and path by itself",
        ),
        (
            "{grpcMethods: [{}], paths: []}",
            "7:38: [0].paths: cannot stand beside grpcMethods, which says method and path by itself",
        ),
    ];
    let mut wrong = Vec::new();
    for (http, expected) in table {
        let (place, field) = expected.split_once(' ').expect("a place");
        let expected = format!("a.yaml:{place} AuthorizationPolicy shop/p: spec.rules[0].http{field}");
        let (compiled, problems) = World::new(&[("a.yaml", &text("DENY", http))]).load();
        if problems != [expected.clone()] {
            wrong.push(format!("{http}\n  {problems:?}\n  {expected:?}"));
        }
        assert!(compiled.policies.policies().all(|policy| policy.unusable.is_some()), "{http}");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn http_needs_the_application_level_which_needs_no_http() {
    let at_network = text("ALLOW", "{}").replace("Application", "Network");
    let (_, problems) = World::new(&[("a.yaml", &at_network)]).load();
    assert_eq!(
        problems,
        [
            "a.yaml:7:10: AuthorizationPolicy shop/p: spec.rules[0].http: needs spec.enforcementLevel: Application, because requests are judged one by one"
        ]
    );
    let without = text("ALLOW", "").replace("http:\n         []", "");
    let (compiled, problems) = World::new(&[("a.yaml", &without)]).load();
    assert!(problems.is_empty(), "{problems:?}");
    assert_eq!(compiled.policies.policies().next().map(|policy| policy.rules.len()), Some(1));
}

#[test]
fn a_rule_from_a_file_judges_requests() {
    let policy = text("ALLOW", "{methods: [GET], paths: [{type: PathPrefix, value: /public}]}");
    let (compiled, problems) =
        World::new(&[("a.yaml", &policy), ("pod.yaml", &pod("web", "10.0.0.1"))]).load();
    assert!(problems.is_empty(), "{problems:?}");
    let name = WorkloadName { namespace: "shop".into(), name: "web".into() };
    let destination = compiled.snapshot.workload_by_name(&name).expect("the pod").clone();
    let identity: SpiffeId = "spiffe://cluster.local/ns/shop/sa/cart".parse().expect("an id");
    let headers = http::HeaderMap::new();
    for (method, target, expected) in [
        (http::Method::GET, "/public/x", "allowed"),
        (http::Method::POST, "/public/x", "not_allowed"),
        (http::Method::GET, "/public/..%2fx", "not_allowed"),
    ] {
        let path = RequestPath::parse(target).expect("a path");
        let request = Request { method: &method, path: &path, headers: &headers, host: None };
        let facts = Facts {
            identity: Some(&identity),
            client: "10.0.0.9".parse().expect("an address"),
            destination: &destination,
            port: 80,
            node_probe: false,
            request: Some(request),
        };
        let answer = compiled.policies.evaluate(&facts);
        assert_eq!(answer.as_ref().map_or_else(Refusal::label, |_| "allowed"), expected, "{method} {target}");
    }
}
