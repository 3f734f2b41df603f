//! Does the `http` part of a rule match a request, read in one way?
//!
//! Servers are more lenient than rules. Where that leaves room, an ALLOW takes the narrow view and a DENY the wide one
//! ([`Stance`]), so that the doubt never opens anything.

use http::{HeaderMap, HeaderName, HeaderValue, Method, header};

use crate::model::authorization::PathTemplate;
use crate::model::path::Readings;
use crate::model::{GrpcMethod, HeaderCondition, HeaderPattern, HttpMatch, PathPattern};

use super::Request;

/// To which side a match errs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stance {
    /// ALLOW and AUDIT: what is not surely meant does not match.
    Narrow,
    /// DENY: what could be meant matches.
    Wide,
}

/// What is judged: with which requests.
#[derive(Clone, Debug)]
pub(super) enum Asked<'a> {
    /// A connection whose bytes are not HTTP, or not known to be.
    Connection,
    /// Whether any request at all could pass.
    AnyRequest,
    /// This request, in all its readings.
    Request(&'a Request<'a>, Readings<'a>),
}

/// One reading of what is judged.
#[derive(Clone, Copy, Debug)]
pub(super) enum View<'a> {
    Connection,
    AnyRequest,
    /// `None`: the path is not known.
    Request(&'a Request<'a>, Option<&'a str>),
}

impl<'a> Asked<'a> {
    pub(super) fn of(request: Option<&'a Request<'a>>) -> Self {
        request.map_or(Self::Connection, |request| Self::Request(request, request.path.readings()))
    }

    /// Every reading; the first is the request as it will be forwarded. Never empty.
    pub(super) fn views(&self) -> impl Iterator<Item = View<'_>> {
        let (first, readings) = match self {
            Self::Connection => (Some(View::Connection), None),
            Self::AnyRequest => (Some(View::AnyRequest), None),
            Self::Request(request, Readings::Unknown) => (Some(View::Request(request, None)), None),
            Self::Request(request, readings) => (None, Some((*request, readings))),
        };
        let paths = readings.into_iter().flat_map(|(request, readings)| {
            readings.iter().map(move |path| View::Request(request, Some(path)))
        });
        first.into_iter().chain(paths)
    }
}

/// A rule without `http` speaks about connections, and so about every request on them.
pub(super) fn http_matches(alternatives: Option<&[HttpMatch]>, view: View<'_>, stance: Stance) -> bool {
    let Some(alternatives) = alternatives else { return true };
    alternatives.iter().any(|alternative| match (view, stance) {
        (View::Connection, Stance::Narrow) => false,
        (View::Connection, Stance::Wide) | (View::AnyRequest, Stance::Narrow) => alternative.is_satisfiable(),
        // Some request may be outside of what is denied, unless nothing is.
        (View::AnyRequest, Stance::Wide) => alternative.is_any(),
        (View::Request(request, path), _) => request_matches(alternative, request, path, stance),
    })
}

fn request_matches(wanted: &HttpMatch, request: &Request<'_>, path: Option<&str>, stance: Stance) -> bool {
    method_matches(wanted, request.method)
        && path_matches(wanted, path, stance)
        && headers_match(wanted, request, stance)
        && grpc_matches(wanted, request, path, stance)
}

pub(super) fn method_matches(wanted: &HttpMatch, method: &Method) -> bool {
    wanted.methods.as_ref().is_none_or(|methods| methods.contains(method))
}

pub(super) fn path_matches(wanted: &HttpMatch, path: Option<&str>, stance: Stance) -> bool {
    wanted.paths.as_ref().is_none_or(|patterns| match path {
        Some(path) => patterns.iter().any(|pattern| pattern_matches(pattern, path, stance)),
        None => stance == Stance::Wide && !patterns.is_empty(),
    })
}

pub(super) fn headers_match(wanted: &HttpMatch, request: &Request<'_>, stance: Stance) -> bool {
    wanted.headers.as_ref().is_none_or(|headers| {
        !headers.is_empty() && headers.iter().all(|header| header_matches(header, request, stance))
    })
}

pub(super) fn grpc_matches(
    wanted: &HttpMatch,
    request: &Request<'_>,
    path: Option<&str>,
    stance: Stance,
) -> bool {
    wanted
        .grpc_methods
        .as_ref()
        .is_none_or(|methods| methods.iter().any(|method| call_matches(method, request, path, stance)))
}

/// Servers that ignore case, or a slash at the end, serve the same there; a DENY holds for them too.
fn pattern_matches(pattern: &PathPattern, path: &str, stance: Stance) -> bool {
    let path = if stance == Stance::Wide { without_last_slash(path) } else { path };
    match (pattern, stance) {
        (PathPattern::Exact(exact), Stance::Narrow) => **exact == *path,
        (PathPattern::Exact(exact), Stance::Wide) => without_last_slash(exact).eq_ignore_ascii_case(path),
        (PathPattern::Prefix(prefix), _) => is_below(prefix, path, stance),
        (PathPattern::Template(template), _) => template_matches(template, path, stance),
    }
}

fn without_last_slash(path: &str) -> &str {
    match path.strip_suffix('/') {
        Some(shorter) if !shorter.is_empty() => shorter,
        _ => path,
    }
}

fn is_same(wanted: &str, text: &str, stance: Stance) -> bool {
    match stance {
        Stance::Narrow => wanted == text,
        Stance::Wide => wanted.eq_ignore_ascii_case(text),
    }
}

