//! The table of `bench http`: every figure beside its twin without a mesh, and what Weft adds beside what the peers add.

use std::collections::BTreeMap;

use serde_json::json;

use super::Options;
use crate::bench::Effort;
use crate::bench::report::{Report, Wanted, difference, number, ratio, times};
use crate::bench::rounds::Series;
use crate::bench::traffic::Sample;

/// What Weft may add, of what Envoy adds.
const OF_ENVOY_MAX: f64 = 0.6;

/// A table without rows.
pub(super) fn empty(effort: &Effort, options: &Options) -> Report {
    let between = if options.haproxy_between == "h2" { "HTTP/2" } else { "HTTP/1.1" };
    let places = if options.same_node {
        "Both pods on one node, all of it held to CPU 0; one agent, or one HAProxy or Envoy in the client's pod, between them; \
         no TLS."
            .to_owned()
    } else {
        format!(
            "Two nodes, each held to one CPU: client and its agent or proxy on CPU 0, server and its agent or proxy on CPU 1. \
             TLS 1.3 with certificates on both ends between them, in which HAProxy speaks {between} and Envoy HTTP/2."
        )
    };
    Report {
        bench: if options.same_node { "http --same-node" } else { "http" },
        placement: format!(
            "{places} HAProxy and Envoy: HTTP proxies, one thread each. GET, answers of 1 KiB, {} rule{} on the \
             service in every variant, access logs {}. \"CPU\" is seconds per 10,000 requests; \"added\" is above no mesh. Medians of {} rounds \
             of {} s, variants in turn.",
            options.rules,
            if options.rules == 1 { "" } else { "s" },
            if options.access_log { "on" } else { "off" },
            effort.rounds,
            effort.seconds
        ),
        heads: vec![
            "measure",
            "unit",
            "no mesh",
            "weft",
            "added",
            "haproxy",
            "added",
            "envoy",
            "added",
            "weft to haproxy",
            "weft to envoy",
            "foreign CPU",
        ],
        rows: Vec::new(),
        notes: Vec::new(),
        marks: Vec::new(),
        wrong: Vec::new(),
        samples: json!([]),
    }
}

/// How Weft's figure is compared with a peer's.
#[derive(Clone, Copy, PartialEq)]
enum By {
    /// What each adds to no mesh; Envoy's is the mark.
    Added,
    /// The figures themselves.
    Figure,
    /// The same, of which nothing is added.
    Rate,
}

/// Adds the rows of one measure.
pub(super) fn fill(report: &mut Report, name: &str, rate: Option<u32>, labels: &[&str], series: &[Series]) {
    let mut table = Table { report, name, labels, series };
    table.row("p50 us", By::Added, |s| s.client.p50_us);
    table.row("p99 us", By::Figure, |s| s.client.p99_us);
    if rate.is_none() {
        table.row("requests per s", By::Rate, Sample::rate);
    }
    table.row("CPU, whole path", By::Added, |s| per_10k(s, s.cpu_path_s));
    table.row("CPU, proxies", By::Figure, |s| per_10k(s, s.cpu_proxies_s));
    table.row("RSS MB, proxies", By::Figure, |s| s.rss_kib.iter().sum::<f64>() * 1024.0 / 1e6);
}

fn per_10k(sample: &Sample, cpu_s: f64) -> f64 {
    cpu_s / (sample.client.count_all as f64 / 10_000.0)
}

/// Says what the agents counted, and that it is wrong when requests were not theirs to see.
pub(super) fn tell_layer(report: &mut Report, name: &str, labels: &[&str], series: &[Series]) {
    let Some(at) = labels.iter().position(|label| *label == "weft") else { return };
    let (mut routes, mut paths, mut sent) = (BTreeMap::new(), BTreeMap::new(), 0.0);
    for sample in &series[at].samples {
        sent += sample.client.count_all as f64;
        for (sums, more) in [(&mut routes, &sample.routes), (&mut paths, &sample.paths)] {
            for (key, count) in more {
                *sums.entry(key.as_str()).or_insert(0.0) += count;
            }
        }
    }
    let text = |sums: &BTreeMap<&str, f64>| {
        let words: Vec<String> = sums.iter().map(|(key, count)| format!("{key} {count:.0}")).collect();
        if words.is_empty() { "none".to_owned() } else { words.join(", ") }
    };
    let counted = routes.values().fold(0.0, |sum, count| sum + count);
    // Warm-up and metrics that lag a little are no reason to doubt.
    if counted < sent * 0.9 {
        report.wrong.push(format!(
            "{name}: {sent:.0} requests were sent through weft, its agent counted {counted:.0} (connections: {}): they were not \
             carried as requests",
            text(&paths)
        ));
    }
    report.notes.push(format!(
        "{name}: the client's agent counted requests by route: {}; connections by path: {}",
        text(&routes),
        text(&paths)
    ));
}

struct Table<'a> {
    report: &'a mut Report,
    name: &'a str,
    labels: &'a [&'a str],
    series: &'a [Series],
}

impl Table<'_> {
    fn row(&mut self, unit: &str, by: By, value: impl Fn(&Sample) -> f64 + Copy) {
        let figure = |label: &str| self.of(label).and_then(|series| series.median(value));
        let [plain, weft, haproxy, envoy] = ["no mesh", "weft", "haproxy", "envoy"].map(figure);
        // Memory has no twin without a mesh.
        let plain = plain.filter(|figure| *figure > 0.0);
        let foreign =
            self.series.iter().filter_map(|series| series.median(|s| s.foreign_cores)).fold(0.0, f64::max);
        let compared = |peer: Option<f64>| match by {
            By::Added => ratio(difference(weft, plain), difference(peer, plain)),
            By::Figure | By::Rate => ratio(weft, peer),
        };
        let text = |ratio| match by {
            By::Added => times(ratio) + if ratio.is_some() { " added" } else { "" },
            By::Figure | By::Rate => times(ratio),
        };
        let to_envoy = match by {
            By::Added if self.of("weft").is_some() && self.of("envoy").is_some() => {
                let what = format!("{}, {unit}, added, to envoy", self.name);
                self.report.judge(&what, compared(envoy), "x added", Wanted::AtMost(OF_ENVOY_MAX))
            }
            _ => text(compared(envoy)),
        };
        let twin = plain.filter(|_| by != By::Rate);
        let added = |figure| difference(figure, twin).map_or_else(String::new, |more| format!("{more:+.2}"));
        let shown = |label: &str, figure: Option<f64>| match (self.of(label), figure) {
            (None, _) => "-".to_owned(),
            (_, Some(figure)) => number(figure),
            (_, None) => if label == "no mesh" { "-" } else { "failed" }.to_owned(),
        };
        let row = vec![
            self.name.to_owned(),
            unit.to_owned(),
            shown("no mesh", plain),
            shown("weft", weft),
            added(weft),
            shown("haproxy", haproxy),
            added(haproxy),
            shown("envoy", envoy),
            added(envoy),
            text(compared(haproxy)),
            to_envoy,
            number(foreign),
        ];
        self.report.rows.push(row);
    }

    fn of(&self, label: &str) -> Option<&Series> {
        self.labels.iter().position(|one| *one == label).map(|at| &self.series[at])
    }
}
