//! HTTP requests on many connections from one thread: as many as possible (each answer brings the next request), or so many
//! per second.
//!
//! Reading order: this file (connections, time and what is counted), [`http1`] and [`http2`] (what is said on a connection).
//! At a fixed rate a request's time runs from when it was due: one that had to wait for a free connection waited too.

mod http1;

mod http2;

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use super::{FAILURES_MAX, Measured, PATIENCE, Tally, WARM_UP, allow_many_open_files, payload};
use crate::clock;

/// Token of the timer; connections have their number.
const TIMER: u64 = u64::MAX;

/// One read, in bytes.
const READ_BYTES: usize = 64 * 1024;

/// `bench-client requests`.
#[derive(Args)]
pub struct Options {
    /// What is spoken, from the first byte on.
    #[arg(long)]
    protocol: Protocol,
    /// Open connections.
    #[arg(long, default_value_t = 1)]
    connections: usize,
    /// Requests at a time on each connection; more than one only with HTTP/2.
    #[arg(long, default_value_t = 1)]
    streams: usize,
    /// Requests per second in all; as many as possible when absent.
    #[arg(long)]
    rate: Option<u32>,
    /// Bytes of each answer's body.
    #[arg(long, default_value_t = 1024)]
    size: usize,
    /// The path that is asked for.
    #[arg(long, default_value = "/")]
    path: String,
    /// The host that is asked for.
    #[arg(long, default_value = "server")]
    host: String,
}

/// A version of HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Protocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
}

/// What is said on one connection. Errors end it.
enum Talk {
    Http1(http1::Talk),
    Http2(http2::Talk),
}

impl Talk {
    fn new(options: &Options, out: &mut Vec<u8>) -> Self {
        match options.protocol {
            Protocol::Http1 => Self::Http1(http1::Talk::new(&options.host, &options.path, options.size)),
            Protocol::Http2 => Self::Http2(http2::Talk::new(&options.host, &options.path, options.size, out)),
        }
    }

    /// Asks once more; the answer is known by `id`.
    fn ask(&mut self, id: usize, out: &mut Vec<u8>) {
        match self {
            Self::Http1(talk) => talk.ask(id, out),
            Self::Http2(talk) => talk.ask(id, out),
        }
    }

    /// Takes in what has arrived; the ids of complete answers go to `done`.
    fn take(&mut self, bytes: &[u8], out: &mut Vec<u8>, done: &mut Vec<usize>) -> std::io::Result<()> {
        match self {
            Self::Http1(talk) => talk.take(bytes, done),
            Self::Http2(talk) => talk.take(bytes, out, done),
        }
    }
}

struct Line {
    stream: TcpStream,
    talk: Talk,
    /// Still to be sent.
    out: Vec<u8>,
    /// Since when each request waits for its answer, by its id; none when the id is free.
    since: Vec<Option<Instant>>,
    watches_room: bool,
}

/// Measures for `length`.
pub fn run(target: SocketAddr, options: &Options, length: Duration) -> Result<Measured> {
    allow_many_open_files()?;
    let mut tally = Tally::default();
    tally.nanos.reserve((length.as_secs_f64() * 200_000.0) as usize);
    let mut run = Run::new(target, options, tally)?;
    if let Err(error) = run.measure(length) {
        run.tally.fail(&format!("{error:#}"));
    }
    Ok(run.tally.finish(length.as_secs_f64()))
}

struct Run<'a> {
    target: SocketAddr,
    options: &'a Options,
    epoll: Epoll,
    lines: Vec<Line>,
    /// Requests that were due while no connection was free.
    overdue: VecDeque<Instant>,
    /// Where the search for a free connection goes on.
    next: usize,
    /// From when on answers count, and when no more requests are sent: known once every connection has had an answer.
    span: Option<(Instant, Instant)>,
    answered: usize,
    tally: Tally,
    buffer: Vec<u8>,
}

