//! How long to stay away. Every pause is drawn at random, so that a thousand agents that lost the same server do not
//! come back to it at once.

use std::time::Duration;

use crate::lifecycle::back_off;

/// The first pause after a failure is up to this long, and each further one up to twice the one before.
const FIRST: Duration = Duration::from_secs(1);

/// Longest pause. An API server that is back is noticed within it; a thousand agents with twelve kinds ask a server that
/// is not there about 550 times a second, which costs it nothing and each agent one packet a second.
const LONGEST: Duration = Duration::from_secs(30);

/// Longest that the API may keep us away with `Retry-After`.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(300);

/// Time between two looks for a kind that is not served.
const ABSENT: Duration = Duration::from_secs(60);

/// Pauses of one feed.
#[derive(Debug, Default)]
pub(super) struct Pace {
    failures: u32,
}

impl Pace {
    /// It works again.
    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }

    /// The pause after a failure: half to whole of a length that doubles, and not shorter than the API asks for.
    pub(super) fn after_failure(&mut self, retry_after: Option<Duration>) -> Duration {
        self.failures = self.failures.saturating_add(1);
        let pause = back_off::after_failures(FIRST, LONGEST, self.failures);
        match retry_after {
            Some(asked) => pause.max(asked.min(RETRY_AFTER_MAX).mul_f64(1.0 + fastrand::f64() / 4.0)),
            None => pause,
        }
    }

    /// Before a list that takes the place of a version that is too old: within a second, unless the list has not helped.
    pub(super) fn before_relist(&mut self) -> Duration {
        if self.failures > 0 {
            return self.after_failure(None);
        }
        self.failures = 1;
        FIRST.mul_f64(fastrand::f64() / 2.0)
    }

    /// Before another look for a kind that is not served.
    pub(super) fn before_look(&self) -> Duration {
        ABSENT.mul_f64(0.75 + fastrand::f64() / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_to_half_a_minute_and_begin_anew_after_success() {
        let mut pace = Pace::default();
        for longest in [1, 2, 4, 8, 16, 30, 30, 30] {
            let pause = pace.after_failure(None).as_secs_f64();
            assert!((f64::from(longest) / 2.0..=f64::from(longest)).contains(&pause), "{pause} of {longest}");
        }
        pace.reset();
        assert!(pace.after_failure(None) <= FIRST);
    }

    #[test]
    fn retry_after_is_never_undercut_and_never_kills_for_long() {
        let asked = Duration::from_secs(7);
        let pause = Pace::default().after_failure(Some(asked));
        assert!(pause >= asked && pause <= asked.mul_f64(1.25), "{pause:?}");
        assert!(Pace::default().after_failure(Some(Duration::MAX)) <= RETRY_AFTER_MAX.mul_f64(1.25));
    }

    #[test]
    fn the_first_relist_comes_within_a_second_and_further_ones_back_off() {
        let mut pace = Pace::default();
        assert!(pace.before_relist() < FIRST);
        assert!(pace.before_relist() >= FIRST, "the second failure in a row");
    }

    #[test]
    fn pauses_differ_from_agent_to_agent() {
        let pauses: std::collections::HashSet<_> =
            (0..20).map(|_| Pace::default().after_failure(None)).collect();
        assert!(pauses.len() > 10);
    }
}
