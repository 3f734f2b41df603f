//! May this connection pass? A pure function from facts to a [`Permit`] or a named [`Refusal`].
//!
//! Layer 2, a deciding room. Evaluated at the destination before any byte reaches the application; the same function
//! compiles the kernel's verdicts, so spliced, tunnelled and plaintext connections get the same answer.
#![forbid(unsafe_code)]

use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::watch;

use crate::model::{AuthorizationPolicy, DefaultInbound, PolicyName, SpiffeId, Workload};

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
}

/// Proof that policy admitted a connection. Later steps demand it; only [`PolicySet::evaluate`] makes one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Permit {
    /// The ALLOW policy and rule index that admitted it; `None`: nothing selected the pod and the default admits.
    by: Option<(PolicyName, usize)>,
    /// AUDIT policies that matched.
    audits: Vec<PolicyName>,
}

/// Why policy refused a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// A DENY rule matched.
    Denied {
        /// The policy.
        policy: PolicyName,
        /// Index of the rule.
        rule: usize,
    },
    /// ALLOW policies select the pod and none matched.
    NotAllowed {
        /// The policies that select the pod.
        candidates: Vec<PolicyName>,
    },
    /// No policy selects the pod and the mesh-wide default wants a verified identity.
    NotAuthenticated,
    /// No policy selects the pod and the mesh-wide default refuses.
    DefaultDeny,
}

/// All policies, compiled. Immutable.
#[derive(Debug, Default)]
pub struct PolicySet {
    policies: Vec<Arc<AuthorizationPolicy>>,
    default_inbound: DefaultInbound,
}

/// Read handle on the current set. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Policies {
    current: Arc<ArcSwap<PolicySet>>,
    version: watch::Receiver<u64>,
}
