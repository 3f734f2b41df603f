//! The router as one would write it without a thought for cost: go through every alternative of every rule of every route,
//! keep those that match, and compare them one criterion after the other. Shares no code with the room.

use std::cmp::Ordering;

use super::fixtures::Sent;
use crate::model::{PathMatch, RequestMatch, Route, StringMatch};

/// Names what was found: route, rule, alternative.
pub(super) type Found = (String, usize, usize);

struct Candidate<'a> {
    /// Length of an exact host that matched, length of any host that matched.
    host: (usize, usize),
    route: &'a Route,
    rule: usize,
    alternative: usize,
    one: &'a RequestMatch,
}

/// The alternative that a request takes.
pub(super) fn find(routes: &[Route], sent: &Sent) -> Option<Found> {
    let best = candidates(routes, sent).into_iter().min_by(compare)?;
    Some((best.route.name.to_string(), best.rule, best.alternative))
}

/// How many alternatives match.
pub(super) fn count(routes: &[Route], sent: &Sent) -> usize {
    candidates(routes, sent).len()
}

fn candidates<'a>(routes: &'a [Route], sent: &Sent) -> Vec<Candidate<'a>> {
    let mut found = Vec::new();
    for route in routes {
        let Some(host) = host_rank(route, sent) else {
            continue;
        };
        for (rule, written) in route.rules.iter().enumerate() {
            for (alternative, one) in written.matches.iter().enumerate() {
                if matches(one, sent) {
                    found.push(Candidate { host, route, rule, alternative, one });
                }
            }
        }
    }
    found
}

/// `Less`: `a` wins.
fn compare(a: &Candidate<'_>, b: &Candidate<'_>) -> Ordering {
    let full_name = |route: &Route| format!("{}/{}", route.name.namespace, route.name.name);
    let most = |count: fn(&RequestMatch) -> usize| count(b.one).cmp(&count(a.one));
    b.host
        .cmp(&a.host)
        .then_with(|| path_rank(&b.one.path).cmp(&path_rank(&a.one.path)))
        .then_with(|| most(|one| usize::from(one.method.is_some())))
        .then_with(|| most(|one| one.headers.len()))
        .then_with(|| most(|one| one.query.len()))
        .then_with(|| a.route.rank.cmp(&b.route.rank))
        .then_with(|| full_name(a.route).cmp(&full_name(b.route)))
        .then_with(|| a.rule.cmp(&b.rule))
        .then_with(|| a.alternative.cmp(&b.alternative))
}

/// Higher wins.
fn path_rank(path: &PathMatch) -> (usize, usize) {
    let narrow = |compared: &Option<StringMatch>| match compared {
        Some(StringMatch::Exact(_)) => 2,
        Some(StringMatch::Regex(_)) => 1,
        None => 0,
    };
    match path {
        PathMatch::Exact(_) => (3, 0),
        PathMatch::Regex(_) => (2, 0),
        PathMatch::Prefix(prefix) => (1, prefix.chars().count()),
        PathMatch::Grpc { service, method } => (narrow(service), narrow(method)),
    }
}

fn host_rank(route: &Route, sent: &Sent) -> Option<(usize, usize)> {
    if route.hostnames.is_empty() {
        return Some((0, 0));
    }
    let host = sent.host.as_ref()?.to_lowercase();
    let host = host.split(':').next()?;
    let host = host.strip_suffix('.').unwrap_or(host);
    let ranks = route.hostnames.iter().filter_map(|name| match name.strip_prefix('*') {
        None => (**name == *host).then_some((name.len(), name.len())),
        Some(suffix) => (host.ends_with(suffix) && host.len() > suffix.len()).then_some((0, name.len())),
    });
    ranks.max()
}

fn matches(one: &RequestMatch, sent: &Sent) -> bool {
    let (path, query) = sent.target.split_once('?').unwrap_or((&sent.target, ""));
    path_matches(&one.path, path)
        && one.method.as_ref().is_none_or(|method| *method == sent.method)
        && one.headers.iter().all(|wanted| {
            let lines: Vec<_> = sent.headers.get_all(&wanted.name).iter().collect();
            let values: Vec<_> = lines.iter().map(|line| line.to_str().expect("text")).collect();
            !lines.is_empty() && wanted.value.matches(&values.join(","))
        })
        && one.query.iter().all(|wanted| {
            let values = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
            let first = values.map(|(n, v)| (plain(n), plain(v))).find(|(name, _)| **name == *wanted.name);
            first.is_some_and(|(_, value)| wanted.value.matches(&value))
        })
}

fn path_matches(wanted: &PathMatch, path: &str) -> bool {
    match wanted {
        PathMatch::Exact(exact) => **exact == *path,
        PathMatch::Regex(regex) => regex.is_match(path),
        PathMatch::Prefix(prefix) => path == &**prefix || path.starts_with(&format!("{prefix}/")),
        PathMatch::Grpc { service, method } => {
            let parts: Vec<_> = path.split('/').collect();
            let (asked_service, asked_method) = match parts[..] {
                ["", service, method] if !service.is_empty() && !method.is_empty() => (service, method),
                _ => return service.is_none() && method.is_none(),
            };
            let holds = |wanted: &Option<StringMatch>, text| {
                wanted.as_ref().is_none_or(|wanted| wanted.matches(text))
            };
            holds(service, asked_service) && holds(method, asked_method)
        }
    }
}

/// Decodes what the generator of requests encodes.
fn plain(text: &str) -> String {
    text.replace('+', " ").replace("%20", " ").replace("%41", "A")
}
