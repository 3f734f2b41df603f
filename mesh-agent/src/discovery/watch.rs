//! Again, on every change: file events gathered over a short silence, and a poll for file systems without events.

use std::time::Duration;

use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;

use super::Publisher;
use crate::lifecycle::{Shutdown, tasks};

/// Silence that ends a burst of events. Editors write a file in several steps, `kubectl`-like tools several files; 50 ms
/// covers both and is far below what a person notices.
const DEBOUNCE: Duration = Duration::from_millis(50);

/// Longest time that a burst may put off reading, so that a file written without pause cannot hold back the others.
const DEBOUNCE_MAX: Duration = Duration::from_secs(1);

/// Time between polls. Events are lost on network file systems and when the kernel's queue overflows; by then a change
/// is seen this much later. A poll reads names and times only.
const POLL: Duration = Duration::from_secs(2);

/// Spawns the watching task.
pub(super) fn start(publisher: Publisher, shutdown: Shutdown) {
    let (sender, events) = mpsc::channel(1);
    let watcher = watcher(&publisher, sender);
    tasks::spawn("discovery", async move {
        // Dropping the watcher ends the events, so it lives as long as the loop.
        let _watcher = watcher;
        tokio::select! {
            () = shutdown.requested() => {}
            () = run(publisher, events) => {}
        }
    });
}

/// `None` when the kernel gives no events (out of inotify instances, say): then polls alone find changes.
fn watcher(publisher: &Publisher, sender: mpsc::Sender<()>) -> Option<RecommendedWatcher> {
    let dir = publisher.source.dir();
    let on_event = move |event: notify::Result<notify::Event>| {
        // Reading a file is an event too, and would wake us for our own reads.
        if event.is_ok_and(|event| event.kind.is_access() && !is_write_end(&event)) {
            return;
        }
        // A full channel holds a wake-up already.
        let _ = sender.try_send(());
    };
    let watching = notify::recommended_watcher(on_event)
        .and_then(|mut watcher| watcher.watch(dir, RecursiveMode::Recursive).map(|()| watcher));
    match watching {
        Ok(watcher) => Some(watcher),
        Err(error) => {
            tracing::warn!(%error, dir = %dir.display(), "no file events; changes are found by polling");
            None
        }
    }
}

fn is_write_end(event: &notify::Event) -> bool {
    use notify::event::{AccessKind, AccessMode, EventKind};
    event.kind == EventKind::Access(AccessKind::Close(AccessMode::Write))
}

async fn run(mut publisher: Publisher, mut events: mpsc::Receiver<()>) {
    let mut events_open = true;
    loop {
        let reread = tokio::select! {
            event = events.recv(), if events_open => {
                events_open = event.is_some();
                settle(&mut events).await;
                true
            }
            () = tokio::time::sleep(POLL) => false,
        };
        match publisher.source.refresh(reread) {
            Ok(true) => publisher.publish(),
            Ok(false) => {}
            // The state stays as it was, as for any unreadable object.
            Err(error) => tracing::warn!(error = &error as &dyn std::error::Error, "cannot look for changes"),
        }
    }
}

/// Waits until no event has come for [`DEBOUNCE`], at most [`DEBOUNCE_MAX`].
async fn settle(events: &mut mpsc::Receiver<()>) {
    let quiet = async { while let Ok(Some(())) = tokio::time::timeout(DEBOUNCE, events.recv()).await {} };
    let _ = tokio::time::timeout(DEBOUNCE_MAX, quiet).await;
}
