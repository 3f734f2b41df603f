//! Watches the framing of HTTP/1.1 requests before the parser sees them, and refuses what two parsers could read in two
//! ways (RFC 9112 sections 2.2, 3, 5, 6 and 11.2).
//!
//! Beside station 5. A pure state machine over bytes. It never decides what a request means: hyper does. It only makes sure
//! that where one request ends and the next begins is beyond doubt; a byte that leaves doubt is replaced by CR, and what
//! follows by NUL: no reading of the grammar admits that pair, so that hyper answers 400 and closes. Bytes that are let pass
//! are not changed.

use memchr::memchr;

use super::sniff::is_token;

/// Longest line that tells a chunk's size, extensions included, in bytes.
const CHUNK_LINE_BYTES_MAX: usize = 1024;

/// Why a request was refused before anybody read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Violation {
    /// A line ends in LF alone.
    BareLf,
    /// CR within a line, or NUL.
    Control,
    /// A header line begins with white space (obsolete folding, or white space before the first header).
    Folding,
    /// The head is longer than allowed.
    HeadTooLarge,
    /// The first line is no request line.
    RequestLine,
    /// A header line without a name, or with white space around it.
    HeaderName,
    /// Content-Length is not one number, or comes twice.
    ContentLength,
    /// Both Content-Length and Transfer-Encoding.
    LengthAndEncoding,
    /// Transfer-Encoding is something else than one `chunked`, or comes with HTTP/1.0.
    TransferEncoding,
    /// No Host, or several, in HTTP/1.1.
    Host,
    /// A chunk's size cannot be read, or its end is missing.
    Chunk,
    /// Bytes behind a request that asks for another protocol, before it was answered.
    TooEarly,
    /// HTTP/2 control frames without end (see [`super::flood`]).
    Flood,
}

impl Violation {
    /// Every one, for documentation and tests.
    pub const ALL: [Self; 13] = [
        Self::BareLf,
        Self::Control,
        Self::Folding,
        Self::HeadTooLarge,
        Self::RequestLine,
        Self::HeaderName,
        Self::ContentLength,
        Self::LengthAndEncoding,
        Self::TransferEncoding,
        Self::Host,
        Self::Chunk,
        Self::TooEarly,
        Self::Flood,
    ];

    /// Stable metric label.
    pub fn label(self) -> &'static str {
        match self {
            Self::BareLf => "bare_lf",
            Self::Control => "control_byte",
            Self::Folding => "obs_fold",
            Self::HeadTooLarge => "head_too_large",
            Self::RequestLine => "request_line",
            Self::HeaderName => "header_name",
            Self::ContentLength => "content_length",
            Self::LengthAndEncoding => "length_and_encoding",
            Self::TransferEncoding => "transfer_encoding",
            Self::Host => "host",
            Self::Chunk => "chunk",
            Self::TooEarly => "too_early",
            Self::Flood => "flood",
        }
    }
}

/// Where in the stream of requests we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// In a head, of which so much lies in `Guard::line` and before.
    Head,
    /// In a body of known length, with so many bytes to come.
    Body { left: u64 },
    /// In the line that tells a chunk's size.
    ChunkSize,
    /// In a chunk, with so many bytes to come.
    Chunk { left: u64 },
    /// Behind a chunk, of whose CRLF so many bytes have come.
    ChunkEnd { seen: u8 },
    /// In the trailers.
    Trailers,
    /// After a request that asks for another protocol, until it is answered.
    Asked,
    /// The connection is something else now: not looked at.
    Foreign,
    /// After a violation: nothing passes.
    Refused,
}

/// The watch over one connection.
#[derive(Debug)]
pub struct Guard {
    at: At,
    head_bytes_max: usize,
    headers_max: usize,
    /// The head, trailers or chunk line so far, when it did not come whole.
    pending: Vec<u8>,
}

impl Guard {
    /// At the beginning of a connection.
    pub fn new(head_bytes_max: usize, headers_max: usize) -> Self {
        Self { at: At::Head, head_bytes_max, headers_max, pending: Vec::new() }
    }

    /// True where one request has come whole and no other has begun.
    pub fn is_between(&self) -> bool {
        self.at == At::Head && self.pending.is_empty() || matches!(self.at, At::Asked | At::Foreign)
    }

    /// True while a request for another protocol waits for its answer: nothing may be read meanwhile.
    pub fn awaits_answer(&self) -> bool {
        self.at == At::Asked
    }

    /// The request for another protocol was answered.
    pub fn answered(&mut self, is_granted: bool) {
        self.at = if is_granted { At::Foreign } else { At::Head };
    }

    /// True after a violation.
    pub fn is_refused(&self) -> bool {
        self.at == At::Refused
    }

    /// True in the middle of a head: what a slow client is waited for.
    pub fn in_head(&self) -> bool {
        self.at == At::Head && !self.pending.is_empty()
    }

