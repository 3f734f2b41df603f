//! In a cluster: keys in a Secret, callers by TokenReview, and what to do when the Secret changes.
//!
//! Every replica signs with what the Secret says; only the leader publishes the trust bundle and renews the intermediate.
//! A replica signs under a root only once that root is published, whoever published it. A Secret that cannot be used
//! changes nothing: the last good keys go on, and log, metrics and MeshConfig's status say so.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};
use tokio::sync::watch;

use super::bundle::Bundle;
use super::ca::{Authority, SecretRef, secret};
use super::callers::Callers;
use super::follow::{Change, follow};
use super::reports::Leading;
use super::reports::desk::Desk;
use super::review::{Expected, Reviews};
use super::server::{self, Signing, server_names};
use super::{Control, Error, lease};
use crate::lifecycle::{Shutdown, tasks};
use crate::model::{TrustDomain, WorkloadName};
use crate::registry::Registry;
use crate::telemetry::Telemetry;

/// Who writes, in `managedFields`.
pub const FIELD_MANAGER: &str = "weft-control";

/// How often everything is looked at without a reason: a bundle that somebody edited is put right by then.
const LOOK: Duration = Duration::from_secs(60);
/// How soon it is tried again while something is in the way, at first and at most.
const RETRY_MIN: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(30);

/// Labels of every object that control makes.
pub(super) fn labels() -> BTreeMap<String, String> {
    let pairs = [("app.kubernetes.io/name", "weft"), ("app.kubernetes.io/component", "control")];
    pairs.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// Whose keys sign.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Keys {
    /// Our own root and intermediate.
    Own(SecretRef),
    /// An intermediate that another authority issues, as cert-manager does.
    Issued(SecretRef),
}

impl Keys {
    fn secret(&self) -> &SecretRef {
        match self {
            Self::Own(secret) | Self::Issued(secret) => secret,
        }
    }
}

/// What the control plane needs to know in a cluster.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The trust domain that the CA vouches for.
    pub trust_domain: TrustDomain,
    /// Where the certificate service listens; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Further host names or IPs for the serving certificate.
    pub server_names: Vec<String>,
    /// The namespace of Lease and trust bundle.
    pub namespace: String,
    /// Whose keys.
    pub keys: Keys,
    /// What callers must show.
    pub expected: Expected,
}

/// What other parts of control learn about this replica, and what they need to work with the API.
#[derive(Clone, Debug)]
pub struct Standing {
    /// Whether it leads.
    pub leads: watch::Receiver<bool>,
    /// What is wrong with the keys as they are kept now.
    pub fault: watch::Receiver<Option<String>>,
}

/// A candidate for leading that runs.
pub struct Candidacy {
    task: tokio::task::JoinHandle<()>,
    leading: Leading,
    address: lease::Address,
}

impl std::fmt::Debug for Candidacy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Candidacy").field("leading", &self.leading).finish_non_exhaustive()
    }
}

impl Candidacy {
    /// Stands for election until shutdown.
    pub fn begin(client: &Client, namespace: &str, telemetry: &Telemetry, shutdown: Shutdown) -> Self {
        let (candidate, leads) = lease::Candidate::new(client, namespace, &identity());
        let (told, heard) = (telemetry.clone(), leads.clone());
        telemetry.before_scrape(move |_| told.control_leads(*heard.borrow()));
        let (address, leader) = (candidate.address(), candidate.elsewhere());
        let task = tasks::spawn("control lease", candidate.run(shutdown));
        Self { task, leading: Leading { leads, leader }, address }
    }

    /// Whether this replica leads, and where the one is that does.
    pub fn leading(&self) -> Leading {
        self.leading.clone()
    }

    /// Lets the other replicas know where this one serves. A second call changes nothing.
    pub fn serves_at(&self, address: impl Fn() -> Option<SocketAddr> + Send + Sync + 'static) {
        let _ = self.address.set(Box::new(address));
    }

    /// Waits until the Lease is given back. Call after shutdown was asked for.
    pub async fn over(self) {
        let _ = self.task.await;
    }
}

/// Where others reach what listens there: at that very address, or, where that means every address, at our pod's.
pub fn reachable(
    listen: SocketAddr,
    namespace: String,
    registry: Registry,
) -> impl Fn() -> Option<SocketAddr> + Send + Sync + 'static {
    let host: Arc<str> = host().unwrap_or_default().into();
    let name = WorkloadName { namespace: namespace.into(), name: host };
    let of_pod =
        move || -> Option<IpAddr> { registry.snapshot().workload_by_name(&name)?.addresses.first().copied() };
    move || match listen.ip().is_unspecified() {
        false => Some(listen),
        true => of_pod().map(|ip| SocketAddr::new(ip, listen.port())),
    }
}

