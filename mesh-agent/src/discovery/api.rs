//! The source of a cluster: objects from the Kubernetes API, kind by kind, each listed once and then followed.
//!
//! What the API does to us (it is away, it forgets, it breaks off, it asks for patience) ends here: above, there is a
//! state that is whole or none yet, and that stays as it was while the API cannot be read. Nothing is written to the API.
//!
//! Reading order: this file, `catalogue` (what is asked for), `feed` (list and watch),
//! `ask` (one question), `wire` (shapes of answers), `failure`, `pace` (how long to stay away), `store` (what the API said
//! so far), `report` (what is told about it).

use std::sync::Arc;
use std::time::{Duration, Instant};

use kube::Client;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::Publisher;
use crate::lifecycle::{Shutdown, clock, tasks};
use crate::telemetry::Telemetry;
use catalogue::RESOURCES;
use feed::Feed;
use store::Store;

mod ask;
mod catalogue;
mod failure;
mod feed;
mod pace;
mod report;
mod store;
#[cfg(test)]
mod tests;
mod wire;

pub use report::{FailureReport, FeedReport};

/// Shortest time for which changes are gathered, so that a burst is one publication. A rolled Deployment changes pods,
/// slices and status within milliseconds of each other; nobody notices so short a wait.
const GATHER: Duration = Duration::from_millis(5);

/// Longest rest after a publication. Where publishing takes long, because there is much, the next one begins no sooner
/// than the last one took after its end, so that at most half of a thread is spent on it.
const REST_MAX: Duration = Duration::from_millis(250);

/// Time between two lines of the log about a start that waits.
const WAIT_TOLD: Duration = Duration::from_secs(10);

/// What is known of the feeds. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Feeds(Arc<Mutex<Store>>);

impl Feeds {
    /// How each feed stands.
    pub(super) fn report(&self) -> Vec<FeedReport> {
        report::of(&self.0.lock())
    }
}

/// Spawns a task per kind and one that publishes, until shutdown. Nothing is published before every kind has been listed
/// or is known not to be served.
pub(super) fn start(
    client: &Client,
    publisher: Publisher,
    telemetry: &Telemetry,
    shutdown: &Shutdown,
) -> Feeds {
    let store = Arc::new(Mutex::new(Store::expecting(RESOURCES.iter().map(|resource| resource.kind))));
    let news = Arc::new(Notify::new());
    for resource in &RESOURCES {
        let feed = Feed::new(resource, client.clone(), store.clone(), news.clone(), telemetry.clone());
        until(shutdown, "feed", feed.run());
    }
    until(shutdown, "discovery", publish(publisher, store.clone(), news));
    Feeds(store)
}

fn until(shutdown: &Shutdown, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
    let shutdown = shutdown.clone();
    tasks::spawn(name, async move {
        tokio::select! {
            () = shutdown.requested() => {}
            () = task => {}
        }
    });
}

async fn publish(mut publisher: Publisher, store: Arc<Mutex<Store>>, news: Arc<Notify>) {
    wait_for_first(&store, &news).await;
    let mut rested = clock::now();
    loop {
        if store.lock().take_news() {
            let began = clock::now();
            publisher.publish(&mut *store.lock());
            rested = rested_after(began, clock::now());
        }
        news.notified().await;
        tokio::time::sleep(gather(clock::now(), rested)).await;
    }
}

/// When a publication of this length may be followed by the next.
fn rested_after(began: Instant, ended: Instant) -> Instant {
    ended + ended.duration_since(began).min(REST_MAX)
}

/// How long changes are gathered from now on. Who has rested already does not make the next change wait for it.
fn gather(now: Instant, rested: Instant) -> Duration {
    rested.saturating_duration_since(now).max(GATHER)
}

/// Waits until there is a whole state, and says from time to time what is missing.
async fn wait_for_first(store: &Mutex<Store>, news: &Notify) {
    let mut told = clock::now();
    loop {
        let _news_or_time = tokio::time::timeout(WAIT_TOLD, news.notified()).await;
        let (unsettled, unusable) = {
            let store = store.lock();
            (store.unsettled(), store.unusable_mesh_config())
        };
        if unsettled.is_empty() && unusable.is_none() {
            return;
        }
        if clock::now().duration_since(told) < WAIT_TOLD {
            continue;
        }
        told = clock::now();
        let kinds: Vec<_> = unsettled.iter().map(|kind| kind.label()).collect();
        match unusable.filter(|_| kinds.is_empty()) {
            Some(problem) => tracing::warn!(%problem, "the start waits until the MeshConfig can be used"),
            None => tracing::warn!(kinds = kinds.join(", "), "the start waits for lists of the API"),
        }
    }
}
