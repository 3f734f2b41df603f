//! The process about itself, read from `/proc` at each scrape.
//!
//! A value that cannot be read is left out of that scrape; the rest of the page stands.

use std::fs;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;

/// Kernel clock ticks per second as shown to user space (`USER_HZ`, 100 on every architecture that Weft runs on;
/// proc(5) gives start time and CPU time in it).
const TICKS_PER_SECOND: f64 = 100.0;

/// Collects at scrape time.
#[derive(Debug)]
pub(super) struct Process;

/// One metric about the process.
pub(super) struct Row {
    pub(super) name: &'static str,
    pub(super) unit: Option<Unit>,
    pub(super) kind: MetricType,
    pub(super) help: &'static str,
    read: fn() -> Option<f64>,
}

/// All of them.
pub(super) const ROWS: [Row; 5] = [
    Row {
        name: "process_resident_memory",
        unit: Some(Unit::Bytes),
        kind: MetricType::Gauge,
        help: "Resident memory of this process",
        read: resident_memory_bytes,
    },
    Row {
        name: "process_open_fds",
        unit: None,
        kind: MetricType::Gauge,
        help: "Open file descriptors of this process",
        read: open_fds,
    },
    Row {
        name: "process_threads",
        unit: None,
        kind: MetricType::Gauge,
        help: "Threads of this process",
        read: || status_field("Threads:"),
    },
    Row {
        name: "process_cpu",
        unit: Some(Unit::Seconds),
        kind: MetricType::Counter,
        help: "CPU time used by this process, user and system",
        read: cpu_seconds,
    },
    Row {
        name: "process_start_time",
        unit: Some(Unit::Seconds),
        kind: MetricType::Gauge,
        help: "When this process started, in seconds since 1970",
        read: start_time_seconds,
    },
];

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> std::fmt::Result {
        for row in &ROWS {
            let Some(value) = (row.read)() else { continue };
            // A collector's help gets no full stop of its own.
            let help = format!("{}.", row.help);
            let metric = encoder.encode_descriptor(row.name, &help, row.unit.as_ref(), row.kind)?;
            match row.kind {
                MetricType::Counter => ConstCounter::new(value).encode(metric)?,
                MetricType::Gauge | MetricType::Histogram | MetricType::Info | MetricType::Unknown => {
                    ConstGauge::new(value).encode(metric)?;
                }
            }
        }
        Ok(())
    }
}

fn resident_memory_bytes() -> Option<f64> {
    status_field("VmRSS:").map(|kib| kib * 1024.0)
}

fn open_fds() -> Option<f64> {
    // The directory being read is one of them.
    fs::read_dir("/proc/self/fd").ok().map(|entries| entries.count().saturating_sub(1) as f64)
}

/// First number of a line of `/proc/self/status`.
fn status_field(label: &str) -> Option<f64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(label))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Field of `/proc/self/stat`, numbered from 1 as in proc(5).
fn stat_field(number: usize) -> Option<f64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // Field 2 is the program's name in parentheses and may hold spaces; field 3 follows the last parenthesis.
    let (_, rest) = stat.rsplit_once(") ")?;
    rest.split(' ').nth(number - 3)?.parse().ok()
}

fn cpu_seconds() -> Option<f64> {
    Some((stat_field(14)? + stat_field(15)?) / TICKS_PER_SECOND)
}

fn start_time_seconds() -> Option<f64> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    let booted: f64 = stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
    Some(booted + stat_field(22)? / TICKS_PER_SECOND)
}
