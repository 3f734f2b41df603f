//! Ways to read. All of them check each byte, and what their system call promises.

use std::io::{self, ErrorKind, IoSliceMut, Read};
use std::net::TcpStream;
use std::os::fd::{AsFd, AsRawFd};

use fastrand::Rng;
use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{MsgFlags, recv};
use rustix::net::{RecvAncillaryBuffer, RecvFlags, recvmsg};

use crate::order::{Order, Reading};
use crate::patient::{Patient, wait};
use crate::pattern;
use crate::writer::piece_length;

/// A direction being read.
#[derive(Debug)]
pub struct Reader<'a> {
    stream: &'a TcpStream,
    order: &'a Order,
    seed: u64,
    /// Bytes that came.
    pub read: u64,
    /// The first that was wrong.
    pub mismatch: Option<u64>,
    random: Rng,
    buffer: Vec<u8>,
    scratch: Vec<u8>,
    epoll: Option<Epoll>,
}

impl<'a> Reader<'a> {
    /// Starts at the stream's first byte.
    ///
    /// # Errors
    /// There is no epoll for the edge-triggered way.
    pub fn new(stream: &'a TcpStream, order: &'a Order, seed: u64) -> io::Result<Self> {
        let epoll = (order.read == Reading::Edge).then(|| edge_triggered(stream)).transpose()?;
        Ok(Self {
            stream,
            order,
            seed,
            read: 0,
            mismatch: None,
            random: Rng::with_seed(seed ^ 0x52_45_41_44),
            buffer: vec![0; order.chunk_max],
            scratch: Vec::new(),
            epoll,
        })
    }

    /// Goes on where an earlier reader of this direction stopped.
    pub fn skip(&mut self, read: u64) {
        self.read = read;
    }

    /// Reads `total` bytes, and then the end.
    pub fn run(&mut self, total: u64) -> io::Result<()> {
        self.run_to(total)?;
        match Patient::new(self.stream, self.order).read(&mut [0])? {
            0 => Ok(()),
            _ => Err(io::Error::other(format!("more than {total} bytes came"))),
        }
    }

    /// Reads until `total` bytes have come.
    pub fn run_to(&mut self, total: u64) -> io::Result<()> {
        while self.read < total {
            let count = self.piece(total - self.read)?;
            if count == 0 {
                return Err(io::Error::other(format!(
                    "the stream ended after {} of {total} bytes",
                    self.read
                )));
            }
        }
        Ok(())
    }

    /// Reads the next bytes, checks them, and says how many they were.
    fn piece(&mut self, left: u64) -> io::Result<usize> {
        let length = piece_length(&mut self.random, self.order.chunk_max, left);
        let count = self.receive(length)?;
        let wrong = pattern::first_mismatch(self.seed, self.read, &self.buffer[..count], &mut self.scratch);
        self.mismatch = self.mismatch.or(wrong);
        self.read += count as u64;
        Ok(count)
    }

    fn receive(&mut self, length: usize) -> io::Result<usize> {
        let mut stream = Patient::new(self.stream, self.order);
        let buffer = &mut self.buffer[..length];
        match self.order.read {
            Reading::Plain => stream.read(buffer),
            Reading::Vectored => {
                let (first, rest) = buffer.split_at_mut(length / 3);
                let (second, third) = rest.split_at_mut(rest.len() / 2);
                let mut parts = [IoSliceMut::new(first), IoSliceMut::new(second), IoSliceMut::new(third)];
                stream.read_vectored(&mut parts)
            }
            Reading::Peek => peek_then_read(self.stream, stream, buffer, &mut self.scratch),
            Reading::WaitAll => {
                let mut parts = [IoSliceMut::new(buffer)];
                let flags = RecvFlags::WAITALL;
                let got = recvmsg(self.stream, &mut parts, &mut RecvAncillaryBuffer::default(), flags)?.bytes;
                if got != length {
                    return Err(io::Error::other(format!("MSG_WAITALL gave {got} bytes of {length}")));
                }
                Ok(got)
            }
            Reading::Edge => self.receive_at_edge(length),
            Reading::Pending => self.receive_pending(length),
        }
    }

    /// Waits for an edge only after EAGAIN, as a program must.
    fn receive_at_edge(&mut self, length: usize) -> io::Result<usize> {
        loop {
            let buffer = &mut self.buffer[..length];
            match recv(self.stream.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT) {
                Err(Errno::EAGAIN) => {}
                other => return Ok(other?),
            }
            let epoll = self.epoll.as_ref().expect("made with the reader");
            let patience = EpollTimeout::try_from(self.order.patience).map_err(io::Error::other)?;
            if epoll.wait(&mut [EpollEvent::empty()], patience)? == 0 {
                return Err(io::Error::new(ErrorKind::TimedOut, "no edge came"));
            }
        }
    }

    fn receive_pending(&mut self, length: usize) -> io::Result<usize> {
        if !wait(self.stream, PollFlags::POLLIN, self.order.patience)? {
            return Err(ErrorKind::TimedOut.into());
        }
        let pending = usize::try_from(rustix::io::ioctl_fionread(self.stream)?).map_err(io::Error::other)?;
        let got = recv(self.stream.as_raw_fd(), &mut self.buffer[..length], MsgFlags::MSG_DONTWAIT)?;
        if got > 0 && pending == 0 {
            return Err(io::Error::other(format!("FIONREAD told 0 where {got} bytes were ready")));
        }
        if got < pending.min(length) {
            return Err(io::Error::other(format!(
                "FIONREAD told {pending}, asked {length}, only {got} came"
            )));
        }
        Ok(got)
    }
}

fn peek_then_read(
    raw: &TcpStream,
    mut stream: Patient<'_>,
    buffer: &mut [u8],
    peeked: &mut Vec<u8>,
) -> io::Result<usize> {
    peeked.resize(buffer.len(), 0);
    let seen = stream.again(PollFlags::POLLIN, || raw.peek(peeked))?;
    let got = stream.read(buffer)?;
    if got < seen || buffer[..seen] != peeked[..seen] {
        return Err(io::Error::other(format!(
            "MSG_PEEK showed {seen} bytes, the read gave {got}, or others"
        )));
    }
    Ok(got)
}

fn edge_triggered(stream: &TcpStream) -> io::Result<Epoll> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
    epoll.add(stream.as_fd(), EpollEvent::new(flags, 0))?;
    Ok(epoll)
}
