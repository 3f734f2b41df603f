//! The two ends of a round trip, each on one CPU: what a small request and its answer cost, and nothing else.

use std::io::{Read, Write};
use std::net::{Ipv6Addr, TcpListener, TcpStream};
use std::process::ExitCode;
use std::thread;

use anyhow::{Context, Result};
use clap::Args;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::clock;

/// Round trips before those that count: pairing, caches and windows settle.
const WARM_UP: usize = 300;

/// Largest message, in bytes.
const MESSAGE_BYTES_MAX: usize = 64 * 1024;

/// `demo-part pong`.
#[derive(Args)]
pub struct PongOptions {
    /// Port to listen on.
    #[arg(long)]
    port: u16,
    /// CPU to stay on.
    #[arg(long)]
    cpu: usize,
}

/// `demo-part ping`.
#[derive(Args)]
pub struct PingOptions {
    /// HOST:PORT of a pong.
    target: String,
    /// CPU to stay on.
    #[arg(long)]
    cpu: usize,
    /// Bytes in each direction.
    #[arg(long, default_value_t = 64)]
    bytes: usize,
    /// Round trips that count.
    #[arg(long, default_value_t = 1000)]
    count: usize,
    /// Keep the connection open until standard input ends.
    #[arg(long)]
    hold: bool,
}

/// What a ping measured.
#[derive(Serialize, Deserialize)]
pub struct Measured {
    /// The client's address.
    pub client: String,
    /// Median of the round trips, in nanoseconds.
    pub p50_ns: u64,
}

/// Answers until it is ended.
pub fn pong(options: &PongOptions) -> Result<ExitCode> {
    stay_on(options.cpu)?;
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, options.port))
        .with_context(|| format!("cannot listen on port {}", options.port))?;
    println!("ready");
    loop {
        let (stream, _) = listener.accept()?;
        // A client that is gone ends its thread.
        thread::spawn(move || send_back(stream));
    }
}

fn send_back(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; MESSAGE_BYTES_MAX];
    loop {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            return Ok(());
        }
        stream.write_all(&buffer[..count])?;
    }
}

/// Prints what was [`Measured`].
pub fn ping(options: &PingOptions) -> Result<ExitCode> {
    stay_on(options.cpu)?;
    let mut stream = TcpStream::connect(&options.target)
        .with_context(|| format!("cannot connect to {}", options.target))?;
    stream.set_nodelay(true)?;
    let client = stream.local_addr()?.to_string();
    let mut message = vec![0; options.bytes];
    let mut times_ns = Vec::with_capacity(options.count);
    for round in 0..WARM_UP + options.count {
        let start = clock::now();
        stream.write_all(&message)?;
        stream.read_exact(&mut message)?;
        let took = start.elapsed();
        if round >= WARM_UP {
            times_ns.push(u64::try_from(took.as_nanos())?);
        }
    }
    times_ns.sort_unstable();
    let p50_ns = times_ns.get(times_ns.len() / 2).copied().context("no round trip counts")?;
    println!("{}", serde_json::to_string(&Measured { client, p50_ns })?);
    if options.hold {
        std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The last CPU that this process may use: interrupts are most often handled on the first.
pub fn last_cpu() -> Result<usize> {
    let allowed = sched_getaffinity(Pid::from_raw(0)).context("cannot ask for the CPUs")?;
    let may_use = |cpu: &usize| allowed.is_set(*cpu).unwrap_or(false);
    (0..CpuSet::count()).rfind(may_use).context("there is no CPU")
}

/// Keeps this process, and the threads that it starts from now on, on one CPU.
fn stay_on(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu).with_context(|| format!("there is no CPU {cpu}"))?;
    sched_setaffinity(Pid::from_raw(0), &set).with_context(|| format!("cannot stay on CPU {cpu}"))
}
