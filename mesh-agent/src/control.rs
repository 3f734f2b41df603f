//! The control plane: signs SVIDs for the nodes of the mesh.
//!
//! Layer 6, one process per mesh, or several replicas in a cluster. It answers one question: may this node have this
//! identity, and if so, what is its certificate? A node proves itself with a join token, or with the token of its agent's
//! pod; it gets only the identities of service accounts that have a pod on it. A stolen node can therefore speak for its
//! own pods and for nobody else.
//!
//! In a cluster it also says on the objects what became of them, and on how many nodes they are in force.
//!
//! It never sees a private key of a workload, is not on the path of any connection, and its absence is noticed only
//! when certificates run out.
//!
//! Reading order: [`admission`] (the rule), [`callers`], [`tokens`] and [`review`] (who is asking), [`limits`] (how
//! often), [`ca`] (keys, signing, root rotation), [`service`] (one call), [`reports`] (what is in force on nodes), [`server`] (the listener), `files` (standalone:
//! following files that change), [`cluster`] (following a Secret), `bundle` (roots as a ConfigMap), [`lease`] (who leads),
//! `follow` (list and watch), [`status`] (conditions on objects).
#![forbid(unsafe_code)]

pub mod admission;
pub mod bundle;
pub mod ca;
pub mod callers;
pub mod cluster;
mod files;
mod follow;
pub mod lease;
pub mod limits;
pub mod reports;
pub mod review;
pub mod server;
pub mod service;
pub mod status;
#[cfg(test)]
mod tests;
pub mod tokens;

pub use server::Control;
pub use service::{Counts, Stats};

use std::net::SocketAddr;
use std::path::PathBuf;

use crate::lifecycle::Shutdown;
use crate::model::TrustDomain;
use crate::registry::Registry;

/// What the control plane needs to know in standalone mode.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The trust domain that the CA vouches for.
    pub trust_domain: TrustDomain,
    /// Where the certificate service listens; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Further host names or IPs for the serving certificate, beside `weft-control`, `localhost` and the listening IP.
    pub server_names: Vec<String>,
    /// Directory of the CA's keys. Made at first start.
    pub state_dir: PathBuf,
    /// Directory with one file per node, named after the node, holding its join token.
    pub join_tokens_dir: PathBuf,
    /// Where to publish the roots, PEM; agents read it as `--ca-roots`.
    pub trust_bundle_out: Option<PathBuf>,
}

/// Why the control plane cannot start or a rotation cannot proceed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or directory cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file or directory cannot be written. Nothing half written is left behind.
    #[error("cannot write {path}")]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file with a secret can be read or written by others than its owner.
    #[error("{path} has mode {mode:04o}: a secret must not be open to group or others (chmod 600)")]
    LoosePermissions {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A text of the CA is truncated, or its parts do not belong together.
    #[error("{place} is not usable: {fault}")]
    Authority {
        /// The file, or the Secret and its key.
        place: String,
        /// What is wrong.
        fault: String,
    },
    /// The Kubernetes API is away or refuses.
    #[error("cannot {what}")]
    Api {
        /// What was to be done.
        what: String,
        /// Why it cannot.
        #[source]
        source: Box<kube::Error>,
    },
    /// The Secret with the CA's keys is not there.
    #[error("the Secret {secret} with the CA's keys is not there")]
    NoSecret {
        /// Which.
        secret: String,
    },
    /// The keys belong to another trust domain.
    #[error("{place} belongs to trust domain {found}, not to {expected}")]
    OtherTrustDomain {
        /// The file, or the Secret and its key.
        place: String,
        /// Whose it is.
        found: String,
        /// Whose it should be.
        expected: TrustDomain,
    },
    /// A join token file cannot be used.
    #[error("join token {path}: {fault}")]
    JoinToken {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        fault: tokens::Fault,
    },
    /// A stage of a rotation does not follow from the present one, or comes too soon.
    #[error(transparent)]
    Rotation(#[from] ca::StageRefused),
    /// The listener cannot be opened.
    #[error("cannot listen on {address}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A key or certificate cannot be made.
    #[error("cannot make a certificate")]
    Certificate(#[from] rcgen::Error),
    /// The TLS configuration cannot be made.
    #[error("cannot make the server's TLS configuration")]
    Tls(#[from] crate::identity::Error),
}

/// Opens the control plane and runs it until shutdown.
///
/// # Errors
/// Whatever keeps it from starting; once it runs, it keeps running.
pub async fn serve(settings: Settings, registry: Registry, shutdown: Shutdown) -> Result<(), Error> {
    Control::open(settings, registry)?.run(shutdown).await
}
