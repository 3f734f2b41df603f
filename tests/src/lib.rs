//! Harness of the end-to-end tests: a small world, real agents, real kernel programs, and programs in pods that say what
//! they see.
//!
//! Reading order: [`world`] (what a test asks for), [`lab`] (the running lab: pods, agents, faults, and its end, always),
//! [`probe`] (a program in a pod that a test drives), [`wire`] (how the two talk), [`seen`] (metrics and access records),
//! [`traffic`] (streams that find their own faults), [`http`] (HTTP as servers and clients see it), [`api`] (a small Kubernetes
//! API server with faults on order), [`control`] (a control plane over it), [`cluster`] (a real Kubernetes of two nodes), [`wait`] (patience). The
//! probe's own program is `src/bin/weft-probe.rs`.
//!
//! Nothing here skips: a test that lacks root fails and says which command to use.

pub mod world;

pub mod api;

pub mod http;

pub mod lab;

pub mod cluster;

pub mod control;

pub mod probe;

pub mod wire;

pub mod seen;

pub mod traffic;

pub mod wait;

pub use api::ApiServer;
pub use cluster::Cluster;
pub use http::{Ask, Backend, Web};
pub use lab::Lab;
pub use probe::{Probe, Refusal};
pub use wait::eventually;
pub use world::World;
