//! Where the built Kubernetes lies: outside the checkout, one directory per version of Debian's packages, built once for all
//! checkouts of the machine.
//!
//! Whatever is made there appears under its name only when it is whole: it is made beside it and renamed. An interrupted build
//! is therefore never taken for a done one, and the next one goes on after the last step that was done.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::fcntl::{Flock, FlockArg};

use crate::shell::say;

/// Where the cache lies unless [`CACHE_VARIABLE`] names another place.
const DEFAULT_CACHE: &str = "/var/cache/weft/kubernetes";

/// The environment variable that names another place.
const CACHE_VARIABLE: &str = "WEFT_CLUSTER_CACHE";

/// Raised when the way of building changes, so that what was built the old way is built anew.
const RECIPE: u32 = 1;

/// Programs that an API server needs beside etcd, and one to talk to it.
pub const API_SERVER_PROGRAMS: [&str; 2] = ["kube-apiserver", "kubectl"];

/// Programs that a whole cluster needs beyond [`API_SERVER_PROGRAMS`]. `pause` keeps a pod's namespaces open.
pub const CLUSTER_PROGRAMS: [&str; 5] =
    ["kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "pause"];

/// How much is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// An API server with its store.
    ApiServer,
    /// Nodes and controllers too.
    Cluster,
}

impl Extent {
    /// The programs that it needs.
    pub fn programs(self) -> Vec<&'static str> {
        let more: &[&str] = if self == Self::Cluster { &CLUSTER_PROGRAMS } else { &[] };
        API_SERVER_PROGRAMS.iter().chain(more).copied().collect()
    }
}

/// The cache.
#[derive(Debug)]
pub struct Cache {
    dir: PathBuf,
}

/// What was built of one version.
#[derive(Clone, Debug)]
pub struct Build {
    /// All its files.
    pub dir: PathBuf,
}

impl Cache {
    /// The cache of this machine.
    pub fn new() -> Self {
        let dir =
            std::env::var_os(CACHE_VARIABLE).map_or_else(|| PathBuf::from(DEFAULT_CACHE), PathBuf::from);
        Self { dir }
    }

    /// A file or directory of the cache that belongs to no version.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Takes the cache for this process; waits for another build to end.
    pub fn lock(&self) -> Result<Flock<File>> {
        fs::create_dir_all(&self.dir).with_context(|| {
            format!(
                "cannot make {}; set {CACHE_VARIABLE} to a directory that can be written",
                self.dir.display()
            )
        })?;
        let file = File::create(self.dir.join("lock"))?;
        let file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((file, _)) => file,
        };
        say(format!("another build works in {}; waiting for it", self.dir.display()));
        Flock::lock(file, FlockArg::LockExclusive)
            .map_err(|(_, e)| e)
            .context("cannot wait for the other build")
    }

    /// Where the build of a version lies.
    pub fn build(&self, version: &str) -> Build {
        Build { dir: self.dir.join(format!("{version}-r{RECIPE}")) }
    }

    /// The newest build that has all that is wanted.
    pub fn find(&self, extent: Extent) -> Option<Build> {
        let suffix = format!("-r{RECIPE}");
        let entries = fs::read_dir(&self.dir).ok()?;
        let dirs = entries.flatten().filter(|e| e.file_name().to_string_lossy().ends_with(&suffix));
        let builds =
            dirs.map(|entry| Build { dir: entry.path() }).filter(|build| build.missing(extent).is_empty());
        builds.max_by_key(|build| fs::metadata(&build.dir).and_then(|about| about.modified()).ok())
    }
}

impl Build {
    /// A program that was built from source.
    pub fn program(&self, name: &str) -> PathBuf {
        self.dir.join("bin").join(name)
    }

    /// Unpacked packages that build, and the store.
    pub fn packages(&self) -> PathBuf {
        self.dir.join("packages")
    }

    /// Unpacked packages of a node.
    pub fn node_packages(&self) -> PathBuf {
        self.dir.join("node-packages")
    }

    /// The store's program.
    pub fn etcd(&self) -> PathBuf {
        self.packages().join("usr/bin/etcd")
    }

    /// What is not there yet.
    pub fn missing(&self, extent: Extent) -> Vec<PathBuf> {
        let mut wanted: Vec<PathBuf> = extent.programs().iter().map(|name| self.program(name)).collect();
        wanted.push(self.etcd());
        wanted.extend((extent == Extent::Cluster).then(|| self.node_packages()));
        wanted.retain(|path| !path.exists());
        wanted
    }
}

/// Makes a file or directory whole or not at all: `make` gets a fresh place beside it. Done already is done.
pub fn whole(path: &Path, make: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    if path.exists() {
        return Ok(());
    }
    let name = path.file_name().context("a place has a name")?.to_string_lossy().into_owned();
    let beside = path.with_file_name(format!("{name}.unfinished"));
    match fs::symlink_metadata(&beside) {
        Ok(about) if about.is_dir() => fs::remove_dir_all(&beside)?,
        Ok(_) => fs::remove_file(&beside)?,
        Err(_) => {}
    }
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    make(&beside)?;
    fs::rename(&beside, path).with_context(|| format!("cannot put {} in its place", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("weft-cache-test-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).unwrap();
        dir
    }

    #[test]
    fn an_interrupted_step_is_not_taken_for_done_and_starts_from_nothing() {
        let dir = scratch("interrupted");
        let place = dir.join("tree");
        let broken = whole(&place, |beside| {
            fs::create_dir(beside)?;
            fs::write(beside.join("half"), "")?;
            anyhow::bail!("the power went")
        });
        assert!(broken.is_err() && !place.exists());
        whole(&place, |beside| {
            assert!(!beside.exists(), "nothing of the first try is left");
            Ok(fs::create_dir(beside)?)
        })
        .unwrap();
        whole(&place, |_| panic!("it is done")).unwrap();
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_build_counts_only_with_all_that_is_wanted() {
        let cache = Cache { dir: scratch("find") };
        assert!(cache.find(Extent::ApiServer).is_none());
        let build = cache.build("1.0-1");
        for path in build.missing(Extent::ApiServer) {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            assert!(cache.find(Extent::ApiServer).is_none());
            fs::write(path, "").unwrap();
        }
        assert_eq!(cache.find(Extent::ApiServer).unwrap().dir, build.dir);
        assert!(cache.find(Extent::Cluster).is_none(), "nodes need more");
        fs::remove_dir_all(cache.dir).unwrap();
    }
}
