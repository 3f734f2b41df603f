//! What the client speaks, told from its first bytes.
//!
//! Beside station 5. Pure. A port that reads HTTP asks before it hands the connection to the HTTP server, so that
//! something else is refused by name and not by a parser's error.

/// The beginning of every HTTP/2 connection with prior knowledge (RFC 9113 section 3.4).
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Longest request line that is looked at, in bytes. A longer one that has looked like HTTP so far counts as HTTP, and is
/// refused as too long by who reads it.
const REQUEST_LINE_BYTES_MAX: usize = 8 * 1024;

/// Longest method, in bytes; the longest registered one has 17 (RFC 9110 section 16.1).
const METHOD_BYTES_MAX: usize = 24;

/// What the first bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sniffed {
    /// HTTP/1.0 or HTTP/1.1.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// A TLS ClientHello (RFC 8446 section 5.1).
    Tls,
    /// Something else.
    Other,
    /// Too few to tell.
    More,
}

/// Tells. Adding bytes to what was told other than [`Sniffed::More`] never changes the answer.
pub fn sniff(bytes: &[u8]) -> Sniffed {
    match bytes {
        [] | [0x16] => return Sniffed::More,
        [0x16, 0x03, ..] => return Sniffed::Tls,
        _ => {}
    }
    let common = bytes.len().min(HTTP2_PREFACE.len());
    if bytes[..common] == HTTP2_PREFACE[..common] {
        return if common == HTTP2_PREFACE.len() { Sniffed::Http2 } else { Sniffed::More };
    }
    http1(skip_empty_lines(bytes))
}

/// An empty line before the request is let pass (RFC 9112 section 2.2).
fn skip_empty_lines(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(b"\r\n").unwrap_or(bytes)
}

fn http1(bytes: &[u8]) -> Sniffed {
    if bytes.is_empty() || bytes == b"\r" {
        return Sniffed::More;
    }
    let seen = &bytes[..bytes.len().min(REQUEST_LINE_BYTES_MAX)];
    let Some(line_end) = memchr::memchr(b'\n', seen) else {
        return match looks_like_request(seen) {
            false => Sniffed::Other,
            true if bytes.len() > REQUEST_LINE_BYTES_MAX => Sniffed::Http1,
            true => Sniffed::More,
        };
    };
    let line = seen[..line_end].strip_suffix(b"\r").unwrap_or(&seen[..line_end]);
    let version = line.len().checked_sub(9).map(|at| &line[at..]);
    let is_http = matches!(version, Some([b' ', b'H', b'T', b'T', b'P', b'/', b'1', b'.', b'0'..=b'9']));
    if is_http && looks_like_request(line) { Sniffed::Http1 } else { Sniffed::Other }
}

/// A method, and if it is complete a space and printable bytes after it.
fn looks_like_request(line: &[u8]) -> bool {
    let method_bytes = line.iter().take_while(|byte| is_token(**byte)).count();
    if method_bytes == 0 || method_bytes > METHOD_BYTES_MAX {
        return false;
    }
    match line.get(method_bytes) {
        None => true,
        Some(b' ') => line[method_bytes..].iter().all(|byte| !byte.is_ascii_control() || *byte == b'\r'),
        Some(_) => false,
    }
}

/// `tchar` of RFC 9110 section 5.6.2.
pub(super) fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::Sniffed::{Http1, Http2, More, Other, Tls};
    use super::*;

    #[track_caller]
    fn check(bytes: &[u8], expected: Sniffed) {
        assert_eq!(sniff(bytes), expected, "{}", bytes.escape_ascii());
        // No prefix may have said something else.
        for end in 0..bytes.len() {
            let early = sniff(&bytes[..end]);
            assert!(
                early == More || early == expected,
                "{early:?} after {end} bytes of {}",
                bytes.escape_ascii()
            );
        }
    }

    #[test]
    fn requests_are_told_by_their_first_line() {
        check(b"GET / HTTP/1.1\r\n", Http1);
        check(b"GET / HTTP/1.0\r\nHost: a\r\n\r\n", Http1);
        check(b"\r\nM-SEARCH * HTTP/1.1\r\n", Http1);
        check(b"OPTIONS * HTTP/1.1\n", Http1);
        check(b"CONNECT a:443 HTTP/1.1\r\n", Http1);
    }

    #[test]
    fn http2_is_told_by_its_preface_and_tls_by_its_record() {
        check(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0", Http2);
        check(&[0x16, 0x03, 0x01, 0x02, 0x00], Tls);
    }

    #[test]
    fn other_protocols_are_told_apart() {
        check(b"SSH-2.0-OpenSSH_9\r\n", Other);
        check(b"EHLO example\r\n", Other);
        check(b"*3\r\n$3\r\nSET\r\n", Other);
        check(b"GET key\r\n", Other);
        check(b"\0\0\0\x08\x04\xd2\x16\x2f", Other);
        check(b"PRI * HTTP/2.0\r\n\r\nXX", Other);
        check(b"{\"json\":1}", Other);
        check(&[b'A'; 40], Other);
    }

    #[test]
    fn too_little_is_not_guessed() {
        for bytes in [&b""[..], b"G", b"GET", b"GET /index", b"\r", b"\r\n", b"PRI * HTTP", &[0x16]] {
            assert_eq!(sniff(bytes), More, "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn an_endless_request_line_is_http_and_left_to_be_refused_as_such() {
        let mut line = b"GET /".to_vec();
        line.resize(REQUEST_LINE_BYTES_MAX + 1, b'a');
        assert_eq!(sniff(&line), Http1);
    }
}
