//! One client of a server: what it sends is taken in, what it is owed is sent as fast as it reads.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::time::Instant;

use anyhow::Result;
use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};

use super::Service;
use super::{h2, http};

/// How much may wait for a slow reader before its connection is no longer read, in bytes.
const PENDING_BYTES_MAX: usize = 256 * 1024;

/// A connection.
pub struct Connection {
    stream: TcpStream,
    talk: Talk,
    /// Still to be sent, from `sent` on.
    pending: Vec<u8>,
    sent: usize,
    /// The client has finished sending.
    finished: bool,
    watched: EpollFlags,
}

/// What is said on it.
enum Talk {
    Echo,
    Sink { count: u64 },
    Http(Box<http::Conversation>),
    Http2(Box<h2::Conversation>),
}

impl Connection {
    /// A connection that was just accepted, and is watched for `watched`.
    pub fn new(stream: TcpStream, peer: SocketAddr, watched: EpollFlags, service: &Service) -> Self {
        let talk = match service {
            Service::Echo => Talk::Echo,
            Service::Sink => Talk::Sink { count: 0 },
            Service::Http(answers) => {
                let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
                Talk::Http(Box::new(http::Conversation::new(answers.clone(), peer)))
            }
        };
        Self { stream, talk, pending: Vec::new(), sent: 0, finished: false, watched }
    }

    /// When it wants to take a step though nothing has arrived.
    pub fn alarm(&self) -> Option<Instant> {
        match &self.talk {
            Talk::Http(conversation) => conversation.due(),
            Talk::Echo | Talk::Sink { .. } | Talk::Http2(_) => None,
        }
    }

    /// Reads and writes what can be without waiting; says whether the connection goes on.
    pub fn step(&mut self, buffer: &mut [u8]) -> std::io::Result<bool> {
        if let Talk::Http(conversation) = &mut self.talk {
            conversation.wake(&mut self.pending);
        }
        self.flush()?;
        if self.wants_more() {
            match self.stream.read(buffer) {
                Ok(0) => self.finish(),
                Ok(count) => self.take(&buffer[..count])?,
                Err(e) if e.kind() == ErrorKind::WouldBlock || e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        self.flush()?;
        let all_sent = self.pending.is_empty();
        let (is_last, owes) = match &self.talk {
            Talk::Http(conversation) if conversation.is_aborted() => return Ok(false),
            Talk::Http(conversation) => (conversation.is_over(), conversation.due().is_some()),
            Talk::Echo | Talk::Sink { .. } | Talk::Http2(_) => (false, false),
        };
        if all_sent && is_last {
            self.stream.shutdown(Shutdown::Write)?;
        }
        Ok(owes || !(all_sent && (self.finished || is_last)))
    }

    /// Tells epoll what is waited for now.
    pub fn watch(&mut self, epoll: &Epoll, place: usize) -> Result<()> {
        let mut wanted = EpollFlags::empty();
        if !self.pending.is_empty() {
            wanted |= EpollFlags::EPOLLOUT;
        }
        if self.wants_more() {
            wanted |= EpollFlags::EPOLLIN;
        }
        if wanted != self.watched {
            epoll.modify(self.stream.as_fd(), &mut EpollEvent::new(wanted, place as u64))?;
            self.watched = wanted;
        }
        Ok(())
    }

    fn wants_more(&self) -> bool {
        let talk = match &self.talk {
            Talk::Http(conversation) => conversation.wants_more(),
            Talk::Echo | Talk::Sink { .. } | Talk::Http2(_) => true,
        };
        talk && !self.finished && self.pending.len() - self.sent < PENDING_BYTES_MAX
    }

    fn finish(&mut self) {
        self.finished = true;
        if let Talk::Sink { count } = &self.talk {
            self.pending.extend(format!("{count}\n").bytes());
        }
    }

    fn take(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        match &mut self.talk {
            Talk::Echo => return self.send(bytes),
            Talk::Sink { count } => *count += bytes.len() as u64,
            Talk::Http(conversation) => {
                conversation.take(bytes, &mut self.pending);
                if let Some(upgraded) = conversation.upgrade(&mut self.pending) {
                    self.talk = Talk::Http2(Box::new(upgraded?));
                }
            }
            Talk::Http2(conversation) => conversation.take(bytes, &mut self.pending)?,
        }
        Ok(())
    }

    /// Sends at once what the socket takes, without a copy; the rest waits.
    fn send(&mut self, mut bytes: &[u8]) -> std::io::Result<()> {
        if self.pending.is_empty() {
            match self.stream.write(bytes) {
                Ok(count) => bytes = &bytes[count..],
                Err(e) if e.kind() == ErrorKind::WouldBlock || e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        self.pending.extend_from_slice(bytes);
        Ok(())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        while self.sent < self.pending.len() {
            match self.stream.write(&self.pending[self.sent..]) {
                Ok(count) => self.sent += count,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        self.pending.clear();
        self.sent = 0;
        Ok(())
    }
}
