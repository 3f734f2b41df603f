//! `AuthorizationPolicy`, as the mesh holds it after validation. What a rule says about requests stands in `requests`.

mod requests;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use ipnet::IpNet;

use super::Workload;

pub use requests::{
    GrpcMethod, HeaderCondition, HeaderPattern, HttpMatch, PathPattern, PathTemplate, PatternFault,
};

/// `namespace/name` of a policy object.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PolicyName {
    /// Kubernetes namespace.
    pub namespace: Arc<str>,
    /// Object name.
    pub name: Arc<str>,
}

impl fmt::Display for PolicyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl fmt::Debug for PolicyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// What a matching rule does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Action {
    /// Admits; once any ALLOW selects a pod, what matches none is refused.
    Allow,
    /// Refuses, before any ALLOW is read.
    Deny,
    /// Only records.
    Audit,
}

impl Action {
    /// As written in the object, and stable for metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Allow => "ALLOW",
            Self::Deny => "DENY",
            Self::Audit => "AUDIT",
        }
    }
}

/// One way to recognise the peer. The sources of a rule are alternatives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A service account; `name` `*` stands for every account of the namespace.
    ServiceAccount {
        /// Namespace of the account.
        namespace: String,
        /// Name of the account, or `*`.
        name: String,
    },
    /// A SPIFFE id; a trailing `*` matches any suffix.
    Spiffe(String),
    /// A range of client addresses.
    Cidr(IpNet),
    /// Any peer with a verified identity.
    AnyAuthenticated,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ServiceAccount { namespace, name } => write!(f, "service account {namespace}/{name}"),
            Self::Spiffe(pattern) => f.write_str(pattern),
            Self::Cidr(net) => write!(f, "{net}"),
            Self::AnyAuthenticated => f.write_str("any authenticated peer"),
        }
    }
}

/// One rule: matches when all its fields match.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Rule {
    /// `None`: anybody. `Some(empty)`: nobody.
    pub sources: Option<Vec<Source>>,
    /// `None`: every port. `Some(empty)`: no port.
    pub ports: Option<Vec<u16>>,
    /// `None`: connections and every request on them. `Some`: requests that match one of these; `Some(empty)`: none.
    pub http: Option<Vec<HttpMatch>>,
}

/// A validated policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthorizationPolicy {
    /// Object name.
    pub name: PolicyName,
    /// True when it sits in the system namespace and so selects pods of every namespace.
    pub cluster_wide: bool,
    /// Pod selectors; a pod is selected when any matches. Empty: every pod in scope.
    pub selectors: Vec<Selector>,
    /// What its rules do.
    pub action: Action,
    /// Alternatives. Empty: matches nothing, which for ALLOW means that everything is refused.
    pub rules: Vec<Rule>,
    /// Why the object cannot be enforced as written. Then its rules are not read and it refuses everybody, since leaving
    /// out an ALLOW or a DENY would open what its author closed (docs/decisions/0002).
    pub unusable: Option<Arc<str>>,
}

impl AuthorizationPolicy {
    /// Whether it speaks about this pod.
    pub fn selects(&self, pod: &Workload) -> bool {
        (self.cluster_wide || self.name.namespace == pod.name.namespace)
            && (self.selectors.is_empty()
                || self.selectors.iter().any(|selector| selector.matches(&pod.labels)))
    }
}

/// A label selector (`matchLabels` and `matchExpressions`).
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Selector {
    /// Labels that must be present with that value.
    pub match_labels: BTreeMap<String, String>,
    /// Further requirements.
    pub expressions: Vec<Requirement>,
}

/// One `matchExpressions` entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Requirement {
    /// The label's value is one of these.
    In(String, Vec<String>),
    /// The label is absent or its value is none of these.
    NotIn(String, Vec<String>),
    /// The label is present.
    Exists(String),
    /// The label is absent.
    DoesNotExist(String),
}

impl Selector {
    /// Whether a pod with these labels is selected.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.match_labels.iter().all(|(key, value)| labels.get(key) == Some(value))
            && self.expressions.iter().all(|requirement| requirement.matches(labels))
    }
}

impl Requirement {
    fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        match self {
            Self::In(key, values) => labels.get(key).is_some_and(|value| values.contains(value)),
            Self::NotIn(key, values) => labels.get(key).is_none_or(|value| !values.contains(value)),
            Self::Exists(key) => labels.contains_key(key),
            Self::DoesNotExist(key) => !labels.contains_key(key),
        }
    }
}
