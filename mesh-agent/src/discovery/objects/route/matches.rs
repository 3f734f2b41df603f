//! What a request must be like, and the texts that go into headers and paths.

use std::net::Ipv4Addr;
use std::sync::Arc;

use ::http::{HeaderName, Method};
use gateway_api::httproutes::{
    HttpRouteRulesMatchesHeaders, HttpRouteRulesMatchesHeadersType, HttpRouteRulesMatchesPath,
    HttpRouteRulesMatchesPathType, HttpRouteRulesMatchesQueryParams, HttpRouteRulesMatchesQueryParamsType,
};
use regex::{Regex, RegexBuilder};

use super::{Fault, FieldPath, at_most};
use crate::model::{HeaderMatch, PathMatch, QueryMatch, RequestPath, StringMatch};

/// Most headers or query parameters of one match, and most changes of one kind in a header modifier.
pub(super) const ENTRIES_MAX: usize = 16;
/// Longest name of a header or query parameter.
const NAME_BYTES_MAX: usize = 256;
/// Longest value of a header.
pub(super) const HEADER_VALUE_BYTES_MAX: usize = 4096;
/// Longest path, and longest value of a query parameter.
const PATH_BYTES_MAX: usize = 1024;
/// Largest compiled regular expression. Matching is linear in the text whatever the expression, but a large one takes
/// memory for each route.
const REGEX_BYTES_MAX: usize = 256 * 1024;

/// A rule that does not name a path matches every one.
pub(super) fn path(
    written: Option<&HttpRouteRulesMatchesPath>,
    field: &FieldPath,
) -> Result<PathMatch, Fault> {
    let value = written.and_then(|path| path.value.as_deref()).unwrap_or("/");
    let value_field = || field.key("value");
    longest(value, PATH_BYTES_MAX, value_field)?;
    match written.and_then(|path| path.r#type.as_ref()) {
        Some(HttpRouteRulesMatchesPathType::RegularExpression) => {
            regex(value, value_field).map(PathMatch::Regex)
        }
        Some(HttpRouteRulesMatchesPathType::Exact) => Ok(PathMatch::Exact(plain_path(value, value_field)?)),
        None | Some(HttpRouteRulesMatchesPathType::PathPrefix) => {
            let path = plain_path(value, value_field)?;
            // Whole segments are compared, so a slash at the end says nothing.
            Ok(PathMatch::Prefix(path.strip_suffix('/').unwrap_or(&path).into()))
        }
    }
}

/// A path in the normal form that requests are brought into. Parts that a server may take for another path are refused, as
/// the CRD does.
fn plain_path(text: &str, field: impl Fn() -> FieldPath) -> Result<Arc<str>, Fault> {
    let refuse = |why: &str| Err(Fault::at(field(), format!("{text:?} cannot be a path: {why}")));
    if !text.starts_with('/') {
        return refuse("it must begin with '/'");
    }
    let lower = text.to_ascii_lowercase();
    if let Some(part) = ["//", "/./", "/../", "%2f", "#"].iter().find(|part| lower.contains(**part)) {
        return refuse(&format!("it must not contain {part:?}"));
    }
    if let Some(part) = ["/.", "/.."].iter().find(|part| text.ends_with(**part)) {
        return refuse(&format!("it must not end with {part:?}"));
    }
    if !is_path_text(text) {
        return refuse("write characters other than a-z, A-Z, 0-9 and -._~!$&'()*+,;=:@/ as %XX");
    }
    match RequestPath::parse(text) {
        Ok(path) => Ok(path.as_str().into()),
        Err(fault) => refuse(&fault.to_string()),
    }
}

/// Only characters that a path can have (RFC 3986 section 3.3), and whole escapes.
pub(super) fn is_path_text(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@/".contains(&byte);
    let mut parts = text.split('%');
    let first = parts.next().unwrap_or_default();
    first.bytes().all(allowed)
        && parts.all(|part| {
            let (escape, rest) = part.as_bytes().split_at(part.len().min(2));
            escape.len() == 2
                && escape.iter().all(u8::is_ascii_hexdigit)
                && rest.iter().all(|byte| allowed(*byte))
        })
}

pub(super) fn method(name: &str, field: impl FnOnce() -> FieldPath) -> Result<Method, Fault> {
    Method::from_bytes(name.as_bytes())
        .map_err(|_no_token| Fault::at(field(), format!("{name:?} is not a method")))
}

