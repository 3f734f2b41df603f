//! Every way in which a server could read a path in normal form: the closure under the steps that servers are known to
//! take, bounded, and "unknown" beyond the bound.

use super::{PLAIN, PathFault, hex_pair, normalise, push_escape, without_dot_segments};

/// Most readings that are listed. One kind of ambiguity gives two or three, all of them together about 30; paths that
/// people use have at most two kinds. More is an attack, and is judged as a path that nobody knows.
const READINGS_MAX: usize = 24;

/// Most bytes of all readings together: bounds the work per request to a few passes over that much.
const READINGS_BYTES_MAX: usize = 64 * 1024;

/// How a path may be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readings<'a> {
    /// Everybody agrees.
    One(&'a str),
    /// Servers differ. The first is the normal form as it stands.
    Several(Vec<String>),
    /// There is no telling: the request has no path, or the path can be read in too many ways.
    Unknown,
}

impl Readings<'_> {
    /// The readings. None when unknown.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        let (one, several) = match self {
            Self::One(path) => (Some(*path), [].as_slice()),
            Self::Several(paths) => (None, paths.as_slice()),
            Self::Unknown => (None, [].as_slice()),
        };
        one.into_iter().chain(several.iter().map(String::as_str))
    }
}

/// What some server does to a path: `None` when it changes nothing; a fault when the result is no path.
type Step = fn(&str) -> Result<Option<String>, PathFault>;

const STEPS: [Step; 7] = [
    decode_separators,
    decode_again,
    drop_parameters,
    merge_slashes,
    take_host_off,
    end_at_escaped_delimiter,
    resolve_dots,
];

pub(super) fn of(normal: &str) -> Readings<'static> {
    let mut found = vec![respell(normal)];
    let mut bytes = found[0].len();
    let mut next = 0;
    while next < found.len() {
        for step in STEPS {
            let reading = match step(&found[next]) {
                Ok(Some(reading)) => reading,
                Ok(None) => continue,
                Err(_) => return Readings::Unknown,
            };
            if found.contains(&reading) {
                continue;
            }
            bytes += reading.len();
            if found.len() == READINGS_MAX || bytes > READINGS_BYTES_MAX {
                return Readings::Unknown;
            }
            found.push(reading);
        }
        next += 1;
    }
    Readings::Several(found)
}

/// The same path with every character written plainly that can be, and every other one escaped. `;` and its escape
/// differ in meaning to some servers and stay as they are, as do `%2F`, `%5C` and `%25`.
pub(super) fn respell(path: &str) -> String {
    let mut text = String::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        let mut value = byte;
        if let (b'%', Some(escaped)) = (byte, hex_pair(rest)) {
            value = escaped;
            rest = &rest[2..];
        }
        let escaped = byte == b'%';
        let plain = PLAIN[usize::from(value)] && !(escaped && value == b'/');
        if plain || (value == b';' && !escaped) {
            text.push(char::from(value));
        } else {
            push_escape(&mut text, value);
        }
    }
    text
}

/// Escaped separators are separators.
fn decode_separators(path: &str) -> Result<Option<String>, PathFault> {
    let escaped = ["%2F", "%5C", "%3B"];
    Ok(escaped
        .iter()
        .any(|escape| path.contains(escape))
        .then(|| path.replace("%2F", "/").replace("%5C", "/").replace("%3B", ";")))
}

/// Decoded twice, for example by a proxy and by the application behind it: `%2541` is `%41` is `A`.
fn decode_again(path: &str) -> Result<Option<String>, PathFault> {
    let mut decoded = String::with_capacity(path.len());
    let mut rest = path;
    while let Some((before, after)) = rest.split_once("%25") {
        decoded.push_str(before);
        decoded.push_str(if hex_pair(after.as_bytes()).is_some() { "%" } else { "%25" });
        rest = after;
    }
    decoded.push_str(rest);
    if decoded == path {
        return Ok(None);
    }
    // Dots are another step's matter, but `normalise` is the only place that knows every fault.
    normalise(&decoded)?;
    Ok(Some(respell(&decoded)))
}

/// Parameters of segments (RFC 3986 section 3.3) are not part of the path, as servlet containers read it.
fn drop_parameters(path: &str) -> Result<Option<String>, PathFault> {
    Ok(path.contains(';').then(|| {
        let name = |segment: &str| segment.split(';').next().unwrap_or_default().to_owned();
        path.split('/').map(name).collect::<Vec<_>>().join("/")
    }))
}

fn merge_slashes(path: &str) -> Result<Option<String>, PathFault> {
    Ok(path.contains("//").then(|| {
        let mut merged = String::with_capacity(path.len());
        for character in path.chars() {
            if character != '/' || !merged.ends_with('/') {
                merged.push(character);
            }
        }
        merged
    }))
}

/// As a reference (RFC 3986 section 4.2) `//host/path` names a host; servers that resolve the target against their own
/// address lose the first segment.
fn take_host_off(path: &str) -> Result<Option<String>, PathFault> {
    Ok(path.strip_prefix("//").map(|rest| match rest.find('/') {
        Some(slash) => rest[slash..].to_owned(),
        None => "/".to_owned(),
    }))
}

/// Decoded before the query is split off: `%3F` is `?`, `%23` is `#`.
fn end_at_escaped_delimiter(path: &str) -> Result<Option<String>, PathFault> {
    let end = ["%3F", "%23"].iter().filter_map(|escape| path.find(escape)).min();
    Ok(end.map(|end| path[..end].to_owned()))
}

/// Dot segments that came out of another step. Some servers leave them, so the path with them is a reading as well.
fn resolve_dots(path: &str) -> Result<Option<String>, PathFault> {
    Ok(without_dot_segments(path))
}
