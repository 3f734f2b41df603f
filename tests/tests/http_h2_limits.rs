//! HTTP/2 towards clients: its windows, its preface, and what keeps a client from wearing the agent out.

use std::time::Duration;

use mesh_tests::Ask;
use mesh_tests::http::frames::{
    Frame, Http2, Outcome, PREFACE, block, code, flag, frame, get, kind, post, settings,
};
use mesh_tests::http::{Path, Stage};

/// Reads frames until `stop` says so, or nothing more comes.
fn read_until(http: &mut Http2, mut stop: impl FnMut(&Frame) -> bool) -> Vec<Frame> {
    let mut frames = Vec::new();
    while let Ok(frame) = http.next_frame() {
        let is_last = stop(&frame);
        frames.push(frame);
        if is_last {
            break;
        }
    }
    frames
}

fn data_bytes(frames: &[Frame]) -> usize {
    frames.iter().filter(|frame| frame.kind == kind::DATA).map(|frame| frame.payload.len()).sum()
}

#[test]
fn windows_are_kept() {
    let stage = Stage::up();
    for path in stage.routed() {
        let connect = || Http2::open(stage.web.dial(path.to).unwrap()).unwrap();
        let patience = Duration::from_millis(400);
        // 6.9.2: a new initial size changes the windows of open streams, below zero if need be.
        let mut http = connect();
        http.be_patient(patience).unwrap();
        http.send(kind::SETTINGS, 0, 0, &settings(&[(4, 3)])).unwrap();
        http.request(1, &post("/window", &[("x-do", "chunks=4")])).unwrap();
        assert_eq!(data_bytes(&read_until(&mut http, |_| false)), 3, "{}: 6.9.1", path.name);
        http.send(kind::SETTINGS, 0, 0, &settings(&[(4, 1)])).unwrap();
        http.send(kind::WINDOW_UPDATE, 0, 1, &[0, 0, 0, 2]).unwrap();
        assert_eq!(data_bytes(&read_until(&mut http, |_| false)), 0, "{}: the window is 0 now", path.name);
        http.send(kind::WINDOW_UPDATE, 0, 1, &[0, 0, 0, 5]).unwrap();
        assert_eq!(data_bytes(&read_until(&mut http, |_| false)), 5, "{}", path.name);
        http.send(kind::SETTINGS, 0, 0, &settings(&[(4, 100_000)])).unwrap();
        let rest = read_until(&mut http, |frame| {
            frame.stream == 1 && frame.flags & flag::END_STREAM != 0 && frame.kind == kind::DATA
        });
        assert_eq!(data_bytes(&rest), 4000 - 8, "{}", path.name);
        // 6.9: the connection's window is shared by its streams.
        let mut http = connect();
        http.be_patient(patience).unwrap();
        http.send(kind::SETTINGS, 0, 0, &settings(&[(4, 1 << 20)])).unwrap();
        for stream in [1, 3, 5] {
            http.request(stream, &post("/window", &[("x-do", "chunks=50")])).unwrap();
        }
        assert_eq!(
            data_bytes(&read_until(&mut http, |_| false)),
            65_535,
            "{}: 6.9 of the connection",
            path.name
        );
        http.send(kind::WINDOW_UPDATE, 0, 0, &(1u32 << 20).to_be_bytes()).unwrap();
        assert_eq!(data_bytes(&read_until(&mut http, |_| false)), 150_000 - 65_535, "{}", path.name);
    }
    stage.lab.down();
}

#[test]
fn a_preface_that_is_none_is_refused() {
    let stage = Stage::up();
    for path in stage.routed() {
        let first = read_until(
            &mut {
                let mut http = Http2::bare(stage.web.dial(path.to).unwrap()).unwrap();
                http.raw(PREFACE).unwrap();
                http.raw(&frame(kind::SETTINGS, 0, 0, &[])).unwrap();
                http
            },
            |_| true,
        );
        assert_eq!(
            first.first().map(|frame| (frame.kind, frame.flags)),
            Some((kind::SETTINGS, 0)),
            "{}: 3.4",
            path.name
        );
        for broken in [
            &b"PRI * HTTP/2.0\r\n\r\nSM\r\n\rX"[..],
            b"PRI * HTTP/2.0\r\n\r\nGET / HTTP/1.1\r\n\r\n",
            b"PRI * HTTP/2.0\r\nHost: a\r\n\r\n",
        ] {
            let mut stream = stage.web.dial(path.to).unwrap();
            let heard = mesh_tests::http::raw::exchange(&mut stream, broken, Duration::from_secs(2)).unwrap();
            assert_ne!(heard.ending, "silence", "{}: {broken:?}", path.name);
            assert!(!heard.text().contains(" 200 "), "{}: {}", path.name, heard.text());
        }
        // Whole, but what follows is no SETTINGS: the library goes on, where the RFC would have it end.
        let mut http = Http2::bare(stage.web.dial(path.to).unwrap()).unwrap();
        http.raw(PREFACE).unwrap();
        http.send(kind::DATA, 0, 1, b"x").unwrap();
        let outcome = http.outcome();
        let is_refused = matches!(outcome, Outcome::Closed | Outcome::ConnectionError(code::PROTOCOL_ERROR));
        assert!(is_refused, "{}: 3.4 {outcome:?}", path.name);
    }
    stage.lab.down();
}

