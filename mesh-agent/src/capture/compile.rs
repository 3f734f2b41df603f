//! From what the mesh knows to what the kernel programs read: snapshot, policies and caught pods become the content of
//! every table.
//!
//! A [`Plan`] follows its inputs: the registry tells which workloads and services changed, and only what was made of
//! them is made again. After every step its tables are those that would have been made from nothing; a test holds it to
//! that. It never talks to the kernel.
//!
//! Reading order: this file, `pods` (who is where), `verdicts` (the policy's answers, asked ahead of time), `services`.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use mesh_common::{
    Address, Backend, BackendKey, Frontend, FrontendKey, Local, SkipKey, Verdict, VerdictKey,
    Workload as Entry,
};

use super::habit::{Habits, PortKey};
use super::numbers::Numbers;
use super::tracked::Tracked;
use crate::model::{ServiceName, Workload, WorkloadUid};
use crate::policy::PolicySet;
use crate::registry::Snapshot;
use crate::route::RouteTable;

mod pods;
mod services;
#[cfg(test)]
mod tests;
mod verdicts;

pub use verdicts::{decider, owner, reads_requests};

/// A pod that has been caught, as far as the tables need it.
#[derive(Clone, Debug, PartialEq, Eq)]
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
#[derive(Clone, Debug, Default)]
pub struct Tables {
    /// By netns cookie.
    pub workloads: Tracked<u64, Entry>,
    /// What sockets of unannounced namespaces meet, by control group.
    pub held: Tracked<u64, u32>,
    /// By pod IP.
    pub addresses: Tracked<Address, Local>,
    /// Excluded ports.
    pub skip_ports: Tracked<SkipKey, u32>,
    /// By service address.
    pub frontends: Tracked<FrontendKey, Frontend>,
    /// By service number and index.
    pub backends: Tracked<BackendKey, Backend>,
    /// By pair and port.
    pub verdicts: Tracked<VerdictKey, Verdict>,
    /// Endpoint numbers that must be countable.
    pub open: Tracked<u32, u64>,
}

/// Everything that the compilation reads.
#[derive(Debug)]
pub struct Inputs<'a> {
    /// The mesh.
    pub snapshot: &'a Arc<Snapshot>,
    /// Its policies.
    pub policies: &'a Arc<PolicySet>,
    /// Its routes.
    pub routes: &'a Arc<RouteTable>,
    /// Caught pods.
    pub caught: &'a [Caught],
    /// Pods of this node that are there and not caught yet, by the number of their control group.
    pub waiting: &'a [(u64, WorkloadUid)],
    /// Ports that do better without the sockmap.
    pub habits: &'a Habits,
    /// This node.
    pub node: &'a str,
    /// Pods that say nothing about the fast path may use it.
    pub splice_by_default: bool,
    /// Every service is resolved, also those with no endpoint on this node, because nobody else does (no kube-proxy).
    pub all_services: bool,
}

/// The tables, and what they were made from.
#[derive(Debug)]
pub struct Plan {
    numbers: Numbers,
    tables: Tables,
    last: Last,
    /// Pods of this node between which verdicts are written.
    judged: verdicts::Judged,
}

/// What the tables were made from.
#[derive(Debug, Default)]
struct Last {
    /// `None`: nothing yet.
    snapshot: Option<Arc<Snapshot>>,
    policies: Arc<PolicySet>,
    routes: Arc<RouteTable>,
    caught: Vec<Caught>,
    direct: HashSet<PortKey>,
    splice_by_default: bool,
    zone: Option<Arc<str>>,
}

/// What has to be made again.
#[derive(Debug, Default)]
struct Scope {
    /// Workloads whose addresses to look at.
    pods: HashSet<WorkloadUid>,
    /// Every verdict.
    all_verdicts: bool,
    /// Verdicts from and to these.
    judged: HashSet<WorkloadUid>,
    /// Services.
    services: HashSet<ServiceName>,
}

/// Pods that are caught and part of the mesh.
type LocalPods<'a> = BTreeMap<&'a WorkloadUid, (&'a Caught, &'a Arc<Workload>)>;

impl Plan {
    /// Nothing yet.
    pub fn new(numbers: Numbers) -> Self {
        Self {
            numbers,
            tables: Tables::default(),
            last: Last::default(),
            judged: verdicts::Judged::default(),
        }
    }

    /// What the numbers in events mean.
    pub fn numbers(&self) -> &Numbers {
        &self.numbers
    }

    /// The tables, to be written.
    pub fn tables(&mut self) -> &mut Tables {
        &mut self.tables
    }

