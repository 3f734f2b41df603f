//! What holds for all routes and requests.
//!
//! Names, paths and values come from small alphabets, so that most requests match several alternatives and ties are common.

use http::Method;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use super::fixtures::*;
use super::reference;
use crate::model::{PathEdit, RequestMatch, Route, RouteBackend, RouteRule};
use crate::route::filters::edit_path;
use crate::route::precedence::Precedence;
use crate::route::{RequestRouter, draw};

const HOSTS: &[&str] = &["a.test", "b.a.test", "c.b.a.test", "*.a.test", "*.b.a.test", "*.test", "other"];
const SEGMENTS: &[&str] = &["a", "b", "c.C"];
const PATTERNS: &[&str] = &["/a", "/a/.*", ".*/b", "/(a|b)/(a|b)", ".*"];
const NAMES: &[&str] = &["", "", "=a", "=b", "~a|c.*", "~.*", "~[ab]"];
const VALUES: &[&str] = &["=1", "=A 1", "~[0-9]", "~.*1"];

fn path() -> impl Strategy<Value = String> {
    let segment = || prop_oneof![12 => select(SEGMENTS), 1 => Just("")];
    let segments =
        prop_oneof![2 => vec(segment(), 0..2), 3 => vec(segment(), 2..3), 1 => vec(segment(), 3..5)];
    segments.prop_map(|segments| format!("/{}", segments.join("/")))
}

fn web_path() -> impl Strategy<Value = RequestMatch> {
    prop_oneof![
        2 => path().prop_map(|path| exact(&path)),
        1 => select(PATTERNS).prop_map(regex),
        4 => path().prop_map(|path| prefix(&path)),
        1 => Just(every()),
    ]
}

fn call_path() -> impl Strategy<Value = RequestMatch> {
    (select(NAMES), select(NAMES)).prop_map(|(service, method)| call(service, method))
}

/// Names and values to look for, mostly none.
fn few(names: &'static [&'static str]) -> impl Strategy<Value = Vec<(&'static str, &'static str)>> {
    prop_oneof![2 => Just(Vec::new()), 1 => vec((select(names), select(VALUES)), 1..3)]
}

fn conditions(web: bool) -> impl Strategy<Value = (Option<Method>, Vec<RequestMatch>)> {
    let method = option::weighted(0.3, select(&[Method::GET, Method::POST][..]));
    let headers = few(&["x", "y"]);
    let query = few(&["p", "q"]);
    (method, headers, query).prop_map(move |(method, headers, query)| {
        let headers = headers.into_iter().map(|(name, value)| every().header(name, value));
        let query = query.into_iter().filter(|_| web).map(|(name, value)| every().query(name, value));
        (method.filter(|_| web), headers.chain(query).collect())
    })
}

fn alternative(web: bool) -> impl Strategy<Value = RequestMatch> {
    let path = if web { web_path().boxed() } else { call_path().boxed() };
    (path, conditions(web)).prop_map(|(path, (method, parts))| RequestMatch {
        method,
        headers: parts.iter().flat_map(|part| part.headers.clone()).collect(),
        query: parts.iter().flat_map(|part| part.query.clone()).collect(),
        ..path
    })
}

fn rules(web: bool) -> impl Strategy<Value = Vec<RouteRule>> {
    let backends = || vec((select(&["v1", "v2", "v3"][..]), 0_u32..3), 0..3);
    let one = (vec(alternative(web), 1..5), backends()).prop_map(|(matches, backends)| {
        split(matches, backends.into_iter().map(|(name, weight)| to(name, weight)).collect())
    });
    vec(one, 1..4)
}

/// Routes with names of their own. Whether for requests or for calls.
fn routes() -> impl Strategy<Value = Vec<Route>> {
    proptest::bool::ANY.prop_flat_map(|web| {
        let hosts = prop_oneof![3 => Just(Vec::new()), 1 => vec(select(HOSTS), 1..4)];
        let parts = vec((0_u64..3, select(&["n", "n-m"][..]), hosts, rules(web)), 1..6);
        parts.prop_map(move |parts| {
            let make = if web { http } else { grpc };
            let numbered = parts.into_iter().enumerate();
            numbered
                .map(|(index, (rank, namespace, hosts, rules))| {
                    make(&format!("{namespace}/{index}"), rules).hosts(&hosts).rank(rank)
                })
                .collect()
        })
    })
}

fn request() -> impl Strategy<Value = Sent> {
    let host = option::of(
        (select(HOSTS), select(&["", ":80", "."][..]))
            .prop_map(|(host, end)| format!("{}{end}", host.replace('*', "X.y"))),
    );
    let headers = vec((select(&["x", "y"][..]), select(&["1", "2", "A 1"][..])), 0..4);
    let query = vec((select(&["p", "q", "r"][..]), select(&["1", "x1", "%41+1", "A%201"][..])), 0..4);
    let slash = select(&["", "/"][..]);
    (select(&["GET", "POST", "PUT"][..]), path(), slash, headers, query, host).prop_map(
        |(method, path, slash, headers, query, host)| {
            let query: Vec<_> = query.iter().map(|(name, value)| format!("{name}={value}")).collect();
            let mark = if query.is_empty() { "" } else { "?" };
            let target = format!("{}{slash}{mark}{}", path.trim_end_matches('/'), query.join("&"));
            let target = if target.starts_with('/') { target } else { format!("/{target}") };
            Sent::new(&format!("{method} {target}"), &headers).to(host.as_deref())
        },
    )
}

fn found(router: &RequestRouter, sent: &Sent) -> Option<reference::Found> {
    let found = router.find(&sent.head())?;
    Some((found.route.to_string(), found.rule.index, found.alternative))
}

