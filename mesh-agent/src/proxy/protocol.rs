//! Is a connection that a pod dialled read as HTTP, or moved as bytes, and who else decides where it leads?
//!
//! Station 5. What was written comes first (appProtocol, the kind of the attached routes), then the client's first bytes;
//! a port for which nothing was written is never waited on.

use std::sync::Arc;

use rustls::server::Acceptor;
use tokio::net::TcpStream;

use super::http::entry::sniff_socket;
use super::http::request::destination_of;
use super::http::sniff::Sniffed;
use super::outbound::Arrived;
use super::worker::Local;
use crate::capture::reads_requests;
use crate::model::{AppProtocol, Ending, ServicePort};
use crate::registry::Destination;
use crate::route::{self, Matched, PortRoutes};

/// Longest client hello that is waited for, in bytes: the longest TLS record (RFC 8446 section 5.1), twice over for hellos
/// with post-quantum key shares that are split.
const CLIENT_HELLO_BYTES_MAX: usize = 2 * 16 * 1024;

/// How a connection is carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spoken {
    /// As it is.
    Bytes,
    /// Request by request.
    Http {
        /// HTTP/2.
        is_h2: bool,
    },
}

impl Spoken {
    /// What was sniffed, if it is HTTP.
    pub(super) fn of(sniffed: Sniffed) -> Option<Self> {
        match sniffed {
            Sniffed::Http1 => Some(Self::Http { is_h2: false }),
            Sniffed::Http2 => Some(Self::Http { is_h2: true }),
            Sniffed::Tls | Sniffed::Other | Sniffed::More => None,
        }
    }
}

/// Whether that takes a look at the client's bytes, or at routes. No: it is bytes.
pub(super) fn must_look(local: &Local, arrived: &Arrived) -> bool {
    let is_opaque = hint(arrived) == Some(AppProtocol::Opaque);
    match routes(local, arrived).as_deref() {
        Some(PortRoutes::Requests(_)) => !is_opaque,
        Some(PortRoutes::Tcp(_) | PortRoutes::Tls(_)) => true,
        None => !is_opaque && may_reach_readers(local, arrived),
    }
}

fn hint(arrived: &Arrived) -> Option<AppProtocol> {
    arrived.destination.service_port().and_then(ServicePort::protocol)
}

fn routes(local: &Local, arrived: &Arrived) -> Option<Arc<PortRoutes>> {
    let Destination::Service(service, index) = &arrived.destination else { return None };
    let port = service.ports.get(*index)?;
    let table = local.handles.routes.current();
    table.for_client(&service.name, port.port, &arrived.source.name.namespace).cloned()
}

/// Settles it, where [`must_look`] said so. Routes for connections are carried out here: they change where the connection
/// leads.
///
/// # Errors
/// The connection is refused, or over.
pub(super) async fn spoken(local: &Local, arrived: &mut Arrived, app: &TcpStream) -> Result<Spoken, Ending> {
    match routes(local, arrived).as_deref() {
        // Whoever wrote a route said that it is HTTP: an idle client is waited for, anything else is refused.
        Some(PortRoutes::Requests(_)) => {
            let sniffed = sniff_socket(app, &mut arrived.first, None, &arrived.entry.close).await?;
            Spoken::of(sniffed).ok_or(Ending::NotHttp)
        }
        Some(PortRoutes::Tcp(router)) => redirect(local, arrived, router.find()),
        Some(PortRoutes::Tls(router)) => {
            let name = server_name(app, arrived).await?;
            redirect(local, arrived, router.find(name.as_deref()))
        }
        None => {
            let limit = arrived.mesh.config.protocol_detection_timeout;
            let sniffed = sniff_socket(app, &mut arrived.first, Some(limit), &arrived.entry.close).await?;
            // What is not HTTP the pod's own side judges, as a connection of bytes.
            Ok(Spoken::of(sniffed).unwrap_or(Spoken::Bytes))
        }
    }
}

/// Sends a connection where its route says.
fn redirect(local: &Local, arrived: &mut Arrived, matched: Option<&Matched>) -> Result<Spoken, Ending> {
    let matched = matched.ok_or(Ending::NoRoute)?;
    let drawn = route::draw(&matched.rule.backends, &mut local.rng.borrow_mut()).ok_or(Ending::NoEndpoint)?;
    arrived.destination = destination_of(&arrived.mesh, &drawn.target).map_err(|reason| {
        tracing::debug!(route = %matched.route, reason, "a connection fell to an invalid backend");
        Ending::NoEndpoint
    })?;
    arrived.origin.drawn = None;
    Ok(Spoken::Bytes)
}

/// Whether the connection may end at a pod of this node whose requests must be read. Then they are read once, here.
fn may_reach_readers(local: &Local, arrived: &Arrived) -> bool {
    let policies = local.handles.policies.current();
    let reads = |uid: &crate::model::WorkloadUid, port| {
        local.served(uid).is_some_and(|pod| reads_requests(&policies, &pod.pod.workload(), port))
    };
    match &arrived.destination {
        Destination::Service(..) => {
            let endpoints = arrived.destination.service_port().map_or(&[][..], |port| &port.endpoints);
            let mut here = endpoints.iter().filter(|one| one.node.as_deref() == Some(&*arrived.source.node));
            here.any(|one| one.workload.as_ref().is_some_and(|uid| reads(uid, one.address.port())))
        }
        Destination::Workload(pod) => reads(&pod.uid, arrived.origin.dialled.port()),
        Destination::External => false,
    }
}

/// The server name of a client hello (RFC 6066 section 3), read by the TLS library and left where it is.
async fn server_name(app: &TcpStream, arrived: &mut Arrived) -> Result<Option<String>, Ending> {
    loop {
        let mut acceptor = Acceptor::default();
        let mut seen = arrived.first.bytes();
        while !seen.is_empty() {
            if acceptor.read_tls(&mut seen).is_err() {
                return Err(Ending::TlsFailed);
            }
        }
        match acceptor.accept() {
            Ok(Some(accepted)) => {
                return Ok(accepted.client_hello().server_name().map(str::to_ascii_lowercase));
            }
            Ok(None) if arrived.first.end() || arrived.first.bytes().len() > CLIENT_HELLO_BYTES_MAX => {
                return Err(Ending::TlsFailed);
            }
            Ok(None) => arrived.first.read_more(app).await?,
            Err(_not_tls) => return Err(Ending::TlsFailed),
        }
    }
}
