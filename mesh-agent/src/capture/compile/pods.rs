//! Who is where: caught pods by their namespace, every pod of the mesh by its addresses.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use mesh_common::{Address, Local, SkipKey, WORKERS_MAX, Workload as Entry, held, workload};

use super::verdicts::unmentioned_port;
use super::{Caught, Inputs, LocalPods, Numbers, Tables};
use crate::model::{FailureMode, Workload, WorkloadUid};
use crate::registry::Snapshot;

/// What is known about the pods of this node. They are few, so their tables are made as a whole.
pub(super) fn set_local(
    tables: &mut Tables,
    numbers: &mut Numbers,
    inputs: &Inputs<'_>,
    local: &LocalPods<'_>,
) {
    let (mut workloads, mut skip_ports, mut groups) = (HashMap::new(), HashMap::new(), HashMap::new());
    for (caught, pod) in local.values() {
        let id = numbers.pod(&pod.uid);
        workloads.insert(caught.netns_cookie, entry(inputs, caught, pod, id));
        for (ports, direction) in [(&pod.skip_outbound_ports, 0), (&pod.skip_inbound_ports, 1)] {
            let key = |port: &u16| SkipKey { workload: id, port: *port, direction };
            skip_ports.extend(ports.iter().map(|port| (key(port), 1)));
        }
        if let (Some(cgroup), FailureMode::Closed) = (caught.cgroup_id, pod.failure_mode) {
            groups.insert(cgroup, held::REFUSE);
        }
    }
    // A pod that cannot be spoken for yet: its connections are refused or let pass, as its namespace says.
    for (group, uid) in inputs.waiting {
        let Some(pod) = inputs.snapshot.workload(uid) else { continue };
        let what = match pod.failure_mode {
            FailureMode::Closed => held::REFUSE,
            FailureMode::Plain => held::ANNOUNCE,
        };
        groups.insert(*group, what);
    }
    tables.workloads.set_all(workloads);
    tables.skip_ports.set_all(skip_ports);
    tables.held.set_all(groups);
}

fn entry(inputs: &Inputs<'_>, caught: &Caught, pod: &Workload, id: u32) -> Entry {
    let mut outbound_ports = [0; WORKERS_MAX];
    for (slot, port) in outbound_ports.iter_mut().zip(&caught.outbound_ports) {
        *slot = *port;
    }
    let first = |v4: bool| pod.addresses.iter().find(|ip| ip.is_ipv4() == v4).map(|ip| Address::from(*ip));
    Entry {
        id,
        flags: flags(inputs, pod) | workload::LOCAL,
        workers: workers(caught),
        reserved: 0,
        address4: first(true).unwrap_or_default(),
        address6: first(false).unwrap_or_default(),
        outbound_ports,
    }
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

fn workers(caught: &Caught) -> u32 {
    u32::try_from(caught.outbound_ports.len()).expect("at most WORKERS_MAX")
}

/// Every address that these pods have or had. Unenrolled pods are left out: to the programs they are outside the mesh.
pub(super) fn set_addresses(
    tables: &mut Tables,
    numbers: &mut Numbers,
    inputs: &Inputs<'_>,
    local: &LocalPods<'_>,
    before: &Snapshot,
    pods: &HashSet<WorkloadUid>,
) {
    let mut addresses: BTreeSet<IpAddr> = BTreeSet::new();
    for uid in pods {
        let both = [before.workload(uid), inputs.snapshot.workload(uid)];
        addresses.extend(both.into_iter().flatten().flat_map(|pod| pod.addresses.iter().copied()));
    }
    for ip in addresses {
        // A duplicate address has been refused by discovery; the registry tells who holds it.
        let holder = inputs.snapshot.workload_by_ip(ip).filter(|pod| pod.enrolled);
        match holder {
            Some(pod) => tables.addresses.set(ip.into(), place(inputs, local, pod, numbers.pod(&pod.uid))),
            None => drop(tables.addresses.unset(&ip.into())),
        }
    }
}

fn place(inputs: &Inputs<'_>, local: &LocalPods<'_>, pod: &Arc<Workload>, id: u32) -> Local {
    let mut entry = Local { id, flags: flags(inputs, pod), slot: 0, workers: 0 };
    if let Some((caught, _)) = local.get(&pod.uid) {
        entry.flags |= workload::LOCAL;
        entry.slot = caught.slot;
        entry.workers = workers(caught);
    }
    if inputs.policies.requires_identity(pod, unmentioned_port(&inputs.policies.mentions_ports(pod))) {
        entry.flags |= workload::STRICT;
    }
    entry
}

/// Gives back the numbers of pods that left the mesh.
pub(super) fn forget_gone(numbers: &mut Numbers, inputs: &Inputs<'_>, pods: &HashSet<WorkloadUid>) {
    for uid in pods {
        if inputs.snapshot.workload(uid).is_none_or(|pod| !pod.enrolled) {
            numbers.forget_pod(uid);
        }
    }
}
