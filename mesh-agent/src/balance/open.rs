//! How many connections each endpoint has, as one worker sees it. Workers share nothing, so there is no lock; with the
//! load spread evenly over workers their views agree well enough to choose by.

use std::cell::RefCell;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::SocketAddr;
use std::rc::Rc;

/// Open connections per endpoint address. Cheap to clone; clones share the counts. Endpoints without connections take
/// no room.
#[derive(Clone, Debug, Default)]
pub struct OpenConnections(Rc<RefCell<HashMap<SocketAddr, u32>>>);

/// One open connection; dropping it ends the count.
#[derive(Debug)]
#[must_use = "the connection counts as open only while this is held"]
pub struct Open {
    table: OpenConnections,
    endpoint: SocketAddr,
}

impl OpenConnections {
    /// How many connections to this endpoint are open.
    pub fn open(&self, endpoint: SocketAddr) -> u32 {
        self.0.borrow().get(&endpoint).copied().unwrap_or(0)
    }

    /// Counts one more until the guard is dropped. Take it before connecting, so that attempts count as well.
    pub fn begin(&self, endpoint: SocketAddr) -> Open {
        *self.0.borrow_mut().entry(endpoint).or_insert(0) += 1;
        Open { table: self.clone(), endpoint }
    }
}

impl Open {
    /// The endpoint.
    pub fn endpoint(&self) -> SocketAddr {
        self.endpoint
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if let Entry::Occupied(mut count) = self.table.0.borrow_mut().entry(self.endpoint) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_counts_until_its_guard_is_dropped() {
        let table = OpenConnections::default();
        let [a, b] = [1, 2].map(|index| SocketAddr::from(([10, 0, 0, index], 80)));
        let first = table.begin(a);
        let second = table.clone().begin(a);
        assert_eq!((table.open(a), table.open(b)), (2, 0));
        drop(first);
        assert_eq!(table.open(a), 1);
        assert_eq!(second.endpoint(), a);
        drop(second);
        assert_eq!(table.open(a), 0);
        assert!(table.0.borrow().is_empty(), "an idle endpoint leaves nothing behind");
    }
}
