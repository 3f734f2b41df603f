//! How a connection comes to be read as HTTP, and how that ends.
//!
//! Station 5. The caller has settled where it leads and who is on it; this file waits for the client's first bytes, tells
//! what they are, and runs hyper on them until the connection is over.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::TokioTimer;

use super::connection::Connection;
use super::downstream::{Downstream, Seen, Watch};
use super::flood::Flood;
use super::guard::Guard;
use super::io::{Io, TunnelIo};
use super::sniff::{Sniffed, sniff};
use super::{Limits, LocalExecutor, request};
use crate::lifecycle::clock;
use crate::model::Ending;
use crate::proxy::open::CloseSignal;
use crate::proxy::relay::First;

/// Waits until the first bytes tell what the client speaks, no longer than `limit`. The bytes stay in `first`.
///
/// # Errors
/// The connection is over: the client went away, or `close` was raised.
pub async fn sniff_socket(
    app: &tokio::net::TcpStream,
    first: &mut First,
    limit: Option<Duration>,
    close: &CloseSignal,
) -> Result<Sniffed, Ending> {
    let reading = async {
        loop {
            match sniff(first.bytes()) {
                Sniffed::More if first.end() => return never_clear(first.bytes()),
                Sniffed::More => first.read_more(app).await?,
                told => return Ok(told),
            }
        }
    };
    within(limit, close, reading).await
}

/// The same on a tunnel. The bytes stay in `tunnel`.
///
/// # Errors
/// As [`sniff_socket`].
pub async fn sniff_tunnel(
    tunnel: &mut TunnelIo,
    limit: Option<Duration>,
    close: &CloseSignal,
) -> Result<Sniffed, Ending> {
    let reading = async {
        loop {
            match sniff(tunnel.kept()) {
                Sniffed::More => {
                    let more = poll_fn(|context| tunnel.poll_more(context)).await;
                    if !more.map_err(|_broken| Ending::ClientReset)? {
                        return never_clear(tunnel.kept());
                    }
                }
                told => return Ok(told),
            }
        }
    };
    within(limit, close, reading).await
}

/// The client ended before it was clear what it speaks.
fn never_clear(bytes: &[u8]) -> Result<Sniffed, Ending> {
    if bytes.is_empty() { Err(Ending::Closed) } else { Ok(Sniffed::Other) }
}

async fn within(
    limit: Option<Duration>,
    close: &CloseSignal,
    reading: impl Future<Output = Result<Sniffed, Ending>>,
) -> Result<Sniffed, Ending> {
    let patient = async {
        match limit {
            None => reading.await,
            Some(limit) => tokio::time::timeout(limit, reading).await.unwrap_or(Ok(Sniffed::Other)),
        }
    };
    tokio::select! {
        sniffed = patient => sniffed,
        ending = close.told() => Err(ending),
    }
}

/// What an HTTP connection came to.
#[derive(Debug)]
pub struct Ended {
    /// How it ended.
    pub ending: Ending,
    /// Why this agent ended it, if it did.
    pub reason: Option<&'static str>,
    /// Bytes and violations.
    pub seen: Arc<Seen>,
}

/// Serves requests until the connection is over. `io` is the client's side, of which `first` has been read.
pub async fn serve(connection: Connection, io: Io, first: Vec<u8>, is_h2: bool) -> Ended {
    let limits = connection.local.settings.http;
    let watch = if is_h2 {
        Watch::Floods(Flood::new(clock::now()))
    } else {
        Watch::Framing(Guard::new(limits.head_bytes_max, limits.headers_max))
    };
    let telemetry = connection.local.handles.telemetry.clone();
    let (downstream, seen) = Downstream::new(io, first, watch, limits.head_timeout, telemetry.clone());
    let connection = Rc::new(Connection { seen: Some(seen.clone()), ..connection });
    let result = if is_h2 {
        Box::pin(serve_h2(&connection, downstream, &limits)).await
    } else {
        Box::pin(serve_h1(&connection, downstream, &limits)).await
    };
    let (ending, reason) = tell(result, &seen);
    if let (Some(reason), None) = (reason, seen.violation()) {
        telemetry.http_refused(reason);
    }
    Ended { ending, reason, seen }
}

