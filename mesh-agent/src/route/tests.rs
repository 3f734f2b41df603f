//! Tests of the room: what upstream's suites ask of a mesh (`replay`), then each question by itself, then what must hold
//! for all routes and requests (`properties`) and what a search may cost (`cost`).

mod cors;
mod cost;
mod fixtures;
mod order;
mod paths;
mod properties;
mod reference;
mod replay;
mod requests;
mod streams;
mod tables;
