//! The one clock of this program: writers and readers of a change are timed by it. Never wall time.

use std::time::Instant;

/// Now.
#[expect(
    clippy::disallowed_methods,
    reason = "this program does not link the agent, whose lifecycle::clock is meant"
)]
pub fn now() -> Instant {
    Instant::now()
}
