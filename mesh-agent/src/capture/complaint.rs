//! What keeps a pod, or the node as a whole, from being as it was asked for.

use std::fmt;

use crate::model::{Workload, WorkloadName, WorkloadUid};

/// One complaint.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Complaint {
    /// The pod that it is about; `None`: the node, or a sandbox file.
    pub pod: Option<(WorkloadName, WorkloadUid)>,
    /// What is wrong.
    pub reason: String,
}

impl Complaint {
    /// About a pod.
    pub fn of_pod(workload: &Workload, reason: impl Into<String>) -> Self {
        Self { pod: Some((workload.name.clone(), workload.uid.clone())), reason: reason.into() }
    }

    /// About the node.
    pub fn of_node(reason: impl Into<String>) -> Self {
        Self { pod: None, reason: reason.into() }
    }
}

impl fmt::Display for Complaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.pod {
            Some((name, _)) => write!(f, "pod {name}: {}", self.reason),
            None => f.write_str(&self.reason),
        }
    }
}
