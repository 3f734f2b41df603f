//! When things happen: the clock, who owns a task, when to look at files again, when the process is ready, and how it
//! stops, and how long to stay away from what has failed.
//!
//! Layer 1. The only room that may ask for the time; everywhere else time is an argument. Nothing here knows what a
//! connection is.
//!
//! Reading order: [`clock`], [`tasks`], [`file_event`], [`readiness`], [`shutdown`], [`bucket`], [`back_off`].
#![forbid(unsafe_code)]

pub mod back_off;
pub mod bucket;
pub mod clock;
pub mod file_event;
pub mod readiness;
pub mod shutdown;
pub mod tasks;

pub use bucket::Bucket;
pub use readiness::{Block, Readiness};
pub use shutdown::{Shutdown, Trigger};
