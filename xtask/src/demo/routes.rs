//! Act 4: requests of one connection go where a route says, one by one, and a request that is not allowed is refused.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::call::answer;
use super::evidence::record;
use super::report::Report;
use super::stage::{Ran, Stage, sister};

/// Requests that are counted by version. Their shares are 90 and 10 in a hundred.
const REQUESTS: u64 = 500;

/// How many of them may go to the new version: 50 are expected, and these are more than four standard deviations away, so
/// that a right split is outside once in 30,000 runs.
const NEW_MIN_MAX: [u64; 2] = [22, 78];

/// The policy of the shop's world.
const POLICY: &str = "shop/catalog-readers";

/// Shows the act.
pub fn show(stage: &Stage, report: &mut Report) -> Result<()> {
    report.act(
        "Requests go where a route says",
        "An HTTPRoute on the service catalog splits its requests between two versions, one on each node. The agents read \
         them; nothing else stands on the way.",
    );
    in_force(stage, report)?;
    canary(stage, report)?;
    testers(stage, report)?;
    rewritten(stage, report)?;
    refused(stage, report)
}

fn in_force(stage: &Stage, report: &mut Report) -> Result<()> {
    let agent = format!("http://{}", stage.agent("node-1")?.admin);
    let words = ["--agent", &agent, "routes", "--namespace", "shop"];
    let listed = stage.run(&sister("meshctl")?, &words)?;
    report.ran(&format!("target/release/meshctl {}", words.join(" ")), &listed);
    let row = listed.output.lines().find(|line| line.contains(" catalog ")).unwrap_or_default();
    let cells: Vec<&str> = row.split_whitespace().collect();
    let is_accepted = cells.ends_with(&["3", "yes", "yes", "Accepted"]);
    report.fact(is_accepted, "all three rules of the route are in force, and their backends are known");
    report.value("route", json!(cells));
    Ok(())
}

fn canary(stage: &Stage, report: &mut Report) -> Result<()> {
    let count = REQUESTS.to_string();
    let (typed, ran) =
        stage.in_pod("shop/web", &["xtask", "app", "get", "http://catalog/", "--count", &count])?;
    report.ran(&typed, &ran);
    let pods = pods(&ran);
    let [old, new] = ["catalog-v1", "catalog-v2"].map(|pod| pods.get(pod).copied().unwrap_or(0));
    let is_split = (NEW_MIN_MAX[0]..=NEW_MIN_MAX[1]).contains(&new);
    report.fact(
        ran.exit_code == 0 && old + new == REQUESTS && is_split,
        format!(
            "of {REQUESTS} requests on one connection {old} went to catalog-v1 and {new} to catalog-v2; the route says 90 to 10"
        ),
    );
    report.value("canary", json!(pods));
    Ok(())
}

fn testers(stage: &Stage, report: &mut Report) -> Result<()> {
    let words = ["xtask", "app", "get", "http://catalog/", "-H", "x-tester:yes", "--count", "20"];
    let (typed, ran) = stage.in_pod("shop/web", &words)?;
    report.ran(&typed, &ran);
    let pods = pods(&ran);
    let all_new = ran.exit_code == 0 && pods == BTreeMap::from([("catalog-v2".to_owned(), 20)]);
    report.fact(all_new, "with the header x-tester: yes all of them go to catalog-v2");
    report.value("testers", json!(pods));
    Ok(())
}

fn rewritten(stage: &Stage, report: &mut Report) -> Result<()> {
    let url = "http://catalog/shop/catalog/books?page=2";
    let (typed, ran) = stage.in_pod("shop/web", &["xtask", "app", "get", url])?;
    report.ran(&typed, &ran);
    let answer = answer(&ran).unwrap_or(Value::Null);
    let (path, query) = (&answer["path"], &answer["query"]);
    let is_rewritten = path == "/books" && query == "page=2" && answer["host"] == "catalog";
    report.fact(
        is_rewritten,
        format!(
            "web asked for /shop/catalog/books?page=2, the server was asked for {}?{}",
            path.as_str().unwrap_or_default(),
            query.as_str().unwrap_or_default()
        ),
    );
    report.value("rewritten", answer);
    Ok(())
}

fn refused(stage: &Stage, report: &mut Report) -> Result<()> {
    // As a tester, so that it is known which node refuses.
    let words =
        ["xtask", "app", "get", "http://catalog/books", "--method", "DELETE", "-H", "x-tester:yes", "-i"];
    let (typed, ran) = stage.in_pod("shop/web", &words)?;
    report.ran(&typed, &ran);
    let status = ran.output.split(' ').nth(1).unwrap_or_default().trim();
    report.fact(ran.exit_code != 0 && status == "403", format!("web may read, but not DELETE: {status}"));
    let name = POLICY.rsplit('/').next().unwrap_or_default();
    report.fact(!ran.output.contains(name), "the answer does not say which policy refused it");
    let agent = stage.agent("node-2")?;
    let record = record(agent, "the refused request", |record| {
        record.text("/http/method") == "DELETE" && record.text("/reporter") == "destination"
    })?;
    let typed = format!("grep DELETE {} | tail -n 1", agent.access_log.display());
    report.shown(&typed, &record.line, None);
    let (reason, identity) = (record.text("/reason"), record.text("/source/identity"));
    let is_told = reason == POLICY && identity.ends_with("/ns/shop/sa/web");
    report.fact(
        is_told && record.text("/http/path") == "/books",
        format!("the access record does: {reason}; and whom it refused, {identity}"),
    );
    report.value("record", record.fields.clone());
    Ok(())
}

/// How many answers came from each pod, as `app get --count` summed them up.
fn pods(ran: &Ran) -> BTreeMap<String, u64> {
    let summary: Result<Value> =
        ran.output.lines().next().context("no summary").and_then(|line| Ok(serde_json::from_str(line)?));
    let summary = summary.unwrap_or(Value::Null);
    let pods = summary["pods"].as_object().into_iter().flatten();
    pods.filter_map(|(pod, count)| Some((pod.clone(), count.as_u64()?))).collect()
}
