//! Whole journeys of requests: application, source agent with its routes, tunnel, destination agent with its policies,
//! application, over loopback sockets.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::model::{
    Action, AuthorizationPolicy, BackendTarget, DefaultInbound, Filter, HeaderEdit, HeaderMatch, HttpMatch,
    MeshConfig, Mirror, PathEdit, PathMatch, PolicyName, Redirect, RequestMatch, Rewrite, Route,
    RouteBackend, RouteKind, RouteName, RouteRule, RouteTimeouts, Rule, ServiceName, StringMatch,
};
use crate::policy::PolicySet;
use crate::proxy::testing::{World, id};
use crate::route::{Attachment, RouteTable};

/// Answers with what it received; `/slow` takes a second, `/stream` sends trailers.
async fn answer(
    name: &'static str,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, hyper::Error> {
    if request.uri().path() == "/slow" {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let (head, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let host = head.uri.authority().map(|authority| authority.as_str().to_owned());
    let header = |name: &str| {
        let lines: Vec<_> = head.headers.get_all(name).iter().map(|value| value.to_str().unwrap()).collect();
        lines.join(",")
    };
    let target = head.uri.path_and_query().map(ToString::to_string).unwrap_or_default();
    let text = format!(
        "{name} {} {target} host={} body={} x={} xfcc={} version={:?}",
        head.method,
        host.unwrap_or_else(|| header("host")),
        body.len(),
        header("x-test"),
        header("x-forwarded-client-cert"),
        head.version,
    );
    Ok(Response::builder().header("x-pod", name).body(Full::new(Bytes::from(text))).unwrap())
}

/// An application in the pod at `host`, speaking both versions of HTTP.
async fn app(world: &World, host: u8, name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind((world.ip(host), 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let service = service_fn(move |request| answer(name, request));
                let mut preface = [0; 3];
                stream.peek(&mut preface).await.unwrap();
                let io = TokioIo::new(stream);
                let _ = if &preface == b"PRI" {
                    hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                        .serve_connection(io, service)
                        .await
                } else {
                    hyper::server::conn::http1::Builder::new().serve_connection(io, service).await
                };
            });
        }
    });
    address
}

struct Mesh {
    world: World,
    outbound: SocketAddr,
    vip: SocketAddr,
    v1: SocketAddr,
}

/// A client pod, two versions of a server in pods of their own, and a service in front of both.
async fn mesh() -> Mesh {
    let mut world = World::new();
    let outbound = world.add_pod("client", 1);
    world.add_pod("v1", 2);
    world.add_pod("v2", 3);
    let (v1, v2) = (app(&world, 2, "v1").await, app(&world, 3, "v2").await);
    let vip = |host| SocketAddr::new(world.ip(host), 80);
    let (web, one, two) = (vip(100), vip(101), vip(102));
    world.add_service("web", web.ip(), &[v1, v2]);
    world.add_service("v1", one.ip(), &[v1]);
    world.add_service("v2", two.ip(), &[v2]);
    Mesh { world, outbound, vip: web, v1 }
}

fn backend(service: &str) -> RouteBackend {
    let name = ServiceName { namespace: "default".into(), name: service.into() };
    RouteBackend { target: BackendTarget::Service { name, port: 80 }, weight: 1, filters: Vec::new() }
}

fn any() -> RequestMatch {
    RequestMatch { path: PathMatch::Prefix("".into()), method: None, headers: Vec::new(), query: Vec::new() }
}

fn rule(matches: RequestMatch, filters: Vec<Filter>, backends: Vec<RouteBackend>) -> RouteRule {
    let timeouts = RouteTimeouts::default();
    RouteRule { index: 0, name: None, matches: vec![matches], filters, backends, timeouts }
}

impl Mesh {
    /// Attaches one HTTPRoute with these rules to the service.
    fn route(&self, rules: Vec<RouteRule>) {
        let name = RouteName { kind: RouteKind::Http, namespace: "default".into(), name: "web".into() };
        let rules = rules.into_iter().map(Arc::new).collect();
        let route = Arc::new(Route { name, rank: 0, hostnames: Vec::new(), rules });
        let service = ServiceName { namespace: "default".into(), name: "web".into() };
        let attachment = Attachment { service, port: 80, consumer: None, routes: vec![route] };
        self.world.routes.publish(RouteTable::new(vec![attachment]));
    }

