//! Volumes that grow and shrink: under writes, with crashes at every step, with replicas that were away.

mod common;

use common::{BLOCK, Cluster, Fail, GEOMETRY};
use holdfast_replicator::{DiskError, Event, FromControl, RequestError};
use holdfast_types::{NodeId, NodeSet};

const OLD: u64 = GEOMETRY.blocks;
const NEW: u64 = 4096;

fn set(nodes: &[u8]) -> NodeSet {
    nodes.iter().map(|&n| NodeId(n)).collect()
}

fn filled() -> Cluster {
    let mut c = Cluster::new(2, &[0, 1]);
    c.grow_to(OLD);
    c.promote(0);
    for b in 0..OLD {
        c.write(0, b, 1);
        c.settle();
    }
    c
}

fn size(c: &Cluster) -> u64 {
    c.size.unwrap().size_bytes / BLOCK as u64
}

/// A write to a block succeeds when everything has had its time.
fn writes(c: &mut Cluster, n: usize, block: u64, value: u8) {
    let w = c.write(n, block, value);
    c.pass(50);
    assert!(c.acked(n, w), "block {block}");
}

fn holds(c: &mut Cluster, n: usize, changed: &[(u64, u8)]) {
    for b in (0..OLD).chain([OLD, OLD + 1, 1000, NEW - 1]) {
        let before = if b < OLD { 1 } else { 0 };
        let wanted = changed.iter().rfind(|(at, _)| *at == b);
        assert_eq!(c.read(n, b), wanted.map_or(before, |w| w.1), "block {b}");
    }
}

#[test]
fn it_grows_under_writes_and_the_new_blocks_are_zero() {
    let mut c = filled();
    let outside = c.write(0, OLD, 9);
    c.settle();
    assert_eq!(c.sites[0].answers[&outside], Err(RequestError::Range));
    c.grow_to(NEW);
    for b in 0..20 {
        c.write(0, b, 2);
        c.one();
    }
    c.pass(200);
    assert_eq!(size(&c), NEW);
    let mut changed: Vec<(u64, u8)> = (0..20).map(|b| (b, 2)).collect();
    holds(&mut c, 0, &changed);
    writes(&mut c, 0, NEW - 1, 3);
    changed.push((NEW - 1, 3));
    c.assert_equal(0, 1);
    // Both are whole replicas of the new size after a restart.
    c.kill(0);
    c.pass(500);
    c.promote(1);
    c.start(0);
    c.pass(2000);
    assert_eq!(c.view.in_sync, set(&[0, 1]));
    holds(&mut c, 1, &changed);
    writes(&mut c, 1, 1000, 4);
    c.assert_equal(0, 1);
}

#[test]
fn a_crash_at_any_step_loses_nothing_and_it_still_grows() {
    for victim in [0, 1] {
        for steps in 0..400 {
            let mut c = filled();
            c.grow_to(NEW);
            c.write(0, 5, 7);
            let mut moved = 0;
            while moved < steps && c.one() {
                moved += 1;
            }
            c.crash(victim);
            let other = 1 - victim;
            c.pass(1000);
            if victim == 0 {
                c.promote(other);
            }
            c.start(victim);
            c.pass(3000);
            let what = format!("{victim} after {steps} steps");
            assert_eq!(c.view.in_sync, set(&[0, 1]), "{what}");
            assert_eq!(size(&c), NEW, "{what}");
            let primary = if victim == 0 { other } else { 0 };
            let five = c.read(primary, 5);
            assert!(five == 1 || five == 7, "{what}: {five}");
            writes(&mut c, primary, NEW - 2, 8);
            holds(&mut c, primary, &[(5, five), (NEW - 2, 8)]);
            c.assert_equal(0, 1);
            if moved < steps {
                break;
            }
        }
    }
}

#[test]
fn a_replica_that_was_away_makes_room_before_it_is_filled() {
    let mut c = filled();
    c.kill(1);
    c.pass(1000);
    c.grow_to(NEW);
    c.pass(200);
    assert_eq!(size(&c), NEW, "only members are waited for");
    writes(&mut c, 0, NEW - 1, 5);
    writes(&mut c, 0, 3, 6);
    c.start(1);
    c.pass(3000);
    assert_eq!(c.view.in_sync, set(&[0, 1]));
    c.assert_equal(0, 1);
    c.kill(0);
    c.pass(500);
    c.promote(1);
    c.pass(500);
    holds(&mut c, 1, &[(NEW - 1, 5), (3, 6)]);
}

#[test]
fn without_room_nothing_changes_until_there_is_some() {
    let mut c = filled();
    c.sites[1].most = c.sites[1].disk.len() as u64;
    c.grow_to(NEW);
    c.pass(6000);
    assert_eq!(size(&c), OLD);
    writes(&mut c, 0, 1, 2);
    c.sites[1].most = u64::MAX;
    c.pass(6000);
    assert_eq!(size(&c), NEW);
    holds(&mut c, 0, &[(1, 2)]);
}

