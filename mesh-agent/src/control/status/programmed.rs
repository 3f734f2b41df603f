//! On how many nodes a version is in force: what is said of it, and when something else is said. Pure.
//!
//! Nodes come in one by one, and a leader that has just begun has heard of none. Numbers that are written already stay
//! until there is something better to say.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use super::conditions::Wanted;
use crate::control::reports::Count;

/// The condition on our own kinds.
pub(super) const PROGRAMMED: &str = "Programmed";
/// The same on routes, whose conditions are Gateway API's.
pub(super) const ON_ROUTES: &str = "weft.dev/Programmed";

/// Fields of the status of our own kinds: nodes that have it, and all.
pub(super) const READY: &str = "nodesReady";
pub(super) const TOTAL: &str = "nodesTotal";

/// Time between two writes of an object's numbers while more nodes are awaited.
const STEP: Duration = Duration::from_secs(5);
/// How long a new leader lets stand what an earlier one has written, at most: as long as a node may be silent. Nodes notice
/// with their next report that the leader is gone, and may have to wait for connections to one that died.
pub(super) const SETTLED_AFTER: Duration = Duration::from_secs(60);

const TRUE: &str = "Programmed";
const PENDING: &str = "Pending";
const INVALID: &str = "Invalid";

/// What is said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Said {
    is_true: bool,
    reason: String,
    message: String,
    /// Nodes that have it, and all. `None`: not written.
    nodes: Option<(u64, u64)>,
}

impl Said {
    /// Of a version that is on so many nodes. One that is refused is on none as it was written.
    pub(super) fn new(count: &Count, is_refused: bool) -> Self {
        let number = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        let nodes = Some((number(count.ready), number(count.total)));
        let said =
            |is_true, reason: &str, message| Self { is_true, reason: reason.to_owned(), message, nodes };
        let of_all = format!("in force on {} of {} nodes", count.ready, count.total);
        match count.total - count.ready {
            _ if is_refused => {
                said(false, INVALID, "this version is not in force as it was written".to_owned())
            }
            _ if count.total == 0 => said(false, PENDING, "no node has an agent".to_owned()),
            0 => said(true, TRUE, of_all),
            lacking => said(false, PENDING, format!("{of_all}; not on {}", named(&count.lacking, lacking))),
        }
    }

    /// What an object says now of this generation, in these conditions and in the status as a whole.
    pub(super) fn present(
        conditions: &Value,
        kind: &str,
        generation: Option<i64>,
        status: &Value,
    ) -> Option<Self> {
        let conditions = conditions.as_array()?;
        let is_meant = |one: &&Value| one["type"] == kind && one["observedGeneration"].as_i64() == generation;
        let one = conditions.iter().find(is_meant)?;
        Some(Self {
            is_true: one["status"] == "True",
            reason: one["reason"].as_str()?.to_owned(),
            message: one["message"].as_str()?.to_owned(),
            nodes: status[READY].as_u64().zip(status[TOTAL].as_u64()),
        })
    }

    pub(super) fn condition(&self, kind: &'static str) -> Wanted {
        Wanted::new(kind, self.is_true, &self.reason, self.message.clone())
    }

    /// Puts the numbers into a status.
    pub(super) fn write(&self, status: &mut Map<String, Value>) {
        if let Some((ready, total)) = self.nodes {
            status.insert(READY.to_owned(), json!(ready));
            status.insert(TOTAL.to_owned(), json!(total));
        }
    }

    /// As [`Said::present`], where another reason has the condition for itself: then only the numbers count.
    pub(super) fn numbers_only(self) -> Self {
        Self { reason: PENDING.to_owned(), ..self }
    }

    /// True for what is said here, as opposed to other reasons of the same condition.
    fn is_about_nodes(&self) -> bool {
        [TRUE, PENDING, INVALID].contains(&self.reason.as_str())
    }
}

fn named(lacking: &[Arc<str>], count: usize) -> String {
    let names = lacking.join(", ");
    match count - lacking.len() {
        0 => names,
        more => format!("{names} and {more} more"),
    }
}

/// These fields of a status; `None`: they are there already. Numbers that are not there are no reason by themselves: an API
/// server that has an older definition of the kind drops them.
pub(super) fn differing(present: &Value, fields: Map<String, Value>) -> Option<Value> {
    let is_dropped = |name: &str| [READY, TOTAL].contains(&name) && present[name].is_null();
    let differs = fields.iter().any(|(name, value)| present[name] != *value && !is_dropped(name));
    differs.then_some(Value::Object(fields))
}

/// When something else may be said.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// The leader has begun long enough ago, or has heard of every node.
    pub(super) is_settled: bool,
    /// When this object's status was written last, by this leader.
    pub(super) written_at: Option<Instant>,
    pub(super) now: Instant,
}