fn tell(result: Result<(), Stopped>, seen: &Seen) -> (Ending, Option<&'static str>) {
    match (result, seen.violation()) {
        (_, Some(violation)) => (Ending::BadRequest, Some(violation.label())),
        (_, None) if seen.was_slow() => (Ending::BadRequest, Some("slow_head")),
        (Ok(()), _) => (Ending::Closed, None),
        (Err(Stopped::Told(ending)), _) => (ending, None),
        (Err(Stopped::Broken(error)), _) => {
            tracing::debug!(error = &error as &dyn std::error::Error, "a client's connection ended");
            if error.is_parse() || error.is_parse_too_large() {
                (Ending::BadRequest, Some("unreadable"))
            } else {
                (Ending::ClientReset, None)
            }
        }
    }
}

/// Why serving stopped before the client was done.
enum Stopped {
    Told(Ending),
    Broken(hyper::Error),
}

async fn serve_h1(
    connection: &Rc<Connection>,
    downstream: Downstream,
    limits: &Limits,
) -> Result<(), Stopped> {
    let serving = connection.clone();
    let service = service_fn(move |request| request::serve(serving.clone(), request));
    let mut builder = http1::Builder::new();
    builder
        // A client that has finished sending is told from one that is gone before hyper sees either (`Downstream`).
        .half_close(false)
        .auto_date_header(false)
        .max_headers(limits.headers_max)
        .max_buf_size(limits.buffer_bytes_max())
        // The guard waits for slow heads, and only for those: an idle connection is not a slow one.
        .header_read_timeout(None)
        .timer(TokioTimer::new());
    let mut running = pin!(builder.serve_connection(downstream, service).with_upgrades());
    until_closed(connection, running.as_mut(), false, |running| running.graceful_shutdown()).await
}

async fn serve_h2(
    connection: &Rc<Connection>,
    downstream: Downstream,
    limits: &Limits,
) -> Result<(), Stopped> {
    let serving = connection.clone();
    let service = service_fn(move |request| request::serve(serving.clone(), request));
    let mut builder = http2::Builder::new(LocalExecutor);
    builder
        .auto_date_header(false)
        .max_concurrent_streams(limits.streams_max)
        .initial_stream_window_size(limits.stream_window_bytes)
        .initial_connection_window_size(limits.connection_window_bytes(limits.streams_max))
        .max_header_list_size(limits.head_bytes_max_u32())
        .max_pending_accept_reset_streams(limits.reset_streams_max)
        .max_local_error_reset_streams(limits.reset_streams_max)
        .timer(TokioTimer::new());
    let mut running = pin!(builder.serve_connection(downstream, service));
    // GOAWAY: streams that are open are served to their end, and the client opens its next ones elsewhere (RFC 9113 section 6.8).
    until_closed(connection, running.as_mut(), true, |running| running.graceful_shutdown()).await
}

/// Runs hyper until the connection is over or told to end. An agent that stops lets the requests that are under way finish. One
/// that drains does so at once only where `drains`: in HTTP/1 the next response says that it is the last (`request::serve`),
/// since a connection that is closed while it looks idle can meet a request on its way.
async fn until_closed<F: Future<Output = hyper::Result<()>>>(
    connection: &Connection,
    mut running: Pin<&mut F>,
    drains: bool,
    stop: impl Fn(Pin<&mut F>),
) -> Result<(), Stopped> {
    let mut is_stopping = false;
    poll_fn(|context| {
        if !is_stopping {
            is_stopping = match connection.close.poll(context) {
                Some(Ending::Shutdown) => true,
                Some(ending) => return Poll::Ready(Err(Stopped::Told(ending))),
                None => drains && connection.close.is_draining(),
            };
            if is_stopping {
                stop(running.as_mut());
            }
        }
        running.as_mut().poll(context).map_err(Stopped::Broken)
    })
    .await
}
