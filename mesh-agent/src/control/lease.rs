//! Which replica leads? A Lease (`coordination.k8s.io/v1`), by the rules of client-go.
//!
//! - A holder renews every [`RETRY`]. One that could not for [`RENEW_LIMIT`] stops leading by itself, before others may
//!   take over, which they may when they have seen no renewal for [`DURATION`].
//! - Only the local monotonic clock counts: a record is old when *we* have seen it unchanged for so long. The times in the
//!   record are for people. Clocks that differ between nodes decide nothing.
//! - Every write carries the resourceVersion that was read, so of two candidates one fails.
//! - A holder that stops gives the Lease back.
//!
//! The crates for this compare the record's time with the local wall clock, or pin other versions of `kube`; hence a
//! small one of our own. Leading is a matter of economy here, not of safety: what a leader writes carries
//! resourceVersions or is the same whoever writes it.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use tokio::sync::watch;

use super::cluster::labels;
use crate::lifecycle::{Shutdown, clock};

/// How long a Lease holds after its last renewal.
pub const DURATION: Duration = Duration::from_secs(15);
/// How long a holder goes on leading without a renewal that succeeds.
pub const RENEW_LIMIT: Duration = Duration::from_secs(10);
/// Pause between attempts to renew or to take over.
pub const RETRY: Duration = Duration::from_secs(2);

/// The Lease's name.
pub const NAME: &str = "weft-control";

/// Annotation of the Lease: where the holder serves. Agents that ask another replica are sent there.
pub const ADDRESS: &str = "weft.dev/address";

/// Where this process serves, once that is known.
pub type Address = Arc<OnceLock<Box<dyn Fn() -> Option<SocketAddr> + Send + Sync>>>;

/// One candidate.
pub(super) struct Candidate {
    api: Api<Lease>,
    namespace: String,
    identity: String,
    /// The record as last seen, and since when it is like this.
    seen: Option<(LeaseSpec, Instant)>,
    leader: watch::Sender<bool>,
    renewed_at: Option<Instant>,
    address: Address,
    /// Where another holder serves.
    elsewhere: watch::Sender<Option<SocketAddr>>,
}

/// What one attempt came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Held,
    Another,
}

impl Candidate {
    /// A candidate under this name, and where it says whether it leads.
    pub(super) fn new(client: &Client, namespace: &str, identity: &str) -> (Self, watch::Receiver<bool>) {
        let (leader, leads) = watch::channel(false);
        let (namespace, identity) = (namespace.to_owned(), identity.to_owned());
        let api = Api::namespaced(client.clone(), &namespace);
        let (address, elsewhere) = (Address::default(), watch::Sender::new(None));
        let (seen, renewed_at) = (None, None);
        (Self { api, namespace, identity, seen, leader, renewed_at, address, elsewhere }, leads)
    }

    /// Where this process serves is to be put there; it is written with the next renewal.
    pub(super) fn address(&self) -> Address {
        self.address.clone()
    }

    /// Tells where another holder serves.
    pub(super) fn elsewhere(&self) -> watch::Receiver<Option<SocketAddr>> {
        self.elsewhere.subscribe()
    }

    /// Stands for election until shutdown, then gives back what it holds.
    pub(super) async fn run(mut self, shutdown: Shutdown) {
        loop {
            self.attempt().await;
            tokio::select! {
                () = shutdown.requested() => break,
                () = tokio::time::sleep(RETRY.mul_f64(0.9 + fastrand::f64() / 5.0)) => {}
            }
        }
        self.release().await;
    }

    async fn attempt(&mut self) {
        // An answer that comes after the time is up must not be taken for a renewal.
        let limit = match self.renewed_at.filter(|_| *self.leader.borrow()) {
            Some(at) => RENEW_LIMIT.saturating_sub(clock::now().saturating_duration_since(at)),
            None => RENEW_LIMIT,
        };
        let asked_at = clock::now();
        match tokio::time::timeout(limit, self.try_hold()).await {
            Ok(Ok(Outcome::Held)) => {
                self.renewed_at = Some(asked_at);
                self.say(true);
            }
            Ok(Ok(Outcome::Another)) => self.say(false),
            Ok(Err(error)) => {
                tracing::debug!(%error, "the Lease could not be renewed or looked at");
                self.give_up_when_late();
            }
            Err(_elapsed) => self.give_up_when_late(),
        }
    }

    fn give_up_when_late(&self) {
        let late = |at: Instant| clock::now().saturating_duration_since(at) >= RENEW_LIMIT;
        if self.renewed_at.is_none_or(late) {
            self.say(false);
        }
    }

