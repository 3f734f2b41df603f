//! What reaches a pod.
//!
//! [`serve`] is the table of contents of this half of the data path: who dials, what, permit, application, relay, ending.
//! The application is dialled with a [`Permit`] in hand or not at all.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use rustls::ServerConfig;
use tokio::net::TcpStream;

use super::carrier::{self, Carrier, Counted, Flow, Received};
use super::dial::{self, Application};
use super::http;
use super::http::connection::{Connection, Side};
use super::http::entry::{sniff_socket, sniff_tunnel};
use super::http::io::{Io, Returned, TunnelIo};
use super::http::sniff::Sniffed;
use super::open::{CloseSignal, Judged, Registered};
use super::protocol::Spoken;
use super::reach::tls_label;
use super::relay::{self, Early, First, Outcome};
use super::report::Report;
use super::tls;
use super::tunnel::{self, Event, Open, ResetReason, Role};
use super::worker::{Local, Served};
use crate::capture::{Caller, reads_requests};
use crate::identity;
use crate::model::{ClientAddr, Ending, EndpointAddr, OriginalDst, Path, SpiffeId, Workload};
use crate::policy::{Facts, NODE_PROBE, Permit, Refusal};
use crate::telemetry::{Reporter, TunnelRole};

/// How long the end of a connection may take whose client has closed already: it is on its way within this node.
const FIN_PATIENCE: Duration = Duration::from_millis(100);

/// One socket, from accept to its end: one plaintext connection, or one tunnel with connections one after the other.
pub async fn serve(local: Rc<Local>, pod: Rc<Served>, peer: TcpStream, address: SocketAddr) {
    let Ok(dialled) = peer.local_addr() else { return };
    let (dialled, address) = (EndpointAddr::new(dialled), ClientAddr::new(address));
    if dialled.port() == tunnel::PORT {
        serve_tunnel(&local, &pod, peer, address).await;
    } else {
        serve_plain(&local, &pod, peer, dialled, address).await;
    }
}

/// A connection from outside the mesh.
pub(super) async fn serve_plain(
    local: &Rc<Local>,
    served: &Rc<Served>,
    peer: TcpStream,
    dialled: EndpointAddr,
    client: ClientAddr,
) {
    let mut report = Report::new(&local.handles.telemetry, Reporter::Destination, client);
    report.path = Path::Plain;
    let caller = node_caller(local, served, dialled, client);
    let node_probe = caller == Caller::Node;
    let arrival = Arrival { local, served, identity: None, client, destination: dialled, node_probe };
    let dialled = OriginalDst::new(dialled.addr());
    if caller == Caller::Gone && is_empty_and_over(&peer).await {
        // A `tcpSocket` probe has its answer by now. Nothing was said, so the application is not dialled either.
        arrival.note(&mut report, dialled);
        report.reason = Some(NODE_PROBE.into());
        return report.close(Ending::Closed);
    }
    let mut first = First::default();
    if arrival.reads_requests() {
        let entry = local.open.enter(served.pod.clone(), None);
        let sniffed = Box::pin(sniff_socket(&peer, &mut first, arrival.patience(), &entry.close)).await;
        match sniffed.and_then(|sniffed| arrival.spoken(sniffed)) {
            Ok(Spoken::Http { is_h2 }) => {
                arrival.note(&mut report, dialled);
                let (first, _end) = first.take();
                let io = Io::Tcp(peer);
                return Box::pin(arrival.serve_requests(io, first, is_h2, entry, dialled, report)).await;
            }
            Ok(Spoken::Bytes) => {}
            Err(ending) => {
                arrival.note(&mut report, dialled);
                if ending == Ending::NotHttp {
                    relay::reset_on_close(&peer);
                }
                return report.close(ending);
            }
        }
    }
    let (permit, entry) = match arrival.judge(&mut report, dialled) {
        Ok(admitted) => admitted,
        Err(refusal) => {
            relay::reset_on_close(&peer);
            return refusal.tell(report);
        }
    };
    let ending = match arrival.dial(&permit).await {
        Ok(app) => {
            report.opened();
            let (bytes, end) = first.take();
            let outcome = relay::plain(
                &app.stream,
                &peer,
                Vec::new(),
                false,
                Early { bytes, end },
                &mut report.bytes,
                &entry.close,
                local.scratch,
            )
            .await;
            end_app(app, ending_of(&outcome))
        }
        Err(ending) => ending,
    };
    if ending != Ending::Closed {
        relay::reset_on_close(&peer);
    }
    report.close(ending);
}

