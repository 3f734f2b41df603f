//! Filters of rules and of backends. Gateway API's types for the two have one shape, so what is here reads that of rules.

use ::http::StatusCode;
use ::http::header::{
    CONNECTION, CONTENT_LENGTH, HOST, HeaderName, HeaderValue, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use gateway_api::httproutes::{
    HttpRouteRulesFilters, HttpRouteRulesFiltersRequestHeaderModifier, HttpRouteRulesFiltersRequestMirror,
    HttpRouteRulesFiltersRequestRedirect, HttpRouteRulesFiltersRequestRedirectPath,
    HttpRouteRulesFiltersRequestRedirectPathType, HttpRouteRulesFiltersRequestRedirectScheme,
    HttpRouteRulesFiltersType, HttpRouteRulesFiltersUrlRewrite,
};

use super::super::port;
use super::matches::{ENTRIES_MAX, HEADER_VALUE_BYTES_MAX, header_name, hostname, is_path_text, longest};
use super::{Fault, FieldPath, Flaw, Key, RefusedReason, at_most, backends, cors, strict};
use crate::model::{Filter, HeaderEdit, Mirror, PathEdit, Redirect, Rewrite};

/// Most filters of one rule or backend.
const FILTERS_MAX: usize = 16;
/// Longest new path.
const PATH_BYTES_MAX: usize = 1024;

/// Headers that say where a message ends or belong to one connection. A route that changed them would let one request
/// be read as two (RFC 9112 section 11.2).
const FRAMING: [HeaderName; 6] = [CONNECTION, CONTENT_LENGTH, TE, TRAILER, TRANSFER_ENCODING, UPGRADE];

/// What filters stand on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// A rule.
    Rule {
        /// It has one match, by prefix, so that there is a prefix to replace.
        one_prefix: bool,
        /// It has backends.
        has_backends: bool,
    },
    /// A backend.
    Backend,
}

pub(super) fn accept(
    key: &Key,
    written: &[HttpRouteRulesFilters],
    place: Place,
    field: &FieldPath,
) -> Result<Vec<Filter>, Flaw> {
    at_most(written.len(), FILTERS_MAX, field)?;
    let mut filters: Vec<Filter> = Vec::new();
    for (index, one) in written.iter().enumerate() {
        let field = field.index(index);
        let filter = filter(key, one, place, &field)?;
        compatible(&filters, &filter, place, &field)?;
        filters.push(filter);
    }
    Ok(filters)
}

/// One redirect or rewrite and one of each other kind, but any number of mirrors.
fn compatible(before: &[Filter], filter: &Filter, place: Place, field: &FieldPath) -> Result<(), Flaw> {
    let has = |kind: fn(&Filter) -> bool| before.iter().any(kind);
    let message = match filter {
        Filter::Mirror(_) => None,
        _ if before.iter().any(|other| std::mem::discriminant(other) == std::mem::discriminant(filter)) => {
            Some("is the second of its type: only RequestMirror can be repeated")
        }
        Filter::Redirect(_) if has(|other| matches!(other, Filter::Rewrite(_))) => {
            Some("RequestRedirect and URLRewrite exclude each other")
        }
        Filter::Rewrite(_) if has(|other| matches!(other, Filter::Redirect(_))) => {
            Some("RequestRedirect and URLRewrite exclude each other")
        }
        Filter::Redirect(_) if matches!(place, Place::Rule { has_backends: true, .. }) => {
            Some("RequestRedirect answers by itself: the rule cannot have backendRefs too")
        }
        _ => None,
    };
    match message {
        Some(message) => {
            Err(Flaw { reason: RefusedReason::IncompatibleFilters, fault: Fault::at(field.clone(), message) })
        }
        None => Ok(()),
    }
}

fn filter(
    key: &Key,
    written: &HttpRouteRulesFilters,
    place: Place,
    field: &FieldPath,
) -> Result<Filter, Fault> {
    use HttpRouteRulesFiltersType as Type;
    one_body(written, field)?;
    let unsupported = |what: &str| Fault::at(field.key("type"), format!("{what} is not supported"));
    match written.r#type {
        Type::RequestHeaderModifier => {
            let field = field.key("requestHeaderModifier");
            header_edit(body(written.request_header_modifier.as_ref(), &field)?, &field)
                .map(Filter::RequestHeaders)
        }
        Type::ResponseHeaderModifier => {
            let field = field.key("responseHeaderModifier");
            let body = body(written.response_header_modifier.as_ref(), &field)?;
            header_edit(&strict::recast(body, &field)?, &field).map(Filter::ResponseHeaders)
        }
        Type::RequestMirror => {
            let field = field.key("requestMirror");
            mirror(key, body(written.request_mirror.as_ref(), &field)?, &field).map(Filter::Mirror)
        }
        Type::UrlRewrite => {
            let field = field.key("urlRewrite");
            rewrite(body(written.url_rewrite.as_ref(), &field)?, place, &field).map(Filter::Rewrite)
        }
        Type::RequestRedirect if place == Place::Backend => Err(unsupported("RequestRedirect on a backend")),
        Type::RequestRedirect => {
            let field = field.key("requestRedirect");
            redirect(body(written.request_redirect.as_ref(), &field)?, place, &field).map(Filter::Redirect)
        }
        Type::Cors if place == Place::Backend => Err(unsupported("CORS on a backend")),
        Type::Cors => {
            let field = field.key("cors");
            cors::accept(body(written.cors.as_ref(), &field)?, &field)
                .map(|cors| Filter::Cors(std::sync::Arc::new(cors)))
        }
        Type::ExtensionRef => Err(unsupported("ExtensionRef")),
    }
}

