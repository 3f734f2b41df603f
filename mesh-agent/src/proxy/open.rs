//! Which connections are open on this worker, and how one is told to end.
//!
//! Beside stations 10 to 13. A connection is entered before policy is asked, so that a change that lands between the
//! question and the first byte is not missed. One table per worker, no locks.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use http::{HeaderMap, Method};
use slab::Slab;

use crate::capture::Pod;
use crate::model::{Ending, SpiffeId};

/// Tells one connection to end. The relay looks at it on every turn; raising it wakes the relay.
#[derive(Debug, Default)]
pub struct CloseSignal {
    ending: Cell<Option<Ending>>,
    draining: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl CloseSignal {
    /// Ends the connection with this ending; the first one counts.
    pub fn raise(&self, ending: Ending) {
        if self.ending.get().is_none() {
            self.ending.set(Some(ending));
        }
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Asks for an end where one loses nothing: between two connections of a tunnel, after a response. Bytes go on.
    pub fn drain(&self) {
        self.draining.set(true);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Whether that has been asked. Whoever has called [`CloseSignal::poll`] is woken when it is.
    pub fn is_draining(&self) -> bool {
        self.draining.get()
    }

    /// What it has been told, if anything.
    pub fn raised(&self) -> Option<Ending> {
        self.ending.get()
    }

    /// Waits until it is told. Cancel safe.
    pub async fn told(&self) -> Ending {
        poll_fn(|context| self.poll(context).map_or(Poll::Pending, Poll::Ready)).await
    }

    /// Like [`CloseSignal::raised`]; wakes the task when that changes.
    pub fn poll(&self, context: &Context<'_>) -> Option<Ending> {
        if self.ending.get().is_none() {
            let mut waker = self.waker.borrow_mut();
            if waker.as_ref().is_none_or(|known| !known.will_wake(context.waker())) {
                *waker = Some(context.waker().clone());
            }
        }
        self.ending.get()
    }
}

/// What policy needs to judge an inbound connection again.
#[derive(Clone, Debug)]
pub struct Judged {
    /// The client's verified identity.
    pub identity: Option<SpiffeId>,
    /// The client's address.
    pub client: IpAddr,
    /// The port that it dialled.
    pub port: u16,
    /// It was recognised as a probe of the node's kubelet.
    pub node_probe: bool,
    /// What it asks for; `None`: a connection of bytes.
    pub request: Option<Box<JudgedRequest>>,
}

/// What policy needs to judge a request again that is still under way.
#[derive(Clone, Debug)]
pub struct JudgedRequest {
    /// Method.
    pub method: Method,
    /// Path in its normal form.
    pub path: String,
    /// Host.
    pub host: Option<String>,
    /// Headers.
    pub headers: HeaderMap,
}

/// One open connection.
#[derive(Debug)]
pub struct Entry {
    /// The pod of this node that it belongs to.
    pub pod: Arc<Pod>,
    /// `None`: outbound, and judged where it arrives.
    pub judged: Option<Judged>,
    close: Rc<CloseSignal>,
}

impl Entry {
    /// Ends it.
    pub fn close(&self, ending: Ending) {
        self.close.raise(ending);
    }

    /// Ends it where that loses nothing.
    pub fn drain(&self) {
        self.close.drain();
    }
}

/// The open connections of one worker.
#[derive(Debug, Default)]
pub struct OpenTable {
    entries: RefCell<Slab<Entry>>,
    draining: Cell<bool>,
}

/// Keeps a connection in the table; dropping it takes it out.
#[derive(Debug)]
pub struct Registered {
    table: Rc<OpenTable>,
    key: usize,
    /// Raised when the connection must end.
    pub close: Rc<CloseSignal>,
}

impl OpenTable {
    /// Enters a connection.
    pub fn enter(self: &Rc<Self>, pod: Arc<Pod>, judged: Option<Judged>) -> Registered {
        let close = Rc::new(CloseSignal::default());
        close.draining.set(self.draining.get());
        let key = self.entries.borrow_mut().insert(Entry { pod, judged, close: close.clone() });
        Registered { table: self.clone(), key, close }
    }

    /// Lets every connection end where that loses nothing, those that are still to come too.
    pub fn drain(&self) {
        self.draining.set(true);
        self.for_each(Entry::drain);
    }

    /// Whether connections are to end where that loses nothing.
    pub fn is_draining(&self) -> bool {
        self.draining.get()
    }

    /// How many connections are open.
    pub fn len(&self) -> usize {
        self.entries.borrow().len()
    }

    /// Whether none is open.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Looks at every connection.
    pub fn for_each(&self, mut look: impl FnMut(&Entry)) {
        self.entries.borrow().iter().for_each(|(_, entry)| look(entry));
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.table.entries.borrow_mut().try_remove(self.key);
    }
}
