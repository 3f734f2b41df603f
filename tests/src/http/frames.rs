//! HTTP/2 as frames (RFC 9113): what no library would send, and what comes back for it. Header blocks are literals without
//! indexing (RFC 7541 section 6.2.2); of those that come only the status is read.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// The client's connection preface (section 3.4).
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Frame types (section 6).
pub mod kind {
    #![expect(missing_docs, reason = "RFC 9113 section 6 has them by these names")]
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const PRIORITY: u8 = 2;
    pub const RST_STREAM: u8 = 3;
    pub const SETTINGS: u8 = 4;
    pub const PUSH_PROMISE: u8 = 5;
    pub const PING: u8 = 6;
    pub const GOAWAY: u8 = 7;
    pub const WINDOW_UPDATE: u8 = 8;
    pub const CONTINUATION: u8 = 9;
}

/// Flags of frames.
pub mod flag {
    #![expect(missing_docs, reason = "RFC 9113 section 6 has them by these names")]
    pub const ACK: u8 = 1;
    pub const END_STREAM: u8 = 1;
    pub const END_HEADERS: u8 = 4;
    pub const PADDED: u8 = 8;
    pub const PRIORITY: u8 = 32;
}

/// Error codes (section 7).
pub mod code {
    #![expect(missing_docs, reason = "RFC 9113 section 7 has them by these names")]
    pub const NO_ERROR: u32 = 0;
    pub const PROTOCOL_ERROR: u32 = 1;
    pub const INTERNAL_ERROR: u32 = 2;
    pub const FLOW_CONTROL_ERROR: u32 = 3;
    pub const STREAM_CLOSED: u32 = 5;
    pub const FRAME_SIZE_ERROR: u32 = 6;
    pub const REFUSED_STREAM: u32 = 7;
    pub const CANCEL: u32 = 8;
    pub const COMPRESSION_ERROR: u32 = 9;
    pub const ENHANCE_YOUR_CALM: u32 = 11;
}

/// A frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Its type.
    pub kind: u8,
    /// Its flags.
    pub flags: u8,
    /// Its stream; 0 is the connection.
    pub stream: u32,
    /// Its payload.
    pub payload: Vec<u8>,
}

/// What came of something that was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A response's head on a stream, with its status.
    Answered(u32, u16),
    /// RST_STREAM on a stream.
    StreamError(u32, u32),
    /// GOAWAY with an error.
    ConnectionError(u32),
    /// The connection ended without GOAWAY.
    Closed,
    /// An acknowledged PING with its payload.
    Pong([u8; 8]),
    /// Nothing in time.
    Silence,
}

/// A connection.
#[derive(Debug)]
pub struct Http2 {
    stream: TcpStream,
    /// SETTINGS_MAX_FRAME_SIZE of the other side.
    pub max_frame_bytes: usize,
    /// SETTINGS_MAX_CONCURRENT_STREAMS of the other side.
    pub max_streams: Option<u32>,
}

/// A frame's bytes.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a payload is small").to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags];
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// A settings frame's payload.
pub fn settings(values: &[(u16, u32)]) -> Vec<u8> {
    let pairs =
        values.iter().flat_map(|(name, value)| [&name.to_be_bytes()[..], &value.to_be_bytes()[..]].concat());
    pairs.collect()
}

/// A header block of literals.
pub fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, value) in fields {
        bytes.push(0);
        text(&mut bytes, name);
        text(&mut bytes, value);
    }
    bytes
}

/// A string literal without Huffman coding (RFC 7541 section 5.2).
fn text(bytes: &mut Vec<u8>, text: &str) {
    let mut rest = text.len();
    if rest < 127 {
        bytes.push(rest as u8);
    } else {
        bytes.push(127);
        rest -= 127;
        while rest >= 128 {
            bytes.push((rest % 128) as u8 | 128);
            rest /= 128;
        }
        bytes.push(rest as u8);
    }
    bytes.extend_from_slice(text.as_bytes());
}

/// The header block of a GET.
pub fn get(path: &str) -> Vec<u8> {
    block(&[(":method", "GET"), (":scheme", "http"), (":path", path), (":authority", "test.example")])
}

/// The header block of a POST.
pub fn post(path: &str, more: &[(&str, &str)]) -> Vec<u8> {
    let fields = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "test.example")];
    block(&[&fields[..], more].concat())
}

impl Http2 {
    /// Sends the preface and settings, and waits for the other side's.
    ///
    /// # Errors
    /// The other side does not speak HTTP/2.
    pub fn open(stream: TcpStream) -> io::Result<Self> {
        let mut http = Self::bare(stream)?;
        http.raw(PREFACE)?;
        // No dynamic table for what comes, so that blocks can be read one by one.
        http.send(kind::SETTINGS, 0, 0, &settings(&[(1, 0)]))?;
        let (mut has_settings, mut is_acknowledged) = (false, false);
        while !(has_settings && is_acknowledged) {
            let frame = http.next_frame()?;
            match (frame.kind, frame.flags) {
                (kind::SETTINGS, 0) => {
                    has_settings = true;
                    http.learn(&frame.payload);
                    http.send(kind::SETTINGS, flag::ACK, 0, &[])?;
                }
                (kind::SETTINGS, _) => is_acknowledged = true,
                (kind::WINDOW_UPDATE, _) => {}
                _ => return Err(io::Error::other(format!("{frame:?} while opening"))),
            }
        }
        Ok(http)
    }

    /// A connection on which nothing was sent yet.
    ///
    /// # Errors
    /// The socket has no timeouts.
    pub fn bare(stream: TcpStream) -> io::Result<Self> {
        stream.set_read_timeout(Some(Duration::from_secs(3)))?;
        stream.set_write_timeout(Some(Duration::from_secs(3)))?;
        Ok(Self { stream, max_frame_bytes: 16_384, max_streams: None })
    }

