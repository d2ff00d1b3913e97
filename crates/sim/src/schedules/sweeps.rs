//! Sweeps: ordinary lives of a resource, each interrupted at every few steps by every fault (and by pairs of faults), with every
//! rule on. Whatever the place of the blow: nothing that was acknowledged is lost, nothing that was read changes, and the
//! cluster heals.

use super::disk::Keep;
use super::play;
use super::stage::{Blow, Stage};
use holdfast_replicator::{FromControl, Rule};
use holdfast_wire::Lane;

/// Steps between two places of a blow.
const STRIDE: usize = 5;
/// Steps from the first blow to the second.
const SECOND_AFTER: [usize; 3] = [3, 17, 60];

/// Everything that can happen to a cluster of `nodes`.
fn blows(nodes: usize) -> Vec<Blow> {
    let mut all = vec![Blow::Commits];
    for n in 0..nodes {
        all.push(Blow::Kill(n));
        all.push(Blow::PowerCut(n, Keep::Flushed));
        all.push(Blow::PowerCut(n, Keep::All));
        all.push(Blow::CutOff(n));
        all.push(Blow::Restart(n));
        all.push(Blow::Hang(n));
        all.push(Blow::Fail(n));
        for other in 0..n {
            all.push(Blow::Blip(other, n));
            all.push(Blow::Part(other, n));
        }
    }
    all
}

/// Plays a life with blows at these steps; what a checker found, if anything.
fn struck(
    off: Option<Rule>,
    nodes: usize,
    life: fn(&mut Stage),
    blows: &[(usize, Blow)],
) -> Option<String> {
    let members: Vec<u8> = (0..nodes as u8).collect();
    play(off, nodes, &members, |s| {
        s.blows = blows.to_vec();
        life(s);
        s.blows.clear();
    })
}

fn strike(nodes: usize, life: fn(&mut Stage), blows: &[(usize, Blow)]) {
    if let Some(found) = struck(None, nodes, life, blows) {
        panic!("struck by {blows:?}: {found}");
    }
}

fn sweep(nodes: usize, steps: usize, life: fn(&mut Stage)) {
    let all = blows(nodes);
    for at in (0..steps).step_by(STRIDE) {
        for &blow in &all {
            strike(nodes, life, &[(at, blow)]);
        }
    }
}

fn sweep_pairs(nodes: usize, steps: usize, life: fn(&mut Stage)) {
    let all = blows(nodes);
    for (i, at) in (0..steps).step_by(4 * STRIDE).enumerate() {
        for (j, &first) in all.iter().enumerate() {
            // Not every pair at every step: the second blow is another one each time.
            let second = all[(i * 7 + j * 3) % all.len()];
            let later = SECOND_AFTER[(i + j) % SECOND_AFTER.len()];
            strike(nodes, life, &[(at, first), (later, second)]);
        }
    }
}

/// Writes and reads on whoever serves; if nobody does, somebody takes over.
fn work(s: &mut Stage, rounds: u64) {
    for round in 0..rounds {
        let nodes = s.sites.len();
        let serving = (0..nodes).find(|&n| s.is_open(n));
        let Some(n) = serving else {
            s.pass(400);
            if !(0..nodes).any(|n| s.is_open(n)) {
                let _ = (0..nodes).any(|n| s.promote(n));
                s.pass(600);
            }
            continue;
        };
        s.write(n, round * 13 % 64);
        s.write(n, round * 5 % 12);
        for _ in 0..4 {
            s.one();
        }
        s.read(n, round * 5 % 12);
        if round % 4 == 3 {
            s.flush(n);
            s.pass(30);
        }
    }
}

/// A replica comes back, is resynced under load, and becomes a member.
fn return_of_a_replica(s: &mut Stage) {
    let calm = std::mem::take(&mut s.blows);
    s.promote(0);
    s.pass(100);
    s.kill(2);
    s.pass(600);
    work(s, 8);
    s.blows = calm;
    s.start_now(2);
    s.pass(250);
    work(s, 12);
    s.pass(500);
    work(s, 4);
}

/// The primary dies with its secondaries at different places of the stream; one takes over under load.
fn failover(s: &mut Stage) {
    let calm = std::mem::take(&mut s.blows);
    s.promote(0);
    s.pass(100);
    work(s, 4);
    s.hold(0, 1, Lane::Write);
    s.hold(0, 2, Lane::Write);
    for block in [1, 2, 20, 40] {
        s.write(0, block);
    }
    s.settle();
    s.deliver_one(0, 1, Lane::Write);
    for _ in 0..3 {
        s.deliver_one(0, 2, Lane::Write);
    }
    s.kill(0);
    s.release(0, 1, Lane::Write);
    s.release(0, 2, Lane::Write);
    s.blows = calm;
    s.promote(1);
    s.pass(600);
    work(s, 6);
    s.start_now(0);
    s.pass(300);
    work(s, 8);
    s.pass(500);
}

/// The role is handed over under load, and back.
fn hand_over(s: &mut Stage) {
    let calm = std::mem::take(&mut s.blows);
    s.promote(0);
    s.pass(100);
    s.blows = calm;
    for (from, to) in [(0, 1), (1, 0)] {
        work(s, 5);
        s.tell(from, FromControl::Drain);
        s.settle();
        s.tell(from, FromControl::StepDown);
        s.promote(to);
        s.pass(400);
    }
    work(s, 4);
}

/// A secondary stops in good order under load and starts again.
fn orderly_stop(s: &mut Stage) {
    let calm = std::mem::take(&mut s.blows);
    s.promote(0);
    s.pass(100);
    s.blows = calm;
    work(s, 3);
    s.tell(1, FromControl::Stop);
    work(s, 3);
    s.settle();
    s.kill(1);
    s.sites[1].stopped = false;
    work(s, 3);
    s.start_now(1);
    work(s, 6);
    s.pass(400);
}

#[test]
fn sweep_return_of_a_replica() {
    sweep(3, 400, return_of_a_replica);
}

#[test]
fn sweep_failover() {
    sweep(3, 400, failover);
}

#[test]
fn sweep_hand_over() {
    sweep(2, 300, hand_over);
}

#[test]
fn sweep_orderly_stop() {
    sweep(2, 300, orderly_stop);
}

#[test]
fn sweep_pairs_of_blows() {
    sweep_pairs(3, 400, return_of_a_replica);
    sweep_pairs(3, 400, failover);
    sweep_pairs(2, 300, hand_over);
    sweep_pairs(2, 300, orderly_stop);
}

/// The sweeps tested: they find rules that are off, nobody having told them the schedule.
#[test]
fn sweep_finds_rules_that_are_off() {
    /// What is struck: how many replicas it has, and what they do.
    type Life = (usize, fn(&mut Stage));
    for rule in [
        Rule::KeepOpen,
        Rule::CloseSet,
        Rule::CountEarly,
        Rule::GrowFlush,
        Rule::RunsCount,
        Rule::PromotionBits,
        Rule::CrashBits,
        Rule::ShrinkFirst,
    ] {
        let lives: [Life; 4] = [
            (3, return_of_a_replica),
            (3, failover),
            (2, hand_over),
            (2, orderly_stop),
        ];
        let found = lives.into_iter().find_map(|(nodes, life)| {
            (0..400).step_by(STRIDE).find_map(|at| {
                let struck = |&blow: &Blow| struck(Some(rule), nodes, life, &[(at, blow)]);
                blows(nodes).iter().find_map(struck)
            })
        });
        assert!(
            found.is_some(),
            "no blow at any step shows that {rule:?} is off"
        );
    }
}
