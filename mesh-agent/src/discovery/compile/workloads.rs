//! Pods become workloads: identity, enrolment, and no two of them with one address.
//!
//! A pod that changes can only touch those that claim the same UID or address, those that claim the same as they do, and
//! so on: this group is settled anew, nobody else.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::discovery::objects::pod::Pod;
use crate::discovery::objects::{Key, Kind, Object, Objects, cluster};
use crate::discovery::problem::{Fault, FieldPath};
use crate::model::{MeshConfig, SpiffeId, Workload, WorkloadName, WorkloadPort, WorkloadUid};
use crate::registry::Snapshot;

/// What belongs to one pod at a time.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Claim {
    Uid(WorkloadUid),
    Ip(IpAddr),
}

/// Pods between changes. Those that have what they claim are found in the registry's state; here are the others.
#[derive(Debug, Default)]
pub(super) struct Pods {
    left_out: HashMap<Key, Vec<Claim>>,
    waiting: HashMap<Claim, BTreeSet<Key>>,
    identities: Identities,
}

/// What became of the pods of a step.
#[derive(Debug, Default)]
pub(super) struct Settled {
    /// For the registry.
    pub(super) changes: Vec<(WorkloadUid, Option<Arc<Workload>>)>,
    /// Pods that services must look at again, with what they were and what they are.
    pub(super) moved: Vec<Moved>,
    /// Everything that is wrong with the pods that were looked at.
    pub(super) faults: BTreeMap<Key, Vec<Fault>>,
}

/// A pod that is not what it was.
#[derive(Debug)]
pub(super) struct Moved {
    pub(super) key: Key,
    pub(super) old: Option<Arc<Workload>>,
    pub(super) new: Option<Arc<Workload>>,
}

/// What pods are judged by.
#[derive(Clone, Copy)]
pub(super) struct World<'a> {
    pub(super) objects: &'a Objects,
    pub(super) config: &'a MeshConfig,
    /// The state before the step.
    pub(super) mesh: &'a Snapshot,
}

impl Pods {
    /// Settles these pods and all that they can touch.
    pub(super) fn settle(&mut self, world: World<'_>, seeds: BTreeSet<Key>) -> Settled {
        let group = self.group(world, &seeds);
        let mut settled = Settled::default();
        let mut living: Vec<_> =
            group.iter().filter_map(|key| Some((key, living(world.objects, key)?))).collect();
        // A stopping pod's address may already be somebody else's; the living one keeps it. Otherwise the earlier wins.
        living.sort_by_key(|(key, (rank, pod))| (pod.terminating, *rank, *key));
        let mut taken = HashMap::new();
        let mut kept = HashMap::new();
        self.forget(&group);
        for (key, (_, pod)) in living {
            match claim(&mut taken, key, pod) {
                Err(fault) => {
                    settled.faults.entry(key.clone()).or_default().push(fault);
                    self.leave_out(key, pod);
                }
                Ok(()) => {
                    let (mut workload, fault) = workload(world.objects, world.config, key, pod);
                    workload.identity = self.identities.share(workload.identity, world.mesh);
                    settled.faults.entry(key.clone()).or_default().extend(fault);
                    kept.insert(key, workload);
                }
            }
        }
        for key in &group {
            settled.enter(world.mesh, key, kept.remove(key), seeds.contains(key));
            settled.faults.entry(key.clone()).or_default();
        }
        settled
    }

    /// The pods themselves, and all that claim what one of the group claims or has had.
    fn group(&self, world: World<'_>, seeds: &BTreeSet<Key>) -> BTreeSet<Key> {
        let mut group = seeds.clone();
        let mut ahead: Vec<Key> = seeds.iter().cloned().collect();
        while let Some(key) = ahead.pop() {
            let now = living(world.objects, &key).map(|(_, pod)| claims(&key, pod)).unwrap_or_default();
            let before = match world.mesh.workload_by_name(&name(&key)) {
                Some(workload) => claims_of(workload),
                None => self.left_out.get(&key).cloned().unwrap_or_default(),
            };
            for claim in now.iter().chain(&before) {
                let holder = holder(world.mesh, claim);
                for other in holder.iter().chain(self.waiting.get(claim).into_iter().flatten()) {
                    if group.insert(other.clone()) {
                        ahead.push(other.clone());
                    }
                }
            }
        }
        group
    }

