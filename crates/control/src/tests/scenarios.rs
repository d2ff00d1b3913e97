//! Whole clusters in named situations.

use super::world::{MS, World};
use crate::state::Promotion;
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

fn refused(reply: &AdminReply) -> &str {
    match reply {
        AdminReply::Refused { message } => message,
        other => panic!("not refused: {other:?}"),
    }
}

fn waiting(w: &World, h: usize) -> String {
    w.status(h).resources[0].waiting.clone().unwrap_or_default()
}

fn epoch(w: &World, h: usize) -> u64 {
    w.record(h).epoch.0
}

#[test]
fn bootstrap_create_and_first_primary() {
    let mut w = World::new(1);
    assert!(w.status(2).waiting.is_some());
    w.create();
    w.run_until(10_000, |w| w.primary_up(0) == Some(0));
    w.run(1000);
    let record = w.record(0);
    assert_eq!((record.epoch.0, record.members()), (1, set(&[0, 1])));
    let status = w.status(2);
    assert!(status.quorum && status.waiting.is_none());
    assert!(status.nodes.iter().all(|n| n.online && n.counts));
    assert_eq!(status.resources[0].primary, Some(NodeId(0)));
    assert_eq!(status.resources[0].waiting, None);
}

#[test]
fn no_cluster_forms_while_a_voter_is_missing() {
    let mut w = World::new(2);
    w.crash(2, false);
    w.run(10_000);
    for h in 0..2 {
        let status = w.status(h);
        assert_eq!(status.leader, None);
        assert!(
            status.waiting.as_deref().is_some_and(|t| t.contains("n2")),
            "{:?}",
            status.waiting
        );
    }
    w.boot(2);
    w.run_until(5_000, |w| (0..3).all(|h| w.status(h).leader.is_some()));
}

#[test]
fn primary_dies_and_the_other_takes_over_within_the_bound() {
    for seed in 0..20 {
        let mut w = World::up(seed);
        w.run(3000);
        let t = w.now;
        w.crash(0, false);
        w.run_until(10_000, |w| w.primary_up(0) == Some(1));
        let timing = w.hosts[1].config.timing;
        let took = (w.now - t) / MS;
        // The promise, an election (it may have led the voters), then a few round trips and steps.
        let bound = timing.promise_ms() + timing.election_max_ms + 500;
        assert!(took <= bound, "took {took} ms of {bound}");
        assert!(w.noted(1, |n| matches!(n, Note::Detected { .. })).is_some());
        w.check_history();
    }
}

#[test]
fn partitioned_primary_steps_down_before_the_other_leads() {
    for seed in 0..20 {
        let mut w = World::up(100 + seed);
        w.run(1000);
        w.isolate(0);
        w.run_until(10_000, |w| w.primary_up(0) == Some(1));
        // The world checks at every step that effects and leases never overlap.
        let down = w
            .noted(0, |n| matches!(n, Note::SteppedDown { .. }))
            .expect("stepped down");
        let won = w
            .noted(
                1,
                |n| matches!(n, Note::Promoted { epoch, .. } if epoch.0 == 2),
            )
            .expect("won");
        assert!(down < won, "{down} {won}");
        assert!(
            w.noted(0, |n| {
                matches!(
                    n,
                    Note::SteppingDown {
                        why: StepDownReason::LeaseLost,
                        ..
                    }
                )
            })
            .is_some()
        );
        w.run(3000);
        assert_eq!(
            w.record(1).members(),
            set(&[1]),
            "went on without the other"
        );
        w.heal();
        w.run_until(5_000, |w| {
            w.record(0).epoch.0 == 2 && w.record(0).members() == set(&[0, 1])
        });
        assert_eq!(w.primary_up(0), Some(1), "never back by itself");
        w.check_history();
    }
}

#[test]
fn one_way_links_do_not_make_two() {
    for (a, b) in [(0, 1), (1, 0), (0, 2), (2, 0), (1, 2), (2, 1)] {
        let mut w = World::up(7);
        w.cut_one(a, b);
        w.run(15_000);
        let holder = w.primary_up(0);
        assert!(holder.is_some(), "{a}->{b}: {:#?}", w.picture());
        assert!(epoch(&w, 2) <= 3, "{a}->{b}: flaps");
        w.check_history();
    }
}

