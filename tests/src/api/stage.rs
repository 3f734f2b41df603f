//! Where a test of the API plays: the small server, or the real one that `WEFT_TEST_KUBECONFIG` names; a namespace of its
//! own, which is gone afterwards, also when the test fails.

use std::panic::{AssertUnwindSafe, resume_unwind};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use http::Request;
use kube::api::{Api, DeleteParams, DynamicObject, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::GroupVersionKind;
use kube::discovery::ApiResource;
use kube::{Client, Config};
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::ApiServer;
use super::faults::Fault;
use super::refusal::Refusal;

/// Names the kubeconfig of a real server to test against.
pub const KUBECONFIG: &str = "WEFT_TEST_KUBECONFIG";

/// How long a test may take: a request that never comes back shall not hold the others.
const TEST_PATIENCE: Duration = Duration::from_secs(90);

/// Where a test plays.
#[derive(Debug)]
pub struct Stage {
    client: DebugClient,
    namespace: String,
    small: Option<ApiServer>,
    minor: u32,
    definitions: Mutex<Vec<String>>,
}

struct DebugClient(Client);

impl std::fmt::Debug for DebugClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Client")
    }
}

/// Runs a test against the small server, or against the real one where one is named.
///
/// # Panics
/// When the test does, or the server named is not there.
#[track_caller]
pub fn on_stage<F: Future<Output = ()>>(test: impl FnOnce(Arc<Stage>) -> F) {
    play(std::env::var_os(KUBECONFIG).as_deref().map(Path::new), test);
}

/// Runs a test against the small server, whatever is named: for tests that order faults.
///
/// # Panics
/// When the test does.
#[track_caller]
pub fn on_small_stage<F: Future<Output = ()>>(test: impl FnOnce(Arc<Stage>) -> F) {
    play(None, test);
}

#[track_caller]
fn play<F: Future<Output = ()>>(kubeconfig: Option<&Path>, test: impl FnOnce(Arc<Stage>) -> F) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime can be made");
    runtime.block_on(async {
        let stage = Arc::new(Stage::new(kubeconfig).await);
        let played = AssertUnwindSafe(tokio::time::timeout(TEST_PATIENCE, test(Arc::clone(&stage))));
        let played = played.catch_unwind().await;
        stage.tidy().await;
        match played {
            Ok(in_time) => assert!(in_time.is_ok(), "the test takes longer than {TEST_PATIENCE:?}"),
            Err(panic) => resume_unwind(panic),
        }
    });
}

/// A client for a kubeconfig's text.
///
/// # Panics
/// The text is no kubeconfig.
pub async fn client(kubeconfig: &str) -> Client {
    let kubeconfig = Kubeconfig::from_yaml(kubeconfig).expect("a kubeconfig");
    client_of(kubeconfig).await
}

async fn client_of(kubeconfig: Kubeconfig) -> Client {
    let options = KubeConfigOptions::default();
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &options).await.expect("a usable kubeconfig");
    // A test sees what the server answers, not what it answers in the end.
    config.default_retry = false;
    Client::try_from(config).expect("a client can be made")
}

impl Stage {
    async fn new(kubeconfig: Option<&Path>) -> Self {
        let (client, small) = if let Some(path) = kubeconfig {
            let read = Kubeconfig::read_from(path);
            let kubeconfig = read.unwrap_or_else(|error| panic!("{KUBECONFIG}={}: {error}", path.display()));
            (client_of(kubeconfig).await, None)
        } else {
            let server = ApiServer::start();
            (client(&server.kubeconfig(None)).await, Some(server))
        };
        let version = client.apiserver_version().await.expect("the server tells its version");
        let minor = version.minor.trim_end_matches('+').parse().expect("a minor version is a number");
        let stage = Self {
            client: DebugClient(client),
            namespace: format!("weft-test-{:08x}", fastrand::u32(..)),
            small,
            minor,
            definitions: Mutex::new(Vec::new()),
        };
        let namespace =
            json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": stage.namespace } });
        stage.create_all("/api/v1/namespaces", &namespace).await.expect("a namespace can be made");
        // What a controller would do; pods need it on a real server.
        let account =
            json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": "default" } });
        let made = stage.create("serviceaccounts", &account).await;
        assert!(made.is_ok() || made.as_ref().is_err_and(|refusal| refusal.code == 409), "{made:?}");
        stage
    }

    /// A client of the administrator.
    pub fn client(&self) -> Client {
        self.client.0.clone()
    }

    /// The namespace of this test.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The small server, when it is that.
    pub fn small(&self) -> Option<&ApiServer> {
        self.small.as_ref()
    }

    /// The server's version of Kubernetes: 20, 36.
    pub fn minor(&self) -> u32 {
        self.minor
    }

    /// The small server, for tests that need it.
    ///
    /// # Panics
    /// When it is the real one.
    pub fn server(&self) -> &ApiServer {
        self.small.as_ref().expect("this test runs on the small server")
    }

    /// Orders a fault.
    pub fn order(&self, fault: Fault) {
        self.server().order(fault);
    }

    /// The path of a core kind in this test's namespace.
    pub fn path(&self, plural: &str) -> String {
        format!("/api/v1/namespaces/{}/{plural}", self.namespace)
    }