/// In a pod, the pod's name.
fn host() -> Option<String> {
    nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok())
}

/// The host's name and some letters by which two processes of one host differ.
fn identity() -> String {
    let host = host();
    let tail: String = std::iter::repeat_with(fastrand::alphanumeric).take(6).collect();
    format!("{}_{}", host.unwrap_or_else(|| "control".to_owned()), tail.to_lowercase())
}

/// Gets everything ready: waits until there are keys and a published bundle that vouches for them. `None`: asked to stop
/// before that.
///
/// # Errors
/// The port cannot be opened or a certificate not be made. An API server that is away, or a Secret that cannot be used,
/// is waited for.
pub async fn open(
    settings: Settings,
    client: Client,
    leading: Leading,
    registry: Registry,
    telemetry: Telemetry,
    shutdown: &Shutdown,
) -> Result<Option<(Control, Standing)>, Error> {
    let names = [settings.server_names.clone(), service_names(&settings.namespace)].concat();
    let callers = Callers::Reviews(Box::new(Reviews::new(
        client.clone(),
        settings.expected,
        registry.clone(),
        telemetry.clone(),
    )));
    let trust_domain = settings.trust_domain.clone();
    let leads = leading.leads.clone();
    let mut keeper =
        Keeper::begin(client, settings.keys, trust_domain, &settings.namespace, leads, telemetry);
    let standing = keeper.standing();
    let authority = tokio::select! {
        () = shutdown.requested() => return Ok(None),
        authority = keeper.first() => authority,
    };
    let names = server_names(settings.listen, &names);
    let (trust_domain, desk) = (settings.trust_domain, Desk::new(leading));
    let signing = Signing::begin(authority, trust_domain, callers, registry, names, desk)?;
    let control = Control::listen(settings.listen, &signing)?;
    let follower = Follower { keeper, signing };
    Ok(Some((control(server::Follower::Cluster(Box::new(follower))), standing)))
}

/// By these names pods of the cluster reach the Service `weft-control`.
fn service_names(namespace: &str) -> Vec<String> {
    ["", ".svc", ".svc.cluster.local"].map(|tail| format!("weft-control.{namespace}{tail}")).to_vec()
}

/// The Secret as last seen.
#[derive(Clone, Debug, Default)]
enum Seen {
    #[default]
    NotYet,
    Absent,
    There(Arc<Secret>),
}

/// What to do about the keys.
enum Step {
    /// Sign with these.
    Sign(Box<Authority>),
    /// Nothing can be done before something else happens.
    Wait,
}

/// Keeps the keys of this replica in step with the Secret.
struct Keeper {
    client: Client,
    keys: Keys,
    trust_domain: TrustDomain,
    bundle: Bundle,
    seen: watch::Receiver<Seen>,
    leads: watch::Receiver<bool>,
    fault: watch::Sender<Option<String>>,
    telemetry: Telemetry,
    pause: Duration,
    /// Ends with the keeper.
    watching: tokio::task::JoinHandle<()>,
}

impl std::fmt::Debug for Keeper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keeper").field("keys", &self.keys).finish_non_exhaustive()
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.watching.abort();
    }
}

impl Keeper {
    fn begin(
        client: Client,
        keys: Keys,
        trust_domain: TrustDomain,
        namespace: &str,
        leads: watch::Receiver<bool>,
        telemetry: Telemetry,
    ) -> Self {
        let (sender, seen) = watch::channel(Seen::NotYet);
        let api = keys.secret().api(&client);
        let watching = tasks::spawn("control secret", watch_secret(api, keys.secret().clone(), sender));
        let bundle = Bundle::new(&client, namespace);
        let (fault, _) = watch::channel(None);
        let pause = RETRY_MIN;
        Self { client, keys, trust_domain, bundle, seen, leads, fault, telemetry, pause, watching }
    }

    fn standing(&self) -> Standing {
        Standing { leads: self.leads.clone(), fault: self.fault.subscribe() }
    }

    /// The first keys to sign with.
    async fn first(&mut self) -> Authority {
        loop {
            if let Step::Sign(authority) = self.look(None).await {
                return *authority;
            }
            self.something(RETRY_MAX).await;
        }
    }

    /// Waits until there is a reason to look again.
    async fn something(&mut self, at_most: Duration) {
        tokio::select! {
            _ = self.seen.changed() => {}
            _ = self.leads.changed() => {}
            () = tokio::time::sleep(self.pause.min(at_most)) => {}
        }
    }

