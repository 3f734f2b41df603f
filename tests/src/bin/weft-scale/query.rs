//! What a request asks for: the kind, the place, and the parameters of lists and watches.

use std::collections::HashMap;

use super::cluster::{KINDS, Place};
use super::drawing::Form;

/// A refused request: an HTTP status, the reason that Kubernetes has for it, and a sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// HTTP status.
    pub code: u16,
    /// `reason` of the Status object.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

/// The request cannot be understood.
pub fn bad_request(message: impl Into<String>) -> Refusal {
    Refusal { code: 400, reason: "BadRequest", message: message.into() }
}

/// There is no such thing.
pub fn not_found(message: impl Into<String>) -> Refusal {
    Refusal { code: 404, reason: "NotFound", message: message.into() }
}

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// The kind's place in [`KINDS`].
    pub kind: usize,
    /// The form of the objects.
    pub form: Form,
    /// Which objects.
    pub selector: Selector,
    /// One object, not a list.
    pub single: bool,
    /// A watch, not a list.
    pub watch: bool,
    /// `resourceVersion`; 0 where it is absent.
    pub revision: u64,
    /// Most objects of a page.
    pub limit: Option<u32>,
    /// Where a page begins, and the revision of the list that it belongs to.
    pub page: Option<(u64, u32)>,
    /// Whether bookmarks may be sent.
    pub bookmarks: bool,
    /// When a watch ends.
    pub timeout_s: Option<u64>,
}

/// Which objects are meant: all of these hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    terms: Vec<(Field, bool, String)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    Namespace,
    Name,
    Node,
}

impl Selector {
    /// Whether an object is meant.
    pub fn takes(&self, namespace: &str, name: &str, node: &str) -> bool {
        self.terms.iter().all(|(field, equal, value)| {
            let actual = match field {
                Field::Namespace => namespace,
                Field::Name => name,
                Field::Node => node,
            };
            (actual == value) == *equal
        })
    }

    /// Whether the object at a place is meant.
    pub fn takes_place(&self, place: &Place) -> bool {
        self.takes(&place.namespace, &place.name, &place.node)
    }

    /// Whether it leaves nothing out.
    pub fn is_empty(&self) -> bool {
        self.terms.is_empty()
    }

    /// Adds `a=b,c!=d`.
    fn add_fields(&mut self, text: &str) -> Result<(), Refusal> {
        for term in text.split(',').filter(|term| !term.is_empty()) {
            let (key, equal, value) = match (term.split_once("!="), term.split_once('=')) {
                (Some((key, value)), _) => (key, false, value),
                (None, Some((key, value))) => (key, true, value.trim_start_matches('=')),
                (None, None) => return Err(bad_request(format!("invalid selector: {term:?}"))),
            };
            let field = match key {
                "metadata.namespace" => Field::Namespace,
                "metadata.name" => Field::Name,
                "spec.nodeName" => Field::Node,
                _ => return Err(bad_request(format!("field label not supported: {key}"))),
            };
            self.terms.push((field, equal, value.to_owned()));
        }
        Ok(())
    }
}

/// Reads a request for objects.
pub fn read(path: &str, query: &str, accept: &str) -> Result<Query, Refusal> {
    let segments: Vec<&str> = path.split('/').filter(|segment| !segment.is_empty()).collect();
    let (group, version, rest) = match segments.as_slice() {
        ["api", version, rest @ ..] => ("", *version, rest),
        ["apis", group, version, rest @ ..] => (*group, *version, rest),
        _ => return Err(not_found(format!("the server has no {path}"))),
    };
    let (namespace, rest) = match rest {
        ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (Some(*namespace), rest),
        rest => (None, rest),
    };
    let (plural, name) = match rest {
        [plural] => (*plural, None),
        [plural, name] => (*plural, Some(*name)),
        _ => return Err(not_found("the server could not find the requested resource")),
    };
    let kind = KINDS.iter().position(|k| (k.group, k.version, k.plural) == (group, version, plural));
    let kind = kind.ok_or_else(|| not_found("the server could not find the requested resource"))?;
    let mut selector = Selector::default();
    selector.terms.extend(namespace.map(|namespace| (Field::Namespace, true, namespace.to_owned())));
    selector.terms.extend(name.map(|name| (Field::Name, true, name.to_owned())));
    let form = match (accept.contains("as=PartialObjectMetadata"), name.is_some()) {
        (true, _) => Form::Metadata,
        (false, true) => Form::Whole,
        (false, false) => Form::Item,
    };
    let read = Query {
        kind,
        form,
        selector,
        single: name.is_some(),
        watch: false,
        revision: 0,
        limit: None,
        page: None,
        bookmarks: false,
        timeout_s: None,
    };
    with_parameters(read, query)
}

