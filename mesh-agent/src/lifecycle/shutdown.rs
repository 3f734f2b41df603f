//! Stopping: one trigger, any number of listeners.

use tokio::sync::watch;

/// Asks everything to stop. Dropping it stops too.
#[derive(Debug)]
pub struct Trigger(watch::Sender<bool>);

/// Learns that the process stops. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Shutdown(watch::Receiver<bool>);

/// A linked pair.
pub fn channel() -> (Trigger, Shutdown) {
    let (sender, receiver) = watch::channel(false);
    (Trigger(sender), Shutdown(receiver))
}

impl Trigger {
    /// Asks everything to stop.
    pub fn fire(&self) {
        self.0.send_replace(true);
    }
}

impl Shutdown {
    /// Completes once stopping has been asked for. Cancel safe.
    pub async fn requested(&self) {
        let mut receiver = self.0.clone();
        // An error means that the trigger is gone, which is a stop as well.
        let _ = receiver.wait_for(|stop| *stop).await;
    }
}
