//! Act 6: the kernel's side, by the kernel's own tool: the programs by name, the table of joined sockets with field names.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::latency::PONG_PORT;
use super::pingpong::{Measured, last_cpu};
use super::report::Report;
use super::stage::Stage;

/// Programs without which nothing of this works; the agent loads some more.
const PROGRAMS: [&str; 5] = ["connect4", "connect6", "established", "inbound", "splice"];

/// What is shown of a pair.
const FIELDS: [&str; 10] = [
    "client_port",
    "server_port",
    "dialled_port",
    "action",
    "state",
    "evictions",
    "cookies",
    "bytes\"",
    "sends",
    "opened_ns",
];

/// Shows the act.
pub fn show(stage: &Stage, report: &mut Report) -> Result<()> {
    report.act(
        "bpftool sees it",
        "Programs and maps are in the kernel under their names, pinned, with type information: any tool can decode them. \
         A connection from web to orders-1 is kept open meanwhile.",
    );
    let bpftool = bpftool();
    programs(stage, report, &bpftool)?;
    let cpu = last_cpu()?.to_string();
    let name = stage.lab_name(true);
    let pong = ["xtask", "demo-part", "pong", "--port", PONG_PORT, "--cpu", &cpu];
    let _server = stage.start(name, "shop/orders-1", &pong)?;
    let target = format!("orders-1:{PONG_PORT}");
    let ping = ["xtask", "demo-part", "ping", &target, "--cpu", &cpu, "--count", "10", "--hold"];
    let (_client, line) = stage.start(name, "shop/web", &ping)?;
    let measured: Measured = serde_json::from_str(&line)?;
    pairs(stage, report, &bpftool, &measured.client)
}

/// The programs of node-1's agent: those that use one of its pinned maps.
fn programs(stage: &Stage, report: &mut Report, bpftool: &Path) -> Result<()> {
    let pin_dir = &stage.agent("node-1")?.pin_dir;
    let mut map_ids = BTreeSet::new();
    for entry in std::fs::read_dir(pin_dir).with_context(|| format!("cannot list {}", pin_dir.display()))? {
        let path = entry?.path();
        if !path.is_dir() {
            let shown = stage.run(bpftool, &["-j", "map", "show", "pinned", &path.to_string_lossy()])?;
            let map: Value = serde_json::from_str(&shown.output)?;
            map_ids.extend(map["id"].as_u64());
        }
    }
    let listed = stage.run(bpftool, &["-j", "prog", "list"])?;
    let all: Vec<Value> =
        serde_json::from_str(&listed.output).context("bpftool prog list is not readable")?;
    let uses = |program: &&Value| {
        let ids = program["map_ids"].as_array();
        ids.is_some_and(|ids| ids.iter().filter_map(Value::as_u64).any(|id| map_ids.contains(&id)))
    };
    let ours: Vec<&Value> = all.iter().filter(uses).collect();
    let heads: BTreeSet<String> = ours.iter().map(|program| format!("{}: ", program["id"])).collect();
    let text = stage.run(bpftool, &["prog", "list"])?.output;
    let lines: Vec<&str> =
        text.lines().filter(|line| heads.iter().any(|head| line.starts_with(head.as_str()))).collect();
    report.shown("bpftool prog list      # those of node-1's agent, first lines", &lines.join("\n"), None);
    let names: BTreeSet<&str> = ours.iter().filter_map(|program| program["name"].as_str()).collect();
    let complete = PROGRAMS.iter().all(|name| names.contains(name));
    report.fact(complete, format!("{} programs of node-1's agent are loaded, by name", ours.len()));
    report.value("programs", json!(names));
    Ok(())
}

/// The table of pairs, while one is open.
fn pairs(stage: &Stage, report: &mut Report, bpftool: &Path, client: &str) -> Result<()> {
    let pinned = stage.agent("node-1")?.pin_dir.join("PAIRS");
    let pinned = pinned.to_string_lossy();
    let dumped = stage.run(bpftool, &["map", "dump", "pinned", &pinned])?;
    let port = client.rsplit(':').next().unwrap_or_default();
    let all = entries(&dumped.output);
    let decoded = format!("\"client_port\": {port},");
    let ours = all.into_iter().find(|entry| entry.contains(&decoded));
    let lines: Vec<&str> = ours
        .iter()
        .flat_map(|entry| entry.lines())
        .filter(|line| FIELDS.iter().any(|field| line.contains(&format!("\"{field}"))))
        .map(str::trim)
        .collect();
    let typed = format!("bpftool map dump pinned {pinned} | grep -E 'port|action|state|cookies|bytes\"|...'");
    report.shown(&typed, &lines.join("\n"), Some(dumped.exit_code));
    let text = format!("the open connection from {client} is there, with named fields");
    report.fact(ours.is_some() && lines.len() >= FIELDS.len(), text);
    report.value("pair", json!(lines));
    Ok(())
}

/// The entries of a dump with type information: an array of objects, each with a key.
fn entries(dump: &str) -> Vec<String> {
    dump.split("\"key\":").skip(1).map(str::to_owned).collect()
}

/// Debian keeps it where an ordinary user's PATH does not look.
fn bpftool() -> PathBuf {
    let debian = PathBuf::from("/usr/sbin/bpftool");
    if debian.exists() { debian } else { PathBuf::from("bpftool") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dump_is_taken_apart_into_its_entries() {
        let dump =
            "[{\n \"key\": 1,\n \"value\": {\"client_port\": 5,}\n},{\n \"key\": 2,\n \"value\": {}\n}\n]";
        let entries = entries(dump);
        assert_eq!(entries.len(), 2);
        assert!(entries[0].contains("\"client_port\": 5,") && !entries[1].contains("client_port"));
    }
}
