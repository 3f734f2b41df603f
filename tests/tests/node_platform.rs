//! What a cluster itself sends to pods and what pods need of it: kubelet's probes, the node and its host-network pods, DNS,
//! the API server, metadata services, jobs.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::thread;

use mesh_tests::lab::Options;
use mesh_tests::wire::Serve;
use mesh_tests::world::policy;
use mesh_tests::{Lab, World, eventually};
use serde_json::Value;

const STRICT: &str = "{sources: [{type: AnyAuthenticated}]}";

/// A pod with a probe on 8080 (by name), and one of the host network; strict but for probes.
fn world() -> World {
    World::new()
        .meshed("shop")
        .unmeshed("outside")
        .pod("shop/web", "node-1")
        .pod("shop/far", "node-2")
        .object("apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: server, namespace: shop}\n")
        .object(
            "apiVersion: v1\nkind: Pod\nmetadata: {name: server, namespace: shop, labels: {app: server}}\nspec:\n  \
             nodeName: node-1\n  serviceAccountName: server\n  containers:\n  - name: app\n    ports: \
             [{name: health, containerPort: 8080}]\n    readinessProbe: {httpGet: {port: health, path: /healthz}}\n",
        )
        .object(
            "apiVersion: v1\nkind: Pod\nmetadata: {name: host, namespace: outside, labels: {app: host}}\nspec: \
             {nodeName: node-1, hostNetwork: true, containers: [{name: app}]}\n",
        )
}

fn strict_world() -> World {
    world().file("strict.yaml", &policy("shop/strict", "server", "ALLOW", &[STRICT]))
}

fn groups() -> Options {
    Options::default().arg("--enrolment").arg("groups")
}

/// Dials from the node's own network, in the test's own control group: as kubelet does.
fn dial_from_node(lab: &Lab, to: SocketAddr, say: &str) -> Result<String, String> {
    lab.in_node("node-1", || {
        let mut stream = TcpStream::connect(to).map_err(|error| error.to_string())?;
        stream.write_all(say.as_bytes()).map_err(|error| error.to_string())?;
        let mut answer = [0; 1024];
        match stream.read(&mut answer) {
            Ok(0) => Err("eof".to_owned()),
            Ok(length) => Ok(String::from_utf8_lossy(&answer[..length]).into_owned()),
            Err(error) => Err(error.to_string()),
        }
    })
}

fn record_at(lab: &Lab, to: SocketAddr, since: usize) -> Value {
    eventually(&format!("a record of {to}"), || {
        let records = lab.access_records("node-1").split_off(since);
        records.into_iter().find(|record| record["destination"]["endpoint"] == *to.to_string())
    })
}

#[test]
fn kubelets_probes_pass_a_strict_policy_and_nobody_else_behind_the_nodes_address_does() {
    for enrolment in ["files", "groups"] {
        let options = Options::default().arg("--enrolment").arg(enrolment);
        let lab = Lab::up_with(&strict_world(), &options);
        let server = lab.probe("shop/server");
        let _served = [server.serve(8080, Serve::Greet), server.serve(9090, Serve::Greet)];
        let (probed, other) = (lab.v4("shop/server", 8080), lab.v4("shop/server", 9090));

        dial_from_node(&lab, probed, "x").expect("root of the node, on the port of the probe");
        let record = record_at(&lab, probed, 0);
        assert_eq!((&record["reason"], &record["path"]), (&"probe".into(), &"plain".into()), "{record}");
        assert_eq!(record["source"].get("identity"), None, "{record}");

        let since = lab.access_records("node-1").len();
        dial_from_node(&lab, other, "x").expect_err("a port that no probe dials");
        assert_eq!(record_at(&lab, other, since)["ending"], "policy_denied");

        // The same address and port, by a pod of the host network: root, too, but in a pod.
        let since = lab.access_records("node-1").len();
        let host = lab.probe("outside/host");
        host.call(probed).expect_err("a pod is not kubelet");
        let record = record_at(&lab, probed, since);
        assert_eq!(record["ending"], "policy_denied", "{enrolment}: {record}");

        // And by somebody of the node who is not root.
        let since = lab.access_records("node-1").len();
        let script = format!(
            "exec 3<>/dev/tcp/{}/{} && echo x >&3 && head -c1 <&3 | grep -q .",
            probed.ip(),
            probed.port()
        );
        let node = lab.node("node-1").netns.display().to_string();
        let nobody = Command::new("nsenter")
            .arg(format!("--net={node}"))
            .args(["setpriv", "--reuid=65534", "--clear-groups", "bash", "-c", &script])
            .output()
            .expect("nsenter and setpriv (util-linux) are installed");
        assert!(!nobody.status.success(), "another user is not kubelet");
        assert_eq!(record_at(&lab, probed, since)["ending"], "policy_denied");
        lab.probe("shop/web").call(probed).expect("a client with an identity");
    }
}

