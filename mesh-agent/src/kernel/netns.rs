//! A pod's network namespace, and how to act inside it for a moment.

use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};

use super::{Error, sys};

/// `SO_NETNS_COOKIE` (include/uapi/asm-generic/socket.h, kernel 5.14).
const SO_NETNS_COOKIE: libc::c_int = 71;

/// An idle peer is asked for a sign of life after this long, then every [`KEEPALIVE_INTERVAL`].
pub const KEEPALIVE_AFTER: Duration = Duration::from_secs(60);
/// See [`KEEPALIVE_AFTER`].
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// Sent data unacknowledged for this long ends the connection (RFC 5482; `TCP_USER_TIMEOUT`). It also bounds keep-alive.
pub const USER_TIMEOUT: Duration = Duration::from_secs(90);

/// A network namespace. Cheap to clone; keeps the namespace alive.
#[derive(Clone, Debug)]
pub struct Netns {
    file: Arc<File>,
    cookie: u64,
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Netns {
    /// Opens the namespace behind `path` (a bind mount as `ip netns` makes, or `/proc/PID/ns/net`).
    ///
    /// # Errors
    /// It is not there or not a network namespace.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let file = File::open(path).map_err(|source| Error::Open {
            what: "network namespace",
            path: path.to_owned(),
            source,
        })?;
        let mut netns = Self { file: Arc::new(file), cookie: 0 };
        let socket = netns
            .enter(|| Socket::new(Domain::UNIX, Type::DGRAM, None))?
            .map_err(|source| Error::Call { call: "socket", source })?;
        netns.cookie = sys::socket_option(socket.as_fd(), libc::SOL_SOCKET, SO_NETNS_COOKIE)
            .map_err(|source| Error::Call { call: "getsockopt(SO_NETNS_COOKIE)", source })?;
        Ok(netns)
    }

    /// The kernel's number for it; never used twice while the machine is up.
    pub fn cookie(&self) -> u64 {
        self.cookie
    }

    /// Runs `work` with the calling thread inside the namespace. Sockets opened there stay there. Must not await.
    ///
    /// # Errors
    /// The namespace cannot be entered. When the way back fails the process aborts: a thread in the wrong namespace
    /// would open sockets with another pod's identity.
    pub fn enter<T>(&self, work: impl FnOnce() -> T) -> Result<T, Error> {
        let home = home()?;
        setns(self.as_fd(), CloneFlags::CLONE_NEWNET)
            .map_err(|errno| Error::Call { call: "setns", source: errno.into() })?;
        let result = work();
        if let Err(errno) = setns(home, CloneFlags::CLONE_NEWNET) {
            tracing::error!(%errno, "cannot leave a pod's network namespace");
            std::process::abort();
        }
        Ok(result)
    }

    /// The addresses that are configured in it.
    ///
    /// # Errors
    /// The namespace cannot be entered or read.
    pub fn addresses(&self) -> Result<Vec<IpAddr>, Error> {
        let all = self
            .enter(nix::ifaddrs::getifaddrs)?
            .map_err(|errno| Error::Call { call: "getifaddrs", source: errno.into() })?;
        Ok(all
            .filter_map(|interface| {
                let address = interface.address?;
                let v4 = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
                v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
            })
            .collect())
    }

    /// A TCP socket in the namespace with the agent's options.
    ///
    /// # Errors
    /// The namespace is gone, or there are no descriptors left.
    pub fn tcp_socket(&self, v6: bool) -> io::Result<Socket> {
        let domain = if v6 { Domain::IPV6 } else { Domain::IPV4 };
        let socket = self
            .enter(|| Socket::new(domain, Type::STREAM, Some(Protocol::TCP)))
            .map_err(io::Error::other)??;
        socket.set_nonblocking(true)?;
        set_stream_options(&socket)?;
        Ok(socket)
    }
}

/// Options of every TCP socket of the agent; on a listener they are inherited by what it accepts.
///
/// # Errors
/// The kernel refuses one.
pub fn set_stream_options(socket: &Socket) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(
        &TcpKeepalive::new().with_time(KEEPALIVE_AFTER).with_interval(KEEPALIVE_INTERVAL),
    )?;
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))
}

/// The thread's own namespace, opened once per thread.
fn home() -> Result<Arc<File>, Error> {
    thread_local! {
        static HOME: std::cell::OnceCell<Arc<File>> = const { std::cell::OnceCell::new() };
    }
    HOME.with(|home| {
        if let Some(file) = home.get() {
            return Ok(file.clone());
        }
        let path = Path::new("/proc/thread-self/ns/net");
        let file = Arc::new(File::open(path).map_err(|source| Error::Open {
            what: "network namespace",
            path: path.to_owned(),
            source,
        })?);
        Ok(home.get_or_init(|| file).clone())
    })
}
