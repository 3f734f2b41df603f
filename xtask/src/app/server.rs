//! Servers for pods: one epoll loop per CPU, all of them accepting from the same listener.
//!
//! Reading order: this file (the loops), [`connection`] (one client), [`http`] (what is said to an HTTP client) with
//! [`request`] (what it asks), [`body`] (what it sends) and [`answer`] (what it gets); [`h2`] (the same over HTTP/2).

pub mod connection;

pub mod http;

pub mod request;

pub mod body;

pub mod answer;

pub mod h2;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::ErrorKind;
use std::net::{Ipv6Addr, TcpListener};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{Backlog, listen};

use crate::clock;
use connection::Connection;

/// Token of the listener; connections have their place in the table.
const LISTENER: u64 = u64::MAX;

/// Connections waiting to be accepted. The standard library's 128 overflows in a burst of short connections.
const BACKLOG: i32 = 4096;

/// One read, in bytes; one buffer of this size per thread.
const READ_BYTES: usize = 64 * 1024;

/// What a server does with what it reads.
#[derive(Clone)]
pub enum Service {
    /// Sends it back.
    Echo,
    /// Counts it, and answers with the count at the end.
    Sink,
    /// Answers requests.
    Http(Arc<answer::Answers>),
}

/// Serves until the process is ended.
pub fn run(port: u16, service: Service) -> Result<ExitCode> {
    let listener = bind(port)?;
    let threads = std::thread::available_parallelism()?.get();
    std::thread::scope(|scope| {
        let loops: Vec<_> =
            (0..threads).map(|_| scope.spawn(|| Loop::new(&listener, &service)?.run())).collect();
        for one in loops {
            match one.join() {
                Ok(result) => result?,
                Err(_panic) => bail!("a server thread panicked"),
            }
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// A listener on all addresses, for [`Loop`]s.
pub fn bind(port: u16) -> Result<TcpListener> {
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))
        .with_context(|| format!("cannot listen on port {port} (IPv6, and IPv4 with it)"))?;
    listener.set_nonblocking(true)?;
    listen(&listener, Backlog::new(BACKLOG)?).context("cannot lengthen the backlog")?;
    Ok(listener)
}

/// One thread's loop.
pub struct Loop<'a> {
    epoll: Epoll,
    listener: &'a TcpListener,
    service: &'a Service,
    connections: Vec<Option<Connection>>,
    free: Vec<usize>,
    /// When connections want to be woken, earliest first. An entry whose connection wants another time is void.
    alarms: BinaryHeap<Reverse<(Instant, usize)>>,
    buffer: Vec<u8>,
}

impl<'a> Loop<'a> {
    /// A loop that accepts from `listener` once it runs.
    pub fn new(listener: &'a TcpListener, service: &'a Service) -> Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(listener, EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLEXCLUSIVE, LISTENER))?;
        Ok(Self {
            epoll,
            listener,
            service,
            connections: Vec::new(),
            free: Vec::new(),
            alarms: BinaryHeap::new(),
            buffer: vec![0; READ_BYTES],
        })
    }

    /// Serves until the process is ended.
    pub fn run(mut self) -> Result<()> {
        let mut events = vec![EpollEvent::empty(); 256];
        loop {
            let count = match self.epoll.wait(&mut events, self.patience()) {
                Err(Errno::EINTR) => continue,
                count => count?,
            };
            for event in &events[..count] {
                if event.data() == LISTENER {
                    self.accept()?;
                } else {
                    let gone = event.events().intersects(EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP);
                    self.serve(usize::try_from(event.data())?, gone);
                }
            }
            self.ring();
        }
    }

    /// How long to wait for events: to the first alarm, rounded up to what epoll can.
    fn patience(&self) -> EpollTimeout {
        let Some(Reverse((due, _))) = self.alarms.peek() else { return EpollTimeout::NONE };
        let millis = due.saturating_duration_since(clock::now()).as_micros().div_ceil(1000);
        EpollTimeout::try_from(millis).unwrap_or(EpollTimeout::MAX)
    }

    /// Wakes the connections whose time has come.
    fn ring(&mut self) {
        if self.alarms.is_empty() {
            return;
        }
        let now = clock::now();
        while let Some(Reverse((due, place))) = self.alarms.peek().copied()
            && due <= now
        {
            self.alarms.pop();
            if self.connections[place].as_ref().is_some_and(|connection| connection.alarm() == Some(due)) {
                self.serve(place, false);
            }
        }
    }

    fn accept(&mut self) -> Result<()> {
        // A few at a time, so that the other loops get their share of a burst.
        for _ in 0..16 {
            let (stream, peer) = match self.listener.accept() {
                Ok(accepted) => accepted,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
                // A connection that was reset before it was accepted, or no file left: the server goes on.
                Err(_) => return Ok(()),
            };
            stream.set_nonblocking(true)?;
            // Fails when the peer has reset meanwhile, which the first read tells anyway.
            let _ = stream.set_nodelay(true);
            let place = self.free.pop().unwrap_or_else(|| {
                self.connections.push(None);
                self.connections.len() - 1
            });
            let watched = EpollFlags::EPOLLIN;
            self.epoll.add(&stream, EpollEvent::new(watched, place as u64))?;
            self.connections[place] = Some(Connection::new(stream, peer, watched, self.service));
        }
        Ok(())
    }

    fn serve(&mut self, place: usize, gone: bool) {
        let Some(connection) = self.connections.get_mut(place).and_then(Option::as_mut) else { return };
        let before = connection.alarm();
        let goes_on = !gone && connection.step(&mut self.buffer).unwrap_or(false);
        if goes_on && connection.watch(&self.epoll, place).is_ok() {
            if let Some(due) = connection.alarm().filter(|due| before != Some(*due)) {
                self.alarms.push(Reverse((due, place)));
            }
            return;
        }
        // Closing the socket takes it out of epoll.
        self.connections[place] = None;
        self.free.push(place);
    }
}
