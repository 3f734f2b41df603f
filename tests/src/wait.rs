//! Patience: what a test waits for, and for how long.

use std::thread;
use std::time::{Duration, Instant};

/// How long things of the mesh may take that happen "at once": a file noticed, a record written, a map filled.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// How often a condition is looked at.
const STEP: Duration = Duration::from_millis(10);

/// The time.
#[expect(clippy::disallowed_methods, reason = "the agent's clock is not the tests' clock")]
pub fn now() -> Instant {
    Instant::now()
}

/// Waits until `condition` gives something, and gives that.
///
/// # Panics
/// When it does not within [`PATIENCE`]; `what` says what was waited for.
#[track_caller]
pub fn eventually<T>(what: &str, condition: impl FnMut() -> Option<T>) -> T {
    within(PATIENCE, what, condition)
}

/// [`eventually`] with a patience of its own.
///
/// # Panics
/// When the condition gives nothing within `patience`.
#[track_caller]
pub fn within<T>(patience: Duration, what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = now() + patience;
    loop {
        if let Some(found) = condition() {
            return found;
        }
        assert!(now() < deadline, "waited {patience:?} in vain: {what}");
        thread::sleep(STEP);
    }
}
