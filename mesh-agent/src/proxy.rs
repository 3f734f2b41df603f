//! The journey of one connection through this agent, in both directions.
//!
//! Layer 5, stations 4 to 13 of the walk.
#![forbid(unsafe_code)]

pub mod carrier;
pub mod open;
pub mod relay;
pub mod tls;
pub mod tunnel;

#[cfg(test)]
mod testing;
