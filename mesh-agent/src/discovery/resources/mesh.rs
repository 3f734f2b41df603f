//! `MeshConfig`: settings of the whole mesh.
#![expect(clippy::duplicated_attributes, reason = "each printed column says its own type and path")]
#![expect(unreachable_pub, reason = "the schemas' derive copies a public type into a function")]

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Present;
use super::status::MeshConfigStatus;

/// Settings of the whole mesh.
#[derive(CustomResource, Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[kube(
    group = "weft.dev",
    version = "v1alpha1",
    kind = "MeshConfig",
    status = "MeshConfigStatus",
    doc = "Settings of the whole mesh.",
    shortname = "meshcfg",
    category = "weft",
    label("app.kubernetes.io/name", "weft"),
    printcolumn(name = "Trust Domain", type_ = "string", json_path = ".spec.trustDomain"),
    printcolumn(name = "Default Inbound", type_ = "string", json_path = ".spec.defaultInbound"),
    printcolumn(
        name = "Accepted",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Accepted")].status"#
    ),
    printcolumn(name = "Ready", type_ = "integer", json_path = ".status.nodesReady"),
    printcolumn(name = "Nodes", type_ = "integer", json_path = ".status.nodesTotal"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct MeshConfigSpec {
    /// Trust domain of our own CA; `cluster.local` unless set.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255), regex(pattern = r"^[a-z0-9._-]+$"))]
    pub trust_domain: Option<String>,
    /// Namespace whose policies hold everywhere; `weft-system` unless set.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63), regex(pattern = r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$"))]
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
#[derive(Clone, Debug, Default, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CertificatesSpec {
    /// Lifetime of an SVID as a duration, for example `24h` or `90s` (GEP-2257); `24h` unless set.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32), regex(pattern = r"^([0-9]{1,5}(h|m|s|ms)){1,4}$"))]
    #[x_kube(validation = Rule::new("duration(self) >= duration('1s')").message("a lifetime is at least 1s"))]
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
#[derive(Clone, Debug, Default, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ProtocolDetectionSpec {
    /// Longest wait for a client's first bytes, as a duration (GEP-2257) from `0s` to `10s`; `1s` unless set.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32), regex(pattern = r"^([0-9]{1,5}(h|m|s|ms)){1,4}$"))]
    #[x_kube(validation = Rule::new("duration(self) <= duration('10s')").message("at most 10s"))]
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

/// On or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum Switch {
    /// On.
    Enabled,
    /// Off.
    Disabled,
}
