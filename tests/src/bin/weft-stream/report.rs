//! What an end of a connection saw, as one line of JSON.

use std::io;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use serde::Serialize;

/// One end's account of a connection.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// The order's.
    pub id: String,
    /// `client` or `server`.
    pub side: &'static str,
    /// This end's address.
    pub local: Option<String>,
    /// The other end's address.
    pub peer: Option<String>,
    /// Bytes that the kernel took, the header included on the client's side.
    pub written: u64,
    /// Bytes that came, the header included on the server's side.
    pub read: u64,
    /// Offset (in the direction's bytes, the header left out) of the first byte that is not as it should be.
    pub mismatch: Option<u64>,
    /// What went wrong.
    pub error: Option<String>,
    /// What the other end's abrupt ending looked like here: `end`, or an error's name.
    pub saw: Option<String>,
    /// Bytes that could be written before the reader's sleep blocked the writer.
    pub blocked_at: Option<u64>,
    /// Zero-copy sends whose completion came; nothing when SO_ZEROCOPY was refused.
    pub completions: Option<u64>,
    /// Connections that went well (churn).
    pub connections: u32,
    /// From connected to closed.
    pub seconds: f64,
}

impl Report {
    /// An empty account.
    pub fn new(id: &str, side: &'static str) -> Self {
        Self { id: id.to_owned(), side, ..Self::default() }
    }

    /// Whether every byte was right and nothing failed.
    pub fn is_good(&self) -> bool {
        self.mismatch.is_none() && self.error.is_none()
    }

    /// Prints it as one line, whole, however many threads print.
    pub fn print(&self) {
        let line = serde_json::to_string(self).expect("numbers and texts are JSON");
        println!("{line}");
    }

    /// Notes the first error of all.
    pub fn fail(&mut self, doing: &str, error: &io::Error) {
        self.error.get_or_insert_with(|| format!("{doing}: {}", error_name(error)));
    }
}

/// An error as C programs call it: `ECONNRESET`.
pub fn error_name(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(code) => format!("{:?}", Errno::from_raw(code)),
        None => error.to_string(),
    }
}

/// The monotonic clock.
#[expect(
    clippy::disallowed_methods,
    reason = "this program does not link the agent, whose lifecycle::clock is meant"
)]
pub fn now() -> Instant {
    Instant::now()
}

/// Sleeps.
pub fn sleep(time: Duration) {
    if !time.is_zero() {
        std::thread::sleep(time);
    }
}
