//! Two pods on one node. No mesh, meshed with the splice, and meshed without it (`weft.dev/splice: disabled`).
//!
//! "Spliced" pods ask for the splice (`weft.dev/splice: enabled`), which also counts on kernels where the agent splices only
//! pods that ask; it may still send a connection the direct way, for instance on a port whose habit is bulk. What the agents counted is shown beside each row, and a row of round trips that was not
//! spliced is said not to be.

use std::collections::BTreeMap;

use anyhow::Result;
use serde_json::json;

use super::Effort;
use super::report::{Report, Wanted, difference, number, ratio, shown, times};
use super::rounds::{Series, interleave};
use super::stage::{Stage, namespace_yaml, pod_yaml};
use super::traffic::{Dial, Ends, Kind, Path, measure};
use crate::shell::say;

/// What is measured where.
const KINDS: [Kind; 6] = [
    Kind::RoundTrips(64),
    Kind::RoundTrips(1024),
    Kind::RoundTrips(16 * 1024),
    Kind::Bulk,
    Kind::Connections(1),
    Kind::Connections(16),
];

/// Variants in the order of the table.
const PLAIN: usize = 0;
const SPLICED: usize = 1;
const DIRECT: usize = 2;

struct Measure {
    kind: Kind,
    ends: Ends,
}

impl Measure {
    fn is_on_one_cpu(&self) -> bool {
        self.ends.client_cpu == self.ends.server_cpu
    }

    fn name(&self) -> String {
        format!("{}, ends on {}", self.kind.name(), if self.is_on_one_cpu() { "one CPU" } else { "two CPUs" })
    }
}

/// Runs the bench.
pub fn run(effort: &Effort) -> Result<Report> {
    let measures = measures(effort)?;
    let world = namespace_yaml()
        + &pod_yaml("client", "node-1", ", weft.dev/splice: enabled")
        + &pod_yaml("server", "node-1", ", weft.dev/splice: enabled")
        + &pod_yaml("client-direct", "node-1", ", weft.dev/splice: disabled")
        + &pod_yaml("server-direct", "node-1", ", weft.dev/splice: disabled");
    let plain = Stage::up("bench-splice-plain", &world, &["--nodes", "1", "--no-mesh"])?;
    let mesh = Stage::up("bench-splice-mesh", &world, &["--nodes", "1"])?;
    let agents = vec![mesh.lab.nodes[0].agent_cgroup()];
    let path = |stage, client, server, proxies| Path {
        stage,
        client,
        server,
        dial: Dial::Server,
        proxies,
        pids: Vec::new(),
    };
    let variants = [
        path(&plain, "client", "server", Vec::new()),
        path(&mesh, "client", "server", agents.clone()),
        path(&mesh, "client-direct", "server-direct", agents),
    ];
    say("bench splice: same node");
    let name = |one: &Measure, path: &Path<'_>| format!("{} ({})", one.name(), path.client);
    let series = interleave(effort, &measures, &variants, name, |one, path| {
        measure(path, &one.kind.traffic(), one.ends, effort.seconds)
    })?;
    Ok(report(effort, &measures, &series))
}

fn measures(effort: &Effort) -> Result<Vec<Measure>> {
    let cpus = std::thread::available_parallelism()?.get();
    let mut all = Vec::new();
    for kind in KINDS {
        for server_cpu in [0, 1] {
            let one = Measure { kind, ends: Ends { client_cpu: 0, server_cpu } };
            if server_cpu < cpus && effort.wants(&one.name()) {
                all.push(one);
            }
        }
    }
    Ok(all)
}

