//! Request-level authorization: the same answer on every path and for both versions of HTTP, whatever the path is written
//! like, and from the moment at which a policy begins to speak about requests.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use mesh_tests::http::routes::route;
use mesh_tests::http::{Answer, raw};
use mesh_tests::wire::Serve;
use mesh_tests::world::policy;
use mesh_tests::{Ask, Backend, Lab, Web, World, eventually};
use serde_json::Value;

const CLIENTS: [&str; 3] = ["shop/web", "shop/guest", "outside/plain"];
const SERVERS: [&str; 2] = ["shop/near", "shop/far"];
const FILE: &str = "policy.yaml";
const SHORT: Duration = Duration::from_millis(700);

/// Two accounts of the mesh and a pod outside it as clients; a server on their node and one on the other.
fn world() -> World {
    World::new()
        .object("apiVersion: v1\nkind: Namespace\nmetadata:\n  name: shop\n  labels: {weft.dev/mesh: enabled, weft.dev/splice: enabled}\n")
        .unmeshed("outside")
        .pod("shop/web", "node-1")
        .pod("shop/guest", "node-1")
        .pod("outside/plain", "node-1")
        .pod_like("shop/near", "node-1", "server", "")
        .pod_like("shop/far", "node-2", "server", "")
        .pod_like("shop/told", "node-2", "told", "annotations: {weft.dev/forward-client-cert: enabled}")
        .pod_like("shop/told-here", "node-1", "told", "annotations: {weft.dev/forward-client-cert: enabled}")
        .service("shop/server", "server", 80, 8080, "")
        .file(FILE, "")
}

/// A policy `shop/case` for the servers, about requests.
fn about_requests(action: &str, rules: &[&str]) -> String {
    policy("shop/case", "server", action, rules)
        .replace("  action:", "  enforcementLevel: Application\n  action:")
}

struct Scene {
    clients: Vec<Web>,
    servers: Vec<Backend>,
    lab: Lab,
}

impl Scene {
    #[track_caller]
    fn up() -> Self {
        let lab = Lab::up(&world());
        let servers = SERVERS.iter().map(|pod| Backend::start(&lab, pod, &[8080])).collect();
        let clients = CLIENTS.iter().map(|pod| Web::start(&lab, pod)).collect();
        Self { clients, servers, lab }
    }

    fn to(&self, server: &str) -> SocketAddr {
        self.lab.v4(server, 8080)
    }

    /// Each client with each server.
    fn pairs(&self) -> Vec<(&'static str, &Web, &'static str, SocketAddr)> {
        let clients = CLIENTS.into_iter().zip(&self.clients);
        let of_client = |(name, web)| SERVERS.map(|server| (name, web, server, self.to(server)));
        clients.flat_map(of_client).collect()
    }
}

/// A request, and the clients whom it is granted, in the order of [`CLIENTS`].
struct Case(Ask, [bool; 3]);

