//! From what the mesh knows to what the kernel programs read: a pure function from snapshot, policies and enrolled pods
//! to the full content of every table.
//!
//! The verdict for a pair of local pods is the same `policy::evaluate` that the proxy calls, asked ahead of time.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use mesh_common::{
    Address, Backend, BackendKey, Frontend, FrontendKey, Local, SkipKey, Verdict, VerdictKey, WORKERS_MAX,
    Workload as Entry, action, frontend, workload,
};

use super::habit::{Habits, PortKey};
use crate::balance;
use crate::model::{FailureMode, Service, ServicePort, Workload, WorkloadUid};
use crate::policy::{Facts, PolicySet, Refusal};
use crate::registry::Snapshot;
use crate::route::RouteTable;

/// IP protocol number of TCP.
const TCP: u16 = 6;

/// A pod that has been caught, as far as the tables need it.
#[derive(Clone, Debug)]
pub struct Caught {
    /// Which pod.
    pub uid: WorkloadUid,
    /// Its namespace.
    pub netns_cookie: u64,
    /// First slot of its inbound listeners.
    pub slot: u32,
    /// Ports of its outbound listeners, by worker.
    pub outbound_ports: Vec<u16>,
    /// Kernel's id of its control group, when it could be read.
    pub cgroup_id: Option<u64>,
}

/// The content of every table that the agent alone writes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    /// By netns cookie.
    pub workloads: HashMap<u64, Entry>,
    /// Control groups whose unannounced namespaces are refused.
    pub held: HashMap<u64, u32>,
    /// By pod IP.
    pub addresses: HashMap<Address, Local>,
    /// Excluded ports.
    pub skip_ports: HashMap<SkipKey, u32>,
    /// By service address.
    pub frontends: HashMap<FrontendKey, Frontend>,
    /// By service number and index.
    pub backends: HashMap<BackendKey, Backend>,
    /// By pair and port.
    pub verdicts: HashMap<VerdictKey, Verdict>,
    /// Endpoint numbers that must be countable.
    pub open: HashMap<u32, u64>,
}

/// Numbers for things that have names. A number is never given to another name within one agent's life, and each agent
/// start has a range of its own, so that an entry left over from before never matches a new one.
#[derive(Debug)]
pub struct Numbers {
    next: u32,
    by_name: HashMap<String, u32>,
    names: HashMap<u32, String>,
}

impl Numbers {
    /// Numbers for this agent start.
    pub fn new(generation: u64) -> Self {
        let range = u32::try_from(generation % 4096).expect("below 4096") << 20;
        Self { next: range + 1, by_name: HashMap::new(), names: HashMap::new() }
    }

    /// The number of a name; never 0.
    pub fn number(&mut self, name: &str) -> u32 {
        if let Some(number) = self.by_name.get(name) {
            return *number;
        }
        let number = self.next;
        self.next += 1;
        self.by_name.insert(name.to_owned(), number);
        self.names.insert(number, name.to_owned());
        number
    }

    /// The name behind a number.
    pub fn name(&self, number: u32) -> Option<&str> {
        self.names.get(&number).map(String::as_str)
    }
}

/// Everything that the compilation reads.
#[derive(Debug)]
pub struct Inputs<'a> {
    /// The mesh.
    pub snapshot: &'a Snapshot,
    /// Its policies.
    pub policies: &'a PolicySet,
    /// Its routes.
    pub routes: &'a RouteTable,
    /// Caught pods.
    pub caught: &'a [Caught],
    /// Ports that do better without the sockmap.
    pub habits: &'a Habits,
    /// This node.
    pub node: &'a str,
    /// Pods that say nothing about the fast path may use it.
    pub splice_by_default: bool,
    /// Every service is resolved, also those with no endpoint on this node, because nobody else does (no kube-proxy).
    pub all_services: bool,
}

/// Compiles.
pub fn compile(inputs: &Inputs<'_>, numbers: &mut Numbers) -> Tables {
    let mut tables = Tables::default();
    let local = caught_workloads(inputs);
    for (caught, pod) in &local {
        enter_pod(&mut tables, numbers, inputs, caught, pod);
    }
    enter_addresses(&mut tables, numbers, inputs, &local);
    enter_verdicts(&mut tables, numbers, inputs, &local);
    let local_uids: HashSet<&WorkloadUid> = local.iter().map(|(caught, _)| &caught.uid).collect();
    for service in inputs.snapshot.services() {
        enter_service(&mut tables, numbers, inputs, service, &local_uids);
    }
    tables
}

type LocalPods<'a> = Vec<(&'a Caught, &'a Arc<Workload>)>;

fn caught_workloads<'a>(inputs: &Inputs<'a>) -> LocalPods<'a> {
    let known = |caught: &'a Caught| Some((caught, inputs.snapshot.workload(&caught.uid)?));
    inputs.caught.iter().filter_map(known).filter(|(_, pod)| pod.enrolled).collect()
}

