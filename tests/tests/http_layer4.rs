//! Routes for connections: TCPRoute and TLSRoute move bytes as they are, from both nodes, and delay nobody; and clients of
//! HTTP that take their time.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use mesh_tests::http::raw;
use mesh_tests::http::routes::{self, CLIENTS, FILE, PORTS, SERVERS, route, route_with};
use mesh_tests::wait::now;
use mesh_tests::wire::{Greeting, Serve};
use mesh_tests::{Backend, Lab, Web, eventually};

/// Sends bytes, if there are any, and reads the line with which a greeting server begins; gives its pod.
fn greeted(web: &Web, to: SocketAddr, first: &[u8]) -> Option<String> {
    let mut stream = web.dial(to).ok()?;
    stream.write_all(first).ok()?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).ok()?;
    let greeting: Greeting = serde_json::from_str(&line).ok()?;
    Some(greeting.pod.rsplit('/').next().unwrap_or_default().to_owned())
}

#[track_caller]
fn shares(web: &Web, to: SocketAddr, times: usize) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for _ in 0..times {
        *counts.entry(greeted(web, to, b"").unwrap_or_else(|| "nobody".to_owned())).or_insert(0) += 1;
    }
    counts
}

#[test]
fn tcp_routes_split_connections_by_weight_and_delay_nobody() {
    let lab = Lab::up(&routes::world());
    let probes = SERVERS.map(|pod| lab.probe(pod));
    let _serving = probes.each_ref().map(|probe| probe.serve(9090, Serve::Greet));
    let webs = CLIENTS.map(|pod| Web::start(&lab, pod));
    let to = lab.vip("echo/echo", 9090);
    let split = |first: u32, second: u32| {
        let rule = format!(
            "- backendRefs: [{{name: echo-v1, port: 9090, weight: {first}}}, {{name: echo-v2, port: 9090, weight: {second}}}]"
        );
        lab.apply(FILE, &route("TCPRoute", "echo/split", &["echo:9090"], &rule));
    };
    for (first, second, only) in [(1, 0, "echo-v1"), (0, 1, "echo-v2")] {
        split(first, second);
        for web in &webs {
            eventually(&format!("all connections go to {only}"), || {
                (shares(web, to, 20) == BTreeMap::from([(only.to_owned(), 20)])).then_some(())
            });
        }
    }
    split(80, 20);
    for web in &webs {
        eventually("a fifth of the connections goes to echo-v2", || {
            let counts = shares(web, to, 100);
            (counts.len() == 2 && (8..=35).contains(&counts["echo-v2"])).then_some(())
        });
        let mut waits: Vec<Duration> = (0..10)
            .map(|_| {
                let asked = now();
                assert!(greeted(web, to, b"").is_some());
                asked.elapsed()
            })
            .collect();
        waits.sort();
        assert!(waits[8] < Duration::from_millis(100), "the server speaks first and is heard: {waits:?}");
    }
    lab.down();
}

/// What a TLS client sends first when it wants this server.
fn client_hello(name: &str) -> Vec<u8> {
    let roots = rustls::RootCertStore::empty();
    let config = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let name = rustls_pki_types::ServerName::try_from(name.to_owned()).expect("a server's name");
    let mut client = rustls::ClientConnection::new(Arc::new(config), name).expect("a client");
    let mut hello = Vec::new();
    client.write_tls(&mut hello).expect("a vector takes it");
    hello
}

