//! The path of a request: the one form in which it is routed, judged and forwarded, and the ways in which a server may
//! still read that form differently.
//!
//! # The normal form
//!
//! A path is brought into one spelling before anybody looks at it, and that spelling is what the next hop receives. A
//! server behind the mesh never sees the client's own spelling. The steps (RFC 3986 section 6.2.2, and one more):
//!
//! 1. The query is not part of the path and is cut off; it is forwarded untouched.
//! 2. `\` becomes `/`, as browsers and several servers read it.
//! 3. Escapes of unreserved characters (letters, digits, `-`, `.`, `_`, `~`) are decoded; the hexadecimal digits of all
//!    others are upper-cased. Bytes outside ASCII are escaped.
//! 4. Dot segments are removed, also those that were escaped.
//!
//! Double slashes, trailing slashes, `;parameters`, `%2F`, `%5C` and the case of letters stay as they are: servers give
//! them different meanings, so changing them could break an application.
//!
//! What cannot be brought into that form is refused with 400, since each server would make something else of it: a path
//! that does not begin with a slash, an escape that is none, a control character (written or escaped, NUL among them), a
//! fragment, and UTF-8 in a longer form than necessary (which some decoders read as `/` or `.`).
//!
//! # The readings
//!
//! Servers differ in what they make of what the normal form leaves alone. [`RequestPath::readings`] lists what can come
//! out: every combination, in every order, of decoding `%2F`, `%5C` and `%3B`; decoding twice; cutting `;parameters` off
//! each segment; merging slashes; taking a leading `//name` for a host; ending the path at `%3F` or `%23`; and removing
//! the dot segments that appear on the way, or not. Policy judges all of them, and the strictest answer holds. For an
//! ordinary path, one whose every character stands for itself, there is one reading and nothing is allocated.
//!
//! Readings are spelled with as few escapes as a path allows (`%40` is `@`), so that two spellings of the same bytes
//! compare equal.
//!
//! Layer 0: pure.

mod readings;
#[cfg(test)]
mod tests;

use std::borrow::Cow;

pub use readings::Readings;

/// Why a request target is refused with 400.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum PathFault {
    /// Neither a path nor `*`.
    #[error("the path does not begin with a slash")]
    NotAbsolute,
    /// A `%` without two hexadecimal digits behind it.
    #[error("the path contains a percent sign that begins no escape")]
    BadEscape,
    /// A control character or a blank, escaped or not.
    #[error("the path contains a control character")]
    Control,
    /// A `#`.
    #[error("the path contains a fragment")]
    Fragment,
    /// UTF-8 in a longer form than necessary.
    #[error("the path contains overlong UTF-8")]
    Overlong,
}

impl PathFault {
    /// Stable label for metrics and records.
    pub fn label(self) -> &'static str {
        match self {
            Self::NotAbsolute => "path_not_absolute",
            Self::BadEscape => "path_bad_escape",
            Self::Control => "path_control",
            Self::Fragment => "path_fragment",
            Self::Overlong => "path_overlong",
        }
    }
}

/// The path of a request in its normal form. Borrows from the request line where that was in normal form already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestPath<'a> {
    normal: Cow<'a, str>,
    /// The part of the target that the normal form was made from is the normal form.
    as_written: bool,
    /// Every character stands for itself, to every reader.
    plain: bool,
}

impl<'a> RequestPath<'a> {
    /// Reads the path of a request target: `http::Uri::path`, or path and query. `*` (RFC 9112 section 3.2.4) and the
    /// empty path of the authority form (CONNECT) are forms of their own.
    ///
    /// # Errors
    /// The target has no normal form; the request is refused.
    pub fn parse(target: &'a str) -> Result<Self, PathFault> {
        if matches!(target, "" | "*") {
            return Ok(Self { normal: Cow::Borrowed(target), as_written: true, plain: true });
        }
        let path = target.split_once('?').map_or(target, |(path, _query)| path);
        let seen = scan(path)?;
        if !seen.needs_work {
            return Ok(Self { normal: Cow::Borrowed(path), as_written: true, plain: seen.plain });
        }
        let normal = normalise(path)?;
        let plain = scan(&normal).is_ok_and(|seen| seen.plain);
        Ok(Self { as_written: normal == path, normal: Cow::Owned(normal), plain })
    }

    /// The normal form, without the query: what is routed on and forwarded. `*` and the empty authority form are
    /// themselves.
    pub fn as_str(&self) -> &str {
        &self.normal
    }

    /// True when the client wrote the normal form, so that the request can be forwarded as it came.
    pub fn is_as_written(&self) -> bool {
        self.as_written
    }

    /// True for `*` (the server as a whole).
    pub fn is_asterisk(&self) -> bool {
        self.normal == "*"
    }

    /// True for the authority form: a request without a path (CONNECT).
    pub fn is_authority(&self) -> bool {
        self.normal.is_empty()
    }

