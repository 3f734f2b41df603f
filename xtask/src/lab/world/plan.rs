//! Which node, addresses and UID every pod gets, and which addresses every service: the scheduler's and the address
//! manager's part of a cluster.
//!
//! What was given before stays as it was: a world that is applied again moves nothing that it does not have to move.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_yaml_ng::Value;

use super::{Document, File, at, text_at};
use crate::lab::names::{is_label, is_subdomain};

/// Most nodes of a lab: a node's number is one byte of its pods' addresses, and two of the values are taken.
pub const NODES_MAX: usize = 250;

/// Names that a node cannot have, since the lab's own things have them.
const RESERVED: [&str; 2] = ["fabric", "control"];

/// A pod with everything a cluster would have decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedPod {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Node.
    pub node: String,
    /// UID.
    pub uid: String,
    /// Addresses, IPv4 first.
    pub ips: Vec<IpAddr>,
    /// Service account.
    pub service_account: String,
    /// Enrolled by its own label or its namespace's.
    pub meshed: bool,
    /// Shares the node's network namespace.
    pub host_network: bool,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// What the lab starts in it; empty for nothing.
    pub command: Vec<String>,
    /// Its environment.
    pub env: Vec<(String, String)>,
    /// The TCP ports that its first container declares.
    pub ports: Vec<u16>,
    /// Changes with anything that makes it another pod.
    pub fingerprint: String,
}

/// A service with its addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedService {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Cluster addresses, the primary first; empty when headless.
    pub cluster_ips: Vec<IpAddr>,
    /// Which pods stand behind it; empty for none.
    pub selector: BTreeMap<String, String>,
    /// Its ports as written.
    pub ports: serde_json::Value,
}

/// What a world needs.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Nodes in order; a node's number is its place, from 1.
    pub nodes: Vec<String>,
    /// Pods in the order of the world.
    pub pods: Vec<PlannedPod>,
    /// Services in the order of the world.
    pub services: Vec<PlannedService>,
}

/// What an earlier application of the world gave.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Given {
    /// Nodes in order.
    pub nodes: Vec<String>,
    /// Pods by namespace and name.
    pub pods: BTreeMap<String, GivenPod>,
    /// Cluster addresses by namespace and name.
    pub services: BTreeMap<String, Vec<IpAddr>>,
}

/// What a pod was given.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GivenPod {
    /// Node.
    pub node: String,
    /// UID.
    pub uid: String,
    /// Addresses.
    pub ips: Vec<IpAddr>,
    /// Of what it was.
    pub fingerprint: String,
}

impl Plan {
    /// What this plan gives, for the next one.
    pub fn given(&self) -> Given {
        let pod = |pod: &PlannedPod| {
            let given = GivenPod {
                node: pod.node.clone(),
                uid: pod.uid.clone(),
                ips: pod.ips.clone(),
                fingerprint: pod.fingerprint.clone(),
            };
            (key(&pod.namespace, &pod.name), given)
        };
        let service =
            |service: &PlannedService| (key(&service.namespace, &service.name), service.cluster_ips.clone());
        Given {
            nodes: self.nodes.clone(),
            pods: self.pods.iter().map(pod).collect(),
            services: self.services.iter().map(service).collect(),
        }
    }
}

/// `namespace/name`.
pub fn key(namespace: &str, name: &str) -> String {
    format!("{namespace}/{name}")
}

/// A node's underlay addresses, by its number.
pub fn node_ips(number: usize) -> [IpAddr; 2] {
    let host = u8::try_from(number + 1).unwrap_or(u8::MAX);
    [Ipv4Addr::new(172, 18, 0, host).into(), spelled("fd00:172:18", "", host)]
}

/// The fabric's own underlay addresses.
pub fn fabric_ips() -> [IpAddr; 2] {
    node_ips(0)
}

/// Address number `host` of a node's pod networks; 1 is the bridge.
pub fn pod_ips(node_number: usize, host: u8) -> [IpAddr; 2] {
    let node = u8::try_from(node_number).unwrap_or(u8::MAX);
    [Ipv4Addr::new(10, 244, node, host).into(), spelled("fd00:10:244", &format!(":{node}"), host)]
}

/// An IPv6 address whose groups are spelled with the decimal digits of its IPv4 twin, so that people see which belong together.
fn spelled(prefix: &str, subnet: &str, host: u8) -> IpAddr {
    let address: Ipv6Addr =
        format!("{prefix}{subnet}::{host}").parse().expect("decimal digits are hexadecimal digits");
    address.into()
}

