//! The client's side of an HTTP connection: what has been read to tell the protocol, then the socket, under the guard's eye.
//!
//! Beside station 5. It counts bytes, gives up on a client that sends a head too slowly, and tells a client that has finished
//! sending (FIN) from one that is gone (RST) while it waits for an answer. It never answers: hyper does.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use hyper::rt::{Read, ReadBufCursor, Write};
use parking_lot::Mutex;
use tokio::time::Sleep;

use super::flood::Flood;
use super::guard::{Guard, Violation};
use super::interim::Interim;
use super::io::{Io, Kept, poll_read_tcp};
use crate::lifecycle::clock;
use crate::telemetry::Telemetry;

/// What the connection and those who serve it tell each other: hyper holds the one and calls the others.
#[derive(Debug, Default)]
pub struct Seen {
    received_bytes: AtomicU64,
    sent_bytes: AtomicU64,
    /// Place in [`Violation::ALL`], from 1; 0: none.
    violation: AtomicU8,
    slow: AtomicU8,
    /// Requests that have not been answered to the end.
    in_flight: AtomicUsize,
    /// Woken after the last of them: hyper does not read again by itself where reading had to wait.
    waiting: Mutex<Option<Waker>>,
    /// Answer to a request for another protocol: 0 none yet, 1 refused, 2 granted.
    protocol: AtomicU8,
    /// Interim responses for the client.
    pub interim: Interim,
}

impl Seen {
    /// Bytes from the client.
    pub fn received_bytes(&self) -> u64 {
        self.received_bytes.load(Relaxed)
    }

    /// Bytes to the client.
    pub fn sent_bytes(&self) -> u64 {
        self.sent_bytes.load(Relaxed)
    }

    /// What the guard refused.
    pub fn violation(&self) -> Option<Violation> {
        let place = usize::from(self.violation.load(Relaxed));
        place.checked_sub(1).and_then(|index| Violation::ALL.get(index).copied())
    }

    /// Whether the client was too slow with a head.
    pub fn was_slow(&self) -> bool {
        self.slow.load(Relaxed) != 0
    }

    /// Tells how a request for another protocol was answered.
    pub fn answer_protocol(&self, is_granted: bool) {
        self.protocol.store(1 + u8::from(is_granted), Relaxed);
    }

    /// Wakes the task once what is being answered has been.
    fn wait_for_answer<T>(&self, context: &Context<'_>) -> Poll<T> {
        *self.waiting.lock() = Some(context.waker().clone());
        Poll::Pending
    }

    fn note(&self, violation: Option<Violation>, telemetry: &Telemetry) {
        let Some(found) = violation else { return };
        telemetry.http_refused(found.label());
        let place = Violation::ALL.iter().position(|one| *one == found).unwrap_or(0);
        self.violation.store(u8::try_from(place + 1).unwrap_or(u8::MAX), Relaxed);
    }
}

/// A request that is being answered. While there is one, a client that has finished sending is waited for.
#[derive(Debug)]
pub struct InFlight(Arc<Seen>);

impl InFlight {
    /// Begins one.
    pub fn new(seen: &Arc<Seen>) -> Self {
        seen.in_flight.fetch_add(1, Relaxed);
        Self(seen.clone())
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if self.0.in_flight.fetch_sub(1, Relaxed) == 1
            && let Some(waker) = self.0.waiting.lock().take()
        {
            waker.wake();
        }
    }
}

/// Who looks at the bytes.
#[derive(Debug)]
pub enum Watch {
    /// HTTP/1: framing.
    Framing(Guard),
    /// HTTP/2: floods.
    Floods(Flood),
}

impl Watch {
    fn inspect(&mut self, bytes: &mut [u8]) -> Option<Violation> {
        match self {
            Self::Framing(guard) => guard.inspect(bytes),
            Self::Floods(flood) => flood.inspect(bytes, clock::now()),
        }
    }
}

/// The client's connection.
#[derive(Debug)]
pub struct Downstream {
    io: Io,
    /// Read before.
    first: Kept,
    watch: Watch,
    head_timeout: Duration,
    waiting: Option<Pin<Box<Sleep>>>,
    /// The client sends no more.
    ended: bool,
    /// Interim responses on their way, from `interim_at`.
    interim: Vec<u8>,
    interim_at: usize,
    telemetry: Telemetry,
    seen: Arc<Seen>,
}

