//! Weft: a service mesh with one agent per node. See `ARCHITECTURE.md` for the walk of one connection.
//!
//! Rooms stand in strict layers; `tests/layers.rs` reads this table and the `use crate::` lines of every file and fails
//! on an import that goes up or sideways without being listed here.
//!
//! | layer | room | may use |
//! |---|---|---|
//! | 0 | model | - |
//! | 1 | telemetry | model |
//! | 1 | lifecycle | - |
//! | 2 | registry | model |
//! | 2 | policy | model |
//! | 2 | route | model |
//! | 2 | balance | model |
//! | 3 | identity | model, telemetry, lifecycle |
//! | 3 | discovery | model, telemetry, lifecycle, registry, policy, route |
//! | 3 | kernel | model, telemetry, lifecycle |
//! | 4 | progress | model, lifecycle, identity |
//! | 4 | capture | model, telemetry, lifecycle, registry, policy, route, balance, kernel |
//! | 5 | proxy | model, telemetry, lifecycle, registry, policy, route, balance, identity, capture |
//! | 5 | notices | model, lifecycle, capture |
//! | 6 | control | model, telemetry, lifecycle, registry, policy, route, identity, discovery, progress |
//! | 6 | admin | model, telemetry, lifecycle, registry, policy, route, identity, kernel, capture, proxy |
//! | 7 | config | model, telemetry, lifecycle, registry, policy, route, balance, identity, discovery, kernel, capture, proxy, control, admin |
//! | 8 | agent | all |
//! | 8 | cli | all |

pub mod admin;
pub mod agent;
pub mod balance;
pub mod capture;
pub mod cli;
pub mod config;
pub mod control;
pub mod discovery;
pub mod identity;
pub mod kernel;
pub mod lifecycle;
pub mod model;
pub mod notices;
pub mod policy;
pub mod progress;
pub mod proxy;
pub mod registry;
pub mod route;
pub mod telemetry;