fn with_parameters(mut read: Query, query: &str) -> Result<Query, Refusal> {
    let given: HashMap<_, _> = form_urlencoded::parse(query.as_bytes()).collect();
    let text = |name: &str| given.get(name).map(|value| value.as_ref()).filter(|value| !value.is_empty());
    let number = |name: &str| match text(name).map(str::parse::<u64>) {
        None => Ok(None),
        Some(Ok(number)) => Ok(Some(number)),
        Some(Err(_)) => Err(bad_request(format!("{name}: not a number"))),
    };
    let is_on = |name: &str| matches!(text(name), Some("true" | "1"));
    if is_on("sendInitialEvents") {
        // As of an API server without streaming lists.
        let message = "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled";
        return Err(Refusal { code: 422, reason: "Invalid", message: message.to_owned() });
    }
    if text("labelSelector").is_some() {
        return Err(bad_request("this server simulates no label selectors"));
    }
    read.selector.add_fields(text("fieldSelector").unwrap_or_default())?;
    read.watch = is_on("watch");
    read.bookmarks = is_on("allowWatchBookmarks");
    read.revision = number("resourceVersion")?.unwrap_or(0);
    read.timeout_s = number("timeoutSeconds")?;
    read.limit = number("limit")?.filter(|limit| *limit > 0).and_then(|limit| u32::try_from(limit).ok());
    read.page = text("continue").map(read_page).transpose()?;
    if read.watch && (read.revision == 0 || read.form == Form::Item) {
        if read.revision == 0 {
            return Err(bad_request("this server simulates no watch without a resourceVersion: list first"));
        }
        read.form = Form::Whole;
    }
    Ok(read)
}

/// The token by which the next page is asked for.
pub fn page_token(revision: u64, next: u32) -> String {
    format!("{revision}-{next}")
}

fn read_page(token: &str) -> Result<(u64, u32), Refusal> {
    let parts = token.split_once('-');
    let page = parts.and_then(|(revision, next)| Some((revision.parse().ok()?, next.parse().ok()?)));
    page.ok_or_else(|| bad_request("invalid continue token: continue key is not valid"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(plural: &str) -> usize {
        KINDS.iter().position(|kind| kind.plural == plural).unwrap()
    }

    #[test]
    fn a_page_of_a_list_is_asked_for() {
        let read =
            read("/api/v1/pods", "limit=500&continue=1000000-500&resourceVersion=", "application/json")
                .unwrap();
        assert_eq!((read.kind, read.form), (kind("pods"), Form::Item));
        assert_eq!((read.limit, read.page, read.watch), (Some(500), Some((1_000_000, 500)), false));
        assert!(read.selector.is_empty());
    }

    #[test]
    fn a_watch_is_asked_for_from_a_revision() {
        let path = "/apis/discovery.k8s.io/v1/endpointslices";
        let wanted = "watch=true&resourceVersion=17&allowWatchBookmarks=true&timeoutSeconds=290";
        let read = read(path, wanted, "*/*").unwrap();
        assert_eq!((read.kind, read.form), (kind("endpointslices"), Form::Whole));
        assert_eq!((read.watch, read.revision, read.bookmarks, read.timeout_s), (true, 17, true, Some(290)));
    }

    #[test]
    fn objects_are_selected_by_namespace_name_and_node() {
        let on_node = read("/api/v1/pods", "fieldSelector=spec.nodeName%3Dn1", "").unwrap().selector;
        assert!(on_node.takes("a", "b", "n1") && !on_node.takes("a", "b", "n2"));
        let elsewhere = read("/api/v1/pods", "fieldSelector=spec.nodeName!%3Dn1", "").unwrap().selector;
        assert!(!elsewhere.takes("a", "b", "n1") && elsewhere.takes("a", "b", "n2"));
        let one = read("/api/v1/namespaces/a/pods/b", "", "").unwrap();
        assert!(one.single && one.selector.takes("a", "b", "") && !one.selector.takes("c", "b", ""));
    }

    #[test]
    fn metadata_alone_is_asked_for_by_accept() {
        let accept = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";
        assert_eq!(read("/api/v1/namespaces", "", accept).unwrap().form, Form::Metadata);
        assert_eq!(read("/api/v1/namespaces/a", "", "application/json").unwrap().kind, kind("namespaces"));
    }

    #[test]
    fn what_is_not_simulated_is_refused() {
        for (path, query, code) in [
            ("/api/v1/secrets", "", 404),
            ("/apis/example.com/v1/things", "", 404),
            ("/healthz/x", "", 404),
            ("/api/v1/pods", "labelSelector=a%3Db", 400),
            ("/api/v1/pods", "fieldSelector=status.phase%3DRunning", 400),
            ("/api/v1/pods", "limit=x", 400),
            ("/api/v1/pods", "continue=bogus", 400),
            ("/api/v1/pods", "watch=true", 400),
            ("/api/v1/pods", "watch=true&sendInitialEvents=true&resourceVersion=5", 422),
        ] {
            assert_eq!(
                read(path, query, "").map_err(|refusal| refusal.code).err(),
                Some(code),
                "{path}?{query}"
            );
        }
    }
}
