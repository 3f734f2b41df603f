//! Again, on every change: file events gathered over a short silence, and a poll for file systems without events.

use std::path::Path;
use std::time::Duration;

use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;

use super::Publisher;
use super::files::Source;
use crate::lifecycle::file_event::may_be_change;
use crate::lifecycle::{Shutdown, tasks};

/// Silence that ends a burst of events. Editors write a file in several steps, `kubectl`-like tools several files; 50 ms
/// covers both and is far below what a person notices.
const DEBOUNCE: Duration = Duration::from_millis(50);

/// Longest time that a burst may put off reading, so that files written without pause cannot hold back the others. Reading
/// and compiling a few hundred objects takes a few milliseconds, so that this is most of what a change waits for.
const DEBOUNCE_MAX: Duration = Duration::from_millis(200);

/// Time between polls. Events are lost on network file systems and when the kernel's queue overflows; by then a change
/// is seen this much later. A poll reads names and times only.
const POLL: Duration = Duration::from_secs(2);

/// Spawns the watching task.
pub(super) fn start(source: Source, publisher: Publisher, shutdown: Shutdown) {
    let (sender, events) = mpsc::channel(1);
    let watcher = watcher(source.dir(), sender);
    tasks::spawn("discovery", async move {
        // Dropping the watcher ends the events, so it lives as long as the loop.
        let _watcher = watcher;
        tokio::select! {
            () = shutdown.requested() => {}
            () = run(source, publisher, events) => {}
        }
    });
}

