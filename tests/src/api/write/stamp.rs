//! What the server itself writes into an object, and what it looks at before it takes one. Pure functions.

use serde_json::{Value, json};

use super::Target;
use crate::api::refusal::Refusal;

/// Restores in `object` what a request of this kind does not write.
pub(super) fn keep_what_is_not_written(target: &Target, before: &Value, object: &mut Value) {
    if target.is_status {
        let status = object["status"].take();
        let said = object["metadata"]["resourceVersion"].take();
        *object = before.clone();
        object["metadata"]["resourceVersion"] = said;
        object["status"] = status;
    } else if target.resource.status {
        object["status"] = before["status"].clone();
    }
    if let Some(fields) = object.as_object_mut() {
        fields.retain(|_, value| !value.is_null());
    }
    object["apiVersion"] = target.resource.api_version().into();
    object["kind"] = target.resource.kind.clone().into();
    let server_writes = [
        "name",
        "namespace",
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "generateName",
    ];
    for field in server_writes {
        object["metadata"][field] = before["metadata"][field].clone();
    }
    if let Some(metadata) = object["metadata"].as_object_mut() {
        metadata.retain(|_, value| !is_empty(value));
    }
}

/// Whether anything but metadata and status differs.
pub(super) fn is_spec_changed(before: &Value, after: &Value) -> bool {
    let spec = |object: &Value| {
        let mut object = object.as_object().cloned().unwrap_or_default();
        object.retain(|field, _| !["apiVersion", "kind", "metadata", "status"].contains(&field.as_str()));
        object
    };
    spec(before) != spec(after)
}

/// The seconds that a pod on a node has to end; the node's kubelet deletes it for good.
pub(super) fn grace_seconds(target: &Target, object: &Value, options: &Value) -> u64 {
    if !target.is("", "pods") || text(&object["spec"]["nodeName"]).is_empty() {
        return 0;
    }
    let asked = options["gracePeriodSeconds"].as_u64();
    asked.or_else(|| object["spec"]["terminationGracePeriodSeconds"].as_u64()).unwrap_or(30)
}

/// Checks that the object is of the kind and in the namespace that the path names, and writes what it leaves out.
///
/// # Errors
/// It is not.
pub(super) fn check_types(target: &Target, object: &mut Value) -> Result<(), Refusal> {
    let Some(fields) = object.as_object_mut() else {
        return Err(Refusal::new(400, "the body is not an object"));
    };
    for (field, wanted) in
        [("apiVersion", target.resource.api_version()), ("kind", target.resource.kind.clone())]
    {
        match fields.get(field).and_then(Value::as_str).unwrap_or_default() {
            "" => drop(fields.insert(field.to_owned(), wanted.into())),
            said if said == wanted => {}
            said => {
                let message =
                    format!("the {field} in the data ({said}) does not match the expected one ({wanted})");
                return Err(Refusal::new(400, message));
            }
        }
    }
    let metadata = fields.entry("metadata").or_insert_with(|| json!({}));
    let Some(metadata) = metadata.as_object_mut() else {
        return Err(Refusal::new(400, "metadata is not an object"));
    };
    let said = metadata.get("namespace").and_then(Value::as_str).unwrap_or_default().to_owned();
    match &target.namespace {
        Some(namespace) if said.is_empty() => {
            metadata.insert("namespace".to_owned(), namespace.clone().into());
        }
        Some(namespace) if said != *namespace => {
            let message =
                "the namespace of the provided object does not match the namespace sent on the request";
            return Err(Refusal::new(400, message));
        }
        Some(_) => {}
        None => drop(metadata.remove("namespace")),
    }
    if !target.name.is_empty() {
        metadata.entry("name").or_insert_with(|| target.name.clone().into());
    }
    Ok(())
}

/// The name of a new object, made where it gives only the beginning.
///
/// # Errors
/// It gives none.
pub(super) fn name_of(target: &Target, object: &mut Value) -> Result<String, Refusal> {
    let metadata = &mut object["metadata"];
    let (name, prefix) = (text(&metadata["name"]).to_owned(), text(&metadata["generateName"]).to_owned());
    if !name.is_empty() {
        return Ok(name);
    }
    if prefix.is_empty() {
        let why = "Required value: name or generateName is required";
        return Err(Refusal::invalid(target.kept(), &target.resource.kind, "", "metadata.name", why));
    }
    let letter = || char::from(*fastrand::choice(b"bcdfghjklmnpqrstvwxz2456789").expect("there are some"));
    let name: String = prefix.chars().chain(std::iter::repeat_with(letter).take(5)).collect();
    metadata["name"] = name.clone().into();
    Ok(name)
}

/// What the server itself writes into objects of some kinds.
pub(super) fn set_defaults(target: &Target, object: &mut Value) {
    match (&*target.kept().group, &*target.kept().plural) {
        ("", "namespaces") => {
            object["metadata"]["labels"]["kubernetes.io/metadata.name"] = target.name.clone().into();
            if object["spec"]["finalizers"].is_null() {
                object["spec"]["finalizers"] = json!(["kubernetes"]);
            }
            if object["status"]["phase"].is_null() {
                object["status"]["phase"] = "Active".into();
            }
        }
        ("", "pods") if object["status"]["phase"].is_null() => object["status"]["phase"] = "Pending".into(),
        ("", "services") => {
            let ports = object.pointer_mut("/spec/ports").and_then(Value::as_array_mut);
            for port in ports.into_iter().flatten() {
                if port["protocol"].is_null() {
                    port["protocol"] = "TCP".into();
                }
                if port["targetPort"].is_null() {
                    port["targetPort"] = port["port"].clone();
                }
            }
        }
        ("apiextensions.k8s.io", _) => {
            let condition = |kind: &str| json!({ "type": kind, "status": "True", "reason": kind });
            object["status"] = json!({
                "acceptedNames": object["spec"]["names"],
                "conditions": [condition("NamesAccepted"), condition("Established")],
                "storedVersions": object["spec"]["versions"].as_array().into_iter().flatten()
                    .filter(|version| version["storage"] == true).map(|version| version["name"].clone())
                    .collect::<Vec<_>>(),
            });
        }
        _ => {}
    }
}

/// The text of a value, or none.
pub fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Whether a value says nothing.
pub(super) fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}
