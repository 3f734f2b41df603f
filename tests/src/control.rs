//! `mesh-agent control` as a process over an API server, and the small mesh that it is shown.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use data_encoding::BASE64URL_NOPAD;
use serde_json::{Value, json};

use crate::api::ApiServer;
use crate::api::review::Token;
use crate::lab::release_dir;

/// The group of routes.
pub const ROUTES: &str = "gateway.networking.k8s.io";

/// How long a start, a take-over after a death (15 s and two looks of 2 s), a sign of life (20 s) or a status may take on a
/// busy machine.
pub const PATIENCE: Duration = Duration::from_secs(40);

/// Two namespaces, a service, a route, a policy and the mesh's settings.
pub fn mesh(server: &ApiServer) {
    for name in ["weft-system", "shop"] {
        server.put(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}));
    }
    server.put(json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "orders", "namespace": "shop"},
        "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 80}]},
    }));
    server.put(route("orders"));
    server.put(policy_that("ALLOW"));
    server.put(json!({"apiVersion": "weft.dev/v1alpha1", "kind": "MeshConfig", "metadata": {"name": "default"}, "spec": {}}));
}

/// The route of [`mesh`], attached to this service.
pub fn route(service: &str) -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": {"name": "split", "namespace": "shop"},
        "spec": {"parentRefs": [{"group": "", "kind": "Service", "name": service, "port": 80}],
            "rules": [{"backendRefs": [{"name": "orders", "port": 80}]}]},
    })
}

/// The policy of [`mesh`], with this action.
pub fn policy_that(action: &str) -> Value {
    json!({
        "apiVersion": "weft.dev/v1alpha1", "kind": "AuthorizationPolicy", "metadata": {"name": "web", "namespace": "shop"},
        "spec": {"targetRefs": [{"kind": "Pod", "selector": {}}], "action": action},
    })
}

/// A token of an agent's pod that says what a kubelet's would, and that the API server finds good.
///
/// # Panics
/// The pod is not there.
#[track_caller]
pub fn agent_token(server: &ApiServer, pod: &str) -> String {
    let account = "system:serviceaccount:weft-system:weft-agent";
    let claims = json!({"aud": ["weft-control"], "sub": account, "exp": 4_102_444_800_u64});
    let token = format!("e30.{}.{pod}", BASE64URL_NOPAD.encode(claims.to_string().as_bytes()));
    let found = server.object("", "pods", &format!("weft-system/{pod}")).expect("it was put there");
    let uid = found["metadata"]["uid"].as_str().expect("the server gives one");
    server.add_token(&token, Token::account("weft-system", "weft-agent", "weft-control").bound_to(pod, uid));
    token
}

/// One process; it is killed when dropped.
#[derive(Debug)]
pub struct Replica {
    process: Child,
    admin: String,
    /// Where it serves agents.
    pub listen: String,
}

impl Drop for Replica {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn free_address() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("bound").to_string()
}

/// `mesh-agent control WORDS`, over the API of this kubeconfig.
pub fn control(kubeconfig: &Path, words: &[&str]) -> Command {
    let mut command = Command::new(release_dir().join("mesh-agent"));
    command.arg("control").args(words).arg("--kubeconfig").arg(kubeconfig).stdout(Stdio::null());
    command
}

impl Replica {
    /// Starts one with keys of our own.
    ///
    /// # Panics
    /// There is no `mesh-agent`.
    pub fn start(kubeconfig: &Path) -> Self {
        Self::start_with(kubeconfig, &["--ca-secret=weft-system/weft-ca"])
    }

    /// Starts one; `more` says whose keys.
    ///
    /// # Panics
    /// There is no `mesh-agent`.
    pub fn start_with(kubeconfig: &Path, more: &[&str]) -> Self {
        let (admin, listen) = (free_address(), free_address());
        let words = ["--kubernetes", "--token-review", "--listen", &listen, "--admin-listen", &admin];
        let process = control(kubeconfig, &[&words[..], more].concat()).spawn();
        Self { process: process.expect("mesh-agent is built: cargo build --release"), admin, listen }
    }

    /// Kills it: nothing is given back.
    ///
    /// # Errors
    /// It has ended already.
    pub fn kill(&mut self) -> std::io::Result<()> {
        self.process.kill()
    }

    /// The body of one of its windows; empty while it does not answer.
    pub fn window(&self, path: &str) -> String {
        let ask = || {
            let mut stream = TcpStream::connect(&self.admin)?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            write!(
                stream,
                "GET {path} HTTP/1.1\r\nhost: x\r\naccept: text/plain\r\nconnection: close\r\n\r\n"
            )?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            std::io::Result::Ok(answer)
        };
        ask().unwrap_or_default()
    }

    /// It serves.
    pub fn is_ready(&self) -> bool {
        self.window("/readyz").starts_with("HTTP/1.1 200")
    }

    /// It leads.
    pub fn leads(&self) -> bool {
        self.window("/metrics").contains("\nweft_control_leader 1")
    }
}
