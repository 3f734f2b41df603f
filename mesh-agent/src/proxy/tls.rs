//! TLS 1.3 for tunnels: rustls shakes hands and keeps the key schedule, [`record`] protects records in place.
//!
//! Stations 7 and 8 of the walk. After the handshake the connection is taken apart with `dangerous_into_kernel_connection`
//! (rustls' interface for record layers outside rustls, meant for kTLS): no allocation and no copy per record, and 1 to
//! 2 KiB less per idle connection. Consequences, all kept here: KeyUpdate is answered and started here, alerts are read
//! here, session tickets are ignored (tunnels are reused instead), and anything but TLS 1.3 is refused.
//! It never decides who may talk to whom: the peer's certificates are handed to the caller.
//!
//! Reading order: [`connect`] and [`accept`], [`Tls`], then [`record`].

pub mod record;

use std::io;
use std::sync::Arc;

use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::crypto::SupportedKxGroup;
use rustls::kernel::KernelConnection;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, EncodeTlsData, UnbufferedStatus};
use rustls::{
    ClientConfig, ConnectionTrafficSecrets, ExtractedSecrets, NamedGroup, ProtocolVersion, ServerConfig,
};
use tokio::net::TcpStream;

use record::{Content, HEADER_BYTES, Key, TRAILER_BYTES};

