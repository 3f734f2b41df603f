//! The shapes of the API's answers, as far as they matter here. An object's own text is left alone until it is known
//! that somebody wants it.

use std::hash::{DefaultHasher, Hash, Hasher};

use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::value::RawValue;

use crate::discovery::objects::read::{self, Reading, Written, misread};
use crate::discovery::objects::{Key, Kind, Version};
use crate::discovery::problem::Fault;

/// One page of a list.
#[derive(Debug, Deserialize)]
pub(super) struct Page<'a> {
    pub(super) metadata: PageMetadata,
    /// `null` from some servers when there is nothing.
    #[serde(borrow, default)]
    pub(super) items: Option<Vec<&'a RawValue>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PageMetadata {
    pub(super) resource_version: String,
    /// Where the next page begins; absent or empty on the last.
    #[serde(rename = "continue", default)]
    pub(super) next: Option<String>,
}

/// One line of a watch.
#[derive(Debug, Deserialize)]
pub(super) struct Event<'a> {
    #[serde(rename = "type")]
    pub(super) kind: EventKind,
    #[serde(borrow)]
    pub(super) object: &'a RawValue,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub(super) enum EventKind {
    Added,
    Modified,
    Deleted,
    Bookmark,
    Error,
}

/// What an object says about itself before anything else.
#[derive(Debug, Deserialize)]
pub(super) struct Header {
    metadata: HeaderMetadata,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct HeaderMetadata {
    name: Option<String>,
    namespace: Option<String>,
    resource_version: Option<String>,
    creation_timestamp: Option<jiff::Timestamp>,
    uid: Option<String>,
    generation: Option<i64>,
}

/// Name, version and place of an object.
#[derive(Debug)]
pub(super) struct Tag {
    pub(super) key: Key,
    /// Tells versions of an object apart. What the API calls it is a text that means nothing, so its hash does.
    pub(super) version: u64,
    /// See `Entry::rank`: the second of its creation, which is the same for every reader. Of two objects of one second
    /// the one whose name comes first is the earlier, since they are compared in order of their keys.
    pub(super) rank: u64,
    /// For kinds that are tracked.
    pub(super) tracked: Option<Version>,
}

/// Reads no more of an object than says which one it is.
pub(super) fn header(object: &RawValue) -> Result<Header, Fault> {
    serde_json::from_str(object.get()).map_err(|error| Fault::whole(error.to_string()))
}

impl Header {
    /// The version, which is the place of a line in its watch.
    pub(super) fn resource_version(&self) -> Option<&str> {
        self.metadata.resource_version.as_deref()
    }

    pub(super) fn tag(&self, kind: Kind) -> Result<Tag, Fault> {
        let metadata = &self.metadata;
        let mut hasher = DefaultHasher::new();
        metadata.resource_version.hash(&mut hasher);
        // An object of unknown age takes nothing from anybody.
        let age = metadata.creation_timestamp;
        let rank = age.map_or(u64::MAX, |at| u64::try_from(at.as_second()).unwrap_or_default());
        let key = Key::new(kind, metadata.namespace.as_deref(), metadata.name.as_deref())?;
        let tracked = metadata.uid.as_deref().zip(metadata.generation).filter(|_| kind.is_tracked());
        let tracked = tracked.map(|(uid, generation)| Version { uid: uid.into(), generation });
        Ok(Tag { key, version: hasher.finish(), rank, tracked })
    }
}

/// Reads an object.
pub(super) fn read(key: &Key, object: &RawValue) -> Reading<Fault> {
    read::read(&Served(object.get()), key)
}

/// An object's text.
struct Served<'a>(&'a str);

/// The outer fields of our own kinds, where an unknown one is an error. What is inside `metadata` is the API's own.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(dead_code, reason = "only the names are checked")]
struct Envelope {
    api_version: Option<IgnoredAny>,
    kind: Option<IgnoredAny>,
    metadata: IgnoredAny,
    spec: Option<IgnoredAny>,
    status: Option<IgnoredAny>,
}

impl Written for Served<'_> {
    type Fault = Fault;

    /// Keeping in mind where one is costs more than reading, so that is done for a text that turned out to be at fault.
    fn parse<T: DeserializeOwned>(&self) -> Result<T, Fault> {
        if let Ok(object) = serde_json::from_str(self.0) {
            return Ok(object);
        }
        let mut deserializer = serde_json::Deserializer::from_str(self.0);
        serde_path_to_error::deserialize(&mut deserializer)
            .map_err(|error| misread(error.path(), &error.inner().to_string()))
    }

    fn check_outer_fields(&self) -> Result<(), Fault> {
        self.parse::<Envelope>().map(drop)
    }

    fn place(&self, fault: Fault) -> Fault {
        fault
    }
}
