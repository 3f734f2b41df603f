//! The answering end. It says `listening` when it does, serves until its standard input ends, then says what it saw.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use serde::{Deserialize, Serialize};

use super::{ERRORS_TOLD_MAX, allow_many_open_files, payload, stay_on};
use crate::app::server;
use crate::app::server::answer::Answers;

/// Size of one read of a sink, in bytes: large enough that the system call does not count.
const SINK_READ_BYTES: usize = 256 * 1024;

/// `app bench-server`.
#[derive(Args)]
pub struct Options {
    /// Port, on all IPv4 addresses.
    #[arg(long)]
    port: u16,
    /// Stay on this CPU.
    #[arg(long)]
    cpu: Option<usize>,
    #[command(subcommand)]
    service: Service,
}

#[derive(Subcommand)]
enum Service {
    /// Answer each message of `size` bytes with itself.
    Echo {
        /// Message size, in bytes.
        #[arg(long)]
        size: usize,
        /// Threads that accept; each serves one connection at a time.
        #[arg(long, default_value_t = 1)]
        threads: usize,
    },
    /// Read to the end, then answer with the number of bytes (u64, network order).
    Sink,
    /// Answer one byte with itself, then hold the connection open.
    Idle,
    /// Answer HTTP requests, HTTP/1.1 or HTTP/2 as the client begins.
    Http {
        /// Bytes of every answer's body.
        #[arg(long)]
        size: usize,
    },
}

/// What a server saw.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Seen {
    /// Connections served to their end.
    pub connections: u64,
    /// Errors in all.
    pub error_count: u64,
    /// The first errors.
    pub errors: Vec<String>,
}

/// Serves.
pub fn run(options: &Options) -> Result<ExitCode> {
    stay_on(options.cpu)?;
    allow_many_open_files()?;
    if let Service::Http { size } = options.service {
        return serve_http(options.port, size);
    }
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, options.port))
        .with_context(|| format!("cannot listen on port {}", options.port))?;
    let (tell, told) = channel();
    start(Arc::new(listener), &options.service, &tell);
    println!("listening");
    let mut end = Vec::new();
    std::io::stdin().read_to_end(&mut end).context("cannot wait for the end of standard input")?;
    println!("{}", serde_json::to_string(&sum_up(&told))?);
    Ok(ExitCode::SUCCESS)
}

/// One loop, since every process of a bench stays on one CPU.
fn serve_http(port: u16, size: usize) -> Result<ExitCode> {
    let listener = server::bind(port)?;
    let answers = Arc::new(Answers::of_this_pod(Some(payload(size))));
    let service = server::Service::Http(Arc::clone(&answers));
    thread::spawn(move || server::Loop::new(&listener, &service)?.run());
    println!("listening");
    let mut end = Vec::new();
    std::io::stdin().read_to_end(&mut end).context("cannot wait for the end of standard input")?;
    let faults = answers.faults.load(Ordering::Relaxed);
    let seen = Seen {
        connections: answers.connections.load(Ordering::Relaxed),
        error_count: faults,
        errors: if faults > 0 { vec!["what a client sent was not HTTP".to_owned()] } else { Vec::new() },
    };
    println!("{}", serde_json::to_string(&seen)?);
    Ok(ExitCode::SUCCESS)
}

/// Adds up what the threads have told so far; they go on until the process ends.
fn sum_up(told: &Receiver<Result<(), String>>) -> Seen {
    let mut seen = Seen::default();
    for one in told.try_iter() {
        match one {
            Ok(()) => seen.connections += 1,
            Err(error) => {
                seen.error_count += 1;
                if seen.errors.len() < ERRORS_TOLD_MAX {
                    seen.errors.push(error);
                }
            }
        }
    }
    seen
}

fn start(listener: Arc<TcpListener>, service: &Service, tell: &Sender<Result<(), String>>) {
    let (threads, size) = match service {
        Service::Echo { size, threads } => (*threads, Some(*size)),
        Service::Sink => (4, None),
        Service::Http { .. } => return,
        Service::Idle => {
            let tell = tell.clone();
            thread::spawn(move || hold(&listener, &tell));
            return;
        }
    };
    for _ in 0..threads {
        let (listener, tell) = (Arc::clone(&listener), tell.clone());
        thread::spawn(move || {
            let mut buffer = vec![0; size.unwrap_or(SINK_READ_BYTES)];
            loop {
                let served = listener.accept().and_then(|(stream, _)| match size {
                    Some(_) => echo(stream, &mut buffer),
                    None => sink(stream, &mut buffer),
                });
                if tell.send(served.map_err(|error| error.to_string())).is_err() {
                    return;
                }
            }
        });
    }
}

/// Answers messages that fill the buffer until the client has finished.
fn echo(mut stream: TcpStream, buffer: &mut [u8]) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    while read_message(&mut stream, buffer)? {
        stream.write_all(buffer)?;
    }
    Ok(())
}

/// Reads one whole message; false at the end of the stream.
fn read_message(stream: &mut TcpStream, buffer: &mut [u8]) -> std::io::Result<bool> {
    let mut filled = 0;
    while filled < buffer.len() {
        match stream.read(&mut buffer[filled..])? {
            0 if filled == 0 => return Ok(false),
            0 => return Err(ErrorKind::UnexpectedEof.into()),
            read => filled += read,
        }
    }
    Ok(true)
}

fn sink(mut stream: TcpStream, buffer: &mut [u8]) -> std::io::Result<()> {
    let mut bytes = 0u64;
    loop {
        match stream.read(buffer)? {
            0 => return stream.write_all(&bytes.to_be_bytes()),
            read => bytes += read as u64,
        }
    }
}

fn hold(listener: &TcpListener, tell: &Sender<Result<(), String>>) {
    let mut held = Vec::new();
    loop {
        let one = listener.accept().and_then(|(mut stream, _)| {
            let mut byte = [0];
            stream.read_exact(&mut byte)?;
            stream.write_all(&byte)?;
            held.push(stream);
            Ok(())
        });
        if tell.send(one.map_err(|error| error.to_string())).is_err() {
            return;
        }
    }
}
