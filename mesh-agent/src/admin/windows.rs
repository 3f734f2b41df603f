//! What can be asked. The wiring puts a closure behind each path; the server knows nothing of the rooms behind them.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::lifecycle::Readiness;
use crate::telemetry::{Format, Telemetry};

/// The answer to a window's question. Runs on the admin thread; may take its time, not block for ever.
type View = Arc<dyn Fn() -> Value + Send + Sync>;
type Ask = Arc<dyn Fn(&Query) -> Result<Value, Refused> + Send + Sync>;
type Alive = Arc<dyn Fn() -> bool + Send + Sync>;

/// Why a question has no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// A parameter is missing or malformed (status 400).
    Malformed(String),
    /// It names something that does not exist (status 404).
    NotFound(String),
}

/// The parameters of a question.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query(BTreeMap<String, String>);

impl Query {
    /// Reads the part of a URI behind the question mark (`application/x-www-form-urlencoded`). Of a name that comes
    /// twice the last value counts.
    pub fn parse(text: &str) -> Self {
        let pairs = text.split('&').filter(|pair| !pair.is_empty());
        Self(
            pairs
                .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
                .map(|(name, value)| (decode(name).into_owned(), decode(value).into_owned()))
                .collect(),
        )
    }

    /// The value, if given.
    pub fn value(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// The value.
    ///
    /// # Errors
    /// [`Refused::Malformed`] that names the parameter when it is missing.
    pub fn required(&self, name: &str) -> Result<&str, Refused> {
        self.value(name).ok_or_else(|| Refused::Malformed(format!("the parameter {name} is missing")))
    }
}

/// Percent-decoding (RFC 3986 section 2.1) with `+` for a space; what is not an escape stays as it is.
fn decode(text: &str) -> Cow<'_, str> {
    if !text.contains(['%', '+']) {
        return Cow::Borrowed(text);
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        let escaped = tail.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        match (byte, escaped.and_then(|hex| u8::from_str_radix(hex, 16).ok())) {
            (b'%', Some(value)) => {
                bytes.push(value);
                rest = &tail[2..];
                continue;
            }
            (b'+', _) => bytes.push(b' '),
            (other, _) => bytes.push(other),
        }
        rest = tail;
    }
    Cow::Owned(String::from_utf8_lossy(&bytes).into_owned())
}

/// All windows of one process. Cheap to clone.
#[derive(Clone)]
pub struct Windows {
    telemetry: Telemetry,
    readiness: Readiness,
    views: BTreeMap<&'static str, View>,
    asks: BTreeMap<&'static str, Ask>,
    alive: BTreeMap<&'static str, Alive>,
}

/// What the server sends back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// `Content-Type`.
    pub content_type: &'static str,
    /// Body.
    pub body: String,
}

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";

impl Windows {
    /// `/metrics`, `/healthz`, `/livez`, `/readyz`, `/version` and `/dump`; the rest is added with [`Windows::view`].
    pub fn new(telemetry: Telemetry, readiness: Readiness) -> Self {
        let windows = Self {
            telemetry,
            readiness,
            views: BTreeMap::new(),
            asks: BTreeMap::new(),
            alive: BTreeMap::new(),
        };
        windows.view("/version", || json!({"name": "mesh-agent", "version": env!("CARGO_PKG_VERSION")}))
    }

    /// Says in `/version` which node this is.
    #[must_use]
    pub fn of_node(self, node: &str) -> Self {
        let node = node.to_owned();
        self.view(
            "/version",
            move || json!({"name": "mesh-agent", "version": env!("CARGO_PKG_VERSION"), "node": node}),
        )
    }

    /// Adds a window, or replaces one. It is also part of `/dump`.
    #[must_use]
    pub fn view(mut self, path: &'static str, view: impl Fn() -> Value + Send + Sync + 'static) -> Self {
        self.views.insert(path, Arc::new(view));
        self
    }

    /// Adds a window that takes parameters. It is no part of `/dump`.
    #[must_use]
    pub fn ask(
        mut self,
        path: &'static str,
        ask: impl Fn(&Query) -> Result<Value, Refused> + Send + Sync + 'static,
    ) -> Self {
        self.asks.insert(path, Arc::new(ask));
        self
    }

    /// Adds a part whose death makes `/livez` fail, and so the process be restarted.
    #[must_use]
    pub fn alive(mut self, part: &'static str, alive: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        self.alive.insert(part, Arc::new(alive));
        self
    }

    /// Answers a GET.
    pub fn answer(&self, path: &str, query: &str, accept: Option<&str>) -> Answer {
        match path {
            "/" => text(200, self.paths()),
            "/healthz" | "/livez" => self.liveness(),
            "/readyz" => self.readiness(),
            "/metrics" => {
                let format = Format::for_accept(accept);
                Answer {
                    status: 200,
                    content_type: format.content_type(),
                    body: self.telemetry.scrape(format),
                }
            }
            "/dump" => json_answer(200, &self.dump()),
            _ => self.window(path, &Query::parse(query)),
        }
    }

    fn window(&self, path: &str, query: &Query) -> Answer {
        let answer = match (self.views.get(path), self.asks.get(path)) {
            (Some(view), _) => Ok(view()),
            (None, Some(ask)) => ask(query),
            (None, None) => return text(404, format!("there is no {path}; there are:\n{}", self.paths())),
        };
        match answer {
            Ok(value) => json_answer(200, &value),
            Err(Refused::Malformed(error)) => json_answer(400, &json!({"error": error})),
            Err(Refused::NotFound(error)) => json_answer(404, &json!({"error": error})),
        }
    }

    fn liveness(&self) -> Answer {
        let dead: Vec<&str> =
            self.alive.iter().filter(|(_, alive)| !alive()).map(|(part, _)| *part).collect();
        if dead.is_empty() {
            return text(200, "ok\n".to_owned());
        }
        text(503, lines("not alive", "dead", &dead))
    }

    fn readiness(&self) -> Answer {
        let pending = self.readiness.pending();
        if pending.is_empty() {
            return text(200, "ready\n".to_owned());
        }
        text(503, lines("not ready", "waiting for", &pending))
    }

    fn dump(&self) -> Value {
        let mut dump = serde_json::Map::new();
        dump.insert("pending".to_owned(), json!(self.readiness.pending()));
        for (path, view) in &self.views {
            dump.insert(path.trim_start_matches('/').to_owned(), view());
        }
        Value::Object(dump)
    }

    fn paths(&self) -> String {
        let fixed = ["/dump", "/healthz", "/livez", "/metrics", "/readyz"];
        let mut paths: Vec<&str> = fixed.into_iter().chain(self.views.keys().copied()).collect();
        paths.extend(self.asks.keys());
        paths.sort_unstable();
        paths.join("\n") + "\n"
    }
}

impl fmt::Debug for Windows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Windows").field("paths", &self.paths()).finish_non_exhaustive()
    }
}

fn lines(head: &str, label: &str, parts: &[&str]) -> String {
    let mut text = format!("{head}\n");
    for part in parts {
        text.push_str(&format!("{label}: {part}\n"));
    }
    text
}

fn text(status: u16, body: String) -> Answer {
    Answer { status, content_type: TEXT, body }
}

fn json_answer(status: u16, value: &Value) -> Answer {
    Answer { status, content_type: JSON, body: format!("{value:#}\n") }
}
