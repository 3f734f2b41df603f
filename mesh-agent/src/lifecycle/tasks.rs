//! Spawning, in one place, so that every task has a name in the logs when it panics.

use std::future::Future;
use tokio::task::JoinHandle;

/// Spawns on the current runtime.
pub fn spawn<F>(name: &'static str, future: F) -> JoinHandle<()>
where
    F: Future<Output = ()> + Send + 'static,
{
    tokio::spawn(async move {
        let _guard = PanicName(name);
        future.await;
    })
}

/// Spawns on the current worker's `LocalSet`; the task never changes threads.
pub fn spawn_local<F>(name: &'static str, future: F) -> JoinHandle<()>
where
    F: Future<Output = ()> + 'static,
{
    tokio::task::spawn_local(async move {
        let _guard = PanicName(name);
        future.await;
    })
}

struct PanicName(&'static str);

impl Drop for PanicName {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!(task = self.0, "task panicked");
        }
    }
}
