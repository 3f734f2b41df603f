//! The policy's answers for pairs of caught pods, asked ahead of time: the same `policy::evaluate` that the proxy calls.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use mesh_common::{Verdict, VerdictKey, action};

use super::{Inputs, LocalPods, Numbers, Scope};
use crate::capture::habit::PortKey;
use crate::capture::tracked::Tracked;
use crate::model::{Workload, WorkloadUid};
use crate::policy::{Facts, PolicySet, Refusal};

/// The pods between which verdicts are written, each with its number and the ports that have verdicts of their own.
#[derive(Debug, Default)]
pub(super) struct Judged(BTreeMap<WorkloadUid, Pod>);

#[derive(Debug)]
struct Pod {
    number: u32,
    ports: BTreeSet<u16>,
    /// One that no policy for the pod speaks about: the verdict for it is that for all ports without one of their own.
    any: u16,
}

impl Judged {
    pub(super) fn knows(&self, uid: &WorkloadUid) -> bool {
        self.0.contains_key(uid)
    }

    /// Judges every pair again that has one of the scope's pods in it.
    pub(super) fn follow(
        &mut self,
        verdicts: &mut Tracked<VerdictKey, Verdict>,
        numbers: &mut Numbers,
        inputs: &Inputs<'_>,
        local: &LocalPods<'_>,
        direct: &HashSet<PortKey>,
        scope: &Scope,
    ) {
        let is_in = |uid: &WorkloadUid| scope.all_verdicts || scope.judged.contains(uid);
        for ((_, from), (_, to)) in pairs(self.0.iter(), |(uid, _)| is_in(uid)) {
            for port in to.ports.iter().chain(&[0]) {
                verdicts.unset(&key(from.number, to.number, *port));
            }
        }
        self.0.retain(|uid, _| local.contains_key(uid));
        for (uid, (_, pod)) in local.iter().filter(|(uid, _)| is_in(uid)) {
            let mut ports = inputs.policies.mentions_ports(pod);
            let any = unmentioned_port(&ports);
            ports.extend(direct.iter().filter(|key| is_of(key, pod)).map(|key| key.port));
            self.0.insert((*uid).clone(), Pod { number: numbers.pod(uid), ports, any });
        }
        for ((source, (_, from)), (destination, (_, to))) in pairs(local.iter(), |(uid, _)| is_in(uid)) {
            let (source, destination) = (&self.0[*source], &self.0[*destination]);
            let key = |port| key(source.number, destination.number, port);
            verdicts.set(key(0), verdict(inputs.policies, from, to, destination.any).entry(numbers));
            for port in &destination.ports {
                let mut judged = verdict(inputs.policies, from, to, *port);
                let habit = PortKey { owner: owner(to), port: *port };
                if matches!(judged, Answer::Splice) && direct.contains(&habit) {
                    judged = Answer::Direct;
                }
                verdicts.set(key(*port), judged.entry(numbers));
            }
        }
        if scope.all_verdicts {
            numbers.keep_policies(&verdicts.iter().map(|(_, verdict)| verdict.policy).collect());
        }
    }
}

/// Every ordered pair of two pods of which one is wanted. Most changes are about pods of other nodes, and then there is none.
fn pairs<T: Copy>(pods: impl Iterator<Item = T>, is_wanted: impl Fn(&T) -> bool) -> Vec<(T, T)> {
    let (wanted, others): (Vec<T>, Vec<T>) = pods.partition(is_wanted);
    let mut pairs = Vec::new();
    for (place, one) in wanted.iter().enumerate() {
        let before_and_after = wanted[..place].iter().chain(&wanted[place + 1..]);
        pairs.extend(before_and_after.chain(&others).map(|other| (*one, *other)));
        pairs.extend(others.iter().map(|other| (*other, *one)));
    }
    pairs
}

fn key(source: u32, destination: u32, port: u16) -> VerdictKey {
    VerdictKey { source, destination, port, reserved: 0, reserved2: 0 }
}

/// A port that no policy for the pod speaks about.
pub(super) fn unmentioned_port(mentioned: &BTreeSet<u16>) -> u16 {
    (1..=u16::MAX).rev().find(|port| !mentioned.contains(port)).unwrap_or(0)
}

/// The name under which a pod's habits are kept.
pub fn owner(pod: &Workload) -> (Arc<str>, Arc<str>) {
    (pod.name.namespace.clone(), pod.owner.clone())
}

fn is_of(key: &PortKey, pod: &Workload) -> bool {
    key.owner.0 == pod.name.namespace && key.owner.1 == pod.owner
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Answer {
    Splice,
    Direct,
    /// The answer depends on which of its addresses the client uses, or on what it asks for: the agent decides.
    Agent,
    Deny(String),
}

impl Answer {
    fn entry(&self, numbers: &mut Numbers) -> Verdict {
        match self {
            Self::Splice => Verdict { action: action::SPLICE, policy: 0 },
            Self::Direct => Verdict { action: action::DIRECT, policy: 0 },
            Self::Agent => Verdict { action: action::PROXY, policy: 0 },
            Self::Deny(policy) => Verdict { action: action::DENY, policy: numbers.policy(policy) },
        }
    }
}

/// Whether requests to this port of the pod must be read: policies speak about them, or the pod wants to be told its
/// client.
pub fn reads_requests(policies: &PolicySet, pod: &Workload, port: u16) -> bool {
    pod.forward_client_cert || policies.needs_requests(pod, port)
}

fn verdict(policies: &PolicySet, source: &Workload, destination: &Workload, port: u16) -> Answer {
    if reads_requests(policies, destination, port) {
        return Answer::Agent;
    }
    let mut answers = source.addresses.iter().map(|ip| judge(policies, source, *ip, destination, port));
    let Some(first) = answers.next() else { return Answer::Agent };
    if answers.all(|answer| answer == first) { first } else { Answer::Agent }
}

fn judge(policies: &PolicySet, source: &Workload, ip: IpAddr, destination: &Workload, port: u16) -> Answer {
    let facts = Facts {
        identity: Some(&source.identity),
        client: ip,
        destination,
        port,
        node_probe: false,
        request: None,
    };
    match policies.evaluate(&facts) {
        Ok(_permit) => Answer::Splice,
        Err(refusal) => Answer::Deny(decider(&refusal)),
    }
}

/// The policy that a refusal is put down to, or the stable label of the default.
pub fn decider(refusal: &Refusal) -> String {
    match refusal.policy() {
        Some(policy) => policy.to_string(),
        None => refusal.label().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_pairs_are_looked_at_as_a_change_touches() {
        let count = |wanted: &[u32]| {
            let pairs = pairs(0..100, |pod| wanted.contains(pod));
            let distinct: HashSet<_> = pairs.iter().collect();
            assert_eq!(distinct.len(), pairs.len());
            let touches =
                |(one, other): &(u32, u32)| one != other && (wanted.contains(one) || wanted.contains(other));
            assert!(pairs.iter().all(touches));
            pairs.len()
        };
        assert_eq!((count(&[]), count(&[7]), count(&[0, 99])), (0, 2 * 99, 4 * 98 + 2));
        assert_eq!(count(&(0..100).collect::<Vec<_>>()), 100 * 99);
    }
}
