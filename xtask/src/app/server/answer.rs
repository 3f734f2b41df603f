//! What an HTTP client is told: what the server saw of its request, or always the same.
//!
//! A request can ask for another answer in its query: `status=NNN`, `delay_ms=N` (answered that much later, nobody else
//! waits), `close` (the connection ends after the answer), `abort` (it ends without one).

use std::io::Write;
use std::net::SocketAddr;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::request::Request;
use crate::app::h2;

/// How a server answers.
#[derive(Debug)]
pub struct Answers {
    pod: String,
    namespace: String,
    /// The whole answer, head and body, when it is always the same, and where its body begins.
    fixed: Option<(Vec<u8>, usize)>,
    /// Its body alone.
    fixed_body: Vec<u8>,
    /// Its head in HTTP/2.
    fixed_block: Vec<u8>,
    /// Connections that HTTP was spoken on.
    pub connections: AtomicU64,
    /// Those that ended because what came was not HTTP.
    pub faults: AtomicU64,
}

/// The answer to one request, as far as its head decides.
#[derive(Debug)]
pub struct Reply {
    status: u16,
    /// Given this much later.
    pub delay: Option<Duration>,
    /// The connection ends after it.
    pub close: bool,
    /// The connection ends instead.
    pub abort: bool,
    is_head: bool,
    seen: Option<Value>,
}

impl Answers {
    /// A server in a pod; with `fixed`, that is every answer's body.
    pub fn new(pod: &str, namespace: &str, fixed: Option<Vec<u8>>) -> Self {
        let mut whole = None;
        let fixed_body = fixed.clone().unwrap_or_default();
        if let Some(body) = &fixed {
            let mut answer = Vec::new();
            write_head(&mut answer, 200, "text/plain", body.len(), false);
            let head = answer.len();
            answer.extend_from_slice(body);
            whole = Some((answer, head));
        }
        // :status 200, content-type, content-length: their numbers in RFC 7541's static table.
        let mut fixed_block = vec![0x88];
        h2::field(&mut fixed_block, 31, "text/plain");
        h2::field(&mut fixed_block, 28, &fixed_body.len().to_string());
        Self {
            pod: pod.to_owned(),
            namespace: namespace.to_owned(),
            fixed: whole,
            fixed_body,
            fixed_block,
            connections: AtomicU64::new(0),
            faults: AtomicU64::new(0),
        }
    }

    /// Whether every answer is the same. Only then HTTP/2 is spoken too: nothing of a request must be understood for it.
    pub fn is_fixed(&self) -> bool {
        self.fixed.is_some()
    }

    /// The body of every answer.
    pub fn fixed_body(&self) -> &[u8] {
        &self.fixed_body
    }

    /// The header block of every answer, for HTTP/2.
    pub fn fixed_block(&self) -> &[u8] {
        &self.fixed_block
    }

    /// A server that knows its pod from the environment.
    pub fn of_this_pod(fixed: Option<Vec<u8>>) -> Self {
        let variable = |name| std::env::var(name).unwrap_or_default();
        Self::new(&variable("POD_NAME"), &variable("POD_NAMESPACE"), fixed)
    }

    /// The answer to a request.
    pub fn reply(&self, request: &Request<'_>, peer: SocketAddr) -> Reply {
        let mut reply = Reply {
            status: 200,
            delay: None,
            close: request.close,
            abort: false,
            is_head: request.method == "HEAD",
            seen: None,
        };
        for switch in request.query.unwrap_or_default().split('&') {
            match switch.split_once('=').unwrap_or((switch, "")) {
                ("status", status) => {
                    let wanted = status.parse().ok().filter(|status| (200..600).contains(status));
                    reply.status = wanted.unwrap_or(400);
                }
                ("delay_ms", millis) => reply.delay = millis.parse().ok().map(Duration::from_millis),
                ("close", "") => reply.close = true,
                ("abort", "") => reply.abort = true,
                _ => {}
            }
        }
        if self.fixed.is_none() {
            reply.seen = Some(json!({
                "pod": self.pod, "namespace": self.namespace, "client": peer.to_string(), "method": request.method,
                "path": request.path, "query": request.query, "host": request.host(), "headers": headers(request),
            }));
        }
        reply
    }

    /// Writes the answer to a request whose body had `body_bytes`.
    pub fn write(&self, reply: &Reply, body_bytes: u64, out: &mut Vec<u8>) {
        match (&self.fixed, &reply.seen) {
            (Some((whole, head)), _) if reply.status == 200 && !reply.close => {
                out.extend_from_slice(if reply.is_head { &whole[..*head] } else { whole });
            }
            (_, None) => reply.write(out, "text/plain", &self.fixed_body),
            (_, Some(seen)) => {
                let mut seen = seen.clone();
                seen["body_bytes"] = json!(body_bytes);
                reply.write(out, "application/json", format!("{seen}\n").as_bytes());
            }
        }
    }
}

impl Reply {
    fn write(&self, out: &mut Vec<u8>, kind: &str, body: &[u8]) {
        write_head(out, self.status, kind, body.len(), self.close);
        if !self.is_head && has_body(self.status) {
            out.extend_from_slice(body);
        }
    }
}

/// All header fields by their names in lower case; values of the same name are joined as RFC 9110 section 5.3 joins them.
fn headers(request: &Request<'_>) -> Map<String, Value> {
    let mut all = Map::new();
    for (name, value) in request.fields() {
        match all.entry(name.to_ascii_lowercase()).or_insert_with(|| Value::String(String::new())) {
            Value::String(text) if text.is_empty() => value.clone_into(text),
            Value::String(text) => {
                text.push_str(", ");
                text.push_str(value);
            }
            _ => {}
        }
    }
    all
}

fn write_head(out: &mut Vec<u8>, status: u16, kind: &str, length: usize, close: bool) {
    let connection = if close { "close" } else { "keep-alive" };
    let reason = reason(status);
    // Writing to memory cannot fail.
    let _ = write!(out, "HTTP/1.1 {status} {reason}\r\nConnection: {connection}\r\n");
    if has_body(status) {
        let _ = write!(out, "Content-Type: {kind}\r\nContent-Length: {length}\r\n");
    }
    out.extend_from_slice(b"\r\n");
}

/// RFC 9110 sections 15.3.5 and 15.4.5.
fn has_body(status: u16) -> bool {
    !matches!(status, 204 | 304)
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        204 => "No Content",
        304 => "Not Modified",
        400 => "Bad Request",
        403 => "Forbidden",
        404 => "Not Found",
        429 => "Too Many Requests",
        500 => "Internal Server Error",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        _ => "As Asked",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_headers_are_joined_under_one_lower_case_name() {
        let request = Request::parse(b"GET / HTTP/1.1\r\nX-A: 1\r\nhost: h\r\nx-a: 2\r\n").unwrap();
        assert_eq!(Value::Object(headers(&request)), json!({"x-a": "1, 2", "host": "h"}));
    }
}
