//! The server: HTTP/1.0, HTTP/1.1 and HTTP/2 by prior knowledge on one port. It answers with what it received, serves gRPC
//! and WebSocket, and behaves as [`Plan`] says. Each request, and each that was given up by the other side, is told.

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, Version};
use http_body::{Body as _, Frame};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use serde_json::{Map, Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::plan::Plan;
use super::{grpc, websocket};

/// The body of an answer.
pub type Body = UnsyncBoxBody<Bytes, io::Error>;

/// Where the server's words go.
pub type Tell = Arc<dyn Fn(Value) + Send + Sync>;

/// A pod's server.
pub struct Server {
    /// The pod's name.
    pub pod: String,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's node.
    pub node: String,
    /// Hears of each request.
    pub tell: Tell,
    connections: AtomicU64,
    requests: AtomicU64,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.pod)
    }
}

/// What is known of a request when its head is there.
struct Head {
    number: u64,
    connection: u64,
    client: String,
    parts: http::request::Parts,
}

/// Tells that a request was given up, unless it came to its end.
struct Unfinished {
    tell: Tell,
    number: u64,
    path: String,
    finished: bool,
}

impl Unfinished {
    fn finish(mut self) {
        self.finished = true;
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if !self.finished {
            (self.tell)(json!({ "given_up": self.number, "path": self.path }));
        }
    }
}

impl Server {
    /// A server of the pod that the environment names.
    pub fn new(tell: Tell) -> Self {
        let env = |name| std::env::var(name).unwrap_or_default();
        let (pod, namespace, node) = (env("POD_NAME"), env("POD_NAMESPACE"), env("NODE_NAME"));
        Self { pod, namespace, node, tell, connections: AtomicU64::new(0), requests: AtomicU64::new(0) }
    }

    /// Serves until the process ends.
    pub async fn serve(self: Arc<Self>, listener: TcpListener) {
        loop {
            let Ok((stream, client)) = listener.accept().await else { continue };
            let _ = stream.set_nodelay(true);
            let server = Arc::clone(&self);
            tokio::spawn(async move {
                let number = server.connections.fetch_add(1, Ordering::Relaxed);
                if let Err(error) = server.connection(stream, number, client.to_string()).await {
                    (server.tell)(json!({ "connection": number, "error": error.to_string() }));
                }
            });
        }
    }

    async fn connection(
        self: &Arc<Self>,
        stream: TcpStream,
        number: u64,
        client: String,
    ) -> hyper::Result<()> {
        let is_http2 = begins_with_preface(&stream).await;
        let reset = reset_of(&stream, number, Arc::clone(&self.tell));
        let service = service_fn(move |request: Request<Incoming>| {
            let (server, client) = (Arc::clone(self), client.clone());
            async move { Ok::<_, Infallible>(server.request(request, number, client).await) }
        });
        let io = TokioIo::new(stream);
        if is_http2 {
            let mut http = http2::Builder::new(TokioExecutor::new());
            http.timer(TokioTimer::new()).enable_connect_protocol();
            http.serve_connection(io, service).await
        } else {
            let mut http = http1::Builder::new();
            http.timer(TokioTimer::new()).half_close(true);
            let connection = http.serve_connection(io, service).with_upgrades();
            tokio::select! {
                served = connection => served,
                () = reset => Ok(()),
            }
        }
    }

