//! What is shown: the machine, a table of figures with marks, notes, and the same as JSON.

use std::fmt::Write;
use std::fs;

use serde::Serialize;
use serde_json::{Value, json};

use super::Effort;
use super::rounds::Series;
use crate::shell::{self, answer};

/// The result of one bench.
#[derive(Clone, Debug)]
pub struct Report {
    /// Its name on the command line.
    pub bench: &'static str,
    /// One line on where everything stood.
    pub placement: String,
    /// Column heads.
    pub heads: Vec<&'static str>,
    /// Rows of the table.
    pub rows: Vec<Vec<String>>,
    /// What a reader must know beside the table.
    pub notes: Vec<String>,
    /// Marks and whether they were met.
    pub marks: Vec<Mark>,
    /// Measurements that went wrong.
    pub wrong: Vec<String>,
    /// Every sample.
    pub samples: Value,
}

/// A figure and what it must reach.
#[derive(Clone, Debug, Serialize)]
pub struct Mark {
    /// What is judged.
    pub what: String,
    /// The figure.
    pub value: f64,
    /// In which unit.
    pub unit: &'static str,
    /// What it must be.
    pub wanted: Wanted,
    /// Whether it is.
    pub met: bool,
}

/// A bound.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub enum Wanted {
    /// This or less.
    AtMost(f64),
    /// This or more.
    AtLeast(f64),
}

impl Wanted {
    /// Whether `value` is within.
    pub fn is_met_by(self, value: f64) -> bool {
        match self {
            Self::AtMost(bound) => value <= bound,
            Self::AtLeast(bound) => value >= bound,
        }
    }
}

impl Report {
    /// Judges a figure; the text for the table.
    pub fn judge(&mut self, what: &str, value: Option<f64>, unit: &'static str, wanted: Wanted) -> String {
        let Some(value) = value else { return "not measured".to_owned() };
        let met = wanted.is_met_by(value);
        self.marks.push(Mark { what: what.to_owned(), value, unit, wanted, met });
        let bound = match wanted {
            Wanted::AtMost(bound) => format!("<= {}", number(bound)),
            Wanted::AtLeast(bound) => format!(">= {}", number(bound)),
        };
        format!("{} {}{unit}, wanted {bound}{unit}", if met { "PASS" } else { "MISS" }, number(value))
    }

    /// Says which samples went wrong, and which measures have none that went right.
    pub fn tell_failures(&mut self, name: &str, series: &Series) {
        let failed = series.failed().count();
        if failed == 0 {
            return;
        }
        let first = series.failed().flat_map(|s| s.client.errors.iter().chain(&s.server.errors)).next();
        let first = first.map_or("", String::as_str);
        let line = format!("{name}: {failed} of {} rounds failed ({first})", series.samples.len());
        if failed == series.samples.len() { self.wrong.push(line) } else { self.notes.push(line) }
    }

    /// The report for people.
    pub fn text(&self, machine: &Value) -> String {
        let mut text = format!("\n## bench {}\n\n{}\n", self.bench, self.placement);
        for key in ["date", "kernel", "cpu", "cpus", "commit"] {
            let _ = write!(text, "{key}: {}; ", machine[key].as_str().unwrap_or_default());
        }
        text.push_str("\n\n");
        text.push_str(&table(&self.heads, &self.rows));
        if !self.notes.is_empty() {
            text.push('\n');
        }
        for note in &self.notes {
            let _ = writeln!(text, "- {note}");
        }
        let met = self.marks.iter().filter(|mark| mark.met).count();
        let _ = writeln!(text, "\n{met} of {} marks met", self.marks.len());
        text
    }
}

