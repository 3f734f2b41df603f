//! Opens TCP connections: to a destination from the client's pod, and to the application inside its own pod.
//!
//! Stations 7 and 11 of the walk. [`application`] demands a [`Permit`]: there is no other way to the application. Socket
//! options are those of [`Pod::tcp_socket`]. It never retries an endpoint; choosing another is the caller's.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use socket2::Socket;
use tokio::net::TcpStream;

use crate::capture::{OriginTable, Pod};
use crate::model::{ClientAddr, Ending, EndpointAddr};
use crate::policy::Permit;

/// How often a port is drawn before the kernel is asked for one.
///
/// A pod with 14,000 open connections has half of [`DIAL_PORTS`] taken: 32 draws then miss once in 4,000 million times.
const DRAWS: usize = 32;

/// Ports from which the application is dialled: Linux's own choice (net.ipv4.ip_local_port_range), seldom listened on.
const DIAL_PORTS: RangeInclusive<u16> = 32_768..=60_999;

/// Connects to `destination` from inside the pod.
///
/// # Errors
/// How the connection ended before it began.
pub async fn from_pod(pod: &Pod, destination: SocketAddr, limit: Duration) -> Result<TcpStream, Ending> {
    let socket = pod.tcp_socket(destination.is_ipv6()).map_err(|error| ending_of(&error))?;
    finish(socket, destination, limit).await
}

/// A connection to the application, and what keeps its true client visible.
#[derive(Debug)]
pub struct Application {
    /// The socket.
    pub stream: TcpStream,
    shown: Shown,
}

impl Application {
    /// Socket and guard, for who owns the socket elsewhere. The guard must live as long as the connection.
    pub fn into_parts(self) -> (TcpStream, Shown) {
        (self.stream, self.shown)
    }
}

/// Connects to the application at `destination` from the pod's own loopback side, so that `accept` there tells `client`.
///
/// # Errors
/// How the connection ended before it began.
pub async fn application(
    _permit: &Permit,
    pod: &Arc<Pod>,
    origins: &Arc<dyn OriginTable>,
    destination: EndpointAddr,
    client: ClientAddr,
    limit: Duration,
) -> Result<Application, Ending> {
    let destination = destination.addr();
    let loopback = match destination {
        SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
        SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
    };
    let mut tries = 0;
    loop {
        tries += 1;
        let attempt = async {
            let socket = pod.tcp_socket(destination.is_ipv6())?;
            // Without it a port in TIME_WAIT cannot be bound; with it the kernel still refuses a 4-tuple that is in use.
            socket.set_reuse_address(true)?;
            socket.bind(&SocketAddr::new(loopback, draw_port(tries)).into())?;
            let local = socket.local_addr()?.as_socket().ok_or(io::ErrorKind::AddrNotAvailable)?;
            let shown = Shown::new(pod, origins, local, client)?;
            begin(&socket, destination)?;
            Ok::<_, io::Error>((socket, shown))
        };
        match attempt.await {
            Ok((socket, shown)) => {
                let stream = await_connected(socket, limit).await?;
                return Ok(Application { stream, shown });
            }
            // The port serves another connection, or is too fresh from one: draw again.
            Err(error)
                if tries <= DRAWS
                    && matches!(
                        error.kind(),
                        io::ErrorKind::AddrNotAvailable
                            | io::ErrorKind::AddrInUse
                            | io::ErrorKind::AlreadyExists
                    ) => {}
            Err(error) => return Err(ending_of(&error)),
        }
    }
}

/// The port for a try, the first being 1; 0, the kernel's choice, once the draws are used up.
///
/// The kernel's choice comes last, since it takes no port that any closed connection still holds in TIME_WAIT, although
/// binding such a port by number is allowed: after 12,000 connections within a minute its search took 5 ms for each, and once
/// all are held it finds none (`inet_csk_find_open_port`, net/ipv4/inet_connection_sock.c, Linux 6.18).
fn draw_port(tries: usize) -> u16 {
    if tries <= DRAWS { fastrand::u16(DIAL_PORTS) } else { 0 }
}

/// Says that a connection from `agent` speaks for a client, for as long as it lives.
#[derive(Debug)]
pub struct Shown {
    pod: Arc<Pod>,
    origins: Arc<dyn OriginTable>,
    agent: SocketAddr,
}

impl Shown {
    fn new(
        pod: &Arc<Pod>,
        origins: &Arc<dyn OriginTable>,
        agent: SocketAddr,
        client: ClientAddr,
    ) -> io::Result<Self> {
        origins.show_client(pod, agent, client)?;
        Ok(Self { pod: pod.clone(), origins: origins.clone(), agent })
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        self.origins.forget_client(&self.pod, self.agent);
    }
}

async fn finish(socket: Socket, destination: SocketAddr, limit: Duration) -> Result<TcpStream, Ending> {
    begin(&socket, destination).map_err(|error| ending_of(&error))?;
    await_connected(socket, limit).await
}

fn begin(socket: &Socket, destination: SocketAddr) -> io::Result<()> {
    match socket.connect(&destination.into()) {
        Err(error) if error.raw_os_error() == Some(Errno::EINPROGRESS as i32) => Ok(()),
        other => other,
    }
}

async fn await_connected(socket: Socket, limit: Duration) -> Result<TcpStream, Ending> {
    // Inside one kernel the handshake is over before `connect` returns: asking is cheaper than a wait and a timer.
    let connected = socket.peer_addr().is_ok();
    let stream = TcpStream::from_std(socket.into()).map_err(|error| ending_of(&error))?;
    if !connected {
        match tokio::time::timeout(limit, stream.writable()).await {
            Err(_elapsed) => return Err(Ending::ConnectTimeout),
            Ok(Err(error)) => return Err(ending_of(&error)),
            Ok(Ok(())) => {}
        }
        if let Some(error) = stream.take_error().map_err(|error| ending_of(&error))? {
            return Err(ending_of(&error));
        }
    }
    Ok(stream)
}

/// What a failed socket call means for the connection.
fn ending_of(error: &io::Error) -> Ending {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => Ending::ConnectRefused,
        // It was open already: a SYN is answered with "refused".
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Ending::ServerReset,
        io::ErrorKind::TimedOut => Ending::ConnectTimeout,
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable | io::ErrorKind::NetworkDown => {
            Ending::Unreachable
        }
        // File descriptors, ports, memory, map entries.
        _ => Ending::Exhausted,
    }
}
