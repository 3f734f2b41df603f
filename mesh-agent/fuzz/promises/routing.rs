//! The router promises to find what going through all rules, one by one, would find.
//!
//! Bytes make a few routes and a request from a small vocabulary, so that they meet often. The reference below knows the
//! order of precedence from the Gateway API's text and nothing of the router.

use std::cmp::Reverse;
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use mesh_agent::model::{
    HeaderMatch, PathMatch, QueryMatch, RequestMatch, Route, RouteKind, RouteName, RouteRule, RouteTimeouts,
    StringMatch,
};
use mesh_agent::route::{RequestHead, RequestRouter};

/// Reads numbers from bytes, and zeros behind their end.
struct Dice<'a>(&'a [u8]);

impl Dice<'_> {
    /// One of so many.
    fn below(&mut self, sides: usize) -> usize {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        usize::from(*first) % sides
    }

    fn one_of<'t>(&mut self, texts: &[&'t str]) -> &'t str {
        texts[self.below(texts.len())]
    }

    fn path(&mut self) -> String {
        let segments = self.below(4);
        (0..segments).map(|_| format!("/{}", self.one_of(&["a", "b", "ab", "a%2Fb"]))).collect()
    }
}

const NAMES: [&str; 3] = ["x-a", "x-b", "x-c"];
const VALUES: [&str; 3] = ["1", "2", "12"];
const METHODS: [Method; 3] = [Method::GET, Method::POST, Method::PUT];

fn one_match(dice: &mut Dice<'_>) -> RequestMatch {
    let path = dice.path();
    let path = match dice.below(2) {
        0 => PathMatch::Exact(if path.is_empty() { "/".into() } else { path.into() }),
        _ => PathMatch::Prefix(path.into()),
    };
    let method = METHODS.get(dice.below(METHODS.len() + 2)).cloned();
    let exact = |dice: &mut Dice<'_>| StringMatch::Exact(dice.one_of(&VALUES).into());
    let names = |dice: &mut Dice<'_>| NAMES[..dice.below(NAMES.len())].to_vec();
    let headers = names(dice)
        .into_iter()
        .map(|name| HeaderMatch { name: HeaderName::from_static(name), value: exact(dice) });
    let headers = headers.collect();
    let query =
        names(dice).into_iter().map(|name| QueryMatch { name: name.into(), value: exact(dice) }).collect();
    RequestMatch { path, method, headers, query }
}

fn routes(dice: &mut Dice<'_>) -> Vec<Arc<Route>> {
    let route = |number: usize, dice: &mut Dice<'_>| {
        let rules = (0..1 + dice.below(4)).map(|index| {
            let matches = (0..1 + dice.below(3)).map(|_| one_match(dice)).collect();
            let timeouts = RouteTimeouts::default();
            Arc::new(RouteRule {
                index,
                name: None,
                matches,
                filters: Vec::new(),
                backends: Vec::new(),
                timeouts,
            })
        });
        let rules = rules.collect();
        let name = RouteName {
            kind: RouteKind::Http,
            namespace: "fuzz".into(),
            name: format!("route-{number}").into(),
        };
        Arc::new(Route { name, rank: dice.below(3) as u64, hostnames: Vec::new(), rules })
    };
    (0..1 + dice.below(4)).map(|number| route(number, dice)).collect()
}

/// A request: method, path, query, headers.
fn request(dice: &mut Dice<'_>) -> (Method, String, Option<String>, HeaderMap) {
    let method = METHODS[dice.below(METHODS.len())].clone();
    let mut path = dice.path();
    if path.is_empty() || dice.below(4) == 0 {
        path.push('/');
    }
    let pairs: Vec<String> =
        (0..dice.below(4)).map(|_| format!("{}={}", dice.one_of(&NAMES), dice.one_of(&VALUES))).collect();
    let query = (!pairs.is_empty()).then(|| pairs.join("&"));
    let mut headers = HeaderMap::new();
    for _ in 0..dice.below(4) {
        headers.append(
            HeaderName::from_static(dice.one_of(&NAMES)),
            HeaderValue::from_static(dice.one_of(&VALUES)),
        );
    }
    (method, path, query, headers)
}

fn says(wanted: &StringMatch, text: &str) -> bool {
    matches!(wanted, StringMatch::Exact(exact) if **exact == *text)
}

/// Whether one alternative takes the request.
fn takes(one: &RequestMatch, method: &Method, path: &str, query: Option<&str>, headers: &HeaderMap) -> bool {
    let path_fits = match &one.path {
        PathMatch::Exact(exact) => **exact == *path,
        PathMatch::Prefix(prefix) => {
            path.strip_prefix(&**prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        }
        PathMatch::Regex(_) | PathMatch::Grpc { .. } => false,
    };
    let header = |wanted: &HeaderMatch| {
        let all: Vec<&str> =
            headers.get_all(&wanted.name).iter().filter_map(|value| value.to_str().ok()).collect();
        !all.is_empty() && says(&wanted.value, &all.join(","))
    };
    let parameter = |wanted: &QueryMatch| {
        let mut pairs = query.unwrap_or_default().split('&').filter_map(|pair| pair.split_once('='));
        pairs.find(|(name, _)| **name == *wanted.name).is_some_and(|(_, value)| says(&wanted.value, value))
    };
    path_fits
        && one.method.as_ref().is_none_or(|wanted| wanted == method)
        && one.headers.iter().all(header)
        && one.query.iter().all(parameter)
}

/// The place of an alternative in the Gateway API's order: exact path, longest prefix, method, headers, parameters, age, name,
/// place in the route.
fn place(route: &Route, rule: usize, one: &RequestMatch) -> impl Ord + use<> {
    let (is_exact, length) = match &one.path {
        PathMatch::Exact(path) => (true, path.len()),
        PathMatch::Prefix(path) => (false, path.len()),
        PathMatch::Regex(_) | PathMatch::Grpc { .. } => (false, 0),
    };
    let narrow = (is_exact, length, one.method.is_some(), one.headers.len(), one.query.len());
    (Reverse(narrow), route.rank, route.name.name.to_string(), rule)
}

/// # Panics
/// A promise is broken.
pub(crate) fn check(bytes: &[u8]) {
    let dice = &mut Dice(bytes);
    let routes = routes(dice);
    let router = RequestRouter::new(&routes);
    for _ in 0..4 {
        let (method, path, query, headers) = request(dice);
        let head = RequestHead {
            host: None,
            method: &method,
            path: &path,
            query: query.as_deref(),
            headers: &headers,
        };
        let found = router.find(&head).map(|matched| (matched.route.name.to_string(), matched.rule.index));
        let candidates = routes.iter().flat_map(|route| {
            let of_rule = |rule: &Arc<RouteRule>| -> Vec<_> {
                let fitting =
                    rule.matches.iter().filter(|one| takes(one, &method, &path, query.as_deref(), &headers));
                fitting
                    .map(|one| (place(route, rule.index, one), (route.name.name.to_string(), rule.index)))
                    .collect()
            };
            route.rules.iter().flat_map(of_rule).collect::<Vec<_>>()
        });
        let expected = candidates.min_by(|a, b| a.0.cmp(&b.0)).map(|(_, answer)| answer);
        assert_eq!(found, expected, "{method} {path}?{query:?} {headers:?}\n{routes:#?}");
    }
}
