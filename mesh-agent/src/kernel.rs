//! Everything aya: the object file, its maps and links, probes and events. The only room with unsafe code, all of it in
//! [`sys`].
//!
//! Layer 3. It knows how to put programs and maps into the kernel and how to read them, and nothing about what the
//! values mean for a pod: that is `capture`'s. Nothing here is on a connection's path; the programs themselves are in
//! the crate `mesh-ebpf`.
//!
//! Reading order: [`turn`] (one agent at a time), [`cgroup`] (control groups as files), [`offsets`] (where the kernel keeps the fields that the programs read), [`load`] (object, pins, links),
//! [`maps`] (typed tables), [`events`], [`netns`] (visiting a pod's namespace), [`diag`] (whose a socket is), [`destroy`] (closing sockets by policy), [`hooks`] (whose programs are attached),
//! [`probes`] (does the fast path keep its promises on this kernel), [`sys`].

pub mod cgroup;
pub mod destroy;
pub mod diag;
pub mod events;
pub mod hooks;
pub mod load;
pub mod maps;
pub mod netns;
pub mod offsets;
pub mod probes;
mod sys;
pub mod turn;

use std::io;
use std::path::PathBuf;
use std::time::Duration;

pub use load::Kernel;
pub use maps::{Maps, Table};
pub use netns::Netns;

/// What the room needs to know.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The object file with the kernel programs (`weft.bpf.o`).
    pub object: PathBuf,
    /// Directory on a bpffs in which maps and links of this node are pinned.
    pub pin_dir: PathBuf,
    /// Control group (v2) below which pods live; programs attach here and nowhere above. `None`: it has to be found.
    pub cgroup: Option<PathBuf>,
    /// Age of the heartbeat from which new connections follow the pod's failure mode. Default 1 s.
    ///
    /// Too short: a busy machine looks like a dead agent. Too long: callers hang on a listener that nobody serves.
    pub heartbeat_age_max: Duration,
}

/// Gives memory back that loading has freed: once everything is loaded and probed, an idle agent needs none of it.
pub fn release_boot_memory() {
    sys::trim_heap();
}

/// What can go wrong between the agent and the kernel.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The object file cannot be read.
    #[error(
        "cannot read the kernel programs {path:?}; build them with `cargo xtask build-ebpf` or name them with --bpf-object"
    )]
    Object {
        /// File.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// A directory, namespace or control group cannot be opened.
    #[error("cannot open {what} {path:?}")]
    Open {
        /// What it is.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// The pin directory is not on a bpffs.
    #[error("{0:?} is not on a bpffs; mount one with `mount -t bpf bpf /sys/fs/bpf`")]
    NotBpffs(PathBuf),
    /// One agent of this node runs and another waits for its turn.
    #[error("two agents use {0:?} already; a third cannot join them")]
    TwoAgents(PathBuf),
    /// The kernel refused the programs or maps.
    #[error("the kernel refused the programs")]
    Load(#[from] Box<aya::EbpfError>),
    /// A program could not be loaded or attached.
    #[error("program {program}: {step} failed")]
    Program {
        /// Name.
        program: &'static str,
        /// What was tried.
        step: &'static str,
        /// Cause.
        #[source]
        source: Box<aya::programs::ProgramError>,
    },
    /// Something was expected in the object and is not there.
    #[error("the object has no {kind} named {name}; it was built from other sources than this agent")]
    Missing {
        /// Program or map.
        kind: &'static str,
        /// Name.
        name: &'static str,
    },
    /// The pinned maps belong to another version.
    #[error(
        "the maps pinned in {pin_dir:?} have layout version {found}, this agent needs {wanted}; remove them with `mesh-agent node --uninstall`"
    )]
    AbiVersion {
        /// Where.
        pin_dir: PathBuf,
        /// Version of the pins.
        found: u32,
        /// Version of this agent.
        wanted: u32,
    },
    /// A map operation failed.
    #[error("map {map}: {operation} failed")]
    Map {
        /// Name.
        map: &'static str,
        /// Insert, remove, ...
        operation: &'static str,
        /// Cause; `E2BIG` or `ENOSPC`: the map is full.
        #[source]
        source: io::Error,
    },
    /// The running kernel's type information cannot be used.
    #[error("kernel type information (BTF): {0}")]
    Btf(String),
    /// A system call failed.
    #[error("{call} failed")]
    Call {
        /// Name.
        call: &'static str,
        /// Cause.
        #[source]
        source: io::Error,
    },
}

impl From<aya::EbpfError> for Error {
    fn from(error: aya::EbpfError) -> Self {
        Self::Load(Box::new(error))
    }
}
