//! Act 7: what an operator reads: metrics, by path and by workload, and an access record.

use std::collections::BTreeMap;

use anyhow::Result;
use serde_json::json;

use super::evidence::{Sample, metrics, record};
use super::report::Report;
use super::stage::Stage;

/// The ways that the demo's connections have taken.
const PATHS: [&str; 4] = ["splice", "direct", "tunnel", "http"];

/// What is shown as it is served, by the beginning of its name.
const SERVED: [&str; 4] = [
    "weft_certificate_expiry_timestamp_seconds",
    "weft_splice_enabled",
    "weft_tunnels_open",
    "weft_enrolled_pods",
];

/// Shows the act.
pub fn show(stage: &Stage, report: &mut Report) -> Result<()> {
    report.act(
        "What an operator sees",
        "Each agent serves Prometheus metrics and writes one access record per connection, on every path alike, and one per \
         request where it reads requests.",
    );
    let agent = stage.agent("node-1")?;
    let samples = metrics(agent)?;
    by_path(report, &agent.admin, &samples);
    served(report, &agent.admin, &samples);
    probes(report, &agent.admin, &samples);
    let record = record(agent, "a call on the fast path", |record| {
        record.text("/path") == "splice" && record.text("/ending") == "closed"
    })?;
    report.shown(&format!("grep splice {} | tail -n 1", agent.access_log.display()), &record.line, None);
    let both = ["source", "destination"]
        .iter()
        .all(|end| record.text(&format!("/{end}/identity")).starts_with("spiffe://"));
    let counted = record.fields["bytes_sent"].as_u64().is_some_and(|bytes| bytes > 0);
    report.fact(
        both && counted,
        "a connection inside the kernel is told like any other: who, how long, how many bytes",
    );
    report.value("record", record.fields.clone());
    Ok(())
}

/// Connections and bytes, as the clients' side tells them, added up by path.
fn by_path(report: &mut Report, admin: &str, samples: &[Sample]) {
    let sum = |name: &str, path: &str, direction: &str| -> f64 {
        let wanted = |sample: &&Sample| {
            sample.name == name
                && sample.label("reporter") == "source"
                && sample.label("path") == path
                && sample.label("direction") == direction
        };
        samples.iter().filter(wanted).map(|sample| sample.value).sum()
    };
    let mut table = format!("{:<8}{:>12}{:>16}{:>16}", "path", "connections", "bytes sent", "bytes received");
    let mut values = BTreeMap::new();
    for path in PATHS {
        let opened = sum("weft_connections_opened_total", path, "");
        let [sent, received] = ["sent", "received"].map(|way| sum("weft_bytes_total", path, way));
        table += &format!("\n{path:<8}{opened:>12}{sent:>16}{received:>16}");
        values.insert(path, json!({ "opened": opened, "bytesSent": sent, "bytesReceived": received }));
    }
    let typed = format!(
        "curl -s http://{admin}/metrics      # weft_connections_opened_total, weft_bytes_total, added up"
    );
    report.shown(&typed, &table, None);
    let positive = |path: &str| {
        sum("weft_connections_opened_total", path, "") > 0.0 && sum("weft_bytes_total", path, "sent") > 0.0
    };
    let all = PATHS.iter().all(|path| positive(path));
    report.fact(all, "connections and bytes are counted on every path");
    report.value("byPath", json!(values));
}

fn served(report: &mut Report, admin: &str, samples: &[Sample]) {
    let lines: Vec<&str> = samples
        .iter()
        .filter(|sample| SERVED.iter().any(|name| sample.name == *name))
        .map(|sample| sample.line.as_str())
        .collect();
    let pattern = SERVED.map(|name| name.trim_start_matches("weft_")).join("|");
    report.shown(
        &format!("curl -s http://{admin}/metrics | grep -E '^weft_({pattern})'"),
        &lines.join("\n"),
        None,
    );
    let expiries: Vec<f64> =
        samples.iter().filter(|sample| sample.name == SERVED[0]).map(|sample| sample.value).collect();
    let now_s = now_s();
    let soonest_s = expiries.iter().fold(f64::INFINITY, |soonest, expiry| soonest.min(expiry - now_s));
    let text = format!("{} certificates, the first expires in {:.1} h", expiries.len(), soonest_s / 3600.0);
    report.fact(soonest_s.is_finite() && soonest_s > 0.0, text);
    report.value("certificateExpiryInS", json!(soonest_s));
}

fn probes(report: &mut Report, admin: &str, samples: &[Sample]) {
    let found: BTreeMap<&str, bool> = samples
        .iter()
        .filter(|sample| sample.name == "weft_probe_result")
        .map(|sample| (sample.label("probe"), sample.value > 0.0))
        .collect();
    let list = |passed: bool| {
        let names: Vec<&str> =
            found.iter().filter(|(_, found)| **found == passed).map(|(name, _)| *name).collect();
        if names.is_empty() { "none".to_owned() } else { names.join(", ") }
    };
    let table = format!("passed: {}\nfailed: {}", list(true), list(false));
    report.shown(
        &format!("curl -s http://{admin}/metrics | grep weft_probe_result      # put together"),
        &table,
        None,
    );
    // Where one of these fails, only pods whose owners vouch for their programs are joined (docs/decisions/0008).
    let vouched = ["splice", "blocking_read", "fionread_demoted"];
    let holds = !found.is_empty() && found.iter().all(|(name, passed)| *passed || vouched.contains(name));
    let text = if found.values().all(|passed| *passed) {
        "the boot-time probes of the kernel have passed"
    } else {
        "every probe that joining needs has passed; others have not, so only pods are joined that are labelled to use their \
         sockets in none of those ways (docs/resources.md)"
    };
    report.fact(holds, text);
    report.value("probes", json!(found));
}

/// Seconds since 1970.
fn now_s() -> f64 {
    crate::clock::wall().duration_since(std::time::UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}
