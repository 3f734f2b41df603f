//! When is it written? One notice after the other, as fast as the node may; what repeats becomes part of the Event that is
//! there already.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::events::v1::Event;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use tokio::sync::watch;

use super::book::{Book, Notice, REMEMBERED};
use super::event;
use crate::capture::State;
use crate::lifecycle::{Bucket, Shutdown, clock, tasks};

/// How many Events a node may write at once, and how many a second it may keep up: with 1,000 nodes that all have something to
/// say, the API server gets what it can bear.
const BURST: f64 = 10.0;
const PER_SECOND: f64 = 1.0;
/// Until there may be another token.
const TOKEN_PAUSE: Duration = Duration::from_millis(200);

/// Longest write.
const WRITE_TIME_MAX: Duration = Duration::from_secs(10);

/// Pauses after an API that is away or asks for patience double from the first to the second.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// Who writes, in `managedFields`.
const FIELD_MANAGER: &str = "weft-agent";

/// Writes Events about the pods of this node, until shutdown or until capture has ended.
pub fn start(client: Client, node: &str, states: watch::Receiver<Arc<State>>, shutdown: Shutdown) {
    let writer = Writer {
        client,
        node: node.to_owned(),
        book: Book::default(),
        written: BTreeMap::new(),
        bucket: Bucket::full(BURST, clock::now()),
        is_refused: false,
    };
    tasks::spawn("notices", async move {
        tokio::select! {
            () = shutdown.requested() => {}
            () = writer.run(states) => {}
        }
    });
}

struct Writer {
    client: Client,
    node: String,
    book: Book,
    /// Events that are there, by what they say.
    written: BTreeMap<Notice, Written>,
    bucket: Bucket,
    /// The API server refused the last one; the log knows.
    is_refused: bool,
}

/// An Event that is there.
struct Written {
    name: String,
    count: i32,
    at: Instant,
}

/// What became of a write.
enum Outcome {
    Written,
    /// Not this one, whatever is tried.
    Refused,
    /// Perhaps later.
    Away,
}

impl Writer {
    async fn run(mut self, mut states: watch::Receiver<Arc<State>>) {
        let mut pause = PAUSE_MIN;
        states.mark_changed();
        // An error means that capture has ended.
        while let Ok(is_new) = states.has_changed() {
            if is_new {
                let state = states.borrow_and_update().clone();
                self.book.follow(&state, clock::now());
            }
            let mut wait = self.book.wait(clock::now());
            if let Some(notice) = self.book.next(clock::now()) {
                wait = Some(TOKEN_PAUSE);
                if self.bucket.take(BURST, PER_SECOND, clock::now()) {
                    match self.write(&notice).await {
                        Outcome::Away => {
                            tokio::time::sleep(pause).await;
                            pause = (pause * 2).min(PAUSE_MAX);
                        }
                        outcome => {
                            self.book.said(&notice, matches!(outcome, Outcome::Written));
                            pause = PAUSE_MIN;
                        }
                    }
                    continue;
                }
            }
            tokio::select! {
                // It counts as seen by that, and is to be looked at.
                _ = states.changed() => states.mark_changed(),
                () = sleep(wait) => {}
            }
        }
    }

    async fn write(&mut self, notice: &Notice) -> Outcome {
        self.written.retain(|_, written| clock::now().saturating_duration_since(written.at) < REMEMBERED);
        match tokio::time::timeout(WRITE_TIME_MAX, self.put(notice)).await {
            Ok(Ok(())) => {
                self.is_refused = false;
                Outcome::Written
            }
            Ok(Err(kube::Error::Api(status))) if is_final(status.code) => {
                if !std::mem::replace(&mut self.is_refused, true) {
                    let (pod, error) = (&notice.pod, status.message);
                    tracing::warn!(%pod, error, "the API server takes no Event about a pod; it is not asked again for this one");
                }
                Outcome::Refused
            }
            Ok(Err(error)) => {
                tracing::debug!(pod = %notice.pod, %error, "an Event cannot be written now");
                Outcome::Away
            }
            Err(_elapsed) => {
                tracing::debug!(pod = %notice.pod, "an Event was not written in time");
                Outcome::Away
            }
        }
    }

    /// Counts up the Event that says this already, or makes one.
    async fn put(&mut self, notice: &Notice) -> Result<(), kube::Error> {
        let api: Api<Event> = Api::namespaced(self.client.clone(), &notice.pod.namespace);
        if let Some(written) = self.written.get_mut(notice) {
            let params =
                PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
            let patch = Patch::Merge(event::again(written.count + 1, clock::wall()));
            match api.patch(&written.name, &params, &patch).await {
                Ok(_) => {
                    written.count += 1;
                    written.at = clock::now();
                    return Ok(());
                }
                // The API server has forgotten it.
                Err(kube::Error::Api(status)) if status.code == 404 => drop(self.written.remove(notice)),
                Err(error) => return Err(error),
            }
        }
        let made = event::first(notice, &self.node, clock::wall());
        let params = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
        api.create(&params, &made).await?;
        let name = made.metadata.name.unwrap_or_default();
        self.written.insert(notice.clone(), Written { name, count: 1, at: clock::now() });
        Ok(())
    }
}

/// Whether asking again would change nothing: but for a token that is renewed, and a server that asks for patience.
fn is_final(code: u16) -> bool {
    (400..500).contains(&code) && ![401, 408, 429].contains(&code)
}

/// For ever where there is nothing to wait for.
async fn sleep(wait: Option<Duration>) {
    match wait {
        Some(wait) => tokio::time::sleep(wait).await,
        None => std::future::pending().await,
    }
}
