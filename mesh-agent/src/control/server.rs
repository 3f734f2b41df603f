//! The listener of the certificate service, and of reports beside it.
//!
//! gRPC over HTTP/2 over TLS 1.3, one task per connection. One more task follows what may change under it: files
//! ([`super::files`]) or a Secret ([`super::cluster`]).

use std::convert::Infallible;
use std::net::{SocketAddr, TcpListener};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use parking_lot::Mutex;
use rustls::ServerConfig;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tonic::server::{Grpc, UnaryService};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

use super::ca::{Authority, SERVING_LIFETIME};
use super::callers::Callers;
use super::limits::Limits;
use super::reports::desk::Desk;
use super::service::{Service, Stats, bearer};
use super::{Error, Settings, cluster, files};
use crate::identity::tls;
use crate::identity::wire::{CREATE_CERTIFICATE, CertificateRequest, CertificateResponse};
use crate::lifecycle::{Shutdown, clock, tasks};
use crate::model::TrustDomain;
use crate::progress::wire::{self, REPORT, REPORT_BYTES_MAX, Report};
use crate::registry::Registry;

/// Connections at one time; the next ones wait in the kernel's queue. A mesh of a thousand nodes that all report to one
/// replica and all start at once fits; at about 50 KiB each they hold 100 MiB.
const CONNECTIONS_MAX: usize = 2048;

/// Longest TLS handshake, so that silent callers do not hold a connection.
const HANDSHAKE_TIME_MAX: Duration = Duration::from_secs(5);

/// How often an idle connection is pinged; a caller that vanished is let go after two of these.
const PING_INTERVAL: Duration = Duration::from_secs(30);

/// Longest life of a connection; calls that are under way are finished. An agent opens a new connection when it needs one;
/// strangers, who get as far as a TLS handshake, shall not keep a place.
const CONNECTION_AGE_MAX: Duration = Duration::from_secs(120);

/// Largest request, in bytes. A P-256 request is under 1 KiB; an RSA-4096 one under 3 KiB.
const REQUEST_BYTES_MAX: usize = 64 * 1024;

/// Pause after accept fails, which is when file descriptors have run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A control plane that is ready to run: keys read or made, port open, bundle published.
#[derive(Debug)]
pub struct Control {
    listener: TcpListener,
    address: SocketAddr,
    service: Arc<Service>,
    config: Arc<ArcSwap<ServerConfig>>,
    follower: Follower,
}

/// What takes up changes while the listener runs.
#[derive(Debug)]
pub(super) enum Follower {
    Files(files::Follower),
    Cluster(Box<cluster::Follower>),
}

/// What the listener serves with, replaced while it runs.
#[derive(Debug)]
pub(super) struct Signing {
    pub(super) service: Arc<Service>,
    config: Arc<ArcSwap<ServerConfig>>,
    config_made: Instant,
    names: Vec<String>,
}

impl Signing {
    /// Begins with this authority. `names` are those of the serving certificate.
    pub(super) fn begin(
        authority: Authority,
        trust_domain: TrustDomain,
        callers: Callers,
        registry: Registry,
        names: Vec<String>,
        desk: Desk,
    ) -> Result<Self, Error> {
        let config = Arc::new(ArcSwap::new(server_config(&authority, &names)?));
        let service = Arc::new(Service {
            trust_domain,
            authority: ArcSwap::from_pointee(authority),
            callers,
            registry,
            limits: Mutex::new(Limits::default()),
            stats: Arc::new(Stats::default()),
            desk: Arc::new(desk),
        });
        Ok(Self { service, config, config_made: clock::now(), names })
    }

    /// Signs with what was found from now on, where it differs. The serving certificate is renewed when it is old.
    pub(super) fn take(&mut self, found: Authority) -> Result<(), Error> {
        let changed = !found.is_same_as(&self.service.authority.load());
        if changed || clock::now().saturating_duration_since(self.config_made) > SERVING_LIFETIME / 2 {
            self.config.store(server_config(&found, &self.names)?);
            self.config_made = clock::now();
        }
        if changed {
            tracing::info!(phase = %found.phase(), "the CA's keys changed");
            self.service.authority.store(Arc::new(found));
        }
        Ok(())
    }
}

impl Control {
    /// Gets everything ready, in standalone mode. Synchronous: this is start-up.
    ///
    /// # Errors
    /// The state directory, a join token, the bundle's place or the port cannot be used.
    pub fn open(settings: Settings, registry: Registry) -> Result<Self, Error> {
        files::open(settings, registry)
    }

    /// Opens the port.
    pub(super) fn listen(
        listen: SocketAddr,
        signing: &Signing,
    ) -> Result<impl FnOnce(Follower) -> Self + use<>, Error> {
        let unusable = |source| Error::Listen { address: listen, source };
        let listener = TcpListener::bind(listen).map_err(unusable)?;
        listener.set_nonblocking(true).map_err(unusable)?;
        let address = listener.local_addr().map_err(unusable)?;
        let (service, config) = (signing.service.clone(), signing.config.clone());
        Ok(move |follower| Self { listener, address, service, config, follower })
    }

    /// Where it listens (the port is the real one).
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Its counters.
    pub fn stats(&self) -> Arc<Stats> {
        self.service.stats.clone()
    }

