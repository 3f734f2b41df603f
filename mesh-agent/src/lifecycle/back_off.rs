//! How long to wait before something is tried again: drawn at random, so that a thousand agents that lost the same server do
//! not come back to it at once.

use std::time::Duration;

/// The pause after the `failures`-th failure in a row (the first is 1): half to whole of a length that begins at `first` and
/// doubles up to `longest`.
pub fn after_failures(first: Duration, longest: Duration, failures: u32) -> Duration {
    half_to_whole(first.saturating_mul(1 << failures.saturating_sub(1).min(10)).min(longest))
}

/// Between half and whole of it.
pub fn half_to_whole(pause: Duration) -> Duration {
    pause.mul_f64(0.5 + fastrand::f64() / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_half_a_minute_and_differ() {
        let back_off = |failures| after_failures(Duration::from_secs(1), Duration::from_secs(30), failures);
        for (failures, longest) in [(1, 1), (2, 2), (5, 16), (6, 30), (1000, 30)] {
            let pauses: Vec<_> = (0..100).map(|_| back_off(failures)).collect();
            let longest = Duration::from_secs(longest);
            assert!(pauses.iter().all(|pause| *pause <= longest && *pause >= longest / 2), "{failures}");
            assert!(pauses.iter().any(|pause| *pause != pauses[0]), "{failures}");
        }
    }
}
