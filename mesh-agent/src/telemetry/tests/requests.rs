//! What a scrape and an access log hold after requests came and went.

use http::{HeaderMap, HeaderValue, Method, StatusCode, Version};

use super::*;
use crate::model::{PathMatch, RequestMatch, RouteKind, RouteName, RouteRule, RouteTimeouts};
use crate::telemetry::outcome::grpc_status;
use crate::telemetry::trace::TraceContext;

fn labels(source: &str, protocol: Protocol) -> RequestLabels {
    RequestLabels {
        reporter: Reporter::Source,
        source_workload: source.into(),
        source_namespace: "shop".into(),
        destination_workload: "orders".into(),
        destination_namespace: "shop".into(),
        destination_service: "orders".into(),
        route: "HTTPRoute/shop/orders".into(),
        protocol,
    }
}

fn answered(method: MethodClass, code: u16) -> RequestOutcome {
    RequestOutcome {
        method,
        status: (code != 0).then(|| StatusCode::from_u16(code).expect("three digits")),
        grpc_status: None,
        sent_bytes: 0,
        received_bytes: 0,
        duration: Duration::from_millis(7),
    }
}

fn route() -> RouteName {
    RouteName { kind: RouteKind::Http, namespace: "shop".into(), name: "orders".into() }
}

fn sum(text: &str, name: &str) -> u64 {
    let lines = text.lines().filter(|line| line.starts_with(&format!("{name}{{")));
    lines.map(|line| line.rsplit(' ').next().and_then(|it| it.parse::<u64>().ok()).expect("a number")).sum()
}

fn series(text: &str, name: &str) -> usize {
    text.lines().filter(|line| line.starts_with(&format!("{name}{{"))).count()
}

/// Makes a series in every family that this file is about.
pub(super) fn touch_every_family(telemetry: &Telemetry) {
    let metrics = telemetry.request_metrics(&labels("web", Protocol::Http1));
    metrics.opened();
    metrics.abandoned(&answered(MethodClass::Get, 200));
    metrics.denied(&answered(MethodClass::Get, 403), "shop/x");
    telemetry.http_refused("framing");
    telemetry.http_retried("connect_refused");
    telemetry.http_mirrored(Mirrored::Answered);
}

const WEB_TO_ORDERS: &str = r#"reporter="source",source_workload="web",source_namespace="shop",destination_workload="orders",destination_namespace="shop",destination_service="orders",route="HTTPRoute/shop/orders",protocol="http/1.1""#;

#[test]
fn request_is_counted_from_its_head_to_its_end() {
    let telemetry = Telemetry::without_access_log();
    let metrics = telemetry.request_metrics(&labels("web", Protocol::Http1));
    for _ in 0..4 {
        metrics.opened();
    }
    metrics.transferred(1, 2);
    let get = answered(MethodClass::Get, 200);
    metrics.done(&RequestOutcome { sent_bytes: 99, received_bytes: 998, ..get });
    metrics.done(&RequestOutcome { duration: Duration::from_millis(500), ..get });
    metrics.done(&RequestOutcome { duration: Duration::from_secs(90), ..answered(MethodClass::Post, 503) });
    let l = WEB_TO_ORDERS;
    check_lines(
        &telemetry.scrape(Format::OpenMetrics),
        &[
            "# TYPE weft_http_requests counter",
            &format!("weft_http_requests_total{{{l},method=\"GET\",code=\"200\",grpc_status=\"\"}} 2"),
            &format!("weft_http_requests_total{{{l},method=\"POST\",code=\"503\",grpc_status=\"\"}} 1"),
            &format!("weft_http_requests_in_flight{{{l}}} 1"),
            &format!("weft_http_request_bytes_total{{{l}}} 100"),
            &format!("weft_http_response_bytes_total{{{l}}} 1000"),
            "# TYPE weft_http_request_duration_seconds histogram",
            "# UNIT weft_http_request_duration_seconds seconds",
            &format!("weft_http_request_duration_seconds_sum{{{l}}} 90.507"),
            &format!("weft_http_request_duration_seconds_count{{{l}}} 3"),
            &format!("weft_http_request_duration_seconds_bucket{{le=\"0.005\",{l}}} 0"),
            &format!("weft_http_request_duration_seconds_bucket{{le=\"0.01\",{l}}} 1"),
            &format!("weft_http_request_duration_seconds_bucket{{le=\"0.25\",{l}}} 1"),
            // A bound belongs to its bucket.
            &format!("weft_http_request_duration_seconds_bucket{{le=\"0.5\",{l}}} 2"),
            &format!("weft_http_request_duration_seconds_bucket{{le=\"60.0\",{l}}} 2"),
            &format!("weft_http_request_duration_seconds_bucket{{le=\"+Inf\",{l}}} 3"),
        ],
    );
}

