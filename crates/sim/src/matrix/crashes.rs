//! Machines and daemons that die, stop and come back (F1 to F8, F24 to F30, F40).

use super::*;

/// F1: the primary's machine loses power; the other serves in bounded time.
#[test]
fn f01_power_cut_of_the_primary() {
    for seed in SEEDS {
        let mut p = play(seed, 2, 1);
        let (a, b) = (p.primary(), p.secondary());
        p.power_cut(a, 10_000);
        assert!(p.until(TAKEOVER_MS, |p| p.serves() == Some(b)));
        p.well();
    }
}

/// F2: a secondary loses power under load; it is removed and the primary goes on in its epoch.
#[test]
fn f02_power_cut_of_a_secondary() {
    for seed in SEEDS {
        let mut p = play(seed, 2, 1);
        let (a, b, epoch) = (p.primary(), p.secondary(), p.epoch());
        p.power_cut(b, 5_000);
        assert!(p.until(3_000, |p| !p.is_member(b)));
        assert!(
            p.until(20_000, |p| p.is_member(b)),
            "it comes back by itself"
        );
        assert_eq!((p.serves(), p.epoch()), (Some(a), epoch));
        p.well();
    }
}

/// F3: both data nodes lose power at once and return in either order. The last in-sync set decides: who was removed
/// before does not serve, however early it is back.
#[test]
fn f03_both_data_nodes_lose_power() {
    for seed in SEEDS {
        for (a_back, b_back) in [(500, 6_000), (6_000, 500)] {
            let mut p = play(seed, 2, 1);
            let (a, b) = (p.primary(), p.secondary());
            p.power_cut(a, a_back);
            p.power_cut(b, b_back);
            p.run(8_000);
            p.well();
        }
        let mut p = play(seed, 2, 1);
        let (a, b) = (p.primary(), p.secondary());
        p.kill(b, 6_000);
        assert!(p.until(3_000, |p| !p.is_member(b)));
        p.run(1_000);
        p.power_cut(a, 12_000);
        p.run(11_000);
        assert_ne!(p.serves(), Some(b), "it was removed");
        assert!(p.until(TAKEOVER_MS, |p| p.serves() == Some(a)));
        p.well();
    }
}

/// F4: everything loses power, with torn writes on all disks; it comes up without anybody's help.
#[test]
fn f04_whole_cluster_loses_power() {
    for seed in SEEDS {
        let mut p = play(seed, 3, 0);
        for n in 0..3 {
            p.power_cut(n, 300 + 700 * n as u64);
        }
        assert!(p.until(15_000, |p| p.serves().is_some()));
        p.well();
    }
}

/// F5: kill -9 of the witness's daemon (nothing), of the secondary's (resync), of the primary's (the other serves).
#[test]
fn f05_kill_of_a_daemon() {
    for seed in SEEDS {
        let mut p = play(seed, 2, 1);
        let (a, b, epoch) = (p.primary(), p.secondary(), p.epoch());
        p.kill(2, 3_000);
        p.run(4_000);
        assert_eq!((p.serves(), p.epoch()), (Some(a), epoch));
        p.kill(b, 1_000);
        assert!(p.until(3_000, |p| !p.is_member(b)));
        assert!(p.until(10_000, |p| p.is_member(b)));
        assert_eq!((p.serves(), p.epoch()), (Some(a), epoch));
        p.kill(a, 8_000);
        assert!(p.until(TAKEOVER_MS, |p| p.serves() == Some(b)));
        p.well();
    }
}

/// F6: the primary's daemon is stopped for half a lease, one lease, ten leases, and goes on.
#[test]
fn f06_stopped_primary() {
    for seed in SEEDS {
        for ms in [900, 2_000, 20_000] {
            let mut p = play(seed, 2, 1);
            let (a, b) = (p.primary(), p.secondary());
            p.pause(a, ms);
            if ms == 20_000 {
                assert!(p.until(TAKEOVER_MS, |p| p.serves() == Some(b)));
            }
            p.run(ms + 2_000);
            p.well();
        }
    }
}

/// F24: a voter comes back without its control state, a witness or a data node: it is taken in anew.
#[test]
fn f24_control_state_lost() {
    for seed in SEEDS {
        for n in [0, 2] {
            let mut p = play(seed, 2, 1);
            p.0.lose_state(n);
            p.run(15_000);
            assert!(p.0.trace.marks().contains_key("voter admitted anew"));
            p.well();
        }
    }
}

