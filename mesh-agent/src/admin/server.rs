//! HTTP/1.1 on a thread of its own.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use super::windows::Answer;
use super::{Error, Listener, Windows};
use crate::lifecycle::{Shutdown, tasks};

/// Connections served at once; more wait in the backlog. Scrapers and people need a handful, and each may hold a dump.
const CONNECTIONS_MAX: usize = 32;

/// How long a client may take to send its request head before it is dropped: a silent client must not hold a place.
const HEAD_WAIT: Duration = Duration::from_secs(10);

/// A running server.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    thread: thread::JoinHandle<()>,
}

impl Server {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Waits for it to end, which it does soon after shutdown is requested.
    pub fn join(self) {
        if self.thread.join().is_err() {
            tracing::error!("the admin thread panicked");
        }
    }
}

/// Serves `windows` on `listener` until `shutdown`.
///
/// # Errors
/// The thread or its runtime does not start, or the listener cannot be used without blocking.
pub fn serve(listener: impl Into<Listener>, windows: Windows, shutdown: Shutdown) -> Result<Server, Error> {
    let listener = listener.into();
    let address = listener.address().map_err(Error::Start)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Error::Start)?;
    let thread = thread::Builder::new()
        .name("admin".to_owned())
        .spawn(move || runtime.block_on(accept(listener, windows, shutdown)))
        .map_err(Error::Start)?;
    Ok(Server { address, thread })
}

async fn accept(listener: Listener, windows: Windows, shutdown: Shutdown) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let accepting = async {
        let listener = match listener.open().await {
            Ok(listener) => listener,
            Err(error) => return tracing::error!(%error, "the windows cannot be opened"),
        };
        loop {
            let place = places.clone().acquire_owned().await.expect("the semaphore is never closed");
            match listener.accept().await {
                Ok((stream, _)) => {
                    let windows = windows.clone();
                    tasks::spawn("admin connection", async move {
                        converse(stream, windows).await;
                        drop(place);
                    });
                }
                Err(error) => {
                    // Out of descriptors, mostly: without a pause this loop would spin until some are free.
                    tracing::warn!(%error, "the admin server cannot accept");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    };
    tokio::select! {
        () = accepting => {}
        () = shutdown.requested() => {}
    }
}

async fn converse(stream: TcpStream, windows: Windows) {
    let service = service_fn(move |request: Request<Incoming>| {
        let response = respond(&windows, &request);
        async move { Ok::<_, Infallible>(response) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_WAIT)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "an admin connection ended early");
    }
}

fn respond<B>(windows: &Windows, request: &Request<B>) -> Response<Full<Bytes>> {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        let mut response = response(Answer {
            status: 405,
            content_type: "text/plain; charset=utf-8",
            body: "these windows are read-only: use GET\n".to_owned(),
        });
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    let accept = request.headers().get(ACCEPT).and_then(|value| value.to_str().ok());
    let uri = request.uri();
    response(windows.answer(uri.path(), uri.query().unwrap_or_default(), accept))
}

fn response(answer: Answer) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(answer.body));
    *response.status_mut() = StatusCode::from_u16(answer.status).expect("answers carry valid statuses");
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(answer.content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
