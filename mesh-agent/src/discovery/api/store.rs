//! What the API has said so far: the objects in force, what is wrong with others, and how each kind's feed stands.
//!
//! For each object the last version that was good stays in force, as with files. Of what the API sent, only what the
//! mesh needs is kept.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::SystemTime;

use super::failure::{Failure, Reason};
use super::wire::Tag;
use crate::discovery::Source;
use crate::discovery::compile::Finding;
use crate::discovery::objects::read::Reading;
use crate::discovery::objects::{Entry, Key, Kind, Object, Objects};
use crate::discovery::problem::{Fault, Problem};

/// Everything that came from the API.
#[derive(Debug, Default)]
pub(super) struct Store {
    objects: Objects,
    feeds: BTreeMap<Kind, Feed>,
    /// What is wrong with objects as they are now.
    faults: BTreeMap<Key, Fault>,
    /// Something changed since the last publication.
    news: bool,
    /// What is to be mended changed since the last publication.
    has_other_problems: bool,
}

/// What is known of one kind.
#[derive(Debug, Default)]
pub(super) struct Feed {
    held: HashMap<Key, Held>,
    pub(super) state: State,
    /// The version of the kind that the API serves.
    pub(super) api_version: Option<&'static str>,
    /// The last version that was seen.
    pub(super) resource_version: Option<String>,
    /// When the API last said something.
    pub(super) heard: Option<SystemTime>,
    pub(super) failing: Option<Failing>,
    /// What to do about a kind that is not served.
    absence: Option<String>,
    /// It has been listed once, or is known not to be served.
    settled: bool,
}

/// Where a feed stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum State {
    /// It asks for all objects; what was listed before stays in force.
    #[default]
    Listing,
    /// It hears of changes.
    Watching,
    /// The API does not serve the kind.
    NotServed,
    /// It waits before it asks again.
    Failing,
}

impl State {
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Listing => "listing",
            Self::Watching => "watching",
            Self::NotServed => "not served",
            Self::Failing => "failing",
        }
    }
}

/// A failure that lasts.
#[derive(Clone, Debug)]
pub(super) struct Failing {
    pub(super) reason: Reason,
    pub(super) message: String,
    pub(super) since: SystemTime,
}

/// One object as the API has it now.
#[derive(Debug)]
struct Held {
    version: u64,
    /// What is in force under its name.
    standing: Standing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// Its last good version.
    Object,
    /// Something that refuses in its place.
    StandIn,
    /// Nothing.
    Nothing,
}

/// One object of a complete list.
#[derive(Debug)]
pub(super) enum Listed {
    /// As it was.
    Unchanged(Key),
    /// New, or another version.
    Read(Tag, Reading<Fault>),
}

impl Listed {
    fn key(&self) -> &Key {
        match self {
            Self::Unchanged(key) | Self::Read(Tag { key, .. }, _) => key,
        }
    }
}

impl Store {
    pub(super) fn expecting(kinds: impl IntoIterator<Item = Kind>) -> Self {
        let feeds = kinds.into_iter().map(|kind| (kind, Feed::default())).collect();
        Self { feeds, ..Self::default() }
    }

    pub(super) fn feeds(&self) -> impl Iterator<Item = (Kind, &Feed)> {
        self.feeds.iter().map(|(kind, feed)| (*kind, feed))
    }

    pub(super) fn feed(&mut self, kind: Kind) -> &mut Feed {
        self.feeds.entry(kind).or_default()
    }

    /// True when this very version is here already.
    pub(super) fn holds(&self, tag: &Tag) -> bool {
        let feed = self.feeds.get(&tag.key.kind);
        feed.and_then(|feed| feed.held.get(&tag.key)).is_some_and(|held| held.version == tag.version)
    }

    /// How many objects of a kind the API has.
    pub(super) fn count(&self, kind: Kind) -> usize {
        self.feeds.get(&kind).map_or(0, |feed| feed.held.len())
    }

    /// Everything of a kind is asked for.
    pub(super) fn listing(&mut self, kind: Kind) {
        let feed = self.feed(kind);
        if feed.state != State::NotServed {
            feed.state = State::Listing;
        }
    }

