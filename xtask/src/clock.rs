//! What time it is: the one caller of the clock in this program.

use std::time::Instant;

/// The monotonic clock.
#[expect(
    clippy::disallowed_methods,
    reason = "xtask does not link the agent, whose lifecycle::clock is meant"
)]
pub fn now() -> Instant {
    Instant::now()
}
