//! One agent: does it answer, is its node's part of the mesh as promised?

use serde_json::Value;

use super::look::{Complaint, Finding};
use crate::cli::Error;
use crate::cli::client::Agent;
use crate::cli::columns::{CERTIFICATES, List, POLICIES, PROBLEMS, WORKLOADS, items, text};

/// Looks at everything that an agent shows.
pub(super) fn looks(agent: &Agent) -> Result<Vec<Finding>, Error> {
    let version = agent.json("/version")?;
    let metrics = agent.get("/metrics")?.body;
    Ok(vec![
        Finding::new("version", same_version(&version), "take the meshctl of the agent's release"),
        Finding::new(
            "alive",
            answers_well(agent, "/livez", "dead: ")?,
            "its log says why: kubectl -n weft-system logs POD, or the journal; then start it again",
        ),
        Finding::new(
            "ready",
            answers_well(agent, "/readyz", "waiting for: ")?,
            "it goes on by itself when what it waits for is there; docs/operating.md lists these matters",
        ),
        Finding::new(
            "objects",
            none_refused(&list(agent, &PROBLEMS)?),
            "mend the objects that meshctl problems lists",
        ),
        Finding::new(
            "policies",
            all_enforced(&list(agent, &POLICIES)?),
            "mend the policies; meshctl policies -o json says what cannot be enforced",
        ),
        Finding::new(
            "certificates",
            all_valid(&list(agent, &CERTIFICATES)?),
            "see whether the control plane answers, and what the agent's log says about certificates",
        ),
        Finding::new(
            "capture",
            all_captured(&list(agent, &WORKLOADS)?, &version["node"]),
            "the agent's log names what keeps each pod from being caught",
        ),
        Finding::new(
            "fast path",
            fast_path(&metrics, &version["node"]),
            "connections of one node are plain TCP meanwhile; docs/operating.md says what each probe needs",
        ),
        Finding::new(
            "telemetry",
            nothing_lost(&metrics),
            "write access records to a faster place, or fewer of them",
        ),
    ])
}

/// A list of the agent; empty where it has no such window (a control plane has fewer).
fn list(agent: &Agent, list: &List) -> Result<Vec<Value>, Error> {
    match agent.json(list.path) {
        Ok(answer) if list.within.is_empty() => Ok(items(&answer).to_vec()),
        Ok(answer) => Ok(items(&answer[list.within]).to_vec()),
        Err(Error::Refused { status: 404, .. }) => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

fn same_version(version: &Value) -> Result<String, Complaint> {
    let (ours, theirs) = (env!("CARGO_PKG_VERSION"), text(&version["version"]));
    if theirs == ours {
        return Ok(theirs);
    }
    Err(Complaint::Warning(format!("the agent is {theirs}, this meshctl is {ours}")))
}

fn answers_well(agent: &Agent, path: &str, prefix: &str) -> Result<Result<String, Complaint>, Error> {
    let reply = agent.get(path)?;
    if reply.status == 200 {
        return Ok(Ok(reply.body.trim().to_owned()));
    }
    let parts: Vec<&str> = reply.body.lines().filter_map(|line| line.strip_prefix(prefix)).collect();
    Ok(Err(Complaint::Failure(format!("{prefix}{}", parts.join(", ")))))
}

fn none_refused(problems: &[Value]) -> Result<String, Complaint> {
    match problems {
        [] => Ok("none refused".to_owned()),
        [first, rest @ ..] => {
            let more = if rest.is_empty() { String::new() } else { format!(" (and {} more)", rest.len()) };
            let first = format!("{}: {}", text(&first["location"]), text(&first["message"]));
            Err(Complaint::Failure(format!("{first}{more}; see meshctl problems")))
        }
    }
}

fn all_enforced(policies: &[Value]) -> Result<String, Complaint> {
    let unusable = names(policies.iter().filter(|policy| !policy["unusable"].is_null()));
    if unusable.is_empty() {
        return Ok(format!("{} enforced", policies.len()));
    }
    Err(Complaint::Failure(format!(
        "refuse everybody, since they cannot be enforced: {}",
        unusable.join(", ")
    )))
}

fn all_valid(certificates: &[Value]) -> Result<String, Complaint> {
    let identities = |which: &dyn Fn(&&Value) -> bool| -> Vec<String> {
        certificates.iter().filter(which).map(|one| text(&one["identity"])).collect()
    };
    let invalid = identities(&|one| one["state"] != "valid");
    let unrenewed = identities(&|one| !one["error"].is_null());
    if !invalid.is_empty() {
        return Err(Complaint::Failure(format!("not valid: {}", invalid.join(", "))));
    }
    if !unrenewed.is_empty() {
        return Err(Complaint::Warning(format!("valid, but renewal fails: {}", unrenewed.join(", "))));
    }
    Ok(format!("{} valid", certificates.len()))
}

/// Pods of the agent's own node that are enrolled, run, and are not caught.
fn all_captured(workloads: &[Value], node: &Value) -> Result<String, Complaint> {
    let here: Vec<&Value> =
        workloads.iter().filter(|pod| &pod["node"] == node && pod["enrolled"] == Value::Bool(true)).collect();
    let missed = names(
        here.iter()
            .copied()
            .filter(|pod| pod["captured"] != Value::Bool(true) && pod["ready"] == Value::Bool(true)),
    );
    if missed.is_empty() {
        return Ok(format!("{} pods of this node", here.len()));
    }
    Err(Complaint::Failure(format!("enrolled, but not caught: {}", missed.join(", "))))
}

fn names<'a>(all: impl Iterator<Item = &'a Value>) -> Vec<String> {
    all.map(|one| format!("{}/{}", text(&one["namespace"]), text(&one["name"]))).collect()
}

fn fast_path(metrics: &str, node: &Value) -> Result<String, Complaint> {
    if node.is_null() {
        return Ok("none: this is no node's agent".to_owned());
    }
    let failed: Vec<&str> = metrics
        .lines()
        .filter_map(|line| line.strip_prefix("weft_probe_result{probe=\"")?.strip_suffix("\"} 0"))
        .collect();
    match sample(metrics, "weft_splice_enabled") {
        Some(1) => Ok("on".to_owned()),
        Some(_) if failed.is_empty() => Err(Complaint::Warning("off by configuration".to_owned())),
        Some(_) => Err(Complaint::Warning(format!("off, since probes failed: {}", failed.join(", ")))),
        None => Ok("not known".to_owned()),
    }
}

fn nothing_lost(metrics: &str) -> Result<String, Complaint> {
    let dropped = sample(metrics, "weft_access_records_dropped_total").unwrap_or(0);
    let folded = sample(metrics, "weft_metrics_folded_total").unwrap_or(0);
    match (dropped, folded) {
        (0, 0) => Ok("complete".to_owned()),
        (0, _) => Err(Complaint::Warning("too many label sets: some are counted under \"other\"".to_owned())),
        (dropped, _) => Err(Complaint::Warning(format!("{dropped} access records were dropped"))),
    }
}

/// The value of a metric without labels.
fn sample(metrics: &str, name: &str) -> Option<u64> {
    metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}
