//! Connections to servers: opened, shared between requests, kept for the next one.
//!
//! Stations 7, 8 and 11 for requests. An HTTP/1.1 connection carries one request at a time and waits between them; an HTTP/2
//! connection carries many at once. Both belong to one client pod and one endpoint: no pod's requests travel under another's
//! identity. Nothing here decides where a request goes, or whether.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use rustls::ClientConfig;
use tokio::sync::Semaphore;

use super::LocalExecutor;
use super::body::RequestBody;
use super::io::{Io, Returned, TunnelIo};
use crate::capture::Pod;
use crate::lifecycle::{clock, tasks};
use crate::model::{ClientAddr, Ending, EndpointAddr, OriginalDst, Path, SpiffeId, Workload, WorkloadUid};
use crate::policy::Permit;
use crate::proxy::open::{CloseSignal, Registered};
use crate::proxy::pool::Pair;
use crate::proxy::reach::{self, Unreached};
use crate::proxy::tunnel::{Open, Protocol, ResetReason};
use crate::proxy::worker::{Local, Served};
use crate::proxy::{dial, relay};

/// Requests that one HTTP/2 connection carries at once before another is opened. RFC 9113 section 6.5.2 asks servers to
/// allow no fewer than 100; where one allows less, hyper lets requests wait.
const STREAMS_MAX: u32 = 100;

/// How a server is reached.
#[derive(Debug)]
pub enum Way {
    /// The application of a pod of this node, which policy admits to.
    Application {
        /// Its pod.
        pod: Rc<Served>,
        /// Proof.
        permit: Permit,
        /// The port that it listens on, and its address as the client knows it.
        address: EndpointAddr,
        /// Keeps the request among those that are judged again when policies change.
        entry: Registered,
    },
    /// The agent of another node.
    Tunnel(Arc<Workload>),
    /// Plain TCP, outside the mesh.
    Plain,
}

impl Way {
    /// What tells the request to end when policy turns against it.
    pub fn close(&self) -> Option<Rc<CloseSignal>> {
        match self {
            Self::Application { entry, .. } => Some(entry.close.clone()),
            Self::Tunnel(_) | Self::Plain => None,
        }
    }

    /// The entry among the open ones, where policy was asked.
    pub fn into_entry(self) -> Option<Registered> {
        match self {
            Self::Application { entry, .. } => Some(entry),
            Self::Tunnel(_) | Self::Plain => None,
        }
    }
}

/// What requests must have in common to share a connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// The client pod; `None` when the table belongs to one client connection anyway.
    pub source: Option<WorkloadUid>,
    /// Where it leads.
    pub endpoint: SocketAddr,
    /// HTTP/2.
    pub is_h2: bool,
}

/// What is known about a connection to a server.
#[derive(Debug)]
pub struct Facts {
    /// The way its bytes take.
    pub path: Path,
    /// The server's verified identity.
    pub identity: Option<SpiffeId>,
    /// Key exchange group, through a tunnel.
    pub key_exchange: Option<&'static str>,
    /// With what the tunnel was made: a renewed SVID makes the connection stale.
    config: Option<Arc<ClientConfig>>,
    returned: Option<Returned>,
    streams: Cell<u32>,
}

impl Facts {
    /// Whether a request may still be sent on it, as somebody who has this configuration now.
    fn is_current(&self, config: Option<&Arc<ClientConfig>>) -> bool {
        let is_made_with = match (&self.config, config) {
            (Some(made_with), Some(now)) => Arc::ptr_eq(made_with, now),
            (None, None) => true,
            _ => false,
        };
        is_made_with && !self.peer_leaves()
    }

    /// The agent at the other end drains: requests go on other connections, before it has to cut this one.
    fn peer_leaves(&self) -> bool {
        self.returned.as_ref().is_some_and(Returned::peer_leaves)
    }
}

#[derive(Debug)]
enum Sender {
    /// One request at a time.
    Http1(http1::SendRequest<RequestBody>),
    Http2(http2::SendRequest<RequestBody>),
}

/// A connection to a server, held for one request.
#[derive(Debug)]
pub struct Upstream {
    sender: Sender,
    /// See [`Facts`].
    pub facts: Rc<Facts>,
    /// No request has used it before.
    pub is_fresh: bool,
}