fn tables() -> Vec<(&'static str, Vec<String>, Vec<Case>)> {
    let get = Ask::get;
    let post = |target: &str| get(target).body(b"x".to_vec());
    let web_only = "sources: [{type: ServiceAccount, serviceAccount: {name: web}}]";
    let all = [true; 3];
    let none = [false; 3];
    let web = [true, false, false];
    let admin =
        format!("{{{web_only}, http: [{{methods: [POST], paths: [{{type: PathPrefix, value: /admin}}]}}]}}");
    let verified = "{sources: [{type: AnyAuthenticated}], http: [{headers: [{name: x-tier, type: Exact, value: gold}]}]}";
    vec![
        (
            "ALLOW",
            vec![
                "{http: [{methods: [GET, HEAD], paths: [{type: PathPrefix, value: /public}]}]}".to_owned(),
                admin,
            ],
            vec![
                Case(get("/public"), all),
                Case(get("/public/x?y"), all),
                Case(get("/public").method("HEAD"), all),
                Case(get("/publicity"), none),
                Case(get("/"), none),
                Case(get("/admin"), none),
                Case(post("/public"), none),
                Case(post("/admin/x"), web),
                Case(post("/administration"), none),
            ],
        ),
        (
            "DENY",
            vec!["{http: [{methods: [DELETE]}, {paths: [{type: Exact, value: /secret}]}]}".to_owned()],
            vec![
                Case(get("/"), all),
                Case(get("/").method("DELETE"), none),
                Case(get("/secret"), none),
                Case(get("/secret/x"), all),
            ],
        ),
        (
            "ALLOW",
            vec![
                verified.to_owned(),
                "{http: [{paths: [{type: Template, value: \"/users/{id}\"}]}]}".to_owned(),
            ],
            vec![
                Case(get("/any").header("x-tier", "gold"), [true, true, false]),
                Case(get("/any").header("x-tier", "golden"), none),
                Case(get("/any"), none),
                Case(get("/users/5"), all),
                Case(get("/users/5/x"), none),
                Case(get("/users/"), none),
            ],
        ),
    ]
}

#[test]
fn every_request_is_judged_alike_on_every_path_and_by_both_versions() {
    let scene = Scene::up();
    for (action, rules, cases) in tables() {
        let rules: Vec<&str> = rules.iter().map(String::as_str).collect();
        let yaml = about_requests(action, &rules);
        scene.lab.apply(FILE, &yaml);
        // The first case that is refused to somebody tells when the policy is in force.
        let refused = cases.iter().find(|case| case.1.contains(&false)).expect("a policy refuses something");
        for (client, web, server, to) in scene.pairs() {
            let place = CLIENTS.iter().position(|name| *name == client).unwrap();
            let probe = if refused.1[place] { continue } else { refused.0.clone() };
            eventually(&format!("{client} to {server}: the policy is in force\n{yaml}"), || {
                web.try_ask(to, probe.clone()).ok().filter(|answer| answer.status == 403)
            });
        }
        scene.servers.iter().for_each(Backend::forget);
        let mut faults = Vec::new();
        let mut granted = 0;
        for (client, web, server, to) in scene.pairs() {
            let place = CLIENTS.iter().position(|name| *name == client).unwrap();
            for Case(ask, grants) in &cases {
                let expected = if grants[place] { 200 } else { 403 };
                granted += 2 * usize::from(grants[place]);
                let http1 = web.try_ask(to, ask.clone());
                let http2 = web.http2(to).and_then(|mut session| session.try_ask(ask.clone()));
                for (version, answer) in [("HTTP/1.1", http1), ("HTTP/2", http2)] {
                    match answer {
                        Ok(answer) if answer.status == expected => {
                            if expected == 403 && String::from_utf8_lossy(&answer.body).contains("case") {
                                faults.push(format!(
                                    "{client} {ask:?}: the answer names the policy: {answer:?}"
                                ));
                            }
                        }
                        other => faults.push(format!(
                            "{client} to {server} {version} {ask:?}: {other:?}, not {expected}"
                        )),
                    }
                }
            }
        }
        assert!(faults.is_empty(), "{yaml}\n{}\n{}", faults.len(), faults.join("\n"));
        let reached = || scene.servers.iter().map(Backend::count).sum::<usize>();
        eventually(&format!("{yaml}: the servers tell of {granted}"), || {
            (reached() >= granted).then_some(())
        });
        assert_eq!(reached(), granted, "{yaml}: what is refused reaches no server");
        for node in ["node-1", "node-2"] {
            let refusal =
                scene.lab.record(node, "a refused request", |record| record["http"]["status"] == 403);
            let reason = refusal["reason"].as_str().unwrap_or_default();
            assert!(["shop/case", "not_allowed"].contains(&reason), "{refusal}");
        }
    }
    scene.lab.metric_reaches("node-2", "weft_http_requests_denied_total", &[], 1.0);
    scene.lab.down();
}

