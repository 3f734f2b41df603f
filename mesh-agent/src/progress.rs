//! What is in force on this node, and telling control of it.
//!
//! Layer 4, off every connection's path. Discovery says which version of each route, policy and settings object it has
//! published, capture says what stands in the kernel; a version that stands in both is in force. Control counts the nodes
//! that say so and writes it on the object, where its author looks.
//!
//! It never decides anything, reads no object, and an agent that cannot tell goes on as it is.
//!
//! Reading order: `in_force` (which versions), [`wire`] (the words), `series` (one report after the other), `teller` (when).
#![forbid(unsafe_code)]

mod in_force;
mod series;
mod teller;
pub mod wire;

use tokio::sync::watch;

use crate::identity::line::Line;
use crate::lifecycle::{Shutdown, tasks};
use crate::model::{Publication, Versions};

/// Tells control what is in force, until shutdown. `versions` is discovery's, `in_kernel` capture's.
pub fn start(
    line: Line,
    versions: watch::Receiver<Versions>,
    in_kernel: watch::Receiver<Publication>,
    shutdown: Shutdown,
) {
    let teller = teller::Teller::new(line, in_force::InForce::new(versions, in_kernel));
    tasks::spawn("progress", async move {
        tokio::select! {
            () = shutdown.requested() => {}
            () = teller.run() => {}
        }
    });
}
