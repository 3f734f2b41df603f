//! Our own kinds as users write them (`weft.dev/v1alpha1`), before validation. Unknown fields are refused, since a
//! mistyped field of a security object must not read as an absent one.
//!
//! Fields that are meant for later are named here, so that the refusal can say "not supported yet".

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

/// Who may connect to the selected pods.
#[derive(CustomResource, Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[kube(
    group = "weft.dev",
    version = "v1alpha1",
    kind = "AuthorizationPolicy",
    namespaced,
    status = "AuthorizationPolicyStatus"
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AuthorizationPolicySpec {
    /// Pods that the policy speaks about; alternatives.
    pub target_refs: Vec<TargetRef>,
    /// What a matching rule does.
    pub action: PolicyAction,
    /// What the rules look at.
    #[serde(default)]
    pub enforcement_level: EnforcementLevel,
    /// Alternatives. None: matches nothing, which for ALLOW refuses everybody.
    #[serde(default)]
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
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
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
    pub match_expressions: Vec<LabelRequirement>,
}

/// `matchExpressions[]`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LabelRequirement {
    /// Label.
    pub key: String,
    /// How it is compared.
    pub operator: LabelOperator,
    /// With what; empty for Exists and DoesNotExist.
    #[serde(default)]
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
    pub sources: Option<Vec<SourceSpec>>,
    /// Properties of the connection.
    #[serde(default, deserialize_with = "not_null", skip_serializing_if = "Option::is_none")]
    pub network_attributes: Option<NetworkAttributes>,
    /// Requests, alternatives; absent: connections and every request on them, empty: no request. Needs
    /// `enforcementLevel: Application`.
    #[serde(default, deserialize_with = "not_null", skip_serializing_if = "Option::is_none")]
    pub http: Option<Vec<HttpMatchSpec>>,
}

/// `spec.rules[].http[]`. All fields must match; an absent one is no restriction, an empty one matches nothing.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpMatchSpec {
    /// Methods, alternatives.
    #[serde(default, deserialize_with = "not_null", skip_serializing_if = "Option::is_none")]
    pub methods: Option<Vec<String>>,
    /// Paths, alternatives.
    #[serde(default, deserialize_with = "not_null", skip_serializing_if = "Option::is_none")]
    pub paths: Option<Vec<PathPatternSpec>>,
    /// Headers, all of which must match.
    #[serde(default, deserialize_with = "not_null", skip_serializing_if = "Option::is_none")]
    pub headers: Option<Vec<HeaderPatternSpec>>,
    /// gRPC calls, alternatives; not together with `methods` or `paths`.
    #[serde(default, deserialize_with = "not_null", skip_serializing_if = "Option::is_none")]
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
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HeaderPatternSpec {
    /// Name; `host` is the request's authority in every version of HTTP.
    pub name: String,
    /// How the value is compared.
    #[serde(rename = "type", default)]
    pub kind: HeaderPatternType,
    /// With what; not for `Present`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
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
    pub service: Option<String>,
    /// Method, such as `List`; absent or `*`: any.
    #[serde(default, deserialize_with = "not_null", skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
}

/// `spec.rules[].networkAttributes`.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NetworkAttributes {
    /// Ports of the pod; absent: every port, empty: none.
    #[serde(default, deserialize_with = "not_null", skip_serializing_if = "Option::is_none")]
    pub ports: Option<Vec<u16>>,
}

/// `spec.rules[].sources[]`. Exactly the field that belongs to the type is set.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SourceSpec {
    /// Which kind of source.
    #[serde(rename = "type")]
    pub kind: SourceType,
    /// For `ServiceAccount`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_account: Option<ServiceAccountRef>,
    /// For `SPIFFE`: an id; a trailing `*` matches any suffix.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spiffe: Option<String>,
    /// For `CIDR`: a range or a single address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
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
    Jwt,
}

/// `spec.rules[].sources[].serviceAccount`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServiceAccountRef {
    /// Namespace; absent: the policy's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Name, or `*` for every account of the namespace.
    pub name: String,
}