/// Why a request was not answered.
#[derive(Debug)]
pub struct Unanswered {
    /// How it ended.
    pub ending: Ending,
    /// The request, if it certainly never left.
    pub request: Option<Box<Request<RequestBody>>>,
    /// The server certainly did not process it.
    pub is_unprocessed: bool,
}

impl Upstream {
    /// Sends a request and waits for the head of the response.
    ///
    /// # Errors
    /// The connection ended before. Cancel safe: a dropped request ends its connection (HTTP/1) or stream (HTTP/2).
    pub async fn send(&mut self, request: Request<RequestBody>) -> Result<Response<Incoming>, Unanswered> {
        let result = match &mut self.sender {
            Sender::Http1(sender) => sender.try_send_request(request).await,
            Sender::Http2(sender) => sender.try_send_request(request).await,
        };
        result.map_err(|mut failed| {
            let request = failed.take_message().map(Box::new);
            let reset = self.facts.returned.as_ref().and_then(Returned::reset);
            let is_unprocessed = request.is_some()
                || is_refused_stream(failed.error())
                || matches!(
                    reset,
                    Some(
                        ResetReason::ConnectRefused
                            | ResetReason::ConnectTimeout
                            | ResetReason::Unreachable
                            | ResetReason::NotHere
                    )
                );
            let ending = reset.map_or(Ending::ServerReset, relay::ending_of_reset);
            tracing::debug!(error = failed.error() as &dyn std::error::Error, %ending, "no answer from a server");
            Unanswered { ending, request, is_unprocessed }
        })
    }

    /// Whether the connection can take a request now.
    async fn is_ready(&mut self) -> bool {
        match &mut self.sender {
            Sender::Http1(sender) => sender.is_ready() || !sender.is_closed() && sender.ready().await.is_ok(),
            Sender::Http2(sender) => !sender.is_closed(),
        }
    }

    fn is_closed(&self) -> bool {
        match &self.sender {
            Sender::Http1(sender) => sender.is_closed(),
            Sender::Http2(sender) => sender.is_closed(),
        }
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        if matches!(self.sender, Sender::Http2(_)) {
            self.facts.streams.set(self.facts.streams.get().saturating_sub(1));
        }
    }
}

/// REFUSED_STREAM, or a stream above the last one of a GOAWAY (RFC 9113 sections 8.7 and 6.8).
fn is_refused_stream(error: &hyper::Error) -> bool {
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<h2::Error>() {
            return error.reason() == Some(h2::Reason::REFUSED_STREAM)
                || error.is_go_away() && error.is_remote() && error.reason() == Some(h2::Reason::NO_ERROR);
        }
        cause = error.source();
    }
    false
}

/// Connections that wait for requests (HTTP/1) or take more of them (HTTP/2).
#[derive(Debug, Default)]
pub struct Upstreams {
    idle: RefCell<HashMap<Key, Vec<(Upstream, Instant)>>>,
    shared: RefCell<HashMap<Key, Shared>>,
}

/// The HTTP/2 connections of one key, and a turn for opening one: a burst shares a connection instead of opening many.
#[derive(Debug)]
struct Shared {
    connections: Vec<(http2::SendRequest<RequestBody>, Rc<Facts>)>,
    opening: Rc<Semaphore>,
}

impl Default for Shared {
    fn default() -> Self {
        Self { connections: Vec::new(), opening: Rc::new(Semaphore::new(1)) }
    }
}

impl Upstreams {
    /// A connection that is open already.
    async fn take(&self, key: &Key, config: Option<&Arc<ClientConfig>>) -> Option<Upstream> {
        if key.is_h2 {
            return self.take_shared(key, config);
        }
        loop {
            let (mut upstream, _since) = self.idle.borrow_mut().get_mut(key)?.pop()?;
            if upstream.facts.is_current(config) && upstream.is_ready().await {
                return Some(upstream);
            }
        }
    }

    fn take_shared(&self, key: &Key, config: Option<&Arc<ClientConfig>>) -> Option<Upstream> {
        let mut table = self.shared.borrow_mut();
        let connections = &mut table.get_mut(key)?.connections;
        connections.retain(|(sender, facts)| !sender.is_closed() && facts.is_current(config));
        let (sender, facts) = connections.iter().find(|(_, facts)| facts.streams.get() < STREAMS_MAX)?;
        facts.streams.set(facts.streams.get() + 1);
        Some(Upstream { sender: Sender::Http2(sender.clone()), facts: facts.clone(), is_fresh: false })
    }

