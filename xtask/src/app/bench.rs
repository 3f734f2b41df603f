//! The two ends of the benches' traffic: plain blocking sockets, one thread per connection, nothing else in the way; for
//! HTTP one thread for all connections.
//!
//! Files: [`client`] (measures), [`server`] (answers). Each pins itself where it is told, says its result as one line of
//! JSON on standard output, and counts every error it sees: what went wrong is part of the result, never left out.

pub mod client;

pub mod server;

use anyhow::{Context, Result};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::Pid;

/// What every payload is made of, so that a capture of the wire can tell whether it was sent in the clear.
pub const MARKER: &[u8] = b"weft-bench-plaintext-marker/";

/// Most errors that are told word for word; the rest are only counted.
const ERRORS_TOLD_MAX: usize = 5;

/// A payload of `size` bytes.
pub fn payload(size: usize) -> Vec<u8> {
    MARKER.iter().copied().cycle().take(size).collect()
}

/// Keeps this process, and all threads that it starts from now on, on one CPU.
fn stay_on(cpu: Option<usize>) -> Result<()> {
    let Some(cpu) = cpu else { return Ok(()) };
    let mut set = CpuSet::new();
    set.set(cpu).with_context(|| format!("there is no CPU {cpu}"))?;
    sched_setaffinity(Pid::from_raw(0), &set).with_context(|| format!("cannot stay on CPU {cpu}"))
}

/// Lets this process have as many files open as it may.
fn allow_many_open_files() -> Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("cannot read the limit of open files")?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("cannot raise the limit of open files")
}
