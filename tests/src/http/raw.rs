//! HTTP/1 as bytes: requests that no library would send, and answers read as they stand.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};

/// An answer as it stands on the wire.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RawAnswer {
    /// The status; 0 when the bytes are no answer.
    pub status: u16,
    /// The head, without the empty line.
    pub head: String,
    /// The body, with chunks put together.
    pub body: Vec<u8>,
}

/// Everything that came over a connection, and how it ended.
#[derive(Clone, Debug, Default)]
pub struct Heard {
    /// The bytes.
    pub bytes: Vec<u8>,
    /// `end`, `reset`, or `silence` when the other side keeps it open.
    pub ending: &'static str,
}

impl RawAnswer {
    /// A header, by its name in any case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (own, value) = line.split_once(':')?;
            own.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }
}

/// Sends bytes and reads until the end or until nothing more comes for `patience`.
///
/// # Errors
/// The socket has no timeouts.
pub fn exchange(stream: &mut TcpStream, bytes: &[u8], patience: std::time::Duration) -> io::Result<Heard> {
    // The other side may refuse before it has read all.
    let _ = stream.write_all(bytes);
    hear(stream, patience)
}

/// Reads until the end or until nothing more comes for `patience`.
///
/// # Errors
/// The socket has no timeouts.
pub fn hear(stream: &mut TcpStream, patience: std::time::Duration) -> io::Result<Heard> {
    stream.set_read_timeout(Some(patience))?;
    let mut heard = Heard { bytes: Vec::new(), ending: "silence" };
    let mut buffer = [0u8; 16 << 10];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => heard.ending = "end",
            Ok(n) => {
                heard.bytes.extend_from_slice(&buffer[..n]);
                continue;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => heard.ending = "reset",
        }
        return Ok(heard);
    }
}

/// Finishes sending, and reads the rest.
///
/// # Errors
/// The socket has no timeouts.
pub fn finish(stream: &mut TcpStream, patience: std::time::Duration) -> io::Result<Heard> {
    let _ = stream.shutdown(Shutdown::Write);
    hear(stream, patience)
}

/// Reads one answer from a connection that stays open; 1xx answers count as answers.
///
/// # Errors
/// The connection ended or fell silent in the middle.
pub fn read_answer(stream: &mut TcpStream, is_head: bool) -> io::Result<RawAnswer> {
    let mut bytes = Vec::new();
    let mut buffer = [0u8; 1];
    loop {
        if let Some((answer, used)) = parse(&bytes, is_head, false) {
            debug_assert_eq!(used, bytes.len());
            return Ok(answer);
        }
        // Byte by byte, so that nothing of the next answer is taken.
        match stream.read(&mut buffer)? {
            0 => {
                let text = String::from_utf8_lossy(&bytes).into_owned();
                return parse(&bytes, is_head, true).map(|(answer, _)| answer).ok_or_else(|| {
                    io::Error::new(io::ErrorKind::UnexpectedEof, format!("end after {text:?}"))
                });
            }
            _ => bytes.push(buffer[0]),
        }
    }
}

impl Heard {
    /// All answers in what was heard; a rest that is none becomes one with status 0.
    pub fn answers(&self) -> Vec<RawAnswer> {
        let (mut rest, mut answers) = (&self.bytes[..], Vec::new());
        while !rest.is_empty() {
            let Some((answer, used)) = parse(rest, false, self.ending == "end") else {
                answers.push(RawAnswer { body: rest.to_vec(), ..RawAnswer::default() });
                break;
            };
            answers.push(answer);
            rest = &rest[used..];
        }
        answers
    }

    /// The statuses of all answers.
    pub fn statuses(&self) -> Vec<u16> {
        self.answers().iter().map(|answer| answer.status).collect()
    }

    /// What came, as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }
}

/// The first answer in `bytes` and its length; `None` when it is not whole.
fn parse(bytes: &[u8], is_head: bool, ended: bool) -> Option<(RawAnswer, usize)> {
    let end = find(bytes, b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let mut answer = RawAnswer { status, head, body: Vec::new() };
    let rest = &bytes[end + 4..];
    let has_no_body = is_head || status / 100 == 1 || status == 204 || status == 304;
    let used = if has_no_body {
        0
    } else if answer.header("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked")) {
        dechunk(rest, &mut answer.body)?
    } else if let Some(length) = answer.header("content-length").and_then(|value| value.parse().ok()) {
        answer.body = rest.get(..length)?.to_vec();
        length
    } else if ended {
        answer.body = rest.to_vec();
        rest.len()
    } else {
        return None;
    };
    Some((answer, end + 4 + used))
}

/// Puts chunks together; gives how many bytes they took, trailers included.
fn dechunk(bytes: &[u8], body: &mut Vec<u8>) -> Option<usize> {
    let mut at = 0;
    loop {
        let line_end = at + find(&bytes[at..], b"\r\n")?;
        let line = std::str::from_utf8(&bytes[at..line_end]).ok()?;
        let size = usize::from_str_radix(line.split(';').next()?.trim(), 16).ok()?;
        at = line_end + 2;
        if size == 0 {
            // Trailers, if any, end with an empty line.
            if bytes.get(at..at + 2)? == b"\r\n" {
                return Some(at + 2);
            }
            return Some(at + find(&bytes[at..], b"\r\n\r\n")? + 4);
        }
        body.extend_from_slice(bytes.get(at..at + size)?);
        at += size + 2;
    }
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}
