//! Streams: HTTP/2 by prior knowledge, gRPC, large bodies with back-pressure, server-first protocols; on every path.

use std::fs;
use std::io::{Read, Write};
use std::thread;
use std::time::Duration;

use http_body_util::BodyExt;
use mesh_tests::http::{Stage, interop, raw, routes};
use mesh_tests::wait::now;
use mesh_tests::wire::Serve;
use mesh_tests::{Ask, Lab, eventually};
use serde_json::Value;

#[test]
fn one_http2_connection_carries_many_requests_at_once() {
    let stage = Stage::up();
    for path in stage.paths() {
        let mut session = stage.web.http2(path.to).unwrap();
        let asks = (0..200).map(|number| {
            let ask = Ask::get(&format!("/many/{number}?n={number}"))
                .host("many.example")
                .header("x-number", &number.to_string());
            match number % 4 {
                0 => ask,
                1 => ask.body(vec![b'a'; 70_000]),
                2 => ask.chunks(&[b"one", b"two", b"three"]),
                _ => ask.plan("head-delay=30"),
            }
        });
        for (number, answer) in session.ask_all(asks.collect()).into_iter().enumerate() {
            let answer = answer.unwrap_or_else(|error| panic!("{}: {number}: {error:#}", path.name));
            stage.assert_way(&path, &answer);
            let seen = answer.seen();
            assert_eq!(seen["path"], format!("/many/{number}"), "{}", path.name);
            assert_eq!(seen["headers"]["x-number"][0], number.to_string(), "{}", path.name);
            assert_eq!(seen["host"], "many.example", "{}", path.name);
            let bytes = [0, 70_000, 11, 0][number % 4];
            assert_eq!(seen["body_bytes"], bytes, "{}: {number}", path.name);
        }
        assert!(session.is_open(), "{}", path.name);
        // Slow streams do not hold up others.
        let mut slow = stage.web.http2(path.to).unwrap();
        let stuck = slow.begin(Ask::get("/stuck").plan("chunks=10000 chunk-bytes=60000")).unwrap();
        let asked = now();
        for _ in 0..20 {
            assert_eq!(slow.ask(Ask::get("/quick")).status, 200, "{}", path.name);
        }
        assert!(asked.elapsed() < Duration::from_secs(2), "{}: {:?}", path.name, asked.elapsed());
        drop(stuck);
    }
    stage.lab.down();
}

#[test]
fn grpc_interoperability_cases_pass() {
    let stage = Stage::up();
    let program = mesh_tests::lab::program("weft-http");
    for path in stage.paths() {
        let output = stage
            .lab
            .exec(routes::CLIENTS[0], &[&program.to_string_lossy(), "interop", &path.to.to_string()]);
        let lines: Vec<Value> = String::from_utf8_lossy(&output.stdout)
            .lines()
            .map(|line| serde_json::from_str(line).expect("a case is a line of JSON"))
            .collect();
        assert_eq!(
            lines.len(),
            interop::CASES.len(),
            "{}: {}",
            path.name,
            String::from_utf8_lossy(&output.stderr)
        );
        let failed: Vec<_> = lines.iter().filter(|line| line["ok"] != true).collect();
        assert!(failed.is_empty() && output.status.success(), "{}: {failed:#?}", path.name);
        // What was cancelled at the client was cancelled at the server.
        stage.server(&path).tells("a cancelled call", |line| line["duplex"] == "nobody reads");
    }
    stage.lab.down();
}

/// Resident memory of a node's agent, in bytes.
fn resident_bytes(lab: &Lab, node: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", lab.agent(node).pid)).expect("the agent runs");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("a process has memory");
    let kib: u64 = line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("in kB");
    kib * 1024
}

/// How much an agent may grow for [`SLOW`] slow streams of 64 MiB: 1 MiB for each, which leaves room for a stream's window
/// (256 KiB) on both of its sides and for the pieces in between.
const MAY_GROW_BYTES: u64 = 16 << 20;

/// Streams that nobody reads.
const SLOW: usize = 16;

#[test]
fn a_slow_reader_slows_its_writer_and_costs_the_agents_no_memory() {
    let stage = Stage::up();
    let nodes = ["node-1", "node-2"];
    for path in stage.paths() {
        for is_http2 in [false, true] {
            let before = nodes.map(|node| resident_bytes(&stage.lab, node));
            let open = || if is_http2 { stage.web.http2(path.to) } else { stage.web.http1(path.to) }.unwrap();
            // 64 MiB each, which nobody reads yet.
            let ask = || Ask::get("/large").plan("chunks=1024 chunk-bytes=65536");
            let mut held: Vec<_> = (0..SLOW)
                .map(|_| {
                    let mut session = open();
                    let response = session.begin(ask()).unwrap();
                    (session, response)
                })
                .collect();
            thread::sleep(Duration::from_millis(1500));
            for (node, before) in nodes.into_iter().zip(before) {
                let grown = resident_bytes(&stage.lab, node).saturating_sub(before);
                assert!(
                    grown < MAY_GROW_BYTES,
                    "{}, HTTP/2 {is_http2}: {node} grew by {grown} bytes",
                    path.name
                );
            }
            // One of them, when it is read at last, is whole.
            let (session, response) = held.pop().unwrap();
            let body = stage.web.runtime().block_on(response.into_body().collect()).unwrap().to_bytes();
            assert_eq!(body.len(), 64 << 20, "{}", path.name);
            assert!(body.iter().all(|byte| *byte == b'x'), "{}", path.name);
            drop(session);
        }
        // The other direction: a server that reads nothing stops the client's writing.
        let mut stream = stage.web.dial(path.to).unwrap();
        stream.set_write_timeout(Some(Duration::from_millis(700))).unwrap();
        let length = 1 << 30;
        let head = format!(
            "POST /up HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\nx-do: read-delay=60000\r\n\r\n"
        );
        let before = nodes.map(|node| resident_bytes(&stage.lab, node));
        stream.write_all(head.as_bytes()).unwrap();
        let (piece, mut written) = ([b'u'; 65_536], 0);
        while written < length {
            match stream.write(&piece) {
                Ok(n) => written += n,
                Err(_) => break,
            }
        }
        assert!(written < 64 << 20, "{}: {written} bytes went to a server that does not read", path.name);
        for (node, before) in nodes.into_iter().zip(before) {
            let grown = resident_bytes(&stage.lab, node).saturating_sub(before);
            assert!(grown < MAY_GROW_BYTES, "{}: uploading, {node} grew by {grown} bytes", path.name);
        }
    }
    stage.lab.down();
}

