//! Mesh-wide settings, from the `MeshConfig` object.

use std::time::Duration;

use super::TrustDomain;

/// What happens to a connection that no policy selects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum DefaultInbound {
    /// Everybody may connect, encrypted or not.
    #[default]
    Permissive,
    /// Only peers with a verified identity.
    Authenticated,
    /// Nobody, until a policy says so.
    Deny,
    /// As permissive, and every connection without a verified identity is recorded.
    Audit,
}

/// Settings of the whole mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeshConfig {
    /// The trust domain of our own CA.
    pub trust_domain: TrustDomain,
    /// Namespace whose policies hold for every namespace.
    pub system_namespace: String,
    /// What happens where no policy selects the pod.
    pub default_inbound: DefaultInbound,
    /// Lifetime of an SVID.
    pub certificate_ttl: Duration,
    /// The fast path between pods of one node: `Some(false)` turns every same-node pair to plain direct TCP, `Some(true)`
    /// vouches for pods that say nothing, `None` leaves those to what the kernel's probes allow.
    pub splice: Option<bool>,
    /// How long a connection to a port that may or may not carry HTTP waits for the client's first bytes, from 0 s (do
    /// not wait: it is not HTTP) to 10 s. Ports without routes and without `http` rules never wait.
    pub protocol_detection_timeout: Duration,
    /// Of requests that come without a trace context, the share for which a trace is begun, in hundredths of a percent:
    /// 0 to 10,000.
    pub trace_sampling_permyriad: u16,
}

impl Default for MeshConfig {
    fn default() -> Self {
        Self {
            trust_domain: "cluster.local".parse().expect("a valid trust domain"),
            system_namespace: "weft-system".to_owned(),
            default_inbound: DefaultInbound::default(),
            certificate_ttl: Duration::from_secs(24 * 3600),
            splice: None,
            protocol_detection_timeout: Duration::from_secs(1),
            trace_sampling_permyriad: 0,
        }
    }
}
