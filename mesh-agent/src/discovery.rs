//! Where knowledge comes from: Kubernetes objects, turned into registry, route and policy changes.
//!
//! Layer 3, before station 1 of the walk: everything above decides by what this room has published. The source is the
//! Kubernetes API, or a watched directory of YAML; the objects are read by the same code, and nothing above knows which
//! it was. It never decides about a connection, never talks to the kernel, and never writes to its source.
//!
//! A bad object never takes down good ones: its last good version stays in force and a [`Problem`] says where to look.
//!
//! Reading order: `resources` (our kinds as written), `crds` (what the API server learns of them), `objects` (validated
//! objects), `problem`, `files` and `watch` (the directory, and again on every change), `access` (the way to the Kubernetes
//! API) and `api` (objects from there), `compile` (objects to registry, routes and policies), `status` (what became of
//! routes), `duration`.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::watch as signal;

use crate::lifecycle::{Shutdown, clock};
use crate::model::{Publication, Versions};
use crate::policy::{self, PolicySet};
use crate::registry::{self, Snapshot};
use crate::route::{self, RouteTable};
use crate::telemetry::Telemetry;

pub mod access;
pub mod api;
pub mod compile;
pub mod crds;
mod duration;
pub mod files;
pub mod objects;
pub mod problem;
pub mod resources;
pub mod status;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod watch;

pub use access::Access;
use compile::{Compiler, Finding};
use objects::{Key, Objects};
pub use problem::Problem;
pub use status::RouteStatus;

/// Where the objects come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settings {
    /// Directory of `*.yaml`, `*.yml` and `*.json`, read with its subdirectories. Names that begin with a dot are passed
    /// over.
    Directory(PathBuf),
    /// The Kubernetes API.
    Kubernetes(Access),
}

/// Why discovery cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The directory cannot be read.
    #[error("cannot read the directory {}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// There is a `MeshConfig` and it cannot be used: trust domain and defaults are not to be guessed.
    #[error("unusable MeshConfig: {0}")]
    MeshConfig(Box<Problem>),
    /// There is no client of the API.
    #[error("the Kubernetes API cannot be asked")]
    Api(#[from] access::Unreachable),
}

/// A running discovery: what it has to report. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Discovery {
    report: Arc<Mutex<Report>>,
    source: Arc<Settings>,
    feeds: Option<api::Feeds>,
    published: signal::Receiver<bool>,
    versions: signal::Receiver<Versions>,
}

/// Where objects come from, and how that goes.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "source", rename_all = "camelCase")]
pub enum SourceReport {
    /// A directory.
    Directory {
        /// It.
        path: PathBuf,
        /// Objects in force.
        objects: usize,
    },
    /// The Kubernetes API.
    Kubernetes {
        /// Objects in force.
        objects: usize,
        /// One per kind.
        kinds: Vec<api::FeedReport>,
    },
}

#[derive(Debug, Default)]
struct Report {
    problems: Vec<Problem>,
    ignored: BTreeMap<String, usize>,
    objects: usize,
    routes: Arc<[RouteStatus]>,
}

impl Discovery {
    /// What there is to mend now, by file and line.
    pub fn problems(&self) -> Vec<Problem> {
        self.report.lock().problems.clone()
    }

    /// How many problems there are now.
    pub fn problem_count(&self) -> usize {
        self.report.lock().problems.len()
    }

    /// Objects of kinds that the mesh does not read, counted by `kind.group`.
    pub fn ignored(&self) -> BTreeMap<String, usize> {
        self.report.lock().ignored.clone()
    }

    /// What became of each route, by namespace, kind and name.
    pub fn routes(&self) -> Arc<[RouteStatus]> {
        self.report.lock().routes.clone()
    }

    /// Which version of each object is in what was published, told when that changes.
    pub fn versions(&self) -> signal::Receiver<Versions> {
        self.versions.clone()
    }

    /// How many objects are in force.
    pub fn object_count(&self) -> usize {
        self.report.lock().objects
    }

    /// Where objects come from, and how that goes.
    pub fn source(&self) -> SourceReport {
        let objects = self.object_count();
        match (&*self.source, &self.feeds) {
            (Settings::Directory(path), _) => SourceReport::Directory { path: path.clone(), objects },
            (Settings::Kubernetes(_), feeds) => {
                let kinds = feeds.as_ref().map(api::Feeds::report).unwrap_or_default();
                SourceReport::Kubernetes { objects, kinds }
            }
        }
    }

    /// Completes once the first state has been published, or when there will be none because the process stops. Cancel
    /// safe.
    pub async fn first_state(&self) {
        let mut published = self.published.clone();
        // An error means that the publisher is gone.
        let _ = published.wait_for(|published| *published).await;
    }
}