impl Pace {
    /// What is said next, and whether that is less than what is known.
    pub(super) fn next(self, present: Option<Said>, known: Said) -> (Said, bool) {
        let is_recent = self.written_at.is_some_and(|at| self.now.saturating_duration_since(at) < STEP);
        match present {
            Some(present)
                if present != known
                    && known.reason == PENDING
                    && present.is_about_nodes()
                    && (is_recent || !self.is_settled) =>
            {
                (present, true)
            }
            _ => (known, false),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lifecycle::clock;

    fn count(ready: usize, total: usize, lacking: &[&str]) -> Count {
        Count { ready, total, lacking: lacking.iter().map(|name| (*name).into()).collect() }
    }

    fn pending(ready: usize) -> Said {
        Said::new(&count(ready, 3, &["n"]), false)
    }

    #[test]
    fn what_is_said_names_numbers_and_nodes() {
        for (count, is_refused, expected) in [
            (count(3, 3, &[]), false, (true, "Programmed", "in force on 3 of 3 nodes")),
            (count(2, 3, &["c"]), false, (false, "Pending", "in force on 2 of 3 nodes; not on c")),
            (
                count(1, 9, &["a", "b", "c"]),
                false,
                (false, "Pending", "in force on 1 of 9 nodes; not on a, b, c and 5 more"),
            ),
            (count(0, 0, &[]), false, (false, "Pending", "no node has an agent")),
            (
                count(0, 3, &["a", "b", "c"]),
                true,
                (false, "Invalid", "this version is not in force as it was written"),
            ),
        ] {
            let said = Said::new(&count, is_refused);
            assert_eq!((said.is_true, said.reason.as_str(), said.message.as_str()), expected);
        }
    }

    #[test]
    fn what_was_written_is_read_again_for_its_generation_only() {
        let said = Said::new(&count(2, 3, &["c"]), false);
        let mut status = Map::new();
        said.write(&mut status);
        let condition = json!([{"type": PROGRAMMED, "status": "False", "reason": "Pending", "observedGeneration": 4,
            "message": "in force on 2 of 3 nodes; not on c"}]);
        let status = Value::Object(status);
        assert_eq!(Said::present(&condition, PROGRAMMED, Some(4), &status), Some(said));
        assert_eq!(Said::present(&condition, PROGRAMMED, Some(5), &status), None);
        assert_eq!(Said::present(&condition, ON_ROUTES, Some(4), &status), None);
        assert_eq!(Said::present(&Value::Null, PROGRAMMED, Some(4), &status), None);
    }

    #[test]
    fn numbers_that_the_api_server_drops_are_not_written_for_ever() {
        let fields = |ready: u64| -> Map<String, Value> {
            [("conditions".to_owned(), json!([])), (READY.to_owned(), json!(ready))].into_iter().collect()
        };
        assert_eq!(differing(&json!({"conditions": []}), fields(2)), None);
        assert_eq!(differing(&json!({"conditions": [], "nodesReady": 2}), fields(2)), None);
        assert!(differing(&json!({"conditions": [], "nodesReady": 1}), fields(2)).is_some());
        assert!(differing(&json!({}), fields(2)).is_some());
    }

    #[test]
    fn a_new_leader_lets_stand_what_is_written_until_it_has_heard_of_all() {
        let now = clock::now();
        let all = Said::new(&count(3, 3, &[]), false);
        let unsettled = Pace { is_settled: false, written_at: None, now };
        assert_eq!(unsettled.next(Some(all.clone()), pending(0)), (all.clone(), true));
        assert_eq!(unsettled.next(Some(pending(2)), pending(1)), (pending(2), true));
        assert_eq!(unsettled.next(Some(pending(2)), all.clone()), (all.clone(), false), "all have it");
        assert_eq!(
            unsettled.next(None, pending(0)),
            (pending(0), false),
            "nothing is said of this version yet"
        );
        let settled = Pace { is_settled: true, ..unsettled };
        assert_eq!(settled.next(Some(all), pending(2)), (pending(2), false), "a node is away");
    }

    #[test]
    fn numbers_that_grow_are_written_every_five_seconds_and_the_last_at_once() {
        let now = clock::now();
        let pace = |seconds| Pace {
            is_settled: true,
            written_at: Some(now),
            now: now + Duration::from_secs(seconds),
        };
        assert_eq!(pace(4).next(Some(pending(1)), pending(2)), (pending(1), true));
        assert_eq!(pace(5).next(Some(pending(1)), pending(2)), (pending(2), false));
        assert_eq!(pace(1).next(Some(pending(1)), pending(1)), (pending(1), false), "nothing is held back");
        let all = Said::new(&count(3, 3, &[]), false);
        assert_eq!(pace(0).next(Some(pending(2)), all.clone()), (all, false));
        let refused = Said::new(&count(0, 3, &["n"]), true);
        assert_eq!(pace(0).next(Some(pending(2)), refused.clone()), (refused, false));
    }

    #[test]
    fn other_reasons_of_the_condition_are_not_kept() {
        let now = clock::now();
        let fault = Said { reason: "CertificateAuthority".to_owned(), ..pending(2) };
        let unsettled = Pace { is_settled: false, written_at: Some(now), now };
        assert_eq!(unsettled.next(Some(fault), pending(1)), (pending(1), false));
    }
}
