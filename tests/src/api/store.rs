//! What is kept: every object, one revision for all of them, and what happened since when. It knows nothing of HTTP and
//! refuses nothing but what lies too far back.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use serde_json::Value;

use super::refusal::Refusal;
use super::resource::{Kept, Resource};

/// How many events are remembered unless told otherwise.
const LOG_LEN_MAX: usize = 100_000;

/// Namespace (empty for none) and name; lists come in this order.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Namespace.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
}

impl Key {
    /// The key of an object.
    pub fn new(namespace: Option<&str>, name: &str) -> Self {
        Self { namespace: namespace.unwrap_or_default().into(), name: name.into() }
    }
}

/// What a client wants to see of objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// All of it.
    Whole,
    /// `PartialObjectMetadata`.
    Metadata,
}

/// One version of one object.
#[derive(Debug)]
pub struct Stored {
    /// Namespace and name.
    pub key: Key,
    /// The revision that made it.
    pub revision: u64,
    /// The object.
    pub object: Value,
    /// Its text from behind `apiVersion` and `kind` on, made once for all that ask.
    rest: Bytes,
}

impl Stored {
    /// This object, with the revision written into it.
    pub fn new(key: Key, revision: u64, mut object: Value) -> Self {
        object["metadata"]["resourceVersion"] = revision.to_string().into();
        let mut bare = object.as_object().cloned().unwrap_or_default();
        bare.remove("apiVersion");
        bare.remove("kind");
        let mut rest = serde_json::to_vec(&bare).expect("values have a text");
        rest.remove(0);
        Self { key, revision, object, rest: rest.into() }
    }

    /// The same object as of another revision.
    pub fn at(&self, revision: u64) -> Self {
        Self::new(self.key.clone(), revision, self.object.clone())
    }

    /// Writes the text of the object, with or without `kind` and `apiVersion`.
    pub fn write(&self, out: &mut Vec<u8>, resource: &Resource, form: Form, typed: bool) {
        match form {
            Form::Metadata => {
                out.extend_from_slice(
                    br#"{"kind":"PartialObjectMetadata","apiVersion":"meta.k8s.io/v1","metadata":"#,
                );
                serde_json::to_writer(&mut *out, &self.object["metadata"]).expect("memory takes all");
                out.push(b'}');
            }
            Form::Whole => {
                out.push(b'{');
                if typed {
                    let types =
                        format!(r#""kind":"{}","apiVersion":"{}","#, resource.kind, resource.api_version());
                    out.extend_from_slice(types.as_bytes());
                }
                out.extend_from_slice(&self.rest);
            }
        }
    }
}

/// Something that happened to an object.
#[derive(Clone, Debug)]
pub struct Event {
    /// When.
    pub revision: u64,
    /// To what kind of object.
    pub kept: Kept,
    /// What it was.
    pub before: Option<Arc<Stored>>,
    /// What it is, or was when it went.
    pub after: Arc<Stored>,
    /// It is gone.
    pub is_gone: bool,
}

/// All objects.
#[derive(Debug)]
pub struct Store {
    revision: u64,
    /// Events up to this revision are forgotten.
    low_water: u64,
    objects: BTreeMap<Kept, BTreeMap<Key, Arc<Stored>>>,
    log: VecDeque<Event>,
}

impl Default for Store {
    fn default() -> Self {
        Self { revision: 1, low_water: 0, objects: BTreeMap::new(), log: VecDeque::new() }
    }
}

impl Store {
    /// The revision now.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// The revision up to which all is forgotten.
    pub fn low_water(&self) -> u64 {
        self.low_water
    }

    /// An object.
    pub fn get(&self, kept: &Kept, key: &Key) -> Option<&Arc<Stored>> {
        self.objects.get(kept)?.get(key)
    }

    /// All objects of a kind.
    pub fn all(&self, kept: &Kept) -> impl Iterator<Item = &Arc<Stored>> {
        self.objects.get(kept).into_iter().flat_map(BTreeMap::values)
    }

    /// All objects of a namespace.
    pub fn in_namespace(&self, namespace: &str) -> Vec<(Kept, Key)> {
        let first = Key::new(Some(namespace), "");
        let of_kind = |(kept, objects): (&Kept, &BTreeMap<Key, Arc<Stored>>)| {
            let keys = objects.range(&first..).map(|(key, _)| key.clone());
            let here = keys.take_while(|key| *key.namespace == *namespace);
            here.map(|key| (kept.clone(), key)).collect::<Vec<_>>()
        };
        self.objects.iter().flat_map(of_kind).collect()
    }

