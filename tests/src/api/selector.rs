//! Which objects a list or a watch is about: label and field selectors.

use serde_json::Value;

use super::refusal::Refusal;
use super::resource::Resource;

/// One demand on one label.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Demand {
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    Has(String),
    HasNot(String),
}

/// One demand on one field.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Field {
    path: Vec<String>,
    value: String,
    equal: bool,
}

/// All demands together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    labels: Vec<Demand>,
    fields: Vec<Field>,
}

impl Selector {
    /// Reads the parameters `labelSelector` and `fieldSelector`.
    ///
    /// # Errors
    /// One of them is not understood, or the kind has no such field to select by.
    pub fn read(labels: &str, fields: &str, resource: &Resource) -> Result<Self, Refusal> {
        let labels = split(labels).into_iter().map(demand).collect::<Result<_, _>>()?;
        let fields = split(fields).into_iter().map(|text| field(text, resource)).collect::<Result<_, _>>()?;
        Ok(Self { labels, fields })
    }

    /// Whether an object is meant.
    pub fn matches(&self, object: &Value) -> bool {
        let labels = &object["metadata"]["labels"];
        let label = |name: &str| labels.get(name).and_then(Value::as_str);
        let by_label = self.labels.iter().all(|demand| match demand {
            Demand::In(name, values) => label(name).is_some_and(|v| values.iter().any(|value| value == v)),
            Demand::NotIn(name, values) => {
                !label(name).is_some_and(|v| values.iter().any(|value| value == v))
            }
            Demand::Has(name) => label(name).is_some(),
            Demand::HasNot(name) => label(name).is_none(),
        });
        by_label
            && self.fields.iter().all(|field| {
                let found = field.path.iter().try_fold(object, |value, name| value.get(name));
                let found = found.map(|value| match value {
                    Value::String(text) => text.clone(),
                    Value::Null => String::new(),
                    other => other.to_string(),
                });
                (found.unwrap_or_default() == field.value) == field.equal
            })
    }
}

/// Splits at commas that are not between parentheses.
fn split(text: &str) -> Vec<&str> {
    let (mut parts, mut depth, mut start) = (Vec::new(), 0, 0);
    for (index, char) in text.char_indices() {
        match char {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&text[start..index]);
                start = index + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts.into_iter().map(str::trim).filter(|part| !part.is_empty()).collect()
}

fn demand(text: &str) -> Result<Demand, Refusal> {
    let refuse = || Refusal::new(400, format!("unable to parse requirement: {text}"));
    for (word, is_in) in [(" notin ", false), (" in ", true)] {
        if let Some((name, values)) = text.split_once(word) {
            let values =
                values.trim().strip_prefix('(').and_then(|v| v.strip_suffix(')')).ok_or_else(refuse)?;
            let values = values.split(',').map(|value| value.trim().to_owned()).collect();
            let name = name.trim().to_owned();
            return Ok(if is_in { Demand::In(name, values) } else { Demand::NotIn(name, values) });
        }
    }
    let one = |name: &str, value: &str| (name.trim().to_owned(), vec![value.trim().to_owned()]);
    if let Some((name, value)) = text.split_once("!=") {
        let (name, values) = one(name, value);
        return Ok(Demand::NotIn(name, values));
    }
    if let Some((name, value)) = text.split_once("==").or_else(|| text.split_once('=')) {
        let (name, values) = one(name, value);
        return Ok(Demand::In(name, values));
    }
    let (name, is_absent) = text.strip_prefix('!').map_or((text, false), |name| (name, true));
    if name.contains(|c: char| c.is_whitespace() || "()!".contains(c)) {
        return Err(refuse());
    }
    Ok(if is_absent { Demand::HasNot(name.trim().into()) } else { Demand::Has(name.into()) })
}

fn field(text: &str, resource: &Resource) -> Result<Field, Refusal> {
    let (name, value, equal) = if let Some((name, value)) = text.split_once("!=") {
        (name, value, false)
    } else if let Some((name, value)) = text.split_once("==").or_else(|| text.split_once('=')) {
        (name, value, true)
    } else {
        return Err(Refusal::new(400, format!("invalid field selector: {text}")));
    };
    let known: &[&str] = match (&*resource.kept.group, &*resource.kept.plural) {
        ("", "pods") => &[
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "status.phase",
            "status.podIP",
        ],
        ("", "namespaces") => &["status.phase"],
        ("", "nodes") => &["spec.unschedulable"],
        ("", "secrets") => &["type"],
        ("", "events") => &[
            "involvedObject.kind",
            "involvedObject.name",
            "involvedObject.namespace",
            "involvedObject.uid",
            "reason",
            "type",
        ],
        _ => &[],
    };
    let name = name.trim();
    if !["metadata.name", "metadata.namespace"].contains(&name) && !known.contains(&name) {
        return Err(Refusal::new(400, format!("field label not supported: {name}")));
    }
    let path = name.split('.').map(str::to_owned).collect();
    Ok(Field { path, value: value.trim().to_owned(), equal })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn matches(labels: &str) -> bool {
        let resource = Resource::custom("", "v1", "pods", "Pod", true);
        let selector = Selector::read(labels, "", &resource).unwrap();
        selector.matches(&json!({"metadata": {"labels": {"app": "web", "tier": "front"}}}))
    }

    #[test]
    fn labels_are_selected_by_equality_sets_and_presence() {
        for selector in
            ["", "app=web", "app==web,tier!=back", "app in (api, web),!old", "tier notin (back)", "app"]
        {
            assert!(matches(selector), "{selector}");
        }
        for selector in ["app=api", "app!=web", "app notin (web,api)", "old", "!app", "app=web,tier=back"] {
            assert!(!matches(selector), "{selector}");
        }
    }

    #[test]
    fn fields_that_a_kind_has_not_are_refused() {
        let pods = Resource::custom("", "v1", "pods", "Pod", true);
        let selector = Selector::read("", "spec.nodeName=n1,metadata.name!=b", &pods).unwrap();
        assert!(selector.matches(&json!({"metadata": {"name": "a"}, "spec": {"nodeName": "n1"}})));
        assert!(!selector.matches(&json!({"metadata": {"name": "b"}, "spec": {"nodeName": "n1"}})));
        assert_eq!(Selector::read("", "spec.image=x", &pods).unwrap_err().code, 400);
    }
}