#[test]
fn request_that_is_broken_off_is_counted_with_who_did_it() {
    let telemetry = Telemetry::without_access_log();
    let metrics = telemetry.request_metrics(&labels("web", Protocol::Http1));
    for _ in 0..4 {
        metrics.opened();
    }
    metrics.abandoned(&RequestOutcome { sent_bytes: 5, ..answered(MethodClass::Put, 0) });
    metrics.cut_short(&answered(MethodClass::Get, 200), CutBy::Client);
    metrics.cut_short(&answered(MethodClass::Get, 200), CutBy::Server);
    metrics.cut_short(&answered(MethodClass::Get, 200), CutBy::Agent);
    let l = WEB_TO_ORDERS;
    check_lines(
        &telemetry.scrape(Format::OpenMetrics),
        &[
            &format!("weft_http_requests_total{{{l},method=\"PUT\",code=\"0\",grpc_status=\"\"}} 1"),
            &format!("weft_http_requests_total{{{l},method=\"GET\",code=\"200\",grpc_status=\"\"}} 3"),
            &format!("weft_http_requests_cut_short_total{{{l},by=\"client\"}} 2"),
            &format!("weft_http_requests_cut_short_total{{{l},by=\"server\"}} 1"),
            &format!("weft_http_requests_cut_short_total{{{l},by=\"agent\"}} 1"),
            &format!("weft_http_requests_in_flight{{{l}}} 0"),
            &format!("weft_http_request_bytes_total{{{l}}} 5"),
            &format!("weft_http_request_duration_seconds_count{{{l}}} 0"),
        ],
    );
}

#[test]
fn refused_request_is_counted_as_answered_and_as_denied() {
    let telemetry = Telemetry::without_access_log();
    let metrics = telemetry.request_metrics(&labels("web", Protocol::Http1));
    metrics.denied(&answered(MethodClass::Delete, 403), "shop/only-readers");
    let l = WEB_TO_ORDERS;
    check_lines(
        &telemetry.scrape(Format::OpenMetrics),
        &[
            &format!("weft_http_requests_total{{{l},method=\"DELETE\",code=\"403\",grpc_status=\"\"}} 1"),
            &format!("weft_http_requests_denied_total{{{l},policy=\"shop/only-readers\"}} 1"),
            &format!("weft_http_requests_in_flight{{{l}}} 0"),
            &format!("weft_http_request_duration_seconds_count{{{l}}} 0"),
        ],
    );
}

#[test]
fn every_code_and_grpc_status_falls_into_a_closed_set() {
    let telemetry = Telemetry::without_access_log();
    let metrics = telemetry.request_metrics(&labels("web", Protocol::Grpc));
    for code in 100..=999 {
        metrics.opened();
        metrics.done(&answered(MethodClass::Get, code));
    }
    for status in 0..300 {
        metrics.opened();
        metrics.done(&RequestOutcome { grpc_status: Some(status), ..answered(MethodClass::Post, 200) });
    }
    let text = telemetry.scrape(Format::OpenMetrics);
    let value = |code: &str, status: &str| {
        let label = format!("code=\"{code}\",grpc_status=\"{status}\"");
        let line = text.lines().find(|line| line.contains(&label)).unwrap_or_else(|| panic!("no {label}"));
        line.rsplit(' ').next().and_then(|it| it.parse::<u64>().ok()).expect("a number")
    };
    for exact in ["100", "200", "206", "301", "308", "404", "418", "429", "499", "500", "504", "511", "599"] {
        let is_registered = !["418", "499", "599"].contains(&exact);
        assert_eq!(text.contains(&format!("code=\"{exact}\"")), is_registered, "{exact}");
    }
    assert_eq!((value("6xx", ""), value("9xx", "")), (100, 100));
    assert_eq!((value("200", "0"), value("200", "16"), value("200", "other")), (1, 1, 283));
    assert_eq!(sum(&text, "weft_http_requests_total"), 1200, "nothing is lost");
    assert!(series(&text, "weft_http_requests_total") < 100);
}