/// Why a TLS connection failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The first byte is no TLS handshake: somebody dialled the tunnel port in plain text.
    #[error("the peer does not speak TLS")]
    NotTls,
    /// The peer closed before the handshake was over.
    #[error("the peer closed during the handshake")]
    ClosedInHandshake,
    /// The handshake failed; an alert was sent.
    #[error("handshake failed")]
    Handshake(#[source] rustls::Error),
    /// The peer's flight is larger than any that we accept.
    #[error("the peer's handshake flight is too large")]
    FlightTooLarge,
    /// The peer chose another protocol.
    #[error("the peer did not agree on weft/1")]
    Protocol,
    /// TLS 1.2, or a suite that the record layer does not know.
    #[error("the negotiated version or suite is not supported")]
    Suite,
    /// The peer sent a fatal alert (RFC 8446 section 6.2).
    #[error("the peer sent alert {0}")]
    Alert(u8),
    /// A record that does not authenticate or is malformed.
    #[error("a record is malformed or was tampered with")]
    BadRecord,
    /// A post-handshake message that is not legal here.
    #[error("post-handshake message {0} is not legal")]
    Message(u8),
    /// The AEAD refused to seal.
    #[error("sealing failed")]
    Seal,
    /// The socket failed.
    #[error("socket failed")]
    Io(#[from] io::Error),
}

/// Most bytes of the peer's handshake flight that are held; chains with post-quantum key shares stay below 16 KiB.
const FLIGHT_BYTES_MAX: usize = 64 * 1024;
/// What the buffer for that flight starts with: a ClientHello with X25519MLKEM768 is about 1.5 KiB.
const FLIGHT_BYTES_START: usize = 4 * 1024;
/// First byte of every TLS connection: a record of type handshake.
const HANDSHAKE_RECORD: u8 = 22;

/// A connection whose handshake is over.
#[derive(Debug)]
pub struct Established {
    /// Keys.
    pub tls: Tls,
    /// The peer's chain, leaf first, verified against the trust bundles by the configuration's verifier.
    pub peer_certificates: Vec<CertificateDer<'static>>,
    /// The key exchange group that was agreed on.
    pub key_exchange: &'static str,
    /// Our last flight, not sent yet: it travels with the first frame.
    pub unsent: Vec<u8>,
    /// Plaintext that arrived together with the peer's last flight.
    pub early_plaintext: Vec<u8>,
    /// The beginning of a record that arrived with it.
    pub tail: Vec<u8>,
}

/// Shakes hands as client. `alpn` must be what comes out of the negotiation.
///
/// # Errors
/// See [`Error`]; dropping the future leaves a socket that is good for nothing but closing.
pub async fn connect(
    stream: &TcpStream,
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    alpn: &[u8],
) -> Result<Established, Error> {
    let mut connection = UnbufferedClientConnection::new(config, name).map_err(Error::Handshake)?;
    let flights = shake_hands(&mut connection, stream, false).await?;
    require(connection.alpn_protocol() == Some(alpn), Error::Protocol)?;
    require(connection.protocol_version() == Some(ProtocolVersion::TLSv1_3), Error::Suite)?;
    let peer_certificates = owned(connection.peer_certificates());
    let key_exchange = group_name(connection.negotiated_key_exchange_group());
    let (secrets, schedule) = connection.dangerous_into_kernel_connection().map_err(Error::Handshake)?;
    flights.established(secrets, Schedule::Client(schedule), peer_certificates, key_exchange)
}

/// Shakes hands as server. `alpn` must be what comes out of the negotiation.
///
/// # Errors
/// See [`Error`]; dropping the future leaves a socket that is good for nothing but closing.
pub async fn accept(
    stream: &TcpStream,
    config: Arc<ServerConfig>,
    alpn: &[u8],
) -> Result<Established, Error> {
    let mut connection = UnbufferedServerConnection::new(config).map_err(Error::Handshake)?;
    let flights = shake_hands(&mut connection, stream, true).await?;
    require(connection.alpn_protocol() == Some(alpn), Error::Protocol)?;
    require(connection.protocol_version() == Some(ProtocolVersion::TLSv1_3), Error::Suite)?;
    let peer_certificates = owned(connection.peer_certificates());
    let key_exchange = group_name(connection.negotiated_key_exchange_group());
    let (secrets, schedule) = connection.dangerous_into_kernel_connection().map_err(Error::Handshake)?;
    flights.established(secrets, Schedule::Server(schedule), peer_certificates, key_exchange)
}

fn require(holds: bool, otherwise: Error) -> Result<(), Error> {
    if holds { Ok(()) } else { Err(otherwise) }
}

fn owned(chain: Option<&[CertificateDer<'static>]>) -> Vec<CertificateDer<'static>> {
    chain.map_or_else(Vec::new, <[_]>::to_vec)
}

fn group_name(group: Option<&'static dyn SupportedKxGroup>) -> &'static str {
    match group.map(|group| group.name()) {
        Some(NamedGroup::X25519MLKEM768) => "X25519MLKEM768",
        Some(NamedGroup::X25519) => "X25519",
        Some(NamedGroup::secp256r1) => "secp256r1",
        _ => "other",
    }
}

/// The two ends differ only in their types.
trait Handshake {
    type Data;
    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data>;
    fn handshaking(&self) -> bool;
}

impl Handshake for UnbufferedClientConnection {
    type Data = ClientConnectionData;
    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }
    fn handshaking(&self) -> bool {
        self.is_handshaking()
    }
}

impl Handshake for UnbufferedServerConnection {
    type Data = ServerConnectionData;
    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }
    fn handshaking(&self) -> bool {
        self.is_handshaking()
    }
}

#[derive(Default)]
struct Flights {
    incoming: Vec<u8>,
    filled_bytes: usize,
    outgoing: Vec<u8>,
    early_plaintext: Vec<u8>,
}

enum Step {
    Again,
    NeedsMore,
    Complete,
}

async fn shake_hands<C: Handshake>(
    connection: &mut C,
    stream: &TcpStream,
    first_byte_is_theirs: bool,
) -> Result<Flights, Error> {
    let mut flights = Flights { incoming: vec![0; FLIGHT_BYTES_START], ..Flights::default() };
    let mut unseen = first_byte_is_theirs;
    loop {
        match flights.step(connection) {
            Ok(Step::Again) => {}
            Ok(Step::Complete) => return Ok(flights),
            Ok(Step::NeedsMore) => {
                flights.send(stream).await?;
                flights.receive(stream).await?;
                if std::mem::take(&mut unseen) && flights.incoming[0] != HANDSHAKE_RECORD {
                    return Err(Error::NotTls);
                }
            }
            Err(error) => {
                // rustls has queued the alert that names our reason; the peer's log is poorer without it.
                while let Ok(Step::Again) = flights.step(connection) {}
                let _ = stream.try_write(&flights.outgoing);
                return Err(error);
            }
        }
    }
}

impl Flights {
    fn step<C: Handshake>(&mut self, connection: &mut C) -> Result<Step, Error> {
        let UnbufferedStatus { mut discard, state, .. } =
            connection.process(&mut self.incoming[..self.filled_bytes]);
        let step = match state {
            Ok(ConnectionState::EncodeTlsData(encode)) => put_flight(encode, &mut self.outgoing),
            Ok(ConnectionState::TransmitTlsData(transmit)) => {
                // "Done" as far as rustls is concerned: the bytes are ours and leave before the next read.
                transmit.done();
                Ok(Step::Again)
            }
            Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                while let Some(record) = traffic.next_record() {
                    let record = record.map_err(Error::Handshake)?;
                    self.early_plaintext.extend_from_slice(record.payload);
                    discard += record.discard;
                }
                Ok(Step::Again)
            }
            Ok(ConnectionState::BlockedHandshake) => Ok(Step::NeedsMore),
            Ok(ConnectionState::WriteTraffic(_)) => Ok(Step::Complete),
            Ok(_) => Err(Error::ClosedInHandshake),
            Err(error) => Err(Error::Handshake(error)),
        };
        self.incoming.copy_within(discard..self.filled_bytes, 0);
        self.filled_bytes -= discard;
        match step {
            Ok(Step::Complete) if connection.handshaking() => Ok(Step::NeedsMore),
            step => step,
        }
    }

    async fn send(&mut self, stream: &TcpStream) -> Result<(), Error> {
        while !self.outgoing.is_empty() {
            match stream.try_write(&self.outgoing) {
                Ok(written) => {
                    self.outgoing.drain(..written);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => stream.writable().await?,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    async fn receive(&mut self, stream: &TcpStream) -> Result<(), Error> {
        if self.filled_bytes == self.incoming.len() {
            require(self.incoming.len() < FLIGHT_BYTES_MAX, Error::FlightTooLarge)?;
            self.incoming.resize(self.incoming.len() * 2, 0);
        }
        loop {
            match stream.try_read(&mut self.incoming[self.filled_bytes..]) {
                Ok(0) => return Err(Error::ClosedInHandshake),
                Ok(read) => {
                    self.filled_bytes += read;
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => stream.readable().await?,
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn established(
        mut self,
        secrets: ExtractedSecrets,
        schedule: Schedule,
        peer_certificates: Vec<CertificateDer<'static>>,
        key_exchange: &'static str,
    ) -> Result<Established, Error> {
        self.incoming.truncate(self.filled_bytes);
        let tls = Tls {
            tx: Key::new(secrets.tx.0, &secrets.tx.1)?,
            rx: Key::new(secrets.rx.0, &secrets.rx.1)?,
            schedule,
        };
        Ok(Established {
            tls,
            peer_certificates,
            key_exchange,
            unsent: self.outgoing,
            early_plaintext: self.early_plaintext,
            tail: self.incoming,
        })
    }
}

fn put_flight<Data>(mut encode: EncodeTlsData<'_, Data>, out: &mut Vec<u8>) -> Result<Step, Error> {
    let start = out.len();
    if let Err(EncodeError::InsufficientSize(size)) = encode.encode(&mut []) {
        out.resize(start + size.required_size, 0);
        let written = encode.encode(&mut out[start..]).map_err(|_already| Error::Seal)?;
        out.truncate(start + written);
    }
    Ok(Step::Again)
}

/// rustls' key schedule after the handshake.
enum Schedule {
    Client(KernelConnection<ClientConnectionData>),
    Server(KernelConnection<ServerConnectionData>),
}

impl Schedule {
    fn next_tx(&mut self) -> Result<(u64, ConnectionTrafficSecrets), Error> {
        match self {
            Self::Client(schedule) => schedule.update_tx_secret(),
            Self::Server(schedule) => schedule.update_tx_secret(),
        }
        .map_err(Error::Handshake)
    }

    fn next_rx(&mut self) -> Result<(u64, ConnectionTrafficSecrets), Error> {
        match self {
            Self::Client(schedule) => schedule.update_rx_secret(),
            Self::Server(schedule) => schedule.update_rx_secret(),
        }
        .map_err(Error::Handshake)
    }
}

/// What a record held.
#[derive(Debug)]
pub enum Opened<'r> {
    /// Application data, decrypted in place.
    Data(&'r [u8]),
    /// A post-handshake message, dealt with.
    Nothing,
    /// close_notify: the peer sends nothing more, on purpose.
    Closed,
}

/// Handshake message types (RFC 8446 appendix B.3) that may follow the handshake.
mod message {
    pub(super) const NEW_SESSION_TICKET: u8 = 4;
    pub(super) const KEY_UPDATE: u8 = 24;
}

/// The keys of an established connection.
pub struct Tls {
    tx: Key,
    rx: Key,
    schedule: Schedule,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tls {{ sealed: {}, opened: {} }}", self.tx.records(), self.rx.records())
    }
}

impl Tls {
    /// Length of the record at the front of `bytes`; `None`: its header is not complete.
    ///
    /// # Errors
    /// It is no protected record.
    pub fn record_bytes(bytes: &[u8]) -> Result<Option<usize>, Error> {
        record::length(bytes)
    }

    /// Seals a record of application data in place: plaintext at [`HEADER_BYTES`], [`TRAILER_BYTES`] of room behind it.
    ///
    /// # Errors
    /// The AEAD refused.
    pub fn seal(&mut self, record: &mut [u8]) -> Result<(), Error> {
        self.tx.seal(record, Content::Data)
    }

    /// Appends a record with a copy of `plaintext`: for small frames.
    ///
    /// # Errors
    /// The AEAD refused.
    pub fn seal_copy(&mut self, plaintext: &[u8], out: &mut Vec<u8>) -> Result<(), Error> {
        self.put(plaintext, Content::Data, out)
    }

    /// Appends close_notify.
    ///
    /// # Errors
    /// The AEAD refused.
    pub fn seal_close_notify(&mut self, out: &mut Vec<u8>) -> Result<(), Error> {
        self.put(&[1, 0], Content::Alert, out)
    }

    /// Updates our key when it has sealed enough, appending the KeyUpdate that tells the peer.
    ///
    /// # Errors
    /// The AEAD refused.
    pub fn update_key_if_due(&mut self, out: &mut Vec<u8>) -> Result<(), Error> {
        if self.tx.records() < record::RECORDS_PER_KEY_MAX { Ok(()) } else { self.update_key(out) }
    }

    fn update_key(&mut self, out: &mut Vec<u8>) -> Result<(), Error> {
        self.put(&[message::KEY_UPDATE, 0, 0, 1, 0], Content::Handshake, out)?;
        let (sequence, secrets) = self.schedule.next_tx()?;
        self.tx = Key::new(sequence, &secrets)?;
        Ok(())
    }

    fn put(&mut self, plaintext: &[u8], content: Content, out: &mut Vec<u8>) -> Result<(), Error> {
        let start = out.len();
        out.resize(start + HEADER_BYTES, 0);
        out.extend_from_slice(plaintext);
        out.resize(out.len() + TRAILER_BYTES, 0);
        self.tx.seal(&mut out[start..], content)
    }

    /// Opens one whole record in place; an answer that the peer must get is appended to `reply`, sealed.
    ///
    /// # Errors
    /// The record is bad, or it is a fatal alert.
    pub fn open<'r>(&mut self, record: &'r mut [u8], reply: &mut Vec<u8>) -> Result<Opened<'r>, Error> {
        let (content, plaintext) = self.rx.open(record)?;
        match content {
            Content::Data => Ok(Opened::Data(plaintext)),
            Content::Alert => match *plaintext {
                [_, 0] => Ok(Opened::Closed),
                [_, description] => Err(Error::Alert(description)),
                _ => Err(Error::BadRecord),
            },
            Content::Handshake => self.post_handshake(plaintext, reply).map(|()| Opened::Nothing),
        }
    }

    /// Messages may share a record but, unlike in the handshake, we accept none that spans two.
    fn post_handshake(&mut self, mut rest: &[u8], reply: &mut Vec<u8>) -> Result<(), Error> {
        while let Some(([kind, a, b, c], after)) = rest.split_first_chunk::<4>() {
            let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
            let body = after.get(..length).ok_or(Error::BadRecord)?;
            rest = &after[length..];
            match (*kind, body) {
                (message::NEW_SESSION_TICKET, _) => {}
                // Must end its record (RFC 8446 section 5.1): the next one is under the new key.
                (message::KEY_UPDATE, [requested @ (0 | 1)]) if rest.is_empty() => {
                    let (sequence, secrets) = self.schedule.next_rx()?;
                    self.rx = Key::new(sequence, &secrets)?;
                    if *requested == 1 {
                        self.update_key(reply)?;
                    }
                }
                _ => return Err(Error::Message(*kind)),
            }
        }
        if rest.is_empty() { Ok(()) } else { Err(Error::BadRecord) }
    }
}

#[cfg(test)]
pub(crate) mod tests;
