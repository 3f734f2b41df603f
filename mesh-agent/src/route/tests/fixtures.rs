//! Routes and requests in few words, and what a proxy would do with them.

use std::fmt::Write;
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use regex::Regex;

use crate::model::{
    BackendTarget, Filter, HeaderEdit, HeaderMatch, PathEdit, PathMatch, QueryMatch, Redirect, RequestMatch,
    Rewrite, Route, RouteBackend, RouteKind, RouteName, RouteRule, RouteTimeouts, ServiceName, StringMatch,
};
use crate::route::filters::{RedirectFrom, edit_headers, redirect, rewrite};
use crate::route::{Matched, RequestHead, RequestRouter, draw};

pub(super) fn route_of(kind: RouteKind, name: &str, rules: Vec<RouteRule>) -> Route {
    let (namespace, name) = name.split_once('/').unwrap_or(("default", name));
    let numbered = rules.into_iter().enumerate().map(|(index, rule)| Arc::new(RouteRule { index, ..rule }));
    Route {
        name: RouteName { kind, namespace: namespace.into(), name: name.into() },
        rank: 0,
        hostnames: Vec::new(),
        rules: numbered.collect(),
    }
}

pub(super) fn http(name: &str, rules: Vec<RouteRule>) -> Route {
    route_of(RouteKind::Http, name, rules)
}

pub(super) fn grpc(name: &str, rules: Vec<RouteRule>) -> Route {
    route_of(RouteKind::Grpc, name, rules)
}

impl Route {
    pub(super) fn hosts(mut self, hosts: &[&str]) -> Self {
        self.hostnames = hosts.iter().map(|host| (*host).into()).collect();
        self
    }

    pub(super) fn rank(mut self, rank: u64) -> Self {
        self.rank = rank;
        self
    }
}

pub(super) fn router(routes: Vec<Route>) -> RequestRouter {
    RequestRouter::new(&routes.into_iter().map(Arc::new).collect::<Vec<_>>())
}

/// A rule with one backend of this name.
pub(super) fn rule(matches: Vec<RequestMatch>, backend: &str) -> RouteRule {
    split(matches, vec![to(backend, 1)])
}

pub(super) fn split(matches: Vec<RequestMatch>, backends: Vec<RouteBackend>) -> RouteRule {
    RouteRule {
        index: 0,
        name: None,
        matches,
        filters: Vec::new(),
        backends,
        timeouts: RouteTimeouts::default(),
    }
}

impl RouteRule {
    pub(super) fn filter(mut self, filter: Filter) -> Self {
        self.filters.push(filter);
        self
    }
}

pub(super) fn to(backend: &str, weight: u32) -> RouteBackend {
    let name = ServiceName { namespace: "default".into(), name: backend.into() };
    RouteBackend { target: BackendTarget::Service { name, port: 8080 }, weight, filters: Vec::new() }
}

pub(super) fn matching(path: PathMatch) -> RequestMatch {
    RequestMatch { path, method: None, headers: Vec::new(), query: Vec::new() }
}

pub(super) fn every() -> RequestMatch {
    prefix("/")
}

pub(super) fn exact(path: &str) -> RequestMatch {
    matching(PathMatch::Exact(path.into()))
}

/// As discovery hands it over: without the slash at the end.
pub(super) fn prefix(path: &str) -> RequestMatch {
    matching(PathMatch::Prefix(path.trim_end_matches('/').into()))
}

pub(super) fn regex(pattern: &str) -> RequestMatch {
    matching(PathMatch::Regex(anchored(pattern)))
}

pub(super) fn anchored(pattern: &str) -> Regex {
    Regex::new(&format!("^(?:{pattern})$")).expect("a regular expression")
}

/// `=name`, `~pattern` or nothing.
pub(super) fn compared(text: &str) -> Option<StringMatch> {
    match text.strip_prefix('~') {
        Some(pattern) => Some(StringMatch::Regex(anchored(pattern))),
        None => text.strip_prefix('=').map(|text| StringMatch::Exact(text.into())),
    }
}

/// Service and method as in [`compared`].
pub(super) fn call(service: &str, method: &str) -> RequestMatch {
    matching(PathMatch::Grpc { service: compared(service), method: compared(method) })
}

impl RequestMatch {
    pub(super) fn method(mut self, method: Method) -> Self {
        self.method = Some(method);
        self
    }

    pub(super) fn header(mut self, name: &'static str, value: &str) -> Self {
        let value = compared(value).unwrap_or_else(|| StringMatch::Exact(value.into()));
        self.headers.push(HeaderMatch { name: HeaderName::from_static(name), value });
        self
    }

    pub(super) fn query(mut self, name: &str, value: &str) -> Self {
        let value = compared(value).unwrap_or_else(|| StringMatch::Exact(value.into()));
        self.query.push(QueryMatch { name: name.into(), value });
        self
    }
}

pub(super) fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
    pairs.iter().map(|(name, value)| parsed(name, value)).fold(HeaderMap::new(), |mut map, (name, value)| {
        map.append(name, value);
        map
    })
}

fn parsed(name: &str, value: &str) -> (HeaderName, HeaderValue) {
    (name.parse().expect("a header name"), value.parse().expect("a header value"))
}

