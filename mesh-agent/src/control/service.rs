//! One call of the certificate service: who asks, for what, may they, and the answer.
//!
//! Nothing of the signing request is believed but its key. Every refusal has a gRPC code, a message that names the rule
//! that failed, and a counter.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tonic::{Code, Request, Response, Status};

use super::admission::{self, Denial};
use super::ca::{Authority, RequestedKey, pems};
use super::callers::{Callers, Unknown};
use super::limits::Limits;
use super::reports::desk::Desk;
use crate::identity::wire::{CertificateRequest, CertificateResponse};
use crate::lifecycle::clock;
use crate::model::identity::InvalidSpiffeId;
use crate::model::{SpiffeId, TrustDomain};
use crate::registry::Registry;

/// Shortest lifetime that is signed. Anything less would be over before it arrived.
const LIFETIME_MIN: Duration = Duration::from_secs(1);

/// Longest SPIFFE id, in bytes (SPIFFE-ID specification section 2.3). Refusals repeat the id, and must fit in a header.
const SPIFFE_ID_LEN_MAX: usize = 2048;

/// What the service decides with.
#[derive(Debug)]
pub struct Service {
    pub(super) trust_domain: TrustDomain,
    pub(super) authority: ArcSwap<Authority>,
    pub(super) callers: Callers,
    pub(super) registry: Registry,
    pub(super) limits: Mutex<Limits>,
    pub(super) stats: Arc<Stats>,
    pub(super) desk: Arc<Desk>,
}

/// How many requests were answered how.
#[derive(Debug, Default)]
pub struct Stats {
    issued: AtomicU64,
    bad_token: AtomicU64,
    bad_request: AtomicU64,
    trust_domain: AtomicU64,
    id_shape: AtomicU64,
    no_pod_on_node: AtomicU64,
    rate_limited: AtomicU64,
    unavailable: AtomicU64,
    internal: AtomicU64,
}

/// [`Stats`] at one time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Certificates signed.
    pub issued: u64,
    /// No token, or one that names no node.
    pub bad_token: u64,
    /// The request, its id or its lifetime is malformed.
    pub bad_request: u64,
    /// An id of another trust domain.
    pub trust_domain: u64,
    /// An id that is not a service account's.
    pub id_shape: u64,
    /// No pod of that account is on the node.
    pub no_pod_on_node: u64,
    /// The node asked too often.
    pub rate_limited: u64,
    /// It cannot be known now who asks.
    pub unavailable: u64,
    /// The CA could not sign.
    pub internal: u64,
}

impl Stats {
    /// The numbers now.
    pub fn counts(&self) -> Counts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            issued: read(&self.issued),
            bad_token: read(&self.bad_token),
            bad_request: read(&self.bad_request),
            trust_domain: read(&self.trust_domain),
            id_shape: read(&self.id_shape),
            no_pod_on_node: read(&self.no_pod_on_node),
            rate_limited: read(&self.rate_limited),
            unavailable: read(&self.unavailable),
            internal: read(&self.internal),
        }
    }
}

impl Counts {
    /// Refusals by stable label, for metrics.
    pub fn refused(&self) -> [(&'static str, u64); 8] {
        [
            ("bad_token", self.bad_token),
            ("bad_request", self.bad_request),
            ("trust_domain", self.trust_domain),
            ("id_shape", self.id_shape),
            ("no_pod_on_node", self.no_pod_on_node),
            ("rate_limited", self.rate_limited),
            ("unavailable", self.unavailable),
            ("internal", self.internal),
        ]
    }
}

/// Why a request is refused.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("{0}")]
    BadToken(String),
    #[error("{0}")]
    Unavailable(String),
    #[error("{0}")]
    BadRequest(String),
    #[error(transparent)]
    Denied(#[from] Denial),
    #[error("rate: node {0} asks too often")]
    RateLimited(Arc<str>),
    #[error("the CA cannot sign now")]
    Internal,
}

impl From<Unknown> for Refusal {
    fn from(unknown: Unknown) -> Self {
        match unknown {
            Unknown::Refused(why) => Self::BadToken(why),
            Unknown::Unavailable(why) => Self::Unavailable(why),
        }
    }
}

impl Refusal {
    fn code(&self) -> Code {
        match self {
            Self::BadToken(_) => Code::Unauthenticated,
            Self::Unavailable(_) => Code::Unavailable,
            Self::BadRequest(_) => Code::InvalidArgument,
            Self::Denied(_) => Code::PermissionDenied,
            Self::RateLimited(_) => Code::ResourceExhausted,
            Self::Internal => Code::Internal,
        }
    }

