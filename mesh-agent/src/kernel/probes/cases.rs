//! The promises, one case each.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use mesh_common::pair;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::super::sys;
use super::arena::{Arena, Joined, PATIENCE};
use super::{ProbeResult, SPLICE};
use crate::lifecycle::clock;

/// Pairs that are opened, used and closed by [`churn`].
const CHURN: usize = 200;
/// A sender whose reader sleeps must be stopped before this many bytes: plain TCP stops at about 0.6 MiB with the default
/// buffers, and at most at the sum of the largest send (4 MiB) and receive (6 MiB) buffers.
const UNREAD_BYTES_MAX: usize = 10 << 20;

type Outcome = Result<(), String>;

/// One promise.
pub(super) struct Case {
    name: &'static str,
    check: fn(&Arena) -> Outcome,
}

impl Case {
    /// Its name.
    pub(super) fn name(&self) -> &'static str {
        self.name
    }

    /// Runs it.
    pub(super) fn judge(&self, arena: &Arena) -> ProbeResult {
        ProbeResult { name: self.name, failure: (self.check)(arena).err() }
    }
}

/// All of them.
pub(super) fn all() -> impl Iterator<Item = Case> {
    let case = |name, check| Case { name, check };
    [
        case("redirect", redirect as fn(&Arena) -> Outcome),
        case("order", order),
        case("slow_reader", slow_reader),
        case("eviction", eviction),
        case("half_close", half_close),
        case("close_unread", close_unread),
        case("fionread", fionread),
        case("fionread_demoted", fionread_demoted),
        case("blocking_read", blocking_read),
        case("edge_triggered", edge_triggered),
        case(SPLICE, splice),
        case("zerocopy", zerocopy),
        case("churn", churn),
    ]
    .into_iter()
}

fn say(what: &'static str) -> impl Fn(io::Error) -> String {
    move |error| format!("{what}: {error}")
}

fn expect_bytes(stream: &mut TcpStream, wanted: &[u8]) -> Outcome {
    let mut got = vec![0; wanted.len()];
    stream.read_exact(&mut got).map_err(say("read"))?;
    if got == wanted { Ok(()) } else { Err("the bytes arrived changed or in another order".to_owned()) }
}

/// Bytes take the short way at all, and arrive.
fn redirect(arena: &Arena) -> Outcome {
    let mut pair = arena.pair()?;
    pair.client.write_all(b"ping").map_err(say("write"))?;
    expect_bytes(&mut pair.server, b"ping")?;
    pair.server.write_all(b"pong").map_err(say("write"))?;
    expect_bytes(&mut pair.client, b"pong")?;
    match pair.record()?.bytes {
        [4, 4] => Ok(()),
        bytes => Err(format!("{bytes:?} bytes were redirected instead of [4, 4]")),
    }
}

/// A stream that falls back to TCP in its middle arrives in order.
fn order(arena: &Arena) -> Outcome {
    let mut pair = arena.pair()?;
    let sent = fill(&mut pair, UNREAD_BYTES_MAX)?;
    let record = pair.record()?;
    if record.state != pair::DEMOTED || record.bytes[0] == 0 {
        return Err(format!("no demotion after {sent} unread bytes (state {})", record.state));
    }
    drain_and_check(&mut pair, sent)
}

/// Back-pressure: the sender is stopped, and goes on once the reader reads.
fn slow_reader(arena: &Arena) -> Outcome {
    let mut pair = arena.pair()?;
    let sent = fill(&mut pair, UNREAD_BYTES_MAX)?;
    if sent >= UNREAD_BYTES_MAX {
        return Err(format!("a sender was not stopped before {sent} unread bytes"));
    }
    drain_and_check(&mut pair, sent)
}

/// A demoted sender leaves the sockmap without losing a byte either way.
fn eviction(arena: &Arena) -> Outcome {
    let mut pair = arena.pair()?;
    pair.server.write_all(b"before").map_err(say("write"))?;
    let sent = fill(&mut pair, UNREAD_BYTES_MAX)?;
    expect_bytes(&mut pair.client, b"before")?;
    pair.evict_client()?;
    drain_and_check(&mut pair, sent)?;
    pair.client.write_all(b"after").map_err(say("write"))?;
    expect_bytes(&mut pair.server, b"after")?;
    pair.server.write_all(b"answer").map_err(say("write"))?;
    expect_bytes(&mut pair.client, b"answer")
}

