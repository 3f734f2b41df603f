//! What do these objects look like now, and when does that change? One list and one watch, again and again.
//!
//! For the few objects that control works on beside discovery's: its Secret, and the objects whose status it writes.
//! What was seen last stays in force while the API is away.

use std::time::Duration;

use futures_util::StreamExt as _;
use kube::Api;
use kube::api::{ListParams, WatchEvent, WatchParams};
use kube::core::Resource;
use serde::de::DeserializeOwned;

use crate::lifecycle::back_off;

/// Objects per page of a list.
const PAGE: u32 = 500;
/// How long a watch lasts before the server ends it: client-go's five minutes, less jitter.
const WATCH_SECONDS: u32 = 290;
/// A watch that has been silent for longer than it may last is dead.
const WATCH_SILENCE_MAX: Duration = Duration::from_secs(WATCH_SECONDS as u64 + 20);
/// Longest time for one page.
const LIST_TIME_MAX: Duration = Duration::from_secs(30);
/// Pauses after failures double from the first to the second, each shortened by up to a half at random so that replicas
/// do not come back together.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// What became known.
#[derive(Debug)]
pub(super) enum Change<K> {
    /// Everything there is. Replaces what was told before.
    All(Vec<K>),
    /// One object is new or has changed.
    Applied(K),
    /// One object is gone.
    Deleted(K),
}

/// Tells every change of the objects that `fields` selects, until it is dropped.
pub(super) async fn follow<K>(
    api: Api<K>,
    what: &str,
    fields: Option<String>,
    mut tell: impl FnMut(Change<K>),
) where
    K: Resource + Clone + DeserializeOwned + std::fmt::Debug + Send + 'static,
{
    let mut pause = PAUSE_MIN;
    let mut is_well = true;
    loop {
        let ended = round(&api, fields.as_deref(), &mut tell, &mut pause, &mut is_well, what).await;
        let Err(error) = ended else { continue };
        // A version that is too old is no failure of anybody: list again.
        if is_gone(&error) {
            continue;
        }
        if is_well {
            tracing::warn!(what, %error, "the Kubernetes API cannot be followed; what was seen last stays in force");
        }
        is_well = false;
        tokio::time::sleep(back_off::half_to_whole(pause)).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// One list, then watches for as long as they go on.
async fn round<K>(
    api: &Api<K>,
    fields: Option<&str>,
    tell: &mut impl FnMut(Change<K>),
    pause: &mut Duration,
    is_well: &mut bool,
    what: &str,
) -> Result<(), kube::Error>
where
    K: Resource + Clone + DeserializeOwned + std::fmt::Debug + Send + 'static,
{
    let (all, mut version) = list(api, fields).await?;
    tell(Change::All(all));
    if !*is_well {
        tracing::info!(what, "the Kubernetes API is followed again");
    }
    (*pause, *is_well) = (PAUSE_MIN, true);
    loop {
        let seconds = WATCH_SECONDS - fastrand::u32(0..60);
        let mut params = WatchParams::default().timeout(seconds);
        params.field_selector = fields.map(str::to_owned);
        let stream = timed(LIST_TIME_MAX, api.watch(&params, &version)).await??;
        let mut stream = std::pin::pin!(stream);
        while let Some(event) = timed(WATCH_SILENCE_MAX, stream.next()).await? {
            match event? {
                WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                    version = object.meta().resource_version.clone().unwrap_or(version);
                    tell(Change::Applied(object));
                }
                WatchEvent::Deleted(object) => {
                    version = object.meta().resource_version.clone().unwrap_or(version);
                    tell(Change::Deleted(object));
                }
                WatchEvent::Bookmark(bookmark) => version = bookmark.metadata.resource_version,
                WatchEvent::Error(status) => return Err(kube::Error::Api(status)),
            }
        }
    }
}

async fn list<K>(api: &Api<K>, fields: Option<&str>) -> Result<(Vec<K>, String), kube::Error>
where
    K: Clone + DeserializeOwned + std::fmt::Debug,
{
    let mut params = ListParams { limit: Some(PAGE), ..ListParams::default() };
    params.field_selector = fields.map(str::to_owned);
    let mut all = Vec::new();
    loop {
        let page = timed(LIST_TIME_MAX, api.list(&params)).await??;
        all.extend(page.items);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params.continue_token = Some(token),
            None => return Ok((all, page.metadata.resource_version.unwrap_or_default())),
        }
    }
}

/// Something that took too long reads as an error of the connection.
async fn timed<T>(limit: Duration, work: impl Future<Output = T>) -> Result<T, kube::Error> {
    let late = |_elapsed| kube::Error::Service("the Kubernetes API did not answer in time".into());
    tokio::time::timeout(limit, work).await.map_err(late)
}

fn is_gone(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 410)
}
