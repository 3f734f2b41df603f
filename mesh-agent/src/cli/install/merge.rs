//! A strategic merge patch, as far as `deploy/` needs it: fields are merged, and lists whose items have a key of their own are
//! merged item by item; all others are replaced.

use serde_json::Value;

/// Lists of a pod that are merged, and the key of their items (the API's `patchMergeKey`).
const KEYS: [(&str, &str); 7] = [
    ("containers", "name"),
    ("initContainers", "name"),
    ("env", "name"),
    ("volumes", "name"),
    ("volumeMounts", "mountPath"),
    ("ports", "containerPort"),
    ("imagePullSecrets", "name"),
];

/// Puts a patch over an object. `null` takes a field out.
pub(super) fn merge(object: &mut Value, patch: &Value) {
    let (Value::Object(fields), Value::Object(patch)) = (&mut *object, patch) else {
        *object = patch.clone();
        return;
    };
    for (name, value) in patch {
        if value.is_null() {
            fields.remove(name);
            continue;
        }
        let key = KEYS.iter().find(|(list, _)| list == name).map(|(_, key)| *key);
        match (fields.get_mut(name), value, key) {
            (Some(Value::Array(items)), Value::Array(patches), Some(key)) => merge_items(items, patches, key),
            (Some(there @ Value::Object(_)), Value::Object(_), _) => merge(there, value),
            _ => drop(fields.insert(name.clone(), value.clone())),
        }
    }
}

fn merge_items(items: &mut Vec<Value>, patches: &[Value], key: &str) {
    for patch in patches {
        match items.iter_mut().find(|item| item[key] == patch[key]) {
            Some(item) => merge(item, patch),
            None => items.push(patch.clone()),
        }
    }
}