impl<'a> Run<'a> {
    fn new(target: SocketAddr, options: &'a Options, tally: Tally) -> Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        Ok(Self {
            target,
            options,
            epoll,
            lines: Vec::new(),
            overdue: VecDeque::new(),
            next: 0,
            span: None,
            answered: 0,
            tally,
            buffer: vec![0; READ_BYTES],
        })
    }

    fn measure(&mut self, length: Duration) -> Result<()> {
        for number in 0..self.options.connections {
            let line = self.connect(number).with_context(|| format!("connection {number}"))?;
            self.lines.push(line);
        }
        // One request on each connection first: what it takes to open them is not measured here.
        for number in 0..self.lines.len() {
            self.ask(number, clock::now());
        }
        self.go_on_until(|run| run.answered >= run.lines.len(), clock::now() + PATIENCE)?;
        let count_from = clock::now() + WARM_UP;
        let end = count_from + length;
        self.span = Some((count_from, end));
        let timer = match self.options.rate {
            Some(rate) => Some(Ticks::start(&self.epoll, rate)?),
            None => {
                for number in 0..self.lines.len() {
                    for _ in 0..self.options.streams {
                        self.ask(number, clock::now());
                    }
                }
                None
            }
        };
        self.go_on(timer.as_ref(), end)?;
        drop(timer);
        let all_answered = |run: &Self| {
            run.overdue.is_empty() && run.lines.iter().all(|line| line.since.iter().all(Option::is_none))
        };
        self.go_on_until(all_answered, clock::now() + PATIENCE)
    }

    fn go_on_until(&mut self, is_done: impl Fn(&Self) -> bool, deadline: Instant) -> Result<()> {
        while !is_done(self) && self.tally.error_count < FAILURES_MAX {
            anyhow::ensure!(clock::now() < deadline, "answers are missing after {PATIENCE:?}");
            self.turn(None, deadline)?;
        }
        Ok(())
    }

    fn go_on(&mut self, ticks: Option<&Ticks>, end: Instant) -> Result<()> {
        while clock::now() < end && self.tally.error_count < FAILURES_MAX {
            self.turn(ticks, end)?;
        }
        Ok(())
    }

    /// Waits for something to happen, at most until `end`, and does what it asks for.
    fn turn(&mut self, ticks: Option<&Ticks>, end: Instant) -> Result<()> {
        let mut events = [EpollEvent::empty(); 64];
        let left = end.saturating_duration_since(clock::now()).as_millis() + 1;
        let patience = EpollTimeout::try_from(left).unwrap_or(EpollTimeout::MAX);
        let count = match self.epoll.wait(&mut events, patience) {
            Err(nix::errno::Errno::EINTR) => 0,
            count => count?,
        };
        for event in &events[..count] {
            if event.data() == TIMER {
                for due in ticks.map(Ticks::due).transpose()?.into_iter().flatten() {
                    self.ask_when_free(due);
                }
                continue;
            }
            let number = usize::try_from(event.data())?;
            if let Err(error) = self.step(number) {
                self.replace(number, &error)?;
            }
        }
        Ok(())
    }

    fn connect(&self, number: usize) -> Result<Line> {
        let stream = super::connect(self.target)?;
        stream.set_nonblocking(true)?;
        self.epoll.add(&stream, EpollEvent::new(EpollFlags::EPOLLIN, number as u64))?;
        let mut out = Vec::new();
        let talk = Talk::new(self.options, &mut out);
        let since = vec![None; self.options.streams];
        Ok(Line { stream, talk, out, since, watches_room: false })
    }

    /// Counts what a broken connection leaves unanswered, and opens another in its place.
    fn replace(&mut self, number: usize, error: &std::io::Error) -> Result<()> {
        let lost = self.lines[number].since.iter().flatten().count();
        self.tally.fail(&format!("connection {number}, {lost} unanswered: {error}"));
        let line = self.connect(number)?;
        self.lines[number] = line;
        self.refill(number);
        Ok(())
    }

    /// Sends requests on a connection on which there is room for them, if it is time for any.
    fn refill(&mut self, number: usize) {
        let is_running = self.span.is_none_or(|(_, end)| clock::now() < end);
        if self.options.rate.is_some() && self.span.is_some() {
            while !self.overdue.is_empty() && self.lines[number].has_room() {
                let due = self.overdue.pop_front().unwrap_or_else(clock::now);
                self.ask(number, due);
            }
        } else if is_running && self.span.is_some() {
            while self.lines[number].has_room() {
                self.ask(number, clock::now());
            }
        }
    }

    /// At a fixed rate: sends a request on the next free connection.
    fn ask_when_free(&mut self, due: Instant) {
        let count = self.lines.len();
        let free = (0..count).map(|step| (self.next + step) % count).find(|n| self.lines[*n].has_room());
        match free {
            Some(number) => {
                self.next = (number + 1) % count;
                self.ask(number, due);
            }
            None => self.overdue.push_back(due),
        }
    }

    fn ask(&mut self, number: usize, since: Instant) {
        let line = &mut self.lines[number];
        let Some(id) = line.since.iter().position(Option::is_none) else { return };
        line.since[id] = Some(since);
        line.talk.ask(id, &mut line.out);
        // A failure is met again by the read that follows.
        let _ = line.flush(&self.epoll, number);
    }

    /// Reads what has arrived, counts it, and asks for more.
    fn step(&mut self, number: usize) -> std::io::Result<()> {
        let line = &mut self.lines[number];
        let mut done = Vec::new();
        match line.stream.read(&mut self.buffer) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(count) => line.talk.take(&self.buffer[..count], &mut line.out, &mut done)?,
            Err(e) if e.kind() == ErrorKind::WouldBlock || e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
        for id in done {
            let since = line.since[id].take();
            match (self.span, since) {
                (Some((count_from, _)), Some(since)) => self.tally.add(since, count_from),
                _ => {
                    self.answered += 1;
                    self.tally.warm_up += 1;
                }
            }
        }
        self.refill(number);
        self.lines[number].flush(&self.epoll, number)
    }
}

