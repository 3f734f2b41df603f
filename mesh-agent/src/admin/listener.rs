//! The admin socket: inherited from whoever started the process, or bound here.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use listenfd::ListenFd;

use super::{Error, Settings};

/// How often an address is tried that another agent has.
const TRY_EVERY: Duration = Duration::from_millis(50);

/// Where the windows are opened.
#[derive(Debug)]
pub enum Listener {
    /// Here.
    Open(TcpListener),
    /// At this address, once it is free.
    Later(SocketAddr),
}

impl From<TcpListener> for Listener {
    fn from(listener: TcpListener) -> Self {
        Self::Open(listener)
    }
}

impl Listener {
    /// Where.
    ///
    /// # Errors
    /// The socket has no address.
    pub fn address(&self) -> io::Result<SocketAddr> {
        match self {
            Self::Open(listener) => listener.local_addr(),
            Self::Later(address) => Ok(*address),
        }
    }

    /// Waits for the address where it is not free yet. On a runtime with I/O.
    pub(super) async fn open(self) -> io::Result<tokio::net::TcpListener> {
        match self {
            Self::Open(listener) => {
                listener.set_nonblocking(true)?;
                tokio::net::TcpListener::from_std(listener)
            }
            Self::Later(address) => loop {
                match tokio::net::TcpListener::bind(address).await {
                    Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                        tokio::time::sleep(TRY_EVERY).await;
                    }
                    opened => return opened,
                }
            },
        }
    }
}

/// The listener inherited by socket activation (sd_listen_fds(3)): the first descriptor, when `LISTEN_FDS` is set and
/// `LISTEN_PID` is unset or ours. `None` when nothing was inherited.
///
/// Clears both variables, so it has to be called before the process has a second thread, and once.
///
/// # Errors
/// Descriptors were announced and the first is not a TCP socket.
pub fn inherit() -> Result<Option<TcpListener>, Error> {
    ListenFd::from_env().take_tcp_listener(0).map_err(Error::Inherited)
}

/// Listens on the address of the settings.
///
/// # Errors
/// The address is taken or not ours.
pub fn bind(settings: &Settings) -> Result<TcpListener, Error> {
    let listen = settings.listen;
    TcpListener::bind(listen).map_err(|source| Error::Listen { listen, source })
}

/// The same beside another agent of this node, which has the address until it makes way.
///
/// # Errors
/// The address is not ours.
pub fn bind_when_free(settings: &Settings) -> Result<Listener, Error> {
    match bind(settings) {
        Err(Error::Listen { listen, source }) if source.kind() == io::ErrorKind::AddrInUse => {
            Ok(Listener::Later(listen))
        }
        bound => bound.map(Listener::Open),
    }
}
