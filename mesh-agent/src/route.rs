//! Which rule does a request take, and where does it go? Routers compiled from Gateway API routes, and pure functions that
//! carry out what a rule's filters say.
//!
//! Layer 2, a deciding room, asked after the protocol of a connection to a service port with routes is known and before
//! an endpoint is picked. It never reads a socket or a clock, never changes after it was compiled, and never sees who
//! wrote a route: `discovery` has validated routes and settled which of them are attached.
//!
//! Finding a rule costs the length of the path (and of the host, where routes name hosts), not the number of rules on
//! other paths: exact paths and gRPC methods are found by hash, prefixes by walking down the path's segments, regular
//! expressions all at once.
//!
//! Reading order: `table` (from service and client to a router), `requests` (one router for requests), `hosts`, `paths`,
//! `prefixes`, `patterns` and `calls` (how it finds candidates), `ask` (whether a candidate matches), `precedence` (which
//! one wins), `streams` (TLS and TCP), `draw` (one backend of a rule), `filters`, `handle` (how a table is swapped as a
//! whole).
#![forbid(unsafe_code)]

use std::sync::Arc;

use crate::model::{RequestMatch, RouteName, RouteRule};

mod ask;
mod calls;
mod draw;
pub mod filters;
mod handle;
mod hosts;
mod paths;
mod patterns;
mod precedence;
mod prefixes;
mod requests;
mod streams;
mod table;
#[cfg(test)]
mod tests;

pub use draw::draw;
pub use handle::{Routes, Writer, new};
pub use hosts::host_without_port;
pub use requests::{RequestHead, RequestRouter};
pub use streams::{TcpRouter, TlsRouter};
pub use table::{Attached, Attachment, PortRoutes, RouteTable};

/// The rule that a request or connection takes.
#[derive(Clone, Debug)]
pub struct Matched {
    /// Its route.
    pub route: RouteName,
    /// The rule.
    pub rule: Arc<RouteRule>,
    /// Which of the rule's `matches` it was, from 0.
    pub alternative: usize,
    /// The prefix that matched, without a slash at its end (empty: `/`); `None`: the path was not matched by prefix.
    pub prefix: Option<Arc<str>>,
}

impl Matched {
    /// The alternative that matched; `None` for rules of TLS and TCP routes written without one.
    pub fn request_match(&self) -> Option<&RequestMatch> {
        self.rule.matches.get(self.alternative)
    }
}
