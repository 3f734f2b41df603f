//! The trust bundle as a ConfigMap, which agents mount as `--ca-roots`.
//!
//! The leader keeps it current. Nobody signs under a root that is not in it: agents would refuse each other.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{ObjectMeta, Patch, PatchParams};
use kube::{Api, Client};

use super::Error;
use super::ca::Authority;
use super::cluster::{FIELD_MANAGER, labels};

/// The ConfigMap's name.
pub const NAME: &str = "weft-trust-bundle";
/// Its one key.
pub const KEY: &str = "roots.pem";

/// The bundle of one namespace.
#[derive(Clone, Debug)]
pub(super) struct Bundle {
    api: Api<ConfigMap>,
    namespace: String,
}

impl Bundle {
    pub(super) fn new(client: &Client, namespace: &str) -> Self {
        Self { api: Api::namespaced(client.clone(), namespace), namespace: namespace.to_owned() }
    }

    /// Publishes the roots where they differ from what is there.
    pub(super) async fn publish(&self, authority: &Authority) -> Result<(), Error> {
        let roots = authority.bundle_pem();
        if self.read().await?.as_ref() == Some(&roots) {
            return Ok(());
        }
        let wanted = ConfigMap {
            metadata: ObjectMeta {
                namespace: Some(self.namespace.clone()),
                name: Some(NAME.to_owned()),
                labels: Some(labels()),
                ..ObjectMeta::default()
            },
            data: Some(BTreeMap::from([(KEY.to_owned(), roots)])),
            ..ConfigMap::default()
        };
        let params = PatchParams::apply(FIELD_MANAGER).force();
        let applied = self.api.patch(NAME, &params, &Patch::Apply(&wanted)).await;
        applied.map_err(|source| self.failed("publish", source))?;
        tracing::info!(config_map = %format!("{}/{NAME}", self.namespace), "the trust bundle was published");
        Ok(())
    }

    /// Whether agents can have the root under which `authority` signs.
    pub(super) async fn vouches_for(&self, authority: &Authority) -> Result<bool, Error> {
        let published = self.read().await?;
        Ok(published.is_some_and(|roots| roots.contains(authority.root_pem().trim())))
    }

    async fn read(&self) -> Result<Option<String>, Error> {
        let found = self.api.get_opt(NAME).await.map_err(|source| self.failed("read", source))?;
        Ok(found.and_then(|mut found| found.data.as_mut()?.remove(KEY)))
    }

    fn failed(&self, what: &str, source: kube::Error) -> Error {
        let what = format!("{what} the ConfigMap {}/{NAME}", self.namespace);
        Error::Api { what, source: Box::new(source) }
    }
}
