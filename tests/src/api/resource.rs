//! Which kinds are served: those of the table below, and those that a CustomResourceDefinition adds.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};

/// Where the objects of a kind are kept, whatever version they are asked in: API group and plural.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Kept {
    /// API group; empty for the core.
    pub group: Arc<str>,
    /// Plural name, as in paths.
    pub plural: Arc<str>,
}

impl Kept {
    /// The place of a group's plural.
    pub fn new(group: &str, plural: &str) -> Self {
        Self { group: group.into(), plural: plural.into() }
    }

    /// `pods`, `httproutes.gateway.networking.k8s.io`: how messages name it.
    pub fn qualified(&self) -> String {
        if self.group.is_empty() {
            self.plural.to_string()
        } else {
            format!("{}.{}", self.plural, self.group)
        }
    }
}

/// How the items of a list are told apart when two writers meet in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListType {
    /// By these fields.
    Map(Vec<String>),
    /// Each value stands for itself.
    Set,
}

/// One kind in one version.
#[derive(Clone, Debug)]
pub struct Resource {
    /// Where its objects are kept.
    pub kept: Kept,
    /// API version.
    pub version: String,
    /// Kind.
    pub kind: String,
    /// Kind of its lists.
    pub list_kind: String,
    /// Name of one, in lower case.
    pub singular: String,
    /// Objects are in namespaces.
    pub namespaced: bool,
    /// The status is a resource below the object, apart from all else.
    pub status: bool,
    /// `metadata.generation` counts changes of all but metadata and status.
    pub generation: bool,
    /// Made by a CustomResourceDefinition.
    pub custom: bool,
    /// A write without a resource version is taken, whatever is there.
    pub unconditional: bool,
    /// Nothing is kept: an object is posted and an answer comes back.
    pub answers_only: bool,
    /// Short names.
    pub short_names: Vec<String>,
    /// Lists with items of their own by the names of fields that lead there; the schema of a CustomResourceDefinition says it.
    pub lists: Option<BTreeMap<Vec<String>, ListType>>,
}

impl Resource {
    /// `apps/v1`, `v1`.
    pub fn api_version(&self) -> String {
        if self.kept.group.is_empty() {
            self.version.clone()
        } else {
            format!("{}/{}", self.kept.group, self.version)
        }
    }

    /// A kind that nobody described: custom, with a status.
    pub fn custom(group: &str, version: &str, plural: &str, kind: &str, namespaced: bool) -> Self {
        Self {
            kept: Kept::new(group, plural),
            version: version.into(),
            kind: kind.into(),
            list_kind: format!("{kind}List"),
            singular: kind.to_lowercase(),
            namespaced,
            status: true,
            generation: true,
            custom: true,
            unconditional: false,
            answers_only: false,
            short_names: Vec::new(),
            lists: None,
        }
    }

    /// Its entries in the list of a version's resources.
    pub fn describe(&self) -> Vec<Value> {
        let verbs: &[&str] = if self.answers_only {
            &["create"]
        } else {
            &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]
        };
        let mut entry = json!({
            "name": self.kept.plural.as_ref(), "singularName": self.singular, "namespaced": self.namespaced,
            "kind": self.kind, "verbs": verbs,
        });
        if !self.short_names.is_empty() {
            entry["shortNames"] = json!(self.short_names);
        }
        let mut entries = vec![entry];
        if self.status {
            entries.push(json!({
                "name": format!("{}/status", self.kept.plural), "singularName": "", "namespaced": self.namespaced,
                "kind": self.kind, "verbs": ["get", "patch", "update"],
            }));
        }
        if self.kept.group.is_empty() && &*self.kept.plural == "serviceaccounts" {
            entries.push(json!({
                "name": "serviceaccounts/token", "singularName": "", "namespaced": true,
                "group": "authentication.k8s.io", "version": "v1", "kind": "TokenRequest", "verbs": ["create"],
            }));
        }
        entries
    }
}

