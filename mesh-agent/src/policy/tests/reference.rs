//! The compiled set against the documentation, read literally, on random policies and requests.

use proptest::prelude::*;

use super::*;
use crate::model::{GrpcMethod, HeaderCondition, HeaderPattern, HttpMatch, PathPattern};

/// The documentation read literally, sentence by sentence, over a flat list. `Ok(None)`: the default admitted.
fn naive(
    policies: &[AuthorizationPolicy],
    default_inbound: DefaultInbound,
    facts: &Facts<'_>,
) -> Result<Option<(String, usize)>, &'static str> {
    // "A request is judged in every way in which its path can be read, and the strictest answer holds."
    let readings: Vec<Option<String>> = match &facts.request {
        None => vec![None],
        Some(request) => {
            let known: Vec<_> = request.path.readings().iter().map(|path| Some(path.to_owned())).collect();
            if known.is_empty() { vec![None] } else { known }
        }
    };
    let answers: Vec<_> = readings
        .iter()
        .map(|path| naive_reading(policies, default_inbound, facts, path.as_deref()))
        .collect();
    let refusals: Vec<_> = answers.iter().filter_map(|answer| answer.as_ref().err()).collect();
    match refusals.first() {
        _ if refusals.contains(&&"denied") => Err("denied"),
        Some(refusal) => Err(refusal),
        None => answers[0].clone(),
    }
}

fn naive_reading(
    policies: &[AuthorizationPolicy],
    default_inbound: DefaultInbound,
    facts: &Facts<'_>,
    path: Option<&str>,
) -> Result<Option<(String, usize)>, &'static str> {
    let pod = facts.destination;
    let first_rule = |policy: &AuthorizationPolicy| {
        let deny = policy.action == Action::Deny;
        policy.rules.iter().position(|rule| {
            rule.sources.as_ref().is_none_or(|list| list.iter().any(|source| naive_source(source, facts)))
                && rule.ports.as_ref().is_none_or(|list| list.contains(&facts.port))
                && rule
                    .http
                    .as_ref()
                    .is_none_or(|list| list.iter().any(|one| naive_http(one, facts, path, deny)))
        })
    };
    let mut selecting: Vec<_> = policies
        .iter()
        .filter(|p| p.cluster_wide || p.name.namespace == pod.name.namespace)
        .filter(|p| p.selectors.is_empty() || p.selectors.iter().any(|s| s.matches(&pod.labels)))
        .collect();
    selecting.sort_by_key(|p| (!p.cluster_wide, p.name.clone()));
    if selecting.iter().any(|p| p.action == Action::Deny && first_rule(p).is_some()) {
        return Err("denied");
    }
    let allows: Vec<_> = selecting.into_iter().filter(|p| p.action == Action::Allow).collect();
    for allow in &allows {
        if let Some(rule) = first_rule(allow) {
            return Ok(Some((allow.name.to_string(), rule)));
        }
    }
    match default_inbound {
        _ if !allows.is_empty() => Err("not_allowed"),
        DefaultInbound::Deny => Err("default_deny"),
        DefaultInbound::Authenticated if facts.identity.is_none() => Err("not_authenticated"),
        _ => Ok(None),
    }
}

fn naive_source(source: &Source, facts: &Facts<'_>) -> bool {
    match (source, facts.identity) {
        (Source::Cidr(net), _) => net.contains(&facts.client),
        (_, None) => false,
        (Source::AnyAuthenticated, Some(_)) => true,
        (Source::Spiffe(pattern), Some(id)) => {
            pattern == id.as_str()
                || (pattern.ends_with('*') && id.as_str().starts_with(pattern.trim_end_matches('*')))
        }
        (Source::ServiceAccount { namespace, name }, Some(id)) => {
            let whole = format!("spiffe://{TRUST_DOMAIN}/ns/{namespace}/sa/");
            match name.as_str() {
                "*" => id.as_str().starts_with(&whole),
                name => id.as_str() == whole + name,
            }
        }
    }
}

fn naive_http(wanted: &HttpMatch, facts: &Facts<'_>, path: Option<&str>, deny: bool) -> bool {
    let has_empty_list = wanted.methods == Some(vec![])
        || wanted.paths == Some(vec![])
        || wanted.headers == Some(vec![])
        || wanted.grpc_methods == Some(vec![]);
    if has_empty_list {
        return false;
    }
    // "On what is not HTTP a DENY matches, an ALLOW does not."
    let Some(request) = &facts.request else { return deny };
    let method =
        wanted.methods.as_ref().is_none_or(|list| list.iter().any(|method| method == request.method));
    let path_matches = wanted.paths.as_ref().is_none_or(|list| match path {
        Some(path) => list.iter().any(|pattern| naive_path(pattern, path, deny)),
        None => deny,
    });
    let headers =
        wanted.headers.as_ref().is_none_or(|list| list.iter().all(|one| naive_header(one, request, deny)));
    let grpc = wanted.grpc_methods.as_ref().is_none_or(|list| match path {
        Some(path) => list.iter().any(|one| naive_call(one, request, path, deny)),
        None => deny,
    });
    method && path_matches && headers && grpc
}

