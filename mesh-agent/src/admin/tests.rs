//! The windows over a loopback socket, and what explain says about a small mesh.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use super::explain::{Client, Question, Target, answer};
use super::*;
use crate::lifecycle::{Readiness, shutdown};
use crate::model::{
    Action, AuthorizationPolicy, DefaultInbound, Endpoint, EndpointState, FailureMode, MeshConfig,
    PolicyName, Rule, Service, ServiceName, ServicePort, Source, SpiffeId, TrafficDistribution, Workload,
    WorkloadName, WorkloadPort, WorkloadUid,
};
use crate::policy::PolicySet;
use crate::registry::Snapshot;
use crate::telemetry::Telemetry;

struct Reply {
    status: u16,
    head: String,
    body: String,
}

impl Reply {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).expect("JSON")
    }
}

fn ask(address: SocketAddr, request_line: &str, headers: &str) -> Reply {
    let mut stream = TcpStream::connect(address).expect("the server listens");
    write!(stream, "{request_line} HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n{headers}\r\n")
        .expect("written");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("an answer");
    let (head, body) = text.split_once("\r\n\r\n").expect("head and body");
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
    Reply { status, head: head.to_lowercase(), body: body.to_owned() }
}

fn get(address: SocketAddr, path: &str) -> Reply {
    ask(address, &format!("GET {path}"), "")
}

fn bind_anywhere() -> std::net::TcpListener {
    bind(&Settings { listen: SocketAddr::from(([127, 0, 0, 1], 0)) }).expect("loopback has free ports")
}

/// A server over `windows`; it stops when the trigger is dropped.
fn serving(windows: Windows) -> (SocketAddr, shutdown::Trigger) {
    let (trigger, stop) = shutdown::channel();
    let server = serve(bind_anywhere(), windows, stop).expect("starts");
    (server.address(), trigger)
}

fn windows() -> Windows {
    Windows::new(Telemetry::without_access_log(), Readiness::default())
}

#[test]
fn readiness_lists_what_is_waited_for() {
    let readiness = Readiness::default();
    let (kernel, certificates) = (readiness.block("kernel"), readiness.block("certificates"));
    let (address, _running) = serving(Windows::new(Telemetry::without_access_log(), readiness));
    let reply = get(address, "/readyz");
    assert_eq!(reply.status, 503);
    assert_eq!(reply.body, "not ready\nwaiting for: certificates\nwaiting for: kernel\n");
    assert_eq!(get(address, "/livez").status, 200, "a process that is not ready is alive");
    drop((kernel, certificates));
    let reply = get(address, "/readyz");
    assert_eq!((reply.status, reply.body.as_str()), (200, "ready\n"));
}

#[test]
fn dead_part_fails_liveness_by_name() {
    let alive = Arc::new(AtomicBool::new(true));
    let watched = alive.clone();
    let (address, _running) = serving(windows().alive("worker 0", move || watched.load(Ordering::Relaxed)));
    assert_eq!(get(address, "/livez").status, 200);
    alive.store(false, Ordering::Relaxed);
    for path in ["/livez", "/healthz"] {
        let reply = get(address, path);
        assert_eq!((reply.status, reply.body.as_str()), (503, "not alive\ndead: worker 0\n"));
    }
}

#[test]
fn metrics_come_in_the_format_asked_for() {
    let (address, _running) = serving(windows());
    let open = get(address, "/metrics");
    assert_eq!(open.status, 200);
    assert!(open.head.contains("content-type: application/openmetrics-text; version=1.0.0"), "{}", open.head);
    assert!(open.body.ends_with("# EOF\n"));
    let plain = ask(address, "GET /metrics", "Accept: text/plain; version=0.0.4\r\n");
    assert!(plain.head.contains("content-type: text/plain; version=0.0.4"), "{}", plain.head);
    assert!(plain.body.contains("# TYPE weft_process_cpu_seconds_total counter"));
}

