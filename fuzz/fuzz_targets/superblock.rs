//! libFuzzer drives the target `superblock`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| holdfast_fuzz::run("superblock", input));