/// A Markdown table with aligned columns.
pub fn table(heads: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain([heads[column].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..heads.len()).map(width).collect();
    let mut text = String::new();
    let mut line = |cells: &[&str]| {
        for (cell, width) in cells.iter().zip(&widths) {
            let _ = write!(text, "| {cell:<width$} ");
        }
        text.push_str("|\n");
    };
    line(heads);
    let rule: Vec<String> = widths.iter().map(|width| "-".repeat(*width)).collect();
    line(&rule.iter().map(String::as_str).collect::<Vec<_>>());
    for row in rows {
        line(&row.iter().map(String::as_str).collect::<Vec<_>>());
    }
    text
}

/// A figure with as many digits as it deserves.
pub fn number(value: f64) -> String {
    match value.abs() {
        1000.0.. => format!("{value:.0}"),
        100.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// A figure that may be missing.
pub fn shown(value: Option<f64>) -> String {
    value.map_or_else(|| "failed".to_owned(), number)
}

/// `a / b`, when both are there.
pub fn ratio(a: Option<f64>, b: Option<f64>) -> Option<f64> {
    a.zip(b).filter(|(_, b)| *b > 0.0).map(|(a, b)| a / b)
}

/// `a - b`, when both are there.
pub fn difference(a: Option<f64>, b: Option<f64>) -> Option<f64> {
    a.zip(b).map(|(a, b)| a - b)
}

/// A ratio as text.
pub fn times(ratio: Option<f64>) -> String {
    ratio.map_or_else(String::new, |ratio| format!("{ratio:.2}x"))
}

/// Where it was measured.
pub fn machine() -> Value {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")?.split(": ").nth(1));
    let agent = shell::executable_dir().map(|dir| dir.join("mesh-agent"));
    let agent = agent.ok().and_then(|path| answer(path, &["--version"])).unwrap_or_default();
    let said = |program: &str, arguments: &[&str]| {
        answer(program, arguments).and_then(|text| text.lines().next().map(str::to_owned)).unwrap_or_default()
    };
    let changed =
        answer("git", &["status", "--porcelain", "--untracked-files=no"]).is_some_and(|t| !t.is_empty());
    let commit =
        said("git", &["rev-parse", "--short=12", "HEAD"]) + if changed { " with changes" } else { "" };
    json!({
        "date": said("date", &["-u", "+%FT%TZ"]),
        "kernel": read("/proc/sys/kernel/osrelease").trim(),
        "cpu": model.unwrap_or_default(),
        "cpus": std::thread::available_parallelism().map_or(0, std::num::NonZero::get).to_string(),
        "commit": commit,
        "agent": agent.trim(),
        "haproxy": said("haproxy", &["-v"]),
        "openssl": said("openssl", &["version"]),
    })
}

/// All reports for machines.
pub fn json(machine: &Value, effort: &Effort, reports: &[Report]) -> Value {
    let report = |report: &Report| {
        json!({
            "bench": report.bench, "placement": report.placement, "heads": report.heads, "rows": report.rows,
            "marks": report.marks, "notes": report.notes, "wrong": report.wrong, "samples": report.samples,
        })
    };
    json!({
        "machine": machine, "rounds": effort.rounds, "seconds": effort.seconds,
        "benches": reports.iter().map(report).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_include_themselves() {
        for (wanted, value, met) in [
            (Wanted::AtMost(0.6), 0.6, true),
            (Wanted::AtMost(0.6), 0.61, false),
            (Wanted::AtLeast(3.0), 3.0, true),
            (Wanted::AtLeast(3.0), 2.9, false),
        ] {
            assert_eq!(wanted.is_met_by(value), met, "{wanted:?} {value}");
        }
    }

    #[test]
    fn what_is_missing_has_no_ratio() {
        assert_eq!(ratio(Some(1.0), None), None);
        assert_eq!(ratio(Some(1.0), Some(0.0)), None);
        assert_eq!(ratio(Some(1.0), Some(2.0)), Some(0.5));
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let text = table(&["a", "bb"], &[vec!["long".to_owned(), "x".to_owned()]]);
        assert_eq!(text, "| a    | bb |\n| ---- | -- |\n| long | x  |\n");
    }
}
