//! The API over HTTP/1.1: discovery, lists in pages, watches. Nothing can be written.

use std::convert::Infallible;
use std::sync::Arc;

use anyhow::Result;
use bytes::Bytes;
use http::{Method, Request, Response, header};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::body::WatchBody;
use super::cluster::{Cluster, KINDS, Kind};
use super::counts::Counts;
use super::drawing::Form;
use super::query::{self, Query, Refusal, not_found, page_token};
use super::waiting::Waiting;

type Answer = Response<Either<Full<Bytes>, WatchBody>>;

/// What every request has at hand.
#[derive(Clone)]
pub struct Api {
    /// The cluster.
    pub cluster: Arc<Cluster>,
    /// Counts.
    pub counts: Arc<Counts>,
    /// Changes on their way to the kernel.
    pub waiting: Waiting,
}

/// Serves until the listener fails.
pub async fn serve(listener: TcpListener, api: Api) -> Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let api = api.clone();
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let answer = api.answer(&request);
                async move { Ok::<_, Infallible>(answer) }
            });
            let served = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
            if let Err(error) = served {
                eprintln!("a connection ended: {error}");
            }
        });
    }
}

impl Api {
    fn answer(&self, request: &Request<Incoming>) -> Answer {
        let path = request.uri().path();
        if request.method() != Method::GET {
            self.counts.request(request.method().as_str(), path);
            let message = "this server only reads".to_owned();
            return refused(&Refusal { code: 405, reason: "MethodNotAllowed", message });
        }
        if let Some(found) = discovery(path) {
            self.counts.request("get", path);
            return ok(found.to_string());
        }
        let accept = request.headers().get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
        let asked = query::read(path, request.uri().query().unwrap_or_default(), accept.unwrap_or_default());
        let verb = match &asked {
            Err(_) => "refused",
            Ok(asked) if asked.watch => "watch",
            Ok(asked) if asked.single => "get",
            Ok(_) => "list",
        };
        self.counts.request(verb, asked.as_ref().map_or(path, |asked| KINDS[asked.kind].plural));
        let answer = asked.and_then(|asked| match verb {
            "watch" => Ok(self.watch(asked)),
            "get" => self.get(&asked),
            _ => Ok(self.list(&asked)),
        });
        answer.unwrap_or_else(|refusal| refused(&refusal))
    }

    fn get(&self, asked: &Query) -> Result<Answer, Refusal> {
        let numbers = 0..self.cluster.count(asked.kind);
        let mut places = numbers.filter(|number| self.is_meant(asked, *number));
        let number =
            places.next().ok_or_else(|| not_found(format!("{} not found", KINDS[asked.kind].plural)))?;
        let mut out = Vec::new();
        self.cluster.draw(asked.kind, number, asked.form, &mut out);
        Ok(ok(out))
    }

    fn is_meant(&self, asked: &Query, number: u32) -> bool {
        if asked.selector.is_empty() {
            return true;
        }
        self.cluster.place(asked.kind, number).is_some_and(|place| asked.selector.takes_place(&place))
    }

    /// One page. Its objects are as they are now, which may be newer than its revision: whoever watches from that revision
    /// is told the newer state again.
    fn list(&self, asked: &Query) -> Answer {
        let count = self.cluster.count(asked.kind);
        let (revision, first) = asked.page.unwrap_or_else(|| (self.cluster.log.revision(), 0));
        let limit = asked.limit.unwrap_or(u32::MAX);
        let mut items = Vec::new();
        let (mut next, mut taken) = (first, 0);
        while next < count && taken < limit {
            if self.is_meant(asked, next) {
                if taken > 0 {
                    items.push(b',');
                }
                self.cluster.draw(asked.kind, next, asked.form, &mut items);
                taken += 1;
            }
            next += 1;
        }
        let page =
            page(asked, revision, (next < count).then(|| (page_token(revision, next), count - next)), &items);
        self.counts.listed(page.len());
        ok(page)
    }

