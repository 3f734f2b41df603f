//! Routes as written: every field reaches the model, and every value that the CRDs refuse is refused here, by rule.

use super::*;
use crate::discovery::objects::Kind;
use crate::model::{
    BackendTarget, Cors, Filter, HeaderEdit, PathEdit, PathMatch, Redirect, RequestMatch, Rewrite,
    StringMatch,
};

fn key(kind: RouteKind) -> Key {
    Key { kind: Kind::Route(kind), namespace: "shop".into(), name: "r".into() }
}

fn read(kind: RouteKind, spec: &str) -> Result<Route, Fault> {
    let text = format!("metadata: {{name: r, namespace: shop}}\nspec: {{{spec}}}");
    accept(&key(kind), kind, &serde_yaml_ng::from_str(&text).unwrap())
}

#[track_caller]
fn rules(kind: RouteKind, rules: &str) -> Vec<Arc<RouteRule>> {
    let route = read(kind, &format!("hostnames: [], rules: [{rules}]")).unwrap();
    assert_eq!(route.refused, []);
    route.rules
}

#[track_caller]
fn rule(kind: RouteKind, rule: &str) -> Arc<RouteRule> {
    rules(kind, rule).remove(0)
}

/// `field: message` of the only refused rule, without `spec.rules[0].`.
#[track_caller]
fn refusal(kind: RouteKind, rule: &str) -> String {
    let mut route = read(kind, &format!("rules: [{rule}]")).unwrap();
    assert_eq!((route.rules.len(), route.refused.len()), (0, 1), "{rule}");
    let fault = route.refused.remove(0).fault;
    let field = fault.field.to_string();
    format!("{}: {}", field.strip_prefix("spec.rules[0].").unwrap_or(&field), fault.message)
}

#[track_caller]
fn check_refused(kind: RouteKind, cases: &[(&str, &str)]) {
    for (rule, expected) in cases {
        let found = refusal(kind, rule);
        assert!(found.starts_with(expected), "{rule}\nexpected {expected}\nfound    {found}");
    }
}

/// Matches as short texts.
fn told(one: &RequestMatch) -> String {
    let text = |value: &StringMatch| match value {
        StringMatch::Exact(text) => format!("={text}"),
        StringMatch::Regex(regex) => format!("~{regex}"),
    };
    let path = match &one.path {
        PathMatch::Exact(path) => format!("={path}"),
        PathMatch::Prefix(path) => format!("{path}*"),
        PathMatch::Regex(regex) => format!("~{regex}"),
        PathMatch::Grpc { service, method } => {
            let part = |part: &Option<StringMatch>| part.as_ref().map_or_else(|| "any".to_owned(), text);
            format!("{}/{}", part(service), part(method))
        }
    };
    let method = one.method.as_ref().map(|method| format!(" {method}")).unwrap_or_default();
    let headers = one.headers.iter().map(|header| format!(" {}{}", header.name, text(&header.value)));
    let query = one.query.iter().map(|query| format!(" ?{}{}", query.name, text(&query.value)));
    path + &method + &headers.chain(query).collect::<String>()
}

fn matches(kind: RouteKind, written: &str) -> Vec<String> {
    rule(kind, &format!("{{matches: [{written}]}}")).matches.iter().map(told).collect()
}

#[test]
fn every_part_of_a_match_reaches_the_model() {
    assert_eq!(
        matches(
            RouteKind::Http,
            "{path: {value: /a/}, method: PATCH}, {path: {type: Exact, value: '/a/b%20c'}}, {path: {type: Exact, value: '/%7Eann/%c3%a9'}}, {path: {type: RegularExpression, value: '/v[12]/.*'}},
             {headers: [{name: X-Team, value: red}, {name: x-team, value: ignored}, {name: v, type: RegularExpression, value: 'a|b'}],
              queryParams: [{name: q, value: '1'}, {name: Q, type: RegularExpression, value: '.+'}]}, {}"
        ),
        [
            "/a* PATCH",
            "=/a/b%20c",
            "=/~ann/%C3%A9",
            r"~\A(?:/v[12]/.*)\z",
            r"* x-team=red v~\A(?:a|b)\z ?q=1 ?Q~\A(?:.+)\z",
            "*"
        ]
    );
    assert_eq!(
        matches(
            RouteKind::Grpc,
            "{method: {service: a.B, method: C}}, {method: {service: a.B}, headers: [{name: x, value: y}]}, {method: {type: RegularExpression, method: 'Get.*'}}, {}"
        ),
        ["=a.B/=C", "=a.B/any x=y", r"any/~\A(?:Get.*)\z", "any/any"]
    );
    // A rule without matches, and a route without rules, match everything.
    assert_eq!(told(&rule(RouteKind::Http, "{}").matches[0]), "*");
    assert_eq!(told(&rule(RouteKind::Grpc, "{}").matches[0]), "any/any");
    assert_eq!(told(&read(RouteKind::Http, "").unwrap().rules[0].matches[0]), "*");
}

