//! What time it is: the one caller of the clocks in this program.

use std::time::{Instant, SystemTime};

/// The monotonic clock.
#[expect(
    clippy::disallowed_methods,
    reason = "xtask does not link the agent, whose lifecycle::clock is meant"
)]
pub fn now() -> Instant {
    Instant::now()
}

/// The wall clock.
#[expect(
    clippy::disallowed_methods,
    reason = "xtask does not link the agent, whose lifecycle::clock is meant"
)]
pub fn wall() -> SystemTime {
    SystemTime::now()
}