    fn learn(&mut self, settings: &[u8]) {
        for setting in settings.chunks_exact(6) {
            let value = u32::from_be_bytes([setting[2], setting[3], setting[4], setting[5]]);
            match setting[1] {
                3 => self.max_streams = Some(value),
                5 => self.max_frame_bytes = value as usize,
                _ => {}
            }
        }
    }

    /// Sends bytes.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Sends a frame.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> io::Result<()> {
        self.raw(&frame(kind, flags, stream, payload))
    }

    /// Sends a whole request without a body.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn request(&mut self, stream: u32, block: &[u8]) -> io::Result<()> {
        self.send(kind::HEADERS, flag::END_HEADERS | flag::END_STREAM, stream, block)
    }

    /// How long [`Http2::next_frame`] and [`Http2::outcome`] wait.
    ///
    /// # Errors
    /// The socket has no timeouts.
    pub fn be_patient(&self, patience: Duration) -> io::Result<()> {
        self.stream.set_read_timeout(Some(patience))
    }

    /// Ends this direction.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn finish(&self) -> io::Result<()> {
        self.stream.shutdown(std::net::Shutdown::Write)
    }

    /// The next frame.
    ///
    /// # Errors
    /// The connection ended, or nothing came in time.
    pub fn next_frame(&mut self) -> io::Result<Frame> {
        let mut head = [0u8; 9];
        self.stream.read_exact(&mut head)?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]) & (u32::MAX >> 1);
        let mut payload = vec![0; length];
        self.stream.read_exact(&mut payload)?;
        Ok(Frame { kind: head[3], flags: head[4], stream, payload })
    }

    /// Reads until something says what came of the last words. Settings are acknowledged, bodies passed over.
    pub fn outcome(&mut self) -> Outcome {
        loop {
            let frame = match self.next_frame() {
                Ok(frame) => frame,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Outcome::Silence,
                Err(_) => return Outcome::Closed,
            };
            let word = |at: usize| {
                let four = frame.payload.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
                u32::from_be_bytes(four.unwrap_or_default())
            };
            match (frame.kind, frame.flags) {
                (kind::HEADERS, _) if status(&frame.payload).is_some() => {
                    return Outcome::Answered(frame.stream, status(&frame.payload).unwrap_or_default());
                }
                (kind::RST_STREAM, _) => return Outcome::StreamError(frame.stream, word(0)),
                // A polite GOAWAY is followed by what it announces.
                (kind::GOAWAY, _) if word(4) == code::NO_ERROR => {}
                (kind::GOAWAY, _) => return Outcome::ConnectionError(word(4)),
                (kind::PING, flag::ACK) => {
                    return Outcome::Pong(frame.payload.try_into().unwrap_or_default());
                }
                (kind::SETTINGS, 0) => drop(self.send(kind::SETTINGS, flag::ACK, 0, &[])),
                _ => {}
            }
        }
    }
}

/// The status in a header block that was made without a dynamic table.
fn status(block: &[u8]) -> Option<u16> {
    const INDEXED: [u16; 7] = [200, 204, 206, 304, 400, 404, 500];
    let mut rest = block;
    // Changes of the table's size come first (RFC 7541 section 6.3).
    while rest.first()? & 0xe0 == 0x20 {
        rest = &rest[1..];
    }
    let first = *rest.first()?;
    if first & 0x80 != 0 {
        return INDEXED.get(usize::from(first & 0x7f).checked_sub(8)?).copied();
    }
    // A literal, indexed or not, whose name is one of the static table's `:status` entries.
    let name = if first & 0xc0 == 0x40 { first & 0x3f } else { first & 0x0f };
    if !(8..=14).contains(&name) {
        return None;
    }
    let length = *rest.get(1)?;
    let value = rest.get(2..2 + usize::from(length & 0x7f))?;
    let digits =
        if length & 0x80 != 0 { huffman_digits(value) } else { String::from_utf8_lossy(value).into_owned() };
    digits.parse().ok()
}

/// Three digits in Huffman coding (RFC 7541 appendix B: `0` to `2` have five bits, `3` to `9` six).
fn huffman_digits(bytes: &[u8]) -> String {
    let bits: Vec<u8> = bytes.iter().flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1)).collect();
    let number = |from: usize, to: usize| {
        bits.get(from..to).map(|bits| bits.iter().fold(0u8, |number, bit| number << 1 | bit))
    };
    let (mut at, mut digits) = (0, String::new());
    while digits.len() < 3 {
        match (number(at, at + 5), number(at, at + 6)) {
            (Some(short @ 0..=2), _) => {
                digits.push(char::from(b'0' + short));
                at += 5;
            }
            (_, Some(long @ 25..=31)) => {
                digits.push(char::from(b'3' + long - 25));
                at += 6;
            }
            _ => break,
        }
    }
    digits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_read_in_every_form() {
        for (block, expected) in [
            (&[0x88u8][..], Some(200)),
            (&[0x20, 0x8c], Some(400)),
            (&[0x48, 0x03, b'5', b'0', b'4'], Some(504)),
            // RFC 7541 section C.6.1: 302 with Huffman coding.
            (&[0x48, 0x82, 0x64, 0x02], Some(302)),
            // RFC 7541 section C.6.2: 307.
            (&[0x48, 0x83, 0x64, 0x0e, 0xff], Some(307)),
            (&[0x00, 0x01, b'a', 0x01, b'b'], None),
        ] {
            assert_eq!(status(block), expected, "{block:02x?}");
        }
    }
}
