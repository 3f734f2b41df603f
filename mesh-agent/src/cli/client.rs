//! Asking an agent: one GET per connection, HTTP/1.1 without TLS, since admin addresses are local or forwarded.

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

/// How long an agent may take for one answer. A dump of a large mesh takes about a second.
const WAIT: Duration = Duration::from_secs(10);

/// An agent's address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Agent {
    /// `HOST:PORT`.
    address: String,
}

/// What it said.
#[derive(Clone, Debug)]
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) body: String,
}

impl Agent {
    /// Reads `http://HOST:PORT` or `HOST:PORT`.
    pub(super) fn parse(text: &str) -> Result<Self, Error> {
        let refused = || Error::Address(text.to_owned());
        let full = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
        let uri: Uri = full.parse().map_err(|_malformed| refused())?;
        let plain = uri.scheme_str() == Some("http") && matches!(uri.path(), "" | "/");
        let (Some(host), Some(port), true) = (uri.host(), uri.port_u16(), plain) else {
            return Err(refused());
        };
        Ok(Self { address: format!("{host}:{port}") })
    }

    /// `HOST:PORT`.
    pub(super) fn address(&self) -> &str {
        &self.address
    }

    /// Asks; any status is an answer.
    pub(super) fn get(&self, path: &str) -> Result<Reply, Error> {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Error::Runtime)?;
        runtime.block_on(async {
            tokio::time::timeout(WAIT, self.exchange(path)).await.map_err(|_elapsed| Error::Timeout {
                address: self.address.clone(),
                waited_seconds: WAIT.as_secs(),
            })?
        })
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
        let broke_off = |source| Error::BrokeOff { address: self.address.clone(), source };
        let stream = TcpStream::connect(&self.address)
            .await
            .map_err(|source| Error::Unreachable { address: self.address.clone(), source })?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broke_off)?;
        let request = Request::get(path)
            .header(HOST, &self.address)
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