/// Makes the plan of a world.
///
/// `node_count` asks for at least that many nodes; `new_uid` makes a UID that was never used.
pub fn plan(
    files: &[File],
    node_count: Option<usize>,
    given: &Given,
    new_uid: &mut dyn FnMut() -> Result<String>,
) -> Result<Plan> {
    let documents: Vec<&Document> = files.iter().flat_map(|f| f.documents.iter().map(|(_, d)| d)).collect();
    let nodes = nodes(&documents, node_count, given)?;
    let enrolled = enrolled_namespaces(&documents)?;
    let mut pods = Vec::new();
    let mut seen = BTreeMap::new();
    let mut taken: BTreeSet<IpAddr> = given.pods.values().flat_map(|pod| pod.ips.clone()).collect();
    let pod_documents: Vec<&Document> = documents.iter().copied().filter(|d| d.is("v1", "Pod")).collect();
    for (index, document) in pod_documents.iter().enumerate() {
        unique(document, &mut seen)?;
        let mut pod = read_pod(document, enrolled.contains(document.namespace()))?;
        let before = given.pods.get(&key(&pod.namespace, &pod.name));
        if pod.node.is_empty() {
            pod.node =
                before.map_or_else(|| nodes[index % nodes.len()].clone(), |before| before.node.clone());
        }
        pod.fingerprint = fingerprint(&pod);
        let number = 1 + nodes.iter().position(|n| *n == pod.node).context("every pod's node is a node")?;
        let same = before.filter(|before| before.fingerprint == pod.fingerprint);
        match text_at(&document.value, &["metadata", "uid"]) {
            Some(uid) => uid.clone_into(&mut pod.uid),
            None => pod.uid = same.map_or_else(&mut *new_uid, |same| Ok(same.uid.clone()))?,
        }
        pod.ips = match before.filter(|before| before.node == pod.node) {
            _ if pod.host_network => node_ips(number).to_vec(),
            Some(before) => before.ips.clone(),
            None => free_pod_ips(number, &mut taken)?,
        };
        expand_environment(&mut pod);
        pods.push(pod);
    }
    let services = services(&documents, given)?;
    Ok(Plan { nodes, pods, services })
}

fn unique(document: &Document, seen: &mut BTreeMap<String, String>) -> Result<()> {
    let key = key(document.namespace(), document.name()?);
    if let Some(first) = seen.insert(key.clone(), document.place.clone()) {
        bail!("{}: {key} is declared a second time, first at {first}", document.place);
    }
    Ok(())
}

fn nodes(documents: &[&Document], node_count: Option<usize>, given: &Given) -> Result<Vec<String>> {
    let mut nodes = given.nodes.clone();
    let mut named = BTreeSet::new();
    for document in documents {
        if document.is("v1", "Node") {
            named.insert(document.name()?.to_owned());
        } else if document.is("v1", "Pod") {
            named.extend(text_at(&document.value, &["spec", "nodeName"]).map(str::to_owned));
        }
    }
    for name in &named {
        ensure!(
            is_label(name) && !RESERVED.contains(&name.as_str()),
            "`{name}` cannot name a node of the lab"
        );
        if !nodes.contains(name) {
            nodes.push(name.clone());
        }
    }
    let wanted = node_count.unwrap_or_else(|| nodes.len().max(2));
    ensure!(
        nodes.len() <= wanted,
        "--nodes {wanted} is too few: the world names {} nodes ({})",
        nodes.len(),
        nodes.join(", ")
    );
    ensure!((1..=NODES_MAX).contains(&wanted), "a lab has 1 to {NODES_MAX} nodes, not {wanted}");
    for number in 1.. {
        if nodes.len() == wanted {
            break;
        }
        let name = format!("node-{number}");
        if !nodes.contains(&name) {
            nodes.push(name);
        }
    }
    if given.nodes.is_empty() {
        nodes.sort_by_key(|name| (name.len(), name.clone()));
    }
    Ok(nodes)
}

/// Namespaces whose pods are enrolled unless they say otherwise.
fn enrolled_namespaces(documents: &[&Document]) -> Result<BTreeSet<String>> {
    let mut enrolled = BTreeSet::new();
    for document in documents.iter().filter(|d| d.is("v1", "Namespace")) {
        if text_at(&document.value, &["metadata", "labels", "weft.dev/mesh"]) == Some("enabled") {
            enrolled.insert(document.name()?.to_owned());
        }
    }
    Ok(enrolled)
}

