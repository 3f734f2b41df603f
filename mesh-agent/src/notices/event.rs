//! A notice as an object of `events.k8s.io/v1`, and as the change of one that is there already. Pure.

use std::time::SystemTime;

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::ObjectMeta;
use serde_json::{Value, json};

use super::book::{Matter, Notice};

/// Who says it.
pub const CONTROLLER: &str = "weft.dev/agent";

/// What was tried when it happened; the API server wants a word for it.
const ACTION: &str = "Enrol";

/// Longest note that the API server takes, in bytes.
const NOTE_LEN_MAX: usize = 1024;
/// Longest name of the one who says it.
const INSTANCE_LEN_MAX: usize = 128;
/// Longest name of an object.
const NAME_LEN_MAX: usize = 253;

impl Matter {
    /// As in `reason:`.
    pub fn reason(self) -> &'static str {
        match self {
            Self::EnrolmentFailed => "EnrolmentFailed",
            Self::NotEnrolled => "NotEnrolled",
            Self::Enrolled => "Enrolled",
        }
    }

    fn kind(self) -> &'static str {
        match self {
            Self::EnrolmentFailed | Self::NotEnrolled => "Warning",
            Self::Enrolled => "Normal",
        }
    }
}

/// A new Event, of an agent on this node.
pub fn first(notice: &Notice, node: &str, at: SystemTime) -> Event {
    let (namespace, name) = (notice.pod.namespace.to_string(), notice.pod.name.to_string());
    Event {
        metadata: ObjectMeta {
            name: Some(event_name(&name, at)),
            namespace: Some(namespace.clone()),
            ..ObjectMeta::default()
        },
        event_time: Some(micro_time(at)),
        type_: Some(notice.matter.kind().to_owned()),
        reason: Some(notice.matter.reason().to_owned()),
        note: Some(shortened(&notice.note, NOTE_LEN_MAX).to_owned()),
        action: Some(ACTION.to_owned()),
        regarding: Some(ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            namespace: Some(namespace),
            name: Some(name),
            uid: Some(notice.uid.to_string()),
            ..ObjectReference::default()
        }),
        reporting_controller: Some(CONTROLLER.to_owned()),
        reporting_instance: Some(shortened(node, INSTANCE_LEN_MAX).to_owned()),
        ..Event::default()
    }
}

/// The patch of an Event that has happened again: `count` times in all.
pub fn again(count: i32, at: SystemTime) -> Value {
    json!({
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "series": {"count": count, "lastObservedTime": micro_time(at)},
    })
}

/// The pod's name and the time, as other components do it; cut where it would be too long.
fn event_name(pod: &str, at: SystemTime) -> String {
    let nanos = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos();
    let tail = format!(".{nanos:x}");
    let head = shortened(pod, NAME_LEN_MAX - tail.len()).trim_end_matches(['.', '-']);
    format!("{head}{tail}")
}

fn micro_time(at: SystemTime) -> MicroTime {
    MicroTime(Timestamp::try_from(at).unwrap_or_default())
}

fn shortened(text: &str, len_max: usize) -> &str {
    let mut end = text.len().min(len_max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}
