//! What the tests of HTTP stand on: a server in a pod that tells what it received, and connections of a pod in the test's
//! own hands.
//!
//! Reading order: [`hand`] (sockets made in a pod), [`web`] (requests over them), [`answer`] (what comes back), [`backend`]
//! (a server in a pod and its words), [`plan`] (how that server can be told to behave), [`server`], [`websocket`], [`grpc`]
//! (what it serves), [`interop`] (the cases of the public gRPC interoperability list), [`raw`] (HTTP/1 as bytes), [`frames`]
//! (HTTP/2 as frames), [`routes`] (routes as YAML), [`stage`], [`scene`] and [`guarded`] (labs with all of it). The server's own program is
//! `src/bin/weft-http.rs`.

pub mod hand;

pub mod web;

pub mod answer;

pub mod backend;

pub mod plan;

pub mod server;

pub mod websocket;

pub mod grpc;

pub mod interop;

pub mod raw;

pub mod frames;

pub mod routes;

pub mod guarded;

pub mod scene;

pub mod stage;

pub use answer::Answer;
pub use backend::Backend;
pub use hand::Hand;
pub use stage::{Path, Stage};
pub use web::{Ask, Session, Web};
