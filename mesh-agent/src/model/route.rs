//! Routes: which requests to a service go where, and what happens to them on the way, as the mesh holds them after
//! validation (Gateway API v1; GEP-1294 for routes whose parent is a Service).
//!
//! Layer 0. `discovery` reads them, `route` compiles them into a router, `proxy` carries out what the router says.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Method, StatusCode};
use regex::Regex;

use super::ServiceName;

/// The kinds of routes, in the order in which one of them wins a service port (GEP-1294).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RouteKind {
    /// GRPCRoute.
    Grpc,
    /// HTTPRoute.
    Http,
    /// TLSRoute.
    Tls,
    /// TCPRoute.
    Tcp,
}

impl RouteKind {
    /// As written in `kind:`, and stable for metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Grpc => "GRPCRoute",
            Self::Http => "HTTPRoute",
            Self::Tls => "TLSRoute",
            Self::Tcp => "TCPRoute",
        }
    }
}

/// Kind, namespace and name of a route.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RouteName {
    /// Its kind.
    pub kind: RouteKind,
    /// Kubernetes namespace.
    pub namespace: Arc<str>,
    /// Object name.
    pub name: Arc<str>,
}

impl fmt::Display for RouteName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.kind.label(), self.namespace, self.name)
    }
}

impl fmt::Debug for RouteName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A validated route: the rules that can be carried out. Rules that cannot are left out and named in the route's status.
#[derive(Clone, Debug)]
pub struct Route {
    /// Which one.
    pub name: RouteName,
    /// Age: lower is older; ties are settled by namespace and name.
    pub rank: u64,
    /// Host names that requests must carry (`*.` at the beginning stands for one or more labels), lower case, no port.
    /// Empty: any.
    pub hostnames: Vec<Arc<str>>,
    /// Its rules, in the order written.
    pub rules: Vec<Arc<RouteRule>>,
}

/// One rule.
#[derive(Clone, Debug)]
pub struct RouteRule {
    /// Its place in the object, from 0.
    pub index: usize,
    /// `name`, if written.
    pub name: Option<Arc<str>>,
    /// Alternatives. Never empty: a rule without `matches` matches every path. TCP and TLS rules hold one such match.
    pub matches: Vec<RequestMatch>,
    /// What is done to requests that match and to their responses, in the order written.
    pub filters: Vec<Filter>,
    /// Where they go. Empty: nowhere, unless a filter answers (500).
    pub backends: Vec<RouteBackend>,
    /// How long they may take.
    pub timeouts: RouteTimeouts,
}

/// One alternative of a rule: all its parts must match.
#[derive(Clone, Debug)]
pub struct RequestMatch {
    /// The path, normalised (see `model::path`).
    pub path: PathMatch,
    /// The method; `None`: any.
    pub method: Option<Method>,
    /// Headers.
    pub headers: Vec<HeaderMatch>,
    /// Query parameters.
    pub query: Vec<QueryMatch>,
}

/// How the path is compared.
#[derive(Clone, Debug)]
pub enum PathMatch {
    /// The whole path.
    Exact(Arc<str>),
    /// The path or a path below it, by whole segments. No slash at the end; empty: every path.
    Prefix(Arc<str>),
    /// The whole path matches.
    Regex(Regex),
    /// GRPCRoute: service and method of the call; `None` stands for any.
    Grpc {
        /// Fully qualified service.
        service: Option<StringMatch>,
        /// Method.
        method: Option<StringMatch>,
    },
}

/// How a text is compared.
#[derive(Clone, Debug)]
pub enum StringMatch {
    /// Equal.
    Exact(Arc<str>),
    /// The whole text matches.
    Regex(Regex),
}

impl StringMatch {
    /// Whether it matches. Regular expressions were anchored when they were read.
    pub fn matches(&self, text: &str) -> bool {
        match self {
            Self::Exact(exact) => **exact == *text,
            Self::Regex(regex) => regex.is_match(text),
        }
    }
}

