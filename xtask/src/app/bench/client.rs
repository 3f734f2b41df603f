//! The measuring end: round trips, one stream, new connections, connections that are only held, or HTTP [`requests`].

pub mod requests;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use serde::{Deserialize, Serialize};

use super::{ERRORS_TOLD_MAX, allow_many_open_files, payload, stay_on};
use crate::clock;

/// How long traffic runs before it counts: caches, congestion windows and warm tunnels are part of every variant.
const WARM_UP: Duration = Duration::from_millis(300);

/// How long one read may take. Far above any measured time: it only ends a run that hangs.
const PATIENCE: Duration = Duration::from_secs(10);

/// Size of one write of a bulk stream, in bytes.
const BULK_WRITE_BYTES: usize = 128 * 1024;

/// A thread that has failed this often stops: the run counts as failed anyway.
const FAILURES_MAX: u64 = 20;

/// `app bench-client`.
#[derive(Args)]
pub struct Options {
    /// Where to, as ADDRESS:PORT.
    #[arg(long)]
    target: SocketAddr,
    /// Stay on this CPU.
    #[arg(long)]
    cpu: Option<usize>,
    /// How long to measure, in seconds.
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    #[command(subcommand)]
    traffic: Traffic,
}

#[derive(Subcommand)]
enum Traffic {
    /// Round trips on one connection.
    RoundTrips {
        /// Bytes each way.
        #[arg(long)]
        size: usize,
    },
    /// One stream to a sink.
    Bulk,
    /// New connections, one round trip on each.
    Connections {
        /// Bytes each way.
        #[arg(long, default_value_t = 64)]
        size: usize,
        /// How many at a time.
        #[arg(long, default_value_t = 1)]
        concurrency: usize,
    },
    /// Open connections, one round trip of one byte on each, then hold them until standard input ends.
    Idle {
        /// How many.
        #[arg(long)]
        count: usize,
    },
    /// HTTP requests.
    Requests(requests::Options),
}

/// What a client measured.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Measured {
    /// How long was measured, in seconds, without the warm-up.
    pub seconds: f64,
    /// Round trips or connections while it was measured.
    pub count: u64,
    /// The same with the warm-up: what CPU time is divided by.
    pub count_all: u64,
    /// Bytes of a bulk stream that the server has confirmed.
    pub bytes: u64,
    /// Middle of the times of one round trip or connection, in microseconds.
    pub p50_us: f64,
    /// 99th percentile of them, in microseconds.
    pub p99_us: f64,
    /// Errors in all.
    pub error_count: u64,
    /// The first errors.
    pub errors: Vec<String>,
}

/// Times in nanoseconds, and what went wrong.
#[derive(Default)]
struct Tally {
    nanos: Vec<u32>,
    warm_up: u64,
    errors: Vec<String>,
    error_count: u64,
}

impl Tally {
    fn fail(&mut self, error: &dyn std::fmt::Display) {
        self.error_count += 1;
        if self.errors.len() < ERRORS_TOLD_MAX {
            self.errors.push(error.to_string());
        }
    }

    fn add(&mut self, started: Instant, count_from: Instant) {
        if started < count_from {
            self.warm_up += 1;
        } else {
            let nanos = clock::now().duration_since(started).as_nanos();
            self.nanos.push(u32::try_from(nanos).unwrap_or(u32::MAX));
        }
    }

    fn merge(&mut self, other: Self) {
        self.nanos.extend(other.nanos);
        self.warm_up += other.warm_up;
        self.error_count += other.error_count;
        self.errors.extend(other.errors);
        self.errors.truncate(ERRORS_TOLD_MAX);
    }

    fn finish(mut self, seconds: f64) -> Measured {
        self.nanos.sort_unstable();
        if self.nanos.is_empty() && self.error_count == 0 {
            self.fail(&"nothing was measured");
        }
        Measured {
            seconds,
            count: self.nanos.len() as u64,
            count_all: self.nanos.len() as u64 + self.warm_up,
            bytes: 0,
            p50_us: percentile_us(&self.nanos, 50),
            p99_us: percentile_us(&self.nanos, 99),
            error_count: self.error_count,
            errors: self.errors,
        }
    }
}

/// The nearest-rank percentile of sorted times, in microseconds; 0 of none.
fn percentile_us(sorted_nanos: &[u32], percent: usize) -> f64 {
    let rank = (sorted_nanos.len() * percent).div_ceil(100);
    sorted_nanos.get(rank.saturating_sub(1)).map_or(0.0, |nanos| f64::from(*nanos) / 1000.0)
}

/// Runs the traffic and prints what was measured.
pub fn run(options: &Options) -> Result<ExitCode> {
    stay_on(options.cpu)?;
    let length = Duration::from_secs_f64(options.seconds);
    let measured = match &options.traffic {
        Traffic::RoundTrips { size } => round_trips(options.target, *size, length),
        Traffic::Bulk => bulk(options.target, length),
        Traffic::Connections { size, concurrency } => {
            connections(options.target, *size, *concurrency, length)
        }
        Traffic::Idle { count } => return idle(options.target, *count),
        Traffic::Requests(requests) => requests::run(options.target, requests, length)?,
    };
    println!("{}", serde_json::to_string(&measured)?);
    Ok(ExitCode::SUCCESS)
}