#[test]
fn paused_primary_finds_itself_deposed() {
    for seed in 0..10 {
        let mut w = World::up(200 + seed);
        w.pause(0, true);
        w.run_until(10_000, |w| w.primary_up(0) == Some(1));
        w.pause(0, false);
        w.run(3000);
        assert_eq!(w.primary_up(0), Some(1));
        assert!(
            w.noted(0, |n| matches!(n, Note::SteppingDown { .. }))
                .is_some()
        );
        w.check_history();
    }
}

#[test]
fn a_step_that_ends_after_the_lease_begins_no_other() {
    let mut w = World::new(29);
    w.create();
    w.run_until(10_000, |w| {
        w.status(0).resources[0].nodes[0].phase == PhaseWord::Starting
    });
    w.pause(0, true);
    w.run(3000);
    // The world fails if a start step is begun without a lease.
    w.step_done(0, HostStep::OpenDevice);
    assert!(
        w.noted(0, |n| matches!(n, Note::SteppingDown { .. }))
            .is_some()
    );
    w.pause(0, false);
    w.run_until(10_000, |w| w.primary_up(0).is_some());
    w.check_history();
}

#[test]
fn witness_loss_is_survived_and_its_return() {
    let mut w = World::up(3);
    w.crash(2, false);
    w.run(10_000);
    assert_eq!((w.primary_up(0), epoch(&w, 0)), (Some(0), 1));
    w.boot(2);
    w.run(5_000);
    assert_eq!((w.primary_up(0), epoch(&w, 0)), (Some(0), 1));
}

#[test]
fn witness_restart_does_not_cost_the_lease_of_a_lonely_primary() {
    let mut w = World::up(4);
    w.crash(1, false);
    w.run(3000);
    w.crash(2, false);
    w.run(300);
    w.boot(2);
    w.run(5000);
    assert_eq!((w.primary_up(0), epoch(&w, 0)), (Some(0), 1));
}

#[test]
fn without_a_majority_the_primary_stops_and_comes_back() {
    let mut w = World::up(5);
    w.crash(1, false);
    w.run(2000);
    w.crash(2, false);
    w.run(5000);
    assert_eq!(w.primary_up(0), None);
    assert!(
        w.status(0)
            .waiting
            .is_some_and(|t| t.contains("no majority"))
    );
    w.boot(2);
    w.run_until(6_000, |w| w.primary_up(0) == Some(0));
    assert_eq!(epoch(&w, 0), 2, "not the epoch it stopped with");
}

#[test]
fn stale_data_node_waits_for_the_newer_and_says_so() {
    let mut w = World::up(6);
    w.crash(1, false);
    w.run_until(5_000, |w| w.record(0).members() == set(&[0]));
    w.run(500);
    w.crash(0, false);
    w.boot(1);
    w.run(15_000);
    assert_eq!(w.primary_up(0), None);
    for h in [1, 2] {
        let text = waiting(&w, h);
        assert!(
            text.contains("newest data is on n0") && text.contains("n1 is outdated"),
            "{text}"
        );
    }
    let request = |force: Option<&str>| AdminRequest::Promote {
        resource: "r0".into(),
        node: Some(NodeId(1)),
        force: force.map(str::to_owned),
    };
    let reply = w.ask(2, request(None), 5_000);
    assert!(
        refused(&reply).contains("n0") && refused(&reply).contains("--force"),
        "{reply:?}"
    );
    let reply = w.ask(2, request(Some("yes")), 5_000);
    assert!(refused(&reply).contains(FORCE_CONSENT), "{reply:?}");
    assert_eq!(epoch(&w, 1), 1);
    w.boot(0);
    w.run_until(6_000, |w| w.primary_up(0) == Some(0));
    w.run_until(5_000, |w| w.record(0).members() == set(&[0, 1]));
    w.check_history();
}

#[test]
fn forced_promotion_starts_a_recorded_lineage() {
    let mut w = World::up(8);
    w.crash(1, false);
    w.run_until(5_000, |w| w.record(0).members() == set(&[0]));
    w.run(500);
    w.crash(0, false);
    w.boot(1);
    w.run(5_000);
    let reply = w.promote(2, 1, Some(FORCE_CONSENT));
    assert!(done(&reply).contains("n1"));
    let record = w.record(1);
    assert_eq!(
        (record.primary, record.members()),
        (Some(NodeId(1)), set(&[1]))
    );
    assert_ne!(record.lineage, 0);
    assert!(record.history.iter().any(|e| matches!(
        e.change,
        Change::Primary {
            node: NodeId(1),
            why: Promotion::Forced { .. }
        }
    )));
    w.check_history();
}

