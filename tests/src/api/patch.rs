//! Patches that name no owners: merge patch (RFC 7386), JSON patch (RFC 6902) and the strategic merge patch of built-in kinds.

use serde_json::{Value, json};

use super::owners::list_type;
use super::refusal::Refusal;
use super::resource::{ListType, Resource};

/// Carries out a merge patch.
pub fn merge(object: &mut Value, patch: &Value) {
    json_patch::merge(object, patch);
}

/// Carries out a JSON patch.
///
/// # Errors
/// It is none, or one of its steps cannot be done.
pub fn json(object: &mut Value, patch: &Value) -> Result<(), Refusal> {
    let patch: json_patch::Patch = serde_json::from_value(patch.clone())
        .map_err(|error| Refusal::new(400, format!("error decoding patch: {error}")))?;
    json_patch::patch(object, &patch).map_err(|error| {
        let mut refusal = Refusal::new(422, "the server rejected our request due to an error in our request");
        refusal.details = json!({ "causes": [{ "message": error.to_string() }] });
        refusal
    })
}

/// Carries out a strategic merge patch: as a merge patch, but lists whose items have keys are merged by them.
pub fn strategic(resource: &Resource, object: &mut Value, patch: &Value) {
    strategic_at(resource, object, patch, &mut Vec::new());
}

fn strategic_at(resource: &Resource, target: &mut Value, patch: &Value, names: &mut Vec<String>) {
    let Some(patch) = patch.as_object() else {
        *target = patch.clone();
        return;
    };
    if patch.get("$patch").is_some_and(|what| what == "replace") || !target.is_object() {
        *target = json!({});
    }
    for (name, value) in patch {
        if let Some(list) = name.strip_prefix("$deleteFromPrimitiveList/") {
            let gone = value.as_array().map(Vec::as_slice).unwrap_or_default();
            if let Some(items) = target.get_mut(list).and_then(Value::as_array_mut) {
                items.retain(|item| !gone.contains(item));
            }
            continue;
        }
        // The order of items and the keys to retain are hints that none of the tested objects needs.
        if name.starts_with('$') {
            continue;
        }
        let map = target.as_object_mut().expect("it is a map by now");
        if value.is_null() {
            map.remove(name);
            continue;
        }
        names.push(name.clone());
        let below = map.entry(name).or_insert(Value::Null);
        match (value, list_type(resource, names)) {
            (Value::Array(items), Some(list)) if !below.is_null() => {
                merge_list(resource, below, items, &list, names);
            }
            (Value::Object(_), _) => strategic_at(resource, below, value, names),
            _ => *below = value.clone(),
        }
        names.pop();
    }
}

fn merge_list(
    resource: &Resource,
    target: &mut Value,
    items: &[Value],
    list: &ListType,
    names: &mut Vec<String>,
) {
    let Some(present) = target.as_array_mut() else {
        *target = items.to_vec().into();
        return;
    };
    if items.iter().any(|item| item["$patch"] == "replace") {
        *present = items.iter().filter(|item| item["$patch"] != "replace").cloned().collect();
        return;
    }
    for item in items {
        // Strategic patches tell items apart by the first key alone.
        let same = |other: &Value| match list {
            ListType::Set => other == item,
            ListType::Map(keys) => keys.first().is_some_and(|key| other[key] == item[key]),
        };
        let place = present.iter().position(same);
        match (place, item["$patch"] == "delete") {
            (Some(index), true) => drop(present.remove(index)),
            (Some(index), false) => strategic_at(resource, &mut present[index], item, names),
            (None, true) => {}
            (None, false) => present.push(item.clone()),
        }
    }
}
