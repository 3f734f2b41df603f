//! Does the fast path keep its promises on this kernel? Asked once at start, before any pod is caught.
//!
//! Each probe runs the real programs on a throw-away pair of sockets in a throw-away network namespace with two
//! addresses (TEST-NET-1, RFC 5737). For that long the programs are attached to the agent's own control group, where they
//! know no other namespace than this one. A kernel is never judged by its version.
//!
//! Reading order: [`run`], then [`cases`].

mod arena;
mod cases;

use mesh_common::Event;

use super::{Error, Kernel};

/// The probe that the agent can mend where the kernel lets a BPF LSM program load.
const SPLICE: &str = "splice";

/// Probes whose failure concerns only programs that use their sockets in a certain way, and what that way is. A pod whose owner
/// vouches that it does not (label `weft.dev/splice: enabled`) may be spliced all the same.
pub const VOUCHABLE: [(&str, &str); 3] = [
    (SPLICE, "splice(2) from a socket waits for ever"),
    ("blocking_read", "a blocking read can answer EAGAIN when the connection's state changes under it"),
    ("fionread_demoted", "FIONREAD does not count bytes behind a demotion"),
];

/// Whether the event tells of a probe's connection. Such events stay in the ring until somebody reads it, among those
/// of real connections; nobody shall count them.
pub fn is_of_probe(event: &Event) -> bool {
    event.source == arena::CLIENT
}

/// One answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeResult {
    /// Stable name, used as metric label.
    pub name: &'static str,
    /// What went wrong; `None`: passed.
    pub failure: Option<String>,
}

/// Runs all probes. Takes about a second, and at most a few when something hangs.
///
/// # Errors
/// The throw-away pair could not be set up; the fast path must then stay off.
pub fn run(kernel: &mut Kernel) -> Result<Vec<ProbeResult>, Error> {
    if !kernel.offsets().are_complete() {
        return Err(Error::Btf(
            "the fields that the fast path reads are not in this kernel's BTF".to_owned(),
        ));
    }
    let first = in_arena(kernel, cases::all().collect())?;
    if first.iter().all(|result| result.name != SPLICE || result.failure.is_none()) {
        return Ok(first);
    }
    // The kernel's own splice(2) misses redirected bytes. Refuse it on such sockets, and ask again.
    if let Err(error) = kernel.attach_splice_guard() {
        tracing::warn!(error = ?error, "splice(2) cannot be refused on spliced sockets");
        return Ok(first);
    }
    let again = in_arena(kernel, cases::all().filter(|case| case.name() == SPLICE).collect())?;
    Ok(first.into_iter().filter(|result| result.name != SPLICE).chain(again).collect())
}

/// Runs cases on a thread of its own: it moves into the throw-away namespace and never comes back.
fn in_arena(kernel: &mut Kernel, cases: Vec<cases::Case>) -> Result<Vec<ProbeResult>, Error> {
    std::thread::scope(|scope| {
        let probing = std::thread::Builder::new().name("probes".into()).spawn_scoped(scope, || {
            let arena = arena::Arena::set_up(kernel)?;
            Ok(cases.iter().map(|case| case.judge(&arena)).collect())
        });
        let probing = probing.map_err(|source| Error::Call { call: "starting a thread", source })?;
        probing.join().unwrap_or_else(|_panic| Err(Error::Btf("a probe panicked".to_owned())))
    })
}
