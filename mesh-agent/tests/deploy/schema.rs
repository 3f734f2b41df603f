//! The structural schema of a definition, and what an API server finds wrong with an object by it: types, bounds and
//! patterns here, CEL rules by a library. A keyword that this file does not know is an error, so that none is passed over.

use serde_json::Value;

/// What is wrong with the object, as `FIELD: WHAT`.
pub(crate) fn problems(schema: &Value, object: &Value) -> Vec<String> {
    let mut found = Vec::new();
    walk(schema, object, "", &mut found);
    let judged = kube_cel::Validator::new().validate(schema, object, None);
    for error in judged.err().map(kube_cel::ValidationErrors::into_vec).unwrap_or_default() {
        found.push(format!(".{}: {}", error.field_path, error.message));
    }
    found
}

fn walk(schema: &Value, value: &Value, field: &str, found: &mut Vec<String>) {
    let keywords = schema.as_object().unwrap_or_else(|| panic!("{field}: a schema is an object"));
    for (keyword, argument) in keywords {
        if let Some(complaint) = check(keyword, argument, schema, value, field, found) {
            found.push(format!("{field}: {complaint}"));
        }
    }
}

fn check(
    keyword: &str,
    argument: &Value,
    schema: &Value,
    value: &Value,
    field: &str,
    found: &mut Vec<String>,
) -> Option<String> {
    let number = || argument.as_f64().expect("a number");
    let refuse = |bad: bool| bad.then(|| format!("{value} against {keyword} {argument}"));
    match (keyword, value) {
        ("description" | "format" | "default", _) => None,
        (_, _) if keyword.starts_with("x-kubernetes-") => None,
        ("type", _) => refuse(!has_type(value, argument.as_str().expect("a type's name"))),
        ("enum", _) => refuse(!argument.as_array().expect("a list").contains(value)),
        ("properties", Value::Object(fields)) => {
            for (name, below) in argument.as_object().expect("properties") {
                if let Some(value) = fields.get(name) {
                    walk(below, value, &format!("{field}.{name}"), found);
                }
            }
            None
        }
        ("required", Value::Object(fields)) => {
            let named = argument.as_array().expect("a list");
            let missing = named.iter().find(|name| !fields.contains_key(name.as_str().expect("a name")));
            missing.map(|name| format!("{name} is required"))
        }
        ("additionalProperties", Value::Object(fields)) => {
            assert!(schema.get("properties").is_none(), "{field}: a structural schema has one of the two");
            fields.iter().for_each(|(name, value)| walk(argument, value, &format!("{field}.{name}"), found));
            None
        }
        ("items", Value::Array(items)) => {
            let each = items.iter().enumerate();
            each.for_each(|(index, item)| walk(argument, item, &format!("{field}[{index}]"), found));
            None
        }
        ("minItems", Value::Array(items)) => refuse((items.len() as f64) < number()),
        ("maxItems", Value::Array(items)) => refuse(items.len() as f64 > number()),
        ("minLength", Value::String(text)) => refuse((text.chars().count() as f64) < number()),
        ("maxLength", Value::String(text)) => refuse(text.chars().count() as f64 > number()),
        ("pattern", Value::String(text)) => {
            let pattern = regex::Regex::new(argument.as_str().expect("a pattern")).expect("a pattern");
            refuse(!pattern.is_match(text))
        }
        ("minimum", Value::Number(amount)) => refuse(amount.as_f64().is_some_and(|n| n < number())),
        ("maximum", Value::Number(amount)) => refuse(amount.as_f64().is_some_and(|n| n > number())),
        (
            "properties"
            | "required"
            | "additionalProperties"
            | "items"
            | "minItems"
            | "maxItems"
            | "minLength"
            | "maxLength"
            | "pattern"
            | "minimum"
            | "maximum",
            // Of another type, which `type` complains about.
            _,
        ) => None,
        _ => panic!("{field}: the keyword {keyword} is not known here"),
    }
}

fn has_type(value: &Value, name: &str) -> bool {
    match name {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        _ => panic!("{name} is no type of a structural schema"),
    }
}

/// Every schema below, with its path.
pub(crate) fn each(schema: &Value, path: &str, see: &mut dyn FnMut(&str, &Value)) {
    see(path, schema);
    for (name, below) in schema["properties"].as_object().into_iter().flatten() {
        each(below, &format!("{path}.{name}"), see);
    }
    for (keyword, mark) in [("items", "[]"), ("additionalProperties", "{}")] {
        if schema[keyword].is_object() {
            each(&schema[keyword], &format!("{path}{mark}"), see);
        }
    }
}
