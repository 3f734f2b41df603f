//! Gateway API's XMesh (GEP-3949): that there is one of ours, and what is said on it.
//!
//! Its spec belongs to people: control makes one with nothing but the controller's name where there is none, and never
//! changes it. Another mesh's is left alone, whatever it is called.

use std::time::{Duration, Instant, SystemTime};

use kube::api::{ApiResource, DynamicObject, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};

use super::conditions::{Wanted, follow_on};
use super::mesh;
use super::objects::{Judged, Key, Seen, Subject};
use crate::control::cluster::{FIELD_MANAGER, labels};
use crate::discovery::status::CONTROLLER;
use crate::lifecycle::clock;

/// The name of the one that control makes.
const NAME: &str = "weft";

/// One that somebody deletes is made again, but not more often than this; nor is a refusal answered by asking at once.
const MAKE_PAUSE: Duration = Duration::from_secs(60);
/// Longest time for making it.
const MAKE_TIME_MAX: Duration = Duration::from_secs(10);

/// What the mesh does of that which Gateway API's conformance suite has names for, in their order (docs/routes.md says how).
/// Where the suite has a name for meshes and one for everybody, it is the one for meshes.
const FEATURES: &[&str] = &[
    "GRPCRoute",
    "GRPCRouteNamedRouteRule",
    "GRPCRouteRequestHeaderModifier",
    "HTTPRoute",
    "HTTPRoute303RedirectStatusCode",
    "HTTPRoute307RedirectStatusCode",
    "HTTPRoute308RedirectStatusCode",
    "HTTPRouteBackendProtocolH2C",
    "HTTPRouteBackendProtocolWebSocket",
    "HTTPRouteBackendTimeout",
    "HTTPRouteBackendURLRewrite",
    "HTTPRouteCORS",
    "HTTPRouteHostRewrite",
    "HTTPRouteMethodMatching",
    "HTTPRouteParentRefPort",
    "HTTPRouteRequestMirror",
    "HTTPRouteRequestMultipleMirrors",
    "HTTPRouteRequestPercentageMirror",
    "HTTPRouteRequestTimeout",
    "HTTPRouteResponseHeaderModification",
    "Mesh",
    "MeshClusterIPMatching",
    "MeshConsumerRoute",
    "MeshHTTPRouteBackendRequestHeaderModification",
    "MeshHTTPRouteNamedRouteRule",
    "MeshHTTPRouteQueryParamMatching",
    "MeshHTTPRouteRedirectPath",
    "MeshHTTPRouteRedirectPort",
    "MeshHTTPRouteRewritePath",
    "MeshHTTPRouteSchemeRedirect",
    "TCPRoute",
    "TLSRoute",
];

/// The MeshConfigs there are, each with what keeps it from being in force.
type Settings = [(String, Option<String>)];

/// Whether an XMesh is for this mesh.
fn is_ours(object: &Value) -> bool {
    object["spec"]["controllerName"] == CONTROLLER
}

/// What is to be done about the XMesh that should be there.
#[derive(Debug, PartialEq, Eq)]
enum Need {
    Nothing,
    /// There is none of ours.
    One,
    /// Somebody else's has our name, and stays as it is.
    AnotherName,
}

fn need(all: &[Value]) -> Need {
    if all.iter().any(is_ours) {
        Need::Nothing
    } else if all.iter().any(|object| object["metadata"]["name"] == NAME) {
        Need::AnotherName
    } else {
        Need::One
    }
}

/// Makes the one that should be there.
#[derive(Debug, Default)]
pub(super) struct Maker {
    tried_at: Option<Instant>,
    /// The log knows why there is none.
    is_told: bool,
}

impl Maker {
    /// Looks whether there is one of ours, and makes one where the kind is served and there is none.
    pub(super) async fn look(&mut self, client: &Client, seen: &Seen) {
        let Some(resource) = seen.resource(Subject::XMesh) else { return };
        let all: Vec<Value> = seen.of(Subject::XMesh).iter().map(|(_, object)| json!(object)).collect();
        match need(&all) {
            Need::Nothing => self.is_told = false,
            Need::AnotherName => {
                self.tell("another mesh has an XMesh of this name; this mesh's features stand nowhere", "")
            }
            Need::One => self.make(client, &resource).await,
        }
    }