#[test]
fn answers_beyond_the_fast_list_are_counted_once_each() {
    let telemetry = Telemetry::without_access_log();
    let metrics = telemetry.request_metrics(&labels("web", Protocol::Http1));
    let codes: Vec<u16> = (200..=208).chain(400..=417).collect();
    for method in [MethodClass::Get, MethodClass::Post] {
        for round in 1..=3 {
            for code in &codes {
                metrics.opened();
                metrics.done(&answered(method, *code));
            }
            let text = telemetry.scrape(Format::OpenMetrics);
            for code in &codes {
                let label = format!(
                    "weft_http_requests_total{{{WEB_TO_ORDERS},method=\"{}\",code=\"{code}\",grpc_status=\"\"}} {round}",
                    method.label()
                );
                check_lines(&text, &[&label]);
            }
        }
    }
}

#[test]
fn requests_counted_by_many_threads_at_once_all_count() {
    let telemetry = Telemetry::without_access_log();
    let codes: Vec<u16> = (200..=208).chain(400..=417).collect();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let metrics = telemetry.request_metrics(&labels("web", Protocol::Http2));
                for round in 0..200 {
                    metrics.opened();
                    metrics.done(&answered(MethodClass::Get, codes[round % codes.len()]));
                }
            });
        }
    });
    let text = telemetry.scrape(Format::OpenMetrics);
    assert_eq!(sum(&text, "weft_http_requests_total"), 800);
    assert_eq!(series(&text, "weft_http_requests_total"), codes.len());
    assert_eq!(sum(&text, "weft_http_request_duration_seconds_count"), 800);
}