    /// Looks at the Secret and does what this replica has to; says what is in the way.
    async fn look(&mut self, current: Option<&Authority>) -> Step {
        let step = self.step(current).await;
        let fault = step.as_ref().err().map(said);
        let (is_faulty, text) = (fault.is_some(), fault.clone());
        let is_news = self.fault.send_if_modified(|before| std::mem::replace(before, text) != fault);
        self.telemetry.authority_fault(is_faulty);
        match step {
            Ok(step) => {
                if is_news {
                    tracing::info!("the CA's keys are in order");
                }
                self.pause = if matches!(step, Step::Wait) { RETRY_MIN } else { LOOK };
                step
            }
            Err(error) => {
                if is_news {
                    let goes_on = current.is_some();
                    tracing::error!(
                        error = said(&error),
                        goes_on,
                        "the CA's keys; the last good ones stay in use"
                    );
                }
                let before = if self.pause == LOOK { RETRY_MIN } else { self.pause };
                self.pause = (before * 2).min(RETRY_MAX);
                Step::Wait
            }
        }
    }

    async fn step(&mut self, current: Option<&Authority>) -> Result<Step, Error> {
        let seen = self.seen.borrow_and_update().clone();
        let secret = match seen {
            Seen::NotYet => return Ok(Step::Wait),
            Seen::Absent => return self.make(current).await,
            Seen::There(secret) => secret,
        };
        let leads = *self.leads.borrow_and_update();
        let found = self.read(&secret)?;
        if leads && found.intermediate_is_due() {
            secret::renew(&self.client, self.keys.secret(), &secret).await?;
        }
        // Publish first: agents must know a root before they meet a certificate under it.
        if leads {
            self.bundle.publish(&found).await?;
        } else if current.is_none_or(|current| !current.is_same_as(&found)) {
            let is_published = self.bundle.vouches_for(&found).await?;
            if !is_published {
                return Ok(Step::Wait);
            }
        }
        self.telemetry.authority_expires(found.ends());
        Ok(Step::Sign(Box::new(found)))
    }

    fn read(&self, secret: &Secret) -> Result<Authority, Error> {
        let place = self.keys.secret().place();
        match &self.keys {
            Keys::Own(_) => {
                let found = Authority::parse(&secret::pems(secret, &place)?, &place)?;
                found.check_trust_domain(&place, &self.trust_domain)?;
                Ok(found)
            }
            Keys::Issued(_) => Authority::issued(secret.data.as_ref().unwrap_or(&BTreeMap::new()), &place),
        }
    }

    /// Makes our own Secret at first start. One that vanishes later is not made anew: every agent would have to learn
    /// another root, and whoever removed it may have had a reason.
    async fn make(&self, current: Option<&Authority>) -> Result<Step, Error> {
        match &self.keys {
            Keys::Own(reference) if current.is_none() => {
                secret::create(&self.client, reference, &self.trust_domain).await?;
                Ok(Step::Wait)
            }
            Keys::Own(reference) | Keys::Issued(reference) => {
                Err(Error::NoSecret { secret: reference.to_string() })
            }
        }
    }
}

/// An error with its cause, for people.
fn said(error: &Error) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

async fn watch_secret(api: Api<Secret>, reference: SecretRef, sender: watch::Sender<Seen>) {
    let fields = format!("metadata.name={}", reference.name);
    let tell = |change| {
        let seen = match change {
            Change::All(all) => all.into_iter().next().map_or(Seen::Absent, |one| Seen::There(Arc::new(one))),
            Change::Applied(one) => Seen::There(Arc::new(one)),
            Change::Deleted(_) => Seen::Absent,
        };
        sender.send_replace(seen);
    };
    follow(api, "the CA's Secret", Some(fields), tell).await;
}

/// Takes up changes of the Secret.
#[derive(Debug)]
pub(super) struct Follower {
    keeper: Keeper,
    signing: Signing,
}

impl Follower {
    pub(super) async fn run(mut self, shutdown: Shutdown) {
        let work = async {
            loop {
                self.keeper.something(LOOK).await;
                let current = self.signing.service.authority.load_full();
                if let Step::Sign(found) = self.keeper.look(Some(&current)).await
                    && let Err(error) = self.signing.take(*found)
                {
                    tracing::error!(error = said(&error), "the CA goes on with what it has");
                }
            }
        };
        tokio::select! {
            () = shutdown.requested() => {}
            () = work => {}
        }
    }
}
