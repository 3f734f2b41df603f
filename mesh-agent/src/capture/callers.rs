//! Who on this node dialled a pod: kubelet, or somebody else behind the same address.
//!
//! A node's address proves nothing: every pod on the host network has it. What dials is told by its socket: its user, and the
//! control group in which it was made. kubelet is root and in no pod. Nothing here decides what such a caller may do.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;

use super::groups::names;
use crate::kernel::cgroup::{self, Mounts};
use crate::kernel::diag::{self, Owner};

/// Groups that are remembered. A number is never given twice, so an answer stays true; kubelet's is the only one asked about
/// often.
const KNOWN_MAX: usize = 1024;

/// Who holds the client's end of a connection that came from this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caller {
    /// A process of root outside every pod.
    Node,
    /// Nobody any more: it was closed before it could be asked about.
    Gone,
    /// Somebody else, somebody on another machine, or nobody knows.
    Other,
}

/// Tells callers apart.
pub trait Callers: std::fmt::Debug + Send + Sync {
    /// Who dialled `server` from `client`.
    fn of(&self, client: SocketAddr, server: SocketAddr) -> Caller;
}

/// Asks the kernel. The agent has to be in the node's own network namespace.
#[derive(Debug)]
pub struct KernelCallers {
    unified: Option<PathBuf>,
    /// Everything below it is a pod's, whatever it is called.
    pods: Option<PathBuf>,
    /// Control groups by number: whether they are outside every pod.
    known: Mutex<HashMap<u64, bool>>,
}

impl KernelCallers {
    /// Everything below `pods` is a pod's, and so is every group with a pod's UID in its name. Without the unified hierarchy
    /// nobody is recognised.
    pub fn new(pods: Option<&Path>) -> Self {
        let mounts = Mounts::of_self().unwrap_or_default();
        Self { unified: mounts.unified, pods: pods.map(Path::to_owned), known: Mutex::default() }
    }

    /// Only a group that is found counts: one that is not may be any pod's.
    fn is_outside_pods(&self, id: u64) -> bool {
        if let Some(known) = self.known.lock().get(&id) {
            return *known;
        }
        let Some(unified) = &self.unified else { return false };
        let mut found = None;
        cgroup::walk(unified, &mut |group| {
            if found.is_none() && cgroup::id(group).is_ok_and(|own| own == id) {
                found = Some(!self.is_pods(unified, group));
            }
            found.is_none()
        });
        if let Some(answer) = found {
            let mut known = self.known.lock();
            if known.len() >= KNOWN_MAX {
                known.clear();
            }
            known.insert(id, answer);
        }
        found.unwrap_or(false)
    }
}

impl KernelCallers {
    fn is_pods(&self, unified: &Path, group: &Path) -> bool {
        let mut names = group.strip_prefix(unified).unwrap_or(group).iter().filter_map(|name| name.to_str());
        let is_below = |pods: &Path| pods != unified && group.starts_with(pods);
        self.pods.as_deref().is_some_and(is_below) || names.any(|name| names::pod(name).is_some())
    }
}

impl Callers for KernelCallers {
    fn of(&self, client: SocketAddr, server: SocketAddr) -> Caller {
        match diag::owner(client, server) {
            Ok(Some(Owner::Process { uid: 0, cgroup })) if self.is_outside_pods(cgroup) => Caller::Node,
            Ok(Some(Owner::Nobody)) => Caller::Gone,
            Ok(_) => Caller::Other,
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "cannot tell who dialled a pod");
                Caller::Other
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a_pods_group_is_known_by_where_it_is_and_by_its_name() {
        let root = Path::new("/cgroup");
        let is_pods = |given: Option<&str>, group: &str| {
            let callers = KernelCallers::new(given.map(Path::new));
            callers.is_pods(root, Path::new(group))
        };
        let uid = "0b6a3c5e-9f1d-4a52-8f0e-7d2c1b3a4f55";
        assert!(is_pods(None, &format!("/cgroup/a/pod{uid}/container")));
        assert!(!is_pods(None, "/cgroup/system.slice/kubelet.service"));
        assert!(is_pods(Some("/cgroup/pods"), "/cgroup/pods/shop_web"));
        assert!(!is_pods(Some("/cgroup/pods"), "/cgroup/podsmen"));
        // Attached to the root, as for a runtime without groups of its own: everything is below it.
        assert!(!is_pods(Some("/cgroup"), "/cgroup/system.slice/kubelet.service"));
    }

    #[test]
    fn this_process_is_a_caller_of_the_node_where_it_is_roots() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (from, to) = (client.local_addr().unwrap(), client.peer_addr().unwrap());
        let is_root = nix::unistd::geteuid().is_root();
        let expected = if is_root { Caller::Node } else { Caller::Other };
        let callers = KernelCallers::new(None);
        assert_eq!(callers.of(from, to), expected);
        assert_eq!(callers.of(from, to), expected, "remembered");
        let without = KernelCallers { unified: None, pods: None, known: Mutex::default() };
        assert_eq!(without.of(from, to), Caller::Other);
        drop(client);
        assert_eq!(callers.of(from, to), Caller::Gone);
        assert_eq!(callers.of("192.0.2.1:1".parse().unwrap(), to), Caller::Other);
    }
}
