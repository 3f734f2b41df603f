//! `meshctl install` and `meshctl uninstall`: Weft into a cluster, and out of it.
//!
//! What is installed are the files of `deploy/`, which are inside this binary: the same that `kubectl apply -k` takes.
//!
//! Reading order: [`manifests`] (the files, put together), [`merge`] (how an overlay changes them), [`settings`] (`--set`,
//! and what an older Kubernetes cannot take), [`apply`] (to the API server), [`wait`] (until it runs), [`uninstall`].

mod apply;
pub(super) mod manifests;
mod merge;
mod settings;
mod uninstall;
mod wait;

#[cfg(test)]
mod tests;

use std::io::Write;

use super::cluster::Cluster;
use super::commands::yaml;
use super::flags::{InstallFlags, Meshctl};
use super::{Error, Found};
pub(super) use uninstall::run as uninstall;
use wait::Patience;

/// Carries out `meshctl install`.
pub(super) fn run(line: &Meshctl, flags: &InstallFlags, out: &mut dyn Write) -> Result<Found, Error> {
    let mut objects = manifests::render(flags.overlay.as_deref())?;
    settings::set(&mut objects, &flags.set)?;
    if flags.dry_run {
        for object in &objects {
            write!(out, "---\n{}", yaml(object)?)?;
        }
        return Ok(Found::Good);
    }
    let cluster = Cluster::connect(&line.cluster)?;
    let patience = Patience::of(&flags.timeout)?;
    let minor = cluster.wait(apply::minor_version(&cluster))?;
    settings::suit(&mut objects, minor);
    cluster.wait(apply::all(&cluster, &objects, flags.force_conflicts, patience, out))?;
    if !flags.wait {
        return Ok(Found::Good);
    }
    let ready = cluster.wait(wait::until_ready(&cluster, patience, out))?;
    if ready {
        writeln!(out, "Weft runs. Label a namespace: kubectl label namespace NAME weft.dev/mesh=enabled")?;
        return Ok(Found::Good);
    }
    Ok(Found::Bad)
}
