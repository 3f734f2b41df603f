//! A Kubernetes API in memory, behind a real `kube::Client`: objects with resourceVersions, conflicts, watches, patches,
//! TokenReviews, and the order to be away. It knows no kinds: an object is what lies under a path.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt as _;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, StreamBody};
use kube::Client;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::mpsc;

type Body = http_body_util::combinators::UnsyncBoxBody<Bytes, Infallible>;

#[derive(Clone, Default)]
pub(super) struct FakeApi(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    version: u64,
    objects: BTreeMap<String, Value>,
    watchers: Vec<Watcher>,
    requests: Vec<String>,
    /// What TokenReviews of a token say.
    reviews: HashMap<String, Value>,
    /// Collections that not every test knows, by their last part.
    served: Vec<&'static str>,
    is_away: bool,
}

struct Watcher {
    collection: String,
    name: Option<String>,
    events: mpsc::UnboundedSender<Value>,
}

impl FakeApi {
    pub(super) fn client(&self) -> Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<kube::client::Body>| {
            let api = api.clone();
            async move {
                let (head, body) = request.into_parts();
                let body = body.collect().await.expect("a body").to_bytes();
                if api.0.lock().is_away {
                    return Err(std::io::Error::from(std::io::ErrorKind::ConnectionRefused));
                }
                Ok::<_, std::io::Error>(api.answer(&head, &body))
            }
        });
        Client::new(service, "default")
    }

    /// From now on nobody answers, and open watches end; or all is well again.
    pub(super) fn set_away(&self, is_away: bool) {
        let mut state = self.0.lock();
        state.is_away = is_away;
        state.watchers.clear();
    }

    /// Serves another collection.
    pub(super) fn serve(&self, collection: &'static str) {
        self.0.lock().served.push(collection);
    }

    /// `METHOD path` of every request so far that begins with this method.
    pub(super) fn requests(&self, method: &str) -> Vec<String> {
        self.0.lock().requests.iter().filter(|request| request.starts_with(method)).cloned().collect()
    }

    pub(super) fn get(&self, path: &str) -> Option<Value> {
        self.0.lock().objects.get(path).cloned()
    }

    /// Puts an object there, whatever was there before.
    pub(super) fn put(&self, path: &str, object: Value) {
        self.0.lock().store(path, object);
    }

    pub(super) fn delete(&self, path: &str) {
        self.0.lock().remove(path);
    }

    pub(super) fn review(&self, token: &str, status: Value) {
        self.0.lock().reviews.insert(token.to_owned(), status);
    }

    fn answer(&self, head: &http::request::Parts, body: &[u8]) -> Response<Body> {
        let path = head.uri.path();
        let query = head.uri.query().unwrap_or_default();
        let mut state = self.0.lock();
        let kind = if query.contains("watch=true") { "WATCH" } else { head.method.as_str() };
        state.requests.push(format!("{kind} {path}"));
        let sent: Value = serde_json::from_slice(body).unwrap_or_default();
        match head.method {
            Method::GET if kind == "WATCH" => state.watch(path, query),
            Method::GET if is_collection(path) || state.serves(path) => state.list(path, query),
            Method::GET => state.objects.get(path).map_or_else(not_found, ok),
            Method::POST if path.ends_with("/tokenreviews") => state.token_review(sent),
            Method::POST => {
                let name = sent["metadata"]["name"].as_str().unwrap_or_default().to_owned();
                state.create(&format!("{path}/{name}"), sent)
            }
            Method::PUT => state.replace(path, sent),
            Method::PATCH => {
                let kind = head.headers.get("content-type").and_then(|kind| kind.to_str().ok());
                state.patch(path, &sent, kind.is_some_and(|kind| kind.contains("apply")))
            }
            _ => failure(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed"),
        }
    }
}

impl State {
    fn store(&mut self, path: &str, mut object: Value) -> Value {
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let kind = if self.objects.contains_key(path) { "MODIFIED" } else { "ADDED" };
        self.objects.insert(path.to_owned(), object.clone());
        self.tell(path, kind, &object);
        object
    }

    fn remove(&mut self, path: &str) {
        self.version += 1;
        if let Some(object) = self.objects.remove(path) {
            self.tell(path, "DELETED", &object);
        }
    }

    fn tell(&mut self, path: &str, kind: &str, object: &Value) {
        let (collection, name) = path.rsplit_once('/').expect("a path");
        let event = json!({"type": kind, "object": object});
        self.watchers.retain(|watcher| {
            let concerns = within(collection, &watcher.collection)
                && watcher.name.as_ref().is_none_or(|wanted| wanted == name);
            !concerns || watcher.events.send(event.clone()).is_ok()
        });
    }

