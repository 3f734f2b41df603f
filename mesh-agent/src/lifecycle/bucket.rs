//! How often may something be done? A token bucket: so many times at once, so many times a second. Pure: time is an argument.

use std::time::Instant;

/// One bucket.
#[derive(Debug)]
pub struct Bucket {
    tokens: f64,
    filled_at: Instant,
}

impl Bucket {
    /// One that holds all it can.
    pub fn full(burst: f64, now: Instant) -> Self {
        Self { tokens: burst, filled_at: now }
    }

    /// Takes one token; false when there is none.
    pub fn take(&mut self, burst: f64, per_second: f64, now: Instant) -> bool {
        let elapsed = now.saturating_duration_since(self.filled_at);
        self.tokens = (self.tokens + elapsed.as_secs_f64() * per_second).min(burst);
        self.filled_at = now;
        let admitted = self.tokens >= 1.0;
        if admitted {
            self.tokens -= 1.0;
        }
        admitted
    }
}
