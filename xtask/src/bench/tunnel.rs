//! Two pods on two nodes: no mesh, Weft, and HAProxy doing mutual TLS in the same places.
//!
//! Each node is held to one CPU: the client and everything that serves it on the first, the server's side on the second.

use std::thread;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::haproxy::{self, Front, Haproxy};
use super::report::{Report, Wanted, difference, number, ratio, shown, times};
use super::rounds::{Series, interleave};
use super::stage::{Stage, namespace_yaml, pod_yaml};
use super::traffic::{Dial, Ends, Kind, Path, Sample, measure};
use super::{Effort, account, wire};
use crate::shell::say;

const KINDS: [Kind; 5] =
    [Kind::RoundTrips(64), Kind::RoundTrips(1024), Kind::Bulk, Kind::Connections(1), Kind::Connections(16)];

/// Variants in the order of the table.
const PLAIN: usize = 0;
const WEFT: usize = 1;
const HAPROXY: usize = 2;
const LABELS: [&str; 3] = ["no mesh", "weft", "haproxy"];

/// The client's node and the server's each have one CPU.
const ENDS: Ends = Ends { client_cpu: 0, server_cpu: 1 };

/// Runs the bench.
pub fn run(effort: &Effort) -> Result<Report> {
    ensure!(thread::available_parallelism()?.get() >= 2, "two nodes of one CPU each need two CPUs");
    let world = namespace_yaml() + &pod_yaml("client", "node-1", "") + &pod_yaml("server", "node-2", "");
    let plain = Stage::up("bench-tunnel-plain", &world, &["--pin-cpus", "--no-mesh"])?;
    let mesh = Stage::up("bench-tunnel-mesh", &world, &["--pin-cpus"])?;
    let haproxy = Haproxy::start(&plain, "client", "server", &KINDS.map(|kind| Front::tcp(kind.port())))?;
    let agents = mesh.lab.nodes.iter().map(|node| node.agent_cgroup()).collect();
    let path = |stage, dial, proxies| Path {
        stage,
        client: "client",
        server: "server",
        dial,
        proxies,
        pids: Vec::new(),
    };
    let variants = [
        path(&plain, Dial::Server, Vec::new()),
        path(&mesh, Dial::Server, agents),
        path(&plain, Dial::Proxy(haproxy::OFFSETS.near), haproxy.cgroups()),
    ];
    let kinds: Vec<Kind> = KINDS.into_iter().filter(|kind| effort.wants(&kind.name())).collect();
    say("bench tunnel: two nodes");
    let mut report = empty(effort);
    for (path, label) in variants.iter().zip(LABELS) {
        wire::check(&mut report, path, &KINDS[0].traffic(), ENDS, label)?;
    }
    let idle = [agent_rss(&mesh)?, rss(&haproxy.pids())?];
    let measured = variants.iter().zip(LABELS).collect::<Vec<_>>();
    let name = |kind: &Kind, variant: &(&Path<'_>, &str)| format!("{}, {}", kind.name(), variant.1);
    let series = interleave(effort, &kinds, &measured, name, |kind, (path, _)| {
        measure(path, &kind.traffic(), ENDS, effort.seconds)
    })?;
    let busy = [agent_rss(&mesh)?, rss(&haproxy.pids())?];
    fill(&mut report, &kinds, &series);
    for (when, [weft, peer]) in [("before", &idle), ("after", &busy)] {
        report.notes.push(format!(
            "RSS {when} the rounds, client's and server's side: weft {weft}; haproxy {peer} MB"
        ));
    }
    Ok(report)
}

fn empty(effort: &Effort) -> Report {
    Report {
        bench: "tunnel",
        placement: format!(
            "Two nodes, each held to one CPU: client and its agent or HAProxy on CPU 0, server and its agent or HAProxy on CPU 1. \
             HAProxy: one thread, TLS 1.3, certificates on both ends. Medians of {} rounds of {} s, variants in turn.",
            effort.rounds, effort.seconds
        ),
        heads: vec![
            "measure",
            "unit",
            "no mesh",
            "weft",
            "added",
            "to no mesh",
            "haproxy",
            "added",
            "to no mesh",
            "weft to haproxy",
            "aim",
            "foreign CPU",
        ],
        rows: Vec::new(),
        notes: Vec::new(),
        marks: Vec::new(),
        wrong: Vec::new(),
        samples: json!([]),
    }
}

fn agent_rss(stage: &Stage) -> Result<String> {
    rss(&stage
        .lab
        .nodes
        .iter()
        .filter_map(|node| node.agent.as_ref())
        .map(|agent| agent.pid)
        .collect::<Vec<_>>())
}

/// Resident memory of processes, in MB.
fn rss(pids: &[u32]) -> Result<String> {
    let each: Result<Vec<String>> =
        pids.iter().map(|pid| Ok(number(account::rss_kib(*pid)? * 1024.0 / 1e6))).collect();
    Ok(each.context("a proxy has ended")?.join(" and "))
}

/// Whether less is better.
#[derive(Clone, Copy, PartialEq)]
enum Better {
    Less,
    More,
}

fn fill(report: &mut Report, kinds: &[Kind], series: &[Vec<Series>]) {
    let mut samples = Vec::new();
    for (kind, series) in kinds.iter().zip(series) {
        for (label, series) in LABELS.iter().zip(series) {
            report.tell_failures(&format!("{}, {label}", kind.name()), series);
            samples.push(json!({"measure": kind.name(), "variant": label, "samples": series.samples}));
        }
        let mut table = Table { report, kind: *kind, series };
        match kind {
            Kind::RoundTrips(_) => {
                table.row("p50 us", |s| s.client.p50_us, Better::Less, Aim::Added(20.0));
                table.row("p99 us", |s| s.client.p99_us, Better::Less, Aim::None);
                table.row(
                    "CPU s per 10k, whole path",
                    per_10k(|s| s.cpu_path_s),
                    Better::Less,
                    Aim::AtMost(0.85),
                );
                table.row(
                    "CPU s per 10k, both proxies",
                    per_10k(|s| s.cpu_proxies_s),
                    Better::Less,
                    Aim::None,
                );
            }
            Kind::Bulk => {
                table.row("Gbit/s", Sample::gbit_s, Better::More, Aim::AtLeast(11.0));
                let per_gb = |s: &Sample| s.cpu_path_s / (s.client.bytes as f64 / 1e9);
                table.row("CPU s per GB, whole path", per_gb, Better::Less, Aim::AtMost(1.3));
            }
            Kind::Connections(many) => {
                let aim = if *many > 1 { Aim::AtLeast(20_000.0) } else { Aim::None };
                table.row("per s", Sample::rate, Better::More, aim);
                table.row("p99 us", |s| s.client.p99_us, Better::Less, Aim::None);
                table.row("CPU s per 10k, whole path", per_10k(|s| s.cpu_path_s), Better::Less, Aim::None);
                if *many > 1 {
                    let rate = series[WEFT].median(Sample::rate);
                    let mark = report.judge(&kind.name(), rate, " per s", Wanted::AtLeast(10_000.0));
                    report.notes.push(format!("{}: {mark}", kind.name()));
                }
            }
        }
    }
    report.samples = json!(samples);
}

fn per_10k(cpu_s: impl Fn(&Sample) -> f64 + Copy) -> impl Fn(&Sample) -> f64 + Copy {
    move |sample| cpu_s(sample) / (sample.client.count_all as f64 / 10_000.0)
}

/// What ARCHITECTURE.md section 7 asks for in the end.
#[derive(Clone, Copy)]
enum Aim {
    None,
    /// At most this above no mesh.
    Added(f64),
    AtMost(f64),
    AtLeast(f64),
}

struct Table<'a> {
    report: &'a mut Report,
    kind: Kind,
    series: &'a [Series],
}