/// Sends the same again and again until the connection takes no more; gives how often, and what came of it.
fn flood(stage: &Stage, path: &Path, times: u32, mut next: impl FnMut(u32) -> Vec<u8>) -> (u32, Outcome) {
    let mut http = Http2::open(stage.web.dial(path.to).unwrap()).unwrap();
    let mut sent = 0;
    while sent < times {
        if http.raw(&next(sent)).is_err() {
            break;
        }
        sent += 1;
    }
    let _ = http.be_patient(Duration::from_secs(2));
    loop {
        match http.outcome() {
            Outcome::Pong(_) | Outcome::Answered(..) | Outcome::StreamError(..) => {}
            last => return (sent, last),
        }
    }
}

#[test]
fn a_client_that_floods_is_sent_away_and_others_do_not_notice() {
    let stage = Stage::up();
    let path = stage.routed()[1];
    let ends = |what: &str, times: u32, (sent, outcome): (u32, Outcome)| {
        let is_away = matches!(outcome, Outcome::Closed | Outcome::ConnectionError(_));
        assert!(is_away, "{what}: after {sent} of {times} the connection lives: {outcome:?}");
        assert_eq!(stage.web.ask(path.to, Ask::get("/others")).status, 200, "{what}: others");
    };
    // CVE-2023-44487: streams that are opened and reset at once.
    let times = 20_000;
    let reset = |number: u32| {
        let stream = 2 * number + 1;
        [
            frame(kind::HEADERS, flag::END_HEADERS | flag::END_STREAM, stream, &get("/reset")),
            frame(kind::RST_STREAM, 0, stream, &code::CANCEL.to_be_bytes()),
        ]
        .concat()
    };
    let server = stage.server(&path);
    server.forget();
    ends("rapid reset", times, flood(&stage, &path, times, reset));
    let reached = server.requests().len();
    assert!(reached < 5000, "{reached} of {times} requests reached the server");
    // CVE-2019-9512, CVE-2019-9515: answers that nobody reads.
    let times = 400_000;
    ends("PING", times, flood(&stage, &path, times, |_| frame(kind::PING, 0, 0, &[0; 8])));
    ends("SETTINGS", times, flood(&stage, &path, times, |_| frame(kind::SETTINGS, 0, 0, &[])));
    // CVE-2024-27316: a header block without an end.
    let times = 4_000;
    let without_end = |number: u32| match number {
        0 => frame(kind::HEADERS, flag::END_STREAM, 1, &get("/endless")),
        _ => frame(kind::CONTINUATION, 0, 1, &block(&[("x", &"y".repeat(4000))])),
    };
    ends("CONTINUATION", times, flood(&stage, &path, times, without_end));
    let empty = |number: u32| match number {
        0 => frame(kind::HEADERS, flag::END_STREAM, 1, &get("/endless")),
        _ => frame(kind::CONTINUATION, 0, 1, &[]),
    };
    ends("empty CONTINUATION", 400_000, flood(&stage, &path, 400_000, empty));
    // CVE-2019-9518: DATA without data.
    let empty = |number: u32| match number {
        0 => frame(kind::HEADERS, flag::END_HEADERS, 1, &post("/empty", &[])),
        _ => frame(kind::DATA, 0, 1, &[]),
    };
    ends("empty DATA", 400_000, flood(&stage, &path, 400_000, empty));
    // A header block that unpacks to far more than it is: the same entry of the table again and again.
    let stream = stage.web.dial(path.to).unwrap();
    let mut http = Http2::open(stream).unwrap();
    let mut bomb = get("/bomb");
    bomb.push(0x40);
    bomb.extend(&block(&[("x", &"y".repeat(3000))])[1..]);
    bomb.resize(bomb.len() + 10_000, 0x80 | 62);
    let sent = http.request(1, &bomb);
    let outcome = http.outcome();
    let is_refused = match outcome {
        Outcome::Answered(_, status) => status == 431 || status == 400,
        Outcome::Closed | Outcome::StreamError(..) | Outcome::ConnectionError(_) => true,
        _ => false,
    };
    assert!(is_refused, "an HPACK bomb: {outcome:?} {sent:?}");
    stage.lab.down();
}
