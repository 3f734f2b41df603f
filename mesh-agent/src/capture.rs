//! Which pods are caught, their in-pod listeners, and where a caught socket wanted to go.
//!
//! Layer 4, stations 2 and 9 of the walk. It turns the registry into kernel maps, opens listeners inside pods'
//! network namespaces, and answers the proxy's questions: which pod is this, where did its socket want to go, who on this
//! node dialled it, and open me a socket in that pod. It never reads a byte of a connection.
//!
//! Reading order: [`sandbox`] and [`groups`] (where pods run), [`enrol`] (catching one), [`complaint`] (what keeps one from it), [`compile`] (what the kernel must know),
//! [`numbers`] and [`tracked`] (what that stands on), [`tables`] (telling it), [`keeper`] (the task that keeps all this true), `watch` (what wakes it), `heart` (its sign of life) and [`succession`] (two agents on one node), [`flows`] and [`habit`] (connections that
//! never pass the agent), [`origins`] and [`callers`] (the proxy's questions).
#![forbid(unsafe_code)]

pub mod callers;
pub mod compile;
pub mod complaint;
pub mod enrol;
pub mod flows;
pub mod groups;
pub mod habit;
mod heart;
pub mod keeper;
pub mod numbers;
pub mod origins;
pub mod sandbox;
pub mod succession;
pub mod tables;
pub mod tracked;
mod watch;

pub use callers::{Caller, Callers, KernelCallers};
pub use compile::reads_requests;
pub use complaint::Complaint;
pub use keeper::{Capture, FastPath, Handles, Settings, State, start};
pub use origins::KernelOrigins;
pub use succession::Left;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use socket2::Socket;

use crate::model::{ClientAddr, EndpointAddr, OriginalDst, Workload};

/// A pod of this node that the mesh has caught.
#[derive(Debug)]
pub struct Pod {
    workload: ArcSwap<Workload>,
    sockets: Box<dyn SocketSource>,
    /// Kernel's netns cookie: the key of everything the kernel programs know about the pod.
    pub netns_cookie: u64,
}

/// Opens TCP sockets inside a pod's network namespace.
pub trait SocketSource: std::fmt::Debug + Send + Sync {
    /// A fresh non-blocking, close-on-exec TCP socket with keep-alive, user timeout and TCP_NODELAY set.
    ///
    /// # Errors
    /// The namespace is gone, or the process has no file descriptors left.
    fn tcp_socket(&self, v6: bool) -> io::Result<Socket>;
}

impl Pod {
    /// Puts together a pod.
    pub fn new(workload: Arc<Workload>, sockets: Box<dyn SocketSource>, netns_cookie: u64) -> Self {
        Self { workload: ArcSwap::new(workload), sockets, netns_cookie }
    }

    /// The workload, as the registry knows it now.
    pub fn workload(&self) -> Arc<Workload> {
        self.workload.load_full()
    }

    /// Replaces what is known about the workload (labels changed, say). The UID stays.
    pub fn update(&self, workload: Arc<Workload>) {
        self.workload.store(workload);
    }

    /// See [`SocketSource::tcp_socket`].
    pub fn tcp_socket(&self, v6: bool) -> io::Result<Socket> {
        self.sockets.tcp_socket(v6)
    }
}

/// What the connect hook recorded about a caught socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// What the application dialled.
    pub dialled: OriginalDst,
    /// The endpoint that the kernel drew, where it drew one.
    pub drawn: Option<EndpointAddr>,
}

/// The kernel's memory of caught sockets, as the proxy needs it.
pub trait OriginTable: std::fmt::Debug + Send + Sync {
    /// Where the socket that dialled the pod's outbound listener from `client` wanted to go; forgets it.
    /// `None` means that no hook saw this socket: refuse it, never guess.
    fn take(&self, pod: &Pod, client: SocketAddr) -> Option<Origin>;

    /// Makes `getpeername` and `accept` in the pod answer `client` for the connection that the agent is about to open
    /// from local address `agent`. Must be called before connecting.
    ///
    /// # Errors
    /// `AlreadyExists`: another connection has this local port, take another. Anything else: the map is full.
    fn show_client(&self, pod: &Pod, agent: SocketAddr, client: ClientAddr) -> io::Result<()>;

    /// Forgets what [`OriginTable::show_client`] said.
    fn forget_client(&self, pod: &Pod, agent: SocketAddr);
}

/// Tells a worker which listeners to serve.
#[derive(Debug)]
pub enum ListenerChange {
    /// Serve these two (non-blocking; options that accepted sockets inherit are set).
    Added {
        /// The pod.
        pod: Arc<Pod>,
        /// The application's outgoing connections arrive here.
        outbound: std::net::TcpListener,
        /// Connections from other pods arrive here; `local_addr` of an accepted socket is the original destination.
        inbound: std::net::TcpListener,
    },
    /// Stop: the pod is gone or has left the mesh.
    Removed {
        /// The pod.
        pod: Arc<Pod>,
    },
}