/// Settings of the whole mesh.
#[derive(CustomResource, Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[kube(group = "weft.dev", version = "v1alpha1", kind = "MeshConfig", status = "MeshConfigStatus")]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct MeshConfigSpec {
    /// Trust domain of our own CA; `cluster.local` unless set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trust_domain: Option<String>,
    /// Namespace whose policies hold everywhere; `weft-system` unless set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system_namespace: Option<String>,
    /// SVIDs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificates: Option<CertificatesSpec>,
    /// What happens where no ALLOW policy selects the pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_inbound: Option<DefaultInboundSpec>,
    /// Connections between pods of one node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fast_path: Option<FastPathSpec>,
    /// Not supported yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(skip)]
    pub trust_bundles: Option<Present>,
    /// Not supported yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(skip)]
    pub ca: Option<Present>,
    /// Not supported yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(skip)]
    pub egress_default: Option<Present>,
    /// Telling HTTP from other protocols by a connection's first bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol_detection: Option<ProtocolDetectionSpec>,
    /// What the mesh tells about itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub telemetry: Option<TelemetrySpec>,
    /// Not supported yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(skip)]
    pub enrollment: Option<Present>,
}

/// `spec.certificates`.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct CertificatesSpec {
    /// Lifetime of an SVID as a duration, for example `24h` or `90s` (GEP-2257); `24h` unless set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl: Option<String>,
    /// Not supported yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(skip)]
    pub key_alg: Option<Present>,
    /// Not supported yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(skip)]
    pub pq_mode: Option<Present>,
}

/// `spec.defaultInbound`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum DefaultInboundSpec {
    /// Everybody.
    Permissive,
    /// Verified identities.
    Authenticated,
    /// Nobody.
    Deny,
    /// Everybody, and clients without an identity are recorded.
    Audit,
}

/// `spec.protocolDetection`.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ProtocolDetectionSpec {
    /// Longest wait for a client's first bytes, as a duration (GEP-2257) from `0s` to `10s`; `1s` unless set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<String>,
}

/// `spec.telemetry`.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct TelemetrySpec {
    /// Traces.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tracing: Option<TracingSpec>,
    /// Not supported yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(skip)]
    pub metrics: Option<Present>,
    /// Not supported yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(skip)]
    pub access_log: Option<Present>,
    /// Not supported yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(skip)]
    pub path_templates: Option<Present>,
}

/// `spec.telemetry.tracing`.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct TracingSpec {
    /// Of requests without a trace context, the percentage for which a trace is begun, with up to two decimals; `0`
    /// unless set.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub sampling: Option<f64>,
    /// Not supported yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(skip)]
    pub otlp: Option<Present>,
}

/// `spec.fastPath`.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct FastPathSpec {
    /// Joining sockets in the kernel; `Enabled` unless set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub splice: Option<Switch>,
}

/// `status` of an AuthorizationPolicy, in the shape of GEP-713. Written by control.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AuthorizationPolicyStatus {
    /// What is said about the policy, by whom.
    #[serde(default)]
    #[schemars(length(max = 16))]
    pub ancestors: Vec<PolicyAncestorStatus>,
}

/// `status.ancestors[]`: what one controller says.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PolicyAncestorStatus {
    /// Of what this speaks: the namespace whose pods the policy selects.
    pub ancestor_ref: AncestorRef,
    /// Who speaks; ours is `weft.dev/mesh`.
    pub controller_name: String,
    /// `Accepted`.
    #[serde(default)]
    #[schemars(length(max = 8))]
    pub conditions: Vec<Condition>,
}

/// `status.ancestors[].ancestorRef`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AncestorRef {
    /// API group; empty for Namespace.
    #[serde(default)]
    pub group: String,
    /// Kind, `Namespace`.
    pub kind: String,
    /// Name.
    pub name: String,
}

/// `status` of a MeshConfig. Written by control.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MeshConfigStatus {
    /// `Accepted`: these are the mesh's settings. `Programmed`: control works by them.
    #[serde(default)]
    #[schemars(length(max = 8))]
    pub conditions: Vec<Condition>,
}

/// On or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum Switch {
    /// On.
    Enabled,
    /// Off.
    Disabled,
}

/// A field whose presence is all that is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Present;

impl<'de> Deserialize<'de> for Present {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        serde::de::IgnoredAny::deserialize(deserializer).map(|_| Self)
    }
}

impl Serialize for Present {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("present")
    }
}

/// An absent field is `None`; one that is written as `null` is an error.
fn not_null<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    let value = Option::<T>::deserialize(deserializer)?;
    value.map(Some).ok_or_else(|| {
        let message =
            "null can be read in two ways: leave the field out for no restriction, or write an empty value";
        serde::de::Error::custom(message)
    })
}
