//! Who wrote which field of an object: the sets of `metadata.managedFields`.
//!
//! A field is named by its way from the object's root, in the words of `fieldsV1`: `f:NAME` a field, `k:{...}` the item of
//! a list with these keys, `v:VALUE` a value of a set, and `.` the item itself.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use super::resource::{ListType, Resource};

/// The way to a field.
pub type Path = Vec<String>;

/// What one writer has written, by one kind of request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Name of the writer.
    pub manager: String,
    /// `Apply` or `Update`.
    pub operation: String,
    /// `status`, or nothing.
    pub subresource: String,
    /// Version of the kind that was written.
    pub api_version: String,
    /// When it last changed.
    pub time: String,
    /// What.
    pub fields: BTreeSet<Path>,
}

impl Owner {
    /// Whether this is the entry of that writer and kind of request.
    pub fn is(&self, manager: &str, operation: &str, subresource: &str) -> bool {
        self.manager == manager && self.operation == operation && self.subresource == subresource
    }
}

/// Reads `metadata.managedFields`.
pub fn read(object: &Value) -> Vec<Owner> {
    let entries = object["metadata"]["managedFields"].as_array().into_iter().flatten();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    entries
        .map(|entry| {
            let mut fields = BTreeSet::new();
            collect(&entry["fieldsV1"], &mut Vec::new(), &mut fields);
            Owner {
                manager: text(&entry["manager"]),
                operation: text(&entry["operation"]),
                subresource: text(&entry["subresource"]),
                api_version: text(&entry["apiVersion"]),
                time: text(&entry["time"]),
                fields,
            }
        })
        .collect()
}

fn collect(value: &Value, path: &mut Path, fields: &mut BTreeSet<Path>) {
    match value.as_object() {
        Some(map) if !map.is_empty() => {
            for (step, below) in map {
                path.push(step.clone());
                collect(below, path, fields);
                path.pop();
            }
        }
        _ if path.is_empty() => {}
        _ => {
            fields.insert(path.clone());
        }
    }
}

/// Writes `metadata.managedFields`.
pub fn write(object: &mut Value, owners: &[Owner]) {
    let entry = |owner: &Owner| {
        let mut entry = json!({
            "manager": owner.manager, "operation": owner.operation, "apiVersion": owner.api_version,
            "time": owner.time, "fieldsType": "FieldsV1", "fieldsV1": tree(&owner.fields),
        });
        if !owner.subresource.is_empty() {
            entry["subresource"] = owner.subresource.clone().into();
        }
        entry
    };
    let entries: Vec<Value> = owners.iter().filter(|owner| !owner.fields.is_empty()).map(entry).collect();
    if entries.is_empty() {
        object["metadata"].as_object_mut().map(|metadata| metadata.remove("managedFields"));
    } else {
        object["metadata"]["managedFields"] = entries.into();
    }
}

fn tree(fields: &BTreeSet<Path>) -> Value {
    let mut root = json!({});
    for path in fields {
        let mut place = &mut root;
        for step in path {
            place = place.as_object_mut().expect("a tree of maps").entry(step).or_insert_with(|| json!({}));
        }
    }
    root
}

/// Fields that the server writes itself; nobody owns them.
const OF_THE_SERVER: &[&str] = &[
    "name",
    "namespace",
    "generateName",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "managedFields",
    "selfLink",
];

/// The fields of an object that a writer can own, in the order in which they stand there.
pub fn fields(resource: &Resource, object: &Value) -> Vec<Path> {
    let mut bare = object.clone();
    if let Some(bare) = bare.as_object_mut() {
        bare.remove("apiVersion");
        bare.remove("kind");
        if let Some(metadata) = bare.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.retain(|name, _| !OF_THE_SERVER.contains(&name.as_str()));
            if metadata.is_empty() {
                bare.remove("metadata");
            }
        }
    }
    let mut found = Vec::new();
    leaves(resource, &bare, &mut Vec::new(), &mut Vec::new(), &mut found);
    found.retain(|path| !path.is_empty());
    found
}

fn leaves(resource: &Resource, value: &Value, names: &mut Path, path: &mut Path, found: &mut Vec<Path>) {
    match value {
        Value::Null => {}
        Value::Object(map) if !map.is_empty() => {
            for (name, below) in map {
                names.push(name.clone());
                path.push(format!("f:{name}"));
                leaves(resource, below, names, path, found);
                path.pop();
                names.pop();
            }
        }
        Value::Array(items) if !items.is_empty() => match list_type(resource, names) {
            None => found.push(path.clone()),
            Some(list) => {
                for item in items {
                    path.push(step_of(&list, item));
                    path.push(".".to_owned());
                    found.push(path.clone());
                    path.pop();
                    if item.is_object() {
                        leaves(resource, item, names, path, found);
                    }
                    path.pop();
                }
            }
        },
        _ => found.push(path.clone()),
    }
}

/// How the items of a list are told apart, by the names of the fields that lead there; nothing for a list that is one value.
pub fn list_type(resource: &Resource, names: &[String]) -> Option<ListType> {
    let by = |keys: &[&str]| Some(ListType::Map(keys.iter().map(|key| (*key).to_owned()).collect()));
    let last = names.last().map(String::as_str)?;
    if names.first().is_some_and(|first| first == "metadata") {
        return match last {
            "finalizers" => Some(ListType::Set),
            "ownerReferences" => by(&["uid"]),
            _ => None,
        };
    }
    if let Some(lists) = &resource.lists {
        return lists.get(names).cloned();
    }
    match (last, &*resource.kept.plural) {
        ("ports", "services") => by(&["port", "protocol"]),
        ("ports", "endpointslices" | "networkpolicies" | "endpoints") => None,
        ("ports", _) => by(&["containerPort", "protocol"]),
        (
            "containers"
            | "initContainers"
            | "ephemeralContainers"
            | "volumes"
            | "env"
            | "imagePullSecrets"
            | "secrets"
            | "listeners",
            _,
        ) => by(&["name"]),
        ("volumeMounts", _) => by(&["mountPath"]),
        ("conditions", plural) if plural != "endpointslices" => by(&["type"]),
        ("podIPs" | "hostAliases", _) => by(&["ip"]),
        _ => None,
    }
}