/// "DENY compares without regard to case and to a slash at the end."
fn folded(text: &str, deny: bool) -> String {
    if !deny {
        return text.to_owned();
    }
    let text = text.to_ascii_lowercase();
    match text.strip_suffix('/') {
        Some(shorter) if !shorter.is_empty() => shorter.to_owned(),
        _ => text,
    }
}

fn naive_path(pattern: &PathPattern, path: &str, deny: bool) -> bool {
    let path = folded(path, deny);
    match pattern {
        PathPattern::Exact(exact) => folded(exact, deny) == path,
        PathPattern::Prefix(prefix) => {
            let prefix = folded(prefix, deny);
            prefix.is_empty() || path == prefix || path.starts_with(&(prefix + "/"))
        }
        // As a regular expression over the text that the author wrote.
        PathPattern::Template(_) => {
            let written = folded(&pattern.to_string(), deny);
            let mut expression = String::from(if deny { "(?i)^" } else { "^" });
            for segment in written[1..].split('/') {
                expression += &match segment {
                    open if open.ends_with("=**}") => "(/.*)?".to_owned(),
                    one if one.starts_with('{') => "/[^/]+".to_owned(),
                    plain => format!("/{}", regex::escape(plain)),
                };
            }
            path.starts_with('/') && regex::Regex::new(&(expression + "$")).unwrap().is_match(&path)
        }
    }
}

fn naive_header(wanted: &HeaderPattern, request: &Request<'_>, deny: bool) -> bool {
    let matches = |value: &str| match &wanted.value {
        HeaderCondition::Exact(exact) => **exact == *value,
        HeaderCondition::Prefix(prefix) => value.starts_with(&**prefix),
        HeaderCondition::Present => true,
    };
    let lines: Vec<&str> =
        request.headers.get_all(&wanted.name).iter().map(|value| value.to_str().unwrap()).collect();
    let elements: Vec<&str> = lines.iter().flat_map(|line| line.split(',')).map(str::trim).collect();
    if deny {
        lines.iter().chain(&elements).any(|value| matches(value))
            || (lines.len() > 1 && matches(&elements.join(",")))
    } else {
        !lines.is_empty() && lines.iter().all(|value| matches(value))
    }
}

fn naive_call(wanted: &GrpcMethod, request: &Request<'_>, path: &str, deny: bool) -> bool {
    let path = folded(path, deny);
    let parts: Vec<&str> = path.split('/').collect();
    let ["", service, method] = parts[..] else { return false };
    let same = |wanted: &Option<Arc<str>>, part: &str| {
        !part.is_empty() && wanted.as_ref().is_none_or(|wanted| folded(wanted, deny) == part)
    };
    let kind = request.headers.get("content-type").map(|value| value.to_str().unwrap()).unwrap_or_default();
    let announced = if deny {
        wanted.service.is_some() || kind.starts_with("application/grpc")
    } else {
        request.method == "POST" && (kind == "application/grpc" || kind.starts_with("application/grpc+"))
    };
    same(&wanted.service, service) && same(&wanted.method, method) && announced
}

fn any_source() -> impl Strategy<Value = Source> {
    let namespaces = prop::sample::select(vec!["shop", "other"]);
    let names = prop::sample::select(vec!["cart", "web", "*"]);
    prop_oneof![
        (namespaces, names).prop_map(|(namespace, name)| account(namespace, name)),
        prop::sample::select(vec!["10.0.0.0/8", "10.0.0.9/32", "0.0.0.0/0", "fd00::/8", "::/0"])
            .prop_map(cidr),
        prop::sample::select(vec![
            "spiffe://cluster.local/ns/shop/*",
            "spiffe://cluster.local/ns/shop/sa/cart",
            "spiffe://partner.example/*",
        ])
        .prop_map(|pattern| Source::Spiffe(pattern.to_owned())),
        Just(Source::AnyAuthenticated),
    ]
}

fn any_list<T: Clone + fmt::Debug + 'static>(from: Vec<T>) -> impl Strategy<Value = Option<Vec<T>>> {
    let list = prop::collection::vec(prop::sample::select(from), 0..3);
    prop_oneof![3 => Just(None), 2 => list.prop_map(Some)]
}

