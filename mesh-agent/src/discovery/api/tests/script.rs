//! An API that says what a test has written down, in order, without sockets: so the clock can stand still while it
//! speaks.

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::{Body, Frame};
use kube::Client;
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::lifecycle::clock;

/// What it answers.
#[derive(Debug)]
pub(super) struct Reply {
    status: u16,
    retry_after: Option<u64>,
    parts: VecDeque<Bytes>,
    end: End,
}

/// How an answer ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Clean,
    Cut,
    Never,
}

impl Reply {
    /// A page of a list.
    pub(super) fn page(version: u64, next: &str, items: &[Value]) -> Self {
        let metadata = json!({"resourceVersion": version.to_string(), "continue": next});
        Self::json(200, &json!({"kind": "List", "metadata": metadata, "items": items}))
    }

    /// A whole list.
    pub(super) fn list(version: u64, items: &[Value]) -> Self {
        Self::page(version, "", items)
    }

    /// An error with what the API says about it.
    pub(super) fn error(status: u16, message: &str) -> Self {
        Self::json(status, &json!({"kind": "Status", "code": status, "message": message}))
    }

    /// The same, and when to come back.
    pub(super) fn retry(status: u16, seconds: u64) -> Self {
        Self { retry_after: Some(seconds), ..Self::error(status, "too much to do") }
    }

    fn json(status: u16, body: &Value) -> Self {
        Self { status, retry_after: None, parts: [body.to_string().into()].into(), end: End::Clean }
    }

    /// A watch: these events, then an end.
    pub(super) fn watch(events: &[(&str, Value)], end: End) -> Self {
        let line = |(kind, object): &(&str, Value)| format!("{}\n", json!({"type": kind, "object": object}));
        Self {
            status: 200,
            retry_after: None,
            parts: events.iter().map(|event| line(event).into()).collect(),
            end,
        }
    }

    /// With more bytes before the end.
    pub(super) fn and(mut self, bytes: &'static str) -> Self {
        self.parts.push_back(bytes.into());
        self
    }

    /// All of it at once.
    pub(super) fn at_once(mut self) -> Self {
        let whole = self.parts.iter().flat_map(|part| part.to_vec()).collect::<Vec<u8>>();
        self.parts = [whole.into()].into();
        self
    }
}

impl Body for Reply {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        match (self.parts.pop_front(), self.end) {
            (Some(part), _) => Poll::Ready(Some(Ok(Frame::data(part)))),
            (None, End::Clean) => Poll::Ready(None),
            (None, End::Cut) => Poll::Ready(Some(Err(io::ErrorKind::ConnectionReset.into()))),
            (None, End::Never) => Poll::Pending,
        }
    }
}

/// The API.
#[derive(Clone, Debug, Default)]
pub(super) struct Script(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    /// By plural and what is asked (`list`, `watch`).
    replies: HashMap<(String, &'static str), VecDeque<Reply>>,
    asked: Vec<(Instant, String)>,
}

impl Script {
    /// The next answer to a list of `plural`. Where none is written, the list is empty.
    pub(super) fn lists(&self, plural: &str, reply: Reply) {
        self.0.lock().replies.entry((plural.to_owned(), "list")).or_default().push_back(reply);
    }

    /// The next answer to a watch of `plural`. Where none is written, nothing ever happens.
    pub(super) fn watches(&self, plural: &str, reply: Reply) {
        self.0.lock().replies.entry((plural.to_owned(), "watch")).or_default().push_back(reply);
    }

    /// What was asked about `plural`, without what every question says, and when.
    pub(super) fn asked(&self, plural: &str) -> Vec<(Instant, String)> {
        let inner = self.0.lock();
        let of_plural = inner
            .asked
            .iter()
            .filter(|(_, uri)| uri.split('?').next().is_some_and(|path| path.ends_with(plural)));
        of_plural
            .map(|(at, uri)| {
                let query = uri.split_once('?').map_or("", |(_, query)| query);
                let telling = query.split('&').filter(|part| {
                    ["continue=", "resourceVersion="].iter().any(|known| part.starts_with(known))
                });
                let verb = if query.contains("watch=1") { "watch" } else { "list" };
                (*at, [verb].into_iter().chain(telling).collect::<Vec<_>>().join(" "))
            })
            .collect()
    }

    /// The same without the times.
    pub(super) fn questions(&self, plural: &str) -> Vec<String> {
        self.asked(plural).into_iter().map(|(_, question)| question).collect()
    }

    /// Whole addresses, as asked.
    pub(super) fn uris(&self) -> Vec<String> {
        self.0.lock().asked.iter().map(|(_, uri)| uri.clone()).collect()
    }

    /// A client of it.
    pub(super) fn client(&self) -> Client {
        let script = self.clone();
        let service = tower::service_fn(move |request: Request<kube::client::Body>| {
            let reply = script.answer(request.uri().to_string());
            async move {
                let mut answer = Response::builder().status(StatusCode::from_u16(reply.status).unwrap());
                if let Some(seconds) = reply.retry_after {
                    answer = answer.header("retry-after", seconds);
                }
                Ok::<_, Infallible>(answer.body(reply).unwrap())
            }
        });
        Client::new(service, "default")
    }

    fn answer(&self, uri: String) -> Reply {
        let path = uri.split('?').next().unwrap_or_default();
        let plural = path.rsplit('/').next().unwrap_or_default().to_owned();
        let verb = if uri.contains("watch=1") { "watch" } else { "list" };
        let mut inner = self.0.lock();
        inner.asked.push((clock::now(), uri));
        let written = inner.replies.get_mut(&(plural, verb)).and_then(VecDeque::pop_front);
        written.unwrap_or_else(|| match verb {
            "list" => Reply::list(1, &[]),
            _ => Reply::watch(&[], End::Never),
        })
    }
}
