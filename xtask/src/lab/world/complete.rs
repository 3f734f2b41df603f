//! The world's documents as a cluster would hand them out: Pods with node, UID and status, Services with addresses,
//! Nodes with theirs.
//!
//! People go on editing these files while the lab runs, so comments and line order stay: missing fields are put in as
//! lines of their own. The result is parsed again and compared; where the text cannot take the lines (flow style, fields
//! that are there but empty), the document is written anew.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_yaml_ng::{Mapping, Value};

use super::plan::{Plan, PlannedPod, PlannedService, is_headless, node_ips};
use super::{Document, File, at};

/// The file that holds what no file of the world declares.
pub const CLUSTER_FILE: &str = "zz-cluster.yaml";

/// The first line of that file.
const CLUSTER_MARK: &str = "# What a cluster adds by itself to the objects of the other files.\n";

/// One field to fill in: below which top-level key (none for a top-level field), its name and its value.
type Entry = (Option<&'static str>, &'static str, Value);

/// The completed files, by name, in order.
pub fn complete(files: &[File], plan: &Plan) -> Result<Vec<(String, String)>> {
    let mut completed = Vec::new();
    for file in files.iter().filter(|file| !is_ours(file)) {
        ensure!(
            file.name != CLUSTER_FILE,
            "the lab writes {CLUSTER_FILE} itself: give that file of the world another name"
        );
        let mut text = String::new();
        for (separator, document) in &file.documents {
            text.push_str(separator);
            text.push_str(&complete_document(&file.name, document, plan)?);
        }
        completed.push((file.name.clone(), text));
    }
    completed.push((CLUSTER_FILE.to_owned(), cluster_objects(files, plan)));
    Ok(completed)
}

/// Whether a file was written by [`cluster_objects`]: a run world may be applied again.
fn is_ours(file: &File) -> bool {
    file.name == CLUSTER_FILE
        && file.documents.first().is_some_and(|(_, first)| first.text.starts_with(CLUSTER_MARK))
}

fn complete_document(file: &str, document: &Document, plan: &Plan) -> Result<String> {
    let entries = if document.is("v1", "Pod") {
        let name = document.name()?;
        let pod = plan.pods.iter().find(|p| p.name == name && p.namespace == document.namespace());
        pod_entries(document, pod.context("every Pod is planned")?, plan)
    } else if document.is("v1", "Service") {
        let name = document.name()?;
        let service = plan.services.iter().find(|s| s.name == name && s.namespace == document.namespace());
        service_entries(document, service.context("every Service is planned")?)
    } else if document.is("v1", "Node") {
        node_entries(document, plan)?
    } else {
        return Ok(document.text.clone());
    };
    fill_in(file, document, entries)
}

fn pod_entries(document: &Document, pod: &PlannedPod, plan: &Plan) -> Vec<Entry> {
    let addresses = pod.ips.iter().map(|ip| mapping([("ip", ip.to_string().into())])).collect();
    let ready = mapping([("type", "Ready".into()), ("status", "True".into())]);
    let status = |key: &str| at(&document.value, &["status", key]).cloned();
    let number = 1 + plan.nodes.iter().position(|node| *node == pod.node).unwrap_or_default();
    let status = mapping([
        ("phase", status("phase").unwrap_or_else(|| "Running".into())),
        ("hostIP", node_ips(number)[0].to_string().into()),
        ("podIP", pod.ips.first().map_or(Value::Null, |ip| ip.to_string().into())),
        ("podIPs", Value::Sequence(addresses)),
        ("conditions", status("conditions").unwrap_or_else(|| Value::Sequence(vec![ready]))),
    ]);
    vec![
        (Some("metadata"), "namespace", pod.namespace.as_str().into()),
        (Some("metadata"), "uid", pod.uid.as_str().into()),
        (Some("spec"), "nodeName", pod.node.as_str().into()),
        (Some("spec"), "serviceAccountName", pod.service_account.as_str().into()),
        (None, "status", status),
    ]
}

fn service_entries(document: &Document, service: &PlannedService) -> Vec<Entry> {
    let mut entries = vec![(Some("metadata"), "namespace", service.namespace.as_str().into())];
    if !is_headless(document) {
        let ips: Vec<Value> = service.cluster_ips.iter().map(|ip| ip.to_string().into()).collect();
        let family = |ip: &std::net::IpAddr| if ip.is_ipv4() { "IPv4" } else { "IPv6" };
        let families = service.cluster_ips.iter().map(|ip| family(ip).into()).collect();
        entries.push((Some("spec"), "clusterIP", ips.first().cloned().unwrap_or_default()));
        entries.push((Some("spec"), "clusterIPs", Value::Sequence(ips)));
        entries.push((Some("spec"), "ipFamilies", Value::Sequence(families)));
    }
    entries
}

fn node_entries(document: &Document, plan: &Plan) -> Result<Vec<Entry>> {
    let name = document.name()?;
    let number = 1 + plan.nodes.iter().position(|node| node == name).context("every Node is planned")?;
    let address =
        |ip: &std::net::IpAddr| mapping([("type", "InternalIP".into()), ("address", ip.to_string().into())]);
    let addresses = node_ips(number).iter().map(address).collect();
    Ok(vec![(None, "status", mapping([("addresses", Value::Sequence(addresses))]))])
}

fn mapping<const N: usize>(pairs: [(&str, Value); N]) -> Value {
    Value::Mapping(pairs.into_iter().map(|(key, value)| (Value::from(key), value)).collect())
}

