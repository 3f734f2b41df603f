//! HTTP/1 through the mesh is HTTP/1 without it: on the same node and across nodes, with a route on the port and without.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::Duration;

use mesh_tests::http::raw::{self, RawAnswer};
use mesh_tests::http::{Path, Stage};
use mesh_tests::wait::now;
use mesh_tests::{Ask, Web};
use serde_json::Value;

/// How long silence is listened to.
const SHORT: Duration = Duration::from_millis(400);

/// A connection on which the test writes bytes.
#[track_caller]
fn dial(web: &Web, path: &Path) -> TcpStream {
    web.dial(path.to).unwrap_or_else(|error| panic!("{}: {error}", path.name))
}

#[track_caller]
fn send(path: &Path, stream: &mut TcpStream, text: &str) {
    stream.write_all(text.as_bytes()).unwrap_or_else(|error| panic!("{}: {error}", path.name));
}

#[track_caller]
fn read(path: &Path, stream: &mut TcpStream) -> RawAnswer {
    raw::read_answer(stream, false).unwrap_or_else(|error| panic!("{}: {error}", path.name))
}

fn seen(answer: &RawAnswer) -> Value {
    serde_json::from_slice(&answer.body).unwrap_or_default()
}

#[test]
fn requests_of_one_connection_are_answered_one_by_one_and_in_order_when_pipelined() {
    let stage = Stage::up();
    for path in stage.paths() {
        let mut session = stage.web.http1(path.to).unwrap();
        for number in 0..5 {
            let answer =
                session.ask(Ask::get(&format!("/kept/{number}?q={number}")).host("kept.example:8080"));
            stage.assert_way(&path, &answer);
            let seen = answer.seen();
            assert_eq!(seen["path"], format!("/kept/{number}"), "{}", path.name);
            assert_eq!(seen["query"], format!("q={number}"), "{}", path.name);
            assert_eq!(seen["host"], "kept.example:8080", "{}", path.name);
            assert_eq!(seen["version"], "HTTP/1.1", "{}", path.name);
        }
        assert!(session.is_open(), "{}: nobody asked to close", path.name);

        // The first takes longest; a body in the middle shows that its end is found.
        let mut stream = dial(&stage.web, &path);
        send(
            &path,
            &mut stream,
            "GET /1 HTTP/1.1\r\nHost: a\r\nx-do: head-delay=150\r\n\r\n\
             POST /2 HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nGET /\
             POST /3 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n4\r\n\r\n\r\n\r\n0\r\n\r\n\
             GET /4 HTTP/1.1\r\nHost: a\r\n\r\n",
        );
        for (target, bytes) in [("/1", 0), ("/2", 5), ("/3", 7), ("/4", 0)] {
            let seen = seen(&read(&path, &mut stream));
            assert_eq!(
                (&seen["path"], &seen["body_bytes"]),
                (&target.into(), &bytes.into()),
                "{}",
                path.name
            );
        }
        // A hundred at once.
        let many: String =
            (0..100).map(|number| format!("GET /many/{number} HTTP/1.1\r\nHost: a\r\n\r\n")).collect();
        send(&path, &mut stream, &many);
        for number in 0..100 {
            let seen = seen(&read(&path, &mut stream));
            assert_eq!(seen["path"], format!("/many/{number}"), "{}", path.name);
        }
        send(&path, &mut stream, "GET /last HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        let heard = raw::hear(&mut stream, 10 * SHORT).unwrap();
        assert_eq!((heard.statuses(), heard.ending), (vec![200], "end"), "{}", path.name);
    }
    stage.lab.down();
}

#[test]
fn http_1_0_is_answered_as_http_1_0_wants_it() {
    let stage = Stage::up();
    for path in stage.paths() {
        // Without a length the end of the connection is the end of the body: no chunks.
        let mut stream = dial(&stage.web, &path);
        send(&path, &mut stream, "GET /old HTTP/1.0\r\nHost: old.example\r\nx-do: chunks=3\r\n\r\n");
        let heard = raw::hear(&mut stream, 10 * SHORT).unwrap();
        let answers = heard.answers();
        assert_eq!((heard.statuses(), heard.ending), (vec![200], "end"), "{}: {}", path.name, heard.text());
        assert_eq!(answers[0].header("transfer-encoding"), None, "{}: {}", path.name, answers[0].head);
        assert_eq!(answers[0].body, vec![b'x'; 3000], "{}", path.name);

        // Kept alive when asked for, closed when not.
        let mut stream = dial(&stage.web, &path);
        send(&path, &mut stream, "GET /kept HTTP/1.0\r\nHost: old.example\r\nConnection: keep-alive\r\n\r\n");
        let answer = read(&path, &mut stream);
        assert_eq!(seen(&answer)["path"], "/kept", "{}", path.name);
        let connection = answer.header("connection").unwrap_or_default().to_lowercase();
        assert_eq!(connection, "keep-alive", "{}: {}", path.name, answer.head);
        send(&path, &mut stream, "GET /closed HTTP/1.0\r\nHost: old.example\r\n\r\n");
        let heard = raw::hear(&mut stream, 10 * SHORT).unwrap();
        assert_eq!((heard.statuses(), heard.ending), (vec![200], "end"), "{}: {}", path.name, heard.text());

        // Host was not needed then.
        let mut stream = dial(&stage.web, &path);
        send(&path, &mut stream, "GET /hostless HTTP/1.0\r\n\r\n");
        let heard = raw::hear(&mut stream, 10 * SHORT).unwrap();
        assert_eq!(heard.statuses(), [200], "{}: {}", path.name, heard.text());
    }
    stage.lab.down();
}

#[test]
fn answers_without_a_body_leave_the_connection_usable() {
    let stage = Stage::up();
    for path in stage.paths() {
        let mut stream = dial(&stage.web, &path);
        for (words, length) in [("", None), ("chunks=3 length", Some("3000")), ("chunks=2", None)] {
            send(&path, &mut stream, &format!("HEAD /head HTTP/1.1\r\nHost: a\r\nx-do: {words}\r\n\r\n"));
            let answer = raw::read_answer(&mut stream, true).unwrap();
            assert_eq!(answer.status, 200, "{}: {words}", path.name);
            if let Some(length) = length {
                assert_eq!(answer.header("content-length"), Some(length), "{}: {}", path.name, answer.head);
            }
        }
        for status in [204, 304] {
            send(
                &path,
                &mut stream,
                &format!("GET /none HTTP/1.1\r\nHost: a\r\nx-do: status={status}\r\n\r\n"),
            );
            let answer = read(&path, &mut stream);
            assert_eq!(answer.status, status, "{}", path.name);
            assert_eq!(answer.header("transfer-encoding"), None, "{}: {}", path.name, answer.head);
        }
        send(&path, &mut stream, "GET /after HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(seen(&read(&path, &mut stream))["path"], "/after", "{}", path.name);
        for status in [201, 206, 400, 404, 418, 429, 500, 503, 599] {
            let answer = stage.web.ask(path.to, Ask::get("/").plan(&format!("status={status}")));
            assert_eq!(answer.status, status, "{}", path.name);
            stage.assert_way(&path, &answer);
        }
    }
    stage.lab.down();
}

#[test]
fn trailers_pass_in_both_directions() {
    let stage = Stage::up();
    for path in stage.paths() {
        let ask = Ask::get("/").chunks(&[b"one", b"two"]).trailer("x-sum", "6").header("te", "trailers");
        let answer = stage.web.ask(path.to, ask.clone());
        stage.assert_way(&path, &answer);
        assert_eq!(answer.seen()["body_bytes"], 6, "{}", path.name);
        assert_eq!(answer.seen()["trailers"]["x-sum"][0], "6", "{}: {}", path.name, answer.seen());
        let answer = stage.web.ask(path.to, Ask::get("/").header("te", "trailers").plan("chunks=2 trailers"));
        let trailers = answer.trailers.unwrap_or_else(|| panic!("{}: no trailers", path.name));
        assert_eq!((answer.status, answer.body.len()), (200, 2000), "{}", path.name);
        assert_eq!(trailers["x-closing"], "words", "{}", path.name);
        assert_eq!(trailers.get_all("x-twice").iter().collect::<Vec<_>>(), ["one", "two"], "{}", path.name);

        let answer = stage.web.ask_http2(path.to, ask);
        assert_eq!(answer.seen()["trailers"]["x-sum"][0], "6", "{}: {}", path.name, answer.seen());
        let answer = stage.web.ask_http2(path.to, Ask::get("/").plan("chunks=2 trailers"));
        let trailers = answer.trailers.unwrap_or_else(|| panic!("{}: no trailers in HTTP/2", path.name));
        assert_eq!(trailers.get_all("x-twice").iter().count(), 2, "{}", path.name);
    }
    stage.lab.down();
}

#[test]
fn a_client_that_expects_100_continue_hears_it_and_may_be_refused_before_it_sends() {
    let stage = Stage::up();
    for path in stage.paths() {
        let mut stream = dial(&stage.web, &path);
        let head = "POST /expect HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n";
        send(&path, &mut stream, &format!("{head}\r\n"));
        assert_eq!(read(&path, &mut stream).status, 100, "{}", path.name);
        send(&path, &mut stream, "hello");
        let answer = read(&path, &mut stream);
        assert_eq!((answer.status, &seen(&answer)["body_bytes"]), (200, &5.into()), "{}", path.name);

        // The server answers without wanting the body; nobody else says that it is wanted.
        let mut stream = dial(&stage.web, &path);
        send(&path, &mut stream, &format!("{head}x-do: unread status=417\r\n\r\n"));
        assert_eq!(read(&path, &mut stream).status, 417, "{}", path.name);
    }
    stage.lab.down();
}

#[test]
fn answers_that_come_early_are_passed_on() {
    let stage = Stage::up();
    // An origin of the test's own, beside the usual one.
    for (path, pod) in stage.routed().iter().zip(["echo/echo-v1", "echo/echo-v2"]) {
        let hand = mesh_tests::http::Hand::start(&stage.lab, pod);
        let listener = hand.listen(9191).unwrap();
        let origin = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0u8; 4096];
            let n = stream.read(&mut request).unwrap();
            stream.write_all(b"HTTP/1.1 103 Early Hints\r\nLink: </a>; rel=preload\r\n\r\n").unwrap();
            thread::sleep(Duration::from_millis(50));
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").unwrap();
            // The agent may keep the connection for the next request.
            stream.set_read_timeout(Some(SHORT)).unwrap();
            let _ = stream.read(&mut [0u8; 16]);
            String::from_utf8_lossy(&request[..n]).into_owned()
        });
        let service = format!("{}:9191", path.server);
        let to = stage.lab.vip(&format!("echo/{}", path.server), 9191);
        stage.lab.apply("early.yaml", &mesh_tests::http::routes::everything_to("early", &service, &service));
        let answer = stage.web.ask(to, Ask::get("/early"));
        assert_eq!((answer.status, &answer.body[..]), (200, &b"ok"[..]), "{}", path.name);
        assert_eq!(answer.early, [103], "{}", path.name);
        let request = origin.join().unwrap();
        assert!(request.starts_with("GET /early HTTP/1.1\r\n"), "{}: {request}", path.name);
        stage.lab.apply("early.yaml", "");
    }
    stage.lab.down();
}

