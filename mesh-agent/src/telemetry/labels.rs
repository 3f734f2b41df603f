//! Whose connection it was: the labels that all connection metrics share.
//!
//! The workload label is the *owner* (the Deployment's name), never the pod, so that the number of series follows what
//! people deploy and not how often pods restart.

use std::sync::{Arc, LazyLock};

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};

use crate::model::{Path, ServiceName, Workload};

/// Label value of a peer that the mesh does not know.
static UNKNOWN: LazyLock<Arc<str>> = LazyLock::new(|| "unknown".into());
/// Label value of everything beyond the bound on label sets.
static OTHER: LazyLock<Arc<str>> = LazyLock::new(|| "other".into());
static NONE: LazyLock<Arc<str>> = LazyLock::new(|| "".into());

/// Which end of the connection tells about it. A connection between two enrolled pods is told twice, once by each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reporter {
    /// The client's side.
    Source,
    /// The server's side.
    Destination,
}

impl Reporter {
    /// Stable label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Destination => "destination",
        }
    }
}

impl EncodeLabelValue for Reporter {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> std::fmt::Result {
        EncodeLabelValue::encode(&self.label(), encoder)
    }
}

impl EncodeLabelValue for Path {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> std::fmt::Result {
        EncodeLabelValue::encode(&self.label(), encoder)
    }
}

/// The labels of one kind of connection. The field order is the order in the exposition.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ConnectionLabels {
    /// Who tells.
    pub reporter: Reporter,
    /// The client's owner; `unknown` outside the mesh.
    pub source_workload: Arc<str>,
    /// The client's namespace; empty outside the mesh.
    pub source_namespace: Arc<str>,
    /// The server's owner; `unknown` outside the mesh or when no endpoint was chosen.
    pub destination_workload: Arc<str>,
    /// The server's namespace, or the service's when no endpoint was chosen; empty outside the mesh.
    pub destination_namespace: Arc<str>,
    /// Name of the service that was dialled; empty when it was a pod or an address outside the mesh.
    pub destination_service: Arc<str>,
    /// The way the bytes took.
    pub path: Path,
}

/// Names of the labels of [`ConnectionLabels`], in order.
pub(super) const CONNECTION_LABEL_NAMES: [&str; 7] = [
    "reporter",
    "source_workload",
    "source_namespace",
    "destination_workload",
    "destination_namespace",
    "destination_service",
    "path",
];

impl ConnectionLabels {
    /// The labels of a connection between these two; `None` stands for a peer outside the mesh.
    pub fn new(
        reporter: Reporter,
        path: Path,
        source: Option<&Workload>,
        destination: Option<&Workload>,
        service: Option<&ServiceName>,
    ) -> Self {
        let (source_workload, source_namespace) = owner(source);
        let (destination_workload, mut destination_namespace) = owner(destination);
        if let (None, Some(service)) = (destination, service) {
            destination_namespace = service.namespace.clone();
        }
        Self {
            reporter,
            source_workload,
            source_namespace,
            destination_workload,
            destination_namespace,
            destination_service: service.map_or_else(|| NONE.clone(), |service| service.name.clone()),
            path,
        }
    }

    /// What is left of the labels beyond the bound: who tells and the path stay, the names become `other`.
    pub(super) fn folded(&self) -> Self {
        Self {
            reporter: self.reporter,
            source_workload: OTHER.clone(),
            source_namespace: OTHER.clone(),
            destination_workload: OTHER.clone(),
            destination_namespace: OTHER.clone(),
            destination_service: OTHER.clone(),
            path: self.path,
        }
    }
}

fn owner(workload: Option<&Workload>) -> (Arc<str>, Arc<str>) {
    match workload {
        Some(workload) => (workload.owner.clone(), workload.name.namespace.clone()),
        None => (UNKNOWN.clone(), NONE.clone()),
    }
}