/// F25: a majority of the voters is gone: nothing is served, and nothing is lost when they are back.
#[test]
fn f25_majority_gone() {
    for seed in SEEDS {
        let mut p = play(seed, 2, 1);
        let (a, b) = (p.primary(), p.secondary());
        p.power_cut(b, 15_000);
        p.power_cut(2, 15_000);
        assert!(p.until(TAKEOVER_MS, |p| !p.0.nodes[a].host.any()), "freeze");
        p.run(5_000);
        assert_eq!(p.serves(), None);
        p.well();
    }
}

/// F26: the successor dies at any step of its promotion.
#[test]
fn f26_crash_at_each_step_of_a_promotion() {
    for step in 0..16 {
        let mut p = play(step, 2, 1);
        let (a, b) = (p.primary(), p.secondary());
        p.kill(a, 9_000);
        // With its fencer's report the other takes over at once.
        p.run(5 + step * 25);
        p.kill(b, 400);
        p.well();
    }
}

/// F26: the primary dies at any step of a removal and of a return.
#[test]
fn f26_crash_at_each_step_of_a_set_change() {
    for step in 0..16 {
        let mut p = play(step, 3, 0);
        let (a, b) = (p.primary(), p.secondary());
        p.kill(b, 500);
        p.run(250 + step * 60);
        p.power_cut(a, 3_000);
        p.well();
    }
}

/// F27: the primary dies while a secondary is being resynced: that one is not promoted.
#[test]
fn f27_source_dies_during_resync() {
    for seed in SEEDS {
        let mut p = play(seed, 2, 1);
        let (a, b) = (p.primary(), p.secondary());
        p.power_cut(b, 1_500);
        assert!(p.until(3_000, |p| !p.is_member(b)));
        assert!(p.until(5_000, |p| p.0.nodes[b].up()));
        p.power_cut(a, 8_000);
        assert!(!p.is_member(b));
        p.run(7_000);
        assert_ne!(p.serves(), Some(b));
        p.well();
    }
}

/// F29: the successor is struck as soon as it serves; and a ping-pong of three.
#[test]
fn f29_second_failure_during_failover() {
    for seed in SEEDS {
        let mut p = play(seed, 3, 0);
        for _ in 0..3 {
            let (a, epoch) = (p.primary(), p.epoch());
            p.power_cut(a, 2_000);
            assert!(p.until(2 * TAKEOVER_MS, |p| p.serves().is_some_and(|n| n != a)));
            assert_eq!(p.epoch(), epoch + 1, "one epoch per hop");
            assert!(
                p.until(12_000, |p| p.members().len() == 3),
                "redundant again"
            );
        }
        p.well();
    }
    for seed in SEEDS {
        let mut p = play(seed, 3, 0);
        let a = p.primary();
        p.power_cut(a, 12_000);
        p.until(TAKEOVER_MS, |p| p.epoch() > 1);
        let next = p.0.checks.promotion.committed().and_then(|v| v.primary);
        let next = usize::from(next.map_or(1, |n| n.0));
        p.kill(next, 2_000);
        p.well();
    }
}

/// F30: the primary's daemon gets no time now and then, for less than the threshold: no failover.
#[test]
fn f30_starvation_below_the_threshold() {
    for seed in SEEDS {
        let mut p = play(seed, 2, 1);
        let (a, epoch) = (p.primary(), p.epoch());
        for _ in 0..10 {
            p.pause(a, 500);
            p.run(1_500);
        }
        assert_eq!((p.serves(), p.epoch()), (Some(a), epoch));
        p.well();
    }
}

/// F40: planned switch-overs under load: each is one epoch, and nothing is left to compare.
#[test]
fn f40_planned_switch_overs() {
    for seed in SEEDS {
        let mut p = play(seed, 2, 1);
        for _ in 0..10 {
            let (to, epoch) = (p.secondary(), p.epoch());
            p.promote(to);
            assert!(p.until(2_000, |p| p.serves() == Some(to)));
            assert_eq!(p.epoch(), epoch + 1);
            p.run(300);
        }
        assert!(!p.0.trace.marks().contains_key("reconciled"));
        p.well();
    }
}
