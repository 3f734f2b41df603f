//! The wait for the trust bundle: in a cluster the control plane publishes it, and agents may be there first.
//!
//! Whether the file is any good is said by `identity`, which reads it.

use std::path::Path;
use std::time::Duration;

use crate::lifecycle::{Block, Shutdown};

/// How often one looks for the file. The kubelet brings it about a minute after it was published.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Waits until there is something in the file, and holds readiness meanwhile; `false` when the process is to stop.
pub(super) async fn published(path: &Path, waiting: Block, shutdown: &Shutdown) -> bool {
    let mut told = false;
    while std::fs::metadata(path).map_or(0, |about| about.len()) == 0 {
        if !told {
            tracing::info!(path = %path.display(), "waiting for the trust bundle of the control plane");
            told = true;
        }
        tokio::select! {
            biased;
            () = shutdown.requested() => return false,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
    drop(waiting);
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lifecycle::{Readiness, shutdown, tasks};

    #[tokio::test(start_paused = true)]
    async fn an_agent_waits_for_the_trust_bundle_and_says_so() {
        let dir = tempfile::tempdir().expect("a directory");
        let (path, readiness) = (dir.path().join("roots.pem"), Readiness::default());
        let (_trigger, shutdown) = shutdown::channel();
        let waiting = readiness.block("trust bundle");
        let wanted = path.clone();
        let wait = tasks::spawn("wait", async move {
            assert!(published(&wanted, waiting, &shutdown).await);
        });
        tokio::time::sleep(LOOK_EVERY * 3).await;
        assert_eq!(readiness.pending(), ["trust bundle"]);
        std::fs::write(&path, "").expect("written");
        tokio::time::sleep(LOOK_EVERY * 3).await;
        assert_eq!(readiness.pending(), ["trust bundle"], "an empty file is none");
        std::fs::write(&path, "roots").expect("written");
        wait.await.expect("it came");
        assert!(readiness.is_ready());
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_is_to_stop_waits_no_longer() {
        let readiness = Readiness::default();
        let (trigger, shutdown) = shutdown::channel();
        trigger.fire();
        let waiting = readiness.block("trust bundle");
        assert!(!published(Path::new("/nonexistent/roots.pem"), waiting, &shutdown).await);
    }
}
