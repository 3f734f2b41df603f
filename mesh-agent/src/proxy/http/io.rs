//! Sockets and tunnels as hyper wants them: one type for both, so that HTTP is compiled once.
//!
//! Beside station 12. A tunnel under HTTP is used as under the relay: OPEN leaves in the record of the first bytes, payload
//! is sealed where it was copied to, and nothing is buffered while nobody waits. When hyper lets go of it, the tunnel comes
//! back through [`Returned`] and can serve the next connection.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use hyper::rt::{Read, ReadBufCursor, Write};
use parking_lot::Mutex;
use tokio::io::{AsyncRead as _, AsyncWrite as _, ReadBuf};
use tokio::net::TcpStream;

use crate::proxy::carrier::{self, Carrier, Flow, PAYLOAD_AT, Received, SLOT_BYTES};
use crate::proxy::tunnel::codec::PAYLOAD_BYTES_MAX;
use crate::proxy::tunnel::{Event, Open, ResetReason, Role};

/// Records that one write may fill. HTTP writes heads and pieces of bodies, seldom more than 64 KiB at once.
const WRITE_SLOTS_MAX: usize = 4;

/// Most ciphertext that one read takes off the socket: what hyper has no room for is kept until it asks again.
const READ_BYTES: usize = 2 * SLOT_BYTES;

/// What HTTP runs on.
#[derive(Debug)]
pub enum Io {
    /// Plain TCP.
    Tcp(TcpStream),
    /// One connection on a tunnel.
    Tunnel(TunnelIo),
}

/// Where a tunnel goes when hyper is done with it, and what the peer said when it reset.
#[derive(Clone, Debug, Default)]
pub struct Returned(Arc<Mutex<Return>>);

#[derive(Debug, Default)]
struct Return {
    carrier: Option<Box<Carrier>>,
    reset: Option<ResetReason>,
    peer_leaves: bool,
}

impl Returned {
    /// Whether the peer has said that it goes away soon.
    pub fn peer_leaves(&self) -> bool {
        self.0.lock().peer_leaves
    }

    /// The tunnel, if it has come back and is not broken.
    pub fn take(&self) -> Option<Box<Carrier>> {
        self.0.lock().carrier.take()
    }

    /// Why the peer reset, if it did.
    pub fn reset(&self) -> Option<ResetReason> {
        self.0.lock().reset
    }
}

/// Bytes that have been read and not yet asked for.
#[derive(Debug, Default)]
pub(super) struct Kept {
    bytes: Vec<u8>,
    at: usize,
}

impl Kept {
    /// These bytes.
    pub(super) fn new(bytes: Vec<u8>) -> Self {
        Self { bytes, at: 0 }
    }

    fn left(&self) -> &[u8] {
        &self.bytes[self.at..]
    }

    fn take(&mut self) -> Vec<u8> {
        let Self { mut bytes, at } = std::mem::take(self);
        bytes.drain(..at);
        bytes
    }

    /// Gives as much as there is room for. False: there is nothing.
    pub(super) fn give(&mut self, buffer: &mut ReadBufCursor<'_>) -> bool {
        let left = self.left();
        if left.is_empty() {
            return false;
        }
        let bytes = left.len().min(buffer.remaining());
        buffer.put_slice(&left[..bytes]);
        self.at += bytes;
        if self.at == self.bytes.len() {
            *self = Self::default();
        }
        true
    }
}

/// One connection on a tunnel, as a byte stream.
#[derive(Debug)]
pub struct TunnelIo {
    /// `None` once it is broken.
    carrier: Option<Box<Carrier>>,
    role: Role,
    /// Leaves with the first bytes.
    open: Option<Box<Open>>,
    kept: Kept,
    peer_ended: bool,
    ended: bool,
    returned: Returned,
}

impl TunnelIo {
    /// A tunnel on which this side begins a connection with `open`.
    pub fn opening(carrier: Box<Carrier>, open: Open) -> (Self, Returned) {
        Self::new(carrier, Role::Opener, Some(Box::new(open)))
    }

    /// A tunnel on which the peer has begun one.
    pub fn accepted(carrier: Box<Carrier>) -> (Self, Returned) {
        Self::new(carrier, Role::Acceptor, None)
    }

    fn new(carrier: Box<Carrier>, role: Role, open: Option<Box<Open>>) -> (Self, Returned) {
        let returned = Returned::default();
        let io = Self {
            carrier: Some(carrier),
            role,
            open,
            kept: Kept::default(),
            peer_ended: false,
            ended: false,
            returned: returned.clone(),
        };
        (io, returned)
    }

    fn break_off(&mut self, error: carrier::Error) -> io::Error {
        self.carrier = None;
        io::Error::other(error)
    }

