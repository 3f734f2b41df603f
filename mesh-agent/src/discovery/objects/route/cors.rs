//! The CORS filter.

use std::sync::Arc;
use std::time::Duration;

use gateway_api::httproutes::HttpRouteRulesFiltersCors;

use super::matches::header_name;
use super::{Fault, FieldPath, at_most};
use crate::model::Cors;

/// Most entries of one list, as the CRD has it.
const ENTRIES_MAX: usize = 64;
/// How long an answer holds when the filter does not say, as the CRD has it.
const MAX_AGE_DEFAULT_SECS: i32 = 5;
/// Methods that can be named.
const METHODS: [&str; 10] =
    ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "*"];

pub(super) fn accept(written: &HttpRouteRulesFiltersCors, field: &FieldPath) -> Result<Cors, Fault> {
    let max_age = written.max_age.unwrap_or(MAX_AGE_DEFAULT_SECS);
    let max_age = u64::try_from(max_age).ok().filter(|seconds| *seconds > 0).ok_or_else(|| {
        Fault::at(field.key("maxAge"), format!("{max_age} is not a time: use 1 second or more"))
    })?;
    let header = |name: &str| name == "*" || header_name(name, FieldPath::default).is_ok();
    let method = |name: &str| METHODS.contains(&name);
    let list = |written: &Option<Vec<String>>, name: &str, is_one: &dyn Fn(&str) -> bool| {
        list(written.as_deref().unwrap_or_default(), &field.key(name), is_one)
    };
    Ok(Cors {
        allow_origins: list(&written.allow_origins, "allowOrigins", &is_origin)?
            .iter()
            .map(|origin| origin.to_ascii_lowercase().into())
            .collect(),
        allow_credentials: written.allow_credentials.unwrap_or(false),
        allow_methods: list(&written.allow_methods, "allowMethods", &method)?,
        allow_headers: list(&written.allow_headers, "allowHeaders", &header)?,
        expose_headers: list(&written.expose_headers, "exposeHeaders", &header)?,
        max_age: Some(Duration::from_secs(max_age)),
    })
}

/// Entries that pass the test; `*` stands alone.
fn list(
    written: &[String],
    field: &FieldPath,
    is_one: &dyn Fn(&str) -> bool,
) -> Result<Vec<Arc<str>>, Fault> {
    at_most(written.len(), ENTRIES_MAX, field)?;
    for (index, entry) in written.iter().enumerate() {
        if !is_one(entry) {
            return Err(Fault::at(field.index(index), format!("{entry:?} is not known here")));
        }
        if entry == "*" && written.len() > 1 {
            return Err(Fault::at(field.index(index), "* stands for all, so nothing can stand beside it"));
        }
    }
    Ok(written.iter().map(|entry| entry.as_str().into()).collect())
}

/// `*`, or scheme, host (which may begin with `*.`) and perhaps port.
fn is_origin(text: &str) -> bool {
    if text == "*" {
        return true;
    }
    let Some((scheme, authority)) = text.split_once("://") else { return false };
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (authority, None),
    };
    let host = host.strip_prefix("*.").unwrap_or(host);
    scheme.starts_with(|first: char| first.is_ascii_alphabetic())
        && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
        && !host.is_empty()
        && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
        && port.is_none_or(|port| port.parse::<u16>().is_ok())
}
