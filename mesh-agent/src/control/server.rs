//! The listener of the certificate service, and the files that may change under it.
//!
//! gRPC over HTTP/2 over TLS 1.3, one task per connection. One more task follows the state directory and the join
//! tokens: a rotation by `rotate-root`, a new node's token and an ageing certificate are taken up without a restart.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
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

use super::ca::{Authority, SERVING_LIFETIME, store};
use super::limits::Limits;
use super::service::{Service, Stats};
use super::tokens::JoinTokens;
use super::{Error, Settings};
use crate::identity::tls;
use crate::identity::watch::DirWatch;
use crate::identity::wire::{CREATE_CERTIFICATE, CertificateRequest, CertificateResponse};
use crate::lifecycle::{Shutdown, clock, tasks};
use crate::registry::Registry;

/// Connections at one time; the next ones wait in the kernel's queue. A mesh of a thousand
/// nodes that all start at once fits; at about 50 KiB each they hold 50 MiB.
const CONNECTIONS_MAX: usize = 1024;

/// Longest TLS handshake, so that silent callers do not hold a connection.
const HANDSHAKE_TIME_MAX: Duration = Duration::from_secs(5);

/// How often an idle connection is pinged; a caller that vanished is let go after two of these.
const PING_INTERVAL: Duration = Duration::from_secs(30);

/// Longest life of a connection; calls that are under way are finished. An agent needs the CA a few times a day and
/// opens a new connection when it does; strangers, who get as far as a TLS handshake, shall not keep a place.
const CONNECTION_AGE_MAX: Duration = Duration::from_secs(120);

/// Largest request, in bytes. A P-256 request is under 1 KiB; an RSA-4096 one under 3 KiB.
const REQUEST_BYTES_MAX: usize = 64 * 1024;

/// Pause after accept fails, which is when file descriptors have run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A control plane that is ready to run: keys read or made, tokens read, port open, bundle published.
#[derive(Debug)]
pub struct Control {
    listener: TcpListener,
    address: SocketAddr,
    service: Arc<Service>,
    follower: Follower,
}

impl Control {
    /// Gets everything ready. Synchronous: this is start-up.
    ///
    /// # Errors
    /// The state directory, a join token, the bundle's place or the port cannot be used.
    pub fn open(settings: Settings, registry: Registry) -> Result<Self, Error> {
        let authority = Authority::open(&settings.state_dir, &settings.trust_domain)?;
        let tokens = JoinTokens::load(&settings.join_tokens_dir)?;
        if let Some(path) = &settings.trust_bundle_out {
            publish(path, &authority)?;
        }
        let unusable = |source| Error::Listen { address: settings.listen, source };
        let listener = TcpListener::bind(settings.listen).map_err(unusable)?;
        listener.set_nonblocking(true).map_err(unusable)?;
        let address = listener.local_addr().map_err(unusable)?;
        let names = server_names(&settings);
        let config = Arc::new(ArcSwap::new(server_config(&authority, &names)?));
        let service = Arc::new(Service {
            trust_domain: settings.trust_domain,
            state_dir: settings.state_dir,
            authority: ArcSwap::from_pointee(authority),
            tokens,
            registry,
            limits: Mutex::new(Limits::default()),
            stats: Arc::new(Stats::default()),
        });
        let follower = Follower {
            service: service.clone(),
            config,
            config_made: clock::now(),
            names,
            tokens_dir: settings.join_tokens_dir,
            bundle_out: settings.trust_bundle_out,
        };
        Ok(Self { listener, address, service, follower })
    }

    /// Where it listens (the port is the real one).
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Its counters.
    pub fn stats(&self) -> Arc<Stats> {
        self.service.stats.clone()
    }

