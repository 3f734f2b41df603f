//! Which node is asking, in a cluster? The one that the pod runs on to which the caller's token is bound.
//!
//! The token is a service account's, made by the kubelet for one pod and for us (its audience). The API server says
//! whether it is good (TokenReview); discovery, or a look at the pod itself, says on which node that pod is. An agent
//! that was stolen together with its token can therefore ask for the pods of its own node and no others, and for nothing
//! once its pod is gone.
//!
//! Answers are kept for a short time, since a node asks once per pod. When the API server cannot be asked, the caller is
//! told to try again; nobody is ever let in for want of an answer.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use aws_lc_rs::digest::{SHA256, digest};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use k8s_openapi::api::core::v1::Pod;
use kube::api::PostParams;
use kube::{Api, Client};
use parking_lot::Mutex;
use serde::Deserialize;
use tokio::sync::Semaphore;

use super::callers::Unknown;
use crate::lifecycle::{Bucket, clock};
use crate::model::{WorkloadName, WorkloadUid};
use crate::registry::Registry;
use crate::telemetry::Telemetry;

/// Longest time that a good answer is believed: an account or token that is withdrawn counts that much longer. The pod
/// itself is looked at for every request.
const GOOD_FOR: Duration = Duration::from_secs(60);
/// Longest time that a refusal is repeated without asking again.
const REFUSED_FOR: Duration = Duration::from_secs(5);
/// How long what the API said of a pod that discovery does not know is believed.
const LOOKED_UP_FOR: Duration = Duration::from_secs(5);
/// Longest wait for the API server. Agents wait ten seconds for us.
const ASK_TIME_MAX: Duration = Duration::from_secs(5);
/// Questions to the API server at one time.
const ASKING_MAX: usize = 16;
/// Questions at once and per second, for all callers together: two a minute for each of a thousand nodes fit, and a
/// stranger with made-up tokens does not make us a burden to the API server.
const ASK_BURST: f64 = 500.0;
const ASK_PER_SECOND: f64 = 50.0;
/// Tokens that are remembered. Several for each of a thousand nodes; 300 bytes each.
const REMEMBERED_MAX: usize = 4096;
/// Longest token, in bytes. One of a pod is about 1 KiB.
const TOKEN_LEN_MAX: usize = 16 * 1024;

const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";
/// Since Kubernetes 1.30.
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";

/// What callers must show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// For whom the token must have been made.
    pub audience: String,
    /// Namespace of the agents' service account.
    pub namespace: String,
    /// Its name.
    pub account: String,
}

/// Asks the API server who callers are.
pub struct Reviews {
    client: Client,
    expected: Expected,
    registry: Registry,
    telemetry: Telemetry,
    remembered: Mutex<HashMap<[u8; 32], Arc<Slot>>>,
    asking: Semaphore,
    bucket: Mutex<Bucket>,
}

impl std::fmt::Debug for Reviews {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reviews").field("expected", &self.expected).finish_non_exhaustive()
    }
}

/// What is known of one token. Requests with the same token wait for one answer instead of asking each by itself.
type Slot = tokio::sync::Mutex<Option<Known>>;

struct Known {
    verdict: Result<BoundPod, String>,
    until: Instant,
    /// Where the API said that the pod runs, when discovery did not know.
    looked_up: Option<(Option<Arc<str>>, Instant)>,
}

/// The pod that a token is bound to.
#[derive(Clone, Debug, PartialEq, Eq)]
struct BoundPod {
    name: WorkloadName,
    uid: WorkloadUid,
    node: Option<String>,
}

impl Reviews {
    /// Asks through `client`; `registry` says where pods are.
    pub fn new(client: Client, expected: Expected, registry: Registry, telemetry: Telemetry) -> Self {
        Self {
            client,
            expected,
            registry,
            telemetry,
            remembered: Mutex::default(),
            asking: Semaphore::new(ASKING_MAX),
            bucket: Mutex::new(Bucket::full(ASK_BURST, clock::now())),
        }
    }

