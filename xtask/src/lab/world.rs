//! What a world says: a directory of Kubernetes YAML, read into documents.
//!
//! Reading order: this file (files and documents), [`plan`] (nodes, pods and services with their addresses, as a
//! scheduler and an address manager would give them), [`complete`] (the documents as a cluster would hand them out).
//! Everything here is a pure function but [`read`] and [`write`].

pub mod plan;

pub mod complete;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde_yaml_ng::Value;

/// One YAML document with the text it was read from.
#[derive(Clone, Debug)]
pub struct Document {
    /// `FILE:LINE` of its first line, for messages.
    pub place: String,
    /// The text, without the separators around it.
    pub text: String,
    /// What it says; null for a document of comments.
    pub value: Value,
}

/// One file of a world.
#[derive(Clone, Debug)]
pub struct File {
    /// Its name in the directory.
    pub name: String,
    /// Its documents, in order, with the separator line that precedes each (empty for most first ones).
    pub documents: Vec<(String, Document)>,
}

impl Document {
    /// The object's kind, when it is one of the kinds of `api_version`.
    pub fn is(&self, api_version: &str, kind: &str) -> bool {
        text_at(&self.value, &["apiVersion"]) == Some(api_version)
            && text_at(&self.value, &["kind"]) == Some(kind)
    }

    /// `metadata.name`.
    pub fn name(&self) -> Result<&str> {
        text_at(&self.value, &["metadata", "name"])
            .with_context(|| format!("{}: metadata.name is missing", self.place))
    }

    /// `metadata.namespace`, `default` where absent.
    pub fn namespace(&self) -> &str {
        text_at(&self.value, &["metadata", "namespace"]).unwrap_or("default")
    }
}

/// The value at a path of keys.
pub fn at<'a>(value: &'a Value, path: &[&str]) -> Option<&'a Value> {
    path.iter().try_fold(value, |value, key| value.get(key)).filter(|value| !value.is_null())
}

/// The text at a path of keys.
pub fn text_at<'a>(value: &'a Value, path: &[&str]) -> Option<&'a str> {
    at(value, path)?.as_str().filter(|text| !text.is_empty())
}

/// Reads every `.yaml`, `.yml` and `.json` file of a directory, in the order of their names.
pub fn read(dir: &Path) -> Result<Vec<File>> {
    let entries = fs::read_dir(dir).with_context(|| format!("cannot read the world {}", dir.display()))?;
    let mut names = Vec::new();
    for entry in entries {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let known = [".yaml", ".yml", ".json"].iter().any(|ending| name.ends_with(ending));
        if known && !name.starts_with('.') {
            names.push(name);
        }
    }
    ensure!(!names.is_empty(), "the world {} has no .yaml, .yml or .json file", dir.display());
    names.sort();
    names
        .into_iter()
        .map(|name| {
            let path = dir.join(&name);
            let text =
                fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
            parse(&name, &text)
        })
        .collect()
}

/// Parses one file.
///
/// A line that starts with `---` begins a document wherever it stands (YAML 1.2 section 9.1.2), so lines suffice to split.
pub fn parse(name: &str, text: &str) -> Result<File> {
    let mut documents = Vec::new();
    let (mut separator, mut body, mut first_line) = (String::new(), String::new(), 1);
    for (index, line) in text.split_inclusive('\n').enumerate() {
        let Some(rest) =
            line.strip_prefix("---").filter(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace))
        else {
            body.push_str(line);
            continue;
        };
        if !(rest.trim().is_empty() || rest.trim_start().starts_with('#')) {
            bail!("{name}:{}: write the document's content on the line after `---`", index + 1);
        }
        if index > 0 {
            documents.push(document(
                name,
                first_line,
                std::mem::take(&mut separator),
                std::mem::take(&mut body),
            )?);
        }
        line.clone_into(&mut separator);
        first_line = index + 2;
    }
    documents.push(document(name, first_line, separator, body)?);
    Ok(File { name: name.to_owned(), documents })
}

fn document(name: &str, first_line: usize, separator: String, text: String) -> Result<(String, Document)> {
    let value = Value::deserialize(serde_yaml_ng::Deserializer::from_str(&text)).map_err(|error| {
        let line = error.location().map_or(first_line, |at| first_line + at.line().saturating_sub(1));
        anyhow::anyhow!("{name}:{line}: {error}")
    })?;
    let place = format!("{name}:{first_line}");
    if text_at(&value, &["kind"]).is_some_and(|kind| kind == "List") {
        bail!("{place}: write the items of a List as documents of their own, separated by `---`");
    }
    Ok((separator, Document { place, text, value }))
}

/// Writes files into a directory: each whole or not at all, and only where something changes.
pub fn write(dir: &Path, files: &[(String, String)]) -> Result<()> {
    for (name, text) in files {
        let path = dir.join(name);
        if fs::read_to_string(&path).is_ok_and(|old| old == *text) {
            continue;
        }
        let temporary = dir.join(format!(".{name}.new"));
        let written = fs::write(&temporary, text).and_then(|()| fs::rename(&temporary, &path));
        written.with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_split_and_know_their_lines() {
        let file = parse("a.yaml", "# top\n---\nkind: A\n---\n\nkind: B\n").unwrap();
        let seen: Vec<_> =
            file.documents.iter().map(|(_, d)| (d.place.as_str(), text_at(&d.value, &["kind"]))).collect();
        assert_eq!(seen, [("a.yaml:1", None), ("a.yaml:3", Some("A")), ("a.yaml:5", Some("B"))]);
    }

    #[test]
    fn a_broken_document_is_named_with_file_and_line() {
        let error = parse("a.yaml", "kind: A\n---\nkind: B\nx: [1\ny: 2\n").unwrap_err().to_string();
        assert!(error.starts_with("a.yaml:") && !error.starts_with("a.yaml:1:"), "{error}");
    }

    #[test]
    fn text_of_all_documents_together_is_the_file() {
        for text in ["", "a: 1\n", "---\na: 1\n---\nb: 2", "# c\n---\na: 1\n---\n"] {
            let file = parse("a.yaml", text).unwrap();
            let again: String = file.documents.iter().map(|(s, d)| format!("{s}{}", d.text)).collect();
            assert_eq!(again, text);
        }
    }
}
