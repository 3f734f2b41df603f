//! What became of an object, written on it: conditions on routes, policies and the mesh's settings.
//!
//! Only the leader writes, and only what differs: while nothing changes there are open watches and no request. Entries of
//! other controllers are never touched, and the time of a condition stays while its status does. Everything is decided
//! from what was seen; a write carries the resourceVersion that was looked at, so of two writers one has to look again.
//!
//! Reading order: `conditions` (how a list of conditions follows on another), `programmed` (on how many nodes),
//! `routes`, `policies`, `mesh` (what is said of each kind), `xmesh` (Gateway API's word for the mesh: made where there is none), `objects`
//! (the objects as they are), [`writer`] (when it is written).

mod conditions;
mod mesh;
mod objects;
mod policies;
mod programmed;
mod routes;
pub mod writer;
mod xmesh;

pub use writer::{Writer, start};