    /// Looks at the next bytes of the stream; on a violation the byte that shows it becomes CR, and all after it NUL.
    pub fn inspect(&mut self, bytes: &mut [u8]) -> Option<Violation> {
        let mut from = 0;
        while from < bytes.len() {
            match self.step(&bytes[from..]) {
                Ok(used) => from += used,
                Err((at, violation)) => {
                    let is_first = self.at != At::Refused;
                    bytes[from + at..].fill(0);
                    if is_first {
                        bytes[from + at] = b'\r';
                    }
                    self.at = At::Refused;
                    self.pending = Vec::new();
                    return Some(violation);
                }
            }
        }
        None
    }

    /// Goes on by at least one byte; an error says which of them is refused.
    fn step(&mut self, bytes: &[u8]) -> Result<usize, (usize, Violation)> {
        match self.at {
            At::Head => self.head(bytes),
            At::Body { left } => {
                let (used, left) = skip(bytes, left);
                self.at = if left == 0 { At::Head } else { At::Body { left } };
                Ok(used)
            }
            At::ChunkSize => self.chunk_size(bytes),
            At::Chunk { left } => {
                let (used, left) = skip(bytes, left);
                self.at = if left == 0 { At::ChunkEnd { seen: 0 } } else { At::Chunk { left } };
                Ok(used)
            }
            At::ChunkEnd { seen } => {
                if bytes[0] != b"\r\n"[usize::from(seen)] {
                    return Err((0, Violation::Chunk));
                }
                self.at = if seen == 0 { At::ChunkEnd { seen: 1 } } else { At::ChunkSize };
                Ok(1)
            }
            At::Trailers => self.trailers(bytes),
            At::Foreign => Ok(bytes.len()),
            At::Asked => Err((0, Violation::TooEarly)),
            At::Refused => Err((0, Violation::Control)),
        }
    }

    fn head(&mut self, bytes: &[u8]) -> Result<usize, (usize, Violation)> {
        let Some(used) = self.block_end(bytes)? else { return Ok(bytes.len()) };
        let framing = if self.pending.is_empty() {
            read_head(&bytes[..used], self.headers_max)
        } else {
            self.pending.extend_from_slice(&bytes[..used]);
            read_head(&std::mem::take(&mut self.pending), self.headers_max)
        };
        // The last byte of the head is what makes it a head: without it nobody has read one.
        self.at = framing.map_err(|violation| (used - 1, violation))?;
        Ok(used)
    }

    fn trailers(&mut self, bytes: &[u8]) -> Result<usize, (usize, Violation)> {
        let Some(used) = self.block_end(bytes)? else { return Ok(bytes.len()) };
        self.pending.extend_from_slice(&bytes[..used]);
        let block = std::mem::take(&mut self.pending);
        for line in lines(&block) {
            read_header(line).map_err(|violation| (used - 1, violation))?;
        }
        self.at = At::Head;
        Ok(used)
    }

    /// The end of the head or trailers: behind the empty line that ends them. Without one the bytes are kept.
    fn block_end(&mut self, bytes: &[u8]) -> Result<Option<usize>, (usize, Violation)> {
        let before = self.pending.len();
        let mut from = 0;
        while let Some(lf) = memchr(b'\n', &bytes[from..]).map(|at| from + at) {
            if self.byte_before(bytes, lf) != Some(b'\r') {
                return Err((lf, Violation::BareLf));
            }
            if before + lf + 1 > self.head_bytes_max {
                return Err((lf, Violation::HeadTooLarge));
            }
            if self.ends_block(bytes, lf) {
                return Ok(Some(lf + 1));
            }
            from = lf + 1;
        }
        if before + bytes.len() > self.head_bytes_max {
            return Err((bytes.len() - 1, Violation::HeadTooLarge));
        }
        self.pending.extend_from_slice(bytes);
        Ok(None)
    }

    /// Whether the line that ends at `lf` is empty. Before a request line an empty line ends nothing.
    fn ends_block(&self, bytes: &[u8], lf: usize) -> bool {
        let position = self.pending.len() + lf;
        let last_of_line_before = (position >= 2).then(|| self.byte_at(bytes, position - 2));
        match (last_of_line_before, self.at) {
            (Some(byte), _) => byte == b'\n' && !self.only_empty_lines(bytes, position),
            (None, At::Trailers) => true,
            (None, _) => false,
        }
    }

    /// Whether everything up to `position` is empty lines, in a head.
    fn only_empty_lines(&self, bytes: &[u8], position: usize) -> bool {
        self.at == At::Head && (0..=position).all(|at| matches!(self.byte_at(bytes, at), b'\r' | b'\n'))
    }

    fn byte_before(&self, bytes: &[u8], at: usize) -> Option<u8> {
        if at > 0 { Some(bytes[at - 1]) } else { self.pending.last().copied() }
    }

    fn byte_at(&self, bytes: &[u8], position: usize) -> u8 {
        match self.pending.get(position) {
            Some(byte) => *byte,
            None => bytes[position - self.pending.len()],
        }
    }