    /// An object was added or changed.
    pub(super) fn put(&mut self, tag: Tag, reading: Reading<Fault>) {
        let Tag { mut key, version, rank, tracked } = tag;
        self.objects.share_key(&mut key);
        let before = self.feeds.get(&key.kind).and_then(|feed| feed.held.get(&key));
        let before = before.map_or(Standing::Nothing, |held| held.standing);
        let (standing, fault) = match reading {
            // Its address may be another's by now, and it takes no part in anything.
            Reading::Good { object: Object::Pod(pod), .. } if pod.finished => {
                self.objects.remove(&key);
                (Standing::Nothing, None)
            }
            Reading::Good { object, fault } => {
                // What is not in force as it was written does not count as that version.
                let version = tracked.filter(|_| fault.is_none());
                self.objects.put(key.clone(), Entry { rank, version, object: Arc::new(object) });
                (Standing::Object, fault)
            }
            Reading::Bad { fault, .. } if before == Standing::Object => (Standing::Object, Some(fault)),
            Reading::Bad { fault, stand_in: Some(object) } => {
                self.objects.insert(key.clone(), rank, Arc::new(object));
                (Standing::StandIn, Some(fault))
            }
            Reading::Bad { fault, stand_in: None } => {
                self.objects.remove(&key);
                (Standing::Nothing, Some(fault))
            }
        };
        let before = match fault.clone() {
            Some(fault) => self.faults.insert(key.clone(), fault),
            None => self.faults.remove(&key),
        };
        // Most changes of pods are about what the mesh does not keep.
        self.has_other_problems |= before != fault;
        self.news |= self.objects.has_changed() || before != fault;
        self.feed(key.kind).held.insert(key, Held { version, standing });
    }

    /// An object is gone.
    pub(super) fn remove(&mut self, key: &Key) {
        if self.feed(key.kind).held.remove(key).is_some() {
            self.objects.remove(key);
            self.has_other_problems |= self.faults.remove(key).is_some();
            self.news = true;
        }
    }

    /// A list is complete: what it does not hold is gone.
    pub(super) fn replace(&mut self, kind: Kind, list: Vec<Listed>) {
        self.take_list(kind, list);
        self.settle(kind, None);
    }

    fn take_list(&mut self, kind: Kind, list: Vec<Listed>) {
        let listed: BTreeSet<&Key> = list.iter().map(Listed::key).collect();
        let held = &self.feed(kind).held;
        let gone: Vec<Key> = held.keys().filter(|key| !listed.contains(key)).cloned().collect();
        gone.iter().for_each(|key| self.remove(key));
        for one in list {
            if let Listed::Read(tag, reading) = one {
                self.put(tag, reading);
            }
        }
    }

    /// The API does not serve the kind, so there is nothing of it. True when that is news.
    pub(super) fn absent(&mut self, kind: Kind, advice: Option<String>) -> bool {
        self.take_list(kind, Vec::new());
        self.settle(kind, advice);
        let feed = self.feed(kind);
        feed.failing = None;
        std::mem::replace(&mut feed.state, State::NotServed) != State::NotServed
    }

    fn settle(&mut self, kind: Kind, absence: Option<String>) {
        let feed = self.feed(kind);
        let is_first = !std::mem::replace(&mut feed.settled, true);
        let is_other = feed.absence != absence;
        feed.absence = absence;
        self.has_other_problems |= is_other;
        self.news |= is_first || is_other;
    }

    /// Asking went wrong. What was known stays in force. True when it was not known to be failing like this.
    pub(super) fn failed(&mut self, kind: Kind, failure: &Failure, now: SystemTime) -> bool {
        let feed = self.feed(kind);
        feed.state = State::Failing;
        let before = feed.failing.take();
        let same = before.as_ref().is_some_and(|before| before.reason == failure.reason);
        let since = before.map_or(now, |before| before.since);
        feed.failing = Some(Failing { reason: failure.reason, message: failure.message.clone(), since });
        !same
    }

    /// The API answers. Returns the failure that is over.
    pub(super) fn recovered(&mut self, kind: Kind) -> Option<Failing> {
        self.feed(kind).failing.take()
    }

    /// The kinds that were never listed.
    pub(super) fn unsettled(&self) -> Vec<Kind> {
        self.feeds.iter().filter(|(_, feed)| !feed.settled).map(|(kind, _)| *kind).collect()
    }

