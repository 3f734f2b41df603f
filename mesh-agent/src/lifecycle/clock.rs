//! The only caller of `now()`.

use std::time::{Instant, SystemTime};

/// Monotonic time, for durations. Follows tokio's clock, so tests can pause it.
#[expect(clippy::disallowed_methods, reason = "this is the one place")]
pub fn now() -> Instant {
    match tokio::runtime::Handle::try_current() {
        Ok(_) => tokio::time::Instant::now().into_std(),
        Err(_) => Instant::now(),
    }
}

/// Wall-clock time, for certificates and records.
#[expect(clippy::disallowed_methods, reason = "this is the one place")]
pub fn wall() -> SystemTime {
    SystemTime::now()
}

/// Wall-clock time as RFC 3339 with microseconds, UTC.
pub fn wall_rfc3339(at: SystemTime) -> String {
    jiff::Timestamp::try_from(at).map_or_else(|_| String::from("-"), |t| format!("{t:.6}"))
}