    /// Where nodes report.
    pub fn desk(&self) -> Arc<Desk> {
        self.service.desk.clone()
    }

    /// Serves until shutdown; open calls are then finished.
    ///
    /// # Errors
    /// The listener cannot be handed to the runtime.
    pub async fn run(self, shutdown: Shutdown) -> Result<(), Error> {
        let unusable = |source| Error::Listen { address: self.address, source };
        let listener = tokio::net::TcpListener::from_std(self.listener).map_err(unusable)?;
        let config = self.config;
        match self.follower {
            Follower::Files(follower) => tasks::spawn("control files", follower.run(shutdown.clone())),
            Follower::Cluster(follower) => tasks::spawn("control keys", follower.run(shutdown.clone())),
        };
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let place = places.clone().acquire_owned().await.expect("the semaphore is never closed");
            let stream = tokio::select! {
                () = shutdown.requested() => return Ok(()),
                accepted = listener.accept() => accepted,
            };
            match stream {
                Ok((stream, peer)) => {
                    let (config, service) = (config.load_full(), self.service.clone());
                    let shutdown = shutdown.clone();
                    tasks::spawn("control connection", async move {
                        let _place = place;
                        serve_connection(stream, peer, config, service, shutdown).await;
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

async fn serve_connection(
    stream: TcpStream,
    peer: SocketAddr,
    config: Arc<ServerConfig>,
    service: Arc<Service>,
    shutdown: Shutdown,
) {
    let handshake = TlsAcceptor::from(config).accept(stream);
    let stream = match tokio::time::timeout(HANDSHAKE_TIME_MAX, handshake).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%peer, %error, "no TLS"),
        Err(_elapsed) => return tracing::debug!(%peer, "TLS handshake took too long"),
    };
    let calls = hyper::service::service_fn(move |request| answer(service.clone(), peer, request));
    let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_INTERVAL)
        .max_concurrent_streams(64)
        .serve_connection(TokioIo::new(stream), calls);
    let mut connection = std::pin::pin!(connection);
    let over = async {
        // Either way it is over: by age, or by shutdown.
        let _ = tokio::time::timeout(CONNECTION_AGE_MAX, shutdown.requested()).await;
    };
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = over => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%peer, %error, "connection ended");
    }
}

async fn answer(
    service: Arc<Service>,
    peer: SocketAddr,
    request: hyper::Request<Incoming>,
) -> Result<hyper::Response<tonic::body::Body>, Infallible> {
    match request.uri().path() {
        CREATE_CERTIFICATE => {
            let codec: ProstCodec<CertificateResponse, CertificateRequest> = ProstCodec::default();
            let mut grpc = Grpc::new(codec).max_decoding_message_size(REQUEST_BYTES_MAX);
            Ok(grpc.unary(Call { service, peer }, request).await)
        }
        REPORT => Ok(hear(&service, peer, request).await),
        _ => Ok(Status::unimplemented("only CreateCertificate and Report are served here").into_http()),
    }
}

async fn hear(
    service: &Service,
    peer: SocketAddr,
    request: hyper::Request<Incoming>,
) -> hyper::Response<tonic::body::Body> {
    let authorization = request.headers().get("authorization").and_then(|value| value.to_str().ok());
    let node = match service.desk.admit(&service.callers, authorization.and_then(bearer)).await {
        Ok(node) => node,
        Err(status) => {
            tracing::debug!(%peer, code = ?status.code(), why = status.message(), "no report is taken");
            return status.into_http();
        }
    };
    let codec: ProstCodec<wire::Heard, Report> = ProstCodec::default();
    let mut grpc = Grpc::new(codec).max_decoding_message_size(REPORT_BYTES_MAX);
    grpc.unary(Hearing { desk: service.desk.clone(), node }, request).await
}

struct Hearing {
    desk: Arc<Desk>,
    node: Arc<str>,
}

impl UnaryService<Report> for Hearing {
    type Response = wire::Heard;
    type Future = std::future::Ready<Result<Response<wire::Heard>, Status>>;

    fn call(&mut self, request: Request<Report>) -> Self::Future {
        std::future::ready(self.desk.take(&self.node, request.get_ref()))
    }
}

struct Call {
    service: Arc<Service>,
    peer: SocketAddr,
}

impl UnaryService<CertificateRequest> for Call {
    type Response = CertificateResponse;
    type Future = Pin<Box<dyn Future<Output = Result<Response<CertificateResponse>, Status>> + Send>>;

    fn call(&mut self, request: Request<CertificateRequest>) -> Self::Future {
        let (service, peer) = (self.service.clone(), self.peer);
        Box::pin(async move { service.create_certificate(&request, peer).await })
    }
}

fn server_config(authority: &Authority, names: &[String]) -> Result<Arc<ServerConfig>, Error> {
    let (chain, key) = authority.serving(names)?;
    Ok(tls::ca_server_config(tls::certified(chain, key)?)?)
}

/// Every name by which agents may reach the service.
pub(super) fn server_names(listen: SocketAddr, further: &[String]) -> Vec<String> {
    let mut names = vec!["weft-control".to_owned(), "localhost".to_owned(), listen.ip().to_string()];
    for name in further {
        if !names.contains(name) {
            names.push(name.clone());
        }
    }
    names
}