impl Table<'_> {
    fn row(&mut self, unit: &str, value: impl Fn(&Sample) -> f64 + Copy, better: Better, aim: Aim) {
        let [plain, weft, peer] = [PLAIN, WEFT, HAPROXY].map(|variant| self.series[variant].median(value));
        let wanted = match better {
            Better::Less => Wanted::AtMost(1.0),
            Better::More => Wanted::AtLeast(1.0),
        };
        let what = format!("{}, {unit}", self.kind.name());
        let mark = self.report.judge(&format!("{what}, to haproxy"), ratio(weft, peer), "x", wanted);
        let foreign = [PLAIN, WEFT, HAPROXY].map(|variant| self.series[variant].median(|s| s.foreign_cores));
        let added = |figure| difference(figure, plain).map_or_else(String::new, |more| format!("{more:+.2}"));
        self.report.rows.push(vec![
            self.kind.name(),
            unit.to_owned(),
            shown(plain),
            shown(weft),
            added(weft),
            times(ratio(weft, plain)),
            shown(peer),
            added(peer),
            times(ratio(peer, plain)),
            mark,
            aim_text(aim, weft, plain),
            number(foreign.into_iter().flatten().fold(0.0, f64::max)),
        ]);
    }
}

/// How far it is to the aim.
fn aim_text(aim: Aim, weft: Option<f64>, plain: Option<f64>) -> String {
    let (value, bound, text) = match aim {
        Aim::None => return String::new(),
        Aim::Added(bound) => {
            (difference(weft, plain), Wanted::AtMost(bound), format!("added <= {}", number(bound)))
        }
        Aim::AtMost(bound) => (weft, Wanted::AtMost(bound), format!("<= {}", number(bound))),
        Aim::AtLeast(bound) => (weft, Wanted::AtLeast(bound), format!(">= {}", number(bound))),
    };
    let Some(value) = value else { return text };
    format!("{text}: {}", if bound.is_met_by(value) { "reached" } else { "not yet" })
}
