//! Preflight and actual answers.

use std::time::Duration;

use http::{HeaderMap, Method};

use super::fixtures::headers;
use crate::model::Cors;
use crate::route::filters::{actual, preflight};

fn list(names: &[&str]) -> Vec<std::sync::Arc<str>> {
    names.iter().map(|name| (*name).into()).collect()
}

fn origins(patterns: &[&str]) -> Cors {
    Cors { allow_origins: list(patterns), ..Cors::default() }
}

/// Headers but `vary`, sorted, as `name: value`.
fn told(headers: &HeaderMap) -> Vec<String> {
    let mut lines: Vec<_> = headers
        .iter()
        .filter(|(name, _)| *name != "vary")
        .map(|(name, value)| format!("{name}: {}", value.to_str().expect("text")))
        .collect();
    lines.sort_unstable();
    lines
}

/// What a browser at this origin is told before it sends `PUT` with `x-a` and `authorization`.
fn asked(cors: &Cors, origin: &str) -> Vec<String> {
    let request = headers(&[
        ("origin", origin),
        ("access-control-request-method", "PUT"),
        ("access-control-request-headers", "authorization,x-a"),
    ]);
    told(&preflight(cors, &Method::OPTIONS, &request).expect("a preflight"))
}

#[test]
fn a_preflight_is_options_with_origin_and_method() {
    let cors = origins(&["*"]);
    let full = [("origin", "https://a.example"), ("access-control-request-method", "PUT")];
    assert!(preflight(&cors, &Method::OPTIONS, &headers(&full)).is_some());
    assert!(preflight(&cors, &Method::GET, &headers(&full)).is_none());
    assert!(preflight(&cors, &Method::OPTIONS, &headers(&full[..1])).is_none());
    assert!(preflight(&cors, &Method::OPTIONS, &headers(&full[1..])).is_none());
}

#[test]
fn a_preflight_tells_the_lists_as_written() {
    let cors = Cors {
        allow_origins: list(&["https://a.example"]),
        allow_credentials: true,
        allow_methods: list(&["GET", "PUT"]),
        allow_headers: list(&["x-a", "x-b"]),
        expose_headers: list(&["x-c"]),
        max_age: Some(Duration::from_secs(60)),
    };
    assert_eq!(
        asked(&cors, "https://a.example"),
        [
            "access-control-allow-credentials: true",
            "access-control-allow-headers: x-a, x-b",
            "access-control-allow-methods: GET, PUT",
            "access-control-allow-origin: https://a.example",
            "access-control-max-age: 60",
        ]
    );
    assert!(asked(&cors, "https://b.example").is_empty());
}

#[test]
fn wildcards_allow_what_was_asked_for() {
    for allow_credentials in [false, true] {
        let cors = Cors {
            allow_credentials,
            allow_methods: list(&["*"]),
            allow_headers: list(&["*"]),
            ..origins(&["*"])
        };
        let mut expected = vec![
            "access-control-allow-headers: authorization,x-a",
            "access-control-allow-methods: PUT",
            "access-control-allow-origin: https://a.example",
            "access-control-max-age: 5",
        ];
        if allow_credentials {
            expected.insert(0, "access-control-allow-credentials: true");
        }
        assert_eq!(asked(&cors, "https://a.example"), expected);
        let request = headers(&[("origin", "https://a.example"), ("access-control-request-method", "PUT")]);
        let answer = preflight(&cors, &Method::OPTIONS, &request).expect("a preflight");
        assert!(!answer.contains_key("access-control-allow-headers"));
    }
}

#[test]
fn origins_match_by_scheme_host_and_port() {
    let table = [
        ("https://a.example", "https://a.example", true),
        ("https://a.example", "HTTPS://A.example", false),
        ("https://A.example", "https://a.example", true),
        ("https://a.example", "https://a.example:443", true),
        ("https://a.example:443", "https://a.example", true),
        ("http://a.example:80", "http://a.example", true),
        ("https://a.example", "http://a.example", false),
        ("https://a.example", "https://a.example:8443", false),
        ("https://a.example:8443", "https://a.example:8443", true),
        ("https://a.example", "https://b.a.example", false),
        ("https://a.example", "https://a.example.evil.test", false),
        ("https://*.example", "https://a.example", true),
        ("https://*.example", "https://a.b.example", true),
        ("https://*.example", "https://example", false),
        ("https://*.example", "https://.example", false),
        ("https://*.example", "https://evilexample", false),
        ("https://*.example", "https://a.example:8443", false),
        ("https://*.example:8443", "https://a.example:8443", true),
        ("https://*", "https://anything.test", true),
        ("https://*", "http://anything.test", false),
        ("*", "http://anything.test:1", true),
        ("*", "null", true),
        ("https://a.example", "null", false),
        ("https://a.example", "", false),
        ("*", "", false),
    ];
    for (pattern, origin, expected) in table {
        let mut response = HeaderMap::new();
        actual(&origins(&[pattern]), &headers(&[("origin", origin)]), &mut response);
        assert_eq!(response.contains_key("access-control-allow-origin"), expected, "{pattern} {origin}");
    }
}

#[test]
fn an_answer_names_the_origin_and_what_scripts_may_read() {
    let request = headers(&[("origin", "https://a.example")]);
    let answer = |cors: &Cors, response: &[(&str, &str)]| {
        let mut response = headers(response);
        actual(cors, &request, &mut response);
        told(&response)
    };
    let cors = Cors { expose_headers: list(&["x-a", "x-b"]), ..origins(&["*"]) };
    assert_eq!(
        answer(&cors, &[("x-a", "1")]),
        [
            "access-control-allow-origin: https://a.example",
            "access-control-expose-headers: x-a, x-b",
            "x-a: 1"
        ]
    );
    let cors = Cors { expose_headers: list(&["*"]), ..origins(&["*"]) };
    assert_eq!(
        answer(&cors, &[]),
        ["access-control-allow-origin: https://a.example", "access-control-expose-headers: *"]
    );
    let cors = Cors { allow_credentials: true, ..cors };
    let told = answer(&cors, &[("x-a", "1")]);
    let exposed = told.iter().find(|line| line.starts_with("access-control-expose")).expect("names");
    assert!(exposed.contains("x-a") && !exposed.contains('*'), "{exposed}");
}

#[test]
fn the_filter_speaks_for_the_backend() {
    let own = [("access-control-allow-origin", "*"), ("access-control-expose-headers", "secret"), ("x", "1")];
    let cors = origins(&["https://a.example"]);
    for origin in [&[("origin", "https://evil.example")][..], &[]] {
        let mut response = headers(&own);
        actual(&cors, &headers(origin), &mut response);
        assert_eq!(told(&response), ["x: 1"]);
    }
}

#[test]
fn caches_keep_origins_apart() {
    let cors = origins(&["https://a.example"]);
    let varied = |before: &[(&str, &str)]| {
        let mut response = headers(before);
        actual(&cors, &HeaderMap::new(), &mut response);
        let lines: Vec<_> = response.get_all("vary").iter().map(|v| v.to_str().expect("text")).collect();
        lines.join(", ")
    };
    assert_eq!(varied(&[]), "origin");
    assert_eq!(varied(&[("vary", "accept")]), "accept, origin");
    assert_eq!(varied(&[("vary", "accept, Origin")]), "accept, Origin");
    assert_eq!(varied(&[("vary", "*")]), "*");
    let request = headers(&[("origin", "https://b.example"), ("access-control-request-method", "PUT")]);
    let answer = preflight(&cors, &Method::OPTIONS, &request).expect("a preflight");
    assert!(answer.get_all("vary").iter().any(|value| value == "origin"));
}