#[test]
fn windows_answer_json_and_join_the_dump() {
    let windows = windows()
        .view("/workloads", || json!([{"name": "web"}]))
        .ask("/echo", |query| Ok(json!({"said": query.required("say")?})))
        .ask("/missing", |_| Err(Refused::NotFound("no such pod".to_owned())));
    let (address, _running) = serving(windows);
    let workloads = get(address, "/workloads");
    assert!(workloads.head.contains("content-type: application/json"), "{}", workloads.head);
    assert_eq!(workloads.json(), json!([{"name": "web"}]));
    assert_eq!(get(address, "/echo?say=a%2Fb+c&x").json(), json!({"said": "a/b c"}));
    let malformed = get(address, "/echo");
    assert_eq!((malformed.status, malformed.json()), (400, json!({"error": "the parameter say is missing"})));
    let missing = get(address, "/missing");
    assert_eq!((missing.status, missing.json()), (404, json!({"error": "no such pod"})));
    let dump = get(address, "/dump").json();
    assert_eq!(dump["workloads"], json!([{"name": "web"}]));
    assert_eq!(dump["version"]["version"], env!("CARGO_PKG_VERSION"));
    assert!(dump.get("echo").is_none());
    assert_eq!(get(address, "/").body.lines().filter(|path| *path == "/workloads").count(), 1);
}

#[test]
fn unknown_paths_and_other_methods_are_refused() {
    let (address, _running) = serving(windows());
    let unknown = get(address, "/nothing");
    assert_eq!(unknown.status, 404);
    assert!(unknown.body.contains("/metrics"), "it says what there is: {}", unknown.body);
    for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"] {
        let reply = ask(address, &format!("{method} /version"), "Content-Length: 0\r\n");
        assert_eq!(reply.status, 405, "{method}");
        assert!(reply.head.contains("allow: get, head"), "{}", reply.head);
    }
    let head = ask(address, "HEAD /version", "");
    assert_eq!((head.status, head.body.as_str()), (200, ""));
}

#[test]
fn server_ends_when_asked_to() {
    let (trigger, stop) = shutdown::channel();
    let server = serve(bind_anywhere(), windows(), stop).expect("starts");
    let address = server.address();
    assert_eq!(get(address, "/livez").status, 200);
    trigger.fire();
    server.join();
    assert!(TcpStream::connect(address).is_err(), "the port is free again");
}

#[test]
fn taken_address_is_named_in_the_error() {
    let taken = bind_anywhere();
    let listen = taken.local_addr().expect("bound");
    let error = bind(&Settings { listen }).expect_err("taken");
    assert!(error.to_string().contains(&listen.to_string()) && error.to_string().contains("--admin-listen"));
}

/// Plays both parts: the parent starts this very test again as a child that inherits the listener as descriptor 3.
#[test]
fn inherited_listener_is_served() {
    if std::env::var_os("LISTEN_FDS").is_some() {
        let listener = inherit().expect("a TCP listener").expect("one was announced");
        let (_trigger, stop) = shutdown::channel();
        let server = serve(listener, windows(), stop).expect("starts");
        // Lives until the parent closes its end.
        let _ = io::stderr().write_all(b"serving\n");
        let mut end = String::new();
        let _ = io::stdin().read_line(&mut end);
        drop(server);
        return;
    }
    let listener = bind_anywhere();
    let address = listener.local_addr().expect("bound");
    // The shell moves the listener from standard output, where Command can put it, to descriptor 3.
    let mut child = Command::new("sh")
        .args(["-c", "exec \"$0\" \"$@\" 3>&1 1>/dev/null"])
        .arg(std::env::current_exe().expect("this test"))
        .args(["--exact", "admin::tests::inherited_listener_is_served", "--nocapture"])
        .env("LISTEN_FDS", "1")
        .env_remove("LISTEN_PID")
        .stdin(Stdio::piped())
        .stdout(Stdio::from(std::os::fd::OwnedFd::from(listener)))
        .stderr(Stdio::piped())
        .spawn()
        .expect("sh is there");
    let mut stderr = BufReader::new(child.stderr.take().expect("piped"));
    let mut line = String::new();
    while !line.contains("serving") {
        line.clear();
        assert_ne!(stderr.read_line(&mut line).expect("readable"), 0, "the child ended without serving");
    }
    assert_eq!(get(address, "/livez").body, "ok\n");
    drop(child.stdin.take());
    assert!(child.wait().expect("ends").success());
}