    /// The node of the pod to which the token is bound.
    ///
    /// # Errors
    /// It is not a token of an agent's pod, or cannot be checked now.
    pub async fn node_of(&self, token: &str) -> Result<Arc<str>, Unknown> {
        let expires = self.plausible(token).map_err(Unknown::Refused)?;
        let slot = self.slot(token)?;
        let mut known = slot.lock().await;
        let now = clock::now();
        if known.as_ref().is_none_or(|known| known.until <= now) {
            let verdict = self.review(token).await?;
            let lasts = match &verdict {
                Ok(_) => GOOD_FOR.min(expires.duration_since(clock::wall()).unwrap_or_default()),
                Err(_) => REFUSED_FOR,
            };
            *known = Some(Known { verdict, until: now + lasts, looked_up: None });
        }
        let known = known.as_mut().expect("it has just been filled where it was not");
        let pod = known.verdict.clone().map_err(Unknown::Refused)?;
        let node = match self.known_node(&pod) {
            Some(node) => node,
            None => self.looked_up(&pod, &mut known.looked_up).await?,
        };
        match &pod.node {
            Some(said) if **said != *node => {
                let said = format!("token: it is bound to node {said}, its pod {} is on {node}", pod.name);
                Err(Unknown::Refused(said))
            }
            _ => Ok(node),
        }
    }

    /// What a token says of itself proves nothing; but one that does not even say the right things is refused without a
    /// question to the API server. Returns when it expires, which is true if the API server then finds it good.
    fn plausible(&self, token: &str) -> Result<SystemTime, String> {
        let claims = Claims::of(token).ok_or("token: it is not one of a service account")?;
        if !claims.aud.has(&self.expected.audience) {
            return Err(format!("token: its audience is not {}", self.expected.audience));
        }
        let expires = SystemTime::UNIX_EPOCH + Duration::from_secs(claims.exp);
        if expires <= clock::wall() {
            return Err("token: it has expired".to_owned());
        }
        if claims.sub != self.user() {
            return Err(format!("token: it is not one of service account {}", self.account()));
        }
        Ok(expires)
    }

    fn user(&self) -> String {
        format!("system:serviceaccount:{}:{}", self.expected.namespace, self.expected.account)
    }

    fn account(&self) -> String {
        format!("{}/{}", self.expected.namespace, self.expected.account)
    }

    fn slot(&self, token: &str) -> Result<Arc<Slot>, Unknown> {
        let hash: [u8; 32] = digest(&SHA256, token.as_bytes()).as_ref().try_into().expect("32 bytes");
        let mut remembered = self.remembered.lock();
        if let Some(slot) = remembered.get(&hash) {
            return Ok(slot.clone());
        }
        if remembered.len() >= REMEMBERED_MAX {
            let now = clock::now();
            let fresh = |known: &Option<Known>| known.as_ref().is_some_and(|known| known.until > now);
            remembered.retain(|_, slot| slot.try_lock().map_or(true, |known| fresh(&known)));
        }
        if remembered.len() >= REMEMBERED_MAX {
            return Err(Unknown::Unavailable("token: too many callers at once; try again".to_owned()));
        }
        Ok(remembered.entry(hash).or_default().clone())
    }

    /// Asks the API server.
    async fn review(&self, token: &str) -> Result<Result<BoundPod, String>, Unknown> {
        let busy =
            || Unknown::Unavailable("token: too many questions to the API server; try again".to_owned());
        if !self.bucket.lock().take(ASK_BURST, ASK_PER_SECOND, clock::now()) {
            return Err(busy());
        }
        let _place = self.asking.acquire().await.expect("the semaphore is never closed");
        let spec = TokenReviewSpec {
            audiences: Some(vec![self.expected.audience.clone()]),
            token: token.to_owned(),
        };
        let review = TokenReview { spec, ..TokenReview::default() };
        let api: Api<TokenReview> = Api::all(self.client.clone());
        let params = PostParams::default();
        let status = match tokio::time::timeout(ASK_TIME_MAX, api.create(&params, &review)).await {
            Ok(Ok(answer)) => answer.status.unwrap_or_default(),
            Ok(Err(error)) => return Err(self.unavailable(&error.to_string())),
            Err(_elapsed) => return Err(self.unavailable("it did not answer in time")),
        };
        let verdict = self.judge(&status);
        self.telemetry.token_reviewed(if verdict.is_ok() { "good" } else { "refused" });
        Ok(verdict)
    }

