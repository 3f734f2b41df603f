//! The nouns of the mesh: what a workload, a service, an identity and a policy *are*.
//!
//! Layer 0: no I/O, no clock, no async, and no knowledge of where the values came from. Every other room speaks in
//! these types, so a word means the same thing in the kernel glue, the proxy, the metrics and the docs.
//!
//! Reading order: [`address`], [`identity`], [`workload`], [`service`], [`path`], [`authorization`], [`route`],
//! [`mesh`], [`ending`], [`version`].
#![forbid(unsafe_code)]

pub mod address;
pub mod authorization;
pub mod ending;
pub mod identity;
pub mod mesh;
pub mod path;
pub mod route;
pub mod service;
pub mod version;
pub mod workload;

pub use address::{ClientAddr, EndpointAddr, OriginalDst, canonical_ip, canonical_socket_addr};
pub use authorization::{
    Action, AuthorizationPolicy, GrpcMethod, HeaderCondition, HeaderPattern, HttpMatch, PathPattern,
    PolicyName, Requirement, Rule, Selector, Source,
};
pub use ending::{Ending, Path, Side};
pub use identity::{SpiffeId, TrustDomain};
pub use mesh::{DefaultInbound, MeshConfig};
pub use path::{PathFault, RequestPath};
pub use route::{
    BackendTarget, Cors, Filter, HeaderEdit, HeaderMatch, Mirror, PathEdit, PathMatch, QueryMatch, Redirect,
    RequestMatch, Rewrite, Route, RouteBackend, RouteKind, RouteName, RouteRule, RouteTimeouts, StringMatch,
};
pub use service::{
    AppProtocol, Endpoint, EndpointState, Service, ServiceName, ServicePort, TrafficDistribution,
};
pub use version::{Generations, Publication, Versions};
pub use workload::{FailureMode, Workload, WorkloadName, WorkloadPort, WorkloadUid};