    async fn request(
        self: Arc<Self>,
        request: Request<Incoming>,
        connection: u64,
        client: String,
    ) -> Response<Body> {
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        let content_type = request.headers().get("content-type");
        if content_type.is_some_and(|value| value.as_bytes().starts_with(b"application/grpc")) {
            let head = Head { number, connection, client, parts: head_of(&request) };
            (self.tell)(self.account(&head, 0, None));
            return grpc::serve(&self, request).await;
        }
        if request.method() == Method::CONNECT || request.headers().contains_key("upgrade") {
            let head = Head { number, connection, client, parts: head_of(&request) };
            (self.tell)(self.account(&head, 0, None));
            return websocket::upgrade(request, Arc::clone(&self.tell));
        }
        let plan = match Plan::of(request.headers()) {
            Ok(plan) => plan,
            Err(error) => return plain(StatusCode::NOT_IMPLEMENTED, error.into()),
        };
        let (parts, body) = request.into_parts();
        let path = parts.uri.path().to_owned();
        let unfinished = Unfinished { tell: Arc::clone(&self.tell), number, path, finished: false };
        let is_head = parts.method == Method::HEAD;
        let mut response = self.answer(&plan, Head { number, connection, client, parts }, body).await;
        if is_head {
            // hyper leaves it out in HTTP/1 only (RFC 9110 section 9.3.2).
            let length = response.body().size_hint().exact();
            *response.body_mut() = plain(StatusCode::OK, Bytes::new()).into_body();
            if let Some(length) = length {
                response.headers_mut().insert("content-length", length.into());
            }
        }
        unfinished.finish();
        response
    }

    async fn answer(&self, plan: &Plan, head: Head, mut body: Incoming) -> Response<Body> {
        let mut told = json!(null);
        if !plan.echo && !plan.unread {
            let Some((bytes, trailers)) = read(&mut body, plan.read_delay).await else {
                (self.tell)(json!({ "broken": head.number, "path": head.parts.uri.path() }));
                return plain(StatusCode::BAD_REQUEST, "the body broke off".into());
            };
            told = self.account(&head, bytes, trailers.as_ref());
        } else {
            (self.tell)(self.account(&head, 0, None));
        }
        if told.is_object() {
            (self.tell)(told.clone());
        }
        if !plan.head_delay.is_zero() {
            tokio::time::sleep(plan.head_delay).await;
        }
        let mut response = if plan.echo {
            Response::new(echo(body))
        } else if plan.chunks > 0 {
            Response::new(pieces(plan.clone(), Arc::clone(&self.tell), head.number))
        } else {
            plain(StatusCode::OK, told.to_string().into())
        };
        *response.status_mut() =
            plan.status.and_then(|status| StatusCode::from_u16(status).ok()).unwrap_or(StatusCode::OK);
        let headers = response.headers_mut();
        headers.insert("x-server", self.pod.parse().expect("a pod's name is a header value"));
        headers.insert("x-old", http::HeaderValue::from_static("from-the-server"));
        if plan.trailers {
            headers.insert("trailer", http::HeaderValue::from_static("x-closing, x-twice"));
        }
        if plan.length {
            headers.insert("content-length", (plan.chunks * plan.chunk_bytes).into());
        }
        response
    }

    /// What was received, for the answer and for whoever listens.
    fn account(&self, head: &Head, body_bytes: u64, trailers: Option<&HeaderMap>) -> Value {
        let uri = &head.parts.uri;
        let host = head.parts.headers.get("host").and_then(|host| host.to_str().ok());
        json!({
            "pod": self.pod, "namespace": self.namespace, "node": self.node,
            "request": head.number, "connection": head.connection, "client": head.client,
            "method": head.parts.method.as_str(), "path": uri.path(), "query": uri.query(),
            "target": uri.to_string(),
            "host": host.or_else(|| uri.authority().map(http::uri::Authority::as_str)),
            "version": version(head.parts.version),
            "headers": by_name(&head.parts.headers),
            "body_bytes": body_bytes, "trailers": trailers.map(by_name),
        })
    }
}