    fn unavailable(&self, error: &str) -> Unknown {
        self.telemetry.token_reviewed("unavailable");
        tracing::warn!(error, "the API server cannot be asked who is calling; callers are told to try again");
        Unknown::Unavailable("token: the API server cannot be asked now; try again".to_owned())
    }

    fn judge(&self, status: &TokenReviewStatus) -> Result<BoundPod, String> {
        if status.authenticated != Some(true) {
            let why = status.error.as_deref().unwrap_or("it is nobody's");
            return Err(format!("token: the API server refuses it: {why}"));
        }
        // A server that knows nothing of audiences leaves them out: then the token may be meant for anybody.
        if !status.audiences.iter().flatten().any(|audience| *audience == self.expected.audience) {
            return Err(format!("token: it was not made for audience {}", self.expected.audience));
        }
        let user = status.user.as_ref().ok_or("token: the API server names no user")?;
        if user.username.as_deref() != Some(&self.user()) {
            return Err(format!("token: it is not one of service account {}", self.account()));
        }
        let extra = |key: &str| match user.extra.as_ref().and_then(|extra| extra.get(key)).map(Vec::as_slice)
        {
            Some([one]) if !one.is_empty() => Some(one.clone()),
            _ => None,
        };
        let (Some(name), Some(uid)) = (extra(POD_NAME), extra(POD_UID)) else {
            return Err("token: it is not bound to a pod (mount a projected one)".to_owned());
        };
        Ok(BoundPod {
            name: WorkloadName { namespace: self.expected.namespace.as_str().into(), name: name.into() },
            uid: WorkloadUid(uid.into()),
            node: extra(NODE_NAME),
        })
    }

    fn known_node(&self, pod: &BoundPod) -> Option<Arc<str>> {
        let snapshot = self.registry.snapshot();
        let workload = snapshot.workload_by_name(&pod.name).filter(|workload| workload.uid == pod.uid)?;
        Some(workload.node.clone()).filter(|node| !node.is_empty())
    }

    /// A pod that discovery does not know is just new, just gone, or never was.
    async fn looked_up(
        &self,
        pod: &BoundPod,
        before: &mut Option<(Option<Arc<str>>, Instant)>,
    ) -> Result<Arc<str>, Unknown> {
        let now = clock::now();
        let node = match before {
            Some((node, until)) if *until > now => node.clone(),
            _ => {
                let node = self.look_up(pod).await?;
                *before = Some((node.clone(), now + LOOKED_UP_FOR));
                node
            }
        };
        let gone = || Unknown::Refused(format!("token: its pod {} is not there (any more)", pod.name));
        node.ok_or_else(gone)
    }

    async fn look_up(&self, pod: &BoundPod) -> Result<Option<Arc<str>>, Unknown> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &pod.name.namespace);
        let found = match tokio::time::timeout(ASK_TIME_MAX, api.get_opt(&pod.name.name)).await {
            Ok(Ok(found)) => found,
            Ok(Err(error)) => return Err(self.unavailable(&error.to_string())),
            Err(_elapsed) => return Err(self.unavailable("it did not answer in time")),
        };
        let found = found.filter(|found| found.metadata.uid.as_deref() == Some(&*pod.uid.0));
        let running = found.filter(|found| {
            let phase = found.status.as_ref().and_then(|status| status.phase.as_deref());
            !matches!(phase, Some("Succeeded" | "Failed"))
        });
        let node = running.and_then(|found| found.spec?.node_name);
        Ok(node.filter(|node| !node.is_empty()).map(Into::into))
    }
}

/// What a service account's token says of itself (RFC 7519).
#[derive(Deserialize)]
struct Claims {
    aud: Audience,
    exp: u64,
    sub: String,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Several(Vec<String>),
}

impl Audience {
    fn has(&self, wanted: &str) -> bool {
        match self {
            Self::One(one) => one == wanted,
            Self::Several(all) => all.iter().any(|one| one == wanted),
        }
    }
}

impl Claims {
    fn of(token: &str) -> Option<Self> {
        if token.len() > TOKEN_LEN_MAX {
            return None;
        }
        let mut parts = token.split('.');
        let (Some(_header), Some(payload), Some(_signature), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return None;
        };
        serde_json::from_slice(&data_encoding::BASE64URL_NOPAD.decode(payload.as_bytes()).ok()?).ok()
    }
}
