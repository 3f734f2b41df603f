//! Who has said what? Pure: time is an argument.
//!
//! Most nodes have the same version of the same objects, so what is kept is, for each version of an object, the set of nodes
//! that have it, a bit each: a thousand nodes and five thousand objects are below 2 MB.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::progress::wire::{OBJECTS_MAX, Report, UID_LEN_MAX};

/// Silence after which a node counts as not reporting: three of its signs of life.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// How often silent nodes are looked for.
const SWEEP: Duration = Duration::from_secs(10);
/// Nodes that a count names.
const NAMED_MAX: usize = 3;

/// What nodes have said.
#[derive(Debug, Default)]
pub(super) struct Nodes {
    by_name: HashMap<Arc<str>, Node>,
    /// Places that nodes left.
    free: Vec<usize>,
    objects: HashMap<Arc<str>, Vec<Held>>,
    swept_at: Option<Instant>,
}

#[derive(Debug)]
struct Node {
    /// Its bit.
    place: usize,
    heard_at: Instant,
    series: u64,
    next: u64,
    /// How many objects it has told of.
    objects: usize,
}

/// One version of an object, and where it is in force.
#[derive(Debug)]
struct Held {
    generation: i64,
    places: Places,
}

/// A set of places.
#[derive(Clone, Debug, Default)]
struct Places(Vec<u64>);

impl Places {
    fn has(&self, place: usize) -> bool {
        self.0.get(place / 64).is_some_and(|bits| bits & (1 << (place % 64)) != 0)
    }

    fn add(&mut self, place: usize) {
        if self.0.len() <= place / 64 {
            self.0.resize(place / 64 + 1, 0);
        }
        self.0[place / 64] |= 1 << (place % 64);
    }

    fn remove(&mut self, place: usize) {
        if let Some(bits) = self.0.get_mut(place / 64) {
            *bits &= !(1 << (place % 64));
        }
    }

    fn is_empty(&self) -> bool {
        self.0.iter().all(|bits| *bits == 0)
    }
}

/// What a report came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// Something is in force, or not any more, that was not so before.
    News,
    /// A sign of life.
    Nothing,
    /// It does not follow from what is known.
    BeginAgain,
}

/// What is wrong with a report.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Fault {
    #[error("report: a UID has {0} bytes")]
    Uid(usize),
    #[error("report: more than {OBJECTS_MAX} objects")]
    TooMany,
    #[error("report: an object is named twice")]
    Twice,
}

/// Nodes on which something should be in force, and their places where they have reported.
#[derive(Debug, Default)]
pub(super) struct Expected(Vec<(Arc<str>, Option<usize>)>);

impl Expected {
    /// Whether every one of them has reported.
    pub(super) fn has_all_reported(&self) -> bool {
        self.0.iter().all(|(_, place)| place.is_some())
    }
}

/// How many nodes have it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Those that do.
    pub ready: usize,
    /// All.
    pub total: usize,
    /// Up to three that do not, in order.
    pub lacking: Vec<Arc<str>>,
}

impl Nodes {
    /// Takes what a node says.
    ///
    /// # Errors
    /// It is not a report; nothing of it is taken.
    pub(super) fn take(&mut self, name: &Arc<str>, report: &Report, now: Instant) -> Result<Taken, Fault> {
        check(report)?;
        if self.swept_at.is_none_or(|at| now.saturating_duration_since(at) >= SWEEP) {
            self.forget_silent(now);
        }
        let known = self.by_name.get(name);
        let is_whole = report.number == 0;
        let follows = known.is_some_and(|node| node.series == report.series && node.next == report.number);
        if !is_whole && !follows {
            return Ok(Taken::BeginAgain);
        }
        let objects = match known.filter(|_| !is_whole) {
            Some(node) => {
                let knows = |uid: &str| self.knows(uid, node.place);
                let gone = report.gone.iter().filter(|uid| knows(uid)).count();
                node.objects - gone + report.in_force.iter().filter(|one| !knows(&one.uid)).count()
            }
            None => report.in_force.len(),
        };
        if objects > OBJECTS_MAX {
            return Err(Fault::TooMany);
        }
        if is_whole {
            self.forget(name);
        }
        let place = self.place_of(name, report.series, now);
        report.gone.iter().for_each(|uid| self.withdraw(uid, place));
        for one in &report.in_force {
            self.withdraw(&one.uid, place);
            self.enter(&one.uid, one.generation, place);
        }
        if let Some(node) = self.by_name.get_mut(name) {
            node.heard_at = now;
            node.next = report.number.wrapping_add(1);
            node.objects = objects;
        }
        let is_news = is_whole || !report.in_force.is_empty() || !report.gone.is_empty();
        Ok(if is_news { Taken::News } else { Taken::Nothing })
    }