/// The kinds of a CustomResourceDefinition, one per version that it serves.
pub fn of_definition(definition: &Value) -> Vec<Resource> {
    let spec = &definition["spec"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (group, names) = (text(&spec["group"]), &spec["names"]);
    let (plural, kind) = (text(&names["plural"]), text(&names["kind"]));
    let versions = spec["versions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let served = versions.iter().filter(|version| version["served"] == true);
    served
        .map(|version| {
            let namespaced = spec["scope"] == "Namespaced";
            let mut resource = Resource::custom(&group, &text(&version["name"]), &plural, &kind, namespaced);
            resource.status = version["subresources"]["status"].is_object();
            let short = names["shortNames"].as_array().into_iter().flatten();
            resource.short_names = short.filter_map(Value::as_str).map(str::to_owned).collect();
            if let Some(list_kind) = names["listKind"].as_str() {
                resource.list_kind = list_kind.to_owned();
            }
            let mut lists = BTreeMap::new();
            lists_of_schema(&version["schema"]["openAPIV3Schema"], &mut Vec::new(), &mut lists);
            resource.lists = Some(lists);
            resource
        })
        .collect()
}

fn lists_of_schema(schema: &Value, path: &mut Vec<String>, lists: &mut BTreeMap<Vec<String>, ListType>) {
    match schema["x-kubernetes-list-type"].as_str() {
        Some("map") => {
            let keys = schema["x-kubernetes-list-map-keys"].as_array().into_iter().flatten();
            let keys = keys.filter_map(Value::as_str).map(str::to_owned).collect();
            lists.insert(path.clone(), ListType::Map(keys));
        }
        Some("set") => {
            lists.insert(path.clone(), ListType::Set);
        }
        _ => {}
    }
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        path.push(name.clone());
        lists_of_schema(property, path, lists);
        path.pop();
    }
    if schema["items"].is_object() {
        lists_of_schema(&schema["items"], path, lists);
    }
}

/// What the table says of a kind beyond its names.
const STATUS: u8 = 1;
const GENERATION: u8 = 2;
const CLUSTER: u8 = 4;
const ANSWERS: u8 = 8;
/// A write must say what it was made from.
const CONDITIONAL: u8 = 16;

/// Group, version, plural, kind, short name, and what else is so.
type Row = (&'static str, &'static str, &'static str, &'static str, &'static str, u8);

/// The kinds that a cluster has by itself, as far as a mesh and its installation touch them.
const TABLE: &[Row] = &[
    ("", "v1", "namespaces", "Namespace", "ns", CLUSTER | STATUS),
    ("", "v1", "nodes", "Node", "no", CLUSTER | STATUS),
    ("", "v1", "pods", "Pod", "po", STATUS),
    ("", "v1", "services", "Service", "svc", STATUS),
    ("", "v1", "endpoints", "Endpoints", "ep", 0),
    ("", "v1", "serviceaccounts", "ServiceAccount", "sa", 0),
    ("", "v1", "secrets", "Secret", "", 0),
    ("", "v1", "configmaps", "ConfigMap", "cm", 0),
    ("", "v1", "events", "Event", "ev", 0),
    ("apps", "v1", "daemonsets", "DaemonSet", "ds", STATUS | GENERATION),
    ("apps", "v1", "deployments", "Deployment", "deploy", STATUS | GENERATION),
    ("apps", "v1", "replicasets", "ReplicaSet", "rs", STATUS | GENERATION),
    ("apps", "v1", "statefulsets", "StatefulSet", "sts", STATUS | GENERATION),
    ("batch", "v1", "jobs", "Job", "", STATUS | GENERATION),
    ("coordination.k8s.io", "v1", "leases", "Lease", "", CONDITIONAL),
    ("discovery.k8s.io", "v1", "endpointslices", "EndpointSlice", "", GENERATION),
    ("events.k8s.io", "v1", "events", "Event", "ev", 0),
    ("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy", "netpol", GENERATION),
    ("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget", "pdb", STATUS | GENERATION),
    ("rbac.authorization.k8s.io", "v1", "roles", "Role", "", 0),
    ("rbac.authorization.k8s.io", "v1", "rolebindings", "RoleBinding", "", 0),
    ("rbac.authorization.k8s.io", "v1", "clusterroles", "ClusterRole", "", CLUSTER),
    ("rbac.authorization.k8s.io", "v1", "clusterrolebindings", "ClusterRoleBinding", "", CLUSTER),
    ("scheduling.k8s.io", "v1", "priorityclasses", "PriorityClass", "pc", CLUSTER | GENERATION),
    (
        "apiextensions.k8s.io",
        "v1",
        "customresourcedefinitions",
        "CustomResourceDefinition",
        "crd",
        CLUSTER | STATUS | GENERATION | CONDITIONAL,
    ),
    ("authentication.k8s.io", "v1", "tokenreviews", "TokenReview", "", CLUSTER | ANSWERS),
    (
        "authorization.k8s.io",
        "v1",
        "selfsubjectaccessreviews",
        "SelfSubjectAccessReview",
        "",
        CLUSTER | ANSWERS,
    ),
    ("authorization.k8s.io", "v1", "subjectaccessreviews", "SubjectAccessReview", "", CLUSTER | ANSWERS),
];

/// The kinds of the table.
pub fn built_in() -> Vec<Arc<Resource>> {
    let row = |&(group, version, plural, kind, short, what): &Row| Resource {
        status: what & STATUS != 0,
        generation: what & GENERATION != 0,
        custom: false,
        unconditional: what & CONDITIONAL == 0,
        answers_only: what & ANSWERS != 0,
        short_names: Some(short).filter(|short| !short.is_empty()).map(str::to_owned).into_iter().collect(),
        ..Resource::custom(group, version, plural, kind, what & CLUSTER == 0)
    };
    TABLE.iter().map(row).map(Arc::new).collect()
}

/// Kinds of the Gateway API and of the mesh, for those who want them without their definitions.
pub fn of_a_mesh() -> Vec<Resource> {
    let gateway = "gateway.networking.k8s.io";
    let rows = [
        (gateway, "v1", "gatewayclasses", "GatewayClass", false),
        (gateway, "v1", "gateways", "Gateway", true),
        (gateway, "v1", "httproutes", "HTTPRoute", true),
        (gateway, "v1beta1", "httproutes", "HTTPRoute", true),
        (gateway, "v1", "grpcroutes", "GRPCRoute", true),
        (gateway, "v1", "tlsroutes", "TLSRoute", true),
        (gateway, "v1alpha2", "tlsroutes", "TLSRoute", true),
        (gateway, "v1", "tcproutes", "TCPRoute", true),
        (gateway, "v1alpha2", "tcproutes", "TCPRoute", true),
        (gateway, "v1beta1", "referencegrants", "ReferenceGrant", true),
        ("gateway.networking.x-k8s.io", "v1alpha1", "xmeshes", "XMesh", false),
        ("weft.dev", "v1alpha1", "authorizationpolicies", "AuthorizationPolicy", true),
        ("weft.dev", "v1alpha1", "meshconfigs", "MeshConfig", false),
    ];
    rows.into_iter()
        .map(|(g, v, plural, kind, namespaced)| Resource::custom(g, v, plural, kind, namespaced))
        .collect()
}
