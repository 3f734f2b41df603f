//! The admin socket: inherited from whoever started the process, or bound here.

use std::net::TcpListener;

use listenfd::ListenFd;

use super::{Error, Settings};

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
