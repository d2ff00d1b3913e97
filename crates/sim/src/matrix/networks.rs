//! Networks that break, and clocks that run wrong (F11 to F18).

use super::*;

/// F11: the primary alone on one side: the others take over.
#[test]
fn f11_partition_primary_against_the_rest() {
    for seed in SEEDS {
        let mut p = play(seed, 2, 1);
        let (a, b) = (p.primary(), p.secondary());
        p.isolate(Net::Both, a, 10_000);
        assert!(p.until(TAKEOVER_MS, |p| p.serves() == Some(b)));
        p.well();
    }
}

/// F11: the secondary alone: the primary stays.
#[test]
fn f11_partition_secondary_against_the_rest() {
    for seed in SEEDS {
        let mut p = play(seed, 2, 1);
        let (a, b, epoch) = (p.primary(), p.secondary(), p.epoch());
        p.isolate(Net::Both, b, 10_000);
        assert!(p.until(5_000, |p| !p.is_member(b)));
        p.run(5_000);
        assert_eq!((p.serves(), p.epoch()), (Some(a), epoch));
        p.well();
    }
}

/// F11: everybody alone: nothing is served until they meet again.
#[test]
fn f11_partition_of_all() {
    for seed in SEEDS {
        let mut p = play(seed, 2, 1);
        for n in 0..3 {
            p.isolate(Net::Both, n, 12_000);
        }
        p.run(TAKEOVER_MS);
        assert!(p.0.nodes.iter().all(|n| !n.host.any()), "freeze");
        p.well();
    }
}

/// F12: one way only: nobody hears the primary; the primary hears nobody; one link is deaf in one direction.
#[test]
fn f12_one_way() {
    for seed in SEEDS {
        for case in 0..3 {
            let mut p = play(seed, 2, 1);
            let (a, b, epoch) = (p.primary(), p.secondary(), p.epoch());
            match case {
                0 => p
                    .others(a)
                    .into_iter()
                    .for_each(|n| p.block(Net::Both, a, n, 9_000)),
                1 => p
                    .others(a)
                    .into_iter()
                    .for_each(|n| p.block(Net::Both, n, a, 9_000)),
                _ => p.block(Net::Both, b, a, 9_000),
            }
            p.run(12_000);
            assert!(p.epoch() <= epoch + 2, "no flapping");
            p.well();
        }
    }
}

/// F13: the data nodes do not reach each other, both reach the witness: the primary stays, the other is removed.
#[test]
fn f13_bridge() {
    for seed in SEEDS {
        let mut p = play(seed, 2, 1);
        let (a, b, epoch) = (p.primary(), p.secondary(), p.epoch());
        p.part(Net::Both, a, b, 10_000);
        assert!(p.until(5_000, |p| !p.is_member(b)));
        p.run(4_000);
        assert_eq!((p.serves(), p.epoch()), (Some(a), epoch));
        p.well();
    }
}

/// F14: five nodes in a ring, each reaches its neighbours only: progress or freeze, never two.
#[test]
fn f14_majorities_ring() {
    for seed in SEEDS {
        let mut p = play(seed, 5, 0);
        for n in 0..5 {
            p.part(Net::Both, n, (n + 2) % 5, 10_000);
        }
        p.run(12_000);
        p.well();
    }
}

/// F15: links that flap, shorter than is noticed, and longer than a lease.
#[test]
fn f15_flapping() {
    for seed in SEEDS {
        let mut p = play(seed, 2, 1);
        let (a, epoch) = (p.primary(), p.epoch());
        for _ in 0..15 {
            p.isolate(Net::Both, a, 150);
            p.run(450);
        }
        assert_eq!(
            (p.serves(), p.epoch()),
            (Some(a), epoch),
            "too short to matter"
        );
        for _ in 0..3 {
            let n = p.serves().unwrap_or(a);
            p.isolate(Net::Both, n, 3_000);
            p.run(6_000);
        }
        assert!(p.epoch() <= epoch + 6, "bounded");
        p.well();
    }
}

/// F16: control messages are lost, arrive twice and pass one another; the lanes are slow. The primary dies in it.
#[test]
fn f16_loss_and_duplicates() {
    for seed in SEEDS {
        let mut p = play_with(seed, 2, 1, |s| {
            (s.loss, s.duplicates) = (Ratio::new(1, 10), Ratio::new(1, 10));
            s.message_delay.spread_ns = 20 * MS;
            s.frame_delay.spread_ns = 5 * MS;
        });
        let (a, b) = (p.primary(), p.secondary());
        p.power_cut(a, 12_000);
        assert!(p.until(2 * TAKEOVER_MS, |p| p.serves() == Some(b)));
        p.well();
    }
}

/// F17: the data network is down and the control network is up: the primary goes on alone.
#[test]
fn f17_data_network_down() {
    for seed in SEEDS {
        let mut p = play(seed, 2, 1);
        let (a, b, epoch) = (p.primary(), p.secondary(), p.epoch());
        p.part(Net::Data, a, b, 8_000);
        assert!(p.until(5_000, |p| !p.is_member(b)));
        assert_eq!((p.serves(), p.epoch()), (Some(a), epoch));
        p.well();
    }
}

/// F17: the control network of the primary is down and the data network is up: the other takes over, never both.
#[test]
fn f17_control_network_down() {
    for seed in SEEDS {
        let mut p = play(seed, 2, 1);
        let (a, b) = (p.primary(), p.secondary());
        p.isolate(Net::Control, a, 10_000);
        assert!(p.until(TAKEOVER_MS, |p| p.serves() == Some(b)));
        p.well();
    }
}

/// F18: clocks drift within the bound, and far beyond it (then G5 is not claimed; everything else is).
#[test]
fn f18_clocks() {
    for seed in SEEDS {
        for (ppm, wild) in [(1_500, false), (300_000, true)] {
            let mut p = play_with(seed, 2, 1, |s| {
                s.drift_ppm = vec![ppm, -ppm, ppm];
                s.wild_clocks = wild;
            });
            let a = p.primary();
            p.isolate(Net::Both, a, 8_000);
            p.run(9_000);
            p.well();
        }
    }
}