fn connect(target: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect(target)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn round_trips(target: SocketAddr, size: usize, length: Duration) -> Measured {
    let mut tally = Tally::default();
    // Not grown while measuring: 500,000 a second is more than loopback does.
    tally.nanos.reserve((length.as_secs_f64() * 500_000.0) as usize);
    if let Err(error) = exchange_for(target, size, length, &mut tally) {
        tally.fail(&error);
    }
    tally.finish(length.as_secs_f64())
}

fn exchange_for(target: SocketAddr, size: usize, length: Duration, tally: &mut Tally) -> std::io::Result<()> {
    let mut stream = connect(target)?;
    let mut request = payload(size);
    let mut answer = vec![0; size];
    stream.write_all(&request)?;
    stream.read_exact(&mut answer)?;
    // Time runs from the first answer on, however long the connection took to come about.
    let count_from = clock::now() + WARM_UP;
    let end = count_from + length;
    for number in 0u64.. {
        let started = clock::now();
        if started >= end {
            break;
        }
        let stamp = number.to_be_bytes();
        let stamped = size.min(stamp.len());
        request[..stamped].copy_from_slice(&stamp[8 - stamped..]);
        stream.write_all(&request)?;
        stream.read_exact(&mut answer)?;
        tally.add(started, count_from);
        if answer[..stamped] != request[..stamped] || answer.last() != request.last() {
            return Err(std::io::Error::other(format!("round trip {number} brought other bytes back")));
        }
    }
    stream.shutdown(Shutdown::Write)?;
    expect_end(&mut stream)
}

/// The server closes once it has seen our end; anything else is an error.
fn expect_end(stream: &mut TcpStream) -> std::io::Result<()> {
    match stream.read(&mut [0])? {
        0 => Ok(()),
        _ => Err(std::io::Error::other("bytes came after the last answer")),
    }
}

fn bulk(target: SocketAddr, length: Duration) -> Measured {
    let mut tally = Tally::default();
    match stream_for(target, length) {
        Ok((bytes, took)) => {
            let seconds = took.as_secs_f64();
            return Measured { seconds, bytes, count: 1, count_all: 1, ..Measured::default() };
        }
        Err(error) => tally.fail(&error),
    }
    tally.finish(length.as_secs_f64())
}

/// Streams, then waits until the server confirms the last byte; the bytes and the time to there.
fn stream_for(target: SocketAddr, length: Duration) -> std::io::Result<(u64, Duration)> {
    let mut stream = connect(target)?;
    let chunk = payload(BULK_WRITE_BYTES);
    let started = clock::now();
    let mut sent = 0u64;
    while clock::now().duration_since(started) < length {
        stream.write_all(&chunk)?;
        sent += chunk.len() as u64;
    }
    stream.shutdown(Shutdown::Write)?;
    let mut confirmed = [0; 8];
    stream.read_exact(&mut confirmed)?;
    let took = clock::now().duration_since(started);
    let received = u64::from_be_bytes(confirmed);
    if received != sent {
        return Err(std::io::Error::other(format!("{sent} bytes were sent, {received} arrived")));
    }
    Ok((sent, took))
}

fn connections(target: SocketAddr, size: usize, concurrency: usize, length: Duration) -> Measured {
    let mut all = Tally::default();
    // Time runs from the end of the first connection on: a first handshake is not a rate.
    if let Err(error) = once(target, &payload(size), &mut vec![0; size]) {
        all.fail(&error);
        return all.finish(length.as_secs_f64());
    }
    all.warm_up += 1;
    let count_from = clock::now() + WARM_UP;
    let end = count_from + length;
    let workers: Vec<_> = (0..concurrency)
        .map(|_| thread::spawn(move || connect_until(target, size, count_from, end)))
        .collect();
    for worker in workers {
        match worker.join() {
            Ok(tally) => all.merge(tally),
            Err(_panic) => all.fail(&"a thread panicked"),
        }
    }
    all.finish(length.as_secs_f64())
}

fn connect_until(target: SocketAddr, size: usize, count_from: Instant, end: Instant) -> Tally {
    let mut tally = Tally::default();
    let request = payload(size);
    let mut answer = vec![0; size];
    loop {
        let started = clock::now();
        if started >= end || tally.error_count >= FAILURES_MAX {
            return tally;
        }
        match once(target, &request, &mut answer) {
            Ok(()) => tally.add(started, count_from),
            Err(error) => tally.fail(&error),
        }
    }
}

fn once(target: SocketAddr, request: &[u8], answer: &mut [u8]) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(target)?;
    stream.write_all(request)?;
    stream.read_exact(answer)?;
    if answer != request {
        return Err(std::io::Error::other("other bytes came back"));
    }
    Ok(())
}

fn idle(target: SocketAddr, count: usize) -> Result<ExitCode> {
    allow_many_open_files()?;
    let mut tally = Tally::default();
    let mut held = Vec::with_capacity(count);
    let begun = clock::now();
    for _ in 0..count {
        let started = clock::now();
        let opened = connect(target).and_then(|mut stream| {
            stream.write_all(b"w")?;
            stream.read_exact(&mut [0])?;
            Ok(stream)
        });
        match opened {
            Ok(stream) => {
                tally.add(started, begun);
                held.push(stream);
            }
            Err(error) => tally.fail(&error),
        }
        if tally.error_count >= FAILURES_MAX {
            break;
        }
    }
    let took = clock::now().duration_since(begun).as_secs_f64();
    println!("{}", serde_json::to_string(&tally.finish(took))?);
    let mut end = Vec::new();
    std::io::stdin().read_to_end(&mut end).context("cannot wait for the end of standard input")?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_nearest_rank() {
        let hundred: Vec<u32> = (1..=100).map(|n| n * 1000).collect();
        for (sorted, percent, expected) in
            [(&hundred[..], 50, 50.0), (&hundred, 99, 99.0), (&hundred[..1], 99, 1.0), (&[], 50, 0.0)]
        {
            assert!((percentile_us(sorted, percent) - expected).abs() < f64::EPSILON, "p{percent}");
        }
    }

    #[test]
    fn a_run_that_measured_nothing_is_an_error() {
        assert_eq!(Tally::default().finish(1.0).error_count, 1);
    }
}
