//! Headers that concern one hop only, and those that nobody outside may set.
//!
//! Beside station 12. RFC 9110 section 7.6.1: what `Connection` names, and a few others by name, end at each hop.

use http::header::{CONNECTION, HOST, TE, TRAILER, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, Version};

use super::head::Unreadable;
use crate::telemetry::is_grpc_content;

/// The identity of the client, for applications that ask for it; from outside it is always removed.
pub const FORWARDED_CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// Whether the request is a gRPC call, in whatever version: POST with gRPC's content type.
pub fn is_grpc(method: &Method, headers: &HeaderMap) -> bool {
    *method == Method::POST && is_grpc_content(headers)
}

/// The protocol that the message asks to change to, if it does.
pub fn upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    let wanted = headers.get(UPGRADE)?;
    connection_names(headers).any(|name| name.eq_ignore_ascii_case("upgrade")).then(|| wanted.clone())
}

fn connection_names(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let lines = headers.get_all(CONNECTION).into_iter().filter_map(|value| value.to_str().ok());
    lines.flat_map(|line| line.split(',').map(str::trim))
}

/// Removes what ends at this hop. `TE: trailers` stays, since trailers are passed on.
pub fn strip_hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(CONNECTION) {
        let named: Vec<HeaderName> =
            connection_names(headers).filter_map(|name| HeaderName::try_from(name).ok()).collect();
        for name in named {
            if name != TE {
                headers.remove(name);
            }
        }
        headers.remove(CONNECTION);
    }
    for name in [KEEP_ALIVE, PROXY_CONNECTION, TRANSFER_ENCODING, UPGRADE] {
        headers.remove(name);
    }
    let takes_trailers =
        headers.get(TE).is_some_and(|te| te.to_str().is_ok_and(|te| te.split(',').any(is_trailers)));
    if headers.contains_key(TE) && !takes_trailers {
        headers.remove(TE);
    } else if takes_trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
}

fn is_trailers(coding: &str) -> bool {
    coding.split(';').next().is_some_and(|name| name.trim().eq_ignore_ascii_case("trailers"))
}

/// Puts an upgrade back that [`strip_hop_by_hop`] took off.
pub fn set_upgrade(headers: &mut HeaderMap, protocol: HeaderValue) {
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, protocol);
}