/// The part that belongs to the type.
fn body<'a, T>(written: Option<&'a T>, field: &FieldPath) -> Result<&'a T, Fault> {
    written.ok_or_else(|| Fault::at(field.clone(), "missing: the filter's type asks for it"))
}

/// Parts of other types say that the author means something else than the type does.
fn one_body(written: &HttpRouteRulesFilters, field: &FieldPath) -> Result<(), Fault> {
    use HttpRouteRulesFiltersType as Type;
    let kind = &written.r#type;
    let parts = [
        (written.request_header_modifier.is_some(), Type::RequestHeaderModifier, "requestHeaderModifier"),
        (written.response_header_modifier.is_some(), Type::ResponseHeaderModifier, "responseHeaderModifier"),
        (written.request_mirror.is_some(), Type::RequestMirror, "requestMirror"),
        (written.request_redirect.is_some(), Type::RequestRedirect, "requestRedirect"),
        (written.url_rewrite.is_some(), Type::UrlRewrite, "urlRewrite"),
        (written.extension_ref.is_some(), Type::ExtensionRef, "extensionRef"),
        (written.cors.is_some(), Type::Cors, "cors"),
    ];
    match parts.iter().find(|(present, owner, _)| *present && owner != kind) {
        Some((_, _, name)) => Err(Fault::at(field.key(name), "does not belong to a filter of this type")),
        None => Ok(()),
    }
}

fn header_edit(
    written: &HttpRouteRulesFiltersRequestHeaderModifier,
    field: &FieldPath,
) -> Result<HeaderEdit, Fault> {
    let set = written.set.iter().flatten().map(|entry| (entry.name.as_str(), entry.value.as_str()));
    let add = written.add.iter().flatten().map(|entry| (entry.name.as_str(), entry.value.as_str()));
    let remove_field = field.key("remove");
    let remove = written.remove.as_deref().unwrap_or_default();
    at_most(remove.len(), ENTRIES_MAX, &remove_field)?;
    let remove = remove.iter().enumerate().map(|(index, name)| editable(name, || remove_field.index(index)));
    Ok(HeaderEdit {
        set: changes(set, &field.key("set"))?,
        add: changes(add, &field.key("add"))?,
        remove: remove.collect::<Result<_, Fault>>()?,
    })
}

/// Of several entries with one name the first counts, as Gateway API says.
fn changes<'a>(
    written: impl Iterator<Item = (&'a str, &'a str)>,
    field: &FieldPath,
) -> Result<Vec<(HeaderName, HeaderValue)>, Fault> {
    let mut found: Vec<(HeaderName, HeaderValue)> = Vec::new();
    for (index, (name, value)) in written.enumerate() {
        let field = field.index(index);
        let name = editable(name, || field.key("name"))?;
        longest(value, HEADER_VALUE_BYTES_MAX, || field.key("value"))?;
        let value = HeaderValue::from_str(value).map_err(|_unprintable| {
            let message = format!("{value:?} is not a header's value: write visible ASCII and spaces");
            Fault::at(field.key("value"), message)
        })?;
        if found.iter().all(|(other, _)| *other != name) {
            found.push((name, value));
        }
    }
    at_most(found.len(), ENTRIES_MAX, field)?;
    Ok(found)
}

/// A header that routes may change.
fn editable(name: &str, field: impl Fn() -> FieldPath) -> Result<HeaderName, Fault> {
    let header = header_name(name, &field)?;
    let message = if header == HOST {
        "a route cannot change it here: use URLRewrite's hostname"
    } else if FRAMING.contains(&header) || matches!(header.as_str(), "keep-alive" | "proxy-connection") {
        "a route cannot change it: it belongs to the connection, not to the request"
    } else {
        return Ok(header);
    };
    Err(Fault::at(field(), format!("{name}: {message}")))
}

