//! One side is an application socket, the other a tunnel.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::net::TcpStream;

use super::{Bytes, Early, First, Outcome, TURN_BYTES, Wait, end_writing, yield_turn};
use crate::proxy::carrier::{
    Carrier, Flow, PAYLOAD_AT, Received, SLOT_BYTES, SLOTS_MAX, Scratch, read_into_slots,
};
use crate::proxy::open::CloseSignal;
use crate::proxy::tunnel::codec::PAYLOAD_BYTES_MAX;
use crate::proxy::tunnel::{Event, ResetReason, Role};

/// Relays until the connection is over. The tunnel's session must be open; `first` is what OPEN took along, `early` what
/// the tunnel has brought already.
///
/// Afterwards the tunnel may be reused if [`settle`] says so. Not cancel safe: dropping the future may lose bytes that
/// one side has sent.
#[expect(clippy::too_many_arguments, reason = "two directions, each with what it begins with")]
pub async fn tunnelled(
    app: &TcpStream,
    carrier: &mut Carrier,
    role: Role,
    first: &mut First,
    early: Early,
    bytes: &mut Bytes,
    close: &CloseSignal,
    scratch: &RefCell<Scratch>,
) -> Outcome {
    bytes.to_app += early.bytes.len() as u64;
    let mut relay = Relay {
        app_ended: first.end(),
        app,
        carrier,
        role,
        first,
        bytes,
        slots: 1,
        fin: early.end,
        told: false,
        shut: false,
        pending: early.bytes,
        pending_at: 0,
    };
    let outcome = poll_fn(|context| relay.poll(context, close, scratch)).await;
    relay.tell_peer(&outcome);
    outcome
}

/// Brings the tunnel to where it can be used again, dropping what was under way when somebody reset. False: it cannot be.
///
/// Cancel safe in that a dropped future leaves a tunnel that must be closed.
pub async fn settle(carrier: &mut Carrier, limit: Duration, scratch: &RefCell<Scratch>) -> bool {
    if !carrier.has_unsent() && carrier.may_be_reused() {
        return true;
    }
    let settled = poll_fn(|context| {
        loop {
            match carrier.flush() {
                Ok(flushed) => {
                    if flushed && carrier.may_be_reused() {
                        return Poll::Ready(true);
                    }
                    if !flushed && carrier.stream().poll_write_ready(context).is_ready() {
                        continue;
                    }
                }
                Err(_) => return Poll::Ready(false),
            }
            let received = carrier.receive(&mut scratch.borrow_mut().receive, &mut |_late| Flow::Continue);
            match received {
                Ok(Received::Some(_)) => {}
                Ok(Received::Blocked) => {
                    if carrier.stream().poll_read_ready(context).is_pending() {
                        return Poll::Pending;
                    }
                }
                Err(_) => return Poll::Ready(false),
            }
        }
    });
    tokio::time::timeout(limit, settled).await.unwrap_or(false)
}

struct Relay<'a> {
    app: &'a TcpStream,
    carrier: &'a mut Carrier,
    role: Role,
    first: &'a mut First,
    bytes: &'a mut Bytes,
    /// Slots that the next read of the application offers; grows while reads come full.
    slots: usize,
    /// The application has ended and FIN is on its way.
    app_ended: bool,
    /// The peer has sent FIN.
    fin: bool,
    /// The application has been told so.
    shut: bool,
    /// Bytes that the application's socket has not taken yet, from `pending_at`. While there are any, the tunnel is not
    /// read, so there are never more than one batch.
    pending: Vec<u8>,
    pending_at: usize,
    /// The peer knows that this agent drains.
    told: bool,
}

type Step = Result<(Wait, usize), Outcome>;