    /// Typed access to a kind in this test's namespace.
    pub fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.client(), &self.namespace)
    }

    /// Sends a request; gives status and value, refused or not.
    ///
    /// # Panics
    /// No answer comes.
    pub async fn ask(&self, method: &str, path: &str, content_type: &str, body: &Value) -> (u16, Value) {
        let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        let request = Request::builder().method(method).uri(path).header("content-type", content_type);
        let request = request.body(kube::client::Body::from(body)).expect("a request");
        let response = self.client().send(request).await.expect("an answer");
        let status = response.status().as_u16();
        let bytes = response.into_body().collect_bytes().await.expect("a whole answer");
        (status, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
    }

    /// Reads.
    ///
    /// # Panics
    /// No answer comes.
    pub async fn get(&self, path: &str) -> (u16, Value) {
        self.ask("GET", path, "application/json", &Value::Null).await
    }

    /// Creates an object of a core kind in this test's namespace.
    ///
    /// # Errors
    /// It is refused.
    pub async fn create(&self, plural: &str, object: &Value) -> Result<Value, Refusal> {
        self.create_all(&self.path(plural), object).await
    }

    /// Creates an object anywhere.
    ///
    /// # Errors
    /// It is refused.
    pub async fn create_all(&self, path: &str, object: &Value) -> Result<Value, Refusal> {
        let (code, answer) = self.ask("POST", path, "application/json", object).await;
        if code == 201 { Ok(answer) } else { Err(Refusal::new(code, answer["message"].to_string())) }
    }

    /// A config map with one entry.
    ///
    /// # Panics
    /// It is refused.
    pub async fn config_map(&self, name: &str, labels: Value) -> Value {
        let map = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name, "labels": labels }, "data": { "i": name },
        });
        self.create("configmaps", &map).await.expect("a config map can be made")
    }

    /// A pod on a node that nobody runs.
    ///
    /// # Panics
    /// It is refused.
    pub async fn pod(&self, name: &str, node: &str) -> Value {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name, "labels": { "app": name } },
            "spec": {
                "nodeName": node, "serviceAccountName": "default", "automountServiceAccountToken": false, "terminationGracePeriodSeconds": 30,
                "containers": [{ "name": "main", "image": "example.test/main:1" }],
            },
        });
        self.create("pods", &pod).await.expect("a pod can be made")
    }

    /// Defines a kind of this test's own, `Thing`, with a status; gives access to it.
    ///
    /// # Panics
    /// It is refused, or not served in time.
    pub async fn things(&self) -> (Api<DynamicObject>, String) {
        let group = format!("{}.example.test", self.namespace);
        let name = format!("things.{group}");
        let condition = json!({
            "type": "object", "properties": { "type": { "type": "string" }, "status": { "type": "string" } }, "required": ["type"],
        });
        let conditions = json!({
            "type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"], "items": condition,
        });
        let any = json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true });
        let mut status = any.clone();
        status["properties"] = json!({ "conditions": conditions });
        let definition = json!({
            "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": { "name": name },
            "spec": {
                "group": group, "scope": "Namespaced",
                "names": { "plural": "things", "singular": "thing", "kind": "Thing", "listKind": "ThingList" },
                "versions": [{
                    "name": "v1", "served": true, "storage": true, "subresources": { "status": {} },
                    "schema": { "openAPIV3Schema": { "type": "object", "properties": { "spec": any, "status": status } } },
                }],
            },
        });
        let made =
            self.create_all("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", &definition).await;
        made.expect("a kind can be defined");
        self.definitions.lock().push(name);
        let path = format!("/apis/{group}/v1/namespaces/{}/things", self.namespace);
        // A real server serves it some moments later.
        for _ in 0..200 {
            if self.get(&path).await.0 == 200 {
                let kind = ApiResource::from_gvk_with_plural(
                    &GroupVersionKind::gvk(&group, "v1", "Thing"),
                    "things",
                );
                return (Api::namespaced_with(self.client(), &self.namespace, &kind), path);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{path} is not served after 10 s");
    }

    /// Makes a thing.
    ///
    /// # Panics
    /// It is refused.
    pub async fn thing(&self, things: &Api<DynamicObject>, name: &str, spec: Value) -> DynamicObject {
        let group = format!("{}.example.test", self.namespace);
        let thing = json!({
            "apiVersion": format!("{group}/v1"), "kind": "Thing", "metadata": { "name": name }, "spec": spec,
        });
        let thing = serde_json::from_value(thing).expect("a thing is an object");
        things.create(&PostParams::default(), &thing).await.expect("a thing can be made")
    }

    async fn tidy(&self) {
        if self.small.is_some() {
            return;
        }
        let at_once = DeleteParams::default().grace_period(0);
        let pods: Api<k8s_openapi::api::core::v1::Pod> = self.api();
        // What is left over on a server that is thrown away does no harm; a failed test shall say its own reason.
        let _ = pods.delete_collection(&at_once, &kube::api::ListParams::default()).await;
        let definitions = std::mem::take(&mut *self.definitions.lock());
        for name in definitions {
            let path = format!("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}");
            self.ask("DELETE", &path, "application/json", &Value::Null).await;
        }
        let path = format!("/api/v1/namespaces/{}", self.namespace);
        self.ask("DELETE", &path, "application/json", &Value::Null).await;
    }
}
