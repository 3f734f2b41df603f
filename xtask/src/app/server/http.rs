//! The server's side of HTTP/1.1 (RFC 9112) on one connection: requests in their order, each answered once its body has
//! been read, and later ones only after that.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::answer::{Answers, Reply};
use super::body::Body;
use super::h2;
use super::request::Request;
use crate::app::h2::PREFACE;
use crate::clock;

/// Longest accepted request head, in bytes.
const HEAD_BYTES_MAX: usize = 64 * 1024;

/// What may arrive while an answer is delayed, in bytes; more waits in the socket.
const AHEAD_BYTES_MAX: usize = 256 * 1024;

/// What was said so far.
pub struct Conversation {
    answers: Arc<Answers>,
    peer: SocketAddr,
    /// Received and not yet understood.
    received: Vec<u8>,
    state: State,
}

enum State {
    /// The next thing is a request head.
    Head,
    /// The body of a request is being read.
    Body { body: Body, read: u64, reply: Reply },
    /// An answer is held back until then.
    Delayed { due: Instant, read: u64, reply: Reply },
    /// The client speaks HTTP/2.
    Http2,
    /// The last answer was given.
    Over,
    /// The connection is to be closed without an answer.
    Aborted,
}

impl Conversation {
    /// A conversation with `peer`, about to begin.
    pub fn new(answers: Arc<Answers>, peer: SocketAddr) -> Self {
        answers.connections.fetch_add(1, Ordering::Relaxed);
        Self { answers, peer, received: Vec::new(), state: State::Head }
    }

    /// When a delayed answer is due.
    pub fn due(&self) -> Option<Instant> {
        if let State::Delayed { due, .. } = &self.state { Some(*due) } else { None }
    }

    /// The rest of this connection when the client has begun to speak HTTP/2, and the server can.
    pub fn upgrade(&mut self, out: &mut Vec<u8>) -> Option<std::io::Result<h2::Conversation>> {
        let is_upgrade = matches!(self.state, State::Http2);
        is_upgrade.then(|| {
            let mut conversation = h2::Conversation::new(Arc::clone(&self.answers), out);
            conversation.take(&std::mem::take(&mut self.received), out).map(|()| conversation)
        })
    }

    /// Whether nothing more will be answered.
    pub fn is_over(&self) -> bool {
        matches!(self.state, State::Over)
    }

    /// Whether the connection must be closed at once.
    pub fn is_aborted(&self) -> bool {
        matches!(self.state, State::Aborted)
    }

    /// Whether there is reason to read on.
    pub fn wants_more(&self) -> bool {
        match &self.state {
            State::Head | State::Body { .. } | State::Http2 => true,
            State::Delayed { .. } => self.received.len() < AHEAD_BYTES_MAX,
            State::Over | State::Aborted => false,
        }
    }

    /// Takes in what has arrived; answers go to `out`.
    pub fn take(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        self.received.extend_from_slice(bytes);
        self.go_on(out);
    }

    /// Gives a delayed answer whose time has come, and goes on with what arrived meanwhile.
    pub fn wake(&mut self, out: &mut Vec<u8>) {
        if self.due().is_none_or(|due| due > clock::now()) {
            return;
        }
        if let State::Delayed { read, reply, .. } = std::mem::replace(&mut self.state, State::Head) {
            self.give(&reply, read, out);
            self.go_on(out);
        }
    }

    fn go_on(&mut self, out: &mut Vec<u8>) {
        let mut at = 0;
        while let Some(used) = self.step(at, out) {
            at += used;
        }
        self.received.drain(..at);
    }

    /// Understands the next thing from `at` on, and says how long it was; `None` when more must arrive first.
    fn step(&mut self, at: usize, out: &mut Vec<u8>) -> Option<usize> {
        let rest = &self.received[at..];
        match &mut self.state {
            State::Head if rest.is_empty() => None,
            State::Head => self.head(at, out),
            State::Body { body, read, .. } => match body.read(rest) {
                Ok(progress) => {
                    *read += progress.content;
                    if progress.is_end {
                        self.reply(out);
                    } else if progress.used == 0 {
                        return None;
                    }
                    Some(progress.used)
                }
                Err(_fault) => {
                    self.refuse(400, out);
                    None
                }
            },
            State::Delayed { .. } | State::Http2 | State::Over | State::Aborted => None,
        }
    }

    fn head(&mut self, at: usize, out: &mut Vec<u8>) -> Option<usize> {
        let rest = &self.received[at..];
        let Some(end) = rest.windows(4).position(|four| four == b"\r\n\r\n") else {
            if rest.len() > HEAD_BYTES_MAX {
                self.refuse(431, out);
            }
            return None;
        };
        if PREFACE.starts_with(&rest[..end + 4]) && self.answers.is_fixed() {
            self.state = State::Http2;
            return None;
        }
        let Ok(request) = Request::parse(&rest[..end + 2]) else {
            self.refuse(400, out);
            return None;
        };
        let reply = self.answers.reply(&request, self.peer);
        if request.expects_continue {
            out.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
        }
        let body = request.body;
        self.state = State::Body { body, read: 0, reply };
        if body.is_none() {
            self.reply(out);
        }
        Some(end + 4)
    }

