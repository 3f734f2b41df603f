//! Pods become workloads: identity, enrolment, and no two of them with one address.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::{Finding, in_rank_order};
use crate::discovery::objects::pod::Pod;
use crate::discovery::objects::{Key, Kind, Object, Objects, cluster};
use crate::discovery::problem::{Fault, FieldPath};
use crate::model::{MeshConfig, SpiffeId, Workload, WorkloadName, WorkloadPort, WorkloadUid};

/// A pod and what became of it.
#[derive(Debug)]
pub(super) struct Compiled<'a> {
    pub(super) pod: &'a Pod,
    pub(super) workload: Workload,
}

pub(super) fn compile<'a>(
    objects: &'a Objects,
    config: &MeshConfig,
    findings: &mut Vec<Finding>,
) -> Vec<Compiled<'a>> {
    let mut pods: Vec<(&Key, &Pod)> = in_rank_order(objects, Kind::Pod)
        .into_iter()
        .filter_map(|(key, entry)| match &*entry.object {
            Object::Pod(pod) if !pod.finished => Some((key, &**pod)),
            _ => None,
        })
        .collect();
    // A stopping pod's address may already be somebody else's; the living one keeps it.
    pods.sort_by_key(|(_, pod)| pod.terminating);
    let mut taken = Taken::default();
    let mut compiled = Vec::with_capacity(pods.len());
    for (key, pod) in pods {
        let uid = uid(key, pod);
        match taken.claim(key, pod, &uid) {
            Err(fault) => findings.push(Finding { key: key.clone(), fault }),
            Ok(()) => {
                compiled.push(Compiled { pod, workload: workload(objects, config, key, pod, uid, findings) });
            }
        }
    }
    compiled.sort_by(|a, b| a.workload.name.cmp(&b.workload.name));
    compiled
}

/// Who has which UID and address.
#[derive(Default)]
struct Taken<'a> {
    uids: HashMap<WorkloadUid, &'a Key>,
    addresses: HashMap<IpAddr, &'a Key>,
}

impl<'a> Taken<'a> {
    /// An address that two pods claim cannot tell one's identity from the other's, so the later pod is refused whole.
    fn claim(&mut self, key: &'a Key, pod: &Pod, uid: &WorkloadUid) -> Result<(), Fault> {
        if let Some(first) = self.uids.get(uid) {
            let message = format!("{uid} is the UID of {first} already, so this pod is left out");
            return Err(Fault::at(FieldPath::of("metadata.uid"), message));
        }
        let own = if pod.host_network { &[] } else { pod.addresses.as_slice() };
        if let Some((ip, first)) = own.iter().find_map(|ip| Some((ip, self.addresses.get(ip)?))) {
            let message = format!("{ip} is the address of {first} already, so this pod is left out");
            return Err(Fault::at(FieldPath::of("status.podIP"), message));
        }
        self.uids.insert(uid.clone(), key);
        self.addresses.extend(own.iter().map(|ip| (*ip, key)));
        Ok(())
    }
}

/// Worlds written by hand have no UIDs; the name is as unique as a directory can make it.
fn uid(key: &Key, pod: &Pod) -> WorkloadUid {
    WorkloadUid(pod.uid.clone().unwrap_or_else(|| format!("{}/{}", key.namespace, key.name).into()))
}

fn workload(
    objects: &Objects,
    config: &MeshConfig,
    key: &Key,
    pod: &Pod,
    uid: WorkloadUid,
    findings: &mut Vec<Finding>,
) -> Workload {
    let namespace = namespace(objects, key);
    let wanted = !pod.host_network && pod.mesh.or(namespace.mesh).unwrap_or(false);
    let has_account = has_service_account(objects, key, pod);
    if wanted && !has_account {
        let message = format!(
            "there is no ServiceAccount {}/{}, so the pod has no identity and is not enrolled",
            key.namespace, pod.service_account
        );
        let fault = Fault::at(FieldPath::of("spec.serviceAccountName"), message);
        findings.push(Finding { key: key.clone(), fault });
    }
    Workload {
        uid,
        name: WorkloadName { namespace: key.namespace.clone(), name: key.name.clone() },
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
        failure_mode: namespace.failure_mode,
        host_network: pod.host_network,
        ready: pod.ready,
        terminating: pod.terminating,
    }
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
