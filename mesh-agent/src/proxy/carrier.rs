//! One tunnel as it lives on a worker: socket, TLS keys, frame decoder and session, with nothing buffered while it is idle.
//!
//! Station 8. Receiving decrypts whole records where the socket put them and hands out slices of them; what stays here
//! is the beginning of an incomplete record. Sending seals records where the application's bytes were read; what stays
//! is what the socket would not take. It never looks at an application socket: that is [`super::relay`]'s.

use std::cell::RefCell;
use std::io;

use tokio::io::Interest;
use tokio::net::TcpStream;

use super::tls::record::{HEADER_BYTES as TLS_HEADER_BYTES, TRAILER_BYTES};
use super::tls::{self, Established, Opened, Tls};
use super::tunnel::codec::{self, HEADER_BYTES, PAYLOAD_BYTES_MAX, Ping};
use super::tunnel::{
    Decoder, Disposition, Event, Kind, Malformed, Open, ResetReason, Role, Session, Violation,
};
use crate::telemetry::Telemetry;

/// Bytes of one full frame as a TLS record: records of a bulk transfer lie back to back in the send buffer.
pub const SLOT_BYTES: usize = PAYLOAD_AT + PAYLOAD_BYTES_MAX + TRAILER_BYTES;
/// Where the payload begins in a slot.
pub const PAYLOAD_AT: usize = TLS_HEADER_BYTES + HEADER_BYTES;
/// Most records of one write: 256 KiB, where more per system call stops paying and the batch still fits a core's L2.
pub const SLOTS_MAX: usize = 16;
/// Room behind the slots for the control frames that end a direction (FIN and DONE in one record).
const CONTROL_BYTES: usize = 64;

/// Buffers of one worker, used by one connection at a time and never across a wait.
#[derive(Debug)]
pub struct Scratch {
    /// [`SLOTS_MAX`] slots.
    pub send: Box<[u8]>,
    /// What sockets are read into.
    pub receive: Box<[u8]>,
}

thread_local! {
    /// Leaked once per worker: a worker lives as long as the process, and a reference is cheaper than a count.
    static SCRATCH: &'static RefCell<Scratch> = Box::leak(Box::default());
}

/// The buffers of the worker that asks.
pub fn scratch() -> &'static RefCell<Scratch> {
    SCRATCH.with(|scratch| *scratch)
}

impl Default for Scratch {
    fn default() -> Self {
        Self {
            send: vec![0; SLOTS_MAX * SLOT_BYTES + CONTROL_BYTES].into(),
            receive: vec![0; SLOTS_MAX * SLOT_BYTES].into(),
        }
    }
}