#[test]
fn headers_that_belong_to_one_connection_stay_there_and_all_others_pass() {
    let stage = Stage::up();
    let large = "v".repeat(8000);
    for path in stage.routed() {
        let ask = Ask::get("/headers?a=1&b=%2F&a=2")
            .header("connection", "x-hop, keep-alive")
            .header("x-hop", "one connection only")
            .header("keep-alive", "timeout=5")
            .header("proxy-connection", "keep-alive")
            .header("x-twice", "one")
            .header("x-twice", "two")
            .header("x-empty", "")
            .header("x-large", &large)
            .header("cookie", "a=1; b=2")
            .header("x-forwarded-for", "192.0.2.1");
        let answer = stage.web.ask(path.to, ask);
        stage.assert_way(&path, &answer);
        for gone in ["x-hop", "keep-alive", "proxy-connection"] {
            assert_eq!(answer.seen_header(gone), None, "{}: {gone}", path.name);
        }
        assert_eq!(answer.seen()["headers"]["x-twice"], serde_json::json!(["one", "two"]), "{}", path.name);
        for (name, value) in [
            ("x-empty", ""),
            ("x-large", &large),
            ("cookie", "a=1; b=2"),
            ("x-forwarded-for", "192.0.2.1"),
            ("host", "test.example"),
        ] {
            assert_eq!(answer.seen_header(name).as_deref(), Some(value), "{}: {name}", path.name);
        }
        assert_eq!(answer.seen()["query"], "a=1&b=%2F&a=2", "{}", path.name);
    }
    stage.lab.down();
}

