//! Bugs planted to test the checkers: each switches one rule off, and the run must say so.

use holdfast_replicator::Planted;

/// Every bug, with the guarantees whose checkers may be the ones to catch it.
pub const ALL: [(Planted, &[&str]); 10] = [
    (Planted::AckBeforePeers, &["G1", "G2", "G6"]),
    (Planted::ResyncWithoutLock, &["G1", "G4", "G7"]),
    (Planted::ClearBitsOnAttach, &["G1", "G4", "G7"]),
    (Planted::ServeBeforeReconcile, &["G1", "G6"]),
    (Planted::PromiseUnstored, &["G1", "G2", "G6"]),
    (Planted::EvictWithoutTrace, &["G1", "G4"]),
    (Planted::GrowWithoutFlush, &["G1", "G4"]),
    (Planted::ReadWithoutLock, &["G1", "G6"]),
    (Planted::FlushLocally, &["G1"]),
    (Planted::AckBeforeShrink, &["G1", "G2"]),
];

/// The bug of this name.
pub fn find(name: &str) -> Option<Planted> {
    ALL.iter().map(|(p, _)| *p).find(|p| format!("{p:?}") == name)
}