#[test]
fn every_filter_reaches_the_model() {
    let found = rule(
        RouteKind::Http,
        "{filters: [
          {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: A, value: b}], add: [{name: c, value: d e}], remove: [F]}},
          {type: ResponseHeaderModifier, responseHeaderModifier: {remove: [server]}},
          {type: URLRewrite, urlRewrite: {hostname: a.example, path: {type: ReplacePrefixMatch, replacePrefixMatch: /x}}},
          {type: RequestMirror, requestMirror: {backendRef: {name: m, port: 1}, percent: 25}},
          {type: RequestMirror, requestMirror: {backendRef: {name: m, port: 1}, fraction: {numerator: 1, denominator: 1000}}},
          {type: RequestMirror, requestMirror: {backendRef: {name: m, namespace: n, port: 1}}},
          {type: CORS, cors: {allowOrigins: ['https://*.Example.org:8443'], allowMethods: [GET], allowHeaders: ['*'], exposeHeaders: [x-a], allowCredentials: true, maxAge: 60}}]}",
    );
    let mut expected = HeaderEdit::default();
    expected.set.push(("a".parse().unwrap(), "b".parse().unwrap()));
    expected.add.push(("c".parse().unwrap(), "d e".parse().unwrap()));
    expected.remove.push("f".parse().unwrap());
    assert_eq!(found.filters[0], Filter::RequestHeaders(expected));
    let remove = vec!["server".parse().unwrap()];
    assert_eq!(found.filters[1], Filter::ResponseHeaders(HeaderEdit { remove, ..HeaderEdit::default() }));
    let path = Some(PathEdit::Prefix("/x".into()));
    assert_eq!(found.filters[2], Filter::Rewrite(Rewrite { hostname: Some("a.example".into()), path }));
    let mirrors: Vec<_> = found.filters[3..6]
        .iter()
        .map(|filter| match filter {
            Filter::Mirror(mirror) => (mirror.backend.clone(), mirror.share),
            other => panic!("{other:?}"),
        })
        .collect();
    let service = |namespace: &str| BackendTarget::Service {
        name: ServiceName { namespace: namespace.into(), name: "m".into() },
        port: 1,
    };
    assert_eq!(mirrors, [(service("shop"), 0.25), (service("shop"), 0.001), (service("n"), 1.0)]);
    let cors = Cors {
        allow_origins: vec!["https://*.example.org:8443".into()],
        allow_credentials: true,
        allow_methods: vec!["GET".into()],
        allow_headers: vec!["*".into()],
        expose_headers: vec!["x-a".into()],
        max_age: Some(std::time::Duration::from_secs(60)),
    };
    assert_eq!(found.filters[6], Filter::Cors(Arc::new(cors)));
}

#[test]
fn a_redirect_reaches_the_model() {
    let redirect = |body: &str| {
        let written = format!("{{filters: [{{type: RequestRedirect, requestRedirect: {{{body}}}}}]}}");
        match rule(RouteKind::Http, &written).filters.first() {
            Some(Filter::Redirect(redirect)) => redirect.clone(),
            other => panic!("{other:?}"),
        }
    };
    let plain =
        Redirect { scheme: None, hostname: None, path: None, port: None, status: ::http::StatusCode::FOUND };
    assert_eq!(redirect(""), plain);
    assert_eq!(
        redirect(
            "scheme: https, hostname: b.example, port: 8443, statusCode: 308, path: {type: ReplaceFullPath, replaceFullPath: /}"
        ),
        Redirect {
            scheme: Some("https".into()),
            hostname: Some("b.example".into()),
            path: Some(PathEdit::Full("/".into())),
            port: Some(8443),
            status: ::http::StatusCode::PERMANENT_REDIRECT,
        }
    );
}

