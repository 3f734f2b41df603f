//! The `http` part of a rule: which requests it speaks about.
//!
//! Absent lists are no restriction and empty lists match nothing, as everywhere in a policy.

use std::fmt;
use std::sync::Arc;

use http::{HeaderName, Method};

use crate::model::path::{PathFault, RequestPath};

/// One alternative of a rule's `http`: a request matches when every field does.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct HttpMatch {
    /// Methods, alternatives.
    pub methods: Option<Vec<Method>>,
    /// Paths, alternatives.
    pub paths: Option<Vec<PathPattern>>,
    /// Headers, all of which must match.
    pub headers: Option<Vec<HeaderPattern>>,
    /// gRPC calls, alternatives.
    pub grpc_methods: Option<Vec<GrpcMethod>>,
}

impl HttpMatch {
    /// False when an empty list makes it match nothing.
    pub fn is_satisfiable(&self) -> bool {
        self.methods.as_ref().is_none_or(|list| !list.is_empty())
            && self.paths.as_ref().is_none_or(|list| !list.is_empty())
            && self.headers.as_ref().is_none_or(|list| !list.is_empty())
            && self.grpc_methods.as_ref().is_none_or(|list| !list.is_empty())
    }

    /// True when no field restricts it: it matches every request.
    pub fn is_any(&self) -> bool {
        self.methods.is_none()
            && self.paths.is_none()
            && self.headers.is_none()
            && self.grpc_methods.is_none()
    }
}

impl fmt::Display for HttpMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_any() {
            return f.write_str("any request");
        }
        let mut parts = Vec::new();
        parts.extend(self.methods.as_ref().map(|all| part("method", all)));
        parts.extend(self.paths.as_ref().map(|all| part("path", all)));
        parts.extend(self.headers.as_ref().map(|all| part("headers", all)));
        parts.extend(self.grpc_methods.as_ref().map(|all| part("gRPC", all)));
        f.write_str(&parts.join("; "))
    }
}

fn part(field: &str, all: &[impl fmt::Display]) -> String {
    let all: Vec<String> = all.iter().map(ToString::to_string).collect();
    if all.is_empty() { format!("{field} none") } else { format!("{field} {}", all.join(", ")) }
}

/// A pattern for paths, in the spelling of `RequestPath::comparable`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathPattern {
    /// The whole path.
    Exact(Arc<str>),
    /// The path and everything below it, by whole segments. No slash at the end; empty: every path, `*` too.
    Prefix(Arc<str>),
    /// Segment by segment.
    Template(PathTemplate),
}

/// `/users/{id}/orders` or `/files/{rest=**}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathTemplate {
    written: Arc<str>,
    /// Segments; `None` stands for any one that is not empty.
    pub segments: Vec<Option<Arc<str>>>,
    /// Ends in `{name=**}`: any number of further segments, also none.
    pub open: bool,
}

/// Why a value is no pattern.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternFault {
    /// Not a path at all.
    #[error(transparent)]
    Path(#[from] PathFault),
    /// Has a query.
    #[error("contains a query, but only the path is compared")]
    Query,
    /// Not as requests are compared.
    #[error("{written:?} is not in normal form, which is {normal:?}")]
    NotNormal {
        /// As written.
        written: String,
        /// As requests are compared.
        normal: String,
    },
    /// A template written as something else.
    #[error("contains braces: use type Template, or write %7B and %7D")]
    Braces,
    /// A brace where none can be, or a name that is none.
    #[error(
        "{0:?} is neither a plain segment nor {{name}} nor {{name=**}}, where a name is made of letters, digits and '_'"
    )]
    Segment(String),
    /// A second variable of one name.
    #[error("names {{{0}}} twice")]
    Twice(String),
    /// `{name=**}` before the end.
    #[error("continues behind {{{0}=**}}, which takes everything to the end")]
    NotLast(String),
}

impl PathPattern {
    /// `type: Exact`. `*` is the pattern for the asterisk form.
    ///
    /// # Errors
    /// `value` is not a path in normal form.
    pub fn exact(value: &str) -> Result<Self, PatternFault> {
        Ok(Self::Exact(comparable(value)?.into()))
    }

