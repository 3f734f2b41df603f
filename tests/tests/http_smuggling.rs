//! Requests that two readers could read in two ways (RFC 9112, section 11.2): each is refused before anything of it reaches
//! the server, with a status that says why, the end of the connection, and a count.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::thread;
use std::time::Duration;

use mesh_tests::eventually;
use mesh_tests::http::raw::{self, Heard};
use mesh_tests::http::{Hand, Path, Stage, routes};
use mesh_tests::wait::now;

const SHORT: Duration = Duration::from_millis(700);

/// Follows every case: what the server must never see.
const SECOND: &str = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";

/// A faulty request and the statuses that it may be refused with.
struct Fault {
    /// The section of RFC 9112 or RFC 9110 that it breaks, and how.
    name: String,
    bytes: Vec<u8>,
    statuses: &'static [u16],
    /// The connection's first bytes need not be taken for HTTP at all: then it ends without a word.
    may_be_silent: bool,
}

fn fault(name: &str, bytes: impl AsRef<[u8]>) -> Fault {
    Fault { name: name.to_owned(), bytes: bytes.as_ref().to_vec(), statuses: &[400], may_be_silent: false }
}

/// A POST with these lines in its head, and a body that one reader would end elsewhere than another.
fn post(name: &str, lines: &str) -> Fault {
    fault(name, format!("POST /case HTTP/1.1\r\nHost: a\r\n{lines}\r\n\r\n5\r\nhello\r\n0\r\n\r\n"))
}

/// A GET with these lines in its head.
fn get(name: &str, lines: &str) -> Fault {
    fault(name, format!("GET /case HTTP/1.1\r\n{lines}\r\n\r\n"))
}

/// A first line.
fn line(name: &str, line: &str) -> Fault {
    fault(name, format!("{line}\r\nHost: a\r\n\r\n")).perhaps_silent()
}

/// A chunked body.
fn chunked(name: &str, body: &str) -> Fault {
    fault(name, format!("POST /case HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{body}"))
}

impl Fault {
    fn or(mut self, statuses: &'static [u16]) -> Self {
        self.statuses = statuses;
        self
    }

    fn perhaps_silent(mut self) -> Self {
        self.may_be_silent = true;
        self
    }
}

