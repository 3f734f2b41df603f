//! weft/1 frames: bytes to events and back, without I/O, clock or allocation on the data path.
//!
//! The decoder takes plaintext in whatever pieces TLS records leave it in. DATA payloads are handed out as ranges of the
//! caller's bytes; only a control frame that is split across pieces is copied. The wire format is written down in
//! `docs/tunnel.md`, whose test vectors are checked against this file.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::model::{ClientAddr, EndpointAddr, OriginalDst};

/// Bytes of a frame header: type u8, flags u8, reserved u16, length u32, network order.
pub const HEADER_BYTES: usize = 8;

/// Most payload bytes of one frame.
///
/// With its header, a full frame is 16384 bytes, the most that one TLS record carries (RFC 8446 section 5.1): one frame,
/// one record, one AEAD call.
pub const PAYLOAD_BYTES_MAX: usize = 16 * 1024 - HEADER_BYTES;

/// Most bytes of the text of a RESET.
pub const RESET_TEXT_BYTES_MAX: usize = 255;

const PING_ACK: u8 = 0x01;
const PING_LEAVING: u8 = 0x02;

/// Frame types. The values are the wire's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// Begins an application connection.
    Open = 1,
    /// Application bytes.
    Data = 2,
    /// No more DATA from this side.
    Fin = 3,
    /// The connection is over; bytes not yet delivered are dropped.
    Reset = 4,
    /// The sender is finished with the connection.
    Done = 5,
    /// Hand-over: stop at a frame boundary.
    Pause = 6,
    /// Hand-over: go on with a paused connection on this tunnel.
    Resume = 7,
    /// Liveness.
    Ping = 8,
}

impl Kind {
    fn from_wire(value: u8) -> Option<Self> {
        Some(match value {
            1 => Self::Open,
            2 => Self::Data,
            3 => Self::Fin,
            4 => Self::Reset,
            5 => Self::Done,
            6 => Self::Pause,
            7 => Self::Resume,
            8 => Self::Ping,
            _ => return None,
        })
    }
}

/// What the bytes are, as far as the opener knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Protocol {
    /// Bytes.
    #[default]
    Tcp,
    /// HTTP/1.x in clear text.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// A value that this version does not know; carried as bytes.
    Other(u8),
}

impl Protocol {
    fn to_wire(self) -> u8 {
        match self {
            Self::Tcp => 0,
            Self::Http1 => 1,
            Self::Http2 => 2,
            Self::Other(value) => value,
        }
    }

    fn from_wire(value: u8) -> Self {
        match value {
            0 => Self::Tcp,
            1 => Self::Http1,
            2 => Self::Http2,
            other => Self::Other(other),
        }
    }
}

/// W3C trace context (trace-id, parent-id and flags of `traceparent` version 00).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceContext {
    /// Trace id.
    pub trace_id: [u8; 16],
    /// Span id of the parent.
    pub parent_id: [u8; 8],
    /// Trace flags.
    pub flags: u8,
}

/// Payload of OPEN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Open {
    /// The pod address and port to dial.
    pub destination: EndpointAddr,
    /// The application's own address.
    pub client: ClientAddr,
    /// What the application dialled.
    pub dialled: OriginalDst,
    /// What the bytes are.
    pub protocol: Protocol,
    /// The trace that the connection belongs to.
    pub trace: Option<TraceContext>,
}

/// Why a connection was reset. The values are the wire's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ResetReason {
    /// The application reset its connection.
    Application,
    /// The destination's port refused.
    ConnectRefused,
    /// The destination did not answer in time.
    ConnectTimeout,
    /// No route to the destination.
    Unreachable,
    /// A policy refused the connection before any byte was delivered.
    PolicyDenied,
    /// A policy change turned against the open connection.
    PolicyRevoked,
    /// The peer broke this protocol.
    Protocol,
    /// The frame is not part of what was negotiated.
    NotNegotiated,
    /// The agent stops.
    Shutdown,
    /// The agent ran out of a resource.
    Exhausted,
    /// The destination address is not one of the pod that this tunnel ends at.
    NotHere,
    /// A code that this version does not know.
    Other(u32),
}

