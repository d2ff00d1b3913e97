//! libFuzzer drives the target `wire_frames`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| holdfast_fuzz::run("wire_frames", input));
