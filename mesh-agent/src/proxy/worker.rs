//! Workers: one thread each, with everything that a connection needs on it.
//!
//! Station 3 of the walk: a connection is accepted on the worker that will close it. A worker serves the listeners that
//! [`ListenerChange`] gives it, judges its open connections again when policy or registry change, and ages its pool. When
//! another agent has taken the pods over, it serves what is open to its end.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::LocalSet;

use super::carrier::{self, Scratch};
use super::http::report::KnownMetrics;
use super::http::upstream::Upstreams;
use super::open::OpenTable;
use super::pool::Pool;
use super::{Handles, Leaving, Settings, inbound, outbound};
use crate::balance::OpenConnections;
use crate::capture::{ListenerChange, Pod};
use crate::lifecycle::{clock, tasks};
use crate::model::{Ending, RequestPath, WorkloadUid};
use crate::policy::{Facts, Request};
use crate::registry::Changed;

/// How often idle tunnels are looked at.
const SWEEP_EVERY: Duration = Duration::from_secs(5);
/// How often a worker that drains looks whether it is done.
const DRAINED_EVERY: Duration = Duration::from_millis(50);
/// How long accepting rests after an error such as "no file descriptors left".
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Why workers could not be started.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A thread or its runtime could not be made.
    #[error("worker {index} did not start")]
    Start {
        /// Which one, from 0.
        index: usize,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// The running workers.
#[derive(Debug)]
pub struct Workers {
    threads: Vec<JoinHandle<()>>,
}

impl Workers {
    /// Waits until all have stopped; ask them through their [`Leaving`]. Blocks.
    pub fn join(self) {
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a worker panicked");
            }
        }
    }
}

/// Starts one worker per receiver. Each serves the listeners that its receiver brings, until it is asked to leave.
///
/// # Errors
/// A thread or runtime could not be made; those started before go on until they are asked to leave.
pub fn start_workers(
    settings: Settings,
    handles: &Handles,
    changes: Vec<mpsc::UnboundedReceiver<ListenerChange>>,
    leaving: &Leaving,
) -> Result<Workers, Error> {
    let mut threads = Vec::with_capacity(changes.len());
    for (index, receiver) in changes.into_iter().enumerate() {
        let (handles, leaving) = (handles.clone(), leaving.clone());
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()
            .map_err(|source| Error::Start { index, source })?;
        let thread = std::thread::Builder::new()
            .name(format!("worker-{index}"))
            .spawn(move || {
                let local = LocalSet::new();
                runtime.block_on(local.run_until(run(settings, handles, receiver, leaving)));
                // Connections that outlived the grace end here, by reset.
                drop(local);
            })
            .map_err(|source| Error::Start { index, source })?;
        threads.push(thread);
    }
    Ok(Workers { threads })
}

/// What the connections of one worker share.
#[derive(Debug)]
pub struct Local {
    /// Limits.
    pub settings: Settings,
    /// The other rooms.
    pub handles: Handles,
    /// Buffers; borrowed within one poll, never across a wait.
    pub scratch: &'static RefCell<Scratch>,
    /// Idle tunnels.
    pub pool: Pool,
    /// Open connections.
    pub open: Rc<OpenTable>,
    /// Open connections per endpoint.
    pub connections: OpenConnections,
    /// Turns for outgoing handshakes.
    pub handshakes: Semaphore,
    /// Turns for incoming handshakes: separate, so that two agents that dial each other cannot starve each other.
    pub handshakes_in: Semaphore,
    /// For drawing endpoints.
    pub rng: RefCell<fastrand::Rng>,
    /// Connections that carry requests of this node's pods to servers.
    pub upstreams: Rc<Upstreams>,
    /// Counters of requests.
    pub request_metrics: RefCell<KnownMetrics>,
    /// The pods of this node, as they are served here.
    pods: RefCell<HashMap<WorkloadUid, Rc<Served>>>,
}

impl Local {
    /// A worker's state, empty.
    pub fn new(settings: Settings, handles: Handles) -> Rc<Self> {
        Rc::new(Self {
            settings,
            handles,
            scratch: carrier::scratch(),
            pool: Pool::new(settings.idle_tunnels_per_pair_max, settings.idle_tunnel_max),
            open: Rc::default(),
            connections: OpenConnections::default(),
            handshakes: Semaphore::new(settings.handshakes_max),
            handshakes_in: Semaphore::new(settings.handshakes_max),
            rng: RefCell::new(fastrand::Rng::new()),
            upstreams: Rc::default(),
            request_metrics: RefCell::default(),
            pods: RefCell::default(),
        })
    }

