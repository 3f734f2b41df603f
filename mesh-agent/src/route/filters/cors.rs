//! `CORS`: which scripts of other origins may read what (Fetch standard, section 3.2; Gateway API `HTTPCORSFilter`).
//!
//! The filter speaks for the service: what a backend says about these headers itself is replaced. Browsers do the
//! refusing, so an origin that is not allowed gets an answer without permission, not an error.

use std::time::Duration;

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE,
    ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, HeaderName, ORIGIN, VARY,
};
use http::{HeaderMap, HeaderValue, Method};

use crate::model::Cors;
use crate::route::host_without_port;

/// How long a browser may keep a preflight answer when the filter does not say (Gateway API `maxAge`).
const MAX_AGE_DEFAULT: Duration = Duration::from_secs(5);

/// The headers of the answer to a preflight request, which has status 204 and no body and never reaches a backend. `None`:
/// this request is no preflight.
pub fn preflight(cors: &Cors, method: &Method, headers: &HeaderMap) -> Option<HeaderMap> {
    let origin = headers.get(ORIGIN).filter(|_| *method == Method::OPTIONS)?;
    let asked_method = headers.get(ACCESS_CONTROL_REQUEST_METHOD)?;
    let mut answer = HeaderMap::new();
    for name in [ORIGIN, ACCESS_CONTROL_REQUEST_METHOD, ACCESS_CONTROL_REQUEST_HEADERS] {
        answer.append(VARY, name.into());
    }
    if !permit(cors, origin, &mut answer) {
        return Some(answer);
    }
    let asked_headers = headers.get(ACCESS_CONTROL_REQUEST_HEADERS);
    let methods = list_or_asked(&cors.allow_methods, Some(asked_method));
    let allowed = list_or_asked(&cors.allow_headers, asked_headers);
    let max_age = cors.max_age.unwrap_or(MAX_AGE_DEFAULT).as_secs();
    let entries = [
        (ACCESS_CONTROL_ALLOW_METHODS, methods),
        (ACCESS_CONTROL_ALLOW_HEADERS, allowed),
        (ACCESS_CONTROL_MAX_AGE, Some(max_age.into())),
    ];
    answer.extend(entries.into_iter().filter_map(|(name, value)| Some((name, value?))));
    Some(answer)
}

/// Says in a response who may read it.
pub fn actual(cors: &Cors, request_headers: &HeaderMap, response: &mut HeaderMap) {
    for name in [ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_EXPOSE_HEADERS]
    {
        response.remove(name);
    }
    vary_by_origin(response);
    let Some(origin) = request_headers.get(ORIGIN) else {
        return;
    };
    if permit(cors, origin, response)
        && let Some(exposed) = exposed(cors, response)
    {
        response.insert(ACCESS_CONTROL_EXPOSE_HEADERS, exposed);
    }
}

/// Names the origin, if it is allowed. Always the one that asked and never `*`, which browsers refuse where credentials
/// are allowed.
fn permit(cors: &Cors, origin: &HeaderValue, answer: &mut HeaderMap) -> bool {
    let text = origin.to_str().unwrap_or_default();
    if !cors.allow_origins.iter().any(|pattern| is_allowed(pattern, text)) {
        return false;
    }
    answer.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
    if cors.allow_credentials {
        answer.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
    }
    true
}

/// The list as written; `*` stands for whatever was asked for, since browsers do not take a literal `*` with credentials,
/// nor for `authorization`.
fn list_or_asked(list: &[impl AsRef<str>], asked: Option<&HeaderValue>) -> Option<HeaderValue> {
    if has_wildcard(list) { asked.cloned() } else { joined(list.iter().map(AsRef::as_ref)) }
}

/// The response headers that scripts may read. With credentials a literal `*` means nothing to browsers, so there it
/// stands for the names that the response has.
fn exposed(cors: &Cors, response: &HeaderMap) -> Option<HeaderValue> {
    match has_wildcard(&cors.expose_headers) {
        true if cors.allow_credentials => joined(response.keys().map(HeaderName::as_str)),
        true => Some(HeaderValue::from_static("*")),
        false => joined(cors.expose_headers.iter().map(AsRef::as_ref)),
    }
}

fn has_wildcard(list: &[impl AsRef<str>]) -> bool {
    list.iter().any(|entry| entry.as_ref() == "*")
}

/// `None` for an empty list.
fn joined<'a>(names: impl Iterator<Item = &'a str>) -> Option<HeaderValue> {
    let text = names.collect::<Vec<_>>().join(", ");
    HeaderValue::try_from(text).ok().filter(|value| !value.is_empty())
}

/// Keeps caches from giving one origin the answer for another.
fn vary_by_origin(response: &mut HeaderMap) {
    let lines = response.get_all(VARY).iter().filter_map(|line| line.to_str().ok());
    let names = lines.flat_map(|line| line.split(',')).map(str::trim);
    let varies = names.into_iter().any(|name| name == "*" || name.eq_ignore_ascii_case("origin"));
    if !varies {
        response.append(VARY, ORIGIN.into());
    }
}

/// Whether a pattern covers an origin: the same scheme and port, and the same host or, after `*.`, one below it.
fn is_allowed(pattern: &str, origin: &str) -> bool {
    if pattern == "*" {
        return !origin.is_empty();
    }
    let (Some(pattern), Some(origin)) = (Origin::parse(pattern), Origin::parse(origin)) else {
        return false;
    };
    pattern.scheme == origin.scheme
        && pattern.port == origin.port
        && is_host_allowed(pattern.host, origin.host)
}

fn is_host_allowed(pattern: &str, host: &str) -> bool {
    match pattern.strip_prefix('*') {
        Some(suffix) => {
            let split = host.len().checked_sub(suffix.len()).filter(|at| *at > 0);
            split.and_then(|at| host.get(at..)).is_some_and(|end| end.eq_ignore_ascii_case(suffix))
        }
        None => pattern.eq_ignore_ascii_case(host),
    }
}

/// `scheme://host[:port]`.
struct Origin<'a> {
    scheme: &'a str,
    host: &'a str,
    /// With the scheme's own filled in.
    port: Option<&'a str>,
}

impl<'a> Origin<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let (scheme, authority) = text.split_once("://")?;
        let host = host_without_port(authority);
        let port = authority[host.len()..].strip_prefix(':');
        let own = || match scheme {
            "http" => Some("80"),
            "https" => Some("443"),
            _ => None,
        };
        Some(Self { scheme, host, port: port.or_else(own) })
    }
}
