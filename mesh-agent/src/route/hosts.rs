//! Which routes hold for a host? Those that name it exactly, then those with wildcards from long to short, then those that
//! name none (Gateway API, `HTTPRouteSpec.hostnames`).

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::model::Route;

/// Longest name that a host can have, in bytes (RFC 1035 section 2.3.4, written without the last dot).
///
/// A longer one matches no route that names hosts; it also bounds the work, which grows with the square of the length.
const HOST_BYTES_MAX: usize = 253;

/// Values by host name.
#[derive(Debug)]
pub(super) struct Hosts<T> {
    exact: HashMap<Arc<str>, T>,
    /// By what follows `*.`.
    wildcard: HashMap<Box<str>, T>,
    any: Option<T>,
}

impl<T> Hosts<T> {
    /// Makes one value of the routes of each host.
    pub(super) fn new(routes: &[Arc<Route>], make: impl Fn(&[Arc<Route>]) -> T) -> Self {
        let mut named = BTreeMap::<&Arc<str>, Vec<Arc<Route>>>::new();
        let mut unnamed = Vec::new();
        for route in routes {
            if route.hostnames.is_empty() {
                unnamed.push(route.clone());
            }
            for host in &route.hostnames {
                named.entry(host).or_default().push(route.clone());
            }
        }
        let any = (!unnamed.is_empty()).then(|| make(&unnamed));
        let mut hosts = Self { exact: HashMap::new(), wildcard: HashMap::new(), any };
        for (host, routes) in named {
            match host.strip_prefix("*.") {
                Some(suffix) => drop(hosts.wildcard.insert(suffix.into(), make(&routes))),
                None => drop(hosts.exact.insert(host.clone(), make(&routes))),
            }
        }
        hosts
    }

    /// What `judge` finds in the first value in which it finds something, from the narrowest host to the widest. `host`
    /// comes without a port.
    pub(super) fn narrowest<'a, R>(
        &'a self,
        host: Option<&str>,
        mut judge: impl FnMut(&'a T) -> Option<R>,
    ) -> Option<R> {
        let named = host.filter(|host| {
            host.len() <= HOST_BYTES_MAX && !(self.exact.is_empty() && self.wildcard.is_empty())
        });
        named.and_then(|host| self.named(&lower(host), &mut judge)).or_else(|| judge(self.any.as_ref()?))
    }

    fn named<'a, R>(&'a self, host: &str, judge: &mut impl FnMut(&'a T) -> Option<R>) -> Option<R> {
        let exact = self.exact.get(host).and_then(&mut *judge);
        exact.or_else(|| {
            // A wildcard stands for one label or more, so the first label is never part of a suffix.
            let suffixes = host.match_indices('.').filter(|(at, _)| *at > 0).map(|(at, _)| &host[at + 1..]);
            suffixes.filter_map(|suffix| self.wildcard.get(suffix)).find_map(judge)
        })
    }
}

/// In lower case and without the dot of a fully qualified name.
fn lower(host: &str) -> Cow<'_, str> {
    let host = host.strip_suffix('.').unwrap_or(host);
    if host.bytes().any(|byte| byte.is_ascii_uppercase()) {
        host.to_ascii_lowercase().into()
    } else {
        host.into()
    }
}

/// The host of a `Host` field or `:authority`, without its port. IPv6 addresses keep their brackets.
pub fn host_without_port(host: &str) -> &str {
    let (name, port) = host.rsplit_once(':').unwrap_or((host, ""));
    let is_port = port.bytes().all(|byte| byte.is_ascii_digit());
    if is_port && (!name.contains(':') || name.ends_with(']')) { name } else { host }
}
