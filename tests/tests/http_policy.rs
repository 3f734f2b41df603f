//! Request-level authorization: the same answer on every path and for both versions of HTTP, whatever the path is written
//! like.

use std::time::Duration;

use mesh_tests::http::guarded::{CLIENTS, FILE, Guarded, SERVERS, about_requests};
use mesh_tests::http::raw;
use mesh_tests::{Ask, Backend, eventually};
use serde_json::Value;

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
    let scene = Guarded::up();
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
    let scene = Guarded::up();
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

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(2);

#[test]
fn no_way_of_writing_a_path_leads_around_a_policy() {
    let scene = Guarded::up();
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
                let heard = raw::exchange(&mut stream, request.as_bytes(), PATIENCE).unwrap();
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
    let scene = Guarded::up();
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
