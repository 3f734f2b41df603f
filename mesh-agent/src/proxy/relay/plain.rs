//! Both sides are TCP sockets: peers outside the mesh, and an application behind a plaintext inbound connection.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::task::Poll;

use tokio::net::TcpStream;

use super::{Bytes, Early, Outcome, TURN_BYTES, Wait, end_writing, yield_turn};
use crate::proxy::carrier::{Scratch, read_some};
use crate::proxy::open::CloseSignal;
use crate::proxy::tunnel::ResetReason;

/// Relays until the connection is over. `pending` is what `app` has said already and `peer` has not been told, `early` the
/// same the other way.
///
/// Not cancel safe: dropping the future may lose bytes that one side has sent.
#[expect(clippy::too_many_arguments, reason = "two directions, each with what it begins with")]
pub async fn plain(
    app: &TcpStream,
    peer: &TcpStream,
    pending: Vec<u8>,
    app_ended: bool,
    early: Early,
    bytes: &mut Bytes,
    close: &CloseSignal,
    scratch: &RefCell<Scratch>,
) -> Outcome {
    let mut up = Way::new(app, peer);
    (up.bytes, up.pending, up.ended) = (pending.len() as u64, pending, app_ended);
    let mut down = Way::new(peer, app);
    (down.bytes, down.pending, down.ended) = (early.bytes.len() as u64, early.bytes, early.end);
    let outcome = poll_fn(|context| {
        if let Some(ending) = close.poll(context) {
            return Poll::Ready(Outcome::Told(ending));
        }
        let mut moved_bytes = 0;
        loop {
            let mut scratch = scratch.borrow_mut();
            let waits = match (up.step(&mut scratch.receive), down.step(&mut scratch.receive)) {
                (Ok((up, up_bytes)), Ok((down, down_bytes))) => {
                    moved_bytes += up_bytes + down_bytes;
                    (up, down)
                }
                // Whose reset it is, is told by whose socket failed.
                (Err(Fault::From), _) | (_, Err(Fault::To)) => return Poll::Ready(Outcome::AppReset),
                (Err(Fault::To), _) | (_, Err(Fault::From)) => {
                    return Poll::Ready(Outcome::PeerReset { reason: ResetReason::Application });
                }
            };
            if up.shut && down.shut {
                return Poll::Ready(Outcome::Closed);
            }
            if moved_bytes >= TURN_BYTES {
                yield_turn(context);
                return Poll::Pending;
            }
            let mut again = false;
            for (way, wait) in [(&up, waits.0), (&down, waits.1)] {
                again |= match wait {
                    Wait::Readable => way.from.poll_read_ready(context).is_ready(),
                    Wait::Writable => way.to.poll_write_ready(context).is_ready(),
                    Wait::Nothing => false,
                };
            }
            if !again {
                return Poll::Pending;
            }
        }
    })
    .await;
    bytes.from_app += up.bytes;
    bytes.to_app += down.bytes;
    outcome
}

enum Fault {
    From,
    To,
}

struct Way<'a> {
    from: &'a TcpStream,
    to: &'a TcpStream,
    pending: Vec<u8>,
    pending_at: usize,
    ended: bool,
    shut: bool,
    bytes: u64,
}

impl<'a> Way<'a> {
    fn new(from: &'a TcpStream, to: &'a TcpStream) -> Self {
        Self { from, to, pending: Vec::new(), pending_at: 0, ended: false, shut: false, bytes: 0 }
    }

    fn step(&mut self, buffer: &mut [u8]) -> Result<(Wait, usize), Fault> {
        let mut moved = 0;
        loop {
            if !self.write_pending()? {
                return Ok((Wait::Writable, moved));
            }
            if self.ended {
                if !self.shut {
                    end_writing(self.to).map_err(|_reset| Fault::To)?;
                    self.shut = true;
                }
                return Ok((Wait::Nothing, moved));
            }
            if moved >= TURN_BYTES {
                return Ok((Wait::Nothing, moved));
            }
            match read_some(self.from, buffer) {
                Ok(0) => self.ended = true,
                Ok(read) => {
                    moved += read;
                    self.write(&buffer[..read])?;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok((Wait::Readable, moved));
                }
                Err(_reset) => return Err(Fault::From),
            }
        }
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        let written = match self.to.try_write(bytes) {
            Ok(written) => written,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(_reset) => return Err(Fault::To),
        };
        self.bytes += bytes.len() as u64;
        if written < bytes.len() {
            self.pending = bytes[written..].to_vec();
        }
        Ok(())
    }

    fn write_pending(&mut self) -> Result<bool, Fault> {
        while !self.pending.is_empty() {
            match self.to.try_write(&self.pending[self.pending_at..]) {
                Ok(written) => self.pending_at += written,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(_reset) => return Err(Fault::To),
            }
            if self.pending_at == self.pending.len() {
                (self.pending, self.pending_at) = (Vec::new(), 0);
            }
        }
        Ok(true)
    }
}
