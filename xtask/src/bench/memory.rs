//! The agent's memory: by the pods it has enrolled, and by the connections that are open through it.

use std::fs;
use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::report::{Report, Wanted, number};
use super::stage::{Stage, namespace_yaml, pod_yaml};
use super::traffic::Server;
use super::{Effort, account, interrupt};
use crate::app::bench::client::Measured;
use crate::clock;
use crate::shell::say;

/// Enrolled pods on one node.
const PODS: [u32; 3] = [2, 50, 200];

/// Open connections, where the limit of open files allows them.
const CONNECTIONS: usize = 10_000;

/// Files that an agent has open besides connections, with room to spare.
const OTHER_FILES: usize = 500;

/// How long agents may take to enrol all pods.
const ENROL_PATIENCE: Duration = Duration::from_secs(60);

/// How long an agent is left alone before its memory is read.
const SETTLE: Duration = Duration::from_secs(3);

/// The server's port.
const PORT: u16 = 7030;

/// Runs the bench.
pub fn run(effort: &Effort) -> Result<Report> {
    let mut report = Report {
        bench: "memory",
        placement: "Resident memory of agents (VmRSS) once all pods are enrolled and 3 s have passed; MB are 10^6 bytes. Each pod \
                    has a service account, so a certificate, of its own."
            .to_owned(),
        heads: vec!["what", "agent", "RSS", "per unit", "mark"],
        rows: Vec::new(),
        notes: Vec::new(),
        marks: Vec::new(),
        wrong: Vec::new(),
        samples: Value::Null,
    };
    let mut samples = Vec::new();
    for pods in PODS {
        if effort.wants(&format!("{pods} pods")) {
            samples.push(by_pods(&mut report, pods)?);
        }
    }
    if effort.wants("connections") {
        samples.push(by_connections(&mut report)?);
    }
    report.samples = json!(samples);
    Ok(report)
}

fn by_pods(report: &mut Report, count: u32) -> Result<Value> {
    let pods: String = (1..=count).map(|number| pod_yaml(&format!("pod-{number}"), "node-1", "")).collect();
    let stage = Stage::up("bench-memory", &(namespace_yaml() + &pods), &["--nodes", "1"])?;
    wait_enrolled(&stage, f64::from(count))?;
    let agent = stage.lab.nodes[0].agent.as_ref().context("the node has an agent")?;
    let rss_mb = account::rss_kib(agent.pid)? * 1024.0 / 1e6;
    let name = format!("{count} enrolled pods");
    let bound = 15.0 + 0.25 * f64::from(count);
    let mark = report.judge(&name, Some(rss_mb), " MB", Wanted::AtMost(bound));
    let per_pod = rss_mb / f64::from(count);
    report.rows.push(vec![
        name,
        "node-1".into(),
        format!("{} MB", number(rss_mb)),
        format!("{} MB per pod in all", number(per_pod)),
        mark,
    ]);
    Ok(json!({"pods": count, "rss_mb": rss_mb}))
}

/// Waits until the agents say that they hold all pods, then leaves them alone for a while.
fn wait_enrolled(stage: &Stage, wanted: f64) -> Result<()> {
    let deadline = clock::now() + ENROL_PATIENCE;
    loop {
        let mut enrolled = 0.0;
        for agent in stage.lab.nodes.iter().filter_map(|node| node.agent.as_ref()) {
            enrolled += account::gauge(&account::metrics(&agent.admin)?, "weft_enrolled_pods").unwrap_or(0.0);
        }
        if enrolled >= wanted {
            return interrupt::sleep(SETTLE);
        }
        ensure!(
            clock::now() < deadline,
            "only {enrolled} of {wanted} pods are enrolled after {ENROL_PATIENCE:?}"
        );
        interrupt::sleep(Duration::from_millis(100))?;
    }
}

