//! The server's own pages, for those who run it as a process: what a test in process does through its handle.
//!
//! `GET`, `POST`, `DELETE /_faults` show, order and take back faults; `POST /_forget` forgets what happened so far;
//! `POST /_down?ms=N` refuses connections for so long; `POST /_tokens/TOKEN` gives a user a token; `POST /_kinds` serves a
//! kind without a definition; `GET /_requests` counts what was asked.

use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde::Deserialize;
use serde_json::{Value, json};

use super::inner::Inner;
use super::refusal::Refusal;
use super::request::parameters;
use super::resource::Resource;
use super::serve::{Body, refused, value_answer};

/// A kind to serve.
#[derive(Deserialize)]
struct Kind {
    group: String,
    version: String,
    plural: String,
    kind: String,
    #[serde(default)]
    namespaced: bool,
}

/// Answers an order.
pub async fn answer(inner: &Arc<Inner>, request: Request<Incoming>) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let bytes = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let path: Vec<&str> = parts.uri.path().split('/').filter(|part| !part.is_empty()).collect();
    let done = || Ok(json!({}));
    let answer: Result<Value, Refusal> = match (&parts.method, path.as_slice()) {
        (&Method::GET, ["_faults"]) => Ok(json!(inner.faults.lock().ordered())),
        (&Method::POST, ["_faults"]) => read(&bytes).and_then(|fault| {
            inner.order(fault);
            done()
        }),
        (&Method::DELETE, ["_faults"]) => {
            inner.clear();
            done()
        }
        (&Method::POST, ["_forget"]) => {
            inner.state.lock().store.forget();
            done()
        }
        (&Method::POST, ["_down"]) => {
            let ms = parameters(&parts.uri).get("ms").and_then(|ms| ms.parse().ok()).unwrap_or(1000);
            let inner = Arc::clone(inner);
            tokio::spawn(async move {
                // After the answer to this order.
                tokio::time::sleep(Duration::from_millis(20)).await;
                inner.is_open.send_replace(false);
                tokio::time::sleep(Duration::from_millis(ms)).await;
                inner.is_open.send_replace(true);
            });
            done()
        }
        (&Method::POST, ["_tokens", token]) => read(&bytes).and_then(|user| {
            inner.state.lock().tokens.insert((*token).to_owned(), user);
            done()
        }),
        (&Method::POST, ["_kinds"]) => read(&bytes).and_then(|kind: Kind| {
            let Kind { group, version, plural, kind, namespaced } = kind;
            inner.state.lock().serve(Resource::custom(&group, &version, &plural, &kind, namespaced));
            done()
        }),
        (&Method::GET, ["_requests"]) => {
            let counts = inner.faults.lock().counts();
            let counts =
                counts.into_iter().map(|((verb, kind), count)| (format!("{verb} {kind}"), count.into()));
            Ok(Value::Object(counts.collect()))
        }
        _ => Err(Refusal::no_such_path()),
    };
    answer.map_or_else(|refusal| refused(&refusal), |value| value_answer(StatusCode::OK, &value))
}

fn read<T: for<'a> Deserialize<'a>>(bytes: &[u8]) -> Result<T, Refusal> {
    serde_json::from_slice(bytes)
        .map_err(|error| Refusal::new(400, format!("cannot read the order: {error}")))
}
