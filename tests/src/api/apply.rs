//! Server-side apply: a writer says all that it wants, keeps what it owns, and is told where others own something else.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::owners::{self, Owner, Path, fields, get, remove, set};
use super::refusal::Refusal;
use super::resource::Resource;

/// Applies `wanted` to `live` for a writer. Gives the object, with its owners written into it.
///
/// # Errors
/// Others own fields that the writer wants otherwise, and it does not force.
pub fn apply(
    resource: &Resource,
    live: &Value,
    wanted: &Value,
    writer: Owner,
    force: bool,
) -> Result<Value, Refusal> {
    let mut owners = owners::read(live);
    let applied = fields(resource, wanted);
    let set_of_applied: BTreeSet<Path> = applied.iter().cloned().collect();
    let is_writer = |owner: &Owner| owner.is(&writer.manager, &writer.operation, &writer.subresource);
    let is_conflict = |path: &Path| {
        set_of_applied.contains(path)
            && path.last().is_some_and(|step| step != ".")
            && get(live, path) != get(wanted, path)
            && !is_merged(live, wanted, path)
    };
    let mut conflicts = Vec::new();
    for owner in owners.iter_mut().filter(|owner| !is_writer(owner)) {
        conflicts.extend(owner.fields.iter().filter(|path| is_conflict(path)).map(|path| Conflict {
            owner: owner.manager.clone(),
            with: describe(owner),
            field: dotted(path),
        }));
        owner.fields.retain(|path| !is_conflict(path));
    }
    if !force && !conflicts.is_empty() {
        return Err(refuse(&conflicts));
    }
    let mut object = live.clone();
    let given_up: Vec<Path> = owners
        .iter()
        .filter(|owner| is_writer(owner))
        .flat_map(|owner| owner.fields.difference(&set_of_applied))
        .cloned()
        .collect();
    for path in given_up.iter().rev() {
        let item = path.strip_suffix(&[".".to_owned()]).unwrap_or(path);
        let is_of_others = owners
            .iter()
            .filter(|owner| !is_writer(owner))
            .any(|owner| owner.fields.iter().any(|field| field.starts_with(item)));
        if !is_of_others {
            remove(&mut object, path);
        }
    }
    for path in &applied {
        if let Some(value) = get(wanted, path).filter(|_| !is_merged(&object, wanted, path)) {
            set(&mut object, path, value);
        }
    }
    owners::take(&mut owners, writer, |fields| *fields = set_of_applied);
    owners.retain(|owner| !owner.fields.is_empty());
    owners::write(&mut object, &owners);
    Ok(object)
}

/// Whether a map that is wanted empty meets one that is there: it asks for nothing and takes nothing away.
fn is_merged(live: &Value, wanted: &Value, path: &[String]) -> bool {
    let is_empty = get(wanted, path).and_then(Value::as_object).is_some_and(serde_json::Map::is_empty);
    is_empty && get(live, path).is_some_and(Value::is_object)
}

/// A field that somebody else wants otherwise.
struct Conflict {
    owner: String,
    with: String,
    field: String,
}

fn describe(owner: &Owner) -> String {
    let mut with = format!("\"{}\"", owner.manager);
    if owner.operation == "Update" {
        if !owner.subresource.is_empty() {
            with += &format!(" with subresource \"{}\"", owner.subresource);
        }
        with += &format!(" using {}", owner.api_version);
    }
    with
}

fn refuse(conflicts: &[Conflict]) -> Refusal {
    let first = &conflicts[0];
    let message = if let [one] = conflicts {
        format!("Apply failed with 1 conflict: conflict with {}: {}", one.with, one.field)
    } else {
        let lines: Vec<String> = conflicts.iter().map(|conflict| format!("- {}", conflict.field)).collect();
        let whom = if conflicts.iter().all(|conflict| conflict.owner == first.owner) {
            first.with.clone()
        } else {
            "several managers".to_owned()
        };
        format!(
            "Apply failed with {} conflicts: conflicts with {whom}:\n{}",
            conflicts.len(),
            lines.join("\n")
        )
    };
    let cause = |conflict: &Conflict| {
        json!({
            "reason": "FieldManagerConflict", "message": format!("conflict with {}", conflict.with),
            "field": conflict.field,
        })
    };
    let mut refusal = Refusal::new(409, message);
    refusal.details = json!({ "causes": conflicts.iter().map(cause).collect::<Vec<_>>() });
    refusal
}

/// `.spec.ports[port=80,protocol="TCP"].name`.
fn dotted(path: &Path) -> String {
    let step = |step: &String| match (step.strip_prefix("f:"), step.strip_prefix("k:")) {
        (Some(name), _) => format!(".{name}"),
        (_, Some(keys)) => {
            let keys: serde_json::Map<String, Value> = serde_json::from_str(keys).unwrap_or_default();
            let keys: Vec<String> = keys.iter().map(|(key, value)| format!("{key}={value}")).collect();
            format!("[{}]", keys.join(","))
        }
        _ => step.strip_prefix("v:").map(|value| format!("[={value}]")).unwrap_or_default(),
    };
    path.iter().map(step).collect()
}
