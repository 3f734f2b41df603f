//! What all parts of the running server share.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;

use super::faults::{Fault, Faults};
use super::state::State;

/// How often a watch has a bookmark unless told otherwise. The real server's minute would make tests of it slow.
const BOOKMARKS_EVERY: Duration = Duration::from_secs(5);

/// The shared parts.
#[derive(Debug)]
pub struct Inner {
    /// Objects.
    pub state: Mutex<State>,
    /// Orders and the account of requests.
    pub faults: Mutex<Faults>,
    /// Wakes watches: something was written or ordered.
    pub pulse: watch::Sender<u64>,
    /// Whether connections shall be taken.
    pub is_open: watch::Sender<bool>,
    /// Whether they are.
    pub is_listening: watch::Sender<bool>,
    settings: Mutex<Settings>,
}

#[derive(Debug)]
struct Settings {
    bookmarks_every: Duration,
    needs_token: bool,
    is_as_given: bool,
}

impl Default for Inner {
    fn default() -> Self {
        Self::new()
    }
}

impl Inner {
    /// A server that takes connections.
    pub fn new() -> Self {
        Self {
            state: Mutex::new(State::new()),
            faults: Mutex::new(Faults::default()),
            pulse: watch::Sender::new(0),
            is_open: watch::Sender::new(true),
            is_listening: watch::Sender::new(false),
            settings: Mutex::new(Settings {
                bookmarks_every: BOOKMARKS_EVERY,
                needs_token: false,
                is_as_given: false,
            }),
        }
    }

    /// Wakes all watches.
    pub fn wake(&self) {
        self.pulse.send_modify(|count| *count += 1);
    }

    /// Orders a fault, for running watches too.
    pub fn order(&self, fault: Fault) {
        self.faults.lock().order(fault);
        self.wake();
    }

    /// Takes all orders back.
    pub fn clear(&self) {
        self.faults.lock().clear();
        self.wake();
    }

    /// How often a watch has a bookmark.
    pub fn bookmarks_every(&self) -> Duration {
        self.settings.lock().bookmarks_every
    }

    /// Sets it.
    pub fn set_bookmarks_every(&self, every: Duration) {
        self.settings.lock().bookmarks_every = every;
        self.wake();
    }

    /// Whether a request without a token is refused.
    pub fn needs_token(&self) -> bool {
        self.settings.lock().needs_token
    }

    /// Sets it.
    pub fn set_needs_token(&self, needs: bool) {
        self.settings.lock().needs_token = needs;
    }

    /// Whether new objects keep the UID and the time that they name.
    pub fn is_as_given(&self) -> bool {
        self.settings.lock().is_as_given
    }

    /// Sets it.
    pub fn set_as_given(&self, is_as_given: bool) {
        self.settings.lock().is_as_given = is_as_given;
    }
}
