//! Where the pods of this node really run: which network namespace is a pod's, and which control group.
//!
//! Two sources answer that, and nothing above knows which: [`Files`], one JSON file per pod sandbox, written by whoever
//! creates the network namespace (a container runtime hook, the lab on one machine); and [`Groups`], the control groups that
//! kubelet and the container runtime make anyway.
//!
//! A file says `{"namespace", "name", "uid", "netns", "cgroup"}`; `netns` is a path that can be opened, `cgroup` the pod's
//! control group (v2). Either source is believed only as far as the namespace really holds the pod's address (see
//! [`super::enrol`]).

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;

use super::complaint::Complaint;
use super::groups::Groups;
use crate::model::{Workload, WorkloadName, WorkloadUid};
use crate::registry::Snapshot;

/// One pod's sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sandbox {
    /// Network namespaces that may be the pod's, the likeliest first. Empty: there is none yet.
    pub places: Vec<Place>,
    /// The pod's control group (v2), where it has one.
    pub cgroup: Option<PathBuf>,
}

/// A network namespace, by a path that leads to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// A bind mount as `ip netns` makes, or `/proc/PID/ns/net`.
    pub path: PathBuf,
    /// Which namespace it is; `None`: nothing is there now.
    pub id: Option<NetnsId>,
}

/// Tells namespaces apart for as long as both live: device and inode number of the file behind the path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetnsId(u64, u64);

impl Place {
    /// What is behind a path now.
    pub fn of(path: PathBuf) -> Self {
        let id = std::fs::metadata(&path).ok().map(|file| NetnsId(file.dev(), file.ino()));
        Self { path, id }
    }
}

impl Sandbox {
    /// Whether a pod that was caught at `place` in `cgroup` still runs there. While nothing is known of its processes,
    /// it does: a sandbox that is made anew has a moment without any.
    pub fn is_still_at(&self, place: &Place, cgroup: Option<&Path>) -> bool {
        let there =
            self.places.is_empty() || self.places.iter().any(|now| now.id.is_some() && now.id == place.id);
        there && self.cgroup.as_deref() == cgroup
    }
}

/// Enrolled pods of the node, each with its sandbox.
pub type Found = BTreeMap<WorkloadUid, (Sandbox, Arc<Workload>)>;

/// What a source knows now.
#[derive(Debug, Default)]
pub struct Look {
    /// Enrolled pods that run here, or are about to.
    pub sandboxes: Found,
    /// What keeps a pod from being caught and may mend itself.
    pub problems: Vec<Complaint>,
    /// Pods that stay outside the mesh although they were asked into it, and why.
    pub left_out: Vec<Complaint>,
}

/// The source.
#[derive(Debug)]
pub enum Sandboxes {
    /// A directory of sandbox files.
    Files(Files),
    /// The node's control groups.
    Groups(Box<Groups>),
}

impl Sandboxes {
    /// What is there now.
    pub fn look(&mut self, snapshot: &Snapshot, node: &str) -> Look {
        match self {
            Self::Files(files) => files.look(snapshot, node),
            Self::Groups(groups) => groups.look(snapshot, node),
        }
    }

    /// Directories in which a change means that it is worth looking.
    pub fn watched(&self, waiting: &BTreeSet<WorkloadUid>) -> BTreeSet<PathBuf> {
        match self {
            Self::Files(files) => BTreeSet::from([files.0.clone()]),
            Self::Groups(groups) => groups.watched(waiting),
        }
    }

    /// See [`Groups::attach_point`]; files say nothing about it.
    pub fn attach_point(&self) -> Option<&Path> {
        match self {
            Self::Files(_) => None,
            Self::Groups(groups) => groups.attach_point(),
        }
    }
}

/// A directory of sandbox files.
#[derive(Debug)]
pub struct Files(pub PathBuf);

#[derive(Debug, Deserialize)]
struct File {
    namespace: Arc<str>,
    name: Arc<str>,
    uid: Arc<str>,
    netns: PathBuf,
    cgroup: PathBuf,
}

impl Files {
    fn look(&self, snapshot: &Snapshot, node: &str) -> Look {
        let (files, problems) = read_dir(&self.0);
        let problems = problems.into_iter().map(Complaint::of_node).collect();
        let mut look = Look { problems, ..Look::default() };
        for file in files.into_values() {
            let by_uid = snapshot.workload(&WorkloadUid(file.uid.clone()));
            let name = WorkloadName { namespace: file.namespace, name: file.name };
            let Some(workload) = by_uid.or_else(|| snapshot.workload_by_name(&name)) else { continue };
            if workload.enrolled && !workload.host_network && *workload.node == *node {
                let sandbox = Sandbox { places: vec![Place::of(file.netns)], cgroup: Some(file.cgroup) };
                look.sandboxes.insert(workload.uid.clone(), (sandbox, workload.clone()));
            }
        }
        look
    }
}

/// All sandboxes that the directory tells of. A file that cannot be read is reported and left out; the others count.
fn read_dir(dir: &Path) -> (BTreeMap<Arc<str>, File>, Vec<String>) {
    let mut problems = Vec::new();
    let mut found = BTreeMap::new();
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) => {
            problems.push(format!("sandbox directory {}: {error}", dir.display()));
            return (found, problems);
        }
    };
    for path in entries.filter_map(|entry| entry.ok().map(|entry| entry.path())) {
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let read = std::fs::read(&path).map_err(|error| error.to_string());
        match read.and_then(|text| serde_json::from_slice::<File>(&text).map_err(|error| error.to_string())) {
            Ok(file) => {
                found.insert(file.uid.clone(), file);
            }
            Err(error) => problems.push(format!("sandbox file {}: {error}", path.display())),
        }
    }
    (found, problems)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_file_is_reported_and_the_good_ones_count() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(
            dir.path().join("shop_web.json"),
            r#"{"namespace":"shop","name":"web","uid":"u1","netns":"/run/netns/a","cgroup":"/sys/fs/cgroup/a"}"#,
        )
        .unwrap();
        std::fs::write(dir.path().join("shop_bad.json"), "{").unwrap();
        std::fs::write(dir.path().join("notes.txt"), "not ours").unwrap();
        let (found, problems) = read_dir(dir.path());
        assert_eq!(found.keys().map(|uid| &**uid).collect::<Vec<_>>(), ["u1"]);
        assert_eq!(problems.len(), 1);
        assert!(problems[0].contains("shop_bad.json"), "{problems:?}");
    }

    #[test]
    fn a_sandbox_is_the_same_while_its_namespace_and_group_are() {
        let dir = tempfile::tempdir().unwrap();
        let place = |name: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, "").unwrap();
            Place::of(path)
        };
        let (old, new) = (place("old"), place("new"));
        let group = Path::new("/c/pod");
        let at = |places: Vec<Place>| Sandbox { places, cgroup: Some(group.to_owned()) };
        assert!(at(vec![new.clone(), old.clone()]).is_still_at(&old, Some(group)));
        assert!(at(Vec::new()).is_still_at(&old, Some(group)), "a moment without processes");
        assert!(!at(vec![new.clone()]).is_still_at(&old, Some(group)), "made anew");
        assert!(!at(vec![old.clone()]).is_still_at(&old, Some(Path::new("/c/other"))));
        let gone = Place { path: new.path, id: None };
        assert!(!at(vec![gone.clone()]).is_still_at(&gone, Some(group)), "nothing is not the same nothing");
    }
}
