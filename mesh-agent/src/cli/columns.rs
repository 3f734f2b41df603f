//! Which columns each list has, and how a value reads in one.

use std::time::{Duration, SystemTime};

use serde_json::Value;

/// A list of the agent and how it is printed.
pub(super) struct List {
    /// Path of the window.
    pub(super) path: &'static str,
    /// Where in the answer the list is; empty: the answer is the list.
    pub(super) within: &'static str,
    /// What its items are called.
    pub(super) items: &'static str,
    /// The rows that an item makes; `None`: one, itself.
    pub(super) rows: Option<fn(&Value) -> Vec<Value>>,
    pub(super) columns: &'static [Column],
}

/// One column.
pub(super) struct Column {
    pub(super) header: &'static str,
    /// Only with `-o wide`.
    pub(super) wide: bool,
    pub(super) cell: fn(&Value, SystemTime) -> String,
}

const fn column(header: &'static str, cell: fn(&Value, SystemTime) -> String) -> Column {
    Column { header, wide: false, cell }
}

const fn wide(header: &'static str, cell: fn(&Value, SystemTime) -> String) -> Column {
    Column { header, wide: true, cell }
}

pub(super) const WORKLOADS: List = List {
    path: "/workloads",
    within: "",
    items: "workloads",
    rows: None,
    columns: &[
        column("NAMESPACE", |item, _| text(&item["namespace"])),
        column("NAME", |item, _| text(&item["name"])),
        column("NODE", |item, _| text(&item["node"])),
        column("ADDRESS", |item, _| text(&item["addresses"][0])),
        column("MESH", |item, _| enrolment(item)),
        column("READY", |item, _| readiness(item)),
        wide("OWNER", |item, _| text(&item["owner"])),
        wide("ZONE", |item, _| text(&item["zone"])),
        wide("ADDRESSES", |item, _| text(&item["addresses"])),
        wide("SPLICE", |item, _| text(&item["splice"])),
        wide("IDENTITY", |item, _| text(&item["identity"])),
    ],
};

pub(super) const SERVICES: List = List {
    path: "/services",
    within: "",
    items: "services",
    rows: None,
    columns: &[
        column("NAMESPACE", |item, _| text(&item["namespace"])),
        column("NAME", |item, _| text(&item["name"])),
        column("CLUSTER-IP", |item, _| text(&item["clusterIPs"])),
        column("PORTS", |item, _| ports(item)),
        column("READY", |item, _| ready_endpoints(item)),
        wide("DISTRIBUTION", |item, _| text(&item["trafficDistribution"])),
        wide("ENDPOINTS", |item, _| endpoints(item)),
    ],
};

pub(super) const POLICIES: List = List {
    path: "/policies",
    within: "policies",
    items: "policies",
    rows: None,
    columns: &[
        column("NAMESPACE", |item, _| text(&item["namespace"])),
        column("NAME", |item, _| text(&item["name"])),
        column("ACTION", |item, _| text(&item["action"])),
        column("PODS", |item, _| selection(item)),
        column("RULES", |item, _| items(&item["rules"]).len().to_string()),
        column("STATE", |item, _| if item["unusable"].is_null() { "ok".into() } else { "unusable".into() }),
        wide("FROM", |item, _| {
            let all = items(&item["rules"]).iter();
            join(all.map(
                |rule| if rule["sources"].is_null() { "anybody".into() } else { text(&rule["sources"]) },
            ))
        }),
        wide("PROBLEM", |item, _| text(&item["unusable"])),
    ],
};

pub(super) const CERTIFICATES: List = List {
    path: "/certificates",
    within: "",
    items: "certificates",
    rows: None,
    columns: &[
        column("IDENTITY", |item, _| text(&item["identity"])),
        column("STATE", |item, _| text(&item["state"])),
        column("EXPIRES", |item, now| until(&item["notAfter"], now)),
        column("PODS", |item, _| items(&item["pods"]).len().to_string()),
        wide("RENEWAL", |item, now| until(&item["renewAt"], now)),
        wide("SERIAL", |item, _| text(&item["serial"])),
        wide("PROBLEM", |item, _| text(&item["error"])),
    ],
};

