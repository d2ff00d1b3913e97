//! Disks that hang, fail, are slow or are other disks (F20 to F23).

use super::*;

/// F20: the primary's disk hangs for half a second (nothing), and for long (another serves).
#[test]
fn f20_primary_disk_hangs() {
    for seed in SEEDS {
        let mut p = play(seed, 2, 1);
        let (a, b, epoch) = (p.primary(), p.secondary(), p.epoch());
        p.hang(a, 500);
        p.run(3_000);
        assert_eq!((p.serves(), p.epoch()), (Some(a), epoch));
        p.hang(a, 15_000);
        assert!(p.until(2 * TAKEOVER_MS, |p| p.serves() == Some(b)));
        p.well();
    }
}

/// F20: a secondary's disk hangs: it is removed, and taken in again when it answers.
#[test]
fn f20_secondary_disk_hangs() {
    for seed in SEEDS {
        let mut p = play(seed, 2, 1);
        let (a, b, epoch) = (p.primary(), p.secondary(), p.epoch());
        p.hang(b, 10_000);
        assert!(p.until(6_000, |p| !p.is_member(b)));
        assert!(p.until(30_000, |p| p.is_member(b)));
        assert_eq!((p.serves(), p.epoch()), (Some(a), epoch));
        p.well();
    }
}

const WRITES_FAIL: Errors = Errors {
    write: Ratio::new(1, 1),
    ..Errors::NONE
};
const FLUSHES_FAIL: Errors = Errors {
    flush: Ratio::new(1, 1),
    ..Errors::NONE
};
const READS_FAIL: Errors = Errors {
    read: Ratio::new(1, 1),
    ..Errors::NONE
};

/// F21: a secondary's disk fails on write, on flush: it is removed; with another disk it is filled again.
#[test]
fn f21_secondary_disk_fails() {
    for seed in SEEDS {
        for errors in [WRITES_FAIL, FLUSHES_FAIL] {
            let mut p = play(seed, 2, 1);
            let (a, b, epoch) = (p.primary(), p.secondary(), p.epoch());
            p.errors(b, errors, 6_000);
            assert!(p.until(5_000, |p| !p.is_member(b)));
            assert_eq!((p.serves(), p.epoch()), (Some(a), epoch));
            p.well();
        }
    }
}

/// F21: the primary's disk fails on write, flush or read: it goes on through the other member.
#[test]
fn f21_primary_disk_fails() {
    for seed in SEEDS {
        for errors in [WRITES_FAIL, FLUSHES_FAIL, READS_FAIL] {
            let mut p = play(seed, 2, 1);
            let (a, epoch) = (p.primary(), p.epoch());
            p.errors(a, errors, 20_000);
            p.run(5_000);
            assert_eq!((p.serves(), p.epoch()), (Some(a), epoch));
            p.well();
        }
    }
}

/// F22: a node comes back with a blank disk, a secondary or the primary: it is recognised, not promoted, and filled.
#[test]
fn f22_blank_disk() {
    for seed in SEEDS {
        let mut p = play(seed, 2, 1);
        let (a, b) = (p.primary(), p.secondary());
        p.0.replace_disk(b, 1_000 * MS);
        p.run(3_000);
        assert_eq!(p.serves(), Some(a));
        p.well();
        let mut p = play(seed, 2, 1);
        let (a, b) = (p.primary(), p.secondary());
        p.0.replace_disk(a, 1_000 * MS);
        assert!(p.until(TAKEOVER_MS, |p| p.serves() == Some(b)));
        p.well();
    }
}

/// F23: a secondary's disk is thirty times slower: the primary waits for it, and drops it if need be; nobody fails over.
#[test]
fn f23_slow_secondary() {
    for seed in SEEDS {
        let mut p = play(seed, 2, 1);
        let (a, b, epoch) = (p.primary(), p.secondary(), p.epoch());
        if let Some(disk) = &mut p.0.nodes[b].disk {
            disk.latency.spread_ns *= 30;
        }
        p.run(8_000);
        assert_eq!((p.serves(), p.epoch()), (Some(a), epoch));
        p.well();
    }
}
