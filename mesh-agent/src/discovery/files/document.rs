//! One document of a file: split it off, read it, and find the line of a field.

use std::fmt;
use std::path::Path;

use serde::Deserialize;
use serde::de::{DeserializeOwned, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::discovery::objects::read::{self, Recognised, Written, recognise};
use crate::discovery::objects::{Key, Object};
use crate::discovery::problem::{Fault, FieldPath, Problem, Segment};

/// How a file is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Yaml,
    Json,
}

impl Format {
    pub(super) fn of(path: &Path) -> Self {
        if path.extension().is_some_and(|extension| extension == "json") { Self::Json } else { Self::Yaml }
    }
}

/// The text of one document.
#[derive(Debug)]
pub(super) struct Document {
    text: String,
    format: Format,
    /// Line of the file that the text begins on, from 1.
    first_line: usize,
}

/// A place in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Spot {
    pub(super) line: Option<usize>,
    pub(super) column: Option<usize>,
}

/// What a document turned out to be.
#[derive(Debug)]
pub(super) enum Reading {
    /// Blank, comments, or `null`.
    Empty,
    /// An object of a kind that the mesh does not read: `kind.group`.
    Ignored(String),
    /// An object; a fault beside it is to be reported, but the object is what the author's text means.
    Good { key: Key, object: Object, fault: Option<Placed> },
    /// No object. The stand-in is for when there is no last good version.
    Bad { key: Option<Key>, fault: Placed, stand_in: Option<Object> },
}

/// A fault and where it is.
#[derive(Debug)]
pub(super) struct Placed {
    spot: Spot,
    fault: Fault,
}

impl Placed {
    pub(super) fn into_problem(self, path: &Path, key: Option<&Key>) -> Problem {
        let field = (!self.fault.field.is_root()).then_some(&self.fault.field);
        super::problem(path, self.spot, key, field, self.fault.message)
    }
}