#[test]
fn backends_and_timeouts_reach_the_model() {
    let found = rule(
        RouteKind::Http,
        "{name: main, backendRefs: [{name: a, port: 80}, {name: b, namespace: n, port: 81, weight: 0, filters: [{type: RequestHeaderModifier, requestHeaderModifier: {remove: [x]}}]}],
          timeouts: {request: 1m, backendRequest: 500ms}}",
    );
    assert_eq!(found.name.as_deref(), Some("main"));
    let targets: Vec<_> = found
        .backends
        .iter()
        .map(|one| match &one.target {
            BackendTarget::Service { name, port } => (name.to_string(), *port, one.weight, one.filters.len()),
            BackendTarget::Invalid { .. } => panic!("{one:?}"),
        })
        .collect();
    assert_eq!(targets, [("shop/a".to_owned(), 80, 1, 0), ("n/b".to_owned(), 81, 0, 1)]);
    let millis = |limit: Option<std::time::Duration>| limit.map(|limit| limit.as_millis());
    assert_eq!(millis(found.timeouts.request), Some(60_000));
    assert_eq!(millis(found.timeouts.backend_request), Some(500));
    // Zero is no limit, so it can be shorter than anything.
    let found = rule(RouteKind::Http, "{timeouts: {request: 0s, backendRequest: 5s}}");
    assert_eq!((found.timeouts.request, millis(found.timeouts.backend_request)), (None, Some(5_000)));
    for kind in [RouteKind::Tcp, RouteKind::Tls] {
        let hostnames = if kind == RouteKind::Tls { "hostnames: ['*.a.example']," } else { "" };
        let route =
            read(kind, &format!("{hostnames} rules: [{{backendRefs: [{{name: a, port: 1}}]}}]")).unwrap();
        assert_eq!(
            (route.rules.len(), route.rules[0].backends.len(), route.rules[0].matches.len()),
            (1, 1, 1)
        );
    }
}

#[test]
fn matches_that_mean_nothing_are_refused() {
    check_refused(
        RouteKind::Http,
        &[
            (
                "{matches: [{path: {value: a}}]}",
                "matches[0].path.value: \"a\" cannot be a path: it must begin",
            ),
            (
                "{matches: [{path: {value: /a//b}}]}",
                "matches[0].path.value: \"/a//b\" cannot be a path: it must not contain \"//\"",
            ),
            (
                "{matches: [{path: {value: /a/./b}}]}",
                "matches[0].path.value: \"/a/./b\" cannot be a path: it must not contain \"/./\"",
            ),
            ("{matches: [{path: {value: /a/../b}}]}", "matches[0].path.value: \"/a/../b\" cannot be a path"),
            (
                "{matches: [{path: {value: /a/..}}]}",
                "matches[0].path.value: \"/a/..\" cannot be a path: it must not end",
            ),
            (
                "{matches: [{path: {value: '/a%2Fb'}}]}",
                "matches[0].path.value: \"/a%2Fb\" cannot be a path: it must not contain \"%2f\"",
            ),
            ("{matches: [{path: {value: '/a#b'}}]}", "matches[0].path.value: \"/a#b\" cannot be a path"),
            (
                "{matches: [{path: {value: '/a?b'}}]}",
                "matches[0].path.value: \"/a?b\" cannot be a path: write characters",
            ),
            (
                "{matches: [{path: {value: '/a%2'}}]}",
                "matches[0].path.value: \"/a%2\" cannot be a path: write characters",
            ),
            (
                "{matches: [{path: {value: '/a%00'}}]}",
                "matches[0].path.value: \"/a%00\" cannot be a path: the path contains a control character",
            ),
            (
                "{matches: [{path: {type: RegularExpression, value: '(a'}}]}",
                "matches[0].path.value: \"(a\" is not a regular expression: unclosed group",
            ),
            (
                "{matches: [{path: {type: RegularExpression, value: 'a)|(b'}}]}",
                "matches[0].path.value: \"a)|(b\" is not a regular expression: ",
            ),
            (
                "{matches: [{path: {type: RegularExpression, value: '((a{500}){500}){500}'}}]}",
                "matches[0].path.value: \"((a{500}){500}){500}\" is not a regular expression: Compiled regex exceeds",
            ),
            (
                "{matches: [{path: {type: Suffix, value: /a}}]}",
                "matches[0].path.type: unknown variant `Suffix`",
            ),
            ("{matches: [{method: get}]}", "matches[0].method: unknown variant `get`"),
            (
                "{matches: [{headers: [{name: 'a b', value: c}]}]}",
                "matches[0].headers[0].name: \"a b\" is not a name",
            ),
            ("{matches: [{headers: [{name: a, value: ''}]}]}", "matches[0].headers[0].value: is empty"),
            (
                "{matches: [{headers: [{name: a, value: 1}]}]}",
                "matches[0].headers[0].value: invalid type: integer `1`, expected a string",
            ),
            ("{matches: [{queryParams: [{name: a}]}]}", "matches[0].queryParams[0]: missing field `value`"),
            ("{match: [{path: {value: /a}}]}", "match: unknown field `match`"),
            ("{matches: [{path: {vallue: /a}}]}", "matches[0].path.vallue: unknown field `vallue`"),
        ],
    );
    let many = |entry: &str, count: usize| vec![entry; count].join(", ");
    let headers = format!("{{matches: [{{headers: [{}]}}]}}", many("{name: a, value: b}", 17));
    assert_eq!(refusal(RouteKind::Http, &headers), "matches[0].headers: 17 entries: there can be 16");
    let matches = format!("{{matches: [{}]}}", many("{}", 65));
    assert_eq!(refusal(RouteKind::Http, &matches), "matches: 65 entries: there can be 64");
    check_refused(
        RouteKind::Grpc,
        &[
            ("{matches: [{method: {}}]}", "matches[0].method: names neither a service nor a method"),
            (
                "{matches: [{method: {service: a/b}}]}",
                "matches[0].method.service: \"a/b\" is not a service of gRPC",
            ),
            (
                "{matches: [{method: {method: 1a}}]}",
                "matches[0].method.method: \"1a\" is not a method of gRPC",
            ),
            ("{matches: [{path: {value: /a}}]}", "matches[0].path: unknown field `path`"),
        ],
    );
}

