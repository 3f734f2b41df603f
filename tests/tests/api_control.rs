//! `mesh-agent control` as it runs in a cluster: two processes over one API server.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use mesh_tests::api::ApiServer;
use mesh_tests::lab::release_dir;
use mesh_tests::wait::{eventually, now, within};
use serde_json::{Value, json};

const ROUTES: &str = "gateway.networking.k8s.io";

/// How long a start, a take-over after a death (15 s and two looks of 2 s), or a status may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(40);

/// One process; it is killed when dropped.
struct Replica {
    process: Child,
    admin: String,
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

fn control(kubeconfig: &Path, words: &[&str]) -> Command {
    let mut command = Command::new(release_dir().join("mesh-agent"));
    command.arg("control").args(words).arg("--kubeconfig").arg(kubeconfig).stdout(Stdio::null());
    command
}

impl Replica {
    fn start(kubeconfig: &Path) -> Self {
        let (admin, listen) = (free_address(), free_address());
        let words =
            ["--kubernetes", "--token-review", "--ca-secret=weft-system/weft-ca", "--listen", &listen];
        let process = control(kubeconfig, &[&words[..], &["--admin-listen", &admin]].concat()).spawn();
        Self { process: process.expect("mesh-agent is built: cargo build --release"), admin }
    }

    /// The body of one of its windows; empty while it does not answer.
    fn window(&self, path: &str) -> String {
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

    fn is_ready(&self) -> bool {
        self.window("/readyz").starts_with("HTTP/1.1 200")
    }

    fn leads(&self) -> bool {
        self.window("/metrics").contains("\nweft_control_leader 1")
    }
}

fn mesh(server: &ApiServer) {
    for name in ["weft-system", "shop"] {
        server.put(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}));
    }
    server.put(json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "orders", "namespace": "shop"},
        "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 80}]},
    }));
    server.put(route("orders"));
    server.put(json!({
        "apiVersion": "weft.dev/v1alpha1", "kind": "AuthorizationPolicy", "metadata": {"name": "web", "namespace": "shop"},
        "spec": {"targetRefs": [{"kind": "Pod", "selector": {}}], "action": "ALLOW"},
    }));
    server.put(json!({"apiVersion": "weft.dev/v1alpha1", "kind": "MeshConfig", "metadata": {"name": "default"}, "spec": {}}));
}

fn route(service: &str) -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": {"name": "split", "namespace": "shop"},
        "spec": {"parentRefs": [{"group": "", "kind": "Service", "name": service, "port": 80}],
            "rules": [{"backendRefs": [{"name": "orders", "port": 80}]}]},
    })
}

fn accepted(server: &ApiServer, group: &str, plural: &str, name: &str, at: &str) -> Option<String> {
    let object = server.object(group, plural, name)?;
    let conditions = object["status"].pointer(at)?.as_array()?;
    let accepted = conditions.iter().find(|one| one["type"] == "Accepted")?;
    Some(format!("{} {}", accepted["status"].as_str()?, accepted["reason"].as_str()?))
}

fn roots(server: &ApiServer) -> usize {
    let bundle = server.object("", "configmaps", "weft-system/weft-trust-bundle");
    bundle
        .map_or(0, |bundle| bundle["data"]["roots.pem"].as_str().unwrap_or_default().matches("BEGIN").count())
}

/// Writes that are not the Lease's.
fn writes(server: &ApiServer) -> u64 {
    let verbs = ["create", "update", "patch"];
    let counts = server.counts();
    let counted =
        counts.iter().filter(|((verb, on), _)| verbs.contains(&verb.as_str()) && !on.contains("leases"));
    counted.map(|(_, count)| count).sum()
}

#[test]
fn two_replicas_share_keys_and_one_leads_until_it_dies() {
    let server = ApiServer::with_mesh_kinds();
    mesh(&server);
    let dir = tempfile::tempdir().expect("a directory");
    let kubeconfig = dir.path().join("kubeconfig");
    std::fs::write(&kubeconfig, server.kubeconfig(None)).expect("written");
    let mut replicas = [Replica::start(&kubeconfig), Replica::start(&kubeconfig)];
    within(PATIENCE, "both are ready", || replicas.iter().all(Replica::is_ready).then_some(()));
    within(PATIENCE, "one leads", || (replicas.iter().filter(|one| one.leads()).count() == 1).then_some(()));
    assert_eq!(roots(&server), 1);

    // Status, and then silence.
    let said = |group: &str, plural: &str, name: &str, at: &str| {
        within(PATIENCE, name, || accepted(&server, group, plural, name, at))
    };
    assert_eq!(said(ROUTES, "httproutes", "shop/split", "/parents/0/conditions"), "True Accepted");
    assert_eq!(
        said("weft.dev", "authorizationpolicies", "shop/web", "/ancestors/0/conditions"),
        "False TargetNotFound"
    );
    assert_eq!(said("weft.dev", "meshconfigs", "default", "/conditions"), "True Accepted");
    std::thread::sleep(Duration::from_secs(3));
    let before = writes(&server);
    std::thread::sleep(Duration::from_secs(6));
    assert_eq!(writes(&server), before, "nothing changes, nothing is written: {:?}", server.counts());

    // The leader dies without a word.
    let first = usize::from(!replicas[0].leads());
    let started = now();
    replicas[first].process.kill().expect("killed");
    let other = &replicas[1 - first];
    within(PATIENCE, "the other leads", || other.leads().then_some(()));
    assert!(now().duration_since(started) > Duration::from_secs(9), "not before the Lease was old");
    assert!(other.is_ready());

    // It writes, and follows a rotation through the Secret.
    server.put(route("nobody"));
    within(PATIENCE, "the route is told", || {
        let said = accepted(&server, ROUTES, "httproutes", "shop/split", "/parents/0/conditions");
        (said.as_deref() == Some("False NoMatchingParent")).then_some(())
    });
    for (stage, expected) in [("begin", 2), ("switch", 2), ("finish", 1)] {
        let words = ["rotate-root", stage, "--ca-secret=weft-system/weft-ca", "--now"];
        assert!(control(&kubeconfig, &words).status().expect("it runs").success(), "{stage}");
        eventually(stage, || (roots(&server) == expected).then_some(()));
    }
    assert!(other.window("/metrics").contains("\nweft_control_authority_fault 0"));
}
