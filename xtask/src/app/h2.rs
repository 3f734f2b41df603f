//! Frames of HTTP/2 (RFC 9113), as far as a client that always asks the same and a server that always answers the same need
//! them: they measure what lies between them, and must cost little themselves. Headers are written without compression
//! state, and read only where a status stands.

use std::io::{Error, ErrorKind};

/// What a client says first.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Length of a frame's header, in bytes.
const HEADER_BYTES: usize = 9;

/// Largest frame that a peer may send here, in bytes: the initial value of SETTINGS_MAX_FRAME_SIZE.
pub const FRAME_BYTES_MAX: usize = 16 * 1024;

/// Every stream's and connection's window at first, in bytes.
pub const WINDOW_BYTES: u32 = 65_535;

/// Frame types.
pub mod kind {
    /// Content.
    pub const DATA: u8 = 0;
    /// A header block, or its beginning.
    pub const HEADERS: u8 = 1;
    /// A stream is given up.
    pub const RST_STREAM: u8 = 3;
    /// How the sender wants it.
    pub const SETTINGS: u8 = 4;
    /// Answered with the same.
    pub const PING: u8 = 6;
    /// No new streams.
    pub const GOAWAY: u8 = 7;
    /// More may be sent.
    pub const WINDOW_UPDATE: u8 = 8;
    /// More of a header block.
    pub const CONTINUATION: u8 = 9;
}

/// Frame flags.
pub mod flag {
    /// On DATA and HEADERS: the sender's last on this stream.
    pub const END_STREAM: u8 = 0x1;
    /// On SETTINGS and PING: an answer.
    pub const ACK: u8 = 0x1;
    /// On HEADERS and CONTINUATION: the block is complete.
    pub const END_HEADERS: u8 = 0x4;
    /// On DATA and HEADERS: padding stands around the payload.
    pub const PADDED: u8 = 0x8;
    /// On HEADERS: a priority stands before the block.
    pub const PRIORITY: u8 = 0x20;
}

/// Settings that are sent or read here.
pub mod setting {
    /// Room for compression state.
    pub const HEADER_TABLE_SIZE: u16 = 1;
    /// Whether a server may push.
    pub const ENABLE_PUSH: u16 = 2;
    /// Streams at a time.
    pub const MAX_CONCURRENT_STREAMS: u16 = 3;
    /// A new stream's window.
    pub const INITIAL_WINDOW_SIZE: u16 = 4;
}

/// A frame.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Its type.
    pub kind: u8,
    /// Its flags.
    pub flags: u8,
    /// Its stream; 0 for the connection.
    pub stream: u32,
    /// What it carries.
    pub payload: &'a [u8],
}

impl<'a> Frame<'a> {
    /// The frame at the beginning of `bytes`, and its length; none when more must arrive first.
    pub fn parse(bytes: &'a [u8]) -> std::io::Result<Option<(Self, usize)>> {
        let Some((head, rest)) = bytes.split_at_checked(HEADER_BYTES) else { return Ok(None) };
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        if length > FRAME_BYTES_MAX {
            return Err(broken("a frame is too long"));
        }
        let Some(payload) = rest.get(..length) else { return Ok(None) };
        let stream = u32::from_be_bytes([head[5] & 0x7f, head[6], head[7], head[8]]);
        Ok(Some((Self { kind: head[3], flags: head[4], stream, payload }, HEADER_BYTES + length)))
    }

