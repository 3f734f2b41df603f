//! A directory of objects for tests.

use std::fs;
use std::path::PathBuf;

use tempfile::TempDir;

use super::Source as _;
use super::compile::{Compiled, compile};
use super::files::Source;

/// A directory that is removed at the end of the test, and a source that reads it.
pub(super) struct World {
    dir: TempDir,
    source: Source,
}

impl World {
    /// With these files, not read yet.
    pub(super) fn new(files: &[(&str, &str)]) -> Self {
        let dir = TempDir::new().unwrap();
        let source = Source::new(dir.path().to_owned());
        let world = Self { dir, source };
        for (name, text) in files {
            world.write(name, text);
        }
        world
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(super) fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    pub(super) fn remove(&self, name: &str) {
        fs::remove_file(self.path(name)).unwrap();
    }

    /// Reads every file again and compiles; problems as text, with file names relative to the directory.
    pub(super) fn load(&mut self) -> (Compiled, Vec<String>) {
        self.source.refresh(true).unwrap();
        let compiled = compile(self.source.objects());
        let prefix = format!("{}/", self.dir.path().display());
        let problems = self.source.problems(&compiled.findings);
        let problems = problems.iter().map(|problem| problem.to_string().replace(&prefix, "")).collect();
        (compiled, problems)
    }

    pub(super) fn source(&mut self) -> &mut Source {
        &mut self.source
    }

    /// Names of the objects in force, `Kind namespace/name`.
    pub(super) fn keys(&self) -> Vec<String> {
        use super::objects::Kind::*;
        let kinds =
            [Namespace, Node, ServiceAccount, Pod, Service, EndpointSlice, MeshConfig, AuthorizationPolicy];
        let objects = self.source.objects();
        kinds.iter().flat_map(|kind| objects.of_kind(*kind)).map(|(key, _)| key.to_string()).collect()
    }
}

/// A running pod in namespace `shop`, with label `app` like its name.
pub(super) fn pod(name: &str, ip: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, labels: {{app: {name}}}}}\n\
         spec: {{nodeName: node-1, containers: [{{name: c, image: i}}]}}\nstatus: {{podIP: {ip}}}\n"
    )
}
