//! Our own kinds as users write them (`weft.dev/v1alpha1`), before validation. Unknown fields are refused, since a
//! mistyped field of a security object must not read as an absent one.
//!
//! Fields that are meant for later are named here, so that the refusal can say "not supported yet". The same types make
//! the schemas in `deploy/crds/` (see [`super::crds`]): `schemars` and `x_kube` attributes say what the API server can
//! refuse by itself, and never more than what `objects` refuses.
//!
//! Reading order: `policy` (AuthorizationPolicy), `mesh` (MeshConfig), `status` (what control says of both).

use serde::{Deserialize, Deserializer, Serialize};

mod mesh;
mod policy;
mod status;

pub use mesh::*;
pub use policy::*;
pub use status::*;

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
