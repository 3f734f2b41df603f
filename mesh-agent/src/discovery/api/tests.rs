//! What the API may do to us, and what stays of the mesh's state through it. Time stands still but where somebody waits.

use std::time::Duration;

use kube::Client;
use serde_json::{Value, json};

use super::{Feeds, GATHER, gather, rested_after, start};
use crate::discovery::Publisher;
use crate::discovery::{Problem, Report};
use crate::lifecycle::{Trigger, clock, shutdown};
use crate::policy::{self, Policies};
use crate::registry::{self, Registry};
use crate::route;
use crate::telemetry::{Format, Telemetry};
use script::{End, Reply, Script};

mod faults;
mod objects;
mod script;
mod sockets;

/// Longest wait for anything; costs nothing, since time moves when nobody has anything to do.
const PATIENCE: Duration = Duration::from_secs(3600);

/// Discovery that reads from a script.
struct Running {
    script: Script,
    registry: Registry,
    policies: Policies,
    telemetry: Telemetry,
    feeds: Feeds,
    report: std::sync::Arc<parking_lot::Mutex<Report>>,
    _stop: Trigger,
}

fn run(script: &Script) -> Running {
    run_with(script, &script.client())
}

fn run_with(script: &Script, client: &Client) -> Running {
    let (registry_writer, registry) = registry::new();
    let (policy_writer, policies) = policy::new();
    let publisher = Publisher::new(registry_writer, policy_writer, route::new().0);
    let report = publisher.report.clone();
    let telemetry = Telemetry::without_access_log();
    let (stop, shutdown) = shutdown::channel();
    let feeds = start(client, publisher, &telemetry, &shutdown);
    Running { script: script.clone(), registry, policies, telemetry, feeds, report, _stop: stop }
}

impl Running {
    /// Waits until `wanted` is so.
    async fn until(&self, what: &str, wanted: impl Fn(&Self) -> bool) {
        let arrives = async {
            while !wanted(self) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        if tokio::time::timeout(PATIENCE, arrives).await.is_err() {
            panic!("{what} never came; pods: {:?}, problems: {:?}", self.pods(), self.problems());
        }
    }

    async fn until_pods(&self, expected: &[&str]) {
        self.until(&format!("{expected:?}"), |running| running.is_published() && running.pods() == expected)
            .await;
    }

    fn is_published(&self) -> bool {
        self.registry.snapshot().version > 0
    }

    fn pods(&self) -> Vec<String> {
        let snapshot = self.registry.snapshot();
        let mut names: Vec<_> = snapshot.workloads().map(|pod| pod.name.name.to_string()).collect();
        names.sort();
        names
    }

    fn problems(&self) -> Vec<String> {
        self.report.lock().problems.iter().map(Problem::to_string).collect()
    }

    /// State of a kind, and what keeps it from being read.
    fn state(&self, kind: &str) -> (&'static str, Option<(&'static str, String)>) {
        let report = self.feeds.report().into_iter().find(|feed| feed.kind == kind).unwrap();
        (report.state, report.failure.map(|failure| (failure.reason, failure.message)))
    }

    fn has_metric(&self, line: &str) -> bool {
        self.telemetry.scrape(Format::Prometheus).lines().any(|found| found == line)
    }
}

#[test]
fn a_long_publication_puts_off_what_follows_at_once_and_nothing_later() {
    let began = clock::now();
    let after = |ms| began + Duration::from_millis(ms);
    // It took from 0 to the first number; a change comes at the second and is published from the third on.
    for (ended, comes, due) in
        [(1, 1, 6), (40, 40, 80), (40, 60, 80), (40, 79, 84), (40, 500, 505), (9000, 9000, 9250)]
    {
        let pause = gather(after(comes), rested_after(began, after(ended)));
        assert_eq!(after(comes) + pause, after(due), "{ended} {comes}");
    }
    let first = gather(after(60_000), rested_after(began, after(7600)));
    assert_eq!(first, GATHER, "the first state is long published");
}

async fn seconds(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}

/// A running pod of namespace `shop`.
fn pod(name: &str, ip: &str, version: u64) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "shop", "resourceVersion": version.to_string(), "uid": name,
            "creationTimestamp": "2026-01-01T00:00:00Z", "managedFields": [{"manager": "kubelet"}]},
        "spec": {"nodeName": "node-1", "containers": [{"name": "c"}]},
        "status": {"podIP": ip},
    })
}

fn bookmark(version: u64) -> Value {
    json!({"kind": "Pod", "metadata": {"resourceVersion": version.to_string(), "creationTimestamp": null}})
}

fn gone() -> Value {
    json!({"kind": "Status", "status": "Failure", "code": 410, "reason": "Expired", "message": "too old"})
}
