//! Where the pods of this node run, found by their control groups: no plugin, no file that somebody has to write.
//!
//! kubelet makes a group per pod with the pod's UID in its name, the runtime puts the pod's processes below it, and a process
//! tells its network namespace. Nothing of that is believed further than the namespace holds the pod's address (see
//! [`super::enrol`]): a process may have entered a namespace that is not its pod's.
//!
//! Reading order: [`names`] (what a name says), [`tree`] (the files), this file (what is known, and when to look again).

pub mod names;
#[cfg(test)]
mod tests;
pub mod tree;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::complaint::Complaint;
use super::sandbox::{Look, Sandbox};
use crate::kernel::cgroup::{self, Mounts};
use crate::lifecycle::clock;
use crate::model::{Workload, WorkloadUid};
use crate::registry::Snapshot;
use tree::{Group, Inside, Tree};

/// How often the whole tree is walked although nothing seems to be missing: another kubelet root may have appeared.
const WALK_EVERY: Duration = Duration::from_secs(10);
/// How often it is walked at most while a pod is missing.
const WALK_AT_MOST_EVERY: Duration = Duration::from_millis(200);

/// The source.
#[derive(Debug)]
pub struct Groups {
    tree: Tree,
    /// Directories that pods' groups have been seen in.
    parents: BTreeSet<PathBuf>,
    groups: BTreeMap<Arc<str>, Group>,
    walked: Option<Instant>,
    attach_point: Option<PathBuf>,
    /// Somebody said which it is.
    is_given: bool,
}

impl Groups {
    /// Looks at the mounts of this process.
    ///
    /// # Errors
    /// `/proc/self/mountinfo` cannot be read.
    pub fn of_this_node() -> std::io::Result<Self> {
        let Mounts { unified, legacy } = Mounts::of_self()?;
        let own = unified.as_deref().and_then(cgroup::own);
        Ok(Self::new(Tree { unified, legacy, proc: "/proc".into() }, own.as_deref()))
    }

    /// With a tree and this process's own group.
    pub fn new(tree: Tree, own: Option<&Path>) -> Self {
        let attach_point = own.and_then(pod_above).and_then(names::kubelet_root).map(Into::into);
        Self {
            tree,
            parents: BTreeSet::new(),
            groups: BTreeMap::new(),
            walked: None,
            attach_point,
            is_given: false,
        }
    }

    /// The kernel programs belong here, whatever is found.
    pub fn attach_only_to(&mut self, group: &Path) {
        self.attach_point = Some(group.to_owned());
        self.is_given = true;
    }

    /// Where the kernel programs belong: kubelet's own group above all pods of this node. `None` as long as nothing tells
    /// which that is. Known at once where this process runs in a pod itself; otherwise from the first pod on.
    pub fn attach_point(&self) -> Option<&Path> {
        self.attach_point.as_deref()
    }

    /// Directories in which something appears when a pod does, or a container of one that is not caught yet.
    pub fn watched(&self, waiting: &BTreeSet<WorkloadUid>) -> BTreeSet<PathBuf> {
        let of_waiting =
            waiting.iter().filter_map(|uid| self.groups.get(&uid.0)).map(|group| group.dir.clone());
        let roots = self.parents.iter().filter_map(|parent| Some(parent.parent()?.to_owned()));
        roots.chain(self.parents.iter().cloned()).chain(of_waiting).collect()
    }

    /// Every enrolled pod of the node with what its group says.
    pub fn look(&mut self, snapshot: &Snapshot, node: &str) -> Look {
        self.find_groups(snapshot, node);
        let mut look = Look::default();
        let mut roots = Vec::new();
        for workload in snapshot.workloads_on(node).filter(|workload| !workload.host_network) {
            let group = self.group(snapshot, workload);
            if let Some((_, Group { dir, unified: true })) = group {
                roots.extend(names::kubelet_root(dir).map(Into::into));
            }
            if workload.enrolled {
                self.look_at(workload, group, &mut look, &mut roots);
            }
        }
        if let Some(root) = common(&roots).filter(|_| !self.is_given) {
            self.attach_point = Some(root);
        }
        look
    }

    /// Lists the places where pods were before, and walks the whole tree now and then, or when a pod is missing.
    fn find_groups(&mut self, snapshot: &Snapshot, node: &str) {
        self.groups = self.tree.pods_in(&self.parents);
        let age = self.walked.map(|at| clock::now().duration_since(at));
        let is_missing = || {
            let mut here = snapshot.workloads_on(node).filter(|workload| !workload.terminating);
            here.any(|workload| !workload.host_network && self.group(snapshot, workload).is_none())
        };
        if age.is_none_or(|age| age >= WALK_EVERY || age >= WALK_AT_MOST_EVERY && is_missing()) {
            self.groups = self.tree.pods();
            self.walked = Some(clock::now());
        }
        self.parents =
            self.groups.values().filter_map(|group| Some(group.dir.parent()?.to_owned())).collect();
    }

    fn look_at(
        &self,
        workload: &Arc<Workload>,
        group: Option<(Arc<str>, &Group)>,
        look: &mut Look,
        roots: &mut Vec<PathBuf>,
    ) {
        // What is wrong with a pod that is only being made, or about to go, mends itself.
        let is_due = !workload.addresses.is_empty() && !workload.terminating;
        let mut complain = |problem: String| {
            if is_due {
                look.problems.push(Complaint::of_pod(workload, problem));
            }
        };
        let Some((uid, group)) = group else {
            return complain("no control group has its UID in its name".to_owned());
        };
        let places = match self.tree.inside(&uid, group) {
            Inside::Places(places) => places,
            Inside::Nobody => {
                complain(format!("no process is in its control group {}", group.dir.display()));
                Vec::new()
            }
            Inside::NodeNetwork => {
                complain("its processes are in the node's own network namespace".to_owned());
                Vec::new()
            }
            Inside::Sandboxed(runtime) => {
                let reason = format!(
                    "it runs in {runtime}, where none of its connections can be caught, and stays outside the mesh"
                );
                return look.left_out.push(Complaint::of_pod(workload, reason));
            }
        };
        if !group.unified {
            roots.extend(places.first().and_then(|place| self.tree.unified_group_of(place)));
        }
        let cgroup = group.unified.then(|| group.dir.clone());
        look.sandboxes.insert(workload.uid.clone(), (Sandbox { places, cgroup }, workload.clone()));
    }

    /// The group of a pod. A static pod's has the hash of its manifest in its name, which its mirror in the API repeats;
    /// that is believed only where it is no other pod's UID.
    fn group(&self, snapshot: &Snapshot, workload: &Workload) -> Option<(Arc<str>, &Group)> {
        let by = |uid: &Arc<str>| self.groups.get(uid).map(|group| (uid.clone(), group));
        by(&workload.uid.0).or_else(|| {
            let hash = workload.manifest_hash.as_ref()?;
            let is_others = snapshot.workload(&WorkloadUid(hash.clone())).is_some();
            if is_others { None } else { by(hash) }
        })
    }
}

/// The pod's group that a group is, or is below.
fn pod_above(group: &Path) -> Option<&Path> {
    group.ancestors().find(|dir| {
        dir.file_name().and_then(|name| name.to_str()).is_some_and(|name| names::pod(name).is_some())
    })
}

/// The deepest directory that all are, or are below.
fn common(paths: &[PathBuf]) -> Option<PathBuf> {
    let first = paths.first()?;
    first.ancestors().find(|candidate| paths.iter().all(|path| path.starts_with(candidate))).map(Into::into)
}
