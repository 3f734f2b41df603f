//! What agents say: metrics and access records.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::wait::PATIENCE;

/// A scrape of an agent's metrics.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    samples: Vec<(String, BTreeMap<String, String>, f64)>,
}

impl Metrics {
    /// Reads the text format.
    pub fn parse(text: &str) -> Self {
        let samples = text.lines().filter(|line| !line.starts_with('#')).filter_map(sample).collect();
        Self { samples }
    }

    /// The sum over all series of a family (as written in docs/metrics.md) that have all of `labels`.
    pub fn sum(&self, family: &str, labels: &[(&str, &str)]) -> f64 {
        let has = |own: &BTreeMap<String, String>| {
            labels.iter().all(|(name, value)| own.get(*name).is_some_and(|own| own == value))
        };
        self.samples
            .iter()
            .filter(|(name, own, _)| name == family && has(own))
            .map(|(_, _, value)| value)
            .sum()
    }

    /// The values of a label in a family.
    pub fn values(&self, family: &str, label: &str) -> Vec<String> {
        let of_family = self.samples.iter().filter(|(name, ..)| name == family);
        of_family.filter_map(|(_, labels, _)| labels.get(label).cloned()).collect()
    }

    /// All series of a family, for messages.
    pub fn family(&self, family: &str) -> String {
        let of_family = self.samples.iter().filter(|(name, ..)| name == family);
        of_family.map(|(_, labels, value)| format!("{labels:?} {value}\n")).collect()
    }
}

fn sample(line: &str) -> Option<(String, BTreeMap<String, String>, f64)> {
    let Some((series, rest)) = line.split_once('{') else {
        let (name, value) = line.split_once(' ')?;
        return Some((name.to_owned(), BTreeMap::new(), value.parse().ok()?));
    };
    let (labels, value) = rest.rsplit_once("} ")?;
    let labels = labels.split("\",").filter_map(|pair| {
        let (name, value) = pair.split_once("=\"")?;
        Some((name.to_owned(), value.trim_end_matches('"').to_owned()))
    });
    // A timestamp or an exemplar may follow the value.
    Some((series.to_owned(), labels.collect(), value.split(' ').next()?.parse().ok()?))
}

/// GETs a page of a process's admin address; gives status and body.
pub fn get(admin: &str, path: &str) -> Result<(u16, String)> {
    let mut stream = TcpStream::connect(admin).with_context(|| format!("no answer from {admin}"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: test\r\nAccept: text/plain, application/json\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("the answer has no end of head")?;
    let status =
        head.split(' ').nth(1).and_then(|status| status.parse().ok()).context("the answer has no status")?;
    ensure!(!head.to_lowercase().contains("transfer-encoding: chunked"), "the answer is chunked");
    Ok((status, body.to_owned()))
}

/// The records of an access log; a line that is still being written is left out.
pub fn records(text: &str) -> Vec<Value> {
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().map(|line| serde_json::from_str(line).expect("an access record is a JSON object")).collect()
}
