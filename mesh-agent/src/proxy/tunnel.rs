//! weft/1: how two agents carry application connections, one after the other, over one TLS connection.
//!
//! Pure: bytes in, events out. What may be sent when is decided here, sockets and TLS are the relay's. The specification
//! is `docs/tunnel.md`.
//!
//! Reading order: [`codec`], [`session`].

pub mod codec;
pub mod session;

pub use codec::{Decoder, Event, Kind, Malformed, Open, Protocol, ResetReason, TraceContext};
pub use session::{Disposition, Role, Session, State, Violation};

/// ALPN protocol name (RFC 7301) of this version.
pub const ALPN: &[u8] = b"weft/1";

/// TCP port, at the destination pod's own address, where tunnels arrive.
pub const PORT: u16 = 15008;