/// Writes numbered bytes until the socket takes no more or `max` is reached.
fn fill(pair: &mut Joined, max: usize) -> Result<usize, String> {
    pair.client.set_nonblocking(true).map_err(say("O_NONBLOCK"))?;
    let mut sent = 0;
    let full = loop {
        let chunk: Vec<u8> = (sent..sent + 16384).map(numbered).collect();
        match pair.client.write(&chunk) {
            Ok(length) => sent += length,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break Ok(sent),
            Err(error) => break Err(say("write")(error)),
        }
        if sent >= max {
            break Ok(sent);
        }
    };
    pair.client.set_nonblocking(false).map_err(say("O_NONBLOCK"))?;
    full
}

/// A period that divides neither a page nor a message.
fn numbered(position: usize) -> u8 {
    u8::try_from(position % 251).expect("below 251")
}

fn drain_and_check(pair: &mut Joined, sent: usize) -> Outcome {
    let wanted: Vec<u8> = (0..sent).map(numbered).collect();
    expect_bytes(&mut pair.server, &wanted)
}

/// `shutdown(SHUT_WR)` ends one direction after its last byte, and only that one.
fn half_close(arena: &Arena) -> Outcome {
    let mut pair = arena.pair()?;
    pair.client.write_all(b"question").map_err(say("write"))?;
    pair.client.shutdown(Shutdown::Write).map_err(say("shutdown"))?;
    let mut question = Vec::new();
    pair.server.read_to_end(&mut question).map_err(say("read to the end"))?;
    if question != b"question" {
        return Err("bytes before the end were lost".to_owned());
    }
    pair.server.write_all(b"answer").map_err(say("write"))?;
    expect_bytes(&mut pair.client, b"answer")
}

/// A peer that closes with unread bytes does not leave the other waiting.
fn close_unread(arena: &Arena) -> Outcome {
    let mut pair = arena.pair()?;
    pair.client.write_all(&[7; 1000]).map_err(say("write"))?;
    drop(std::mem::replace(&mut pair.server, pair.client.try_clone().map_err(say("dup"))?));
    match pair.client.read(&mut [0; 16]) {
        Ok(0) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(()),
        Ok(_) => Err("bytes came out of nowhere".to_owned()),
        Err(error) => Err(format!("the end of the connection was not seen: {error}")),
    }
}

/// `FIONREAD` counts what is waiting.
fn fionread(arena: &Arena) -> Outcome {
    let mut pair = arena.pair()?;
    pair.client.write_all(&[1; 1000]).map_err(say("write"))?;
    match sys::readable_len(pair.server.as_fd()).map_err(say("FIONREAD"))? {
        1000 => Ok(()),
        other => Err(format!("FIONREAD says {other} where 1000 bytes wait")),
    }
}

/// `FIONREAD` also counts what came over TCP after a demotion.
fn fionread_demoted(arena: &Arena) -> Outcome {
    let mut pair = arena.pair()?;
    let sent = fill(&mut pair, UNREAD_BYTES_MAX)?;
    let mut read = 0;
    while read < sent {
        let waiting = sys::readable_len(pair.server.as_fd()).map_err(say("FIONREAD"))?;
        if waiting == 0 {
            // The rest is in the sender's queue, or it is here and was not counted.
            pair.server.set_nonblocking(true).map_err(say("O_NONBLOCK"))?;
            return match pair.server.read(&mut [0; 1]) {
                Ok(1..) => Err("FIONREAD says 0 where bytes wait".to_owned()),
                _ => Ok(()),
            };
        }
        pair.server.read_exact(&mut vec![0; waiting]).map_err(say("read"))?;
        read += waiting;
    }
    Ok(())
}