    fn policy(&self, action: Action, rule: Rule) {
        let policy = AuthorizationPolicy {
            name: PolicyName { namespace: "default".into(), name: "requests".into() },
            cluster_wide: false,
            selectors: Vec::new(),
            action,
            rules: vec![rule],
            unusable: None,
        };
        let trust_domain = MeshConfig::default().trust_domain;
        self.world.policies.publish(PolicySet::new(
            vec![Arc::new(policy)],
            DefaultInbound::Permissive,
            trust_domain,
        ));
    }

    async fn connect(&self, to: SocketAddr) -> TcpStream {
        self.world.dial(self.outbound, to).await
    }

    async fn h1(&self, to: SocketAddr) -> http1::SendRequest<Full<Bytes>> {
        let (sender, connection) = http1::handshake(TokioIo::new(self.connect(to).await)).await.unwrap();
        tokio::spawn(connection.with_upgrades());
        sender
    }

    async fn get(&self, path: &str) -> (StatusCode, String) {
        let mut sender = self.h1(self.vip).await;
        let request = Request::get(path).header("host", "web").body(Full::default()).unwrap();
        read(sender.send_request(request).await.unwrap()).await
    }
}

async fn read(response: Response<Incoming>) -> (StatusCode, String) {
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

#[tokio::test]
async fn requests_of_one_connection_go_where_their_rules_say() {
    let mesh = mesh().await;
    let exact = RequestMatch { path: PathMatch::Exact("/two".into()), ..any() };
    mesh.route(vec![rule(any(), vec![], vec![backend("v1")]), rule(exact, vec![], vec![backend("v2")])]);
    let mut sender = mesh.h1(mesh.vip).await;
    for (path, expected) in
        [("/one?a=b", "v1 GET /one?a=b host=web"), ("/two", "v2 GET /two host=web")].repeat(3)
    {
        let request = Request::get(path).header("host", "web").body(Full::default()).unwrap();
        sender.ready().await.unwrap();
        let (status, text) = read(sender.send_request(request).await.unwrap()).await;
        assert_eq!(status, 200);
        assert!(text.starts_with(expected), "{text}");
    }
    drop(sender);
    let records = mesh.world.records(7).await;
    let requests: Vec<_> = records.iter().filter(|record| record.get("http").is_some()).collect();
    assert_eq!(requests.len(), 6, "{records:?}");
    for request in requests {
        assert_eq!(request["http"]["status"], 200);
        assert_eq!(request["http"]["route"], "HTTPRoute/default/web");
        assert_eq!(request["path"], "tunnel");
        assert_eq!(request["destination"]["identity"], request_identity(request).as_str());
    }
}

fn request_identity(record: &serde_json::Value) -> crate::model::SpiffeId {
    id(record["destination"]["workload"].as_str().unwrap())
}

#[tokio::test]
async fn h2_requests_run_beside_each_other_and_share_a_server_connection() {
    let mesh = mesh().await;
    mesh.route(vec![rule(any(), vec![], vec![backend("v1")])]);
    let stream = mesh.connect(mesh.vip).await;
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let mut answers = tokio::task::JoinSet::new();
    for number in 0..20 {
        let mut sender = sender.clone();
        answers.spawn(async move {
            let body = Full::new(Bytes::from(vec![b'x'; number * 1000]));
            let request = Request::post(format!("http://web/{number}")).body(body).unwrap();
            let (status, text) = read(sender.send_request(request).await.unwrap()).await;
            assert_eq!(status, 200);
            assert_eq!(
                text,
                format!("v1 POST /{number} host=web body={} x= xfcc= version=HTTP/2.0", number * 1000)
            );
        });
    }
    while let Some(answer) = answers.join_next().await {
        answer.unwrap();
    }
    assert_eq!(mesh.world.metric("weft_tunnels_open"), Some(2.0), "both ends of one tunnel");
}

#[tokio::test]
async fn filters_change_requests_and_responses() {
    let mesh = mesh().await;
    let edit = |name: &'static str, value: &'static str| HeaderEdit {
        set: vec![(HeaderName::from_static(name), HeaderValue::from_static(value))],
        ..HeaderEdit::default()
    };
    let filters = vec![
        Filter::RequestHeaders(edit("x-test", "set")),
        Filter::ResponseHeaders(edit("x-answer", "set")),
        Filter::Rewrite(Rewrite {
            hostname: Some("other".into()),
            path: Some(PathEdit::Prefix("/new".into())),
        }),
    ];
    let prefix = RequestMatch { path: PathMatch::Prefix("/old".into()), ..any() };
    mesh.route(vec![rule(prefix, filters, vec![backend("v1")])]);
    let mut sender = mesh.h1(mesh.vip).await;
    let request = Request::get("/old/x?q").header("host", "web").body(Full::default()).unwrap();
    let response = sender.send_request(request).await.unwrap();
    assert_eq!(response.headers()["x-answer"], "set");
    let (_, text) = read(response).await;
    assert!(text.starts_with("v1 GET /new/x?q host=other body=0 x=set"), "{text}");
}

#[tokio::test]
async fn the_agent_answers_itself_where_nothing_else_can() {
    let mesh = mesh().await;
    let prefix = |path: &str| RequestMatch { path: PathMatch::Prefix(path.into()), ..any() };
    let redirect = Redirect {
        scheme: None,
        hostname: Some("elsewhere.example".into()),
        path: None,
        port: None,
        status: StatusCode::FOUND,
    };
    let invalid = RouteBackend {
        target: BackendTarget::Invalid { reason: "gone".into() },
        weight: 1,
        filters: Vec::new(),
    };
    mesh.world.routes.publish(RouteTable::default());
    let slow = RouteRule {
        timeouts: RouteTimeouts { request: Some(Duration::from_millis(100)), backend_request: None },
        ..rule(prefix("/slow"), vec![], vec![backend("v1")])
    };
    mesh.route(vec![
        rule(prefix("/redirect"), vec![Filter::Redirect(redirect)], vec![]),
        rule(prefix("/invalid"), vec![], vec![invalid]),
        rule(prefix("/none"), vec![], vec![]),
        slow,
    ]);
    assert_eq!(mesh.get("/elsewhere").await.0, 404);
    assert_eq!(mesh.get("/invalid").await.0, 500);
    assert_eq!(mesh.get("/none").await.0, 500);
    assert_eq!(mesh.get("/slow").await.0, 504);
    let mut sender = mesh.h1(mesh.vip).await;
    let request = Request::get("/redirect/x?q").header("host", "web").body(Full::default()).unwrap();
    let response = sender.send_request(request).await.unwrap();
    assert_eq!(response.status(), 302);
    assert_eq!(response.headers()["location"], "http://elsewhere.example/redirect/x?q");
}

#[tokio::test]
async fn what_is_not_http_is_refused_where_routes_are_attached() {
    let mesh = mesh().await;
    mesh.route(vec![rule(any(), vec![], vec![backend("v1")])]);
    let mut stream = mesh.connect(mesh.vip).await;
    stream.write_all(b"EHLO example\r\n").await.unwrap();
    let read =
        tokio::time::timeout(Duration::from_secs(5), stream.read(&mut [0; 16])).await.expect("in time");
    assert_eq!(read.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!(mesh.world.records(1).await[0]["ending"], "not_http");
}

#[tokio::test]
async fn doubtful_framing_is_answered_with_400_and_counted() {
    let mesh = mesh().await;
    mesh.route(vec![rule(any(), vec![], vec![backend("v1")])]);
    for (bytes, label) in [
        (
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "length_and_encoding",
        ),
        ("GET / HTTP/1.1\nHost: a\r\n\r\n", "bare_lf"),
        ("GET / HTTP/1.1\r\n\r\n", "host"),
    ] {
        let mut stream = mesh.connect(mesh.vip).await;
        stream.write_all(bytes.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let reading = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut answer));
        reading.await.expect("the connection is closed").unwrap();
        let answer = String::from_utf8_lossy(&answer).into_owned();
        assert!(answer.starts_with("HTTP/1.1 400"), "{label}: {answer}");
        let line = format!("weft_http_refused_total{{reason=\"{label}\"}}");
        counted(&mesh.world, &line).await;
    }
}

#[tokio::test]
async fn policies_judge_each_request_at_the_destination() {
    let mesh = mesh().await;
    let get = HttpMatch { methods: Some(vec![Method::GET]), ..HttpMatch::default() };
    mesh.policy(Action::Allow, Rule { http: Some(vec![get]), ..Rule::default() });
    // No route: the source agent moves bytes, the destination's reads them.
    let mut sender = mesh.h1(mesh.v1).await;
    for (method, expected) in [(Method::GET, 200), (Method::POST, 403), (Method::GET, 200)] {
        let request =
            Request::builder().method(method).uri("/x").header("host", "v1").body(Full::default()).unwrap();
        sender.ready().await.unwrap();
        let (status, text) = read(sender.send_request(request).await.unwrap()).await;
        assert_eq!(status, expected);
        assert!(!text.contains("requests"), "the policy is not named: {text}");
    }
    drop(sender);
    let records = mesh.world.records(5).await;
    let denied =
        records.iter().find(|record| record["http"]["status"] == 403).expect("a record of the refusal");
    assert_eq!(denied["reason"], "default/requests");
    assert_eq!(denied["reporter"], "destination");
    let mut stream = mesh.connect(mesh.v1).await;
    stream.write_all(b"EHLO example\r\n").await.unwrap();
    let read =
        tokio::time::timeout(Duration::from_secs(5), stream.read(&mut [0; 16])).await.expect("in time");
    assert_eq!(read.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset, "bytes are no request");
}

#[tokio::test]
async fn what_told_the_protocol_on_a_tunnel_is_framed_like_all_that_follows() {
    let mesh = mesh().await;
    let post = HttpMatch { methods: Some(vec![Method::POST]), ..HttpMatch::default() };
    mesh.policy(Action::Allow, Rule { http: Some(vec![post]), ..Rule::default() });
    // The body comes later than the head that told the protocol, and looks like no head.
    let mut stream = mesh.connect(mesh.v1).await;
    stream.write_all(b"POST /late HTTP/1.1\r\nHost: v1\r\nContent-Length: 6\r\n\r\nab").await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    stream.write_all(b"\nc\nd").await.unwrap();
    let mut answer = [0; 1024];
    let read = tokio::time::timeout(Duration::from_secs(5), stream.read(&mut answer)).await.unwrap().unwrap();
    let answer = String::from_utf8_lossy(&answer[..read]).into_owned();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("body=6"), "{answer}");
    assert_eq!(mesh.world.metric("weft_http_refused_total"), None, "nothing of it was taken for a head");
    // And a head in doubt is refused though it is the first.
    let mut stream = mesh.connect(mesh.v1).await;
    stream.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nX: a\nY: b\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let reading = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut answer));
    reading.await.expect("the connection is closed").unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 400"), "{}", answer.escape_ascii());
}

