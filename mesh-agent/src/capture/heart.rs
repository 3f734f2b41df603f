//! The sign of life that the kernel programs look for before they send a connection to the agent.

use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::kernel::{Error, Maps, load};

/// How often. Well below the age that counts as "away" (1 s by default).
const BEAT_EVERY: Duration = Duration::from_millis(200);

/// Beats until dropped, or until a later agent of this node does. A thread of its own: a long compilation must not look like a
/// dead agent.
pub(super) struct Heart {
    maps: Arc<Maps>,
    generation: u64,
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Heart {
    pub(super) fn start(maps: Arc<Maps>, generation: u64) -> Self {
        let (stop, stopped) = channel();
        let beaten = maps.clone();
        let beat = move || {
            while let Ok(false) | Err(_) = is_succeeded(&beaten, generation) {
                if let Err(error) = load::beat(&beaten, generation) {
                    tracing::error!(error = &error as &dyn std::error::Error, "heartbeat failed");
                }
                match stopped.recv_timeout(BEAT_EVERY) {
                    Err(RecvTimeoutError::Timeout) => {}
                    _ => return,
                }
            }
        };
        let thread = std::thread::Builder::new().name("heartbeat".into()).spawn(beat);
        Self {
            maps,
            generation,
            stop: Some(stop),
            thread: thread.inspect_err(|error| tracing::error!(%error, "no heartbeat thread")).ok(),
        }
    }

    /// Whether a later agent of this node beats.
    pub(super) fn is_succeeded(&self) -> Result<bool, Error> {
        is_succeeded(&self.maps, self.generation)
    }
}

fn is_succeeded(maps: &Maps, generation: u64) -> Result<bool, Error> {
    let seen = maps.heartbeat.get(&0)?;
    Ok(seen.is_some_and(|seen| seen.generation > generation))
}

impl Drop for Heart {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // The thread only ends by returning; a panic in it has been reported already.
            let _ = thread.join();
        }
    }
}