/// The document's text with the entries in it that it lacks.
fn fill_in(file: &str, document: &Document, entries: Vec<Entry>) -> Result<String> {
    let mut wanted = document.value.clone();
    let mut text = document.text.clone();
    for (parent, key, value) in entries {
        if set(&mut wanted, parent, key, &value)? {
            text = insert_line(&text, parent, key, &value)?;
        }
    }
    let read = Value::deserialize(serde_yaml_ng::Deserializer::from_str(&text));
    if read.is_ok_and(|read| read == wanted) {
        return Ok(text);
    }
    if file.ends_with(".json") {
        return Ok(serde_json::to_string_pretty(&wanted)? + "\n");
    }
    Ok(serde_yaml_ng::to_string(&wanted)?)
}

/// Sets a field; says whether that changed anything.
fn set(value: &mut Value, parent: Option<&str>, key: &str, new: &Value) -> Result<bool> {
    let mut target = value.as_mapping_mut().context("an object is a mapping")?;
    if let Some(parent) = parent {
        let entry = target.entry(parent.into()).or_insert(Value::Null);
        if entry.is_null() {
            *entry = Value::Mapping(Mapping::new());
        }
        target = entry.as_mapping_mut().with_context(|| format!("`{parent}` must be a mapping"))?;
    }
    Ok(target.insert(key.into(), new.clone()).as_ref() != Some(new))
}

/// Puts `key: value` as the first line below `parent`, or as the last line of all.
fn insert_line(text: &str, parent: Option<&str>, key: &str, value: &Value) -> Result<String> {
    let entry = format!("{key}: {}", flow(value)?);
    let mut lines: Vec<&str> = text.lines().collect();
    let added;
    if let Some(parent) = parent {
        if let Some(at) = lines.iter().position(|line| is_flow(line, parent)) {
            let open = lines[at].trim_end().strip_suffix('}').unwrap_or_default().trim_end();
            let comma = if open.ends_with('{') { "" } else { ", " };
            added = format!("{open}{comma}{entry}}}");
            lines[at] = &added;
            return Ok(lines.join("\n") + "\n");
        }
        let head = lines.iter().position(|line| {
            let rest = line.strip_prefix(parent).and_then(|rest| rest.strip_prefix(':')).map(str::trim_start);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('#'))
        });
        // The caller sees by parsing that nothing was put in, and writes the document anew.
        let Some(head) = head else { return Ok(text.to_owned()) };
        let content = |line: &&&str| !line.trim().is_empty() && !line.trim_start().starts_with('#');
        let first = lines[head + 1..].iter().find(content).copied().unwrap_or_default();
        added = format!("{}{entry}", &first[..first.len() - first.trim_start().len()]);
        lines.insert(head + 1, &added);
    } else {
        let last = lines.iter().rposition(|line| !line.trim().is_empty()).map_or(0, |last| last + 1);
        added = entry;
        lines.insert(last, &added);
    }
    Ok(lines.join("\n") + "\n")
}

/// Whether a line holds all of `parent` in flow style: `parent: {...}`.
fn is_flow(line: &str, parent: &str) -> bool {
    let value = line.strip_prefix(parent).and_then(|rest| rest.strip_prefix(':')).map(str::trim);
    value.is_some_and(|value| value.starts_with('{') && value.ends_with('}'))
}

/// A value on one line. JSON is YAML (YAML 1.2 section 1.3); plain words stay bare, for people.
fn flow(value: &Value) -> Result<String> {
    match value {
        Value::String(word) if word.starts_with(|c: char| c.is_ascii_lowercase()) && is_bare(word) => {
            Ok(word.clone())
        }
        Value::Sequence(items) => {
            let items: Result<Vec<String>> = items.iter().map(flow).collect();
            Ok(format!("[{}]", items?.join(", ")))
        }
        Value::Mapping(pairs) => {
            let pair = |(key, value): (&Value, &Value)| {
                Ok(format!("{}: {}", key.as_str().context("keys are text")?, flow(value)?))
            };
            let pairs: Result<Vec<String>> = pairs.iter().map(pair).collect();
            Ok(format!("{{{}}}", pairs?.join(", ")))
        }
        other => Ok(serde_json::to_string(other)?),
    }
}

fn is_bare(word: &str) -> bool {
    let plain = word.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    plain && serde_yaml_ng::from_str::<Value>(word).is_ok_and(|value| value.is_string())
}

/// What a cluster makes by itself: namespaces that are used, and each one's `default` service account.
fn cluster_objects(files: &[File], plan: &Plan) -> String {
    let documents =
        || files.iter().filter(|f| f.name != CLUSTER_FILE).flat_map(|f| f.documents.iter().map(|(_, d)| d));
    let used = plan
        .pods
        .iter()
        .map(|p| p.namespace.as_str())
        .chain(plan.services.iter().map(|s| s.namespace.as_str()));
    let declared: BTreeSet<&str> =
        documents().filter(|d| d.is("v1", "Namespace")).flat_map(Document::name).collect();
    let has_default = |namespace: &str| {
        documents().any(|d| {
            d.is("v1", "ServiceAccount")
                && d.namespace() == namespace
                && d.name().is_ok_and(|name| name == "default")
        })
    };
    let mut text = CLUSTER_MARK.to_owned();
    for namespace in used.chain(declared.iter().copied()).collect::<BTreeSet<_>>() {
        let labels = format!("labels: {{kubernetes.io/metadata.name: {namespace}}}");
        if !declared.contains(namespace) {
            text +=
                &format!("---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: {namespace}, {labels}}}\n");
        }
        if !has_default(namespace) {
            let metadata = format!("metadata: {{name: default, namespace: {namespace}}}");
            text += &format!("---\napiVersion: v1\nkind: ServiceAccount\n{metadata}\n");
        }
    }
    text
}

#[cfg(test)]
mod tests;
