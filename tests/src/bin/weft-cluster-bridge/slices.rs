//! EndpointSlices out of Endpoints, which the controllers of this Kubernetes still write.

use std::collections::BTreeSet;

use anyhow::Result;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams};
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};

use crate::follow::{Change, key};

/// Who writes the slices.
const MANAGER: &str = "weft-cluster-bridge";

/// Label with the writer's name.
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";

/// Label with the Service's name.
const SERVICE: &str = "kubernetes.io/service-name";

/// Writes slices.
pub struct Slices {
    client: Client,
    kind: ApiResource,
    /// `NAMESPACE/NAME` of those that are there.
    written: BTreeSet<(String, String)>,
}

impl Slices {
    /// Writes through this client.
    pub fn new(client: Client) -> Self {
        let kind = GroupVersionKind::gvk("discovery.k8s.io", "v1", "EndpointSlice");
        let kind = ApiResource::from_gvk_with_plural(&kind, "endpointslices");
        Self { client, kind, written: BTreeSet::new() }
    }

    /// Brings the slices to what the Endpoints say.
    pub async fn mirror(&mut self, change: Change<'_>) -> Result<()> {
        match change {
            Change::Present(object) => self.write(object).await,
            Change::Gone(object) => {
                let gone = self.of(&key(object));
                self.delete(gone).await
            }
            Change::All(objects) => {
                self.find_written().await?;
                let known: BTreeSet<String> = objects.iter().map(key).collect();
                let orphans =
                    self.written.iter().filter(|(owner, _)| !known.contains(owner)).cloned().collect();
                self.delete(orphans).await?;
                for object in objects {
                    self.write(object).await?;
                }
                Ok(())
            }
        }
    }

    async fn write(&mut self, object: &DynamicObject) -> Result<()> {
        let (owner, api) = (key(object), self.api(&object.namespace().unwrap_or_default()));
        let mut stale: BTreeSet<_> = self.of(&owner).into_iter().collect();
        for (name, slice) in slices(object) {
            let apply = PatchParams::apply(MANAGER).force();
            api.patch(&name, &apply, &Patch::Apply(&slice)).await?;
            stale.remove(&(owner.clone(), name.clone()));
            self.written.insert((owner.clone(), name));
        }
        self.delete(stale.into_iter().collect()).await
    }

    async fn delete(&mut self, slices: Vec<(String, String)>) -> Result<()> {
        for slice in slices {
            let namespace = slice.0.split('/').next().unwrap_or_default();
            match self.api(namespace).delete(&slice.1, &DeleteParams::default()).await {
                // It may have gone with its namespace.
                Ok(_) => {}
                Err(kube::Error::Api(answer)) if answer.code == 404 => {}
                Err(error) => return Err(error.into()),
            }
            self.written.remove(&slice);
        }
        Ok(())
    }

    /// What an earlier run wrote.
    async fn find_written(&mut self) -> Result<()> {
        let all: Api<DynamicObject> = Api::all_with(self.client.clone(), &self.kind);
        let own = ListParams::default().labels(&format!("{MANAGED_BY}={MANAGER}"));
        self.written =
            all.list(&own).await?.items.iter().map(|slice| (owner(slice), slice.name_any())).collect();
        Ok(())
    }

    fn of(&self, owner: &str) -> Vec<(String, String)> {
        self.written.iter().filter(|slice| slice.0 == owner).cloned().collect()
    }

    fn api(&self, namespace: &str) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), namespace, &self.kind)
    }
}

fn owner(slice: &DynamicObject) -> String {
    let service = slice.labels().get(SERVICE).map_or("", String::as_str);
    format!("{}/{service}", slice.namespace().unwrap_or_default())
}

/// One slice for each group of Endpoints that share their ports.
fn slices(object: &DynamicObject) -> Vec<(String, Value)> {
    let (namespace, service) = (object.namespace().unwrap_or_default(), object.name_any());
    let groups = object.data["subsets"].as_array().cloned().unwrap_or_default();
    let slice = |(index, group): (usize, &Value)| {
        let name = format!("{service}-{index}");
        let mut endpoints = Vec::new();
        for (field, ready) in [("addresses", true), ("notReadyAddresses", false)] {
            endpoints.extend(group[field].as_array().into_iter().flatten().map(|one| endpoint(one, ready)));
        }
        let ports: Vec<Value> = group["ports"].as_array().into_iter().flatten().map(port).collect();
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {"name": name, "namespace": namespace, "labels": {SERVICE: service, MANAGED_BY: MANAGER}},
            "addressType": "IPv4",
            "endpoints": endpoints,
            "ports": ports,
        });
        (name, slice)
    };
    groups.iter().enumerate().map(slice).collect()
}

fn endpoint(address: &Value, ready: bool) -> Value {
    let mut endpoint = json!({
        "addresses": [address["ip"]],
        "conditions": {"ready": ready, "serving": ready, "terminating": false},
    });
    for field in ["nodeName", "targetRef", "hostname"] {
        if let Some(value) = address.get(field) {
            endpoint[field] = value.clone();
        }
    }
    endpoint
}

fn port(port: &Value) -> Value {
    let mut port = port.clone();
    // In a slice the name is always there; a Service's only port has an empty one.
    if port.get("name").is_none() {
        port["name"] = json!("");
    }
    port
}