    /// Writes an object.
    pub fn put(&mut self, kept: &Kept, key: Key, object: Value) -> Arc<Stored> {
        self.revision += 1;
        let after = Arc::new(Stored::new(key.clone(), self.revision, object));
        let before = self.objects.entry(kept.clone()).or_default().insert(key, Arc::clone(&after));
        self.remember(Event {
            revision: self.revision,
            kept: kept.clone(),
            before,
            after: Arc::clone(&after),
            is_gone: false,
        });
        after
    }

    /// Removes an object; gives it as it was last, with the revision of its end.
    pub fn remove(&mut self, kept: &Kept, key: &Key) -> Option<Arc<Stored>> {
        let before = self.objects.get_mut(kept)?.remove(key)?;
        self.revision += 1;
        let after = Arc::new(before.at(self.revision));
        self.remember(Event {
            revision: self.revision,
            kept: kept.clone(),
            before: Some(before),
            after: Arc::clone(&after),
            is_gone: true,
        });
        Some(after)
    }

    fn remember(&mut self, event: Event) {
        self.log.push_back(event);
        if self.log.len() > LOG_LEN_MAX {
            let forgotten = self.log.pop_front();
            self.low_water = forgotten.map_or(self.low_water, |event| event.revision);
        }
    }

    /// Forgets all that happened so far, as a store does that is compacted.
    pub fn forget(&mut self) {
        self.log.clear();
        self.low_water = self.revision;
    }

    /// What happened after a revision.
    ///
    /// # Errors
    /// Some of it is forgotten.
    pub fn since(&self, revision: u64) -> Result<impl Iterator<Item = &Event>, Refusal> {
        if revision < self.low_water {
            let low = self.low_water;
            return Err(Refusal::expired(format!("too old resource version: {revision} ({low})")));
        }
        Ok(self.log.range(self.log.partition_point(|event| event.revision <= revision)..))
    }

    /// The objects of a kind as they were at a revision, behind a key, in order.
    ///
    /// # Errors
    /// The revision lies too far back.
    pub fn state_at(
        &self,
        kept: &Kept,
        revision: u64,
        behind: Option<&Key>,
    ) -> Result<Vec<Arc<Stored>>, Refusal> {
        let mut undone: BTreeMap<&Key, Option<&Arc<Stored>>> = BTreeMap::new();
        for event in self.since(revision)?.filter(|event| event.kept == *kept) {
            undone.entry(&event.after.key).or_insert(event.before.as_ref());
        }
        let is_behind = |key: &Key| behind.is_none_or(|behind| key > behind);
        let now = self.objects.get(kept).into_iter().flatten();
        let now = now.filter(|(key, _)| is_behind(key) && !undone.contains_key(key));
        let mut objects: Vec<Arc<Stored>> = now.map(|(_, stored)| Arc::clone(stored)).collect();
        if undone.is_empty() {
            return Ok(objects);
        }
        let before = undone.iter().filter(|(key, _)| is_behind(key)).filter_map(|(_, before)| *before);
        objects.extend(before.map(Arc::clone));
        objects.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(objects)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn names(objects: &[Arc<Stored>]) -> Vec<&str> {
        objects.iter().map(|stored| &*stored.key.name).collect()
    }

    #[test]
    fn a_state_of_the_past_is_given_until_it_is_forgotten() {
        let (mut store, kept) = (Store::default(), Kept::new("", "pods"));
        for name in ["a", "b", "c"] {
            store.put(&kept, Key::new(None, name), json!({"metadata": {"name": name}}));
        }
        let then = store.revision();
        store.remove(&kept, &Key::new(None, "b"));
        store.put(&kept, Key::new(None, "d"), json!({"metadata": {"name": "d"}}));
        assert_eq!(names(&store.state_at(&kept, then, None).unwrap()), ["a", "b", "c"]);
        assert_eq!(names(&store.state_at(&kept, then, Some(&Key::new(None, "a"))).unwrap()), ["b", "c"]);
        assert_eq!(names(&store.state_at(&kept, store.revision(), None).unwrap()), ["a", "c", "d"]);
        store.forget();
        assert_eq!(store.state_at(&kept, then, None).unwrap_err().code, 410);
    }
}