fn is_below(prefix: &str, path: &str, stance: Stance) -> bool {
    path.split_at_checked(prefix.len()).is_some_and(|(start, rest)| {
        is_same(prefix, start, stance) && (prefix.is_empty() || rest.is_empty() || rest.starts_with('/'))
    })
}

fn template_matches(template: &PathTemplate, path: &str, stance: Stance) -> bool {
    let Some(path) = path.strip_prefix('/') else { return false };
    let mut wanted = template.segments.as_slice();
    if let (Stance::Wide, [before @ .., Some(last)]) = (stance, wanted)
        && last.is_empty()
        && !before.is_empty()
    {
        wanted = before;
    }
    let mut segments = path.split('/');
    let all_match = wanted.iter().all(|wanted| match (wanted, segments.next()) {
        (_, None) => false,
        (None, Some(segment)) => !segment.is_empty(),
        (Some(wanted), Some(segment)) => is_same(wanted, segment, stance),
    });
    all_match && (template.open || segments.next().is_none())
}

fn header_matches(pattern: &HeaderPattern, request: &Request<'_>, stance: Stance) -> bool {
    if pattern.name == header::HOST {
        return request.host.is_some_and(|host| host_matches(&pattern.value, host));
    }
    let mut lines = lines(request.headers, &pattern.name);
    match (&pattern.value, stance) {
        (HeaderCondition::Present, _) => lines.next().is_some(),
        // Of several lines servers take the first, the last or all.
        (condition, Stance::Narrow) => {
            lines.next().is_some_and(|first| value_matches(condition, first))
                && lines.all(|line| value_matches(condition, line))
        }
        (condition, Stance::Wide) => {
            lines.any(|line| value_matches(condition, line))
                || elements(request.headers, &pattern.name).any(|element| value_matches(condition, element))
                || is_joined(condition, request.headers, &pattern.name)
        }
    }
}

fn lines<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a [u8]> {
    headers.get_all(name).into_iter().map(HeaderValue::as_bytes)
}

/// The elements of a list, over all lines (RFC 9110 section 5.6.1).
fn elements<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a [u8]> {
    lines(headers, name).flat_map(|line| line.split(|byte| *byte == b',')).map(<[u8]>::trim_ascii)
}

/// Several lines are one value, joined by commas (RFC 9110 section 5.3).
fn is_joined(condition: &HeaderCondition, headers: &HeaderMap, name: &HeaderName) -> bool {
    match condition {
        HeaderCondition::Exact(exact) => {
            exact.split(',').map(|element| element.as_bytes().trim_ascii()).eq(elements(headers, name))
        }
        HeaderCondition::Prefix(_) | HeaderCondition::Present => false,
    }
}

fn value_matches(condition: &HeaderCondition, value: &[u8]) -> bool {
    match condition {
        HeaderCondition::Exact(exact) => exact.as_bytes() == value,
        HeaderCondition::Prefix(prefix) => value.starts_with(prefix.as_bytes()),
        HeaderCondition::Present => true,
    }
}

/// Hosts are compared without regard to case (RFC 3986 section 3.2.2) and to a dot at the end, and, where the pattern
/// has no port, without the port.
fn host_matches(condition: &HeaderCondition, host: &str) -> bool {
    let bare = without_port(host);
    [host, bare, bare.strip_suffix('.').unwrap_or(bare)].into_iter().any(|host| match condition {
        HeaderCondition::Exact(exact) => exact.eq_ignore_ascii_case(host),
        HeaderCondition::Prefix(prefix) => {
            host.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
        }
        HeaderCondition::Present => true,
    })
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port))
            if port.bytes().all(|byte| byte.is_ascii_digit())
                && (!name.contains(':') || name.ends_with(']')) =>
        {
            name
        }
        _ => host,
    }
}

/// A server may take a call that is not announced as one, so a DENY that names the service holds for every request to
/// its path. One that names none would then hold for all of HTTP, and wants to see a content type of gRPC's family.
fn call_matches(wanted: &GrpcMethod, request: &Request<'_>, path: Option<&str>, stance: Stance) -> bool {
    let Some(path) = path else { return stance == Stance::Wide };
    let path = if stance == Stance::Wide { without_last_slash(path) } else { path };
    let Some((service, method)) = path.strip_prefix('/').and_then(|path| path.split_once('/')) else {
        return false;
    };
    let same =
        |wanted: &Option<_>, part| wanted.as_deref().is_none_or(|wanted| is_same(wanted, part, stance));
    let is_path = !service.is_empty()
        && !method.is_empty()
        && !method.contains('/')
        && same(&wanted.service, service)
        && same(&wanted.method, method);
    is_path && ((stance == Stance::Wide && wanted.service.is_some()) || is_announced(request, stance))
}

fn is_announced(request: &Request<'_>, stance: Stance) -> bool {
    const TYPE: &[u8] = b"application/grpc";
    let starts = |line: &[u8]| line.get(..TYPE.len()).is_some_and(|start| start.eq_ignore_ascii_case(TYPE));
    let is_grpc =
        |line: &[u8]| starts(line) && matches!(line.get(TYPE.len()), None | Some(b'+' | b';' | b' '));
    let mut types = lines(request.headers, &header::CONTENT_TYPE);
    match stance {
        Stance::Wide => types.any(starts),
        Stance::Narrow => {
            *request.method == Method::POST && types.next().is_some_and(is_grpc) && types.next().is_none()
        }
    }
}
