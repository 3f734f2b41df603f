//! Validated objects, by kind, namespace and name, whatever their source: what a source fills and `compile` reads.
//!
//! Validation looks at one object at a time ("parse, don't validate": what is kept is the facts that the mesh needs,
//! already read). What depends on other objects is `compile`'s part.
//!
//! Reading order: this file, `metadata` and `read` (one object, whatever its source), `pod`, `service`, `slice`, `cluster` (namespaces, nodes), `route`, `policy`, `config`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use super::problem::{Fault, FieldPath};
use crate::model::{self, Generations, RouteKind};
use metadata::Metadata;

pub mod cluster;
pub mod config;
pub mod metadata;
pub mod pod;
pub mod policy;
pub mod read;
pub mod route;
pub mod service;
mod shared;
pub mod slice;

/// The kinds that the mesh reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// `v1` Namespace.
    Namespace,
    /// `v1` Node.
    Node,
    /// `v1` ServiceAccount.
    ServiceAccount,
    /// `v1` Pod.
    Pod,
    /// `v1` Service.
    Service,
    /// `discovery.k8s.io/v1` EndpointSlice.
    EndpointSlice,
    /// A route of Gateway API.
    Route(RouteKind),
    /// `weft.dev/v1alpha1` MeshConfig.
    MeshConfig,
    /// `weft.dev/v1alpha1` AuthorizationPolicy.
    AuthorizationPolicy,
}

impl Kind {
    /// As written in `kind:`.
    pub fn label(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::Node => "Node",
            Self::ServiceAccount => "ServiceAccount",
            Self::Pod => "Pod",
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::Route(kind) => kind.label(),
            Self::MeshConfig => "MeshConfig",
            Self::AuthorizationPolicy => "AuthorizationPolicy",
        }
    }

    /// True for objects that a user changes and of which it is told where they are in force.
    pub fn is_tracked(self) -> bool {
        matches!(self, Self::Route(_) | Self::MeshConfig | Self::AuthorizationPolicy)
    }

    /// False for objects of the whole cluster.
    pub fn is_namespaced(self) -> bool {
        !matches!(self, Self::Namespace | Self::Node | Self::MeshConfig)
    }
}

/// What names an object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// Kind.
    pub kind: Kind,
    /// Namespace; empty for objects of the whole cluster.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            write!(f, "{} {}", self.kind.label(), self.name)
        } else {
            write!(f, "{} {}/{}", self.kind.label(), self.namespace, self.name)
        }
    }
}

impl Key {
    /// Checks the names, which become parts of SPIFFE ids and metric labels. An absent namespace is `default`.
    ///
    /// # Errors
    /// The fault names the field.
    pub fn new(kind: Kind, namespace: Option<&str>, name: Option<&str>) -> Result<Self, Fault> {
        let name_field = || FieldPath::of("metadata.name");
        let name = name.ok_or_else(|| Fault::at(name_field(), "missing: every object needs a name"))?;
        check_name(name, 253).map_err(|message| Fault::at(name_field(), message))?;
        let namespace = if kind.is_namespaced() { namespace.unwrap_or("default") } else { "" };
        if kind.is_namespaced() {
            check_name(namespace, 63)
                .map_err(|message| Fault::at(FieldPath::of("metadata.namespace"), message))?;
        }
        Ok(Self { kind, namespace: namespace.into(), name: name.into() })
    }
}

/// RFC 1123 subdomain, as Kubernetes asks of names.
pub(super) fn check_name(name: &str, len_max: usize) -> Result<(), String> {
    let alphanumeric = |byte: Option<&u8>| byte.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let bytes = name.as_bytes();
    let valid = bytes.len() <= len_max
        && alphanumeric(bytes.first())
        && alphanumeric(bytes.last())
        && bytes.iter().all(|b| alphanumeric(Some(b)) || matches!(b, b'-' | b'.'));
    if valid {
        Ok(())
    } else {
        Err(format!(
            "{name:?} is not a name: use up to {len_max} of a-z, 0-9, '-' and '.', no '-' or '.' at the ends"
        ))
    }
}

