//! Who we are: SVIDs, trust bundles and the rustls configurations made of them.
//!
//! Layer 3, stations 6 (the source proves who it is) and 10 (the destination checks it) of the walk. The room asks the
//! CA for one X.509 SVID per wanted SPIFFE id, renews it in time, follows the trust bundle file, and answers the
//! proxy's question "with which configuration do I speak as this workload?" without a lock. Keys are made here, live in
//! memory only, and go with the last pod that needs them.
//!
//! It never decides whether a peer may connect (that is `policy`), never opens a tunnel (that is `proxy`), and never
//! writes a key anywhere.
//!
//! Reading order: [`peer`] (which id does a chain carry), [`trust`] (which roots vouch for it), [`verify`] (the rustls
//! verifiers and the names of their refusals), [`tls`] (the configurations), [`line`], [`wire`] and [`ca_client`] (the
//! protocol to the CA), [`renewal`] (when), [`keeper`] (the one task that owns it all), [`watch`] (files that change).
#![forbid(unsafe_code)]

pub mod ca_client;
mod keeper;
pub mod line;
pub mod peer;
mod renewal;
pub mod tls;
pub mod trust;
pub mod verify;
pub(crate) mod watch;
pub mod wire;

pub use peer::peer_identity;
pub use verify::refusal_label;

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use rustls::{ClientConfig, ServerConfig};

use crate::lifecycle::{Shutdown, clock, tasks};
use crate::model::{SpiffeId, TrustDomain};
use crate::telemetry::Telemetry;

/// What the room needs to know.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Our own trust domain.
    pub trust_domain: TrustDomain,
    /// Where the CA listens: `host:port` or `https://host:port`.
    pub ca_address: String,
    /// The name in the CA's serving certificate; `None`: the host of `ca_address`. Our own CA answers to
    /// `weft-control`, `localhost` and its listening address.
    pub ca_server_name: Option<String>,
    /// PEM file with all roots of our own trust domain. Read at start, followed while running.
    pub ca_roots: PathBuf,
    /// Foreign trust domains whose workloads may be recognised, each with its own PEM file of roots.
    pub federated_roots: Vec<(TrustDomain, PathBuf)>,
    /// File with the token that proves which node this is. Read again for every request, so it may change.
    pub token_file: PathBuf,
    /// Lifetime to ask for, in whole seconds; the CA may give less.
    pub certificate_ttl: Duration,
}

