//! Reads an HTTP/1.1 response from a connection (RFC 9112).

use std::io::{BufRead, Error, ErrorKind, Read, Result};

/// Longest line that is read, in bytes.
const LINE_BYTES_MAX: u64 = 64 * 1024;

/// A final response.
#[derive(Debug)]
pub struct Response {
    /// Its status.
    pub status: u16,
    /// Status line and headers as received, each with its line end.
    pub head: String,
    /// Its content.
    pub body: Vec<u8>,
    /// Whether another request may follow on the connection.
    pub keeps_alive: bool,
}

impl Response {
    /// Reads the response to a request with this method; interim responses (100 to 199) are passed over.
    pub fn read(reader: &mut impl BufRead, method: &str) -> Result<Self> {
        loop {
            let head = head(reader)?;
            let status = status(&head)?;
            if !(100..200).contains(&status) || status == 101 {
                return Self::read_body(reader, method, status, head);
            }
        }
    }

    /// Whether the status is 200 to 299.
    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    fn read_body(reader: &mut impl BufRead, method: &str, status: u16, head: String) -> Result<Self> {
        let says = |name: &str, wanted: &str| fields(&head, name).any(|v| v.eq_ignore_ascii_case(wanted));
        let mut keeps_alive = head.starts_with("HTTP/1.1") && !says("connection", "close") && status != 101;
        let length = fields(&head, "content-length").next().map(str::parse::<u64>);
        let length = length.transpose().map_err(|_not_a_number| broken("the length is no number"))?;
        let mut body = Vec::new();
        if method == "HEAD" || status < 200 || matches!(status, 204 | 304) {
            // These have no content whatever the headers say.
        } else if says("transfer-encoding", "chunked") {
            chunks(reader, &mut body)?;
        } else if let Some(length) = length {
            reader.take(length).read_to_end(&mut body)?;
            if (body.len() as u64) < length {
                return Err(cut_off());
            }
        } else {
            keeps_alive = false;
            reader.read_to_end(&mut body)?;
        }
        Ok(Self { status, head, body, keeps_alive })
    }
}

fn head(reader: &mut impl BufRead) -> Result<String> {
    let mut head = String::new();
    loop {
        let before = head.len();
        line(reader, &mut head)?;
        if matches!(&head[before..], "\r\n" | "\n") && before > 0 {
            head.truncate(before);
            return Ok(head);
        }
    }
}

fn chunks(reader: &mut impl BufRead, body: &mut Vec<u8>) -> Result<()> {
    loop {
        let mut size = String::new();
        line(reader, &mut size)?;
        let digits = size.split(';').next().unwrap_or_default().trim();
        let size = u64::from_str_radix(digits, 16).map_err(|_not_a_number| broken("a chunk has no size"))?;
        if size == 0 {
            break;
        }
        if reader.take(size).read_to_end(body)? as u64 != size {
            return Err(cut_off());
        }
        line(reader, &mut String::new())?;
    }
    loop {
        let mut trailer = String::new();
        line(reader, &mut trailer)?;
        if trailer.trim().is_empty() {
            return Ok(());
        }
    }
}

/// Reads one line with its end; the end of the stream is an error.
fn line(reader: &mut impl BufRead, text: &mut String) -> Result<()> {
    if reader.take(LINE_BYTES_MAX).read_line(text)? == 0 || !text.ends_with('\n') {
        return Err(cut_off());
    }
    Ok(())
}

fn status(head: &str) -> Result<u16> {
    let code = head.starts_with("HTTP/1.").then(|| head.split(' ').nth(1)).flatten();
    code.and_then(|code| code.trim().parse().ok()).ok_or_else(|| broken("the answer is not HTTP"))
}

/// The values of a header.
fn fields<'a>(head: &'a str, wanted: &str) -> impl Iterator<Item = &'a str> {
    let pairs = head.lines().skip(1).filter_map(|line| line.split_once(':'));
    pairs.filter(move |(name, _)| name.eq_ignore_ascii_case(wanted)).map(|(_, value)| value.trim())
}

fn broken(what: &str) -> Error {
    Error::new(ErrorKind::InvalidData, what)
}

fn cut_off() -> Error {
    Error::new(ErrorKind::UnexpectedEof, "the connection ended before the answer did")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(method: &str, text: &str) -> Result<Response> {
        Response::read(&mut text.as_bytes(), method)
    }

    #[test]
    fn a_body_ends_where_its_framing_says() {
        for (method, text, body, keeps_alive) in [
            ("GET", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nabcd", "ab", true),
            (
                "GET",
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1;x\r\nc\r\n0\r\nT: u\r\n\r\n",
                "abc",
                true,
            ),
            ("GET", "HTTP/1.1 200 OK\r\n\r\nabc", "abc", false),
            ("HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n", "", true),
            ("GET", "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n", "", true),
            ("GET", "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n", "", false),
        ] {
            let response = read(method, text).unwrap();
            assert_eq!(String::from_utf8_lossy(&response.body), body, "{text}");
            assert_eq!(response.keeps_alive, keeps_alive, "{text}");
        }
    }

    #[test]
    fn an_answer_that_breaks_off_is_an_error() {
        for text in
            ["", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\na", "nonsense\r\n\r\n"]
        {
            assert!(read("GET", text).is_err(), "{text}");
        }
    }
}