    fn place_of(&mut self, name: &Arc<str>, series: u64, now: Instant) -> usize {
        if let Some(node) = self.by_name.get(name) {
            return node.place;
        }
        // Places in use and free ones are all from 0 on, so the next one is as many as there are nodes.
        let place = self.free.pop().unwrap_or(self.by_name.len());
        self.by_name.insert(name.clone(), Node { place, heard_at: now, series, next: 0, objects: 0 });
        place
    }

    fn knows(&self, uid: &str, place: usize) -> bool {
        self.objects.get(uid).is_some_and(|held| held.iter().any(|held| held.places.has(place)))
    }

    /// Takes a node's word for an object back, if there is one.
    fn withdraw(&mut self, uid: &str, place: usize) {
        let Some(held) = self.objects.get_mut(uid) else { return };
        let Some(index) = held.iter().position(|held| held.places.has(place)) else { return };
        held[index].places.remove(place);
        if held[index].places.is_empty() {
            held.swap_remove(index);
        }
        if held.is_empty() {
            self.objects.remove(uid);
        }
    }

    fn enter(&mut self, uid: &str, generation: i64, place: usize) {
        if !self.objects.contains_key(uid) {
            self.objects.insert(uid.into(), Vec::new());
        }
        let Some(held) = self.objects.get_mut(uid) else { return };
        let same = held.iter_mut().find(|held| held.generation == generation);
        match same {
            Some(held) => held.places.add(place),
            None => {
                let mut places = Places::default();
                places.add(place);
                held.push(Held { generation, places });
            }
        }
    }

    fn forget(&mut self, name: &str) {
        let Some(node) = self.by_name.remove(name) else { return };
        if node.objects > 0 {
            self.objects.retain(|_, held| {
                held.iter_mut().for_each(|held| held.places.remove(node.place));
                held.retain(|held| !held.places.is_empty());
                !held.is_empty()
            });
        }
        self.free.push(node.place);
    }

    /// Forgets nodes that have not been heard of for too long.
    pub(super) fn forget_silent(&mut self, now: Instant) {
        self.swept_at = Some(now);
        let silent: Vec<Arc<str>> = self
            .by_name
            .iter()
            .filter(|(_, node)| is_silent(node, now))
            .map(|(name, _)| name.clone())
            .collect();
        for name in silent {
            self.forget(&name);
        }
    }

    /// How many have been heard of lately.
    pub(super) fn reporting(&self, now: Instant) -> usize {
        self.by_name.values().filter(|node| !is_silent(node, now)).count()
    }

    /// Looks up the places of these nodes.
    pub(super) fn expected(&self, nodes: &BTreeSet<Arc<str>>) -> Expected {
        let place = |name: &Arc<str>| self.by_name.get(name).map(|node| node.place);
        Expected(nodes.iter().map(|name| (name.clone(), place(name))).collect())
    }

    /// Counts the nodes that have this version or a later one.
    pub(super) fn count(&self, uid: &str, generation: i64, expected: &Expected) -> Count {
        let held = self.objects.get(uid).map(Vec::as_slice).unwrap_or_default();
        let recent = || held.iter().filter(|held| held.generation >= generation);
        let mut count = Count { total: expected.0.len(), ..Count::default() };
        for (name, place) in &expected.0 {
            if place.is_some_and(|place| recent().any(|held| held.places.has(place))) {
                count.ready += 1;
            } else if count.lacking.len() < NAMED_MAX {
                count.lacking.push(name.clone());
            }
        }
        count
    }
}

fn is_silent(node: &Node, now: Instant) -> bool {
    now.saturating_duration_since(node.heard_at) >= SILENCE_MAX
}