#[tokio::test]
async fn a_tunnel_that_carried_http_carries_the_next_connection() {
    let mesh = mesh().await;
    let get = HttpMatch { methods: Some(vec![Method::GET]), ..HttpMatch::default() };
    mesh.policy(Action::Allow, Rule { http: Some(vec![get]), ..Rule::default() });
    for _ in 0..3 {
        let mut sender = mesh.h1(mesh.v1).await;
        let request = Request::get("/x")
            .header("host", "v1")
            .header("connection", "close")
            .body(Full::default())
            .unwrap();
        assert_eq!(read(sender.send_request(request).await.unwrap()).await.0, 200);
        drop(sender);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let handshakes = mesh.world.metric("weft_tunnel_handshakes_total{role=\"client\",result=\"success\"}");
    assert_eq!(handshakes, Some(1.0));
}

#[tokio::test]
async fn upgraded_connections_carry_bytes_both_ways() {
    let mesh = mesh().await;
    let listener = TcpListener::bind((mesh.world.ip(2), 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut world = mesh.world;
    let vip = SocketAddr::new(world.ip(103), 80);
    world.add_service("socket", vip.ip(), &[address]);
    let mesh = Mesh { world, ..mesh };
    let name = RouteName { kind: RouteKind::Http, namespace: "default".into(), name: "socket".into() };
    let route = Route {
        name,
        rank: 0,
        hostnames: Vec::new(),
        rules: vec![Arc::new(rule(any(), vec![], vec![backend("socket")]))],
    };
    let service = ServiceName { namespace: "default".into(), name: "socket".into() };
    let attachment = Attachment { service, port: 80, consumer: None, routes: vec![Arc::new(route)] };
    mesh.world.routes.publish(RouteTable::new(vec![attachment]));
    let mut client = mesh.connect(vip).await;
    client
        .write_all(b"GET /chat HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: thing\r\n\r\n")
        .await
        .unwrap();
    let (mut server, _) = listener.accept().await.unwrap();
    let mut head = [0; 1024];
    let read = server.read(&mut head).await.unwrap();
    let text = String::from_utf8_lossy(&head[..read]).to_ascii_lowercase();
    assert!(text.contains("upgrade: thing") && text.contains("connection: upgrade"), "{text}");
    server
        .write_all(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: thing\r\n\r\nfirst")
        .await
        .unwrap();
    let mut heard = Vec::new();
    while !heard.ends_with(b"first") {
        let mut buffer = [0; 256];
        let read =
            tokio::time::timeout(Duration::from_secs(5), client.read(&mut buffer)).await.unwrap().unwrap();
        assert_ne!(read, 0, "{}", heard.escape_ascii());
        heard.extend_from_slice(&buffer[..read]);
    }
    assert!(heard.starts_with(b"HTTP/1.1 101"), "{}", heard.escape_ascii());
    client.write_all(b"back").await.unwrap();
    let mut back = [0; 4];
    server.read_exact(&mut back).await.unwrap();
    assert_eq!(&back, b"back");
}

#[tokio::test]
async fn mirrored_requests_reach_both_and_only_one_answers() {
    let mesh = mesh().await;
    let BackendTarget::Service { name, port } = backend("v2").target else { unreachable!("made above") };
    let mirror = Filter::Mirror(Mirror { backend: BackendTarget::Service { name, port }, share: 1.0 });
    mesh.route(vec![rule(any(), vec![mirror], vec![backend("v1")])]);
    let mut sender = mesh.h1(mesh.vip).await;
    let request =
        Request::post("/m").header("host", "web").body(Full::new(Bytes::from_static(b"hello"))).unwrap();
    let (_, text) = read(sender.send_request(request).await.unwrap()).await;
    assert!(text.starts_with("v1 POST /m host=web body=5"), "{text}");
    counted(&mesh.world, "weft_http_mirrored_total{result=\"answered\"}").await;
}

/// Waits until the metric stands at 1: what is counted is counted after the answer.
async fn counted(world: &World, line: &str) {
    for _ in 0..200 {
        if world.metric(line) == Some(1.0) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{line} is {:?}", world.metric(line));
}

#[tokio::test]
async fn a_header_match_and_http_10_work_together() {
    let mesh = mesh().await;
    let version =
        HeaderMatch { name: HeaderName::from_static("x-version"), value: StringMatch::Exact("two".into()) };
    let two = RequestMatch { headers: vec![version], ..any() };
    mesh.route(vec![rule(any(), vec![], vec![backend("v1")]), rule(two, vec![], vec![backend("v2")])]);
    let mut stream = mesh.connect(mesh.vip).await;
    stream
        .write_all(b"GET /old HTTP/1.0\r\nX-Version: two\r\nX-Forwarded-Client-Cert: me\r\n\r\n")
        .await
        .unwrap();
    let mut answer = String::new();
    tokio::time::timeout(Duration::from_secs(5), stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert!(answer.contains("v2 GET /old") && answer.contains("xfcc= "), "{answer}");
}
