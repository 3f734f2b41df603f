//! Streams of requests, whole and in pieces, and what the guard says to them.

use super::*;

const HEAD_BYTES_MAX: usize = 256;

/// Feeds a stream whole, byte by byte and in pieces of seven: the answer must not depend on how it was cut.
#[track_caller]
fn check(stream: &str, expected: Option<Violation>) {
    for piece in [stream.len().max(1), 1, 7] {
        let mut guard = Guard::new(HEAD_BYTES_MAX, 10);
        let mut bytes = stream.as_bytes().to_vec();
        let found = bytes.chunks_mut(piece).find_map(|piece| guard.inspect(piece));
        assert_eq!(found, expected, "in pieces of {piece}: {}", stream.escape_debug());
        if expected.is_none() {
            assert_eq!(bytes, stream.as_bytes(), "let pass means unchanged");
        } else {
            assert!(guard.is_refused() && bytes.contains(&b'\r'), "the parser must stumble");
        }
    }
}

#[test]
fn sound_requests_pass_one_after_the_other() {
    check("GET / HTTP/1.1\r\nHost: a\r\n\r\nGET /b HTTP/1.1\r\nHost: a\r\n\r\n", None);
    check(
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhe\nloGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        None,
    );
    check(
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n3;a=b\r\na\nb\r\n0\r\nX: y\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        None,
    );
    check(
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET / HTTP/1.0\r\n\r\n",
        None,
    );
    check("\r\nGET / HTTP/1.1\r\nHost:a\r\nX:\r\n\r\n", None);
    check("GET / HTTP/1.0\r\n\r\n", None);
}

#[test]
fn what_follows_a_request_for_another_protocol_waits_for_its_answer() {
    let ask = "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\r\n";
    check(ask, None);
    check(&format!("{ask}\x01"), Some(Violation::TooEarly));
    check("CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\nany", Some(Violation::TooEarly));
    for (granted, expected) in [(true, None), (false, Some(Violation::BareLf))] {
        let mut guard = Guard::new(HEAD_BYTES_MAX, 10);
        assert_eq!(guard.inspect(&mut ask.as_bytes().to_vec()), None);
        assert!(guard.awaits_answer());
        guard.answered(granted);
        assert_eq!(guard.inspect(&mut b"any\nthing".to_vec()), expected);
    }
    check("GET / HTTP/1.1\r\nHost: a\r\nUpgrade: h2c\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", None);
}

#[test]
fn too_many_headers_are_refused() {
    let headers = "X: y\r\n".repeat(10);
    check(&format!("GET / HTTP/1.1\r\nHost: a\r\n{headers}\r\n"), Some(Violation::HeadTooLarge));
}

#[test]
fn lines_that_two_parsers_could_cut_differently_are_refused() {
    check("GET / HTTP/1.1\nHost: a\r\n\r\n", Some(Violation::BareLf));
    check("GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n", Some(Violation::BareLf));
    check("GET / HTTP/1.1\r\nHost: a\r\n\n", Some(Violation::BareLf));
    check("GET / HTTP/1.1\r\nHost: a\rb\r\n\r\n", Some(Violation::Control));
    check("GET / HTTP/1.1\r\nHost: a\r\n X: b\r\n\r\n", Some(Violation::Folding));
    check("GET / HTTP/1.1\r\n Host: a\r\n\r\n", Some(Violation::Folding));
    check("GET / HTTP/1.1\r\nHost : a\r\n\r\n", Some(Violation::HeaderName));
    check("GET / HTTP/1.1\r\nHost: a\r\nnonsense\r\n\r\n", Some(Violation::HeaderName));
    check("GET / HTTP/1.1\r\nHost: a\r\n: x\r\n\r\n", Some(Violation::HeaderName));
}

#[test]
fn lengths_that_leave_doubt_are_refused() {
    let head = |headers: &str| format!("POST / HTTP/1.1\r\nHost: a\r\n{headers}\r\n\r\n");
    check(&head("Content-Length: 5\r\nTransfer-Encoding: chunked"), Some(Violation::LengthAndEncoding));
    check(&head("Transfer-Encoding: chunked\r\nContent-Length: 5"), Some(Violation::LengthAndEncoding));
    check(&head("Content-Length: 5\r\nContent-Length: 5"), Some(Violation::ContentLength));
    for value in ["+5", "-1", "0x5", "5 5", "5,5", "", "5a", "99999999999999999999"] {
        check(&head(&format!("Content-Length: {value}")), Some(Violation::ContentLength));
    }
    for value in ["xchunked", "chunked, chunked", "gzip", "identity", "chunked;q=1", "\"chunked\""] {
        check(&head(&format!("Transfer-Encoding: {value}")), Some(Violation::TransferEncoding));
    }
    check(
        &head("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked"),
        Some(Violation::TransferEncoding),
    );
    check("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", Some(Violation::TransferEncoding));
}

#[test]
fn chunks_that_leave_doubt_are_refused() {
    let body = |body: &str| format!("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{body}");
    for chunks in [
        "x\r\n",
        "-1\r\n",
        "\r\n",
        "1 \r\n",
        "1\nab",
        "11111111111111111\r\n",
        "1\r\nab\r\n",
        "1\r\na\n",
        "1;\x01\r\n",
    ] {
        check(&body(chunks), Some(Violation::Chunk));
    }
    check(&body(&format!("1;{}\r\n", "x".repeat(2000))), Some(Violation::Chunk));
    check(&body("0\r\n folded: x\r\n\r\n"), Some(Violation::Folding));
}

#[test]
fn request_lines_and_hosts_are_looked_at() {
    for line in [
        "GET  / HTTP/1.1",
        "GET / HTTP/1.1 ",
        "G@T / HTTP/1.1",
        "GET / HTTP/2.0",
        "GET /",
        "GET /\u{1} HTTP/1.1",
    ] {
        check(&format!("{line}\r\nHost: a\r\n\r\n"), Some(Violation::RequestLine));
    }
    check("GET / HTTP/1.1\r\n\r\n", Some(Violation::Host));
    check("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", Some(Violation::Host));
}

#[test]
fn a_head_without_end_is_refused_once_it_is_too_large() {
    check(
        &format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}", "x".repeat(HEAD_BYTES_MAX)),
        Some(Violation::HeadTooLarge),
    );
    check(
        &format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(HEAD_BYTES_MAX)),
        Some(Violation::HeadTooLarge),
    );
}
