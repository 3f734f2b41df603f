//! Where the pods of this node really run: one JSON file per pod sandbox, written by whoever creates the network
//! namespace (a container runtime hook in a cluster, the lab on one machine).
//!
//! A file says `{"namespace", "name", "uid", "netns", "cgroup"}`; `netns` is a path that can be opened, `cgroup` the pod's
//! control group (v2). It is believed only as far as the namespace really holds the pod's address (see [`super::enrol`]).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;

use crate::model::WorkloadName;

/// One pod sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Sandbox {
    /// Kubernetes namespace.
    pub namespace: Arc<str>,
    /// Pod name.
    pub name: Arc<str>,
    /// Pod UID.
    pub uid: Arc<str>,
    /// Path of the network namespace.
    pub netns: PathBuf,
    /// Path of the control group.
    pub cgroup: PathBuf,
}

impl Sandbox {
    /// Namespace and name of the pod.
    pub fn workload_name(&self) -> WorkloadName {
        WorkloadName { namespace: self.namespace.clone(), name: self.name.clone() }
    }
}

/// All sandboxes that the directory tells of. A file that cannot be read is reported and left out; the others count.
pub fn read_dir(dir: &Path) -> (BTreeMap<Arc<str>, Sandbox>, Vec<String>) {
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
        match read
            .and_then(|text| serde_json::from_slice::<Sandbox>(&text).map_err(|error| error.to_string()))
        {
            Ok(sandbox) => {
                found.insert(sandbox.uid.clone(), sandbox);
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
}