#[test]
fn filters_that_cannot_be_carried_out_are_refused() {
    let edit = |body: &str| {
        format!("{{filters: [{{type: RequestHeaderModifier, requestHeaderModifier: {{{body}}}}}]}}")
    };
    let redirect =
        |body: &str| format!("{{filters: [{{type: RequestRedirect, requestRedirect: {{{body}}}}}]}}");
    let mirror = |body: &str| {
        format!(
            "{{filters: [{{type: RequestMirror, requestMirror: {{backendRef: {{name: a, port: 1}}, {body}}}}}]}}"
        )
    };
    let cors = |body: &str| format!("{{filters: [{{type: CORS, cors: {{{body}}}}}]}}");
    let (in_edit, in_redirect, in_mirror) =
        ("filters[0].requestHeaderModifier.", "filters[0].requestRedirect.", "filters[0].requestMirror.");
    let cases = [
        (
            "{filters: [{type: ExtensionRef, extensionRef: {group: g, kind: k, name: n}}]}".to_owned(),
            "filters[0].type: ExtensionRef is not supported".to_owned(),
        ),
        (
            "{filters: [{type: ExternalAuth, externalAuth: {}}]}".to_owned(),
            "filters[0].type: unknown variant `ExternalAuth`".to_owned(),
        ),
        ("{filters: [{type: RequestMirror}]}".to_owned(), "filters[0].requestMirror: missing".to_owned()),
        (
            "{filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {}, urlRewrite: {}}]}"
                .to_owned(),
            "filters[0].urlRewrite: does not belong".to_owned(),
        ),
        ("{retry: {attempts: 3}}".to_owned(), "retry: retry is not supported yet".to_owned()),
        (
            "{sessionPersistence: {type: Cookie}}".to_owned(),
            "sessionPersistence: sessionPersistence is not supported yet".to_owned(),
        ),
        (edit("set: [{name: 'x y', value: z}]"), format!("{in_edit}set[0].name: \"x y\" is not a name")),
        (
            edit("add: [{name: a, value: \"b\\nc\"}]"),
            format!("{in_edit}add[0].value: \"b\\nc\" is not a header's value"),
        ),
        (
            edit("set: [{name: Host, value: a}]"),
            format!("{in_edit}set[0].name: Host: a route cannot change it here"),
        ),
        (
            edit("remove: [Content-Length]"),
            format!("{in_edit}remove[0]: Content-Length: a route cannot change it: it belongs"),
        ),
        (
            edit("add: [{name: keep-alive, value: a}]"),
            format!("{in_edit}add[0].name: keep-alive: a route cannot"),
        ),
        (redirect("statusCode: 200"), format!("{in_redirect}statusCode: 200 is not a redirection")),
        (
            redirect("hostname: '*.a.example'"),
            format!("{in_redirect}hostname: \"*.a.example\" is not a host name"),
        ),
        (redirect("hostname: 10.0.0.1"), format!("{in_redirect}hostname: \"10.0.0.1\" is not a host name")),
        (redirect("scheme: ftp"), format!("{in_redirect}scheme: unknown variant `ftp`")),
        (redirect("port: 0"), format!("{in_redirect}port: 0 is not a port")),
        (
            redirect("path: {type: ReplaceFullPath, replaceFullPath: a}"),
            format!("{in_redirect}path.replaceFullPath: \"a\" cannot be a path"),
        ),
        (
            redirect("path: {type: ReplaceFullPath, replaceFullPath: '/a?b'}"),
            format!("{in_redirect}path.replaceFullPath: \"/a?b\" cannot be a path"),
        ),
        (
            redirect("path: {type: ReplaceFullPath, replacePrefixMatch: /a}"),
            format!("{in_redirect}path.replaceFullPath: missing"),
        ),
        (mirror("percent: 101"), format!("{in_mirror}percent: 101 of 100 is not a share")),
        (
            mirror("fraction: {numerator: 1, denominator: 0}"),
            format!("{in_mirror}fraction: 1 of 0 is not a share"),
        ),
        (
            mirror("percent: 1, fraction: {numerator: 1}"),
            format!("{in_mirror}fraction: write percent or fraction"),
        ),
        (
            cors("allowOrigins: [example.org]"),
            "filters[0].cors.allowOrigins[0]: \"example.org\" is not known here".to_owned(),
        ),
        (cors("allowMethods: [GET, '*']"), "filters[0].cors.allowMethods[1]: * stands for all".to_owned()),
        (cors("maxAge: 0"), "filters[0].cors.maxAge: 0 is not a time".to_owned()),
        (
            "{backendRefs: [{name: a, port: 1, filters: [{type: RequestRedirect, requestRedirect: {}}]}]}"
                .to_owned(),
            "backendRefs[0].filters[0].type: RequestRedirect on a backend is not supported".to_owned(),
        ),
        (
            "{backendRefs: [{name: a, port: 1, filters: [{type: CORS, cors: {}}]}]}".to_owned(),
            "backendRefs[0].filters[0].type: CORS on a backend is not supported".to_owned(),
        ),
    ];
    for (rule, expected) in &cases {
        check_refused(RouteKind::Http, &[(rule, expected)]);
    }
    check_refused(
        RouteKind::Grpc,
        &[
            (
                "{filters: [{type: URLRewrite, urlRewrite: {}}]}",
                "filters[0].type: unknown variant `URLRewrite`",
            ),
            ("{timeouts: {request: 1s}}", "timeouts: unknown field `timeouts`"),
        ],
    );
}

