//! Namespaces and nodes.

use std::sync::Arc;

use super::metadata::Metadata;
use super::{Fault, FieldPath};
use crate::model::FailureMode;

/// Annotation of a namespace: what new connections of its pods do while the agent is away.
pub const AGENT_DOWN: &str = "weft.dev/agent-down";

/// A namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Namespace {
    /// Its word on enrolment, for pods that say nothing.
    pub mesh: Option<bool>,
    /// Its word on the kernel's fast path, for pods that say nothing.
    pub splice: Option<bool>,
    /// Its word on [`super::FORWARD_CLIENT_CERT`], for pods that say nothing.
    pub forward_client_cert: Option<bool>,
    /// What happens while the agent is away.
    pub failure_mode: FailureMode,
}

/// A node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// `topology.kubernetes.io/zone`.
    pub zone: Option<Arc<str>>,
}

/// Takes what the mesh needs.
///
/// # Errors
/// A label or annotation of ours that cannot be read.
pub fn accept_namespace(metadata: &Metadata) -> Result<Namespace, Fault> {
    let annotations = metadata.annotations.as_ref();
    let failure_mode = match annotations.and_then(|map| map.get(AGENT_DOWN)).map(String::as_str) {
        None | Some("closed") => FailureMode::Closed,
        Some("plain") => FailureMode::Plain,
        Some(other) => {
            return Err(Fault::at(
                FieldPath::of("metadata.annotations").key(AGENT_DOWN),
                format!("{other:?} is not a failure mode: write closed or plain"),
            ));
        }
    };
    let splice = super::switch(metadata.labels.as_ref(), "labels", super::pod::SPLICE_LABEL)?;
    Ok(Namespace {
        mesh: super::mesh_label(metadata)?,
        splice,
        forward_client_cert: super::forward_client_cert(metadata)?,
        failure_mode,
    })
}

/// Takes what the mesh needs.
pub fn accept_node(metadata: &Metadata) -> Node {
    let labels = metadata.labels.as_ref();
    let zone = labels.and_then(|labels| labels.get("topology.kubernetes.io/zone"));
    Node { zone: zone.filter(|zone| !zone.is_empty()).map(|zone| zone.as_str().into()) }
}
