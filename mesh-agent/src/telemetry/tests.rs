//! What a scrape and an access log hold after connections came and went.

use std::fs;
use std::path::Path as FsPath;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use super::reference::metrics_page;
use super::*;
use crate::model::{Ending, EndpointAddr, OriginalDst, Path, ServiceName};

mod requests;

fn labels(source: &str) -> ConnectionLabels {
    ConnectionLabels {
        reporter: Reporter::Source,
        source_workload: source.into(),
        source_namespace: "shop".into(),
        destination_workload: "orders".into(),
        destination_namespace: "shop".into(),
        destination_service: "orders".into(),
        path: Path::Tunnel,
    }
}

const WEB_TO_ORDERS: &str = r#"reporter="source",source_workload="web",source_namespace="shop",destination_workload="orders",destination_namespace="shop",destination_service="orders",path="tunnel""#;

#[track_caller]
fn check_lines(text: &str, expected: &[&str]) {
    for line in expected {
        assert!(text.lines().any(|found| found == *line), "no line {line}\nin\n{text}");
    }
}

#[test]
fn connection_is_counted_from_opening_to_close() {
    let telemetry = Telemetry::without_access_log();
    let metrics = telemetry.connection_metrics(&labels("web"));
    metrics.opened();
    metrics.opened();
    metrics.transferred(1, 2);
    metrics.closed(Ending::ServerReset, 99, 998, Duration::from_millis(7));
    metrics.denied("shop/only-web");
    let l = WEB_TO_ORDERS;
    check_lines(
        &telemetry.scrape(Format::OpenMetrics),
        &[
            "# TYPE weft_connections_opened counter",
            &format!("weft_connections_opened_total{{{l}}} 2"),
            &format!("weft_connections_open{{{l}}} 1"),
            &format!("weft_connections_closed_total{{{l},ending=\"server_reset\"}} 1"),
            &format!("weft_connections_denied_total{{{l},reason=\"shop/only-web\"}} 1"),
            &format!("weft_bytes_total{{{l},direction=\"sent\"}} 100"),
            &format!("weft_bytes_total{{{l},direction=\"received\"}} 1000"),
            &format!("weft_connection_duration_seconds_bucket{{le=\"0.005\",{l}}} 0"),
            &format!("weft_connection_duration_seconds_bucket{{le=\"0.01\",{l}}} 1"),
            &format!("weft_connection_duration_seconds_count{{{l}}} 1"),
            "# EOF",
        ],
    );
}

#[test]
fn every_ending_has_its_own_series() {
    let telemetry = Telemetry::without_access_log();
    let metrics = telemetry.connection_metrics(&labels("web"));
    let endings = [
        Ending::Closed,
        Ending::ClientReset,
        Ending::ServerReset,
        Ending::PolicyDenied,
        Ending::PolicyRevoked,
        Ending::ConnectRefused,
        Ending::ConnectTimeout,
        Ending::Unreachable,
        Ending::NoEndpoint,
        Ending::UnknownDestination,
        Ending::Loop,
        Ending::TlsFailed,
        Ending::IdentityMismatch,
        Ending::NoCertificate,
        Ending::TunnelFailed,
        Ending::Shutdown,
        Ending::Exhausted,
    ];
    for ending in endings {
        metrics.opened();
        metrics.closed(ending, 0, 0, Duration::ZERO);
    }
    let text = telemetry.scrape(Format::OpenMetrics);
    for ending in endings {
        check_lines(
            &text,
            &[&format!("weft_connections_closed_total{{{WEB_TO_ORDERS},ending=\"{ending}\"}} 1")],
        );
    }
}

