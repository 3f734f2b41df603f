//! What does a pod's owner learn? Kubernetes Events on pods that were asked into the mesh and are not in it.
//!
//! Layer 5, beside the proxy. Capture says what is wrong with which pod; here it becomes what `kubectl describe pod` shows.
//! Nobody decides by it, and nothing waits for it: an API that is away or refuses costs the pods a sentence and the agent
//! nothing. A node writes one Event a second at most (10 at once), and none while nothing changes.
//!
//! Reading order: [`book`] (what there is to say; pure), [`event`] (how it looks as an object; pure), [`writer`] (when it is
//! written).
#![forbid(unsafe_code)]

pub mod book;
pub mod event;
#[cfg(test)]
mod tests;
pub mod writer;

pub use writer::start;