/// A blocking read waits for bytes, whatever else happens to the connection: here the acknowledgement of a half-close.
fn blocking_read(arena: &Arena) -> Outcome {
    let Joined { mut client, mut server, .. } = arena.pair()?;
    client.write_all(b"question").map_err(say("write"))?;
    client.shutdown(Shutdown::Write).map_err(say("shutdown"))?;
    std::thread::scope(|scope| {
        scope.spawn(move || {
            std::thread::sleep(PATIENCE / 10);
            // A failure shows at the reader.
            let _ = server.write_all(b"answer");
        });
        expect_bytes(&mut client, b"answer")
    })
}

/// Every message wakes an edge-triggered reader.
fn edge_triggered(arena: &Arena) -> Outcome {
    let mut pair = arena.pair()?;
    pair.server.set_nonblocking(true).map_err(say("O_NONBLOCK"))?;
    let fail = |errno: nix::Error| format!("epoll: {errno}");
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(fail)?;
    epoll.add(&pair.server, EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, 1)).map_err(fail)?;
    for round in 0..3_u8 {
        pair.client.write_all(&[round; 64]).map_err(say("write"))?;
        let mut events = [EpollEvent::empty()];
        if epoll.wait(&mut events, EpollTimeout::from(1000_u16)).map_err(fail)? != 1 {
            return Err(format!("message {round} woke nobody"));
        }
        let mut buffer = [0; 64];
        pair.server.read_exact(&mut buffer).map_err(say("read"))?;
        match pair.server.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            other => return Err(format!("an empty queue answered {other:?}")),
        }
    }
    Ok(())
}

/// `splice(2)` from the socket moves redirected bytes, or is refused in the way on which programs fall back to reading.
fn splice(arena: &Arena) -> Outcome {
    let mut pair = arena.pair()?;
    pair.server.set_nonblocking(true).map_err(say("O_NONBLOCK"))?;
    pair.client.write_all(&[5; 1000]).map_err(say("write"))?;
    let (mut reader, writer) = io::pipe().map_err(say("pipe"))?;
    match sys::splice(pair.server.as_fd(), writer.as_fd(), 65536) {
        Ok(1000) => {
            let mut got = [0; 1000];
            reader.read_exact(&mut got).map_err(say("read"))?;
            if got == [5; 1000] { Ok(()) } else { Err("splice(2) moved other bytes".to_owned()) }
        }
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            expect_bytes(&mut pair.server, &[5; 1000])
        }
        other => Err(format!("splice(2) answered {other:?} where 1000 bytes wait")),
    }
}

/// `SO_ZEROCOPY` is refused on a spliced socket, where a completion would never come; set before the handshake it keeps the
/// socket out, and completions come.
fn zerocopy(arena: &Arena) -> Outcome {
    let pair = arena.pair()?;
    let set =
        |stream: &TcpStream| sys::set_socket_option(stream.as_fd(), libc::SOL_SOCKET, libc::SO_ZEROCOPY, 1);
    match set(&pair.client) {
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {}
        Ok(()) => return zerocopy_completes(pair),
        Err(error) => return Err(say("SO_ZEROCOPY")(error)),
    }
    let unpaired = arena
        .unpaired(|socket| sys::set_socket_option(socket.as_fd(), libc::SOL_SOCKET, libc::SO_ZEROCOPY, 1))?;
    zerocopy_completes(unpaired)
}

fn zerocopy_completes(mut pair: Joined) -> Outcome {
    let socket = socket2::SockRef::from(&pair.client);
    socket.send_with_flags(&[9; 32768], libc::MSG_ZEROCOPY).map_err(say("send"))?;
    expect_bytes(&mut pair.server, &[9; 32768])?;
    let deadline: Instant = clock::now() + PATIENCE / 4;
    while clock::now() < deadline {
        if sys::has_zerocopy_completion(pair.client.as_fd()) {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Err("the completion of a MSG_ZEROCOPY send never came".to_owned())
}

/// Pairs come and go without leaving anything behind.
fn churn(arena: &Arena) -> Outcome {
    for round in 0..CHURN {
        let mut pair = arena.pair().map_err(|error| format!("pair {round}: {error}"))?;
        pair.client.write_all(b"x").map_err(say("write"))?;
        expect_bytes(&mut pair.server, b"x")?;
    }
    Ok(())
}
