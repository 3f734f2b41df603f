//! The task that keeps the kernel's view true: pods are caught and let go, tables follow registry and policy, events
//! are taken in, sockets that policy turns against are closed.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio::sync::{mpsc, watch};

use super::compile::{Caught, Inputs, Plan};
use super::enrol::{self, Opened};
use super::flows::Flows;
use super::habit::Habits;
use super::numbers::Numbers;
use super::sandbox::{Found, Look, Place, Sandbox, Sandboxes};
use super::tables::{self, Applied};
use super::watch::Watch;
use super::{ListenerChange, Pod};
use crate::kernel::events::Events;
use crate::kernel::{Error, Kernel, Maps, Netns, cgroup, load};
use crate::lifecycle::{Block, Shutdown, clock, tasks};
use crate::model::{SpiffeId, Workload, WorkloadUid};
use crate::policy::Policies;
use crate::registry::Registry;
use crate::route::Routes;
use crate::telemetry::Telemetry;
use mesh_common::{PODS_MAX, WORKERS_MAX, event};

/// How often the programs get a sign of life. Well below the age that counts as "away" (1 s by default).
const HEARTBEAT_EVERY: Duration = Duration::from_millis(200);
/// How often sandboxes are looked at without a hint, and failed pods are tried again.
const LOOK_AGAIN_EVERY: Duration = Duration::from_secs(1);

/// A socket of a pod that is not caught yet asks for a look at once, but not more often than this.
const LOOK_AT_MOST_EVERY: Duration = Duration::from_millis(100);

/// What the room needs to know.
#[derive(Debug)]
pub struct Settings {
    /// This node's name, as in `Pod.spec.nodeName`.
    pub node: Arc<str>,
    /// Where pods run (see [`super::sandbox`]).
    pub sandboxes: Sandboxes,
    /// Where the programs are attached already; `None`: where the sandboxes say, once they do.
    pub attached: Option<PathBuf>,
    /// Service addresses are resolved for every pod below the control group, meshed or not (a node without kube-proxy).
    pub all_services: bool,
    /// Which pods may use the fast path, as far as the kernel and the command line go.
    pub fast_path: FastPath,
}

/// Which pods may use the fast path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FastPath {
    /// None: a probe failed, or it is switched off.
    Off,
    /// Those that ask for it (label `weft.dev/splice: enabled`): on this kernel some ways of using a socket go wrong when it is
    /// spliced (`kernel::probes::VOUCHABLE`), and their owners vouch that they do not use those.
    OptIn,
    /// All that do not opt out.
    On,
}

/// What capture reads from and speaks to.
#[expect(missing_debug_implementations, reason = "holds a closure")]
pub struct Handles {
    /// The mesh.
    pub registry: Registry,
    /// Its policies.
    pub policies: Policies,
    /// Its routes.
    pub routes: Routes,
    /// Metrics and records.
    pub telemetry: Telemetry,
    /// One per worker.
    pub workers: Vec<mpsc::UnboundedSender<ListenerChange>>,
    /// Told which identities this node needs, whenever that changes.
    pub wanted_identities: Box<dyn Fn(HashSet<SpiffeId>) + Send>,
}

/// Read handle for the admin room. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Capture {
    state: Arc<ArcSwap<State>>,
}

/// What is caught, and what could not be.
#[derive(Debug, Default)]
pub struct State {
    /// Caught pods.
    pub pods: Vec<(Arc<Pod>, Caught)>,
    /// Complaints, by pod or sandbox file.
    pub problems: Vec<String>,
    /// Pods that stay outside the mesh although they were asked into it, and why.
    pub left_out: Vec<String>,
}

impl Capture {
    /// The newest state.
    pub fn state(&self) -> Arc<State> {
        self.state.load_full()
    }
}

