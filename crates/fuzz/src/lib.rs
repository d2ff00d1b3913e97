//! Every decoder that an outsider's byte can reach, each as a function that takes any bytes and panics
//! where a promise is broken.
//!
//! One body, two drivers: the packages under `fuzz/` run it under libFuzzer, this crate's tests run it over
//! the committed corpus and over mutations of it, so that every test run exercises it.
//!
//! Invariants of every body
//! - it is a pure function of its input: no clock, no randomness, nothing kept between two calls;
//! - checksums are no obstacle: the first byte says whether they are made right before decoding, for
//!   whoever can send bytes can compute them too;
//! - it asserts more than "no panic": what is decoded encodes again, and claims stay within limits.

#![forbid(unsafe_code)]

pub mod corpus;
mod meta;
mod nbd;
mod text;
mod wire;

/// A decoder under test.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name: of the libFuzzer program and of the corpus folder.
    pub name: &'static str,
    /// Takes any bytes; panics if something is wrong with the decoder.
    pub body: fn(&[u8]),
    /// Inputs from which mutation starts.
    pub seeds: fn() -> Vec<(String, Vec<u8>)>,
}

/// All of them.
pub const TARGETS: [Target; 11] = [
    target("wire_frames", wire::frames, corpus::wire_frames),
    target("preamble", wire::preamble, corpus::preamble),
    target("handshake", wire::handshake, corpus::handshake),
    target("superblock", meta::superblock, corpus::superblock),
    target("activity_log", meta::activity_log, corpus::activity_log),
    target("bitmap", meta::bitmap, corpus::bitmap),
    target("region", meta::region, corpus::region),
    target("nbd", nbd::session, corpus::nbd),
    target("config", text::config, corpus::config),
    target("api", text::api, corpus::api),
    target("control", text::control, corpus::control),
];

const fn target(
    name: &'static str,
    body: fn(&[u8]),
    seeds: fn() -> Vec<(String, Vec<u8>)>,
) -> Target {
    Target { name, body, seeds }
}

/// Runs the body of this name.
///
/// # Panics
/// If there is no such target, or the body finds something.
pub fn run(name: &str, input: &[u8]) {
    let target = TARGETS
        .iter()
        .find(|t| t.name == name)
        .expect("a target of this crate");
    (target.body)(input);
}

/// The first byte of an input, its switches, and the rest.
fn switches(input: &[u8]) -> (u8, &[u8]) {
    input
        .split_first()
        .map_or((0, input), |(&s, rest)| (s, rest))
}