/// Why the room could not do something.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file of trust roots cannot be used.
    #[error("trust bundle {path}: {fault}")]
    TrustBundle {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        fault: trust::Fault,
    },
    /// The CA's address or server name is not one.
    #[error("CA address {0:?} is not HOST:PORT or https://HOST:PORT")]
    CaAddress(String),
    /// The token file cannot be read.
    #[error("token file {path}")]
    Token {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The token file holds nothing that fits in a header.
    #[error("token file {0} holds no token: one line of printable ASCII is needed")]
    TokenMalformed(PathBuf),
    /// The CA did not answer: connection, TLS or time-out.
    #[error("CA {address} cannot be reached: {message}")]
    CaUnreachable {
        /// Where we tried.
        address: String,
        /// What came of it.
        message: String,
    },
    /// The CA answered with a refusal.
    #[error("CA refused {id}: {code:?}: {message}")]
    CaRefused {
        /// The id that was asked for.
        id: SpiffeId,
        /// gRPC status code.
        code: tonic::Code,
        /// The CA's words.
        message: String,
    },
    /// The CA answered with something that is not the certificate that was asked for.
    #[error("CA's certificate for {id} is not used: {fault}")]
    Issued {
        /// The id that was asked for.
        id: SpiffeId,
        /// What is wrong with it.
        fault: IssuedFault,
    },
    /// A request ended without an answer of any kind: its task panicked (the log says where) or was stopped.
    #[error("the request was lost")]
    RequestLost,
    /// A key or a signing request could not be made.
    #[error("cannot make a key")]
    Key(#[from] rcgen::Error),
    /// rustls refused the parts of a configuration.
    #[error("cannot make a TLS configuration")]
    Tls(#[from] rustls::Error),
    /// A peer showed no certificate.
    #[error("no certificate was presented")]
    NoCertificate,
    /// A certificate cannot be parsed.
    #[error("the certificate is malformed")]
    Malformed,
    /// A certificate does not carry exactly one URI name that is a SPIFFE id.
    #[error("the certificate carries no single SPIFFE id ({found} URI names)")]
    NoSpiffeId {
        /// How many URI names it has.
        found: usize,
    },
}

/// What can be wrong with an issued certificate.
#[derive(Debug, thiserror::Error)]
pub enum IssuedFault {
    /// The chain is empty or not PEM.
    #[error("the answer holds no certificate chain")]
    NoChain,
    /// It names somebody else.
    #[error("it names {0}")]
    WrongId(SpiffeId),
    /// It names nobody.
    #[error("it carries no single SPIFFE id")]
    NoId,
    /// It belongs to another key.
    #[error("it belongs to another key")]
    OtherKey,
    /// Peers with our trust bundle would refuse it.
    #[error("it does not verify against our own trust bundle ({0})")]
    Untrusted(&'static str),
}

/// Facts about a held certificate, for metrics and people. Holds no key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateInfo {
    /// Whose it is.
    pub id: SpiffeId,
    /// Serial number, lower-case hex.
    pub serial: String,
    /// Valid from.
    pub not_before: SystemTime,
    /// Valid until.
    pub not_after: SystemTime,
    /// Distinguished name of the CA that signed it.
    pub issuer: String,
}

/// How often things happened since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Certificates received and taken into use (first ones and renewals).
    pub issued: u64,
    /// Requests to the CA that brought no usable certificate.
    pub failed: u64,
    /// Trust bundles taken into use after the first.
    pub bundle_reloads: u64,
    /// Times that a changed trust bundle was unusable and the last good one was kept.
    pub bundle_failures: u64,
}

/// The identities of this node's pods. Cheap to clone; one background task owns what is behind it.
#[derive(Clone, Debug)]
pub struct Identities {
    shared: Arc<Shared>,
}

/// What readers and the keeper share.
#[derive(Debug)]
struct Shared {
    trust_domain: TrustDomain,
    trust: Arc<trust::Trust>,
    held: ArcSwap<HashMap<SpiffeId, Arc<Held>>>,
    wanted: tokio::sync::watch::Sender<HashSet<SpiffeId>>,
    /// Counts up whenever `held` changes.
    changed: tokio::sync::watch::Sender<u64>,
    tally: Tally,
}

#[derive(Debug, Default)]
struct Tally {
    issued: AtomicU64,
    failed: AtomicU64,
    bundle_reloads: AtomicU64,
    bundle_failures: AtomicU64,
}

/// One SVID in use.
#[derive(Debug)]
struct Held {
    info: CertificateInfo,
    chain: Vec<rustls_pki_types::CertificateDer<'static>>,
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
}

impl Held {
    /// Expired is expired: no skew is added to NotAfter. Clocks that differ are met by the CA, which dates NotBefore
    /// 20 s back.
    fn is_current(&self) -> bool {
        clock::wall() < self.info.not_after
    }
}

/// Reads the trust bundles and starts the task that keeps SVIDs, on the current tokio runtime. `telemetry` is told of
/// every renewal and of when certificates expire.
///
/// # Errors
/// The trust bundle is unusable (names the file), or the CA's address is malformed. An absent CA is no error: the task
/// tries again until it is there.
pub fn start(settings: Settings, telemetry: Telemetry, shutdown: Shutdown) -> Result<Identities, Error> {
    let trust = Arc::new(trust::Trust::load(bundle_files(&settings))?);
    let ca = ca_client::CaClient::new(&settings, trust.clone())?;
    let shared = Arc::new(Shared {
        trust_domain: settings.trust_domain,
        trust,
        held: ArcSwap::default(),
        wanted: tokio::sync::watch::Sender::new(HashSet::new()),
        changed: tokio::sync::watch::Sender::new(0),
        tally: Tally::default(),
    });
    let keeper = keeper::Keeper::new(shared.clone(), ca, telemetry);
    tasks::spawn("identity keeper", keeper.run(shutdown));
    Ok(Identities { shared })
}

fn bundle_files(settings: &Settings) -> Vec<(TrustDomain, PathBuf)> {
    let own = (settings.trust_domain.clone(), settings.ca_roots.clone());
    std::iter::once(own).chain(settings.federated_roots.iter().cloned()).collect()
}

impl Identities {
    /// Says which identities this node needs. New ones are fetched at once; key and certificate of the others are
    /// dropped (connections that are open with them go on).
    pub fn set_wanted(&self, wanted: HashSet<SpiffeId>) {
        self.shared.wanted.send_if_modified(|current| {
            let differs = *current != wanted;
            if differs {
                *current = wanted;
            }
            differs
        });
    }

    /// For dialling as `id`. `None`: there is no certificate (yet), or it has expired.
    pub fn client_config(&self, id: &SpiffeId) -> Option<Arc<ClientConfig>> {
        let held = self.shared.held.load();
        held.get(id).filter(|held| held.is_current()).map(|held| held.client.clone())
    }

    /// For accepting as `id`. `None`: there is no certificate (yet), or it has expired.
    pub fn server_config(&self, id: &SpiffeId) -> Option<Arc<ServerConfig>> {
        let held = self.shared.held.load();
        held.get(id).filter(|held| held.is_current()).map(|held| held.server.clone())
    }

    /// Waits until there is a valid certificate for `id`; false when `limit` passed first. Cancel safe.
    pub async fn wait_for(&self, id: &SpiffeId, limit: Duration) -> bool {
        let mut changed = self.shared.changed.subscribe();
        let there = async {
            while self.client_config(id).is_none() {
                // The sender lives in `shared`, which `self` holds: this cannot fail.
                if changed.changed().await.is_err() {
                    return;
                }
            }
        };
        tokio::time::timeout(limit, there).await.is_ok() && self.client_config(id).is_some()
    }

    /// What is held now, sorted by id.
    pub fn certificates(&self) -> Vec<CertificateInfo> {
        let mut infos: Vec<_> = self.shared.held.load().values().map(|held| held.info.clone()).collect();
        infos.sort_by(|a, b| a.id.cmp(&b.id));
        infos
    }

    /// The roots, for another line to the CA.
    pub fn trust(&self) -> Arc<trust::Trust> {
        self.shared.trust.clone()
    }

    /// Our own trust domain.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.shared.trust_domain
    }

    /// How often things happened since the start.
    pub fn counts(&self) -> Counts {
        let tally = &self.shared.tally;
        Counts {
            issued: tally.issued.load(Ordering::Relaxed),
            failed: tally.failed.load(Ordering::Relaxed),
            bundle_reloads: tally.bundle_reloads.load(Ordering::Relaxed),
            bundle_failures: tally.bundle_failures.load(Ordering::Relaxed),
        }
    }
}