#[test]
fn label_sets_beyond_the_bound_are_counted_as_other() {
    let telemetry =
        Telemetry::start(&Settings { label_sets_max: 4, ..Settings::default() }).expect("records are off");
    for pod in 0..20 {
        let metrics = telemetry.connection_metrics(&labels(&format!("job-{pod}")));
        metrics.opened();
        metrics.closed(Ending::Closed, 1, 1, Duration::ZERO);
        metrics.denied(&format!("shop/policy-{pod}"));
    }
    let text = telemetry.scrape(Format::OpenMetrics);
    let series = |name: &str| text.lines().filter(|line| line.starts_with(name)).count();
    // Two label sets as they are and one folded, twice for the two directions.
    assert_eq!(series("weft_connections_opened_total"), 3);
    assert_eq!(series("weft_bytes_total"), 6);
    assert!(series("weft_connections_denied_total") <= 5);
    let opened: u64 = text
        .lines()
        .filter(|line| line.starts_with("weft_connections_opened_total"))
        .map(|line| line.rsplit(' ').next().and_then(|value| value.parse::<u64>().ok()).expect("a number"))
        .sum();
    assert_eq!(opened, 20, "nothing is lost by folding");
    assert!(text.contains(r#"source_workload="other",source_namespace="other""#));
    let folded = text.lines().find(|line| line.starts_with("weft_metrics_folded_total")).expect("is there");
    assert!(!folded.ends_with(" 0"), "{folded}");
}

#[test]
fn labels_of_a_peer_outside_the_mesh_are_unknown() {
    let service = ServiceName { namespace: "shop".into(), name: "orders".into() };
    let labels = ConnectionLabels::new(Reporter::Source, Path::Plain, None, None, Some(&service));
    assert_eq!(&*labels.source_workload, "unknown");
    assert_eq!(&*labels.source_namespace, "");
    assert_eq!(&*labels.destination_workload, "unknown");
    assert_eq!((&*labels.destination_namespace, &*labels.destination_service), ("shop", "orders"));
}

#[test]
fn quotes_in_label_values_are_escaped() {
    let telemetry = Telemetry::without_access_log();
    telemetry.connection_metrics(&labels("a\"b\\c")).opened();
    assert!(telemetry.scrape(Format::OpenMetrics).contains(r#"source_workload="a\"b\\c""#));
}

#[test]
fn rooms_report_through_the_handle() {
    let telemetry = Telemetry::without_access_log();
    telemetry.certificate_expires("spiffe://td/ns/a/sa/b", SystemTime::UNIX_EPOCH + Duration::from_secs(77));
    telemetry.certificate_expires("spiffe://td/ns/a/sa/gone", SystemTime::UNIX_EPOCH);
    telemetry.certificate_dropped("spiffe://td/ns/a/sa/gone");
    telemetry.certificate_renewed(Renewal::CaRefused);
    telemetry.tunnel_opened();
    telemetry.tunnel_handshake(TunnelRole::Client, "success");
    telemetry.probe_result("half_close", true);
    telemetry.splice_enabled(true);
    telemetry.enrolled_pods(3);
    telemetry.kernel_event("opened");
    telemetry.kernel_verdicts("deny", "policy", 5);
    telemetry.kernel_verdicts("deny", "policy", 9);
    telemetry.discovery(12, 2);
    let text = telemetry.scrape(Format::OpenMetrics);
    check_lines(
        &text,
        &[
            r#"weft_certificate_expiry_timestamp_seconds{spiffe_id="spiffe://td/ns/a/sa/b"} 77"#,
            r#"weft_certificate_renewals_total{result="ca_refused"} 1"#,
            "weft_tunnels_open 1",
            r#"weft_tunnel_handshakes_total{role="client",result="success"} 1"#,
            r#"weft_probe_result{probe="half_close"} 1"#,
            "weft_splice_enabled 1",
            "weft_enrolled_pods 3",
            r#"weft_kernel_events_total{kind="opened"} 1"#,
            r#"weft_kernel_verdicts_total{verdict="deny",reason="policy"} 9"#,
            "weft_discovery_version 12",
            "weft_discovery_problems 2",
            &format!("weft_build_info{{version=\"{}\"}} 1", env!("CARGO_PKG_VERSION")),
        ],
    );
    assert!(!text.contains("sa/gone"));
}

#[test]
fn process_tells_about_itself() {
    let text = Telemetry::without_access_log().scrape(Format::OpenMetrics);
    let value = |name: &str| -> f64 {
        let line = text.lines().find(|line| line.starts_with(&format!("{name} "))).expect(name);
        line.rsplit(' ').next().and_then(|value| value.parse().ok()).expect("a number")
    };
    assert!(value("weft_process_resident_memory_bytes") > 1e6);
    assert!(value("weft_process_open_fds") >= 3.0);
    assert!(value("weft_process_threads") >= 1.0);
    assert!(value("weft_process_cpu_seconds_total") >= 0.0);
    // Later than 2020, and not after now as the file system tells it.
    let scratch = tempfile::NamedTempFile::new().expect("a temporary file");
    let now = scratch.as_file().metadata().and_then(|m| m.modified()).expect("a time");
    let now = now.duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs_f64();
    assert!((1.577e9..=now + 2.0).contains(&value("weft_process_start_time_seconds")));
}

#[test]
fn hooks_run_before_a_scrape() {
    let telemetry = Telemetry::without_access_log();
    telemetry.before_scrape(|telemetry| telemetry.kernel_verdicts("pass", "loopback", 41));
    check_lines(
        &telemetry.scrape(Format::OpenMetrics),
        &[r#"weft_kernel_verdicts_total{verdict="pass",reason="loopback"} 41"#],
    );
}

#[test]
fn prometheus_format_names_counters_in_full() {
    let telemetry = Telemetry::without_access_log();
    telemetry.kernel_event("opened");
    telemetry.connection_metrics(&labels("web")).opened();
    let text = telemetry.scrape(Format::Prometheus);
    check_lines(
        &text,
        &[
            "# HELP weft_kernel_events_total Events received from the kernel programs.",
            "# TYPE weft_kernel_events_total counter",
            r#"weft_kernel_events_total{kind="opened"} 1"#,
            "# TYPE weft_build_info gauge",
            "# TYPE weft_connection_duration_seconds histogram",
            "# TYPE weft_process_cpu_seconds_total counter",
        ],
    );
    assert!(!text.contains("# UNIT") && !text.contains("# EOF"));
}

#[test]
fn plain_text_is_served_to_those_who_ask_only_for_it() {
    let prometheus =
        "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.1";
    for (accept, expected) in [
        (None, Format::OpenMetrics),
        (Some("*/*"), Format::OpenMetrics),
        (Some(prometheus), Format::OpenMetrics),
        (Some("text/plain; version=0.0.4"), Format::Prometheus),
        (Some("text/html,application/xhtml+xml,*/*;q=0.8"), Format::Prometheus),
    ] {
        assert_eq!(Format::for_accept(accept), expected, "{accept:?}");
    }
}

#[test]
fn metrics_page_is_what_the_code_registers() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/metrics.md");
    if std::env::var_os("WEFT_REGENERATE").is_some() {
        fs::write(path, metrics_page()).expect("docs/ is writable");
    }
    let page = fs::read_to_string(path).expect("docs/metrics.md is there");
    assert_eq!(page, metrics_page(), "regenerate it with WEFT_REGENERATE=1");
}

#[test]
fn metrics_page_names_the_labels_that_series_carry() {
    let telemetry = Telemetry::without_access_log();
    let metrics = telemetry.connection_metrics(&labels("web"));
    metrics.opened();
    metrics.closed(Ending::Closed, 1, 1, Duration::ZERO);
    metrics.denied("shop/x");
    telemetry.certificate_expires("spiffe://td/x", SystemTime::UNIX_EPOCH);
    telemetry.certificate_renewed(Renewal::Success);
    telemetry.tunnel_handshake(TunnelRole::Server, "success");
    telemetry.probe_result("order", false);
    telemetry.kernel_event("closed");
    telemetry.kernel_verdicts("pass", "loopback", 1);
    telemetry.certificate_requests("issued", 1);
    telemetry.token_reviewed("good");
    telemetry.status_written("written");
    telemetry.reports("taken", 1);
    telemetry.discovery_connected("Pod", true);
    telemetry.discovery_heard("Pod", 1, SystemTime::UNIX_EPOCH);
    telemetry.discovery_listed("Pod");
    telemetry.discovery_failed("Pod", "cut");
    requests::touch_every_family(&telemetry);
    let text = telemetry.scrape(Format::OpenMetrics);
    for row in &telemetry.0.families.descriptions {
        let line = text
            .lines()
            .find(|line| {
                line.strip_prefix(row.name.as_str()).is_some_and(|rest| rest.starts_with(['{', ' ', '_']))
                    && (row.kind == "histogram" || !line.starts_with(&format!("{}_", row.name)))
            })
            .unwrap_or_else(|| panic!("{} is not scraped", row.name));
        for label in &row.labels {
            assert!(line.contains(&format!("{label}=\"")), "{label} is not in {line}");
        }
        let labels = line.matches("=\"").count() - usize::from(line.contains("{le=\""));
        assert_eq!(labels, row.labels.len(), "{line}");
    }
}

fn record(bytes_sent: u64) -> AccessRecord {
    AccessRecord {
        time: SystemTime::UNIX_EPOCH + Duration::from_micros(1_700_000_000_123_456),
        duration: Duration::from_micros(12_345),
        reporter: Reporter::Source,
        path: Path::Tunnel,
        source: SourceRecord {
            workload: Some("web".into()),
            namespace: Some("shop".into()),
            pod: Some("web-7d4".into()),
            address: "10.1.1.2:40000".parse().expect("an address"),
            identity: Some("spiffe://cluster.local/ns/shop/sa/web".parse().expect("an id")),
        },
        destination: DestinationRecord::new(
            None,
            Some(&ServiceName { namespace: "shop".into(), name: "orders".into() }),
            Some(OriginalDst::new("10.96.0.10:80".parse().expect("an address"))),
            Some(EndpointAddr::new("[fd00::1]:8080".parse().expect("an address"))),
            None,
        ),
        bytes_sent,
        bytes_received: 4096,
        ending: Ending::Closed,
        reason: Some("shop/allow-web".into()),
        tls: Some(TlsRecord { version: "TLSv1.3", key_exchange: "X25519MLKEM768" }),
    }
}

fn lines(path: &FsPath) -> Vec<Value> {
    let text = fs::read_to_string(path).expect("the log is there");
    text.lines().map(|line| serde_json::from_str(line).expect("one JSON object per line")).collect()
}

fn logging_to(path: &FsPath) -> Telemetry {
    let settings = Settings { access_log: Sink::File(path.to_owned()), ..Settings::default() };
    Telemetry::start(&settings).expect("the directory is writable")
}

#[test]
fn access_record_has_the_documented_shape() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("access.log");
    let telemetry = logging_to(&path);
    telemetry.record(record(512));
    telemetry.flush_access_log();
    let expected = json!({
        "time": "2023-11-14T22:13:20.123456Z",
        "duration_ms": 12.345,
        "reporter": "source",
        "path": "tunnel",
        "source": {
            "workload": "web", "namespace": "shop", "pod": "web-7d4", "address": "10.1.1.2:40000",
            "identity": "spiffe://cluster.local/ns/shop/sa/web",
        },
        "destination": {
            "service": "shop/orders", "dialled": "10.96.0.10:80", "endpoint": "[fd00::1]:8080",
        },
        "bytes_sent": 512,
        "bytes_received": 4096,
        "ending": "closed",
        "reason": "shop/allow-web",
        "tls": {"version": "TLSv1.3", "key_exchange": "X25519MLKEM768"},
    });
    assert_eq!(lines(&path), [expected]);
}

#[test]
fn rotated_access_log_is_opened_anew() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (path, old) = (dir.path().join("access.log"), dir.path().join("access.log.1"));
    let telemetry = logging_to(&path);
    telemetry.record(record(1));
    telemetry.flush_access_log();
    fs::rename(&path, &old).expect("same directory");
    telemetry.record(record(2));
    telemetry.flush_access_log();
    assert_eq!(lines(&old)[0]["bytes_sent"], 1);
    assert_eq!((lines(&old).len(), lines(&path).len()), (1, 1));
    assert_eq!(lines(&path)[0]["bytes_sent"], 2);
}

#[test]
fn access_log_is_there_again_right_after_a_hangup() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("access.log");
    let telemetry = logging_to(&path);
    fs::remove_file(&path).expect("it was created at start");
    telemetry.reopen_access_log();
    telemetry.flush_access_log();
    assert!(path.exists(), "rotation scripts wait for the new file");
}

#[test]
fn records_are_counted_when_they_cannot_be_written() {
    let settings = Settings { access_log: Sink::File("/dev/full".into()), ..Settings::default() };
    let telemetry = Telemetry::start(&settings).expect("/dev/full opens");
    for n in 0..3 {
        telemetry.record(record(n));
    }
    telemetry.flush_access_log();
    check_lines(&telemetry.scrape(Format::OpenMetrics), &["weft_access_records_dropped_total 3"]);
}

#[test]
fn full_queue_drops_and_never_blocks() {
    // A FIFO that nobody empties: the writer stands still in write(2) once the pipe (64 KiB) is full.
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("fifo");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).expect("a FIFO");
    let mut options = fs::OpenOptions::new();
    let reader = options.read(true).write(true).open(&path).expect("opens both ends");
    let settings =
        Settings { access_log: Sink::File(path.clone()), access_queue_len_max: 8, ..Settings::default() };
    let telemetry = Telemetry::start(&settings).expect("opens");
    for n in 0..2000 {
        telemetry.record(record(n));
    }
    let text = telemetry.scrape(Format::OpenMetrics);
    let dropped =
        text.lines().find(|line| line.starts_with("weft_access_records_dropped_total")).expect("is there");
    assert!(!dropped.ends_with(" 0"), "{dropped}");
    drop(reader);
}

#[test]
fn access_log_in_a_missing_directory_is_refused_with_its_path() {
    let settings = Settings { access_log: Sink::File("/nowhere/access.log".into()), ..Settings::default() };
    let error = Telemetry::start(&settings).expect_err("there is no such directory");
    assert!(error.to_string().contains("/nowhere/access.log"), "{error}");
}

#[test]
fn malformed_log_filter_is_refused_with_its_text() {
    let error = log::parse_filter("info,=x=").expect_err("malformed");
    assert!(error.to_string().contains("info,=x="), "{error}");
    assert!(log::parse_filter("warn,mesh_agent::proxy=debug").is_ok());
}