/// Reads objects from their source, publishes what they say, and keeps following changes until shutdown.
///
/// A directory's first state is published before this returns; files are read on the runtime's own threads, so it should
/// not be one that relays connections. For the API, [`Discovery::first_state`] says when there is a state.
///
/// # Errors
/// The directory cannot be read, or holds a `MeshConfig` that cannot be used; there is no client of the API. An API that
/// does not answer is no error: it is asked again until it does.
pub async fn start(
    settings: Settings,
    registry: registry::Writer,
    policies: policy::Writer,
    routes: route::Writer,
    telemetry: &Telemetry,
    shutdown: Shutdown,
) -> Result<Discovery, Error> {
    let mut publisher = Publisher::new(registry, policies, routes);
    let (report, published) = (publisher.report.clone(), publisher.first.subscribe());
    let versions = publisher.versions.subscribe();
    let feeds = match &settings {
        Settings::Directory(dir) => {
            let mut source = files::Source::new(dir.clone());
            source.refresh(true)?;
            if let Some(problem) = source.unusable_mesh_config() {
                return Err(Error::MeshConfig(Box::new(problem)));
            }
            publisher.publish(&mut source);
            watch::start(source, publisher, shutdown);
            None
        }
        Settings::Kubernetes(access) => {
            let client = access.client().await?;
            Some(api::start(&client, publisher, telemetry, &shutdown))
        }
    };
    Ok(Discovery { report, source: Arc::new(settings), feeds, published, versions })
}

/// Reads the directory once, for tools. Where a `MeshConfig` cannot be used, the state admits nobody by default.
///
/// # Errors
/// The directory cannot be read.
pub fn load(dir: &Path) -> Result<Loaded, Error> {
    let mut source = files::Source::new(dir.to_owned());
    source.refresh(true)?;
    let compiled = compile::compile(source.objects());
    Ok(Loaded {
        problems: source.problems(&compiled.findings),
        snapshot: compiled.snapshot,
        policies: compiled.policies,
        routes: RouteTable::new(compiled.attachments),
        route_statuses: compiled.route_statuses,
    })
}

/// What a directory says.
#[derive(Debug)]
pub struct Loaded {
    /// Workloads and services.
    pub snapshot: Snapshot,
    /// Policies.
    pub policies: PolicySet,
    /// Routes.
    pub routes: RouteTable,
    /// What became of each route; conditions are not dated.
    pub route_statuses: Vec<RouteStatus>,
    /// What there is to mend.
    pub problems: Vec<Problem>,
}

/// What has objects.
trait Source {
    /// The objects in force.
    fn objects(&self) -> &Objects;

    /// The objects that changed since the last call; see [`Objects::take_changed`].
    fn take_changed(&mut self) -> BTreeSet<Key>;

    /// Whether [`Source::problems`] says something else about single objects than at the last call.
    fn take_problems_changed(&mut self) -> bool;

    /// Everything to mend: what single objects got wrong, and what `compile` found between them.
    fn problems(&self, findings: &[Finding]) -> Vec<Problem>;

    /// Objects of kinds that the mesh does not read, counted by `kind.group`.
    fn ignored(&self) -> BTreeMap<String, usize> {
        BTreeMap::new()
    }
}

/// The places that the state goes to.
#[derive(Debug)]
struct Publisher {
    registry: registry::Writer,
    policies: policy::Writer,
    routes: route::Writer,
    compiler: Compiler,
    report: Arc<Mutex<Report>>,
    first: signal::Sender<bool>,
    publication: Publication,
    versions: signal::Sender<Versions>,
}

impl Publisher {
    fn new(registry: registry::Writer, policies: policy::Writer, routes: route::Writer) -> Self {
        Self {
            registry,
            policies,
            routes,
            compiler: Compiler::default(),
            report: Arc::default(),
            first: signal::Sender::new(false),
            publication: Publication::default(),
            versions: signal::Sender::default(),
        }
    }

    /// Policies go first: a pod must never be reachable under a policy older than the state that made it so. Routes go
    /// before services, so that a service's first connection already takes them.
    fn publish(&mut self, source: &mut impl Source) {
        let changed = source.take_changed();
        let step = self.compiler.follow(source.objects(), &changed);
        let has_other_problems = source.take_problems_changed() | step.findings_changed;
        let problems = has_other_problems.then(|| source.problems(&self.compiler.findings()));
        if let Some(policies) = step.policies {
            self.publication.policies = self.policies.publish(policies);
        }
        let statuses = step.routes.map(|routes| {
            let table = self.routes.current().succeeded_by(routes.attachments);
            self.publication.routes = self.routes.publish(table);
            routes.statuses
        });
        let version = match step.changed {
            None => self.registry.publish(step.snapshot),
            Some(changed) => self.registry.publish_change(step.snapshot, changed),
        };
        self.publication.registry = version;
        if changed.iter().any(|key| key.kind.is_tracked()) {
            let generations = Arc::new(source.objects().generations());
            self.versions.send_replace(Versions { publication: self.publication, generations });
        }
        let mut report = self.report.lock();
        if let Some(problems) = problems {
            let known: HashSet<&Problem> = report.problems.iter().collect();
            for problem in problems.iter().filter(|problem| !known.contains(problem)) {
                tracing::warn!(%problem, "a problem in the configuration; what is not at fault goes on");
            }
            report.problems = problems;
        }
        if let Some(mut statuses) = statuses {
            status::date(&mut statuses, &report.routes, clock::wall());
            report.routes = statuses.into();
        }
        report.ignored = source.ignored();
        report.objects = source.objects().len();
        tracing::debug!(
            version,
            changed = changed.len(),
            objects = report.objects,
            problems = report.problems.len(),
            "state published"
        );
        self.first.send_replace(true);
    }
}