fn read_pod(document: &Document, namespace_enrolled: bool) -> Result<PlannedPod> {
    let value = &document.value;
    let (namespace, name) = (document.namespace(), document.name()?);
    ensure!(is_label(namespace), "{}: `{namespace}` is not a namespace's name", document.place);
    ensure!(is_subdomain(name), "{}: `{name}` is not a pod's name", document.place);
    let container = at(value, &["spec", "containers"]).and_then(|c| c.get(0)).unwrap_or(&Value::Null);
    let mut command = strings(container.get("command"), document, "command")?;
    if !command.is_empty() {
        command.extend(strings(container.get("args"), document, "args")?);
    }
    let own = text_at(value, &["metadata", "labels", "weft.dev/mesh"]);
    Ok(PlannedPod {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        node: text_at(value, &["spec", "nodeName"]).unwrap_or_default().to_owned(),
        uid: String::new(),
        ips: Vec::new(),
        service_account: text_at(value, &["spec", "serviceAccountName"]).unwrap_or("default").to_owned(),
        meshed: own == Some("enabled") || (namespace_enrolled && own != Some("disabled")),
        host_network: at(value, &["spec", "hostNetwork"]).and_then(Value::as_bool).unwrap_or(false),
        labels: labels(at(value, &["metadata", "labels"])),
        command,
        env: environment(container, document)?,
        ports: ports(container),
        fingerprint: String::new(),
    })
}

fn strings(value: Option<&Value>, document: &Document, field: &str) -> Result<Vec<String>> {
    let Some(items) = value.filter(|v| !v.is_null()) else { return Ok(Vec::new()) };
    let text = |item: &Value| item.as_str().map(str::to_owned);
    let read = items.as_sequence().and_then(|items| items.iter().map(text).collect());
    read.with_context(|| format!("{}: spec.containers[0].{field} must be a list of strings", document.place))
}

fn labels(value: Option<&Value>) -> BTreeMap<String, String> {
    let pairs = value.and_then(Value::as_mapping).into_iter().flatten();
    pairs.filter_map(|(k, v)| Some((k.as_str()?.to_owned(), v.as_str()?.to_owned()))).collect()
}

fn ports(container: &Value) -> Vec<u16> {
    let declared = container.get("ports").and_then(Value::as_sequence).into_iter().flatten();
    let tcp = declared.filter(|port| text_at(port, &["protocol"]).is_none_or(|protocol| protocol == "TCP"));
    tcp.filter_map(|port| u16::try_from(port.get("containerPort")?.as_u64()?).ok()).collect()
}

/// Environment as written; a `fieldRef` stands as `\0path` until the pod's addresses are known.
fn environment(container: &Value, document: &Document) -> Result<Vec<(String, String)>> {
    let entries = container.get("env").and_then(Value::as_sequence).into_iter().flatten();
    let mut environment = Vec::new();
    for entry in entries {
        let name =
            text_at(entry, &["name"]).with_context(|| format!("{}: env without name", document.place))?;
        let value = match (entry.get("value"), text_at(entry, &["valueFrom", "fieldRef", "fieldPath"])) {
            (Some(Value::String(value)), _) => value.clone(),
            (None, Some(path)) => format!("\0{path}"),
            (None, None) if entry.get("valueFrom").is_none() => String::new(),
            _ => bail!("{}: env {name} needs `value: \"text\"` or a fieldRef", document.place),
        };
        environment.push((name.to_owned(), value));
    }
    Ok(environment)
}

/// Fills in what `fieldRef`s and `$(NAME)` mean. Unknown references stay as written, as the kubelet leaves them.
fn expand_environment(pod: &mut PlannedPod) {
    let field = |path: &str| match path {
        "metadata.name" => pod.name.clone(),
        "metadata.namespace" => pod.namespace.clone(),
        "metadata.uid" => pod.uid.clone(),
        "spec.nodeName" => pod.node.clone(),
        "spec.serviceAccountName" => pod.service_account.clone(),
        "status.podIP" => pod.ips.first().map(ToString::to_string).unwrap_or_default(),
        "status.podIPs" => pod.ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
        _ => String::new(),
    };
    let mut env: Vec<(String, String)> = Vec::new();
    for (name, value) in &pod.env {
        let value = value.strip_prefix('\0').map_or_else(|| expand(value, &env), field);
        env.push((name.clone(), value));
    }
    pod.command = pod.command.iter().map(|word| expand(word, &env)).collect();
    pod.env = env;
}

fn expand(text: &str, env: &[(String, String)]) -> String {
    env.iter().fold(text.to_owned(), |text, (name, value)| text.replace(&format!("$({name})"), value))
}