    /// A pod of this node.
    pub fn served(&self, uid: &WorkloadUid) -> Option<Rc<Served>> {
        self.pods.borrow().get(uid).cloned()
    }

    /// Does what a newer state of the mesh asks for and returns its version. Most changes are about pods of other nodes
    /// and ask for nothing.
    fn follow_registry(&self, seen: u64) -> u64 {
        let mesh = self.handles.registry.snapshot();
        let changed = mesh.changed_since(seen);
        let is_ours = |changed: &Changed| {
            let pods = self.pods.borrow();
            changed.config || changed.workloads.iter().any(|uid| pods.contains_key(uid))
        };
        if changed.as_ref().is_none_or(is_ours) {
            self.judge_again();
        }
        let is_gone = |changed: &Changed| changed.workloads.iter().any(|uid| mesh.workload(uid).is_none());
        if changed.as_ref().is_none_or(is_gone) {
            self.sweep();
        }
        mesh.version
    }

    /// Judges every open inbound connection again and ends those that would not be admitted now.
    fn judge_again(&self) {
        let policies = self.handles.policies.current();
        let mesh = self.handles.registry.snapshot();
        self.open.for_each(|entry| {
            let Some(judged) = &entry.judged else { return };
            let path = judged.request.as_ref().map(|request| RequestPath::parse(&request.path));
            let request = match (&judged.request, &path) {
                (Some(request), Some(Ok(path))) => Some(Request {
                    method: &request.method,
                    path,
                    headers: &request.headers,
                    host: request.host.as_deref(),
                }),
                _ => None,
            };
            // The keeper tells the pod what changed about it, which may be after this.
            let pod = entry.pod.workload();
            let destination = mesh.workload(&pod.uid).unwrap_or(&pod);
            let facts = Facts {
                identity: judged.identity.as_ref(),
                client: judged.client,
                destination,
                port: judged.port,
                node_probe: judged.node_probe,
                request,
            };
            if let Err(refusal) = policies.evaluate(&facts) {
                tracing::info!(%refusal, client = %judged.client, port = judged.port, "policy revoked a connection");
                entry.close(Ending::PolicyRevoked);
            }
        });
    }

    fn sweep(&self) {
        let mesh = self.handles.registry.snapshot();
        let lives = |uid: &WorkloadUid| mesh.workload(uid).is_some();
        self.pool.sweep(clock::now(), lives);
        self.upstreams.sweep(clock::now(), self.settings.http.idle_upstream_max, lives);
    }

    fn close_all_of(&self, uid: Option<&WorkloadUid>) {
        self.open.for_each(|entry| {
            if uid.is_none_or(|uid| entry.pod.workload().uid == *uid) {
                entry.close(Ending::Shutdown);
            }
        });
    }
}

/// A pod as a worker serves it.
#[derive(Debug)]
pub struct Served {
    /// The pod.
    pub pod: Arc<Pod>,
    /// Ports of its two listeners, which nobody may reach through us.
    pub ports: [u16; 2],
}

/// The two tasks that accept a pod's connections.
type Accepting = HashMap<WorkloadUid, [tokio::task::JoinHandle<()>; 2]>;

async fn run(
    settings: Settings,
    handles: Handles,
    mut changes: mpsc::UnboundedReceiver<ListenerChange>,
    leaving: Leaving,
) {
    let local = Local::new(settings, handles);
    let mut accepting = Accepting::new();
    let mut duties = Duties::new(&local);
    let (mut drain, mut stop) = (pin!(leaving.draining.requested()), pin!(leaving.stopping.requested()));
    loop {
        tokio::select! {
            () = &mut stop => break,
            () = &mut drain => {
                tokio::select! {
                    () = &mut stop => {}
                    () = serve_out(&local, &mut accepting, &mut duties) => {}
                }
                break;
            }
            Some(change) = changes.recv() => follow(&local, &mut accepting, change),
            () = duties.next(&local) => {}
        }
    }
    stop_accepting(&mut accepting);
    local.close_all_of(None);
    let ended = tokio::time::timeout(settings.shutdown_grace, async {
        while !local.open.is_empty() {
            tokio::task::yield_now().await;
        }
    });
    // What outlives the grace is reset.
    let _ = ended.await;
}

