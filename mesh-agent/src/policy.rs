//! May this connection, or this request, pass? A pure function from facts to a [`Permit`] or a named [`Refusal`].
//!
//! Layer 2, a deciding room. Evaluated at the destination before any byte reaches the application; the same function
//! compiles the kernel's verdicts, so spliced, tunnelled and plaintext connections get the same answer. It never reads a
//! packet, a clock or a file, and never learns where policies came from.
//!
//! Reading order: this door, `rules` (does one rule match), `requests` (its part about requests), `evaluate` (the order of judgement), `explain` (the same
//! order, told to people), `handle` (how a set is swapped as a whole), `promises`
//! (what has to hold, for fuzzing).
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use http::{HeaderMap, Method};

use crate::model::{
    Action, AuthorizationPolicy, DefaultInbound, MeshConfig, PolicyName, RequestPath, SpiffeId, TrustDomain,
    Workload,
};

mod evaluate;
mod explain;
mod handle;
#[doc(hidden)]
pub mod promises;
mod requests;
mod rules;
#[cfg(test)]
mod tests;

pub use explain::{Deciding, ExplainedPolicy, ExplainedRule, Explanation};
pub use handle::{Policies, Writer, new};

/// What is known about a connection when it is judged.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// The client's verified identity, if it has one.
    pub identity: Option<&'a SpiffeId>,
    /// The client's address, canonical.
    pub client: IpAddr,
    /// The pod that is dialled.
    pub destination: &'a Workload,
    /// Its port, host order.
    pub port: u16,
    /// It is kubelet's: a process of root outside every pod, on the pod's own node, dials a port that the pod declares as
    /// a probe's. Who says so has asked the kernel about the dialling socket; an address alone never is a reason.
    pub node_probe: bool,
    /// The request, where one is judged. `None`: a connection that is not HTTP, or not known to be: a rule with `http`
    /// then matches for DENY and not for ALLOW and AUDIT.
    pub request: Option<Request<'a>>,
}

/// A request, as far as policy looks at it. The method of a gRPC call is its path.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Its method.
    pub method: &'a Method,
    /// Its path, in normal form.
    pub path: &'a RequestPath<'a>,
    /// Its headers.
    pub headers: &'a HeaderMap,
    /// Whom it is for: `:authority` or `Host`, as sent.
    pub host: Option<&'a str>,
}

/// The reason under which a probe of the node is recorded.
pub const NODE_PROBE: &str = "probe";

/// Proof that policy admitted a connection or a request. Later steps demand it; only [`PolicySet::evaluate`] makes one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Permit {
    /// The ALLOW policy and rule index that admitted it; `None`: no ALLOW selected the pod and the default admits.
    by: Option<(PolicyName, usize)>,
    /// AUDIT policies that matched.
    audits: Vec<PolicyName>,
    /// Admitted without an identity under the mesh-wide default `Audit`.
    default_audit: bool,
    /// Admitted as a probe of the node, whatever the policies say.
    node_probe: bool,
}

impl Permit {
    /// The ALLOW policy and the index of its rule that admitted it; `None`: the mesh-wide default did.
    pub fn policy(&self) -> Option<(&PolicyName, usize)> {
        self.by.as_ref().map(|(name, rule)| (name, *rule))
    }

    /// AUDIT policies that matched, in order of name. Empty in the common case, and then nothing was allocated.
    pub fn audits(&self) -> &[PolicyName] {
        &self.audits
    }

    /// True when it was admitted as a probe of the node, whatever policies say.
    pub fn is_node_probe(&self) -> bool {
        self.node_probe
    }

    /// What records and metrics put it down to: the policy, or that it is a probe. `None`: the mesh-wide default.
    pub fn reason(&self) -> Option<Arc<str>> {
        if self.node_probe {
            return Some(NODE_PROBE.into());
        }
        self.policy().map(|(policy, _)| policy.to_string().into())
    }

    /// True when the mesh-wide default `Audit` asks for a record: the client has no verified identity.
    pub fn recorded_by_default(&self) -> bool {
        self.default_audit
    }
}

impl fmt::Display for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.by {
            _ if self.node_probe => {
                f.write_str("allowed as a probe of the node's kubelet, whatever policies say")
            }
            Some((policy, rule)) => write!(f, "allowed by rule {rule} of ALLOW policy {policy}"),
            None if self.default_audit => f.write_str("allowed by the mesh-wide default Audit, and recorded"),
            None => f.write_str("allowed by the mesh-wide default: no ALLOW policy selects the pod"),
        }
    }
}

/// Why policy refused a connection or a request. For logs and people inside: the answer to the client names nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// A DENY rule matched.
    Denied {
        /// The policy.
        policy: PolicyName,
        /// Index of the rule.
        rule: usize,
        /// How the request's path had to be read for it, where that is not how it is written.
        reading: Option<Arc<str>>,
        /// AUDIT policies that matched too.
        audits: Vec<PolicyName>,
    },
    /// A policy that selects the pod cannot be enforced as written, so nobody passes until it is mended or removed.
    Unusable {
        /// The policy.
        policy: PolicyName,
        /// What is wrong with it.
        reason: Arc<str>,
        /// AUDIT policies that matched too.
        audits: Vec<PolicyName>,
    },
    /// ALLOW policies select the pod and none matched.
    NotAllowed {
        /// The policies that select the pod.
        candidates: Vec<PolicyName>,
        /// The reading of the request's path that none of them admits, where that is not how it is written.
        reading: Option<Arc<str>>,
        /// AUDIT policies that matched too.
        audits: Vec<PolicyName>,
    },
    /// No policy selects the pod and the mesh-wide default wants a verified identity.
    NotAuthenticated {
        /// AUDIT policies that matched too.
        audits: Vec<PolicyName>,
    },
    /// No policy selects the pod and the mesh-wide default refuses.
    DefaultDeny {
        /// AUDIT policies that matched too.
        audits: Vec<PolicyName>,
    },
}

