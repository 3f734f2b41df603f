//! The server's side of HTTP/2 on one connection, for servers that always answer the same: requests are not read, only
//! their ends found.

use std::collections::VecDeque;
use std::sync::Arc;

use super::answer::Answers;
use crate::app::h2::{self, FRAME_BYTES_MAX, Frame, PREFACE, WINDOW_BYTES, broken, flag, kind, setting};

/// Streams that a client may have open.
const STREAMS_MAX: u32 = 1000;

/// What was said so far.
pub struct Conversation {
    answers: Arc<Answers>,
    received: Vec<u8>,
    /// The client's preface has been read.
    has_begun: bool,
    /// A header block without its end: whether the request ends with it.
    open_block: Option<(u32, bool)>,
    /// What may still be sent on the connection, in bytes.
    window: i64,
    /// A new stream's window, in bytes.
    stream_window: i64,
    /// Answers that wait for a window, in order.
    waiting: VecDeque<Waiting>,
}

struct Waiting {
    stream: u32,
    window: i64,
    sent: usize,
}

impl Conversation {
    /// A conversation that is about to begin.
    pub fn new(answers: Arc<Answers>, out: &mut Vec<u8>) -> Self {
        h2::write_settings(out, &[(setting::MAX_CONCURRENT_STREAMS, STREAMS_MAX)]);
        let window = i64::from(WINDOW_BYTES);
        Self {
            answers,
            received: Vec::new(),
            has_begun: false,
            open_block: None,
            window,
            stream_window: window,
            waiting: VecDeque::new(),
        }
    }