/// Begins or ends to serve a pod.
fn follow(local: &Rc<Local>, accepting: &mut Accepting, change: ListenerChange) {
    match change {
        ListenerChange::Added { pod, outbound, inbound } => {
            let uid = pod.workload().uid.clone();
            match listen(local, pod, outbound, inbound) {
                Ok(tasks) => {
                    if let Some(old) = accepting.insert(uid, tasks) {
                        old.iter().for_each(tokio::task::JoinHandle::abort);
                    }
                }
                Err(error) => tracing::error!(%error, pod = %uid, "a pod's listeners cannot be served"),
            }
        }
        ListenerChange::Removed { pod } => {
            let uid = pod.workload().uid.clone();
            if let Some(tasks) = accepting.remove(&uid) {
                tasks.iter().for_each(tokio::task::JoinHandle::abort);
            }
            local.pods.borrow_mut().remove(&uid);
            local.close_all_of(Some(&uid));
            local.pool.sweep(clock::now(), |known| *known != uid);
            let idle_max = local.settings.http.idle_upstream_max;
            local.upstreams.sweep(clock::now(), idle_max, |known| *known != uid);
        }
    }
}

/// Another agent has the pods. Takes what still waits in the listeners' queues, and serves what is open until nothing is.
async fn serve_out(local: &Rc<Local>, accepting: &mut Accepting, duties: &mut Duties) {
    local.open.drain();
    let last_arrivals = clock::now() + local.settings.last_arrivals;
    let mut look = tokio::time::interval(DRAINED_EVERY);
    loop {
        tokio::select! {
            () = duties.next(local) => {}
            _ = look.tick() => {
                if clock::now() < last_arrivals {
                    continue;
                }
                stop_accepting(accepting);
                if local.open.is_empty() {
                    return;
                }
            }
        }
    }
}

fn stop_accepting(accepting: &mut Accepting) {
    for (_, tasks) in accepting.drain() {
        tasks.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

/// What a worker does besides carrying connections.
struct Duties {
    policies: watch::Receiver<u64>,
    registry: watch::Receiver<u64>,
    /// The version of the registry that was followed.
    seen: u64,
    sweep: tokio::time::Interval,
}

impl Duties {
    fn new(local: &Local) -> Self {
        Self {
            policies: local.handles.policies.changes(),
            registry: local.handles.registry.changes(),
            seen: local.handles.registry.snapshot().version,
            sweep: tokio::time::interval(SWEEP_EVERY),
        }
    }

    /// Waits for one of them and does it. Cancel safe.
    async fn next(&mut self, local: &Local) {
        tokio::select! {
            Ok(()) = self.policies.changed() => local.judge_again(),
            Ok(()) = self.registry.changed() => self.seen = local.follow_registry(self.seen),
            _ = self.sweep.tick() => local.sweep(),
        }
    }
}

fn listen(
    local: &Rc<Local>,
    pod: Arc<Pod>,
    outbound: std::net::TcpListener,
    inbound: std::net::TcpListener,
) -> io::Result<[tokio::task::JoinHandle<()>; 2]> {
    let ports = [outbound.local_addr()?.port(), inbound.local_addr()?.port()];
    let served = Rc::new(Served { pod, ports });
    local.pods.borrow_mut().insert(served.pod.workload().uid.clone(), served.clone());
    let (outbound, inbound) = (TcpListener::from_std(outbound)?, TcpListener::from_std(inbound)?);
    let (local_in, served_in) = (local.clone(), served.clone());
    let (local_out, served_out) = (local.clone(), served);
    Ok([
        tasks::spawn_local(
            "outbound listener",
            accept(outbound, move |stream, peer| {
                outbound::serve(local_out.clone(), served_out.clone(), stream, peer);
            }),
        ),
        tasks::spawn_local(
            "inbound listener",
            accept(inbound, move |stream, peer| {
                tasks::spawn_local(
                    "inbound",
                    inbound::serve(local_in.clone(), served_in.clone(), stream, peer),
                );
            }),
        ),
    ])
}

async fn accept(listener: TcpListener, serve: impl Fn(tokio::net::TcpStream, std::net::SocketAddr)) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => serve(stream, peer),
            Err(error) => {
                tracing::warn!(%error, "accepting a connection failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}