#[test]
fn request_labels_beyond_the_bound_are_counted_as_other() {
    let telemetry =
        Telemetry::start(&Settings { label_sets_max: 4, ..Settings::default() }).expect("records are off");
    for job in 0..20 {
        let metrics = telemetry.request_metrics(&labels(&format!("job-{job}"), Protocol::Http1));
        metrics.opened();
        metrics.done(&answered(MethodClass::Get, 404));
        metrics.opened();
        metrics.cut_short(&answered(MethodClass::Get, 200), CutBy::Server);
        metrics.denied(&answered(MethodClass::Get, 403), &format!("shop/policy-{job}"));
    }
    let text = telemetry.scrape(Format::OpenMetrics);
    // Four label sets as they are and one folded.
    assert_eq!(series(&text, "weft_http_requests_in_flight"), 5);
    assert_eq!(series(&text, "weft_http_requests_cut_short_total"), 5);
    assert_eq!(series(&text, "weft_http_requests_denied_total"), 5);
    // The folded one by class: 2xx, 4xx.
    assert_eq!(series(&text, "weft_http_requests_total"), 6);
    assert!(text.contains(r#"route="other",protocol="http/1.1",method="GET",code="4xx",grpc_status="""#));
    assert_eq!(sum(&text, "weft_http_requests_total"), 60, "nothing is lost by folding");
    assert_eq!(sum(&text, "weft_http_requests_denied_total"), 20);
    let folded = text.lines().find(|line| line.starts_with("weft_metrics_folded_total")).expect("is there");
    assert!(!folded.ends_with(" 0"), "{folded}");
}

#[test]
fn request_labels_name_route_and_service() {
    let service = ServiceName { namespace: "shop".into(), name: "orders".into() };
    let with_route = RequestLabels::new(
        Reporter::Source,
        None,
        None,
        Some(&service),
        Some(&route()),
        Protocol::of(Version::HTTP_2, &HeaderMap::new()),
    );
    assert_eq!(&*with_route.route, "HTTPRoute/shop/orders");
    assert_eq!((&*with_route.destination_namespace, &*with_route.destination_service), ("shop", "orders"));
    assert_eq!((&*with_route.source_workload, with_route.protocol), ("unknown", Protocol::Http2));
    let without = RequestLabels::new(Reporter::Source, None, None, None, None, Protocol::Http1);
    assert_eq!((&*without.route, &*without.destination_service), ("", ""));
}

#[test]
fn grpc_is_known_by_its_content_type() {
    for (version, content_type, expected) in [
        (Version::HTTP_2, Some("application/grpc"), Protocol::Grpc),
        (Version::HTTP_2, Some("application/grpc+proto"), Protocol::Grpc),
        (Version::HTTP_2, Some("application/grpc;charset=utf-8"), Protocol::Grpc),
        (Version::HTTP_2, Some("application/grpc-web"), Protocol::Http2),
        (Version::HTTP_2, Some("application/json"), Protocol::Http2),
        (Version::HTTP_2, None, Protocol::Http2),
        (Version::HTTP_11, Some("application/grpc"), Protocol::Http1),
        (Version::HTTP_10, None, Protocol::Http1),
    ] {
        let mut headers = HeaderMap::new();
        if let Some(content_type) = content_type {
            headers.insert(http::header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        }
        assert_eq!(Protocol::of(version, &headers), expected, "{version:?} {content_type:?}");
    }
}

#[test]
fn grpc_status_is_read_from_trailers() {
    for (value, expected) in [
        (None, None),
        (Some("0"), Some(0)),
        (Some("14"), Some(14)),
        (Some("77"), Some(77)),
        (Some("99999999"), Some(u16::MAX)),
        (Some("OK"), Some(u16::MAX)),
        (Some(""), Some(u16::MAX)),
    ] {
        let mut trailers = HeaderMap::new();
        if let Some(value) = value {
            trailers.insert("grpc-status", HeaderValue::from_static(value));
        }
        assert_eq!(grpc_status(&trailers), expected, "{value:?}");
    }
}

#[test]
fn invented_methods_are_one_series() {
    for (method, expected) in [
        (Method::GET, "GET"),
        (Method::PATCH, "PATCH"),
        (Method::CONNECT, "CONNECT"),
        (Method::from_bytes(b"PROPFIND").expect("a token"), "other"),
        (Method::from_bytes(b"get").expect("methods are told apart by case"), "other"),
    ] {
        assert_eq!(MethodClass::of(&method).label(), expected);
    }
}

#[test]
fn small_http_families_count_by_reason() {
    let telemetry = Telemetry::without_access_log();
    telemetry.http_refused("head_too_large");
    telemetry.http_retried("connect_refused");
    telemetry.http_retried("connect_refused");
    for result in [Mirrored::Answered, Mirrored::Failed, Mirrored::Dropped] {
        telemetry.http_mirrored(result);
    }
    check_lines(
        &telemetry.scrape(Format::OpenMetrics),
        &[
            r#"weft_http_refused_total{reason="head_too_large"} 1"#,
            r#"weft_http_upstream_retries_total{reason="connect_refused"} 2"#,
            r#"weft_http_mirrored_total{result="answered"} 1"#,
            r#"weft_http_mirrored_total{result="failed"} 1"#,
            r#"weft_http_mirrored_total{result="dropped"} 1"#,
        ],
    );
}

fn request_record(http: HttpRecord) -> RequestRecord {
    let connection = record(0);
    RequestRecord {
        time: connection.time,
        duration: connection.duration,
        reporter: Reporter::Destination,
        path: Path::Tunnel,
        source: connection.source,
        destination: connection.destination,
        http,
        reason: None,
        tls: None,
        trace: None,
    }
}

/// The record as it stands in the log.
fn written(record: RequestRecord) -> (String, Value) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("access.log");
    let telemetry = logging_to(&path);
    telemetry.record_request(record);
    telemetry.flush_access_log();
    let mut values = lines(&path);
    assert_eq!(values.len(), 1, "one record is one line");
    (fs::read_to_string(&path).expect("the log is there"), values.remove(0))
}

#[test]
fn request_record_has_the_documented_shape() {
    let mut headers = HeaderMap::new();
    headers.insert("user-agent", HeaderValue::from_static("curl/8.5.0"));
    let mut http = HttpRecord::new(
        Version::HTTP_11,
        &Method::POST,
        Some("orders.shop:8080"),
        "/v1/orders?token=secret#part",
        &headers,
    );
    let any =
        RequestMatch { path: PathMatch::Prefix("".into()), method: None, headers: vec![], query: vec![] };
    let mut rule = RouteRule {
        index: 3,
        name: None,
        matches: vec![any],
        filters: vec![],
        backends: vec![],
        timeouts: RouteTimeouts::default(),
    };
    http.matched(&route(), &rule);
    assert_eq!(http.rule.as_deref(), Some("3"));
    rule.name = Some("create".into());
    http.matched(&route(), &rule);
    http.status = Some(StatusCode::CREATED);
    http.grpc_status = Some(0);
    http.request_bytes = 10;
    http.response_bytes = 20;
    http.upstream_attempts = 2;
    http.cut_short = Some(CutBy::Client);
    let context = TraceContext::parse(b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
    let full = RequestRecord {
        reason: Some("shop/allow-web".into()),
        tls: Some(TlsRecord { version: "TLSv1.3", key_exchange: "X25519MLKEM768" }),
        trace: context,
        ..request_record(http)
    };
    let (text, value) = written(full);
    let expected = json!({
        "time": "2023-11-14T22:13:20.123456Z",
        "duration_ms": 12.345,
        "reporter": "destination",
        "path": "tunnel",
        "source": {
            "workload": "web", "namespace": "shop", "pod": "web-7d4", "address": "10.1.1.2:40000",
            "identity": "spiffe://cluster.local/ns/shop/sa/web",
        },
        "destination": {
            "service": "shop/orders", "dialled": "10.96.0.10:80", "endpoint": "[fd00::1]:8080",
        },
        "http": {
            "version": "HTTP/1.1", "method": "POST", "host": "orders.shop:8080", "path": "/v1/orders",
            "user_agent": "curl/8.5.0", "route": "HTTPRoute/shop/orders", "rule": "create", "status": 201,
            "grpc_status": 0, "request_bytes": 10, "response_bytes": 20, "upstream_attempts": 2,
            "cut_short": "client",
        },
        "reason": "shop/allow-web",
        "tls": {"version": "TLSv1.3", "key_exchange": "X25519MLKEM768"},
        "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736",
        "span_id": "00f067aa0ba902b7",
    });
    assert_eq!(value, expected);
    assert!(!text.contains("secret"), "queries stay out of the log");
}

#[test]
fn request_record_leaves_out_what_is_not_known() {
    let http = HttpRecord::new(Version::HTTP_2, &Method::GET, None, "/", &HeaderMap::new());
    let (_, value) = written(request_record(http));
    let expected = json!({
        "version": "HTTP/2", "method": "GET", "path": "/",
        "request_bytes": 0, "response_bytes": 0, "upstream_attempts": 0,
    });
    assert_eq!(value["http"], expected);
    for absent in ["reason", "tls", "trace_id", "span_id", "trace"] {
        assert!(value.get(absent).is_none(), "{absent}");
    }
}

#[test]
fn text_from_clients_cannot_forge_or_hide_a_line() {
    let mut headers = HeaderMap::new();
    let agent = HeaderValue::from_bytes(b"x\x9b2J\",\"status\":200}\t\xe2\x80\xae").expect("obs-text");
    headers.insert("user-agent", agent);
    let http = HttpRecord::new(
        Version::HTTP_11,
        &Method::GET,
        Some("a\"b\\c\u{7f}"),
        "/a\r\n{\"forged\":1}\u{1b}[2J\u{202e}\u{2028}",
        &headers,
    );
    let (text, value) = written(request_record(http));
    let line = text.strip_suffix('\n').expect("ends with a line feed");
    assert!(line.bytes().all(|byte| matches!(byte, b' '..=b'~')), "only visible ASCII: {line}");
    assert_eq!(value["http"]["path"], "/a%0D%0A{\"forged\":1}%1B[2J%E2%80%AE%E2%80%A8");
    assert_eq!(value["http"]["host"], "a\"b\\c%7F");
    assert_eq!(value["http"]["user_agent"], "x%9B2J\",\"status\":200}%09%E2%80%AE");
    assert!(value["http"].get("status").is_none());
}

#[test]
fn long_text_is_cut_and_says_so() {
    use crate::telemetry::printable::{PATH_LEN_MAX, USER_AGENT_LEN_MAX};
    let fits = "x".repeat(PATH_LEN_MAX);
    assert_eq!(Printable::path(&fits).as_str(), fits);
    assert_eq!(Printable::path(&format!("{fits}?{fits}")).as_str(), fits);
    let cut = format!("{fits}\u{2026}");
    assert_eq!(Printable::path(&format!("{fits}y")).as_str(), cut);
    // A character that the cut goes through leaves its first bytes.
    let split = format!("{}\u{e9}", &fits[1..]);
    assert_eq!(Printable::path(&split).as_str(), format!("{}%C3\u{2026}", &fits[1..]));
    let mut headers = HeaderMap::new();
    headers.insert("user-agent", HeaderValue::from_str(&"u".repeat(9000)).expect("a value"));
    let agent = Printable::user_agent(&headers).expect("is there");
    assert_eq!(agent.as_str().chars().count(), USER_AGENT_LEN_MAX + 1);
    let method = Method::from_bytes(&[b'M'; 5000]).expect("a token");
    assert!(Printable::method(&method).as_str().len() < 40);
}

#[test]
fn requests_and_connections_share_a_log_in_order() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("access.log");
    let telemetry = logging_to(&path);
    let http = HttpRecord::new(Version::HTTP_11, &Method::GET, None, "/", &HeaderMap::new());
    telemetry.record_request(request_record(http.clone()));
    telemetry.record(record(1));
    telemetry.record_request(request_record(http));
    telemetry.flush_access_log();
    let is_request: Vec<bool> = lines(&path).iter().map(|line| line.get("http").is_some()).collect();
    assert_eq!(is_request, [true, false, true]);
}
