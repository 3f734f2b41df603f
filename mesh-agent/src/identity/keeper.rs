//! The one task that owns the SVIDs: it fetches, renews, drops, and follows the trust bundle.
//!
//! Nothing else writes what [`super::Identities`] reads. Requests to the CA run beside it, a bounded number at a time,
//! and report back over a channel.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::mpsc;
use x509_parser::prelude::X509Certificate;

use super::ca_client::{CaClient, Svid};
use super::verify::Verifier;
use super::watch::DirWatch;
use super::{CertificateInfo, Error, Held, Shared, peer, renewal, tls};
use crate::lifecycle::{Shutdown, clock, tasks};
use crate::model::SpiffeId;
use crate::telemetry::{Renewal, Telemetry};

/// Requests to the CA at one time. A node with 200 pods starts in 25 rounds; the CA sees eight at most from each node.
const REQUESTS_MAX: usize = 8;

/// Longest sleep. The wall clock may jump (a suspended machine, a corrected clock), and the timer does not hear of it.
const SLEEP_MAX: Duration = Duration::from_secs(30);

/// What happens next for one wanted id.
#[derive(Clone, Copy, Debug)]
enum Next {
    /// A request is under way.
    Answer,
    /// Ask again after a failure, or for the first time.
    Ask(Instant),
    /// Renew the certificate in use.
    Renew(SystemTime),
}

#[derive(Debug)]
struct Entry {
    next: Next,
    failures: u32,
}

type Outcome = (SpiffeId, Result<Svid, Error>);

pub(super) struct Keeper {
    shared: Arc<Shared>,
    ca: Arc<CaClient>,
    verifier: Arc<Verifier>,
    entries: HashMap<SpiffeId, Entry>,
    in_flight: usize,
    files: DirWatch,
    outcomes: (mpsc::Sender<Outcome>, mpsc::Receiver<Outcome>),
    telemetry: Telemetry,
}

impl Keeper {
    pub(super) fn new(shared: Arc<Shared>, ca: CaClient, telemetry: Telemetry) -> Self {
        let verifier = Arc::new(Verifier::new(shared.trust.clone()));
        let files = DirWatch::of_files(shared.trust.paths());
        let outcomes = mpsc::channel(REQUESTS_MAX);
        let (ca, entries) = (Arc::new(ca), HashMap::new());
        Self { shared, ca, verifier, entries, in_flight: 0, files, outcomes, telemetry }
    }

    /// Runs until shutdown.
    pub(super) async fn run(mut self, shutdown: Shutdown) {
        let mut wanted = self.shared.wanted.subscribe();
        wanted.mark_changed();
        loop {
            let pause = self.start_what_is_due();
            tokio::select! {
                () = shutdown.requested() => return,
                Ok(()) = wanted.changed() => {
                    let now_wanted = wanted.borrow_and_update().clone();
                    self.want(&now_wanted);
                }
                Some((id, outcome)) = self.outcomes.1.recv() => {
                    self.in_flight -= 1;
                    self.settle(id, outcome);
                }
                () = self.files.changed() => self.follow_bundle(),
                () = tokio::time::sleep(pause) => self.drop_expired(),
            }
        }
    }

    fn want(&mut self, wanted: &HashSet<SpiffeId>) {
        for (id, _) in self.entries.extract_if(|id, _| !wanted.contains(id)) {
            self.telemetry.certificate_dropped(id.as_str());
        }
        let now = clock::now();
        for id in wanted {
            self.entries.entry(id.clone()).or_insert(Entry { next: Next::Ask(now), failures: 0 });
        }
        self.replace_held(|held| held.retain(|id, _| wanted.contains(id)));
    }

    /// Starts requests whose time has come, as many as may run, and says how long to sleep.
    fn start_what_is_due(&mut self) -> Duration {
        let (now, wall) = (clock::now(), clock::wall());
        let mut pause = SLEEP_MAX;
        for (id, entry) in &mut self.entries {
            let wait = match entry.next {
                Next::Answer => continue,
                Next::Ask(at) => at.saturating_duration_since(now),
                Next::Renew(at) => at.duration_since(wall).unwrap_or_default(),
            };
            if !wait.is_zero() {
                pause = pause.min(wait);
            } else if self.in_flight < REQUESTS_MAX {
                entry.next = Next::Answer;
                self.in_flight += 1;
                request(self.ca.clone(), id.clone(), self.outcomes.0.clone());
            }
        }
        let expiries = self.shared.held.load();
        let next_expiry =
            expiries.values().filter_map(|held| held.info.not_after.duration_since(wall).ok()).min();
        // The timer counts whole milliseconds; one more, so that it never wakes just before its time.
        pause.min(next_expiry.unwrap_or(SLEEP_MAX)) + Duration::from_millis(1)
    }

