//! Moves bytes, both ways, in one task per connection, until it is over and it is known why.
//!
//! Station 12 of the walk. For a round trip each hop costs one wait, one receive and one send: a socket that gave less
//! than was asked for is not asked again, and a write is tried before anybody waits for writability. Half-closes travel
//! as half-closes, resets as resets. A connection owns buffers only while somebody does not take its bytes. It decides
//! nothing: not where to, not whether.
//!
//! Reading order: [`Outcome`], [`tunnelled`] (one side is a tunnel), [`plain`] (both sides are TCP), [`First`].

mod plain;
mod tunnelled;

use std::io::{self, Read as _};
use std::net::Shutdown;
use std::task::Context;
use std::time::Duration;

use socket2::SockRef;
use tokio::net::TcpStream;

use super::carrier;
use super::tunnel::ResetReason;
use crate::model::Ending;

pub use plain::plain;
pub use tunnelled::{settle, tunnelled};

/// Bytes a connection may move before the other connections of its worker get a turn.
///
/// About 50 us of copying and sealing; less costs throughput in wake-ups, more is felt in the others' p99.
pub const TURN_BYTES: usize = 256 * 1024;

/// Most bytes of the client's first words that are kept so that another endpoint can be tried.
pub const FIRST_BYTES_MAX: usize = 16 * 1024;

/// Payload bytes moved so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bytes {
    /// From the application socket: towards the destination at the source's agent, from it at the destination's.
    pub from_app: u64,
    /// To the application socket.
    pub to_app: u64,
}

/// How moving bytes ended.
#[derive(Debug)]
pub enum Outcome {
    /// FIN both ways.
    Closed,
    /// The application (`tunnelled`) or the first socket (`plain`) reset.
    AppReset,
    /// The other side reset.
    PeerReset {
        /// Why; `Application` for plain sockets.
        reason: ResetReason,
    },
    /// The tunnel died.
    Broken(carrier::Error),
    /// [`super::open::CloseSignal`] said so.
    Told(Ending),
}

/// The client's first bytes, until the destination has proven to be there.
#[derive(Debug, Default)]
pub struct First {
    bytes: Vec<u8>,
    end: bool,
    forgotten: bool,
}

impl First {
    /// Takes what the socket has now, without waiting. Asks the kernel directly, since a socket just accepted has no
    /// readiness yet; its first words then leave together with OPEN.
    pub fn read_now(&mut self, app: &TcpStream) {
        let mut buffer = [0; 2048];
        match (&*SockRef::from(app)).read(&mut buffer) {
            Ok(0) => self.end = true,
            Ok(read) => self.bytes.extend_from_slice(&buffer[..read]),
            // An error is seen again, and reported, by the relay.
            Err(_) => {}
        }
    }

    /// Waits for more. An end of stream is noted; a reset is seen again by who reads next.
    ///
    /// # Errors
    /// The client reset. Cancel safe.
    pub async fn read_more(&mut self, app: &TcpStream) -> Result<(), Ending> {
        loop {
            app.readable().await.map_err(|_reset| Ending::ClientReset)?;
            let mut buffer = [0; 2048];
            match app.try_read(&mut buffer) {
                Ok(0) => self.end = true,
                Ok(read) => self.bytes.extend_from_slice(&buffer[..read]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(_reset) => return Err(Ending::ClientReset),
            }
            return Ok(());
        }
    }

    /// Nothing, and nothing will be kept: for who never tries elsewhere.
    pub fn none() -> Self {
        Self { forgotten: true, ..Self::default() }
    }

    /// Gives the bytes away, and whether the client has ended after them; nothing can be replayed from here on.
    pub fn take(&mut self) -> (Vec<u8>, bool) {
        self.forgotten = true;
        (std::mem::take(&mut self.bytes), self.end)
    }

    /// The bytes so far.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Whether the client has ended after them.
    pub fn end(&self) -> bool {
        self.end
    }

    /// Whether a destination that was never there may be replaced by another.
    pub fn may_be_replayed(&self) -> bool {
        !self.forgotten
    }

    /// Keeps more, or gives up keeping.
    fn add(&mut self, slots: impl Iterator<Item: AsRef<[u8]>>, end: bool) {
        if self.forgotten {
            return;
        }
        self.end |= end;
        for slot in slots {
            if self.bytes.len() + slot.as_ref().len() > FIRST_BYTES_MAX {
                return self.forget();
            }
            self.bytes.extend_from_slice(slot.as_ref());
        }
    }

    fn forget(&mut self) {
        (self.bytes, self.forgotten) = (Vec::new(), true);
    }
}

/// What the other side has said already, to somebody who looked and found that it is not for him.
#[derive(Debug, Default)]
pub struct Early {
    /// The bytes.
    pub bytes: Vec<u8>,
    /// It sends no more.
    pub end: bool,
}

/// Makes the next close of this socket a reset (RST): the other side must see that it was not orderly.
pub fn reset_on_close(stream: &TcpStream) {
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

fn end_writing(stream: &TcpStream) -> io::Result<()> {
    match SockRef::from(stream).shutdown(Shutdown::Write) {
        // Gone already: its reset is seen when it is read.
        Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
        other => other,
    }
}

/// What the peer is told when this agent ends a connection.
fn reason_of(ending: Ending) -> ResetReason {
    match ending {
        Ending::PolicyRevoked => ResetReason::PolicyRevoked,
        Ending::PolicyDenied => ResetReason::PolicyDenied,
        Ending::Exhausted => ResetReason::Exhausted,
        _ => ResetReason::Shutdown,
    }
}

/// How it ended, when the server's side says so.
pub fn ending_of_reset(reason: ResetReason) -> Ending {
    match reason {
        ResetReason::Application => Ending::ServerReset,
        ResetReason::ConnectRefused => Ending::ConnectRefused,
        ResetReason::ConnectTimeout => Ending::ConnectTimeout,
        ResetReason::Unreachable | ResetReason::NotHere => Ending::Unreachable,
        ResetReason::PolicyDenied => Ending::PolicyDenied,
        ResetReason::PolicyRevoked => Ending::PolicyRevoked,
        ResetReason::Shutdown => Ending::Shutdown,
        ResetReason::Exhausted => Ending::Exhausted,
        ResetReason::Protocol | ResetReason::NotNegotiated | ResetReason::Other(_) => Ending::TunnelFailed,
    }
}

/// What a direction waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wait {
    Readable,
    Writable,
    Nothing,
}

/// Lets the worker look at its sockets before this task goes on.
fn yield_turn(context: &mut Context<'_>) {
    // tokio defers the wake-up of `yield_now` until the I/O driver has been polled; waking directly would let one busy
    // connection run up to 61 times before the worker looks at any socket.
    let mut yielding = std::pin::pin!(tokio::task::yield_now());
    if Future::poll(yielding.as_mut(), context).is_ready() {
        context.waker().wake_by_ref();
    }
}
