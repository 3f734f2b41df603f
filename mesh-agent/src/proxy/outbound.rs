//! What a pod dials.
//!
//! [`serve`] is the table of contents of this half of the data path: origin, destination, protocol; then, for connections of
//! bytes, endpoint, tunnel or plain, relay, ending. Requests go on in [`super::http`].

use std::rc::Rc;
use std::sync::Arc;

use rustls::ClientConfig;
use std::net::SocketAddr;
use tokio::net::TcpStream;

use super::carrier::{self, Carrier};
use super::endpoint::{self, Target};
use super::http::connection::{Connection, Side};
use super::http::io::Io;
use super::open::{CloseSignal, Registered};
use super::pool::Pair;
use super::protocol::{self, Spoken};
use super::reach::{self, tls_label};
use super::relay::{self, Early, First, Outcome};
use super::report::Report;
use super::tunnel::{Open, Protocol, Role};
use super::worker::{Local, Served};
use super::{dial, http, tls};
use crate::capture::{Origin, Pod};
use crate::lifecycle::{clock, tasks};
use crate::model::ending::Retry;
use crate::model::{ClientAddr, Ending, Path, Workload};
use crate::registry::{Destination, Snapshot};
use crate::telemetry::Reporter;

/// Takes a connection on: looks where it leads, and begins the task that carries it. A connection of bytes, which is most
/// of them, gets a task that knows nothing of requests and is the smaller for it.
pub fn serve(local: Rc<Local>, served: Rc<Served>, app: TcpStream, client: SocketAddr) {
    let client = ClientAddr::new(client);
    let mut report = Report::new(&local.handles.telemetry, Reporter::Source, client);
    match Arrived::new(&local, &served, &app, client, &mut report) {
        Ok(arrived) if protocol::must_look(&local, &arrived) => {
            tasks::spawn_local("outbound", look(local, served, app, arrived, report));
        }
        Ok(arrived) => {
            tasks::spawn_local("outbound", serve_bytes(local, served, app, arrived, report));
        }
        Err(ending) => report.close(end_app(app, ending)),
    }
}

/// A connection whose protocol must be told first.
async fn look(
    local: Rc<Local>,
    served: Rc<Served>,
    app: TcpStream,
    mut arrived: Arrived,
    mut report: Report,
) {
    match Box::pin(protocol::spoken(&local, &mut arrived, &app)).await {
        Ok(Spoken::Bytes) => Box::pin(serve_bytes(local, served, app, arrived, report)).await,
        Ok(Spoken::Http { is_h2 }) => serve_requests(local, served, app, arrived, is_h2, report).await,
        Err(ending) => {
            if ending == Ending::NotHttp {
                local.handles.telemetry.http_refused(ending.label());
            }
            report.opened();
            report.close(end_app(app, ending));
        }
    }
}

/// A caught connection and where it leads.
pub(super) struct Arrived {
    /// The pod that dialled.
    pub(super) source: Arc<Workload>,
    pub(super) client: ClientAddr,
    pub(super) origin: Origin,
    pub(super) mesh: Arc<Snapshot>,
    /// What was dialled, or what a TCPRoute or TLSRoute makes of it.
    pub(super) destination: Destination,
    pub(super) entry: Registered,
    pub(super) first: First,
}

impl Arrived {
    fn new(
        local: &Local,
        served: &Served,
        app: &TcpStream,
        client: ClientAddr,
        report: &mut Report,
    ) -> Result<Self, Ending> {
        let source = served.pod.workload();
        report.source = Some(source.clone());
        let origin =
            local.handles.origins.take(&served.pod, client.addr()).ok_or(Ending::UnknownDestination)?;
        report.dialled = Some(origin.dialled);
        let mesh = local.handles.registry.snapshot();
        if endpoint::is_loop(&mesh, &source, origin, &served.ports) {
            return Err(Ending::Loop);
        }
        let destination = mesh.resolve(origin.dialled);
        if let Destination::Service(service, _) = &destination {
            report.service = Some(service.name.clone());
        }
        let entry = local.open.enter(served.pod.clone(), None);
        let mut first = First::default();
        first.read_now(app);
        Ok(Self { source, client, origin, mesh, destination, entry, first })
    }
}

