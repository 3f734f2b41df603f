//! What goes wrong in a cluster, and what the mesh makes of it: an API server that is away, a node without power, agents that
//! are replaced.

use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use mesh_tests::cluster::manifest::{PORT, Pod, documents, service};
use mesh_tests::cluster::{Cluster, Namespace, PATIENCE, is_ready, mesh};
use mesh_tests::wire::Serve;
use mesh_tests::{Probe, wait};
use serde_json::json;

/// How long the API server is away. Longer than an agent's longest pause between tries at the start.
const AWAY: Duration = Duration::from_secs(10);

/// The pause between calls of a load.
const PAUSE_US: u64 = 20_000;

/// A client on node-1, and a server on each node.
struct Scene<'a> {
    namespace: Namespace<'a>,
    client: Probe,
    servers: Vec<(SocketAddr, Probe)>,
}

impl<'a> Scene<'a> {
    fn set(cluster: &'a Cluster, name: &str) -> Self {
        let namespace = Namespace::meshed(cluster, name);
        let name = &namespace.name;
        let pod = |pod: &str, node| Pod::new(name, pod).on(node).yaml();
        cluster.apply(&documents(&[
            pod("web", "node-1"),
            pod("near", "node-1"),
            pod("far", "node-2"),
            service(name, "far"),
        ]));
        cluster.wait_ready(name);
        mesh::wait_enrolled(cluster, name);
        let client = cluster.probe(name, "web");
        let mut servers = Vec::new();
        for pod in ["near", "far"] {
            let server = cluster.probe(name, pod);
            server.serve(PORT, Serve::Greet);
            servers.push((SocketAddr::new(cluster.pod_ip(name, pod), PORT), server));
        }
        for (at, _) in &servers {
            wait::within(PATIENCE, "the servers are reached", || client.call(*at).ok().map(drop));
        }
        Self { namespace, client, servers }
    }

    fn addresses(&self) -> Vec<SocketAddr> {
        self.servers.iter().map(|(at, _)| *at).collect()
    }
}

#[test]
fn calls_go_on_while_the_api_server_is_away_and_changes_arrive_when_it_is_back() {
    let cluster = Cluster::running();
    mesh::install(&cluster);
    let namespace = Namespace::meshed(&cluster, "away");
    let name = &namespace.name;
    let pods = [
        Pod::new(name, "web").on("node-1"),
        Pod::new(name, "near").on("node-1").echo(),
        Pod::new(name, "far").on("node-2").echo(),
    ];
    cluster.apply(&documents(&pods.map(|pod| pod.yaml())));
    cluster.wait_ready(name);
    mesh::wait_enrolled(&cluster, name);
    let servers = ["near", "far"].map(|pod| SocketAddr::new(cluster.pod_ip(name, pod), PORT));
    for at in servers {
        let call = ["xtask", "app", "call", &at.to_string(), "--send", "hello"];
        wait::within(PATIENCE, "the servers are reached", || {
            cluster.exec(name, "web", &call).status.success().then_some(())
        });
    }
    let load = Load::start(&cluster, name, &servers);
    cluster.switch(&["api-server", "stop"]);
    thread::sleep(AWAY);
    cluster.switch(&["api-server", "start"]);
    let seen = load.stop();
    assert!(seen.calls > 100 && seen.failed == 0, "{seen:?}");
    cluster.apply(&Pod::new(name, "later").on("node-2").yaml());
    wait::within(PATIENCE, "a pod made afterwards is enrolled", || {
        mesh::is_enrolled(&cluster, "node-2", name, "later").then_some(())
    });
}

/// Calls from a pod by its own shell, started on the node and not through the API server: it goes on while that is away.
struct Load<'a> {
    cluster: &'a Cluster,
    container: String,
    thread: thread::JoinHandle<std::process::Output>,
}

/// What became of the calls.
#[derive(Debug)]
struct Calls {
    calls: u64,
    failed: u64,
    #[expect(dead_code, reason = "for messages")]
    last: String,
}

