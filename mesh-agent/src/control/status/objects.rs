//! The objects whose status is written, as they are now.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use kube::api::{ApiResource, DynamicObject, GroupVersionKind, ListParams};
use kube::{Api, Client};
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::Notify;

use crate::control::follow::{Change, follow};
use crate::discovery::objects::read::{Reading, Written, misread, read};
use crate::discovery::objects::{self, Kind, Object};
use crate::discovery::problem::Fault;
use crate::lifecycle::back_off;
use crate::model::RouteKind;

/// How long until it is asked again whether a kind is served that was not.
const NOT_SERVED_PAUSE: Duration = Duration::from_secs(60);
/// How long until it is asked again after a failure.
const FAILURE_PAUSE: Duration = Duration::from_secs(5);

/// A kind whose status is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Subject {
    Route(RouteSubject),
    AuthorizationPolicy,
    MeshConfig,
    XMesh,
}

/// Routes, in an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum RouteSubject {
    Http,
    Grpc,
    Tls,
    Tcp,
}

impl Subject {
    pub(super) const ALL: [Self; 7] = [
        Self::Route(RouteSubject::Http),
        Self::Route(RouteSubject::Grpc),
        Self::Route(RouteSubject::Tls),
        Self::Route(RouteSubject::Tcp),
        Self::AuthorizationPolicy,
        Self::MeshConfig,
        Self::XMesh,
    ];

    /// As in `kind:`.
    pub(super) fn label(self) -> &'static str {
        self.parts().1
    }

    /// Group, kind, and versions of one shape, the preferred first.
    fn parts(self) -> (&'static str, &'static str, &'static [&'static str]) {
        const ROUTES: &str = "gateway.networking.k8s.io";
        match self {
            Self::Route(RouteSubject::Http) => (ROUTES, "HTTPRoute", &["v1", "v1beta1"]),
            Self::Route(RouteSubject::Grpc) => (ROUTES, "GRPCRoute", &["v1"]),
            Self::Route(RouteSubject::Tls) => (ROUTES, "TLSRoute", &["v1", "v1alpha3", "v1alpha2"]),
            Self::Route(RouteSubject::Tcp) => (ROUTES, "TCPRoute", &["v1", "v1alpha2"]),
            Self::AuthorizationPolicy => ("weft.dev", "AuthorizationPolicy", &["v1alpha1"]),
            Self::MeshConfig => ("weft.dev", "MeshConfig", &["v1alpha1"]),
            Self::XMesh => ("gateway.networking.x-k8s.io", "XMesh", &["v1alpha1"]),
        }
    }

    fn resources(self) -> impl Iterator<Item = ApiResource> {
        let (group, kind, versions) = self.parts();
        versions.iter().map(move |version| {
            let kind = GroupVersionKind::gvk(group, version, kind);
            let plural = match self {
                Self::AuthorizationPolicy => "authorizationpolicies".to_owned(),
                Self::XMesh => "xmeshes".to_owned(),
                _ => format!("{}s", kind.kind.to_lowercase()),
            };
            ApiResource::from_gvk_with_plural(&kind, &plural)
        })
    }
}

impl From<RouteKind> for RouteSubject {
    fn from(kind: RouteKind) -> Self {
        match kind {
            RouteKind::Http => Self::Http,
            RouteKind::Grpc => Self::Grpc,
            RouteKind::Tls => Self::Tls,
            RouteKind::Tcp => Self::Tcp,
        }
    }
}

/// What the object by itself is worth: read by the same code as discovery's, so that what is said belongs to exactly this
/// version of it.
#[derive(Debug)]
pub(super) enum Judged {
    Good(Box<Object>),
    /// It is what its author meant, but cannot be enforced as written.
    Refusing(String),
    Bad(String),
}

impl Judged {
    pub(super) fn of_policy(object: &Value) -> Self {
        Self::of(Kind::AuthorizationPolicy, object)
    }

    pub(super) fn of_mesh_config(object: &Value) -> Self {
        Self::of(Kind::MeshConfig, object)
    }

    /// `None`: it can be used.
    pub(super) fn problem_of_route(kind: RouteKind, object: &Value) -> Option<String> {
        match Self::of(Kind::Route(kind), object) {
            Self::Good(_) => None,
            Self::Refusing(fault) | Self::Bad(fault) => Some(fault),
        }
    }

    fn of(kind: Kind, object: &Value) -> Self {
        let metadata = &object["metadata"];
        let key = objects::Key::new(kind, metadata["namespace"].as_str(), metadata["name"].as_str());
        let reading = match key {
            Ok(key) => read(&Served(object), &key),
            Err(fault) => return Self::Bad(said(&fault)),
        };
        match reading {
            Reading::Good { object, fault: None } => Self::Good(Box::new(object)),
            Reading::Good { fault: Some(fault), .. } => Self::Refusing(said(&fault)),
            Reading::Bad { fault, .. } => Self::Bad(said(&fault)),
        }
    }
}

