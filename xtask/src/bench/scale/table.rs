//! What is shown of one agent in a large cluster, and what it must reach.

use serde_json::json;

use super::simulator::{Counts, Slow, Times};
use super::{Measured, Options, Window};
use crate::bench::report::{Report, Wanted, number};

/// Most resident memory, in MB.
const RSS_MB: f64 = 300.0;

/// Most time of 99 in 100 changes from the API server's socket to the kernel's map, in milliseconds.
const P99_MS: f64 = 50.0;

/// Foreign CPU above which times say nothing, in cores.
const QUIET_CORES: f64 = 0.3;

/// The report.
pub fn report(options: &Options, measured: &Measured) -> Report {
    let mut report = Report {
        bench: "scale",
        placement: format!(
            "One real agent with {} pods of its own, as one of {} nodes; {} pods, {} services with {} endpoints in as many slices, \
             simulated, HTTP without TLS. Memory is VmRSS, MB are 10^6 bytes.",
            3, options.nodes, options.pods, options.services, options.endpoints
        ),
        heads: vec!["what", "figure", "mark"],
        rows: Vec::new(),
        notes: Vec::new(),
        marks: Vec::new(),
        wrong: Vec::new(),
        samples: json!({"options": options, "measured": measured}),
    };
    start(&mut report, measured);
    memory(&mut report, measured);
    window(&mut report, "idle", &measured.idle);
    window(&mut report, "under change", &measured.churn);
    changes(&mut report, measured);
    report
}

fn row(report: &mut Report, what: impl Into<String>, figure: String, mark: String) {
    report.rows.push(vec![what.into(), figure, mark]);
}

fn start(report: &mut Report, measured: &Measured) {
    let said = |seconds: f64| format!("{} s", number(seconds));
    row(report, "start until ready", said(measured.ready_s), String::new());
    row(report, "start until all is in the kernel", said(measured.filled_s), String::new());
    row(report, "start, CPU time of the agent", said(measured.start_cpu_s), String::new());
    let counts = &measured.start;
    row(report, "start, requests to the API", by_verb(counts, 1.0), String::new());
    row(
        report,
        "start, bytes of lists",
        format!("{} MB", number(counts.list_bytes as f64 / 1e6)),
        String::new(),
    );
}

fn memory(report: &mut Report, measured: &Measured) {
    for (what, mb) in [
        ("memory after the start", measured.rss_mb_start),
        ("memory after the changes", measured.rss_mb_churn),
    ] {
        let mark = report.judge(what, Some(mb), " MB", Wanted::AtMost(RSS_MB));
        row(report, what, format!("{} MB", number(mb)), mark);
    }
    row(
        report,
        "memory, the most at any time",
        format!("{} MB", number(measured.rss_mb_peak)),
        String::new(),
    );
    row(report, "memory of the kernel's maps", format!("{} MB", number(measured.kernel_mb)), String::new());
}

fn window(report: &mut Report, name: &str, window: &Window) {
    let percent = format!("{} % of a core", number(window.agent_cores * 100.0));
    row(report, format!("{name}, CPU of the agent"), percent, String::new());
    let requests = by_verb(&window.counts, window.seconds);
    row(report, format!("{name}, requests to the API per second"), requests, String::new());
    let rate = |count: u64| number(count as f64 / window.seconds);
    let traffic = format!(
        "{} kB/s, {} events/s",
        number(window.counts.watch_bytes as f64 / 1e3 / window.seconds),
        rate(window.counts.watch_events)
    );
    row(report, format!("{name}, watch traffic"), traffic, String::new());
    if window.others_cores > QUIET_CORES {
        let used = number(window.others_cores);
        report.notes.push(format!("{name}: others used {used} cores meanwhile, so times say nothing"));
    }
}

fn changes(report: &mut Report, measured: &Measured) {
    let (changes, arrivals) = (&measured.changes, &measured.arrivals);
    let rate = number(changes.changes as f64 / changes.seconds);
    let kinds = format!(
        "{rate} per s ({} readiness, {} replaced, {} labels)",
        changes.readiness, changes.replaced, changes.relabelled
    );
    row(report, "changes made", kinds, String::new());
    let mark = report.judge("change to kernel, p99", arrivals.all.p99_ms, " ms", Wanted::AtMost(P99_MS));
    row(report, "change to kernel, all", times(&arrivals.all), mark);
    row(report, "change to kernel, pod addresses", times(&arrivals.addresses), String::new());
    row(report, "change to kernel, endpoints", times(&arrivals.endpoints), String::new());
    if arrivals.never_seen > 0 {
        report.wrong.push(format!("{} changes never came into the kernel", arrivals.never_seen));
    }
    if arrivals.all.count == 0 {
        report.wrong.push("no change came into the kernel".to_owned());
    }
    let slow =
        |slow: &Slow| format!("{} ms ({}, at {} s)", number(slow.took_ms), slow.what, number(slow.after_s));
    if !arrivals.slowest.is_empty() {
        let all: Vec<String> = arrivals.slowest.iter().map(slow).collect();
        report.notes.push(format!("slowest: {}", all.join(", ")));
    }
    let late = number(changes.late_max_ms);
    report.notes.push(format!("a change is one thing that happens to a pod, and makes 1 to 5 events; the latest was made {late} ms late"));
}

fn times(times: &Times) -> String {
    let shown = |ms: Option<f64>| ms.map_or_else(|| "-".to_owned(), number);
    format!(
        "p50 {}, p99 {}, max {} ms of {}",
        shown(times.p50_ms),
        shown(times.p99_ms),
        shown(times.max_ms),
        times.count
    )
}

/// Requests by verb, divided by `seconds`.
fn by_verb(counts: &Counts, seconds: f64) -> String {
    let verbs = counts.by_verb();
    if verbs.is_empty() {
        return "0".to_owned();
    }
    let said = |(verb, count): (&str, u64)| match seconds == 1.0 {
        true => format!("{count} {verb}"),
        false => format!("{} {verb}", number(count as f64 / seconds)),
    };
    verbs.into_iter().map(said).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_stand_beside_their_marks_and_a_miss_is_said() {
        let mut measured = Measured { rss_mb_start: 250.0, rss_mb_churn: 310.0, ..Measured::default() };
        measured.arrivals.all = Times { count: 7, p50_ms: Some(3.0), p99_ms: Some(49.0), max_ms: Some(51.0) };
        measured.changes.seconds = 1.0;
        let report = report(&Options::default(), &measured);
        let met: Vec<bool> = report.marks.iter().map(|mark| mark.met).collect();
        assert_eq!(met, [true, false, true]);
        assert!(report.rows.iter().any(|row| row[2].starts_with("MISS 310 MB")));
        assert!(report.wrong.is_empty());
    }

    #[test]
    fn changes_that_never_came_are_a_failure_and_no_miss() {
        let mut measured = Measured::default();
        measured.arrivals.never_seen = 2;
        assert_eq!(report(&Options::default(), &measured).wrong.len(), 2);
    }
}
