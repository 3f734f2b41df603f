//! Requests in, answers out: who asks, which faults are ordered, which part of the server answers.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Incoming;
use serde_json::{Value, json};
use tokio_stream::wrappers::ReceiverStream;

use super::discovery;
use super::faults::What;
use super::inner::Inner;
use super::list;
use super::orders;
use super::refusal::Refusal;
use super::request::{Ask, form, program};
use super::resource::Resource;
use super::review;
use super::store::{Form, Stored};
use super::watch::Watch;
use super::write::{Deleted, PatchKind, Target};

/// The body of an answer.
pub type Body = UnsyncBoxBody<Bytes, io::Error>;

/// The user of a request without a token, as long as none is needed.
const ADMIN: &str = "kubernetes-admin";

/// Answers a request.
pub async fn answer(inner: Arc<Inner>, request: Request<Incoming>) -> Response<Body> {
    if request.uri().path().starts_with("/_") {
        return orders::answer(&inner, request).await;
    }
    let user = match user_of(&inner, &request) {
        Ok(user) => user,
        Err(refusal) => return refused(&refusal),
    };
    let Some(ask) = Ask::read(request.uri()) else {
        return discovery::answer(&inner, request.uri().path()).unwrap_or_else(|refusal| refused(&refusal));
    };
    objects(inner, ask, user, request).await.unwrap_or_else(|refusal| refused(&refusal))
}

fn user_of(inner: &Inner, request: &Request<Incoming>) -> Result<String, Refusal> {
    let unauthorized = || Refusal::new(401, "Unauthorized");
    match request.headers().get(header::AUTHORIZATION) {
        None if inner.needs_token() => Err(unauthorized()),
        None => Ok(ADMIN.to_owned()),
        Some(value) => {
            let bearer = value.to_str().ok().and_then(|value| value.strip_prefix("Bearer "));
            bearer.and_then(|bearer| inner.state.lock().user(bearer.trim())).ok_or_else(unauthorized)
        }
    }
}

/// Answers a request for objects.
async fn objects(
    inner: Arc<Inner>,
    ask: Ask,
    user: String,
    request: Request<Incoming>,
) -> Result<Response<Body>, Refusal> {
    let (parts, body) = request.into_parts();
    let (verb, name) = (ask.verb(&parts.method), ask.resource());
    inner.faults.lock().saw(verb, &name, ask.place(), &user);
    let resource = inner.state.lock().resource(&ask.group, &ask.version, &ask.plural);
    let resource = resource.ok_or_else(Refusal::no_such_path)?;
    meet_faults(&inner, &ask, &resource, verb, &user).await?;
    if ask.namespace.is_some() && !resource.namespaced {
        return Err(Refusal::no_such_path());
    }
    let has_status = resource.status && !resource.answers_only;
    let is_status = match ask.subresource.as_deref() {
        None => false,
        Some("status") if has_status => true,
        Some("token") if ask.plural == "serviceaccounts" && ask.group.is_empty() => false,
        Some(_) => return Err(Refusal::no_such_path()),
    };
    let bytes = body.collect().await.map_err(|error| Refusal::new(400, error.to_string()))?.to_bytes();
    let manager = match ask.parameter("fieldManager") {
        "" => program(&parts.headers),
        manager => manager.to_owned(),
    };
    let target = Target {
        namespace: ask.namespace.clone(),
        name: ask.name.clone().unwrap_or_default(),
        is_status,
        manager,
        is_dry: ask.parameter("dryRun") == "All",
        is_as_given: inner.is_as_given(),
        resource: Arc::clone(&resource),
    };
    let form = form(&parts.headers);
    match verb {
        "watch" => {
            let (watch, from_watch) = Watch::new(inner, resource, ask, user, form)?;
            tokio::spawn(watch.run());
            let body = StreamBody::new(ReceiverStream::new(from_watch)).boxed_unsync();
            Ok(json_answer(StatusCode::OK, body))
        }
        "list" => {
            let page = list::page(&inner.state.lock().store, &resource, &ask)?;
            Ok(text_answer(StatusCode::OK, list::text(&resource, form, &page)))
        }
        "get" => {
            let stored = inner.state.lock().named(&target)?;
            Ok(object_answer(200, &resource, form, &stored))
        }
        "create" if resource.answers_only || ask.subresource.is_some() => {
            post_question(&inner, &ask, &resource, &read(&bytes)?, &user)
        }
        "deletecollection" => delete_all(&inner, &ask, &target, &read_options(&bytes)?),
        _ => {
            if resource.namespaced && ask.namespace.is_none() {
                return Err(Refusal::new(
                    405,
                    "the server does not allow this method on the requested resource",
                ));
            }
            let content_type = parts.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
            let answer =
                write(&inner, &ask, &target, &parts.method, content_type.unwrap_or_default(), &bytes, form);
            inner.wake();
            answer
        }
    }
}