#[test]
fn a_probe_passes_where_policies_speak_about_requests() {
    let rule = "{sources: [{type: AnyAuthenticated}], http: [{methods: [GET], paths: [{type: Exact, value: /books}]}]}";
    let world = world().file("strict.yaml", &policy("shop/strict", "server", "ALLOW", &[rule]));
    let lab = Lab::up_with(&world, &groups());
    for port in [8080, 9090] {
        let listener =
            lab.in_pod("shop/server", || TcpListener::bind(("0.0.0.0", port)).expect("the port is free"));
        thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let _ = stream.read(&mut [0; 1024]);
                let _ =
                    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok");
            }
        });
    }
    let (probed, other) = (lab.v4("shop/server", 8080), lab.v4("shop/server", 9090));
    let get = "GET /healthz HTTP/1.1\r\nHost: server\r\nConnection: close\r\n\r\n";
    let answer = dial_from_node(&lab, probed, get).expect("a probe is answered");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let answer = dial_from_node(&lab, other, get).unwrap_or_default();
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 403"), "no probe's port: {answer}");
}

#[test]
fn a_tcp_probe_that_connects_and_goes_is_a_probe_and_no_refusal() {
    let lab = Lab::up_with(&strict_world(), &groups());
    let probed = lab.v4("shop/server", 8080);
    for _ in 0..5 {
        let since = lab.access_records("node-1").len();
        lab.in_node("node-1", || drop(TcpStream::connect(probed).expect("the agent accepts")));
        let record = record_at(&lab, probed, since);
        assert_eq!(record["reason"], "probe", "{record}");
        assert_ne!(record["ending"], "policy_denied", "{record}");
    }
}

#[test]
fn host_network_clients_and_the_node_itself_have_no_identity_and_are_judged_as_such() {
    let lab = Lab::up_with(&world(), &groups());
    let (server, host) = (lab.probe("shop/server"), lab.probe("outside/host"));
    let _served = server.serve(9090, Serve::Greet);
    let target = lab.v4("shop/server", 9090);
    // What kube-proxy sends in for a NodePort or a load balancer comes from the node's address, too.
    for (who, called) in [
        ("a pod of the host network", host.call(target).map(drop).map_err(|refusal| refusal.0)),
        ("the node", dial_from_node(&lab, target, "x").map(drop)),
    ] {
        called.unwrap_or_else(|error| panic!("{who} passes by default: {error}"));
    }
    for record in lab.access_records("node-1").iter().filter(|record| record["reporter"] == "destination") {
        assert_eq!((&record["path"], record["source"].get("identity")), (&"plain".into(), None), "{record}");
    }
    lab.apply("strict.yaml", &policy("shop/strict", "server", "ALLOW", &[STRICT]));
    eventually("a strict policy refuses both", || {
        (host.call(target).is_err() && dial_from_node(&lab, target, "x").is_err()).then_some(())
    });
    // A meshed pod reaches what listens on the node as any other address outside the mesh.
    let node = lab.node("node-1").ips[0];
    let _host_served = host.serve(7070, Serve::Greet);
    lab.probe("shop/web").call(SocketAddr::new(node, 7070)).expect("the node is outside the mesh");
}