/// Starts the keeper on the current runtime, and the heartbeat on a thread of its own. The kernel object must be loaded
/// and attached to the control group already. `block` is let go once every sandbox that is there has been looked at and
/// the tables are written.
///
/// # Errors
/// The event ring or the first heartbeat cannot be set up.
pub fn start(
    settings: Settings,
    mut kernel: Kernel,
    handles: Handles,
    block: Block,
    shutdown: Shutdown,
) -> Result<Capture, Error> {
    let events = Events::new(kernel.take_events()?)?;
    let state = Arc::new(ArcSwap::from_pointee(State::default()));
    let capture = Capture { state: state.clone() };
    let mut numbers = Numbers::new(kernel.generation());
    numbers.avoid(tables::numbers_left(kernel.maps()));
    let flows = Flows::new(
        kernel.maps().clone(),
        handles.registry.clone(),
        handles.policies.clone(),
        handles.telemetry.clone(),
    );
    let keeper = Keeper {
        settings,
        kernel,
        handles,
        plan: Plan::new(numbers),
        habits: Habits::default(),
        applied: Applied::default(),
        flows,
        pods: BTreeMap::new(),
        waiting: Vec::new(),
        looked: None,
        state,
    };
    tasks::spawn("capture", keeper.run(events, block, shutdown));
    Ok(capture)
}

struct Kept {
    pod: Arc<Pod>,
    netns: Netns,
    caught: Caught,
    place: Place,
    cgroup: Option<PathBuf>,
}

struct Keeper {
    settings: Settings,
    kernel: Kernel,
    handles: Handles,
    plan: Plan,
    habits: Habits,
    applied: Applied,
    flows: Flows,
    pods: BTreeMap<WorkloadUid, Kept>,
    /// Pods that are there and not caught yet, by their control group.
    waiting: Vec<(u64, WorkloadUid)>,
    looked: Option<Instant>,
    state: Arc<ArcSwap<State>>,
}

impl Keeper {
    async fn run(mut self, mut events: Events, block: Block, shutdown: Shutdown) {
        let (hint, mut hints) = mpsc::unbounded_channel();
        let mut watch = Watch::new(hint);
        let mut program_log = self.kernel.take_log();
        let mut registry = self.handles.registry.changes();
        let mut policies = self.handles.policies.changes();
        let mut routes = self.handles.routes.changes();
        let mut look_again = tokio::time::interval(LOOK_AGAIN_EVERY);
        if let Err(error) =
            self.kernel.configure(self.settings.fast_path != FastPath::Off, self.settings.all_services)
        {
            tracing::error!(error = %chain(&error), "cannot configure the kernel programs");
        }
        if let Err(error) = self.introduce_agent() {
            tracing::error!(error = %chain(&error), "the kernel programs cannot be told which control group is the agent's");
        }
        self.forget_predecessor();
        self.reconcile();
        self.follow(&mut watch);
        let heart = Heart::start(self.kernel.maps().clone(), self.kernel.generation());
        drop(block);
        loop {
            let mut batch = Vec::new();
            tokio::select! {
                () = shutdown.requested() => break,
                changed = any_changed([&mut registry, &mut policies, &mut routes]) => {
                    if changed.is_err() { break }
                    self.reconcile();
                }
                _ = hints.recv() => {
                    while hints.try_recv().is_ok() {}
                    self.reconcile();
                }
                _ = look_again.tick() => {
                    let forgotten = self.habits.forget_old(clock::now());
                    if forgotten || self.has_work() {
                        self.reconcile();
                    }
                    // Not every verdict comes with an event: datagrams and sockets that are left alone do not.
                    self.publish_counters();
                }
                () = events.next_batch(|event| batch.push(event)) => {
                    if let Some(log) = &mut program_log {
                        log.flush();
                    }
                    let mut changed = false;
                    for event in &batch {
                        changed |= self.flows.take(event, self.plan.numbers(), &mut self.habits);
                    }
                    if batch.iter().any(|event| event.kind == event::UNKNOWN_NETNS) && self.may_look() {
                        self.reconcile();
                    } else if changed {
                        self.write_tables();
                    }
                    self.publish_counters();
                }
            }
            self.follow(&mut watch);
        }
        drop(heart);
        if let Err(error) = self.kernel.stop_heartbeat() {
            tracing::warn!(error = %chain(&error), "cannot tell the kernel programs that the agent stops");
        }
    }

