//! Tells when files may have changed: inotify on their directories, and a slow poll in case an event is lost.
//!
//! Directories are watched and not files, since files are replaced by renaming (and, in Kubernetes volumes, by moving a
//! symbolic link beside them). It only says "look again"; the reader compares what it finds with what it has.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use notify::{Event, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::Notify;
use tokio::time::{Interval, MissedTickBehavior};

use crate::lifecycle::file_event::may_be_change;

/// How often to look even when nothing was heard. Network file systems tell no events at all.
pub(crate) const POLL_INTERVAL: Duration = Duration::from_secs(5);

/// Watches directories for as long as it lives.
#[derive(Debug)]
pub(crate) struct DirWatch {
    changed: Arc<Notify>,
    poll: Interval,
    _watcher: Option<RecommendedWatcher>,
}

impl DirWatch {
    /// Watches the directories that the files stand in. Without inotify (its limits are per user, and small) only the
    /// poll remains, which the log says.
    pub(crate) fn of_files<'a>(paths: impl Iterator<Item = &'a Path>) -> Self {
        let directory = |path: &'a Path| match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        Self::of_directories(paths.map(directory))
    }

    /// Watches directories, not what lies in their subdirectories. Must be called on a tokio runtime.
    pub(crate) fn of_directories<'a>(directories: impl Iterator<Item = &'a Path>) -> Self {
        let changed = Arc::new(Notify::new());
        let directories: BTreeSet<&Path> = directories.collect();
        let watcher = watch(&directories, changed.clone());
        let watcher = watcher
            .inspect_err(|error| tracing::warn!(?directories, %error, "no file events, polling only"))
            .ok();
        let mut poll = tokio::time::interval(POLL_INTERVAL);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { changed, poll, _watcher: watcher }
    }

    /// Completes when something may have changed; at once when first called, which covers what happened before the
    /// watch began. Cancel safe: an event that nobody waited for is kept, and so is the time of the next poll.
    pub(crate) async fn changed(&mut self) {
        tokio::select! {
            () = self.changed.notified() => {}
            _ = self.poll.tick() => {}
        }
    }
}

fn watch(directories: &BTreeSet<&Path>, changed: Arc<Notify>) -> notify::Result<RecommendedWatcher> {
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
        if may_be_change(&event) {
            changed.notify_one();
        }
    })?;
    for directory in directories {
        watcher.watch(directory, RecursiveMode::NonRecursive)?;
    }
    Ok(watcher)
}