#[test]
fn tls_routes_pick_by_the_name_that_the_client_asks_for() {
    let lab = Lab::up(&routes::world());
    let probes = SERVERS.map(|pod| lab.probe(pod));
    // They only say who they are: nothing of TLS but its first message matters on the way.
    let _serving = probes.each_ref().map(|probe| probe.serve(9191, Serve::Greet));
    let webs = CLIENTS.map(|pod| Web::start(&lab, pod));
    let to = lab.vip("echo/echo", 9191);
    let named = |name: &str, host: &str, service: &str| {
        let rule = format!("- backendRefs: [{{name: {service}, port: 9191}}]");
        route_with(
            "TLSRoute",
            &format!("echo/{name}"),
            &["echo:9191"],
            &format!("hostnames: [\"{host}\"]"),
            &rule,
        )
    };
    let yaml = [named("one", "one.example", "echo-v1"), named("two", "*.two.example", "echo-v2")];
    lab.apply(FILE, &routes::all(&yaml));
    for (web, node) in webs.iter().zip(["node-1", "node-2"]) {
        for (name, pod) in
            [("one.example", "echo-v1"), ("a.two.example", "echo-v2"), ("b.a.two.example", "echo-v2")]
        {
            eventually(&format!("{name} leads to {pod}"), || {
                (greeted(web, to, &client_hello(name))? == pod).then_some(())
            });
            for _ in 0..10 {
                assert_eq!(greeted(web, to, &client_hello(name)).as_deref(), Some(pod), "{node}: {name}");
            }
            // However it arrives.
            let hello = client_hello(name);
            let mut stream = web.dial(to).unwrap();
            for piece in hello.chunks(hello.len() / 5 + 1) {
                stream.write_all(piece).unwrap();
                thread::sleep(Duration::from_millis(20));
            }
            let mut line = String::new();
            BufReader::new(stream).read_line(&mut line).unwrap();
            assert!(line.contains(pod), "{node}: {name} in pieces: {line}");
        }
        for name in ["two.example", "three.example"] {
            assert_eq!(greeted(web, to, &client_hello(name)), None, "{node}: {name}");
            lab.record(node, "a connection without a route", |record| record["ending"] == "no_route");
        }
    }
    lab.down();
}

#[test]
fn a_client_of_http_may_take_its_time() {
    let lab = Lab::up(&routes::world());
    let servers = SERVERS.map(|pod| Backend::start(&lab, pod, &PORTS));
    let webs = CLIENTS.map(|pod| Web::start(&lab, pod));
    lab.apply(FILE, &routes::everything_to("all", "echo", "echo-v1:8080"));
    let pause = Duration::from_millis(2500);
    let mut open: Vec<(&str, u16, TcpStream)> = Vec::new();
    for (web, node) in webs.iter().zip(["node-1", "node-2"]) {
        for port in [80, 8080] {
            let to = lab.vip("echo/echo", port);
            eventually("the route is in force", || (web.get(to, "/").pod() == "echo-v1").then_some(()));
            open.push((node, port, web.dial(to).unwrap()));
        }
    }
    // Nothing at first, then a head in pieces, then another request after a while.
    thread::sleep(pause);
    for piece in ["GE", "T /slow HT", "TP/1.1\r\nHo", "st: a\r\n", "\r", "\n"] {
        for (node, port, stream) in &mut open {
            stream.write_all(piece.as_bytes()).unwrap_or_else(|error| panic!("{node} {port}: {error}"));
        }
        thread::sleep(Duration::from_millis(150));
    }
    for round in 0..2 {
        for (node, port, stream) in &mut open {
            let answer =
                raw::read_answer(stream, false).unwrap_or_else(|error| panic!("{node} {port}: {error}"));
            assert_eq!(answer.status, 200, "{node} {port}: round {round}");
        }
        if round == 0 {
            thread::sleep(pause);
            for (_, _, stream) in &mut open {
                stream.write_all(b"GET /again HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
            }
        }
    }
    // A head that never ends is not waited for.
    let (_, _, stream) = &mut open[0];
    stream.write_all(b"GET /never HTTP/1.1\r\nHost: a\r\n").unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(45))).unwrap();
    let asked = now();
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest);
    assert!(asked.elapsed() < Duration::from_secs(40), "still open after {:?}", asked.elapsed());
    drop(servers);
    lab.down();
}