    /// Takes in what has arrived; answers go to `out`.
    pub fn take(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> std::io::Result<()> {
        let mut received = std::mem::take(&mut self.received);
        received.extend_from_slice(bytes);
        let mut at = 0;
        if !self.has_begun && received.len() >= PREFACE.len() {
            if !received.starts_with(PREFACE) {
                return Err(broken("no HTTP/2 preface"));
            }
            self.has_begun = true;
            at = PREFACE.len();
        }
        while self.has_begun
            && let Some((frame, length)) = Frame::parse(&received[at..])?
        {
            self.frame(&frame, out)?;
            at += length;
        }
        received.drain(..at);
        self.received = received;
        Ok(())
    }

    fn frame(&mut self, frame: &Frame<'_>, out: &mut Vec<u8>) -> std::io::Result<()> {
        match frame.kind {
            kind::HEADERS if frame.has(flag::END_HEADERS) => {
                self.request(frame.stream, frame.has(flag::END_STREAM), out);
            }
            kind::HEADERS => self.open_block = Some((frame.stream, frame.has(flag::END_STREAM))),
            kind::CONTINUATION if frame.has(flag::END_HEADERS) => {
                let (stream, ends) =
                    self.open_block.take().ok_or_else(|| broken("a block goes on that never began"))?;
                self.request(stream, ends, out);
            }
            kind::DATA => {
                // What was read may be sent again at once: nothing here holds content.
                let length = u32::try_from(frame.payload.len()).unwrap_or(0);
                if length > 0 {
                    h2::write_window(out, 0, length);
                }
                if frame.has(flag::END_STREAM) {
                    self.request(frame.stream, true, out);
                } else if length > 0 {
                    h2::write_window(out, frame.stream, length);
                }
            }
            kind::SETTINGS if !frame.has(flag::ACK) => self.settings(frame, out),
            kind::PING if !frame.has(flag::ACK) => {
                h2::write(out, kind::PING, flag::ACK, 0, frame.payload);
            }
            kind::WINDOW_UPDATE => self.widen(frame.stream, i64::from(frame.number()?), out),
            kind::RST_STREAM => self.waiting.retain(|waiting| waiting.stream != frame.stream),
            _ => {}
        }
        Ok(())
    }

    fn settings(&mut self, frame: &Frame<'_>, out: &mut Vec<u8>) {
        for (name, value) in frame.settings() {
            if name == setting::INITIAL_WINDOW_SIZE {
                // RFC 9113 section 6.9.2: a change counts for open streams too.
                let change = i64::from(value) - self.stream_window;
                self.stream_window += change;
                self.waiting.iter_mut().for_each(|waiting| waiting.window += change);
            }
        }
        h2::write(out, kind::SETTINGS, flag::ACK, 0, &[]);
        self.send(out);
    }

    fn widen(&mut self, stream: u32, more: i64, out: &mut Vec<u8>) {
        if stream == 0 {
            self.window += more;
        } else if let Some(waiting) = self.waiting.iter_mut().find(|waiting| waiting.stream == stream) {
            waiting.window += more;
        }
        self.send(out);
    }

    /// A request's headers have arrived; when it also ends here, it is answered.
    fn request(&mut self, stream: u32, ends: bool, out: &mut Vec<u8>) {
        if !ends {
            return;
        }
        h2::write(out, kind::HEADERS, flag::END_HEADERS, stream, self.answers.fixed_block());
        self.waiting.push_back(Waiting { stream, window: self.stream_window, sent: 0 });
        self.send(out);
    }

    /// Sends what the windows allow.
    fn send(&mut self, out: &mut Vec<u8>) {
        let body = self.answers.fixed_body();
        self.waiting.retain_mut(|waiting| {
            loop {
                let left = &body[waiting.sent..];
                let room = usize::try_from(self.window.min(waiting.window).max(0)).unwrap_or(usize::MAX);
                let length = left.len().min(room).min(FRAME_BYTES_MAX);
                let is_last = length == left.len();
                if length == 0 && !is_last {
                    return true;
                }
                let flags = if is_last { flag::END_STREAM } else { 0 };
                h2::write(out, kind::DATA, flags, waiting.stream, &left[..length]);
                // At most FRAME_BYTES_MAX.
                let spent = i64::try_from(length).unwrap_or(0);
                self.window -= spent;
                waiting.window -= spent;
                waiting.sent += length;
                if is_last {
                    return false;
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begun(body: usize) -> (Conversation, Vec<u8>) {
        let mut out = Vec::new();
        let answers = Answers::new("p", "n", Some(vec![b'x'; body]));
        let mut conversation = Conversation::new(Arc::new(answers), &mut out);
        conversation.take(PREFACE, &mut out).unwrap();
        out.clear();
        (conversation, out)
    }

    fn kinds(out: &[u8]) -> Vec<(u8, u32, usize, bool)> {
        let (mut at, mut all) = (0, Vec::new());
        while let Some((frame, length)) = Frame::parse(&out[at..]).unwrap() {
            all.push((frame.kind, frame.stream, frame.payload.len(), frame.has(flag::END_STREAM)));
            at += length;
        }
        all
    }

    #[test]
    fn a_request_is_answered_when_it_ends_however_it_is_cut() {
        let mut request = Vec::new();
        h2::write(&mut request, kind::HEADERS, 0, 1, b"\x82");
        h2::write(&mut request, kind::CONTINUATION, flag::END_HEADERS, 1, b"\x86");
        h2::write(&mut request, kind::DATA, flag::END_STREAM, 1, b"");
        let (mut conversation, mut out) = begun(3);
        for byte in &request {
            assert!(out.is_empty());
            conversation.take(&[*byte], &mut out).unwrap();
        }
        let answer = kinds(&out);
        assert_eq!((answer[0].0, answer[1..].to_vec()), (kind::HEADERS, vec![(kind::DATA, 1, 3, true)]));
    }

    #[test]
    fn an_answer_waits_for_windows() {
        let (mut conversation, mut out) = begun(40_000);
        let mut input = Vec::new();
        h2::write(&mut input, kind::HEADERS, flag::END_HEADERS | flag::END_STREAM, 1, b"");
        h2::write(&mut input, kind::HEADERS, flag::END_HEADERS | flag::END_STREAM, 3, b"");
        conversation.take(&input, &mut out).unwrap();
        let sent =
            |out: &[u8]| kinds(out).iter().filter(|one| one.0 == kind::DATA).map(|one| one.2).sum::<usize>();
        assert_eq!(sent(&out), 65_535);
        input.clear();
        h2::write_window(&mut input, 0, 100_000);
        conversation.take(&input, &mut out).unwrap();
        assert_eq!(sent(&out), 80_000);
    }

    #[test]
    fn pings_and_settings_are_answered() {
        let (mut conversation, mut out) = begun(1);
        let mut input = Vec::new();
        h2::write(&mut input, kind::PING, 0, 0, b"12345678");
        h2::write_settings(&mut input, &[(setting::INITIAL_WINDOW_SIZE, 5)]);
        conversation.take(&input, &mut out).unwrap();
        assert_eq!(kinds(&out), [(kind::PING, 0, 8, true), (kind::SETTINGS, 0, 0, true)]);
    }
}
