//! The status that control writes on our kinds, in the shape that Gateway API gives policies (GEP-713).
#![expect(unreachable_pub, reason = "the schemas' derive copies a public type into a function")]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `status` of an AuthorizationPolicy, in the shape of GEP-713. Written by control.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct AuthorizationPolicyStatus {
    /// What is said about the policy, by whom.
    #[serde(default)]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub ancestors: Vec<PolicyAncestorStatus>,
    /// Nodes on which this version is in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes_ready: Option<u32>,
    /// Nodes that have an agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes_total: Option<u32>,
}

/// `status.ancestors[]`: what one controller says.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct PolicyAncestorStatus {
    /// Of what this speaks: the namespace whose pods the policy selects.
    pub ancestor_ref: AncestorRef,
    /// Who speaks; ours is `weft.dev/mesh`.
    pub controller_name: String,
    /// `Accepted`; `Programmed`: this version is in force on every node.
    #[serde(default)]
    #[schemars(length(max = 8))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".to_owned()]))]
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
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct MeshConfigStatus {
    /// `Accepted`: these are the mesh's settings. `Programmed`: control and every node work by them.
    #[serde(default)]
    #[schemars(length(max = 8))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".to_owned()]))]
    pub conditions: Vec<Condition>,
    /// Nodes on which this version is in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes_ready: Option<u32>,
    /// Nodes that have an agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes_total: Option<u32>,
}