fn check(report: &Report) -> Result<(), Fault> {
    let named = || report.in_force.iter().map(|one| &one.uid).chain(&report.gone);
    if named().count() > 2 * OBJECTS_MAX {
        return Err(Fault::TooMany);
    }
    if let Some(uid) = named().find(|uid| uid.is_empty() || uid.len() > UID_LEN_MAX) {
        return Err(Fault::Uid(uid.len()));
    }
    let mut seen = HashSet::new();
    if named().all(|uid| seen.insert(uid)) { Ok(()) } else { Err(Fault::Twice) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lifecycle::clock;
    use crate::progress::wire::InForce;

    fn report(series: u64, number: u64, in_force: &[(&str, i64)], gone: &[&str]) -> Report {
        let in_force = in_force
            .iter()
            .map(|(uid, generation)| InForce { uid: (*uid).to_owned(), generation: *generation });
        let gone = gone.iter().map(|uid| (*uid).to_owned()).collect();
        Report { series, number, in_force: in_force.collect(), gone }
    }

    struct Scene {
        nodes: Nodes,
        now: Instant,
    }

    impl Scene {
        fn new() -> Self {
            Self { nodes: Nodes::default(), now: clock::now() }
        }

        fn say(&mut self, node: &str, report: &Report) -> Result<Taken, Fault> {
            self.nodes.take(&node.into(), report, self.now)
        }

        /// `ready/total`, and who lacks it.
        fn count(&self, uid: &str, generation: i64, nodes: &[&str]) -> String {
            let expected = self.nodes.expected(&nodes.iter().map(|name| (*name).into()).collect());
            let count = self.nodes.count(uid, generation, &expected);
            let lacking: Vec<&str> = count.lacking.iter().map(|name| &**name).collect();
            format!("{}/{} {}", count.ready, count.total, lacking.join(" ")).trim_end().to_owned()
        }

        fn pass(&mut self, seconds: u64) {
            self.now += Duration::from_secs(seconds);
        }
    }

    #[test]
    fn nodes_that_have_this_version_or_a_later_one_are_counted() {
        let mut scene = Scene::new();
        assert_eq!(scene.count("p", 1, &["a", "b"]), "0/2 a b");
        assert_eq!(scene.say("a", &report(1, 0, &[("p", 1), ("q", 4)], &[])), Ok(Taken::News));
        assert_eq!(scene.count("p", 1, &["a", "b"]), "1/2 b");
        assert_eq!(scene.say("b", &report(9, 0, &[("p", 2)], &[])), Ok(Taken::News));
        assert_eq!(scene.count("p", 1, &["a", "b"]), "2/2", "a later one is in force");
        assert_eq!(scene.count("p", 2, &["a", "b"]), "1/2 a", "one is behind");
        assert_eq!(scene.count("q", 4, &["a", "b"]), "1/2 b");
        assert_eq!(scene.say("a", &report(1, 1, &[("p", 2)], &["q"])), Ok(Taken::News));
        assert_eq!(
            (scene.count("p", 2, &["a", "b"]), scene.count("q", 4, &["a", "b"])),
            ("2/2".into(), "0/2 a b".into())
        );
        assert_eq!(scene.say("a", &report(1, 2, &[], &[])), Ok(Taken::Nothing));
    }

    #[test]
    fn an_object_of_the_same_name_made_again_is_another() {
        let mut scene = Scene::new();
        scene.say("a", &report(1, 0, &[("first", 5)], &[])).expect("good");
        assert_eq!(scene.count("second", 1, &["a"]), "0/1 a");
    }

    #[test]
    fn only_nodes_with_an_agent_count_and_three_are_named() {
        let mut scene = Scene::new();
        scene.say("gone", &report(1, 0, &[("p", 1)], &[])).expect("good");
        assert_eq!(scene.count("p", 1, &["a", "b", "c", "d", "e"]), "0/5 a b c");
        assert_eq!(scene.count("p", 1, &[]), "0/0");
    }

    #[test]
    fn a_whole_report_replaces_what_was_said_before() {
        let mut scene = Scene::new();
        scene.say("a", &report(1, 0, &[("p", 1), ("q", 1)], &[])).expect("good");
        scene.say("b", &report(2, 0, &[("p", 1)], &[])).expect("good");
        assert_eq!(scene.say("a", &report(7, 0, &[("q", 1)], &[])), Ok(Taken::News));
        assert_eq!(
            (scene.count("p", 1, &["a", "b"]), scene.count("q", 1, &["a", "b"])),
            ("1/2 a".into(), "1/2 b".into())
        );
    }

    #[test]
    fn what_does_not_follow_is_asked_for_anew() {
        let mut scene = Scene::new();
        assert_eq!(scene.say("a", &report(1, 3, &[], &[])), Ok(Taken::BeginAgain), "a new leader");
        scene.say("a", &report(1, 0, &[("p", 1)], &[])).expect("good");
        for (series, number) in [(1, 2), (2, 1), (1, u64::MAX)] {
            assert_eq!(scene.say("a", &report(series, number, &[("p", 2)], &[])), Ok(Taken::BeginAgain));
        }
        assert_eq!(scene.count("p", 2, &["a"]), "0/1 a", "nothing of it was taken");
        assert_eq!(scene.say("a", &report(1, 1, &[("p", 2)], &[])), Ok(Taken::News));
    }

    #[test]
    fn a_silent_node_is_forgotten_and_its_place_is_anothers() {
        let mut scene = Scene::new();
        scene.say("a", &report(1, 0, &[("p", 1)], &[])).expect("good");
        scene.pass(50);
        scene.say("b", &report(1, 0, &[("q", 1)], &[])).expect("good");
        assert_eq!((scene.nodes.reporting(scene.now), scene.count("p", 1, &["a", "b"])), (2, "1/2 b".into()));
        scene.pass(10);
        assert_eq!(scene.nodes.reporting(scene.now), 1);
        scene.nodes.forget_silent(scene.now);
        assert_eq!(scene.count("p", 1, &["a", "b"]), "0/2 a b");
        scene.say("c", &report(1, 0, &[("q", 1)], &[])).expect("good");
        assert_eq!(
            (scene.count("p", 1, &["c"]), scene.count("q", 1, &["a", "b", "c"])),
            ("0/1 c".into(), "2/3 a".into())
        );
        assert_eq!(scene.nodes.objects.len(), 1, "nothing is left of what only the silent one had");
        assert_eq!(scene.say("a", &report(1, 1, &[], &[])), Ok(Taken::BeginAgain), "it comes back");
    }

    #[test]
    fn bad_reports_are_refused_and_change_nothing() {
        let mut scene = Scene::new();
        scene.say("a", &report(1, 0, &[("p", 1)], &[])).expect("good");
        let long = "x".repeat(UID_LEN_MAX + 1);
        for (bad, expected) in [
            (report(1, 1, &[("p", 2), (&long, 1)], &[]), Fault::Uid(UID_LEN_MAX + 1)),
            (report(1, 1, &[("p", 2)], &[""]), Fault::Uid(0)),
            (report(1, 1, &[("p", 2), ("p", 3)], &[]), Fault::Twice),
            (report(1, 1, &[("p", 2)], &["p"]), Fault::Twice),
        ] {
            assert_eq!(scene.say("a", &bad), Err(expected));
        }
        assert_eq!(scene.count("p", 2, &["a"]), "0/1 a");
        assert_eq!(scene.say("a", &report(1, 1, &[("p", 2)], &[])), Ok(Taken::News), "the series goes on");
    }

    #[test]
    fn a_node_may_tell_of_so_many_objects_and_no_more() {
        let mut scene = Scene::new();
        let uids: Vec<String> = (0..OBJECTS_MAX).map(|number| format!("uid-{number}")).collect();
        let all: Vec<(&str, i64)> = uids.iter().map(|uid| (uid.as_str(), 1)).collect();
        assert_eq!(scene.say("a", &report(1, 0, &all, &[])), Ok(Taken::News));
        assert_eq!(scene.say("a", &report(1, 1, &[("one more", 1)], &[])), Err(Fault::TooMany));
        assert_eq!(scene.say("a", &report(1, 1, &[("one more", 1)], &["nobody's"])), Err(Fault::TooMany));
        assert_eq!(scene.say("a", &report(1, 1, &[("one more", 1)], &["uid-0"])), Ok(Taken::News));
        assert_eq!(
            scene.say("a", &report(1, 2, &[("one more", 2)], &[])),
            Ok(Taken::News),
            "another version is not more"
        );
        let more: Vec<(&str, i64)> = all.iter().copied().chain([("one more", 1)]).collect();
        assert_eq!(scene.say("b", &report(1, 0, &more, &[])), Err(Fault::TooMany));
    }
}