#[test]
fn force_is_refused_while_newer_data_is_served() {
    let mut w = World::up(9);
    w.grow = false;
    w.crash(1, false);
    w.run_until(5_000, |w| w.record(0).members() == set(&[0]));
    w.boot(1);
    w.run(3000);
    let reply = w.promote(1, 1, Some(FORCE_CONSENT));
    assert!(refused(&reply).contains("runs on n0"), "{reply:?}");
    assert_eq!(w.primary_up(0), Some(0));
}

#[test]
fn planned_promote_and_back() {
    for seed in 0..10 {
        let mut w = World::up(300 + seed);
        w.run(1000);
        for (asked, to) in [(2, 1), (0, 0), (1, 1), (1, 0)] {
            let t = w.now;
            done(&w.promote(asked, to, None));
            assert_eq!(w.primary_up(0), Some(usize::from(to)));
            assert!(
                w.now - t < 1500 * MS,
                "no lease is waited for: {} ms",
                (w.now - t) / MS
            );
        }
        assert_eq!(epoch(&w, 0), 5);
        assert_eq!(w.record(0).members(), set(&[0, 1]));
        assert!(
            w.noted(1, |n| matches!(n, Note::SteppedDown { .. }))
                .is_some()
        );
        assert!(
            !w.hosts.iter().any(|h| h.notes.iter().any(|(_, n)| matches!(
                n,
                Note::SteppingDown {
                    why: StepDownReason::LeaseLost | StepDownReason::Deposed,
                    ..
                }
            )))
        );
        w.check_history();
    }
}

#[test]
fn promote_refuses_what_cannot_be() {
    let mut w = World::up(10);
    assert!(refused(&w.promote(0, 2, None)).contains("no replica"));
    let request = AdminRequest::Promote {
        resource: "nope".into(),
        node: None,
        force: None,
    };
    let reply = w.ask(0, request, 1000);
    assert!(refused(&reply).contains("r0"));
    let request = AdminRequest::Verify {
        resource: "r0".into(),
        volume: None,
        order: VerifyOrder {
            peers: NodeSet::only(NodeId(0)),
            ..VerifyOrder::default()
        },
    };
    assert!(refused(&w.ask(1, request, 1000)).contains("primary"));
    let request = AdminRequest::Verify {
        resource: "r0".into(),
        volume: None,
        order: VerifyOrder {
            peers: NodeSet::only(NodeId(1)),
            ..VerifyOrder::default()
        },
    };
    done(&w.ask(2, request, 1000));
}

#[test]
fn hand_over_that_nobody_takes_is_taken_back() {
    let mut w = World::up(11);
    w.run(1000);
    let id = w.post(
        0,
        AdminRequest::Promote {
            resource: "r0".into(),
            node: Some(NodeId(1)),
            force: None,
        },
    );
    w.run_until(3_000, |w| {
        w.noted(0, |n| matches!(n, Note::SteppedDown { .. }))
            .is_some()
    });
    w.crash(1, false);
    w.run_until(10_000, |w| w.primary_up(0) == Some(0));
    assert!(epoch(&w, 0) >= 2);
    let reply = w.hosts[0]
        .replies
        .iter()
        .find(|(i, _)| *i == id)
        .map(|(_, r)| r.clone());
    assert!(refused(&reply.expect("answered")).contains("n1"));
}

#[test]
fn busy_mount_calls_a_planned_hand_over_off() {
    let mut w = World::up(12);
    w.run(1000);
    w.hosts[0].step_fails = Some(HostStep::Unmount { forced: false });
    w.post(
        2,
        AdminRequest::Promote {
            resource: "r0".into(),
            node: Some(NodeId(1)),
            force: None,
        },
    );
    w.run_until(5_000, |w| {
        w.noted(0, |n| matches!(n, Note::StepFailed { .. }))
            .is_some()
    });
    w.run_until(10_000, |w| w.primary_up(0) == Some(0));
    w.run(1000);
    assert_eq!((epoch(&w, 0), w.record(0).wanted), (1, Wanted::Auto));
}

#[test]
fn demote_stops_it_until_promoted() {
    let mut w = World::up(13);
    done(&w.ask(
        1,
        AdminRequest::Demote {
            resource: "r0".into(),
        },
        5_000,
    ));
    assert_eq!(w.primary_up(0), None);
    w.run(5_000);
    assert_eq!(
        (w.record(0).primary, w.record(0).wanted),
        (None, Wanted::Stopped)
    );
    assert!(waiting(&w, 2).contains("holdfast promote r0"));
    w.crash(0, false);
    w.run(5_000);
    assert_eq!(w.record(1).primary, None, "not even when a node dies");
    done(&w.promote(2, 1, None));
    assert_eq!(w.primary_up(0), Some(1));
    w.check_history();
}

