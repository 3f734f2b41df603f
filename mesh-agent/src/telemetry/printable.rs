//! Text from strangers, made fit for a log: nothing but visible ASCII, and no longer than a bound.
//!
//! JSON escapes line feeds, but lets through what moves a terminal's cursor (DEL, the C1 controls) and what makes text read
//! backwards (the bidirectional overrides of Unicode). Here every byte outside of visible ASCII and the space becomes `%XX`,
//! which for a path is the same path.

use std::sync::Arc;

use http::{HeaderMap, Method};
use serde::Serialize;

/// Stands for what was cut off. The text itself is ASCII, so it cannot be mistaken for a part of it.
const CUT: char = '\u{2026}';

/// Longest path, in bytes before escaping. The queue of records is bounded by their number, so each must be bounded too.
pub const PATH_LEN_MAX: usize = 512;
/// Longest host: a DNS name has at most 253 characters (RFC 1035 section 2.3.4), a port six.
pub const HOST_LEN_MAX: usize = 260;
/// Longest user agent.
pub const USER_AGENT_LEN_MAX: usize = 128;
/// Longest method: registered ones have at most 17 characters.
pub const METHOD_LEN_MAX: usize = 32;

/// Visible, bounded text. There is no way to make one that is not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Printable(Arc<str>);

impl Printable {
    /// At most `len_max` bytes of `text`, escaped.
    pub fn new(text: &[u8], len_max: usize) -> Self {
        let (kept, is_cut) = match text.get(..len_max) {
            Some(kept) => (kept, kept.len() < text.len()),
            None => (text, false),
        };
        if let (Ok(plain), false) = (std::str::from_utf8(kept), is_cut)
            && plain.bytes().all(is_visible)
        {
            return Self(plain.into());
        }
        let mut out = String::with_capacity(kept.len() + 16);
        for byte in kept {
            match byte {
                byte if is_visible(*byte) => out.push(char::from(*byte)),
                byte => {
                    use std::fmt::Write as _;
                    let _ = write!(out, "%{byte:02X}");
                }
            }
        }
        if is_cut {
            out.push(CUT);
        }
        Self(out.into())
    }

    /// A path without its query: queries carry tokens and names of people, which have no place in a log.
    pub fn path(path_and_query: &str) -> Self {
        let path = path_and_query.split(['?', '#']).next().unwrap_or_default();
        Self::new(path.as_bytes(), PATH_LEN_MAX)
    }

    /// A method.
    pub fn method(method: &Method) -> Self {
        Self::new(method.as_str().as_bytes(), METHOD_LEN_MAX)
    }

    /// A host, with its port if it has one.
    pub fn host(host: &str) -> Self {
        Self::new(host.as_bytes(), HOST_LEN_MAX)
    }

    /// What the client calls itself.
    pub fn user_agent(headers: &HeaderMap) -> Option<Self> {
        let value = headers.get(http::header::USER_AGENT)?;
        Some(Self::new(value.as_bytes(), USER_AGENT_LEN_MAX))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn is_visible(byte: u8) -> bool {
    matches!(byte, b' '..=b'~')
}
