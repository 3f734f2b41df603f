//! `bench scale`, on a small cluster: its simulator shows an agent what an API server would, whole and in time order. How
//! fast it goes is the bench's to say.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// Flags of a cluster that an agent of any build takes in within a second or two.
const SMALL: [&str; 14] = [
    "--nodes",
    "5",
    "--namespaces",
    "3",
    "--pods",
    "400",
    "--services",
    "80",
    "--endpoints",
    "800",
    "--changes-per-second",
    "20",
    "--seconds",
    "5",
];

#[test]
fn every_object_and_every_change_of_a_simulated_cluster_reaches_the_kernel() {
    // The tests are built into target/release/deps, the programs into target/release.
    let test = std::env::current_exe().unwrap();
    let xtask = test.parent().and_then(Path::parent).unwrap().join("xtask");
    let output = Command::new(xtask).args(["bench", "scale", "--json", "-"]).args(SMALL).output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "run `sudo cargo xtask test`:\n{told}");
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    let measured = &json["benches"][0]["samples"]["measured"];
    // 100 changes: each of readiness shows twice (two services), each pod replaced twice more (its old and new address).
    let changes = &measured["changes"];
    assert_eq!(changes["changes"], 100, "{told}");
    let count = |value: &Value| value["count"].as_u64().unwrap();
    let (readiness, replaced) =
        (changes["readiness"].as_u64().unwrap(), changes["replaced"].as_u64().unwrap());
    assert!(readiness > 10 && replaced > 10, "{changes}");
    assert_eq!(count(&measured["arrivals"]["endpoints"]), 2 * (readiness + replaced));
    assert_eq!(count(&measured["arrivals"]["addresses"]), 2 * replaced);
    assert_eq!(measured["arrivals"]["neverSeen"], 0);
    // One list and one watch per kind; while it watches, nothing is asked for again.
    let asked = |what: &str| measured["start"]["requests"][what].as_u64();
    for kind in ["pods", "services", "endpointslices", "namespaces", "nodes", "serviceaccounts"] {
        assert_eq!(
            (asked(&format!("list {kind}")), asked(&format!("watch {kind}"))),
            (Some(1), Some(1)),
            "{kind}"
        );
    }
    assert_eq!(measured["churn"]["counts"]["requests"], serde_json::json!({}));
}
