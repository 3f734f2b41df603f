//! Reading JSON into the types of Gateway API without passing over what they do not know: a field that is not there in
//! the type would otherwise be dropped in silence, and with it what its author asked for.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Fault, FieldPath};

/// Fields of Gateway API's experimental channel that are known and not carried out.
const LATER: [&str; 3] = ["retry", "sessionPersistence", "externalAuth"];

/// Reads a value.
pub(super) fn read<T: DeserializeOwned + Serialize>(value: &Value, field: &FieldPath) -> Result<T, Fault> {
    let read: T = read_loosely(value, field)?;
    let understood =
        serde_json::to_value(&read).map_err(|error| Fault::at(field.clone(), error.to_string()))?;
    match unknown_field(value, &understood, field) {
        Some((field, name)) if LATER.contains(&name) => {
            Err(Fault::at(field, format!("{name} is not supported yet")))
        }
        Some((field, name)) => Err(Fault::at(field, format!("unknown field `{name}`"))),
        None => Ok(read),
    }
}

/// Reads a value and leaves out what the type does not know.
pub(super) fn read_loosely<'de, T: Deserialize<'de>>(
    value: &'de Value,
    field: &FieldPath,
) -> Result<T, Fault> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        Fault::at(field.join(&FieldPath::from(error.path())), error.into_inner().to_string())
    })
}

/// Reads a value of one generated type as another of the same shape. Gateway API's types repeat the same structure
/// under many names.
pub(super) fn recast<T: DeserializeOwned>(value: &impl Serialize, field: &FieldPath) -> Result<T, Fault> {
    serde_json::to_value(value)
        .and_then(serde_json::from_value)
        .map_err(|error| Fault::at(field.clone(), error.to_string()))
}

/// The first field that was written and is not in what was understood.
fn unknown_field<'a>(
    written: &'a Value,
    understood: &Value,
    field: &FieldPath,
) -> Option<(FieldPath, &'a str)> {
    match (written, understood) {
        (Value::Object(written), Value::Object(understood)) => {
            // A field that is written as null counts as absent.
            let mut written = written.iter().filter(|(_, value)| !value.is_null());
            written.find_map(|(name, value)| match understood.get(name) {
                None => Some((field.key(name), name.as_str())),
                Some(known) => unknown_field(value, known, &field.key(name)),
            })
        }
        (Value::Array(written), Value::Array(understood)) => {
            let mut pairs = written.iter().zip(understood).enumerate();
            pairs.find_map(|(index, (value, known))| unknown_field(value, known, &field.index(index)))
        }
        _ => None,
    }
}
