//! One function per command.

use std::io::Write;
use std::time::SystemTime;

use serde_json::{Value, json};

use super::client::{Agent, refusal};
use super::columns::{self, List, items, text};
use super::flags::{Command, Meshctl, Output, PolicyCommand};
use super::{Error, Found, check, explain, install, table};
use crate::lifecycle::clock;

/// Carries out a command.
pub(super) fn run(line: &Meshctl, out: &mut dyn Write, err: &mut dyn Write) -> Result<Found, Error> {
    let agent = || Agent::named(line);
    let list = |list: &List, out: &mut dyn Write, err: &mut dyn Write| {
        show_list(line, list, &agent()?, clock::wall(), out, err)
    };
    match &line.command {
        Command::Version(flags) => version(line, (!flags.client).then(agent).transpose()?.as_ref(), out),
        Command::Install(flags) => install::run(line, flags, out),
        Command::Uninstall(flags) => install::uninstall(line, flags, out),
        Command::Check(flags) => check::run(line, flags, out),
        Command::Status => status(line.output, &agent()?, out),
        Command::Workloads => list(&columns::WORKLOADS, out, err),
        Command::Services => list(&columns::SERVICES, out, err),
        Command::Policies => list(&columns::POLICIES, out, err),
        Command::Routes => list(&columns::ROUTES, out, err),
        Command::Certificates => list(&columns::CERTIFICATES, out, err),
        Command::Connections => list(&columns::CONNECTIONS, out, err),
        Command::Problems => list(&columns::PROBLEMS, out, err),
        Command::Metrics(flags) => metrics(&agent()?, flags.part.as_deref(), out),
        Command::Policy { command: PolicyCommand::Explain(flags) } => explain::run(line, flags, out),
    }
}

/// Prints `value` when the output is for machines; `false` when it is for eyes.
pub(super) fn print_value(output: Output, value: &Value, out: &mut dyn Write) -> Result<bool, Error> {
    match output {
        Output::Json => writeln!(out, "{value:#}")?,
        Output::Yaml => write!(out, "{}", yaml(value)?)?,
        Output::Table | Output::Wide => return Ok(false),
    }
    Ok(true)
}

/// As YAML that readers of version 1.1 understand as well: for kubectl a bare `off` is no text.
pub(super) fn yaml(value: &Value) -> Result<String, Error> {
    let quoted = |line: &str| {
        let (head, word) = line.rsplit_once(' ')?;
        let is_switch = ["on", "off", "yes", "no", "y", "n"].iter().any(|one| word.eq_ignore_ascii_case(one));
        (is_switch && head.ends_with([':', '-'])).then(|| format!("{head} \"{word}\"\n"))
    };
    let text = serde_yaml_ng::to_string(value)?;
    Ok(text.lines().map(|line| quoted(line).unwrap_or_else(|| format!("{line}\n"))).collect())
}

fn version(line: &Meshctl, agent: Option<&Agent>, out: &mut dyn Write) -> Result<Found, Error> {
    let mut versions = json!({"meshctl": env!("CARGO_PKG_VERSION")});
    if let Some(agent) = agent {
        versions["agent"] = agent.json("/version")?["version"].clone();
    }
    if !print_value(line.output, &versions, out)? {
        writeln!(out, "meshctl: {}", text(&versions["meshctl"]))?;
        if agent.is_some() {
            writeln!(out, "agent:   {}", text(&versions["agent"]))?;
        }
    }
    Ok(Found::Good)
}