fn workload(name: &str, ip: &str, port: u16) -> Workload {
    Workload {
        uid: WorkloadUid(format!("uid-{name}").into()),
        name: WorkloadName { namespace: "shop".into(), name: name.into() },
        owner: name.into(),
        node: "n1".into(),
        zone: None,
        addresses: vec![ip.parse().expect("an address")],
        service_account: name.into(),
        identity: SpiffeId::of_service_account(&"cluster.local".parse().expect("a domain"), "shop", name),
        labels: Arc::new([("app".to_owned(), name.to_owned())].into()),
        ports: vec![WorkloadPort { name: None, port }],
        enrolled: true,
        splice: None,
        forward_client_cert: false,
        skip_outbound_ports: [].into(),
        skip_inbound_ports: [].into(),
        probe_ports: std::collections::BTreeSet::new(),
        manifest_hash: None,
        failure_mode: FailureMode::default(),
        host_network: false,
        ready: true,
        terminating: false,
    }
}

/// `web` may call `orders` on 8080, `guest` may not; `plain` is outside the mesh; service `orders` is 80 -> 8080.
fn shop() -> (Snapshot, PolicySet) {
    let mut plain = workload("plain", "10.0.0.9", 80);
    plain.enrolled = false;
    let workloads = vec![
        workload("web", "10.0.0.1", 80),
        workload("guest", "10.0.0.2", 80),
        workload("orders", "10.0.0.3", 8080),
        plain,
    ];
    let endpoint = |ip: &str| Endpoint {
        address: format!("{ip}:8080").parse().expect("an address"),
        workload: Some(WorkloadUid("uid-orders".into())),
        node: Some("n1".into()),
        zone: None,
        state: EndpointState::Ready,
    };
    let service = Service {
        name: ServiceName { namespace: "shop".into(), name: "orders".into() },
        vips: vec!["10.96.0.1".parse().expect("an address")],
        ports: vec![ServicePort {
            name: None,
            port: 80,
            udp: false,
            app_protocol: None,
            endpoints: vec![endpoint("10.0.0.3")],
        }],
        traffic_distribution: TrafficDistribution::default(),
    };
    let allow = AuthorizationPolicy {
        name: PolicyName { namespace: "shop".into(), name: "only-web".into() },
        cluster_wide: false,
        selectors: vec![crate::model::Selector {
            match_labels: [("app".to_owned(), "orders".to_owned())].into(),
            expressions: vec![],
        }],
        action: Action::Allow,
        rules: vec![Rule {
            sources: Some(vec![Source::ServiceAccount { namespace: "shop".into(), name: "web".into() }]),
            ports: Some(vec![8080]),
            http: None,
        }],
        unusable: None,
    };
    let config = MeshConfig::default();
    let set = PolicySet::new(vec![Arc::new(allow)], DefaultInbound::Permissive, config.trust_domain.clone());
    (Snapshot::new(config, workloads, vec![service]), set)
}

#[test]
fn explain_answers_for_pods_services_and_addresses() {
    let (snapshot, policies) = shop();
    for (from, to, admitted, label) in [
        ("shop/web", "shop/orders:8080", true, "allowed"),
        // Service port 80 leads to container port 8080.
        ("shop/web", "shop/orders:80", true, "allowed"),
        ("shop/web", "svc/shop/orders:80", true, "allowed"),
        ("shop/web", "pod/shop/orders:80", false, "not_allowed"),
        ("shop/guest", "shop/orders:80", false, "not_allowed"),
        ("shop/plain", "shop/orders:80", false, "not_allowed"),
        ("192.0.2.1", "shop/orders:8080", false, "not_allowed"),
        ("10.0.0.1", "shop/orders:8080", true, "allowed"),
        ("192.0.2.1", "shop/web:80", true, "allowed"),
        ("shop/web", "shop/plain:80", true, "allowed"),
    ] {
        let question = Question {
            from: from.parse::<Client>().expect(from),
            to: to.parse::<Target>().expect(to),
            request: None,
        };
        let verdict = answer(&snapshot, &policies, &question).expect(to);
        assert_eq!((verdict.admitted, verdict.label), (admitted, label), "{from} -> {to}: {verdict:?}");
    }
}

