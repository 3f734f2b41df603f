//! Act 5: what a round trip costs on one node: joined in the kernel, through the mesh but not joined, and without a mesh.

use std::fs;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::evidence::record;
use super::pingpong::{Measured, last_cpu};
use super::report::Report;
use super::stage::Stage;
use crate::shell::say;

/// Where the answering end listens.
pub const PONG_PORT: &str = "7007";

/// Bytes in each direction.
const SIZES: [usize; 2] = [64, 1024];

/// The variants take turns this often, so that a disturbance of the machine meets all of them.
const TURNS: usize = 7;

/// Round trips per turn.
const ROUND_TRIPS: &str = "1500";

/// The file in the lab's world with the pods that are kept out of the fast path.
const TWINS_FILE: &str = "demo-twins.yaml";

/// The same as web and orders-1, but for the label.
const TWINS: &str = "# Made by `cargo xtask demo` to compare with, and removed by it.
apiVersion: v1
kind: Pod
metadata:
  name: web-direct
  namespace: shop
  labels: {app: web-direct, weft.dev/splice: disabled}
spec: {nodeName: node-1, serviceAccountName: web}
---
apiVersion: v1
kind: Pod
metadata:
  name: orders-direct
  namespace: shop
  labels: {app: orders-direct, weft.dev/splice: disabled}
spec: {nodeName: node-1, serviceAccountName: orders}
";

/// One way to connect two pods of a node.
struct Variant {
    name: &'static str,
    meshed: bool,
    client: &'static str,
    server: &'static str,
    /// The path that the access records must name.
    path: Option<&'static str>,
}

const VARIANTS: [Variant; 3] = [
    Variant { name: "no mesh", meshed: false, client: "shop/web", server: "shop/orders-1", path: None },
    Variant {
        name: "mesh, splice disabled",
        meshed: true,
        client: "shop/web-direct",
        server: "shop/orders-direct",
        path: Some("direct"),
    },
    Variant {
        name: "mesh, spliced",
        meshed: true,
        client: "shop/web",
        server: "shop/orders-1",
        path: Some("splice"),
    },
];

/// Shows the act.
pub fn show(stage: &mut Stage, report: &mut Report) -> Result<()> {
    report.act(
        "On one node the mesh is faster than no mesh",
        "A request and its answer between web and orders-1, both on one CPU: joined in the kernel, with the fast path \
         disabled by label, and in a second lab without any mesh.",
    );
    say("adding pods without the fast path, and a second lab without a mesh");
    let twins = stage.lab()?.world.join(TWINS_FILE);
    let (world, source) = (stage.lab()?.world.clone(), stage.lab()?.source.clone());
    fs::write(&twins, TWINS).with_context(|| format!("cannot write {}", twins.display()))?;
    stage.apply(&world)?;
    stage.twin_up()?;
    let measured = measure(stage, report);
    say("removing them again");
    stage.twin_down()?;
    // `lab apply` removes the file with the pods, when it takes the shop's own world again.
    stage.apply(&source)?;
    ensure!(!twins.exists(), "{} is still there", twins.display());
    measured
}

fn measure(stage: &Stage, report: &mut Report) -> Result<()> {
    let cpu = last_cpu()?.to_string();
    let mut servers = Vec::new();
    for variant in &VARIANTS {
        let words = ["xtask", "demo-part", "pong", "--port", PONG_PORT, "--cpu", &cpu];
        servers.push(stage.start(stage.lab_name(variant.meshed), variant.server, &words)?);
    }
    say(format!("measuring: {TURNS} turns of {} x {ROUND_TRIPS} round trips", SIZES.len() * VARIANTS.len()));
    let mut times_ns = SIZES.map(|_| [const { Vec::new() }; VARIANTS.len()]);
    let mut last = [const { None }; VARIANTS.len()];
    for _ in 0..TURNS {
        for (bytes, times_ns) in SIZES.iter().zip(&mut times_ns) {
            for (index, variant) in VARIANTS.iter().enumerate() {
                let measured = ping(stage, variant, &cpu, *bytes)?;
                times_ns[index].push(measured.p50_ns);
                last[index] = Some(measured.client);
            }
        }
    }
    drop(servers);
    let p50_us = times_ns.map(|size| size.map(median_us));
    tell(stage, report, &cpu, &p50_us)?;
    for (variant, client) in VARIANTS.iter().zip(last) {
        told_path(stage, report, variant, &client.unwrap_or_default())?;
    }
    Ok(())
}

fn ping(stage: &Stage, variant: &Variant, cpu: &str, bytes: usize) -> Result<Measured> {
    let server = variant.server.trim_start_matches("shop/");
    let (target, bytes) = (format!("{server}:{PONG_PORT}"), bytes.to_string());
    let words =
        ["xtask", "demo-part", "ping", &target, "--cpu", cpu, "--bytes", &bytes, "--count", ROUND_TRIPS];
    let (running, line) = stage.start(stage.lab_name(variant.meshed), variant.client, &words)?;
    drop(running);
    serde_json::from_str(&line).with_context(|| format!("the client in {} said: {line}", variant.client))
}

fn tell(stage: &Stage, report: &mut Report, cpu: &str, p50_us: &[[f64; 3]; 2]) -> Result<()> {
    let mut table = format!("{:<24}{:>18}{:>18}", "p50 of a round trip", "64 B", "1 KiB");
    for (index, variant) in VARIANTS.iter().enumerate() {
        let cell = |size: usize| {
            let (own, plain) = (p50_us[size][index], p50_us[size][0]);
            format!("{own:.1} us ({:.2}x)", own / plain)
        };
        table += &format!("\n{:<24}{:>18}{:>18}", variant.name, cell(0), cell(1));
    }
    let name = stage.lab_name(true);
    let typed = format!(
        "cargo xtask lab exec --name {name} shop/web -- xtask demo-part ping orders-1:{PONG_PORT} --cpu {cpu}"
    );
    report.shown(&typed, &table, None);
    for (size, p50_us) in SIZES.iter().zip(p50_us) {
        let [plain, _, spliced] = *p50_us;
        let text = format!(
            "{size} B: {spliced:.1} us spliced, {plain:.1} us without a mesh: {:.2} of the time",
            spliced / plain
        );
        report.fact(spliced < plain, text);
    }
    let figures = |index: usize| json!({ "64": p50_us[0][index], "1024": p50_us[1][index] });
    report.value("cpu", json!(cpu));
    report
        .value("p50Us", json!({ "noMesh": figures(0), "spliceDisabled": figures(1), "spliced": figures(2) }));
    Ok(())
}

/// Whether the connection took the way that its row claims.
fn told_path(stage: &Stage, report: &mut Report, variant: &Variant, client: &str) -> Result<()> {
    let Some(expected) = variant.path else { return Ok(()) };
    let record = record(stage.agent("node-1")?, &format!("the round trips from {client}"), |record| {
        record.text("/source/address") == client && record.text("/reporter") == "source"
    })?;
    let path = record.text("/path");
    report.fact(path == expected, format!("the access record of \"{}\" says path {path}", variant.name));
    Ok(())
}

/// The median, in microseconds with two decimals.
fn median_us(mut times_ns: Vec<u64>) -> f64 {
    times_ns.sort_unstable();
    let middle = times_ns.get(times_ns.len() / 2).copied().unwrap_or(0);
    (std::time::Duration::from_nanos(middle).as_secs_f64() * 1e8).round() / 100.0
}