    fn leave_out(&mut self, key: &Key, pod: &Pod) {
        let claims = claims(key, pod);
        for claim in &claims {
            self.waiting.entry(claim.clone()).or_default().insert(key.clone());
        }
        self.left_out.insert(key.clone(), claims);
    }

    fn forget(&mut self, group: &BTreeSet<Key>) {
        if self.left_out.is_empty() {
            return;
        }
        for key in group {
            for claim in self.left_out.remove(key).unwrap_or_default() {
                if let Some(keys) = self.waiting.get_mut(&claim) {
                    keys.remove(key);
                    if keys.is_empty() {
                        self.waiting.remove(&claim);
                    }
                }
            }
        }
    }
}

impl Settled {
    fn enter(&mut self, mesh: &Snapshot, key: &Key, new: Option<Workload>, is_seed: bool) {
        let old = mesh.workload_by_name(&name(key)).cloned();
        let new = match (&old, new) {
            (Some(old), Some(new)) if **old == new => Some(old.clone()),
            (_, new) => new.map(Arc::new),
        };
        let same = match (&old, &new) {
            (Some(old), Some(new)) => Arc::ptr_eq(old, new),
            (None, None) => return,
            _ => false,
        };
        if !same {
            let gone = old.as_ref().filter(|old| new.as_ref().is_none_or(|new| new.uid != old.uid));
            self.changes.extend(gone.map(|old| (old.uid.clone(), None)));
            self.changes.extend(new.as_ref().map(|new| (new.uid.clone(), Some(new.clone()))));
        }
        // Services read more of a pod than what becomes of it as a workload.
        if !same || is_seed {
            self.moved.push(Moved { key: key.clone(), old, new });
        }
    }
}

/// The pod, if there is one that has not ended, with its rank.
pub(super) fn living<'a>(objects: &'a Objects, key: &Key) -> Option<(u64, &'a Pod)> {
    let entry = objects.get(key)?;
    match &*entry.object {
        Object::Pod(pod) if !pod.finished => Some((entry.rank, pod)),
        _ => None,
    }
}

pub(super) fn name(key: &Key) -> WorkloadName {
    WorkloadName { namespace: key.namespace.clone(), name: key.name.clone() }
}

fn holder(mesh: &Snapshot, claim: &Claim) -> Option<Key> {
    let workload = match claim {
        Claim::Uid(uid) => mesh.workload(uid)?,
        Claim::Ip(ip) => mesh.workload_by_ip(*ip)?,
    };
    let WorkloadName { namespace, name } = workload.name.clone();
    Some(Key { kind: Kind::Pod, namespace, name })
}

fn claims(key: &Key, pod: &Pod) -> Vec<Claim> {
    let own = if pod.host_network { &[] } else { pod.addresses.as_slice() };
    [Claim::Uid(uid(key, pod))].into_iter().chain(own.iter().copied().map(Claim::Ip)).collect()
}

fn claims_of(workload: &Workload) -> Vec<Claim> {
    let own = if workload.host_network { &[] } else { workload.addresses.as_slice() };
    [Claim::Uid(workload.uid.clone())].into_iter().chain(own.iter().copied().map(Claim::Ip)).collect()
}

/// An address that two pods claim cannot tell one's identity from the other's, so the later pod is refused whole.
fn claim<'a>(taken: &mut HashMap<Claim, &'a Key>, key: &'a Key, pod: &Pod) -> Result<(), Fault> {
    let claims = claims(key, pod);
    if let Some((claim, first)) = claims.iter().find_map(|claim| Some((claim, taken.get(claim)?))) {
        let (field, what) = match claim {
            Claim::Uid(uid) => ("metadata.uid", format!("{uid} is the UID of")),
            Claim::Ip(ip) => ("status.podIP", format!("{ip} is the address of")),
        };
        return Err(Fault::at(
            FieldPath::of(field),
            format!("{what} {first} already, so this pod is left out"),
        ));
    }
    taken.extend(claims.into_iter().map(|claim| (claim, key)));
    Ok(())
}

/// Worlds written by hand have no UIDs; the name is as unique as a directory can make it.
pub(super) fn uid(key: &Key, pod: &Pod) -> WorkloadUid {
    WorkloadUid(pod.uid.clone().unwrap_or_else(|| format!("{}/{}", key.namespace, key.name).into()))
}

