//! Weft's kernel programs: what happens to a pod's socket before any byte of it moves.
//!
//! In the order in which one connection meets them:
//! [`connect`] (verdict and rewrite), [`datagram`] (the same for UDP), [`established`] (records for the agent, pairs
//! sockets), [`inbound`] (steers arrivals to the agent), [`splice`] (moves payload between paired sockets),
//! [`guard`] (answers two calls that paired sockets cannot serve),
//! [`peername`] (shows the application the address it expects). [`maps`] holds everything they share, [`ctx`] every
//! raw read.
//!
//! No program ever returns a drop for a lookup that misses where bytes are already flowing; refusals happen at
//! connect and at inbound only, and each is counted with its reason.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod connect;
mod ctx;
mod datagram;
mod established;
mod guard;
mod inbound;
mod maps;
mod peername;
mod splice;

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier proves this unreachable: a program that could get here does not load.
    loop {}
}

// SAFETY: the section name is what the loader looks for; nothing else has it.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