    fn counter<'a>(&self, stats: &'a Stats) -> &'a AtomicU64 {
        match self {
            Self::BadToken(_) => &stats.bad_token,
            Self::Unavailable(_) => &stats.unavailable,
            Self::BadRequest(_) => &stats.bad_request,
            Self::Denied(Denial::TrustDomain { .. }) => &stats.trust_domain,
            Self::Denied(Denial::Shape(_)) => &stats.id_shape,
            Self::Denied(Denial::NoPodOnNode { .. }) => &stats.no_pod_on_node,
            Self::RateLimited(_) => &stats.rate_limited,
            Self::Internal => &stats.internal,
        }
    }
}

impl Service {
    /// Answers one call that came from `peer`. Does no I/O but to find out who asks.
    ///
    /// # Errors
    /// `UNAUTHENTICATED`, `INVALID_ARGUMENT`, `PERMISSION_DENIED`, `RESOURCE_EXHAUSTED`, `UNAVAILABLE` or `INTERNAL`, with
    /// a message.
    pub async fn create_certificate(
        &self,
        request: &Request<CertificateRequest>,
        peer: SocketAddr,
    ) -> Result<Response<CertificateResponse>, Status> {
        let authorization = request.metadata().get("authorization").and_then(|value| value.to_str().ok());
        let node = self.callers.node_of(authorization.and_then(bearer)).await;
        let answer = match &node {
            Ok(node) => self.certify(node, request.get_ref()),
            Err(unknown) => Err(unknown.clone().into()),
        };
        answer.map(Response::new).map_err(|refusal| {
            refusal.counter(&self.stats).fetch_add(1, Ordering::Relaxed);
            // What was asked for stands in the refusal where it is well formed; strangers' text is not repeated.
            tracing::warn!(%peer, node = node.as_deref().ok(), %refusal, "certificate refused");
            Status::new(refusal.code(), refusal.to_string())
        })
    }

    fn certify(&self, node: &Arc<str>, request: &CertificateRequest) -> Result<CertificateResponse, Refusal> {
        if !self.limits.lock().admit(node, clock::now()) {
            return Err(Refusal::RateLimited(node.clone()));
        }
        let key =
            RequestedKey::from_pem(&request.csr).map_err(|error| Refusal::BadRequest(error.to_string()))?;
        let id = wanted_id(request)?;
        let snapshot = self.registry.snapshot();
        admission::may_have(&snapshot, &self.trust_domain, node, &id)?;
        let lifetime = lifetime(request.validity_duration, snapshot.config.certificate_ttl)?;
        let authority = self.authority.load();
        let leaf = authority.sign_svid(&id, &key, lifetime).map_err(|error| {
            tracing::error!(%error, "cannot sign");
            Refusal::Internal
        })?;
        self.stats.issued.fetch_add(1, Ordering::Relaxed);
        tracing::info!(%node, %id, ?lifetime, "certificate issued");
        let leaf = pems::certificate_pem(&leaf);
        let cert_chain = std::iter::once(leaf).chain(authority.chain_pem()).collect();
        Ok(CertificateResponse { cert_chain })
    }
}

/// The token in the header `authorization`.
pub(super) fn bearer(authorization: &str) -> Option<&str> {
    authorization.strip_prefix("Bearer ")
}

/// A node has no identity of its own, so it must say whose it wants.
fn wanted_id(request: &CertificateRequest) -> Result<SpiffeId, Refusal> {
    let refused = |what: &str| Refusal::BadRequest(format!("metadata ImpersonatedIdentity {what}"));
    let text = request.impersonated_identity().ok_or_else(|| refused("is missing"))?;
    if text.len() > SPIFFE_ID_LEN_MAX {
        return Err(refused("is too long"));
    }
    text.parse().map_err(|error: InvalidSpiffeId| refused(&format!("is malformed: {error}")))
}

/// The wanted lifetime, at most `lifetime_max`; 0 leaves it to us.
fn lifetime(wanted_seconds: i64, lifetime_max: Duration) -> Result<Duration, Refusal> {
    let negative = |_| Refusal::BadRequest(format!("validity_duration {wanted_seconds} is negative"));
    let wanted = match u64::try_from(wanted_seconds).map_err(negative)? {
        0 => lifetime_max,
        seconds => Duration::from_secs(seconds).min(lifetime_max),
    };
    Ok(wanted.max(LIFETIME_MIN))
}