/// Does what is ordered for such a request.
async fn meet_faults(
    inner: &Inner,
    ask: &Ask,
    resource: &Resource,
    verb: &str,
    user: &str,
) -> Result<(), Refusal> {
    let take = |pick: fn(&What) -> bool| inner.faults.lock().take(verb, &ask.plural, user, pick);
    if let Some(What::Delay { ms }) = take(|what| matches!(what, What::Delay { .. })) {
        tokio::time::sleep(Duration::from_millis(ms)).await;
    }
    if take(|what| *what == What::Vanish).is_some() {
        return Err(Refusal::no_such_path());
    }
    if verb == "list" && !ask.parameter("continue").is_empty() && take(|what| *what == What::Expire).is_some()
    {
        return Err(Refusal::expired(
            "The provided continue parameter is too old to display a consistent list result.",
        ));
    }
    match take(|what| matches!(what, What::Status { .. })) {
        Some(What::Status { code: 403, .. }) => {
            Err(Refusal::forbidden(user, verb, &resource.kept, ask.namespace.as_deref()))
        }
        Some(What::Status { code, retry_after }) => {
            Err(Refusal { retry_after, ..Refusal::new(code, "as ordered by the test") })
        }
        _ => Ok(()),
    }
}

fn post_question(
    inner: &Inner,
    ask: &Ask,
    resource: &Resource,
    question: &Value,
    user: &str,
) -> Result<Response<Body>, Refusal> {
    let answer = match &*resource.kept.plural {
        "tokenreviews" => inner.state.lock().review_token(question),
        "serviceaccounts" => {
            let (namespace, name) = (ask.namespace.as_deref(), ask.name.as_deref());
            inner.state.lock().request_token(
                namespace.unwrap_or_default(),
                name.unwrap_or_default(),
                question,
            )?
        }
        _ => review::review_access(&inner.faults.lock(), question, user),
    };
    Ok(value_answer(StatusCode::CREATED, &answer))
}

fn write(
    inner: &Inner,
    ask: &Ask,
    target: &Target,
    method: &Method,
    content_type: &str,
    bytes: &Bytes,
    form: Form,
) -> Result<Response<Body>, Refusal> {
    let resource = &target.resource;
    match *method {
        Method::POST if ask.name.is_none() => {
            let stored = inner.state.lock().create(target, read(bytes)?)?;
            Ok(object_answer(201, resource, form, &stored))
        }
        Method::PUT => {
            let stored = inner.state.lock().update(target, read(bytes)?)?;
            Ok(object_answer(200, resource, form, &stored))
        }
        Method::PATCH => {
            let kind = patch_kind(ask, resource, content_type)?;
            let (stored, is_new) = inner.state.lock().patch(target, kind, &read(bytes)?)?;
            Ok(object_answer(if is_new { 201 } else { 200 }, resource, form, &stored))
        }
        Method::DELETE => {
            let mut options = read_options(bytes)?;
            if let Some(seconds) = ask.number("gracePeriodSeconds")? {
                options["gracePeriodSeconds"] = seconds.into();
            }
            let deleted = inner.state.lock().delete(target, &options)?;
            Ok(deletion_answer(resource, &deleted))
        }
        _ => Err(Refusal::new(405, "the server does not allow this method on the requested resource")),
    }
}

