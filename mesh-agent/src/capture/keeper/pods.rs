//! Catching pods and letting them go: what is caught is made equal to what the sandboxes and the registry say.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use mesh_common::PODS_MAX;

use super::{Keeper, Kept, chain};
use crate::capture::ListenerChange;
use crate::capture::complaint::Complaint;
use crate::capture::enrol::{self, Opened};
use crate::capture::sandbox::{Found, Look, Sandbox};
use crate::kernel::{Netns, cgroup};
use crate::lifecycle::clock;
use crate::model::{Workload, WorkloadUid};

impl Keeper {
    pub(super) fn look(&mut self) -> Look {
        self.looked = Some(clock::now());
        let snapshot = self.handles.registry.snapshot();
        self.settings.sandboxes.look(&snapshot, &self.settings.node)
    }

    /// Something differs between the sandboxes and what is caught, or failed last time.
    pub(super) fn has_work(&self, look: &Look) -> bool {
        let state = self.state.borrow();
        let is_kept = |(uid, (sandbox, _)): (&WorkloadUid, &(Sandbox, _))| {
            self.pods.get(uid).is_some_and(|kept| sandbox.is_still_at(&kept.place, kept.cgroup.as_deref()))
        };
        !look.problems.is_empty()
            || !state.problems.is_empty()
            || look.left_out != state.left_out
            || look.sandboxes.len() != self.pods.len()
            || !look.sandboxes.iter().all(is_kept)
            || self.settings.sandboxes.attach_point() != self.settings.attached.as_deref()
    }

    /// Follows what discovery has published. Most of it is about pods of other nodes: then nothing is looked for on this one.
    pub(super) fn follow_mesh(&mut self) {
        let snapshot = self.handles.registry.snapshot();
        let seen = std::mem::replace(&mut self.seen, snapshot.version);
        let is_known = |uid: &WorkloadUid| {
            self.pods.contains_key(uid) || self.waiting.iter().any(|(_, known)| known == uid)
        };
        if snapshot.changed_on(&self.settings.node, seen, is_known) || !self.write_tables().is_empty() {
            self.reconcile();
        }
    }

    /// Makes what is caught equal to what should be.
    pub(super) fn reconcile(&mut self) {
        let look = self.look();
        self.reconcile_with(look);
    }

    /// The same, with what has been seen just now.
    pub(super) fn reconcile_with(&mut self, look: Look) {
        let Look { sandboxes: wanted, mut problems, left_out } = look;
        problems.extend(self.attach().map(Complaint::of_node));
        self.release_unwanted(&wanted);
        let identities = wanted.values().map(|(_, workload)| workload.identity.clone()).collect();
        (self.handles.wanted_identities)(identities);
        let mut fresh = Vec::new();
        self.waiting.clear();
        for (uid, (sandbox, workload)) in &wanted {
            if let Some(kept) = self.pods.get(uid) {
                kept.pod.update(workload.clone());
                continue;
            }
            // Without an address, or without a process, the pod is still being made: nothing to complain of.
            let is_due = !workload.addresses.is_empty() && !sandbox.places.is_empty();
            match is_due.then(|| self.open(sandbox, workload)) {
                Some(Ok(opened)) => {
                    fresh.push(uid.clone());
                    self.hand_to_workers(opened, sandbox);
                    continue;
                }
                Some(Err(error)) => problems.push(Complaint::of_pod(workload, chain(&error))),
                None => {}
            }
            let group = sandbox.cgroup.as_deref().and_then(|group| cgroup::id(group).ok());
            self.waiting.extend(group.map(|group| (group, uid.clone())));
        }
        problems.extend(self.write_tables().into_iter().map(Complaint::of_node));
        for uid in fresh {
            let Some(kept) = self.pods.get(&uid) else { continue };
            if let Err(error) = self.kernel.attach_inbound(&kept.netns) {
                problems.push(Complaint::of_pod(&kept.pod.workload(), chain(&error)));
            }
        }
        self.detach_leftovers();
        self.publish(problems, left_out);
    }

