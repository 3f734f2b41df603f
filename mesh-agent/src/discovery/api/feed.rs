//! One kind's feed: list everything, then watch for changes, for ever. Whatever goes wrong, the last state stays.
//!
//! A list takes effect when its last page is here. Its version is where the watch begins, each event and bookmark moves
//! it on, and a watch that ended goes on from there. Only what the API calls too old is listed anew.

use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use parking_lot::Mutex;
use serde_json::value::RawValue;
use tokio::sync::Notify;

use super::ask::{self, Lines};
use super::catalogue::{Absence, Resource};
use super::failure::{Failure, Reason, Status};
use super::pace::Pace;
use super::store::{Listed, State, Store};
use super::wire::{self, Event, EventKind, Header, Page, Tag};
use crate::discovery::problem::Fault;
use crate::lifecycle::clock;
use crate::telemetry::Telemetry;

/// Objects per page. Kubernetes' own clients ask for so many: a page of full pods is a few MB.
const PAGE_LEN: usize = 500;

/// How long the API is asked to keep a watch, less up to a tenth at random, so that the watches of agents that started
/// together do not end together. API servers close watches without a wish of the client's after 30 to 60 minutes;
/// balancers between often cut what is older than five.
const WATCH_TIME: Duration = Duration::from_secs(290);

/// How much longer than asked a watch may last. Longer than that, and what is between us and the API has lost the connection
/// without telling.
const WATCH_SLACK: Duration = Duration::from_secs(15);

/// A watch that the API ends sooner than this is not followed by the next at once.
const WATCH_TIME_MIN: Duration = Duration::from_secs(1);

/// Times that a kind which matters must be missing in a row before it counts as not there: an API server that has just
/// started does not know its CustomResourceDefinitions yet, and taking policies for gone would open what they close.
const LOOKS_UNTIL_ABSENT: u32 = 3;

/// A feed and what it works with.
pub(super) struct Feed {
    pub(super) resource: &'static Resource,
    pub(super) client: Client,
    pub(super) store: Arc<Mutex<Store>>,
    /// Woken when there is something to publish.
    pub(super) news: Arc<Notify>,
    pub(super) telemetry: Telemetry,
    /// Which of the kind's versions the API serves.
    version: usize,
    /// Where the watch goes on; without it everything is listed.
    place: Option<String>,
    pace: Pace,
    /// Looks in a row at which the kind was not served.
    missed: u32,
}

impl Feed {
    pub(super) fn new(
        resource: &'static Resource,
        client: Client,
        store: Arc<Mutex<Store>>,
        news: Arc<Notify>,
        telemetry: Telemetry,
    ) -> Self {
        let pace = Pace::default();
        Self { resource, client, store, news, telemetry, version: 0, place: None, pace, missed: 0 }
    }

    /// Does not end by itself.
    pub(super) async fn run(mut self) {
        self.telemetry.discovery_connected(self.label(), false);
        loop {
            let done = match self.place.clone() {
                None => self.list().await,
                Some(place) => self.watch(place).await,
            };
            let pause = match done {
                Ok(pause) => pause,
                Err(failure) => self.failed(&failure),
            };
            tokio::time::sleep(pause).await;
        }
    }

