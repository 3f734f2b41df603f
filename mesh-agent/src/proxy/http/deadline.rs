//! How long a request may take: by its rule, and by what a gRPC client says.
//!
//! Between stations 6 and 12. Pure, except for [`listen`], which waits for a server's `100 Continue`.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode};
use tokio::sync::Notify;

use super::body::RequestBody;
use super::downstream::Seen;
use crate::lifecycle::clock;
use crate::model::RouteTimeouts;

const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// How long a body is held back for a server that was asked whether it wants it. A server that knows nothing of the
/// question answers nothing, so the body goes out after a while (RFC 9110 section 10.1.1).
const CONTINUE_WAIT: Duration = Duration::from_secs(1);

/// When a request and each of its tries must be over.
#[derive(Clone, Copy, Debug, Default)]
pub struct Deadlines {
    request: Option<Instant>,
    per_try: Option<Duration>,
    of_this_try: Option<Instant>,
}

impl Deadlines {
    /// From the rule's timeouts and, for gRPC calls, the client's own; the smaller counts, and is what the server is told.
    pub fn new(started: Instant, timeouts: Option<RouteTimeouts>, grpc: Option<&mut HeaderMap>) -> Self {
        let timeouts = timeouts.unwrap_or_default();
        let mut request = timeouts.request;
        if let Some(headers) = grpc {
            let asked = headers.get(&GRPC_TIMEOUT).and_then(read_grpc_timeout);
            request = match (request, asked) {
                (Some(ours), Some(theirs)) => Some(ours.min(theirs)),
                (ours, theirs) => ours.or(theirs),
            };
            if let Some(limit) = request {
                headers.insert(GRPC_TIMEOUT, write_grpc_timeout(limit));
            }
        }
        let request = request.and_then(|limit| started.checked_add(limit));
        Self { request, per_try: timeouts.backend_request, of_this_try: None }
    }

    /// Begins a try: when the head of its response must be there.
    pub fn of_try(&mut self) -> Option<Instant> {
        let of_try = self.per_try.and_then(|limit| clock::now().checked_add(limit));
        self.of_this_try = match (self.request, of_try) {
            (Some(request), Some(of_try)) => Some(request.min(of_try)),
            (request, of_try) => request.or(of_try),
        };
        self.of_this_try
    }

    /// When the last byte of the response must be out.
    pub fn of_body(&self) -> Option<Instant> {
        self.of_this_try
    }
}

/// `TimeoutValue TimeoutUnit`, at most eight digits (gRPC over HTTP2, "Requests").
fn read_grpc_timeout(value: &HeaderValue) -> Option<Duration> {
    let text = value.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

/// In the finest unit that eight digits can hold.
fn write_grpc_timeout(limit: Duration) -> HeaderValue {
    let units = [(limit.as_nanos(), 'n'), (limit.as_micros(), 'u'), (limit.as_millis(), 'm')];
    let fitting = units.into_iter().find(|(number, _)| *number < 100_000_000);
    let (number, unit) = fitting.unwrap_or_else(|| (u128::from(limit.as_secs()).min(99_999_999), 'S'));
    HeaderValue::from_str(&format!("{number}{unit}")).expect("digits and a letter")
}

/// Listens to the interim responses of an HTTP/1 server: they go on to the client through `seen`, and the body of a request
/// with `Expect: 100-continue` is held back until the server says `100 Continue`, or too long nothing.
pub fn listen(request: &mut Request<RequestBody>, seen: Option<&Arc<Seen>>, is_held: bool) {
    let asked = is_held.then(|| Arc::new(Notify::new()));
    let (told, seen) = (asked.clone(), seen.cloned());
    hyper::ext::on_informational(request, move |response| {
        if let Some(told) = told.as_ref().filter(|_| response.status() == StatusCode::CONTINUE) {
            told.notify_one();
        } else if let Some(seen) = &seen {
            seen.interim.add(response.status(), response.headers());
        }
    });
    let Some(asked) = asked else { return };
    let gate: Pin<Box<dyn Future<Output = ()>>> = Box::pin(async move {
        let _ = tokio::time::timeout(CONTINUE_WAIT, asked.notified()).await;
    });
    let body = std::mem::replace(request.body_mut(), RequestBody::empty());
    *request.body_mut() = body.gated(gate);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_timeouts_are_read_and_written() {
        let read = |text: &'static str| read_grpc_timeout(&HeaderValue::from_static(text));
        assert_eq!(read("5S"), Some(Duration::from_secs(5)));
        assert_eq!(read("250m"), Some(Duration::from_millis(250)));
        assert_eq!(read("1H"), Some(Duration::from_secs(3600)));
        for wrong in ["", "S", "123456789S", "5", "5s", "-1S", "5 S", "\u{661}S"] {
            assert_eq!(
                HeaderValue::from_str(wrong).ok().and_then(|value| read_grpc_timeout(&value)),
                None,
                "{wrong}"
            );
        }
        for limit in [Duration::from_micros(7), Duration::from_secs(1), Duration::from_secs(86_400)] {
            assert_eq!(read_grpc_timeout(&write_grpc_timeout(limit)), Some(limit));
        }
    }

    #[test]
    fn the_smaller_of_two_timeouts_counts_and_is_passed_on() {
        let started = clock::now();
        let rule = RouteTimeouts { request: Some(Duration::from_secs(2)), backend_request: None };
        let mut headers = HeaderMap::new();
        headers.insert(GRPC_TIMEOUT, HeaderValue::from_static("10S"));
        let mut deadlines = Deadlines::new(started, Some(rule), Some(&mut headers));
        assert_eq!(deadlines.of_try(), Some(started + Duration::from_secs(2)));
        assert_eq!(headers[GRPC_TIMEOUT], "2000000u");
    }
}