#[test]
fn filters_that_contradict_each_other_are_incompatible() {
    let rewrite = "{type: URLRewrite, urlRewrite: {hostname: a.example}}";
    let redirect = "{type: RequestRedirect, requestRedirect: {}}";
    let edit = "{type: RequestHeaderModifier, requestHeaderModifier: {}}";
    let cases = [
        (format!("{{filters: [{rewrite}, {redirect}]}}"), "filters[1]: RequestRedirect and URLRewrite"),
        (format!("{{filters: [{redirect}, {rewrite}]}}"), "filters[1]: RequestRedirect and URLRewrite"),
        (format!("{{filters: [{edit}, {rewrite}, {edit}]}}"), "filters[2]: is the second of its type"),
        (
            format!("{{filters: [{redirect}], backendRefs: [{{name: a, port: 1}}]}}"),
            "filters[0]: RequestRedirect answers",
        ),
    ];
    for (written, expected) in &cases {
        check_refused(RouteKind::Http, &[(written, expected)]);
        let route = read(RouteKind::Http, &format!("rules: [{written}]")).unwrap();
        assert_eq!(route.refused[0].reason, RefusedReason::IncompatibleFilters);
    }
}

#[test]
fn a_prefix_can_be_replaced_only_where_there_is_one() {
    let written = |matches: &str| {
        let path = "{type: ReplacePrefixMatch, replacePrefixMatch: /}";
        format!("{{{matches} filters: [{{type: URLRewrite, urlRewrite: {{path: {path}}}}}]}}")
    };
    for good in ["", "matches: [{}],", "matches: [{path: {type: PathPrefix, value: /a}, method: GET}],"] {
        rule(RouteKind::Http, &written(good));
    }
    for bad in ["matches: [{path: {type: Exact, value: /a}}],", "matches: [{}, {}],"] {
        let found = refusal(RouteKind::Http, &written(bad));
        assert!(found.starts_with("filters[0].urlRewrite.path.replacePrefixMatch: there is no one prefix"));
    }
}

