//! The CA in a Secret: the same texts as the files of [`super::store`], under the same names. They are held in memory by
//! every replica of control and never written to a disk by us.
//!
//! A change is one update with the resourceVersion that was read. Who is too late reads again and decides anew.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};

use super::pems::{AUTHORITY, NEXT_ROOT, Pems, Place, RETIRED_ROOT, fault};
use super::{Authority, Error, Phase, Stage, advance};
use crate::control::cluster::labels;
use crate::model::TrustDomain;

/// Times that a change is tried again after somebody else's came first. Two replicas and one person cannot collide more
/// often.
const ATTEMPTS: usize = 5;

/// Names a Secret: `NAMESPACE/NAME`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecretRef {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl FromStr for SecretRef {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once('/').filter(|(_, name)| !name.contains('/'));
        match parts {
            Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() => {
                Ok(Self { namespace: namespace.to_owned(), name: name.to_owned() })
            }
            _ => Err(format!("{text:?} does not name a Secret; write NAMESPACE/NAME")),
        }
    }
}

impl fmt::Display for SecretRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl SecretRef {
    /// For messages.
    pub fn place(&self) -> Place {
        Place::Secret { namespace: self.namespace.clone(), name: self.name.clone() }
    }

    /// The Secrets of its namespace.
    pub fn api(&self, client: &Client) -> Api<Secret> {
        Api::namespaced(client.clone(), &self.namespace)
    }

    fn failed(&self, what: &str) -> impl FnOnce(kube::Error) -> Error {
        let what = format!("{what} the Secret {self}");
        move |source| Error::Api { what, source: Box::new(source) }
    }
}

/// The CA's texts in a Secret.
///
/// # Errors
/// The first text is missing, or one is not text.
pub fn pems(secret: &Secret, place: &Place) -> Result<Pems, Error> {
    let data = secret.data.as_ref();
    let text = |key: &str| {
        let bytes = data.and_then(|data| data.get(key)).filter(|bytes| !bytes.0.is_empty());
        let text = bytes.map(|bytes| String::from_utf8(bytes.0.clone()));
        text.transpose().map_err(|_binary| fault(&place.of(key), "it is not text"))
    };
    let authority = text(AUTHORITY)?.ok_or_else(|| fault(&place.of(AUTHORITY), "it is missing"))?;
    Ok(Pems { authority, next_root: text(NEXT_ROOT)?, retired_root: text(RETIRED_ROOT)? })
}

/// A Secret with these texts; what else its data holds stays.
fn with_pems(mut secret: Secret, pems: &Pems) -> Secret {
    let data = secret.data.get_or_insert_with(BTreeMap::new);
    let texts = [
        (AUTHORITY, Some(&pems.authority)),
        (NEXT_ROOT, pems.next_root.as_ref()),
        (RETIRED_ROOT, pems.retired_root.as_ref()),
    ];
    for (key, text) in texts {
        match text {
            Some(text) => drop(data.insert(key.to_owned(), ByteString(text.clone().into_bytes()))),
            None => drop(data.remove(key)),
        }
    }
    secret
}

/// Makes the Secret with a new CA. When another replica was first, theirs is what counts.
///
/// # Errors
/// The API is away or refuses.
pub async fn create(client: &Client, reference: &SecretRef, trust_domain: &TrustDomain) -> Result<(), Error> {
    let metadata = ObjectMeta {
        namespace: Some(reference.namespace.clone()),
        name: Some(reference.name.clone()),
        labels: Some(labels()),
        ..ObjectMeta::default()
    };
    let empty = Secret { metadata, type_: Some("Opaque".to_owned()), ..Secret::default() };
    let secret = with_pems(empty, &Pems::fresh(trust_domain)?);
    match reference.api(client).create(&PostParams::default(), &secret).await {
        Ok(_) => {
            tracing::info!(secret = %reference, "a new certificate authority was made");
            Ok(())
        }
        Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(()),
        Err(error) => Err(reference.failed("create")(error)),
    }
}

/// Replaces the intermediate in the version of the Secret that was read.
///
/// # Errors
/// The API is away or refuses, among others because the Secret has changed since.
pub async fn renew(client: &Client, reference: &SecretRef, secret: &Secret) -> Result<(), Error> {
    let place = reference.place();
    let pems = pems(secret, &place)?.with_new_intermediate(&place)?;
    let changed = with_pems(secret.clone(), &pems);
    let replaced = reference.api(client).replace(&reference.name, &PostParams::default(), &changed).await;
    replaced.map_err(reference.failed("update"))?;
    tracing::info!(secret = %reference, "the intermediate was renewed");
    Ok(())
}

/// Carries out one stage of a root rotation in a Secret; every replica that runs on it follows by itself. Returns the
/// phase that is reached.
///
/// # Errors
/// The stage does not come next or comes too early; the Secret is unusable or cannot be written. Nothing has changed
/// then.
pub async fn rotate_in_secret(
    client: &Client,
    reference: &SecretRef,
    stage: Stage,
    patience: Duration,
) -> Result<Phase, Error> {
    let (api, place) = (reference.api(client), reference.place());
    for attempt in 1..=ATTEMPTS {
        let found = api.get(&reference.name).await.map_err(reference.failed("read"))?;
        let after = advance(&pems(&found, &place)?, &place, stage, patience)?;
        let changed = with_pems(found, &after);
        match api.replace(&reference.name, &PostParams::default(), &changed).await {
            Ok(_) => {
                tracing::info!(%stage, secret = %reference, "root rotation");
                return Ok(Authority::parse(&after, &place)?.phase());
            }
            Err(kube::Error::Api(status)) if status.is_conflict() && attempt < ATTEMPTS => {}
            Err(error) => return Err(reference.failed("update")(error)),
        }
    }
    unreachable!("the last attempt returns")
}