    fn watch(&self, asked: Query) -> Answer {
        match self.cluster.log.subscribe(asked.kind, asked.revision) {
            Ok(events) => {
                let body = WatchBody::new(self.clone(), asked, events);
                let answer = Response::new(Either::Right(body));
                with_json(answer)
            }
            Err(_expired) => {
                let message = format!("too old resource version: {}", asked.revision);
                let object = status(&Refusal { code: 410, reason: "Expired", message });
                ok(format!("{}\n", json!({"type": "ERROR", "object": object})))
            }
        }
    }
}

fn page(asked: &Query, revision: u64, more: Option<(String, u32)>, items: &[u8]) -> Vec<u8> {
    let kind = &KINDS[asked.kind];
    let (name, version) = match asked.form {
        Form::Metadata => ("PartialObjectMetadataList".to_owned(), "meta.k8s.io/v1".to_owned()),
        _ => (format!("{}List", kind.kind), kind.api_version()),
    };
    let mut metadata = json!({"resourceVersion": revision.to_string()});
    if let Some((token, remaining)) = more {
        metadata["continue"] = token.into();
        // As kube-apiserver, which cannot tell when objects are selected.
        if asked.selector.is_empty() {
            metadata["remainingItemCount"] = remaining.into();
        }
    }
    let head = json!({"kind": name, "apiVersion": version, "metadata": metadata}).to_string();
    let mut page = Vec::with_capacity(head.len() + items.len() + 16);
    page.extend_from_slice(head.trim_end_matches('}').as_bytes());
    page.extend_from_slice(b"},\"items\":[");
    page.extend_from_slice(items);
    page.extend_from_slice(b"]}");
    page
}

/// What an API server says of itself.
fn discovery(path: &str) -> Option<Value> {
    let segments: Vec<&str> = path.split('/').filter(|segment| !segment.is_empty()).collect();
    let of = |group: &str, version: &str| -> Vec<&Kind> {
        KINDS.iter().filter(|kind| kind.group == group && kind.version == version).collect()
    };
    Some(match segments.as_slice() {
        ["version"] => {
            json!({"major": "1", "minor": "34", "gitVersion": "v1.34.0-simulated", "platform": "linux/amd64"})
        }
        ["readyz" | "livez" | "healthz"] => "ok".into(),
        ["api"] => json!({"kind": "APIVersions", "versions": ["v1"]}),
        ["apis"] => json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups()}),
        ["apis", group] => groups().into_iter().find(|known| known["name"] == *group)?,
        ["api", version] => resources(version, &of("", version))?,
        ["apis", group, version] => resources(&format!("{group}/{version}"), &of(group, version))?,
        _ => return None,
    })
}

fn groups() -> Vec<Value> {
    let mut groups: Vec<Value> = Vec::new();
    for kind in KINDS.iter().filter(|kind| !kind.group.is_empty()) {
        let version = json!({"groupVersion": kind.api_version(), "version": kind.version});
        match groups.iter_mut().find(|group| group["name"] == kind.group) {
            None => {
                groups.push(json!({"name": kind.group, "versions": [version], "preferredVersion": version}))
            }
            Some(group) => {
                let versions = group["versions"].as_array_mut().expect("made above");
                if !versions.contains(&version) {
                    versions.push(version);
                }
            }
        }
    }
    groups
}

fn resources(group_version: &str, kinds: &[&Kind]) -> Option<Value> {
    let resource = |kind: &&Kind| {
        let singular = kind.kind.to_lowercase();
        json!({"name": kind.plural, "singularName": singular, "namespaced": kind.namespaced, "kind": kind.kind, "verbs": ["get", "list", "watch"]})
    };
    let resources: Vec<Value> = kinds.iter().map(resource).collect();
    let list = json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": resources});
    (!resources.is_empty()).then_some(list)
}

fn status(refusal: &Refusal) -> Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": refusal.message, "reason": refusal.reason, "code": refusal.code,
    })
}

fn refused(refusal: &Refusal) -> Answer {
    let mut answer = ok(status(refusal).to_string());
    *answer.status_mut() = http::StatusCode::from_u16(refusal.code).expect("refusals have valid codes");
    answer
}

fn ok(body: impl Into<Bytes>) -> Answer {
    with_json(Response::new(Either::Left(Full::new(body.into()))))
}

fn with_json(mut answer: Answer) -> Answer {
    answer.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    answer
}