impl<'a> Load<'a> {
    fn start(cluster: &'a Cluster, namespace: &str, to: &[SocketAddr]) -> Self {
        let pod = cluster.pod(namespace, "web");
        let id =
            pod["status"]["containerStatuses"][0]["containerID"].as_str().expect("a container has an id");
        let container = id.trim_start_matches("containerd://").to_owned();
        let calls: String = to
            .iter()
            .map(|at| format!("n=$((n+1)); xtask app call {at} --send hello >/tmp/said 2>&1 || {{ f=$((f+1)); cat /tmp/said >>/tmp/faults; }};"))
            .collect();
        let script = format!(
            "n=0; f=0; rm -f /tmp/stop; while [ ! -e /tmp/stop ]; do {calls} sleep 0.02; done; echo $n $f; tail -n 5 /tmp/faults 2>/dev/null; true"
        );
        let mut command = cluster.node_command("node-1", &in_container(&container, "load", &script));
        let thread = thread::spawn(move || command.output().expect("ctr starts"));
        thread::sleep(Duration::from_secs(1));
        Self { cluster, container, thread }
    }

    fn stop(self) -> Calls {
        let words = in_container(&self.container, "stop", "echo > /tmp/stop");
        let mut stop = self.cluster.node_command("node-1", &words);
        assert!(stop.status().expect("ctr starts").success());
        let output = self.thread.join().expect("the load ends");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let mut numbers = said.split_whitespace().map(|word| word.parse().unwrap_or(u64::MAX));
        let [calls, failed] =
            [numbers.next(), numbers.next()].map(|number| number.expect("the load tells its numbers"));
        Calls { calls, failed, last: said }
    }
}

/// A shell in a container, started by the container runtime itself.
fn in_container(container: &str, name: &str, script: &str) -> Vec<String> {
    let exec = format!("{name}-{:08x}", fastrand::u32(..));
    let words = [
        "ctr",
        "--namespace",
        "k8s.io",
        "tasks",
        "exec",
        "--exec-id",
        &exec,
        container,
        "/bin/sh",
        "-c",
        script,
    ];
    words.map(str::to_owned).into()
}

#[test]
fn a_node_that_lost_its_power_is_missed_and_comes_back_into_the_mesh() {
    let cluster = Cluster::running();
    mesh::install(&cluster);
    let scene = Scene::set(&cluster, "power");
    let name = &scene.namespace.name;
    let [(near, _), (far, _)] = &scene.servers[..] else { panic!("two servers") };
    cluster.switch(&["node", "stop", "node-2"]);
    scene.client.call(*far).expect_err("the node is off");
    scene.client.call(*near).expect("the other node goes on");
    wait::within(PATIENCE, "Kubernetes misses the node", || {
        let ready = cluster.pod(name, "far")["status"]["conditions"].to_string();
        ready.contains("\"False\"").then_some(())
    });
    cluster.switch(&["node", "start", "node-2"]);
    mesh::wait_ready(&cluster);
    wait::within(PATIENCE, "the node's pods run again", || {
        let pod = cluster.pod(name, "far");
        (is_ready(&pod) && pod["status"]["containerStatuses"][0]["restartCount"] != 0).then_some(())
    });
    mesh::wait_enrolled(&cluster, name);
    let server = cluster.probe(name, "far");
    server.serve(PORT, Serve::Greet);
    let far = SocketAddr::new(cluster.pod_ip(name, "far"), PORT);
    wait::within(PATIENCE, "the server is reached again", || scene.client.call(far).ok().map(drop));
}

#[test]
fn agents_are_replaced_one_node_after_the_other_and_calls_recover() {
    let cluster = Cluster::running();
    mesh::install(&cluster);
    let scene = Scene::set(&cluster, "rolling");
    let load = scene.client.load(&scene.addresses(), PAUSE_US);
    cluster.kubectl_ok(&["--namespace", mesh::SYSTEM, "rollout", "restart", "daemonset/weft-agent"]);
    cluster.kubectl_ok(&[
        "--namespace",
        mesh::SYSTEM,
        "rollout",
        "status",
        "--timeout=180s",
        "daemonset/weft-agent",
    ]);
    mesh::wait_ready(&cluster);
    mesh::wait_enrolled(&cluster, &scene.namespace.name);
    let during = load.stop();
    // No bound: listeners inside pods are not handed over yet, so a node's calls fail for the seconds between two agents.
    println!(
        "calls while both agents were replaced: {} good, {} failed: {:?}",
        during.good, during.bad, during.faults
    );
    assert!(during.good > 0, "{during:?}");
    let after = scene.client.load(&scene.addresses(), PAUSE_US);
    thread::sleep(Duration::from_secs(3));
    let after = after.stop();
    assert!(after.good > 10 && after.bad == 0, "{after:?}");
}