/// Ends when the connection was reset, which a server that tolerates half-closed connections does not look for. Tells
/// when the other side has finished sending, which may mean that nobody waits for an answer any more.
fn reset_of(stream: &TcpStream, number: u64, tell: Tell) -> impl Future<Output = ()> + use<> {
    let copy = stream.as_fd().try_clone_to_owned().map(std::net::TcpStream::from);
    async move {
        let Ok(copy) = copy else { return std::future::pending().await };
        let mut is_finished = false;
        // A socket that was reset has no peer any more.
        while copy.peer_addr().is_ok() {
            // Descriptors of one socket share its mode, so this does not wait.
            if !is_finished && matches!(copy.peek(&mut [0u8; 1]), Ok(0)) {
                is_finished = true;
                tell(json!({ "finished": number }));
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
    }
}

fn head_of(request: &Request<Incoming>) -> http::request::Parts {
    let mut copy = Request::new(());
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.version_mut() = request.version();
    *copy.headers_mut() = request.headers().clone();
    copy.into_parts().0
}

fn version(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_11 => "HTTP/1.1",
        Version::HTTP_2 => "HTTP/2",
        _ => "another",
    }
}

/// All values of each header, in order.
fn by_name(headers: &HeaderMap) -> Value {
    let all = headers.keys().map(|name| {
        let values =
            headers.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
        (name.to_string(), Value::from(values.collect::<Vec<_>>()))
    });
    Value::Object(all.collect::<Map<_, _>>())
}

/// Whether a connection is HTTP/2 by prior knowledge (RFC 9113 section 3.3).
async fn begins_with_preface(stream: &TcpStream) -> bool {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let mut first = [0u8; PREFACE.len()];
    loop {
        match stream.peek(&mut first).await {
            Ok(0) | Err(_) => return false,
            Ok(n) if first[..n] != PREFACE[..n] => return false,
            Ok(n) if n == PREFACE.len() => return true,
            // A part of it; more bytes do not wake a reader that has not read these.
            Ok(_) => tokio::time::sleep(Duration::from_millis(1)).await,
        }
    }
}

/// Reads a body to its end; gives its length and trailers, or nothing when it broke off.
async fn read(body: &mut Incoming, delay: Duration) -> Option<(u64, Option<HeaderMap>)> {
    let (mut bytes, mut trailers) = (0, None);
    while let Some(frame) = body.frame().await {
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        match frame.ok()?.into_data() {
            Ok(data) => bytes += data.len() as u64,
            Err(frame) => trailers = frame.into_trailers().ok(),
        }
    }
    Some((bytes, trailers))
}

/// A short answer.
pub fn plain(status: StatusCode, text: Bytes) -> Response<Body> {
    let mut response = Response::new(Full::new(text).map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = status;
    response
}

/// A request's body, sent back as it comes, with its trailers.
fn echo(body: Incoming) -> Body {
    body.map_err(io::Error::other).boxed_unsync()
}

/// A body in pieces, made as they are taken.
fn pieces(plan: Plan, tell: Tell, number: u64) -> Body {
    let (to_body, frames) = mpsc::channel(1);
    let unfinished = Unfinished { tell, number, path: "the answer's body".to_owned(), finished: false };
    tokio::spawn(async move {
        let piece = Bytes::from(vec![b'x'; plan.chunk_bytes]);
        for _ in 0..plan.chunks {
            if !plan.chunk_delay.is_zero() {
                tokio::time::sleep(plan.chunk_delay).await;
            }
            if to_body.send(Ok(Frame::data(piece.clone()))).await.is_err() {
                return;
            }
        }
        let last = if plan.cut {
            Some(Err(io::Error::from(io::ErrorKind::BrokenPipe)))
        } else {
            plan.trailers.then(|| Ok(Frame::trailers(closing_words())))
        };
        if let Some(last) = last {
            let _ = to_body.send(last).await;
        }
        unfinished.finish();
    });
    let body = StreamBody::new(ReceiverStream::new(frames));
    debug_assert!(!body.is_end_stream(), "there is at least one piece");
    body.boxed_unsync()
}

/// The trailers of an answer.
fn closing_words() -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert("x-closing", http::HeaderValue::from_static("words"));
    trailers.append("x-twice", http::HeaderValue::from_static("one"));
    trailers.append("x-twice", http::HeaderValue::from_static("two"));
    trailers
}