#[test]
fn backends_and_timeouts_that_mean_nothing_are_refused() {
    check_refused(
        RouteKind::Http,
        &[
            ("{backendRefs: [{name: a}]}", "backendRefs[0].port: missing"),
            ("{backendRefs: [{name: a, port: 70000}]}", "backendRefs[0].port: 70000 is not a port"),
            ("{backendRefs: [{name: A, port: 1}]}", "backendRefs[0].name: \"A\" is not a name"),
            (
                "{backendRefs: [{name: a, namespace: B, port: 1}]}",
                "backendRefs[0].namespace: \"B\" is not a name",
            ),
            ("{backendRefs: [{name: a, port: 1, weight: -1}]}", "backendRefs[0].weight: -1 is not a weight"),
            (
                "{backendRefs: [{name: a, port: 1, weight: 1000001}]}",
                "backendRefs[0].weight: 1000001 is not a weight",
            ),
            ("{timeouts: {request: 1.5s}}", "timeouts.request: \"1.5s\" is not a duration"),
            ("{timeouts: {request: 1s, backendRequest: 2s}}", "timeouts.backendRequest: is longer than"),
            ("{name: A}", "name: \"A\" is not a name"),
        ],
    );
    let plain = "{backendRefs: [{name: a, port: 1}]}";
    let twice = read(RouteKind::Tcp, &format!("rules: [{plain}, {plain}]")).unwrap();
    assert_eq!((twice.rules.len(), twice.refused[0].rule), (1, 1));
    let named = read(RouteKind::Http, "rules: [{name: a}, {name: b}, {name: a}]").unwrap();
    assert_eq!((named.rules.len(), named.refused[0].rule), (2, 2));
}

#[test]
fn what_concerns_the_whole_route_refuses_it() {
    let many = |entry: &str, count: usize| vec![entry; count].join(", ");
    let web = "{group: '', kind: Service, name: web}";
    let cases = [
        ("rules: []".to_owned(), "spec.rules: write at least one rule"),
        (format!("rules: [{}]", many("{}", 17)), "spec.rules: 17 entries: there can be 16"),
        (
            format!("rules: [{}]", many(&format!("{{matches: [{}]}}", many("{}", 43)), 3)),
            "spec.rules: 129 matches in all",
        ),
        ("hostnames: [A.example]".to_owned(), "spec.hostnames[0]: \"A.example\" is not a host name"),
        ("hostnames: ['a.*.example']".to_owned(), "spec.hostnames[0]: "),
        ("hostnames: [a..example]".to_owned(), "spec.hostnames[0]: "),
        ("hostnames: [192.0.2.1]".to_owned(), "spec.hostnames[0]: "),
        ("hostname: [a.example]".to_owned(), "spec.hostname: unknown field `hostname`"),
        (format!("parentRefs: [{web}, {web}]"), "spec.parentRefs[1]: is the same parent as one before"),
        ("parentRefs: [{kind: Service, group: ''}]".to_owned(), "spec.parentRefs[0]: missing field `name`"),
        (
            format!("parentRefs: [{}]", web.replace('}', ", port: 0}")),
            "spec.parentRefs[0].port: 0 is not a port",
        ),
    ];
    for (spec, expected) in &cases {
        let fault = read(RouteKind::Http, spec).unwrap_err();
        let found = format!("{}: {}", fault.field, fault.message);
        assert!(found.starts_with(expected), "{spec}\nexpected {expected}\nfound    {found}");
    }
    assert!(read(RouteKind::Grpc, "").is_err());
    assert!(read(RouteKind::Tcp, "hostnames: [a], rules: [{backendRefs: [{name: a, port: 1}]}]").is_err());
    let dated = |time: &str| {
        let text = format!("metadata: {{creationTimestamp: {time}}}\nspec: {{}}");
        accept(&key(RouteKind::Http), RouteKind::Http, &serde_yaml_ng::from_str(&text).unwrap())
    };
    assert_eq!(dated("'2026-01-31T12:00:00Z'").unwrap().created_s, Some(1_769_860_800));
    assert_eq!(dated("yesterday").unwrap_err().field.to_string(), "metadata.creationTimestamp");
}