/// One validated object.
#[derive(Clone, Debug)]
pub enum Object {
    /// See [`cluster::Namespace`].
    Namespace(cluster::Namespace),
    /// See [`cluster::Node`].
    Node(cluster::Node),
    /// It exists, which is all that counts.
    ServiceAccount,
    /// See [`pod::Pod`].
    Pod(Box<pod::Pod>),
    /// See [`service::Service`].
    Service(service::Service),
    /// See [`slice::Slice`].
    EndpointSlice(slice::Slice),
    /// See [`route::Route`].
    Route(Box<route::Route>),
    /// Settings of the mesh.
    MeshConfig(model::MeshConfig),
    /// There are settings, but they cannot be read: nobody is admitted by default.
    UnusableMeshConfig,
    /// `cluster_wide` is settled by `compile`, which knows the system namespace.
    AuthorizationPolicy(Box<model::AuthorizationPolicy>),
}

/// Which version of an object was read. Two that are equal are the same text, but for labels and the like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// `metadata.uid`: an object that was deleted and made again is another.
    pub uid: Arc<str>,
    /// `metadata.generation`.
    pub generation: i64,
}

/// An object and its place in the order in which conflicts are settled.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Lower is earlier; of two objects that cannot both be, the earlier wins. Must be the same on every node.
    pub rank: u64,
    /// Which version it is, for kinds that are tracked and where the source knows. `None` also for what only stands in
    /// for an object.
    pub version: Option<Version>,
    /// The object.
    pub object: Arc<Object>,
}

impl Object {
    /// True when both say the same, as far as that is cheap to tell. An API server sends a pod or a slice again for every
    /// change of it, and few of those are about what the mesh keeps.
    fn says_the_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Namespace(one), Self::Namespace(other)) => one == other,
            (Self::Node(one), Self::Node(other)) => one == other,
            (Self::ServiceAccount, Self::ServiceAccount) => true,
            (Self::Pod(one), Self::Pod(other)) => one == other,
            (Self::Service(one), Self::Service(other)) => one == other,
            (Self::EndpointSlice(one), Self::EndpointSlice(other)) => one == other,
            _ => false,
        }
    }
}

/// All objects, and which of them changed since somebody last asked.
#[derive(Clone, Debug, Default)]
pub struct Objects {
    entries: BTreeMap<Key, Entry>,
    changed: BTreeSet<Key>,
    shared: shared::Shared,
}

impl Objects {
    /// Makes a key use the texts that other keys and objects use, for those who keep keys beside these.
    pub fn share_key(&mut self, key: &mut Key) {
        self.shared.share_key(key);
    }

    /// Adds or replaces an object without a version. One that says what the one before said, with the same rank, changes
    /// nothing.
    pub fn insert(&mut self, key: Key, rank: u64, object: Arc<Object>) {
        self.put(key, Entry { rank, version: None, object });
    }

    /// Adds or replaces. An object that says what the one before said, with the same rank, changes nothing, and neither does
    /// the same version again: that is what is sent when somebody writes its status.
    pub fn put(&mut self, mut key: Key, entry: Entry) {
        let Entry { rank, version, mut object } = entry;
        let same = |old: &Entry| {
            let is_same_version = version.is_some() && old.version == version;
            let says_the_same = Arc::ptr_eq(&old.object, &object) || old.object.says_the_same(&object);
            old.rank == rank && (is_same_version || says_the_same)
        };
        if self.entries.get(&key).is_some_and(same) {
            return;
        }
        self.shared.share_key(&mut key);
        self.shared.share(&mut object);
        self.changed.insert(key.clone());
        self.entries.insert(key, Entry { rank, version, object });
    }

    /// Removes, if it is there.
    pub fn remove(&mut self, key: &Key) {
        if let Some((key, _)) = self.entries.remove_entry(key) {
            self.changed.insert(key);
        }
    }

