//! What a test asks a running lab: pages, metrics, access records, logs.

use std::fs;
use std::process::{Command, Output};
use std::thread;
use std::time::Duration;

use serde_json::Value;

use super::{Lab, release_dir};
use crate::seen::{self, Metrics};
use crate::wait;

impl Lab {
    /// A page of a node's agent: status and body.
    #[track_caller]
    pub fn page(&self, node: &str, path: &str) -> (u16, String) {
        seen::get(&self.agent(node).admin, path).unwrap_or_else(|error| {
            panic!("{path} of {node}: {error:#}\nits log ends with:\n{}", self.log_tail(node))
        })
    }

    /// A JSON page of a node's agent.
    #[track_caller]
    pub fn view(&self, node: &str, path: &str) -> Value {
        let (status, body) = self.page(node, path);
        serde_json::from_str(&body).unwrap_or_else(|error| panic!("{path}: {status} {error}: {body}"))
    }

    /// The metrics of a node's agent.
    #[track_caller]
    pub fn metrics(&self, node: &str) -> Metrics {
        Metrics::parse(&self.page(node, "/metrics").1)
    }

    /// The access records of a node's agent, oldest first, with those of everything that was over before this call: agents
    /// write them in batches.
    #[track_caller]
    pub fn access_records(&self, node: &str) -> Vec<Value> {
        thread::sleep(Duration::from_millis(100));
        self.written_records(node)
    }

    #[track_caller]
    fn written_records(&self, node: &str) -> Vec<Value> {
        seen::records(&fs::read_to_string(&self.agent(node).access_log).unwrap_or_default())
    }

    /// Waits for an access record that fits.
    ///
    /// # Panics
    /// When none comes; the message has those that came.
    #[track_caller]
    pub fn record(&self, node: &str, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
        let deadline = wait::now() + wait::PATIENCE;
        loop {
            let records = self.written_records(node);
            if let Some(found) = records.iter().find(|record| fits(record)) {
                return found.clone();
            }
            if wait::now() > deadline {
                let last: Vec<String> = records.iter().rev().take(8).map(Value::to_string).collect();
                panic!("{node} wrote no record of {what}; the last are\n{}", last.join("\n"));
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until a metric of a node, summed over the series with these labels, is at least `least`.
    #[track_caller]
    pub fn metric_reaches(&self, node: &str, family: &str, labels: &[(&str, &str)], least: f64) {
        let deadline = wait::now() + wait::PATIENCE;
        loop {
            let metrics = self.metrics(node);
            if metrics.sum(family, labels) >= least {
                return;
            }
            assert!(
                wait::now() < deadline,
                "{family} {labels:?} of {node} stays below {least}:\n{}",
                metrics.family(family)
            );
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// What the API server of a lab answers that was made with `--source kubernetes`. It listens on the lab's own network.
    ///
    /// # Panics
    /// The lab has none, or it does not answer.
    #[track_caller]
    pub fn api(&self, path: &str) -> Value {
        let api = self.state.api.as_ref().expect("the lab has an API server");
        let (pid, address) = (api["pid"].to_string(), api["address"].as_str().expect("an address"));
        let (ip, port) = address.rsplit_once(':').expect("an address with a port");
        let ask = format!(
            "exec 3<>/dev/tcp/{ip}/{port}; printf 'GET {path} HTTP/1.0\\r\\nhost: {ip}\\r\\n\\r\\n' >&3; cat <&3"
        );
        let asked = Command::new("nsenter").args(["--target", &pid, "--net", "bash", "-c", &ask]).output();
        let answer = String::from_utf8(asked.expect("nsenter (util-linux) runs").stdout).expect("text");
        let body = answer.split_once("\r\n\r\n").map(|(_, body)| body).unwrap_or_default();
        serde_json::from_str(body).unwrap_or_else(|error| panic!("{path}: {error}: {answer}"))
    }

    /// Runs `meshctl` against a node's agent.
    #[track_caller]
    pub fn meshctl(&self, node: &str, words: &[&str]) -> Output {
        let agent = format!("http://{}", self.agent(node).admin);
        let mut meshctl = Command::new(release_dir().join("meshctl"));
        meshctl.args(["--agent", &agent]).args(words).output().expect("meshctl runs")
    }

    /// The end of a node's agent's log.
    pub fn log_tail(&self, node: &str) -> String {
        let log = self.node(node).agent.as_ref().map(|agent| &agent.log);
        let text = log.and_then(|log| fs::read_to_string(log).ok()).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}
