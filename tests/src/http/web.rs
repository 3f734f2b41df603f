//! HTTP from a pod: connections that a process in the pod made, requests that the test sends over them.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Version};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use tokio::runtime::Runtime;

use super::{Answer, Hand};
use crate::lab::Lab;

/// How long an answer may take unless the test says otherwise.
const PATIENCE: Duration = Duration::from_secs(15);

/// A request's body.
pub type AskBody = UnsyncBoxBody<Bytes, io::Error>;

/// A pod's HTTP client.
#[derive(Debug)]
pub struct Web {
    hand: Hand,
    runtime: Arc<Runtime>,
}

/// A request.
#[derive(Clone, Debug)]
pub struct Ask {
    method: Method,
    target: String,
    host: Option<String>,
    version: Version,
    headers: HeaderMap,
    body: Vec<u8>,
    chunks: Vec<Vec<u8>>,
    trailers: Option<HeaderMap>,
}

/// A connection with one request after the other, or with many at once (HTTP/2).
#[derive(Debug)]
pub struct Session {
    runtime: Arc<Runtime>,
    sender: Sender,
}

#[derive(Debug)]
enum Sender {
    Http1(http1::SendRequest<AskBody>),
    Http2(http2::SendRequest<AskBody>),
}

impl Ask {
    /// A GET of a path, with a query if it has one.
    pub fn get(target: &str) -> Self {
        Self {
            method: Method::GET,
            target: target.to_owned(),
            host: None,
            version: Version::HTTP_11,
            headers: HeaderMap::new(),
            body: Vec::new(),
            chunks: Vec::new(),
            trailers: None,
        }
    }

    /// Another method.
    #[must_use]
    pub fn method(mut self, method: &str) -> Self {
        self.method = method.parse().expect("a method is a token");
        self
    }

    /// The host; otherwise the address that is dialled.
    #[must_use]
    pub fn host(mut self, host: &str) -> Self {
        self.host = Some(host.to_owned());
        self
    }

    /// HTTP/1.0.
    #[must_use]
    pub fn http10(mut self) -> Self {
        self.version = Version::HTTP_10;
        self
    }

    /// One more header.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        let name: http::HeaderName = name.parse().expect("a header's name");
        self.headers.append(name, value.parse().expect("a header's value"));
        self
    }

    /// How the server shall behave (`plan`).
    #[must_use]
    pub fn plan(self, words: &str) -> Self {
        self.header(super::plan::HEADER, words)
    }

    /// A body whose length is said; the method becomes POST if it was GET.
    #[must_use]
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self.posting()
    }

    /// A body in chunks.
    #[must_use]
    pub fn chunks(mut self, chunks: &[&[u8]]) -> Self {
        self.chunks = chunks.iter().map(|chunk| chunk.to_vec()).collect();
        self.posting()
    }

    /// A trailer after the body.
    #[must_use]
    pub fn trailer(mut self, name: &'static str, value: &str) -> Self {
        let trailers = self.trailers.get_or_insert_with(HeaderMap::new);
        trailers.append(name, value.parse().expect("a header's value"));
        // HTTP/1 sends only trailers that were announced.
        self.header("trailer", name).posting()
    }

    fn posting(self) -> Self {
        if self.method == Method::GET { self.method("POST") } else { self }
    }

    fn build(self, authority: &str, is_http2: bool) -> Request<AskBody> {
        let host = self.host.unwrap_or_else(|| authority.to_owned());
        let has_scheme = is_http2 && self.method != Method::CONNECT;
        let uri = if has_scheme { format!("http://{host}{}", self.target) } else { self.target };
        let mut request = Request::new(body(self.body, self.chunks, self.trailers));
        *request.uri_mut() = uri.parse().expect("the target is a URI");
        *request.method_mut() = self.method;
        *request.version_mut() = if is_http2 { Version::HTTP_2 } else { self.version };
        *request.headers_mut() = self.headers;
        if !is_http2 && !host.is_empty() {
            request.headers_mut().insert("host", host.parse().expect("a host is a header value"));
        }
        request
    }
}

