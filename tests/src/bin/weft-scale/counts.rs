//! What the agent asked for and got: requests by verb and kind, bytes of lists and of watches.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use serde_json::{Value, json};

/// The counts.
#[derive(Default)]
pub struct Counts {
    requests: Mutex<BTreeMap<String, u64>>,
    list_bytes: AtomicU64,
    watch_bytes: AtomicU64,
    watch_events: AtomicU64,
    bookmarks: AtomicU64,
}

impl Counts {
    /// A request, such as `list pods`.
    pub fn request(&self, verb: &str, what: &str) {
        *self.requests.lock().entry(format!("{verb} {what}")).or_insert(0) += 1;
    }

    /// Bytes of a list's page.
    pub fn listed(&self, bytes: usize) {
        self.list_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// One event of a watch.
    pub fn watched(&self, bytes: usize) {
        self.watch_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.watch_events.fetch_add(1, Ordering::Relaxed);
    }

    /// One bookmark of a watch.
    pub fn bookmarked(&self, bytes: usize) {
        self.watch_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.bookmarks.fetch_add(1, Ordering::Relaxed);
    }

    /// All of it.
    pub fn told(&self) -> Value {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        json!({
            "requests": *self.requests.lock(),
            "listBytes": read(&self.list_bytes),
            "watchBytes": read(&self.watch_bytes),
            "watchEvents": read(&self.watch_events),
            "bookmarks": read(&self.bookmarks),
        })
    }
}