/// Who on this node dialled a port that the pod declares for kubelet's probes; every other arrival is not asked about.
fn node_caller(local: &Local, served: &Served, dialled: EndpointAddr, client: ClientAddr) -> Caller {
    let is_probe_port = served.pod.workload().probe_ports.contains(&dialled.port());
    let mesh = local.handles.registry.snapshot();
    if !is_probe_port || mesh.workload_by_ip(client.ip()).is_some() {
        return Caller::Other;
    }
    local.handles.callers.of(client.addr(), dialled.addr())
}

/// Whether a connection whose client is known to be gone ends without a byte.
async fn is_empty_and_over(peer: &TcpStream) -> bool {
    matches!(tokio::time::timeout(FIN_PATIENCE, peer.peek(&mut [0])).await, Ok(Ok(0) | Err(_)))
}

/// A tunnel and, one after the other, the connections on it.
async fn serve_tunnel(local: &Rc<Local>, served: &Rc<Served>, peer: TcpStream, address: ClientAddr) {
    // Stands for the tunnel between connections: closed with the pod, or when the agent stops.
    let idle = local.open.enter(served.pod.clone(), None);
    let identity = served.pod.workload().identity.clone();
    let Some(config) = local.handles.credentials.server_config(&identity) else {
        return refuse_tunnel(local, served, peer, address, Ending::NoCertificate, "no_certificate");
    };
    let (mut carrier, client) = match Box::pin(shake_hands(local, peer, config.clone())).await {
        Ok(accepted) => accepted,
        Err((peer, label)) => {
            return refuse_tunnel(local, served, peer, address, Ending::TlsFailed, label);
        }
    };
    local.handles.telemetry.tunnel_handshake(TunnelRole::Server, "success");
    while let Some(open) = next_open(&mut carrier, &idle.close, local).await {
        let Some(used) = serve_open(local, served, carrier, &client, address, open).await else { return };
        carrier = used;
        // After a rotation the peer's next connection should meet the new certificate.
        let is_current = local
            .handles
            .credentials
            .server_config(&identity)
            .is_some_and(|current| Arc::ptr_eq(&current, &config));
        if !is_current {
            break;
        }
    }
    let _ = carrier.flush();
    if carrier.session().is_clean() {
        let _ = carrier.close();
    }
}

async fn shake_hands(
    local: &Local,
    peer: TcpStream,
    config: Arc<ServerConfig>,
) -> Result<(Box<Carrier>, SpiffeId), (TcpStream, &'static str)> {
    let Ok(_turn) = local.handshakes_in.acquire().await else { return Err((peer, "shutdown")) };
    let shaking = tls::accept(&peer, config, tunnel::ALPN);
    let established = match tokio::time::timeout(local.settings.handshake_timeout, shaking).await {
        Ok(Ok(established)) => established,
        Ok(Err(error)) => return Err((peer, tls_label(&error))),
        Err(_elapsed) => return Err((peer, "handshake_timeout")),
    };
    match identity::peer_identity(&established.peer_certificates) {
        Ok(client) => {
            let counted = Counted::new(&local.handles.telemetry);
            Ok((Box::new(Carrier::new(peer, established, Role::Acceptor, counted)), client))
        }
        Err(_) => Err((peer, "no_spiffe_id")),
    }
}

fn refuse_tunnel(
    local: &Local,
    served: &Served,
    peer: TcpStream,
    client: ClientAddr,
    ending: Ending,
    label: &'static str,
) {
    let telemetry = &local.handles.telemetry;
    telemetry.tunnel_handshake(TunnelRole::Server, label);
    let mut report = Report::new(telemetry, Reporter::Destination, client);
    report.path = Path::Tunnel;
    report.destination = Some(served.pod.workload());
    report.source = local.handles.registry.snapshot().workload_by_ip(client.ip()).cloned();
    report.reason = Some(label.into());
    tracing::warn!(%client, pod = %served.pod.workload().name, label, "tunnel refused");
    relay::reset_on_close(&peer);
    report.close(ending);
}

