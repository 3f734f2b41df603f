//! Where a policy is in force, written on it: two processes of control over one API server, and agents that report to them.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use mesh_agent::discovery::{self, Access, Discovery};
use mesh_agent::identity;
use mesh_agent::identity::line::Line;
use mesh_agent::identity::trust::Trust;
use mesh_agent::lifecycle::{Trigger, shutdown};
use mesh_agent::model::{Publication, TrustDomain};
use mesh_agent::telemetry::Telemetry;
use mesh_agent::{policy, progress, registry, route};
use mesh_tests::api::ApiServer;
use mesh_tests::control::{PATIENCE, ROUTES, Replica, agent_token, mesh, policy_that};
use mesh_tests::wait::within;
use serde_json::json;
use tokio::runtime::Runtime;
use tokio::sync::watch;

/// What an agent of a node has for this: its pod's token, discovery from the API, and the word of capture.
struct Agent {
    discovery: Discovery,
    /// What stands in the kernel: everything, unless a test says otherwise.
    in_kernel: watch::Sender<Publication>,
    /// It falls silent when this is dropped.
    _stop: Trigger,
}

const EVERYTHING: Publication = Publication { registry: u64::MAX, policies: u64::MAX, routes: u64::MAX };

impl Agent {
    fn start(runtime: &Runtime, server: &ApiServer, dir: &Path, node: &str, ask: &str) -> Self {
        let pod = format!("agent-{node}");
        server.put(json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": pod, "namespace": "weft-system"},
            "spec": {"serviceAccountName": "weft-agent", "nodeName": node, "hostNetwork": true,
                "containers": [{"name": "agent", "image": "weft"}]},
            "status": {"phase": "Running"},
        }));
        let (token_file, roots) = (dir.join(format!("{node}.token")), dir.join("roots.pem"));
        std::fs::write(&token_file, agent_token(server, &pod)).expect("written");
        let bundle = server.object("", "configmaps", "weft-system/weft-trust-bundle").expect("published");
        std::fs::write(&roots, bundle["data"]["roots.pem"].as_str().expect("PEM")).expect("written");
        let trust_domain: TrustDomain = "cluster.local".parse().expect("valid");
        let settings = identity::Settings {
            trust_domain: trust_domain.clone(),
            ca_address: ask.to_owned(),
            ca_server_name: Some("weft-control".to_owned()),
            ca_roots: roots.clone(),
            federated_roots: Vec::new(),
            token_file,
            certificate_ttl: Duration::from_secs(3600),
        };
        let trust = Trust::load(vec![(trust_domain, roots)]).expect("roots");
        let line = Line::new(&settings, Arc::new(trust)).expect("an address");
        let source = discovery::Settings::Kubernetes(Access {
            kubeconfig: Some(dir.join("kubeconfig")),
            context: None,
        });
        let (stop, shutdown) = shutdown::channel();
        let in_kernel = watch::Sender::new(EVERYTHING);
        let heard = in_kernel.subscribe();
        let discovery = runtime.block_on(async {
            let (registry, policies, routes) = (registry::new().0, policy::new().0, route::new().0);
            let telemetry = Telemetry::without_access_log();
            let started = discovery::start(source, registry, policies, routes, &telemetry, shutdown.clone());
            let discovery = started.await.expect("it starts");
            discovery.first_state().await;
            progress::start(line, discovery.versions(), heard, shutdown);
            discovery
        });
        Self { discovery, in_kernel, _stop: stop }
    }

    /// What is published from now on does not get into the kernel, until [`Agent::goes_on`].
    fn falls_behind(&self) {
        self.in_kernel.send_replace(self.discovery.versions().borrow().publication);
    }

    fn goes_on(&self) {
        self.in_kernel.send_replace(EVERYTHING);
    }
}

/// `STATUS ready/total message` of the policy.
fn programmed(server: &ApiServer) -> Option<String> {
    let policy = server.object("weft.dev", "authorizationpolicies", "shop/web")?;
    let (status, generation) = (&policy["status"], &policy["metadata"]["generation"]);
    let conditions = status.pointer("/ancestors/0/conditions")?.as_array()?;
    let one = conditions
        .iter()
        .find(|one| one["type"] == "Programmed" && one["observedGeneration"] == *generation)?;
    let (status_is, message) = (one["status"].as_str()?, one["message"].as_str()?);
    Some(format!("{status_is} {}/{} {message}", status["nodesReady"], status["nodesTotal"]))
}

#[test]
fn a_policy_says_on_how_many_nodes_it_is_in_force_whichever_replica_leads() {
    let server = ApiServer::with_mesh_kinds();
    mesh(&server);
    let dir = tempfile::tempdir().expect("a directory");
    let kubeconfig = dir.path().join("kubeconfig");
    std::fs::write(&kubeconfig, server.kubeconfig(None)).expect("written");
    let mut replicas = [Replica::start(&kubeconfig), Replica::start(&kubeconfig)];
    within(PATIENCE, "both are ready", || replicas.iter().all(Replica::is_ready).then_some(()));
    within(PATIENCE, "one leads", || (replicas.iter().filter(|one| one.leads()).count() == 1).then_some(()));
    let first = usize::from(!replicas[0].leads());
    let says =
        |expected: &str| within(PATIENCE, expected, || programmed(&server).filter(|said| said == expected));
    says("False 0/0 no node has an agent");

    // Both ask the replica that does not lead.
    let runtime = Runtime::new().expect("a runtime");
    let other = replicas[1 - first].listen.clone();
    let [one, two] =
        ["node-1", "node-2"].map(|node| Agent::start(&runtime, &server, dir.path(), node, &other));
    says("True 2/2 in force on 2 of 2 nodes");
    within(PATIENCE, "the metric counts them", || {
        replicas[first].window("/metrics").contains("\nweft_control_nodes_reporting 2").then_some(())
    });

    // A node that cannot write its tables.
    two.falls_behind();
    server.put(policy_that("DENY"));
    says("False 1/2 in force on 1 of 2 nodes; not on node-2");
    two.goes_on();
    says("True 2/2 in force on 2 of 2 nodes");
    let route = server.object(ROUTES, "httproutes", "shop/split").expect("there");
    let conditions = route["status"]["parents"][0]["conditions"].as_array().expect("written");
    assert!(
        conditions.iter().any(|one| one["type"] == "weft.dev/Programmed" && one["status"] == "True"),
        "{route}"
    );

    // Another leader hears it anew, and takes nothing back meanwhile.
    let before = server.object("weft.dev", "authorizationpolicies", "shop/web").expect("there");
    replicas[first].kill().expect("killed");
    within(PATIENCE, "the other leads", || replicas[1 - first].leads().then_some(()));
    within(PATIENCE, "it has heard of both", || {
        replicas[1 - first].window("/metrics").contains("\nweft_control_nodes_reporting 2").then_some(())
    });
    std::thread::sleep(Duration::from_secs(3));
    let after = server.object("weft.dev", "authorizationpolicies", "shop/web").expect("there");
    assert_eq!(before["metadata"]["resourceVersion"], after["metadata"]["resourceVersion"], "{after}");
    one.falls_behind();
    server.put(policy_that("ALLOW"));
    says("False 1/2 in force on 1 of 2 nodes; not on node-1");
    // Its pod goes with its node.
    assert!(server.delete("", "pods", "weft-system/agent-node-1"));
    says("True 1/1 in force on 1 of 1 nodes");
}
