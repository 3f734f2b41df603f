//! A stream whose reads and writes wait: with poll(2) on a non-blocking socket, as event loops do, or inside the system call
//! on a blocking one, as the order says. On a blocking socket EAGAIN means that the patience is over, and is an error.

use std::io::{self, ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::order::Order;

/// Reads and writes that wait.
#[derive(Clone, Copy, Debug)]
pub struct Patient<'a> {
    stream: &'a TcpStream,
    /// How long poll(2) waits; nothing on a blocking socket.
    poll_for: Option<Duration>,
}

impl<'a> Patient<'a> {
    /// The stream as [`prepare`] left it.
    pub fn new(stream: &'a TcpStream, order: &Order) -> Self {
        Self { stream, poll_for: (!order.block).then_some(order.patience) }
    }

    /// Does `call` again whenever it could not be done at once.
    pub fn again<T>(&self, events: PollFlags, mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
        loop {
            match (call(), self.poll_for) {
                (Err(error), Some(time)) if error.kind() == ErrorKind::WouldBlock => {
                    if !wait(self.stream, events, time)? {
                        return Err(ErrorKind::TimedOut.into());
                    }
                }
                (done, _) => return done,
            }
        }
    }
}

impl Read for Patient<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut stream = self.stream;
        self.again(PollFlags::POLLIN, || stream.read(buffer))
    }

    fn read_vectored(&mut self, buffers: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        let mut stream = self.stream;
        self.again(PollFlags::POLLIN, || stream.read_vectored(buffers))
    }
}

impl Write for Patient<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut stream = self.stream;
        self.again(PollFlags::POLLOUT, || stream.write(bytes))
    }

    fn write_vectored(&mut self, bytes: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut stream = self.stream;
        self.again(PollFlags::POLLOUT, || stream.write_vectored(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Makes a stream wait as the order says.
pub fn prepare(stream: &TcpStream, order: &Order) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_nonblocking(!order.block)?;
    stream.set_read_timeout(Some(order.patience))?;
    stream.set_write_timeout(Some(order.patience))
}

/// Waits for an event. False when the time is over.
pub fn wait(stream: &TcpStream, events: PollFlags, time: Duration) -> io::Result<bool> {
    let timeout = PollTimeout::try_from(time).map_err(io::Error::other)?;
    Ok(poll(&mut [PollFd::new(stream.as_fd(), events)], timeout)? > 0)
}
