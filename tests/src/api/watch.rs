//! Watches: what happens to the objects that are meant, line by line, until the time is over or a fault ends it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body::Frame;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::sleep;

use super::faults::What;
use super::inner::Inner;
use super::refusal::Refusal;
use super::request::Ask;
use super::resource::Resource;
use super::selector::Selector;
use super::store::{Event, Form, Stored};
use crate::wait::now;

/// How long before its end a watch has a last bookmark.
const LAST_BOOKMARK: Duration = Duration::from_secs(2);

/// How long the first half of a cut line has to leave the server.
const FLUSH: Duration = Duration::from_millis(50);

/// A watch that was asked for.
pub struct Watch {
    inner: Arc<Inner>,
    resource: Arc<Resource>,
    ask: Ask,
    user: String,
    form: Form,
    selector: Selector,
    timeout: Duration,
    /// All up to this revision was told.
    told: u64,
    /// Objects that are told as new before all else.
    initial: Option<Vec<Arc<Stored>>>,
    to_client: mpsc::Sender<io::Result<Frame<Bytes>>>,
}

/// What a watch says, piece by piece.
pub type Pieces = mpsc::Receiver<io::Result<Frame<Bytes>>>;

/// The watch is over.
struct Over;

impl Watch {
    /// Reads what is asked for. The watch begins with [`Watch::run`] and speaks through the returned receiver.
    ///
    /// # Errors
    /// A parameter is not understood.
    pub fn new(
        inner: Arc<Inner>,
        resource: Arc<Resource>,
        ask: Ask,
        user: String,
        form: Form,
    ) -> Result<(Self, Pieces), Refusal> {
        let (labels, fields) = (ask.parameter("labelSelector"), ask.parameter("fieldSelector"));
        let selector = Selector::read(labels, fields, &resource)?;
        let (timeout, from) = (ask.timeout()?, ask.number("resourceVersion")?.unwrap_or_default());
        if ask.is("sendInitialEvents") && ask.parameter("resourceVersionMatch") != "NotOlderThan" {
            let message = "sendInitialEvents: Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
            return Err(Refusal::new(422, message));
        }
        let (to_client, from_watch) = mpsc::channel(16);
        let mut watch = Self {
            inner,
            resource,
            ask,
            user,
            form,
            selector,
            timeout,
            told: from,
            initial: None,
            to_client,
        };
        if from == 0 || watch.ask.is("sendInitialEvents") {
            let state = watch.inner.state.lock();
            watch.told = state.store.revision();
            let all = state.store.all(&watch.resource.kept);
            let meant = all.filter(|stored| watch.is_meant(stored)).cloned().collect();
            watch.initial = Some(meant);
        }
        Ok((watch, from_watch))
    }

    fn is_meant(&self, stored: &Stored) -> bool {
        self.ask.namespace.as_deref().is_none_or(|namespace| *stored.key.namespace == *namespace)
            && self.selector.matches(&stored.object)
    }

    /// Tells until the watch is over.
    pub async fn run(mut self) {
        // Whichever way it ends, there is nobody to tell.
        let _ = self.tell().await;
    }

    async fn tell(&mut self) -> Result<(), Over> {
        let deadline = now() + self.timeout;
        let mut pulse = self.inner.pulse.subscribe();
        let late = match self.fault(|what| matches!(what, What::LateBookmarks { .. })) {
            Some(What::LateBookmarks { ms }) => Duration::from_millis(ms),
            _ => Duration::ZERO,
        };
        let has_bookmarks = self.ask.is("allowWatchBookmarks");
        let mut bookmark_at = self.next_bookmark(deadline) + late;
        pulse.borrow_and_update();
        self.meet_faults(&mut pulse).await?;
        self.tell_initial(has_bookmarks).await?;
        loop {
            pulse.borrow_and_update();
            self.meet_faults(&mut pulse).await?;
            self.tell_events().await?;
            let at = now();
            if at >= deadline {
                return Ok(());
            }
            if has_bookmarks && at >= bookmark_at {
                self.tell_bookmark(false).await?;
                bookmark_at = self.next_bookmark(deadline) + late;
            }
            let until = if has_bookmarks { deadline.min(bookmark_at) } else { deadline };
            tokio::select! {
                () = self.to_client.closed() => return Err(Over),
                () = sleep(until - at) => {}
                _ = pulse.changed() => {}
            }
        }
    }

    /// At the usual distance, and once shortly before the end.
    fn next_bookmark(&self, deadline: std::time::Instant) -> std::time::Instant {
        let (usual, last) = (now() + self.inner.bookmarks_every(), deadline.checked_sub(LAST_BOOKMARK));
        match last {
            Some(last) if last > now() => usual.min(last),
            _ => usual,
        }
    }

    fn fault(&self, pick: impl Fn(&What) -> bool) -> Option<What> {
        self.inner.faults.lock().take("watch", &self.ask.plural, &self.user, pick)
    }

