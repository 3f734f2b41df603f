//! Read-only windows on the agent, over HTTP: readiness, metrics, and what it believes about the mesh.
//!
//! Layer 6, beside the walk of a connection, never on it: the server has a thread and a runtime of its own, so a slow
//! reader costs the data path nothing. It changes nothing and hands out no key.
//!
//! Reading order: [`windows`] (what can be asked), [`views`] (the shapes of the answers), [`explain`] (why a connection
//! passes or not), [`server`] (HTTP), [`listener`] (bound here, or inherited).
#![forbid(unsafe_code)]

pub mod explain;
mod listener;
mod server;
pub mod views;
pub mod windows;

use std::io;
use std::net::SocketAddr;

pub use listener::{Listener, bind, bind_when_free, inherit};
pub use server::{Server, serve};
pub use windows::{Query, Refused, Windows};

#[cfg(test)]
mod tests;

/// Where the windows are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Address to listen on when no socket was inherited. Loopback unless the operator says otherwise: the windows show
    /// the whole mesh and ask nobody who they are.
    pub listen: SocketAddr,
}

impl Default for Settings {
    fn default() -> Self {
        Self { listen: SocketAddr::from(([127, 0, 0, 1], 15020)) }
    }
}

/// Why the windows cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address is taken or not ours.
    #[error("the admin address {listen} cannot be listened on; choose another with --admin-listen")]
    Listen {
        /// The address.
        listen: SocketAddr,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// LISTEN_FDS announces a socket and file descriptor 3 is not a TCP listener.
    #[error("LISTEN_FDS is set, but the first inherited file descriptor is not a TCP listener")]
    Inherited(#[source] io::Error),
    /// The server's thread or runtime did not start.
    #[error("the admin server did not start")]
    Start(#[source] io::Error),
}
