//! A line to the CA: gRPC over TLS 1.3, with the token that says which node this is.
//!
//! Certificates are asked for over it, and over one of its own an agent tells control what is in force
//! (room `progress`). It is opened with the first call and kept; roots that change, or a host that vanished, make a new
//! one.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::client::Grpc;
use tonic::codegen::http::Uri;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;

use super::trust::Trust;
use super::{Error, Settings, tls};

/// Longest time for one call, connection included. A CA signs in milliseconds; one that has not answered in ten seconds is
/// away, and the back-off decides when to ask again.
pub const CALL_TIME_MAX: Duration = Duration::from_secs(10);

/// Why a call came to nothing.
#[derive(Debug)]
pub enum Failure {
    /// It could not be made: the token or the roots.
    Unable(Error),
    /// Nobody answered: connection, TLS or time-out.
    Unreachable {
        /// Where.
        address: String,
        /// What came of it.
        message: String,
    },
    /// The answer was a refusal.
    Refused(Box<tonic::Status>),
}

/// See the module.
#[derive(Debug)]
pub struct Line {
    host: String,
    port: u16,
    server_name: ServerName<'static>,
    endpoint: Endpoint,
    token_file: PathBuf,
    trust: Arc<Trust>,
    open: Mutex<Open>,
}

/// Where calls go instead of the address of the settings, and the channel that is open there, with the bundle generation
/// that it was made under.
#[derive(Debug, Default)]
struct Open {
    to: Option<SocketAddr>,
    channel: Option<(u64, Channel)>,
}

impl Line {
    /// Takes the address apart; connects only with the first call.
    ///
    /// # Errors
    /// The address or server name is malformed.
    pub fn new(settings: &Settings, trust: Arc<Trust>) -> Result<Self, Error> {
        let malformed = || Error::CaAddress(settings.ca_address.clone());
        let authority = settings.ca_address.strip_prefix("https://").unwrap_or(&settings.ca_address);
        let uri =
            |scheme: &str| format!("{scheme}://{authority}").parse::<Uri>().map_err(|_malformed| malformed());
        let origin = uri("https")?;
        let host = origin.host().ok_or_else(malformed)?.trim_matches(['[', ']']).to_owned();
        let port = origin.port_u16().ok_or_else(malformed)?;
        let name = settings.ca_server_name.clone().unwrap_or_else(|| host.clone());
        let server_name = ServerName::try_from(name.clone()).map_err(|_malformed| Error::CaAddress(name))?;
        // tonic refuses an https address with a connector of one's own; ours does TLS, so the address says http and
        // the origin, which is what travels in the request, says https.
        let endpoint = Endpoint::from(uri("http")?).origin(origin);
        let token_file = settings.token_file.clone();
        Ok(Self { host, port, server_name, endpoint, token_file, trust, open: Mutex::default() })
    }

    /// From now on calls go to this address, or again to that of the settings. Whoever answers there must have the same name
    /// in its certificate.
    pub fn lead_to(&self, to: Option<SocketAddr>) {
        let mut open = self.open.lock();
        if open.to != to {
            *open = Open { to, channel: None };
        }
    }

    /// The next call opens a new channel: behind one address there may be several who answer.
    pub fn hang_up(&self) {
        self.open.lock().channel = None;
    }

    /// Makes one call.
    ///
    /// # Errors
    /// The token cannot be read, nobody answers, or the answer is a refusal.
    pub async fn call<M, R>(&self, path: &'static str, message: M) -> Result<R, Failure>
    where
        M: prost::Message + 'static,
        R: prost::Message + Default + 'static,
    {
        let mut request = tonic::Request::new(message);
        let authorization = self.authorization().map_err(Failure::Unable)?;
        request.metadata_mut().insert("authorization", authorization);
        let mut grpc = Grpc::new(self.channel().map_err(Failure::Unable)?);
        let call = async {
            grpc.ready().await.map_err(|error| tonic::Status::unavailable(with_causes(&error)))?;
            let codec: ProstCodec<M, R> = ProstCodec::default();
            grpc.unary(request, PathAndQuery::from_static(path), codec).await
        };
        match tokio::time::timeout(CALL_TIME_MAX, call).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(self.failed(status)),
            Err(_elapsed) => {
                // A channel to a host that vanished without a word would stay.
                self.hang_up();
                Err(self.unreachable(format!("no answer in {CALL_TIME_MAX:?}")))
            }
        }
    }

    fn authorization(&self) -> Result<MetadataValue<Ascii>, Error> {
        let token = std::fs::read_to_string(&self.token_file)
            .map_err(|source| Error::Token { path: self.token_file.clone(), source })?;
        let malformed = || Error::TokenMalformed(self.token_file.clone());
        let token = Some(token.trim()).filter(|token| !token.is_empty()).ok_or_else(malformed)?;
        let mut value: MetadataValue<_> =
            format!("Bearer {token}").parse().map_err(|_malformed| malformed())?;
        value.set_sensitive(true);
        Ok(value)
    }

    /// The open channel, or a new one where there is none or the roots have changed since.
    fn channel(&self) -> Result<Channel, Error> {
        let generation = self.trust.current().generation;
        let mut open = self.open.lock();
        if let Some((made_under, channel)) = &open.channel
            && *made_under == generation
        {
            return Ok(channel.clone());
        }
        let channel = self.connect_lazily(open.to)?;
        open.channel = Some((generation, channel.clone()));
        Ok(channel)
    }

    fn connect_lazily(&self, to: Option<SocketAddr>) -> Result<Channel, Error> {
        let connector = TlsConnector::from(tls::ca_config(self.trust.own_roots())?);
        let (host, port, name) = (self.host.clone(), self.port, self.server_name.clone());
        let connect = tower::service_fn(move |_: Uri| {
            let (connector, host, name) = (connector.clone(), host.clone(), name.clone());
            async move {
                let tcp = match to {
                    Some(to) => TcpStream::connect(to).await?,
                    None => TcpStream::connect((host.as_str(), port)).await?,
                };
                tcp.set_nodelay(true)?;
                connector.connect(name, tcp).await.map(TokioIo::new)
            }
        });
        Ok(self.endpoint.connect_with_connector_lazy(connect))
    }

    fn failed(&self, status: tonic::Status) -> Failure {
        let code = status.code();
        // What tonic reports about the connection itself comes as Unavailable or Unknown, with a cause.
        if code == tonic::Code::Unavailable || std::error::Error::source(&status).is_some() {
            self.hang_up();
            return self.unreachable(format!("{code:?}: {}", with_causes(&status)));
        }
        Failure::Refused(Box::new(status))
    }

    fn unreachable(&self, message: String) -> Failure {
        let address =
            self.open.lock().to.map_or_else(|| format!("{}:{}", self.host, self.port), |to| to.to_string());
        Failure::Unreachable { address, message }
    }
}

/// An error with its causes: tonic's own words ("transport error") name none.
fn with_causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let words = error.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        cause = error.source();
    }
    text
}