impl Refusal {
    /// Stable metric label.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Denied { .. } => "denied",
            Self::Unusable { .. } => "unusable_policy",
            Self::NotAllowed { .. } => "not_allowed",
            Self::NotAuthenticated { .. } => "not_authenticated",
            Self::DefaultDeny { .. } => "default_deny",
        }
    }

    /// The policy to put it down to; of several ALLOW policies that could have admitted, the first by name. `None`: the
    /// mesh-wide default.
    pub fn policy(&self) -> Option<&PolicyName> {
        match self {
            Self::Denied { policy, .. } | Self::Unusable { policy, .. } => Some(policy),
            Self::NotAllowed { candidates, .. } => candidates.first(),
            Self::NotAuthenticated { .. } | Self::DefaultDeny { .. } => None,
        }
    }

    /// AUDIT policies that matched, in order of name.
    pub fn audits(&self) -> &[PolicyName] {
        match self {
            Self::Denied { audits, .. }
            | Self::Unusable { audits, .. }
            | Self::NotAllowed { audits, .. }
            | Self::NotAuthenticated { audits }
            | Self::DefaultDeny { audits } => audits,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Denied { policy, rule, reading, .. } => {
                write!(f, "refused by rule {rule} of DENY policy {policy}")?;
                write_reading(f, reading.as_deref())
            }
            Self::Unusable { policy, reason, .. } => {
                write!(f, "refused because policy {policy} cannot be enforced: {reason}")
            }
            Self::NotAllowed { candidates, reading, .. } => {
                let word = if candidates.len() == 1 { "policy" } else { "policies" };
                write!(f, "refused because no rule of ALLOW {word} ")?;
                for (index, policy) in candidates.iter().enumerate() {
                    write!(f, "{}{policy}", if index == 0 { "" } else { ", " })?;
                }
                f.write_str(" matches")?;
                write_reading(f, reading.as_deref())
            }
            Self::NotAuthenticated { .. } => f.write_str(
                "refused by the mesh-wide default Authenticated: the client has no verified identity",
            ),
            Self::DefaultDeny { .. } => {
                f.write_str("refused by the mesh-wide default Deny: no ALLOW policy selects the pod")
            }
        }
    }
}

fn write_reading(f: &mut fmt::Formatter<'_>, reading: Option<&str>) -> fmt::Result {
    reading.map_or(Ok(()), |path| write!(f, ": a server could read the path as {path}"))
}

/// All policies, compiled. Immutable.
///
/// Kept by namespace and, inside one, by action, so that judging a connection reads only the policies of the
/// destination's namespace and the cluster-wide ones.
#[derive(Debug)]
pub struct PolicySet {
    cluster_wide: Scope,
    by_namespace: HashMap<Arc<str>, Scope>,
    default_inbound: DefaultInbound,
    trust_domain: TrustDomain,
}

/// The policies of one namespace (or the cluster-wide ones), each list sorted by name.
#[derive(Debug, Default)]
struct Scope {
    audit: Vec<Arc<AuthorizationPolicy>>,
    deny: Vec<Arc<AuthorizationPolicy>>,
    allow: Vec<Arc<AuthorizationPolicy>>,
}

impl PolicySet {
    /// Compiles a set. `trust_domain` is ours: a `ServiceAccount` source matches accounts of this domain only, so that a
    /// federated domain cannot speak for a namespace here just by using its name.
    pub fn new(
        mut policies: Vec<Arc<AuthorizationPolicy>>,
        default_inbound: DefaultInbound,
        trust_domain: TrustDomain,
    ) -> Self {
        policies.sort_by(|a, b| a.name.cmp(&b.name));
        let mut set = Self {
            cluster_wide: Scope::default(),
            by_namespace: HashMap::new(),
            default_inbound,
            trust_domain,
        };
        for policy in policies {
            let scope = if policy.cluster_wide {
                &mut set.cluster_wide
            } else {
                set.by_namespace.entry(policy.name.namespace.clone()).or_default()
            };
            scope.list(&policy).push(policy);
        }
        set
    }

    /// Every policy of the set, in no order.
    pub fn policies(&self) -> impl Iterator<Item = &Arc<AuthorizationPolicy>> {
        std::iter::once(&self.cluster_wide)
            .chain(self.by_namespace.values())
            .flat_map(|scope| scope.audit.iter().chain(&scope.deny).chain(&scope.allow))
    }

    /// What happens where no ALLOW policy selects the pod.
    pub fn default_inbound(&self) -> DefaultInbound {
        self.default_inbound
    }
}

impl Default for PolicySet {
    fn default() -> Self {
        let config = MeshConfig::default();
        Self::new(Vec::new(), config.default_inbound, config.trust_domain)
    }
}

impl Scope {
    /// The list that a policy belongs to; one that cannot be enforced refuses, whatever its action says.
    fn list(&mut self, policy: &AuthorizationPolicy) -> &mut Vec<Arc<AuthorizationPolicy>> {
        match policy.action {
            _ if policy.unusable.is_some() => &mut self.deny,
            Action::Audit => &mut self.audit,
            Action::Deny => &mut self.deny,
            Action::Allow => &mut self.allow,
        }
    }
}