    fn label(&self) -> &'static str {
        self.resource.kind.label()
    }

    fn path(&self) -> String {
        self.resource.path(self.resource.versions[self.version])
    }

    /// Lists every page, then puts the list in force as a whole.
    async fn list(&mut self) -> Result<Duration, Failure> {
        self.store.lock().listing(self.resource.kind);
        let mut list = Vec::new();
        let mut next: Option<String> = None;
        let place = loop {
            let mut uri = format!("{}?limit={PAGE_LEN}", self.path());
            if let Some(token) = &next {
                uri.push_str(&format!("&continue={}", escaped(token)));
            }
            let body = ask::whole(&self.client, &uri, self.resource.accept_list()).await?;
            let page: Page<'_> = serde_json::from_slice(&body).map_err(|error| unreadable("list", &error))?;
            for object in page.items.into_iter().flatten() {
                list.extend(self.listed(object));
            }
            match page.metadata.next.filter(|token| !token.is_empty()) {
                Some(token) => next = Some(token),
                None => break page.metadata.resource_version,
            }
        };
        self.telemetry.discovery_listed(self.label());
        self.missed = 0;
        let kind = self.resource.kind;
        {
            let mut store = self.store.lock();
            store.replace(kind, list);
            store.feed(kind).api_version = Some(self.resource.versions[self.version]);
        }
        self.heard(Some(place.clone()));
        self.place = Some(place);
        Ok(Duration::ZERO)
    }

    fn listed(&self, object: &RawValue) -> Option<Listed> {
        let tag = self.tag(&wire::header(object))?;
        if self.store.lock().holds(&tag) {
            return Some(Listed::Unchanged(tag.key));
        }
        let reading = wire::read(&tag.key, object);
        Some(Listed::Read(tag, reading))
    }

    /// Which object it is. One that does not say so cannot be told about under its name.
    fn tag(&self, header: &Result<Header, Fault>) -> Option<Tag> {
        let tag = header.as_ref().map_err(Clone::clone).and_then(|header| header.tag(self.resource.kind));
        let complain = |fault: &Fault| {
            tracing::warn!(kind = self.label(), %fault, "an object of the API is passed over");
        };
        tag.inspect_err(complain).ok()
    }

    /// Follows changes until the watch ends.
    async fn watch(&mut self, place: String) -> Result<Duration, Failure> {
        let asked = WATCH_TIME.mul_f64(1.0 - fastrand::f64() / 10.0);
        let began = clock::now();
        let uri = format!(
            "{}?watch=1&allowWatchBookmarks=true&timeoutSeconds={}&resourceVersion={}",
            self.path(),
            asked.as_secs(),
            escaped(&place)
        );
        let deadline = began + asked + WATCH_SLACK;
        let mut lines = Lines::open(&self.client, &uri, self.resource.accept_watch(), deadline).await?;
        self.store.lock().feed(self.resource.kind).state = State::Watching;
        self.telemetry.discovery_connected(self.label(), true);
        self.recovered();
        while let Some(line) = lines.next().await? {
            if !line.iter().all(u8::is_ascii_whitespace) {
                self.event(&line)?;
                self.pace.reset();
            }
        }
        let lasted = clock::now().duration_since(began);
        if lasted >= WATCH_TIME_MIN {
            self.pace.reset();
            return Ok(Duration::ZERO);
        }
        Ok(self.pace.after_failure(None))
    }

    fn event(&mut self, line: &[u8]) -> Result<(), Failure> {
        let event: Event<'_> = serde_json::from_slice(line).map_err(|error| {
            // An API server that gives up in the middle of a watch may say so without an event around it.
            match serde_json::from_slice::<Status>(line) {
                Ok(status) if status.is_failure() => Failure::of_status(&status),
                _ => unreadable("line of the watch", &error),
            }
        })?;
        let header = wire::header(event.object);
        match event.kind {
            EventKind::Error => {
                let status = serde_json::from_str::<Status>(event.object.get()).unwrap_or_default();
                return Err(Failure::of_status(&status));
            }
            EventKind::Bookmark => {}
            EventKind::Added | EventKind::Modified => {
                if let Some(tag) = self.tag(&header) {
                    let reading = wire::read(&tag.key, event.object);
                    self.store.lock().put(tag, reading);
                }
            }
            EventKind::Deleted => {
                if let Some(tag) = self.tag(&header) {
                    self.store.lock().remove(&tag.key);
                }
            }
        }
        let place = header.ok().and_then(|header| header.resource_version().map(str::to_owned));
        if place.is_some() {
            self.place.clone_from(&place);
        }
        self.heard(place);
        Ok(())
    }

    /// The API said something: notes it, and wakes the one who publishes.
    fn heard(&self, resource_version: Option<String>) {
        let kind = self.resource.kind;
        let now = clock::wall();
        let mut store = self.store.lock();
        let count = store.count(kind);
        let feed = store.feed(kind);
        feed.heard = Some(now);
        if resource_version.is_some() {
            feed.resource_version = resource_version;
        }
        drop(store);
        self.telemetry.discovery_heard(self.label(), count, now);
        self.news.notify_one();
    }

    fn recovered(&mut self) {
        let Some(over) = self.store.lock().recovered(self.resource.kind) else { return };
        let lasted = clock::wall().duration_since(over.since).unwrap_or_default();
        tracing::info!(kind = self.label(), seconds = lasted.as_secs(), "the API answers again");
    }

    /// Notes a failure and says how long to wait.
    fn failed(&mut self, failure: &Failure) -> Duration {
        self.telemetry.discovery_failed(self.label(), failure.reason.label());
        self.telemetry.discovery_connected(self.label(), false);
        if failure.reason == Reason::NotServed {
            return self.not_served(failure);
        }
        self.missed = 0;
        if failure.reason == Reason::Expired {
            self.place = None;
            tracing::info!(kind = self.label(), "what is known is too old for the API, so it is listed anew");
            return self.pace.before_relist();
        }
        let news = self.store.lock().failed(self.resource.kind, failure, clock::wall());
        if !failure.reason.keeps_place() {
            self.place = None;
        }
        let pause = self.pace.after_failure(failure.retry_after);
        if news {
            let kind = self.label();
            tracing::warn!(kind, %failure, "the API cannot be read; what is known stays, and it is asked again");
        }
        pause
    }

    /// Tries the kind's other versions, then waits for it to come.
    fn not_served(&mut self, failure: &Failure) -> Duration {
        self.place = None;
        self.version += 1;
        if self.version < self.resource.versions.len() {
            return Duration::ZERO;
        }
        self.version = 0;
        self.missed = self.missed.saturating_add(1);
        let kind = self.resource.kind;
        let (advice, matters) = match self.resource.absence {
            Absence::Wrong(what) => (Some(format!("the API does not serve this kind: {what}")), true),
            Absence::Fine => (None, self.store.lock().count(kind) > 0),
        };
        if matters && self.missed < LOOKS_UNTIL_ABSENT {
            self.store.lock().failed(kind, failure, clock::wall());
            return self.pace.after_failure(failure.retry_after);
        }
        self.pace.reset();
        if self.store.lock().absent(kind, advice) {
            tracing::info!(kind = self.label(), "the API does not serve this kind; it is looked for again");
        }
        self.heard(None);
        self.pace.before_look()
    }
}

fn unreadable(what: &str, error: &serde_json::Error) -> Failure {
    Failure::new(Reason::Unreadable, format!("the API's answer is no {what}: {error}"))
}

/// A value of a query (RFC 3986 section 3.4). Tokens and versions are mostly base64 and digits, but promise nothing.
fn escaped(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~');
    text.bytes().fold(String::with_capacity(text.len()), |mut all, byte| {
        if plain(byte) {
            all.push(char::from(byte));
        } else {
            all.push_str(&format!("%{byte:02X}"));
        }
        all
    })
}