/// Splits a YAML stream at its `---` and `...` lines (YAML 1.2.2 section 9.2: at the left edge they are markers even
/// inside a text), so that one broken document does not hide the others. JSON is one document.
pub(super) fn split(text: &str, format: Format) -> Vec<Document> {
    let new = |first_line| Document { text: String::new(), format, first_line };
    if format == Format::Json {
        return vec![Document { text: text.to_owned(), ..new(1) }];
    }
    let mut documents = vec![new(1)];
    for (line, number) in text.split_inclusive('\n').zip(1..) {
        let marker = line.get(..3).filter(|_| line[3..].chars().next().is_none_or(char::is_whitespace));
        if marker == Some("---") {
            documents.push(new(number));
        }
        let current = documents.last_mut().expect("there is always a current document");
        match marker {
            // Blanks keep the columns of what follows on the same line.
            Some("---") => current.text.extend(["   ", &line[3..]]),
            Some("...") => documents.push(new(number + 1)),
            _ => current.text.push_str(line),
        }
    }
    documents
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Header {
    api_version: Option<String>,
    kind: Option<String>,
    metadata: Option<HeaderMetadata>,
}

#[derive(Deserialize)]
struct HeaderMetadata {
    name: Option<String>,
    namespace: Option<String>,
}

/// The outer fields of our own kinds, where an unknown one is an error.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(dead_code, reason = "only the names are checked")]
struct Envelope {
    api_version: IgnoredAny,
    kind: IgnoredAny,
    metadata: EnvelopeMetadata,
    spec: Option<IgnoredAny>,
    status: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(dead_code, reason = "only the names are checked")]
struct EnvelopeMetadata {
    name: Option<IgnoredAny>,
    namespace: Option<IgnoredAny>,
    labels: Option<IgnoredAny>,
    annotations: Option<IgnoredAny>,
    uid: Option<IgnoredAny>,
    generation: Option<IgnoredAny>,
    generate_name: Option<IgnoredAny>,
    resource_version: Option<IgnoredAny>,
    creation_timestamp: Option<IgnoredAny>,
    deletion_timestamp: Option<IgnoredAny>,
    deletion_grace_period_seconds: Option<IgnoredAny>,
    finalizers: Option<IgnoredAny>,
    managed_fields: Option<IgnoredAny>,
    owner_references: Option<IgnoredAny>,
    self_link: Option<IgnoredAny>,
}

impl Document {
    /// Line of the file with the first content of the document.
    pub(super) fn content_line(&self) -> usize {
        let blank = |line: &&str| matches!(line.trim_start().as_bytes(), [] | [b'#', ..]);
        self.first_line + self.text.lines().take_while(blank).count()
    }

    fn is_blank(&self) -> bool {
        self.text.lines().all(|line| matches!(line.trim_start().as_bytes(), [] | [b'#', ..]))
    }

    /// Reads the object.
    pub(super) fn read(&self) -> Reading {
        let nameless = |fault| Reading::Bad { key: None, fault, stand_in: None };
        if self.is_blank() {
            return Reading::Empty;
        }
        let header = match self.parse::<Option<Header>>() {
            Ok(Some(header)) => header,
            Ok(None) => return Reading::Empty,
            Err(fault) => return nameless(fault),
        };
        let (Some(api_version), Some(kind)) = (header.api_version, header.kind) else {
            let message = "not a Kubernetes object: apiVersion and kind are needed";
            return nameless(self.place(Fault::whole(message)));
        };
        let kind = match recognise(&api_version, &kind) {
            Recognised::Ours(kind) => kind,
            Recognised::Ignored(kind) => return Reading::Ignored(kind),
            // Not an object of the mesh so far, so nothing of the file's earlier state hangs on it.
            Recognised::Refused(fault) => return nameless(self.place(fault)),
        };
        let metadata = header.metadata.unwrap_or(HeaderMetadata { name: None, namespace: None });
        match Key::new(kind, metadata.namespace.as_deref(), metadata.name.as_deref()) {
            Ok(key) => match read::read(self, &key) {
                read::Reading::Good { object, fault } => Reading::Good { key, object, fault },
                read::Reading::Bad { fault, stand_in } => Reading::Bad { key: Some(key), fault, stand_in },
            },
            Err(fault) => nameless(self.place(fault)),
        }
    }

    fn misread(&self, path: &serde_path_to_error::Path, spot: Option<(usize, usize)>, text: &str) -> Placed {
        let spot = match spot {
            Some((line, column)) => {
                Spot { line: Some(self.first_line + line.saturating_sub(1)), column: Some(column) }
            }
            None => Spot { line: Some(self.content_line()), column: None },
        };
        Placed { spot, fault: read::misread(path, text) }
    }

    /// Where a field's value is written; for a field that is not there, the nearest thing around it.
    pub(super) fn locate(&self, field: &FieldPath) -> Spot {
        let found = (1..=field.0.len()).rev().find_map(|len| self.probe(&field.0[..len]));
        match found {
            Some((line, column)) => Spot { line: Some(self.first_line + line - 1), column: Some(column) },
            None => Spot { line: Some(self.content_line()), column: None },
        }
    }

    /// Line and column in the text, from 1, learned from the error that [`Probe`] raises there.
    fn probe(&self, path: &[Segment]) -> Option<(usize, usize)> {
        match self.format {
            Format::Yaml => {
                let error =
                    Probe(path).deserialize(serde_yaml_ng::Deserializer::from_str(&self.text)).err()?;
                error.location().map(|at| (at.line(), at.column()))
            }
            Format::Json => {
                let mut deserializer = serde_json::Deserializer::from_str(&self.text);
                let error = Probe(path).deserialize(&mut deserializer).err()?;
                Some((error.line(), error.column()))
            }
        }
    }
}

impl Written for Document {
    type Fault = Placed;

    fn parse<T: DeserializeOwned>(&self) -> Result<T, Placed> {
        match self.format {
            Format::Yaml => {
                let deserializer = serde_yaml_ng::Deserializer::from_str(&self.text);
                serde_path_to_error::deserialize(deserializer).map_err(|error| {
                    let spot = error.inner().location().map(|at| (at.line(), at.column()));
                    self.misread(error.path(), spot, &error.inner().to_string())
                })
            }
            Format::Json => {
                let mut deserializer = serde_json::Deserializer::from_str(&self.text);
                serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
                    let spot = (error.inner().line(), error.inner().column());
                    self.misread(error.path(), Some(spot), &error.inner().to_string())
                })
            }
        }
    }

    fn check_outer_fields(&self) -> Result<(), Placed> {
        self.parse::<Envelope>().map(drop)
    }

    fn place(&self, fault: Fault) -> Placed {
        Placed { spot: self.locate(&fault.field), fault }
    }
}

impl fmt::Display for Placed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.fault.fmt(f)
    }
}

/// Follows a path into a document and raises an error where it ends, since only errors know their place.
struct Probe<'a>(&'a [Segment]);

impl<'de> DeserializeSeed<'de> for Probe<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl Probe<'_> {
    fn scalar<E: serde::de::Error>(&self) -> Result<(), E> {
        if self.0.is_empty() { Err(E::custom("here")) } else { Ok(()) }
    }
}

impl<'de> Visitor<'de> for Probe<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }
    fn visit_bool<E: serde::de::Error>(self, _: bool) -> Result<(), E> {
        self.scalar()
    }
    fn visit_i64<E: serde::de::Error>(self, _: i64) -> Result<(), E> {
        self.scalar()
    }
    fn visit_u64<E: serde::de::Error>(self, _: u64) -> Result<(), E> {
        self.scalar()
    }
    fn visit_f64<E: serde::de::Error>(self, _: f64) -> Result<(), E> {
        self.scalar()
    }
    fn visit_str<E: serde::de::Error>(self, _: &str) -> Result<(), E> {
        self.scalar()
    }
    fn visit_unit<E: serde::de::Error>(self) -> Result<(), E> {
        self.scalar()
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        let Some((Segment::Index(wanted), rest)) = self.0.split_first() else { return self.scalar() };
        for _ in 0..*wanted {
            if list.next_element::<IgnoredAny>()?.is_none() {
                return Ok(());
            }
        }
        list.next_element_seed(Probe(rest))?;
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Some((Segment::Key(wanted), rest)) = self.0.split_first() else { return self.scalar() };
        while let Some(key) = map.next_key::<String>()? {
            if key == *wanted {
                map.next_value_seed(Probe(rest))?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }
}
