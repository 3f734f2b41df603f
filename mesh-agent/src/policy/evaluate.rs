//! The order of judgement: AUDIT records, DENY refuses, ALLOW admits, and where an ALLOW selects the pod but none
//! matches, the answer is no; only a pod without any ALLOW falls to the mesh-wide default.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;

use crate::model::{AuthorizationPolicy, DefaultInbound, PolicyName, Source, Workload, canonical_ip};

use super::rules::{Peer, rule_matches};
use super::{Facts, Permit, PolicySet, Refusal, Scope};

impl PolicySet {
    /// Judges one connection.
    ///
    /// # Errors
    /// The [`Refusal`] names the policy that decided, or the mesh-wide default.
    pub fn evaluate(&self, facts: &Facts<'_>) -> Result<Permit, Refusal> {
        let audits = self.audits(facts);
        for policy in self.selecting(facts.destination, |scope| &scope.deny) {
            if let Some(reason) = &policy.unusable {
                return Err(Refusal::Unusable {
                    policy: policy.name.clone(),
                    reason: reason.clone(),
                    audits,
                });
            }
            if let Some(rule) = self.matching_rule(policy, facts) {
                return Err(Refusal::Denied { policy: policy.name.clone(), rule, audits });
            }
        }
        let mut any_allow = false;
        for policy in self.selecting(facts.destination, |scope| &scope.allow) {
            any_allow = true;
            if let Some(rule) = self.matching_rule(policy, facts) {
                return Ok(Permit { by: Some((policy.name.clone(), rule)), audits, default_audit: false });
            }
        }
        if any_allow {
            let candidates = self
                .selecting(facts.destination, |scope| &scope.allow)
                .map(|policy| policy.name.clone())
                .collect();
            return Err(Refusal::NotAllowed { candidates, audits });
        }
        self.judge_by_default(facts, audits)
    }

    fn judge_by_default(&self, facts: &Facts<'_>, audits: Vec<PolicyName>) -> Result<Permit, Refusal> {
        let anonymous = facts.identity.is_none();
        match self.default_inbound {
            DefaultInbound::Deny => Err(Refusal::DefaultDeny { audits }),
            DefaultInbound::Authenticated if anonymous => Err(Refusal::NotAuthenticated { audits }),
            DefaultInbound::Authenticated | DefaultInbound::Permissive => {
                Ok(Permit { by: None, audits, default_audit: false })
            }
            DefaultInbound::Audit => Ok(Permit { by: None, audits, default_audit: anonymous }),
        }
    }

    /// True when no client without a verified identity could reach this port of the pod, from any address ("strict").
    ///
    /// Exact: seen along the address space, the answer can change only where a range begins or ends, so one address of
    /// each stretch is judged.
    pub fn requires_identity(&self, pod: &Workload, port: u16) -> bool {
        let mut witnesses = vec![
            IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            // The first address after the IPv4-mapped block, which no canonical client address lies in.
            IpAddr::V6(Ipv6Addr::new(0, 0, 0, 0, 1, 0, 0, 0)),
        ];
        for net in self.ranges_for(pod) {
            witnesses.push(net.network());
            witnesses.extend(after(net.broadcast()));
        }
        !witnesses.into_iter().any(|client| {
            self.evaluate(&Facts { identity: None, client, destination: pod, port, request: None }).is_ok()
        })
    }

    /// The ports that some rule for this pod names: all other ports of the pod get one common answer.
    pub fn mentions_ports(&self, pod: &Workload) -> BTreeSet<u16> {
        let rules = self.selecting_any(pod).flat_map(|policy| &policy.rules);
        rules.filter_map(|rule| rule.ports.as_ref()).flatten().copied().collect()
    }

    /// True when some policy for this pod has a rule about requests that can apply to this port, so that a connection
    /// to it cannot be judged as a whole.
    pub fn needs_requests(&self, pod: &Workload, port: u16) -> bool {
        self.selecting_any(pod).flat_map(|policy| &policy.rules).any(|rule| {
            rule.http.is_some()
                && rule.ports.as_ref().is_none_or(|ports| ports.contains(&port))
                && rule.sources.as_ref().is_none_or(|sources| !sources.is_empty())
        })
    }

    pub(super) fn audits(&self, facts: &Facts<'_>) -> Vec<PolicyName> {
        self.selecting(facts.destination, |scope| &scope.audit)
            .filter(|policy| self.matching_rule(policy, facts).is_some())
            .map(|policy| policy.name.clone())
            .collect()
    }

    /// Policies of one action that select the pod: cluster-wide ones first, then its namespace's, by name.
    pub(super) fn selecting<'a>(
        &'a self,
        pod: &'a Workload,
        list: fn(&Scope) -> &Vec<Arc<AuthorizationPolicy>>,
    ) -> impl Iterator<Item = &'a Arc<AuthorizationPolicy>> {
        let own = self.by_namespace.get(&pod.name.namespace);
        std::iter::once(&self.cluster_wide).chain(own).flat_map(list).filter(|policy| policy.selects(pod))
    }

    pub(super) fn selecting_any<'a>(
        &'a self,
        pod: &'a Workload,
    ) -> impl Iterator<Item = &'a Arc<AuthorizationPolicy>> {
        self.selecting(pod, |scope| &scope.audit)
            .chain(self.selecting(pod, |scope| &scope.deny))
            .chain(self.selecting(pod, |scope| &scope.allow))
    }

    fn matching_rule(&self, policy: &AuthorizationPolicy, facts: &Facts<'_>) -> Option<usize> {
        let peer = Peer::of(facts);
        policy.rules.iter().position(|rule| rule_matches(rule, peer, &self.trust_domain))
    }

    fn ranges_for<'a>(&'a self, pod: &'a Workload) -> impl Iterator<Item = IpNet> + 'a {
        let rules = self.selecting_any(pod).flat_map(|policy| &policy.rules);
        rules.filter_map(|rule| rule.sources.as_ref()).flatten().filter_map(|source| match source {
            Source::Cidr(net) => Some(*net),
            Source::ServiceAccount { .. } | Source::Spiffe(_) | Source::AnyAuthenticated => None,
        })
    }
}

impl<'a> Peer<'a> {
    pub(super) fn of(facts: &Facts<'a>) -> Self {
        Self { identity: facts.identity, client: canonical_ip(facts.client), port: facts.port }
    }
}

/// The address that follows, if there is one.
fn after(ip: IpAddr) -> Option<IpAddr> {
    match ip {
        IpAddr::V4(ip) => u32::from(ip).checked_add(1).map(|bits| IpAddr::V4(bits.into())),
        IpAddr::V6(ip) => u128::from(ip).checked_add(1).map(|bits| IpAddr::V6(bits.into())),
    }
}