    /// Attaches the programs where the sandboxes say, when that is known or has changed.
    fn attach(&mut self) -> Option<String> {
        let wanted = self.settings.sandboxes.attach_point()?;
        if self.settings.attached.as_deref() == Some(wanted) {
            return None;
        }
        tracing::info!(cgroup = %wanted.display(), "the kernel programs are attached to the control group of the pods");
        match self.kernel.attach(wanted) {
            Ok(()) => self.settings.attached = Some(wanted.to_owned()),
            Err(error) => return Some(chain(&error)),
        }
        None
    }

    fn release_unwanted(&mut self, wanted: &Found) {
        let is_gone = |uid: &WorkloadUid, kept: &Kept| {
            let sandbox = wanted.get(uid).map(|(sandbox, _)| sandbox);
            !sandbox.is_some_and(|sandbox| sandbox.is_still_at(&kept.place, kept.cgroup.as_deref()))
        };
        let gone: Vec<WorkloadUid> =
            self.pods.iter().filter(|(uid, kept)| is_gone(uid, kept)).map(|(uid, _)| uid.clone()).collect();
        for uid in gone {
            let Some(kept) = self.pods.remove(&uid) else { continue };
            tracing::info!(pod = %kept.pod.workload().name, "pod left the mesh");
            for worker in &self.handles.workers {
                // A worker that is gone has stopped serving anyway.
                let _ = worker.send(ListenerChange::Removed { pod: kept.pod.clone() });
            }
            if let Err(error) = self.kernel.detach_inbound(kept.caught.netns_cookie) {
                tracing::warn!(error = %chain(&error), "cannot detach from a pod");
            }
        }
    }

    /// Links that an earlier agent left at pods which are not there any more.
    fn detach_leftovers(&mut self) {
        let kept: HashSet<u64> = self.pods.values().map(|kept| kept.caught.netns_cookie).collect();
        for cookie in self.kernel.attached_inbound().into_iter().filter(|cookie| !kept.contains(cookie)) {
            if let Err(error) = self.kernel.detach_inbound(cookie) {
                tracing::warn!(error = %chain(&error), "cannot remove a leftover link");
            }
        }
    }

    fn open(&mut self, sandbox: &Sandbox, workload: &Arc<Workload>) -> Result<Opened, enrol::Error> {
        let used = self.pods.values().map(|kept| kept.caught.slot).collect();
        let slot = self.slots.free(&workload.addresses, &used).ok_or(enrol::Error::Full { max: PODS_MAX })?;
        let opened = enrol::open(sandbox, workload, slot, self.handles.workers.len())?;
        for (index, (_, inbound)) in (0..).zip(&opened.listeners) {
            self.kernel.set_listener(slot + index, inbound)?;
        }
        Ok(opened)
    }

    fn hand_to_workers(&mut self, opened: Opened, sandbox: &Sandbox) {
        tracing::info!(
            pod = %opened.pod.workload().name,
            netns_cookie = opened.caught.netns_cookie,
            "pod joined the mesh"
        );
        for (worker, (outbound, inbound)) in self.handles.workers.iter().zip(opened.listeners) {
            let change = ListenerChange::Added {
                pod: opened.pod.clone(),
                outbound: outbound.into(),
                inbound: inbound.into(),
            };
            // A worker that is gone has stopped serving anyway.
            let _ = worker.send(change);
        }
        let kept = Kept {
            pod: opened.pod,
            netns: opened.netns,
            caught: opened.caught.clone(),
            place: opened.place,
            cgroup: sandbox.cgroup.clone(),
        };
        self.pods.insert(opened.caught.uid, kept);
    }

    pub(super) fn namespaces(&self) -> HashMap<u64, Netns> {
        self.pods.values().map(|kept| (kept.caught.netns_cookie, kept.netns.clone())).collect()
    }
}
