//! What agents tell: access records from their files, metrics from their admin pages.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::clock;
use crate::lab::state::Agent;

/// How long an agent may take to write a record after the connection has ended.
const RECORD_PATIENCE: Duration = Duration::from_secs(5);

/// How long an admin page may take.
const PAGE_PATIENCE: Duration = Duration::from_secs(5);

/// An access record.
pub struct Record {
    /// The line as written.
    pub line: String,
    /// The same, parsed.
    pub fields: Value,
}

impl Record {
    /// A text field by its path (`/source/identity`); empty when absent.
    pub fn text(&self, pointer: &str) -> &str {
        self.fields.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
    }
}

/// Waits for the newest record that `wanted` accepts.
pub fn record(agent: &Agent, what: &str, wanted: impl Fn(&Record) -> bool) -> Result<Record> {
    let deadline = clock::now() + RECORD_PATIENCE;
    loop {
        if let Some(found) = records(&agent.access_log).into_iter().rev().find(&wanted) {
            return Ok(found);
        }
        if clock::now() > deadline {
            bail!("no access record of {what} in {}", agent.access_log.display());
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// The records of a file; a line that is still being written is left out.
fn records(path: &Path) -> Vec<Record> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let parse = |line: &str| {
        let fields = serde_json::from_str(line).ok()?;
        Some(Record { line: line.to_owned(), fields })
    };
    text.lines().filter_map(parse).collect()
}

/// One sample of a metric.
#[derive(Debug, PartialEq)]
pub struct Sample {
    /// The line as served.
    pub line: String,
    /// The metric's name.
    pub name: String,
    /// Its labels, as served.
    labels: String,
    /// Its value.
    pub value: f64,
}

impl Sample {
    /// A label; empty when absent. No label that is read here holds a quote or a comma.
    pub fn label(&self, name: &str) -> &str {
        let pairs = self.labels.split(',').filter_map(|pair| pair.split_once('='));
        pairs.filter(|(key, _)| *key == name).map(|(_, value)| value.trim_matches('"')).next().unwrap_or("")
    }

    fn parse(line: &str) -> Option<Self> {
        if line.starts_with('#') {
            return None;
        }
        let (series, value) = line.rsplit_once(' ')?;
        let (name, labels) = series.split_once('{').unwrap_or((series, ""));
        Some(Self {
            line: line.to_owned(),
            name: name.to_owned(),
            labels: labels.trim_end_matches('}').to_owned(),
            value: value.parse().ok()?,
        })
    }
}

/// Reads an agent's metrics.
pub fn metrics(agent: &Agent) -> Result<Vec<Sample>> {
    let read = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(&agent.admin)?;
        stream.set_read_timeout(Some(PAGE_PATIENCE))?;
        stream.write_all(b"GET /metrics HTTP/1.0\r\nHost: demo\r\nAccept: text/plain\r\n\r\n")?;
        let mut page = String::new();
        stream.read_to_string(&mut page)?;
        Ok(page)
    };
    let page = read().with_context(|| format!("http://{}/metrics cannot be read", agent.admin))?;
    Ok(page.lines().filter_map(Sample::parse).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_read_with_and_without_labels() {
        let sample = Sample::parse(r#"weft_x{path="splice",ending="closed"} 3"#).unwrap();
        assert_eq!((sample.name.as_str(), sample.value), ("weft_x", 3.0));
        assert_eq!(
            (sample.label("path"), sample.label("ending"), sample.label("no")),
            ("splice", "closed", "")
        );
        assert_eq!(Sample::parse("weft_y 1.5").unwrap().value, 1.5);
        assert_eq!(Sample::parse("# TYPE weft_y gauge"), None);
    }
}
