//! Whole clusters in named situations: lost state, power, disks, links, sizes.

use super::world::{MS, World};
use crate::*;
use holdfast_types::{NodeId, NodeSet};

fn set(nodes: &[u8]) -> NodeSet {
    nodes.iter().map(|n| NodeId(*n)).collect()
}

fn done(reply: &AdminReply) -> &str {
    match reply {
        AdminReply::Done { message } => message,
        other => panic!("not done: {other:?}"),
    }
}

fn epoch(w: &World, h: usize) -> u64 {
    w.record(h).epoch.0
}

#[test]
fn swapped_or_reverted_disk_is_not_promoted() {
    for reverted in [false, true] {
        let mut w = World::up(17);
        w.run(1000);
        w.crash(1, false);
        w.boot(1); // its second run is recorded
        w.run(1000);
        w.crash(1, false);
        if reverted {
            w.hosts[1].replicas[0][0].run = 0;
        } else {
            w.hosts[1].replicas[0][0].incarnation = 999;
        }
        w.grow = false;
        w.boot(1);
        w.run(250); // recorded, and not yet removed by the primary
        w.crash(0, false);
        w.run(10_000);
        assert_eq!(w.primary_up(0), None, "reverted {reverted}");
        assert!(
            w.record(1)
                .replica(VolumeIx(0), NodeId(1))
                .is_some_and(|r| r.suspect)
        );
        w.boot(0);
        w.run_until(10_000, |w| w.primary_up(0) == Some(0));
    }
}

#[test]
fn wiped_voter_rejoins_as_a_new_member() {
    for seed in 0..10 {
        let mut w = World::up(500 + seed);
        let old = w.hosts[2]
            .node
            .as_ref()
            .and_then(|n| n.state().admitted.get(&NodeId(2)).copied());
        w.crash(2, true);
        w.wipe(2);
        w.run(2000);
        w.boot(2);
        w.run_until(10_000, |w| {
            let now = w.hosts[2]
                .node
                .as_ref()
                .and_then(|n| n.state().admitted.get(&NodeId(2)).copied());
            now.is_some() && now != old
        });
        w.run(1000);
        assert_eq!((w.primary_up(0), epoch(&w, 2)), (Some(0), 1));
        // It counts: the cluster survives the loss of another voter with it.
        w.run(3000);
        w.crash(0, false);
        w.run_until(10_000, |w| w.primary_up(0) == Some(1));
        w.check_history();
    }
}

#[test]
fn two_wiped_voters_elect_nobody() {
    let mut w = World::up(18);
    w.crash(1, true);
    w.crash(2, true);
    w.wipe(1);
    w.wipe(2);
    w.boot(1);
    w.boot(2);
    w.run(20_000);
    assert_eq!(w.primary_up(0), None);
    // They may read what was agreed, but nothing new can be agreed with them.
    for h in 1..3 {
        assert!(!w.hosts[h].node.as_ref().is_some_and(Node::counts));
        assert!(w.status(h).waiting.is_some());
    }
    assert_eq!(epoch(&w, 0), 1);
}

#[test]
fn everything_off_and_on_again() {
    for seed in 0..10 {
        let mut w = World::up(600 + seed);
        w.run(1000);
        for h in 0..3 {
            w.crash(h, false);
        }
        for h in [2, 1, 0] {
            w.boot(h);
        }
        w.run_until(10_000, |w| w.primary_up(0).is_some());
        w.check_history();
    }
}

#[test]
fn primary_that_does_not_return_after_power_loss_is_waited_out() {
    let mut w = World::up(19);
    for h in 0..3 {
        w.crash(h, false);
    }
    w.boot(1);
    w.boot(2);
    let t = w.now;
    w.run_until(15_000, |w| w.primary_up(0) == Some(1));
    // The voters have forgotten what they promised: they hold off as if they had just promised.
    assert!((w.now - t) / MS >= w.hosts[1].config.timing.lease_ms);
}

#[test]
fn stalled_disk_hands_over() {
    let mut w = World::up(20);
    w.run(1000);
    w.stall(0, true);
    w.run_until(10_000, |w| w.primary_up(0) == Some(1));
    w.stall(0, false);
    w.run(3000);
    assert_eq!(w.primary_up(0), Some(1));
}

#[test]
fn a_stranded_primary_hands_over_without_losing_the_lease() {
    let mut w = World::up(21);
    w.run(1000);
    w.disk_fails(0);
    w.run(3_000);
    assert_eq!(w.primary_up(0), Some(0), "it goes on through the members");
    w.stranded(0);
    w.run_until(3_000, |w| w.primary_up(0) == Some(1));
    assert!(
        w.noted(0, |n| {
            matches!(
                n,
                Note::SteppingDown {
                    why: StepDownReason::DiskFailed,
                    ..
                }
            )
        })
        .is_some()
    );
}

