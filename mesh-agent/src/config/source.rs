//! Flags that say where the mesh's objects come from, to settings of discovery.

use super::checks::Checks;
use super::flags::SourceFlags;
use crate::discovery;

/// Exactly one source. Whether the API can be reached is not asked here: an agent starts while it is away.
pub(super) fn settings(checks: &mut Checks, flags: SourceFlags) -> discovery::Settings {
    let SourceFlags { config_dir, kubernetes, access } = flags;
    match (&config_dir, kubernetes) {
        (None, false) => {
            checks.refuse("--config-dir", "missing; name the directory of objects, or write --kubernetes");
        }
        (Some(_), true) => {
            checks.refuse("--kubernetes", "does not go with --config-dir; name one source of objects");
        }
        (Some(dir), false) => {
            checks.directory("--config-dir", dir, "the directory that holds the mesh's objects");
        }
        (None, true) => {}
    }
    if let Some(path) = &access.kubeconfig {
        checks.readable_file("--kubeconfig", path, "the kubeconfig of the cluster");
    }
    match config_dir {
        Some(dir) => discovery::Settings::Directory(dir),
        None => discovery::Settings::Kubernetes(access.access()),
    }
}