    async fn meet_faults(&self, pulse: &mut tokio::sync::watch::Receiver<u64>) -> Result<(), Over> {
        let stands = |pick: fn(&What) -> bool| {
            self.inner.faults.lock().stands("watch", &self.ask.plural, &self.user, pick)
        };
        if stands(|what| *what == What::Vanish) {
            return Err(Over);
        }
        if self.fault(|what| *what == What::Expire).is_some() {
            let told = self.told;
            self.tell_refusal(&Refusal::expired(format!("too old resource version: {told} (ordered)")))
                .await?;
            return Err(Over);
        }
        if self.fault(|what| *what == What::Stall).is_some() {
            // Until the client goes, or for as long as the order stands.
            loop {
                tokio::select! {
                    () = self.to_client.closed() => return Err(Over),
                    _ = pulse.changed() => {}
                }
                if self.inner.faults.lock().ordered().is_empty() {
                    return Err(Over);
                }
            }
        }
        Ok(())
    }

    async fn tell_initial(&mut self, has_bookmarks: bool) -> Result<(), Over> {
        let Some(initial) = self.initial.take() else { return Ok(()) };
        for few in initial.chunks(500) {
            let mut lines = Vec::new();
            few.iter().for_each(|stored| self.line(&mut lines, "ADDED", stored));
            self.send(lines).await?;
        }
        if has_bookmarks {
            self.tell_bookmark(true).await?;
        }
        Ok(())
    }

    async fn tell_events(&mut self) -> Result<(), Over> {
        let events = {
            let state = self.inner.state.lock();
            let events = state.store.since(self.told).map(|events| {
                events.filter(|event| event.kept == self.resource.kept).cloned().collect::<Vec<_>>()
            });
            if events.is_ok() {
                self.told = self.told.max(state.store.revision());
            }
            events
        };
        let events = match events {
            Ok(events) => events,
            Err(refusal) => {
                self.tell_refusal(&refusal).await?;
                return Err(Over);
            }
        };
        let mut lines = Vec::new();
        events.iter().for_each(|event| self.event(&mut lines, event));
        if lines.is_empty() {
            return Ok(());
        }
        if self.fault(|what| *what == What::Cut).is_some() {
            let first = lines.iter().position(|byte| *byte == b'\n').unwrap_or(lines.len());
            lines.truncate(first / 2);
            self.send(lines).await?;
            // What still stands in the connection's buffer when it breaks is lost.
            sleep(FLUSH).await;
            let _ = self.to_client.send(Err(io::ErrorKind::ConnectionReset.into())).await;
            return Err(Over);
        }
        self.send(lines).await
    }

    /// An object that comes to be meant is new to this watch, and one that is no longer meant is gone.
    fn event(&self, lines: &mut Vec<u8>, event: &Event) {
        let was = event.before.as_ref().is_some_and(|before| self.is_meant(before));
        let is = !event.is_gone && self.is_meant(&event.after);
        match (was, is) {
            (false, true) => self.line(lines, "ADDED", &event.after),
            (true, true) => self.line(lines, "MODIFIED", &event.after),
            (true, false) if event.is_gone => self.line(lines, "DELETED", &event.after),
            (true, false) => {
                let before = event.before.as_ref().expect("it was meant before");
                self.line(lines, "DELETED", &before.at(event.revision));
            }
            (false, false) => {}
        }
    }

    fn line(&self, lines: &mut Vec<u8>, what: &str, stored: &Stored) {
        lines.extend_from_slice(format!(r#"{{"type":"{what}","object":"#).as_bytes());
        stored.write(lines, &self.resource, self.form, true);
        lines.extend_from_slice(b"}\n");
    }

    async fn tell_bookmark(&self, is_end_of_initial: bool) -> Result<(), Over> {
        if self.inner.faults.lock().stands("watch", &self.ask.plural, &self.user, |w| *w == What::NoBookmarks)
        {
            return Ok(());
        }
        let (kind, version) = match self.form {
            Form::Whole => (self.resource.kind.clone(), self.resource.api_version()),
            Form::Metadata => ("PartialObjectMetadata".to_owned(), "meta.k8s.io/v1".to_owned()),
        };
        let mut metadata = json!({ "resourceVersion": self.told.to_string() });
        if is_end_of_initial {
            metadata["annotations"] = json!({ "k8s.io/initial-events-end": "true" });
        }
        let object = json!({ "kind": kind, "apiVersion": version, "metadata": metadata });
        self.tell_value(&json!({ "type": "BOOKMARK", "object": object })).await
    }

    async fn tell_refusal(&self, refusal: &Refusal) -> Result<(), Over> {
        self.tell_value(&json!({ "type": "ERROR", "object": refusal.status() })).await
    }

    async fn tell_value(&self, value: &Value) -> Result<(), Over> {
        self.send(format!("{value}\n").into_bytes()).await
    }

    async fn send(&self, text: Vec<u8>) -> Result<(), Over> {
        self.to_client.send(Ok(Frame::data(text.into()))).await.map_err(|_gone| Over)
    }
}