fn any_http() -> impl Strategy<Value = HttpMatch> {
    let paths = vec![
        PathPattern::exact("/admin").unwrap(),
        PathPattern::exact("/a//b").unwrap(),
        PathPattern::exact("/").unwrap(),
        PathPattern::prefix("/admin/").unwrap(),
        PathPattern::prefix("/").unwrap(),
        PathPattern::prefix("/a").unwrap(),
        PathPattern::template("/{x}/admin").unwrap(),
        PathPattern::template("/a/{x}/").unwrap(),
        PathPattern::template("/a/{rest=**}").unwrap(),
        PathPattern::template("/{rest=**}").unwrap(),
    ];
    let header = |value| HeaderPattern { name: http::HeaderName::from_static("x-tier"), value };
    let headers = vec![
        header(HeaderCondition::Present),
        header(HeaderCondition::Exact("gold".into())),
        header(HeaderCondition::Exact("gold,blue".into())),
        header(HeaderCondition::Prefix("go".into())),
    ];
    let calls = vec![
        GrpcMethod { service: None, method: None },
        GrpcMethod { service: Some("a".into()), method: None },
        GrpcMethod { service: Some("a".into()), method: Some("admin".into()) },
        GrpcMethod { service: None, method: Some("B".into()) },
    ];
    (any_list(vec![Method::GET, Method::POST]), any_list(paths), any_list(headers), any_list(calls)).prop_map(
        |(methods, paths, headers, grpc_methods)| HttpMatch { methods, paths, headers, grpc_methods },
    )
}

/// The parts of a request: method, target, values of `x-tier`, content type.
type Parts = (Method, String, Vec<&'static str>, Option<&'static str>);

fn any_request() -> impl Strategy<Value = Parts> {
    let pieces = prop::sample::select(vec![
        "/", "/", "//", "a", "admin", "ADMIN", "b", "B", "..", ".", ";x", "%2f", "%2F..", "%61", "%2561",
        "%3f", "%25",
    ]);
    let target = prop_oneof![
        8 => prop::collection::vec(pieces, 0..6).prop_map(|pieces| format!("/{}", pieces.concat())),
        1 => prop::sample::select(vec!["*".to_owned(), String::new(), format!("/%{}2F", "25".repeat(30))]),
    ];
    let tiers =
        prop::collection::vec(prop::sample::select(vec!["gold", "golden", "blue", "blue, gold"]), 0..3);
    let kinds = prop::sample::select(vec![
        "application/grpc",
        "application/grpc+proto",
        "application/grpc-web",
        "text/x",
    ]);
    (prop::sample::select(vec![Method::GET, Method::POST]), target, tiers, prop::option::of(kinds))
}

