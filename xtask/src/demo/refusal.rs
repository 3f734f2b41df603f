//! Act 3: a policy refuses one caller, lets another pass, and says why.

use anyhow::Result;
use serde_json::json;

use super::evidence::record;
use super::report::Report;
use super::stage::{Stage, sister};

/// The policy of the shop's world.
const POLICY: &str = "shop/payments-callers";

/// Shows the act.
pub fn show(stage: &Stage, report: &mut Report) -> Result<()> {
    report.act(
        "A policy refuses a caller, and says why",
        "Only orders may call payments. web is refused before a byte reaches payments; nothing in either program was \
         changed for it.",
    );
    let (typed, allowed) = stage.in_pod("shop/orders-1", &["xtask", "app", "get", "http://payments/"])?;
    report.ran(&typed, &allowed);
    report.fact(allowed.exit_code == 0 && allowed.output.starts_with("200"), "orders is answered");
    let (typed, refused) = stage.in_pod("shop/web", &["xtask", "app", "get", "http://payments/"])?;
    report.ran(&typed, &refused);
    let error = refused.output.trim().to_owned();
    let is_refused = refused.exit_code != 0 && ["ECONNRESET", "ECONNREFUSED"].contains(&error.as_str());
    report.fact(is_refused, format!("web is refused: {error}, exit code {}", refused.exit_code));
    report.value("error", json!(error));
    explained(stage, report)?;
    recorded(stage, report)
}

fn explained(stage: &Stage, report: &mut Report) -> Result<()> {
    let agent = format!("http://{}", stage.agent("node-2")?.admin);
    let words =
        ["--agent", &agent, "policy", "explain", "--from", "shop/web", "--to", "shop/payments-1:8080"];
    let explained = stage.run(&sister("meshctl")?, &words)?;
    report.ran(&format!("target/release/meshctl {}", words.join(" ")), &explained);
    let names_it = explained.exit_code == 1 && explained.output.contains(POLICY);
    report.fact(names_it, format!("meshctl says so beforehand, and names the policy: {POLICY}"));
    report.value("policy", json!(POLICY));
    Ok(())
}

fn recorded(stage: &Stage, report: &mut Report) -> Result<()> {
    let agent = stage.agent("node-2")?;
    let record = record(agent, "the refused call", |record| {
        record.text("/ending") == "policy_denied" && record.text("/source/pod") == "web"
    })?;
    report.shown(
        &format!("grep policy_denied {} | tail -n 1", agent.access_log.display()),
        &record.line,
        None,
    );
    let (identity, reason) = (record.text("/source/identity"), record.text("/reason"));
    let is_told = identity.ends_with("/ns/shop/sa/web") && reason == POLICY;
    report.fact(
        is_told,
        format!("the access record names the policy, {reason}, and whom it refused, {identity}"),
    );
    let sent = record.fields["bytes_sent"].as_u64();
    report.fact(sent == Some(0), "no byte of web reached payments");
    report.value("record", record.fields.clone());
    Ok(())
}