/// A header that must be there; several lines of one name count as one value joined by `,` (RFC 9110 section 5.3).
#[derive(Clone, Debug)]
pub struct HeaderMatch {
    /// Name.
    pub name: HeaderName,
    /// Value.
    pub value: StringMatch,
}

/// A query parameter that must be there; of several with one name the first counts.
#[derive(Clone, Debug)]
pub struct QueryMatch {
    /// Name, exact.
    pub name: Arc<str>,
    /// Value.
    pub value: StringMatch,
}

/// What is done to a request or its response.
#[derive(Clone, Debug, PartialEq)]
pub enum Filter {
    /// `RequestHeaderModifier`.
    RequestHeaders(HeaderEdit),
    /// `ResponseHeaderModifier`.
    ResponseHeaders(HeaderEdit),
    /// `RequestRedirect`: answers itself.
    Redirect(Redirect),
    /// `URLRewrite`.
    Rewrite(Rewrite),
    /// `RequestMirror`.
    Mirror(Mirror),
    /// `CORS`.
    Cors(Arc<Cors>),
}

/// Changes of headers: set, then add, then remove.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderEdit {
    /// Replaced or created.
    pub set: Vec<(HeaderName, HeaderValue)>,
    /// Appended.
    pub add: Vec<(HeaderName, HeaderValue)>,
    /// Removed.
    pub remove: Vec<HeaderName>,
}

/// `RequestRedirect`. What is absent stays as the request has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirect {
    /// `http` or `https`.
    pub scheme: Option<Arc<str>>,
    /// Host name.
    pub hostname: Option<Arc<str>>,
    /// Path.
    pub path: Option<PathEdit>,
    /// Port. Absent: the scheme's own if `scheme` is set, else the port that was dialled.
    pub port: Option<u16>,
    /// 301, 302, 303, 307 or 308.
    pub status: StatusCode,
}

/// `URLRewrite`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rewrite {
    /// New `Host`.
    pub hostname: Option<Arc<str>>,
    /// New path.
    pub path: Option<PathEdit>,
}

/// A change of the path; the query stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathEdit {
    /// The whole path.
    Full(Arc<str>),
    /// The prefix that the rule matched.
    Prefix(Arc<str>),
}

/// `RequestMirror`: a copy of some requests goes to another backend, whose answers nobody reads.
#[derive(Clone, Debug, PartialEq)]
pub struct Mirror {
    /// Where to.
    pub backend: BackendTarget,
    /// Share of requests, from 0 to 1.
    pub share: f64,
}

/// `CORS` (Fetch standard, section 3.2).
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Cors {
    /// Origins, exact or with a `*.` host; `*` alone is any.
    pub allow_origins: Vec<Arc<str>>,
    /// Whether credentials are allowed.
    pub allow_credentials: bool,
    /// Methods; `*` is any.
    pub allow_methods: Vec<Arc<str>>,
    /// Request headers; `*` is any.
    pub allow_headers: Vec<Arc<str>>,
    /// Response headers that scripts may read.
    pub expose_headers: Vec<Arc<str>>,
    /// How long a preflight answer holds.
    pub max_age: Option<Duration>,
}

/// One of a rule's backends.
#[derive(Clone, Debug)]
pub struct RouteBackend {
    /// Where to.
    pub target: BackendTarget,
    /// Share of the requests, relative to the others; 0: none.
    pub weight: u32,
    /// Filters for requests that go here, after the rule's.
    pub filters: Vec<Filter>,
}

/// Where requests go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackendTarget {
    /// A port of a service.
    Service {
        /// Which service.
        name: ServiceName,
        /// Which of its ports.
        port: u16,
    },
    /// Nowhere: the reference cannot be resolved. Its share of requests is answered with 500.
    Invalid {
        /// Why, for the log.
        reason: Arc<str>,
    },
}

/// How long a request may take. `None`: without limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RouteTimeouts {
    /// From the request's head to the last byte of the response (GEP-1742).
    pub request: Option<Duration>,
    /// The same for one try at a backend.
    pub backend_request: Option<Duration>,
}