#[test]
fn large_bodies_pass_whole_in_both_directions_at_once() {
    let stage = Stage::up();
    let mut body = vec![0u8; 24 << 20];
    mesh_tests::wire::pattern(7)(&mut body);
    for path in stage.paths() {
        for is_http2 in [false, true] {
            let ask = Ask::get("/echo").plan("echo");
            let ask = if is_http2 {
                ask.body(body.clone())
            } else {
                ask.chunks(&body.chunks(50_000).collect::<Vec<_>>())
            };
            let answer =
                if is_http2 { stage.web.ask_http2(path.to, ask) } else { stage.web.ask(path.to, ask) };
            assert!(
                answer.body == body,
                "{}, HTTP/2 {is_http2}: {} bytes came back",
                path.name,
                answer.body.len()
            );
        }
    }
    stage.lab.down();
}

#[test]
fn the_first_byte_of_a_body_does_not_wait_for_the_last() {
    let stage = Stage::up();
    for path in stage.paths() {
        let mut stream = stage.web.dial(path.to).unwrap();
        stream.write_all(b"GET /slow HTTP/1.1\r\nHost: a\r\nConnection: close\r\nx-do: chunks=5 chunk-delay=400\r\n\r\n").unwrap();
        let (asked, mut first) = (now(), Vec::new());
        while !first.windows(8).any(|bytes| bytes == b"xxxxxxxx") {
            let mut buffer = [0u8; 4096];
            let n = stream.read(&mut buffer).unwrap();
            assert!(n > 0, "{}", path.name);
            first.extend_from_slice(&buffer[..n]);
        }
        assert!(asked.elapsed() < Duration::from_millis(1100), "{}: {:?}", path.name, asked.elapsed());
        let rest = raw::hear(&mut stream, Duration::from_secs(3)).unwrap();
        assert!(rest.text().ends_with("\r\n0\r\n\r\n"), "{}", path.name);
    }
    stage.lab.down();
}

#[test]
fn a_server_that_speaks_first_is_heard_at_once_where_no_route_is_attached() {
    let stage = Stage::up();
    for (service, pod) in [("echo/echo-v1", "echo/echo-v1"), ("echo/echo-v2", "echo/echo-v2")] {
        let server = stage.lab.probe(pod);
        let _serving = server.serve(9090, Serve::Greet);
        let client = stage.lab.probe(routes::CLIENTS[0]);
        let mut waits: Vec<Duration> = (0..10)
            .map(|_| {
                let asked = now();
                let conn = client.connect(stage.lab.vip(service, 9090)).unwrap();
                let greeting = conn.receive().unwrap_or_else(|refusal| panic!("{service}: {refusal}"));
                assert!(greeting.contains("\"pod\""), "{service}: {greeting}");
                asked.elapsed()
            })
            .collect();
        waits.sort();
        // The tunnel of the first connection across nodes may have to be made.
        assert!(waits[8] < Duration::from_millis(100), "{service}: {waits:?}");
    }
    stage.lab.down();
}

#[test]
fn a_port_with_routes_refuses_what_is_not_http_and_says_why() {
    let stage = Stage::up();
    for path in stage.routed() {
        let server = stage.server(&path);
        server.forget();
        for bytes in [
            &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..],
            b"SSH-2.0-client\r\n",
            b"\x00\x00\x00\x08hello",
        ] {
            let before = stage.lab.access_records("node-1").len();
            let mut stream = stage.web.dial(path.to).unwrap();
            stream.write_all(bytes).unwrap();
            let heard = raw::hear(&mut stream, Duration::from_secs(3)).unwrap();
            assert_ne!(heard.ending, "silence", "{}: {bytes:?} is refused, not held", path.name);
            assert!(heard.bytes.is_empty(), "{}: {bytes:?}: {}", path.name, heard.text());
            eventually("the refusal is recorded", || {
                let records = stage.lab.access_records("node-1").split_off(before);
                records.iter().any(|record| record["ending"] == "not_http").then_some(())
            });
        }
        assert_eq!(server.told(), Vec::<Value>::new(), "{}: nothing reached the server", path.name);
    }
    stage.lab.down();
}
