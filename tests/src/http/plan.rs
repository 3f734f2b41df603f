//! How the server is told to behave: the request header `x-do`, words apart by spaces, `status=503 head-delay=200`.

use std::time::Duration;

use http::HeaderMap;

/// The request header that has it.
pub const HEADER: &str = "x-do";

/// What the server does with a request. Without a word it reads the request whole and answers with what it received.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// `status=503`.
    pub status: Option<u16>,
    /// `head-delay=MS`: before anything is answered.
    pub head_delay: Duration,
    /// `chunks=N`: a body of so many pieces instead of the account.
    pub chunks: usize,
    /// `chunk-bytes=N`: the size of each; 1,000 otherwise.
    pub chunk_bytes: usize,
    /// `chunk-delay=MS`: before each.
    pub chunk_delay: Duration,
    /// `length`: say the whole length in the head.
    pub length: bool,
    /// `trailers`: end with trailers.
    pub trailers: bool,
    /// `cut`: break off after the pieces, as a program that dies does.
    pub cut: bool,
    /// `echo`: send the request's body back while it comes.
    pub echo: bool,
    /// `unread`: answer without reading the request's body.
    pub unread: bool,
    /// `read-delay=MS`: before each piece of the request's body.
    pub read_delay: Duration,
}

impl Plan {
    /// Reads the header.
    ///
    /// # Errors
    /// Names the word that nobody knows.
    pub fn of(headers: &HeaderMap) -> Result<Self, String> {
        let mut plan = Self { chunk_bytes: 1000, ..Self::default() };
        let words = headers.get_all(HEADER).iter().filter_map(|value| value.to_str().ok());
        for word in words.flat_map(str::split_whitespace) {
            plan.take(word).ok_or_else(|| format!("what is {word}?"))?;
        }
        Ok(plan)
    }

    fn take(&mut self, word: &str) -> Option<()> {
        let (name, value) = word.split_once('=').unwrap_or((word, ""));
        let ms = || value.parse().ok().map(Duration::from_millis);
        match name {
            "status" => self.status = Some(value.parse().ok()?),
            "head-delay" => self.head_delay = ms()?,
            "chunks" => self.chunks = value.parse().ok()?,
            "chunk-bytes" => self.chunk_bytes = value.parse().ok()?,
            "chunk-delay" => self.chunk_delay = ms()?,
            "read-delay" => self.read_delay = ms()?,
            "length" => self.length = true,
            "trailers" => self.trailers = true,
            "cut" => self.cut = true,
            "echo" => self.echo = true,
            "unread" => self.unread = true,
            _ => return None,
        }
        Some(())
    }
}