fn said(fault: &Fault) -> String {
    match fault.field.is_root() {
        true => fault.message.clone(),
        false => format!("{}: {}", fault.field, fault.message),
    }
}

/// An object as the API serves it.
struct Served<'a>(&'a Value);

impl Written for Served<'_> {
    type Fault = Fault;

    fn parse<T: DeserializeOwned>(&self) -> Result<T, Fault> {
        serde_path_to_error::deserialize(self.0)
            .map_err(|error| misread(error.path(), &error.inner().to_string()))
    }

    /// The API server has taken them off.
    fn check_outer_fields(&self) -> Result<(), Fault> {
        Ok(())
    }

    fn place(&self, fault: Fault) -> Fault {
        fault
    }
}

/// What names an object among those.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) subject: Subject,
    pub(super) namespace: String,
    pub(super) name: String,
}

impl Key {
    fn of(subject: Subject, object: &DynamicObject) -> Self {
        let metadata = &object.metadata;
        Self {
            subject,
            namespace: metadata.namespace.clone().unwrap_or_default(),
            name: metadata.name.clone().unwrap_or_default(),
        }
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.subject.label())?;
        match self.namespace.as_str() {
            "" => write!(f, " {}", self.name),
            namespace => write!(f, " {namespace}/{}", self.name),
        }
    }
}

/// All of them, kept up to date for as long as their followers run.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    objects: Arc<Mutex<BTreeMap<Key, DynamicObject>>>,
    listed: Arc<Mutex<BTreeMap<Subject, ApiResource>>>,
    changed: Arc<Notify>,
}

impl Seen {
    /// Completes when something is different. Cancel safe; a change that nobody waited for is kept.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    pub(super) fn of(&self, subject: Subject) -> Vec<(Key, DynamicObject)> {
        let objects = self.objects.lock();
        let own = objects.iter().filter(|(key, _)| key.subject == subject);
        own.map(|(key, object)| (key.clone(), object.clone())).collect()
    }

    pub(super) fn has(&self, key: &Key) -> bool {
        self.objects.lock().contains_key(key)
    }

    /// In which version a kind is served, once all its objects are known.
    pub(super) fn resource(&self, subject: Subject) -> Option<ApiResource> {
        self.listed.lock().get(&subject).cloned()
    }

    /// What the server answered to a write of ours; nothing is told, since we know. A version that came by the watch in the
    /// meantime is newer and stays.
    pub(super) fn wrote(&self, key: &Key, before: Option<&String>, answer: DynamicObject) {
        if let Some(held) = self.objects.lock().get_mut(key)
            && held.metadata.resource_version.as_ref() == before
        {
            *held = answer;
        }
    }

    /// Follows a kind until it is dropped.
    pub(super) async fn follow(self, client: Client, subject: Subject) {
        let resource = self.served(&client, subject).await;
        let api: Api<DynamicObject> = Api::all_with(client, &resource);
        let tell = |change| {
            self.take(subject, change);
            self.listed.lock().entry(subject).or_insert_with(|| resource.clone());
            self.changed.notify_one();
        };
        follow(api, subject.label(), None, tell).await;
    }

    fn take(&self, subject: Subject, change: Change<DynamicObject>) {
        let mut objects = self.objects.lock();
        match change {
            Change::All(all) => {
                objects.retain(|key, _| key.subject != subject);
                objects.extend(all.into_iter().map(|object| (Key::of(subject, &object), object)));
            }
            Change::Applied(object) => drop(objects.insert(Key::of(subject, &object), object)),
            Change::Deleted(object) => drop(objects.remove(&Key::of(subject, &object))),
        }
    }

    /// The first version that the server knows; clusters without Gateway API know none, until they do.
    async fn served(&self, client: &Client, subject: Subject) -> ApiResource {
        loop {
            let mut pause = NOT_SERVED_PAUSE;
            for resource in subject.resources() {
                let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
                match api.list_metadata(&ListParams::default().limit(1)).await {
                    Ok(_) => return resource,
                    Err(kube::Error::Api(status)) if status.code == 404 => {}
                    Err(error) => {
                        tracing::debug!(kind = subject.label(), %error, "cannot ask whether it is served");
                        pause = FAILURE_PAUSE;
                    }
                }
            }
            tokio::time::sleep(back_off::half_to_whole(pause)).await;
        }
    }
}