/// `None` when the kernel gives no events (out of inotify instances, say): then polls alone find changes.
fn watcher(dir: &Path, sender: mpsc::Sender<()>) -> Option<RecommendedWatcher> {
    let on_event = move |event: notify::Result<notify::Event>| {
        if may_be_change(&event) {
            // A full channel holds a wake-up already.
            let _ = sender.try_send(());
        }
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

async fn run(mut source: Source, mut publisher: Publisher, mut events: mpsc::Receiver<()>) {
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
        match source.refresh(reread) {
            Ok(true) => publisher.publish(&mut source),
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

#[cfg(test)]
mod tests {
    use std::fs;

    use crate::discovery::testing::{World, pod};
    use crate::discovery::{Discovery, Error, Settings, load, start};
    use crate::lifecycle::shutdown;
    use crate::registry::Registry;
    use crate::telemetry::Telemetry;
    use crate::{policy, registry, route};

    use super::*;

    /// Long enough for a busy machine; the tests end as soon as the state is there.
    const PATIENCE: Duration = Duration::from_secs(20);

    struct Running {
        world: World,
        registry: Registry,
        policies: policy::Policies,
        routes: route::Routes,
        discovery: Discovery,
        stop: shutdown::Trigger,
    }

    async fn run_on(files: &[(&str, &str)]) -> Running {
        let world = World::new(files);
        let (registry_writer, registry) = registry::new();
        let (policy_writer, policies) = policy::new();
        let (route_writer, routes) = route::new();
        let (stop, shutdown) = shutdown::channel();
        let settings = Settings::Directory(world.path(""));
        let telemetry = Telemetry::without_access_log();
        let started = start(settings, registry_writer, policy_writer, route_writer, &telemetry, shutdown);
        let discovery = started.await.unwrap();
        Running { world, registry, policies, routes, discovery, stop }
    }

    /// Waits until the pods with these names, and no others, are known.
    async fn expect_pods(running: &Running, expected: &[&str]) {
        let names = || {
            let snapshot = running.registry.snapshot();
            let mut names: Vec<_> = snapshot.workloads().map(|pod| pod.name.name.to_string()).collect();
            names.sort();
            names
        };
        let mut changes = running.registry.changes();
        let arrived = async {
            while names() != expected {
                changes.changed().await.unwrap();
            }
        };
        if tokio::time::timeout(PATIENCE, arrived).await.is_err() {
            panic!("expected {expected:?}, found {:?}", names());
        }
    }

    #[tokio::test]
    async fn the_first_state_is_published_before_start_returns() {
        let running = run_on(&[("a.yaml", &pod("a", "10.0.0.1")), ("b.yaml", "kind: [")]).await;
        assert_eq!(running.registry.snapshot().version, 1);
        assert_eq!(running.registry.snapshot().workloads().count(), 1);
        assert_eq!(*running.policies.changes().borrow(), 1);
        assert_eq!(*running.routes.changes().borrow(), 1);
        assert_eq!((running.discovery.problem_count(), running.discovery.object_count()), (1, 1));
    }

    #[tokio::test]
    async fn writes_renames_and_deletions_are_picked_up() {
        let running = run_on(&[("a.yaml", &pod("a", "10.0.0.1"))]).await;
        // In place.
        running.world.write("a.yaml", &pod("b", "10.0.0.1"));
        expect_pods(&running, &["b"]).await;
        // A draft moved over the file, as editors and kubelets do.
        running.world.write(".draft", &pod("c", "10.0.0.1"));
        fs::rename(running.world.path(".draft"), running.world.path("a.yaml")).unwrap();
        expect_pods(&running, &["c"]).await;
        // In a new subdirectory.
        running.world.write("deep/er/d.yaml", &pod("d", "10.0.0.2"));
        expect_pods(&running, &["c", "d"]).await;
        running.world.remove("a.yaml");
        expect_pods(&running, &["d"]).await;
    }

    #[tokio::test]
    async fn a_broken_write_is_reported_and_changes_nothing_until_it_is_mended() {
        let running = run_on(&[("a.yaml", &pod("a", "10.0.0.1"))]).await;
        let mut changes = running.registry.changes();
        changes.mark_unchanged();
        running.world.write("a.yaml", "kind: [Pod");
        tokio::time::timeout(PATIENCE, changes.changed()).await.expect("a publication").unwrap();
        expect_pods(&running, &["a"]).await;
        let problems = running.discovery.problems();
        assert_eq!(problems.len(), 1);
        assert_eq!(problems[0].file.as_deref(), Some(running.world.path("a.yaml").as_path()));
        running.world.write("a.yaml", &pod("b", "10.0.0.2"));
        expect_pods(&running, &["b"]).await;
        assert_eq!(running.discovery.problem_count(), 0);
    }

    /// Without events (the watch is on another directory) the poll alone must find the change.
    #[tokio::test]
    async fn changes_without_events_are_found_by_polling() {
        let world = World::new(&[]);
        let (registry_writer, registry) = registry::new();
        let (policy_writer, policies) = policy::new();
        let source = Source::new(world.path(""));
        let publisher = Publisher::new(registry_writer, policy_writer, route::new().0);
        let discovery = Discovery {
            report: publisher.report.clone(),
            source: std::sync::Arc::new(Settings::Directory(world.path(""))),
            feeds: None,
            published: publisher.first.subscribe(),
            versions: publisher.versions.subscribe(),
        };
        let (sender, events) = mpsc::channel(1);
        drop(sender);
        tasks::spawn("poll", run(source, publisher, events));
        let (stop, _) = shutdown::channel();
        world.write("a.yaml", &pod("a", "10.0.0.1"));
        let running = Running { world, registry, policies, routes: route::new().1, discovery, stop };
        expect_pods(&running, &["a"]).await;
    }

    #[tokio::test]
    async fn shutdown_ends_the_watch_and_with_it_the_writers() {
        let running = run_on(&[("a.yaml", &pod("a", "10.0.0.1"))]).await;
        let mut changes = running.registry.changes();
        changes.mark_unchanged();
        running.stop.fire();
        let end = tokio::time::timeout(PATIENCE, changes.changed()).await.expect("the task ends");
        assert!(end.is_err(), "the writer is gone");
    }

    #[tokio::test]
    async fn start_refuses_a_missing_directory_and_unusable_settings() {
        let attempt = async |dir: &Path| {
            let (_stop, shutdown) = shutdown::channel();
            let settings = Settings::Directory(dir.to_owned());
            let telemetry = Telemetry::without_access_log();
            start(settings, registry::new().0, policy::new().0, route::new().0, &telemetry, shutdown).await
        };
        assert!(matches!(attempt(Path::new("/nonexistent/world")).await, Err(Error::Directory { .. })));
        let text = "apiVersion: weft.dev/v1alpha1\nkind: MeshConfig\nmetadata: {name: m}\nspec: {ca: {}}\n";
        let world = World::new(&[("m.yaml", text)]);
        match attempt(&world.path("")).await {
            Err(Error::MeshConfig(problem)) => {
                assert_eq!((problem.line, problem.field.as_deref()), (Some(4), Some("spec.ca")));
            }
            other => panic!("{other:?}"),
        }
        // Tools still see the rest.
        let loaded = load(&world.path("")).unwrap();
        assert_eq!((loaded.snapshot.workloads().count(), loaded.problems.len()), (0, 1));
        assert_eq!(loaded.policies.default_inbound(), crate::model::DefaultInbound::Deny);
    }
}