    /// The request has been read: answers it, now or later.
    fn reply(&mut self, out: &mut Vec<u8>) {
        let State::Body { read, reply, .. } = std::mem::replace(&mut self.state, State::Head) else { return };
        match reply.delay {
            Some(delay) => self.state = State::Delayed { due: clock::now() + delay, read, reply },
            None => self.give(&reply, read, out),
        }
    }

    fn give(&mut self, reply: &Reply, read: u64, out: &mut Vec<u8>) {
        if reply.abort {
            self.state = State::Aborted;
            return;
        }
        self.answers.write(reply, read, out);
        self.state = if reply.close { State::Over } else { State::Head };
    }

    fn refuse(&mut self, status: u16, out: &mut Vec<u8>) {
        self.answers.faults.fetch_add(1, Ordering::Relaxed);
        out.extend(
            format!("HTTP/1.1 {status} Refused\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").bytes(),
        );
        self.state = State::Over;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a server with the given fixed answer says to `input`, sent in pieces of `size` bytes.
    fn said(fixed: Option<&[u8]>, input: &str, size: usize) -> String {
        let answers = Answers::new("pod-1", "shop", fixed.map(<[u8]>::to_vec));
        let mut conversation = Conversation::new(Arc::new(answers), "10.0.0.1:5".parse().unwrap());
        let mut out = Vec::new();
        for piece in input.as_bytes().chunks(size) {
            conversation.take(piece, &mut out);
        }
        String::from_utf8(out).unwrap()
    }

    fn statuses(said: &str) -> Vec<&str> {
        said.split("HTTP/1.1 ").skip(1).map(|answer| &answer[..3]).collect()
    }

    #[test]
    fn pipelined_requests_are_answered_in_order_however_they_are_cut() {
        let input = "POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nxyz\
                     POST /b?q=1 HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n4;x=y\r\nabcd\r\n0\r\nTrailer: t\r\n\r\n\
                     GET /c HTTP/1.1\r\nHost: h\r\n\r\n";
        for size in [1, 2, 7, 64, 10_000] {
            let said = said(None, input, size);
            assert_eq!(statuses(&said), ["200"; 3], "{size}: {said}");
            let places: Vec<_> =
                [r#""body_bytes":3"#, r#""path":"/a""#, r#""body_bytes":4"#, r#""query":"q=1""#]
                    .iter()
                    .map(|text| said.find(text).unwrap_or_else(|| panic!("{size}: no {text} in {said}")))
                    .collect();
            assert!(places.is_sorted() && said.contains(r#""path":"/c""#), "{size}: {said}");
        }
    }

    #[test]
    fn a_fixed_answer_is_the_same_for_every_path_and_has_no_body_for_head() {
        let said = said(Some(b"fixed"), "GET /x HTTP/1.1\r\n\r\nHEAD / HTTP/1.1\r\n\r\n", 1000);
        assert_eq!(statuses(&said), ["200", "200"]);
        assert_eq!(said.matches("Content-Length: 5\r\n").count(), 2);
        assert_eq!(said.matches("fixed").count(), 1);
    }

    #[test]
    fn switches_in_the_query_choose_status_and_end() {
        let teapot = said(None, "GET /?status=418&close HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\n\r\n", 1000);
        assert_eq!(statuses(&teapot), ["418"], "nothing is answered after the close");
        assert!(teapot.contains("Connection: close\r\n"));
        assert_eq!(said(None, "GET /?abort HTTP/1.1\r\n\r\n", 1000), "");
        let empty = said(None, "GET /?status=204 HTTP/1.1\r\n\r\n", 1000);
        assert!(empty.ends_with("\r\n\r\n") && !empty.contains("Content-Length"), "{empty}");
    }

    #[test]
    fn a_delayed_answer_is_owed_and_holds_back_the_next() {
        let answers = Arc::new(Answers::new("p", "n", None));
        let mut conversation = Conversation::new(answers, "10.0.0.1:5".parse().unwrap());
        let mut out = Vec::new();
        conversation.take(b"GET /?delay_ms=60000 HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\n\r\n", &mut out);
        conversation.wake(&mut out);
        assert!(out.is_empty() && conversation.due().is_some() && conversation.wants_more());
    }

    #[test]
    fn a_client_that_asks_first_is_told_to_continue() {
        let input = "PUT / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n";
        assert_eq!(said(None, input, 1000), "HTTP/1.1 100 Continue\r\n\r\n");
    }

    #[test]
    fn what_is_malformed_is_refused_and_ends_the_connection() {
        for input in [
            "nonsense\r\n\r\n",
            "GET / HTTP/2\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        ] {
            assert_eq!(statuses(&said(None, input, 1000)), ["400"], "{input:?}");
        }
    }
}