    /// Serves until shutdown; open calls are then finished.
    ///
    /// # Errors
    /// The listener cannot be handed to the runtime.
    pub async fn run(self, shutdown: Shutdown) -> Result<(), Error> {
        let unusable = |source| Error::Listen { address: self.address, source };
        let listener = tokio::net::TcpListener::from_std(self.listener).map_err(unusable)?;
        let config = self.follower.config.clone();
        tasks::spawn("control files", self.follower.run(shutdown.clone()));
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
    if request.uri().path() != CREATE_CERTIFICATE {
        return Ok(Status::unimplemented("only CreateCertificate is served here").into_http());
    }
    let codec: ProstCodec<CertificateResponse, CertificateRequest> = ProstCodec::default();
    let mut grpc = Grpc::new(codec).max_decoding_message_size(REQUEST_BYTES_MAX);
    Ok(grpc.unary(Call { service, peer }, request).await)
}

struct Call {
    service: Arc<Service>,
    peer: SocketAddr,
}

impl UnaryService<CertificateRequest> for Call {
    type Response = CertificateResponse;
    type Future = Ready<Result<Response<CertificateResponse>, Status>>;

    fn call(&mut self, request: Request<CertificateRequest>) -> Self::Future {
        ready(self.service.create_certificate(&request, self.peer))
    }
}

/// Takes up changes of the state directory and of the join tokens.
#[derive(Debug)]
struct Follower {
    service: Arc<Service>,
    config: Arc<ArcSwap<ServerConfig>>,
    config_made: Instant,
    names: Vec<String>,
    tokens_dir: PathBuf,
    bundle_out: Option<PathBuf>,
}

impl Follower {
    async fn run(mut self, shutdown: Shutdown) {
        let dirs = [self.service.state_dir.clone(), self.tokens_dir.clone()];
        let mut watch = DirWatch::of_directories(dirs.iter().map(PathBuf::as_path));
        loop {
            tokio::select! {
                () = shutdown.requested() => return,
                () = watch.changed() => {}
            }
            if let Err(error) = self.follow_authority() {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                tracing::error!(%error, cause, "the CA goes on with what it has");
            }
            self.follow_tokens();
        }
    }

    fn follow_authority(&mut self) -> Result<(), Error> {
        let (dir, current) = (&self.service.state_dir, self.service.authority.load_full());
        let found = match current.intermediate_is_due() {
            true => Authority::open(dir, &self.service.trust_domain)?,
            false => Authority::read(dir)?,
        };
        // Publish first: agents must know a root before they meet a certificate under it.
        if let Some(path) = &self.bundle_out {
            publish(path, &found)?;
        }
        let changed = !found.is_same_as(&current);
        if changed || clock::now().saturating_duration_since(self.config_made) > SERVING_LIFETIME / 2 {
            self.config.store(server_config(&found, &self.names)?);
            self.config_made = clock::now();
        }
        if changed {
            tracing::info!(phase = %found.phase(), "the CA's files changed");
            self.service.authority.store(Arc::new(found));
        }
        Ok(())
    }

    fn follow_tokens(&self) {
        match self.service.tokens.reload() {
            Ok(left_out) => {
                for error in left_out {
                    tracing::error!(%error, "its node is refused");
                }
            }
            Err(error) => tracing::error!(%error, "the join tokens stay as they were"),
        }
    }
}

fn server_config(authority: &Authority, names: &[String]) -> Result<Arc<ServerConfig>, Error> {
    let (chain, key) = authority.serving(names)?;
    Ok(tls::ca_server_config(tls::certified(chain, key)?)?)
}

fn server_names(settings: &Settings) -> Vec<String> {
    let mut names = vec!["weft-control".to_owned(), "localhost".to_owned(), settings.listen.ip().to_string()];
    names.extend(settings.server_names.iter().cloned());
    names
}

/// Writes the bundle where it differs from what is there.
fn publish(path: &Path, authority: &Authority) -> Result<(), Error> {
    let bundle = authority.bundle_pem();
    if std::fs::read(path).is_ok_and(|present| present == bundle.as_bytes()) {
        return Ok(());
    }
    store::write_whole(path, bundle.as_bytes(), store::PUBLIC)
}
