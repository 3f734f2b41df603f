//! Whose connection or request it was: the labels that all connection metrics share, and those of all request metrics.
//!
//! The workload label is the *owner* (the Deployment's name), never the pod, so that the number of series follows what
//! people deploy and not how often pods restart.

use std::sync::{Arc, LazyLock};

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};

use super::outcome::Protocol;
use crate::model::{Path, RouteName, ServiceName, Workload};

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
        let (destination_workload, destination_namespace, destination_service) = server(destination, service);
        Self {
            reporter,
            source_workload,
            source_namespace,
            destination_workload,
            destination_namespace,
            destination_service,
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

/// The labels of one kind of request. The field order is the order in the exposition.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RequestLabels {
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
    /// Name of the service that the request was for; empty when it was a pod or an address outside the mesh.
    pub destination_service: Arc<str>,
    /// The route that matched, as `HTTPRoute/shop/orders`; empty when none did.
    pub route: Arc<str>,
    /// What is spoken.
    pub protocol: Protocol,
}

/// Names of the labels of [`RequestLabels`], in order.
pub(super) const REQUEST_LABEL_NAMES: [&str; 8] = [
    "reporter",
    "source_workload",
    "source_namespace",
    "destination_workload",
    "destination_namespace",
    "destination_service",
    "route",
    "protocol",
];

impl RequestLabels {
    /// The labels of a request between these two; `None` stands for a peer outside the mesh, and for no route.
    pub fn new(
        reporter: Reporter,
        source: Option<&Workload>,
        destination: Option<&Workload>,
        service: Option<&ServiceName>,
        route: Option<&RouteName>,
        protocol: Protocol,
    ) -> Self {
        let (source_workload, source_namespace) = owner(source);
        let (destination_workload, destination_namespace, destination_service) = server(destination, service);
        Self {
            reporter,
            source_workload,
            source_namespace,
            destination_workload,
            destination_namespace,
            destination_service,
            route: route.map_or_else(|| NONE.clone(), |route| route.to_string().into()),
            protocol,
        }
    }

    /// What is left of the labels beyond the bound: who tells and the protocol stay, the names become `other`.
    pub(super) fn folded(&self) -> Self {
        Self {
            reporter: self.reporter,
            source_workload: OTHER.clone(),
            source_namespace: OTHER.clone(),
            destination_workload: OTHER.clone(),
            destination_namespace: OTHER.clone(),
            destination_service: OTHER.clone(),
            route: OTHER.clone(),
            protocol: self.protocol,
        }
    }
}

/// Owner, namespace and service at the server's side.
fn server(workload: Option<&Workload>, service: Option<&ServiceName>) -> (Arc<str>, Arc<str>, Arc<str>) {
    let (owner, mut namespace) = owner(workload);
    if let (None, Some(service)) = (workload, service) {
        namespace = service.namespace.clone();
    }
    (owner, namespace, service.map_or_else(|| NONE.clone(), |service| service.name.clone()))
}

fn owner(workload: Option<&Workload>) -> (Arc<str>, Arc<str>) {
    match workload {
        Some(workload) => (workload.owner.clone(), workload.name.namespace.clone()),
        None => (UNKNOWN.clone(), NONE.clone()),
    }
}