    /// Gives a connection back whose request is over.
    pub fn give_back(&self, key: Key, mut upstream: Upstream, per_key_max: usize) {
        // An HTTP/2 connection never left the table.
        if key.is_h2 || upstream.is_closed() || upstream.facts.peer_leaves() {
            return;
        }
        upstream.is_fresh = false;
        let mut idle = self.idle.borrow_mut();
        let waiting = idle.entry(key).or_default();
        if waiting.len() < per_key_max {
            waiting.push((upstream, clock::now()));
        }
    }

    /// Closes what is dead, has waited too long, or belongs to a pod that is gone.
    pub fn sweep(&self, now: Instant, idle_max: Duration, lives: impl Fn(&WorkloadUid) -> bool) {
        let is_kept = |key: &Key| key.source.as_ref().is_none_or(&lives);
        self.idle.borrow_mut().retain(|key, waiting| {
            waiting.retain(|(upstream, since)| {
                let is_alive = !upstream.is_closed() && !upstream.facts.peer_leaves();
                is_alive && now.saturating_duration_since(*since) < idle_max
            });
            is_kept(key) && !waiting.is_empty()
        });
        self.shared.borrow_mut().retain(|key, shared| {
            shared.connections.retain(|(sender, facts)| !sender.is_closed() && !facts.peer_leaves());
            is_kept(key) && (!shared.connections.is_empty() || shared.opening.available_permits() == 0)
        });
    }

    fn opening(&self, key: &Key) -> Rc<Semaphore> {
        self.shared.borrow_mut().entry(key.clone()).or_default().opening.clone()
    }

    fn share(&self, key: &Key, upstream: &Upstream) {
        if let Sender::Http2(sender) = &upstream.sender {
            let mut table = self.shared.borrow_mut();
            table.entry(key.clone()).or_default().connections.push((sender.clone(), upstream.facts.clone()));
        }
    }
}

/// Who asks for a connection.
#[derive(Debug)]
pub struct Caller<'a> {
    /// The worker.
    pub local: &'a Rc<Local>,
    /// The pod from which servers of other nodes are dialled.
    pub pod: &'a Arc<Pod>,
    /// The client.
    pub client: ClientAddr,
    /// What it dialled.
    pub dialled: OriginalDst,
    /// As whom tunnels are made.
    pub source: &'a Workload,
    /// The table.
    pub upstreams: &'a Rc<Upstreams>,
}

