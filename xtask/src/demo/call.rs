//! Act 1: the call works, from either node, and the server sees who called.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::report::Report;
use super::stage::{Ran, Stage};

/// Calls until both endpoints have answered: with two endpoints, so many calls to one only is a broken balancer.
const CALLS_MAX: usize = 40;

/// Shows the act.
pub fn show(stage: &Stage, report: &mut Report) -> Result<()> {
    report.act(
        "The call works",
        "web calls the service orders, whose pods run on both nodes. Neither end knows of the mesh; the unmodified \
         server sees the client's own address.",
    );
    let mut answers: BTreeMap<String, Value> = BTreeMap::new();
    for _ in 0..CALLS_MAX {
        let (typed, ran) = stage.in_pod("shop/web", &["xtask", "app", "get", "http://orders/"])?;
        let answer = answer(&ran).unwrap_or(Value::Null);
        let pod = answer["pod"].as_str().unwrap_or_default().to_owned();
        let is_new = !answers.contains_key(&pod);
        if is_new {
            report.ran(&typed, &ran);
            answers.insert(pod, answer);
        }
        if answers.len() == 2 || ran.exit_code != 0 {
            break;
        }
    }
    let lab = stage.lab()?;
    let web = lab.pod("shop/web")?;
    for name in ["orders-1", "orders-2"] {
        let node = &lab.pod(&format!("shop/{name}"))?.node;
        let Some(answer) = answers.get(name) else {
            report.fact(false, format!("{name} on {node} did not answer"));
            continue;
        };
        let client = answer["client"].as_str().unwrap_or_default();
        let is_true = client.parse().is_ok_and(|seen: SocketAddr| web.ips.contains(&seen.ip()));
        let place = if *node == web.node { "web's own node" } else { "the other node" };
        report.fact(is_true, format!("{name} on {node} ({place}) answered, and saw web's address: {client}"));
    }
    report.value("answers", json!(answers));
    report.value("clientAddresses", json!(web.ips));
    Ok(())
}

/// The body of the answer that `xtask app get` printed below the status.
pub fn answer(ran: &Ran) -> Result<Value> {
    let (_, body) = ran.output.split_once('\n').context("no answer")?;
    Ok(serde_json::from_str(body.trim())?)
}