    /// Keeps those for which this is true.
    pub fn retain(&mut self, mut is_kept: impl FnMut(&Key) -> bool) {
        let gone: Vec<Key> = self.entries.keys().filter(|key| !is_kept(key)).cloned().collect();
        for key in gone {
            self.remove(&key);
        }
    }

    /// The keys that were added, replaced or removed since the last call. For the one who compiles; asking twice loses
    /// what the first asked for.
    pub fn take_changed(&mut self) -> BTreeSet<Key> {
        std::mem::take(&mut self.changed)
    }

    /// True when [`Objects::take_changed`] would have something to tell.
    pub fn has_changed(&self) -> bool {
        !self.changed.is_empty()
    }

    /// One object.
    pub fn get(&self, key: &Key) -> Option<&Entry> {
        self.entries.get(key)
    }

    /// All objects of a kind, by namespace and name.
    pub fn of_kind(&self, kind: Kind) -> impl Iterator<Item = (&Key, &Entry)> {
        let first = Key { kind, namespace: "".into(), name: "".into() };
        self.entries.range(first..).take_while(move |(key, _)| key.kind == kind)
    }

    /// The objects of a kind in one namespace, by name.
    pub fn in_namespace<'a>(
        &'a self,
        kind: Kind,
        namespace: &'a str,
    ) -> impl Iterator<Item = (&'a Key, &'a Entry)> {
        let first = Key { kind, namespace: namespace.into(), name: "".into() };
        let is_inside = move |key: &Key| key.kind == kind && *key.namespace == *namespace;
        self.entries.range(first..).take_while(move |(key, _)| is_inside(key))
    }

    /// Which version of each tracked object is here.
    pub fn generations(&self) -> Generations {
        let routes = [RouteKind::Http, RouteKind::Grpc, RouteKind::Tls, RouteKind::Tcp].map(Kind::Route);
        let kinds = routes.into_iter().chain([Kind::MeshConfig, Kind::AuthorizationPolicy]);
        let versions =
            kinds.flat_map(|kind| self.of_kind(kind)).filter_map(|(_, entry)| entry.version.as_ref());
        versions.map(|version| (version.uid.clone(), version.generation)).collect()
    }

    /// What names them, in order.
    pub fn keys(&self) -> impl Iterator<Item = &Key> {
        self.entries.keys()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// True when there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

/// Label of pods and namespaces that settles enrolment.
pub const MESH_LABEL: &str = "weft.dev/mesh";

/// Reads [`MESH_LABEL`]: a mistyped value must not read as "outside the mesh".
fn mesh_label(metadata: &Metadata) -> Result<Option<bool>, Fault> {
    switch(metadata.labels.as_ref(), "labels", MESH_LABEL)
}

/// Reads a label or annotation that is `enabled` or `disabled`.
fn switch(map: Option<&BTreeMap<String, String>>, map_name: &str, name: &str) -> Result<Option<bool>, Fault> {
    match map.and_then(|map| map.get(name)).map(String::as_str) {
        None => Ok(None),
        Some("enabled") => Ok(Some(true)),
        Some("disabled") => Ok(Some(false)),
        Some(other) => Err(Fault::at(
            FieldPath::of("metadata").key(map_name).key(name),
            format!("{other:?} is not a setting: write enabled or disabled"),
        )),
    }
}

/// Label or annotation: `enabled` tells the pod in a request header who its clients are.
pub const FORWARD_CLIENT_CERT: &str = "weft.dev/forward-client-cert";

/// Reads [`FORWARD_CLIENT_CERT`]; an annotation comes before a label.
fn forward_client_cert(metadata: &Metadata) -> Result<Option<bool>, Fault> {
    let annotation = switch(metadata.annotations.as_ref(), "annotations", FORWARD_CLIENT_CERT)?;
    Ok(annotation.or(switch(metadata.labels.as_ref(), "labels", FORWARD_CLIENT_CERT)?))
}

/// Reads a port number.
fn port(number: i32, field: impl FnOnce() -> FieldPath) -> Result<u16, Fault> {
    match u16::try_from(number) {
        Ok(port) if port != 0 => Ok(port),
        _ => Err(Fault::at(field(), format!("{number} is not a port: use 1 to 65535"))),
    }
}

/// Reads an address, canonical.
fn address(text: &str, field: impl FnOnce() -> FieldPath) -> Result<IpAddr, Fault> {
    match text.parse::<IpAddr>() {
        Ok(ip) => Ok(model::canonical_ip(ip)),
        Err(_) => Err(Fault::at(field(), format!("{text:?} is not an IP address"))),
    }
}

/// Transport protocol of a port; TCP unless written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP, which the mesh leaves alone.
    Sctp,
}

