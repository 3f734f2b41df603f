//! HTTP/2 towards clients, frame by frame: our own cases from RFC 9113 sections 4 to 8, listed by section.
//!
//! The agent must not be kinder than the RFC: where it demands a connection error, a stream error is not enough.

use std::io;

use mesh_tests::Ask;
use mesh_tests::http::frames::{Http2, Outcome, block, code, flag, get, kind, post, settings};
use mesh_tests::http::{Path, Stage};
use serde_json::Value;

/// A stream that stays unanswered for long enough.
const SLOW: (&str, &str) = ("x-do", "head-delay=3000");

/// What must come of a case.
#[derive(Clone, Copy, Debug)]
enum Expected {
    /// A connection error with one of these codes, or the end of the connection.
    Connection(&'static [u32]),
    /// A stream error with one of these codes; a connection error is allowed instead (section 5.4.2).
    Stream(&'static [u32]),
    /// The request is malformed (section 8.1.1): a stream error, or 400.
    Malformed,
    /// The connection goes on: a PING after it is answered.
    GoesOn,
    /// Answered with 200.
    Answered,
}

/// Cases that differ from the RFC, what comes instead, and why that is left so. One that no longer differs must leave
/// the list.
const EXPLAINED: &[(&str, &str, &str)] = &[
    ("4.3 an index that is not there", "ConnectionError(1)", CODES),
    ("4.3 a literal without an end", "ConnectionError(1)", CODES),
    ("5.1 DATA on a half-closed stream", "ConnectionError(1)", CODES),
    ("5.1 HEADERS on a half-closed stream", "ConnectionError(1)", CODES),
    ("6.3 PRIORITY of four bytes", "ConnectionError(1)", CODES),
    ("6.4 RST_STREAM of three bytes", "ConnectionError(1)", CODES),
    ("6.5 an acknowledgement with a payload", "ConnectionError(1)", CODES),
    ("6.5 SETTINGS of five bytes", "ConnectionError(1)", CODES),
    ("6.5.2 INITIAL_WINDOW_SIZE beyond the largest", "ConnectionError(1)", CODES),
    ("6.7 PING of six bytes", "ConnectionError(1)", CODES),
    ("6.9 WINDOW_UPDATE of three bytes", "ConnectionError(1)", CODES),
    (
        "8.3 a pseudo-header in trailers",
        "Answered(1, 200)",
        "the library leaves it out of the trailers that it passes on",
    ),
];

/// hyper's HTTP/2 names most connection errors PROTOCOL_ERROR. The connection ends as it must; only its name is another.
const CODES: &str = "a connection error, with a code that is too general";

struct Case {
    /// Section of RFC 9113, and what is done.
    name: &'static str,
    expected: Expected,
    act: fn(&mut Http2) -> io::Result<()>,
}

const PROTOCOL: Expected = Expected::Connection(&[code::PROTOCOL_ERROR]);
const FRAME_SIZE: Expected = Expected::Connection(&[code::FRAME_SIZE_ERROR]);
const STREAM_CLOSED: Expected = Expected::Stream(&[code::STREAM_CLOSED]);
const OPEN: u8 = flag::END_HEADERS;
const WHOLE: u8 = flag::END_HEADERS | flag::END_STREAM;

const fn case(name: &'static str, expected: Expected, act: fn(&mut Http2) -> io::Result<()>) -> Case {
    Case { name, expected, act }
}

/// Sends a request whose head has these fields after the usual ones.
fn malformed(http: &mut Http2, more: &[(&str, &str)]) -> io::Result<()> {
    let usual = [(":method", "GET"), (":scheme", "http"), (":path", "/case"), (":authority", "test.example")];
    http.request(1, &block(&[&usual[..], more].concat()))
}

/// Sends a request with exactly these fields.
fn fields(http: &mut Http2, fields: &[(&str, &str)]) -> io::Result<()> {
    http.request(1, &block(fields))
}

/// A request that is still open on both sides' behalf.
fn open(http: &mut Http2, stream: u32) -> io::Result<()> {
    http.send(kind::HEADERS, OPEN, stream, &post("/case", &[SLOW]))
}

fn frames_and_streams() -> Vec<Case> {
    vec![
        case("4.1 a frame of an unknown type", Expected::GoesOn, |http| http.send(0x16, 0, 0, &[0; 8])),
        case("4.1 flags that mean nothing", Expected::GoesOn, |http| http.send(kind::PING, 0x16, 0, &[7; 8])),
        case("4.1 the reserved bit", Expected::GoesOn, |http| http.send(kind::PING, 0, 1 << 31, &[7; 8])),
        case("4.2 DATA larger than allowed", Expected::Stream(&[code::FRAME_SIZE_ERROR]), |http| {
            open(http, 1)?;
            http.send(kind::DATA, 0, 1, &vec![0; http.max_frame_bytes + 1])
        }),
        case("4.2 HEADERS larger than allowed", FRAME_SIZE, |http| {
            let mut large = get("/case");
            large.resize(http.max_frame_bytes + 1, 0);
            http.request(1, &large)
        }),
        case("4.3 an index that is not there", Expected::Connection(&[code::COMPRESSION_ERROR]), |http| {
            http.request(1, &[0xff, 0xff, 0x7f])
        }),
        case("4.3 a literal without an end", Expected::Connection(&[code::COMPRESSION_ERROR]), |http| {
            http.request(1, &[0x00, 0x7f])
        }),
        case("4.3 PRIORITY inside a header block", PROTOCOL, |http| {
            http.send(kind::HEADERS, flag::END_STREAM, 1, &get("/case"))?;
            http.send(kind::PRIORITY, 0, 1, &[0, 0, 0, 0, 15])
        }),
        case("4.3 another stream's HEADERS inside a header block", PROTOCOL, |http| {
            http.send(kind::HEADERS, flag::END_STREAM, 1, &get("/case"))?;
            http.request(3, &get("/case"))
        }),
        case("5.5 an unknown frame inside a header block", PROTOCOL, |http| {
            http.send(kind::HEADERS, flag::END_STREAM, 1, &get("/case"))?;
            http.send(0x16, 0, 0, &[])
        }),
        case("5.1 DATA on an idle stream", PROTOCOL, |http| http.send(kind::DATA, flag::END_STREAM, 1, b"x")),
        case("5.1 RST_STREAM on an idle stream", PROTOCOL, |http| {
            http.send(kind::RST_STREAM, 0, 1, &[0, 0, 0, 8])
        }),
        case("5.1 WINDOW_UPDATE on an idle stream", PROTOCOL, |http| {
            http.send(kind::WINDOW_UPDATE, 0, 1, &[0, 0, 0, 8])
        }),
        case("5.1 CONTINUATION on an idle stream", PROTOCOL, |http| {
            http.send(kind::CONTINUATION, flag::END_HEADERS, 1, &get("/case"))
        }),
        case("5.1 DATA on a half-closed stream", STREAM_CLOSED, |http| {
            http.request(1, &post("/case", &[SLOW]))?;
            http.send(kind::DATA, flag::END_STREAM, 1, b"x")
        }),
        case("5.1 HEADERS on a half-closed stream", STREAM_CLOSED, |http| {
            http.request(1, &post("/case", &[SLOW]))?;
            http.request(1, &post("/case", &[]))
        }),
        case("5.1 DATA on a stream that was reset", STREAM_CLOSED, |http| {
            open(http, 1)?;
            http.send(kind::RST_STREAM, 0, 1, &code::CANCEL.to_be_bytes())?;
            http.send(kind::DATA, flag::END_STREAM, 1, b"x")
        }),
        case(
            "5.1 HEADERS on a stream that was reset",
            Expected::Stream(&[code::STREAM_CLOSED, code::PROTOCOL_ERROR]),
            |http| {
                open(http, 1)?;
                http.send(kind::RST_STREAM, 0, 1, &code::CANCEL.to_be_bytes())?;
                http.request(1, &post("/case", &[]))
            },
        ),
        case("5.1.1 a stream with an even number", PROTOCOL, |http| http.request(2, &get("/case"))),
        case(
            "5.1.1 a stream with a lower number",
            Expected::Connection(&[code::PROTOCOL_ERROR, code::STREAM_CLOSED]),
            |http| {
                http.request(5, &post("/quick", &[SLOW]))?;
                http.request(3, &get("/case"))
            },
        ),
        case(
            "5.1.2 more streams than allowed",
            Expected::Stream(&[code::REFUSED_STREAM, code::PROTOCOL_ERROR]),
            |http| {
                let allowed = http.max_streams.expect("the agent limits the streams of a connection");
                assert!(allowed <= 10_000, "it allows {allowed}");
                (0..=allowed).try_for_each(|number| http.request(2 * number + 1, &post("/slow", &[SLOW])))
            },
        ),
    ]
}

fn frame_types() -> Vec<Case> {
    vec![
        case("6.1 DATA on stream 0", PROTOCOL, |http| http.send(kind::DATA, 0, 0, b"x")),
        case("6.1 padding longer than DATA", PROTOCOL, |http| {
            open(http, 1)?;
            http.send(kind::DATA, flag::PADDED | flag::END_STREAM, 1, &[6, 1, 2, 3, 4, 5])
        }),
        case("6.2 HEADERS on stream 0", PROTOCOL, |http| http.request(0, &get("/case"))),
        case("6.2 padding longer than HEADERS", PROTOCOL, |http| {
            http.send(kind::HEADERS, WHOLE | flag::PADDED, 1, &[200, 1, 2, 3])
        }),
        case("6.2 HEADERS with padding and priority", Expected::Answered, |http| {
            let payload = [&[4, 0, 0, 0, 0, 16][..], &get("/first"), &[0; 4]].concat();
            http.send(kind::HEADERS, WHOLE | flag::PADDED | flag::PRIORITY, 1, &payload)
        }),
        case("6.3 PRIORITY on stream 0", PROTOCOL, |http| http.send(kind::PRIORITY, 0, 0, &[0, 0, 0, 1, 15])),
        case("6.3 PRIORITY of four bytes", Expected::Stream(&[code::FRAME_SIZE_ERROR]), |http| {
            open(http, 1)?;
            http.send(kind::PRIORITY, 0, 1, &[0, 0, 0, 0])
        }),
        case("6.3 PRIORITY on an idle stream", Expected::GoesOn, |http| {
            http.send(kind::PRIORITY, 0, 7, &[0, 0, 0, 0, 15])
        }),
        case("6.4 RST_STREAM on stream 0", PROTOCOL, |http| http.send(kind::RST_STREAM, 0, 0, &[0, 0, 0, 8])),
        case("6.4 RST_STREAM of three bytes", FRAME_SIZE, |http| {
            open(http, 1)?;
            http.send(kind::RST_STREAM, 0, 1, &[0, 0, 0])
        }),
        case("6.5 an acknowledgement with a payload", FRAME_SIZE, |http| {
            http.send(kind::SETTINGS, flag::ACK, 0, &[0; 6])
        }),
        case("6.5 SETTINGS on a stream", PROTOCOL, |http| http.send(kind::SETTINGS, 0, 1, &[])),
        case("6.5 SETTINGS of five bytes", FRAME_SIZE, |http| http.send(kind::SETTINGS, 0, 0, &[0; 5])),
        case("6.5.2 ENABLE_PUSH 2", PROTOCOL, |http| http.send(kind::SETTINGS, 0, 0, &settings(&[(2, 2)]))),
        case(
            "6.5.2 INITIAL_WINDOW_SIZE beyond the largest",
            Expected::Connection(&[code::FLOW_CONTROL_ERROR]),
            |http| http.send(kind::SETTINGS, 0, 0, &settings(&[(4, 1 << 31)])),
        ),
        case("6.5.2 MAX_FRAME_SIZE below the least", PROTOCOL, |http| {
            http.send(kind::SETTINGS, 0, 0, &settings(&[(5, 16_383)]))
        }),
        case("6.5.2 MAX_FRAME_SIZE beyond the largest", PROTOCOL, |http| {
            http.send(kind::SETTINGS, 0, 0, &settings(&[(5, 1 << 24)]))
        }),
        case("6.5.2 an unknown setting", Expected::GoesOn, |http| {
            http.send(kind::SETTINGS, 0, 0, &settings(&[(0xff, 1)]))
        }),
        case("6.6 PUSH_PROMISE of a client", PROTOCOL, |http| {
            open(http, 1)?;
            http.send(kind::PUSH_PROMISE, flag::END_HEADERS, 1, &[&[0, 0, 0, 2][..], &get("/case")].concat())
        }),
        case("6.7 PING on a stream", PROTOCOL, |http| http.send(kind::PING, 0, 1, &[0; 8])),
        case("6.7 PING of six bytes", FRAME_SIZE, |http| http.send(kind::PING, 0, 0, &[0; 6])),
        case("6.7 an acknowledgement that nobody asked for", Expected::GoesOn, |http| {
            http.send(kind::PING, flag::ACK, 0, &[1; 8])
        }),
        case("6.8 GOAWAY on a stream", PROTOCOL, |http| http.send(kind::GOAWAY, 0, 1, &[0; 8])),
        case("6.8 a request before GOAWAY", Expected::Answered, |http| {
            http.request(1, &post("/first", &[("x-do", "head-delay=100")]))?;
            http.send(kind::GOAWAY, 0, 0, &[0; 8])
        }),
        case("6.9 WINDOW_UPDATE of nothing", PROTOCOL, |http| http.send(kind::WINDOW_UPDATE, 0, 0, &[0; 4])),
        case("6.9 WINDOW_UPDATE of nothing on a stream", Expected::Stream(&[code::PROTOCOL_ERROR]), |http| {
            open(http, 1)?;
            http.send(kind::WINDOW_UPDATE, 0, 1, &[0; 4])
        }),
        case("6.9 WINDOW_UPDATE of three bytes", FRAME_SIZE, |http| {
            http.send(kind::WINDOW_UPDATE, 0, 0, &[0, 0, 1])
        }),
        case(
            "6.9.1 a connection's window beyond the largest",
            Expected::Connection(&[code::FLOW_CONTROL_ERROR]),
            |http| {
                http.send(kind::WINDOW_UPDATE, 0, 0, &(u32::MAX >> 1).to_be_bytes())?;
                http.send(kind::WINDOW_UPDATE, 0, 0, &(u32::MAX >> 1).to_be_bytes())
            },
        ),
        case(
            "6.9.1 a stream's window beyond the largest",
            Expected::Stream(&[code::FLOW_CONTROL_ERROR]),
            |http| {
                open(http, 1)?;
                http.send(kind::WINDOW_UPDATE, 0, 1, &(u32::MAX >> 1).to_be_bytes())?;
                http.send(kind::WINDOW_UPDATE, 0, 1, &(u32::MAX >> 1).to_be_bytes())
            },
        ),
        case("6.10 a header block in many pieces", Expected::Answered, |http| {
            http.send(kind::HEADERS, flag::END_STREAM, 1, &[])?;
            let block = get("/first");
            for piece in block.chunks(20) {
                http.send(kind::CONTINUATION, 0, 1, piece)?;
            }
            http.send(kind::CONTINUATION, flag::END_HEADERS, 1, &[])
        }),
        case("6.10 CONTINUATION after the end of a block", PROTOCOL, |http| {
            open(http, 1)?;
            http.send(kind::CONTINUATION, flag::END_HEADERS, 1, &block(&[("x", "y")]))
        }),
        case("6.10 CONTINUATION on stream 0", PROTOCOL, |http| {
            http.send(kind::HEADERS, flag::END_STREAM, 1, &get("/case"))?;
            http.send(kind::CONTINUATION, flag::END_HEADERS, 0, &block(&[("x", "y")]))
        }),
        case("6.10 CONTINUATION after DATA", PROTOCOL, |http| {
            open(http, 1)?;
            http.send(kind::DATA, 0, 1, b"x")?;
            http.send(kind::CONTINUATION, flag::END_HEADERS, 1, &block(&[("x", "y")]))
        }),
        case("7 RST_STREAM with an unknown code", Expected::GoesOn, |http| {
            open(http, 1)?;
            http.send(kind::RST_STREAM, 0, 1, &[0, 0, 0, 0xff])
        }),
    ]
}

fn messages() -> Vec<Case> {
    const USUAL: [(&str, &str); 4] =
        [(":method", "POST"), (":scheme", "http"), (":path", "/case"), (":authority", "test.example")];
    /// Sends a body of five bytes for which another length was said.
    fn with_length(http: &mut Http2, length: &str) -> io::Result<()> {
        http.send(kind::HEADERS, OPEN, 1, &post("/case", &[("content-length", length)]))?;
        http.send(kind::DATA, 0, 1, b"he")?;
        http.send(kind::DATA, flag::END_STREAM, 1, b"llo")
    }
    let bad = |name, act| case(name, Expected::Malformed, act);
    vec![
        bad("8.1 trailers without the end of the stream", |http| {
            open(http, 1)?;
            http.send(kind::HEADERS, OPEN, 1, &block(&[("x-sum", "1")]))
        }),
        bad("8.1.1 more DATA than content-length", |http| with_length(http, "3")),
        bad("8.1.1 less DATA than content-length", |http| with_length(http, "7")),
        bad("8.1.1 content-length is no number", |http| with_length(http, "+5")),
        bad("8.1.1 two lengths", |http| {
            http.send(
                kind::HEADERS,
                OPEN,
                1,
                &post("/case", &[("content-length", "5"), ("content-length", "6")]),
            )?;
            http.send(kind::DATA, flag::END_STREAM, 1, b"hello")
        }),
        bad("8.1.1 content-length without a body", |http| {
            http.request(1, &post("/case", &[("content-length", "5")]))
        }),
        bad("8.2 a name in capitals", |http| malformed(http, &[("X-Capital", "y")])),
        bad("8.2.1 an empty name", |http| malformed(http, &[("", "y")])),
        bad("8.2.1 a space in a name", |http| malformed(http, &[("x y", "z")])),
        bad("8.2.1 a colon in a name", |http| malformed(http, &[("x:y", "z")])),
        bad("8.2.1 a line end in a name", |http| malformed(http, &[("x: y\r\nz", "z")])),
        bad("8.2.1 NUL in a value", |http| malformed(http, &[("x", "y\0z")])),
        bad("8.2.1 LF in a value", |http| malformed(http, &[("x", "y\nz: a")])),
        bad("8.2.1 a line end and a request in a value", |http| {
            malformed(http, &[("x", "y\r\n\r\nGET /case HTTP/1.1\r\nHost: a\r\n\r\n")])
        }),
        bad("8.2.1 CR in a value", |http| malformed(http, &[("x", "y\rz")])),
        bad("8.2.1 a value with a space in front", |http| malformed(http, &[("x", " y")])),
        bad("8.2.1 a value with a space behind", |http| malformed(http, &[("x", "y ")])),
        bad("8.2.2 connection", |http| malformed(http, &[("connection", "close")])),
        bad("8.2.2 keep-alive", |http| malformed(http, &[("keep-alive", "timeout=5")])),
        bad("8.2.2 proxy-connection", |http| malformed(http, &[("proxy-connection", "close")])),
        bad("8.2.2 transfer-encoding", |http| malformed(http, &[("transfer-encoding", "chunked")])),
        bad("8.2.2 upgrade", |http| malformed(http, &[("upgrade", "websocket")])),
        bad("8.2.2 TE that is not trailers", |http| malformed(http, &[("te", "trailers, gzip")])),
        case("8.2.2 TE trailers", Expected::Answered, |http| {
            http.request(1, &post("/first", &[("te", "trailers")]))
        }),
        case("8.2.3 cookies in pieces", Expected::Answered, |http| {
            http.request(1, &post("/first", &[("cookie", "a=1"), ("cookie", "b=2")]))
        }),
        bad("8.3 an unknown pseudo-header", |http| malformed(http, &[(":unknown", "y")])),
        bad("8.3 a response's pseudo-header", |http| malformed(http, &[(":status", "200")])),
        bad("8.3 a pseudo-header after others", |http| {
            fields(
                http,
                &[
                    (":method", "GET"),
                    (":scheme", "http"),
                    ("x", "y"),
                    (":path", "/case"),
                    (":authority", "a"),
                ],
            )
        }),
        bad("8.3 a pseudo-header in trailers", |http| {
            open(http, 1)?;
            http.send(kind::HEADERS, WHOLE, 1, &block(&[(":method", "GET")]))
        }),
        bad("8.3 two methods", |http| malformed(http, &[(":method", "GET")])),
        bad("8.3 two paths", |http| malformed(http, &[(":path", "/other")])),
        bad("8.3 two schemes", |http| malformed(http, &[(":scheme", "http")])),
        bad("8.3 two authorities", |http| malformed(http, &[(":authority", "b")])),
        bad("8.3.1 no method", |http| fields(http, &USUAL[1..])),
        bad("8.3.1 no scheme", |http| fields(http, &[USUAL[0], USUAL[2], USUAL[3]])),
        bad("8.3.1 no path", |http| fields(http, &[USUAL[0], USUAL[1], USUAL[3]])),
        bad("8.3.1 an empty path", |http| fields(http, &[USUAL[0], USUAL[1], (":path", ""), USUAL[3]])),
        bad("8.3.1 a path without a slash", |http| {
            fields(http, &[USUAL[0], USUAL[1], (":path", "case"), USUAL[3]])
        }),
        bad("8.3.1 a path with a space", |http| {
            fields(http, &[USUAL[0], USUAL[1], (":path", "/case HTTP/1.1"), USUAL[3]])
        }),
        bad("8.3.1 a path with a line end", |http| {
            fields(http, &[USUAL[0], USUAL[1], (":path", "/case\r\nX: y"), USUAL[3]])
        }),
        bad("8.3.1 a method with a space", |http| {
            fields(http, &[(":method", "GET /case"), USUAL[1], USUAL[2], USUAL[3]])
        }),
        bad("8.3.1 a method with a line end", |http| {
            fields(http, &[(":method", "GET\r\nX"), USUAL[1], USUAL[2], USUAL[3]])
        }),
        bad("8.3.1 an authority with a user", |http| {
            fields(http, &[USUAL[0], USUAL[1], USUAL[2], (":authority", "user@a")])
        }),
        bad("8.3.1 an authority with a line end", |http| {
            fields(http, &[USUAL[0], USUAL[1], USUAL[2], (":authority", "a\r\nX: y")])
        }),
        bad("8.3.1 an authority and another host", |http| malformed(http, &[("host", "other.example")])),
        bad("8.3.1 asterisk for GET", |http| {
            fields(http, &[(":method", "GET"), USUAL[1], (":path", "*"), USUAL[3]])
        }),
        bad("8.5 CONNECT with a scheme and a path", |http| {
            fields(http, &[(":method", "CONNECT"), USUAL[1], USUAL[2], USUAL[3]])
        }),
        bad("8.5 CONNECT without an authority", |http| fields(http, &[(":method", "CONNECT")])),
    ]
}

/// What is wrong with an outcome.
fn wrong(expected: Expected, outcome: &Outcome) -> bool {
    match (expected, outcome) {
        (Expected::Connection(_) | Expected::Stream(_) | Expected::Malformed, Outcome::Closed) => false,
        (Expected::Connection(codes) | Expected::Stream(codes), Outcome::ConnectionError(code)) => {
            !codes.contains(code)
        }
        (Expected::Stream(codes), Outcome::StreamError(_, code)) => !codes.contains(code),
        (Expected::Malformed, Outcome::StreamError(_, code) | Outcome::ConnectionError(code)) => {
            *code != code::PROTOCOL_ERROR
        }
        (Expected::Malformed, Outcome::Answered(_, status)) => *status != 400,
        (Expected::GoesOn, Outcome::Pong(payload)) => *payload != *b"go on!!!",
        (Expected::Answered, Outcome::Answered(_, status)) => *status != 200,
        _ => true,
    }
}

/// Runs a case on a connection of its own.
fn run(stage: &Stage, path: &Path, case: &Case) -> Result<(), String> {
    let stream = stage.web.dial(path.to).map_err(|error| format!("connect: {error}"))?;
    let mut http = Http2::open(stream).map_err(|error| format!("opening: {error}"))?;
    // A connection that the agent has closed cannot be written to; what it said before can still be read.
    let mut sent = (case.act)(&mut http);
    if matches!(case.expected, Expected::GoesOn) {
        sent = sent.and_then(|()| http.send(kind::PING, 0, 0, b"go on!!!"));
    }
    let mut outcome = http.outcome();
    while matches!(case.expected, Expected::GoesOn)
        && matches!(&outcome, Outcome::Pong(payload) if payload != b"go on!!!")
    {
        outcome = http.outcome();
    }
    if wrong(case.expected, &outcome) {
        Err(format!("{:?} came {outcome:?} ({sent:?})", case.expected))
    } else {
        Ok(())
    }
}

#[test]
fn each_frame_and_message_is_judged_as_rfc_9113_has_it() {
    let stage = Stage::up();
    let mut faults = Vec::new();
    let mut count = 0;
    for path in stage.routed() {
        for case in [frames_and_streams(), frame_types(), messages()].into_iter().flatten() {
            let server = stage.server(&path);
            server.forget();
            count += 1;
            let explained = EXPLAINED.iter().find(|(name, ..)| *name == case.name);
            let ran = run(&stage, &path, &case);
            if let Some((name, instead, _)) = explained {
                let differs = ran.err().is_some_and(|fault| fault.contains(instead));
                assert!(differs, "{}: {name} is explained, but does not differ so", path.name);
            } else if let Err(fault) = ran {
                faults.push(format!("{}: {}: {fault}", path.name, case.name));
            }
            let is_malformed = matches!(case.expected, Expected::Malformed) && explained.is_none();
            let odd = |request: &Value| {
                request["trailers"].as_object().is_some_and(|trailers| !trailers.is_empty())
            };
            assert!(
                !server.requests().iter().any(odd),
                "{}: {}: trailers that none sent",
                path.name,
                case.name
            );
            // An earlier case's may be told late.
            let earlier = ["/first", "/slow", "/quick"].map(Value::from);
            let whole: Vec<_> = server
                .requests()
                .iter()
                .filter(|request| !earlier.contains(&request["path"]))
                .map(|request| request["target"].clone())
                .collect();
            if is_malformed && !whole.is_empty() {
                faults.push(format!("{}: {}: the server received {whole:?}", path.name, case.name));
            }
        }
        assert_eq!(
            stage.web.ask_http2(path.to, Ask::get("/after")).status,
            200,
            "{}: others go on",
            path.name
        );
    }
    assert!(faults.is_empty(), "{} of {count} cases:\n{}", faults.len(), faults.join("\n"));
    stage.lab.down();
}