impl Relay<'_> {
    fn poll(
        &mut self,
        context: &mut Context<'_>,
        close: &CloseSignal,
        scratch: &RefCell<Scratch>,
    ) -> Poll<Outcome> {
        if let Some(ending) = close.poll(context) {
            return Poll::Ready(Outcome::Told(ending));
        }
        if self.role == Role::Acceptor && close.is_draining() && !std::mem::replace(&mut self.told, true) {
            // What flows here may be requests that the opener's agent reads: it can send the next one elsewhere.
            if let Err(error) = self.carrier.put_leaving() {
                return Poll::Ready(Outcome::Broken(error));
            }
        }
        let mut moved_bytes = 0;
        loop {
            let mut scratch = scratch.borrow_mut();
            let Scratch { send, receive } = &mut *scratch;
            let (up, down) = match (self.up(send), self.down(receive)) {
                (Ok(up), Ok(down)) => (up, down),
                (_, Err(outcome)) | (Err(outcome), _) => return Poll::Ready(outcome),
            };
            if self.app_ended && self.shut {
                return Poll::Ready(Outcome::Closed);
            }
            moved_bytes += up.1 + down.1;
            if moved_bytes >= TURN_BYTES {
                yield_turn(context);
                return Poll::Pending;
            }
            if !self.again(context, up.0, down.0) {
                return Poll::Pending;
            }
        }
    }

    /// Registers for what both directions wait for; true when something is there already.
    fn again(&self, context: &mut Context<'_>, up: Wait, down: Wait) -> bool {
        let tunnel = self.carrier.stream();
        let app_readable = up == Wait::Readable && self.app.poll_read_ready(context).is_ready();
        let tunnel_writable = self.carrier.has_unsent() && tunnel.poll_write_ready(context).is_ready();
        let tunnel_readable = down == Wait::Readable && tunnel.poll_read_ready(context).is_ready();
        let app_writable = down == Wait::Writable && self.app.poll_write_ready(context).is_ready();
        app_readable || tunnel_writable || tunnel_readable || app_writable
    }

    /// Application to tunnel.
    fn up(&mut self, send: &mut [u8]) -> Step {
        let mut moved = 0;
        while moved < TURN_BYTES {
            if !self.carrier.flush().map_err(Outcome::Broken)? {
                return Ok((Wait::Writable, moved));
            }
            if self.app_ended {
                return Ok((Wait::Nothing, moved));
            }
            let read = match read_into_slots(self.app, send, self.slots) {
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok((Wait::Readable, moved));
                }
                Err(_reset) => return Err(Outcome::AppReset),
            };
            self.first.add(slots_of(send, read.bytes), read.end);
            let done = self.role == Role::Acceptor && self.shut;
            self.carrier.send_slots(send, read.bytes, read.end, done).map_err(Outcome::Broken)?;
            self.bytes.from_app += read.bytes as u64;
            moved += read.bytes;
            self.app_ended = read.end;
            self.slots = match read.bytes {
                full if full == self.slots * PAYLOAD_BYTES_MAX => (self.slots * 4).min(SLOTS_MAX),
                part if part < PAYLOAD_BYTES_MAX => 1,
                _ => self.slots,
            };
        }
        Ok((Wait::Nothing, moved))
    }

    /// Tunnel to application.
    fn down(&mut self, receive: &mut [u8]) -> Step {
        let mut moved = 0;
        while moved < TURN_BYTES {
            if !self.write_pending()? {
                return Ok((Wait::Writable, moved));
            }
            let mut sink = AppSink {
                app: self.app,
                slices: [IoSlice::new(&[]); SINK_SLICES],
                len: 0,
                pending: &mut self.pending,
                failed: false,
                bytes: 0,
            };
            let (mut fin, mut reset, mut refused) = (false, None, false);
            let received = self.carrier.receive(receive, &mut |event| {
                match event {
                    Event::Data(bytes) => sink.push(bytes),
                    Event::Fin => fin = true,
                    Event::Reset { reason, .. } => {
                        reset = Some(reason);
                        return Flow::Stop;
                    }
                    Event::Pause(_) | Event::Resume(_) => {
                        refused = true;
                        return Flow::Stop;
                    }
                    // The session admits these only around a connection, never inside one, and PING is the carrier's.
                    Event::Open(_) | Event::Done | Event::Ping { .. } => {}
                }
                Flow::Continue
            });
            sink.flush();
            let (failed, bytes) = (sink.failed, sink.bytes);
            self.bytes.to_app += bytes;
            moved += bytes as usize;
            self.fin |= fin;
            if bytes > 0 || fin {
                self.first.forget();
            }
            if let Some(reason) = reset {
                return Err(Outcome::PeerReset { reason });
            }
            if refused {
                return Err(Outcome::PeerReset { reason: ResetReason::NotNegotiated });
            }
            if failed {
                return Err(Outcome::AppReset);
            }
            self.end_app_if_due()?;
            match received.map_err(Outcome::Broken)? {
                Received::Some(_) if !self.shut => {}
                Received::Some(_) | Received::Blocked => return Ok((Wait::Readable, moved)),
            }
        }
        Ok((Wait::Nothing, moved))
    }

    /// After the last byte: half-close towards the application, and DONE if both directions have ended.
    fn end_app_if_due(&mut self) -> Result<(), Outcome> {
        if !self.fin || self.shut || !self.pending.is_empty() {
            return Ok(());
        }
        end_writing(self.app).map_err(|_reset| Outcome::AppReset)?;
        self.shut = true;
        if self.role == Role::Acceptor {
            self.carrier.put_done_if_due().map_err(Outcome::Broken)?;
        }
        Ok(())
    }

    fn write_pending(&mut self) -> Result<bool, Outcome> {
        while !self.pending.is_empty() {
            match self.app.try_write(&self.pending[self.pending_at..]) {
                Ok(written) => self.pending_at += written,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(_reset) => return Err(Outcome::AppReset),
            }
            if self.pending_at == self.pending.len() {
                (self.pending, self.pending_at) = (Vec::new(), 0);
            }
        }
        self.end_app_if_due()?;
        Ok(true)
    }

    /// Queues the frame that tells the peer how it ended; it leaves with [`settle`] or the next OPEN.
    fn tell_peer(&mut self, outcome: &Outcome) {
        let told = match outcome {
            Outcome::AppReset => self.carrier.put_reset(ResetReason::Application, ""),
            Outcome::Told(ending) => self.carrier.put_reset(super::reason_of(*ending), ""),
            Outcome::PeerReset { reason: ResetReason::NotNegotiated } if !self.carrier.peer_has_reset() => {
                self.carrier.put_reset(ResetReason::NotNegotiated, "hand-over was not negotiated")
            }
            Outcome::PeerReset { .. } if self.role == Role::Acceptor => self.carrier.put_done_if_due(),
            Outcome::PeerReset { .. } | Outcome::Closed | Outcome::Broken(_) => Ok(()),
        };
        // A tunnel that cannot carry the frame is dead, which settling finds out.
        if told.is_ok() {
            let _ = self.carrier.flush();
        }
    }
}

