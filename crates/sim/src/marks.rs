//! Rare things that a run of many seeds must have reached: a swarm that never fails over in the middle of a resync proves
//! nothing about it. This is the one list; [`missing`] is what fails the run.
//!
//! Marks are set by whoever sees the thing happen from outside: the frames on the wire, what the state machines say, the notes
//! they emit. Nothing in them exists for the marks.

use std::collections::BTreeMap;

/// Every seed in so many must, taken over a run of at least [`SEEDS_MIN`], have reached all of them.
pub const SEEDS_MIN: u64 = 1000;

/// What must be reached.
pub const REQUIRED: [&str; 53] = [
    // failover
    "promoted",
    "reconciled",
    "reconcile with two survivors",
    "failover during resync",
    "struck while opening",
    "candidate withdrawn",
    "an unclean member serves",
    "stepped down: lease lost",
    "stepped down: handed over",
    "stepped down: disk failed",
    "fencer acted",
    "all power cut",
    "promise refused a frame",
    // set changes
    "member lost",
    "member slow",
    "member synced",
    "member restarted",
    "member invalidated",
    "member's disk failed",
    "crash during shrink",
    "crash during grow",
    "all absent peers at once",
    "bitmap hand-over",
    "member dismissed",
    "removed replica forgotten",
    "replica added again",
    "grown told to a third node",
    // data path
    "log wrap",
    "slot starvation",
    "reconnect resend",
    "write landed after its daemon died",
    "late write landed in part",
    "close with a smaller set",
    // resync
    "resync complete",
    "resync found equal blocks",
    "resync of zeroes",
    "resync interrupted",
    "crash of a syncing replica",
    "verify ended",
    "repaired",
    "rot found by verify",
    // disks and nodes
    "disk failed",
    "disk replaced",
    "failed disk repaired",
    "disk stalled",
    "bad sector",
    "no space",
    "disk lies about flushes",
    "replica stopped in good order",
    "control state lost",
    "voter admitted anew",
    "paused",
    "partition",
];

/// What no seed reached.
pub fn missing(reached: &BTreeMap<&'static str, u64>) -> Vec<&'static str> {
    REQUIRED
        .into_iter()
        .filter(|mark| !reached.contains_key(mark))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_reached_is_named() {
        let mut reached: BTreeMap<&'static str, u64> = REQUIRED.iter().map(|m| (*m, 1)).collect();
        assert!(missing(&reached).is_empty());
        reached.remove("log wrap");
        assert_eq!(missing(&reached), ["log wrap"]);
        let mut unique = REQUIRED.to_vec();
        unique.sort_unstable();
        unique.dedup();
        assert_eq!(unique.len(), REQUIRED.len());
    }
}