/// Every reason with a name, in the order of the wire's codes.
pub const RESET_REASONS: [(ResetReason, u32, &str); 11] = [
    (ResetReason::Application, 1, "application"),
    (ResetReason::ConnectRefused, 2, "connect_refused"),
    (ResetReason::ConnectTimeout, 3, "connect_timeout"),
    (ResetReason::Unreachable, 4, "unreachable"),
    (ResetReason::PolicyDenied, 5, "policy_denied"),
    (ResetReason::PolicyRevoked, 6, "policy_revoked"),
    (ResetReason::Protocol, 7, "protocol"),
    (ResetReason::NotNegotiated, 8, "not_negotiated"),
    (ResetReason::Shutdown, 9, "shutdown"),
    (ResetReason::Exhausted, 10, "exhausted"),
    (ResetReason::NotHere, 11, "not_here"),
];

impl ResetReason {
    /// The code on the wire.
    pub fn code(self) -> u32 {
        match self {
            Self::Other(code) => code,
            named => RESET_REASONS.iter().find(|row| row.0 == named).map_or(0, |row| row.1),
        }
    }

    /// From the code on the wire.
    pub fn from_code(code: u32) -> Self {
        RESET_REASONS.iter().find(|row| row.1 == code).map_or(Self::Other(code), |row| row.0)
    }

    /// The name in the specification.
    pub fn label(self) -> &'static str {
        RESET_REASONS.iter().find(|row| row.0 == self).map_or("other", |row| row.2)
    }
}

/// Payload of PAUSE and RESUME: which connection, and how far each direction has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Random name of the connection, drawn by the opener.
    pub stream_id: [u8; 16],
    /// DATA bytes that the sender of this frame has sent.
    pub sent_bytes: u64,
    /// DATA bytes that the sender of this frame has received.
    pub received_bytes: u64,
}

/// What the decoder found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// A connection begins.
    Open(Box<Open>),
    /// Some bytes of a DATA frame, borrowed from the input; a frame may come in several pieces.
    Data(&'a [u8]),
    /// The peer sends no more DATA.
    Fin,
    /// The peer aborted.
    Reset {
        /// Why.
        reason: ResetReason,
        /// For people; may be empty.
        text: Box<str>,
    },
    /// The peer is finished with the connection.
    Done,
    /// Hand-over.
    Pause(Position),
    /// Hand-over.
    Resume(Position),
    /// Liveness.
    Ping {
        /// What it says.
        ping: Ping,
        /// Echoed.
        nonce: [u8; 8],
    },
}

/// What a PING says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ping {
    /// Are you there?
    Question,
    /// Yes.
    Answer,
    /// The sender goes away soon: what can go elsewhere should. Not answered.
    Leaving,
}

impl Event<'_> {
    /// The frame type that it came in.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Open(_) => Kind::Open,
            Self::Data(_) => Kind::Data,
            Self::Fin => Kind::Fin,
            Self::Reset { .. } => Kind::Reset,
            Self::Done => Kind::Done,
            Self::Pause(_) => Kind::Pause,
            Self::Resume(_) => Kind::Resume,
            Self::Ping { .. } => Kind::Ping,
        }
    }
}

/// The input is not weft/1. The tunnel cannot be used any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Unknown frame type.
    #[error("frame type {0} is unknown")]
    UnknownType(u8),
    /// A flag that the type does not have.
    #[error("flags {flags:#04x} are not defined for {kind:?}")]
    Flags {
        /// Frame type.
        kind: Kind,
        /// The flags.
        flags: u8,
    },
    /// The reserved field is not zero.
    #[error("the reserved field is {0:#06x}, not zero")]
    Reserved(u16),
    /// The payload is longer than a frame may carry.
    #[error("a payload of {0} bytes is longer than a frame carries")]
    TooLong(u32),
    /// The payload's length does not fit the type.
    #[error("{length} bytes are no payload of {kind:?}")]
    Length {
        /// Frame type.
        kind: Kind,
        /// Length in the header.
        length: u32,
    },
    /// An OPEN without a field that it must have.
    #[error("OPEN has no {0}")]
    Missing(&'static str),
    /// An OPEN with a field twice.
    #[error("OPEN has field {0:#04x} twice")]
    Twice(u8),
    /// A field's length does not fit its tag, or it runs over the end.
    #[error("field {0:#04x} of OPEN has a bad length")]
    FieldLength(u8),
    /// An OPEN with a field that must be understood and is not.
    #[error("field {0:#04x} of OPEN is unknown and must be understood")]
    UnknownField(u8),
    /// The text of a RESET is not UTF-8.
    #[error("the text of RESET is not UTF-8")]
    Text,
}

