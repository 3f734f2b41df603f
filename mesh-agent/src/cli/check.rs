//! `meshctl check`: is all well, and if not, what is wrong and what mends it?
//!
//! A look *fails* when something the mesh promises does not hold; it *warns* when the promise holds, but less well than it
//! could (the fast path is off, records were dropped).
//!
//! Reading order: [`look`] (what one look finds, and how it is printed), [`agent`] (one agent), [`mesh`] (all of an
//! installation), [`before`] (a cluster before one), [`host`] (the machine that this runs on).

mod agent;
mod before;
mod host;
mod look;
mod mesh;

use std::io::Write;

use super::client::Agent;
use super::cluster::Cluster;
use super::flags::{CheckFlags, Meshctl};
use super::{Error, Found};

/// Looks at what the command line names and prints what was found.
pub(super) fn run(line: &Meshctl, flags: &CheckFlags, out: &mut dyn Write) -> Result<Found, Error> {
    let findings = if flags.host {
        host::looks()
    } else if flags.pre {
        before::looks(&Cluster::connect(&line.cluster)?)
    } else if line.cluster.is_asked() && line.cluster.node.is_none() && line.cluster.pod.is_none() {
        mesh::looks(&Cluster::connect(&line.cluster)?)?
    } else {
        agent::looks(&Agent::named(line)?)?
    };
    look::print(line.output, &findings, out)
}
