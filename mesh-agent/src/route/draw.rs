//! Which of a rule's backends takes the request?

use crate::model::RouteBackend;

/// Draws one backend, each in proportion to its weight. `None`: there is none, or all weigh 0 (then the answer is 500).
///
/// A backend that cannot be resolved is drawn like the others, so that its share of requests fails visibly and does not
/// move to its siblings.
pub fn draw<'a>(backends: &'a [RouteBackend], random: &mut fastrand::Rng) -> Option<&'a RouteBackend> {
    let total: u64 = backends.iter().map(|backend| u64::from(backend.weight)).sum();
    if total == 0 {
        return None;
    }
    let mut left = random.u64(..total);
    backends.iter().find(|backend| {
        let weight = u64::from(backend.weight);
        let hit = left < weight;
        left = left.saturating_sub(weight);
        hit
    })
}