pub(super) fn edit(set: &[(&str, &str)], add: &[(&str, &str)], remove: &[&str]) -> HeaderEdit {
    let list = |pairs: &[(&str, &str)]| pairs.iter().map(|(name, value)| parsed(name, value)).collect();
    let remove = remove.iter().map(|name| name.parse().expect("a header name")).collect();
    HeaderEdit { set: list(set), add: list(add), remove }
}

/// `RequestRedirect` to a URI of which every part may be missing: scheme, host, port.
pub(super) fn redirecting(
    status: u16,
    scheme: Option<&str>,
    hostname: Option<&str>,
    port: Option<u16>,
    path: Option<PathEdit>,
) -> Filter {
    Filter::Redirect(Redirect {
        scheme: scheme.map(Into::into),
        hostname: hostname.map(Into::into),
        path,
        port,
        status: StatusCode::from_u16(status).expect("a status"),
    })
}

pub(super) fn rewriting(hostname: Option<&str>, path: Option<PathEdit>) -> Filter {
    Filter::Rewrite(Rewrite { hostname: hostname.map(Into::into), path })
}

/// A request as a client sends it.
#[derive(Clone, Debug)]
pub(super) struct Sent {
    pub(super) method: Method,
    pub(super) host: Option<String>,
    pub(super) target: String,
    pub(super) headers: HeaderMap,
}

impl Sent {
    /// `GET /path?query` to `Host: echo`.
    pub(super) fn new(line: &str, pairs: &[(&str, &str)]) -> Self {
        let (method, target) = line.split_once(' ').expect("method and target");
        let method = method.parse().expect("a method");
        Self { method, host: Some("echo".to_owned()), target: target.to_owned(), headers: headers(pairs) }
    }

    pub(super) fn to(mut self, host: Option<&str>) -> Self {
        self.host = host.map(str::to_owned);
        self
    }

    pub(super) fn head(&self) -> RequestHead<'_> {
        let (path, query) = match self.target.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (&*self.target, None),
        };
        RequestHead { host: self.host.as_deref(), method: &self.method, path, query, headers: &self.headers }
    }
}

/// What a proxy on port 80 does, in one line: `404`, `500`, `302 Location`, or `backend host/path?query` and the headers
/// as the backend gets them, sorted.
pub(super) fn outcome(router: &RequestRouter, sent: &Sent, random: &mut fastrand::Rng) -> String {
    let Some(matched) = router.find(&sent.head()) else {
        return "404".to_owned();
    };
    let mut request = sent.clone();
    for filter in &matched.rule.filters {
        if let Some(answer) = apply(filter, matched, &mut request) {
            return answer;
        }
    }
    match draw(&matched.rule.backends, random) {
        None => "500".to_owned(),
        Some(RouteBackend { target: BackendTarget::Invalid { .. }, .. }) => "500".to_owned(),
        Some(RouteBackend { target: BackendTarget::Service { name, .. }, filters, .. }) => {
            for filter in filters {
                apply(filter, matched, &mut request);
            }
            forwarded(&name.name, &request)
        }
    }
}

/// The answer, when the filter gives one.
fn apply(filter: &Filter, matched: &Matched, request: &mut Sent) -> Option<String> {
    let prefix = matched.prefix.as_deref();
    match filter {
        Filter::RequestHeaders(edit) => edit_headers(edit, &mut request.headers),
        Filter::Rewrite(change) => {
            request.target = rewrite(change, prefix, &request.target);
            request.host = change.hostname.as_deref().map(str::to_owned).or_else(|| request.host.take());
        }
        Filter::Redirect(to) => {
            let host = request.host.as_deref().unwrap_or("echo.default.svc");
            let from =
                RedirectFrom { scheme: "http", host, port: 80, prefix, path_and_query: &request.target };
            let (status, location) = redirect(to, from);
            return Some(format!("{} {}", status.as_u16(), location.to_str().expect("a Location is text")));
        }
        Filter::ResponseHeaders(_) | Filter::Mirror(_) | Filter::Cors(_) => {}
    }
    None
}

fn forwarded(backend: &str, request: &Sent) -> String {
    let host = request.host.as_deref().unwrap_or_default();
    let mut line = format!("{backend} {host}{}", request.target);
    let mut names: Vec<_> = request.headers.keys().map(HeaderName::as_str).collect();
    names.sort_unstable();
    for name in names {
        let values: Vec<_> =
            request.headers.get_all(name).iter().map(|v| v.to_str().expect("text")).collect();
        write!(line, " {name}={}", values.join(",")).expect("a String takes everything");
    }
    line
}

/// One row: request line, headers, outcome.
pub(super) type Row<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a str);

/// Sends every row's request and compares the outcome in full.
#[track_caller]
pub(super) fn check(router: &RequestRouter, rows: &[Row<'_>]) {
    let mut random = fastrand::Rng::with_seed(7);
    for (line, headers, expected) in rows {
        let outcome = outcome(router, &Sent::new(line, headers), &mut random);
        assert_eq!(outcome, *expected, "{line} {headers:?}");
    }
}
