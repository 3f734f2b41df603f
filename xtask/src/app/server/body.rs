//! Where a request's body ends: after a length, or after the last chunk and its trailers (RFC 9112 sections 6 and 7).

/// Longest accepted chunk size or trailer line, in bytes.
const LINE_BYTES_MAX: usize = 16 * 1024;

/// What is still to come of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// This many bytes.
    Sized(u64),
    /// Chunks.
    Chunked(Chunk),
}

/// Where in a chunked body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chunk {
    /// Before a size.
    Size,
    /// This many bytes before the end of a chunk's data.
    Data(u64),
    /// Before the line end that follows the data.
    End,
    /// Among the trailers.
    Trailers,
}

/// One step forward.
#[derive(Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes that were understood; 0 when more must arrive first, or at an end that needs none.
    pub used: usize,
    /// How many of them were content.
    pub content: u64,
    /// The body ends after them.
    pub is_end: bool,
}

/// The chunks are not well-formed.
#[derive(Debug, PartialEq, Eq)]
pub struct Malformed;

impl Body {
    /// A chunked body from its beginning.
    pub fn chunked() -> Self {
        Self::Chunked(Chunk::Size)
    }

    /// Whether there is none.
    pub fn is_none(self) -> bool {
        self == Self::Sized(0)
    }

    /// Understands the next piece of `bytes`.
    pub fn read(&mut self, bytes: &[u8]) -> Result<Progress, Malformed> {
        match self {
            Self::Sized(left) => {
                let progress = skip(left, bytes);
                Ok(Progress { is_end: *left == 0, ..progress })
            }
            Self::Chunked(chunk) => chunk.read(bytes),
        }
    }
}

impl Chunk {
    fn read(&mut self, bytes: &[u8]) -> Result<Progress, Malformed> {
        if let Self::Data(left) = self {
            let progress = skip(left, bytes);
            if *left == 0 {
                *self = Self::End;
            }
            return Ok(progress);
        }
        let Some(end) = bytes.windows(2).position(|two| two == b"\r\n") else {
            let is_too_long = bytes.len() > LINE_BYTES_MAX;
            let nothing_yet = Progress { used: 0, content: 0, is_end: false };
            return if is_too_long { Err(Malformed) } else { Ok(nothing_yet) };
        };
        let line = &bytes[..end];
        let mut is_end = false;
        *self = match self {
            Self::Size => match size(line)? {
                0 => Self::Trailers,
                size => Self::Data(size),
            },
            Self::End if line.is_empty() => Self::Size,
            Self::End => return Err(Malformed),
            Self::Trailers | Self::Data(_) => {
                is_end = line.is_empty();
                Self::Trailers
            }
        };
        Ok(Progress { used: end + 2, content: 0, is_end })
    }
}

fn skip(left: &mut u64, bytes: &[u8]) -> Progress {
    let content = (*left).min(bytes.len() as u64);
    *left -= content;
    // At most what `bytes` holds.
    Progress { used: usize::try_from(content).unwrap_or(bytes.len()), content, is_end: false }
}

/// The size in a chunk's first line, without its extensions.
fn size(line: &[u8]) -> Result<u64, Malformed> {
    let digits = line.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii_end();
    let digits = std::str::from_utf8(digits).map_err(|_not_text| Malformed)?;
    if digits.is_empty() || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return Err(Malformed);
    }
    u64::from_str_radix(digits, 16).map_err(|_too_large| Malformed)
}
