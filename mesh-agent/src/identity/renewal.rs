//! When is a certificate renewed, and when is a failed request tried again?
//!
//! Pure: randomness and time are arguments.

use std::time::Duration;

/// First pause after a failed request.
const RETRY_FIRST: Duration = Duration::from_millis(100);

/// Longest pause between requests. A CA that comes back is found within it; 1,000 agents cost it 33 requests a second.
const RETRY_MAX: Duration = Duration::from_secs(30);

/// How long after receiving a certificate to ask for the next: two thirds of what is left of its lifetime, more or less
/// a tenth of that, so that pods that started together do not renew together. `draw` is uniform in 0..1.
pub(super) fn renew_after(remaining: Duration, draw: f64) -> Duration {
    remaining.mul_f64(2.0 / 3.0 * (0.9 + 0.2 * draw.clamp(0.0, 1.0)))
}

/// How long to wait after the `failures`-th failure in a row (the first is 1): 100 ms doubling to 30 s, less up to a
/// half. `draw` is uniform in 0..1.
pub(super) fn retry_after(failures: u32, draw: f64) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    let pause = RETRY_FIRST.saturating_mul(1 << doublings).min(RETRY_MAX);
    pause.mul_f64(1.0 - 0.5 * draw.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renewal_comes_at_two_thirds_more_or_less_a_tenth() {
        let day = Duration::from_secs(24 * 3600);
        for (draw, expected_hours) in [(0.0, 14.4), (0.5, 16.0), (1.0, 17.6), (7.0, 17.6)] {
            let hours = renew_after(day, draw).as_secs_f64() / 3600.0;
            assert!((hours - expected_hours).abs() < 0.001, "{draw}: {hours}");
        }
        assert!(renew_after(Duration::from_secs(3), 1.0) < Duration::from_millis(2201));
        assert_eq!(renew_after(Duration::ZERO, 0.3), Duration::ZERO);
    }

    #[test]
    fn retries_double_from_100_ms_to_30_s_with_jitter_downwards() {
        let cases = [(1, 100), (2, 200), (3, 400), (9, 25_600), (10, 30_000), (1_000_000, 30_000)];
        for (failures, pause_ms) in cases {
            assert_eq!(retry_after(failures, 0.0), Duration::from_millis(pause_ms), "{failures}");
            assert_eq!(retry_after(failures, 1.0), Duration::from_millis(pause_ms / 2), "{failures}");
        }
    }
}
