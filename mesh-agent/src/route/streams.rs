//! Which rule does a connection take whose bytes nobody reads? By the name in a TLS client hello, or not at all.

use std::sync::Arc;

use super::Matched;
use super::hosts::Hosts;
use super::precedence::by_age;
use crate::model::Route;

/// TLSRoutes, compiled. Immutable.
#[derive(Debug)]
pub struct TlsRouter {
    hosts: Hosts<Option<Matched>>,
}

/// TCPRoutes, compiled. Immutable.
#[derive(Debug)]
pub struct TcpRouter {
    first: Option<Matched>,
}

impl TlsRouter {
    /// Compiles routes.
    pub fn new(routes: &[Arc<Route>]) -> Self {
        Self { hosts: Hosts::new(routes, first_rule) }
    }

    /// The rule for a client hello with this server name (RFC 6066 section 3). `None`: the connection is refused.
    pub fn find(&self, sni: Option<&str>) -> Option<&Matched> {
        self.hosts.narrowest(sni, Option::as_ref)
    }
}

impl TcpRouter {
    /// Compiles routes.
    pub fn new(routes: &[Arc<Route>]) -> Self {
        Self { first: first_rule(routes) }
    }

    /// The rule for every connection. `None`: the connection is refused.
    pub fn find(&self) -> Option<&Matched> {
        self.first.as_ref()
    }
}

/// The first rule of the oldest route that has one: rules of these kinds hold nothing that a connection could differ in.
fn first_rule(routes: &[Arc<Route>]) -> Option<Matched> {
    let oldest = routes.iter().filter(|route| !route.rules.is_empty()).min_by_key(|route| by_age(route))?;
    let rule = oldest.rules.iter().min_by_key(|rule| rule.index)?.clone();
    Some(Matched { route: oldest.name.clone(), rule, alternative: 0, prefix: None })
}