    /// `type: PathPrefix`. A slash at the end makes no difference.
    ///
    /// # Errors
    /// `value` is not a path in normal form.
    pub fn prefix(value: &str) -> Result<Self, PatternFault> {
        let value = comparable(value)?;
        if value == "*" {
            return Err(PathFault::NotAbsolute.into());
        }
        Ok(Self::Prefix(value.strip_suffix('/').unwrap_or(&value).into()))
    }

    /// `type: Template`.
    ///
    /// # Errors
    /// `value` is not a path in normal form, or a variable cannot be read.
    pub fn template(value: &str) -> Result<Self, PatternFault> {
        let path = value.strip_prefix('/').ok_or(PathFault::NotAbsolute)?;
        let mut template = PathTemplate { written: value.into(), segments: Vec::new(), open: false };
        let mut names: Vec<&str> = Vec::new();
        for segment in path.split('/') {
            if let (true, Some(name)) = (template.open, names.last()) {
                return Err(PatternFault::NotLast((*name).to_owned()));
            }
            let Some(variable) = Variable::read(segment)? else {
                let segment = comparable(&format!("/{segment}"))?;
                template.segments.push(Some(segment[1..].into()));
                continue;
            };
            if names.contains(&variable.name) {
                return Err(PatternFault::Twice(variable.name.to_owned()));
            }
            names.push(variable.name);
            if variable.open {
                template.open = true;
            } else {
                template.segments.push(None);
            }
        }
        Ok(Self::Template(template))
    }
}

struct Variable<'a> {
    name: &'a str,
    open: bool,
}

impl<'a> Variable<'a> {
    /// `None`: the segment is plain.
    fn read(segment: &'a str) -> Result<Option<Self>, PatternFault> {
        if !segment.contains(['{', '}']) {
            return Ok(None);
        }
        let refused = || PatternFault::Segment(segment.to_owned());
        let inner = segment.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')).ok_or_else(refused)?;
        let (name, open) = match inner.strip_suffix("=**") {
            Some(name) => (name, true),
            None => (inner, false),
        };
        let is_name =
            !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        if is_name { Ok(Some(Self { name, open })) } else { Err(refused()) }
    }
}

/// A path without variables, as requests are compared. What is not in normal form is refused rather than mended, so that
/// the author sees what is compared.
fn comparable(written: &str) -> Result<String, PatternFault> {
    if written.contains('?') {
        return Err(PatternFault::Query);
    }
    let path = RequestPath::parse(written)?;
    if path.is_authority() {
        return Err(PathFault::NotAbsolute.into());
    }
    if written.contains(['{', '}']) {
        return Err(PatternFault::Braces);
    }
    if !path.is_as_written() {
        return Err(PatternFault::NotNormal {
            written: written.to_owned(),
            normal: path.as_str().to_owned(),
        });
    }
    Ok(path.comparable().into_owned())
}

impl fmt::Display for PathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(path) => write!(f, "{path}"),
            Self::Prefix(path) => write!(f, "{path}/..."),
            Self::Template(template) => f.write_str(&template.written),
        }
    }
}

/// A header that a request must carry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderPattern {
    /// Its name. `host` stands for the request's authority, wherever the protocol carries it.
    pub name: HeaderName,
    /// What its value must be.
    pub value: HeaderCondition,
}

/// What the value of a header must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HeaderCondition {
    /// Equal to this.
    Exact(Arc<str>),
    /// Beginning with this.
    Prefix(Arc<str>),
    /// Anything, as long as the header is there.
    Present,
}

impl fmt::Display for HeaderPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.value {
            HeaderCondition::Exact(value) => write!(f, "{}: {value}", self.name),
            HeaderCondition::Prefix(value) => write!(f, "{}: {value}...", self.name),
            HeaderCondition::Present => write!(f, "{}", self.name),
        }
    }
}

/// A gRPC call: a POST of `application/grpc` to `/service/method`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrpcMethod {
    /// Fully qualified service, such as `shop.v1.Orders`; `None`: any.
    pub service: Option<Arc<str>>,
    /// Method, such as `List`; `None`: any.
    pub method: Option<Arc<str>>,
}

impl fmt::Display for GrpcMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let or_any = |part: &Option<Arc<str>>| part.clone().unwrap_or_else(|| "*".into());
        write!(f, "{}/{}", or_any(&self.service), or_any(&self.method))
    }
}
