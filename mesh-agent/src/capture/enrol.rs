//! Catching a pod: its namespace is checked, the agent's listeners are opened inside it, `inbound` is attached.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::compile::Caught;
use super::sandbox::{Place, Sandbox};
use super::{Pod, SocketSource};
use crate::kernel::{Netns, cgroup, netns};
use crate::model::Workload;
use mesh_common::WORKERS_MAX;

/// Connections that may wait in an in-pod listener, per worker. The kernel cuts it to the namespace's
/// `net.core.somaxconn` (4096 by default).
const BACKLOG: i32 = 4096;

/// Why a pod could not be caught.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel's answer.
    #[error(transparent)]
    Kernel(#[from] crate::kernel::Error),
    /// The namespace is somebody else's, or not set up yet.
    #[error("network namespace {netns:?} holds none of the pod's addresses ({wanted}); it holds {found}")]
    WrongNamespace {
        /// Path.
        netns: std::path::PathBuf,
        /// The pod's addresses.
        wanted: String,
        /// The namespace's.
        found: String,
    },
    /// No process of the pod tells its namespace.
    #[error("it has no network namespace yet")]
    NoNamespace,
    /// A listener could not be opened.
    #[error("cannot listen inside the pod")]
    Listen(#[source] std::io::Error),
    /// Too many pods.
    #[error("this node has no slot left for another pod ({max} at most)")]
    Full {
        /// How many.
        max: u32,
    },
}

/// A pod with its listeners open, not yet visible to the programs.
#[derive(Debug)]
pub struct Opened {
    /// The handle for the proxy.
    pub pod: Arc<Pod>,
    /// Its namespace.
    pub netns: Netns,
    /// By which path it was found.
    pub place: Place,
    /// What the tables need.
    pub caught: Caught,
    /// Per worker: outbound, inbound.
    pub listeners: Vec<(Socket, Socket)>,
}

#[derive(Debug)]
struct InNetns(Netns);

impl SocketSource for InNetns {
    fn tcp_socket(&self, v6: bool) -> std::io::Result<Socket> {
        self.0.tcp_socket(v6)
    }
}

/// Opens namespace and listeners of a pod.
///
/// # Errors
/// See [`Error`]. Nothing is left behind.
pub fn open(sandbox: &Sandbox, workload: &Arc<Workload>, slot: u32, workers: usize) -> Result<Opened, Error> {
    let (place, netns) = find_netns(&sandbox.places, workload)?;
    let listeners = netns
        .enter(|| {
            (0..workers.min(WORKERS_MAX))
                .map(|_| Ok((listener()?, listener()?)))
                .collect::<std::io::Result<Vec<_>>>()
        })?
        .map_err(Error::Listen)?;
    let outbound_ports = ports(&listeners).map_err(Error::Listen)?;
    let caught = Caught {
        uid: workload.uid.clone(),
        netns_cookie: netns.cookie(),
        slot,
        outbound_ports,
        cgroup_id: sandbox.cgroup.as_deref().and_then(|group| cgroup::id(group).ok()),
    };
    let pod = Arc::new(Pod::new(workload.clone(), Box::new(InNetns(netns.clone())), netns.cookie()));
    Ok(Opened { pod, netns, place, caught, listeners })
}

/// The first namespace that holds an address of the pod. Where none does, the answer speaks of the likeliest one.
fn find_netns(places: &[Place], workload: &Workload) -> Result<(Place, Netns), Error> {
    let mut first = None;
    for place in places {
        let opened = Netns::open(&place.path).map_err(Error::from);
        match opened.and_then(|netns| check_addresses(place, workload, &netns).map(|()| netns)) {
            Ok(netns) => return Ok((place.clone(), netns)),
            Err(error) => first = first.or(Some(error)),
        }
    }
    Err(first.unwrap_or(Error::NoNamespace))
}

/// A namespace is believed only if it holds the pod's address; otherwise a foreign process that once entered it could
/// lend the pod's identity to another.
fn check_addresses(place: &Place, workload: &Workload, netns: &Netns) -> Result<(), Error> {
    let found = netns.addresses()?;
    if workload.addresses.iter().any(|ip| found.contains(ip)) {
        return Ok(());
    }
    let list = |ips: &[IpAddr]| ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    Err(Error::WrongNamespace {
        netns: place.path.clone(),
        wanted: list(&workload.addresses),
        found: list(&found),
    })
}

/// On an ephemeral port that only the programs' maps know. What it accepts inherits the stream options.
fn listener() -> std::io::Result<Socket> {
    let v6: SocketAddr = (Ipv6Addr::UNSPECIFIED, 0).into();
    let socket = match Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP)) {
        Ok(socket) => {
            socket.set_only_v6(false)?;
            // Fails where IPv6 is switched off in the namespace; then IPv4 it is.
            match socket.bind(&SockAddr::from(v6)) {
                Ok(()) => socket,
                Err(_) => v4_socket()?,
            }
        }
        Err(_) => v4_socket()?,
    };
    netns::set_stream_options(&socket)?;
    socket.set_nonblocking(true)?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

fn v4_socket() -> std::io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    socket.bind(&SockAddr::from(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))))?;
    Ok(socket)
}

fn ports(listeners: &[(Socket, Socket)]) -> std::io::Result<Vec<u16>> {
    let port = |socket: &Socket| {
        let address = socket.local_addr()?.as_socket();
        address.map(|address| address.port()).ok_or_else(|| std::io::Error::other("not an IP socket"))
    };
    listeners.iter().map(|(outbound, _)| port(outbound)).collect()
}