impl Line {
    fn has_room(&self) -> bool {
        self.since.iter().any(Option::is_none)
    }

    fn flush(&mut self, epoll: &Epoll, number: usize) -> std::io::Result<()> {
        let mut sent = 0;
        while sent < self.out.len() {
            match self.stream.write(&self.out[sent..]) {
                Ok(count) => sent += count,
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        self.out.drain(..sent);
        if self.out.is_empty() == self.watches_room {
            self.watches_room = !self.watches_room;
            let room = if self.watches_room { EpollFlags::EPOLLOUT } else { EpollFlags::empty() };
            epoll.modify(&self.stream, &mut EpollEvent::new(EpollFlags::EPOLLIN | room, number as u64))?;
        }
        Ok(())
    }
}

/// Moments at which requests are due, by a kernel timer: epoll's own patience counts in whole milliseconds.
struct Ticks {
    timer: TimerFd,
    begun: Instant,
    interval: Duration,
    told: std::cell::Cell<u64>,
}

impl Ticks {
    fn start(epoll: &Epoll, rate: u32) -> Result<Self> {
        let interval = Duration::from_secs(1) / rate.max(1);
        let timer =
            TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC)?;
        epoll.add(&timer, EpollEvent::new(EpollFlags::EPOLLIN, TIMER))?;
        let every = Expiration::Interval(TimeSpec::from_duration(interval));
        let begun = clock::now();
        timer.set(every, TimerSetTimeFlags::empty())?;
        Ok(Self { timer, begun, interval, told: std::cell::Cell::new(0) })
    }

    /// The moments that have come since the last call.
    fn due(&self) -> Result<Vec<Instant>> {
        let mut count = [0; 8];
        match nix::unistd::read(&self.timer, &mut count) {
            Ok(_) => {}
            Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => return Ok(Vec::new()),
            Err(error) => return Err(error).context("cannot read the timer"),
        }
        let told = self.told.get();
        self.told.set(told + u64::from_ne_bytes(count));
        let nanos = |tick: u64| Duration::from_nanos((self.interval.as_nanos() as u64) * tick);
        Ok((told + 1..=self.told.get()).map(|tick| self.begun + nanos(tick)).collect())
    }
}