#[test]
fn orderly_stop_hands_over_and_ends() {
    for seed in 0..10 {
        let mut w = World::up(700 + seed);
        w.run(1000);
        let t = w.now;
        w.stop(0);
        w.run_until(5_000, |w| w.hosts[0].stopped);
        assert_eq!(
            w.record(0).primary,
            Some(NodeId(1)),
            "left before it was taken: {:#?}",
            w.picture()
        );
        w.crash(0, false);
        w.run_until(5_000, |w| w.primary_up(0) == Some(1));
        // The voters may have to choose a leader first; no lease is waited for.
        let timing = w.hosts[1].config.timing;
        assert!(
            (w.now - t) / MS < timing.election_max_ms + 500,
            "{} ms",
            (w.now - t) / MS
        );
        w.check_history();
    }
}

#[test]
fn flapping_links_make_a_bounded_number_of_epochs() {
    let mut w = World::up(22);
    for _ in 0..40 {
        w.isolate(0);
        w.run(400);
        w.heal();
        w.run(600);
    }
    assert!(
        epoch(&w, 2) <= 2,
        "shorter than a lease costs no failover: epoch {}",
        epoch(&w, 2)
    );
    w.run_until(10_000, |w| w.primary_up(0).is_some());
    w.check_history();
}

#[test]
fn several_resources_and_volumes_each_on_its_preferred_node() {
    let mut w = World::with(23, &[0, 1], 2, 2);
    w.create();
    w.run_until(15_000, |w| {
        w.primary_up(0) == Some(0) && w.primary_up(1) == Some(1)
    });
    w.crash(1, false);
    w.run_until(10_000, |w| {
        w.primary_up(0) == Some(0) && w.primary_up(1) == Some(0)
    });
    w.check_history();
}

#[test]
fn three_data_nodes_the_best_ranked_takes_over() {
    let mut w = World::with(24, &[0, 1, 2], 1, 1);
    w.create();
    w.run_until(15_000, |w| w.primary_up(0) == Some(0));
    w.run(1000);
    w.crash(0, false);
    w.run_until(10_000, |w| w.primary_up(0).is_some());
    assert_eq!((w.primary_up(0), epoch(&w, 1)), (Some(1), 2));
}

#[test]
fn five_voters_survive_two() {
    let mut w = World::sized(26, (5, 5), &[0, 1, 2], 1, 1);
    w.create();
    w.run_until(15_000, |w| w.primary_up(0) == Some(0));
    w.run(1000);
    w.crash(4, false);
    w.crash(0, false);
    w.run_until(10_000, |w| w.primary_up(0) == Some(1));
    w.run(3000);
    w.crash(1, false);
    w.run(10_000);
    assert_eq!(w.primary_up(0), None, "two of five");
    w.boot(4);
    w.run_until(10_000, |w| w.primary_up(0) == Some(2));
    w.check_history();
}

#[test]
fn a_data_node_without_a_vote_learns_and_takes_over() {
    let mut w = World::sized(27, (4, 3), &[0, 3], 1, 1);
    w.create();
    w.run_until(15_000, |w| w.primary_up(0) == Some(0));
    w.run(1000);
    w.crash(0, false);
    w.run_until(10_000, |w| w.primary_up(0) == Some(3));
    w.boot(0);
    w.run(5_000);
    assert_eq!(w.record(0).members(), set(&[0, 3]));
    done(&w.promote(3, 0, None));
    w.check_history();
}

#[test]
fn a_fence_that_leads_nowhere_is_lifted_by_the_primary() {
    let mut w = World::up(28);
    w.grow = false;
    w.run(1000);
    // One voter does not hear the primary, forgets its promise, and lets a takeover in; the candidate dies.
    w.cut_one(0, 1);
    w.cut_one(1, 0);
    w.run(4000);
    let (generation, next) = (w.record(0).generation, w.record(0).epoch.next());
    w.fence(1, NodeId(1), next, generation);
    w.run(1000);
    w.heal();
    w.run(3000);
    let record = w.record(0);
    assert!(
        record
            .history
            .iter()
            .any(|e| e.change == Change::Reasserted)
    );
    assert_eq!((w.primary_up(0), record.epoch.0), (Some(0), 1));
    // The voter grants again: it alone keeps the primary up.
    w.crash(2, false);
    w.run(5000);
    assert_eq!((w.primary_up(0), epoch(&w, 0)), (Some(0), 1));
}

#[test]
fn idle_cluster_ticks_little() {
    let mut w = World::up(25);
    w.run(2000);
    let before = w.ticks;
    w.run(10_000);
    let per_second = (w.ticks - before) / 10;
    // Every message asks for a new wake-up in this world, so this counts those too.
    assert!(
        per_second < 1000,
        "{per_second} wake-ups per second for three nodes"
    );
}
