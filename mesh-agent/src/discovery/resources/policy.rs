//! `AuthorizationPolicy`: who may connect to pods, and with which requests.
#![expect(clippy::duplicated_attributes, reason = "each printed column says its own type and path")]
#![expect(unreachable_pub, reason = "the schemas' derive copies a public type into a function")]

use std::collections::BTreeMap;

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::status::AuthorizationPolicyStatus;
use super::{Present, not_null};

/// Who may connect to the selected pods.
#[derive(CustomResource, Clone, Debug, Deserialize, Serialize, KubeSchema)]
#[kube(
    group = "weft.dev",
    version = "v1alpha1",
    kind = "AuthorizationPolicy",
    namespaced,
    status = "AuthorizationPolicyStatus",
    doc = "Who may connect to the selected pods, and with which requests.",
    shortname = "authzpol",
    category = "weft",
    label("app.kubernetes.io/name", "weft"),
    printcolumn(name = "Action", type_ = "string", json_path = ".spec.action"),
    printcolumn(name = "Level", type_ = "string", json_path = ".spec.enforcementLevel"),
    printcolumn(
        name = "Accepted",
        type_ = "string",
        json_path = r#".status.ancestors[?(@.controllerName=="weft.dev/mesh")].conditions[?(@.type=="Accepted")].status"#
    ),
    printcolumn(name = "Ready", type_ = "integer", json_path = ".status.nodesReady"),
    printcolumn(name = "Nodes", type_ = "integer", json_path = ".status.nodesTotal"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("(has(self.enforcementLevel) && self.enforcementLevel == 'Application') || !has(self.rules) || !self.rules.exists(rule, has(rule.http))").message("http in a rule needs enforcementLevel: Application, because requests are judged one by one"))]
pub struct AuthorizationPolicySpec {
    /// Pods that the policy speaks about; alternatives.
    #[schemars(length(min = 1, max = 64))]
    pub target_refs: Vec<TargetRef>,
    /// What a matching rule does.
    pub action: PolicyAction,
    /// What the rules look at.
    #[serde(default)]
    pub enforcement_level: EnforcementLevel,
    /// Alternatives. None: matches nothing, which for ALLOW refuses everybody.
    #[serde(default)]
    #[schemars(length(max = 256))]
    pub rules: Vec<RuleSpec>,
}

/// `spec.action`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum PolicyAction {
    /// Admits.
    Allow,
    /// Refuses.
    Deny,
    /// Records.
    Audit,
}

/// `spec.enforcementLevel`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Deserialize, Serialize, JsonSchema)]
pub enum EnforcementLevel {
    /// Connections.
    #[default]
    Network,
    /// Requests too: `http` in rules.
    Application,
}

/// `spec.targetRefs[]`: pods by label.
#[derive(Clone, Debug, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("self.kind == 'Pod' && (!has(self.group) || self.group == '')").message("only kind Pod of group \"\" can be targeted"))]
pub struct TargetRef {
    /// API group of the kind; empty for Pod.
    #[serde(default)]
    pub group: String,
    /// `Pod`.
    pub kind: String,
    /// Which pods; `{}` for all of the namespace.
    pub selector: LabelSelector,
}

/// A label selector, strict about its fields.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LabelSelector {
    /// Labels with their values.
    #[serde(default)]
    pub match_labels: BTreeMap<String, String>,
    /// Further requirements.
    #[serde(default)]
    #[schemars(length(max = 32))]
    pub match_expressions: Vec<LabelRequirement>,
}

/// `matchExpressions[]`.
#[derive(Clone, Debug, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("self.operator in ['In', 'NotIn'] ? has(self.values) && size(self.values) > 0 : !has(self.values) || size(self.values) == 0").message("In and NotIn need values, Exists and DoesNotExist take none"))]
pub struct LabelRequirement {
    /// Label.
    pub key: String,
    /// How it is compared.
    pub operator: LabelOperator,
    /// With what; empty for Exists and DoesNotExist.
    #[serde(default)]
    #[schemars(length(max = 256))]
    pub values: Vec<String>,
}

/// `matchExpressions[].operator`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum LabelOperator {
    /// One of the values.
    In,
    /// None of the values, or absent.
    NotIn,
    /// Present.
    Exists,
    /// Absent.
    DoesNotExist,
}

/// `spec.rules[]`.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RuleSpec {
    /// Peers; absent: anybody, empty: nobody. `null` is refused, because it reads as neither.
    #[serde(default, deserialize_with = "not_null", skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub sources: Option<Vec<SourceSpec>>,
    /// Properties of the connection.
    #[serde(default, deserialize_with = "not_null", skip_serializing_if = "Option::is_none")]
    pub network_attributes: Option<NetworkAttributes>,
    /// Requests, alternatives; absent: connections and every request on them, empty: no request. Needs
    /// `enforcementLevel: Application`.
    #[serde(default, deserialize_with = "not_null", skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub http: Option<Vec<HttpMatchSpec>>,
}

