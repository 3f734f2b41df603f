//! One object, read: which kind it is, whether its text can be taken, and what stands in for it if not.
//!
//! Sources differ in how an object is written and where a fault is shown; what is read and refused is the same for all.

use std::fmt;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::metadata::Metadata;
use super::{Key, Kind, Object, cluster, config, pod, policy, route, service, slice};
use crate::discovery::problem::{Fault, FieldPath, Segment};
use crate::discovery::resources::{AuthorizationPolicy, MeshConfig};
use crate::model::RouteKind;

/// An object as its source has it.
pub trait Written {
    /// A fault, and what the source knows of its place.
    type Fault: fmt::Display;

    /// Reads it as a type.
    ///
    /// # Errors
    /// It does not have the type's shape.
    fn parse<T: DeserializeOwned>(&self) -> Result<T, Self::Fault>;

    /// Refuses unknown fields outside the `spec` of one of our own kinds.
    ///
    /// # Errors
    /// Names the field.
    fn check_outer_fields(&self) -> Result<(), Self::Fault>;

    /// Finds the place of a fault.
    fn place(&self, fault: Fault) -> Self::Fault;
}

/// What became of an object.
#[derive(Debug)]
pub enum Reading<F> {
    /// An object; a fault beside it is to be reported, but the object is what the author's text means.
    Good {
        /// It.
        object: Object,
        /// What to report.
        fault: Option<F>,
    },
    /// No object.
    Bad {
        /// Why.
        fault: F,
        /// For when there is no last good version.
        stand_in: Option<Object>,
    },
}

/// Kinds of ours that later releases will read.
const LATER: [&str; 5] =
    ["BackendPolicy", "RateLimitPolicy", "TrafficShapingPolicy", "FaultInjection", "ExternalWorkload"];

/// What `apiVersion` and `kind` say.
#[derive(Debug)]
pub enum Recognised {
    /// A kind that the mesh reads.
    Ours(Kind),
    /// One that it does not read: `kind.group`.
    Ignored(String),
    /// One that is meant for the mesh and cannot be read.
    Refused(Fault),
}

/// Tells what an object is.
pub fn recognise(api_version: &str, kind: &str) -> Recognised {
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

/// The versions of a kind of route that have the shape of today's, the preferred one first.
pub const fn route_versions(kind: RouteKind) -> &'static [&'static str] {
    match kind {
        RouteKind::Http => &["v1", "v1beta1"],
        RouteKind::Grpc => &["v1"],
        RouteKind::Tls => &["v1", "v1alpha3", "v1alpha2"],
        RouteKind::Tcp => &["v1", "v1alpha2"],
    }
}

fn recognise_route(version: &str, kind: &str) -> Recognised {
    let route = match kind {
        "HTTPRoute" => RouteKind::Http,
        "GRPCRoute" => RouteKind::Grpc,
        "TLSRoute" => RouteKind::Tls,
        "TCPRoute" => RouteKind::Tcp,
        _ => return Recognised::Ignored(format!("{kind}.gateway.networking.k8s.io")),
    };
    let versions = route_versions(route);
    if versions.contains(&version) {
        return Recognised::Ours(Kind::Route(route));
    }
    let message = format!("version {version:?} of {kind} is not known: write {}", versions.join(" or "));
    Recognised::Refused(Fault::at(FieldPath::of("apiVersion"), message))
}

/// Kinds of which the mesh needs no more than the metadata.
#[derive(Deserialize)]
struct MetadataOnly {
    #[serde(default)]
    metadata: Metadata,
}

/// Reads the object that `key` names.
pub fn read<W: Written>(written: &W, key: &Key) -> Reading<W::Fault> {
    let object = match key.kind {
        Kind::AuthorizationPolicy => return read_policy(written, key),
        Kind::MeshConfig => parse_ours(written)
            .and_then(|object: MeshConfig| placed(written, config::accept(&object.spec)))
            .map(Object::MeshConfig),
        Kind::Route(kind) => written
            .parse::<serde_json::Value>()
            .and_then(|object| placed(written, route::accept(key, kind, &object)))
            .map(|route| Object::Route(Box::new(route))),
        Kind::Namespace => written
            .parse::<MetadataOnly>()
            .and_then(|object| placed(written, cluster::accept_namespace(&object.metadata)))
            .map(Object::Namespace),
        Kind::Node => {
            written.parse::<MetadataOnly>().map(|object| Object::Node(cluster::accept_node(&object.metadata)))
        }
        Kind::ServiceAccount => written.parse::<MetadataOnly>().map(|_| Object::ServiceAccount),
        Kind::Pod => written
            .parse::<pod::Raw>()
            .and_then(|object| placed(written, pod::accept(&object)))
            .map(|pod| Object::Pod(Box::new(pod))),
        Kind::Service => written
            .parse::<service::Raw>()
            .and_then(|object| placed(written, service::accept(&object)))
            .map(Object::Service),
        Kind::EndpointSlice => written
            .parse::<slice::Raw>()
            .and_then(|object| placed(written, slice::accept(&object)))
            .map(Object::EndpointSlice),
    };
    match object {
        Ok(object) => Reading::Good { object, fault: None },
        Err(fault) => {
            let stand_in = (key.kind == Kind::MeshConfig).then_some(Object::UnusableMeshConfig);
            Reading::Bad { fault, stand_in }
        }
    }
}

fn read_policy<W: Written>(written: &W, key: &Key) -> Reading<W::Fault> {
    let boxed = |policy| Object::AuthorizationPolicy(Box::new(policy));
    let spec = match parse_ours::<W, AuthorizationPolicy>(written) {
        Ok(object) => object.spec,
        Err(fault) => {
            let remains = written.parse::<policy::Remains>().ok();
            let stand_in = remains.and_then(|remains| remains.refusing(key, &fault.to_string()));
            return Reading::Bad { fault, stand_in: stand_in.map(boxed) };
        }
    };
    let refusing = |reason: &str| {
        policy::refusing(key, &spec.target_refs, policy::action(spec.action), reason).map(boxed)
    };
    if let Some(fault) = policy::unsupported(&spec) {
        let fault = written.place(fault);
        return match refusing(&fault.to_string()) {
            Some(object) => Reading::Good { object, fault: Some(fault) },
            None => Reading::Bad { fault, stand_in: None },
        };
    }
    match placed(written, policy::accept(key, &spec)) {
        Ok(policy) => Reading::Good { object: boxed(policy), fault: None },
        Err(fault) => {
            let stand_in = refusing(&fault.to_string());
            Reading::Bad { fault, stand_in }
        }
    }
}

fn parse_ours<W: Written, T: DeserializeOwned>(written: &W) -> Result<T, W::Fault> {
    written.check_outer_fields()?;
    written.parse()
}

fn placed<W: Written, T>(written: &W, result: Result<T, Fault>) -> Result<T, W::Fault> {
    result.map_err(|fault| written.place(fault))
}

/// A parser's complaint, with the field that it is about.
pub fn misread(path: &serde_path_to_error::Path, text: &str) -> Fault {
    let mut field = FieldPath::from(path);
    let message = bare_message(text, &path.to_string());
    if let Some(unknown) = message.strip_prefix("unknown field `").and_then(|rest| rest.split('`').next())
        && field.0.last() != Some(&Segment::Key(unknown.to_owned()))
    {
        field = field.key(unknown);
    }
    Fault { field, message: message.to_owned() }
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