fn flags(inputs: &Inputs<'_>, pod: &Workload) -> u32 {
    let mut flags = workload::ENROLLED;
    if pod.splice.unwrap_or(inputs.splice_by_default) {
        flags |= workload::SPLICE;
    }
    if pod.failure_mode == FailureMode::Plain {
        flags |= workload::FAIL_PLAIN;
    }
    flags
}

fn enter_pod(
    tables: &mut Tables,
    numbers: &mut Numbers,
    inputs: &Inputs<'_>,
    caught: &Caught,
    pod: &Workload,
) {
    let id = numbers.number(&pod.uid.0);
    let mut outbound_ports = [0; WORKERS_MAX];
    for (slot, port) in outbound_ports.iter_mut().zip(&caught.outbound_ports) {
        *slot = *port;
    }
    let first = |v4: bool| pod.addresses.iter().find(|ip| ip.is_ipv4() == v4).map(|ip| Address::from(*ip));
    tables.workloads.insert(
        caught.netns_cookie,
        Entry {
            id,
            flags: flags(inputs, pod) | workload::LOCAL,
            workers: workers(caught),
            reserved: 0,
            address4: first(true).unwrap_or_default(),
            address6: first(false).unwrap_or_default(),
            outbound_ports,
        },
    );
    for (ports, direction) in [(&pod.skip_outbound_ports, 0), (&pod.skip_inbound_ports, 1)] {
        for port in ports {
            tables.skip_ports.insert(SkipKey { workload: id, port: *port, direction }, 1);
        }
    }
    if let (Some(cgroup), FailureMode::Closed) = (caught.cgroup_id, pod.failure_mode) {
        tables.held.insert(cgroup, id);
    }
}

fn workers(caught: &Caught) -> u32 {
    u32::try_from(caught.outbound_ports.len()).expect("at most WORKERS_MAX")
}

/// Every pod IP of the mesh. Unenrolled pods are left out: to the programs they are outside the mesh.
fn enter_addresses(tables: &mut Tables, numbers: &mut Numbers, inputs: &Inputs<'_>, local: &LocalPods<'_>) {
    let slots: HashMap<&WorkloadUid, &Caught> =
        local.iter().map(|(caught, _)| (&caught.uid, *caught)).collect();
    for pod in inputs.snapshot.workloads().filter(|pod| pod.enrolled && !pod.host_network) {
        let mut entry =
            Local { id: numbers.number(&pod.uid.0), flags: flags(inputs, pod), slot: 0, workers: 0 };
        if let Some(caught) = slots.get(&pod.uid) {
            entry.flags |= workload::LOCAL;
            entry.slot = caught.slot;
            entry.workers = workers(caught);
        }
        if inputs.policies.requires_identity(pod, unmentioned_port(&inputs.policies.mentions_ports(pod))) {
            entry.flags |= workload::STRICT;
        }
        for ip in &pod.addresses {
            // A duplicate address has been refused by discovery; the registry tells who holds it.
            if inputs.snapshot.workload_by_ip(*ip).is_some_and(|holder| holder.uid == pod.uid) {
                tables.addresses.insert(Address::from(*ip), entry);
            }
        }
    }
}

fn unmentioned_port(mentioned: &BTreeSet<u16>) -> u16 {
    (1..=u16::MAX).rev().find(|port| !mentioned.contains(port)).unwrap_or(0)
}

fn enter_verdicts(tables: &mut Tables, numbers: &mut Numbers, inputs: &Inputs<'_>, local: &LocalPods<'_>) {
    let direct: HashSet<&PortKey> = inputs.habits.direct_ports().collect();
    for (_, destination) in local {
        let mentioned = inputs.policies.mentions_ports(destination);
        let mut ports: BTreeSet<u16> = mentioned.clone();
        ports.extend(direct.iter().filter(|key| is_of(key, destination)).map(|key| key.port));
        let any = unmentioned_port(&mentioned);
        for (_, source) in local.iter().filter(|(_, source)| source.uid != destination.uid) {
            let key = |port| VerdictKey {
                source: numbers.by_name[&*source.uid.0],
                destination: numbers.by_name[&*destination.uid.0],
                port,
                reserved: 0,
                reserved2: 0,
            };
            let mut entries = vec![(key(0), verdict(inputs.policies, source, destination, any))];
            for port in &ports {
                let mut judged = verdict(inputs.policies, source, destination, *port);
                let habit = PortKey { owner: owner(destination), port: *port };
                if matches!(judged, Judged::Splice) && direct.contains(&habit) {
                    judged = Judged::Direct;
                }
                entries.push((key(*port), judged));
            }
            for (key, judged) in entries {
                tables.verdicts.insert(key, judged.entry(numbers));
            }
        }
    }
}

