//! A workload: one pod, as far as the mesh cares.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use super::SpiffeId;

/// The pod's UID. Unlike its name or its IP it is never used twice; pools and sessions are bound to it.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkloadUid(pub Arc<str>);

impl fmt::Display for WorkloadUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for WorkloadUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// `namespace/name`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkloadName {
    /// Kubernetes namespace.
    pub namespace: Arc<str>,
    /// Pod name.
    pub name: Arc<str>,
}

impl fmt::Display for WorkloadName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl fmt::Debug for WorkloadName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// What new connections of a pod do while the agent is away (namespace annotation `weft.dev/agent-down`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum FailureMode {
    /// They are refused.
    #[default]
    Closed,
    /// They go out unencrypted, as if there were no mesh.
    Plain,
}

/// A declared container port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkloadPort {
    /// Name, if declared; Services may target it.
    pub name: Option<Arc<str>>,
    /// Number.
    pub port: u16,
}

/// One pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// UID; where the source has none, a name derived from namespace and name.
    pub uid: WorkloadUid,
    /// Namespace and name.
    pub name: WorkloadName,
    /// The workload's owner for metrics (for example the Deployment's name); the pod name when it has none.
    pub owner: Arc<str>,
    /// The node it is scheduled on.
    pub node: Arc<str>,
    /// The node's zone (`topology.kubernetes.io/zone`), if known.
    pub zone: Option<Arc<str>>,
    /// All its addresses, canonical.
    pub addresses: Vec<IpAddr>,
    /// Its service account.
    pub service_account: Arc<str>,
    /// The identity that follows from it.
    pub identity: SpiffeId,
    /// Pod labels; pods of one owner mostly share them.
    pub labels: Arc<BTreeMap<String, String>>,
    /// Declared ports.
    pub ports: Vec<WorkloadPort>,
    /// Part of the mesh (label `weft.dev/mesh`).
    pub enrolled: bool,
    /// May be spliced (label `weft.dev/splice` on pod or namespace); `None`: says nothing.
    pub splice: Option<bool>,
    /// Is told in a request header who the client is (`weft.dev/forward-client-cert`, on pod or namespace).
    pub forward_client_cert: bool,
    /// Destination ports left alone on the way out (`weft.dev/skip-outbound-ports`).
    pub skip_outbound_ports: BTreeSet<u16>,
    /// Local ports left alone on the way in (`weft.dev/skip-inbound-ports`).
    pub skip_inbound_ports: BTreeSet<u16>,
    /// Ports that kubelet's probes of its containers dial.
    pub probe_ports: BTreeSet<u16>,
    /// For the mirror of a static pod, the hash of its manifest: the node knows the pod by it, and not by the UID.
    pub manifest_hash: Option<Arc<str>>,
    /// What happens while the agent is away.
    pub failure_mode: FailureMode,
    /// Shares the node's network namespace: never captured.
    pub host_network: bool,
    /// Passes its readiness checks.
    pub ready: bool,
    /// Has been told to stop.
    pub terminating: bool,
}