/// A connection whose requests are read: each takes its own way.
async fn serve_requests(
    local: Rc<Local>,
    served: Rc<Served>,
    app: TcpStream,
    mut arrived: Arrived,
    is_h2: bool,
    mut report: Report,
) {
    report.path = Path::Http;
    report.opened();
    let connection = Connection {
        upstreams: local.upstreams.clone(),
        local,
        served,
        client: arrived.client,
        proven: Some(arrived.source.identity.clone()),
        source: Some(arrived.source),
        node_probe: false,
        side: Side::Outbound { origin: arrived.origin, destination: arrived.destination },
        close: arrived.entry.close.clone(),
        seen: None,
    };
    let (first, _end) = arrived.first.take();
    let ended = http::entry::serve(connection, Io::Tcp(app), first, is_h2).await;
    report.bytes.from_app = ended.seen.received_bytes();
    report.bytes.to_app = ended.seen.sent_bytes();
    report.reason = ended.reason.map(Into::into);
    report.close(ended.ending);
}

/// A connection of bytes: to one endpoint, as a whole.
///
/// Not an `async fn`: that would hold every argument twice, as it came and as it is used (rust-lang/rust#62958).
#[expect(clippy::manual_async_fn, reason = "the arguments would be held twice")]
pub(super) fn serve_bytes(
    local: Rc<Local>,
    served: Rc<Served>,
    app: TcpStream,
    mut arrived: Arrived,
    mut report: Report,
) -> impl Future<Output = ()> {
    async move {
        let ended = journey(&local, &served, &app, &mut arrived, &mut report).await;
        drop(arrived);
        match ended {
            Ok((ending, used)) => {
                report.close(end_app(app, ending));
                give_back(&local, used).await;
            }
            Err(ending) => report.close(end_app(app, ending)),
        }
    }
}

/// A tunnel after its connection.
struct Used {
    pair: Pair,
    carrier: Box<Carrier>,
    config: Arc<ClientConfig>,
}

async fn journey(
    local: &Local,
    served: &Served,
    app: &TcpStream,
    arrived: &mut Arrived,
    report: &mut Report,
) -> Result<(Ending, Option<Used>), Ending> {
    let Arrived { source, client, origin, mesh, destination, entry, first } = arrived;
    let (client, origin) = (*client, *origin);
    let mut tried = Vec::new();
    loop {
        let target = endpoint::pick(
            mesh,
            destination,
            origin,
            source,
            &tried,
            &local.connections,
            &mut local.rng.borrow_mut(),
        )
        .ok_or(if tried.is_empty() { Ending::NoEndpoint } else { Ending::Unreachable });
        // When every endpoint has been tried, the last one's answer is the client's.
        let target = match (target, report.ending_of_last_try.take()) {
            (Ok(target), _) => target,
            (Err(_), Some(ending)) => return Err(ending),
            (Err(ending), None) => return Err(ending),
        };
        report.endpoint = Some(target.address);
        report.destination = target.workload.clone();
        let _counted = local.connections.begin(target.address.addr());
        let attempt = Attempt { local, pod: &served.pod, source, app, client, origin, target: &target };
        let (ending, used) = attempt.run(first, &entry.close, report).await;
        let again = ending.retry() == Retry::Safe
            && first.may_be_replayed()
            && tried.len() + 1 < local.settings.endpoints_max;
        if !again {
            return Ok((ending, used));
        }
        tracing::debug!(endpoint = %target.address, %ending, "trying another endpoint");
        report.ending_of_last_try = Some(ending);
        tried.push(target.address.addr());
        give_back(local, used).await;
    }
}

/// One endpoint, tried once.
struct Attempt<'a> {
    local: &'a Local,
    pod: &'a Arc<Pod>,
    source: &'a Arc<Workload>,
    app: &'a TcpStream,
    client: ClientAddr,
    origin: Origin,
    target: &'a Target,
}