impl Downstream {
    /// A connection of which `first` has been read already.
    pub fn new(
        io: Io,
        mut first: Vec<u8>,
        mut watch: Watch,
        head_timeout: Duration,
        telemetry: Telemetry,
    ) -> (Self, Arc<Seen>) {
        let seen = Arc::new(Seen::default());
        seen.received_bytes.fetch_add(first.len() as u64, Relaxed);
        seen.note(watch.inspect(&mut first), &telemetry);
        let downstream = Self {
            io,
            first: Kept::new(first),
            watch,
            head_timeout,
            waiting: None,
            ended: false,
            interim: Vec::new(),
            interim_at: 0,
            telemetry,
            seen: seen.clone(),
        };
        (downstream, seen)
    }

    /// What must happen before more is read.
    fn poll_leave(
        &mut self,
        context: &Context<'_>,
        buffer: &mut ReadBufCursor<'_>,
    ) -> Poll<io::Result<bool>> {
        if self.seen.violation() == Some(Violation::Flood) {
            return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
        }
        if let Watch::Framing(guard) = &mut self.watch {
            if guard.is_refused() {
                // The parser has seen CR; this is what must not follow.
                buffer.put_slice(&[0]);
                return Poll::Ready(Ok(false));
            }
            if guard.awaits_answer() {
                match self.seen.protocol.swap(0, Relaxed) {
                    0 => return self.seen.wait_for_answer(context),
                    answer => guard.answered(answer == 2),
                }
            }
        }
        Poll::Ready(Ok(true))
    }

    fn poll_io(&mut self, context: &mut Context<'_>, buffer: &mut ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        let (watch, seen, telemetry) = (&mut self.watch, &self.seen, &self.telemetry);
        let before = buffer.remaining();
        let mut look = |bytes: &mut [u8]| {
            seen.received_bytes.fetch_add(bytes.len() as u64, Relaxed);
            seen.note(watch.inspect(bytes), telemetry);
        };
        match &mut self.io {
            Io::Tcp(stream) => ready!(poll_read_tcp(stream, context, buffer, &mut look))?,
            Io::Tunnel(tunnel) => ready!(tunnel.poll_read_looking(context, buffer, &mut look))?,
        }
        self.ended = buffer.remaining() == before;
        Poll::Ready(Ok(()))
    }

    /// Waits no longer than allowed for the rest of a head that has begun.
    fn poll_patience(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !matches!(&self.watch, Watch::Framing(guard) if guard.in_head()) {
            self.waiting = None;
            return Poll::Pending;
        }
        let timeout = self.head_timeout;
        let waiting = self.waiting.get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout)));
        ready!(waiting.as_mut().poll(context));
        self.seen.slow.store(1, Relaxed);
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl Read for Downstream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        mut buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.first.give(&mut buffer) {
            return Poll::Ready(Ok(()));
        }
        if !ready!(this.poll_leave(context, &mut buffer))? {
            return Poll::Ready(Ok(()));
        }
        // An end within a request is one that breaks off (RFC 9112 section 8).
        let is_whole = matches!(&this.watch, Watch::Framing(guard) if guard.is_between());
        let read = if this.ended { Poll::Ready(Ok(())) } else { this.poll_io(context, &mut buffer) };
        match read {
            Poll::Pending => this.poll_patience(context),
            // hyper takes an end for a client that is gone. One that is answered still is not.
            Poll::Ready(Ok(())) if this.ended && is_whole && this.seen.in_flight.load(Relaxed) > 0 => {
                this.seen.wait_for_answer(context)
            }
            ready => ready,
        }
    }
}

impl Downstream {
    /// hyper flushes when it has nothing of its own to write: the one time when an interim response may go out.
    fn poll_interim(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.poll_begun_interim(context))?;
            (self.interim, self.interim_at) = (self.seen.interim.take(), 0);
            if self.interim.is_empty() {
                return Poll::Ready(Ok(()));
            }
        }
    }

    /// An interim response that has begun is finished before anything else.
    fn poll_begun_interim(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.interim_at < self.interim.len() {
            let written = Pin::new(&mut self.io).poll_write(context, &self.interim[self.interim_at..]);
            self.interim_at += ready!(self.count(written))?;
        }
        Poll::Ready(Ok(()))
    }

    fn count(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = written {
            self.seen.sent_bytes.fetch_add(bytes as u64, Relaxed);
        }
        written
    }
}

impl Write for Downstream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_begun_interim(context))?;
        let written = Pin::new(&mut this.io).poll_write(context, bytes);
        this.count(written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_begun_interim(context))?;
        let written = Pin::new(&mut this.io).poll_write_vectored(context, slices);
        this.count(written)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_interim(context))?;
        Pin::new(&mut this.io).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(context)
    }
}