fn keys(routes: &[Route]) -> Vec<Precedence> {
    let rules = routes.iter().flat_map(|route| route.rules.iter().map(move |rule| (route, rule)));
    rules
        .flat_map(|(route, rule)| (0..rule.matches.len()).map(move |one| Precedence::new(route, rule, one)))
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(160))]

    #[test]
    fn the_router_agrees_with_going_through_every_rule(
        routes in routes(),
        requests in vec(request(), 1..24),
    ) {
        let router = router(routes.clone());
        for sent in requests {
            prop_assert_eq!(found(&router, &sent), reference::find(&routes, &sent), "{:?}", sent);
        }
    }

    #[test]
    fn the_order_in_which_routes_are_given_changes_nothing(
        (routes, shuffled) in routes().prop_flat_map(|routes| (Just(routes.clone()), Just(routes).prop_shuffle())),
        requests in vec(request(), 1..12),
    ) {
        let (one, other) = (router(routes), router(shuffled));
        for sent in requests {
            prop_assert_eq!(found(&one, &sent), found(&other, &sent), "{:?}", sent);
        }
    }

    /// No two alternatives stand in the same place, and sorting has one result.
    #[test]
    fn precedence_is_a_total_order(
        (keys, shuffled) in routes().prop_map(|routes| keys(&routes))
            .prop_flat_map(|keys| (Just(keys.clone()), Just(keys).prop_shuffle())),
    ) {
        let sorted = |mut keys: Vec<Precedence>| { keys.sort_unstable(); keys };
        let (keys, shuffled) = (sorted(keys), sorted(shuffled));
        prop_assert!(keys.windows(2).all(|pair| pair[0] < pair[1]));
        prop_assert_eq!(keys, shuffled);
    }

    #[test]
    fn a_request_reaches_only_what_its_rule_lists_with_a_weight(
        routes in routes(),
        sent in request(),
        seed in any::<u64>(),
    ) {
        let router = router(routes);
        let Some(found) = router.find(&sent.head()) else { return Ok(()) };
        let backends = &found.rule.backends;
        match draw(backends, &mut fastrand::Rng::with_seed(seed)) {
            Some(drawn) => {
                prop_assert!(drawn.weight > 0);
                prop_assert!(backends.iter().any(|listed| std::ptr::eq(listed, drawn)));
            }
            None => prop_assert!(backends.iter().all(|listed| listed.weight == 0)),
        }
    }

    /// Four points of 4,000 draws are five standard deviations and more.
    #[test]
    fn draws_converge_to_weights_for_every_seed(weights in vec(0_u32..=100, 1..5), seed in any::<u64>()) {
        const DRAWS: u32 = 4000;
        let total: u32 = weights.iter().sum();
        let backends: Vec<_> = weights.iter().map(|weight| to("x", *weight)).collect();
        let mut random = fastrand::Rng::with_seed(seed);
        let mut hits = vec![0_u32; backends.len()];
        for drawn in (0..DRAWS).filter_map(|_| draw(&backends, &mut random)) {
            hits[place(&backends, drawn)] += 1;
        }
        for (weight, hits) in weights.iter().zip(hits) {
            let expected = if total == 0 { 0.0 } else { f64::from(*weight) / f64::from(total) };
            let seen = f64::from(hits) / f64::from(DRAWS);
            prop_assert!((seen - expected).abs() < 0.04, "{seen} of {expected}");
            prop_assert!(*weight > 0 || hits == 0);
        }
    }

    #[test]
    fn a_replaced_prefix_is_its_replacement_and_the_rest_by_segments(
        prefix in vec(select(SEGMENTS), 0..3),
        rest in vec(select(SEGMENTS), 0..3),
        new in vec(select(SEGMENTS), 0..3),
        ends in any::<[bool; 3]>(),
        slashes in 0_usize..3,
        query in select(&["", "?", "?a=/x//y"][..]),
    ) {
        let written = |segments: &[&str], slash: bool| {
            format!("/{}{}", segments.join("/"), if slash && !segments.is_empty() { "/" } else { "" })
        };
        // Between prefix and rest there may be more slashes than one.
        let run = vec![""; if rest.is_empty() { 0 } else { slashes }];
        let path = written(&[prefix.clone(), run, rest.clone()].concat(), ends[0]);
        let edit = PathEdit::Prefix(written(&new, ends[1]).into());
        let edited = edit_path(&edit, Some(&written(&prefix, ends[2])), &format!("{path}{query}"));
        let (edited, kept) = edited.split_at(edited.find('?').unwrap_or(edited.len()));
        prop_assert_eq!(kept, query);
        prop_assert!(edited.starts_with('/') && !edited.contains("//"), "{}", edited);
        let segments: Vec<_> = edited.split('/').filter(|segment| !segment.is_empty()).collect();
        prop_assert_eq!(segments, [new, rest].concat());
    }
}

fn place(backends: &[RouteBackend], drawn: &RouteBackend) -> usize {
    backends.iter().position(|listed| std::ptr::eq(listed, drawn)).expect("a draw is one of those listed")
}

/// The generators are worth their name: most requests match something, and many have several alternatives to choose from.
#[test]
fn random_requests_match_random_routes() {
    let mut runner = TestRunner::deterministic();
    let cases = vec((routes(), request()), 500).new_tree(&mut runner).expect("generators work").current();
    let counts: Vec<_> = cases.iter().map(|(routes, sent)| reference::count(routes, sent)).collect();
    let of = |least| counts.iter().filter(|count| **count >= least).count();
    assert!(of(1) > 250 && of(2) > 150, "{} of 500 matched, {} more than once", of(1), of(2));
}