/// Says of an HTTP/1 response that it is the last on its connection (RFC 9112 section 9.6). One that changes the protocol is
/// not: what follows it is no HTTP.
pub fn announce_end(headers: &mut HeaderMap) {
    if !headers.contains_key(UPGRADE) {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
}

/// Makes the host stand where the version has it: in `Host` for HTTP/1, in the target for HTTP/2. `path` is the path and
/// query to ask for; `None` leaves an authority-form target (CONNECT) alone.
pub fn address<B>(request: &mut Request<B>, host: Option<HeaderValue>, path: Option<&str>, version: Version) {
    let is_h2 = version == Version::HTTP_2;
    if let Some(path) = path {
        let authority = host.as_ref().and_then(|host| host.to_str().ok()).filter(|_| is_h2);
        let target = match authority {
            Some(authority) => {
                Uri::builder().scheme("http").authority(authority).path_and_query(path).build()
            }
            None => Uri::builder().path_and_query(path).build(),
        };
        if let Ok(target) = target {
            *request.uri_mut() = target;
        }
    }
    match host {
        Some(_) if is_h2 => drop(request.headers_mut().remove(HOST)),
        Some(host) => drop(request.headers_mut().insert(HOST, host)),
        None => {}
    }
    *request.version_mut() = version;
}

/// The host that the request asks for: the target's, which comes before `Host` in HTTP/1 (RFC 9112 section 3.2.2) and must
/// not differ from it in HTTP/2 (RFC 9113 section 8.3.1).
///
/// # Errors
/// It is no host with or without a port, or there are two.
pub fn host<B>(request: &Request<B>) -> Result<Option<HeaderValue>, Unreadable> {
    let mut lines = request.headers().get_all(HOST).iter();
    let (line, second) = (lines.next(), lines.next());
    if second.is_some() {
        return Err(Unreadable::Host);
    }
    let Some(authority) = request.uri().authority() else {
        return match line {
            Some(value) if is_host(value.as_bytes()) => Ok(Some(value.clone())),
            Some(_) => Err(Unreadable::Host),
            None => Ok(None),
        };
    };
    let differs =
        line.is_some_and(|line| !line.as_bytes().eq_ignore_ascii_case(authority.as_str().as_bytes()));
    if !is_host(authority.as_str().as_bytes()) || request.version() == Version::HTTP_2 && differs {
        return Err(Unreadable::Host);
    }
    HeaderValue::from_str(authority.as_str()).map(Some).map_err(|_invalid| Unreadable::Host)
}

/// `uri-host [ ":" port ]` (RFC 9110 section 7.2), strictly: no user, no list, and a port in digits. Empty is allowed.
fn is_host(text: &[u8]) -> bool {
    let colon =
        text.iter().rposition(|byte| *byte == b':').filter(|at| text.get(at + 1..).is_some_and(is_port));
    let name = &text[..colon.unwrap_or(text.len())];
    match name {
        [b'[', inner @ .., b']'] => {
            inner.iter().all(|byte| byte.is_ascii_hexdigit() || matches!(byte, b':' | b'.' | b'%'))
        }
        name => name.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+;=".contains(byte)),
    }
}

fn is_port(text: &[u8]) -> bool {
    text.len() <= 5 && text.iter().all(u8::is_ascii_digit)
}

/// Keeps `Trailer` only where a body follows in pieces; HTTP/2 needs none.
pub fn settle_trailer(headers: &mut HeaderMap, version: Version) {
    if version == Version::HTTP_2 {
        headers.remove(TRAILER);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        lines
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect()
    }

    #[test]
    fn what_connection_names_ends_here() {
        let mut map = headers(&[
            ("connection", "close, X-Secret"),
            ("x-secret", "1"),
            ("keep-alive", "timeout=5"),
            ("te", "gzip, trailers"),
            ("upgrade", "websocket"),
            ("x-kept", "1"),
        ]);
        strip_hop_by_hop(&mut map);
        assert_eq!(map, headers(&[("te", "trailers"), ("x-kept", "1")]));
    }

    #[test]
    fn an_upgrade_needs_both_headers() {
        assert_eq!(upgrade(&headers(&[("upgrade", "h2c")])), None);
        let both = headers(&[("upgrade", "websocket"), ("connection", "keep-alive, Upgrade")]);
        assert_eq!(upgrade(&both).unwrap(), "websocket");
    }

    #[test]
    fn hosts_are_hosts() {
        for (text, expected) in [
            ("a.example", true),
            ("a:80", true),
            ("[::1]:80", true),
            ("10.0.0.1", true),
            ("", true),
            ("a b", false),
            ("a,b", false),
            ("a/b", false),
            ("user@a", false),
            ("a:port", false),
            ("a:80:80", false),
        ] {
            let request = Request::get("/").header(HOST, text).body(()).unwrap();
            assert_eq!(host(&request).is_ok(), expected, "{text}");
        }
    }

    #[test]
    fn grpc_is_told_by_its_content_type() {
        for (value, expected) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("application/grpc;x", true),
            ("application/grpc-web", false),
            ("text/plain", false),
        ] {
            assert_eq!(is_grpc(&Method::POST, &headers(&[("content-type", value)])), expected, "{value}");
        }
        assert!(!is_grpc(&Method::GET, &headers(&[("content-type", "application/grpc")])));
    }

    #[test]
    fn the_host_moves_to_where_the_version_has_it() {
        let request =
            || Request::builder().uri("http://a.example/x?y").header(HOST, "ignored").body(()).unwrap();
        let mut one = request();
        let its_host = host(&one).unwrap();
        address(&mut one, its_host, Some("/z?y"), Version::HTTP_11);
        assert_eq!(
            (one.uri().to_string().as_str(), &one.headers()[HOST]),
            ("/z?y", &HeaderValue::from_static("a.example"))
        );
        let mut two = request();
        let its_host = host(&two).unwrap();
        address(&mut two, its_host, Some("/z?y"), Version::HTTP_2);
        assert_eq!(two.uri().to_string(), "http://a.example/z?y");
        assert!(!two.headers().contains_key(HOST));
    }
}