fn report(effort: &Effort, measures: &[Measure], series: &[Vec<Series>]) -> Report {
    let mut report = Report {
        bench: "splice",
        placement: format!(
            "Two pods on one node, veth and bridge between them; client on CPU 0, server on CPU 0 (\"one CPU\") or CPU 1 (\"two \
             CPUs\"). Agent not pinned. Medians of {} rounds of {} s, variants in turn.",
            effort.rounds, effort.seconds
        ),
        heads: vec![
            "measure",
            "unit",
            "no mesh",
            "spliced",
            "ratio",
            "splice off",
            "ratio",
            "mark",
            "paths counted",
            "foreign CPU",
        ],
        rows: Vec::new(),
        notes: Vec::new(),
        marks: Vec::new(),
        wrong: Vec::new(),
        samples: json!([]),
    };
    let mut samples = Vec::new();
    for (one, series) in measures.iter().zip(series) {
        let name = one.name();
        for (variant, label) in [(PLAIN, "no mesh"), (SPLICED, "spliced"), (DIRECT, "splice off")] {
            report.tell_failures(&format!("{name}, {label}"), &series[variant]);
            samples.push(json!({"measure": name, "variant": label, "ends": one.ends, "samples": series[variant].samples}));
        }
        tell_path(&mut report, one, &series[SPLICED]);
        match one.kind {
            Kind::RoundTrips(_) => {
                let p50 = figures(series, |s| s.client.p50_us);
                let mark = if one.is_on_one_cpu() {
                    report.judge(&name, ratio(p50[SPLICED], p50[PLAIN]), "x", Wanted::AtMost(0.6))
                } else {
                    let less = difference(p50[PLAIN], p50[SPLICED]);
                    report.judge(&name, less, " us less", Wanted::AtLeast(3.0))
                };
                row(&mut report, &name, "p50 us", p50, mark, series);
                p99_row(&mut report, &name, series);
            }
            Kind::Bulk => {
                let rate = figures(series, |s| s.gbit_s());
                let mark = report.judge(&name, ratio(rate[SPLICED], rate[PLAIN]), "x", Wanted::AtLeast(0.95));
                row(&mut report, &name, "Gbit/s", rate, mark, series);
            }
            Kind::Connections(_) => {
                let rate = figures(series, |s| s.rate());
                let mark = report.judge(&name, ratio(rate[SPLICED], rate[PLAIN]), "x", Wanted::AtLeast(0.9));
                row(&mut report, &name, "per s", rate, mark, series);
                p99_row(&mut report, &name, series);
            }
        }
    }
    report.samples = json!(samples);
    report
}

fn figures(series: &[Series], value: impl Fn(&super::traffic::Sample) -> f64 + Copy) -> [Option<f64>; 3] {
    [PLAIN, SPLICED, DIRECT].map(|variant| series[variant].median(value))
}

fn p99_row(report: &mut Report, name: &str, series: &[Series]) {
    let p99 = figures(series, |s| s.client.p99_us);
    let mark =
        report.judge(&format!("{name}, p99"), ratio(p99[SPLICED], p99[PLAIN]), "x", Wanted::AtMost(1.0));
    row(report, name, "p99 us", p99, mark, series);
}

fn row(
    report: &mut Report,
    name: &str,
    unit: &str,
    figures: [Option<f64>; 3],
    mark: String,
    series: &[Series],
) {
    let foreign = [PLAIN, SPLICED, DIRECT].map(|v| series[v].median(|s| s.foreign_cores));
    let foreign = foreign.into_iter().flatten().fold(0.0, f64::max);
    report.rows.push(vec![
        name.to_owned(),
        unit.to_owned(),
        shown(figures[PLAIN]),
        shown(figures[SPLICED]),
        times(ratio(figures[SPLICED], figures[PLAIN])),
        shown(figures[DIRECT]),
        times(ratio(figures[DIRECT], figures[PLAIN])),
        mark,
        paths(&series[SPLICED]),
        number(foreign),
    ]);
}

/// Connections by path over all rounds.
fn sums(series: &Series) -> BTreeMap<&str, f64> {
    let mut sums = BTreeMap::new();
    for (path, count) in series.samples.iter().flat_map(|sample| &sample.paths) {
        *sums.entry(path.as_str()).or_insert(0.0) += count;
    }
    sums
}

fn paths(series: &Series) -> String {
    let sums = sums(series);
    let words: Vec<String> = sums.iter().map(|(path, count)| format!("{path} {count:.0}")).collect();
    if words.is_empty() { "none".to_owned() } else { words.join(", ") }
}

/// Says it when round trips that should have been spliced were not.
fn tell_path(report: &mut Report, one: &Measure, series: &Series) {
    let sums = sums(series);
    let spliced = sums.get("splice").copied().unwrap_or(0.0);
    let all: f64 = sums.values().sum();
    if spliced < all || spliced == 0.0 {
        let what = if matches!(one.kind, Kind::RoundTrips(_)) { "NOT SPLICED" } else { "not all spliced" };
        report.notes.push(format!("{}: {what}; the agent counted {}", one.name(), paths(series)));
    }
}