/// The payload of the slots that a read filled.
fn slots_of(send: &[u8], bytes: usize) -> impl Iterator<Item = &[u8]> {
    send.chunks_exact(SLOT_BYTES).enumerate().map_while(move |(index, slot)| {
        let left = bytes.checked_sub(index * PAYLOAD_BYTES_MAX).filter(|left| *left > 0)?;
        Some(&slot[PAYLOAD_AT..][..left.min(PAYLOAD_BYTES_MAX)])
    })
}

/// Slices of one vectored write; a batch of full records has at most 17.
const SINK_SLICES: usize = 32;

/// Gathers the payload of a batch and writes it with as few calls as possible.
struct AppSink<'s, 'p> {
    app: &'p TcpStream,
    slices: [IoSlice<'s>; SINK_SLICES],
    len: usize,
    pending: &'p mut Vec<u8>,
    failed: bool,
    bytes: u64,
}

impl<'s> AppSink<'s, '_> {
    fn push(&mut self, bytes: &'s [u8]) {
        if self.len == SINK_SLICES {
            self.flush();
        }
        self.slices[self.len] = IoSlice::new(bytes);
        self.len += 1;
        self.bytes += bytes.len() as u64;
    }

    fn flush(&mut self) {
        let slices = &self.slices[..self.len];
        self.len = 0;
        if slices.is_empty() || self.failed {
            return;
        }
        let mut written = 0;
        if self.pending.is_empty() {
            let result = match slices {
                [only] => self.app.try_write(only),
                many => self.app.try_write_vectored(many),
            };
            match result {
                Ok(bytes) => written = bytes,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_reset) => {
                    self.failed = true;
                    return;
                }
            }
        }
        for slice in slices {
            let skip = written.min(slice.len());
            written -= skip;
            self.pending.extend_from_slice(&slice[skip..]);
        }
    }
}
