//! What is there to say about which pod? Follows capture's states, and remembers what has been said.
//!
//! A complaint that lasts is said once. One that goes within moments is not: a pod that starts or ends looks wrong for a
//! second or so, every one of them. That a pod was caught is said only of one that was complained about before.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::capture::State;
use crate::model::{WorkloadName, WorkloadUid};

/// How long a complaint must have lasted. kubelet and the API tell of a pod's end within a second or two, and a runtime makes a
/// sandbox anew within less.
pub const LASTING: Duration = Duration::from_secs(5);

/// How long a pod about which nothing is wrong any more is remembered. The API server forgets an Event after that time as well.
pub const REMEMBERED: Duration = Duration::from_secs(3600);

/// What an Event is about: its reason, in Kubernetes' words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Matter {
    /// It cannot be caught; that is tried again and again.
    EnrolmentFailed,
    /// It stays outside, whatever is tried.
    NotEnrolled,
    /// It has been caught after all.
    Enrolled,
}

/// One thing to say.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Notice {
    /// The pod.
    pub pod: WorkloadName,
    /// Its UID.
    pub uid: WorkloadUid,
    /// What about it.
    pub matter: Matter,
    /// In a sentence.
    pub note: String,
}

/// Everything that there is to say, and has been said.
#[derive(Debug, Default)]
pub struct Book {
    pages: BTreeMap<WorkloadUid, Page>,
}

#[derive(Debug)]
struct Page {
    name: WorkloadName,
    wrong: Option<Wrong>,
    is_caught: bool,
    /// Its owner was told that something is wrong, and not yet that it is over.
    is_told: bool,
    /// When something was wrong last.
    touched: Instant,
}

/// A complaint that lasts.
#[derive(Debug)]
struct Wrong {
    matter: Matter,
    note: String,
    since: Instant,
    is_said: bool,
}

impl Book {
    /// Takes in a state of capture.
    pub fn follow(&mut self, state: &State, now: Instant) {
        let mut complaints = BTreeMap::new();
        for (all, matter) in
            [(&state.left_out, Matter::NotEnrolled), (&state.problems, Matter::EnrolmentFailed)]
        {
            for complaint in all {
                if let Some((name, uid)) = &complaint.pod {
                    complaints.entry(uid).or_insert((name, matter, &complaint.reason));
                }
            }
        }
        for (uid, page) in &mut self.pages {
            page.is_caught = state.pods.iter().any(|(_, caught)| caught.uid == *uid);
            if !complaints.contains_key(uid) {
                page.wrong = None;
            }
        }
        for (uid, (name, matter, reason)) in complaints {
            let page = self.pages.entry(uid.clone()).or_insert_with(|| Page::new(name.clone(), now));
            page.touched = now;
            let is_known =
                page.wrong.as_ref().is_some_and(|wrong| wrong.matter == matter && wrong.note == *reason);
            if !is_known {
                let note = reason.clone();
                page.wrong = Some(Wrong { matter, note, since: now, is_said: false });
            }
        }
        self.pages.retain(|_, page| {
            page.wrong.is_some() || now.saturating_duration_since(page.touched) < REMEMBERED
        });
    }

    /// What has waited longest to be said; nothing is said before its time.
    pub fn next(&self, now: Instant) -> Option<Notice> {
        let due = self.pages.iter().filter(|(_, page)| page.due_at().is_some_and(|at| at <= now));
        due.min_by_key(|(_, page)| page.due_at()).map(|(uid, page)| page.notice(uid))
    }

    /// How long until there is something to say, as things stand.
    pub fn wait(&self, now: Instant) -> Option<Duration> {
        let earliest = self.pages.values().filter_map(Page::due_at).min()?;
        Some(earliest.saturating_duration_since(now))
    }

    /// Notes that this was said, or cannot be: it will not be tried again. `is_told`: the pod's owner can read it.
    pub fn said(&mut self, notice: &Notice, is_told: bool) {
        let Some(page) = self.pages.get_mut(&notice.uid) else { return };
        if notice.matter == Matter::Enrolled {
            page.is_told = false;
            return;
        }
        page.is_told |= is_told;
        if let Some(wrong) = &mut page.wrong
            && wrong.matter == notice.matter
            && wrong.note == notice.note
        {
            wrong.is_said = true;
        }
    }
}

impl Page {
    fn new(name: WorkloadName, now: Instant) -> Self {
        Self { name, wrong: None, is_caught: false, is_told: false, touched: now }
    }

    /// When there is something to say about the pod.
    fn due_at(&self) -> Option<Instant> {
        match &self.wrong {
            Some(wrong) => (!wrong.is_said).then(|| wrong.since + LASTING),
            None => (self.is_told && self.is_caught).then_some(self.touched),
        }
    }

    fn notice(&self, uid: &WorkloadUid) -> Notice {
        let (matter, note) = match &self.wrong {
            Some(wrong) => (wrong.matter, wrong.note.clone()),
            None => (Matter::Enrolled, "it has been caught and is part of the mesh now".to_owned()),
        };
        Notice { pod: self.name.clone(), uid: uid.clone(), matter, note }
    }
}
