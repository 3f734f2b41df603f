//! How the table is replaced: as a whole, by one writer, under any number of readers.

use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::watch;

use super::RouteTable;

/// Read handle on the current table. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Routes {
    current: Arc<ArcSwap<RouteTable>>,
    version: watch::Receiver<u64>,
}

/// The single writer.
#[derive(Debug)]
pub struct Writer {
    current: Arc<ArcSwap<RouteTable>>,
    version: watch::Sender<u64>,
}

/// A table without routes, and its writer.
pub fn new() -> (Writer, Routes) {
    let current = Arc::new(ArcSwap::from_pointee(RouteTable::default()));
    let (sender, receiver) = watch::channel(0);
    (Writer { current: current.clone(), version: sender }, Routes { current, version: receiver })
}

impl Routes {
    /// The newest table. Hold it for one request, not for a connection.
    pub fn current(&self) -> Arc<RouteTable> {
        self.current.load_full()
    }

    /// Tells when a newer table is there; the value counts publications.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.version.clone()
    }
}

impl Writer {
    /// The table that was published last.
    pub fn current(&self) -> Arc<RouteTable> {
        self.current.load_full()
    }

    /// Replaces the table as a whole and returns how many times that has been done.
    pub fn publish(&self, table: RouteTable) -> u64 {
        self.current.store(Arc::new(table));
        self.version.send_modify(|version| *version += 1);
        *self.version.borrow()
    }
}
