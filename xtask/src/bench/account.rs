//! What a measurement cost: CPU time by cgroup, memory by process, CPU time of everybody else, and the agents' own counts.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::clock;

/// Ticks of /proc/stat per second: USER_HZ, which is 100 on every architecture that Linux has now (proc_stat(5)).
const TICKS_PER_S: f64 = 100.0;

/// CPU time that a cgroup and those below it have used, in seconds.
///
/// The kernel keeps cpu.stat for every cgroup2, whether or not the cpu controller is on (Documentation/admin-guide/cgroup-v2.rst).
pub fn cpu_s(cgroup: &Path) -> Result<f64> {
    let path = cgroup.join("cpu.stat");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let micros = text.lines().find_map(|line| line.strip_prefix("usage_usec ")?.trim().parse::<f64>().ok());
    Ok(micros.with_context(|| format!("{} has no usage_usec", path.display()))? / 1e6)
}

/// Resident memory of a process, in KiB.
pub fn rss_kib(pid: u32) -> Result<f64> {
    status_kib(pid, "VmRSS:")
}

/// The most resident memory that a process ever had, in KiB.
pub fn peak_rss_kib(pid: u32) -> Result<f64> {
    status_kib(pid, "VmHWM:")
}

fn status_kib(pid: u32, name: &str) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))
        .with_context(|| format!("process {pid} is gone"))?;
    let kib = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.trim().strip_suffix(" kB")?.trim().parse::<f64>().ok());
    kib.with_context(|| format!("process {pid} has no {name}"))
}

/// The machine's clocks at one moment.
pub struct Moment {
    at: Instant,
    busy_s: f64,
    stolen_s: f64,
}

/// What the machine did between two moments, in cores.
pub struct Between {
    /// All work, whoever did it.
    pub busy: f64,
    /// Taken away by the hypervisor.
    pub stolen: f64,
    /// Length, in seconds.
    pub seconds: f64,
}

impl Moment {
    /// Now.
    pub fn now() -> Result<Self> {
        let text = fs::read_to_string("/proc/stat").context("cannot read /proc/stat")?;
        let (busy, stolen) = busy_and_stolen(&text).context("/proc/stat has no `cpu` line")?;
        Ok(Self { at: clock::now(), busy_s: busy / TICKS_PER_S, stolen_s: stolen / TICKS_PER_S })
    }

    /// From here to `later`.
    pub fn until(&self, later: &Self) -> Between {
        let seconds = later.at.duration_since(self.at).as_secs_f64();
        Between {
            busy: (later.busy_s - self.busy_s) / seconds,
            stolen: (later.stolen_s - self.stolen_s) / seconds,
            seconds,
        }
    }
}

/// Ticks of work and of steal: user nice system idle iowait irq softirq steal (proc_stat(5)).
fn busy_and_stolen(stat: &str) -> Option<(f64, f64)> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let ticks: Vec<f64> = line.split_whitespace().filter_map(|field| field.parse().ok()).collect();
    let busy = [0, 1, 2, 5, 6].iter().map(|index| ticks.get(*index)).sum::<Option<f64>>()?;
    Some((busy, *ticks.get(7)?))
}

/// The page of an agent's metrics.
pub fn metrics(admin: &str) -> Result<String> {
    let fetch = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(admin)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        let request =
            "GET /metrics HTTP/1.1\r\nHost: bench\r\nAccept: text/plain\r\nConnection: close\r\n\r\n";
        stream.write_all(request.as_bytes())?;
        let mut page = String::new();
        stream.read_to_string(&mut page)?;
        Ok(page)
    };
    let page = fetch().with_context(|| format!("cannot read the metrics at {admin}"))?;
    ensure!(page.starts_with("HTTP/1.1 200"), "the metrics at {admin} are refused");
    Ok(page)
}

/// The value of a family without labels.
pub fn gauge(page: &str, family: &str) -> Option<f64> {
    page.lines().find_map(|line| line.strip_prefix(family)?.strip_prefix(' ')?.trim().parse().ok())
}

/// Sums the series of a family that have all these labels (as `name="value"`) by the value of another.
pub fn sums_by_label(page: &str, family: &str, having: &[&str], label: &str) -> BTreeMap<String, f64> {
    let mut sums = BTreeMap::new();
    let wanted = format!("{label}=\"");
    for line in page.lines() {
        let Some(rest) = line.strip_prefix(family).and_then(|rest| rest.strip_prefix('{')) else { continue };
        let Some((labels, number)) = rest.rsplit_once("} ") else { continue };
        if !having.iter().all(|wanted| labels.split(',').any(|one| one == *wanted)) {
            continue;
        }
        let Some(value) = labels.split_once(&wanted).and_then(|(_, after)| after.split('"').next()) else {
            continue;
        };
        let number = number.split(' ').next().and_then(|n| n.parse::<f64>().ok()).unwrap_or(0.0);
        *sums.entry(value.to_owned()).or_insert(0.0) += number;
    }
    sums
}

/// What was added to each sum since `before`.
pub fn growth(before: &BTreeMap<String, f64>, after: &BTreeMap<String, f64>) -> BTreeMap<String, f64> {
    let grown = |(key, now): (&String, &f64)| (key.clone(), now - before.get(key).unwrap_or(&0.0));
    after.iter().map(grown).filter(|(_, more)| *more > 0.0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_is_summed_by_a_label_and_its_namesakes_are_not() {
        let page = "# TYPE opened counter\nopened_total{a=\"x\",path=\"splice\"} 2\nopened_total{a=\"x\",b=\"c\",path=\"splice\"} 3\n\
                    opened_total{a=\"x\",path=\"tunnel\"} 1\nopened_total{a=\"y\",path=\"splice\"} 7\nopened_total_more{path=\"splice\"} 9\n";
        let sums = sums_by_label(page, "opened_total", &["a=\"x\""], "path");
        assert_eq!(sums, BTreeMap::from([("splice".to_owned(), 5.0), ("tunnel".to_owned(), 1.0)]));
    }

    #[test]
    fn only_what_grew_is_growth() {
        let (before, after) = (
            BTreeMap::from([("a".to_owned(), 1.0), ("b".to_owned(), 2.0)]),
            BTreeMap::from([("a".to_owned(), 1.0), ("b".to_owned(), 5.0), ("c".to_owned(), 1.0)]),
        );
        let expected = BTreeMap::from([("b".to_owned(), 3.0), ("c".to_owned(), 1.0)]);
        assert_eq!(growth(&before, &after), expected);
    }

    #[test]
    fn idle_and_waiting_are_not_work() {
        let stat = "cpu  10 1 20 500 60 3 4 7 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n";
        assert_eq!(busy_and_stolen(stat), Some((38.0, 7.0)));
    }
}