/// Why a tunnel cannot be used any more.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The record layer.
    #[error("TLS failed")]
    Tls(#[from] tls::Error),
    /// Not weft/1.
    #[error("the peer sent a malformed frame")]
    Malformed(#[from] Malformed),
    /// A frame at the wrong time.
    #[error("the peer broke the order of frames")]
    Violation(#[from] Violation),
    /// The socket.
    #[error("the tunnel's socket failed")]
    Io(#[from] io::Error),
    /// The peer closed.
    #[error("the peer closed the tunnel {}", if *.on_purpose { "on purpose" } else { "without a word" })]
    Closed {
        /// With close_notify: it had no connection open and nothing of ours was processed.
        on_purpose: bool,
    },
}

/// Whether decoding goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// With the next event.
    Continue,
    /// Not now: what follows is kept for the next call.
    Stop,
}

/// What a call of [`Carrier::receive`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// The socket has nothing.
    Blocked,
    /// Read bytes off the socket, or out of what was kept.
    Some(usize),
}

/// One tunnel.
#[derive(Debug)]
pub struct Carrier {
    stream: TcpStream,
    tls: Tls,
    session: Session,
    decoder: Decoder,
    /// Ciphertext that has arrived and is not opened yet.
    tail: Vec<u8>,
    /// Plaintext that is opened and not decoded yet.
    plaintext: Vec<u8>,
    /// Sealed bytes that the socket has not taken yet, from `unsent_at`.
    unsent: Vec<u8>,
    unsent_at: usize,
    closed_on_purpose: bool,
    peer_leaves: bool,
    key_exchange: &'static str,
    _counted: Counted,
}

/// Counts a tunnel as open while it lives.
#[derive(Debug)]
pub struct Counted(Telemetry);

impl Counted {
    /// One more.
    pub fn new(telemetry: &Telemetry) -> Self {
        telemetry.tunnel_opened();
        Self(telemetry.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.tunnel_closed();
    }
}

impl Carrier {
    /// Takes over a connection after its handshake.
    pub fn new(stream: TcpStream, established: Established, role: Role, counted: Counted) -> Self {
        let Established { tls, key_exchange, unsent, early_plaintext, tail, .. } = established;
        Self {
            stream,
            tls,
            session: Session::new(role),
            decoder: Decoder::default(),
            tail,
            plaintext: early_plaintext,
            unsent,
            unsent_at: 0,
            closed_on_purpose: false,
            peer_leaves: false,
            key_exchange,
            _counted: counted,
        }
    }

    /// The socket, to wait on and to ask for addresses.
    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// The key exchange group of the handshake.
    pub fn key_exchange(&self) -> &'static str {
        self.key_exchange
    }

    /// Where the connection stands.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// True when the peer has finished with the last connection, and we have or may: the next OPEN may leave.
    pub fn may_be_reused(&self) -> bool {
        self.session.is_clean() || self.session.peer_is_done() && self.session.may_send_done()
    }

    /// True when the peer has reset the connection.
    pub fn peer_has_reset(&self) -> bool {
        self.session.peer_has_reset()
    }

    /// True when sealed bytes wait for the socket.
    pub fn has_unsent(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// Bytes received and not yet handed out; [`Carrier::receive`] needs at least as much room.
    pub fn kept_bytes(&self) -> usize {
        self.tail.len().max(self.plaintext.len())
    }

    /// True while nothing says that the tunnel is unusable: clean, and no byte or end of stream is waiting. Costs no
    /// system call on a quiet socket.
    pub fn looks_alive(&self) -> bool {
        let quiet =
            matches!(self.stream.try_read(&mut [0]), Err(error) if error.kind() == io::ErrorKind::WouldBlock);
        let is_over = self.closed_on_purpose || self.peer_leaves;
        quiet && self.tail.is_empty() && self.plaintext.is_empty() && !is_over
    }

    /// Receives what the socket has, at most `scratch` full, and hands every event to `sink`. DATA borrows from
    /// `scratch`. PING is answered here.
    ///
    /// # Errors
    /// The tunnel is dead. Events handed out before are valid.
    pub fn receive<'s>(
        &mut self,
        scratch: &'s mut [u8],
        sink: &mut dyn FnMut(Event<'s>) -> Flow,
    ) -> Result<Received, Error> {
        if !self.plaintext.is_empty() {
            let kept = std::mem::take(&mut self.plaintext);
            let (plaintext, _) = scratch.split_at_mut(kept.len());
            plaintext.copy_from_slice(&kept);
            self.decode(plaintext, sink)?;
            return Ok(Received::Some(kept.len()));
        }
        let kept_bytes = self.tail.len();
        scratch[..kept_bytes].copy_from_slice(&self.tail);
        let has_whole_record =
            Tls::record_bytes(&self.tail)?.is_some_and(|record_bytes| record_bytes <= kept_bytes);
        let mut read = 0;
        if !has_whole_record {
            read = match read_some(&self.stream, &mut scratch[kept_bytes..]) {
                Ok(0) => return Err(Error::Closed { on_purpose: self.closed_on_purpose }),
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Received::Blocked),
                Err(error) => return Err(error.into()),
            };
        }
        self.tail = Vec::new();
        self.open_records(&mut scratch[..kept_bytes + read], sink)?;
        Ok(Received::Some(kept_bytes + read))
    }

    fn open_records<'s>(
        &mut self,
        mut rest: &'s mut [u8],
        sink: &mut dyn FnMut(Event<'s>) -> Flow,
    ) -> Result<(), Error> {
        while let Some(record_bytes) = Tls::record_bytes(rest)?.filter(|bytes| *bytes <= rest.len()) {
            let (record, after) = rest.split_at_mut(record_bytes);
            rest = after;
            match self.tls.open(record, &mut self.unsent)? {
                Opened::Data(plaintext) => {
                    if self.decode(plaintext, sink)? == Flow::Stop {
                        break;
                    }
                }
                Opened::Nothing => {}
                Opened::Closed => self.closed_on_purpose = true,
            }
        }
        if !rest.is_empty() {
            self.tail = rest.to_vec();
        }
        Ok(())
    }

    fn decode<'s>(
        &mut self,
        mut plaintext: &'s [u8],
        sink: &mut dyn FnMut(Event<'s>) -> Flow,
    ) -> Result<Flow, Error> {
        while !plaintext.is_empty() {
            let (used, event) = self.decoder.next(plaintext)?;
            plaintext = &plaintext[used..];
            let Some(event) = event else { continue };
            if self.session.receive(event.kind())? == Disposition::Discard {
                continue;
            }
            if let Event::Ping { ping, nonce } = event {
                match ping {
                    Ping::Question => self.put_ping(Ping::Answer, nonce)?,
                    Ping::Answer => {}
                    Ping::Leaving => self.peer_leaves = true,
                }
                continue;
            }
            if sink(event) == Flow::Stop {
                self.plaintext = plaintext.to_vec();
                return Ok(Flow::Stop);
            }
        }
        Ok(Flow::Continue)
    }

    fn put_ping(&mut self, ping: Ping, nonce: [u8; 8]) -> Result<(), Error> {
        let mut frame = Vec::with_capacity(HEADER_BYTES + nonce.len());
        codec::put_ping(&mut frame, ping, nonce);
        Ok(self.tls.seal_copy(&frame, &mut self.unsent)?)
    }

    /// Queues the notice that this side goes away soon.
    ///
    /// # Errors
    /// Sealing failed.
    pub fn put_leaving(&mut self) -> Result<(), Error> {
        self.put_ping(Ping::Leaving, [0; 8])
    }

    /// Whether the peer has said that it goes away soon.
    pub fn peer_leaves(&self) -> bool {
        self.peer_leaves
    }

    /// Writes what is unsent. True: nothing is left.
    ///
    /// # Errors
    /// The socket failed.
    pub fn flush(&mut self) -> Result<bool, Error> {
        while !self.unsent.is_empty() {
            match self.stream.try_write(&self.unsent[self.unsent_at..]) {
                Ok(written) => self.unsent_at += written,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error.into()),
            }
            if self.unsent_at == self.unsent.len() {
                (self.unsent, self.unsent_at) = (Vec::new(), 0);
            }
        }
        Ok(true)
    }

    /// Begins a connection. The OPEN leaves together with what [`Carrier::put_data`] adds, at the next flush; so does the
    /// DONE that we still owe for the connection before.
    ///
    /// # Errors
    /// The session is not clean, or sealing failed.
    pub fn put_open(&mut self, open: &Open, first: &[u8], fin: bool) -> Result<(), Error> {
        let mut frames = Vec::with_capacity(128 + first.len().min(1024));
        if self.session.peer_is_done() {
            self.session.send(Kind::Done)?;
            codec::put_empty(&mut frames, Kind::Done);
        }
        self.session.send(Kind::Open)?;
        codec::put_open(&mut frames, open);
        for piece in first.chunks(PAYLOAD_BYTES_MAX) {
            // A small first request shares the record of its OPEN: one AEAD call and one wake-up at the peer.
            if frames.len() + HEADER_BYTES + piece.len() > tls::record::PLAINTEXT_BYTES_MAX {
                self.tls.seal_copy(&frames, &mut self.unsent)?;
                frames.clear();
            }
            self.session.send(Kind::Data)?;
            codec::put_data(&mut frames, piece);
        }
        if fin {
            self.session.send(Kind::Fin)?;
            codec::put_empty(&mut frames, Kind::Fin);
        }
        self.tls.seal_copy(&frames, &mut self.unsent)?;
        Ok(())
    }

    /// Queues RESET, and DONE with it, since nothing of this connection follows.
    ///
    /// # Errors
    /// The connection has already ended on this side, or sealing failed.
    pub fn put_reset(&mut self, reason: ResetReason, text: &str) -> Result<(), Error> {
        self.session.send(Kind::Reset)?;
        let mut frames = Vec::with_capacity(64);
        codec::put_reset(&mut frames, reason, text);
        self.session.send(Kind::Done)?;
        codec::put_empty(&mut frames, Kind::Done);
        self.tls.seal_copy(&frames, &mut self.unsent)?;
        Ok(())
    }

    /// Queues DONE if it is our turn to say it.
    ///
    /// # Errors
    /// Sealing failed.
    pub fn put_done_if_due(&mut self) -> Result<(), Error> {
        if self.session.may_send_done() {
            self.session.send(Kind::Done)?;
            self.tls.seal_copy(&codec::header(Kind::Done, 0), &mut self.unsent)?;
        }
        Ok(())
    }

    /// Says goodbye on an idle tunnel: the peer learns that nothing it may have sent since was processed.
    ///
    /// # Errors
    /// Sealing or the socket failed.
    pub fn close(mut self) -> Result<(), Error> {
        self.tls.seal_close_notify(&mut self.unsent)?;
        self.flush()?;
        Ok(())
    }

    /// Seals and writes what [`read_into_slots`] put into `send`, and FIN behind it when `fin` is set, with DONE when
    /// `done` is set and legal.
    ///
    /// # Errors
    /// Sealing or the socket failed.
    pub fn send_slots(
        &mut self,
        send: &mut [u8],
        payload_bytes: usize,
        fin: bool,
        done: bool,
    ) -> Result<(), Error> {
        self.tls.update_key_if_due(&mut self.unsent)?;
        let mut at = 0;
        let mut left_bytes = payload_bytes;
        while left_bytes > 0 {
            let bytes = left_bytes.min(PAYLOAD_BYTES_MAX);
            self.session.send(Kind::Data)?;
            at = self.seal_at(send, at, &codec::header(Kind::Data, bytes), bytes)?;
            left_bytes -= bytes;
        }
        if fin {
            self.session.send(Kind::Fin)?;
            let mut frames = [0; 2 * HEADER_BYTES];
            frames[..HEADER_BYTES].copy_from_slice(&codec::header(Kind::Fin, 0));
            let mut frames_bytes = HEADER_BYTES;
            if done && self.session.may_send_done() {
                self.session.send(Kind::Done)?;
                frames[HEADER_BYTES..].copy_from_slice(&codec::header(Kind::Done, 0));
                frames_bytes += HEADER_BYTES;
            }
            at = self.seal_at(send, at, &frames[..frames_bytes], 0)?;
        }
        self.write(&send[..at])
    }

    /// Queues frames as they are; the session is told of one of them.
    #[cfg(test)]
    pub(super) fn put_raw(&mut self, frames: &[u8], kind: Kind) {
        self.session.send(kind).unwrap();
        self.tls.seal_copy(frames, &mut self.unsent).unwrap();
    }

    /// The same tunnel, reading from somewhere else.
    #[cfg(test)]
    pub(super) fn on_another_socket(mut self, stream: TcpStream) -> Self {
        self.stream = stream;
        self
    }

    /// Seals the record that begins at `at`: `head`, then `payload_bytes` that lie behind it already.
    fn seal_at(
        &mut self,
        send: &mut [u8],
        at: usize,
        head: &[u8],
        payload_bytes: usize,
    ) -> Result<usize, Error> {
        let head_at = at + TLS_HEADER_BYTES;
        send[head_at..head_at + head.len()].copy_from_slice(head);
        let end = head_at + head.len() + payload_bytes + TRAILER_BYTES;
        self.tls.seal(&mut send[at..end])?;
        Ok(end)
    }

    /// Writes sealed bytes, directly when nothing waits before them.
    fn write(&mut self, sealed: &[u8]) -> Result<(), Error> {
        if !self.flush()? {
            self.unsent.extend_from_slice(sealed);
            return Ok(());
        }
        let written = match self.stream.try_write(sealed) {
            Ok(written) => written,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(error) => return Err(error.into()),
        };
        if written < sealed.len() {
            self.unsent = sealed[written..].to_vec();
        }
        Ok(())
    }
}