impl Caller<'_> {
    /// A connection to an endpoint: an open one, or a new one.
    ///
    /// # Errors
    /// How the attempt ended. Cancel safe.
    pub async fn connection(&self, key: &Key, way: &Way) -> Result<Upstream, Unreached> {
        let config = match way {
            Way::Tunnel(_) => {
                let credentials = &self.local.handles.credentials;
                Some(credentials.client_config(&self.source.identity).ok_or(Ending::NoCertificate)?)
            }
            Way::Application { .. } | Way::Plain => None,
        };
        if let Some(open) = self.upstreams.take(key, config.as_ref()).await {
            return Ok(open);
        }
        if !key.is_h2 {
            return self.open(key, way, config).await;
        }
        let opening = self.upstreams.opening(key);
        let _turn = opening.acquire().await.map_err(|_closed| Ending::Shutdown)?;
        if let Some(open) = self.upstreams.take(key, config.as_ref()).await {
            return Ok(open);
        }
        let upstream = self.open(key, way, config).await?;
        self.upstreams.share(key, &upstream);
        Ok(upstream)
    }

    async fn open(
        &self,
        key: &Key,
        way: &Way,
        config: Option<Arc<ClientConfig>>,
    ) -> Result<Upstream, Unreached> {
        match (way, config) {
            (Way::Tunnel(destination), Some(config)) => self.open_tunnel(key, destination, config).await,
            (Way::Application { pod, permit, address, .. }, _) => {
                self.open_application(key, pod, permit, *address).await
            }
            (Way::Plain | Way::Tunnel(_), _) => {
                let limit = self.local.settings.connect_timeout;
                let stream = dial::from_pod(self.pod, key.endpoint, limit).await?;
                let facts = facts(Path::Plain, None, None);
                self.speak(key, Io::Tcp(stream), facts, async {}).await
            }
        }
    }

    async fn open_application(
        &self,
        key: &Key,
        pod: &Rc<Served>,
        permit: &Permit,
        address: EndpointAddr,
    ) -> Result<Upstream, Unreached> {
        let limit = self.local.settings.connect_timeout;
        let origins = &self.local.handles.origins;
        let app = dial::application(permit, &pod.pod, origins, address, self.client, limit).await?;
        let (stream, shown) = app.into_parts();
        let facts = facts(Path::Local, Some(pod.pod.workload().identity.clone()), None);
        self.speak(key, Io::Tcp(stream), facts, async move { drop(shown) }).await
    }

    async fn open_tunnel(
        &self,
        key: &Key,
        destination: &Arc<Workload>,
        config: Arc<ClientConfig>,
    ) -> Result<Upstream, Unreached> {
        let local = self.local;
        let pair = Pair { source: self.source.uid.clone(), destination: destination.uid.clone() };
        let endpoint = EndpointAddr::new(key.endpoint);
        let carrier = match local.pool.take(&pair, &config, clock::now()) {
            Some(carrier) => carrier,
            None => {
                reach::new_tunnel(local, self.pod, endpoint, &destination.identity, config.clone()).await?
            }
        };
        let key_exchange = carrier.key_exchange();
        let open = Open {
            destination: endpoint,
            client: self.client,
            dialled: self.dialled,
            protocol: if key.is_h2 { Protocol::Http2 } else { Protocol::Http1 },
            trace: None,
        };
        let (io, returned) = TunnelIo::opening(carrier, open);
        let mut facts = facts(Path::Tunnel, Some(destination.identity.clone()), Some(key_exchange));
        (facts.config, facts.returned) = (Some(config.clone()), Some(returned.clone()));
        let local = local.clone();
        let give_back = async move {
            let Some(mut carrier) = returned.take() else { return };
            if relay::settle(&mut carrier, local.settings.settle_timeout, local.scratch).await {
                local.pool.put(pair, carrier, config, clock::now());
            }
        };
        self.speak(key, Io::Tunnel(io), facts, give_back).await
    }

    /// Begins HTTP on a connection; `after` runs when it is over.
    async fn speak(
        &self,
        key: &Key,
        io: Io,
        facts: Facts,
        after: impl Future<Output = ()> + 'static,
    ) -> Result<Upstream, Unreached> {
        let limits = &self.local.settings.http;
        let sender = if key.is_h2 {
            let mut builder = http2::Builder::new(LocalExecutor);
            builder
                .initial_stream_window_size(limits.stream_window_bytes)
                .initial_connection_window_size(limits.connection_window_bytes(STREAMS_MAX))
                .max_header_list_size(limits.head_bytes_max_u32())
                .max_concurrent_reset_streams(limits.reset_streams_max);
            let (sender, connection) = builder.handshake(io).await.map_err(|_broken| Ending::TunnelFailed)?;
            tasks::spawn_local("http2 upstream", async move {
                end(connection.await);
                after.await;
            });
            Sender::Http2(sender)
        } else {
            let mut builder = http1::Builder::new();
            builder.max_headers(limits.headers_max).max_buf_size(limits.buffer_bytes_max());
            let (sender, connection) = builder.handshake(io).await.map_err(|_broken| Ending::TunnelFailed)?;
            tasks::spawn_local("http1 upstream", async move {
                end(connection.with_upgrades().await);
                after.await;
            });
            Sender::Http1(sender)
        };
        facts.streams.set(1);
        Ok(Upstream { sender, facts: Rc::new(facts), is_fresh: true })
    }
}

fn facts(path: Path, identity: Option<SpiffeId>, key_exchange: Option<&'static str>) -> Facts {
    Facts { path, identity, key_exchange, config: None, returned: None, streams: Cell::new(0) }
}

/// Whoever had a request on the connection has been told.
fn end(result: hyper::Result<()>) {
    if let Err(error) = result {
        tracing::debug!(error = &error as &dyn std::error::Error, "a server connection ended");
    }
}