    fn say(&self, leads: bool) {
        let changed = self.leader.send_if_modified(|before| std::mem::replace(before, leads) != leads);
        if changed && leads {
            tracing::info!(identity = self.identity, "this replica leads");
        } else if changed {
            tracing::info!(identity = self.identity, "this replica does not lead any more");
        }
    }

    /// Reads the record, and writes it where it is ours, nobody's or too old.
    async fn try_hold(&mut self) -> Result<Outcome, kube::Error> {
        let Some(found) = self.api.get_opt(NAME).await? else {
            let created = self.api.create(&PostParams::default(), &self.lease(None)).await;
            return self.written(created);
        };
        let spec = found.spec.clone().unwrap_or_default();
        if self.seen.as_ref().is_none_or(|(before, _)| *before != spec) {
            self.seen = Some((spec.clone(), clock::now()));
        }
        let holder = spec.holder_identity.as_deref().unwrap_or_default();
        if !holder.is_empty() && holder != self.identity && !self.is_old(&spec) {
            let written = found.metadata.annotations.as_ref().and_then(|all| all.get(ADDRESS));
            self.elsewhere.send_replace(written.and_then(|address| address.parse().ok()));
            return Ok(Outcome::Another);
        }
        self.elsewhere.send_replace(None);
        let replaced = self.api.replace(NAME, &PostParams::default(), &self.lease(Some(&found))).await;
        self.written(replaced)
    }

    /// Who comes too late has lost, which is no error.
    fn written(&mut self, answer: Result<Lease, kube::Error>) -> Result<Outcome, kube::Error> {
        match answer {
            Ok(lease) => {
                self.seen = lease.spec.map(|spec| (spec, clock::now()));
                Ok(Outcome::Held)
            }
            Err(kube::Error::Api(status)) if status.is_conflict() || status.is_already_exists() => {
                Ok(Outcome::Another)
            }
            Err(error) => Err(error),
        }
    }

    fn is_old(&self, spec: &LeaseSpec) -> bool {
        let seconds = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
        let lasts = seconds.map_or(DURATION, Duration::from_secs);
        let seen_at = self.seen.as_ref().map(|(_, at)| *at);
        seen_at.is_some_and(|at| clock::now().saturating_duration_since(at) >= lasts)
    }

    /// The record that makes us the holder.
    fn lease(&self, before: Option<&Lease>) -> Lease {
        let now = MicroTime(Timestamp::try_from(clock::wall()).unwrap_or_default());
        let old = before.and_then(|lease| lease.spec.clone()).unwrap_or_default();
        let stays = old.holder_identity.as_deref() == Some(&self.identity);
        let mut metadata = before.map_or_else(
            || ObjectMeta {
                namespace: Some(self.namespace.clone()),
                name: Some(NAME.to_owned()),
                labels: Some(labels()),
                ..ObjectMeta::default()
            },
            |lease| lease.metadata.clone(),
        );
        let annotations = metadata.annotations.get_or_insert_default();
        match self.address.get().and_then(|address| address()) {
            Some(address) => drop(annotations.insert(ADDRESS.to_owned(), address.to_string())),
            None => drop(annotations.remove(ADDRESS)),
        }
        let transitions = old.lease_transitions.unwrap_or(0) + i32::from(before.is_some() && !stays);
        Lease {
            metadata,
            spec: Some(LeaseSpec {
                holder_identity: Some(self.identity.clone()),
                lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
                acquire_time: old.acquire_time.filter(|_| stays).or_else(|| Some(now.clone())),
                renew_time: Some(now),
                lease_transitions: Some(transitions),
                ..LeaseSpec::default()
            }),
        }
    }

    /// Lets the others take over at once.
    async fn release(&mut self) {
        if !*self.leader.borrow() {
            return;
        }
        self.say(false);
        let given_back = async {
            let Some(mut found) = self.api.get_opt(NAME).await? else { return Ok(()) };
            let spec = found.spec.get_or_insert_default();
            if spec.holder_identity.as_deref() != Some(&self.identity) {
                return Ok(());
            }
            spec.holder_identity = Some(String::new());
            spec.lease_duration_seconds = Some(1);
            self.api.replace(NAME, &PostParams::default(), &found).await.map(drop)
        };
        match tokio::time::timeout(RETRY, given_back).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(%error, "the Lease could not be given back; it runs out by itself")
            }
            Err(_elapsed) => {
                tracing::warn!("the Lease could not be given back in time; it runs out by itself")
            }
        }
    }
}