/// `spec.rules[].http[]`. All fields must match; an absent one is no restriction, an empty one matches nothing.
#[derive(Clone, Debug, Default, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("!has(self.grpcMethods) || (!has(self.methods) && !has(self.paths))").message("grpcMethods says method and path by itself: methods and paths cannot stand beside it"))]
pub struct HttpMatchSpec {
    /// Methods, alternatives.
    #[serde(default, deserialize_with = "not_null", skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32), inner(length(max = 64), regex(pattern = r"^[A-Za-z0-9!#$%&'*+.^_`|~-]+$")))]
    #[x_kube(validation = Rule::new("self.all(method, method != '*')").message("leave methods out for every method"))]
    pub methods: Option<Vec<String>>,
    /// Paths, alternatives.
    #[serde(default, deserialize_with = "not_null", skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub paths: Option<Vec<PathPatternSpec>>,
    /// Headers, all of which must match.
    #[serde(default, deserialize_with = "not_null", skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    pub headers: Option<Vec<HeaderPatternSpec>>,
    /// gRPC calls, alternatives; not together with `methods` or `paths`.
    #[serde(default, deserialize_with = "not_null", skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub grpc_methods: Option<Vec<GrpcMethodSpec>>,
}

/// `spec.rules[].http[].paths[]`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PathPatternSpec {
    /// How it is compared.
    #[serde(rename = "type")]
    pub kind: PathPatternType,
    /// A path in normal form, or a template.
    #[schemars(length(max = 1024), regex(pattern = r"^/"))]
    pub value: String,
}

/// `spec.rules[].http[].paths[].type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum PathPatternType {
    /// The whole path.
    Exact,
    /// The path and everything below it, by whole segments.
    PathPrefix,
    /// Segment by segment: `{name}` is one, `{name=**}` at the end any number.
    Template,
}

/// `spec.rules[].http[].headers[]`.
#[derive(Clone, Debug, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("(has(self.type) && self.type == 'Present') ? !has(self.value) : has(self.value)").message("type Present takes no value, the others need one"))]
#[x_kube(validation = Rule::new("!has(self.type) || self.type != 'Prefix' || !has(self.value) || self.value != ''").message("an empty prefix begins every value: use type Present"))]
pub struct HeaderPatternSpec {
    /// Name; `host` is the request's authority in every version of HTTP.
    #[schemars(length(max = 256), regex(pattern = r"^[A-Za-z0-9!#$%&'*+.^_`|~-]+$"))]
    pub name: String,
    /// How the value is compared.
    #[serde(rename = "type", default)]
    pub kind: HeaderPatternType,
    /// With what; not for `Present`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4096))]
    pub value: Option<String>,
}

/// `spec.rules[].http[].headers[].type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Deserialize, Serialize, JsonSchema)]
pub enum HeaderPatternType {
    /// The whole value.
    #[default]
    Exact,
    /// Its beginning.
    Prefix,
    /// Any value.
    Present,
}

/// `spec.rules[].http[].grpcMethods[]`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GrpcMethodSpec {
    /// Fully qualified service, such as `shop.v1.Orders`; absent or `*`: any.
    #[serde(default, deserialize_with = "not_null", skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024), regex(pattern = r"^(\*|[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*)$"))]
    pub service: Option<String>,
    /// Method, such as `List`; absent or `*`: any.
    #[serde(default, deserialize_with = "not_null", skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024), regex(pattern = r"^(\*|[A-Za-z0-9_]+)$"))]
    pub method: Option<String>,
}

/// `spec.rules[].networkAttributes`.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NetworkAttributes {
    /// Ports of the pod; absent: every port, empty: none.
    #[serde(default, deserialize_with = "not_null", skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256), inner(range(min = 1, max = 65535)))]
    pub ports: Option<Vec<u16>>,
}

/// `spec.rules[].sources[]`. Exactly the field that belongs to the type is set.
#[derive(Clone, Debug, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("(self.type == 'ServiceAccount') == has(self.serviceAccount)").message("serviceAccount belongs to type ServiceAccount, which needs it"))]
#[x_kube(validation = Rule::new("(self.type == 'SPIFFE') == has(self.spiffe)").message("spiffe belongs to type SPIFFE, which needs it"))]
#[x_kube(validation = Rule::new("(self.type == 'CIDR') == has(self.cidr)").message("cidr belongs to type CIDR, which needs it"))]
pub struct SourceSpec {
    /// Which kind of source.
    #[serde(rename = "type")]
    pub kind: SourceType,
    /// For `ServiceAccount`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_account: Option<ServiceAccountRef>,
    /// For `SPIFFE`: an id; a trailing `*` matches any suffix.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048), regex(pattern = r"^spiffe://[^*]*\*?$"))]
    pub spiffe: Option<String>,
    /// For `CIDR`: a range or a single address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64), regex(pattern = r"^[0-9A-Fa-f.:]+(/[0-9]{1,3})?$"))]
    pub cidr: Option<String>,
    /// For `JWT`. Not supported yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(skip)]
    pub issuer: Option<Present>,
    /// For `JWT`. Not supported yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(skip)]
    pub claims: Option<Present>,
}

/// `spec.rules[].sources[].type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum SourceType {
    /// A service account of the mesh.
    ServiceAccount,
    /// A SPIFFE id.
    #[serde(rename = "SPIFFE")]
    Spiffe,
    /// The client's address.
    #[serde(rename = "CIDR")]
    Cidr,
    /// Any verified identity.
    AnyAuthenticated,
    /// A token. Not supported yet.
    #[serde(rename = "JWT")]
    #[schemars(skip)]
    Jwt,
}

/// `spec.rules[].sources[].serviceAccount`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServiceAccountRef {
    /// Namespace; absent: the policy's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63), regex(pattern = r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$"))]
    pub namespace: Option<String>,
    /// Name, or `*` for every account of the namespace.
    #[schemars(length(max = 253), regex(pattern = r"^(\*|[a-z0-9]([a-z0-9.-]*[a-z0-9])?)$"))]
    pub name: String,
}
