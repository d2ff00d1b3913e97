//! libFuzzer drives the target `activity_log`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| holdfast_fuzz::run("activity_log", input));