/// Waits for the next connection on an idle tunnel. `None`: the tunnel is over.
async fn next_open(carrier: &mut Carrier, close: &CloseSignal, local: &Local) -> Option<Box<Open>> {
    let next = poll_fn(|context| {
        if close.poll(context).is_some() {
            return Poll::Ready(Ok(None));
        }
        loop {
            let flushed = carrier.flush()?;
            let mut next = None;
            let mut refused = false;
            let received = {
                let mut scratch = local.scratch.borrow_mut();
                carrier.receive(&mut scratch.receive, &mut |event| match event {
                    Event::Open(open) => {
                        next = Some(open);
                        Flow::Stop
                    }
                    Event::Resume(_) => {
                        refused = true;
                        Flow::Stop
                    }
                    // The end of the connection before.
                    _ => Flow::Continue,
                })?
            };
            if refused {
                carrier.put_reset(ResetReason::NotNegotiated, "hand-over was not negotiated")?;
                continue;
            }
            if next.is_some() {
                return Poll::Ready(Ok::<_, carrier::Error>(next));
            }
            if received != Received::Blocked {
                continue;
            }
            let writable = !flushed && carrier.stream().poll_write_ready(context).is_ready();
            if !writable && carrier.stream().poll_read_ready(context).is_pending() {
                return Poll::Pending;
            }
        }
    });
    match next.await {
        Ok(open) => open,
        // The peer closes idle tunnels as it likes.
        Err(carrier::Error::Closed { .. } | carrier::Error::Io(_)) => None,
        Err(error) => {
            tracing::warn!(error = &error as &dyn std::error::Error, "tunnel broke between connections");
            None
        }
    }
}

/// One connection on a tunnel. `None`: the tunnel is dead.
async fn serve_open(
    local: &Rc<Local>,
    served: &Rc<Served>,
    mut carrier: Box<Carrier>,
    identity: &SpiffeId,
    address: ClientAddr,
    open: Box<Open>,
) -> Option<Box<Carrier>> {
    let client = believable(local, identity, open.client, address);
    let mut report = Report::new(&local.handles.telemetry, Reporter::Destination, client);
    report.path = Path::Tunnel;
    report.source_identity = Some(identity.clone());
    report.destination_identity = Some(served.pod.workload().identity.clone());
    report.key_exchange = Some(carrier.key_exchange());
    let arrival = Arrival {
        local,
        served,
        identity: Some(identity),
        client,
        destination: open.destination,
        node_probe: false,
    };
    let mut early = Early::default();
    if arrival.reads_requests() {
        let entry = local.open.enter(served.pod.clone(), None);
        let (mut tunnel, returned) = TunnelIo::accepted(carrier);
        let sniffed = Box::pin(sniff_tunnel(&mut tunnel, arrival.patience(), &entry.close)).await;
        match sniffed.and_then(|sniffed| arrival.spoken(sniffed)) {
            Ok(Spoken::Http { is_h2 }) => {
                arrival.note(&mut report, open.dialled);
                let first = tunnel.take_kept();
                let io = Io::Tunnel(tunnel);
                let serving = arrival.serve_requests(io, first, is_h2, entry, open.dialled, report);
                Box::pin(serving).await;
                return Box::pin(settle_accepted(local, returned)).await;
            }
            Ok(Spoken::Bytes) => {
                let (bytes, end);
                (carrier, bytes, end) = tunnel.into_parts()?;
                early = Early { bytes, end };
            }
            Err(ending) => {
                arrival.note(&mut report, open.dialled);
                report.close(ending);
                drop(tunnel);
                return Box::pin(settle_accepted(local, returned)).await;
            }
        }
    }
    let (permit, entry) = match arrival.judge(&mut report, open.dialled) {
        Ok(admitted) => admitted,
        Err(refusal) => {
            let told = carrier.put_reset(refusal.reset(), "").is_ok();
            refusal.tell(report);
            return told.then_some(carrier);
        }
    };
    let app = match arrival.dial(&permit).await {
        Ok(app) => app,
        Err(ending) => {
            report.close(ending);
            return carrier.put_reset(reset_of(ending), "").is_ok().then_some(carrier);
        }
    };
    report.opened();
    // The destination never replays anything.
    let mut first = First::none();
    let outcome = relay::tunnelled(
        &app.stream,
        &mut carrier,
        Role::Acceptor,
        &mut first,
        early,
        &mut report.bytes,
        &entry.close,
        local.scratch,
    )
    .await;
    report.close(end_app(app, ending_of(&outcome)));
    (!matches!(outcome, Outcome::Broken(_))).then_some(carrier)
}