fn lengths() -> Vec<Fault> {
    let mut faults = vec![
        post("6.1 Content-Length and Transfer-Encoding", "Content-Length: 5\r\nTransfer-Encoding: chunked"),
        post("6.1 Transfer-Encoding and Content-Length", "Transfer-Encoding: chunked\r\nContent-Length: 5"),
        post("6.1 both, length 0", "Content-Length: 0\r\nTransfer-Encoding: chunked"),
        post("6.1 an unknown coding", "Transfer-Encoding: xchunked").or(&[400, 501]),
        post("6.1 chunked is not the last", "Transfer-Encoding: chunked, identity").or(&[400, 501]),
        post(
            "6.1 chunked is not the last, two lines",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
        )
        .or(&[400, 501]),
        post("6.1 chunked twice", "Transfer-Encoding: chunked, chunked").or(&[400, 501]),
        post("6.1 chunked twice, two lines", "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked")
            .or(&[400, 501]),
        post("6.1 no coding", "Transfer-Encoding:").or(&[400, 501]),
        post("6.1 a coding in quotes", "Transfer-Encoding: \"chunked\"").or(&[400, 501]),
        post("6.1 a coding with a parameter", "Transfer-Encoding: chunked;a=b").or(&[400, 501]),
        post("6.1 a coding after a vertical tab", "Transfer-Encoding: \u{b}chunked").or(&[400, 501]),
        post("6.1 identity", "Transfer-Encoding: identity").or(&[400, 501]),
        post("5.1 a space before the colon", "Transfer-Encoding : chunked"),
        post("5.1 a tab before the colon", "Content-Length\t: 5"),
        post("5.2 a folded coding", "Transfer-Encoding:\r\n chunked"),
        fault(
            "6.1 chunks in HTTP/1.0",
            "POST /case HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        )
        .or(&[400, 501]),
    ];
    for value in [
        "-1",
        "+5",
        "0x5",
        "5 5",
        "",
        "5,6",
        "5, 6",
        "5;",
        "5.0",
        "1e1",
        "\u{665}",
        "18446744073709551621",
        "9999999999999999999999",
        "\u{b}5",
    ] {
        faults.push(post(&format!("6.2 Content-Length {value:?}"), &format!("Content-Length: {value}")));
    }
    faults.push(post("6.3 two lengths", "Content-Length: 5\r\nContent-Length: 6"));
    faults
        .push(post("6.3 two lengths, other names between", "Content-Length: 6\r\nX: y\r\ncontent-length: 5"));
    faults
}

fn heads() -> Vec<Fault> {
    let raw = |name: &str, bytes: &str| fault(name, bytes);
    vec![
        raw("2.2 line ends are bare LF", "GET /case HTTP/1.1\nHost: a\n\n"),
        raw("2.2 one line end is a bare LF", "GET /case HTTP/1.1\r\nHost: a\nX: y\r\n\r\n"),
        raw("2.2 the head ends with bare LF", "GET /case HTTP/1.1\r\nHost: a\r\n\n"),
        raw("2.2 line ends are bare CR", "GET /case HTTP/1.1\rHost: a\r\r"),
        get("2.2 a bare CR in a value", "Host: a\r\nX: y\rZ: z"),
        get("2.2 space before the first header", " Host: a\r\nX: y"),
        get("2.2 tab before the first header", "\tX: y\r\nHost: a"),
        get("5.2 a folded value", "Host: a\r\nX: y\r\n z"),
        get("5.2 a folded value, tab", "Host: a\r\nX: y\r\n\tz"),
        get("5 no colon", "Host: a\r\nnonsense"),
        get("5 no name", "Host: a\r\n: value"),
        get("5.1 a space in a name", "Host: a\r\nX Y: z"),
        get("5.1 a parenthesis in a name", "Host: a\r\nX(Y: z"),
        get("5.1 NUL in a name", "Host: a\r\nX\0Y: z"),
        get("5.1 letters beyond ASCII in a name", "Host: a\r\nX\u{e9}Y: z"),
        get("9110 5.5 NUL in a value", "Host: a\r\nX: y\0z"),
        get("9110 5.5 DEL in a value", "Host: a\r\nX: y\u{7f}z"),
        get("9110 5.5 a control character in a value", "Host: a\r\nX: y\u{1}z"),
        get("3.2 no Host", "X: y"),
        get("3.2 two Hosts", "Host: a\r\nHost: b"),
        get("3.2 one Host twice", "Host: a\r\nHost: a"),
        get("3.2 a space in Host", "Host: a b"),
        get("3.2 a list in Host", "Host: a,b"),
        get("3.2 a path in Host", "Host: a/b"),
        get("3.2 a user in Host", "Host: user@a"),
        get("3.2 a port that is none", "Host: a:port"),
        raw("9112 9.3 no head, but bytes", "\0\0\0\0\r\n\r\n").perhaps_silent(),
    ]
}

fn first_lines() -> Vec<Fault> {
    let version: &[u16] = &[400, 505];
    vec![
        line("3 two spaces", "GET  /case HTTP/1.1"),
        line("3 a space at the end", "GET /case HTTP/1.1 "),
        line("3 words after the version", "GET /case HTTP/1.1 more"),
        line("3 tabs", "GET\t/case\tHTTP/1.1"),
        line("3 a space in front", " GET /case HTTP/1.1"),
        line("3 no version", "GET /case"),
        line("3 no target", "GET HTTP/1.1"),
        line("2.3 HTTP/2.0", "GET /case HTTP/2.0").or(version),
        line("2.3 HTTP/9.9", "GET /case HTTP/9.9").or(version),
        line("2.3 HTTP/1", "GET /case HTTP/1").or(version),
        line("2.3 HTTP/1.10", "GET /case HTTP/1.10").or(version),
        line("2.3 http/1.1", "GET /case http/1.1").or(version),
        line("2.3 HTTPS/1.1", "GET /case HTTPS/1.1").or(version),
        line("3.1 a method with @", "G@T /case HTTP/1.1"),
        line("3.1 a method with NUL", "G\0T /case HTTP/1.1"),
        line("3.1 a method in quotes", "\"GET\" /case HTTP/1.1"),
        line("3.1 no method", "/case HTTP/1.1"),
        line("3.2 a space in the target", "GET /ca se HTTP/1.1"),
        line("3.2 NUL in the target", "GET /ca\0se HTTP/1.1"),
        line("3.2 DEL in the target", "GET /ca\u{7f}se HTTP/1.1"),
        line("3.2.1 no slash", "GET case HTTP/1.1"),
        line("3.2.2 no host", "GET http:///case HTTP/1.1"),
        line("3.2.2 a scheme that is none", "GET 1http://a/case HTTP/1.1"),
        line("3.2.3 authority for GET", "GET a:80 HTTP/1.1"),
        line("3.2.4 asterisk for GET", "GET * HTTP/1.1"),
    ]
}

fn chunks() -> Vec<Fault> {
    let end = "\r\n0\r\n\r\n";
    let with_size =
        |size: &str| chunked(&format!("7.1 a chunk's size {size:?}"), &format!("{size}\r\nhello{end}"));
    let sizes =
        ["-5", "+5", "0x5", "", "g", "5 5", "FFFFFFFFFFFFFFFFF", "10000000000000005", "\u{665}", "5\0"];
    let mut faults: Vec<Fault> = sizes.map(with_size).into();
    faults.extend([
        chunked("7.1 a chunk longer than its size", "5\r\nhelloX\r\n0\r\n\r\n"),
        chunked("7.1 no line end after a chunk", "5\r\nhello0\r\n\r\n"),
        chunked("7.1 LF after a size", "5\nhello\r\n0\r\n\r\n"),
        chunked("7.1 LF after a chunk", "5\r\nhello\n0\r\n\r\n"),
        chunked("7.1.1 LF in an extension", "5;a\nhello\r\n0\r\n\r\n"),
        chunked("7.1.1 a bare CR in an extension", "5;a\rb\r\nhello\r\n0\r\n\r\n"),
        chunked("7.1.1 a huge extension", &format!("5;{}\r\nhello\r\n0\r\n\r\n", "a".repeat(70_000)))
            .or(&[400, 413, 431]),
        chunked(
            "7.1.1 many extensions",
            &format!(
                "{}0\r\n\r\n",
                "1;aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\nx\r\n".repeat(5000)
            ),
        )
        .or(&[400, 413, 431]),
        chunked("7.1.2 a trailer without a colon", "5\r\nhello\r\n0\r\nnonsense\r\n\r\n"),
        chunked("7.1.2 a folded trailer", "5\r\nhello\r\n0\r\nX: y\r\n z\r\n\r\n"),
        chunked("7.1.2 a space before a trailer's colon", "5\r\nhello\r\n0\r\nX : y\r\n\r\n"),
        chunked("7.1.2 LF in the trailers", "5\r\nhello\r\n0\r\nX: y\n\r\n"),
        chunked("7.1.2 huge trailers", &format!("5\r\nhello\r\n0\r\nX: {}\r\n\r\n", "a".repeat(200_000)))
            .or(&[400, 413, 431]),
    ]);
    faults
}

fn sizes() -> Vec<Fault> {
    let long = "a".repeat(300_000);
    let many: String = (0..5000).map(|number| format!("X-{number}: y\r\n")).collect();
    vec![
        line("3 a long target", &format!("GET /{long} HTTP/1.1")).or(&[400, 414, 431]),
        line("3.1 a long method", &format!("{long} /case HTTP/1.1")).or(&[400, 414, 431, 501]),
        get("5.4 a long value", &format!("Host: a\r\nX: {long}")).or(&[400, 431]),
        get("5.4 a long name", &format!("Host: a\r\nX{long}: y")).or(&[400, 431]),
        get("5.4 many headers", &format!("Host: a\r\n{many}X: y")).or(&[400, 431]),
    ]
}

/// Whether a count stays where it is, also a little later.
fn stays(count: &dyn Fn() -> f64, before: f64) -> bool {
    let deadline = now() + SHORT;
    while now() < deadline {
        if count() > before {
            return false;
        }
        thread::sleep(Duration::from_millis(20));
    }
    true
}

/// Sends bytes on a connection of its own.
#[track_caller]
fn send(stage: &Stage, path: &Path, bytes: &[u8]) -> Heard {
    let mut stream = stage.web.dial(path.to).unwrap();
    raw::exchange(&mut stream, bytes, SHORT).unwrap()
}

#[test]
fn faulty_requests_are_refused_counted_and_never_reach_the_server() {
    let stage = Stage::up();
    let mut faults = Vec::new();
    // What is not taken for HTTP is told by the connection's record.
    let refused = || {
        let records = stage.lab.access_records("node-1");
        let silent = records.iter().filter(|record| record["ending"] == "not_http").count();
        stage.lab.metrics("node-1").sum("weft_http_refused_total", &[]) + silent as f64
    };
    for path in stage.routed() {
        let server = stage.server(&path);
        for case in [lengths(), heads(), first_lines(), chunks(), sizes()].into_iter().flatten() {
            server.forget();
            let before = refused();
            let heard = send(&stage, &path, &[&case.bytes[..], SECOND.as_bytes()].concat());
            let mut wrong = Vec::new();
            let statuses = heard.statuses();
            let is_refused = match statuses[..] {
                [] => case.may_be_silent,
                [status] => case.statuses.contains(&status),
                _ => false,
            };
            if !is_refused {
                let text: String = heard.text().chars().take(200).collect();
                wrong.push(format!("answered with {statuses:?} ({text:?}), not {:?}", case.statuses));
            }
            if heard.ending == "silence" {
                wrong.push("the connection stays open".to_owned());
            }
            let seen: Vec<_> = server.requests().iter().map(|request| request["target"].clone()).collect();
            if !seen.is_empty() {
                wrong.push(format!("the server received {seen:?}"));
            }
            if stays(&refused, before) {
                wrong.push("weft_http_refused_total does not count it".to_owned());
            }
            if !wrong.is_empty() {
                faults.push(format!("{}: {}: {}", path.name, case.name, wrong.join("; ")));
            }
        }
    }
    assert!(faults.is_empty(), "{} cases:\n{}", faults.len(), faults.join("\n"));
    let reasons = stage.lab.metrics("node-1").values("weft_http_refused_total", "reason");
    assert!(reasons.len() >= 3, "one reason is not another: {reasons:?}");
    stage.lab.down();
}

#[test]
fn requests_that_only_look_odd_are_read_as_the_rfc_has_it() {
    let stage = Stage::up();
    // Each is one request, and the one behind it another.
    let cases: &[(&str, &str, &str)] = &[
        ("an unknown method", "PROPFIND /case HTTP/1.1\r\nHost: a\r\n\r\n", "a"),
        ("a method in small letters", "get /case HTTP/1.1\r\nHost: a\r\n\r\n", "a"),
        ("2.2 an empty line in front", "\r\nGET /case HTTP/1.1\r\nHost: a\r\n\r\n", "a"),
        ("5 spaces around a value", "GET /case HTTP/1.1\r\nHost:   a \t \r\nX:y\r\n\r\n", "a"),
        (
            "7.1 a size in capitals, with zeros",
            "POST /case HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0000A\r\n0123456789\r\n000\r\n\r\n",
            "a",
        ),
        (
            "7.1 a coding in capitals",
            "POST /case HTTP/1.1\r\nHost: a\r\nTRANSFER-ENCODING: ChUnKeD\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            "a",
        ),
        (
            "7.1.1 extensions",
            "POST /case HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b;c=\"d\"\r\nhello\r\n0;x\r\n\r\n",
            "a",
        ),
        (
            "7.1.2 trailers that name a length",
            "POST /case HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX: y\r\n\r\n",
            "a",
        ),
        ("a body of GET", "GET /case HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello", "a"),
        (
            "3.2.2 the target's host counts",
            "GET http://b.example:81/case HTTP/1.1\r\nHost: a\r\n\r\n",
            "b.example:81",
        ),
        ("3.2 a host with a port", "GET /case HTTP/1.1\r\nHost: a.example:8080\r\n\r\n", "a.example:8080"),
        ("3.2 an IPv6 address", "GET /case HTTP/1.1\r\nHost: [fd00::1]:8080\r\n\r\n", "[fd00::1]:8080"),
        (
            "a body that looks like a request",
            "POST /case HTTP/1.1\r\nHost: a\r\nContent-Length: 38\r\n\r\nGET /hidden HTTP/1.1\r\nHost: hidden\r\n\r\n",
            "a",
        ),
        // RFC 9113 has no such upgrade any more; one that a server took would be a way past the routes.
        (
            "an upgrade to h2c",
            "GET /case HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n",
            "a",
        ),
    ];
    let mut faults = Vec::new();
    for path in stage.routed() {
        let server = stage.server(&path);
        for (name, bytes, host) in cases {
            server.forget();
            let after = "GET /after HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
            let heard = send(&stage, &path, [bytes, after].concat().as_bytes());
            let expected = BTreeMap::from([
                ("\"/case\"".to_owned(), (*host).to_owned()),
                ("\"/after\"".to_owned(), "a".to_owned()),
            ]);
            let targets = || -> BTreeMap<String, String> {
                server
                    .requests()
                    .iter()
                    .map(|request| {
                        (request["path"].to_string(), request["host"].as_str().unwrap_or_default().to_owned())
                    })
                    .collect()
            };
            // What was received is told a moment later.
            let deadline = now() + SHORT;
            while targets() != expected && now() < deadline {
                thread::sleep(Duration::from_millis(10));
            }
            let seen = targets();
            if heard.statuses() != [200, 200] || seen != expected {
                faults.push(format!(
                    "{}: {name}: {:?}, the server received {seen:?}",
                    path.name,
                    heard.text()
                ));
            }
        }
    }
    assert!(faults.is_empty(), "{} cases:\n{}", faults.len(), faults.join("\n"));
    stage.lab.down();
}

#[test]
fn faulty_answers_of_a_server_become_502() {
    let stage = Stage::up();
    let cases: &[(&str, String)] = &[
        ("two lengths", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!".into()),
        ("a length that is none", "HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\nhello".into()),
        ("a folded header", "HTTP/1.1 200 OK\r\nX: y\r\n z\r\nContent-Length: 0\r\n\r\n".into()),
        ("a space before a colon", "HTTP/1.1 200 OK\r\nContent-Length : 0\r\n\r\n".into()),
        ("NUL in a header", "HTTP/1.1 200 OK\r\nX: a\0b\r\nContent-Length: 0\r\n\r\n".into()),
        ("no HTTP", "hello\r\n\r\n".into()),
        ("no such version", "HTTP/3.0 200 OK\r\nContent-Length: 0\r\n\r\n".into()),
        ("no status", "HTTP/1.1 OK\r\nContent-Length: 0\r\n\r\n".into()),
        (
            "a huge head",
            format!("HTTP/1.1 200 OK\r\nX: {}\r\nContent-Length: 0\r\n\r\n", "a".repeat(1 << 20)),
        ),
        ("nothing", String::new()),
    ];
    for (path, pod) in stage.routed().iter().zip(routes::SERVERS) {
        let listener = Hand::start(&stage.lab, pod).listen(9191).unwrap();
        let answers: Vec<Vec<u8>> = cases.iter().map(|(_, answer)| answer.clone().into_bytes()).collect();
        let origin = thread::spawn(move || {
            for answer in answers {
                let (mut stream, _) = listener.accept().unwrap();
                let _ = stream.read(&mut [0u8; 4096]);
                let _ = stream.write_all(&answer);
                let _ = stream.shutdown(std::net::Shutdown::Write);
                let _ = stream.set_read_timeout(Some(SHORT));
                let _ = stream.read(&mut [0u8; 1]);
            }
        });
        let service = format!("{}:9191", path.server);
        stage.lab.apply("origin.yaml", &routes::everything_to("origin", &service, &service));
        let to = stage.lab.vip(&format!("echo/{}", path.server), 9191);
        let mut faults = Vec::new();
        for (name, _) in cases {
            // POST, so that nobody may try again.
            let mut stream = stage.web.dial(to).unwrap();
            let request = b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
            let heard = raw::exchange(&mut stream, request, 3 * SHORT).unwrap();
            if heard.statuses() != [502] {
                faults.push(format!(
                    "{}: {name}: {:?}",
                    path.name,
                    heard.text().chars().take(200).collect::<String>()
                ));
            }
        }
        assert!(faults.is_empty(), "{} cases:\n{}", faults.len(), faults.join("\n"));
        origin.join().unwrap();
        stage.lab.apply("origin.yaml", "");
        eventually("the other ports go on", || (stage.web.get(path.to, "/").status == 200).then_some(()));
    }
    stage.lab.down();
}
