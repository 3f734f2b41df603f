//! `RequestRedirect`: where the client is sent.

use std::fmt::Write;

use http::{HeaderValue, StatusCode};

use super::edit_path;
use crate::model::Redirect;
use crate::route::host_without_port;

/// The request that is redirected.
#[derive(Clone, Copy, Debug)]
pub struct RedirectFrom<'a> {
    /// `http` or `https`, as the client sees it.
    pub scheme: &'a str,
    /// `Host` or `:authority`, with or without a port; for requests without one, the name of the service.
    pub host: &'a str,
    /// The service port that was dialled.
    pub port: u16,
    /// What the rule matched of the path (`Matched::prefix`).
    pub prefix: Option<&'a str>,
    /// Path, in its normal form, and query.
    pub path_and_query: &'a str,
}

/// The status and `Location` that answer the request. What the filter leaves out stays as the request has it; the port
/// is then the redirect scheme's own or else the one that was dialled, and a scheme's own port is never written.
pub fn redirect(redirect: &Redirect, from: RedirectFrom<'_>) -> (StatusCode, HeaderValue) {
    let scheme = redirect.scheme.as_deref().unwrap_or(from.scheme);
    let host = redirect.hostname.as_deref().unwrap_or_else(|| host_without_port(from.host));
    let own = own_port(scheme);
    let port = redirect.port.or_else(|| own.filter(|_| redirect.scheme.is_some())).unwrap_or(from.port);
    let path = match &redirect.path {
        Some(edit) => &edit_path(edit, from.prefix, from.path_and_query),
        None => from.path_and_query,
    };
    let port = if own == Some(port) { String::new() } else { format!(":{port}") };
    (redirect.status, header_value(&format!("{scheme}://{host}{port}{path}")))
}

/// The port that a scheme means when none is written.
fn own_port(scheme: &str) -> Option<u16> {
    match scheme {
        "http" => Some(80),
        "https" => Some(443),
        _ => None,
    }
}

/// The text as a header value, with what no URI may hold percent-encoded.
fn header_value(uri: &str) -> HeaderValue {
    let mut encoded = String::with_capacity(uri.len());
    for byte in uri.bytes() {
        if byte.is_ascii_graphic() {
            encoded.push(byte.into());
        } else {
            write!(encoded, "%{byte:02X}").expect("a String takes everything");
        }
    }
    HeaderValue::try_from(encoded).expect("visible ASCII is a header value")
}
