//! The files behind it all: groups that are pods', their processes, and in which network namespace each process is.
//!
//! Only reads. A process is asked about through `/proc`, so the agent has to see the node's processes (`hostPID`).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::names;
use crate::capture::sandbox::{NetnsId, Place};
use crate::kernel::cgroup;

/// Where to look.
#[derive(Clone, Debug)]
pub struct Tree {
    /// The unified hierarchy (version 2).
    pub unified: Option<PathBuf>,
    /// Hierarchies of version 1.
    pub legacy: Vec<PathBuf>,
    /// `/proc`.
    pub proc: PathBuf,
}

/// A pod's group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Its directory.
    pub dir: PathBuf,
    /// In the unified hierarchy, whose groups the kernel programs know by number. Otherwise of version 1.
    pub unified: bool,
}

/// What a pod's group says about where the pod runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Inside {
    /// No process yet, or no more.
    Nobody,
    /// Processes in network namespaces of their own, the oldest process's first.
    Places(Vec<Place>),
    /// All are in the node's own network namespace.
    NodeNetwork,
    /// The pod's real processes are where no control group reaches.
    Sandboxed(&'static str),
}

/// A process.
#[derive(Debug)]
struct Process {
    /// When it started, in ticks since boot (proc(5), `stat`): the sandbox's own process is the oldest.
    started: u64,
    place: Place,
    argv0: String,
}

impl Tree {
    /// Every pod's group there is, by UID. One that is in the unified hierarchy is preferred; without, the first of
    /// version 1 that has it.
    pub fn pods(&self) -> BTreeMap<Arc<str>, Group> {
        let mut found = BTreeMap::new();
        let hierarchies = self.unified.iter().map(|root| (root, true));
        for (root, unified) in hierarchies.chain(self.legacy.iter().map(|root| (root, false))) {
            cgroup::walk(root, &mut |dir| match pod_of(dir) {
                Some(uid) => {
                    found.entry(uid).or_insert_with(|| Group { dir: dir.to_owned(), unified });
                    false
                }
                None => true,
            });
        }
        found
    }

    /// Pods' groups directly below one of these.
    pub fn pods_in<'a>(&self, parents: impl IntoIterator<Item = &'a PathBuf>) -> BTreeMap<Arc<str>, Group> {
        let mut found = BTreeMap::new();
        for dir in parents.into_iter().flat_map(|parent| cgroup::children(parent)) {
            if let Some(uid) = pod_of(&dir) {
                let unified = self.is_unified(&dir);
                let group = Group { dir, unified };
                if unified {
                    found.insert(uid, group);
                } else {
                    found.entry(uid).or_insert(group);
                }
            }
        }
        found
    }

    fn is_unified(&self, dir: &Path) -> bool {
        self.unified.as_deref().is_some_and(|root| dir.starts_with(root))
    }

    /// Who is in a pod's group. Where the unified hierarchy has the group but no process in it (a runtime that moves
    /// processes in version 1 only), the group of the same pod there is asked.
    pub fn inside(&self, uid: &str, group: &Group) -> Inside {
        let mut processes = self.processes(&group.dir);
        if processes.is_empty() && group.unified {
            let twin = self.legacy.iter().find_map(|root| Some(root.join(self.relative(&group.dir)?)));
            let twins = twin.map(|twin| self.processes(&twin)).unwrap_or_default();
            processes = twins;
            if processes.is_empty() {
                let legacy = Self { unified: None, ..self.clone() };
                let other = legacy.pods().remove(uid);
                processes = other.map(|other| self.processes(&other.dir)).unwrap_or_default();
            }
        }
        judge(processes, self.own_netns())
    }

    fn relative<'a>(&self, dir: &'a Path) -> Option<&'a Path> {
        dir.strip_prefix(self.unified.as_deref()?).ok()
    }

    /// Of a pod's group and all below it, but for the runtime's own.
    fn processes(&self, pod: &Path) -> Vec<Process> {
        let mut found = Vec::new();
        cgroup::walk(pod, &mut |dir| {
            let name = dir.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if names::is_runtimes_own(name) {
                return false;
            }
            found.extend(cgroup::processes(dir).into_iter().filter_map(|pid| self.process(pid)));
            true
        });
        found.sort_by_key(|process| process.started);
        found
    }

    /// `None`: it has ended.
    fn process(&self, pid: u32) -> Option<Process> {
        let dir = self.proc.join(pid.to_string());
        let place = Place::of(dir.join("ns/net"));
        place.id?;
        let stat = fs::read_to_string(dir.join("stat")).ok()?;
        // The name is in parentheses and may hold any character; `starttime` is the 20th field after it.
        let started = stat.rsplit_once(") ")?.1.split(' ').nth(19)?.parse().ok()?;
        let line = fs::read(dir.join("cmdline")).unwrap_or_default();
        let argv0 = line.split(|byte| *byte == 0).next().unwrap_or_default();
        Some(Process { started, place, argv0: String::from_utf8_lossy(argv0).into_owned() })
    }

    fn own_netns(&self) -> Option<NetnsId> {
        Place::of(self.proc.join("self/ns/net")).id
    }

    /// The group (version 2) of a process, as `/proc/PID/cgroup` says, for runtimes that make no groups there.
    pub fn unified_group_of(&self, place: &Place) -> Option<PathBuf> {
        let process = place.path.ancestors().nth(2)?;
        let text = fs::read_to_string(process.join("cgroup")).ok()?;
        let path = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
        Some(self.unified.as_deref()?.join(path))
    }
}

fn pod_of(dir: &Path) -> Option<Arc<str>> {
    names::pod(dir.file_name()?.to_str()?).map(Into::into)
}

/// Pure: what these processes mean, oldest first.
fn judge(processes: Vec<Process>, own: Option<NetnsId>) -> Inside {
    let Some(first) = processes.first() else { return Inside::Nobody };
    if let Some(runtime) = names::sandboxed_runtime(&first.argv0) {
        return Inside::Sandboxed(runtime);
    }
    let mut places: Vec<Place> = Vec::new();
    for process in processes {
        if process.place.id != own && places.iter().all(|place| place.id != process.place.id) {
            places.push(process.place);
        }
    }
    if places.is_empty() { Inside::NodeNetwork } else { Inside::Places(places) }
}