/// Whether a server's word says that this request, or the connection that it came on, is over.
fn is_over(line: &Value, request: &Value) -> bool {
    let ended = ["given_up", "broken"].iter().any(|word| line[word] == request["request"]);
    // Where requests are read, the connection is the agent's own, and it may just end it.
    let closed = line["finished"] == request["connection"]
        || (line["error"].is_string() && line["connection"] == request["connection"]);
    ended || closed
}

#[test]
fn an_answer_that_breaks_off_never_looks_whole() {
    let stage = Stage::up();
    for path in stage.paths() {
        for words in ["chunks=3 cut", "chunks=3 cut chunk-delay=30"] {
            let cut = stage.web.try_ask(path.to, Ask::get("/cut").plan(words));
            cut.map(|answer| answer.body.len()).expect_err("the body is not whole");
            let mut http2 = stage.web.http2(path.to).unwrap();
            http2
                .try_ask(Ask::get("/cut").plan(words))
                .map(|answer| answer.body.len())
                .expect_err("not whole");
            assert_eq!(http2.ask(Ask::get("/next")).status, 200, "{}: other streams go on", path.name);
        }
        // And a request that breaks off: the server hears no end of it.
        let server = stage.server(&path);
        server.forget();
        let mut stream = dial(&stage.web, &path);
        send(
            &path,
            &mut stream,
            "POST /half HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nx-do: echo\r\n\r\n5\r\nhello\r\n",
        );
        let request = server.tells("the request", |line| line["path"] == "/half");
        drop(stream);
        server.tells("the end of the broken request", |line| is_over(line, &request));
    }
    stage.lab.down();
}