#[test]
fn a_refused_grpc_call_ends_with_permission_denied() {
    let scene = Scene::up();
    let rule = "{http: [{grpcMethods: [{service: grpc.testing.TestService, method: EmptyCall}]}]}";
    scene.lab.apply(FILE, &about_requests("ALLOW", &[rule]));
    for (client, web, server, to) in scene.pairs() {
        let call = |method: &str| -> Option<(u16, String)> {
            let ask = Ask::get(&format!("/grpc.testing.TestService/{method}"));
            let ask =
                ask.body(vec![0; 5]).header("content-type", "application/grpc").header("te", "trailers");
            let answer = web.http2(to).and_then(|mut session| session.try_ask(ask)).ok()?;
            let headers = answer.trailers.as_ref().unwrap_or(&answer.headers);
            Some((answer.status, headers.get("grpc-status")?.to_str().ok()?.to_owned()))
        };
        eventually(&format!("{client} to {server}: UnaryCall is refused"), || {
            (call("UnaryCall")? == (200, "7".to_owned())).then_some(())
        });
        assert_eq!(call("EmptyCall"), Some((200, "0".to_owned())), "{client} to {server}");
    }
    scene.lab.down();
}

/// What the most lenient of servers would take a path for: decoded twice, backslashes as slashes, parameters left out,
/// dots resolved, empty segments dropped.
fn lenient(path: &str) -> String {
    let decode = |text: &str| {
        let (bytes, mut out, mut at) = (text.as_bytes(), Vec::new(), 0);
        while at < bytes.len() {
            let hex = bytes.get(at + 1..at + 3).and_then(|hex| std::str::from_utf8(hex).ok());
            match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
                Some(byte) if bytes[at] == b'%' => {
                    out.push(byte);
                    at += 3;
                }
                _ => {
                    out.push(bytes[at]);
                    at += 1;
                }
            }
        }
        String::from_utf8_lossy(&out).into_owned()
    };
    let decoded = decode(&decode(path)).replace('\\', "/");
    let mut segments: Vec<&str> = Vec::new();
    for segment in decoded.split('/').map(|segment| segment.split(';').next().unwrap_or_default()) {
        match segment {
            "" | "." => {}
            ".." => drop(segments.pop()),
            _ => segments.push(segment),
        }
    }
    format!("/{}", segments.join("/"))
}

