//! Does a request match an alternative in everything but its path? Method, headers, query.

use std::borrow::Cow;
use std::cell::OnceCell;

use http::header::{COOKIE, HOST, HeaderName};

use super::RequestHead;
use crate::model::{HeaderMatch, QueryMatch, RequestMatch, StringMatch};

/// A request while its rule is looked for.
pub(super) struct Ask<'a> {
    head: RequestHead<'a>,
    /// Decoded when the first alternative wants it.
    query: OnceCell<Vec<Parameter<'a>>>,
    /// How many alternatives were looked at.
    #[cfg(test)]
    pub(super) looked_at: std::cell::Cell<usize>,
}

/// Of the query, decoded. Not every sequence of bytes that can be written there is text.
struct Parameter<'a> {
    name: Cow<'a, [u8]>,
    value: Cow<'a, [u8]>,
}

impl<'a> Ask<'a> {
    pub(super) fn new(head: RequestHead<'a>) -> Self {
        Self {
            head,
            query: OnceCell::new(),
            #[cfg(test)]
            looked_at: std::cell::Cell::new(0),
        }
    }

    pub(super) fn head(&self) -> &RequestHead<'a> {
        &self.head
    }

    /// Whether everything but the path matches.
    pub(super) fn answers(&self, wanted: &RequestMatch) -> bool {
        #[cfg(test)]
        self.looked_at.set(self.looked_at.get() + 1);
        wanted.method.as_ref().is_none_or(|method| method == self.head.method)
            && wanted.headers.iter().all(|header| self.has_header(header))
            && wanted.query.iter().all(|parameter| self.has_parameter(parameter))
    }

    fn has_header(&self, wanted: &HeaderMatch) -> bool {
        self.header(&wanted.name).is_some_and(|value| matches(&wanted.value, &value))
    }

    /// The value of a header; several lines are one, joined by `,` (RFC 9110 section 5.3), or by `; ` for `cookie`, which
    /// HTTP/2 may split into lines (RFC 9113 section 8.2.3). `host` is what the request is for, in both versions.
    fn header(&self, name: &HeaderName) -> Option<Cow<'a, [u8]>> {
        if *name == HOST {
            return self.head.host.map(|host| host.as_bytes().into());
        }
        let mut lines = self.head.headers.get_all(name).iter();
        let first = lines.next()?.as_bytes();
        let Some(second) = lines.next() else {
            return Some(first.into());
        };
        let separator: &[u8] = if *name == COOKIE { b"; " } else { b"," };
        let mut joined = first.to_vec();
        for line in std::iter::once(second).chain(lines) {
            joined.extend_from_slice(separator);
            joined.extend_from_slice(line.as_bytes());
        }
        Some(joined.into())
    }

    fn has_parameter(&self, wanted: &QueryMatch) -> bool {
        let query = self.query.get_or_init(|| self.head.query.map(parameters).unwrap_or_default());
        let first = query.iter().find(|parameter| *parameter.name == *wanted.name.as_bytes());
        first.is_some_and(|parameter| matches(&wanted.value, &parameter.value))
    }
}

/// A regular expression is over text, and never matches bytes that are not.
fn matches(wanted: &StringMatch, value: &[u8]) -> bool {
    match wanted {
        StringMatch::Exact(exact) => exact.as_bytes() == value,
        StringMatch::Regex(regex) => str::from_utf8(value).is_ok_and(|text| regex.is_match(text)),
    }
}

/// The parameters of a query, decoded, in the order written (URL standard, `application/x-www-form-urlencoded`).
fn parameters(query: &str) -> Vec<Parameter<'_>> {
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            Parameter { name: decoded(name), value: decoded(value) }
        })
        .collect()
}

/// `+` is a space and `%41` an `A`; a `%` that two hexadecimal digits do not follow stands for itself.
fn decoded(text: &str) -> Cow<'_, [u8]> {
    let bytes = text.as_bytes();
    if !bytes.iter().any(|byte| matches!(byte, b'+' | b'%')) {
        return bytes.into();
    }
    let mut out = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let [byte, tail @ ..] = rest {
        let (value, after) = match (byte, escaped(tail)) {
            (b'%', Some(value)) => (value, &tail[2..]),
            (b'+', _) => (b' ', tail),
            (byte, _) => (*byte, tail),
        };
        out.push(value);
        rest = after;
    }
    out.into()
}

/// The byte that two hexadecimal digits at the beginning stand for.
fn escaped(bytes: &[u8]) -> Option<u8> {
    let [high, low, ..] = bytes else {
        return None;
    };
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    Some(digit(*high)? << 4 | digit(*low)?)
}
