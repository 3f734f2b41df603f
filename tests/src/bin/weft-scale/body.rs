//! The body of a watch: one line per event, with bookmarks in between, until its time is up.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame};
use serde_json::json;
use tokio::time::{Interval, MissedTickBehavior, Sleep, interval, sleep};

use super::api::Api;
use super::cluster::KINDS;
use super::drawing::Form;
use super::log::{Event, Events};
use super::query::Query;

/// How often a watch is told the revision, as kube-apiserver does: about once a minute.
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);

/// How long a watch lasts that says nothing; kube-apiserver draws from 30 to 60 minutes.
const TIMEOUT: Duration = Duration::from_secs(30 * 60);

/// A watch's body.
pub struct WatchBody {
    api: Api,
    query: Query,
    events: Events,
    bookmark: Interval,
    until: Pin<Box<Sleep>>,
}

impl WatchBody {
    /// The body of `query`, which `events` are for.
    pub fn new(api: Api, query: Query, events: Events) -> Self {
        let mut bookmark = interval(BOOKMARK_EVERY);
        bookmark.set_missed_tick_behavior(MissedTickBehavior::Delay);
        bookmark.reset();
        let lasts = query.timeout_s.map_or(TIMEOUT, Duration::from_secs);
        Self { api, query, events, bookmark, until: Box::pin(sleep(lasts)) }
    }

    /// The event's line. The time of its effects begins here, as the connection takes it to write it.
    fn line(&self, event: &Event) -> Bytes {
        let line = if self.query.form == Form::Metadata { &event.metadata } else { &event.whole };
        self.api.counts.watched(line.len());
        let effects = std::mem::take(&mut *event.effects.lock());
        self.api.waiting.written(effects);
        line.clone()
    }

    fn bookmark(&self, revision: u64) -> Bytes {
        let kind = &KINDS[self.query.kind];
        let line = match self.query.form {
            Form::Metadata => bookmark("PartialObjectMetadata", "meta.k8s.io/v1", revision),
            _ => bookmark(kind.kind, &kind.api_version(), revision),
        };
        self.api.counts.bookmarked(line.len());
        line
    }
}

fn bookmark(kind: &str, api_version: &str, revision: u64) -> Bytes {
    let metadata = json!({"resourceVersion": revision.to_string(), "creationTimestamp": null});
    let object = json!({"kind": kind, "apiVersion": api_version, "metadata": metadata});
    format!("{}\n", json!({"type": "BOOKMARK", "object": object})).into()
}

impl Body for WatchBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = self.get_mut();
        // Read before the queue is found empty: everything up to here has been sent then.
        let revision = this.api.cluster.log.revision();
        while let Poll::Ready(event) = this.events.poll_recv(cx) {
            let Some(event) = event else { return Poll::Ready(None) };
            if this.query.selector.takes(&event.namespace, &event.name, &event.node) {
                return Poll::Ready(Some(Ok(Frame::data(this.line(&event)))));
            }
        }
        if this.until.as_mut().poll(cx).is_ready() {
            return Poll::Ready(None);
        }
        if this.query.bookmarks && this.bookmark.poll_tick(cx).is_ready() {
            return Poll::Ready(Some(Ok(Frame::data(this.bookmark(revision)))));
        }
        Poll::Pending
    }
}