    async fn make(&mut self, client: &Client, resource: &ApiResource) {
        let now = clock::now();
        if self.tried_at.is_some_and(|at| now.saturating_duration_since(at) < MAKE_PAUSE) {
            return;
        }
        self.tried_at = Some(now);
        let api: Api<DynamicObject> = Api::all_with(client.clone(), resource);
        let params = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
        let wanted = made(resource);
        match tokio::time::timeout(MAKE_TIME_MAX, api.create(&params, &wanted)).await {
            Ok(Ok(_)) => tracing::info!(name = NAME, "an XMesh was made"),
            // Somebody was first; the watch will say what it is.
            Ok(Err(kube::Error::Api(status))) if status.is_already_exists() => {}
            Ok(Err(error)) => self.tell("the XMesh cannot be made", &error.to_string()),
            Err(_elapsed) => self.tell("the XMesh was not made in time", ""),
        }
    }

    fn tell(&mut self, what: &str, error: &str) {
        if !std::mem::replace(&mut self.is_told, true) {
            tracing::warn!(name = NAME, error, "{what}");
        }
    }
}

/// Those of ours whose status is not as it should be. `namespace` is that of the control plane.
pub(super) fn differences(seen: &Seen, namespace: &str, now: SystemTime) -> Vec<(Key, DynamicObject, Value)> {
    let settings = settings(seen);
    let mut all = Vec::new();
    for (key, object) in seen.of(Subject::XMesh) {
        let value = json!(object);
        if !is_ours(&value) {
            continue;
        }
        let status = status(&value, object.metadata.generation, settings.as_deref(), namespace, now);
        all.extend(status.map(|status| (key, object, status)));
    }
    all
}

/// `None` while nobody knows which there are.
fn settings(seen: &Seen) -> Option<Vec<(String, Option<String>)>> {
    seen.resource(Subject::MeshConfig)?;
    let mut all: Vec<Value> = seen.of(Subject::MeshConfig).iter().map(|(_, object)| json!(object)).collect();
    all.sort_by_key(mesh::rank);
    let one = |(index, object): (usize, &Value)| {
        let fault = match Judged::of_mesh_config(object) {
            Judged::Good(_) if index > 0 => Some("another one is in force".to_owned()),
            Judged::Good(_) => None,
            Judged::Refusing(fault) | Judged::Bad(fault) => Some(fault),
        };
        (object["metadata"]["name"].as_str().unwrap_or_default().to_owned(), fault)
    };
    Some(all.iter().enumerate().map(one).collect())
}

/// The one that control makes.
fn made(resource: &ApiResource) -> DynamicObject {
    let mut made = DynamicObject::new(NAME, resource).data(json!({"spec": {"controllerName": CONTROLLER}}));
    made.metadata.labels = Some(labels());
    made
}

/// The new status of one that is ours; `None`: what is there is right, or nothing can be said yet.
fn status(
    object: &Value,
    generation: Option<i64>,
    settings: Option<&Settings>,
    namespace: &str,
    now: SystemTime,
) -> Option<Value> {
    let reference = &object["spec"]["parametersRef"];
    let fault = if reference.is_null() { None } else { fault_of(reference, settings?) };
    let accepted = match &fault {
        None => {
            let version = env!("CARGO_PKG_VERSION");
            let message =
                format!("accepted by Weft {version}, whose control plane is in namespace {namespace}");
            Wanted::new("Accepted", true, "Accepted", message)
        }
        Some(fault) => {
            let message = format!(
                "spec.parametersRef: {fault}; the mesh goes on by its MeshConfig as if this were not there"
            );
            Wanted::new("Accepted", false, "InvalidParameters", message)
        }
    };
    let present = &object["status"];
    let conditions = follow_on(&present["conditions"], &[accepted], generation, now);
    let features = match fault {
        None => FEATURES.iter().map(|name| json!({"name": name})).collect(),
        Some(_) => Value::Null,
    };
    let is_right = conditions == present["conditions"] && features == present["supportedFeatures"];
    (!is_right).then(|| json!({"conditions": conditions, "supportedFeatures": features}))
}

