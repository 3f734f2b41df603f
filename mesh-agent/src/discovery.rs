//! Where knowledge comes from: Kubernetes objects, turned into registry, route and policy changes.
//!
//! Layer 3, before station 1 of the walk: everything above decides by what this room has published. In standalone mode
//! the source is a watched directory of YAML; the Kubernetes API will be a second source of the same objects, and
//! nothing above will know which. It never decides about a connection and never talks to the kernel.
//!
//! A bad object never takes down good ones: its last good version stays in force and a [`Problem`] says where to look.
//!
//! Reading order: `resources` (our kinds as written), `crds` (what the API server learns of them), `objects` (validated objects), `problem`, `files` (the source),
//! `compile` (objects to registry, routes and policies), `status` (what became of routes), `watch` (again, on every change), `access` (the way to the Kubernetes API), `duration`.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::lifecycle::{Shutdown, clock};
use crate::policy::{self, PolicySet};
use crate::registry::{self, Snapshot};
use crate::route::{self, RouteTable};

pub mod access;
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
mod watch;

pub use access::Access;
use compile::Compiler;
pub use problem::Problem;
pub use status::RouteStatus;

/// Settings of this room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Directory of `*.yaml`, `*.yml` and `*.json`, read with its subdirectories. Names that begin with a dot are passed
    /// over.
    pub dir: PathBuf,
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
}

/// A running discovery: what it has to report. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Discovery(Arc<Mutex<Report>>);

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
        self.0.lock().problems.clone()
    }

    /// How many problems there are now.
    pub fn problem_count(&self) -> usize {
        self.0.lock().problems.len()
    }

    /// Objects of kinds that the mesh does not read, counted by `kind.group`.
    pub fn ignored(&self) -> BTreeMap<String, usize> {
        self.0.lock().ignored.clone()
    }

    /// What became of each route, by namespace, kind and name.
    pub fn routes(&self) -> Arc<[RouteStatus]> {
        self.0.lock().routes.clone()
    }

    /// How many objects are in force.
    pub fn object_count(&self) -> usize {
        self.0.lock().objects
    }
}

/// Reads the directory, publishes what it says, and keeps watching until shutdown.
///
/// The first state is published before this returns. Must be called inside a tokio runtime; files are read on the
/// runtime's own threads, so it should not be one that relays connections.
///
/// # Errors
/// The directory cannot be read, or holds a `MeshConfig` that cannot be used.
pub fn start(
    settings: Settings,
    registry: registry::Writer,
    policies: policy::Writer,
    routes: route::Writer,
    shutdown: Shutdown,
) -> Result<Discovery, Error> {
    let mut source = files::Source::new(settings.dir);
    source.refresh(true)?;
    if let Some(problem) = source.unusable_mesh_config() {
        return Err(Error::MeshConfig(Box::new(problem)));
    }
    let discovery = Discovery(Arc::default());
    let compiler = Compiler::default();
    let mut publisher =
        Publisher { source, registry, policies, routes, compiler, discovery: discovery.clone() };
    publisher.publish();
    watch::start(publisher, shutdown);
    Ok(discovery)
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

/// The source and the places that its state goes to.
#[derive(Debug)]
struct Publisher {
    source: files::Source,
    registry: registry::Writer,
    policies: policy::Writer,
    routes: route::Writer,
    compiler: Compiler,
    discovery: Discovery,
}

impl Publisher {
    /// Policies go first: a pod must never be reachable under a policy older than the state that made it so. Routes go
    /// before services, so that a service's first connection already takes them.
    fn publish(&mut self) {
        let changed = self.source.take_changed();
        let step = self.compiler.follow(self.source.objects(), &changed);
        let problems = self.source.problems(&self.compiler.findings());
        if let Some(policies) = step.policies {
            self.policies.publish(policies);
        }
        let statuses = step.routes.map(|routes| {
            self.routes.publish(self.routes.current().succeeded_by(routes.attachments));
            routes.statuses
        });
        let version = match step.changed {
            None => self.registry.publish(step.snapshot),
            Some(changed) => self.registry.publish_change(step.snapshot, changed),
        };
        let mut report = self.discovery.0.lock();
        for problem in problems.iter().filter(|problem| !report.problems.contains(problem)) {
            tracing::warn!(%problem, "a problem in the configuration; what is not at fault goes on");
        }
        if let Some(mut statuses) = statuses {
            status::date(&mut statuses, &report.routes, clock::wall());
            report.routes = statuses.into();
        }
        report.problems = problems;
        report.ignored = self.source.ignored();
        report.objects = self.source.objects().len();
        tracing::debug!(
            version,
            changed = changed.len(),
            objects = report.objects,
            problems = report.problems.len(),
            "state published"
        );
    }
}