/// What an update with `maxSurge` does on a node (this Kubernetes is too old for it): a pod like the DaemonSet's starts beside
/// the one that is there, and the old one is deleted when the new one is ready.
#[test]
fn a_nodes_agent_is_replaced_by_one_that_was_started_beside_it_and_no_call_fails() {
    let cluster = Cluster::running();
    mesh::install(&cluster);
    let scene = Scene::set(&cluster, "beside");
    let before = agent_on(&cluster, "node-1");
    let daemon_set = cluster.get(&["--namespace", mesh::SYSTEM, "daemonset", "weft-agent"]);
    let mut spec = daemon_set["spec"]["template"]["spec"].clone();
    spec["nodeName"] = "node-1".into();
    let annotations = &daemon_set["spec"]["template"]["metadata"]["annotations"];
    let next = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        // Other labels: a DaemonSet adopts what looks like its own.
        "metadata": { "name": NEXT, "namespace": mesh::SYSTEM, "annotations": annotations },
        "spec": spec,
    });
    let load = scene.client.load(&scene.addresses(), PAUSE_US);
    cluster.apply(&next.to_string());
    wait_agent(&cluster, NEXT);
    delete_agent(&cluster, &before);
    wait::within(PATIENCE, "the next agent has the pods", || {
        mesh::is_enrolled(&cluster, "node-1", &scene.namespace.name, "web").then_some(())
    });
    // The DaemonSet's new pod waits behind the one of this test, and has its turn when that goes.
    let after = wait::within(PATIENCE, "the DaemonSet makes a new pod", || {
        Some(agent_on(&cluster, "node-1")).filter(|name| *name != before)
    });
    wait_agent(&cluster, &after);
    delete_agent(&cluster, NEXT);
    mesh::wait_ready(&cluster);
    mesh::wait_enrolled(&cluster, &scene.namespace.name);
    thread::sleep(Duration::from_secs(2));
    let during = load.stop();
    assert!(during.good > 100, "{during:?}");
    assert_eq!((during.bad, &during.faults), (0, &Vec::new()), "{during:?}");
    let pod = cluster.pod(mesh::SYSTEM, &after);
    assert_eq!(pod["status"]["containerStatuses"][0]["restartCount"], 0, "{}", pod["status"]);
}

/// The pod that is started beside the DaemonSet's.
const NEXT: &str = "weft-agent-next";

/// The name of the DaemonSet's pod on a node; the newest, while one is being deleted.
fn agent_on(cluster: &Cluster, node: &str) -> String {
    let selector = "app.kubernetes.io/component=agent";
    let pods = cluster.get(&["--namespace", mesh::SYSTEM, "pods", "--selector", selector]);
    let pods = pods["items"].as_array().expect("a list of pods");
    let there = pods.iter().filter(|pod| pod["spec"]["nodeName"] == node);
    let newest = there.max_by_key(|pod| pod["metadata"]["creationTimestamp"].to_string());
    newest.and_then(|pod| pod["metadata"]["name"].as_str()).expect("every node has an agent").to_owned()
}

fn wait_agent(cluster: &Cluster, name: &str) {
    wait::within(PATIENCE, &format!("{name} is ready"), || {
        is_ready(&cluster.pod(mesh::SYSTEM, name)).then_some(())
    });
}

/// Deletes it and waits until it is gone, with its connections.
fn delete_agent(cluster: &Cluster, name: &str) {
    cluster.kubectl_ok(&["--namespace", mesh::SYSTEM, "delete", "pod", name, "--timeout=90s"]);
}
