//! What is asked of a server that is not about objects: its version, whether it is ready, and which kinds it serves.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};

use super::faults::What;
use super::inner::Inner;
use super::refusal::Refusal;
use super::resource::Resource;
use super::serve::{Body, value_answer};
use super::state::State;

/// The version that the server behaves like.
const MINOR: &str = "36";

/// Answers by path.
///
/// # Errors
/// The path leads nowhere.
pub fn answer(inner: &Inner, path: &str) -> Result<Response<Body>, Refusal> {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let value = match parts.as_slice() {
        ["readyz" | "livez" | "healthz", ..] => return Ok(plain("ok")),
        ["version"] => json!({
            "major": "1", "minor": MINOR, "gitVersion": format!("v1.{MINOR}.0+small"), "gitCommit": "", "gitTreeState": "",
            "buildDate": "1970-01-01T00:00:00Z", "goVersion": "", "compiler": "", "platform": "linux/amd64",
        }),
        ["api"] => json!({ "kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": [] }),
        ["apis"] => {
            let groups = inner.state.lock().groups();
            let groups = groups.iter().map(|(group, versions)| State::describe_group(group, versions));
            json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": groups.collect::<Vec<_>>() })
        }
        ["apis", group] => {
            let groups = inner.state.lock().groups();
            let versions = groups.get(*group).ok_or_else(Refusal::no_such_path)?;
            let mut answer = State::describe_group(group, versions);
            answer["kind"] = "APIGroup".into();
            answer["apiVersion"] = "v1".into();
            answer
        }
        ["api", version] => resources(inner, "", version)?,
        ["apis", group, version] => resources(inner, group, version)?,
        _ => return Err(Refusal::no_such_path()),
    };
    Ok(value_answer(StatusCode::OK, &value))
}

fn resources(inner: &Inner, group: &str, version: &str) -> Result<Value, Refusal> {
    let state = inner.state.lock();
    let faults = inner.faults.lock();
    let is_there = |resource: &Resource| {
        let plural = &resource.kept.plural;
        &*resource.kept.group == group
            && resource.version == version
            && !faults.stands("list", plural, "", |what| *what == What::Vanish)
    };
    let found: Vec<_> = state.resources().filter(|resource| is_there(resource)).collect();
    let first = found.first().ok_or_else(Refusal::no_such_path)?;
    Ok(json!({
        "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": first.api_version(),
        "resources": found.iter().flat_map(|resource| resource.describe()).collect::<Vec<_>>(),
    }))
}

fn plain(text: &'static str) -> Response<Body> {
    let body = Full::new(Bytes::from_static(text.as_bytes())).map_err(|never| match never {});
    let mut response = Response::new(body.boxed_unsync());
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    response
}