/// The name under which a pod's habits are kept.
pub fn owner(pod: &Workload) -> (Arc<str>, Arc<str>) {
    (pod.name.namespace.clone(), pod.owner.clone())
}

fn is_of(key: &PortKey, pod: &Workload) -> bool {
    key.owner.0 == pod.name.namespace && key.owner.1 == pod.owner
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Judged {
    Splice,
    Direct,
    /// The answer depends on which of its addresses the client uses, or on what it asks for: the agent decides.
    Agent,
    Deny(String),
}

impl Judged {
    fn entry(&self, numbers: &mut Numbers) -> Verdict {
        match self {
            Self::Splice => Verdict { action: action::SPLICE, policy: 0 },
            Self::Direct => Verdict { action: action::DIRECT, policy: 0 },
            Self::Agent => Verdict { action: action::PROXY, policy: 0 },
            Self::Deny(policy) => Verdict { action: action::DENY, policy: numbers.number(policy) },
        }
    }
}

/// Whether requests to this port of the pod must be read: policies speak about them, or the pod wants to be told its
/// client.
pub fn reads_requests(policies: &PolicySet, pod: &Workload, port: u16) -> bool {
    pod.forward_client_cert || policies.needs_requests(pod, port)
}

fn verdict(policies: &PolicySet, source: &Workload, destination: &Workload, port: u16) -> Judged {
    if reads_requests(policies, destination, port) {
        return Judged::Agent;
    }
    let mut answers = source.addresses.iter().map(|ip| judge(policies, source, *ip, destination, port));
    let Some(first) = answers.next() else { return Judged::Agent };
    if answers.all(|answer| answer == first) { first } else { Judged::Agent }
}

fn judge(policies: &PolicySet, source: &Workload, ip: IpAddr, destination: &Workload, port: u16) -> Judged {
    let facts = Facts { identity: Some(&source.identity), client: ip, destination, port, request: None };
    match policies.evaluate(&facts) {
        Ok(_permit) => Judged::Splice,
        Err(refusal) => Judged::Deny(decider(&refusal)),
    }
}

/// The policy that a refusal is put down to, or the stable label of the default.
pub fn decider(refusal: &Refusal) -> String {
    match refusal.policy() {
        Some(policy) => policy.to_string(),
        None => refusal.label().to_owned(),
    }
}

fn enter_service(
    tables: &mut Tables,
    numbers: &mut Numbers,
    inputs: &Inputs<'_>,
    service: &Service,
    local: &HashSet<&WorkloadUid>,
) {
    for port in service.ports.iter().filter(|port| !port.udp) {
        for vip in &service.vips {
            enter_frontend(tables, numbers, inputs, service, port, *vip, local);
        }
    }
}

fn enter_frontend(
    tables: &mut Tables,
    numbers: &mut Numbers,
    inputs: &Inputs<'_>,
    service: &Service,
    port: &ServicePort,
    vip: IpAddr,
    local: &HashSet<&WorkloadUid>,
) {
    let family: Vec<_> = port
        .endpoints
        .iter()
        .filter(|endpoint| endpoint.address.is_ipv4() == vip.is_ipv4())
        .cloned()
        .collect();
    let client = balance::Locality { node: inputs.node, zone: zone_of(inputs) };
    let chosen: Vec<_> = balance::preferred(&family, client, service.traffic_distribution)
        .map(|(_, endpoint)| endpoint)
        .collect();
    let has_local =
        chosen.iter().any(|endpoint| endpoint.workload.as_ref().is_some_and(|uid| local.contains(uid)));
    let is_routed = inputs.routes.is_attached(&service.name, port.port);
    let number = numbers.number(&format!("service {vip}:{}", port.port));
    for (index, endpoint) in chosen.iter().enumerate() {
        let id = numbers.number(&format!("endpoint {}", endpoint.address));
        tables.open.insert(id, 0);
        tables.backends.insert(
            BackendKey { service: number, index: u32::try_from(index).unwrap_or(u32::MAX) },
            Backend {
                address: Address::from(endpoint.address.ip()),
                port: endpoint.address.port(),
                reserved: 0,
                endpoint: id,
            },
        );
    }
    tables.frontends.insert(
        FrontendKey { address: Address::from(vip), port: port.port, protocol: TCP, reserved: 0 },
        Frontend {
            service: number,
            count: u32::try_from(chosen.len()).unwrap_or(u32::MAX),
            flags: if has_local { frontend::HAS_LOCAL } else { 0 }
                | if is_routed { frontend::ROUTED } else { 0 },
            reserved: 0,
        },
    );
}

fn zone_of<'a>(inputs: &Inputs<'a>) -> Option<&'a str> {
    let mut here = inputs.snapshot.workloads_on(inputs.node);
    here.find_map(|pod| pod.zone.as_deref())
}
