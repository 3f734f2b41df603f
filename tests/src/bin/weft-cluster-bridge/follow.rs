//! All objects of one kind, by a list and then a watch, for as long as the program runs.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};
use futures_util::TryStreamExt;
use kube::api::{Api, ListParams, WatchParams};
use kube::core::{ApiResource, DynamicObject, GroupVersionKind, WatchEvent};
use kube::{Client, ResourceExt};
use parking_lot::Mutex;

/// How long to wait after something went wrong. The API server is away for seconds when a test ends it.
const PAUSE: Duration = Duration::from_millis(500);

/// How long one watch lasts at most.
const WATCH_S: u32 = 240;

/// Objects by `NAMESPACE/NAME`.
pub type Objects = Arc<Mutex<BTreeMap<String, DynamicObject>>>;

/// What happened.
#[derive(Debug)]
pub enum Change<'a> {
    /// These are all.
    All(&'a [DynamicObject]),
    /// This is new or changed.
    Present(&'a DynamicObject),
    /// This is gone.
    Gone(&'a DynamicObject),
}

/// A kind that is followed.
#[derive(Debug)]
pub struct Follower {
    api: Api<DynamicObject>,
    objects: Objects,
}

/// A kind of the core group.
pub fn core(kind: &str, plural: &str) -> ApiResource {
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk("", "v1", kind), plural)
}

impl Follower {
    /// Follows a kind in all namespaces.
    pub fn new(client: Client, kind: ApiResource) -> Self {
        Self { api: Api::all_with(client, &kind), objects: Objects::default() }
    }

    /// What is known now.
    pub fn objects(&self) -> Objects {
        Arc::clone(&self.objects)
    }

    /// Follows for ever, and tells of each change.
    pub async fn run(&self, mut tell: impl AsyncFnMut(Change<'_>) -> Result<()>) -> Result<()> {
        loop {
            if let Err(error) = self.list_and_watch(&mut tell).await {
                eprintln!("{error:#}");
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn list_and_watch(&self, tell: &mut impl AsyncFnMut(Change<'_>) -> Result<()>) -> Result<()> {
        let list = self.api.list(&ListParams::default()).await?;
        *self.objects.lock() = list.items.iter().map(|object| (key(object), object.clone())).collect();
        tell(Change::All(&list.items)).await?;
        let mut version = list.metadata.resource_version.unwrap_or_default();
        loop {
            let mut events =
                Box::pin(self.api.watch(&WatchParams::default().timeout(WATCH_S), &version).await?);
            while let Some(event) = events.try_next().await? {
                match event {
                    WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                        version = object.resource_version().unwrap_or(version);
                        self.objects.lock().insert(key(&object), object.clone());
                        tell(Change::Present(&object)).await?;
                    }
                    WatchEvent::Deleted(object) => {
                        version = object.resource_version().unwrap_or(version);
                        self.objects.lock().remove(&key(&object));
                        tell(Change::Gone(&object)).await?;
                    }
                    WatchEvent::Bookmark(bookmark) => version = bookmark.metadata.resource_version,
                    WatchEvent::Error(error) => bail!("the watch ended: {error}"),
                }
            }
        }
    }
}

/// `NAMESPACE/NAME`.
pub fn key(object: &DynamicObject) -> String {
    format!("{}/{}", object.namespace().unwrap_or_default(), object.name_any())
}