/// What a pod that has its addresses becomes, and what is wrong with it.
pub(super) fn workload(
    objects: &Objects,
    config: &MeshConfig,
    key: &Key,
    pod: &Pod,
) -> (Workload, Option<Fault>) {
    let namespace = namespace(objects, key);
    let wanted = !pod.host_network && pod.mesh.or(namespace.mesh).unwrap_or(false);
    let has_account = has_service_account(objects, key, pod);
    let fault = (wanted && !has_account).then(|| {
        let message = format!(
            "there is no ServiceAccount {}/{}, so the pod has no identity and is not enrolled",
            key.namespace, pod.service_account
        );
        Fault::at(FieldPath::of("spec.serviceAccountName"), message)
    });
    // Where only the namespace asks, its other pods were meant.
    let asked_in_vain = (pod.host_network && pod.mesh == Some(true)).then(|| {
        let message = "the pod shares its node's network, where its connections cannot be told from the node's own, so it is not enrolled";
        Fault::at(FieldPath::of("spec.hostNetwork"), message)
    });
    let fault = fault.or(asked_in_vain);
    let workload = Workload {
        uid: uid(key, pod),
        name: name(key),
        owner: pod.owner.clone().unwrap_or_else(|| key.name.clone()),
        node: pod.node.clone(),
        zone: zone(objects, &pod.node),
        addresses: pod.addresses.clone(),
        service_account: pod.service_account.clone(),
        identity: SpiffeId::of_service_account(&config.trust_domain, &key.namespace, &pod.service_account),
        labels: pod.labels.clone(),
        ports: pod
            .ports
            .iter()
            .map(|port| WorkloadPort { name: port.name.clone(), port: port.port })
            .collect(),
        enrolled: wanted && has_account,
        splice: pod.splice.or(namespace.splice),
        forward_client_cert: pod.forward_client_cert.or(namespace.forward_client_cert).unwrap_or(false),
        skip_outbound_ports: pod.skip_outbound_ports.clone(),
        skip_inbound_ports: pod.skip_inbound_ports.clone(),
        probe_ports: pod.probe_ports.clone(),
        manifest_hash: pod.manifest_hash.clone(),
        failure_mode: namespace.failure_mode,
        host_network: pod.host_network,
        ready: pod.ready,
        terminating: pod.terminating,
    };
    (workload, fault)
}

fn namespace(objects: &Objects, pod: &Key) -> cluster::Namespace {
    let key = Key { kind: Kind::Namespace, namespace: "".into(), name: pod.namespace.clone() };
    match objects.get(&key).map(|entry| &*entry.object) {
        Some(Object::Namespace(namespace)) => namespace.clone(),
        _ => cluster::Namespace::default(),
    }
}

/// Every namespace has an account `default`, whether it is written down or not.
fn has_service_account(objects: &Objects, key: &Key, pod: &Pod) -> bool {
    let account = Key {
        kind: Kind::ServiceAccount,
        namespace: key.namespace.clone(),
        name: pod.service_account.clone(),
    };
    &*pod.service_account == "default" || objects.get(&account).is_some()
}

pub(super) fn zone(objects: &Objects, node: &Arc<str>) -> Option<Arc<str>> {
    let key = Key { kind: Kind::Node, namespace: "".into(), name: node.clone() };
    match objects.get(&key).map(|entry| &*entry.object) {
        Some(Object::Node(node)) => node.zone.clone(),
        _ => None,
    }
}

/// Identities that pods share: there are far fewer of them than pods.
#[derive(Debug, Default)]
struct Identities {
    known: HashSet<SpiffeId>,
    /// How many there were when those that nobody has were last forgotten.
    kept: usize,
}

/// Below this many there is nothing worth forgetting.
const IDENTITIES_MIN: usize = 1024;

impl Identities {
    fn share(&mut self, identity: SpiffeId, mesh: &Snapshot) -> SpiffeId {
        if let Some(known) = self.known.get(&identity) {
            return known.clone();
        }
        if self.known.len() >= IDENTITIES_MIN.max(2 * self.kept) {
            self.known = mesh.workloads().map(|workload| workload.identity.clone()).collect();
            self.kept = self.known.len();
        }
        self.known.insert(identity.clone());
        identity
    }
}