/// A body with a length, or in chunks, or with trailers.
fn body(whole: Vec<u8>, chunks: Vec<Vec<u8>>, trailers: Option<HeaderMap>) -> AskBody {
    if chunks.is_empty() && trailers.is_none() {
        return http_body_util::Full::new(Bytes::from(whole)).map_err(|never| match never {}).boxed_unsync();
    }
    let mut frames: Vec<_> = chunks.into_iter().map(|chunk| Ok(Frame::data(Bytes::from(chunk)))).collect();
    if !whole.is_empty() {
        frames.push(Ok(Frame::data(Bytes::from(whole))));
    }
    frames.extend(trailers.map(|trailers| Ok(Frame::trailers(trailers))));
    StreamBody::new(futures_util::stream::iter(frames)).boxed_unsync()
}

impl Web {
    /// A client in a pod.
    #[track_caller]
    pub fn start(lab: &Lab, pod: &str) -> Self {
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(1).enable_all().build().expect("threads can be made");
        Self { hand: Hand::start(lab, pod), runtime: Arc::new(runtime) }
    }

    /// A connection as bytes.
    ///
    /// # Errors
    /// The pod's connect(2) failed.
    pub fn dial(&self, to: SocketAddr) -> io::Result<TcpStream> {
        self.hand.dial(to)
    }

    /// The process that makes the sockets.
    pub fn hand(&self) -> &Hand {
        &self.hand
    }

    /// Where its asynchronous work is done.
    pub fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    /// GETs a path, on a connection of its own.
    #[track_caller]
    pub fn get(&self, to: SocketAddr, target: &str) -> Answer {
        self.ask(to, Ask::get(target))
    }

    /// Asks by HTTP/1 on a connection of its own.
    ///
    /// # Panics
    /// When no whole answer comes.
    #[track_caller]
    pub fn ask(&self, to: SocketAddr, ask: Ask) -> Answer {
        let what = format!("{to} {ask:?}");
        self.try_ask(to, ask).unwrap_or_else(|error| panic!("{what}: {error:#}"))
    }

    /// [`Web::ask`], for questions that may fail.
    ///
    /// # Errors
    /// No whole answer came.
    pub fn try_ask(&self, to: SocketAddr, ask: Ask) -> Result<Answer> {
        self.http1(to)?.try_ask(ask)
    }

    /// Asks by HTTP/2 on a connection of its own.
    #[track_caller]
    pub fn ask_http2(&self, to: SocketAddr, ask: Ask) -> Answer {
        let what = format!("{to} {ask:?}");
        let answer = self.http2(to).and_then(|mut session| session.try_ask(ask));
        answer.unwrap_or_else(|error| panic!("{what}: {error:#}"))
    }

    /// Opens an HTTP/1.1 connection.
    ///
    /// # Errors
    /// The pod's connect(2) failed.
    pub fn http1(&self, to: SocketAddr) -> Result<Session> {
        let stream = self.dial(to).context("connect")?;
        let sender = self.runtime.block_on(async {
            let (sender, connection) = http1::handshake(TokioIo::new(into_tokio(stream)?)).await?;
            tokio::spawn(connection.with_upgrades());
            anyhow::Ok(sender)
        })?;
        Ok(Session { runtime: Arc::clone(&self.runtime), sender: Sender::Http1(sender) })
    }

    /// Opens an HTTP/2 connection by prior knowledge.
    ///
    /// # Errors
    /// The pod's connect(2) failed.
    pub fn http2(&self, to: SocketAddr) -> Result<Session> {
        let stream = self.dial(to).context("connect")?;
        let sender = self.runtime.block_on(async {
            let io = TokioIo::new(into_tokio(stream)?);
            let (sender, connection) = http2::Builder::new(TokioExecutor::new()).handshake(io).await?;
            tokio::spawn(connection);
            anyhow::Ok(sender)
        })?;
        Ok(Session { runtime: Arc::clone(&self.runtime), sender: Sender::Http2(sender) })
    }
}

