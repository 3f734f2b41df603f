//! The order of judgement:
//!
//! 1. AUDIT policies that match are noted.
//! 2. A probe of the node's kubelet is admitted: the pod's own specification asks for it, and a pod that cannot be probed
//!    is taken for broken.
//! 3. External authorization will stand here, before DENY: it may only refuse.
//! 4. DENY refuses.
//! 5. ALLOW admits, and where an ALLOW selects the pod but none matches, the answer is no.
//! 6. Only a pod without any ALLOW falls to the mesh-wide default.
//!
//! A request is judged in every way in which a server could read its path (`model::path`): one reading that is denied
//! is enough to refuse, and every reading has to be allowed, be it by different rules. So the whole is as strict as the
//! strictest reading alone.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;

use crate::model::{AuthorizationPolicy, DefaultInbound, PolicyName, Source, Workload};

use super::requests::View;
use super::rules::{Question, matching_rule};
use super::{Facts, Permit, PolicySet, Refusal, Scope};

impl PolicySet {
    /// Judges one connection, or one request on it. A pure function; allocates nothing where the answer is yes, no AUDIT
    /// matches and the path is an ordinary one.
    ///
    /// # Errors
    /// The [`Refusal`] names the policy that decided, or the mesh-wide default.
    pub fn evaluate(&self, facts: &Facts<'_>) -> Result<Permit, Refusal> {
        self.judge(facts, &Question::of(facts))
    }

    /// Whether any HTTP request at all could pass on this connection; `facts.request` is not looked at. Where it says
    /// no, every request would be refused, so the connection can be. Where it says yes, there may still be none that
    /// passes: it does not add up DENY rules that only together leave nothing.
    pub fn could_admit(&self, facts: &Facts<'_>) -> bool {
        self.judge(facts, &Question::of_any_request(facts)).is_ok()
    }

    fn judge(&self, facts: &Facts<'_>, question: &Question<'_>) -> Result<Permit, Refusal> {
        let audits = self.audits(facts, question);
        if facts.node_probe {
            return Ok(Permit { by: None, audits, default_audit: false, node_probe: true });
        }
        if let Some(refusal) = self.denial(facts, question, &audits) {
            return Err(refusal);
        }
        if self.selecting(facts.destination, |scope| &scope.allow).next().is_none() {
            return self.judge_by_default(facts, audits);
        }
        // The permit names what admitted the first reading, which is the request as it stands.
        let mut by = None;
        for view in question.asked.views() {
            let Some(admission) = self.admission(facts, question, view) else {
                return Err(self.not_allowed(facts, reading(facts, view), audits));
            };
            by = by.or(Some(admission));
        }
        match by {
            Some((policy, rule)) => Ok(Permit {
                by: Some((policy.name.clone(), rule)),
                audits,
                default_audit: false,
                node_probe: false,
            }),
            None => Err(self.not_allowed(facts, None, audits)),
        }
    }

    fn not_allowed(&self, facts: &Facts<'_>, reading: Option<Arc<str>>, audits: Vec<PolicyName>) -> Refusal {
        let candidates = self.selecting(facts.destination, |scope| &scope.allow);
        Refusal::NotAllowed {
            candidates: candidates.map(|policy| policy.name.clone()).collect(),
            reading,
            audits,
        }
    }

    /// The first DENY rule that matches any reading, or the first policy that cannot be enforced.
    fn denial(&self, facts: &Facts<'_>, question: &Question<'_>, audits: &[PolicyName]) -> Option<Refusal> {
        self.selecting(facts.destination, |scope| &scope.deny).find_map(|policy| {
            let (name, audits) = (|| policy.name.clone(), || audits.to_vec());
            if let Some(reason) = &policy.unusable {
                return Some(Refusal::Unusable { policy: name(), reason: reason.clone(), audits: audits() });
            }
            question.asked.views().find_map(|view| {
                let rule = matching_rule(policy, question, view, &self.trust_domain)?;
                Some(Refusal::Denied {
                    policy: name(),
                    rule,
                    reading: reading(facts, view),
                    audits: audits(),
                })
            })
        })
    }

    /// The first ALLOW rule that matches one reading.
    fn admission<'a>(
        &'a self,
        facts: &'a Facts<'_>,
        question: &Question<'_>,
        view: View<'_>,
    ) -> Option<(&'a AuthorizationPolicy, usize)> {
        self.selecting(facts.destination, |scope| &scope.allow)
            .find_map(|policy| Some((&**policy, matching_rule(policy, question, view, &self.trust_domain)?)))
    }

    fn judge_by_default(&self, facts: &Facts<'_>, audits: Vec<PolicyName>) -> Result<Permit, Refusal> {
        let anonymous = facts.identity.is_none();
        match self.default_inbound {
            DefaultInbound::Deny => Err(Refusal::DefaultDeny { audits }),
            DefaultInbound::Authenticated if anonymous => Err(Refusal::NotAuthenticated { audits }),
            DefaultInbound::Authenticated | DefaultInbound::Permissive => {
                Ok(Permit { by: None, audits, default_audit: false, node_probe: false })
            }
            DefaultInbound::Audit => {
                Ok(Permit { by: None, audits, default_audit: anonymous, node_probe: false })
            }
        }
    }

    /// True when no client without a verified identity could reach this port of the pod, from any address, with anything
    /// but HTTP ("strict"). The kernel asks this about datagrams.
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
            self.evaluate(&Facts {
                identity: None,
                client,
                destination: pod,
                port,
                node_probe: false,
                request: None,
            })
            .is_ok()
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

    fn audits(&self, facts: &Facts<'_>, question: &Question<'_>) -> Vec<PolicyName> {
        let matches = |policy: &AuthorizationPolicy| {
            let mut views = question.asked.views();
            views.any(|view| matching_rule(policy, question, view, &self.trust_domain).is_some())
        };
        self.selecting(facts.destination, |scope| &scope.audit)
            .filter(|policy| matches(policy))
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

    fn ranges_for<'a>(&'a self, pod: &'a Workload) -> impl Iterator<Item = IpNet> + 'a {
        let rules = self.selecting_any(pod).flat_map(|policy| &policy.rules);
        rules.filter_map(|rule| rule.sources.as_ref()).flatten().filter_map(|source| match source {
            Source::Cidr(net) => Some(*net),
            Source::ServiceAccount { .. } | Source::Spiffe(_) | Source::AnyAuthenticated => None,
        })
    }
}

/// The path as it was read, where that is not how it is forwarded.
fn reading(facts: &Facts<'_>, view: View<'_>) -> Option<Arc<str>> {
    match (view, facts.request) {
        (View::Request(_, Some(path)), Some(request)) if path != request.path.comparable() => {
            Some(path.into())
        }
        _ => None,
    }
}

/// The address that follows, if there is one.
fn after(ip: IpAddr) -> Option<IpAddr> {
    match ip {
        IpAddr::V4(ip) => u32::from(ip).checked_add(1).map(|bits| IpAddr::V4(bits.into())),
        IpAddr::V6(ip) => u128::from(ip).checked_add(1).map(|bits| IpAddr::V6(bits.into())),
    }
}
