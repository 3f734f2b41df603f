//! Hints that something may have changed where pods run: inotify on directories, files' and control groups' alike.
//!
//! A hint is never believed, it only makes the keeper look; and the keeper looks every second without any.

use std::collections::BTreeSet;
use std::path::PathBuf;

use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;

use crate::lifecycle::file_event::may_be_change;

/// A set of watched directories.
#[derive(Debug)]
pub(super) struct Watch {
    watcher: Option<RecommendedWatcher>,
    dirs: BTreeSet<PathBuf>,
}

impl Watch {
    /// Watches nothing yet; sends hints to `hint`.
    pub(super) fn new(hint: mpsc::UnboundedSender<()>) -> Self {
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            if may_be_change(&event) {
                // The keeper is gone: nobody needs the hint.
                let _ = hint.send(());
            }
        });
        let watcher = watcher.inspect_err(|error| tracing::warn!(%error, "cannot watch for pods; polling"));
        Self { watcher: watcher.ok(), dirs: BTreeSet::new() }
    }

    /// Watches these directories and no others. One that cannot be watched (gone already) is tried again at the next call.
    pub(super) fn set(&mut self, wanted: &BTreeSet<PathBuf>) {
        let Some(watcher) = &mut self.watcher else { return };
        for gone in self.dirs.difference(wanted) {
            // The kernel ends the watch of a directory that is removed by itself.
            let _ = watcher.unwatch(gone);
        }
        let mut dirs: BTreeSet<PathBuf> = self.dirs.intersection(wanted).cloned().collect();
        for dir in wanted.difference(&self.dirs) {
            match watcher.watch(dir, RecursiveMode::NonRecursive) {
                Ok(()) => drop(dirs.insert(dir.clone())),
                Err(error) => tracing::debug!(%error, dir = %dir.display(), "cannot watch; polling"),
            }
        }
        self.dirs = dirs;
    }
}