/// Of several entries with one name the first counts, as Gateway API says.
pub(super) fn headers(
    written: &[HttpRouteRulesMatchesHeaders],
    field: &FieldPath,
) -> Result<Vec<HeaderMatch>, Fault> {
    at_most(written.len(), ENTRIES_MAX, field)?;
    let mut found: Vec<HeaderMatch> = Vec::new();
    for (index, header) in written.iter().enumerate() {
        let field = field.index(index);
        let name = header_name(&header.name, || field.key("name"))?;
        let is_regex = header.r#type == Some(HttpRouteRulesMatchesHeadersType::RegularExpression);
        longest(&header.value, HEADER_VALUE_BYTES_MAX, || field.key("value"))?;
        let value = text_match(&header.value, is_regex, || field.key("value"))?;
        if found.iter().all(|other| other.name != name) {
            found.push(HeaderMatch { name, value });
        }
    }
    Ok(found)
}

/// Of several entries with one name the first counts, as Gateway API says.
pub(super) fn query(
    written: &[HttpRouteRulesMatchesQueryParams],
    field: &FieldPath,
) -> Result<Vec<QueryMatch>, Fault> {
    at_most(written.len(), ENTRIES_MAX, field)?;
    let mut found: Vec<QueryMatch> = Vec::new();
    for (index, parameter) in written.iter().enumerate() {
        let field = field.index(index);
        // The CRD allows the characters of a header's name here.
        header_name(&parameter.name, || field.key("name"))?;
        let is_regex = parameter.r#type == Some(HttpRouteRulesMatchesQueryParamsType::RegularExpression);
        longest(&parameter.value, PATH_BYTES_MAX, || field.key("value"))?;
        let value = text_match(&parameter.value, is_regex, || field.key("value"))?;
        if found.iter().all(|other| *other.name != *parameter.name) {
            found.push(QueryMatch { name: parameter.name.as_str().into(), value });
        }
    }
    Ok(found)
}

fn text_match(text: &str, is_regex: bool, field: impl FnOnce() -> FieldPath) -> Result<StringMatch, Fault> {
    if text.is_empty() {
        return Err(Fault::at(field(), "is empty"));
    }
    if is_regex { regex(text, field).map(StringMatch::Regex) } else { Ok(StringMatch::Exact(text.into())) }
}

/// An expression that must match the whole text.
pub(super) fn regex(pattern: &str, field: impl FnOnce() -> FieldPath) -> Result<Regex, Fault> {
    let build = |pattern: &str| RegexBuilder::new(pattern).size_limit(REGEX_BYTES_MAX).build();
    // By itself first, or `a)|(b` would be taken for two expressions with one anchor each.
    build(pattern).and_then(|_| build(&format!(r"\A(?:{pattern})\z"))).map_err(|error| {
        // The parser draws the expression over several lines and says what is wrong on the last.
        let said = error.to_string();
        let last = said.lines().last().unwrap_or_default();
        let why = last.strip_prefix("error: ").unwrap_or(last);
        Fault::at(field(), format!("{pattern:?} is not a regular expression: {why}"))
    })
}

pub(super) fn header_name(text: &str, field: impl FnOnce() -> FieldPath) -> Result<HeaderName, Fault> {
    HeaderName::from_bytes(text.as_bytes()).ok().filter(|_| text.len() <= NAME_BYTES_MAX).ok_or_else(|| {
        Fault::at(field(), format!("{text:?} is not a name of up to {NAME_BYTES_MAX} token characters"))
    })
}

/// A host name without wildcard; addresses are none.
pub(super) fn hostname(text: &str, field: impl FnOnce() -> FieldPath) -> Result<(), Fault> {
    let well_formed = super::super::check_name(text, 253).is_ok() && text.split('.').all(is_label);
    if well_formed && text.parse::<Ipv4Addr>().is_err() {
        return Ok(());
    }
    Err(Fault::at(field(), format!("{text:?} is not a host name: write lower-case labels with dots between")))
}

fn is_label(label: &str) -> bool {
    !label.is_empty() && !label.starts_with('-') && !label.ends_with('-')
}

pub(super) fn longest(text: &str, max: usize, field: impl FnOnce() -> FieldPath) -> Result<(), Fault> {
    if text.len() <= max { Ok(()) } else { Err(Fault::at(field(), format!("longer than {max} bytes"))) }
}
