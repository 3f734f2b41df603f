//! The client's side of HTTP/2 on one connection: the same request on stream after stream, and answers that must be the
//! expected one.

use std::io::Result;

use super::payload;
use crate::app::h2::{self, Frame, PREFACE, broken, flag, kind, setting};

/// The connection's and every stream's window, in bytes: never what is waited for.
const WINDOW_BYTES: u32 = 1 << 30;

/// What is said on a connection.
pub struct Talk {
    block: Vec<u8>,
    expected: Vec<u8>,
    received: Vec<u8>,
    next_stream: u32,
    open: Vec<Open>,
    /// Content since the connection's window was last widened, in bytes.
    unreturned: u32,
    /// The stream of a header block without its end, and what is there of it.
    block_of: Option<(u32, bool, Vec<u8>)>,
}

struct Open {
    stream: u32,
    id: usize,
    has_status: bool,
    received: usize,
}

impl Talk {
    /// A conversation about one thing; what a client says first goes to `out`.
    pub fn new(host: &str, path: &str, size: usize, out: &mut Vec<u8>) -> Self {
        out.extend_from_slice(PREFACE);
        // Without room for compression state every answer's status stands in full.
        let settings = [
            (setting::HEADER_TABLE_SIZE, 0),
            (setting::ENABLE_PUSH, 0),
            (setting::INITIAL_WINDOW_SIZE, WINDOW_BYTES),
        ];
        h2::write_settings(out, &settings);
        h2::write_window(out, 0, WINDOW_BYTES);
        // Numbers of RFC 7541's static table: :method GET, :scheme http, :path, :authority, user-agent, accept.
        let mut block = vec![0x82, 0x86];
        for (name, value) in [(4, path), (1, host), (58, "weft-bench"), (19, "*/*")] {
            h2::field(&mut block, name, value);
        }
        Self {
            block,
            expected: payload(size),
            received: Vec::new(),
            next_stream: 1,
            open: Vec::new(),
            unreturned: 0,
            block_of: None,
        }
    }

    /// Asks.
    pub fn ask(&mut self, id: usize, out: &mut Vec<u8>) {
        let stream = self.next_stream;
        self.next_stream += 2;
        self.open.push(Open { stream, id, has_status: false, received: 0 });
        h2::write(out, kind::HEADERS, flag::END_HEADERS | flag::END_STREAM, stream, &self.block);
    }

    /// Takes in what has arrived.
    pub fn take(&mut self, bytes: &[u8], out: &mut Vec<u8>, done: &mut Vec<usize>) -> Result<()> {
        let mut received = std::mem::take(&mut self.received);
        received.extend_from_slice(bytes);
        let mut at = 0;
        while let Some((frame, length)) = Frame::parse(&received[at..])? {
            self.frame(&frame, out, done)?;
            at += length;
        }
        received.drain(..at);
        self.received = received;
        if self.unreturned > WINDOW_BYTES / 2 {
            h2::write_window(out, 0, std::mem::take(&mut self.unreturned));
        }
        Ok(())
    }

    fn frame(&mut self, frame: &Frame<'_>, out: &mut Vec<u8>, done: &mut Vec<usize>) -> Result<()> {
        match frame.kind {
            kind::HEADERS if frame.has(flag::END_HEADERS) => {
                self.headers(frame.stream, frame.has(flag::END_STREAM), frame.content()?, done)?;
            }
            kind::HEADERS => {
                let block = frame.content()?.to_vec();
                self.block_of = Some((frame.stream, frame.has(flag::END_STREAM), block));
            }
            kind::CONTINUATION => {
                let (stream, ends, mut block) =
                    self.block_of.take().ok_or_else(|| broken("a block goes on that never began"))?;
                block.extend_from_slice(frame.payload);
                if frame.has(flag::END_HEADERS) {
                    self.headers(stream, ends, &block, done)?;
                } else {
                    self.block_of = Some((stream, ends, block));
                }
            }
            kind::DATA => {
                self.unreturned += u32::try_from(frame.payload.len()).unwrap_or(0);
                self.content(frame.stream, frame.content()?, frame.has(flag::END_STREAM), done)?;
            }
            kind::SETTINGS if !frame.has(flag::ACK) => {
                h2::write(out, kind::SETTINGS, flag::ACK, 0, &[]);
            }
            kind::PING if !frame.has(flag::ACK) => {
                h2::write(out, kind::PING, flag::ACK, 0, frame.payload);
            }
            kind::RST_STREAM => return Err(broken(&format!("a stream was reset, code {}", frame.number()?))),
            kind::GOAWAY => return Err(broken("the connection was ended with GOAWAY")),
            _ => {}
        }
        Ok(())
    }

