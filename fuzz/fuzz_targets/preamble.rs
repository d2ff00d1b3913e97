//! libFuzzer drives the target `preamble`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| holdfast_fuzz::run("preamble", input));