    /// Tells the programs which control group is the agent's own, and forgets those that are gone. Another agent of this node
    /// may still be there to finish its connections.
    fn introduce_agent(&self) -> Result<(), Error> {
        let mounts = cgroup::Mounts::of_self().unwrap_or_default();
        let Some(root) = mounts.unified else { return Ok(()) };
        let agents = &self.kernel.maps().agents;
        let alive = cgroup::ids_below(&root);
        for gone in agents.keys()?.into_iter().filter(|group| !alive.contains(group)) {
            agents.remove(&gone)?;
        }
        match cgroup::own(&root).and_then(|own| cgroup::id(&own).ok()) {
            Some(own) => agents.put(&own, &1),
            None => Ok(()),
        }
    }

    /// Records about connections of an agent that is gone; its sockets died with it.
    fn forget_predecessor(&self) {
        let maps = self.kernel.maps();
        for key in maps.clients.keys().unwrap_or_default() {
            let _ = maps.clients.remove(&key);
        }
        for key in maps.dials.keys().unwrap_or_default() {
            let _ = maps.dials.remove(&key);
        }
    }

    fn namespaces(&self) -> HashMap<u64, Netns> {
        self.pods.values().map(|kept| (kept.caught.netns_cookie, kept.netns.clone())).collect()
    }

    /// Watches what is worth watching now.
    fn follow(&self, watch: &mut Watch) {
        let waiting = self.waiting.iter().map(|(_, uid)| uid.clone()).collect();
        watch.set(&self.settings.sandboxes.watched(&waiting));
    }

    fn may_look(&self) -> bool {
        self.looked.is_none_or(|at| clock::now().duration_since(at) >= LOOK_AT_MOST_EVERY)
    }

    fn look(&mut self) -> Look {
        self.looked = Some(clock::now());
        let snapshot = self.handles.registry.snapshot();
        self.settings.sandboxes.look(&snapshot, &self.settings.node)
    }