    fn settle(&mut self, id: SpiffeId, outcome: Result<Svid, Error>) {
        // Not wanted any more, or wanted again meanwhile and asked for anew: the newer request decides.
        let Some(entry) = self.entries.get_mut(&id).filter(|entry| matches!(entry.next, Next::Answer)) else {
            return;
        };
        match outcome.and_then(|svid| held(&id, svid, &self.verifier)) {
            Ok(held) => {
                let remaining = held.info.not_after.duration_since(clock::wall()).unwrap_or_default();
                entry.failures = 0;
                entry.next = Next::Renew(clock::wall() + renewal::renew_after(remaining, fastrand::f64()));
                self.shared.tally.issued.fetch_add(1, Ordering::Relaxed);
                self.telemetry.certificate_renewed(Renewal::Success);
                self.telemetry.certificate_expires(id.as_str(), held.info.not_after);
                tracing::debug!(%id, serial = held.info.serial, ?remaining, "certificate in use");
                self.replace_held(|all| {
                    all.insert(id, Arc::new(held));
                });
            }
            Err(error) => {
                entry.failures = entry.failures.saturating_add(1);
                let pause = renewal::retry_after(entry.failures, fastrand::f64());
                entry.next = Next::Ask(clock::now() + pause);
                self.shared.tally.failed.fetch_add(1, Ordering::Relaxed);
                self.telemetry.certificate_renewed(renewal_result(&error));
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                tracing::warn!(%id, %error, cause, failures = entry.failures, ?pause, "no certificate");
            }
        }
    }

    fn follow_bundle(&mut self) {
        match self.shared.trust.reload() {
            Ok(false) => {}
            Ok(true) => {
                self.shared.tally.bundle_reloads.fetch_add(1, Ordering::Relaxed);
                tracing::info!(roots = self.shared.trust.own_roots().len(), "trust bundle changed");
                self.renew_what_no_longer_verifies();
            }
            Err(error) => {
                self.shared.tally.bundle_failures.fetch_add(1, Ordering::Relaxed);
                tracing::error!(%error, "the changed trust bundle is unusable, the last good one stays in use");
            }
        }
    }

    /// A root left the bundle: peers will refuse what it signed, so there is no point in waiting for two thirds.
    /// Whatever waits for its next try may try at once as well: the missing root may have been the reason.
    fn renew_what_no_longer_verifies(&mut self) {
        let now = clock::now();
        let held = self.shared.held.load_full();
        for (id, entry) in &mut self.entries {
            let verifies =
                held.get(id).is_some_and(|held| self.verifier.check(&held.chain, tls::unix_now()).is_ok());
            match entry.next {
                Next::Renew(_) if !verifies => entry.next = Next::Ask(now),
                Next::Ask(_) => *entry = Entry { next: Next::Ask(now), failures: 0 },
                Next::Renew(_) | Next::Answer => {}
            }
        }
    }

    fn drop_expired(&mut self) {
        if self.shared.held.load().values().any(|held| !held.is_current()) {
            self.replace_held(|held| held.retain(|_, held| held.is_current()));
        }
    }

    fn replace_held(&self, change: impl FnOnce(&mut HashMap<SpiffeId, Arc<Held>>)) {
        let mut held = HashMap::clone(&self.shared.held.load());
        change(&mut held);
        self.shared.held.store(Arc::new(held));
        self.shared.changed.send_modify(|count| *count += 1);
    }
}

/// A request that could not even be sent counts as a CA that could not be reached.
fn renewal_result(error: &Error) -> Renewal {
    match error {
        Error::CaRefused { .. } => Renewal::CaRefused,
        Error::Issued { .. }
        | Error::Tls(_)
        | Error::NoCertificate
        | Error::Malformed
        | Error::NoSpiffeId { .. } => Renewal::Invalid,
        Error::CaUnreachable { .. }
        | Error::CaAddress(_)
        | Error::Token { .. }
        | Error::TokenMalformed(_)
        | Error::TrustBundle { .. }
        | Error::RequestLost
        | Error::Key(_) => Renewal::CaUnavailable,
    }
}

fn request(ca: Arc<CaClient>, id: SpiffeId, outcomes: mpsc::Sender<Outcome>) {
    tasks::spawn("identity request", async move {
        let mut reply = Reply { id: id.clone(), outcome: None, outcomes };
        reply.outcome = Some(ca.svid(&id).await);
    });
}

/// Reports back when dropped, so that a request that panicked is tried again and does not hold its place for ever.
struct Reply {
    id: SpiffeId,
    outcome: Option<Result<Svid, Error>>,
    outcomes: mpsc::Sender<Outcome>,
}

impl Drop for Reply {
    fn drop(&mut self) {
        let outcome = self.outcome.take().unwrap_or(Err(Error::RequestLost));
        // The channel has a place for every request that may run; Err: the keeper has stopped.
        let _ = self.outcomes.try_send((self.id.clone(), outcome));
    }
}

fn held(id: &SpiffeId, svid: Svid, verifier: &Arc<Verifier>) -> Result<Held, Error> {
    let info = info(id, &peer::parse(svid.chain.first().ok_or(Error::NoCertificate)?)?);
    let certified = tls::certified(svid.chain.clone(), svid.key)?;
    let client = tls::client_config(certified.clone(), verifier.clone())?;
    let server = tls::server_config(certified, verifier.clone())?;
    Ok(Held { info, chain: svid.chain, client, server })
}

fn info(id: &SpiffeId, leaf: &X509Certificate<'_>) -> CertificateInfo {
    let time = |seconds: i64| {
        SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or_default())
    };
    CertificateInfo {
        id: id.clone(),
        serial: leaf.raw_serial().iter().map(|byte| format!("{byte:02x}")).collect(),
        not_before: time(leaf.validity().not_before.timestamp()),
        not_after: time(leaf.validity().not_after.timestamp()),
        issuer: leaf.issuer().to_string(),
    }
}
