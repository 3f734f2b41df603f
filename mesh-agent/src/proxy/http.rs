//! Requests: what happens on connections whose HTTP is read.
//!
//! Layer 5, inside the proxy: stations 5 to 13 once more, per request. A connection comes here when routes are attached to
//! the service port that it dialled, or when policies of the pod that it reached speak about requests. hyper reads and
//! writes HTTP; this room decides nothing that `route`, `policy` or `balance` decide, and never reads a body.
//!
//! Reading order: [`sniff`] (is it HTTP), [`entry`] (how a connection comes in, and how it ends), [`guard`],
//! [`flood`] and [`downstream`] (the client's side), [`connection`] (who is on it), [`request`] (the journey of one request), [`head`],
//! [`headers`], [`admission`], [`deadline`], [`body`], [`upstream`] (connections to servers) with [`io`], [`interim`], [`upgrade`], [`mirror`],
//! [`answer`] (our own words), [`report`].

pub mod admission;
pub mod answer;
pub mod body;
pub mod connection;
pub mod deadline;
pub mod downstream;
pub mod entry;
pub mod flood;
pub mod guard;
pub mod head;
pub mod headers;
pub mod interim;
pub mod io;
pub mod mirror;
pub mod report;
pub mod request;
pub mod sniff;
pub mod upgrade;
pub mod upstream;

#[cfg(test)]
mod tests;

use std::time::Duration;

use crate::lifecycle::tasks;

/// Limits of HTTP. Each is per connection unless it says otherwise.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Longest request head that a client may send, and longest response head that a server may, in bytes. Larger request
    /// heads are refused: 400 in HTTP/1.1, 431 in HTTP/2. 64 KiB, as Envoy has it (60 KiB there): gRPC metadata and cookies
    /// of real applications exceed 16 KiB.
    pub head_bytes_max: usize,
    /// Most header lines of a head.
    pub headers_max: usize,
    /// How long a client may take for the rest of a head once it has begun. An idle connection waits for ever.
    pub head_timeout: Duration,
    /// Requests that an HTTP/2 client may have under way at once.
    pub streams_max: u32,
    /// Flow-control window of an HTTP/2 stream, in bytes: what one request may make this agent hold each way. 256 KiB fill
    /// 2 Gbit/s at 1 ms.
    pub stream_window_bytes: u32,
    /// Streams that an HTTP/2 peer may have opened and reset before they were looked at (CVE-2023-44487). More: GOAWAY.
    pub reset_streams_max: usize,
    /// How long a connection to a server waits for its next request.
    pub idle_upstream_max: Duration,
    /// HTTP/1 connections to one endpoint that wait for their next request, per client pod. Fewer than a client's requests
    /// at once would mean a new connection, with a tunnel's handshake, for each one beyond.
    pub idle_upstreams_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            head_bytes_max: 64 * 1024,
            headers_max: 200,
            head_timeout: Duration::from_secs(30),
            streams_max: 250,
            stream_window_bytes: 256 * 1024,
            reset_streams_max: 50,
            idle_upstream_max: Duration::from_secs(60),
            idle_upstreams_max: 1024,
        }
    }
}

impl Limits {
    /// Window of a whole HTTP/2 connection that carries up to `streams` requests: what all of them may hold, so that some that
    /// nobody reads never stand in the way of the others.
    fn connection_window_bytes(&self, streams: u32) -> u32 {
        self.stream_window_bytes.saturating_mul(streams).min(i32::MAX as u32)
    }

    fn head_bytes_max_u32(&self) -> u32 {
        u32::try_from(self.head_bytes_max).unwrap_or(u32::MAX)
    }

    /// The parser's buffer must hold a whole head, and the guard is the one who refuses heads that are too large.
    fn buffer_bytes_max(&self) -> usize {
        2 * self.head_bytes_max
    }
}

/// Runs hyper's HTTP/2 tasks on the worker that they belong to.
#[derive(Clone, Copy, Debug)]
pub struct LocalExecutor;

impl<F: Future<Output = ()> + 'static> hyper::rt::Executor<F> for LocalExecutor {
    fn execute(&self, task: F) {
        tasks::spawn_local("http2", task);
    }
}
