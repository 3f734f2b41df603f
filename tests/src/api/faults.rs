//! Faults on order, and what was asked of the server. A test says what shall go wrong, for which requests and how often; the
//! rest of the server asks here and does as it is told.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::wait::now;

/// How many requests are remembered one by one; counts go on.
const REQUESTS_MAX: usize = 200_000;

/// Something that shall go wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Fault {
    /// The verb that it is about: `list`, `watch`, `get`, `create` and so on; all when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verb: Option<String>,
    /// The plural of the kind; all when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource: Option<String>,
    /// The user; all when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// How often; until it is taken back when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub times: Option<u32>,
    /// What goes wrong.
    pub what: What,
}

/// What goes wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum What {
    /// The request is refused with this status.
    Status {
        /// HTTP status: 401, 403, 429, 500, 503 and so on.
        code: u16,
        /// Seconds in the header `Retry-After`.
        #[serde(default)]
        retry_after: Option<u32>,
    },
    /// The answer comes late.
    Delay {
        /// By so much.
        ms: u64,
    },
    /// A running watch ends with an event `ERROR`, status 410; a list that is continued is refused with 410.
    Expire,
    /// A watch breaks off in the middle of the next event's line.
    Cut,
    /// A watch is taken, and says nothing (more).
    Stall,
    /// A watch has no bookmarks.
    NoBookmarks,
    /// A watch has its bookmarks this much later.
    LateBookmarks {
        /// By so much.
        ms: u64,
    },
    /// The kind is not served: requests are refused with 404, watches end.
    Vanish,
}

impl Fault {
    /// A fault of all requests, until it is taken back.
    pub fn new(what: What) -> Self {
        Self { verb: None, resource: None, user: None, times: None, what }
    }

    /// Refused with a status.
    pub fn status(code: u16) -> Self {
        Self::new(What::Status { code, retry_after: None })
    }

    /// Only requests with this verb.
    #[must_use]
    pub fn verb(mut self, verb: &str) -> Self {
        self.verb = Some(verb.to_owned());
        self
    }

    /// Only requests for this kind, by its plural.
    #[must_use]
    pub fn on(mut self, resource: &str) -> Self {
        self.resource = Some(resource.to_owned());
        self
    }

    /// Only requests of this user.
    #[must_use]
    pub fn of(mut self, user: &str) -> Self {
        self.user = Some(user.to_owned());
        self
    }

    /// Only so often.
    #[must_use]
    pub fn times(mut self, times: u32) -> Self {
        self.times = Some(times);
        self
    }

    fn is_about(&self, verb: &str, resource: &str, user: &str) -> bool {
        let is =
            |wanted: &Option<String>, found: &str| wanted.as_deref().is_none_or(|wanted| wanted == found);
        is(&self.verb, verb) && is(&self.resource, resource) && is(&self.user, user) && self.times != Some(0)
    }
}

/// A request that came.
#[derive(Clone, Debug)]
pub struct Seen {
    /// When.
    pub at: Instant,
    /// Verb, as in roles.
    pub verb: String,
    /// Plural of the kind.
    pub resource: String,
    /// Namespace and name, as far as the path has them.
    pub path: String,
    /// Who asked.
    pub user: String,
}

/// The faults that are ordered, and the requests that came.
#[derive(Debug, Default)]
pub struct Faults {
    ordered: Vec<Fault>,
    requests: Vec<Seen>,
    counts: BTreeMap<(String, String), u64>,
}

impl Faults {
    /// Orders a fault.
    pub fn order(&mut self, fault: Fault) {
        self.ordered.push(fault);
    }

    /// Takes all orders back.
    pub fn clear(&mut self) {
        self.ordered.clear();
    }

    /// What is ordered and not yet done.
    pub fn ordered(&self) -> &[Fault] {
        &self.ordered
    }

    /// Takes the first fault that is ordered for such a request and that `pick` wants.
    pub fn take(
        &mut self,
        verb: &str,
        resource: &str,
        user: &str,
        pick: impl Fn(&What) -> bool,
    ) -> Option<What> {
        let is_it = |fault: &&mut Fault| fault.is_about(verb, resource, user) && pick(&fault.what);
        let fault = self.ordered.iter_mut().find(is_it)?;
        let what = fault.what.clone();
        fault.times = fault.times.map(|times| times - 1);
        self.ordered.retain(|fault| fault.times != Some(0));
        Some(what)
    }

    /// Whether such a fault stands, without taking it.
    pub fn stands(&self, verb: &str, resource: &str, user: &str, pick: impl Fn(&What) -> bool) -> bool {
        self.ordered.iter().any(|fault| fault.is_about(verb, resource, user) && pick(&fault.what))
    }

    /// Remembers a request.
    pub fn saw(&mut self, verb: &str, resource: &str, path: String, user: &str) {
        *self.counts.entry((verb.to_owned(), resource.to_owned())).or_default() += 1;
        if self.requests.len() < REQUESTS_MAX {
            let (verb, resource, user) = (verb.to_owned(), resource.to_owned(), user.to_owned());
            self.requests.push(Seen { at: now(), verb, resource, path, user });
        }
    }

    /// How many requests came, by verb and plural.
    pub fn counts(&self) -> BTreeMap<(String, String), u64> {
        self.counts.clone()
    }

    /// The requests that came since a moment.
    pub fn requests_since(&self, since: Instant) -> Vec<Seen> {
        self.requests.iter().filter(|seen| seen.at >= since).cloned().collect()
    }
}

/// The most requests that came within any span of this length.
pub fn busiest(requests: &[Seen], span: Duration) -> usize {
    let within = |(index, first): (usize, &Seen)| {
        requests[index..].iter().take_while(|seen| seen.at - first.at <= span).count()
    };
    requests.iter().enumerate().map(within).max().unwrap_or_default()
}