pub(super) const CONNECTIONS: List = List {
    path: "/connections",
    within: "",
    items: "connections",
    rows: None,
    columns: &[
        column("SOURCE", |item, _| text(&item["source"])),
        column("DESTINATION", |item, _| text(&item["destination"])),
        column("PATH", |item, _| text(&item["path"])),
        column("AGE", |item, now| age(&item["opened"], now)),
        column("SENT", |item, _| bytes(&item["bytesSent"])),
        column("RECEIVED", |item, _| bytes(&item["bytesReceived"])),
        wide("DIALLED", |item, _| text(&item["dialled"])),
        wide("ENDPOINT", |item, _| text(&item["endpoint"])),
        wide("REPORTER", |item, _| text(&item["reporter"])),
    ],
};

pub(super) const PROBLEMS: List = List {
    path: "/problems",
    within: "",
    items: "problems",
    rows: None,
    columns: &[
        column("LOCATION", |item, _| text(&item["location"])),
        column("OBJECT", |item, _| text(&item["object"])),
        column("PROBLEM", |item, _| text(&item["message"])),
    ],
};

pub(super) const ROUTES: List = List {
    path: "/routes",
    within: "",
    items: "routes",
    rows: Some(parents),
    columns: &[
        column("NAMESPACE", |row, _| text(&row["namespace"])),
        column("KIND", |row, _| text(&row["kind"])),
        column("NAME", |row, _| text(&row["name"])),
        column("PARENT", |row, _| parent(&row["parent"]["parentRef"])),
        column("RULES", |row, _| rules(row)),
        column("ACCEPTED", |row, _| condition(row, "Accepted")),
        column("RESOLVED", |row, _| condition(row, "ResolvedRefs")),
        column("REASON", |row, _| text(&telling(row)["reason"])),
        wide("LAYER", |row, _| text(&row["parent"]["layer"])),
        wide("PORTS", |row, _| text(&row["parent"]["ports"])),
        wide("HOSTNAMES", |row, _| text(&row["hostnames"])),
        wide("MESSAGE", |row, _| text(&telling(row)["message"])),
    ],
};

/// One row for each parent of a route; a route without one has a row, too.
fn parents(route: &Value) -> Vec<Value> {
    let row = |parent: &Value| {
        let mut row = route.clone();
        row["parent"] = parent.clone();
        row
    };
    match items(&route["parents"]) {
        [] => vec![row(&Value::Null)],
        parents => parents.iter().map(row).collect(),
    }
}

/// `namespace/name`, with the port or its name if the route is for that one alone.
fn parent(reference: &Value) -> String {
    if reference.is_null() {
        return text(reference);
    }
    let name = format!("{}/{}", text(&reference["namespace"]), text(&reference["name"]));
    let port = ["port", "sectionName"].into_iter().find(|field| !reference[*field].is_null());
    port.map_or_else(|| name.clone(), |field| format!("{name}:{}", text(&reference[field])))
}

/// Rules in force; of how many, where some are not.
fn rules(row: &Value) -> String {
    let good = row["rules"].as_u64().unwrap_or_default();
    match items(&row["refusedRules"]).len() {
        0 => good.to_string(),
        refused => format!("{good}/{}", good + refused as u64),
    }
}

fn condition(row: &Value, kind: &str) -> String {
    let found = items(&row["parent"]["conditions"]).iter().find(|one| one["type"] == kind);
    match found.and_then(|one| one["status"].as_str()) {
        Some("True") => "yes".to_owned(),
        Some(_) => "no".to_owned(),
        None => "<none>".to_owned(),
    }
}

/// The condition that says most: the first that is not as it should be, else the first.
fn telling(row: &Value) -> &Value {
    let all = items(&row["parent"]["conditions"]);
    let wrong = |one: &&Value| (one["status"] == "True") == (one["type"] == "PartiallyInvalid");
    all.iter().find(wrong).or_else(|| all.first()).unwrap_or(&Value::Null)
}

