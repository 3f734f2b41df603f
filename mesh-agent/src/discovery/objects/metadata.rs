//! What is read of any object's metadata. The rest is skipped as it is read: a pod's `managedFields` alone are often longer
//! than all that the mesh takes from it.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::IgnoredAny;

/// Metadata of an object.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Metadata {
    /// UID.
    pub uid: Option<String>,
    /// Labels.
    pub labels: Option<BTreeMap<String, String>>,
    /// Annotations.
    pub annotations: Option<BTreeMap<String, String>>,
    /// Who it belongs to.
    pub owner_references: Option<Vec<Owner>>,
    /// It has been told to go.
    pub deletion_timestamp: Option<IgnoredAny>,
}

/// One entry of `ownerReferences`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Owner {
    /// Kind.
    pub kind: String,
    /// Name.
    pub name: String,
    /// It is the one that made the object and looks after it.
    pub controller: Option<bool>,
}
