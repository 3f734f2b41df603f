//! One document of a file: split it off, read it, and find the line of a field.

use std::fmt;
use std::path::Path;

use k8s_openapi::api::{core::v1 as core, discovery::v1 as slices};
use serde::Deserialize;
use serde::de::{DeserializeOwned, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::discovery::objects::{Key, Kind, Object, cluster, config, pod, policy, route, service, slice};
use crate::discovery::problem::{Fault, FieldPath, Problem, Segment};
use crate::discovery::resources::{AuthorizationPolicy, MeshConfig};
use crate::model::RouteKind;

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

/// Kinds of ours that later releases will read.
const LATER: [&str; 5] =
    ["BackendPolicy", "RateLimitPolicy", "TrafficShapingPolicy", "FaultInjection", "ExternalWorkload"];

enum Recognised {
    Ours(Kind),
    Ignored(String),
    Refused(Fault),
}

fn recognise(api_version: &str, kind: &str) -> Recognised {
    let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
    let refuse = |field, message| Recognised::Refused(Fault::at(FieldPath::of(field), message));
    match (group, version, kind) {
        ("", "v1", "Namespace") => Recognised::Ours(Kind::Namespace),
        ("", "v1", "Node") => Recognised::Ours(Kind::Node),
        ("", "v1", "ServiceAccount") => Recognised::Ours(Kind::ServiceAccount),
        ("", "v1", "Pod") => Recognised::Ours(Kind::Pod),
        ("", "v1", "Service") => Recognised::Ours(Kind::Service),
        ("", "v1", "List") => {
            refuse("kind", "a List is not read: write its items as documents of their own".into())
        }
        ("discovery.k8s.io", "v1", "EndpointSlice") => Recognised::Ours(Kind::EndpointSlice),
        ("gateway.networking.k8s.io", version, kind) => recognise_route(version, kind),
        ("weft.dev", "v1alpha1", "MeshConfig") => Recognised::Ours(Kind::MeshConfig),
        ("weft.dev", "v1alpha1", "AuthorizationPolicy") => Recognised::Ours(Kind::AuthorizationPolicy),
        ("weft.dev", "v1alpha1", kind) if LATER.contains(&kind) => {
            refuse("kind", format!("{kind} is not supported yet"))
        }
        ("weft.dev", "v1alpha1", kind) => {
            refuse("kind", format!("{kind:?} is not a kind of weft.dev/v1alpha1"))
        }
        ("weft.dev", version, _) => refuse(
            "apiVersion",
            format!("version {version:?} of weft.dev is not known: write weft.dev/v1alpha1"),
        ),
        ("", ..) => Recognised::Ignored(kind.to_owned()),
        _ => Recognised::Ignored(format!("{kind}.{group}")),
    }
}

/// Routes, in the versions that have the shape of today's.
fn recognise_route(version: &str, kind: &str) -> Recognised {
    let (route, versions): (RouteKind, &[&str]) = match kind {
        "HTTPRoute" => (RouteKind::Http, &["v1", "v1beta1"]),
        "GRPCRoute" => (RouteKind::Grpc, &["v1"]),
        "TLSRoute" => (RouteKind::Tls, &["v1", "v1alpha3", "v1alpha2"]),
        "TCPRoute" => (RouteKind::Tcp, &["v1", "v1alpha2"]),
        _ => return Recognised::Ignored(format!("{kind}.gateway.networking.k8s.io")),
    };
    if versions.contains(&version) {
        return Recognised::Ours(Kind::Route(route));
    }
    let message = format!("version {version:?} of {kind} is not known: write {}", versions.join(" or "));
    Recognised::Refused(Fault::at(FieldPath::of("apiVersion"), message))
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
            Ok(key) => self.read_object(key),
            Err(fault) => nameless(self.place(fault)),
        }
    }

    fn read_object(&self, key: Key) -> Reading {
        let object = match key.kind {
            Kind::AuthorizationPolicy => return self.read_policy(key),
            Kind::MeshConfig => self
                .parse_ours()
                .and_then(|object: MeshConfig| self.accepted(config::accept(&object.spec)))
                .map(Object::MeshConfig),
            Kind::Route(kind) => self
                .parse::<serde_json::Value>()
                .and_then(|object| self.accepted(route::accept(&key, kind, &object)))
                .map(|route| Object::Route(Box::new(route))),
            Kind::Namespace => self
                .parse::<core::Namespace>()
                .and_then(|object| self.accepted(cluster::accept_namespace(&object)))
                .map(Object::Namespace),
            Kind::Node => {
                self.parse::<core::Node>().map(|object| Object::Node(cluster::accept_node(&object)))
            }
            Kind::ServiceAccount => self.parse::<core::ServiceAccount>().map(|_| Object::ServiceAccount),
            Kind::Pod => self
                .parse::<core::Pod>()
                .and_then(|object| self.accepted(pod::accept(&object)))
                .map(|pod| Object::Pod(Box::new(pod))),
            Kind::Service => self
                .parse::<core::Service>()
                .and_then(|object| self.accepted(service::accept(&object)))
                .map(Object::Service),
            Kind::EndpointSlice => self
                .parse::<slices::EndpointSlice>()
                .and_then(|object| self.accepted(slice::accept(&object)))
                .map(Object::EndpointSlice),
        };
        match object {
            Ok(object) => Reading::Good { key, object, fault: None },
            Err(fault) => {
                let stand_in = (key.kind == Kind::MeshConfig).then_some(Object::UnusableMeshConfig);
                Reading::Bad { key: Some(key), fault, stand_in }
            }
        }
    }

    fn read_policy(&self, key: Key) -> Reading {
        let boxed = |policy| Object::AuthorizationPolicy(Box::new(policy));
        let spec = match self.parse_ours::<AuthorizationPolicy>() {
            Ok(object) => object.spec,
            Err(fault) => {
                let remains = self.parse::<policy::Remains>().ok();
                let stand_in = remains.and_then(|remains| remains.refusing(&key, &fault.to_string()));
                return Reading::Bad { key: Some(key), fault, stand_in: stand_in.map(boxed) };
            }
        };
        let refusing = |reason: &str| {
            policy::refusing(&key, &spec.target_refs, policy::action(spec.action), reason).map(boxed)
        };
        if let Some(fault) = policy::unsupported(&spec) {
            let fault = self.place(fault);
            return match refusing(&fault.to_string()) {
                Some(object) => Reading::Good { key, object, fault: Some(fault) },
                None => Reading::Bad { key: Some(key), fault, stand_in: None },
            };
        }
        match self.accepted(policy::accept(&key, &spec)) {
            Ok(policy) => Reading::Good { key, object: boxed(policy), fault: None },
            Err(fault) => {
                let stand_in = refusing(&fault.to_string());
                Reading::Bad { key: Some(key), fault, stand_in }
            }
        }
    }

    fn parse_ours<T: DeserializeOwned>(&self) -> Result<T, Placed> {
        self.parse::<Envelope>()?;
        self.parse()
    }

    fn accepted<T>(&self, result: Result<T, Fault>) -> Result<T, Placed> {
        result.map_err(|fault| self.place(fault))
    }

    fn place(&self, fault: Fault) -> Placed {
        Placed { spot: self.locate(&fault.field), fault }
    }

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

    fn misread(&self, path: &serde_path_to_error::Path, spot: Option<(usize, usize)>, text: &str) -> Placed {
        let mut field = FieldPath::from(path);
        let message = bare_message(text, &path.to_string());
        if let Some(unknown) = message.strip_prefix("unknown field `").and_then(|rest| rest.split('`').next())
            && field.0.last() != Some(&Segment::Key(unknown.to_owned()))
        {
            field = field.key(unknown);
        }
        let spot = match spot {
            Some((line, column)) => {
                Spot { line: Some(self.first_line + line.saturating_sub(1)), column: Some(column) }
            }
            None => Spot { line: Some(self.content_line()), column: None },
        };
        Placed { spot, fault: Fault { field, message: message.to_owned() } }
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

impl fmt::Display for Placed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.fault.field.is_root() {
            write!(f, "{}: ", self.fault.field)?;
        }
        f.write_str(&self.fault.message)
    }
}

/// The parsers put place and path (of the field, or of what holds it) into their text; both are told apart here.
fn bare_message<'a>(text: &'a str, path: &str) -> &'a str {
    let text = match text.split_once(": ") {
        Some((head, rest)) if path.starts_with(head) => rest,
        _ => text,
    };
    // What follows counts lines from the document's own beginning.
    text.find(" at line ").map_or(text, |end| &text[..end])
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