/// Frame decoder. Create one per tunnel and direction.
#[derive(Debug, Default)]
pub struct Decoder {
    /// The part of a header or control frame that has arrived; empty between frames.
    partial: Vec<u8>,
    /// Bytes of the current DATA frame still to come.
    data_left_bytes: u32,
}

impl Decoder {
    /// Takes the next event from `input` and returns how many bytes it used. `None` with all bytes used: more is needed.
    ///
    /// # Errors
    /// The input is not weft/1; the decoder must not be used again.
    pub fn next<'a>(&mut self, input: &'a [u8]) -> Result<(usize, Option<Event<'a>>), Malformed> {
        if self.data_left_bytes > 0 {
            return Ok(self.data(input, 0));
        }
        if !self.partial.is_empty() {
            return self.next_of_split_frame(input);
        }
        let Some((head, rest)) = input.split_first_chunk::<HEADER_BYTES>() else {
            self.partial.extend_from_slice(input);
            return Ok((input.len(), None));
        };
        let header = Header::parse(head)?;
        if header.kind == Kind::Data {
            self.data_left_bytes = header.length;
            return Ok(self.data(input, HEADER_BYTES));
        }
        match rest.get(..header.length as usize) {
            Some(payload) => {
                Ok((HEADER_BYTES + payload.len(), Some(control_event(header.kind, header.flags, payload)?)))
            }
            None => {
                self.partial.extend_from_slice(input);
                Ok((input.len(), None))
            }
        }
    }

    /// True when the last input ended between two frames.
    pub fn at_boundary(&self) -> bool {
        self.partial.is_empty() && self.data_left_bytes == 0
    }

    fn data<'a>(&mut self, input: &'a [u8], from: usize) -> (usize, Option<Event<'a>>) {
        let left = self.data_left_bytes as usize;
        let end = input.len().min(from + left);
        let piece = &input[from..end];
        self.data_left_bytes -= u32::try_from(piece.len()).unwrap_or(self.data_left_bytes);
        (end, if piece.is_empty() { None } else { Some(Event::Data(piece)) })
    }

    fn next_of_split_frame<'a>(&mut self, input: &'a [u8]) -> Result<(usize, Option<Event<'a>>), Malformed> {
        let mut used = 0;
        if self.partial.len() < HEADER_BYTES {
            used = input.len().min(HEADER_BYTES - self.partial.len());
            self.partial.extend_from_slice(&input[..used]);
        }
        let Some(head) = self.partial.first_chunk::<HEADER_BYTES>() else {
            return Ok((used, None));
        };
        let header = Header::parse(head)?;
        if header.kind == Kind::Data {
            self.partial = Vec::new();
            self.data_left_bytes = header.length;
            let (end, event) = self.data(&input[used..], 0);
            return Ok((used + end, event));
        }
        let whole = HEADER_BYTES + header.length as usize;
        let take = (input.len() - used).min(whole - self.partial.len());
        self.partial.extend_from_slice(&input[used..used + take]);
        used += take;
        if self.partial.len() < whole {
            return Ok((used, None));
        }
        let frame = std::mem::take(&mut self.partial);
        Ok((used, Some(control_event(header.kind, header.flags, &frame[HEADER_BYTES..])?)))
    }
}

struct Header {
    kind: Kind,
    flags: u8,
    length: u32,
}

impl Header {
    fn parse(bytes: &[u8; HEADER_BYTES]) -> Result<Self, Malformed> {
        let [kind, flags, r0, r1, l0, l1, l2, l3] = *bytes;
        let kind = Kind::from_wire(kind).ok_or(Malformed::UnknownType(kind))?;
        let reserved = u16::from_be_bytes([r0, r1]);
        let length = u32::from_be_bytes([l0, l1, l2, l3]);
        if reserved != 0 {
            return Err(Malformed::Reserved(reserved));
        }
        if flags != 0 && !(kind == Kind::Ping && matches!(flags, PING_ACK | PING_LEAVING)) {
            return Err(Malformed::Flags { kind, flags });
        }
        if length as usize > PAYLOAD_BYTES_MAX {
            return Err(Malformed::TooLong(length));
        }
        let fits = match kind {
            Kind::Open | Kind::Data => length > 0,
            Kind::Fin | Kind::Done => length == 0,
            Kind::Reset => (4..=4 + RESET_TEXT_BYTES_MAX as u32).contains(&length),
            Kind::Pause | Kind::Resume => length == 32,
            Kind::Ping => length == 8,
        };
        if fits { Ok(Self { kind, flags, length }) } else { Err(Malformed::Length { kind, length }) }
    }
}