/// What is wrong with a reference to parameters.
fn fault_of(reference: &Value, settings: &Settings) -> Option<String> {
    let text = |field: &str| reference[field].as_str().unwrap_or_default();
    let (group, kind, name) = (text("group"), text("kind"), text("name"));
    if (group, kind) != ("weft.dev", "MeshConfig") {
        return Some(format!(
            "{kind} of group {group:?} says nothing to this mesh; name a MeshConfig of weft.dev"
        ));
    }
    if !reference["namespace"].is_null() {
        return Some("a MeshConfig is in no namespace; leave it out".to_owned());
    }
    match settings.iter().find(|(own, _)| *own == name) {
        None => Some(format!("there is no MeshConfig {name}")),
        Some((_, fault)) => fault.as_ref().map(|fault| format!("MeshConfig {name}: {fault}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: SystemTime = SystemTime::UNIX_EPOCH;

    fn xmesh(name: &str, controller: &str) -> Value {
        json!({"metadata": {"name": name, "generation": 1}, "spec": {"controllerName": controller}})
    }

    fn said(object: &Value, settings: &Settings) -> Option<Value> {
        status(object, Some(1), Some(settings), "weft-system", NOW)
    }

    #[test]
    fn features_are_sorted_and_few_enough_for_the_definition() {
        assert!(FEATURES.is_sorted() && FEATURES.len() <= 64);
    }

    #[test]
    fn one_of_ours_is_enough_whatever_its_name_and_others_are_left_alone() {
        let (own, other) = (xmesh("mine", CONTROLLER), xmesh("theirs", "example.net/mesh"));
        let taken = xmesh(NAME, "example.net/mesh");
        assert_eq!(need(&[own.clone(), other.clone()]), Need::Nothing);
        assert_eq!(need(std::slice::from_ref(&other)), Need::One);
        assert_eq!(need(&[other, taken.clone()]), Need::AnotherName);
        assert_eq!(need(&[own.clone(), taken.clone()]), Need::Nothing);
        assert_eq!(need(&[]), Need::One);
        assert!(is_ours(&own) && !is_ours(&taken));
    }

    #[test]
    fn an_accepted_one_says_who_accepted_it_and_what_it_can_do() {
        let mut object = xmesh(NAME, CONTROLLER);
        let pending = json!({"type": "Accepted", "status": "Unknown", "reason": "Pending", "message": "Waiting for controller"});
        object["status"]["conditions"] =
            json!([pending, {"type": "Programmed", "status": "Unknown", "reason": "Pending"}]);
        let status = said(&object, &[]).expect("new");
        let conditions = status["conditions"].as_array().expect("a list");
        assert_eq!(conditions.len(), 1, "{status}");
        assert_eq!(
            (&conditions[0]["status"], &conditions[0]["reason"]),
            (&json!("True"), &json!("Accepted"))
        );
        assert!(conditions[0]["message"].as_str().expect("text").contains("weft-system"), "{status}");
        assert_eq!(status["supportedFeatures"][0], json!({"name": "GRPCRoute"}));
        object["status"] = status;
        assert_eq!(said(&object, &[]), None);
    }

    #[test]
    fn parameters_that_are_not_ours_or_not_there_are_refused_and_there_are_no_features_then() {
        let reference = |value: Value| {
            let mut object = xmesh(NAME, CONTROLLER);
            object["spec"]["parametersRef"] = value;
            object
        };
        let settings =
            [("default".to_owned(), None), ("bad".to_owned(), Some("unknown field `ca`".to_owned()))];
        let good = reference(json!({"group": "weft.dev", "kind": "MeshConfig", "name": "default"}));
        assert_eq!(said(&good, &settings).expect("new")["conditions"][0]["status"], "True");
        assert_eq!(status(&good, Some(1), None, "weft-system", NOW), None, "nobody knows yet");
        for (bad, expected) in [
            (
                json!({"group": "weft.dev", "kind": "MeshConfig", "name": "none"}),
                "there is no MeshConfig none",
            ),
            (json!({"group": "weft.dev", "kind": "MeshConfig", "name": "bad"}), "unknown field `ca`"),
            (json!({"group": "", "kind": "ConfigMap", "name": "default"}), "ConfigMap"),
            (
                json!({"group": "weft.dev", "kind": "MeshConfig", "name": "default", "namespace": "shop"}),
                "no namespace",
            ),
        ] {
            let mut object = reference(bad);
            let status = said(&object, &settings).expect("new");
            let condition = &status["conditions"][0];
            assert_eq!(
                (&condition["status"], &condition["reason"]),
                (&json!("False"), &json!("InvalidParameters"))
            );
            assert!(condition["message"].as_str().expect("text").contains(expected), "{condition}");
            assert_eq!(status["supportedFeatures"], Value::Null);
            object["status"] = json!({"conditions": status["conditions"]});
            assert_eq!(said(&object, &settings), None, "nothing is written twice");
        }
    }
}
