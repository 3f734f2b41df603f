//! Ways to write. All of them send the stream's next bytes in pieces of random length, with random pauses.

use std::fs::File;
use std::io::{self, ErrorKind, IoSlice, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use fastrand::Rng;
use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::sys::socket::{MsgFlags, send, setsockopt};
use rustix::net::{RecvAncillaryBuffer, RecvFlags, recvmsg};

use crate::order::{Order, Writing};
use crate::patient::{Patient, wait};
use crate::pattern;
use crate::report::sleep;

/// The largest file that is made for sendfile(2); longer streams go through it in rounds.
const FILE_BYTES: u64 = 8 << 20;

/// A direction being written.
#[derive(Debug)]
pub struct Writer<'a> {
    stream: &'a TcpStream,
    order: &'a Order,
    seed: u64,
    /// Bytes that the kernel has taken.
    pub written: u64,
    /// Completions that came, when SO_ZEROCOPY was granted.
    pub completions: Option<u64>,
    random: Rng,
    buffer: Vec<u8>,
}

impl<'a> Writer<'a> {
    /// Starts at the stream's first byte.
    pub fn new(stream: &'a TcpStream, order: &'a Order, seed: u64) -> Self {
        let granted =
            order.write == Writing::ZeroCopy && setsockopt(&stream, crate::options::ZeroCopy, &1).is_ok();
        Self {
            stream,
            order,
            seed,
            written: 0,
            completions: granted.then_some(0),
            random: Rng::with_seed(seed ^ 0x57_52_49_54_45),
            buffer: vec![0; order.chunk_max],
        }
    }

    /// Writes until `total` bytes are written.
    pub fn run(&mut self, total: u64) -> io::Result<()> {
        if self.order.write == Writing::File {
            return self.send_files(total);
        }
        while self.written < total {
            self.piece(total - self.written)?;
            if !self.order.pause_max.is_zero() && self.random.u32(0..8) == 0 {
                sleep(self.pause());
            }
        }
        Ok(())
    }

    /// Writes without waiting, until `total` or until nothing has been taken for `quiet`.
    pub fn run_until_blocked(&mut self, total: u64, quiet: Duration) -> io::Result<()> {
        while self.written < total {
            let length = piece_length(&mut self.random, self.order.chunk_max, total - self.written);
            pattern::fill(self.seed, self.written, &mut self.buffer[..length]);
            match send(self.stream.as_raw_fd(), &self.buffer[..length], MsgFlags::MSG_DONTWAIT) {
                Ok(count) => self.written += count as u64,
                Err(Errno::EAGAIN) if wait(self.stream, PollFlags::POLLOUT, quiet)? => {}
                Err(Errno::EAGAIN) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn pause(&mut self) -> Duration {
        let longest = u64::try_from(self.order.pause_max.as_micros()).unwrap_or(u64::MAX);
        Duration::from_micros(self.random.u64(0..=longest))
    }

    /// Sends one piece whole.
    fn piece(&mut self, left: u64) -> io::Result<()> {
        let length = piece_length(&mut self.random, self.order.chunk_max, left);
        pattern::fill(self.seed, self.written, &mut self.buffer[..length]);
        let mut sent = 0;
        while sent < length {
            let count = self.send(&self.buffer[sent..length])?;
            if self.completions.is_some() {
                // The buffer is written anew for the next piece: the kernel must have let go of it.
                self.await_completion()?;
            }
            sent += count;
            self.written += count as u64;
        }
        Ok(())
    }

    fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        let mut stream = Patient::new(self.stream, self.order);
        match self.order.write {
            Writing::Plain | Writing::File => stream.write(bytes),
            Writing::Vectored => {
                let (first, rest) = bytes.split_at(bytes.len() / 3);
                let (second, third) = rest.split_at(rest.len() / 2);
                stream.write_vectored(&[IoSlice::new(first), IoSlice::new(second), IoSlice::new(third)])
            }
            Writing::ZeroCopy if self.completions.is_some() => {
                let flags = MsgFlags::from_bits_retain(libc::MSG_ZEROCOPY);
                stream.again(PollFlags::POLLOUT, || Ok(send(self.stream.as_raw_fd(), bytes, flags)?))
            }
            Writing::ZeroCopy => stream.write(bytes),
        }
    }

    fn await_completion(&mut self) -> io::Result<()> {
        let limit = crate::report::now() + self.order.patience;
        loop {
            let flags = RecvFlags::ERRQUEUE | RecvFlags::DONTWAIT;
            match recvmsg(self.stream.as_fd(), &mut [], &mut RecvAncillaryBuffer::default(), flags) {
                Ok(_) => break,
                Err(rustix::io::Errno::AGAIN) if crate::report::now() < limit => {
                    // Other events may be pending all the time: ask for none, errors are always told.
                    wait(self.stream, PollFlags::empty(), Duration::from_millis(100))?;
                }
                Err(rustix::io::Errno::AGAIN) => {
                    return Err(io::Error::new(ErrorKind::TimedOut, "no zero-copy completion came"));
                }
                Err(error) => return Err(error.into()),
            }
        }
        self.completions = self.completions.map(|count| count + 1);
        Ok(())
    }

    fn send_files(&mut self, total: u64) -> io::Result<()> {
        while self.written < total {
            let length = (total - self.written).min(FILE_BYTES);
            let file = self.file(length)?;
            let mut offset = 0;
            while offset < length {
                let count = piece_length(&mut self.random, self.order.chunk_max, length - offset);
                let before = offset;
                Patient::new(self.stream, self.order).again(PollFlags::POLLOUT, || {
                    Ok(rustix::fs::sendfile(self.stream, &file, Some(&mut offset), count)?)
                })?;
                self.written += offset - before;
            }
        }
        Ok(())
    }

    /// A nameless file with the stream's next bytes.
    fn file(&self, length: u64) -> io::Result<File> {
        let mut file = tempfile::tempfile()?;
        let mut buffer = vec![0; usize::try_from(length).map_err(io::Error::other)?];
        pattern::fill(self.seed, self.written, &mut buffer);
        file.write_all(&buffer)?;
        Ok(file)
    }
}

/// Small and large pieces alike: the length's magnitude is drawn first.
pub fn piece_length(random: &mut Rng, longest: usize, left: u64) -> usize {
    let magnitude = random.u32(0..=longest.max(1).ilog2());
    let drawn = random.usize(1..=(2usize << magnitude)).min(longest.max(1));
    usize::try_from(left).map_or(drawn, |left| drawn.min(left))
}