    /// The problem with a `MeshConfig` that has no good version, if there is one.
    pub(super) fn unusable_mesh_config(&self) -> Option<Problem> {
        let mut objects = self.objects.of_kind(Kind::MeshConfig);
        let (key, _) = objects.find(|(_, entry)| matches!(*entry.object, Object::UnusableMeshConfig))?;
        Some(problem(key, self.faults.get(key)?))
    }

    /// Whether there is something to publish, asked by the one who publishes.
    pub(super) fn take_news(&mut self) -> bool {
        std::mem::take(&mut self.news)
    }
}

impl Source for Store {
    fn objects(&self) -> &Objects {
        &self.objects
    }

    fn take_changed(&mut self) -> BTreeSet<Key> {
        self.objects.take_changed()
    }

    fn take_problems_changed(&mut self) -> bool {
        std::mem::take(&mut self.has_other_problems)
    }

    /// Kinds that are missing among them; in order of what to mend.
    fn problems(&self, findings: &[Finding]) -> Vec<Problem> {
        let absent = self.feeds.iter().filter_map(|(kind, feed)| {
            let message = feed.absence.as_ref()?;
            Some(Problem { object: Some(kind.label().to_owned()), ..whole(message.clone()) })
        });
        let faults = self.faults.iter().map(|(key, fault)| problem(key, fault));
        let found = findings.iter().map(|finding| problem(&finding.key, &finding.fault));
        let mut all: Vec<Problem> = absent.chain(faults).chain(found).collect();
        all.sort_by(|a, b| (&a.object, &a.field, &a.message).cmp(&(&b.object, &b.field, &b.message)));
        all
    }
}

fn whole(message: String) -> Problem {
    Problem { file: None, line: None, column: None, object: None, field: None, message }
}

fn problem(key: &Key, fault: &Fault) -> Problem {
    let field = (!fault.field.is_root()).then(|| fault.field.to_string());
    Problem { object: Some(key.to_string()), field, ..whole(fault.message.clone()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names are most of what a store has of its own.
    #[test]
    fn names_are_kept_once_for_what_the_api_has_and_what_is_in_force() {
        let mut store = Store::default();
        for version in 0..3 {
            let key = Key::new(Kind::ServiceAccount, Some("shop"), Some("payer")).unwrap();
            let good = Reading::Good { object: Object::ServiceAccount, fault: None };
            store.put(Tag { key, version, rank: 0, tracked: None }, good);
        }
        let held = store.feeds[&Kind::ServiceAccount].held.keys().next().unwrap();
        let in_force = store.objects.keys().next().unwrap();
        assert!(Arc::ptr_eq(&held.name, &in_force.name) && Arc::ptr_eq(&held.namespace, &in_force.namespace));
    }

    #[test]
    fn only_what_is_to_be_mended_makes_problems_other_ones() {
        let mut store = Store::default();
        let tag = |name, version| {
            let key = Key::new(Kind::ServiceAccount, Some("shop"), Some(name)).unwrap();
            Tag { key, version, rank: 0, tracked: None }
        };
        let good = || Reading::Good { object: Object::ServiceAccount, fault: None };
        let bad = || Reading::Bad { fault: Fault::whole("no"), stand_in: None };
        store.put(tag("a", 1), good());
        assert!(!store.take_problems_changed() && store.take_news() && store.take_changed().len() == 1);
        store.put(tag("a", 2), bad());
        assert!(store.take_problems_changed() && store.take_news());
        store.put(tag("a", 3), bad());
        assert!(!store.take_problems_changed() && !store.take_news(), "it says the same");
        store.put(tag("b", 4), good());
        store.remove(&tag("b", 5).key);
        assert!(!store.take_problems_changed());
        store.remove(&tag("a", 6).key);
        assert!(store.take_problems_changed());
        store.absent(Kind::MeshConfig, Some("install it".to_owned()));
        assert!(store.take_problems_changed() && store.take_news());
        store.absent(Kind::MeshConfig, Some("install it".to_owned()));
        assert!(!store.take_problems_changed() && !store.take_news(), "it is looked for again and again");
    }
}