    /// Brings the tables to what these inputs mean. True when policy may answer differently than before for pods of this
    /// node, so that open connections must be judged again.
    pub fn follow(&mut self, inputs: &Inputs<'_>) -> bool {
        let local = local_pods(inputs);
        let zone = inputs.snapshot.workloads_on(inputs.node).find_map(|pod| pod.zone.clone());
        let direct: HashSet<PortKey> = inputs.habits.direct_ports().cloned().collect();
        let scope = self.scope(inputs, &local, &zone, &direct);
        let numbers = &mut self.numbers;
        pods::set_local(&mut self.tables, numbers, inputs, &local);
        let before = self.last.snapshot.take().unwrap_or_default();
        pods::set_addresses(&mut self.tables, numbers, inputs, &local, &before, &scope.pods);
        self.judged.follow(&mut self.tables.verdicts, numbers, inputs, &local, &direct, &scope);
        let world = services::World { inputs, before: &before, local: &local, zone: zone.as_deref() };
        services::set(&mut self.tables, numbers, &world, &scope.services);
        pods::forget_gone(numbers, inputs, &scope.pods);
        self.last = Last {
            snapshot: Some(inputs.snapshot.clone()),
            policies: inputs.policies.clone(),
            routes: inputs.routes.clone(),
            caught: inputs.caught.to_vec(),
            direct,
            splice_by_default: inputs.splice_by_default,
            zone,
        };
        scope.all_verdicts || !scope.judged.is_empty()
    }

    fn scope(
        &self,
        inputs: &Inputs<'_>,
        local: &LocalPods<'_>,
        zone: &Option<Arc<str>>,
        direct: &HashSet<PortKey>,
    ) -> Scope {
        let last = &self.last;
        let changed =
            last.snapshot.as_ref().and_then(|snapshot| inputs.snapshot.changed_since(snapshot.version));
        let new_policies = !Arc::ptr_eq(&last.policies, inputs.policies);
        let all_pods =
            changed.is_none() || new_policies || last.splice_by_default != inputs.splice_by_default;
        let all_services = changed.is_none() || last.zone != *zone;
        let mut scope = Scope {
            all_verdicts: changed.is_none() || new_policies || last.direct != *direct,
            ..Scope::default()
        };
        let known = || last.snapshot.iter().chain([inputs.snapshot]);
        let recaught = recaught(&last.caught, inputs.caught);
        let changed = changed.unwrap_or_default();
        scope.judged = changed.workloads.iter().chain(&recaught).cloned().collect();
        scope.judged.retain(|uid| local.contains_key(uid) || self.judged.knows(uid));
        scope.pods = changed.workloads;
        scope.services = changed.services;
        if all_pods {
            scope.pods = known().flat_map(|mesh| mesh.workloads()).map(|pod| pod.uid.clone()).collect();
        }
        // Whether it is local is in the address and with the services: so also of those that come or leave without a
        // change of their own.
        let moved: HashSet<&WorkloadUid> = recaught
            .iter()
            .chain(scope.judged.iter())
            .filter(|uid| self.judged.knows(uid) != local.contains_key(uid))
            .collect();
        if all_services {
            scope.services = known().flat_map(|mesh| mesh.services()).map(|one| one.name.clone()).collect();
        } else {
            let before = last.snapshot.as_ref().unwrap_or(inputs.snapshot);
            services::with_endpoints_of(before, inputs.snapshot, &moved, &mut scope.services);
            if !Arc::ptr_eq(&last.routes, inputs.routes) {
                services::whose_routes_differ(&last.routes, inputs.routes, &mut scope.services);
            }
        }
        scope.pods.extend(recaught);
        scope
    }
}

/// Pods that were caught or released, or caught in another way.
fn recaught(before: &[Caught], now: &[Caught]) -> Vec<WorkloadUid> {
    if before == now {
        return Vec::new();
    }
    let by_uid = |caught: &[Caught]| -> BTreeMap<WorkloadUid, Caught> {
        caught.iter().map(|one| (one.uid.clone(), one.clone())).collect()
    };
    let (before, now) = (by_uid(before), by_uid(now));
    let differs = |uid: &&WorkloadUid| before.get(*uid) != now.get(*uid);
    let uids: HashSet<&WorkloadUid> = before.keys().chain(now.keys()).filter(differs).collect();
    uids.into_iter().cloned().collect()
}

fn local_pods<'a>(inputs: &Inputs<'a>) -> LocalPods<'a> {
    let known = |caught: &'a Caught| {
        let pod = inputs.snapshot.workload(&caught.uid).filter(|pod| pod.enrolled)?;
        Some((&caught.uid, (caught, pod)))
    };
    inputs.caught.iter().filter_map(known).collect()
}