/// A list's items; none when it is no list.
pub(super) fn items(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

/// A scalar as it is, a list with commas, `<none>` for nothing.
pub(super) fn text(value: &Value) -> String {
    match value {
        Value::String(text) if !text.is_empty() => text.clone(),
        Value::Bool(_) | Value::Number(_) => value.to_string(),
        Value::Array(list) => join(list.iter().map(text)),
        Value::Null | Value::String(_) | Value::Object(_) => "<none>".to_owned(),
    }
}

fn join(parts: impl Iterator<Item = String>) -> String {
    let parts: Vec<String> = parts.collect();
    if parts.is_empty() { "<none>".to_owned() } else { parts.join(",") }
}

fn yes_no(value: &Value) -> String {
    if value == &Value::Bool(true) { "yes".to_owned() } else { "no".to_owned() }
}

fn enrolment(item: &Value) -> String {
    let is = |field: &str| item[field] == Value::Bool(true);
    let word = match (is("enrolled"), is("captured")) {
        (true, true) => "captured",
        // On another node, or not yet caught.
        (true, false) => "enrolled",
        (false, _) => "no",
    };
    word.to_owned()
}

fn readiness(item: &Value) -> String {
    if item["terminating"] == Value::Bool(true) { "terminating".to_owned() } else { yes_no(&item["ready"]) }
}

fn ports(item: &Value) -> String {
    join(
        items(&item["ports"])
            .iter()
            .map(|port| format!("{}/{}", text(&port["port"]), text(&port["protocol"]))),
    )
}

/// Ready endpoints of all, counted once per address.
fn ready_endpoints(item: &Value) -> String {
    let all: Vec<&Value> = items(&item["ports"]).iter().flat_map(|port| items(&port["endpoints"])).collect();
    let ready = all.iter().filter(|endpoint| endpoint["state"] == "ready").count();
    format!("{ready}/{}", all.len())
}

fn endpoints(item: &Value) -> String {
    let all = items(&item["ports"]).iter().flat_map(|port| items(&port["endpoints"]));
    join(all.map(|endpoint| text(&endpoint["address"])))
}

fn selection(item: &Value) -> String {
    let scope = if item["clusterWide"] == Value::Bool(true) { "all namespaces" } else { "all" };
    match items(&item["selectors"]) {
        [] => scope.to_owned(),
        selectors => selectors.iter().map(text).collect::<Vec<_>>().join(" or "),
    }
}

fn time(value: &Value) -> Option<SystemTime> {
    value.as_str()?.parse::<jiff::Timestamp>().ok().map(SystemTime::from)
}

fn until(value: &Value, now: SystemTime) -> String {
    match time(value).map(|at| at.duration_since(now)) {
        Some(Ok(left)) => format!("in {}", short(left)),
        Some(Err(past)) => format!("{} ago", short(past.duration())),
        None => text(value),
    }
}

fn age(value: &Value, now: SystemTime) -> String {
    time(value).and_then(|at| now.duration_since(at).ok()).map_or_else(|| text(value), short)
}

/// The two largest units: `3d4h`, `23h12m`, `59s`.
pub(super) fn short(length: Duration) -> String {
    let seconds = length.as_secs();
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m{}s", seconds % 60),
        (0, _, _) => format!("{hours}h{minutes}m"),
        (_, _, _) => format!("{days}d{hours}h"),
    }
}

/// `512`, `4.0Ki`, `1.2Mi`.
pub(super) fn bytes(value: &Value) -> String {
    let Some(count) = value.as_u64() else { return text(value) };
    let mut size = count as f64;
    let mut unit = "";
    for next in ["Ki", "Mi", "Gi", "Ti"] {
        if size < 1024.0 {
            break;
        }
        size /= 1024.0;
        unit = next;
    }
    if unit.is_empty() { count.to_string() } else { format!("{size:.1}{unit}") }
}