fn header_map(tiers: &[&'static str], kind: Option<&'static str>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for tier in tiers {
        headers.append("x-tier", http::HeaderValue::from_static(tier));
    }
    if let Some(kind) = kind {
        headers.insert("content-type", http::HeaderValue::from_static(kind));
    }
    headers
}

fn any_policy(index: usize) -> impl Strategy<Value = AuthorizationPolicy> {
    let rule = (
        prop::option::of(prop::collection::vec(any_source(), 0..3)),
        prop::option::of(prop::collection::vec(prop::sample::select(vec![80_u16, 8080]), 0..2)),
        prop_oneof![1 => Just(None), 2 => prop::collection::vec(any_http(), 0..3).prop_map(Some)],
    )
        .prop_map(|(sources, ports, http)| Rule { sources, ports, http });
    (
        prop::sample::select(vec!["shop", "other", "weft-system"]),
        prop::sample::select(vec![Action::Allow, Action::Deny, Action::Audit]),
        prop::collection::vec(rule, 0..3),
        prop::collection::vec(prop::sample::select(vec!["web", "db"]), 0..2),
    )
        .prop_map(move |(namespace, action, rules, apps)| {
            let mut policy = policy(&format!("{namespace}/p{index}"), action, rules);
            policy.selectors = apps
                .into_iter()
                .map(|app| Selector {
                    match_labels: BTreeMap::from([("app".to_owned(), app.to_owned())]),
                    expressions: vec![],
                })
                .collect();
            policy
        })
}

fn any_policies() -> impl Strategy<Value = Vec<AuthorizationPolicy>> {
    (any_policy(0), any_policy(1), any_policy(2), any_policy(3), 0..5_usize).prop_map(
        |(a, b, c, d, count)| {
            let mut policies = vec![d, b, a, c];
            policies.truncate(count);
            policies
        },
    )
}

fn any_default() -> impl Strategy<Value = DefaultInbound> {
    prop::sample::select(vec![
        DefaultInbound::Permissive,
        DefaultInbound::Authenticated,
        DefaultInbound::Deny,
        DefaultInbound::Audit,
    ])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16_384))]

    #[test]
    fn the_most_lenient_server_gets_nothing_past_a_rule_about_paths(
        pieces in prop::collection::vec(prop::sample::select(vec![
            "/", "/", "//", "\\", ".", "..", "admin", "ADMIN", "public", "x", ";", ";a=b", "%2e", "%2f", "%2F..%2f",
            "%5c", "%25", "%252e", "%61", "%64", "%2561", "25", "2f", "%3b", "%3f", "%23", "%20", "?", "\n", "\u{e9}",
        ]), 0..12),
        start in prop::sample::select(vec!["/", "/public", "/admin", "/public/", "/x/", "\\", ""]),
    ) {
        let bytes = format!("{start}{}", pieces.concat()).into_bytes();
        promises::of_paths(&bytes);
        promises::of_judgement(&bytes);
    }

    #[test]
    fn no_bytes_break_a_promise(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
        promises::of_paths(&bytes);
        promises::of_judgement(&bytes);
        let rooted = [b"/".as_slice(), &bytes].concat();
        promises::of_paths(&rooted);
        promises::of_judgement(&rooted);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2048))]

    #[test]
    fn compiled_policies_answer_as_the_documentation_reads(
        policies in any_policies(),
        more in any_policy(9),
        default_inbound in any_default(),
        identity in prop::option::of(prop::sample::select(vec![
            "spiffe://cluster.local/ns/shop/sa/cart",
            "spiffe://cluster.local/ns/other/sa/web",
            "spiffe://partner.example/ns/shop/sa/cart",
        ])),
        client in prop::sample::select(vec!["10.0.0.9", "192.0.2.1", "fd00::1", "fe80::1"]),
        port in prop::sample::select(vec![80_u16, 8080, 9090]),
        app in prop::sample::select(vec!["web", "db", "none"]),
        parts in prop::option::of(any_request()),
    ) {
        let identity = identity.map(|id| id.parse::<SpiffeId>().unwrap());
        let destination = pod("shop", &[("app", app)]);
        let client: IpAddr = client.parse().unwrap();
        let headers = parts.as_ref().map(|(_, _, tiers, kind)| header_map(tiers, *kind)).unwrap_or_default();
        let parts = parts.as_ref().and_then(|(method, target, ..)| Some((method, RequestPath::parse(target).ok()?)));
        let request =
            parts.as_ref().map(|(method, path)| Request { method, path, headers: &headers, host: None });
        let facts = Facts { identity: identity.as_ref(), client, destination: &destination, port, node_probe: false, request };
        let compiled = set(policies.clone(), default_inbound);
        let answer = compiled.evaluate(&facts);
        let told = answer
            .as_ref()
            .map(|permit| permit.policy().map(|(name, rule)| (name.to_string(), rule)))
            .map_err(Refusal::label);
        prop_assert_eq!(told, naive(&policies, default_inbound, &facts));

        let explanation = compiled.explain(&facts);
        prop_assert_eq!(explanation.admitted, answer.is_ok());
        if let Some((policy, Some(rule))) = explanation.deciding.map(|deciding| (deciding.policy, deciding.rule)) {
            let decider = explanation.policies.iter().find(|one| one.policy == policy).unwrap();
            prop_assert!(decider.rules[rule].matched);
        }

        // One more DENY never admits more.
        let mut stricter = policies.clone();
        stricter.push(AuthorizationPolicy { action: Action::Deny, ..more });
        prop_assert!(answer.is_ok() || set(stricter, default_inbound).evaluate(&facts).is_err());

        // What the proxy relies on: a connection is only given up when no request could pass, and requests need not be
        // looked at where they make no difference.
        if answer.is_ok() && facts.request.is_some() {
            prop_assert!(compiled.could_admit(&facts));
        }
        if !compiled.needs_requests(&destination, port) {
            prop_assert_eq!(&answer, &compiled.evaluate(&Facts { request: None, ..facts }));
        }

        // What the kernel's verdict compiler relies on.
        if answer.is_ok() && identity.is_none() && facts.request.is_none() {
            prop_assert!(!compiled.requires_identity(&destination, port));
        }
        if !compiled.mentions_ports(&destination).contains(&port) {
            let other_port = Facts { port: 65_000, ..facts };
            prop_assert_eq!(answer, compiled.evaluate(&other_port));
            prop_assert_eq!(
                compiled.needs_requests(&destination, port),
                compiled.needs_requests(&destination, 65_000)
            );
        }
    }
}
