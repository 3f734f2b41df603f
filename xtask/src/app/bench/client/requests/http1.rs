//! The client's side of HTTP/1.1 on one connection: one request at a time, and an answer that must be the expected one.

use std::io::{Error, ErrorKind, Result};

use super::payload;

/// Longest accepted answer head, in bytes.
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// What is said on a connection.
pub struct Talk {
    request: Vec<u8>,
    expected: Vec<u8>,
    received: Vec<u8>,
    waiting: Option<usize>,
}

impl Talk {
    /// A conversation about one thing.
    pub fn new(host: &str, path: &str, size: usize) -> Self {
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: weft-bench\r\nAccept: */*\r\n\r\n");
        Self { request: request.into_bytes(), expected: payload(size), received: Vec::new(), waiting: None }
    }

    /// Asks.
    pub fn ask(&mut self, id: usize, out: &mut Vec<u8>) {
        self.waiting = Some(id);
        out.extend_from_slice(&self.request);
    }

    /// Takes in what has arrived.
    pub fn take(&mut self, bytes: &[u8], done: &mut Vec<usize>) -> Result<()> {
        self.received.extend_from_slice(bytes);
        let Some(end) = self.received.windows(4).position(|four| four == b"\r\n\r\n") else {
            if self.received.len() > HEAD_BYTES_MAX {
                return Err(broken("an answer's head is too long"));
            }
            return Ok(());
        };
        let (head, body) = (&self.received[..end + 2], &self.received[end + 4..]);
        if !head.starts_with(b"HTTP/1.1 200 ") {
            let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
            return Err(broken(&format!("the answer is {}", String::from_utf8_lossy(line))));
        }
        let length = length(head).ok_or_else(|| broken("the answer has no length"))?;
        if length != self.expected.len() {
            return Err(broken(&format!("the answer has {length} bytes")));
        }
        if body.len() < length {
            return Ok(());
        }
        if body != self.expected {
            return Err(broken("the answer has other bytes"));
        }
        self.received.clear();
        done.push(self.waiting.take().ok_or_else(|| broken("an answer to no request"))?);
        Ok(())
    }
}

fn length(head: &[u8]) -> Option<usize> {
    const NAME: &[u8] = b"content-length:";
    let mut lines = head.split(|byte| *byte == b'\n');
    let line = lines.find(|line| line.len() > NAME.len() && line[..NAME.len()].eq_ignore_ascii_case(NAME))?;
    std::str::from_utf8(&line[NAME.len()..]).ok()?.trim().parse().ok()
}

fn broken(what: &str) -> Error {
    Error::new(ErrorKind::InvalidData, what.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(answer: &str, size: usize) -> std::result::Result<Vec<usize>, String> {
        let mut talk = Talk::new("h", "/", 3);
        talk.ask(0, &mut Vec::new());
        let mut done = Vec::new();
        for piece in answer.as_bytes().chunks(size) {
            talk.take(piece, &mut done).map_err(|error| error.to_string())?;
        }
        Ok(done)
    }

    #[test]
    fn only_the_expected_answer_counts_however_it_is_cut() {
        for size in [1, 5, 1000] {
            assert_eq!(outcome("HTTP/1.1 200 OK\r\nconTent-Length: 3\r\nX: y\r\n\r\nwef", size), Ok(vec![0]));
            assert_eq!(outcome("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nwe", size), Ok(vec![]));
            for wrong in [
                "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 3\r\n\r\nwef",
                "HTTP/1.1 200 OK\r\n\r\nwef",
                "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc",
                "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nweft",
            ] {
                assert!(outcome(wrong, size).is_err(), "{wrong}");
            }
        }
    }
}