/// The same socket for asynchronous use.
///
/// # Errors
/// The descriptor cannot be registered.
pub fn into_tokio(stream: TcpStream) -> io::Result<tokio::net::TcpStream> {
    stream.set_nonblocking(true)?;
    tokio::net::TcpStream::from_std(stream)
}

impl Session {
    /// Asks.
    #[track_caller]
    pub fn ask(&mut self, ask: Ask) -> Answer {
        let what = format!("{ask:?}");
        self.try_ask(ask).unwrap_or_else(|error| panic!("{what}: {error:#}"))
    }

    /// [`Session::ask`], for questions that may fail.
    ///
    /// # Errors
    /// No whole answer came.
    pub fn try_ask(&mut self, ask: Ask) -> Result<Answer> {
        let runtime = Arc::clone(&self.runtime);
        runtime.block_on(async {
            let asked = tokio::time::timeout(PATIENCE, self.exchange(ask));
            asked.await.context("no whole answer in time")?
        })
    }

    /// Asks many things at once; answers in the order of the questions.
    #[track_caller]
    pub fn ask_all(&mut self, asks: Vec<Ask>) -> Vec<Result<Answer>> {
        let runtime = Arc::clone(&self.runtime);
        let Sender::Http2(sender) = &self.sender else { panic!("only HTTP/2 takes many at once") };
        let running: Vec<_> = asks
            .into_iter()
            .map(|ask| {
                let mut one = Self { runtime: Arc::clone(&runtime), sender: Sender::Http2(sender.clone()) };
                runtime.spawn(async move {
                    tokio::time::timeout(PATIENCE, one.exchange(ask)).await.context("no answer in time")?
                })
            })
            .collect();
        running.into_iter().map(|one| runtime.block_on(one).expect("no panic in there")).collect()
    }

    /// Whether the other side still takes requests, as far as is known here.
    pub fn is_open(&self) -> bool {
        match &self.sender {
            Sender::Http1(sender) => !sender.is_closed(),
            Sender::Http2(sender) => !sender.is_closed(),
        }
    }

    /// Sends the request and returns when its head is answered, with the body unread.
    ///
    /// # Errors
    /// No head came.
    pub fn begin(&mut self, ask: Ask) -> Result<http::Response<Incoming>> {
        let runtime = Arc::clone(&self.runtime);
        runtime.block_on(async {
            let sent = async {
                match &mut self.sender {
                    Sender::Http1(sender) => {
                        sender.ready().await?;
                        sender.send_request(ask.build("test.example", false)).await
                    }
                    Sender::Http2(sender) => sender.send_request(ask.build("test.example", true)).await,
                }
            };
            Ok(tokio::time::timeout(PATIENCE, sent).await.context("no head in time")??)
        })
    }

    /// Sends the request, waits, and gives it up before any head came.
    ///
    /// # Panics
    /// When it is answered.
    #[track_caller]
    pub fn give_up(&mut self, ask: Ask, after: Duration) {
        let runtime = Arc::clone(&self.runtime);
        let given_up = runtime.block_on(async { tokio::time::timeout(after, self.exchange(ask)).await });
        assert!(given_up.is_err(), "it was answered: {given_up:?}");
    }

    async fn exchange(&mut self, ask: Ask) -> Result<Answer> {
        let early = Arc::new(Mutex::new(Vec::new()));
        let response = match &mut self.sender {
            Sender::Http1(sender) => {
                sender.ready().await?;
                let mut request = ask.build("test.example", false);
                let told = Arc::clone(&early);
                hyper::ext::on_informational(&mut request, move |one| {
                    told.lock().push(one.status().as_u16())
                });
                sender.send_request(request).await?
            }
            Sender::Http2(sender) => {
                sender.ready().await?;
                sender.send_request(ask.build("test.example", true)).await?
            }
        };
        let (parts, body) = response.into_parts();
        let collected = body.collect().await.context("the body broke off")?;
        let trailers = collected.trailers().cloned();
        let early = early.lock().clone();
        Ok(Answer {
            status: parts.status.as_u16(),
            version: parts.version,
            headers: parts.headers,
            body: collected.to_bytes(),
            trailers,
            early,
        })
    }
}