    /// Something differs between the sandboxes and what is caught, or failed last time.
    fn has_work(&mut self) -> bool {
        let look = self.look();
        let state = self.state.load();
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

    /// Makes what is caught equal to what should be.
    fn reconcile(&mut self) {
        let Look { sandboxes: wanted, mut problems, left_out } = self.look();
        problems.extend(self.attach());
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
                Some(Err(error)) => problems.push(format!("pod {}: {}", workload.name, chain(&error))),
                None => {}
            }
            let group = sandbox.cgroup.as_deref().and_then(|group| cgroup::id(group).ok());
            self.waiting.extend(group.map(|group| (group, uid.clone())));
        }
        problems.extend(self.write_tables());
        for uid in fresh {
            let Some(kept) = self.pods.get(&uid) else { continue };
            if let Err(error) = self.kernel.attach_inbound(&kept.netns) {
                problems.push(format!("pod {}: {}", kept.pod.workload().name, chain(&error)));
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
        let slot = self.free_slot().ok_or(enrol::Error::Full { max: PODS_MAX })?;
        let opened = enrol::open(sandbox, workload, slot, self.handles.workers.len())?;
        for (index, (_, inbound)) in (0..).zip(&opened.listeners) {
            self.kernel.set_listener(slot + index, inbound)?;
        }
        Ok(opened)
    }

    /// Slots are handed out in steps of `WORKERS_MAX`: one listener per worker.
    fn free_slot(&self) -> Option<u32> {
        let step = u32::try_from(WORKERS_MAX).expect("small");
        let used: HashSet<u32> = self.pods.values().map(|kept| kept.caught.slot).collect();
        (0..PODS_MAX).map(|index| index * step).find(|slot| !used.contains(slot))
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

    fn write_tables(&mut self) -> Vec<String> {
        let snapshot = self.handles.registry.snapshot();
        let policies = self.handles.policies.current();
        let routes = self.handles.routes.current();
        let caught: Vec<Caught> = self.pods.values().map(|kept| kept.caught.clone()).collect();
        let inputs = Inputs {
            snapshot: &snapshot,
            policies: &policies,
            routes: &routes,
            caught: &caught,
            waiting: &self.waiting,
            habits: &self.habits,
            node: &self.settings.node,
            splice_by_default: snapshot.config.splice.unwrap_or(self.settings.fast_path == FastPath::On),
            all_services: self.settings.all_services,
        };
        let judge_again = self.plan.follow(&inputs);
        let errors = self.applied.apply(self.kernel.maps(), self.plan.tables());
        if judge_again {
            self.flows.judge_again(&self.namespaces());
        }
        let splice = self.settings.fast_path != FastPath::Off && snapshot.config.splice != Some(false);
        let configured = self.kernel.configure(splice, self.settings.all_services);
        self.handles.telemetry.splice_enabled(splice && self.kernel.offsets().are_complete());
        errors.iter().chain(configured.as_ref().err()).map(|error| chain(error)).collect()
    }

    fn publish(&self, mut problems: Vec<String>, left_out: Vec<String>) {
        problems.sort();
        let before = self.state.load();
        let known = before.problems.iter().chain(&before.left_out).collect::<BTreeSet<_>>();
        for problem in problems.iter().chain(&left_out).filter(|problem| !known.contains(problem)) {
            tracing::warn!("{problem}");
        }
        let pods = self.pods.values().map(|kept| (kept.pod.clone(), kept.caught.clone())).collect();
        self.handles.telemetry.enrolled_pods(self.pods.len());
        self.state.store(Arc::new(State { pods, problems, left_out }));
    }

    fn publish_counters(&self) {
        use mesh_common::{counter, reason};
        let labels = counter::LABELS.iter().map(|label| (*label, ""));
        let reasons = reason::LABELS.iter().map(|label| ("refused", *label));
        for ((verdict, reason), total) in labels.chain(reasons).zip(self.kernel.counters()) {
            self.handles.telemetry.kernel_verdicts(verdict, reason, total);
        }
    }
}

/// Waits until one of them has changed, and takes note of all: discovery publishes them one after the other, and whoever
/// reads now reads the newest of each.
async fn any_changed(watched: [&mut watch::Receiver<u64>; 3]) -> Result<(), watch::error::RecvError> {
    let [registry, policies, routes] = watched;
    let changed = tokio::select! {
        changed = registry.changed() => changed,
        changed = policies.changed() => changed,
        changed = routes.changed() => changed,
    };
    for one in [registry, policies, routes] {
        one.mark_unchanged();
    }
    changed
}

/// An error with its causes, on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// Beats until dropped. A thread of its own: a long compilation must not look like a dead agent.
struct Heart {
    stop: Option<std::sync::mpsc::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Heart {
    fn start(maps: Arc<Maps>, generation: u64) -> Self {
        let (stop, stopped) = std::sync::mpsc::channel();
        let beat = move || {
            loop {
                if let Err(error) = load::beat(&maps, generation) {
                    tracing::error!(error = %chain(&error), "heartbeat failed");
                }
                match stopped.recv_timeout(HEARTBEAT_EVERY) {
                    Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {}
                    _ => return,
                }
            }
        };
        let thread = std::thread::Builder::new().name("heartbeat".into()).spawn(beat);
        Self {
            stop: Some(stop),
            thread: thread.inspect_err(|error| tracing::error!(%error, "no heartbeat thread")).ok(),
        }
    }
}

impl Drop for Heart {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // The thread only ends by returning; a panic in it has been reported already.
            let _ = thread.join();
        }
    }
}
