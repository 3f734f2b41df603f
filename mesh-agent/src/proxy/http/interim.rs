//! Interim responses (1xx) of HTTP/1 servers on their way to HTTP/1 clients (RFC 9110 section 15.2: a proxy forwards them).
//!
//! Beside station 12. hyper tells of them on the server's side and has no way to send them on the client's, so they wait here
//! until the client's socket is idle between two responses, which is when hyper flushes it while its service works. What has
//! not gone out by the final response is dropped. `100 Continue` is hyper's own, and `101` is a final one.

use std::io::Write as _;
use std::task::{Context, Waker};

use http::{HeaderMap, StatusCode};
use parking_lot::Mutex;

/// Interim responses that wait, in bytes; a server that sends more than this before its client reads is not followed.
const BYTES_MAX: usize = 16 * 1024;

/// Interim responses of the request that is being answered.
#[derive(Debug, Default)]
pub struct Interim(Mutex<Waiting>);

#[derive(Debug, Default)]
struct Waiting {
    is_open: bool,
    bytes: Vec<u8>,
    waker: Option<Waker>,
}

impl Interim {
    /// A request begins whose client understands interim responses.
    pub fn open(&self) {
        self.0.lock().is_open = true;
    }

    /// The final response begins.
    pub fn close(&self) {
        *self.0.lock() = Waiting::default();
    }

    /// Whom to wake when there is something to send: the task that owns the client's socket.
    pub fn register(&self, context: &Context<'_>) {
        let mut waiting = self.0.lock();
        if waiting.is_open && waiting.waker.as_ref().is_none_or(|known| !known.will_wake(context.waker())) {
            waiting.waker = Some(context.waker().clone());
        }
    }

    /// A server sent one.
    pub fn add(&self, status: StatusCode, headers: &HeaderMap) {
        let mut waiting = self.0.lock();
        if !waiting.is_open || !is_passed_on(status) || waiting.bytes.len() > BYTES_MAX {
            return;
        }
        let reason = status.canonical_reason().unwrap_or_default();
        // Writing to memory cannot fail.
        let _ = write!(waiting.bytes, "HTTP/1.1 {} {reason}\r\n", status.as_u16());
        for (name, value) in headers {
            waiting.bytes.extend([name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"].concat());
        }
        waiting.bytes.extend(b"\r\n");
        if let Some(waker) = waiting.waker.take() {
            waker.wake();
        }
    }

    /// What is to be sent now.
    pub fn take(&self) -> Vec<u8> {
        std::mem::take(&mut self.0.lock().bytes)
    }
}

fn is_passed_on(status: StatusCode) -> bool {
    status.is_informational() && status != StatusCode::CONTINUE && status != StatusCode::SWITCHING_PROTOCOLS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn early_hints_wait_for_the_socket_and_others_do_not_pass() {
        let interim = Interim::default();
        let mut headers = HeaderMap::new();
        headers.insert("link", "</a.css>".parse().unwrap());
        interim.add(StatusCode::EARLY_HINTS, &headers);
        assert!(interim.take().is_empty(), "no request is open");
        interim.open();
        interim.add(StatusCode::CONTINUE, &headers);
        interim.add(StatusCode::EARLY_HINTS, &headers);
        assert_eq!(interim.take(), b"HTTP/1.1 103 Early Hints\r\nlink: </a.css>\r\n\r\n");
        interim.add(StatusCode::EARLY_HINTS, &headers);
        interim.close();
        assert!(interim.take().is_empty(), "too late");
    }
}
