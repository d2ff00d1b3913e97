//! libFuzzer drives the target `handshake`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| holdfast_fuzz::run("handshake", input));
