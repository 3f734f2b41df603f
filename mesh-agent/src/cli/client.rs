//! Asking an agent: one GET per connection, HTTP/1.1 without TLS, since admin addresses are local or forwarded.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, HOST};
use hyper::{Request, Uri};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

use super::Error;
use super::cluster::{Cluster, Duplex, NAMESPACE, Windows};
use super::flags::Meshctl;

/// How long an agent may take for one answer. A dump of a large mesh takes about a second.
const WAIT: Duration = Duration::from_secs(10);

/// An agent and the way to it.
#[derive(Clone, Debug)]
pub(super) enum Agent {
    /// Its windows answer here: `HOST:PORT`.
    At(String),
    /// A pod of a cluster.
    Pod(Cluster, String),
}

impl fmt::Display for Agent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::At(address) => f.write_str(address),
            Self::Pod(_, pod) => write!(f, "{NAMESPACE}/{pod}"),
        }
    }
}

/// What it said.
#[derive(Clone, Debug)]
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) body: String,
}

impl Agent {
    /// The one that the command line names: a pod where it speaks of a cluster, else the address.
    pub(super) fn named(line: &Meshctl) -> Result<Self, Error> {
        if !line.cluster.is_asked() {
            return Self::parse(&line.agent);
        }
        let cluster = Cluster::connect(&line.cluster)?;
        let pod = cluster.asked(&line.cluster)?;
        Ok(Self::Pod(cluster, pod))
    }

    /// Reads `http://HOST:PORT` or `HOST:PORT`.
    pub(super) fn parse(text: &str) -> Result<Self, Error> {
        let refused = || Error::Address(text.to_owned());
        let full = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
        let uri: Uri = full.parse().map_err(|_malformed| refused())?;
        let plain = uri.scheme_str() == Some("http") && matches!(uri.path(), "" | "/");
        let (Some(host), Some(port), true) = (uri.host(), uri.port_u16(), plain) else {
            return Err(refused());
        };
        Ok(Self::At(format!("{host}:{port}")))
    }

    /// Asks; any status is an answer.
    pub(super) fn get(&self, path: &str) -> Result<Reply, Error> {
        let late = |_elapsed| Error::Timeout { address: self.to_string(), waited_seconds: WAIT.as_secs() };
        match self {
            Self::At(_) => {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                let exchange = async { tokio::time::timeout(WAIT, self.exchange(path)).await.map_err(late)? };
                runtime.map_err(Error::Runtime)?.block_on(exchange)
            }
            Self::Pod(cluster, _) => {
                cluster.wait(async { tokio::time::timeout(WAIT, self.exchange(path)).await.map_err(late)? })
            }
        }
    }

    /// Asks for JSON; statuses other than 200 are refusals.
    pub(super) fn json(&self, path: &str) -> Result<Value, Error> {
        let reply = self.get(path)?;
        if reply.status != 200 {
            return Err(refusal(path, &reply));
        }
        serde_json::from_str(&reply.body).map_err(|source| Error::Malformed { path: path.to_owned(), source })
    }

    async fn exchange(&self, path: &str) -> Result<Reply, Error> {
        match self {
            Self::At(address) => {
                let stream = TcpStream::connect(address)
                    .await
                    .map_err(|source| Error::Unreachable { address: address.clone(), source })?;
                self.ask(path, stream).await
            }
            Self::Pod(cluster, pod) => {
                // The forwarder has to outlive the exchange.
                let Windows { stream, _forwarder } = cluster.windows(pod).await?;
                self.ask(path, stream).await
            }
        }
    }

    /// What the agent is told as its own name.
    fn host(&self) -> &str {
        match self {
            Self::At(address) => address,
            Self::Pod(..) => "localhost",
        }
    }

    async fn ask(&self, path: &str, stream: impl Duplex) -> Result<Reply, Error> {
        let broke_off = |source| Error::BrokeOff { address: self.to_string(), source };
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broke_off)?;
        let request = Request::get(path)
            .header(HOST, self.host())
            .header(ACCEPT, "application/json, text/plain")
            .body(Empty::<Bytes>::new())
            .expect("paths are built here and escaped");
        let answer = async {
            let response = sender.send_request(request).await?;
            let status = response.status().as_u16();
            let body = response.into_body().collect().await?.to_bytes();
            Ok(Reply { status, body: String::from_utf8_lossy(&body).into_owned() })
        };
        tokio::pin!(answer);
        // The connection makes the answer progress; it ends first only when the agent breaks off.
        tokio::select! {
            reply = &mut answer => reply.map_err(broke_off),
            ended = connection => match ended {
                Ok(()) => answer.await.map_err(broke_off),
                Err(error) => Err(broke_off(error)),
            },
        }
    }
}

/// What the agent said, as an error.
pub(super) fn refusal(path: &str, reply: &Reply) -> Error {
    let said: Option<Value> = serde_json::from_str(&reply.body).ok();
    let message = match said.as_ref().and_then(|said| said["error"].as_str()) {
        Some(error) => error.to_owned(),
        None => reply.body.lines().next().unwrap_or("no reason given").to_owned(),
    };
    Error::Refused { path: path.to_owned(), status: reply.status, message }
}

/// Percent-encodes a query value (RFC 3986 section 2.3: unreserved characters stay).
pub(super) fn escape(value: &str) -> String {
    value.bytes().fold(String::new(), |mut text, byte| {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
        text
    })
}
