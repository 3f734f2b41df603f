//! Which alternative does a request take, among those of one host? Candidates are found by path, and of those the one that
//! stands first in precedence wins.

use std::collections::HashMap;
use std::sync::Arc;

use regex::Regex;

use super::Matched;
use super::ask::Ask;
use super::calls::{Call, Calls};
use super::patterns::Patterns;
use super::precedence::Precedence;
use super::prefixes::Prefixes;
use crate::model::{PathMatch, Route};

/// Indices into the list of alternatives, in order of precedence.
pub(super) type Places = Vec<usize>;

/// The alternatives of some routes.
#[derive(Debug)]
pub(super) struct Paths {
    /// In order of precedence.
    alternatives: Vec<Matched>,
    exact: HashMap<Arc<str>, Places>,
    patterns: Patterns<Places>,
    prefixes: Prefixes,
    calls: Calls,
}

impl Paths {
    /// Compiles routes.
    pub(super) fn new(routes: &[Arc<Route>]) -> Self {
        let alternatives = sorted(routes);
        let mut exact = HashMap::<_, Places>::new();
        let mut patterns = HashMap::<_, (Regex, Places)>::new();
        let mut prefixes = Prefixes::new();
        let mut calls = Vec::new();
        for (place, alternative) in alternatives.iter().enumerate() {
            match &alternative.rule.matches[alternative.alternative].path {
                PathMatch::Exact(path) => exact.entry(path.clone()).or_default().push(place),
                PathMatch::Regex(regex) => {
                    let (_, places) =
                        patterns.entry(regex.as_str()).or_insert_with(|| (regex.clone(), Places::new()));
                    places.push(place);
                }
                PathMatch::Prefix(prefix) => prefixes.at(prefix).push(place),
                PathMatch::Grpc { service, method } => {
                    calls.push(Call { service: service.as_ref(), method: method.as_ref(), place });
                }
            }
        }
        let patterns = Patterns::new(patterns.into_values().collect());
        let calls = Calls::new(calls);
        Self { exact, patterns, prefixes, calls, alternatives }
    }

    /// The alternative that the request takes.
    pub(super) fn find(&self, ask: &Ask<'_>) -> Option<&Matched> {
        let path = ask.head().path;
        let first = |places: &Places| self.first(places, ask);
        let place = self
            .exact
            .get(path)
            .and_then(first)
            .or_else(|| self.patterns.least(path, first))
            .or_else(|| self.prefixes.longest(path, first))
            .or_else(|| self.calls.least(path, first))?;
        Some(&self.alternatives[place])
    }

    /// The first of these that matches in everything but the path, which is known to.
    fn first(&self, places: &Places, ask: &Ask<'_>) -> Option<usize> {
        places.iter().copied().find(|place| {
            let alternative = &self.alternatives[*place];
            ask.answers(&alternative.rule.matches[alternative.alternative])
        })
    }
}

/// Every alternative of every rule, in order of precedence.
fn sorted(routes: &[Arc<Route>]) -> Vec<Matched> {
    let mut keyed = Vec::new();
    for route in routes {
        for rule in &route.rules {
            for (alternative, one) in rule.matches.iter().enumerate() {
                let prefix = match &one.path {
                    PathMatch::Prefix(prefix) => Some(prefix.trim_end_matches('/').into()),
                    PathMatch::Exact(_) | PathMatch::Regex(_) | PathMatch::Grpc { .. } => None,
                };
                let matched = Matched { route: route.name.clone(), rule: rule.clone(), alternative, prefix };
                keyed.push((Precedence::new(route, rule, alternative), matched));
            }
        }
    }
    keyed.sort_by(|(a, _), (b, _)| a.cmp(b));
    keyed.into_iter().map(|(_, matched)| matched).collect()
}
