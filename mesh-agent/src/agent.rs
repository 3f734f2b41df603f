//! The wiring: which rooms a process has, in which order they start, and how they end.
//!
//! Layer 8. Everything here is done once per process; nothing here is on a connection's path.
//!
//! Reading order: [`process`] (what every long-running process has), [`windows`] (what it shows of the mesh),
//! [`node`] (a node's agent), [`trust`] (its wait for the trust bundle), [`standby`] (its wait for its turn), [`control`] (the
//! control plane).
#![forbid(unsafe_code)]

pub mod control;
pub mod node;
pub mod process;
mod standby;
mod trust;
pub mod windows;

use std::io;

use crate::{admin, discovery, identity, kernel, proxy, telemetry};

/// Why a process could not do its task.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Log, metrics or access records.
    #[error("telemetry cannot start")]
    Telemetry(#[from] telemetry::Error),
    /// The read-only windows.
    #[error("the admin server cannot start")]
    Admin(#[from] admin::Error),
    /// The mesh's objects.
    #[error("the mesh's objects cannot be read")]
    Discovery(#[from] discovery::Error),
    /// The Kubernetes API.
    #[error("the Kubernetes API cannot be asked")]
    Access(#[from] discovery::access::Unreachable),
    /// The certificate authority.
    #[error("the control plane cannot run")]
    Control(#[from] crate::control::Error),
    /// The kernel side.
    #[error("the kernel programs cannot be dealt with")]
    Kernel(#[from] kernel::Error),
    /// Where control groups are mounted.
    #[error("the control groups of this node cannot be found")]
    Cgroups(#[source] io::Error),
    /// Certificates.
    #[error("identity cannot start")]
    Identity(#[from] identity::Error),
    /// The threads that carry connections.
    #[error("the workers cannot start")]
    Proxy(#[from] proxy::worker::Error),
    /// The runtime or its signal handlers.
    #[error("the runtime cannot start")]
    Runtime(#[source] io::Error),
}
