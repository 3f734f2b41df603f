//! The task that keeps the kernel's view true: pods are caught and let go (`pods`), tables follow registry and policy, events
//! are taken in, sockets that policy turns against are closed. It has the node's [`Turn`] while it does.

mod pods;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};

use super::compile::{Caught, Inputs, Plan};
use super::complaint::Complaint;
use super::flows::Flows;
use super::habit::Habits;
use super::heart::Heart;
use super::numbers::Numbers;
use super::sandbox::{Place, Sandboxes};
use super::succession::{self, Left, Slots};
use super::tables::{self, Applied};
use super::watch::Watch;
use super::{ListenerChange, Pod};
use crate::kernel::events::Events;
use crate::kernel::turn::Turn;
use crate::kernel::{Error, Kernel, Netns};
use crate::lifecycle::{Block, Shutdown, clock, tasks};
use crate::model::{Publication, SpiffeId, WorkloadUid};
use crate::policy::Policies;
use crate::registry::Registry;
use crate::route::Routes;
use crate::telemetry::Telemetry;
use mesh_common::event;

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
    /// Another agent of this node had the pods until just now, and still serves what it has accepted.
    pub succeeds_another: bool,
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

/// Read handle for the rooms that tell of it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Capture {
    state: watch::Receiver<Arc<State>>,
    left: watch::Receiver<Option<Left>>,
    in_kernel: watch::Receiver<Publication>,
}

/// What is caught, and what could not be.
#[derive(Debug, Default)]
pub struct State {
    /// Caught pods.
    pub pods: Vec<(Arc<Pod>, Caught)>,
    /// What is wrong, and may mend itself.
    pub problems: Vec<Complaint>,
    /// Pods that stay outside the mesh although they were asked into it, and why.
    pub left_out: Vec<Complaint>,
}

impl Capture {
    /// The newest state.
    pub fn state(&self) -> Arc<State> {
        self.state.borrow().clone()
    }

    /// Every state that comes, until the keeper has stopped.
    pub fn states(&self) -> watch::Receiver<Arc<State>> {
        self.state.clone()
    }

    /// Completes when the keeper has stopped, and says who has the pods now. Cancel safe.
    pub async fn left(&self) -> Left {
        let mut left = self.left.clone();
        left.wait_for(Option::is_some).await.ok().and_then(|left| *left).unwrap_or(Left::Alone)
    }

    /// The newest publication that stands in the kernel's tables, every entry of it.
    pub fn in_kernel(&self) -> watch::Receiver<Publication> {
        self.in_kernel.clone()
    }
}

/// Starts the keeper on the current runtime, and the heartbeat on a thread of its own. The kernel object must be loaded
/// and attached to the control group already. `block` is let go once every sandbox that is there has been looked at and
/// the tables are written. On `shutdown` the turn goes to the next agent of this node, if there is one.
///
/// # Errors
/// The event ring or the first heartbeat cannot be set up.
pub fn start(
    settings: Settings,
    turn: Turn,
    mut kernel: Kernel,
    handles: Handles,
    block: Block,
    shutdown: Shutdown,
) -> Result<Capture, Error> {
    let events = Events::new(kernel.take_events()?)?;
    let (state, published) = watch::channel(Arc::new(State::default()));
    let (leaving, left) = watch::channel(None);
    let (in_kernel, told) = watch::channel(Publication::default());
    let capture = Capture { state: published, left, in_kernel: told };
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
        slots: Slots::left_in(kernel.maps()),
        kernel,
        handles,
        plan: Plan::new(numbers),
        habits: Habits::default(),
        applied: Applied::default(),
        flows,
        pods: BTreeMap::new(),
        waiting: Vec::new(),
        looked: None,
        seen: 0,
        state,
        in_kernel,
    };
    tasks::spawn("capture", async move {
        let left = keeper.run(events, turn, block, shutdown).await;
        leaving.send_replace(Some(left));
    });
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
    slots: Slots,
    pods: BTreeMap<WorkloadUid, Kept>,
    /// Pods that are there and not caught yet, by their control group.
    waiting: Vec<(u64, WorkloadUid)>,
    looked: Option<Instant>,
    /// The version of the registry that was followed.
    seen: u64,
    state: watch::Sender<Arc<State>>,
    in_kernel: watch::Sender<Publication>,
}

impl Keeper {
    async fn run(mut self, mut events: Events, turn: Turn, block: Block, shutdown: Shutdown) -> Left {
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
        if let Err(error) = succession::introduce(self.kernel.maps()) {
            tracing::error!(error = %chain(&error), "the kernel programs cannot be told which control group is the agent's");
        }
        if !self.settings.succeeds_another {
            succession::forget_connections(self.kernel.maps());
        }
        self.reconcile();
        self.slots.settle();
        self.follow(&mut watch);
        let heart = Heart::start(self.kernel.maps().clone(), self.kernel.generation());
        drop(block);
        loop {
            let mut batch = Vec::new();
            tokio::select! {
                () = shutdown.requested() => break,
                changed = any_changed([&mut registry, &mut policies, &mut routes]) => {
                    if changed.is_err() { break }
                    self.follow_mesh();
                }
                _ = hints.recv() => {
                    while hints.try_recv().is_ok() {}
                    self.reconcile();
                }
                _ = look_again.tick() => {
                    let forgotten = self.habits.forget_old(clock::now());
                    let look = self.look();
                    if forgotten || self.has_work(&look) {
                        self.reconcile_with(look);
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
        // Its ring has one reader.
        drop(events);
        let left = succession::make_way(turn, heart).await;
        if left == Left::Alone
            && let Err(error) = self.kernel.stop_heartbeat()
        {
            tracing::warn!(error = %chain(&error), "cannot tell the kernel programs that the agent stops");
        }
        left
    }

    /// Watches what is worth watching now.
    fn follow(&self, watch: &mut Watch) {
        let waiting = self.waiting.iter().map(|(_, uid)| uid.clone()).collect();
        watch.set(&self.settings.sandboxes.watched(&waiting));
    }

    fn may_look(&self) -> bool {
        self.looked.is_none_or(|at| clock::now().duration_since(at) >= LOOK_AT_MOST_EVERY)
    }

    fn write_tables(&mut self) -> Vec<String> {
        // Asked before the sets are taken, which are then at least as new.
        let (policies_version, routes_version) =
            (*self.handles.policies.changes().borrow(), *self.handles.routes.changes().borrow());
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
        if errors.is_empty() && configured.is_ok() {
            let (policies, routes) = (policies_version, routes_version);
            let written = Publication { registry: snapshot.version, policies, routes };
            self.in_kernel.send_if_modified(|before| std::mem::replace(before, written) != written);
        }
        errors.iter().chain(configured.as_ref().err()).map(|error| chain(error)).collect()
    }

    fn publish(&self, mut problems: Vec<Complaint>, left_out: Vec<Complaint>) {
        problems.sort();
        let before = self.state.borrow().clone();
        let known = before.problems.iter().chain(&before.left_out).collect::<BTreeSet<_>>();
        for problem in problems.iter().chain(&left_out).filter(|problem| !known.contains(problem)) {
            tracing::warn!("{problem}");
        }
        let pods = self.pods.values().map(|kept| (kept.pod.clone(), kept.caught.clone())).collect();
        self.handles.telemetry.enrolled_pods(self.pods.len());
        self.state.send_replace(Arc::new(State { pods, problems, left_out }));
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
