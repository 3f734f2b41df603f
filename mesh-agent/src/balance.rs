//! Which endpoint takes the connection? Pure: randomness and the count of open connections are arguments.
//!
//! Layer 2, a deciding room, asked after policy has been and before the tunnel is taken. It never opens a connection,
//! never learns why an endpoint is or is not ready, and allocates nothing on the way to an answer.
//!
//! Reading order: `preference` (which endpoints are in question at all), `pick` (one of them), `open` (how many
//! connections each has).
#![forbid(unsafe_code)]

use crate::model::Workload;

mod open;
mod pick;
mod preference;

pub use open::{Open, OpenConnections};
pub use pick::pick;
pub use preference::preferred;

/// Where the client stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Locality<'a> {
    /// Its node.
    pub node: &'a str,
    /// Its node's zone, if known.
    pub zone: Option<&'a str>,
}

impl<'a> Locality<'a> {
    /// Of a pod.
    pub fn of(workload: &'a Workload) -> Self {
        Self { node: &workload.node, zone: workload.zone.as_deref() }
    }
}