#[test]
fn no_way_of_writing_a_path_leads_around_a_policy() {
    let scene = Scene::up();
    let targets = [
        "/admin",
        "/admin/",
        "/admin/x",
        "//admin",
        "///admin//x",
        "/./admin",
        "/x/../admin",
        "/x/y/../../admin",
        "/%61dmin",
        "/%61%64%6d%69%6e",
        "/admin%2fx",
        "/admin%2Fx",
        "/x%2f..%2fadmin",
        "/%2e/admin",
        "/%2e%2e/admin",
        "/x/%2e%2e/admin",
        "/x/%2E./admin",
        "/public/..%2fadmin",
        "/public/%2e%2e/admin",
        "/public/%2e%2e%2fadmin",
        "/public/..;/admin",
        "/public;/../admin",
        "/public/..;x=y/admin",
        "/admin;x=y",
        "/admin;/x",
        "/public/..\\admin",
        "/public\\..\\admin",
        "/public/%5c../admin",
        "/public%5c..%5cadmin",
        "/%2561dmin",
        "/public/%252e%252e/admin",
        "/public/%252e%252e%252fadmin",
        "/public/../admin?x",
        "/public/../../admin",
        "/public/./../admin",
        "/public//../admin",
        "/public/x/..//../admin",
        "/public/%00/../../admin",
        "/admin%00",
        "/admin%20",
        "/admin%09",
        "/admin.",
        "/admin%2e",
        "/public/..%c0%afadmin",
        "/public/..%ef%bc%8fadmin",
        "/public/%e0%80%af../admin",
        "http://other.example/admin",
        "http://other.example//admin",
        "http://other.example/public/../admin",
        "/public/..",
        "/..",
        "/public/.%2e",
        "/public/.../admin",
        "/public/%",
        "/public/%2",
        "/public/%zz/../admin",
        "/public/x?/../admin",
        "/public/x%3f/../../admin",
        "/public/x%23/../../admin",
    ];
    let policies = [
        about_requests("DENY", &["{http: [{paths: [{type: PathPrefix, value: /admin}]}]}"]),
        about_requests("ALLOW", &["{http: [{paths: [{type: PathPrefix, value: /public}]}]}"]),
    ];
    let (mut granted, mut refused) = (0, 0);
    for yaml in &policies {
        let is_denial = yaml.contains("DENY");
        scene.lab.apply(FILE, yaml);
        for (server, to) in SERVERS.map(|server| (server, scene.to(server))) {
            let web = &scene.clients[0];
            eventually("the policy is in force", || {
                (web.try_ask(to, Ask::get("/admin")).ok()?.status == 403).then_some(())
            });
            for target in targets {
                let mut stream = web.dial(to).unwrap();
                let request = format!("GET {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
                let heard = raw::exchange(&mut stream, request.as_bytes(), 3 * SHORT).unwrap();
                let answers = heard.answers();
                assert_eq!(answers.len(), 1, "{server} {target}: {}", heard.text());
                match answers[0].status {
                    200 => {
                        granted += 1;
                        let seen: Value = serde_json::from_slice(&answers[0].body).unwrap();
                        let taken_for = lenient(seen["path"].as_str().unwrap());
                        let under = |prefix: &str| {
                            taken_for == prefix || taken_for.starts_with(&format!("{prefix}/"))
                        };
                        let may = if is_denial { !under("/admin") } else { under("/public") };
                        assert!(
                            may,
                            "{server} {target}: a server may take {} for {taken_for}",
                            seen["target"]
                        );
                    }
                    400 | 403 => refused += 1,
                    other => panic!("{server} {target}: {other}"),
                }
            }
        }
    }
    assert!(granted > 10 && refused > 80, "granted {granted}, refused {refused}");
    scene.lab.down();
}

#[test]
fn an_audit_of_requests_refuses_nothing_and_is_told() {
    let scene = Scene::up();
    scene
        .lab
        .apply(FILE, &about_requests("AUDIT", &["{http: [{paths: [{type: PathPrefix, value: /audited}]}]}"]));
    for (client, web, server, to) in scene.pairs() {
        for target in ["/audited/x", "/other"] {
            let answer = web.ask(to, Ask::get(target));
            assert_eq!(answer.status, 200, "{client} to {server} {target}");
        }
    }
    for node in ["node-1", "node-2"] {
        eventually(&format!("{node} tells of the audit"), || {
            scene.clients[0].try_ask(scene.to(SERVERS[0]), Ask::get("/audited")).ok()?;
            scene.clients[0].try_ask(scene.to(SERVERS[1]), Ask::get("/audited")).ok()?;
            let log = std::fs::read_to_string(&scene.lab.agent(node).log).unwrap();
            (log.contains("shop/case") && log.to_lowercase().contains("audit")).then_some(())
        });
    }
    scene.lab.down();
}

/// A connection on which a request was answered before any policy was there.
fn opened(web: &Web, to: SocketAddr) -> std::net::TcpStream {
    let mut stream = web.dial(to).unwrap();
    stream.write_all(b"GET /admin HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    assert_eq!(raw::read_answer(&mut stream, false).unwrap().status, 200);
    stream
}

#[test]
fn a_rule_about_requests_holds_at_once_when_it_comes_and_is_gone_when_it_goes() {
    let scene = Scene::up();
    let allow = about_requests("ALLOW", &["{http: [{paths: [{type: PathPrefix, value: /public}]}]}"]);
    let deny = about_requests("DENY", &["{http: [{paths: [{type: PathPrefix, value: /admin}]}]}"]);
    for yaml in [&allow, &deny] {
        let mut open: Vec<_> = scene
            .pairs()
            .into_iter()
            .map(|(client, web, server, to)| (client, server, opened(web, to)))
            .collect();
        // While the policy comes: once a request was refused, none like it is granted on any connection.
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let watching: Vec<_> = scene
                .pairs()
                .into_iter()
                .map(|(client, web, server, to)| {
                    let stop = &stop;
                    scope.spawn(move || {
                        let mut statuses = Vec::new();
                        while !stop.load(Ordering::Relaxed) {
                            let status =
                                web.try_ask(to, Ask::get("/admin")).map_or(0, |answer| answer.status);
                            statuses.push(status);
                            thread::sleep(Duration::from_millis(5));
                        }
                        (client, server, statuses)
                    })
                })
                .collect();
            thread::sleep(SHORT);
            scene.lab.apply(FILE, yaml);
            thread::sleep(2 * SHORT);
            stop.store(true, Ordering::Relaxed);
            for watcher in watching {
                let (client, server, statuses) = watcher.join().unwrap();
                let first = statuses.iter().position(|status| *status == 403);
                let first =
                    first.unwrap_or_else(|| panic!("{client} to {server} is never refused: {statuses:?}"));
                assert!(
                    statuses[..first].iter().all(|status| *status == 200 || *status == 0),
                    "{client} to {server}: {statuses:?}"
                );
                assert!(
                    statuses[first..].iter().all(|status| *status == 403),
                    "{client} to {server}: {statuses:?}"
                );
                assert!(first > 0, "{client} to {server} was granted before");
            }
        });
        // What was open as bytes may be anything: it is closed.
        let mut alive = Vec::new();
        for (client, server, stream) in &mut open {
            stream.set_read_timeout(Some(SHORT)).unwrap();
            let is_alive = match stream.read(&mut [0u8; 1]) {
                Ok(n) => n > 0,
                Err(error) => error.kind() == std::io::ErrorKind::WouldBlock,
            };
            if is_alive {
                stream.write_all(b"GET /admin HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
                let status = raw::read_answer(stream, false).map(|answer| answer.status);
                alive.push(format!("{client} to {server}, which answers /admin with {status:?}"));
            }
        }
        assert!(alive.is_empty(), "connections from before the policy live on: {alive:#?}\n{yaml}");
        // And away with it: bytes are bytes again, from either side.
        scene.lab.apply(FILE, "");
        for (client, web, server, to) in scene.pairs() {
            eventually(&format!("{client} may do anything at {server} again"), || {
                (web.try_ask(to, Ask::get("/admin")).ok()?.status == 200).then_some(())
            });
        }
    }
    let near = scene.lab.probe("shop/near");
    let _greeting = near.serve(9090, Serve::Greet);
    let web = scene.lab.probe("shop/web");
    let conn = web.connect(scene.lab.v4("shop/near", 9090)).unwrap();
    assert!(conn.receive().unwrap().contains("\"pod\""), "a server may speak first again");
    scene.lab.down();
}

#[test]
fn requests_on_an_open_connection_are_judged_by_the_policy_of_their_moment() {
    let scene = Scene::up();
    let rule = |path: &str| {
        about_requests("DENY", &[&format!("{{http: [{{paths: [{{type: PathPrefix, value: {path}}}]}}]}}")])
    };
    scene.lab.apply(FILE, &rule("/one"));
    for (client, web, server, to) in scene.pairs() {
        eventually("the policy is in force", || {
            (web.try_ask(to, Ask::get("/one")).ok()?.status == 403).then_some(())
        });
        let mut http1 = web.http1(to).unwrap();
        let mut http2 = web.http2(to).unwrap();
        for session in [&mut http1, &mut http2] {
            assert_eq!(session.ask(Ask::get("/two")).status, 200, "{client} to {server}");
            assert_eq!(session.ask(Ask::get("/one")).status, 403, "{client} to {server}");
            assert_eq!(
                session.ask(Ask::get("/two")).status,
                200,
                "{client} to {server}: the refused one ended nothing"
            );
        }
        scene.lab.apply(FILE, &rule("/two"));
        for session in [&mut http1, &mut http2] {
            eventually(&format!("{client} to {server}: the new policy is in force"), || {
                (session.ask(Ask::get("/two")).status == 403).then_some(())
            });
            assert_eq!(session.ask(Ask::get("/one")).status, 200, "{client} to {server}");
        }
        scene.lab.apply(FILE, &rule("/one"));
    }
    scene.lab.down();
}

#[test]
fn a_rewritten_path_is_judged_as_the_server_receives_it() {
    let scene = Scene::up();
    let rules = "- matches: [{path: {type: PathPrefix, value: /api}}]\n  filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /admin}}}]\n  backendRefs: [{name: server, port: 80}]\n\
                 - backendRefs: [{name: server, port: 80}]";
    scene.lab.apply("routes.yaml", &route("HTTPRoute", "shop/rewrite", &["server:80"], rules));
    scene
        .lab
        .apply(FILE, &about_requests("DENY", &["{http: [{paths: [{type: PathPrefix, value: /admin}]}]}"]));
    let to = scene.lab.vip("shop/server", 80);
    for web in &scene.clients[..2] {
        let statuses = |target: &str| -> BTreeMap<u16, usize> {
            let mut counts = BTreeMap::new();
            for _ in 0..20 {
                let status = web.try_ask(to, Ask::get(target)).map_or(0, |answer: Answer| answer.status);
                *counts.entry(status).or_insert(0) += 1;
            }
            counts
        };
        eventually("the rewritten path is refused", || {
            (statuses("/api/x") == BTreeMap::from([(403, 20)])).then_some(())
        });
        assert_eq!(statuses("/other"), BTreeMap::from([(200, 20)]));
        assert_eq!(statuses("/admin"), BTreeMap::from([(403, 20)]));
    }
    scene.lab.down();
}

#[test]
fn the_clients_name_is_told_to_those_who_ask_and_never_taken_from_outside() {
    let scene = Scene::up();
    let _told = ["shop/told", "shop/told-here"].map(|pod| Backend::start(&scene.lab, pod, &[8080]));
    // Requests to the others are read because a policy speaks about them; it refuses none of these.
    scene.lab.apply(FILE, &about_requests("DENY", &["{http: [{paths: [{type: Exact, value: /none}]}]}"]));
    for (client, web) in CLIENTS.iter().zip(&scene.clients) {
        for server in ["shop/near", "shop/far", "shop/told", "shop/told-here"] {
            let to = scene.to(server);
            if SERVERS.contains(&server) {
                let refused = || (web.try_ask(to, Ask::get("/none")).ok()?.status == 403).then_some(());
                eventually("the policy is in force", refused);
            }
            for forged in [None, Some("URI=spiffe://cluster.local/ns/shop/sa/root")] {
                let mut ask = Ask::get("/");
                if let Some(name) = forged {
                    ask = ask.header("x-forwarded-client-cert", name);
                }
                for answer in [web.ask(to, ask.clone()), web.ask_http2(to, ask)] {
                    let told = answer.seen_header("x-forwarded-client-cert");
                    match client.strip_prefix("shop/").filter(|_| server.contains("told")) {
                        Some(account) => {
                            let name = format!("spiffe://cluster.local/ns/shop/sa/{account}");
                            let told = told.unwrap_or_else(|| panic!("{client} to {server}: no name"));
                            let is_it = told.contains(&name) && !told.contains("root");
                            assert!(is_it, "{client} to {server}: {told}");
                        }
                        None => assert_eq!(told, None, "{client} to {server}"),
                    }
                }
            }
        }
    }
    scene.lab.down();
}
