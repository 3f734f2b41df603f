//! A rule of an HTTPRoute.

use std::time::Duration;

use gateway_api::httproutes::{HttpRouteRules, HttpRouteRulesMatches, HttpRouteRulesTimeouts};
use serde_json::Value;

use super::filters::Place;
use super::{Fault, FieldPath, Flaw, Key, at_most, backends, filters, matches, rule_field, strict};
use crate::discovery::duration;
use crate::model::{PathMatch, RequestMatch, RouteRule, RouteTimeouts};

/// Most matches of one rule.
const MATCHES_MAX: usize = 64;

pub(super) fn accept(key: &Key, index: usize, rule: &Value) -> Result<RouteRule, Flaw> {
    let field = rule_field(index);
    let rule: HttpRouteRules = strict::read(rule, &field)?;
    let matches = all_matches(rule.matches.as_deref().unwrap_or_default(), &field.key("matches"))?;
    let refs = rule.backend_refs.unwrap_or_default();
    let place = Place::Rule {
        one_prefix: matches!(matches.as_slice(), [RequestMatch { path: PathMatch::Prefix(_), .. }]),
        has_backends: !refs.is_empty(),
    };
    let filters = filters::accept(key, &rule.filters.unwrap_or_default(), place, &field.key("filters"))?;
    Ok(RouteRule {
        index,
        name: rule.name.map(Into::into),
        matches,
        filters,
        backends: backends::accept(key, &refs, &field.key("backendRefs"))?,
        timeouts: timeouts(rule.timeouts.as_ref(), &field.key("timeouts"))?,
    })
}

/// A rule without matches matches every request.
fn all_matches(written: &[HttpRouteRulesMatches], field: &FieldPath) -> Result<Vec<RequestMatch>, Fault> {
    at_most(written.len(), MATCHES_MAX, field)?;
    if written.is_empty() {
        return Ok(vec![one_match(&HttpRouteRulesMatches::default(), field)?]);
    }
    written.iter().enumerate().map(|(index, one)| one_match(one, &field.index(index))).collect()
}

fn one_match(written: &HttpRouteRulesMatches, field: &FieldPath) -> Result<RequestMatch, Fault> {
    Ok(RequestMatch {
        path: matches::path(written.path.as_ref(), &field.key("path"))?,
        method: written
            .method
            .as_ref()
            .map(|method| strict::recast(method, &field.key("method")))
            .transpose()?
            .map(|name: String| matches::method(&name, || field.key("method")))
            .transpose()?,
        headers: matches::headers(written.headers.as_deref().unwrap_or_default(), &field.key("headers"))?,
        query: matches::query(
            written.query_params.as_deref().unwrap_or_default(),
            &field.key("queryParams"),
        )?,
    })
}

fn timeouts(written: Option<&HttpRouteRulesTimeouts>, field: &FieldPath) -> Result<RouteTimeouts, Fault> {
    let Some(written) = written else { return Ok(RouteTimeouts::default()) };
    let request = timeout(written.request.as_deref(), || field.key("request"))?;
    let backend_request = timeout(written.backend_request.as_deref(), || field.key("backendRequest"))?;
    match (request, backend_request) {
        (Some(request), Some(each)) if each > request => Err(Fault::at(
            field.key("backendRequest"),
            "is longer than the timeout of the whole request, of which it is a part",
        )),
        _ => Ok(RouteTimeouts { request, backend_request }),
    }
}

/// Zero stands for no limit.
fn timeout(text: Option<&str>, field: impl FnOnce() -> FieldPath) -> Result<Option<Duration>, Fault> {
    let Some(text) = text else { return Ok(None) };
    match duration::parse(text) {
        Some(limit) => Ok((!limit.is_zero()).then_some(limit)),
        None => Err(Fault::at(
            field(),
            format!("{text:?} is not a duration: write for example 500ms, 10s or 1h30m; 0s for no limit"),
        )),
    }
}
