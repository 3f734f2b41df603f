//! What reaches a pod.
//!
//! [`serve`] is the table of contents of this half of the data path: who dials, what, permit, application, relay, ending.
//! The application is dialled with a [`Permit`] in hand or not at all.

use std::future::poll_fn;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use rustls::ServerConfig;
use tokio::net::TcpStream;

use super::carrier::{self, Carrier, Counted, Flow, Received};
use super::dial::{self, Application};
use super::open::{CloseSignal, Judged, Registered};
use super::outbound::tls_label;
use super::relay::{self, First, Outcome};
use super::report::Report;
use super::tls;
use super::tunnel::{self, Event, Open, ResetReason, Role};
use super::worker::{Local, Served};
use crate::identity;
use crate::model::{ClientAddr, Ending, EndpointAddr, OriginalDst, Path, SpiffeId};
use crate::policy::{Facts, Permit, Refusal};
use crate::telemetry::{Reporter, TunnelRole};

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
    local: &Local,
    served: &Served,
    peer: TcpStream,
    dialled: EndpointAddr,
    client: ClientAddr,
) {
    let mut report = Report::new(&local.handles.telemetry, Reporter::Destination, client);
    report.path = Path::Plain;
    let arrival = Arrival { local, served, identity: None, client, destination: dialled };
    let dialled = OriginalDst::new(dialled.addr());
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
            let outcome = relay::plain(
                &app.stream,
                &peer,
                Vec::new(),
                false,
                &mut report.bytes,
                &entry.close,
                &local.scratch,
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

/// A tunnel and, one after the other, the connections on it.
async fn serve_tunnel(local: &Local, served: &Served, peer: TcpStream, address: ClientAddr) {
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
        let usable = serve_open(local, served, &mut carrier, &client, address, open).await;
        // After a rotation the peer's next connection should meet the new certificate.
        let is_current = local
            .handles
            .credentials
            .server_config(&identity)
            .is_some_and(|current| Arc::ptr_eq(&current, &config));
        if !usable || !is_current {
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

/// One connection on a tunnel. False: the tunnel is dead.
async fn serve_open(
    local: &Local,
    served: &Served,
    carrier: &mut Carrier,
    identity: &SpiffeId,
    address: ClientAddr,
    open: Box<Open>,
) -> bool {
    let client = believable(local, identity, open.client, address);
    let mut report = Report::new(&local.handles.telemetry, Reporter::Destination, client);
    report.path = Path::Tunnel;
    report.source_identity = Some(identity.clone());
    report.destination_identity = Some(served.pod.workload().identity.clone());
    report.key_exchange = Some(carrier.key_exchange());
    let arrival = Arrival { local, served, identity: Some(identity), client, destination: open.destination };
    let (permit, entry) = match arrival.judge(&mut report, open.dialled) {
        Ok(admitted) => admitted,
        Err(refusal) => {
            let told = carrier.put_reset(refusal.reset(), "").is_ok();
            refusal.tell(report);
            return told;
        }
    };
    let app = match arrival.dial(&permit).await {
        Ok(app) => app,
        Err(ending) => {
            report.close(ending);
            return carrier.put_reset(reset_of(ending), "").is_ok();
        }
    };
    report.opened();
    // The destination never replays anything.
    let mut first = First::none();
    let outcome = relay::tunnelled(
        &app.stream,
        carrier,
        Role::Acceptor,
        &mut first,
        &mut report.bytes,
        &entry.close,
        &local.scratch,
    )
    .await;
    report.close(end_app(app, ending_of(&outcome)));
    !matches!(outcome, Outcome::Broken(_))
}

/// The client address that OPEN claims, if its owner has the identity that was proven; else the tunnel's own.
fn believable(local: &Local, identity: &SpiffeId, claimed: ClientAddr, seen: ClientAddr) -> ClientAddr {
    let mesh = local.handles.registry.snapshot();
    let owner_fits = mesh.workload_by_ip(claimed.ip()).is_some_and(|owner| owner.identity == *identity);
    if owner_fits { claimed } else { seen }
}

/// A connection that asks to come in.
struct Arrival<'a> {
    local: &'a Local,
    served: &'a Served,
    identity: Option<&'a SpiffeId>,
    client: ClientAddr,
    destination: EndpointAddr,
}

/// Why it may not.
enum NotAdmitted {
    Policy(Refusal),
    Address(Ending),
}

impl Arrival<'_> {
    /// Asks policy. The connection is in the table of open ones before the question, so that no change is missed.
    fn judge(&self, report: &mut Report, dialled: OriginalDst) -> Result<(Permit, Registered), NotAdmitted> {
        let pod = &self.served.pod;
        let workload = pod.workload();
        let mesh = self.local.handles.registry.snapshot();
        report.source = mesh.workload_by_ip(self.client.ip()).cloned();
        report.destination = Some(workload.clone());
        report.dialled = Some(dialled);
        report.endpoint = Some(self.destination);
        if let crate::registry::Destination::Service(service, _) = mesh.resolve(dialled) {
            report.service = Some(service.name.clone());
        }
        if !workload.addresses.contains(&self.destination.ip()) && !self.is_plain() {
            return Err(NotAdmitted::Address(Ending::Unreachable));
        }
        if self.destination.port() == tunnel::PORT || self.served.ports.contains(&self.destination.port()) {
            return Err(NotAdmitted::Address(Ending::Loop));
        }
        let client: IpAddr = self.client.ip();
        let judged = Judged { identity: self.identity.cloned(), client, port: self.destination.port() };
        let entry = self.local.open.enter(pod.clone(), Some(judged));
        let facts = Facts {
            identity: self.identity,
            client,
            destination: &workload,
            port: self.destination.port(),
            request: None,
        };
        let permit = self.local.handles.policies.current().evaluate(&facts).map_err(NotAdmitted::Policy)?;
        report.reason = permit.policy().map(|(policy, _)| policy.to_string().into());
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

fn note_audits(permit: &Permit, client: ClientAddr, destination: EndpointAddr) {
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
fn reason_of(refusal: &Refusal) -> Arc<str> {
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