fn control_event(kind: Kind, flags: u8, payload: &[u8]) -> Result<Event<'static>, Malformed> {
    let length = Malformed::Length { kind, length: u32::try_from(payload.len()).unwrap_or(u32::MAX) };
    Ok(match kind {
        Kind::Open => Event::Open(Box::new(open_fields(payload)?)),
        Kind::Data => return Err(length),
        Kind::Fin => Event::Fin,
        Kind::Done => Event::Done,
        Kind::Reset => {
            let (code, text) = payload.split_first_chunk::<4>().ok_or(length)?;
            let text = std::str::from_utf8(text).map_err(|_invalid| Malformed::Text)?;
            Event::Reset { reason: ResetReason::from_code(u32::from_be_bytes(*code)), text: text.into() }
        }
        Kind::Pause => Event::Pause(position(payload).ok_or(length)?),
        Kind::Resume => Event::Resume(position(payload).ok_or(length)?),
        Kind::Ping => {
            let ping = match flags {
                PING_ACK => Ping::Answer,
                PING_LEAVING => Ping::Leaving,
                _ => Ping::Question,
            };
            Event::Ping { ping, nonce: *payload.first_chunk().ok_or(length)? }
        }
    })
}

fn position(payload: &[u8]) -> Option<Position> {
    let (stream_id, rest) = payload.split_first_chunk::<16>()?;
    let (sent, rest) = rest.split_first_chunk::<8>()?;
    let received = rest.first_chunk::<8>()?;
    Some(Position {
        stream_id: *stream_id,
        sent_bytes: u64::from_be_bytes(*sent),
        received_bytes: u64::from_be_bytes(*received),
    })
}

/// Field tags of OPEN. A tag of 0x80 and above may be skipped by who does not know it.
mod tag {
    pub(super) const DESTINATION: u8 = 0x01;
    pub(super) const CLIENT: u8 = 0x02;
    pub(super) const DIALLED: u8 = 0x03;
    pub(super) const PROTOCOL: u8 = 0x04;
    pub(super) const TRACE: u8 = 0x80;
    pub(super) const MAY_SKIP: u8 = 0x80;
}

fn open_fields(mut rest: &[u8]) -> Result<Open, Malformed> {
    let (mut destination, mut client, mut dialled, mut protocol, mut trace) = (None, None, None, None, None);
    while let Some((&field, after)) = rest.split_first() {
        let bad = Malformed::FieldLength(field);
        let (length, after) = after.split_first_chunk::<2>().ok_or(bad)?;
        let length = usize::from(u16::from_be_bytes(*length));
        let value = after.get(..length).ok_or(bad)?;
        rest = &after[length..];
        let twice = match field {
            tag::DESTINATION => destination.replace(EndpointAddr::new(address(value).ok_or(bad)?)).is_some(),
            tag::CLIENT => client.replace(ClientAddr::new(address(value).ok_or(bad)?)).is_some(),
            tag::DIALLED => dialled.replace(OriginalDst::new(address(value).ok_or(bad)?)).is_some(),
            tag::PROTOCOL => {
                let [value] = value else { return Err(bad) };
                protocol.replace(Protocol::from_wire(*value)).is_some()
            }
            tag::TRACE => trace.replace(trace_context(value).ok_or(bad)?).is_some(),
            unknown if unknown < tag::MAY_SKIP => return Err(Malformed::UnknownField(unknown)),
            _ => false,
        };
        if twice {
            return Err(Malformed::Twice(field));
        }
    }
    Ok(Open {
        destination: destination.ok_or(Malformed::Missing("destination"))?,
        client: client.ok_or(Malformed::Missing("client"))?,
        dialled: dialled.ok_or(Malformed::Missing("dialled"))?,
        protocol: protocol.unwrap_or_default(),
        trace,
    })
}

fn address(value: &[u8]) -> Option<SocketAddr> {
    let (ip, port) = value.split_last_chunk::<2>()?;
    let ip = match ip.len() {
        4 => IpAddr::V4(Ipv4Addr::from(*ip.first_chunk::<4>()?)),
        16 => IpAddr::V6(Ipv6Addr::from(*ip.first_chunk::<16>()?)),
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::from_be_bytes(*port)))
}