#[test]
fn restarted_primary_takes_the_next_epoch_without_waiting() {
    let mut own = 0;
    for seed in 0..10 {
        let mut w = World::up(400 + seed);
        w.run(1000);
        w.crash(0, false);
        w.run(50);
        w.boot(0);
        let t = w.now;
        w.run_until(10_000, |w| w.primary_up(0).is_some());
        assert_eq!(epoch(&w, 0), 2);
        // An election at the most, if it led the voters: less than a lease.
        assert!(
            (w.now - t) / MS < w.hosts[0].config.timing.promise_ms(),
            "{} ms",
            (w.now - t) / MS
        );
        let why = w
            .record(0)
            .history
            .iter()
            .rev()
            .find_map(|e| match e.change {
                Change::Primary { why, .. } => Some(why),
                _ => None,
            });
        // If it led the voters, the other member may find it silent before they have elected anew.
        own += u32::from((w.primary_up(0), why) == (Some(0), Some(Promotion::Restart)));
        w.check_history();
    }
    assert!(own >= 8, "{own} of 10");
}

#[test]
fn unclean_primary_leaves_it_to_the_clean_member() {
    let mut w = World::up(14);
    w.run(1000);
    w.crash(0, true);
    w.run(50);
    w.boot(0);
    let t = w.now;
    w.run_until(10_000, |w| w.primary_up(0).is_some());
    assert_eq!((w.primary_up(0), epoch(&w, 1)), (Some(1), 2));
    // It gave its old lease back, so nobody waited for it.
    assert!(
        (w.now - t) / MS < w.hosts[0].config.timing.promise_ms(),
        "{} ms",
        (w.now - t) / MS
    );
}

#[test]
fn unclean_alone_waits_and_all_unclean_goes_on() {
    let mut w = World::up(15);
    for h in 0..3 {
        w.crash(h, true);
    }
    w.boot(0);
    w.boot(2);
    w.run(10_000);
    assert_eq!(w.primary_up(0), None);
    assert!(
        waiting(&w, 0).contains("it waits for n1"),
        "{}",
        waiting(&w, 0)
    );
    w.boot(1);
    w.run_until(10_000, |w| w.primary_up(0).is_some());
    w.check_history();
}

#[test]
fn unclean_alone_is_allowed_by_policy_after_a_wait() {
    let mut w = World::up(16);
    for h in 0..3 {
        w.crash(h, true);
        w.hosts[h].config.resources[0].unclean_promotion = UncleanPromotion::Allow;
        w.hosts[h].config.timing.unclean_wait_ms = 20_000;
    }
    w.boot(0);
    w.boot(2);
    w.run(15_000);
    assert_eq!(w.primary_up(0), None);
    w.run_until(15_000, |w| w.primary_up(0) == Some(0));
}

#[test]
fn what_the_operator_says_of_resync_outlives_the_primary() {
    let mut w = World::up(31);
    w.run(1000);
    let order = ResyncOrder {
        min: None,
        max: Some(10 << 20),
        paused: true,
    };
    let care = |care| AdminRequest::Care {
        resource: "r0".into(),
        volume: VolumeIx(0),
        care,
    };
    // Asked at a node that is not the primary.
    done(&w.ask(2, care(Care::Resync(order)), 3000));
    done(&w.ask(2, care(Care::Resync(order)), 3000));
    let verified = Verified {
        ended_ms: 5,
        differing_bytes: 4096,
        ..Verified::default()
    };
    done(&w.ask(1, care(Care::Verified(verified)), 3000));
    done(&w.ask(0, care(Care::ScrubDue(77)), 3000));
    w.run(1000);
    for n in 0..3 {
        let status = w.status(n);
        let upkeep = status.resources[0].volumes[0].upkeep;
        assert_eq!(upkeep.resync, order, "node {n}");
        assert_eq!(upkeep.scrub_due_ms, 77, "node {n}");
        assert_eq!(upkeep.verified, Some(verified), "node {n}");
        let told = status.resources[0].history.iter().any(|h| {
            matches!(
                h.change,
                Change::Differed {
                    differing_bytes: 4096,
                    ..
                }
            )
        });
        assert!(told, "the history of node {n}");
    }
}
