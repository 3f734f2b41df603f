//! The wait for the turn: during an update the new agent of a node gets ready beside the old one, which serves until then.
//!
//! What can be had beforehand is: the mesh's objects, the trust bundle, and the certificates of the pods that the new agent is
//! going to have. What has one owner waits: the kernel's tables, the listeners in the pods, the windows' address.

use std::time::Duration;

use tokio::sync::oneshot;

use super::Error;
use crate::capture::sandbox::Sandboxes;
use crate::identity::Identities;
use crate::kernel::turn::{Turn, Waiting};
use crate::lifecycle::{Block, Shutdown, clock};
use crate::registry::Registry;

/// How often the pods are looked at meanwhile.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// What the wait is spent with.
#[derive(Debug)]
pub(super) struct Standby<'a> {
    /// This node.
    pub node: &'a str,
    /// Where its pods are.
    pub sandboxes: &'a mut Sandboxes,
    /// The mesh.
    pub registry: &'a Registry,
    /// Whose certificates are fetched.
    pub identities: &'a Identities,
    /// How long they hold readiness back.
    pub certificates_wait: Duration,
}

impl Standby<'_> {
    /// Waits for the turn; `None` when the process is to stop. `blocks` are let go once nothing is missing but the turn.
    ///
    /// # Errors
    /// The kernel refuses the lock.
    pub(super) async fn wait(
        &mut self,
        waiting: Waiting,
        blocks: Vec<Block>,
        shutdown: &Shutdown,
    ) -> Result<Option<Turn>, Error> {
        tracing::info!("another agent of this node has the pods; getting ready to take over");
        let (taken, turn) = oneshot::channel();
        // Not on the runtime: it would wait for this thread at its end.
        let wait = move || drop(taken.send(waiting.wait()));
        std::thread::Builder::new().name("turn".to_owned()).spawn(wait).map_err(Error::Runtime)?;
        tokio::select! {
            biased;
            () = shutdown.requested() => Ok(None),
            turn = turn => Ok(turn.ok().transpose()?),
            never = self.prepare(blocks) => match never {},
        }
    }

    async fn prepare(&mut self, blocks: Vec<Block>) -> std::convert::Infallible {
        let deadline = clock::now() + self.certificates_wait;
        let mut blocks = Some(blocks);
        loop {
            let look = self.sandboxes.look(&self.registry.snapshot(), self.node);
            let wanted: std::collections::HashSet<_> =
                look.sandboxes.values().map(|(_, workload)| workload.identity.clone()).collect();
            let is_complete = wanted.iter().all(|id| self.identities.client_config(id).is_some());
            self.identities.set_wanted(wanted);
            if blocks.is_some() && (is_complete || clock::now() >= deadline) {
                tracing::info!(is_complete, "ready to take over");
                blocks = None;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}