/// Reads once. After a short read the socket is known to be empty, so readiness is cleared without asking the kernel
/// again (epoll(7), question 9); an end of stream that has been signalled is still seen by the next call.
///
/// # Errors
/// As `read`, with `WouldBlock` when the socket has nothing.
pub fn read_some(stream: &TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    let read = stream.try_read(buffer)?;
    if read > 0 && read < buffer.len() {
        forget_readable(stream);
    }
    Ok(read)
}

fn forget_readable(stream: &TcpStream) {
    let _ = stream.try_io(Interest::READABLE, || Err::<(), _>(io::ErrorKind::WouldBlock.into()));
}

/// What an application socket gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Read {
    /// Payload bytes, filling slots from the first on.
    pub bytes: usize,
    /// The application sends no more.
    pub end: bool,
}

/// Reads an application socket into the payload places of up to `slots` slots, once, and looks for its end.
///
/// # Errors
/// As `read`, with `WouldBlock` when the socket has nothing.
pub fn read_into_slots(stream: &TcpStream, send: &mut [u8], slots: usize) -> io::Result<Read> {
    let capacity = slots * PAYLOAD_BYTES_MAX;
    let bytes = if slots == 1 {
        stream.try_read(&mut send[PAYLOAD_AT..PAYLOAD_AT + PAYLOAD_BYTES_MAX])?
    } else {
        let mut places = send.chunks_exact_mut(SLOT_BYTES);
        let mut place = || {
            io::IoSliceMut::new(
                places.next().map_or(&mut [], |slot| &mut slot[PAYLOAD_AT..][..PAYLOAD_BYTES_MAX]),
            )
        };
        let mut vector: [_; SLOTS_MAX] = std::array::from_fn(|_| place());
        stream.try_read_vectored(&mut vector[..slots])?
    };
    if bytes == 0 {
        return Ok(Read { bytes, end: true });
    }
    if bytes == capacity {
        return Ok(Read { bytes, end: false });
    }
    forget_readable(stream);
    // Only a signalled end of stream makes this reach the kernel; FIN then leaves with the last bytes.
    let (slot, filled) = (bytes / PAYLOAD_BYTES_MAX, bytes % PAYLOAD_BYTES_MAX);
    let place = slot * SLOT_BYTES + PAYLOAD_AT;
    match stream.try_read(&mut send[place + filled..place + PAYLOAD_BYTES_MAX]) {
        Ok(0) => Ok(Read { bytes, end: true }),
        Ok(more) => Ok(Read { bytes: bytes + more, end: false }),
        Err(_) => Ok(Read { bytes, end: false }),
    }
}
