//! Lists: all objects of a kind that are meant, page by page, as they were when the first page was made.

use std::sync::Arc;

use serde_json::{Value, json};

use super::refusal::Refusal;
use super::request::Ask;
use super::resource::Resource;
use super::selector::Selector;
use super::store::{Form, Key, Store, Stored};

/// A page.
#[derive(Debug)]
pub struct Page {
    /// Its objects.
    pub items: Vec<Arc<Stored>>,
    /// The revision that it shows.
    pub revision: u64,
    /// What asks for the next one; empty on the last.
    pub next: String,
    /// How many objects follow; nothing where a selector makes that unknown.
    pub remaining: Option<usize>,
}

/// Makes a page.
///
/// # Errors
/// The revision asked for is too old or yet to come, or a parameter is not understood.
pub fn page(store: &Store, resource: &Resource, ask: &Ask) -> Result<Page, Refusal> {
    let (labels, fields) = (ask.parameter("labelSelector"), ask.parameter("fieldSelector"));
    let selector = Selector::read(labels, fields, resource)?;
    let limit = usize::try_from(ask.number("limit")?.unwrap_or_default()).unwrap_or(usize::MAX);
    let (revision, behind) = place(store, ask)?;
    let state = store.state_at(&resource.kept, revision, behind.as_ref()).map_err(|_forgotten| {
        Refusal::expired(
            "The provided continue parameter is too old to display a consistent list result. You can start a new list without \
             the continue parameter.",
        )
    })?;
    let is_meant = |stored: &Arc<Stored>| {
        ask.namespace.as_deref().is_none_or(|namespace| *stored.key.namespace == *namespace)
            && selector.matches(&stored.object)
    };
    let mut items: Vec<Arc<Stored>> = state.into_iter().filter(is_meant).collect();
    let (mut next, mut remaining) = (String::new(), None);
    if limit > 0 && items.len() > limit {
        remaining = (selector == Selector::default()).then(|| items.len() - limit);
        items.truncate(limit);
        let last = &items[limit - 1].key;
        next = format!("{revision}.{}.{}", last.namespace, last.name);
    }
    Ok(Page { items, revision, next, remaining })
}

/// The revision that a list shows, and the object behind which it goes on.
fn place(store: &Store, ask: &Ask) -> Result<(u64, Option<Key>), Refusal> {
    let token = ask.parameter("continue");
    if !token.is_empty() {
        // A namespace has no dot.
        let mut parts = token.splitn(3, '.');
        let revision = parts.next().and_then(|revision| revision.parse().ok());
        let (Some(revision), Some(namespace), Some(name)) = (revision, parts.next(), parts.next()) else {
            return Err(Refusal::new(400, "continue key is not valid"));
        };
        return Ok((revision, Some(Key::new(Some(namespace), name))));
    }
    let asked = ask.number("resourceVersion")?.unwrap_or_default();
    if asked > store.revision() {
        return Err(Refusal::too_large(asked, store.revision()));
    }
    match ask.parameter("resourceVersionMatch") {
        "" | "NotOlderThan" => Ok((store.revision(), None)),
        "Exact" => Ok((asked, None)),
        other => Err(Refusal::new(400, format!("resourceVersionMatch: unknown value {other}"))),
    }
}

/// The text of a page.
pub fn text(resource: &Resource, form: Form, page: &Page) -> Vec<u8> {
    let (kind, version) = match form {
        Form::Whole => (resource.list_kind.clone(), resource.api_version()),
        Form::Metadata => ("PartialObjectMetadataList".to_owned(), "meta.k8s.io/v1".to_owned()),
    };
    let mut metadata = json!({ "resourceVersion": page.revision.to_string() });
    if !page.next.is_empty() {
        metadata["continue"] = page.next.clone().into();
    }
    if let Some(remaining) = page.remaining {
        metadata["remainingItemCount"] = remaining.into();
    }
    let head = format!(
        r#"{{"kind":{},"apiVersion":{},"metadata":{metadata},"items":["#,
        Value::from(kind),
        Value::from(version)
    );
    let mut out = head.into_bytes();
    for (index, stored) in page.items.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        // Items of built-in kinds do not say what they are.
        stored.write(&mut out, resource, form, resource.custom);
    }
    out.extend_from_slice(b"]}");
    out
}
