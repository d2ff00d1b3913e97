//! libFuzzer drives the target `nbd`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| holdfast_fuzz::run("nbd", input));
