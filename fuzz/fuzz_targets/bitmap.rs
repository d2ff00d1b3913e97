//! libFuzzer drives the target `bitmap`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| holdfast_fuzz::run("bitmap", input));