fn by_connections(report: &mut Report) -> Result<Value> {
    let world = namespace_yaml() + &pod_yaml("client", "node-1", "") + &pod_yaml("server", "node-2", "");
    let stage = Stage::up("bench-memory", &world, &[])?;
    wait_enrolled(&stage, 2.0)?;
    let agents: Vec<(String, u32)> =
        stage.lab.nodes.iter().filter_map(|n| Some((n.name.clone(), n.agent.as_ref()?.pid))).collect();
    let count = agents.iter().map(|(_, pid)| connections_possible(*pid)).collect::<Result<Vec<_>>>()?;
    let count = count.into_iter().min().unwrap_or(0);
    if count < CONNECTIONS {
        report.notes.push(format!(
            "{count} connections, since an agent may have no more files open here (two per connection)"
        ));
    }
    let rss = || agents.iter().map(|(_, pid)| account::rss_kib(*pid)).collect::<Result<Vec<f64>>>();
    let before = rss()?;
    let mut server = Server::start(&stage, "server", PORT, 0, vec!["idle".into()])?;
    let address = SocketAddr::new(*stage.pod("server")?.ips.first().context("a pod has an address")?, PORT);
    say(format!("opening {count} connections"));
    let (opened, held) = open_and_look(&stage, address, count, &rss)?;
    let seen = server.end()?;
    interrupt::sleep(SETTLE)?;
    let after = rss()?;
    if opened.error_count > 0 || opened.count < count as u64 {
        let errors = opened.errors.iter().chain(&seen.errors).cloned().collect::<Vec<_>>().join("; ");
        report.wrong.push(format!("{} of {count} connections opened ({errors})", opened.count));
    }
    for (index, (node, _)) in agents.iter().enumerate() {
        let name = format!("{} idle connections between two nodes", opened.count);
        let each_kib = (held[index] - before[index]) / (opened.count.max(1) as f64);
        let mark = report.judge(&format!("{name}, {node}"), Some(each_kib), " KiB each", Wanted::AtMost(6.0));
        let mb = |kib: f64| number(kib * 1024.0 / 1e6);
        let text =
            format!("{} MB before, {} open, {} closed", mb(before[index]), mb(held[index]), mb(after[index]));
        report.rows.push(vec![name, node.clone(), text, format!("{} KiB", number(each_kib)), mark]);
    }
    report.notes.push(format!(
        "opened one after the other at {:.0} per second",
        opened.count as f64 / opened.seconds
    ));
    Ok(
        json!({"connections": opened, "rss_kib_before": before, "rss_kib_open": held, "rss_kib_closed": after}),
    )
}

/// Opens connections, and reads memory while they are held.
fn open_and_look(
    stage: &Stage,
    target: SocketAddr,
    count: usize,
    rss: &dyn Fn() -> Result<Vec<f64>>,
) -> Result<(Measured, Vec<f64>)> {
    use std::ffi::OsString;
    use std::io::{BufRead, BufReader};
    let (target, count) = (target.to_string(), count.to_string());
    let words =
        ["xtask", "app", "bench-client", "--target", &target, "idle", "--count", &count].map(OsString::from);
    let mut client = stage
        .command("client", words)?
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start the client")?;
    let mut line = String::new();
    BufReader::new(client.stdout.take().context("the client has no standard output")?)
        .read_line(&mut line)?;
    let settled = interrupt::sleep(SETTLE);
    let held = rss();
    drop(client.stdin.take());
    client.wait()?;
    settled?;
    Ok((serde_json::from_str(&line).context("the client's result is not readable")?, held?))
}

/// How many connections a process may relay, two files each.
fn connections_possible(pid: u32) -> Result<usize> {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).context("the agent is gone")?;
    let soft = limits.lines().find_map(|line| {
        line.strip_prefix("Max open files")?.split_whitespace().next()?.parse::<usize>().ok()
    });
    let soft = soft.context("the agent has no limit of open files")?;
    Ok((soft.saturating_sub(OTHER_FILES) / 2).min(CONNECTIONS))
}
