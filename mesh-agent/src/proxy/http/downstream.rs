//! The client's side of an HTTP connection: what has been read to tell the protocol, then the socket, under the guard's eye.
//!
//! Beside station 5. It counts bytes and gives up on a client that sends a head too slowly. It never answers: hyper does.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::rt::{Read, ReadBufCursor, Write};
use tokio::io::{AsyncRead as _, ReadBuf};
use tokio::time::Sleep;

use super::guard::{Guard, Violation};
use super::io::Io;
use crate::proxy::carrier;

/// What the connection tells those who do not hold it: hyper does.
#[derive(Debug, Default)]
pub struct Seen {
    received_bytes: AtomicU64,
    sent_bytes: AtomicU64,
    /// Place in [`Violation::ALL`], from 1; 0: none.
    violation: AtomicU8,
    slow: AtomicU8,
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

    fn note(&self, violation: Option<Violation>) {
        let place = violation.and_then(|found| Violation::ALL.iter().position(|one| *one == found));
        if let Some(place) = place.and_then(|place| u8::try_from(place + 1).ok()) {
            self.violation.store(place, Relaxed);
        }
    }
}

/// The client's connection.
#[derive(Debug)]
pub struct Downstream {
    io: Io,
    /// Read before, from `first_at`.
    first: Vec<u8>,
    first_at: usize,
    /// `None`: HTTP/2, whose frames say their length.
    guard: Option<Guard>,
    head_timeout: Duration,
    waiting: Option<Pin<Box<Sleep>>>,
    seen: Arc<Seen>,
}

impl Downstream {
    /// A connection of which `first` has been read already.
    pub fn new(
        io: Io,
        mut first: Vec<u8>,
        mut guard: Option<Guard>,
        head_timeout: Duration,
    ) -> (Self, Arc<Seen>) {
        let seen = Arc::new(Seen::default());
        seen.received_bytes.fetch_add(first.len() as u64, Relaxed);
        seen.note(guard.as_mut().and_then(|guard| guard.inspect(&mut first)));
        (Self { io, first, first_at: 0, guard, head_timeout, waiting: None, seen: seen.clone() }, seen)
    }

    fn give_first(&mut self, buffer: &mut ReadBufCursor<'_>) -> bool {
        let left = &self.first[self.first_at..];
        if left.is_empty() {
            return false;
        }
        let bytes = left.len().min(buffer.remaining());
        buffer.put_slice(&left[..bytes]);
        self.first_at += bytes;
        if self.first_at == self.first.len() {
            (self.first, self.first_at) = (Vec::new(), 0);
        }
        true
    }

    fn poll_io(&mut self, context: &mut Context<'_>, buffer: &mut ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        let (guard, seen) = (&mut self.guard, &self.seen);
        let mut look = |bytes: &mut [u8]| {
            seen.received_bytes.fetch_add(bytes.len() as u64, Relaxed);
            if let Some(guard) = guard {
                seen.note(guard.inspect(bytes));
            }
        };
        match &mut self.io {
            Io::Tcp(stream) => {
                let mut scratch = carrier::scratch().borrow_mut();
                let room = buffer.remaining().min(scratch.receive.len());
                let mut read = ReadBuf::new(&mut scratch.receive[..room]);
                ready!(Pin::new(stream).poll_read(context, &mut read))?;
                look(read.filled_mut());
                buffer.put_slice(read.filled());
            }
            Io::Tunnel(tunnel) => {
                if ready!(tunnel.poll_kept(context, &mut look))? {
                    tunnel.give_kept(buffer);
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Waits no longer than allowed for the rest of a head that has begun.
    fn poll_patience(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.guard.as_ref().is_some_and(Guard::in_head) {
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
        if this.give_first(&mut buffer) {
            return Poll::Ready(Ok(()));
        }
        match this.poll_io(context, &mut buffer) {
            Poll::Pending => this.poll_patience(context),
            ready => ready,
        }
    }
}

impl Downstream {
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
        let written = Pin::new(&mut this.io).poll_write(context, bytes);
        this.count(written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.io).poll_write_vectored(context, slices);
        this.count(written)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(context)
    }
}