    /// Like reading, and every byte is looked at before it goes on. Who has taken bytes before ([`TunnelIo::take_kept`])
    /// has them looked at elsewhere.
    pub(super) fn poll_read_looking(
        &mut self,
        context: &mut Context<'_>,
        buffer: &mut ReadBufCursor<'_>,
        look: &mut dyn FnMut(&mut [u8]),
    ) -> Poll<io::Result<()>> {
        if self.kept.left().is_empty() {
            ready!(self.poll_more(context))?;
            look(&mut self.kept.bytes);
        }
        self.kept.give(buffer);
        Poll::Ready(Ok(()))
    }

    /// Received and not yet asked for.
    pub fn kept(&self) -> &[u8] {
        self.kept.left()
    }

    /// Receives once more into what is kept. False: the peer has ended.
    pub(super) fn poll_more(&mut self, context: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let before = self.kept.bytes.len();
        let mut nowhere = hyper::rt::ReadBuf::new(&mut []);
        ready!(self.poll_arrival(context, &mut nowhere.unfilled()))?;
        Poll::Ready(Ok(self.kept.bytes.len() > before))
    }

    /// Takes what has been received and not yet asked for, for who must look at it before it goes on.
    pub fn take_kept(&mut self) -> Vec<u8> {
        self.kept.take()
    }

    /// Gives the tunnel up to who moves bytes only: with what has been received already, and whether the peer has ended.
    pub fn into_parts(mut self) -> Option<(Box<Carrier>, Vec<u8>, bool)> {
        let carrier = self.carrier.take()?;
        Some((carrier, self.kept.take(), self.peer_ended))
    }

    /// One receive: into `buffer`, then into what is kept.
    fn receive(&mut self, buffer: &mut ReadBufCursor<'_>) -> io::Result<Received> {
        let Some(carrier) = &mut self.carrier else { return Err(io::ErrorKind::ConnectionReset.into()) };
        let (kept, peer_ended) = (&mut self.kept.bytes, &mut self.peer_ended);
        let mut reset = None;
        let mut scratch = carrier::scratch().borrow_mut();
        let room = READ_BYTES.max(carrier.kept_bytes());
        let received = carrier.receive(&mut scratch.receive[..room], &mut |event| {
            match event {
                Event::Data(bytes) => {
                    let now = if kept.is_empty() { bytes.len().min(buffer.remaining()) } else { 0 };
                    buffer.put_slice(&bytes[..now]);
                    kept.extend_from_slice(&bytes[now..]);
                }
                Event::Fin => *peer_ended = true,
                Event::Reset { reason, .. } => {
                    reset = Some(reason);
                    return Flow::Stop;
                }
                Event::Pause(_) | Event::Resume(_) => {
                    reset = Some(ResetReason::NotNegotiated);
                    return Flow::Stop;
                }
                // The session admits these only around a connection, and PING is the carrier's.
                Event::Open(_) | Event::Done | Event::Ping { .. } => {}
            }
            Flow::Continue
        });
        drop(scratch);
        if carrier.peer_leaves() {
            self.returned.0.lock().peer_leaves = true;
        }
        if let Some(reason) = reset {
            self.returned.0.lock().reset = Some(reason);
            return Err(io::Error::new(io::ErrorKind::ConnectionReset, "the peer reset the connection"));
        }
        received.map_err(|error| self.break_off(error))
    }

    fn poll_receive(
        &mut self,
        context: &mut Context<'_>,
        buffer: &mut ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        if self.kept.give(buffer) {
            return Poll::Ready(Ok(()));
        }
        self.poll_arrival(context, buffer)
    }

    /// Receives until something has arrived, in `buffer` or in what is kept, or the peer has ended.
    fn poll_arrival(
        &mut self,
        context: &mut Context<'_>,
        buffer: &mut ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let before = (buffer.remaining(), self.kept.bytes.len());
        loop {
            if self.peer_ended {
                return Poll::Ready(Ok(()));
            }
            let received = self.receive(buffer)?;
            // Answers to PING and key updates are queued by receiving.
            let _written = self.poll_unsent(context)?;
            if (buffer.remaining(), self.kept.bytes.len()) != before {
                return Poll::Ready(Ok(()));
            }
            if received == Received::Blocked {
                let Some(carrier) = &self.carrier else { return Poll::Ready(Ok(())) };
                ready!(carrier.stream().poll_read_ready(context))?;
            }
        }
    }