fn step_of(list: &ListType, item: &Value) -> String {
    match list {
        ListType::Set => format!("v:{item}"),
        ListType::Map(keys) => {
            let keys = keys.iter().map(|key| (key.clone(), key_of(item, key)));
            format!("k:{}", Value::Object(keys.collect()))
        }
    }
}

/// A key of an item, with the default that every list of ports has.
fn key_of(item: &Value, key: &str) -> Value {
    match &item[key] {
        Value::Null if key == "protocol" => "TCP".into(),
        value => value.clone(),
    }
}

fn is_item(step: &str, item: &Value) -> bool {
    if let Some(value) = step.strip_prefix("v:") {
        return serde_json::from_str::<Value>(value).is_ok_and(|value| value == *item);
    }
    let keys: Map<String, Value> =
        step.strip_prefix("k:").and_then(|keys| serde_json::from_str(keys).ok()).unwrap_or_default();
    !keys.is_empty() && keys.iter().all(|(key, value)| key_of(item, key) == *value)
}

/// The value at a path. For `.` it is the item.
pub fn get<'a>(object: &'a Value, path: &[String]) -> Option<&'a Value> {
    path.iter().try_fold(object, |value, step| match step.strip_prefix("f:") {
        Some(name) => value.get(name),
        None if step == "." => Some(value),
        None => value.as_array()?.iter().find(|item| is_item(step, item)),
    })
}

/// Writes a value at a path, with all that is missing on the way.
pub fn set(object: &mut Value, path: &[String], value: &Value) {
    let Some((step, rest)) = path.split_first() else {
        *object = value.clone();
        return;
    };
    if let Some(name) = step.strip_prefix("f:") {
        if !object.is_object() {
            *object = json!({});
        }
        let map = object.as_object_mut().expect("it was just made one");
        return set(map.entry(name).or_insert(Value::Null), rest, value);
    }
    if !object.is_array() {
        *object = json!([]);
    }
    let items = object.as_array_mut().expect("it was just made one");
    let index = items.iter().position(|item| is_item(step, item)).unwrap_or_else(|| {
        let text = step.get(2..).unwrap_or_default();
        items.push(serde_json::from_str(text).unwrap_or(Value::Null));
        items.len() - 1
    });
    if rest != ["."] {
        set(&mut items[index], rest, value);
    }
}

/// Removes what is at a path, and what is empty then on the way there.
pub fn remove(object: &mut Value, path: &[String]) {
    let Some((step, rest)) = path.split_first() else { return };
    let is_last = rest.is_empty() || rest == ["."];
    if let Some(name) = step.strip_prefix("f:") {
        let Some(map) = object.as_object_mut() else { return };
        if is_last {
            map.remove(name);
        } else if let Some(below) = map.get_mut(name) {
            remove(below, rest);
            let is_empty =
                below.as_object().is_some_and(Map::is_empty) || below.as_array().is_some_and(Vec::is_empty);
            if is_empty {
                map.remove(name);
            }
        }
    } else if let Some(items) = object.as_array_mut() {
        if is_last {
            items.retain(|item| !is_item(step, item));
        } else if let Some(item) = items.iter_mut().find(|item| is_item(step, item)) {
            remove(item, rest);
        }
    }
}

/// The owners after a writer changed `old` into `new` by anything but an apply.
pub fn after_update(
    resource: &Resource,
    old: &Value,
    new: &Value,
    mut owners: Vec<Owner>,
    writer: Owner,
) -> Vec<Owner> {
    let before: BTreeMap<Path, &Value> =
        fields(resource, old).into_iter().filter_map(|path| Some((path.clone(), get(old, &path)?))).collect();
    let after: BTreeSet<Path> = fields(resource, new).into_iter().collect();
    let is_item = |path: &Path| path.last().is_some_and(|step| step == ".");
    let is_changed =
        |path: &&Path| before.get(*path).is_none_or(|value| !is_item(path) && get(new, path) != Some(*value));
    let changed: BTreeSet<Path> = after.iter().filter(is_changed).cloned().collect();
    for owner in &mut owners {
        let is_writer = owner.is(&writer.manager, &writer.operation, &writer.subresource);
        owner.fields.retain(|path| {
            // A field of a schema that has changed since stays with whom it was.
            let is_gone = before.contains_key(path) && !after.contains(path);
            !is_gone && (is_writer || !changed.contains(path))
        });
    }
    if !changed.is_empty() {
        take(&mut owners, writer, |fields| fields.extend(changed));
    }
    owners.retain(|owner| !owner.fields.is_empty());
    owners
}

/// Changes what a writer owns; its time is that of the last change.
pub fn take(owners: &mut Vec<Owner>, writer: Owner, change: impl FnOnce(&mut BTreeSet<Path>)) {
    let found = owners.iter_mut().find(|o| o.is(&writer.manager, &writer.operation, &writer.subresource));
    if let Some(owner) = found {
        let before = owner.fields.clone();
        change(&mut owner.fields);
        if owner.fields != before {
            owner.time = writer.time;
        }
    } else {
        let mut writer = writer;
        change(&mut writer.fields);
        owners.push(writer);
    }
}