fn protocol(text: Option<&str>, field: impl FnOnce() -> FieldPath) -> Result<Protocol, Fault> {
    match text {
        None | Some("TCP") => Ok(Protocol::Tcp),
        Some("UDP") => Ok(Protocol::Udp),
        Some("SCTP") => Ok(Protocol::Sctp),
        Some(other) => Err(Fault::at(field(), format!("{other:?} is not a protocol: use TCP, UDP or SCTP"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Key {
        Key::new(Kind::Namespace, None, Some(name)).unwrap()
    }

    fn namespace(mesh: bool) -> Arc<Object> {
        Arc::new(Object::Namespace(cluster::Namespace { mesh: Some(mesh), ..Default::default() }))
    }

    fn taken(objects: &mut Objects) -> Vec<String> {
        objects.take_changed().into_iter().map(|key| key.name.to_string()).collect()
    }

    #[test]
    fn what_was_added_replaced_or_removed_is_told_once() {
        let mut objects = Objects::default();
        objects.insert(key("a"), 1, namespace(true));
        objects.insert(key("b"), 2, namespace(true));
        assert_eq!(taken(&mut objects), ["a", "b"]);
        assert_eq!(taken(&mut objects), [""; 0]);
        objects.insert(key("a"), 1, namespace(false));
        objects.remove(&key("b"));
        objects.remove(&key("nobody"));
        assert_eq!(taken(&mut objects), ["a", "b"]);
        objects.retain(|key| &*key.name != "a");
        assert_eq!(taken(&mut objects), ["a"]);
        assert!(objects.is_empty());
    }

    #[test]
    fn an_object_that_says_the_same_again_changes_nothing_unless_its_rank_does() {
        let mut objects = Objects::default();
        let first = namespace(true);
        objects.insert(key("a"), 1, first.clone());
        objects.take_changed();
        objects.insert(key("a"), 1, namespace(true));
        assert!(Arc::ptr_eq(&objects.get(&key("a")).unwrap().object, &first));
        assert_eq!(taken(&mut objects), [""; 0]);
        objects.insert(key("a"), 2, first);
        assert_eq!(taken(&mut objects), ["a"]);
    }

    fn config(uid: &str, generation: i64) -> Entry {
        let object = Arc::new(Object::MeshConfig(model::MeshConfig::default()));
        Entry { rank: 1, version: Some(Version { uid: uid.into(), generation }), object }
    }

    #[test]
    fn a_version_that_is_sent_again_changes_nothing_and_another_does() {
        let mut objects = Objects::default();
        let key = || Key::new(Kind::MeshConfig, None, Some("a")).unwrap();
        for (entry, expected) in [
            (config("x", 1), &["a"][..]),
            (config("x", 1), &[]),
            (config("x", 2), &["a"]),
            (config("y", 2), &["a"]),
            (Entry { version: None, ..config("y", 2) }, &["a"]),
            (Entry { version: None, ..config("y", 2) }, &["a"]),
        ] {
            objects.put(key(), entry.clone());
            assert_eq!(taken(&mut objects), expected, "{entry:?}");
        }
        assert!(objects.generations().is_empty(), "what has no version is not told of");
        objects.put(key(), config("y", 3));
        assert_eq!(objects.generations(), [("y".into(), 3)].into());
    }
}
