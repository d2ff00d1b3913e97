//! The schedules of `safety.md` whose rules the control plane keeps: each with its rule on, and without it.
//! The others are played in the simulator (`crates/sim/src/schedules`).

use super::world::World;
use holdfast_replicator::Rule;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// A cluster that was formed with a rule off, or with all of them on.
fn up(seed: u64, off: Option<Rule>) -> World {
    let mut w = World::new(seed);
    for h in 0..w.hosts.len() {
        w.crash(h, false);
        w.wipe(h);
        w.hosts[h].config.off = off;
    }
    for h in 0..w.hosts.len() {
        w.boot(h);
    }
    w.create();
    w.run_until(30_000, |w| w.primary_up(0) == Some(0));
    w
}

/// S (1) lost its cache with its power, P (0) only its process and is clean: S is up alone with the witness.
#[test]
fn schedule_09_promotion_of_an_unclean_member() {
    let promoted = |off| {
        let mut w = up(31, off);
        w.crash(1, true);
        w.crash(0, false);
        w.boot(1);
        w.run(20_000);
        let who = w.primary_up(0);
        if who.is_none() {
            w.boot(0);
            w.run_until(20_000, |w| w.primary_up(0) == Some(0));
            w.check_history();
        }
        who
    };
    assert_eq!(promoted(None), None, "the clean member is waited for");
    assert_eq!(
        promoted(Some(Rule::CleanFirst)),
        Some(1),
        "G3: a member that lost its cache serves although a clean one exists"
    );
}

/// S (1) is cut off when its removal is agreed between P (0) and the witness (2). P dies, the witness comes back wiped: with
/// its old identity it and S agree on the set of before.
#[test]
fn schedule_37_wiped_voter_votes_under_its_old_identity() {
    let play = |off| {
        let mut w = up(32, off);
        w.isolate(1);
        w.run_until(20_000, |w| w.record(0).volumes[0].in_sync.len() == 1);
        w.run(1000);
        w.crash(0, true);
        w.crash(2, true);
        w.wipe(2);
        w.heal();
        w.boot(2);
        w.run(30_000);
        assert_eq!(w.primary_up(0), None, "G3: a removed member serves");
    };
    play(None);
    let told = catch_unwind(AssertUnwindSafe(|| play(Some(Rule::FreshVoter))));
    let why = told.expect_err("without the rule nothing is lost");
    let why = why.downcast_ref::<String>().cloned().unwrap_or_default();
    assert!(why.contains("G3") || why.contains("differs"), "{why}");
}
