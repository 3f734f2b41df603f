//! What a plan must come to, written down the plain way: every table from nothing, no scope, no memory.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use mesh_common::{
    Address, Backend, BackendKey, Frontend, FrontendKey, Local, SkipKey, Verdict, VerdictKey, WORKERS_MAX,
    Workload as Entry, action, frontend, workload,
};

use super::super::{Caught, Inputs, decider, owner, reads_requests};
use crate::balance;
use crate::capture::habit::PortKey;
use crate::model::{FailureMode, Service, ServicePort, Workload, WorkloadUid};
use crate::policy::{Facts, PolicySet};

/// IP protocol number of TCP.
const TCP: u16 = 6;

/// The content of every table that the agent alone writes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Tables {
    /// By netns cookie.
    pub(super) workloads: HashMap<u64, Entry>,
    /// Control groups whose unannounced namespaces are refused.
    pub(super) held: HashMap<u64, u32>,
    /// By pod IP.
    pub(super) addresses: HashMap<Address, Local>,
    /// Excluded ports.
    pub(super) skip_ports: HashMap<SkipKey, u32>,
    /// By service address.
    pub(super) frontends: HashMap<FrontendKey, Frontend>,
    /// By service number and index.
    pub(super) backends: HashMap<BackendKey, Backend>,
    /// By pair and port.
    pub(super) verdicts: HashMap<VerdictKey, Verdict>,
    /// Endpoint numbers that must be countable.
    pub(super) open: HashMap<u32, u64>,
}

/// A number for every name.
#[derive(Debug, Default)]
pub(super) struct Numbers {
    by_name: HashMap<String, u32>,
    names: HashMap<u32, String>,
}

impl Numbers {
    fn number(&mut self, name: &str) -> u32 {
        let next = u32::try_from(self.names.len() + 1).unwrap();
        let number = *self.by_name.entry(name.to_owned()).or_insert(next);
        self.names.insert(number, name.to_owned());
        number
    }

    pub(super) fn name(&self, number: u32) -> &str {
        &self.names[&number]
    }
}

/// Compiles.
pub(super) fn compile(inputs: &Inputs<'_>, numbers: &mut Numbers) -> Tables {
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
        tables.held.insert(cgroup, mesh_common::held::REFUSE);
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

fn verdict(policies: &PolicySet, source: &Workload, destination: &Workload, port: u16) -> Judged {
    if reads_requests(policies, destination, port) {
        return Judged::Agent;
    }
    let mut answers = source.addresses.iter().map(|ip| judge(policies, source, *ip, destination, port));
    let Some(first) = answers.next() else { return Judged::Agent };
    if answers.all(|answer| answer == first) { first } else { Judged::Agent }
}

fn judge(policies: &PolicySet, source: &Workload, ip: IpAddr, destination: &Workload, port: u16) -> Judged {
    let facts = Facts {
        identity: Some(&source.identity),
        client: ip,
        destination,
        port,
        node_probe: false,
        request: None,
    };
    match policies.evaluate(&facts) {
        Ok(_permit) => Judged::Splice,
        Err(refusal) => Judged::Deny(decider(&refusal)),
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
