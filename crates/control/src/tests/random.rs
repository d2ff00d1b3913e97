//! Random faults from many seeds. Every step is checked by the world: one leader per term, every generation the
//! same wherever it is seen, epochs that only grow with one primary each, promotions of members only, and
//! leases and effects on one node at a time in true time. After the faults the cluster must heal by itself.

use super::world::World;
use crate::*;
use holdfast_types::NodeId;

/// Steps of faults per seed.
const FAULTS: u64 = 25;

fn live(seed: u64) {
    let data: &[u8] = if seed.is_multiple_of(3) {
        &[0, 1, 2]
    } else {
        &[0, 1]
    };
    let mut w = World::with(seed, data, 1 + (seed % 2) as u16, 1 + (seed / 2 % 2) as u16);
    w.create();
    if seed.is_multiple_of(2) {
        w.loss_percent = seed % 20;
        w.delay = (1, 1 + seed % 80);
        w.disk_ms = (1, 1 + seed % 40);
    }
    for _ in 0..FAULTS {
        let h = w.rng.between(0, 2) as usize;
        let other = w.rng.between(0, 2) as usize;
        let dead = w.hosts[h].node.is_none();
        match w.rng.between(0, 15) {
            0..=2 if dead => w.boot(h),
            0 | 1 => w.crash(h, false),
            2 => w.crash(h, true),
            3 => w.isolate(h),
            4 if h != other => w.cut_one(h, other),
            5 | 6 => w.heal(),
            7 => w.pause(h, true),
            8 | 9 => (0..3).for_each(|h| w.pause(h, false)),
            10 if !dead => {
                let node = Some(NodeId(data[other % data.len()]));
                w.post(
                    h,
                    AdminRequest::Promote {
                        resource: "r0".into(),
                        node,
                        force: None,
                    },
                );
            }
            11 if !dead && w.rng.between(0, 3) == 0 => {
                w.post(
                    h,
                    AdminRequest::Demote {
                        resource: "r0".into(),
                    },
                );
            }
            // One voter at a time, and a settled cluster: more would rightly stop for ever.
            12 if dead && (0..3).all(|n| w.hosts[n].blank_wipes == 0) => {
                w.wipe(h);
                w.boot(h);
            }
            13 if !dead => {
                let stalled = w.rng.between(0, 1) == 0;
                w.stall(h, stalled);
            }
            _ => {}
        }
        let ms = w.rng.between(1, 3000);
        w.run(ms);
    }
    w.heal();
    w.loss_percent = 0;
    w.delay = (1, 3);
    for h in 0..3 {
        w.pause(h, false);
        if w.hosts[h].node.is_none() {
            w.boot(h);
        }
        w.stall(h, false);
    }
    w.run(10_000);
    let node = w.record(0).members().iter().next(); // it may have been demoted
    w.post(
        0,
        AdminRequest::Promote {
            resource: "r0".into(),
            node,
            force: None,
        },
    );
    w.run_until(60_000, |w| w.primary_up(0).is_some());
    let all = w.hosts[0].config.resources[0].data_set();
    w.run_until(20_000, |w| w.record(0).members() == all);
    w.check_history();
}

fn seeds(range: std::ops::Range<u64>) {
    for seed in range {
        let failed = std::panic::catch_unwind(|| live(seed)).is_err();
        assert!(!failed, "seed {seed} fails");
    }
}

#[test]
fn random_faults_first_quarter() {
    seeds(0..100);
}

#[test]
fn random_faults_second_quarter() {
    seeds(100..200);
}

#[test]
fn random_faults_third_quarter() {
    seeds(200..300);
}

#[test]
fn random_faults_last_quarter() {
    seeds(300..400);
}

/// The same seed gives the same run, message by message.
#[test]
fn a_seed_is_a_run() {
    let trace = |seed| {
        let mut w = World::with(seed, &[0, 1], 1, 1);
        w.create();
        w.crash(0, true);
        w.run(5000);
        w.boot(0);
        w.run(5000);
        let notes: Vec<_> = w.hosts.iter().map(|h| h.notes.clone()).collect();
        (w.ticks, notes)
    };
    assert_eq!(trace(42), trace(42));
    assert_ne!(trace(42), trace(43));
}