/// Brings a tunnel that carried HTTP to where the next OPEN may come. `None`: it cannot be.
async fn settle_accepted(local: &Local, returned: Returned) -> Option<Box<Carrier>> {
    let mut carrier = returned.take()?;
    let settled = poll_fn(|context| {
        loop {
            carrier.put_done_if_due()?;
            let flushed = carrier.flush()?;
            if carrier.session().is_done() {
                return Poll::Ready(Ok::<_, carrier::Error>(()));
            }
            let received = {
                let mut scratch = local.scratch.borrow_mut();
                carrier.receive(&mut scratch.receive, &mut |_late| Flow::Continue)?
            };
            if received != Received::Blocked {
                continue;
            }
            let writable = !flushed && carrier.stream().poll_write_ready(context).is_ready();
            if !writable && carrier.stream().poll_read_ready(context).is_pending() {
                return Poll::Pending;
            }
        }
    });
    let settled = tokio::time::timeout(local.settings.settle_timeout, settled).await;
    matches!(settled, Ok(Ok(()))).then_some(carrier)
}

/// The client address that OPEN claims, if its owner has the identity that was proven; else the tunnel's own.
fn believable(local: &Local, identity: &SpiffeId, claimed: ClientAddr, seen: ClientAddr) -> ClientAddr {
    let mesh = local.handles.registry.snapshot();
    let owner_fits = mesh.workload_by_ip(claimed.ip()).is_some_and(|owner| owner.identity == *identity);
    if owner_fits { claimed } else { seen }
}

/// A connection that asks to come in.
struct Arrival<'a> {
    local: &'a Rc<Local>,
    served: &'a Rc<Served>,
    identity: Option<&'a SpiffeId>,
    client: ClientAddr,
    destination: EndpointAddr,
    /// See [`Facts::node_probe`].
    node_probe: bool,
}

/// Why it may not.
enum NotAdmitted {
    Policy(Refusal),
    Address(Ending),
}

impl Arrival<'_> {
    /// Whether this connection's requests are read, if it turns out to carry any.
    fn reads_requests(&self) -> bool {
        let workload = self.served.pod.workload();
        let policies = self.local.handles.policies.current();
        self.has_address(&workload) && reads_requests(&policies, &workload, self.destination.port())
    }

    /// How long the client's first bytes are waited for. Where only requests may pass there is nothing to lose by waiting;
    /// where bytes may pass too, a server that speaks first must get its turn.
    fn patience(&self) -> Option<Duration> {
        let workload = self.served.pod.workload();
        if workload.forward_client_cert {
            return None;
        }
        let admits_bytes = self.local.handles.policies.current().evaluate(&self.facts(&workload)).is_ok();
        let mesh = self.local.handles.registry.snapshot();
        admits_bytes.then_some(mesh.config.protocol_detection_timeout)
    }

    /// How the connection is carried. Bytes never pass to a pod that believes what `x-forwarded-client-cert` says, since
    /// they could be requests with a forged one.
    fn spoken(&self, sniffed: Sniffed) -> Result<Spoken, Ending> {
        match Spoken::of(sniffed) {
            Some(http) => Ok(http),
            None if self.served.pod.workload().forward_client_cert => Err(Ending::NotHttp),
            None => Ok(Spoken::Bytes),
        }
    }

    fn has_address(&self, workload: &Workload) -> bool {
        let own =
            self.destination.port() == tunnel::PORT || self.served.ports.contains(&self.destination.port());
        !own && (workload.addresses.contains(&self.destination.ip()) || self.is_plain())
    }

    /// As a connection of bytes.
    fn facts<'w>(&'w self, workload: &'w Workload) -> Facts<'w> {
        Facts {
            identity: self.identity,
            client: self.client.ip(),
            destination: workload,
            port: self.destination.port(),
            node_probe: self.node_probe,
            request: None,
        }
    }

    /// Puts down who and where.
    fn note(&self, report: &mut Report, dialled: OriginalDst) {
        let mesh = self.local.handles.registry.snapshot();
        report.source = mesh.workload_by_ip(self.client.ip()).cloned();
        report.destination = Some(self.served.pod.workload());
        report.dialled = Some(dialled);
        report.endpoint = Some(self.destination);
        if let crate::registry::Destination::Service(service, _) = mesh.resolve(dialled) {
            report.service = Some(service.name.clone());
        }
    }

    /// Serves the requests of a connection; each is judged by itself.
    async fn serve_requests(
        &self,
        io: Io,
        first: Vec<u8>,
        is_h2: bool,
        entry: Registered,
        dialled: OriginalDst,
        mut report: Report,
    ) {
        report.opened();
        let connection = Connection {
            local: self.local.clone(),
            served: self.served.clone(),
            client: self.client,
            source: report.source.clone(),
            proven: self.identity.cloned(),
            node_probe: self.node_probe,
            side: Side::Inbound {
                address: self.destination,
                dialled,
                service: report.service.clone(),
                path: report.path,
                key_exchange: report.key_exchange,
            },
            close: entry.close.clone(),
            // Of its own, so that the application sees one connection per client connection, with its address.
            upstreams: Rc::default(),
            seen: None,
        };
        let ended = http::entry::serve(connection, io, first, is_h2).await;
        report.bytes.to_app = ended.seen.received_bytes();
        report.bytes.from_app = ended.seen.sent_bytes();
        report.reason = ended.reason.map(Into::into);
        report.close(ended.ending);
    }

    /// Asks policy. The connection is in the table of open ones before the question, so that no change is missed.
    fn judge(&self, report: &mut Report, dialled: OriginalDst) -> Result<(Permit, Registered), NotAdmitted> {
        let pod = &self.served.pod;
        let workload = pod.workload();
        self.note(report, dialled);
        if !workload.addresses.contains(&self.destination.ip()) && !self.is_plain() {
            return Err(NotAdmitted::Address(Ending::Unreachable));
        }
        if self.destination.port() == tunnel::PORT || self.served.ports.contains(&self.destination.port()) {
            return Err(NotAdmitted::Address(Ending::Loop));
        }
        let judged = Judged {
            identity: self.identity.cloned(),
            client: self.client.ip(),
            port: self.destination.port(),
            node_probe: self.node_probe,
            request: None,
        };
        let entry = self.local.open.enter(pod.clone(), Some(judged));
        let policies = self.local.handles.policies.current();
        let permit = policies.evaluate(&self.facts(&workload)).map_err(NotAdmitted::Policy)?;
        report.reason = permit.reason();
        note_audits(&permit, self.client, self.destination);
        Ok((permit, entry))
    }

    /// Plaintext: the kernel vouches for the address, it is the socket's own.
    fn is_plain(&self) -> bool {
        self.identity.is_none()
    }

    async fn dial(&self, permit: &Permit) -> Result<Application, Ending> {
        dial::application(
            permit,
            &self.served.pod,
            &self.local.handles.origins,
            self.destination,
            self.client,
            self.local.settings.connect_timeout,
        )
        .await
    }
}

