//! How one list of conditions follows on another.

use std::time::SystemTime;

use serde_json::{Value, json};

/// Longest message that Kubernetes takes, in bytes.
const MESSAGE_LEN_MAX: usize = 32 * 1024;

/// One condition as it should be.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) kind: &'static str,
    pub(super) is_true: bool,
    pub(super) reason: String,
    pub(super) message: String,
    /// Since when it is known to be so; otherwise from now on.
    pub(super) since: Option<SystemTime>,
}

impl Wanted {
    pub(super) fn new(kind: &'static str, is_true: bool, reason: &str, message: impl Into<String>) -> Self {
        Self { kind, is_true, reason: reason.to_owned(), message: message.into(), since: None }
    }
}

/// The wanted conditions as JSON; one whose status is as before keeps its time.
pub(super) fn follow_on(
    present: &Value,
    wanted: &[Wanted],
    generation: Option<i64>,
    now: SystemTime,
) -> Value {
    let present = present.as_array().map(Vec::as_slice).unwrap_or_default();
    let all = wanted.iter().map(|wanted| {
        let status = if wanted.is_true { "True" } else { "False" };
        let before = present.iter().find(|one| one["type"] == wanted.kind && one["status"] == status);
        let kept = before.map(|one| one["lastTransitionTime"].clone()).filter(Value::is_string);
        let mut condition = json!({
            "type": wanted.kind,
            "status": status,
            "reason": wanted.reason,
            "message": shortened(&wanted.message),
            "lastTransitionTime": kept.unwrap_or_else(|| json!(rfc3339(wanted.since.unwrap_or(now)))),
        });
        if let Some(generation) = generation {
            condition["observedGeneration"] = json!(generation);
        }
        condition
    });
    all.collect()
}

/// In whole seconds, as Kubernetes writes times.
fn rfc3339(at: SystemTime) -> String {
    jiff::Timestamp::try_from(at)
        .map_or_else(|_| String::from("1970-01-01T00:00:00Z"), |at| format!("{at:.0}"))
}

fn shortened(message: &str) -> &str {
    let mut end = message.len().min(MESSAGE_LEN_MAX);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    &message[..end]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_condition_keeps_its_time_while_its_status_stays() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let accepted = |is_true, reason| [Wanted::new("Accepted", is_true, reason, "m")];
        let first = follow_on(&Value::Null, &accepted(true, "Accepted"), Some(1), at(10));
        assert_eq!(first[0]["lastTransitionTime"], "1970-01-01T00:00:10Z");
        assert_eq!((&first[0]["status"], &first[0]["observedGeneration"]), (&json!("True"), &json!(1)));
        let other_reason = follow_on(&first, &accepted(true, "Better"), Some(2), at(20));
        assert_eq!(other_reason[0]["lastTransitionTime"], "1970-01-01T00:00:10Z");
        let turned = follow_on(&other_reason, &accepted(false, "Worse"), Some(3), at(30));
        assert_eq!(turned[0]["lastTransitionTime"], "1970-01-01T00:00:30Z");
        assert_eq!(follow_on(&turned, &[], Some(4), at(40)), json!([]));
        let long = "ä".repeat(MESSAGE_LEN_MAX);
        let long = follow_on(&Value::Null, &[Wanted::new("Accepted", true, "r", long)], None, at(1));
        assert_eq!(long[0]["message"].as_str().map(str::len), Some(MESSAGE_LEN_MAX));
    }
}