#[test]
fn a_request_that_the_client_gives_up_is_given_up_at_the_server() {
    let stage = Stage::up();
    for path in stage.paths() {
        let server = stage.server(&path);
        let (late, long) = ("head-delay=30000", "chunks=100000 chunk-delay=20");
        let given_up = |how: &str| {
            let asked = now();
            let what = format!("{} giving up {how}", path.name);
            let request = server.tells(&what, |line| line["method"] == "GET");
            server.tells(&what, |line| is_over(line, &request));
            assert!(asked.elapsed() < 5 * SHORT, "{what} took {:?}", asked.elapsed());
            server.forget();
        };
        // What ended before is told by now.
        thread::sleep(SHORT);
        server.forget();
        // Before the head. A FIN would only say that nothing more is sent, so it is RST that says it in HTTP/1.
        let mut stream = dial(&stage.web, &path);
        send(&path, &mut stream, &format!("GET /late HTTP/1.1\r\nHost: a\r\nx-do: {late}\r\n\r\n"));
        thread::sleep(SHORT);
        socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
        drop(stream);
        given_up("HTTP/1 before the head");
        // In the middle of the body.
        let mut session = stage.web.http1(path.to).unwrap();
        drop(session.begin(Ask::get("/long").plan(long)).unwrap());
        drop(session);
        given_up("HTTP/1 in the body");
        // In HTTP/2 the connection stays.
        let mut session = stage.web.http2(path.to).unwrap();
        session.give_up(Ask::get("/late").plan(late), SHORT);
        given_up("HTTP/2 before the head");
        drop(session.begin(Ask::get("/long").plan(long)).unwrap());
        given_up("HTTP/2 in the body");
        assert_eq!(session.ask(Ask::get("/next")).status, 200, "{}", path.name);
    }
    stage.lab.down();
}

#[test]
fn a_client_that_has_finished_sending_still_gets_its_answer() {
    let stage = Stage::up();
    for path in stage.paths() {
        let mut stream = dial(&stage.web, &path);
        send(&path, &mut stream, "GET /finished HTTP/1.1\r\nHost: a\r\nx-do: head-delay=200\r\n\r\n");
        stream.shutdown(Shutdown::Write).unwrap();
        let heard = raw::hear(&mut stream, 10 * SHORT).unwrap();
        assert_eq!((heard.statuses(), heard.ending), (vec![200], "end"), "{}: {}", path.name, heard.text());
    }
    stage.lab.down();
}
