//! What is asked of the API: one entry per kind, with its addresses and how much of each object is wanted.

use crate::discovery::objects::Kind;
use crate::discovery::objects::read::route_versions;
use crate::model::RouteKind;

/// One kind as the API serves it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Resource {
    pub(super) kind: Kind,
    /// API group; empty for the core.
    group: &'static str,
    /// Versions that can be read, the preferred one first.
    pub(super) versions: &'static [&'static str],
    /// Last part of the path.
    plural: &'static str,
    /// Ask for metadata alone: labels, annotations and existence are all that the mesh takes.
    pub(super) metadata_only: bool,
    /// What to do when the API does not serve it.
    pub(super) absence: Absence,
}

/// What it means that the API does not serve a kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Absence {
    /// Nothing: who has no such objects needs no such kind.
    Fine,
    /// Something is not installed, and this is what to do.
    Wrong(&'static str),
}

const INSTALL: Absence = Absence::Wrong("install Weft's CustomResourceDefinitions (deploy/crds)");
const TOO_OLD: Absence = Absence::Wrong("the API server is too old or leaves out a part of its core");

/// Everything that is asked for.
pub(super) const RESOURCES: [Resource; 12] = [
    metadata(Kind::Namespace, "namespaces"),
    metadata(Kind::Node, "nodes"),
    metadata(Kind::ServiceAccount, "serviceaccounts"),
    full(Kind::Pod, "", &["v1"], "pods", TOO_OLD),
    full(Kind::Service, "", &["v1"], "services", TOO_OLD),
    full(Kind::EndpointSlice, "discovery.k8s.io", &["v1"], "endpointslices", TOO_OLD),
    route(RouteKind::Http, "httproutes"),
    route(RouteKind::Grpc, "grpcroutes"),
    route(RouteKind::Tls, "tlsroutes"),
    route(RouteKind::Tcp, "tcproutes"),
    full(Kind::MeshConfig, "weft.dev", &["v1alpha1"], "meshconfigs", INSTALL),
    full(Kind::AuthorizationPolicy, "weft.dev", &["v1alpha1"], "authorizationpolicies", INSTALL),
];

const fn metadata(kind: Kind, plural: &'static str) -> Resource {
    Resource { metadata_only: true, ..full(kind, "", &["v1"], plural, TOO_OLD) }
}

const fn full(
    kind: Kind,
    group: &'static str,
    versions: &'static [&'static str],
    plural: &'static str,
    absence: Absence,
) -> Resource {
    Resource { kind, group, versions, plural, metadata_only: false, absence }
}

const fn route(kind: RouteKind, plural: &'static str) -> Resource {
    let versions = route_versions(kind);
    full(Kind::Route(kind), "gateway.networking.k8s.io", versions, plural, Absence::Fine)
}

impl Resource {
    /// Path of all objects of the cluster, in one of [`Resource::versions`].
    pub(super) fn path(&self, version: &str) -> String {
        match self.group {
            "" => format!("/api/{version}/{}", self.plural),
            group => format!("/apis/{group}/{version}/{}", self.plural),
        }
    }

    /// `Accept` for a list.
    pub(super) fn accept_list(&self) -> &'static str {
        if self.metadata_only {
            "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json"
        } else {
            "application/json"
        }
    }

    /// `Accept` for a watch.
    pub(super) fn accept_watch(&self) -> &'static str {
        if self.metadata_only {
            "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json"
        } else {
            "application/json"
        }
    }
}