impl Attempt<'_> {
    async fn run(
        &self,
        first: &mut First,
        close: &CloseSignal,
        report: &mut Report,
    ) -> (Ending, Option<Used>) {
        let result = match self.target.tunnelled(self.source) {
            Some(destination) => self.through_tunnel(destination, first, close, report).await,
            None => self.plain(first, close, report).await.map(|ending| (ending, None)),
        };
        result.unwrap_or_else(|ending| (ending, None))
    }

    async fn plain(
        &self,
        first: &mut First,
        close: &CloseSignal,
        report: &mut Report,
    ) -> Result<Ending, Ending> {
        report.path = Path::Plain;
        let limit = self.local.settings.connect_timeout;
        let peer = dial::from_pod(self.pod, self.target.address.addr(), limit).await?;
        report.opened();
        let (pending, ended) = first.take();
        let outcome = relay::plain(
            self.app,
            &peer,
            pending,
            ended,
            Early::default(),
            &mut report.bytes,
            close,
            self.local.scratch,
        )
        .await;
        let ending = ending_of(&outcome);
        if ending != Ending::Closed {
            relay::reset_on_close(&peer);
        }
        Ok(ending)
    }

    async fn through_tunnel(
        &self,
        destination: &Arc<Workload>,
        first: &mut First,
        close: &CloseSignal,
        report: &mut Report,
    ) -> Result<(Ending, Option<Used>), Ending> {
        report.path = Path::Tunnel;
        report.source_identity = Some(self.source.identity.clone());
        let pair = Pair { source: self.source.uid.clone(), destination: destination.uid.clone() };
        let credentials = &self.local.handles.credentials;
        let config = credentials.client_config(&self.source.identity).ok_or(Ending::NoCertificate)?;
        let mut pooled = self.local.pool.take(&pair, &config, clock::now());
        loop {
            let is_reused = pooled.is_some();
            let mut carrier = match pooled.take() {
                Some(carrier) => carrier,
                None => self.new_tunnel(destination, config.clone(), report).await?,
            };
            report.destination_identity = Some(destination.identity.clone());
            report.key_exchange = Some(carrier.key_exchange());
            report.opened();
            let outcome = match carrier.put_open(&self.open(), first.bytes(), first.end()) {
                Ok(()) => {
                    report.bytes.from_app = first.bytes().len() as u64;
                    relay::tunnelled(
                        self.app,
                        &mut carrier,
                        Role::Opener,
                        first,
                        Early::default(),
                        &mut report.bytes,
                        close,
                        self.local.scratch,
                    )
                    .await
                }
                Err(error) => Outcome::Broken(error),
            };
            if is_reused && first.may_be_replayed() && was_never_seen(&outcome, first) {
                continue;
            }
            let ending = ending_of(&outcome);
            if let Outcome::Broken(error) = outcome {
                note_broken(&error, report);
                return Ok((ending, None));
            }
            return Ok((ending, Some(Used { pair, carrier, config })));
        }
    }

    fn open(&self) -> Open {
        Open {
            destination: self.target.address,
            client: self.client,
            dialled: self.origin.dialled,
            protocol: Protocol::Tcp,
            trace: None,
        }
    }

    async fn new_tunnel(
        &self,
        destination: &Workload,
        config: Arc<ClientConfig>,
        report: &mut Report,
    ) -> Result<Box<Carrier>, Ending> {
        let reached =
            reach::new_tunnel(self.local, self.pod, self.target.address, &destination.identity, config).await;
        reached.map_err(|unreached| {
            if let Some(reason) = unreached.reason {
                report.reason = Some(reason.into());
            }
            if unreached.ending == Ending::IdentityMismatch {
                report.destination_identity = unreached.found;
            }
            unreached.ending
        })
    }
}

/// Whether the peer cannot have acted on anything: it closed the idle tunnel on purpose, or all that we sent was OPEN.
fn was_never_seen(outcome: &Outcome, first: &First) -> bool {
    match outcome {
        Outcome::Broken(carrier::Error::Closed { on_purpose: true }) => true,
        Outcome::Broken(carrier::Error::Closed { .. } | carrier::Error::Io(_)) => first.bytes().is_empty(),
        _ => false,
    }
}

fn note_broken(error: &carrier::Error, report: &mut Report) {
    if let carrier::Error::Tls(error) = error {
        report.reason = Some(tls_label(error).into());
    }
    tracing::warn!(
        endpoint = report.endpoint.map(tracing::field::display),
        error = error as &dyn std::error::Error,
        "tunnel broke"
    );
}

/// How it ended, as the client's side sees it.
fn ending_of(outcome: &Outcome) -> Ending {
    match outcome {
        Outcome::Closed => Ending::Closed,
        Outcome::AppReset => Ending::ClientReset,
        Outcome::Told(ending) => *ending,
        // A server refuses a client certificate after the client's handshake is over (RFC 8446 section 4.4.2.4).
        Outcome::Broken(carrier::Error::Tls(tls::Error::Alert(_))) => Ending::TlsFailed,
        Outcome::Broken(_) => Ending::TunnelFailed,
        Outcome::PeerReset { reason } => relay::ending_of_reset(*reason),
    }
}

/// Closes the application's socket the way the connection ended.
fn end_app(app: TcpStream, ending: Ending) -> Ending {
    if ending != Ending::Closed {
        relay::reset_on_close(&app);
    }
    ending
}

/// Puts a tunnel back for the next connection, once it is clean.
async fn give_back(local: &Local, used: Option<Used>) {
    let Some(Used { pair, mut carrier, config }) = used else { return };
    if relay::settle(&mut carrier, local.settings.settle_timeout, local.scratch).await {
        local.pool.put(pair, carrier, config, clock::now());
    }
}