fn fingerprint(pod: &PlannedPod) -> String {
    let mut hasher = DefaultHasher::new();
    (&pod.node, &pod.service_account, pod.host_network, &pod.command, &pod.env).hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

fn free_pod_ips(node_number: usize, taken: &mut BTreeSet<IpAddr>) -> Result<Vec<IpAddr>> {
    let free = (2..=254).map(|host| pod_ips(node_number, host)).find(|ips| !taken.contains(&ips[0]));
    let ips =
        free.with_context(|| format!("node {node_number} has no free pod address: 253 pods is the most"))?;
    taken.extend(ips);
    Ok(ips.to_vec())
}

fn services(documents: &[&Document], given: &Given) -> Result<Vec<PlannedService>> {
    let written: Vec<&Document> = documents.iter().copied().filter(|d| d.is("v1", "Service")).collect();
    // Addresses that the world gives anywhere are not free for those before it.
    let mut taken = BTreeMap::new();
    for document in &written {
        for ip in written_ips(document)? {
            if let Some(other) = taken.insert(ip, document.place.clone()) {
                bail!("{}: the cluster address {ip} is taken by the Service at {other}", document.place);
            }
        }
    }
    let mut seen = BTreeMap::new();
    let mut services = Vec::new();
    for document in written {
        unique(document, &mut seen)?;
        let name = document.name()?;
        ensure!(is_label(name), "{}: `{name}` is not a service's name", document.place);
        let mut service = PlannedService {
            namespace: document.namespace().to_owned(),
            name: name.to_owned(),
            cluster_ips: written_ips(document)?,
            selector: labels(at(&document.value, &["spec", "selector"])),
            ports: serde_json::to_value(at(&document.value, &["spec", "ports"])).unwrap_or_default(),
        };
        if !is_headless(document) {
            let before = given.services.get(&key(&service.namespace, name)).map_or(&[][..], |ips| ips);
            let held = |ip: &IpAddr| given.services.values().flatten().any(|other| other == ip);
            let single = text_at(&document.value, &["spec", "ipFamilyPolicy"]) == Some("SingleStack")
                || at(&document.value, &["spec", "clusterIPs"]).is_some();
            add_cluster_ips(&mut service, single, before, &held, &mut taken)
                .with_context(|| format!("{}: no cluster address is free", document.place))?;
        }
        services.push(service);
    }
    Ok(services)
}

/// Whether a service has no address of its own.
pub fn is_headless(document: &Document) -> bool {
    text_at(&document.value, &["spec", "clusterIP"]) == Some("None")
        || text_at(&document.value, &["spec", "type"]) == Some("ExternalName")
}

fn written_ips(document: &Document) -> Result<Vec<IpAddr>> {
    let mut ips = Vec::new();
    let several = at(&document.value, &["spec", "clusterIPs"]).and_then(Value::as_sequence);
    let single = text_at(&document.value, &["spec", "clusterIP"]);
    let texts = single.into_iter().chain(several.into_iter().flatten().filter_map(Value::as_str));
    for text in texts.filter(|text| *text != "None") {
        let ip = text.parse().with_context(|| format!("{}: `{text}` is not an address", document.place))?;
        if !ips.contains(&ip) {
            ips.push(ip);
        }
    }
    Ok(ips)
}

/// Gives a service the addresses it lacks: one of each family, or one at all when it is `single`.
///
/// It gets those it had `before`, else some that are neither `taken` nor `held` by a service that may come later.
/// `None` when there is no such address.
fn add_cluster_ips(
    service: &mut PlannedService,
    single: bool,
    before: &[IpAddr],
    held: &dyn Fn(&IpAddr) -> bool,
    taken: &mut BTreeMap<IpAddr, String>,
) -> Option<()> {
    let ips = &mut service.cluster_ips;
    for is_v4 in [true, false] {
        if ips.iter().any(|ip| ip.is_ipv4() == is_v4) || (single && !ips.is_empty()) {
            continue;
        }
        let kept = before.iter().copied().find(|ip| ip.is_ipv4() == is_v4 && !taken.contains_key(ip));
        // Low numbers are left to people, as clusters leave them.
        let mut fresh = (256..=65_534u16).map(|host| cluster_ip(is_v4, host));
        let ip = kept.or_else(|| fresh.find(|ip| !taken.contains_key(ip) && !held(ip)))?;
        taken.insert(ip, service.name.clone());
        ips.push(ip);
    }
    Some(())
}

fn cluster_ip(is_v4: bool, host: u16) -> IpAddr {
    let [high, low] = host.to_be_bytes();
    if is_v4 {
        Ipv4Addr::new(10, 96, high, low).into()
    } else {
        Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, host).into()
    }
}

#[cfg(test)]
mod tests;
