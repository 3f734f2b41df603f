//! Sniffing promises: what is told early is never taken back, and nobody waits for ever.

use mesh_agent::proxy::http::sniff::{Sniffed, sniff};

/// No line that is looked at is longer, in bytes; after that there is an answer.
const ENOUGH_BYTES: usize = 9 * 1024;

/// # Panics
/// A promise is broken.
pub(crate) fn check(bytes: &[u8]) {
    let told = sniff(bytes);
    // Every cut of short inputs, and some of long ones.
    let step = bytes.len() / 512 + 1;
    for end in (0..bytes.len()).step_by(step) {
        let early = sniff(&bytes[..end]);
        assert!(early == Sniffed::More || early == told, "{early:?} after {end} bytes, {told:?} after all");
    }
    match told {
        Sniffed::Http1 => {
            let line = bytes.strip_prefix(b"\r\n").unwrap_or(bytes);
            let method = line.split(|byte| *byte == b' ').next().unwrap_or_default();
            assert!(!method.is_empty() && method.iter().all(u8::is_ascii_graphic), "a method comes first");
        }
        Sniffed::Http2 => assert!(bytes.starts_with(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")),
        Sniffed::Tls => assert!(bytes.starts_with(&[0x16, 0x03])),
        Sniffed::More => assert!(bytes.len() < ENOUGH_BYTES, "{} bytes tell nothing", bytes.len()),
        Sniffed::Other => {}
    }
}