    /// Writes what is sealed already.
    fn poll_unsent(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let Some(carrier) = &mut self.carrier else {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            };
            match carrier.flush() {
                Ok(true) => return Poll::Ready(Ok(())),
                Ok(false) => ready!(carrier.stream().poll_write_ready(context))?,
                Err(error) => return Poll::Ready(Err(self.break_off(error))),
            }
        }
    }

    fn poll_send(
        &mut self,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_unsent(context))?;
        let Some(carrier) = &mut self.carrier else {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        };
        let sent = match self.open.take() {
            Some(open) => open_with(carrier, &open, slices),
            None => send(carrier, slices),
        };
        Poll::Ready(sent.map_err(|error| self.break_off(error)))
    }

    fn poll_end(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_unsent(context))?;
        if !self.ended && self.open.is_none() {
            self.ended = true;
            let (role, peer_ended) = (self.role, self.peer_ended);
            if let Some(carrier) = &mut self.carrier
                && !carrier.peer_has_reset()
            {
                let done = role == Role::Acceptor && peer_ended;
                let ended = carrier.send_slots(&mut carrier::scratch().borrow_mut().send, 0, true, done);
                ended.map_err(|error| self.break_off(error))?;
            }
        }
        self.poll_unsent(context)
    }
}

/// OPEN and the first bytes, in one record where they fit.
fn open_with(
    carrier: &mut Carrier,
    open: &Open,
    slices: &[io::IoSlice<'_>],
) -> Result<usize, carrier::Error> {
    let mut first = Vec::with_capacity(1024);
    for slice in slices {
        let room = PAYLOAD_BYTES_MAX - first.len();
        first.extend_from_slice(&slice[..slice.len().min(room)]);
    }
    carrier.put_open(open, &first, false)?;
    carrier.flush()?;
    Ok(first.len())
}

fn send(carrier: &mut Carrier, slices: &[io::IoSlice<'_>]) -> Result<usize, carrier::Error> {
    let mut scratch = carrier::scratch().borrow_mut();
    let bytes = fill_slots(&mut scratch.send, slices);
    if bytes > 0 {
        carrier.send_slots(&mut scratch.send, bytes, false, false)?;
    }
    Ok(bytes)
}

/// Copies into the payload places of the slots, in order; returns how many bytes found room.
fn fill_slots(send: &mut [u8], slices: &[io::IoSlice<'_>]) -> usize {
    let mut bytes = 0;
    for slice in slices {
        let mut rest: &[u8] = slice;
        while !rest.is_empty() {
            let (slot, filled) = (bytes / PAYLOAD_BYTES_MAX, bytes % PAYLOAD_BYTES_MAX);
            if slot == WRITE_SLOTS_MAX {
                return bytes;
            }
            let now = rest.len().min(PAYLOAD_BYTES_MAX - filled);
            let at = slot * SLOT_BYTES + PAYLOAD_AT + filled;
            send[at..at + now].copy_from_slice(&rest[..now]);
            rest = &rest[now..];
            bytes += now;
        }
    }
    bytes
}

impl Drop for TunnelIo {
    /// What was under way is ended by reset; the tunnel itself goes back.
    fn drop(&mut self) {
        let Some(mut carrier) = self.carrier.take() else { return };
        if self.open.is_none() {
            let told = match (self.ended || carrier.peer_has_reset(), self.role) {
                (false, _) => carrier.put_reset(ResetReason::Application, ""),
                (true, Role::Acceptor) => carrier.put_done_if_due(),
                (true, Role::Opener) => Ok(()),
            };
            if told.is_err() || carrier.flush().is_err() {
                return;
            }
        }
        self.returned.0.lock().carrier = Some(carrier);
    }
}

impl Read for Io {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        mut buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tunnel(tunnel) => tunnel.poll_receive(context, &mut buffer),
            Self::Tcp(stream) => poll_read_tcp(stream, context, &mut buffer, &mut |_bytes| {}),
        }
    }
}

/// tokio reads into initialised memory of its own kind of buffer; hyper's has room that need not be initialised, so the
/// bytes pass through the worker's buffer, where they can be looked at. A copy of what arrives.
pub(super) fn poll_read_tcp(
    stream: &mut TcpStream,
    context: &mut Context<'_>,
    buffer: &mut ReadBufCursor<'_>,
    look: &mut dyn FnMut(&mut [u8]),
) -> Poll<io::Result<()>> {
    let mut scratch = carrier::scratch().borrow_mut();
    let room = buffer.remaining().min(scratch.receive.len());
    let mut read = ReadBuf::new(&mut scratch.receive[..room]);
    ready!(Pin::new(stream).poll_read(context, &mut read))?;
    look(read.filled_mut());
    buffer.put_slice(read.filled());
    Poll::Ready(Ok(()))
}

impl Write for Io {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tunnel(tunnel) => tunnel.poll_send(context, &[io::IoSlice::new(bytes)]),
            Self::Tcp(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tunnel(tunnel) => tunnel.poll_send(context, slices),
            Self::Tcp(stream) => Pin::new(stream).poll_write_vectored(context, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tunnel(tunnel) => tunnel.poll_unsent(context),
            Self::Tcp(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tunnel(tunnel) => tunnel.poll_end(context),
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}
