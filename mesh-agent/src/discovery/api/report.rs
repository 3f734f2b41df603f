//! What is told about the feeds.

use std::time::SystemTime;

use serde::{Serialize, Serializer};

use super::store::Store;

/// How the feed of one kind stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FeedReport {
    /// The kind.
    pub kind: &'static str,
    /// `listing`, `watching`, `failing` or `not served`.
    pub state: &'static str,
    /// Objects that the API has of it.
    pub objects: usize,
    /// The version of the kind that is read, once it has been listed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api_version: Option<&'static str>,
    /// The last version that the API told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource_version: Option<String>,
    /// When the API last said something of this kind.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "time")]
    pub last_heard: Option<SystemTime>,
    /// What keeps it from being read, if something does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<FailureReport>,
}

/// A failure that lasts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FailureReport {
    /// As `weft_discovery_failures_total` counts it.
    pub reason: &'static str,
    /// For people.
    pub message: String,
    /// Since when the kind cannot be read.
    #[serde(serialize_with = "since")]
    pub since: SystemTime,
}

pub(super) fn of(store: &Store) -> Vec<FeedReport> {
    let feeds = store.feeds().map(|(kind, feed)| FeedReport {
        kind: kind.label(),
        state: feed.state.label(),
        objects: store.count(kind),
        api_version: feed.api_version,
        resource_version: feed.resource_version.clone(),
        last_heard: feed.heard,
        failure: feed.failing.as_ref().map(|failing| FailureReport {
            reason: failing.reason.label(),
            message: failing.message.clone(),
            since: failing.since,
        }),
    });
    feeds.collect()
}

fn time<S: Serializer>(time: &Option<SystemTime>, serializer: S) -> Result<S::Ok, S::Error> {
    match time {
        Some(time) => since(time, serializer),
        None => serializer.serialize_none(),
    }
}

fn since<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    match jiff::Timestamp::try_from(*time) {
        Ok(time) => serializer.serialize_str(&format!("{time:.0}")),
        Err(_) => serializer.serialize_none(),
    }
}
