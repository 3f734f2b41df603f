//! Policies about requests that come and go: what is open, what is new, and what stands between policy and server (rewrites,
//! the client's name).

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use mesh_tests::http::guarded::{CLIENTS, FILE, Guarded, SERVERS, about_requests};
use mesh_tests::http::routes::route;
use mesh_tests::http::{Answer, raw};
use mesh_tests::wire::Serve;
use mesh_tests::{Ask, Backend, Web, eventually};
use serde_json::Value;

/// How long a change may take to be felt everywhere, with room to spare.
const SHORT: Duration = Duration::from_millis(700);

/// A connection on which a request was answered before any policy was there.
fn opened(web: &Web, to: SocketAddr) -> std::net::TcpStream {
    let mut stream = web.dial(to).unwrap();
    stream.write_all(b"GET /admin HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    assert_eq!(raw::read_answer(&mut stream, false).unwrap().status, 200);
    stream
}

/// The servers, the node that tells of connections to them, and the way that bytes take: the kernel's fast path on one node.
const WAYS: [(&str, &str, &str); 2] = [("near", "node-1", "splice"), ("far", "node-2", "tunnel")];

/// Whether a record is of a connection of `shop/web` that took this way.
fn is_of_web(record: &Value, server: &str, way: &str) -> bool {
    record["source"]["pod"] == "web" && record["destination"]["pod"] == server && record["path"] == way
}

#[test]
fn a_rule_about_requests_holds_at_once_when_it_comes_and_is_gone_when_it_goes() {
    let scene = Guarded::up();
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
        for (server, node, way) in WAYS {
            scene.lab.record(node, &format!("the closed connection to {server}"), |record| {
                is_of_web(record, server, way) && record["ending"] == "policy_revoked"
            });
        }
        // And away with it: bytes are bytes again, from either side, and on the ways that bytes take.
        scene.lab.apply(FILE, "");
        let marks = WAYS.map(|(_, node, _)| scene.lab.access_records(node).len());
        for (client, web, server, to) in scene.pairs() {
            eventually(&format!("{client} may do anything at {server} again"), || {
                (web.try_ask(to, Ask::get("/admin")).ok()?.status == 200).then_some(())
            });
        }
        for ((server, node, way), mark) in WAYS.into_iter().zip(marks) {
            eventually(&format!("connections to {server} take the way of bytes ({way}) again"), || {
                let records = scene.lab.access_records(node).split_off(mark);
                // What is over in a moment never gets as far as the fast path.
                let ways = [way, if way == "splice" { "direct" } else { way }];
                let is_it = |record: &Value| ways.iter().any(|way| is_of_web(record, server, way));
                records.iter().any(is_it).then_some(())
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
    let scene = Guarded::up();
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
    let scene = Guarded::up();
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
    let scene = Guarded::up();
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
