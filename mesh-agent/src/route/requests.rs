//! Which rule does a request to a service port take? One router for all HTTPRoutes, or all GRPCRoutes, attached to it.

use std::sync::Arc;

use http::{HeaderMap, Method};

use super::Matched;
use super::ask::Ask;
use super::hosts::{Hosts, host_without_port};
use super::paths::Paths;
use crate::model::Route;

/// What routing looks at. Nothing of it is owned, so making one is free.
#[derive(Clone, Copy, Debug)]
pub struct RequestHead<'a> {
    /// `Host` or `:authority`, with or without a port, in any case. It never chooses a service.
    pub host: Option<&'a str>,
    /// Method.
    pub method: &'a Method,
    /// Path in its normal form (`model::path`), without the query.
    pub path: &'a str,
    /// What stands behind `?`, as written.
    pub query: Option<&'a str>,
    /// Headers.
    pub headers: &'a HeaderMap,
}

/// HTTPRoutes or GRPCRoutes, compiled. Immutable.
#[derive(Debug)]
pub struct RequestRouter {
    hosts: Box<Hosts<Paths>>,
}

impl RequestRouter {
    /// Compiles routes.
    pub fn new(routes: &[Arc<Route>]) -> Self {
        Self { hosts: Box::new(Hosts::new(routes, Paths::new)) }
    }

    /// The rule that the request takes. `None`: routes are attached and none matches, which is answered with 404 (or
    /// UNIMPLEMENTED, for a gRPC call).
    pub fn find(&self, head: &RequestHead<'_>) -> Option<&Matched> {
        self.answer(&Ask::new(*head))
    }

    /// The same, for tests that look at what the search cost.
    pub(super) fn answer(&self, ask: &Ask<'_>) -> Option<&Matched> {
        let host = ask.head().host.map(host_without_port);
        self.hosts.narrowest(host, |paths| paths.find(ask))
    }
}
