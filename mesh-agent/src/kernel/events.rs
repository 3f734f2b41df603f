//! What the programs report, in batches.

use std::time::Duration;

use aya::maps::{MapData, RingBuf};
use mesh_common::Event;
use tokio::io::unix::AsyncFd;
use zerocopy::FromBytes;

use super::Error;

/// How long an ordinary event may wait in the ring, in milliseconds. Openings and closings do not wake the reader: a
/// wake-up per connection would cost more than the connection. Urgent events (demotion, eviction) do.
const BATCH_WAIT: Duration = Duration::from_millis(50);

/// The reading end of `EVENTS`.
pub struct Events {
    ring: AsyncFd<RingBuf<MapData>>,
}

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Events")
    }
}

impl Events {
    /// Wraps the ring. Needs a tokio runtime with I/O.
    ///
    /// # Errors
    /// The descriptor cannot be watched.
    pub fn new(ring: RingBuf<MapData>) -> Result<Self, Error> {
        super::sys::watch(ring)
            .map(|ring| Self { ring })
            .map_err(|source| Error::Call { call: "watching the event ring", source })
    }

    /// Waits for events, at most [`BATCH_WAIT`], and hands over all that are there. Cancel safe: an event leaves the
    /// ring only when it is passed to `each`.
    pub async fn next_batch(&mut self, mut each: impl FnMut(Event)) {
        if let Ok(Ok(mut ready)) = tokio::time::timeout(BATCH_WAIT, self.ring.readable_mut()).await {
            ready.clear_ready();
        }
        while let Some(item) = self.ring.get_mut().next() {
            match Event::read_from_bytes(&item) {
                Ok(event) => each(event),
                Err(_) => tracing::error!(len = item.len(), "event of the wrong size"),
            }
        }
    }
}
