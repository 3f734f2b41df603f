//! Watches the frames of an HTTP/2 client for floods: control frames that cost the server work and the client nothing
//! (RFC 9113 section 10.5; CVE-2019-9512 and its kin, CVE-2023-44487).
//!
//! Beside station 5. Pure: it sees frame headers, and the time is an argument. The library bounds what a flood may make it
//! hold; this bounds what a flood may make it do. It never looks into a frame.

use std::time::{Duration, Instant};

use super::guard::Violation;

/// Credit of a connection. A client that opens and cancels a thousand calls at once stays below it.
const CREDIT_MAX: u32 = 4000;
/// Credit that comes back each second. PINGs that keep connections alive are one in ten seconds.
const CREDIT_PER_SECOND: u32 = 500;
/// Credit for a frame that carries something: who sends requests may also cancel some of them.
const CREDIT_PER_REQUEST: u32 = 3;

const PREFACE_BYTES: usize = 24;
const HEADER_BYTES: usize = 9;

const DATA: u8 = 0x0;
const HEADERS: u8 = 0x1;
const PRIORITY: u8 = 0x2;
const RST_STREAM: u8 = 0x3;
const SETTINGS: u8 = 0x4;
const PING: u8 = 0x6;
const CONTINUATION: u8 = 0x9;

/// The watch over one connection.
#[derive(Debug)]
pub struct Flood {
    /// Bytes to pass before the next frame header.
    skip: u64,
    header: [u8; HEADER_BYTES],
    header_bytes: usize,
    credit: u32,
    credited: Instant,
}

impl Flood {
    /// At the beginning of a connection, before the preface.
    pub fn new(now: Instant) -> Self {
        Self {
            skip: PREFACE_BYTES as u64,
            header: [0; HEADER_BYTES],
            header_bytes: 0,
            credit: CREDIT_MAX,
            credited: now,
        }
    }

    /// Looks at the next bytes of the stream.
    pub fn inspect(&mut self, mut bytes: &[u8], now: Instant) -> Option<Violation> {
        while !bytes.is_empty() {
            if self.skip > 0 {
                let passed = usize::try_from(self.skip).unwrap_or(usize::MAX).min(bytes.len());
                self.skip -= passed as u64;
                bytes = &bytes[passed..];
                continue;
            }
            let missing = (HEADER_BYTES - self.header_bytes).min(bytes.len());
            self.header[self.header_bytes..][..missing].copy_from_slice(&bytes[..missing]);
            self.header_bytes += missing;
            bytes = &bytes[missing..];
            if self.header_bytes == HEADER_BYTES && !self.take_frame(now) {
                return Some(Violation::Flood);
            }
        }
        None
    }

    /// False: the credit is used up.
    fn take_frame(&mut self, now: Instant) -> bool {
        self.header_bytes = 0;
        let [a, b, c, kind, ..] = self.header;
        let payload_bytes = u32::from_be_bytes([0, a, b, c]);
        self.skip = u64::from(payload_bytes);
        let cost = match (kind, payload_bytes) {
            (HEADERS, _) => return self.earn(CREDIT_PER_REQUEST),
            (DATA, 1..) => return self.earn(1),
            (DATA, 0) | (PRIORITY | PING, _) => 1,
            (RST_STREAM, _) => 4,
            (SETTINGS | CONTINUATION, _) => 8,
            // A client that receives sends WINDOW_UPDATE for what it receives.
            _ => 0,
        };
        if self.credit < cost {
            self.refill(now);
        }
        match self.credit.checked_sub(cost) {
            Some(left) => self.credit = left,
            None => return false,
        }
        true
    }

    fn earn(&mut self, credit: u32) -> bool {
        self.credit = (self.credit + credit).min(CREDIT_MAX);
        true
    }

    /// Looked at only when it matters: the common frames cost no clock.
    fn refill(&mut self, now: Instant) {
        let seconds = now.saturating_duration_since(self.credited).as_secs();
        let earned = u32::try_from(seconds).unwrap_or(u32::MAX).saturating_mul(CREDIT_PER_SECOND);
        self.credit = self.credit.saturating_add(earned).min(CREDIT_MAX);
        self.credited += Duration::from_secs(seconds);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lifecycle::clock;

    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

    fn frame(kind: u8, payload_bytes: u8) -> Vec<u8> {
        let mut frame = vec![0, 0, payload_bytes, kind, 0, 0, 0, 0, 1];
        frame.resize(HEADER_BYTES + usize::from(payload_bytes), 0);
        frame
    }

    fn send(kind: u8, payload_bytes: u8, count: usize) -> Option<Violation> {
        let now = clock::now();
        let mut flood = Flood::new(now);
        let stream = [PREFACE, &frame(kind, payload_bytes).repeat(count)].concat();
        // Cut where no frame ends.
        stream.chunks(7).find_map(|piece| flood.inspect(piece, now))
    }

    #[test]
    fn floods_of_control_frames_are_refused() {
        for (kind, payload_bytes) in
            [(PING, 8), (SETTINGS, 0), (RST_STREAM, 4), (PRIORITY, 5), (DATA, 0), (CONTINUATION, 3)]
        {
            assert_eq!(send(kind, payload_bytes, 5000), Some(Violation::Flood), "{kind}");
        }
    }

    #[test]
    fn requests_and_data_are_no_flood() {
        assert_eq!(send(HEADERS, 20, 5000), None);
        assert_eq!(send(DATA, 100, 50_000), None);
        assert_eq!(send(0x8, 4, 50_000), None, "WINDOW_UPDATE");
    }

    #[test]
    fn calls_that_are_cancelled_are_no_flood_for_a_while_and_rapid_resets_are() {
        let now = clock::now();
        let pair = [frame(HEADERS, 20), frame(RST_STREAM, 4)].concat();
        let mut flood = Flood::new(now);
        assert_eq!(flood.inspect(&[PREFACE, &pair.repeat(1000)].concat(), now), None);
        assert_eq!(flood.inspect(&pair.repeat(10_000), now), Some(Violation::Flood));
        let mut patient = Flood::new(now);
        patient.inspect(PREFACE, now);
        for second in 0..60 {
            assert_eq!(patient.inspect(&pair.repeat(400), now + Duration::from_secs(second)), None);
        }
    }
}
