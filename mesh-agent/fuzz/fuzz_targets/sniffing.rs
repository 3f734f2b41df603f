//! Runs `promises/sniffing.rs` on arbitrary bytes.
#![no_main]

#[path = "../promises/sniffing.rs"]
mod promise;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| promise::check(bytes));
