//! The `http` part of a rule, read into the model.

use http::{HeaderName, HeaderValue, Method};

use crate::discovery::objects::{Fault, FieldPath};
use crate::discovery::resources::{
    EnforcementLevel, GrpcMethodSpec, HeaderPatternSpec, HeaderPatternType, HttpMatchSpec, PathPatternSpec,
    PathPatternType,
};
use crate::model::{GrpcMethod, HeaderCondition, HeaderPattern, HttpMatch, PathPattern};

/// Validates the alternatives of one rule.
pub(super) fn accept(
    level: EnforcementLevel,
    alternatives: &[HttpMatchSpec],
    field: &FieldPath,
) -> Result<Vec<HttpMatch>, Fault> {
    if level != EnforcementLevel::Application {
        let message = "needs spec.enforcementLevel: Application, because requests are judged one by one";
        return Err(Fault::at(field.clone(), message));
    }
    each(alternatives, field, accept_alternative)
}

fn each<T, U>(
    list: &[T],
    field: &FieldPath,
    accept: impl Fn(&T, &FieldPath) -> Result<U, Fault>,
) -> Result<Vec<U>, Fault> {
    list.iter().enumerate().map(|(index, one)| accept(one, &field.index(index))).collect()
}

fn accept_alternative(spec: &HttpMatchSpec, field: &FieldPath) -> Result<HttpMatch, Fault> {
    for (name, written) in [("methods", spec.methods.is_some()), ("paths", spec.paths.is_some())] {
        if written && spec.grpc_methods.is_some() {
            let message = "cannot stand beside grpcMethods, which says method and path by itself";
            return Err(Fault::at(field.key(name), message));
        }
    }
    let methods = |list: &Vec<String>| each(list, &field.key("methods"), |name, field| method(name, field));
    let paths = |list: &Vec<PathPatternSpec>| each(list, &field.key("paths"), path);
    let headers = |list: &Vec<HeaderPatternSpec>| each(list, &field.key("headers"), header);
    let calls = |list: &Vec<GrpcMethodSpec>| each(list, &field.key("grpcMethods"), grpc_method);
    Ok(HttpMatch {
        methods: spec.methods.as_ref().map(methods).transpose()?,
        paths: spec.paths.as_ref().map(paths).transpose()?,
        headers: spec.headers.as_ref().map(headers).transpose()?,
        grpc_methods: spec.grpc_methods.as_ref().map(calls).transpose()?,
    })
}

/// Methods that everybody writes in capitals (RFC 9110 section 9.1, RFC 5789).
const METHODS: [Method; 9] = [
    Method::GET,
    Method::HEAD,
    Method::POST,
    Method::PUT,
    Method::DELETE,
    Method::CONNECT,
    Method::OPTIONS,
    Method::TRACE,
    Method::PATCH,
];

fn method(name: &str, field: &FieldPath) -> Result<Method, Fault> {
    if name == "*" {
        return Err(Fault::at(field.clone(), "leave `methods` out for every method"));
    }
    if let Some(meant) = METHODS.iter().find(|m| m.as_str() != name && m.as_str().eq_ignore_ascii_case(name))
    {
        let message = format!("{name:?} is another method than {meant}: write {meant}");
        return Err(Fault::at(field.clone(), message));
    }
    name.parse().map_err(|_unreadable| Fault::at(field.clone(), format!("{name:?} is not a method")))
}

fn path(spec: &PathPatternSpec, field: &FieldPath) -> Result<PathPattern, Fault> {
    let pattern = match spec.kind {
        PathPatternType::Exact => PathPattern::exact(&spec.value),
        PathPatternType::PathPrefix => PathPattern::prefix(&spec.value),
        PathPatternType::Template => PathPattern::template(&spec.value),
    };
    pattern.map_err(|fault| Fault::at(field.key("value"), fault.to_string()))
}

fn header(spec: &HeaderPatternSpec, field: &FieldPath) -> Result<HeaderPattern, Fault> {
    let name = HeaderName::from_bytes(spec.name.as_bytes()).map_err(|_unreadable| {
        Fault::at(field.key("name"), format!("{:?} is not a header name", spec.name))
    })?;
    let value = match (spec.kind, &spec.value) {
        (HeaderPatternType::Present, None) => HeaderCondition::Present,
        (HeaderPatternType::Present, Some(_)) => {
            return Err(Fault::at(field.key("value"), "does not belong to type Present"));
        }
        (HeaderPatternType::Exact, Some(value)) => HeaderCondition::Exact(header_value(value, field)?),
        (HeaderPatternType::Prefix, Some(value)) if value.is_empty() => {
            return Err(Fault::at(field.key("value"), "begins every value: use type Present"));
        }
        (HeaderPatternType::Prefix, Some(value)) => HeaderCondition::Prefix(header_value(value, field)?),
        (HeaderPatternType::Exact | HeaderPatternType::Prefix, None) => {
            return Err(Fault::at(field.clone(), format!("type {:?} needs `value`", spec.kind)));
        }
    };
    Ok(HeaderPattern { name, value })
}

/// A value that no header can have would make a DENY that never holds.
fn header_value(value: &str, field: &FieldPath) -> Result<std::sync::Arc<str>, Fault> {
    if HeaderValue::from_str(value).is_err() || value.trim_ascii() != value {
        return Err(Fault::at(field.key("value"), format!("{value:?} is not the value of any header")));
    }
    Ok(value.into())
}

fn grpc_method(spec: &GrpcMethodSpec, field: &FieldPath) -> Result<GrpcMethod, Fault> {
    let part = |value: &Option<String>, name: &str, dots: bool| match value.as_deref() {
        None | Some("*") => Ok(None),
        Some(text) if is_grpc_name(text, dots) => Ok(Some(text.into())),
        Some(text) => {
            let message =
                format!("{text:?} is not the name of a gRPC {name}: write for example {}", example(dots));
            Err(Fault::at(field.key(name), message))
        }
    };
    Ok(GrpcMethod {
        service: part(&spec.service, "service", true)?,
        method: part(&spec.method, "method", false)?,
    })
}

fn is_grpc_name(text: &str, dots: bool) -> bool {
    let is_word =
        |word: &str| !word.is_empty() && word.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    if dots { text.split('.').all(is_word) } else { is_word(text) }
}

fn example(dots: bool) -> &'static str {
    if dots { "shop.v1.Orders" } else { "List" }
}