    fn chunk_size(&mut self, bytes: &[u8]) -> Result<usize, (usize, Violation)> {
        let Some(lf) = memchr(b'\n', bytes) else {
            if self.pending.len() + bytes.len() > CHUNK_LINE_BYTES_MAX {
                return Err((bytes.len() - 1, Violation::Chunk));
            }
            self.pending.extend_from_slice(bytes);
            return Ok(bytes.len());
        };
        self.pending.extend_from_slice(&bytes[..lf]);
        let line = std::mem::take(&mut self.pending);
        let size = read_chunk_size(&line).ok_or((lf, Violation::Chunk))?;
        self.at = if size == 0 { At::Trailers } else { At::Chunk { left: size } };
        Ok(lf + 1)
    }
}

fn skip(bytes: &[u8], left: u64) -> (usize, u64) {
    let used = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
    (used, left - used as u64)
}

/// The lines of a block whose lines all end in CRLF, without the empty one at its end.
fn lines(block: &[u8]) -> impl Iterator<Item = &[u8]> {
    block
        .split(|byte| *byte == b'\n')
        .map(|line| line.strip_suffix(b"\r").unwrap_or(line))
        .filter(|line| !line.is_empty())
}

/// How long the body of a request is, by its whole head.
fn read_head(head: &[u8], headers_max: usize) -> Result<At, Violation> {
    let mut lines = lines(head);
    let (is_connect, is_http11) = read_request_line(lines.next().unwrap_or_default())?;
    let (mut length, mut chunked, mut hosts, mut upgrade) = (None, false, 0, false);
    for (number, line) in lines.enumerate() {
        if number == headers_max {
            return Err(Violation::HeadTooLarge);
        }
        let (name, value) = read_header(line)?;
        if name.eq_ignore_ascii_case(b"content-length") {
            let number = read_length(value).filter(|_| length.is_none()).ok_or(Violation::ContentLength)?;
            length = Some(number);
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            if chunked || !is_http11 || !value.eq_ignore_ascii_case(b"chunked") {
                return Err(Violation::TransferEncoding);
            }
            chunked = true;
        } else if name.eq_ignore_ascii_case(b"host") {
            hosts += 1;
        } else if name.eq_ignore_ascii_case(b"upgrade") {
            // HTTP/2 begins with its preface (RFC 9113 section 3.1); this way of changing to it is taken off.
            upgrade = !value.eq_ignore_ascii_case(b"h2c");
        }
    }
    if hosts > 1 || is_http11 && hosts == 0 {
        return Err(Violation::Host);
    }
    match (length, chunked) {
        (Some(_), true) => Err(Violation::LengthAndEncoding),
        (None, true) => Ok(At::ChunkSize),
        (Some(left), false) if left > 0 => Ok(At::Body { left }),
        _ if is_connect || upgrade => Ok(At::Asked),
        _ => Ok(At::Head),
    }
}

/// Whether the method is CONNECT, and whether the version is 1.1.
fn read_request_line(line: &[u8]) -> Result<(bool, bool), Violation> {
    let mut parts = line.split(|byte| *byte == b' ');
    let (method, target, version) = (parts.next(), parts.next(), parts.next());
    let (Some(method), Some(target), Some(version), None) = (method, target, version, parts.next()) else {
        return Err(Violation::RequestLine);
    };
    let is_sound = !method.is_empty() && method.iter().all(|byte| is_token(*byte)) && !target.is_empty();
    let is_printable = target.iter().all(|byte| *byte > b' ' && *byte != 0x7f);
    match version {
        b"HTTP/1.1" if is_sound && is_printable => Ok((method == b"CONNECT", true)),
        b"HTTP/1.0" if is_sound && is_printable => Ok((method == b"CONNECT", false)),
        _ => Err(Violation::RequestLine),
    }
}

/// Name and value, the latter without the white space around it.
fn read_header(line: &[u8]) -> Result<(&[u8], &[u8]), Violation> {
    if matches!(line.first(), Some(b' ' | b'\t')) {
        return Err(Violation::Folding);
    }
    let colon = memchr(b':', line).ok_or(Violation::HeaderName)?;
    let (name, value) = (&line[..colon], &line[colon + 1..]);
    if name.is_empty() || !name.iter().all(|byte| is_token(*byte)) {
        return Err(Violation::HeaderName);
    }
    if value.iter().any(|byte| *byte < b' ' && *byte != b'\t' || *byte == 0x7f) {
        return Err(Violation::Control);
    }
    Ok((name, value.trim_ascii()))
}

/// 1*DIGIT, and nothing else that number parsers let pass.
fn read_length(value: &[u8]) -> Option<u64> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(value).ok()?.parse().ok()
}

/// A line without its LF: 1*HEXDIG, extensions, CR (RFC 9112 section 7.1). No white space before the CR or the `;`.
fn read_chunk_size(line: &[u8]) -> Option<u64> {
    let line = line.strip_suffix(b"\r").filter(|line| line.len() <= CHUNK_LINE_BYTES_MAX)?;
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    let (size, extension) = line.split_at(digits);
    let is_clean = extension.iter().all(|byte| *byte >= b' ' && *byte != 0x7f || *byte == b'\t');
    if digits == 0 || digits > 16 || !is_clean || !matches!(extension.first(), None | Some(b';')) {
        return None;
    }
    u64::from_str_radix(std::str::from_utf8(size).ok()?, 16).ok()
}

#[cfg(test)]
mod tests;