    /// Every way in which a server could read the normal form. See the module documentation.
    pub fn readings(&self) -> Readings<'_> {
        if self.is_authority() {
            Readings::Unknown
        } else if self.plain {
            Readings::One(&self.normal)
        } else {
            readings::of(&self.normal)
        }
    }

    /// The normal form as readings spell it: with as few escapes as a path allows. Patterns are compared in it.
    pub fn comparable(&self) -> Cow<'_, str> {
        if self.plain { Cow::Borrowed(&self.normal) } else { Cow::Owned(readings::respell(&self.normal)) }
    }

    /// The same, borrowing from nothing.
    pub fn into_owned(self) -> RequestPath<'static> {
        RequestPath {
            normal: Cow::Owned(self.normal.into_owned()),
            as_written: self.as_written,
            plain: self.plain,
        }
    }
}

#[derive(Clone, Copy)]
struct Seen {
    needs_work: bool,
    plain: bool,
}

/// One pass over the bytes: is there a fault that needs no decoding to be seen, and is there anything to do at all?
fn scan(path: &str) -> Result<Seen, PathFault> {
    let bytes = path.as_bytes();
    if !matches!(bytes.first(), Some(b'/' | b'\\')) {
        return Err(PathFault::NotAbsolute);
    }
    let mut seen = Seen { needs_work: false, plain: true };
    let mut before = 0;
    for &byte in bytes {
        if !PLAIN[usize::from(byte)] {
            seen.plain = false;
            match byte {
                0..=b' ' | 0x7F => return Err(PathFault::Control),
                b'#' => return Err(PathFault::Fragment),
                b'%' | b'\\' | 0x80.. => seen.needs_work = true,
                _ => {}
            }
        }
        if before == b'/' {
            seen.plain &= byte != b'/';
            // Perhaps the beginning of a dot segment; finding out is the slow way's work.
            seen.needs_work |= byte == b'.';
        }
        before = byte;
    }
    Ok(seen)
}

/// Characters that mean themselves to every reader: `/` and those of a path segment (RFC 3986 section 3.3), without `%`
/// and `;`.
const PLAIN: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 128 {
        table[byte] = is_unreserved(byte as u8)
            || matches!(
                byte as u8,
                b'/' | b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b'=' | b':' | b'@'
            );
        byte += 1;
    }
    table
};

const fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

fn normalise(path: &str) -> Result<String, PathFault> {
    let mut decoded = String::with_capacity(path.len());
    let mut rest = path.as_bytes();
    // The byte before, if it was escaped.
    let mut before = None;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        let (value, escaped) = match byte {
            b'%' => {
                let value = hex_pair(rest).ok_or(PathFault::BadEscape)?;
                rest = &rest[2..];
                (value, true)
            }
            b'\\' => (b'/', false),
            byte => (byte, byte >= 0x80),
        };
        if value < b' ' || value == 0x7F {
            return Err(PathFault::Control);
        }
        if before.is_some_and(|lead| is_overlong(lead, value)) {
            return Err(PathFault::Overlong);
        }
        before = escaped.then_some(value);
        if escaped && !is_unreserved(value) {
            push_escape(&mut decoded, value);
        } else {
            decoded.push(char::from(value));
        }
    }
    Ok(without_dot_segments(&decoded).unwrap_or(decoded))
}

fn hex_pair(bytes: &[u8]) -> Option<u8> {
    let digit = |index: usize| bytes.get(index).and_then(|byte| char::from(*byte).to_digit(16));
    u8::try_from(digit(0)? * 16 + digit(1)?).ok()
}

fn push_escape(text: &mut String, value: u8) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    text.push('%');
    text.push(char::from(DIGITS[usize::from(value >> 4)]));
    text.push(char::from(DIGITS[usize::from(value & 15)]));
}

/// Whether two bytes begin a UTF-8 sequence that is longer than its character needs (RFC 3629 section 3). The first byte
/// alone is left alone: it is a letter of Latin-1.
fn is_overlong(lead: u8, next: u8) -> bool {
    matches!(
        (lead, next),
        (0xC0 | 0xC1, 0x80..=0xBF)
            | (0xE0, 0x80..=0x9F)
            | (0xF0, 0x80..=0x8F)
            | (0xF8, 0x80..=0x87)
            | (0xFC, 0x80..=0x83)
    )
}

/// RFC 3986 section 5.2.4; `None` when there is nothing to remove. An empty segment counts as one.
fn without_dot_segments(path: &str) -> Option<String> {
    let is_dots = |segment: &str| matches!(segment, "." | "..");
    let segments = || path.split('/').skip(1);
    if !segments().any(is_dots) {
        return None;
    }
    let mut kept = Vec::new();
    for segment in segments() {
        match segment {
            "." => {}
            ".." => drop(kept.pop()),
            segment => kept.push(segment),
        }
    }
    let mut result = String::with_capacity(path.len());
    for segment in &kept {
        result.push('/');
        result.push_str(segment);
    }
    // `/a/.` and `/a/b/..` are the directory `/a/`.
    if kept.is_empty() || path.rsplit('/').next().is_some_and(is_dots) {
        result.push('/');
    }
    Some(result)
}