#[test]
fn it_grows_twice_and_more_than_one_page_of_bits() {
    let mut c = filled();
    c.grow_to(NEW);
    c.pass(200);
    writes(&mut c, 0, NEW - 1, 3);
    c.grow_to(4 * NEW);
    c.pass(200);
    assert_eq!(size(&c), 4 * NEW);
    holds(&mut c, 0, &[(NEW - 1, 3)]);
    c.kill(1);
    c.pass(1000);
    writes(&mut c, 0, 4 * NEW - 1, 4);
    c.start(1);
    c.pass(2000);
    c.assert_equal(0, 1);
}

#[test]
fn what_is_given_up_is_gone_and_never_comes_back() {
    let mut c = filled();
    // Nothing of it is in the activity logs any more.
    for b in 0..32 {
        writes(&mut c, 0, b, 1);
    }
    c.kill(1);
    c.pass(1000);
    c.shrink_to(32);
    c.pass(500);
    let outside = c.write(0, 40, 9);
    c.settle();
    assert_eq!(c.sites[0].answers[&outside], Err(RequestError::Range));
    assert_eq!(c.read(0, 31), 1);
    // The other one hears of it later. Until then the volume does not grow again.
    c.grow_to(OLD);
    c.pass(500);
    assert_eq!(size(&c), 32);
    assert_eq!(c.sites[1].disk[40 * BLOCK], 1);
    c.start(1);
    c.pass(3000);
    assert_eq!(size(&c), OLD);
    assert_eq!(c.view.in_sync, set(&[0, 1]));
    assert_eq!(c.read(0, 40), 0);
    c.assert_equal(0, 1);
}

#[test]
fn nothing_is_sent_to_new_blocks_before_they_are_zero_for_good() {
    let mut c = filled();
    c.kill(1);
    c.pass(1000);
    c.grow_to(NEW);
    c.pass(200);
    for b in [OLD, OLD + 9, NEW / 2, NEW - 1] {
        writes(&mut c, 0, b, 5);
    }
    c.sites[1].late_zeroes = true;
    c.start(1);
    c.pass(1000);
    c.sites[1].late_zeroes = false;
    c.pass(3000);
    assert_eq!(c.view.in_sync, set(&[0, 1]));
    c.assert_equal(0, 1);
}

#[test]
fn what_is_given_up_in_two_steps_is_zero_from_the_start() {
    let mut c = filled();
    c.sites[1].slow = true;
    c.shrink_to(48);
    c.shrink_to(32);
    c.sites[1].slow = false;
    c.pass(500);
    let given_up = 32 * BLOCK..OLD as usize * BLOCK;
    assert!(c.sites[1].disk[given_up].iter().all(|b| *b == 0));
}

#[test]
fn a_write_of_the_former_primary_does_not_reach_what_was_given_up() {
    let mut c = filled();
    c.write(0, 40, 9);
    c.event(0, Event::Control(FromControl::StepDown));
    // The frame is on its way still.
    c.shrink_to(32);
    c.pass(500);
    let given_up = 32 * BLOCK..OLD as usize * BLOCK;
    assert!(c.sites[1].disk[given_up].iter().all(|b| *b == 0));
}

#[test]
fn a_disk_that_fails_at_any_step_of_growing_holds_nothing_up() {
    for steps in 0..200 {
        let mut c = filled();
        c.grow_to(NEW);
        let mut moved = 0;
        while moved < steps && c.one() {
            moved += 1;
        }
        c.sites[0].fail = Fail::Writes(DiskError::Io);
        for b in (0..OLD).step_by(4) {
            let w = c.write(0, b, 7);
            c.pass(50);
            assert!(c.acked(0, w), "block {b} after {steps} steps");
        }
        if moved < steps {
            break;
        }
    }
}

#[test]
fn who_missed_that_it_grew_and_shrank_gives_up_what_it_took_meanwhile() {
    let mut c = filled();
    c.sites[0].slow = true;
    c.grow_to(NEW);
    c.settle();
    // It has the room and says so, and hears of nothing from then on.
    c.deaf = Some(1);
    c.sites[0].slow = false;
    c.pass(200);
    assert_eq!(size(&c), NEW);
    writes(&mut c, 0, NEW - 1, 5);
    c.assert_equal(0, 1);
    c.shrink_to(OLD);
    c.pass(200);
    c.deaf = None;
    c.grow_to(NEW);
    c.pass(2000);
    assert_eq!(size(&c), NEW);
    assert_eq!(c.read(0, NEW - 1), 0);
    c.assert_equal(0, 1);
}