    /// Whether a flag is set.
    pub fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// The payload without padding and priority.
    pub fn content(&self) -> std::io::Result<&'a [u8]> {
        let (mut content, mut padding) = (self.payload, 0);
        if self.has(flag::PADDED) {
            let (length, rest) = content.split_first().ok_or_else(|| broken("padding without a length"))?;
            (content, padding) = (rest, usize::from(*length));
        }
        if self.kind == kind::HEADERS && self.has(flag::PRIORITY) {
            content = content.get(5..).ok_or_else(|| broken("a priority is cut off"))?;
        }
        let end = content.len().checked_sub(padding).ok_or_else(|| broken("more padding than payload"))?;
        Ok(&content[..end])
    }

    /// The payload's number, of a WINDOW_UPDATE or RST_STREAM.
    pub fn number(&self) -> std::io::Result<u32> {
        let bytes =
            self.payload.try_into().map_err(|_wrong_length| broken("a frame has the wrong length"))?;
        Ok(u32::from_be_bytes(bytes))
    }

    /// Pairs of a SETTINGS frame.
    pub fn settings(&self) -> impl Iterator<Item = (u16, u32)> + use<'a> {
        self.payload.chunks_exact(6).map(|six| {
            (u16::from_be_bytes([six[0], six[1]]), u32::from_be_bytes([six[2], six[3], six[4], six[5]]))
        })
    }
}

/// Writes a frame.
pub fn write(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX).to_be_bytes();
    out.extend_from_slice(&length[1..]);
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
}

/// Writes SETTINGS.
pub fn write_settings(out: &mut Vec<u8>, settings: &[(u16, u32)]) {
    let mut payload = Vec::new();
    for (name, value) in settings {
        payload.extend_from_slice(&name.to_be_bytes());
        payload.extend_from_slice(&value.to_be_bytes());
    }
    write(out, kind::SETTINGS, 0, 0, &payload);
}

/// Writes a WINDOW_UPDATE.
pub fn write_window(out: &mut Vec<u8>, stream: u32, more: u32) {
    write(out, kind::WINDOW_UPDATE, 0, stream, &more.to_be_bytes());
}

/// A header field for a block, never put into compression state (RFC 7541 section 6.2.2): its name by its number in the
/// static table.
pub fn field(block: &mut Vec<u8>, name_number: u8, value: &str) {
    match name_number {
        0..15 => block.push(name_number),
        _ => block.extend_from_slice(&[0x0f, name_number - 15]),
    }
    // Values here are far below the 127 bytes from which a length takes more than one.
    block.push(u8::try_from(value.len().min(126)).unwrap_or(126));
    block.extend_from_slice(&value.as_bytes()[..value.len().min(126)]);
}

/// Whether a response's header block begins with status 200, as the static table has it. Other spellings of 200 exist in
/// theory; a block that uses one is taken for another status, which shows as an error.
pub fn is_200(block: &[u8]) -> bool {
    // Changes of the table's size may come first (RFC 7541 section 6.3); none here takes more than one byte, for the size is 0.
    block.iter().find(|byte| **byte & 0xe0 != 0x20) == Some(&0x88)
}

/// An error of the protocol.
pub fn broken(what: &str) -> Error {
    Error::new(ErrorKind::InvalidData, what.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_read_as_they_were_written_once_they_are_whole() {
        let mut bytes = Vec::new();
        write(&mut bytes, kind::DATA, flag::END_STREAM, 5, b"abc");
        for cut in 0..bytes.len() {
            assert_eq!(Frame::parse(&bytes[..cut]).unwrap(), None);
        }
        bytes.push(9);
        let frame = Frame { kind: kind::DATA, flags: flag::END_STREAM, stream: 5, payload: b"abc" };
        assert_eq!(Frame::parse(&bytes).unwrap(), Some((frame, 12)));
    }

    #[test]
    fn padding_and_priority_are_no_content() {
        let flags = flag::PADDED | flag::PRIORITY;
        let frame = Frame { kind: kind::HEADERS, flags, stream: 1, payload: b"\x02pppppabc\0\0" };
        assert_eq!(frame.content().unwrap(), b"abc");
        assert!(Frame { payload: b"\x09ppppp", ..frame }.content().is_err());
    }

    #[test]
    fn a_status_of_200_is_known_behind_changes_of_the_table() {
        assert!(is_200(b"\x88") && is_200(b"\x20\x88rest"));
        assert!(!is_200(b"\x8d") && !is_200(b"") && !is_200(b"\x20"));
    }
}
