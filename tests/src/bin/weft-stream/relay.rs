//! A relay that forwards with splice(2) through a pipe, waiting with poll(2), the way Go's `io.Copy` does between two TCP
//! connections: where splice(2) answers EINVAL before anything was moved, it reads and writes instead.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use anyhow::Result;
use nix::poll::PollFlags;
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use serde::Serialize;

use crate::patient::wait;
use crate::report::error_name;

/// What one splice(2) asks for, in bytes, and the size that is wished for the pipe.
const PIPE_BYTES: usize = 1 << 20;

/// How long a relay waits for a socket; a test is over by then.
const PATIENCE: Duration = Duration::from_secs(60);

/// One direction's account.
#[derive(Debug, Default, Serialize)]
struct Moved {
    side: &'static str,
    peer: Option<String>,
    /// Bytes that went by splice(2).
    spliced: u64,
    /// Bytes that were read and written.
    copied: u64,
    error: Option<String>,
}

/// Relays until it is ended.
pub fn run(listener: TcpListener, target: SocketAddr) -> Result<ExitCode> {
    loop {
        let (client, _) = listener.accept()?;
        thread::spawn(move || match TcpStream::connect(target) {
            Ok(server) => both_ways(&client, &server),
            Err(error) => eprintln!("relay: {error}"),
        });
    }
}

fn both_ways(client: &TcpStream, server: &TcpStream) {
    for stream in [client, server] {
        let _ = stream.set_nodelay(true);
        let _ = stream.set_nonblocking(true);
    }
    thread::scope(|scope| {
        scope.spawn(|| print(forward(client, server, "relay-up")));
        scope.spawn(|| print(forward(server, client, "relay-down")));
    });
}

fn print(moved: Moved) {
    println!("{}", serde_json::to_string(&moved).expect("numbers and texts are JSON"));
}

/// One direction, to its end.
fn forward(from: &TcpStream, to: &TcpStream, side: &'static str) -> Moved {
    let mut moved =
        Moved { side, peer: from.peer_addr().ok().map(|peer| peer.to_string()), ..Moved::default() };
    let done = splice_all(from, to, &mut moved).and_then(|handled| {
        if !handled {
            copy_all(from, to, &mut moved)?;
        }
        to.shutdown(Shutdown::Write)
    });
    if let Err(error) = done {
        moved.error = Some(error_name(&error));
        let _ = to.shutdown(Shutdown::Both);
    }
    moved
}

/// Moves everything by splice(2). False when the kernel will not, and nothing has been moved.
fn splice_all(from: &TcpStream, to: &TcpStream, moved: &mut Moved) -> io::Result<bool> {
    let (out, into): (OwnedFd, OwnedFd) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    let _ = fcntl_setpipe_size(&into, PIPE_BYTES);
    loop {
        let held = match splice(from, None, &into, None, PIPE_BYTES, SpliceFlags::NONBLOCK) {
            Ok(0) => return Ok(true),
            Ok(held) => held,
            Err(Errno::AGAIN) => {
                ready(from, PollFlags::POLLIN)?;
                continue;
            }
            Err(Errno::INVAL) if moved.spliced == 0 => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        let mut left = held;
        while left > 0 {
            match splice(&out, None, to, None, left, SpliceFlags::NONBLOCK) {
                Ok(count) => left -= count,
                Err(Errno::AGAIN) => ready(to, PollFlags::POLLOUT)?,
                Err(error) => return Err(error.into()),
            }
        }
        moved.spliced += held as u64;
    }
}

fn copy_all(mut from: &TcpStream, mut to: &TcpStream, moved: &mut Moved) -> io::Result<()> {
    let mut buffer = vec![0; 32 << 10];
    loop {
        let count = match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                ready(from, PollFlags::POLLIN)?;
                continue;
            }
            Err(error) => return Err(error),
        };
        let mut sent = 0;
        while sent < count {
            match to.write(&buffer[sent..count]) {
                Ok(more) => sent += more,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready(to, PollFlags::POLLOUT)?,
                Err(error) => return Err(error),
            }
        }
        moved.copied += count as u64;
    }
}

fn ready(stream: &TcpStream, events: PollFlags) -> io::Result<()> {
    if wait(stream, events, PATIENCE)? { Ok(()) } else { Err(io::ErrorKind::TimedOut.into()) }
}