pub(super) fn note_audits(permit: &Permit, client: ClientAddr, destination: EndpointAddr) {
    for policy in permit.audits() {
        tracing::info!(%policy, %client, %destination, "an AUDIT policy matched");
    }
    if permit.recorded_by_default() {
        tracing::info!(%client, %destination, "admitted without identity under the default Audit");
    }
}

impl NotAdmitted {
    fn reset(&self) -> ResetReason {
        match self {
            Self::Policy(_) => ResetReason::PolicyDenied,
            Self::Address(_) => ResetReason::NotHere,
        }
    }

    fn tell(self, report: Report) {
        match self {
            Self::Policy(refusal) => {
                tracing::info!(%refusal, "policy refused");
                report.deny(reason_of(&refusal));
            }
            Self::Address(ending) => report.close(ending),
        }
    }
}

/// The policy to put it down to, or the label of the default that refused: what the kernel's refusals say, too.
pub(super) fn reason_of(refusal: &Refusal) -> Arc<str> {
    refusal.policy().map_or_else(|| refusal.label().into(), |policy| policy.to_string().into())
}

/// What the client's agent is told when the application could not be reached.
fn reset_of(ending: Ending) -> ResetReason {
    match ending {
        Ending::ConnectRefused => ResetReason::ConnectRefused,
        Ending::ServerReset => ResetReason::Application,
        Ending::ConnectTimeout => ResetReason::ConnectTimeout,
        Ending::Unreachable => ResetReason::Unreachable,
        _ => ResetReason::Exhausted,
    }
}

/// How it ended, as the server's side sees it. In the plaintext relay, too, the application is the first socket.
fn ending_of(outcome: &Outcome) -> Ending {
    match outcome {
        Outcome::Closed => Ending::Closed,
        Outcome::AppReset => Ending::ServerReset,
        Outcome::Told(ending) => *ending,
        Outcome::Broken(_) => Ending::TunnelFailed,
        Outcome::PeerReset { reason } => match reason {
            ResetReason::Application => Ending::ClientReset,
            ResetReason::Shutdown => Ending::Shutdown,
            _ => Ending::TunnelFailed,
        },
    }
}

/// Closes the application's socket the way the connection ended.
fn end_app(app: Application, ending: Ending) -> Ending {
    if ending != Ending::Closed {
        relay::reset_on_close(&app.stream);
    }
    ending
}
