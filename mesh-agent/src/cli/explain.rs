//! `meshctl policy explain`: asks an agent, or judges by itself from a directory of objects. Both ways run the same
//! function (`admin::explain::answer`) and print the same answer.

use std::io::Write;
use std::net::IpAddr;
use std::path::Path;

use serde_json::{Value, json};

use super::client::{Agent, escape};
use super::columns::{items, text};
use super::commands::print_value;
use super::flags::{ExplainFlags, Meshctl};
use super::{Error, Found};
use crate::admin::explain::{Asked, Client, Question, Target, answer};
use crate::discovery;

/// Carries out the command.
pub(super) fn run(line: &Meshctl, flags: &ExplainFlags, out: &mut dyn Write) -> Result<Found, Error> {
    let namespace = line.namespace.as_deref().unwrap_or("default");
    let from = in_namespace(&flags.from, namespace);
    let to = in_namespace(&flags.to, namespace);
    // Read here in both cases, so that a typing error is told the same way, without asking anybody.
    let headers: Vec<&str> = flags.header.iter().map(String::as_str).collect();
    let request =
        Asked::read(flags.method.as_deref(), flags.path.as_deref(), &headers, flags.host.as_deref())?;
    let question = Question { from: from.parse::<Client>()?, to: to.parse::<Target>()?, request };
    let verdict = match &flags.world {
        Some(dir) => from_world(dir, &question)?,
        None => {
            let agent = Agent::named(line)?;
            agent.json(&query(&from, &to, flags))?
        }
    };
    if !print_value(line.output, &verdict, out)? {
        print_verdict(&verdict, out)?;
    }
    Ok(if verdict["admitted"] == Value::Bool(true) { Found::Good } else { Found::Bad })
}

fn query(from: &str, to: &str, flags: &ExplainFlags) -> String {
    let headers = (!flags.header.is_empty()).then(|| flags.header.join("\n"));
    let parts =
        [("method", &flags.method), ("path", &flags.path), ("header", &headers), ("host", &flags.host)];
    let mut query = format!("/policy/explain?from={}&to={}", escape(from), escape(to));
    for (name, value) in parts {
        if let Some(value) = value {
            query.push_str(&format!("&{name}={}", escape(value)));
        }
    }
    query
}

fn from_world(dir: &Path, question: &Question) -> Result<Value, Error> {
    let world = |problem: String| Error::World { dir: dir.to_owned(), problem };
    let loaded = discovery::load(dir).map_err(|error| world(error.to_string()))?;
    let mut verdict = json!(answer(&loaded.snapshot, &loaded.policies, question)?);
    if let Some(notes) = verdict["notes"].as_array_mut() {
        notes.extend(loaded.problems.iter().map(|problem| json!(problem.to_string())));
    }
    Ok(verdict)
}

/// Puts the namespace in front of a name that has none; addresses and full names stay.
pub(super) fn in_namespace(name: &str, namespace: &str) -> String {
    if name.parse::<IpAddr>().is_ok() {
        return name.to_owned();
    }
    let (kind, rest) = ["pod/", "svc/"]
        .into_iter()
        .find_map(|kind| Some((kind, name.strip_prefix(kind)?)))
        .unwrap_or(("", name));
    if rest.contains('/') { name.to_owned() } else { format!("{kind}{namespace}/{rest}") }
}

fn print_verdict(verdict: &Value, out: &mut dyn Write) -> Result<(), Error> {
    let word = if verdict["admitted"] == Value::Bool(true) { "ALLOWED" } else { "DENIED" };
    writeln!(out, "{word}  {} -> {}", text(&verdict["from"]), text(&verdict["to"]))?;
    writeln!(out, "{}", text(&verdict["reason"]))?;
    for note in items(&verdict["notes"]) {
        writeln!(out, "note: {}", text(note))?;
    }
    for explanation in items(&verdict["explanations"]) {
        print_explanation(explanation, out)?;
    }
    Ok(())
}

fn print_explanation(explanation: &Value, out: &mut dyn Write) -> Result<(), Error> {
    let identity = match &explanation["identity"] {
        Value::String(identity) => identity.clone(),
        _ => "no verified identity".to_owned(),
    };
    writeln!(out)?;
    writeln!(out, "{}:{}", text(&explanation["destination"]), text(&explanation["port"]))?;
    writeln!(out, "  client: {} ({identity})", text(&explanation["client"]))?;
    print_request(&explanation["request"], out)?;
    if items(&explanation["policies"]).is_empty() {
        writeln!(out, "  no policy selects this pod: the mesh-wide default decides")?;
    }
    for policy in items(&explanation["policies"]) {
        writeln!(out, "  {} {}", text(&policy["action"]), text(&policy["policy"]))?;
        if let Value::String(reason) = &policy["unusable"] {
            writeln!(out, "    cannot be enforced, so it refuses everybody: {reason}")?;
        }
        for rule in items(&policy["rules"]) {
            writeln!(out, "    rule {}: {}", text(&rule["rule"]), rule_result(rule, policy, explanation))?;
        }
    }
    Ok(())
}

fn print_request(request: &Value, out: &mut dyn Write) -> Result<(), Error> {
    if request.is_null() {
        return Ok(());
    }
    let host = request["host"].as_str().unwrap_or("no host");
    writeln!(out, "  request: {} {} ({host})", text(&request["method"]), text(&request["path"]))?;
    match items(&request["readings"]) {
        [] => writeln!(
            out,
            "  the path cannot be known: every DENY that names a path matches, and no ALLOW that does"
        )?,
        [_] => {}
        several => {
            let paths: Vec<String> = several.iter().map(text).collect();
            writeln!(out, "  a server could read the path as: {}", paths.join(", "))?;
        }
    }
    Ok(())
}

fn rule_result(rule: &Value, policy: &Value, explanation: &Value) -> String {
    if rule["matched"] != Value::Bool(true) {
        let fields = [("sources", &rule["sources"]), ("ports", &rule["ports"]), ("http", &rule["http"])];
        let whys = fields.iter().filter_map(|(field, why)| Some(format!("{field}: {}", why.as_str()?)));
        return format!("does not match ({})", whys.collect::<Vec<_>>().join("; "));
    }
    let deciding = &explanation["deciding"];
    let decides = deciding["policy"] == policy["policy"] && deciding["rule"] == rule["rule"];
    let paths: Vec<String> = items(&rule["readings"]).iter().map(text).collect();
    let matches =
        if paths.is_empty() { "matches".to_owned() } else { format!("matches {}", paths.join(", ")) };
    if decides { format!("{matches}, and decides") } else { matches }
}