fn show_list(
    line: &Meshctl,
    list: &List,
    agent: &Agent,
    now: SystemTime,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> Result<Found, Error> {
    let answer = agent.json(list.path)?;
    let all = if list.within.is_empty() { &answer } else { &answer[list.within] };
    let chosen: Vec<&Value> =
        items(all).iter().filter(|item| line.namespace.as_deref().is_none_or(|n| is_in(item, n))).collect();
    if print_value(line.output, &json!(chosen), out)? {
        return Ok(Found::Good);
    }
    if chosen.is_empty() {
        // On standard error, so that a script that counts lines counts none.
        writeln!(err, "No {} found.", list.items)?;
        return Ok(Found::Good);
    }
    let shown: Vec<_> =
        list.columns.iter().filter(|column| line.output == Output::Wide || !column.wide).collect();
    let headers: Vec<&str> = shown.iter().map(|column| column.header).collect();
    let expanded = |item: &Value| list.rows.map_or_else(|| vec![item.clone()], |rows| rows(item));
    let row = |item: &Value| shown.iter().map(|column| (column.cell)(item, now)).collect();
    let rows: Vec<Vec<String>> = chosen.into_iter().flat_map(expanded).map(|item| row(&item)).collect();
    table::print(out, &headers, &rows)?;
    Ok(Found::Good)
}

/// Whether an item belongs to a namespace: by its own field, or by either end of a connection, or by its identity.
fn is_in(item: &Value, namespace: &str) -> bool {
    let prefix = format!("{namespace}/");
    let starts = |field: &str| item[field].as_str().is_some_and(|name| name.starts_with(&prefix));
    let identity = item["identity"].as_str().is_some_and(|id| id.contains(&format!("/ns/{namespace}/")));
    item["namespace"] == namespace || starts("source") || starts("destination") || identity
}

/// What `meshctl status` says, as a value.
fn summary(agent: &Agent) -> Result<Value, Error> {
    let ready = agent.get("/readyz")?;
    let waiting: Vec<&str> =
        ready.body.lines().filter_map(|line| line.strip_prefix("waiting for: ")).collect();
    let version = agent.json("/version")?;
    let list = |list: &List| -> Result<Option<Vec<Value>>, Error> {
        match agent.json(list.path) {
            Ok(answer) => {
                let all = if list.within.is_empty() { &answer } else { &answer[list.within] };
                Ok(Some(items(all).to_vec()))
            }
            // A control plane has fewer windows than an agent.
            Err(Error::Refused { status: 404, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    };
    let count = |all: &Option<Vec<Value>>| all.as_ref().map(Vec::len);
    let having = |all: &Option<Vec<Value>>, field: &str, wanted: Value| {
        all.as_ref().map(|all| all.iter().filter(|item| item[field] == wanted).count())
    };
    let (workloads, certificates) = (list(&columns::WORKLOADS)?, list(&columns::CERTIFICATES)?);
    Ok(json!({
        "agent": agent.to_string(),
        "node": version["node"],
        "version": version["version"],
        "ready": ready.status == 200,
        "waitingFor": waiting,
        "workloads": count(&workloads),
        "captured": having(&workloads, "captured", true.into()),
        "services": count(&list(&columns::SERVICES)?),
        "policies": count(&list(&columns::POLICIES)?),
        "routes": count(&list(&columns::ROUTES)?),
        "certificates": count(&certificates),
        "certificatesValid": having(&certificates, "state", "valid".into()),
        "connections": count(&list(&columns::CONNECTIONS)?),
        "problems": count(&list(&columns::PROBLEMS)?),
    }))
}

fn status(output: Output, agent: &Agent, out: &mut dyn Write) -> Result<Found, Error> {
    let status = summary(agent)?;
    let ready = status["ready"] == Value::Bool(true);
    if !print_value(output, &status, out)? {
        let state =
            if ready { "ready".to_owned() } else { format!("waiting for {}", text(&status["waitingFor"])) };
        let of = |part: &str, whole: &str| match (&status[part], &status[whole]) {
            (Value::Number(part), Value::Number(whole)) => format!("{part} of {whole}"),
            (_, whole) => text(whole),
        };
        let rows = [
            ("Agent", text(&status["agent"])),
            ("Node", text(&status["node"])),
            ("Version", text(&status["version"])),
            ("State", state),
            ("Workloads captured", of("captured", "workloads")),
            ("Services", text(&status["services"])),
            ("Policies", text(&status["policies"])),
            ("Routes", text(&status["routes"])),
            ("Certificates valid", of("certificatesValid", "certificates")),
            ("Open connections", text(&status["connections"])),
            ("Problems", text(&status["problems"])),
        ];
        for (name, value) in rows {
            writeln!(out, "{:<20} {value}", format!("{name}:"))?;
        }
    }
    Ok(if ready { Found::Good } else { Found::Bad })
}

fn metrics(agent: &Agent, part: Option<&str>, out: &mut dyn Write) -> Result<Found, Error> {
    let reply = agent.get("/metrics")?;
    if reply.status != 200 {
        return Err(refusal("/metrics", &reply));
    }
    for line in reply.body.lines() {
        let name = line.trim_start_matches("# HELP ").trim_start_matches("# TYPE ");
        let name = name.split(['{', ' ']).next().unwrap_or_default();
        if part.is_none_or(|part| name.contains(part)) {
            writeln!(out, "{line}")?;
        }
    }
    Ok(Found::Good)
}