#[test]
fn explain_refuses_what_it_cannot_answer() {
    let (snapshot, policies) = shop();
    for (query, expected) in [
        ("to=shop/orders:80", "the parameter from is missing"),
        ("from=web&to=shop/orders:80", "\"web\" is not a client"),
        ("from=shop/web&to=shop/orders", "is not a target"),
        ("from=shop/web&to=shop/orders&port=70000", "is not a target"),
        ("from=shop/web&to=orders:80", "is not a target"),
        ("from=shop/web&to=shop/orders:80&method=A%20B", "\"A B\" is not a method"),
        ("from=shop/web&to=shop/orders:80&header=x", "\"x\" is not a header"),
        ("from=shop/nobody&to=shop/orders:80", "no pod shop/nobody is known"),
        ("from=shop/web&to=shop/nobody:80", "no pod or service shop/nobody is known"),
        ("from=shop/web&to=svc/shop/orders&port=81", "service shop/orders has no TCP port 81; it has: 80"),
    ] {
        let refused = explain::window(&snapshot, &policies, &Query::parse(query)).expect_err(query);
        let (Refused::Malformed(text) | Refused::NotFound(text)) = refused;
        assert!(text.contains(expected), "{query}: {text}");
    }
}

#[test]
fn explain_window_names_the_deciding_rule() {
    let (snapshot, policies) = shop();
    let query = Query::parse("from=shop%2Fweb&to=shop%2Forders&port=80");
    let answer = explain::window(&snapshot, &policies, &query).expect("answerable");
    assert_eq!(answer["deciding"], json!({"policy": "shop/only-web", "rule": 0}));
    assert_eq!(answer["explanations"][0]["port"], 8080);
}

#[test]
fn views_show_the_mesh() {
    let (snapshot, policies) = shop();
    let workloads = views::workloads(&snapshot, |uid| &*uid.0 == "uid-web");
    let names: Vec<_> = workloads.as_array().expect("a list").iter().map(|one| &one["name"]).collect();
    assert_eq!(names, ["guest", "orders", "plain", "web"]);
    assert_eq!((&workloads[3]["captured"], &workloads[1]["captured"]), (&json!(true), &json!(false)));
    assert_eq!(workloads[3]["identity"], "spiffe://cluster.local/ns/shop/sa/web");
    let services = views::services(&snapshot);
    assert_eq!(services[0]["clusterIPs"], json!(["10.96.0.1"]));
    assert_eq!(services[0]["ports"][0]["endpoints"][0]["workload"], "shop/orders");
    let policies = views::policies(&policies);
    assert_eq!(policies["defaultInbound"], "Permissive");
    assert_eq!(policies["policies"][0]["selectors"], json!(["app=orders"]));
    assert_eq!(
        policies["policies"][0]["rules"],
        json!([{"sources": ["service account shop/web"], "ports": [8080]}])
    );
}

#[test]
fn escapes_that_are_none_stay_as_they_are() {
    for (text, expected) in [("a=%zz", "%zz"), ("a=%4", "%4"), ("a=%", "%"), ("a=%41%c3%a9", "Aé")] {
        assert_eq!(Query::parse(text).value("a"), Some(expected));
    }
}

#[test]
fn certificates_are_valid_expired_or_pending() {
    use std::time::{Duration, SystemTime};
    let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    let id = |name: &str| SpiffeId::of_service_account(&"td".parse().expect("a domain"), "shop", name);
    let info = |name: &str, until| crate::identity::CertificateInfo {
        id: id(name),
        serial: "0a".to_owned(),
        not_before: at(0),
        not_after: at(until),
        issuer: String::new(),
    };
    let users = ["a", "b", "c"].map(|name| (id(name), vec![format!("shop/{name}")])).into();
    let all = views::certificates(&[info("b", 99), info("a", 101)], &users, at(100));
    let states: Vec<&str> = all.iter().map(|one| one.state.as_str()).collect();
    assert_eq!(states, ["valid", "expired", "pending"]);
    assert_eq!(all[0].not_after.as_deref(), Some("1970-01-01T00:01:41.000000Z"));
    assert_eq!(all[2].pods, ["shop/c"]);
}
