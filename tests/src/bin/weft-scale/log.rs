//! What happened, in order, and who is told: the watch cache of the simulated API server.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::mpsc;

use super::waiting::Effect;

/// How many events a watch can catch up with. At 300 events per second that is half a minute.
const REMEMBERED: usize = 10_000;

/// One event of a watch.
#[derive(Debug)]
pub struct Event {
    /// The kind's place in [`super::cluster::KINDS`].
    pub kind: usize,
    /// Its revision.
    pub revision: u64,
    /// Namespace of the object.
    pub namespace: String,
    /// Name of the object.
    pub name: String,
    /// The pod's node; empty for others.
    pub node: String,
    /// The line that is sent, with the whole object.
    pub whole: Bytes,
    /// The line that is sent to those who asked for metadata.
    pub metadata: Bytes,
    /// What the agent will do about it. Taken by the first watch that sends the event.
    pub effects: Mutex<Vec<Effect>>,
}

/// The log.
#[derive(Default)]
pub struct Log {
    revision: AtomicU64,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    recent: VecDeque<Arc<Event>>,
    forgotten: u64,
    watches: Vec<(usize, mpsc::UnboundedSender<Arc<Event>>)>,
}

/// The revision is older than what is remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expired;

/// Events of one kind.
pub type Events = mpsc::UnboundedReceiver<Arc<Event>>;

impl Log {
    /// A log that begins after `revision`.
    pub fn new(revision: u64) -> Self {
        let inner = Inner { forgotten: revision, ..Inner::default() };
        Self { revision: AtomicU64::new(revision), inner: Mutex::new(inner) }
    }

    /// The newest revision. Whoever reads it has been sent everything up to it.
    pub fn revision(&self) -> u64 {
        self.revision.load(Ordering::Acquire)
    }

    /// Tells everybody who watches. Revisions must come in order.
    pub fn publish(&self, event: Event) {
        let event = Arc::new(event);
        let mut inner = self.inner.lock();
        inner.watches.retain(|(kind, watch)| match *kind == event.kind {
            true => watch.send(event.clone()).is_ok(),
            false => !watch.is_closed(),
        });
        inner.recent.push_back(event.clone());
        if inner.recent.len() > REMEMBERED {
            inner.forgotten = inner.recent.pop_front().map_or(0, |event| event.revision);
        }
        self.revision.store(event.revision, Ordering::Release);
    }

    /// Everything of a kind that came after `revision`, and what will come.
    pub fn subscribe(&self, kind: usize, revision: u64) -> Result<Events, Expired> {
        let (sender, receiver) = mpsc::unbounded_channel();
        let mut inner = self.inner.lock();
        if revision < inner.forgotten {
            return Err(Expired);
        }
        for event in inner.recent.iter().filter(|event| event.kind == kind && event.revision > revision) {
            let _ = sender.send(event.clone());
        }
        inner.watches.push((kind, sender));
        Ok(receiver)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: usize, revision: u64) -> Event {
        let none = || String::new();
        Event {
            kind,
            revision,
            namespace: none(),
            name: none(),
            node: none(),
            whole: Bytes::new(),
            metadata: Bytes::new(),
            effects: Mutex::default(),
        }
    }

    fn revisions(events: &mut Events) -> Vec<u64> {
        std::iter::from_fn(|| events.try_recv().ok()).map(|event| event.revision).collect()
    }

    #[test]
    fn a_watch_gets_its_kind_from_its_revision_on_and_each_event_once() {
        let log = Log::new(10);
        log.publish(event(1, 11));
        log.publish(event(2, 12));
        log.publish(event(1, 13));
        let mut late = log.subscribe(1, 11).unwrap();
        let mut early = log.subscribe(1, 10).unwrap();
        log.publish(event(2, 14));
        log.publish(event(1, 15));
        assert_eq!(revisions(&mut early), [11, 13, 15]);
        assert_eq!(revisions(&mut late), [13, 15]);
        assert_eq!(log.revision(), 15);
    }

    #[test]
    fn what_is_forgotten_has_expired() {
        let log = Log::new(10);
        assert_eq!(log.subscribe(1, 9).err(), Some(Expired));
        for revision in 11..=11 + REMEMBERED as u64 {
            log.publish(event(1, revision));
        }
        assert_eq!(log.subscribe(1, 10).err(), Some(Expired));
        assert!(log.subscribe(1, 11).is_ok());
    }
}