    fn headers(&mut self, stream: u32, ends: bool, block: &[u8], done: &mut Vec<usize>) -> Result<()> {
        let place = self.place(stream)?;
        if !self.open[place].has_status {
            if !h2::is_200(block) {
                return Err(broken(&format!(
                    "the answer's status is not 200 (its headers begin {block:02x?})"
                )));
            }
            self.open[place].has_status = true;
        }
        if ends { self.end(place, done) } else { Ok(()) }
    }

    fn content(&mut self, stream: u32, content: &[u8], ends: bool, done: &mut Vec<usize>) -> Result<()> {
        let place = self.place(stream)?;
        let open = &mut self.open[place];
        let end = open.received + content.len();
        if self.expected.get(open.received..end) != Some(content) {
            return Err(broken("the answer has other bytes"));
        }
        open.received = end;
        if ends { self.end(place, done) } else { Ok(()) }
    }

    fn end(&mut self, place: usize, done: &mut Vec<usize>) -> Result<()> {
        let open = self.open.swap_remove(place);
        if open.received != self.expected.len() {
            return Err(broken(&format!("the answer has {} bytes", open.received)));
        }
        done.push(open.id);
        Ok(())
    }

    fn place(&self, stream: u32) -> Result<usize> {
        let place = self.open.iter().position(|open| open.stream == stream);
        place.ok_or_else(|| broken("an answer to no request"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_of_several_streams_may_be_mixed() {
        let (mut out, mut answer) = (Vec::new(), Vec::new());
        for stream in [3, 1] {
            h2::write(&mut answer, kind::HEADERS, flag::END_HEADERS, stream, b"\x88");
        }
        h2::write(&mut answer, kind::DATA, 0, 1, b"we");
        h2::write(&mut answer, kind::DATA, flag::END_STREAM, 3, b"weft");
        h2::write(&mut answer, kind::DATA, flag::END_STREAM, 1, b"ft");
        for size in [1, 1000] {
            let mut done = Vec::new();
            let mut talk = Talk::new("h", "/", 4, &mut out);
            talk.ask(0, &mut out);
            talk.ask(1, &mut out);
            for piece in answer.chunks(size) {
                talk.take(piece, &mut out, &mut done).unwrap();
            }
            assert_eq!(done, [1, 0]);
        }
    }

    #[test]
    fn other_statuses_bytes_and_resets_are_errors() {
        for (kind, flags, payload) in [
            (kind::HEADERS, flag::END_HEADERS | flag::END_STREAM, b"\x8e".as_slice()),
            (kind::HEADERS, flag::END_HEADERS | flag::END_STREAM, b"\x88"),
            (kind::DATA, flag::END_STREAM, b"abcd"),
            (kind::RST_STREAM, 0, b"\0\0\0\x07"),
        ] {
            let (mut out, mut answer) = (Vec::new(), Vec::new());
            let mut talk = Talk::new("h", "/", 4, &mut out);
            talk.ask(0, &mut out);
            h2::write(&mut answer, kind, flags, 1, payload);
            assert!(talk.take(&answer, &mut out, &mut Vec::new()).is_err(), "{kind} {payload:?}");
        }
    }
}
