//! Of several alternatives that match, which one wins? A total order, settled when a router is compiled.
//!
//! Sources: `HTTPRouteRule.matches` and `GRPCRouteRule.matches` of Gateway API v1. What they leave to implementations:
//! a regular expression stands behind an exact name and before a prefix (or, in gRPC, before "any").

use std::cmp::Reverse;

use crate::model::{PathMatch, Route, RouteRule, StringMatch};

/// The place of one alternative of one rule among all those attached; the lowest that matches wins.
///
/// Host names stand before all of this and are not part of it: which of a route's hosts matched depends on the request
/// (see `hosts`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Precedence {
    path: PathRank,
    any_method: bool,
    headers: Reverse<usize>,
    query: Reverse<usize>,
    rank: u64,
    /// `namespace/name` as one text, for that is how the order is defined: `a-b/x` stands before `a/x`.
    name: String,
    rule: usize,
    alternative: usize,
}

/// How narrow the path is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum PathRank {
    Exact,
    Regex,
    Prefix(Reverse<usize>),
    /// Of calls that match, all exact names of a service are as long as each other, so that "characters in a matching
    /// service" comes down to how it is compared.
    Call(Narrowness, Narrowness),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Narrowness {
    Exact,
    Regex,
    Any,
}

impl Precedence {
    /// Of `rule.matches[alternative]`.
    pub(super) fn new(route: &Route, rule: &RouteRule, alternative: usize) -> Self {
        let one = &rule.matches[alternative];
        Self {
            path: PathRank::new(&one.path),
            any_method: one.method.is_none(),
            headers: Reverse(one.headers.len()),
            query: Reverse(one.query.len()),
            rank: route.rank,
            name: format!("{}/{}", route.name.namespace, route.name.name),
            rule: rule.index,
            alternative,
        }
    }
}

impl PathRank {
    fn new(path: &PathMatch) -> Self {
        match path {
            PathMatch::Exact(_) => Self::Exact,
            PathMatch::Regex(_) => Self::Regex,
            PathMatch::Prefix(prefix) => Self::Prefix(Reverse(prefix.trim_end_matches('/').chars().count())),
            PathMatch::Grpc { service, method } => {
                Self::Call(Narrowness::new(service.as_ref()), Narrowness::new(method.as_ref()))
            }
        }
    }
}

impl Narrowness {
    fn new(compared: Option<&StringMatch>) -> Self {
        match compared {
            Some(StringMatch::Exact(_)) => Self::Exact,
            Some(StringMatch::Regex(_)) => Self::Regex,
            None => Self::Any,
        }
    }
}

/// The order of whole routes, where rules are not compared by what they match: the oldest, then by name.
pub(super) fn by_age(route: &Route) -> (u64, String) {
    (route.rank, format!("{}/{}", route.name.namespace, route.name.name))
}
