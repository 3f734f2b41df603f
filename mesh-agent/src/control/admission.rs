//! May this node have this identity?
//!
//! Pure. The rule: the trust domain is ours, the id is that of a service account, and a pod of that account is on the
//! node that asks. Whether the pod is enrolled or shares the host network does not matter: its account is on the node
//! either way.

use crate::model::{SpiffeId, TrustDomain};
use crate::registry::Snapshot;

/// Which part of the rule failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denial {
    /// The id belongs to another trust domain.
    #[error("trust domain: {found} is not {ours}, the one of this CA")]
    TrustDomain {
        /// The id's.
        found: String,
        /// The CA's.
        ours: TrustDomain,
    },
    /// The id is not of the form `spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT`.
    #[error("id shape: {0} is not the id of a service account")]
    Shape(SpiffeId),
    /// No pod of that account is on the node.
    #[error("pod on node: no pod with service account {namespace}/{account} is on node {node}")]
    NoPodOnNode {
        /// Namespace of the account.
        namespace: String,
        /// Name of the account.
        account: String,
        /// Who asked.
        node: String,
    },
}

impl Denial {
    /// Stable metric label.
    pub fn label(&self) -> &'static str {
        match self {
            Self::TrustDomain { .. } => "trust_domain",
            Self::Shape(_) => "id_shape",
            Self::NoPodOnNode { .. } => "no_pod_on_node",
        }
    }
}

/// Judges a request.
///
/// # Errors
/// The first part of the rule that failed.
pub fn may_have(snapshot: &Snapshot, ours: &TrustDomain, node: &str, id: &SpiffeId) -> Result<(), Denial> {
    if id.trust_domain() != ours.as_str() {
        return Err(Denial::TrustDomain { found: id.trust_domain().to_owned(), ours: ours.clone() });
    }
    let (namespace, account) = id.service_account().ok_or_else(|| Denial::Shape(id.clone()))?;
    let is_there = snapshot
        .workloads_on(node)
        .any(|workload| &*workload.name.namespace == namespace && &*workload.service_account == account);
    if is_there {
        return Ok(());
    }
    let (namespace, account) = (namespace.to_owned(), account.to_owned());
    Err(Denial::NoPodOnNode { namespace, account, node: node.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::tests::workload;
    use crate::model::MeshConfig;

    fn check(node: &str, id: &str, expected: Option<&str>) {
        let pods =
            vec![workload("shop", "a", "orders", "node-1"), workload("shop", "b", "payments", "node-2")];
        let snapshot = Snapshot::new(MeshConfig::default(), pods, Vec::new());
        let ours = "cluster.local".parse().expect("valid");
        let judged = may_have(&snapshot, &ours, node, &id.parse().expect("valid"));
        assert_eq!(judged.err().map(|denial| denial.label()), expected, "{node} {id}");
    }

    #[test]
    fn node_gets_the_accounts_of_its_own_pods_and_no_others() {
        check("node-1", "spiffe://cluster.local/ns/shop/sa/orders", None);
        check("node-2", "spiffe://cluster.local/ns/shop/sa/payments", None);
        check("node-2", "spiffe://cluster.local/ns/shop/sa/orders", Some("no_pod_on_node"));
        check("node-1", "spiffe://cluster.local/ns/shop/sa/payments", Some("no_pod_on_node"));
        check("node-1", "spiffe://cluster.local/ns/other/sa/orders", Some("no_pod_on_node"));
        check("", "spiffe://cluster.local/ns/shop/sa/orders", Some("no_pod_on_node"));
        check("node-1", "spiffe://other.example/ns/shop/sa/orders", Some("trust_domain"));
        check("node-1", "spiffe://cluster.local/ns/shop/sa/orders/x", Some("id_shape"));
        check("node-1", "spiffe://cluster.local/agent", Some("id_shape"));
    }
}