    fn watch(&mut self, path: &str, query: &str) -> Response<Body> {
        let (events, received) = mpsc::unbounded_channel::<Value>();
        self.watchers.push(Watcher { collection: path.to_owned(), name: selected(query), events });
        let lines = futures_util::stream::unfold(received, |mut received| async move {
            let event = received.recv().await?;
            let line = Bytes::from(format!("{event}\n"));
            Some((Ok::<_, Infallible>(http_body::Frame::data(line)), received))
        });
        Response::new(StreamBody::new(lines.boxed()).boxed_unsync())
    }

    fn serves(&self, path: &str) -> bool {
        self.served.iter().any(|collection| path.ends_with(&format!("/{collection}")))
    }

    fn list(&self, path: &str, query: &str) -> Response<Body> {
        let name = selected(query);
        let items: Vec<&Value> = self
            .objects
            .iter()
            .filter(|(key, _)| {
                let (collection, own) = key.rsplit_once('/').expect("a path");
                within(collection, path) && name.as_ref().is_none_or(|name| name == own)
            })
            .map(|(_, object)| object)
            .collect();
        let version = self.version.to_string();
        ok(
            &json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": version}, "items": items}),
        )
    }

    fn create(&mut self, path: &str, object: Value) -> Response<Body> {
        if self.objects.contains_key(path) {
            return failure(StatusCode::CONFLICT, "AlreadyExists");
        }
        ok(&self.store(path, object))
    }

    fn replace(&mut self, path: &str, object: Value) -> Response<Body> {
        let Some(before) = self.objects.get(path) else { return not_found() };
        if before["metadata"]["resourceVersion"] != object["metadata"]["resourceVersion"] {
            return failure(StatusCode::CONFLICT, "Conflict");
        }
        ok(&self.store(path, object))
    }

    fn patch(&mut self, path: &str, patch: &Value, is_apply: bool) -> Response<Body> {
        let (path, of_status) = path.strip_suffix("/status").map_or((path, false), |path| (path, true));
        let before = match self.objects.get(path) {
            Some(before) => before.clone(),
            None if is_apply && !of_status => json!({}),
            None => return not_found(),
        };
        let version = &patch["metadata"]["resourceVersion"];
        if !version.is_null() && *version != before["metadata"]["resourceVersion"] {
            return failure(StatusCode::CONFLICT, "Conflict");
        }
        let mut after = before.clone();
        match of_status {
            true => merge(&mut after["status"], &patch["status"]),
            false => merge(&mut after, patch),
        }
        if after == before { ok(&before) } else { ok(&self.store(path, after)) }
    }

    fn token_review(&self, mut review: Value) -> Response<Body> {
        let token = review["spec"]["token"].as_str().unwrap_or_default();
        let unknown = json!({"authenticated": false, "error": "invalid bearer token"});
        review["status"] = self.reviews.get(token).cloned().unwrap_or(unknown);
        ok(&review)
    }
}

/// Cluster-wide lists hold the objects of every namespace.
fn within(collection: &str, asked: &str) -> bool {
    let strip = |path: &str| -> String {
        let parts: Vec<&str> = path.split('/').collect();
        match parts.iter().position(|part| *part == "namespaces") {
            Some(at) if parts.len() > at + 2 => [&parts[..at], &parts[at + 2..]].concat().join("/"),
            _ => path.to_owned(),
        }
    };
    collection == asked || strip(collection) == asked
}

/// An odd or even number of parts tells names from collections, but for the core group's one part less.
fn is_collection(path: &str) -> bool {
    let last = path.rsplit('/').next().unwrap_or_default();
    ["secrets", "configmaps", "leases", "pods", "httproutes", "grpcroutes", "tcproutes", "tlsroutes"]
        .contains(&last)
        || ["authorizationpolicies", "meshconfigs", "events"].contains(&last)
}

fn selected(query: &str) -> Option<String> {
    let (_, rest) = query.split_once("fieldSelector=metadata.name%3D")?;
    rest.split('&').next().map(str::to_owned)
}

/// RFC 7396.
fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else { return *target = patch.clone() };
    if !target.is_object() {
        *target = json!({});
    }
    for (key, value) in patch {
        match value {
            Value::Null => drop(target.as_object_mut().expect("made one above").remove(key)),
            value => merge(&mut target[key], value),
        }
    }
}

fn ok(value: &Value) -> Response<Body> {
    answer(StatusCode::OK, value)
}

fn not_found() -> Response<Body> {
    failure(StatusCode::NOT_FOUND, "NotFound")
}

fn failure(code: StatusCode, reason: &str) -> Response<Body> {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": reason, "reason": reason, "code": code.as_u16(),
    });
    answer(code, &status)
}

fn answer(code: StatusCode, value: &Value) -> Response<Body> {
    let body = http_body_util::Full::new(Bytes::from(value.to_string())).boxed_unsync();
    Response::builder().status(code).header("content-type", "application/json").body(body).expect("valid")
}
