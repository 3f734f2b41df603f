//! A rule of a GRPCRoute.

use gateway_api::grpcroutes::{
    GrpcRouteRules, GrpcRouteRulesMatches, GrpcRouteRulesMatchesMethod, GrpcRouteRulesMatchesMethodType,
};
use serde_json::Value;

use super::filters::Place;
use super::{Fault, FieldPath, Flaw, Key, at_most, backends, filters, matches, rule_field, strict};
use crate::model::{PathMatch, RequestMatch, RouteRule, RouteTimeouts, StringMatch};

/// Most matches of one rule.
const MATCHES_MAX: usize = 64;
/// Longest service or method.
const NAME_BYTES_MAX: usize = 1024;

pub(super) fn accept(key: &Key, index: usize, rule: &Value) -> Result<RouteRule, Flaw> {
    let field = rule_field(index);
    let rule: GrpcRouteRules = strict::read(rule, &field)?;
    let refs = rule.backend_refs.unwrap_or_default();
    let place = Place::Rule { one_prefix: false, has_backends: !refs.is_empty() };
    let filters_field = field.key("filters");
    let written: Vec<_> = strict::recast(&rule.filters.unwrap_or_default(), &filters_field)?;
    let filters = filters::accept(key, &written, place, &filters_field)?;
    let refs_field = field.key("backendRefs");
    let refs: Vec<_> = strict::recast(&refs, &refs_field)?;
    Ok(RouteRule {
        index,
        name: rule.name.map(Into::into),
        matches: all_matches(rule.matches.as_deref().unwrap_or_default(), &field.key("matches"))?,
        filters,
        backends: backends::accept(key, &refs, &refs_field)?,
        timeouts: RouteTimeouts::default(),
    })
}

/// A rule without matches matches every call.
fn all_matches(written: &[GrpcRouteRulesMatches], field: &FieldPath) -> Result<Vec<RequestMatch>, Fault> {
    at_most(written.len(), MATCHES_MAX, field)?;
    if written.is_empty() {
        return Ok(vec![one_match(&GrpcRouteRulesMatches::default(), field)?]);
    }
    written.iter().enumerate().map(|(index, one)| one_match(one, &field.index(index))).collect()
}

fn one_match(written: &GrpcRouteRulesMatches, field: &FieldPath) -> Result<RequestMatch, Fault> {
    let headers_field = field.key("headers");
    let headers: Vec<_> = strict::recast(&written.headers.clone().unwrap_or_default(), &headers_field)?;
    Ok(RequestMatch {
        path: call(written.method.as_ref(), &field.key("method"))?,
        method: None,
        headers: matches::headers(&headers, &headers_field)?,
        query: Vec::new(),
    })
}

fn call(written: Option<&GrpcRouteRulesMatchesMethod>, field: &FieldPath) -> Result<PathMatch, Fault> {
    let Some(written) = written else { return Ok(PathMatch::Grpc { service: None, method: None }) };
    let part = |text: Option<&str>, name: &str, is_one: fn(&str) -> bool| match text {
        None | Some("") => Ok(None),
        Some(text) => {
            let field = field.key(name);
            if text.len() > NAME_BYTES_MAX {
                return Err(Fault::at(field, format!("longer than {NAME_BYTES_MAX} bytes")));
            }
            match written.r#type {
                Some(GrpcRouteRulesMatchesMethodType::RegularExpression) => {
                    matches::regex(text, || field).map(StringMatch::Regex)
                }
                None | Some(GrpcRouteRulesMatchesMethodType::Exact) if is_one(text) => {
                    Ok(StringMatch::Exact(text.into()))
                }
                None | Some(GrpcRouteRulesMatchesMethodType::Exact) => {
                    Err(Fault::at(field, format!("{text:?} is not a {name} of gRPC")))
                }
            }
            .map(Some)
        }
    };
    let service = part(written.service.as_deref(), "service", is_service)?;
    let method = part(written.method.as_deref(), "method", is_identifier)?;
    if service.is_none() && method.is_none() {
        return Err(Fault::at(field.clone(), "names neither a service nor a method"));
    }
    Ok(PathMatch::Grpc { service, method })
}

/// `package.Service`.
fn is_service(text: &str) -> bool {
    text.split('.').all(is_identifier)
}

fn is_identifier(text: &str) -> bool {
    let mut bytes = text.bytes();
    bytes.next().is_some_and(|first| first.is_ascii_alphabetic() || first == b'_')
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}