fn redirect(
    written: &HttpRouteRulesFiltersRequestRedirect,
    place: Place,
    field: &FieldPath,
) -> Result<Redirect, Fault> {
    let status = written.status_code.unwrap_or(302);
    let status = u16::try_from(status)
        .ok()
        .filter(|status| [301, 302, 303, 307, 308].contains(status))
        .and_then(|status| StatusCode::from_u16(status).ok())
        .ok_or_else(|| {
            let message = format!("{status} is not a redirection: use 301, 302, 303, 307 or 308");
            Fault::at(field.key("statusCode"), message)
        })?;
    if let Some(name) = &written.hostname {
        hostname(name, || field.key("hostname"))?;
    }
    let scheme = written.scheme.as_ref().map(|scheme| match scheme {
        HttpRouteRulesFiltersRequestRedirectScheme::Http => "http".into(),
        HttpRouteRulesFiltersRequestRedirectScheme::Https => "https".into(),
    });
    Ok(Redirect {
        scheme,
        hostname: written.hostname.as_deref().map(Into::into),
        path: path_edit(written.path.as_ref(), place, &field.key("path"))?,
        port: written.port.map(|number| port(number, || field.key("port"))).transpose()?,
        status,
    })
}

fn rewrite(
    written: &HttpRouteRulesFiltersUrlRewrite,
    place: Place,
    field: &FieldPath,
) -> Result<Rewrite, Fault> {
    if let Some(name) = &written.hostname {
        hostname(name, || field.key("hostname"))?;
    }
    let path_field = field.key("path");
    let path: Option<HttpRouteRulesFiltersRequestRedirectPath> = strict::recast(&written.path, &path_field)?;
    Ok(Rewrite {
        hostname: written.hostname.as_deref().map(Into::into),
        path: path_edit(path.as_ref(), place, &path_field)?,
    })
}

fn path_edit(
    written: Option<&HttpRouteRulesFiltersRequestRedirectPath>,
    place: Place,
    field: &FieldPath,
) -> Result<Option<PathEdit>, Fault> {
    use HttpRouteRulesFiltersRequestRedirectPathType as Type;
    let Some(written) = written else { return Ok(None) };
    let (own, other) = (written.replace_full_path.as_ref(), written.replace_prefix_match.as_ref());
    let (name, own, other) = match written.r#type {
        Type::ReplaceFullPath => ("replaceFullPath", own, other),
        Type::ReplacePrefixMatch => ("replacePrefixMatch", other, own),
    };
    let field = field.key(name);
    let value = body(own, &field)?;
    if other.is_some() {
        return Err(Fault::at(field, "stands beside the field of the other type"));
    }
    longest(value, PATH_BYTES_MAX, || field.clone())?;
    let is_prefix = written.r#type == Type::ReplacePrefixMatch;
    let begins_well = value.starts_with('/') || (is_prefix && value.is_empty());
    if !begins_well || !is_path_text(value) {
        let message = format!("{value:?} cannot be a path: begin with '/', and no query or fragment");
        return Err(Fault::at(field, message));
    }
    if !is_prefix {
        return Ok(Some(PathEdit::Full(value.as_str().into())));
    }
    match place {
        Place::Rule { one_prefix: false, .. } => {
            let message =
                "there is no one prefix to replace: the rule needs exactly one match, by PathPrefix";
            Err(Fault::at(field, message))
        }
        Place::Rule { .. } | Place::Backend => Ok(Some(PathEdit::Prefix(value.as_str().into()))),
    }
}

fn mirror(
    key: &Key,
    written: &HttpRouteRulesFiltersRequestMirror,
    field: &FieldPath,
) -> Result<Mirror, Fault> {
    let backend = backends::target(key, &written.backend_ref, &field.key("backendRef"))?;
    let share = match (written.percent, &written.fraction) {
        (Some(_), Some(_)) => {
            return Err(Fault::at(field.key("fraction"), "write percent or fraction, not both"));
        }
        (Some(percent), None) => share(percent, 100, || field.key("percent"))?,
        (None, Some(fraction)) => {
            share(fraction.numerator, fraction.denominator.unwrap_or(100), || field.key("fraction"))?
        }
        (None, None) => 1.0,
    };
    Ok(Mirror { backend, share })
}

fn share(numerator: i32, denominator: i32, field: impl FnOnce() -> FieldPath) -> Result<f64, Fault> {
    if denominator > 0 && (0..=denominator).contains(&numerator) {
        Ok(f64::from(numerator) / f64::from(denominator))
    } else {
        Err(Fault::at(field(), format!("{numerator} of {denominator} is not a share between 0 and 1")))
    }
}