fn trace_context(value: &[u8]) -> Option<TraceContext> {
    let (trace_id, rest) = value.split_first_chunk::<16>()?;
    let (parent_id, rest) = rest.split_first_chunk::<8>()?;
    let [flags] = rest else { return None };
    Some(TraceContext { trace_id: *trace_id, parent_id: *parent_id, flags: *flags })
}

/// The header of a frame with `length` payload bytes.
///
/// # Panics
/// When `length` is above [`PAYLOAD_BYTES_MAX`].
pub fn header(kind: Kind, length: usize) -> [u8; HEADER_BYTES] {
    assert!(length <= PAYLOAD_BYTES_MAX, "a frame carries at most {PAYLOAD_BYTES_MAX} bytes");
    let length = (length as u32).to_be_bytes();
    [kind as u8, 0, 0, 0, length[0], length[1], length[2], length[3]]
}

/// Appends an OPEN.
pub fn put_open(out: &mut Vec<u8>, open: &Open) {
    let start = out.len();
    out.extend_from_slice(&header(Kind::Open, 0));
    put_address(out, tag::DESTINATION, open.destination.addr());
    put_address(out, tag::CLIENT, open.client.addr());
    put_address(out, tag::DIALLED, open.dialled.addr());
    put_field(out, tag::PROTOCOL, &[open.protocol.to_wire()]);
    if let Some(trace) = &open.trace {
        let mut value = [0; 25];
        value[..16].copy_from_slice(&trace.trace_id);
        value[16..24].copy_from_slice(&trace.parent_id);
        value[24] = trace.flags;
        put_field(out, tag::TRACE, &value);
    }
    let length = out.len() - start - HEADER_BYTES;
    out[start..start + HEADER_BYTES].copy_from_slice(&header(Kind::Open, length));
}

/// Appends an empty frame: FIN or DONE.
pub fn put_empty(out: &mut Vec<u8>, kind: Kind) {
    out.extend_from_slice(&header(kind, 0));
}

/// Appends a RESET; the text is cut to [`RESET_TEXT_BYTES_MAX`].
pub fn put_reset(out: &mut Vec<u8>, reason: ResetReason, text: &str) {
    let mut end = text.len().min(RESET_TEXT_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    out.extend_from_slice(&header(Kind::Reset, 4 + end));
    out.extend_from_slice(&reason.code().to_be_bytes());
    out.extend_from_slice(&text.as_bytes()[..end]);
}

/// Appends a PAUSE or RESUME.
pub fn put_position(out: &mut Vec<u8>, kind: Kind, position: &Position) {
    out.extend_from_slice(&header(kind, 32));
    out.extend_from_slice(&position.stream_id);
    out.extend_from_slice(&position.sent_bytes.to_be_bytes());
    out.extend_from_slice(&position.received_bytes.to_be_bytes());
}

/// Appends a PING.
pub fn put_ping(out: &mut Vec<u8>, ping: Ping, nonce: [u8; 8]) {
    let mut head = header(Kind::Ping, 8);
    head[1] = match ping {
        Ping::Question => 0,
        Ping::Answer => PING_ACK,
        Ping::Leaving => PING_LEAVING,
    };
    out.extend_from_slice(&head);
    out.extend_from_slice(&nonce);
}

/// Appends a DATA frame.
///
/// # Panics
/// When `bytes` is empty or longer than [`PAYLOAD_BYTES_MAX`].
pub fn put_data(out: &mut Vec<u8>, bytes: &[u8]) {
    assert!(!bytes.is_empty(), "DATA carries at least one byte");
    out.extend_from_slice(&header(Kind::Data, bytes.len()));
    out.extend_from_slice(bytes);
}

fn put_address(out: &mut Vec<u8>, field: u8, address: SocketAddr) {
    let mut value = [0; 18];
    let ip_bytes = match address.ip() {
        IpAddr::V4(ip) => {
            value[..4].copy_from_slice(&ip.octets());
            4
        }
        IpAddr::V6(ip) => {
            value[..16].copy_from_slice(&ip.octets());
            16
        }
    };
    value[ip_bytes..ip_bytes + 2].copy_from_slice(&address.port().to_be_bytes());
    put_field(out, field, &value[..ip_bytes + 2]);
}

fn put_field(out: &mut Vec<u8>, field: u8, value: &[u8]) {
    out.push(field);
    out.extend_from_slice(&u16::try_from(value.len()).unwrap_or(u16::MAX).to_be_bytes());
    out.extend_from_slice(value);
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod vectors;
