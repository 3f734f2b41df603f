//! What a request asks for: its path and parameters, read.

use std::collections::BTreeMap;
use std::time::Duration;

use http::{HeaderMap, Method, Uri, header};

use super::refusal::Refusal;
use super::store::Form;

/// A request for objects.
#[derive(Clone, Debug, Default)]
pub struct Ask {
    /// API group; empty for the core.
    pub group: String,
    /// API version.
    pub version: String,
    /// Namespace, when the path has one.
    pub namespace: Option<String>,
    /// Plural of the kind.
    pub plural: String,
    /// Name, when the path has one.
    pub name: Option<String>,
    /// What is below the object: `status`, `token`.
    pub subresource: Option<String>,
    /// Parameters.
    pub query: BTreeMap<String, String>,
}

impl Ask {
    /// Reads a path below `/api/` or `/apis/`; nothing when it is not about objects.
    pub fn read(uri: &Uri) -> Option<Self> {
        let decoded: Vec<String> =
            uri.path().split('/').filter(|part| !part.is_empty()).map(decode).collect();
        let parts: Vec<&str> = decoded.iter().map(String::as_str).collect();
        let (group, version, mut rest) = match parts.as_slice() {
            ["api", version, rest @ ..] => ("", *version, rest),
            ["apis", group, version, rest @ ..] => (*group, *version, rest),
            _ => return None,
        };
        let mut ask = Self { group: group.to_owned(), version: version.to_owned(), ..Self::default() };
        if let ["namespaces", namespace, below @ ..] = rest
            && !matches!(below, [] | ["status" | "finalize"])
        {
            ask.namespace = Some((*namespace).to_owned());
            rest = below;
        }
        let (plural, below) = rest.split_first()?;
        (*plural).clone_into(&mut ask.plural);
        ask.name = below.first().map(|&name| name.to_owned());
        ask.subresource = below.get(1).map(|&name| name.to_owned());
        ask.query = parameters(uri);
        (below.len() <= 2).then_some(ask)
    }

    /// A parameter; empty when absent.
    pub fn parameter(&self, name: &str) -> &str {
        self.query.get(name).map_or("", String::as_str)
    }

    /// Whether a parameter is true.
    pub fn is(&self, name: &str) -> bool {
        matches!(self.parameter(name), "true" | "1")
    }

    /// A number.
    ///
    /// # Errors
    /// It is none.
    pub fn number(&self, name: &str) -> Result<Option<u64>, Refusal> {
        let text = self.parameter(name);
        if text.is_empty() {
            return Ok(None);
        }
        let refuse = |_| Refusal::new(400, format!("invalid {name}: {text}"));
        text.parse().map(Some).map_err(refuse)
    }

    /// How long a watch lasts.
    ///
    /// # Errors
    /// The parameter is no number.
    pub fn timeout(&self) -> Result<Duration, Refusal> {
        // As long as the real server's shortest.
        Ok(Duration::from_secs(self.number("timeoutSeconds")?.unwrap_or(1800)))
    }

    /// The verb as roles name it.
    pub fn verb(&self, method: &Method) -> &'static str {
        match (method.as_str(), self.name.is_some()) {
            ("GET" | "HEAD", true) => "get",
            ("GET" | "HEAD", false) if self.is("watch") => "watch",
            ("GET" | "HEAD", false) => "list",
            ("POST", _) => "create",
            ("PUT", _) => "update",
            ("PATCH", _) => "patch",
            ("DELETE", true) => "delete",
            ("DELETE", false) => "deletecollection",
            _ => "",
        }
    }

    /// The kind as roles name it: `pods`, `pods/status`.
    pub fn resource(&self) -> String {
        match &self.subresource {
            Some(subresource) => format!("{}/{subresource}", self.plural),
            None => self.plural.clone(),
        }
    }

    /// Namespace and name, for the account of requests.
    pub fn place(&self) -> String {
        format!(
            "{}/{}",
            self.namespace.as_deref().unwrap_or_default(),
            self.name.as_deref().unwrap_or_default()
        )
    }
}

/// What a client wants to see, by its header `Accept`.
pub fn form(headers: &HeaderMap) -> Form {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if accept.contains("as=PartialObjectMetadata") { Form::Metadata } else { Form::Whole }
}

/// The writer of a request that names none: the program, by its header `User-Agent`.
pub fn program(headers: &HeaderMap) -> String {
    let agent = headers.get(header::USER_AGENT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    agent.split(['/', ' ']).next().filter(|name| !name.is_empty()).unwrap_or("unknown").to_owned()
}

/// The parameters of a request.
pub fn parameters(uri: &Uri) -> BTreeMap<String, String> {
    let query = uri.query().unwrap_or_default();
    form_urlencoded::parse(query.as_bytes()).into_owned().collect()
}

fn decode(part: &str) -> String {
    // Names hold `:` (roles) and little else that is written with `%`; `+` stands for itself in a path.
    let escaped = part.replace('+', "%2B");
    form_urlencoded::parse(escaped.as_bytes()).next().map(|(name, _)| name.into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(path: &str) -> (String, String, String, String, String) {
        let ask = Ask::read(&path.parse().unwrap()).unwrap();
        let text = |part: Option<String>| part.unwrap_or_else(|| "-".to_owned());
        (ask.group, text(ask.namespace), ask.plural, text(ask.name), text(ask.subresource))
    }

    #[test]
    fn paths_lead_to_kinds_objects_and_what_is_below_them() {
        let cases = [
            ("/api/v1/pods", ("", "-", "pods", "-", "-")),
            ("/api/v1/namespaces", ("", "-", "namespaces", "-", "-")),
            ("/api/v1/namespaces/a", ("", "-", "namespaces", "a", "-")),
            ("/api/v1/namespaces/a/status", ("", "-", "namespaces", "a", "status")),
            ("/api/v1/namespaces/a/pods", ("", "a", "pods", "-", "-")),
            ("/apis/apps/v1/namespaces/a/daemonsets/d/status", ("apps", "a", "daemonsets", "d", "status")),
            ("/apis/rbac/v1/clusterroles/system%3Anode", ("rbac", "-", "clusterroles", "system:node", "-")),
        ];
        for (path, (group, namespace, plural, name, below)) in cases {
            let wanted = (group.into(), namespace.into(), plural.into(), name.into(), below.into());
            assert_eq!(read(path), wanted, "{path}");
        }
        for path in ["/version", "/api/v1", "/apis/apps/v1", "/api/v1/namespaces/a/pods/b/status/c"] {
            assert!(Ask::read(&path.parse().unwrap()).is_none(), "{path}");
        }
    }
}