fn patch_kind(ask: &Ask, resource: &Resource, content_type: &str) -> Result<PatchKind, Refusal> {
    match content_type.split(';').next().unwrap_or_default() {
        "application/merge-patch+json" => Ok(PatchKind::Merge),
        "application/json-patch+json" => Ok(PatchKind::Json),
        "application/strategic-merge-patch+json" if !resource.custom => Ok(PatchKind::Strategic),
        "application/apply-patch+yaml" => {
            if ask.parameter("fieldManager").is_empty() {
                return Err(Refusal::new(422, "fieldManager: Required value: is required for apply patch"));
            }
            Ok(PatchKind::Apply { force: ask.is("force") })
        }
        _ => Err(Refusal::new(
            415,
            "the body of the request was in an unknown format - accepted media types include: application/json-patch+json, \
             application/merge-patch+json, application/apply-patch+yaml",
        )),
    }
}

fn delete_all(inner: &Inner, ask: &Ask, target: &Target, options: &Value) -> Result<Response<Body>, Refusal> {
    let mut state = inner.state.lock();
    let mut page = list::page(&state.store, &target.resource, ask)?;
    for stored in &page.items {
        let namespace = target.resource.namespaced.then(|| stored.key.namespace.to_string());
        let one = Target { namespace, name: stored.key.name.to_string(), ..target.clone() };
        state.delete(&one, options)?;
    }
    page.revision = state.store.revision();
    drop(state);
    inner.wake();
    Ok(text_answer(StatusCode::OK, list::text(&target.resource, Form::Whole, &page)))
}

/// A body in JSON or YAML, of which JSON is a part.
fn read(bytes: &Bytes) -> Result<Value, Refusal> {
    let refuse = |error: &dyn std::fmt::Display| Refusal::new(400, format!("cannot read the body: {error}"));
    match serde_json::from_slice(bytes) {
        Ok(value) => Ok(value),
        Err(_) if !matches!(bytes.first(), Some(b'{' | b'[')) => {
            serde_yaml_ng::from_slice(bytes).map_err(|error| refuse(&error))
        }
        Err(error) => Err(refuse(&error)),
    }
}

fn read_options(bytes: &Bytes) -> Result<Value, Refusal> {
    if bytes.is_empty() { Ok(json!({})) } else { read(bytes) }
}

fn deletion_answer(resource: &Resource, deleted: &Deleted) -> Response<Body> {
    let gone = match deleted {
        Deleted::Ending(stored) => return object_answer(200, resource, Form::Whole, stored),
        Deleted::Gone(gone) => gone,
    };
    // Pods are given back as they were last.
    if &*resource.kept.plural == "pods" {
        return object_answer(200, resource, Form::Whole, gone);
    }
    let mut details = json!({
        "name": &*gone.key.name, "kind": resource.kept.plural.as_ref(), "uid": gone.object["metadata"]["uid"],
    });
    if !resource.kept.group.is_empty() {
        details["group"] = resource.kept.group.as_ref().into();
    }
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details,
    });
    value_answer(StatusCode::OK, &status)
}

fn object_answer(code: u16, resource: &Resource, form: Form, stored: &Stored) -> Response<Body> {
    let mut text = Vec::new();
    stored.write(&mut text, resource, form, true);
    text_answer(StatusCode::from_u16(code).expect("a known status"), text)
}

/// An answer that is a value.
pub fn value_answer(status: StatusCode, value: &Value) -> Response<Body> {
    text_answer(status, value.to_string().into_bytes())
}

fn text_answer(status: StatusCode, text: Vec<u8>) -> Response<Body> {
    json_answer(status, Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed_unsync())
}

fn json_answer(status: StatusCode, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// The answer to a refused request.
pub fn refused(refusal: &Refusal) -> Response<Body> {
    let status = StatusCode::from_u16(refusal.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = value_answer(status, &refusal.status());
    if let Some(seconds) = refusal.retry_after {
        response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    }
    response
}