#[test]
fn the_api_servers_service_leads_to_a_host_address_with_and_without_kube_proxy() {
    let api = "apiVersion: v1\nkind: Service\nmetadata: {name: kubernetes, namespace: outside}\nspec:\n  clusterIP: 10.96.0.1\n  \
               ports: [{name: https, port: 443, targetPort: 6443}]\n";
    for whose in ["enrolled", "all"] {
        let options = groups().agent_arg("--service-vips").agent_arg(whose);
        let lab = Lab::up_with(&world().object(api), &options);
        let node = lab.node("node-2").ips[0];
        lab.apply(
            "slice.yaml",
            &format!(
                "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: kubernetes, namespace: outside, labels: \
                 {{kubernetes.io/service-name: kubernetes}}}}\naddressType: IPv4\nports: [{{name: https, port: 6443}}]\n\
                 endpoints: [{{addresses: [{node}]}}]\n"
            ),
        );
        let listener = lab.in_node("node-2", || TcpListener::bind((node, 6443)).expect("the port is free"));
        let server = thread::spawn(move || {
            let (mut stream, client) = listener.accept().expect("a client comes");
            stream.write_all(b"api\n").expect("it reads");
            client
        });
        let web = lab.probe("shop/web");
        let conn = eventually("the slice is known", || web.connect(lab.vip("outside/kubernetes", 443)).ok());
        assert_eq!(conn.receive().as_deref(), Ok("api\n"), "--service-vips {whose}");
        let client = server.join().expect("served");
        assert_eq!(client.ip(), lab.v4("shop/web", 0).ip(), "from the pod's own address");
        drop(conn);
        let record = lab.record("node-1", "the call to the API server", |record| {
            record["destination"]["service"] == "outside/kubernetes"
                || record["destination"]["service"]["name"] == "kubernetes"
        });
        assert_eq!(record["path"], "plain", "outside the mesh: {record}");
    }
}

#[test]
fn names_are_asked_for_by_datagram_and_by_connection_outside_the_mesh() {
    let world = world().pod("outside/dns", "node-2").service("outside/dns", "dns", 53, 53, "");
    let lab = Lab::up_with(&world, &groups());
    let (dns, web) = (lab.probe("outside/dns"), lab.probe("shop/web"));
    let at = lab.v4("outside/dns", 53);
    dns.serve_datagrams(at);
    let _served = dns.serve(53, Serve::Greet);
    for connect in [false, true] {
        web.datagram(at, connect).expect("a datagram is let through");
    }
    web.call(lab.vip("outside/dns", 53)).expect("and so is a long answer by TCP");
}

#[test]
fn a_metadata_service_is_never_caught() {
    let lab = Lab::up_with(&world(), &groups());
    let metadata: IpAddr = "169.254.169.254".parse().expect("an address");
    let node = lab.node("node-1").netns.file_name().expect("it has a name").to_string_lossy().into_owned();
    let added =
        Command::new("ip").args(["-n", &node, "addr", "add", "169.254.169.254/32", "dev", "lo"]).status();
    assert!(added.expect("ip (iproute2) is installed").success());
    let listener = lab.in_node("node-1", || TcpListener::bind((metadata, 80)).expect("the port is free"));
    let server = thread::spawn(move || {
        let (mut stream, client) = listener.accept().expect("a client comes");
        stream.write_all(b"token\n").expect("it reads");
        client
    });
    let web = lab.probe("shop/web");
    let before = lab.access_records("node-1").len();
    let conn = web.connect(SocketAddr::new(metadata, 80)).expect("reached");
    assert_eq!(conn.receive().as_deref(), Ok("token\n"));
    assert_eq!(
        server.join().expect("served").to_string(),
        conn.names.local.to_string(),
        "the very socket of the pod"
    );
    drop(conn);
    assert_eq!(lab.access_records("node-1").len(), before, "the agent has not seen it");
}

#[test]
fn nothing_keeps_a_job_from_finishing_and_its_pod_from_going() {
    let job = "apiVersion: v1\nkind: Pod\nmetadata: {name: job, namespace: shop}\nspec: {nodeName: node-1, restartPolicy: Never}\n";
    let mut lab = Lab::up_with(&world().file("job.yaml", job), &groups());
    let far = lab.probe("shop/far");
    let _served = far.serve(8080, Serve::Greet);
    let target = lab.v4("shop/far", 8080);
    let script = format!("exec 3<>/dev/tcp/{}/{} && head -n1 <&3", target.ip(), target.port());
    let said = lab.exec_ok("shop/job", &["bash", "-c", &script]);
    assert!(said.contains("far"), "its work needs the mesh: {said}");
    let record = lab.record("node-2", "the job's tunnel", |record| record["source"]["pod"] == "job");
    assert_eq!(record["path"], "tunnel", "{record}");
    let group = lab.pod("shop/job").container.join("cgroup.procs");
    assert_eq!(
        std::fs::read_to_string(group).expect("it is there"),
        "",
        "nothing of the mesh runs in the pod"
    );
    lab.metric_reaches("node-1", "weft_enrolled_pods", &[], 3.0);
    lab.apply_world(&world().file("job.yaml", "# It is done.\n"));
    eventually("the pod has left the mesh", || {
        (lab.metrics("node-1").sum("weft_enrolled_pods", &[]) <= 2.0).then_some(())
    });
    lab.down();
}
