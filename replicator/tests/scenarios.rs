//! Named scenarios of one volume, each in a few lines: the ordinary ways of a replica's life.

mod common;

use bytes::Bytes;
use common::{BLOCK, Cluster};
use holdfast_replicator::{Event, FromControl, Note, Request, RequestError, VerifyOrder};
use holdfast_types::{NodeId, NodeSet, Role};

fn set(nodes: &[u8]) -> NodeSet {
    nodes.iter().map(|&n| NodeId(n)).collect()
}

#[test]
fn a_write_is_on_both_replicas_when_it_is_acknowledged() {
    let mut c = Cluster::new(2, &[0, 1]);
    c.promote(0);
    let w = c.write(0, 3, 0xAA);
    c.settle();
    assert!(c.acked(0, w));
    c.assert_equal(0, 1);
    assert_eq!(c.read(0, 3), 0xAA);
    let refused = c.write(1, 3, 1);
    assert_eq!(c.sites[1].answers[&refused], Err(RequestError::NotPrimary));
}

#[test]
fn no_acknowledgement_before_the_removal_of_a_lost_member_is_committed() {
    let mut c = Cluster::new(2, &[0, 1]);
    c.promote(0);
    c.register_up = false;
    c.kill(1);
    let w = c.write(0, 1, 1);
    c.pass(5000);
    assert!(!c.acked(0, w), "G1: the set still names the lost member");
    c.register_up = true;
    c.pass(1000);
    assert!(c.acked(0, w));
    assert_eq!(c.view.in_sync, set(&[0]));
}

#[test]
fn a_killed_secondary_comes_back_by_bitmap() {
    let mut c = Cluster::new(2, &[0, 1]);
    c.promote(0);
    for b in 0..64 {
        c.write(0, b, 1);
        c.settle();
    }
    c.kill(1);
    c.pass(1000);
    for b in [2, 3, 40] {
        c.write(0, b, 2);
        c.settle();
    }
    c.start(1);
    c.pass(2000);
    assert_eq!(c.view.in_sync, set(&[0, 1]));
    c.assert_equal(0, 1);
    let sent = c.sites[0].notes.iter().find_map(|n| match n {
        Note::Resynced { sent_bytes, .. } => Some(*sent_bytes),
        _ => None,
    });
    assert_eq!(sent, Some(3 * BLOCK as u64), "only what differs travels");
}

#[test]
fn failover_keeps_what_was_acknowledged_and_the_old_primary_resyncs() {
    let mut c = Cluster::new(2, &[0, 1]);
    c.promote(0);
    let w = c.write(0, 5, 7);
    c.settle();
    assert!(c.acked(0, w));
    // In doubt: on the primary's disk alone.
    c.sites[1].slow = true;
    c.write(0, 6, 9);
    c.settle();
    c.kill(0);
    c.sites[1].slow = false;
    c.settle();
    c.promote(1);
    c.pass(1000);
    assert!(c.sites[1].opened.is_some());
    assert_eq!(c.view.in_sync, set(&[1]));
    assert_eq!(c.read(1, 5), 7);
    let before = c.read(1, 6);
    c.write(1, 8, 3);
    c.start(0);
    c.pass(2000);
    assert_eq!(c.view.in_sync, set(&[0, 1]));
    c.assert_equal(0, 1);
    assert_eq!(c.read(1, 6), before, "G6");
}

#[test]
fn a_restarted_primary_takes_a_new_epoch_and_reconciles() {
    let mut c = Cluster::new(2, &[0, 1]);
    c.promote(0);
    c.write(0, 1, 1);
    c.settle();
    c.sites[1].slow = true;
    c.write(0, 2, 2);
    c.settle();
    c.kill(0);
    c.sites[1].slow = false;
    c.settle();
    c.start(0);
    c.promote(0);
    c.pass(1000);
    assert_eq!(c.view.epoch.0, 2);
    assert_eq!(c.view.in_sync, set(&[0, 1]), "nobody was lost");
    assert_eq!(c.read(0, 1), 1);
    let _ = c.read(0, 2);
    c.pass(200);
    c.assert_equal(0, 1);
    assert!(
        c.sites[0]
            .notes
            .iter()
            .any(|n| matches!(n, Note::Reconciled { .. }))
    );
}

#[test]
fn a_blank_replica_is_filled() {
    let mut c = Cluster::new(2, &[0]);
    c.promote(0);
    for b in 0..20 {
        c.write(0, b * 3, 5);
    }
    c.pass(2000);
    assert_eq!(c.view.in_sync, set(&[0, 1]));
    c.assert_equal(0, 1);
}

#[test]
fn writes_go_on_during_resync_and_the_replica_joins() {
    let mut c = Cluster::new(2, &[0]);
    c.promote(0);
    for round in 0..200u64 {
        c.write(0, round * 7 % 64, (round % 250) as u8);
        if round % 3 == 0 {
            c.pass(10);
        }
    }
    c.pass(1000);
    assert_eq!(c.view.in_sync, set(&[0, 1]));
    c.assert_equal(0, 1);
}

#[test]
fn a_planned_hand_over_leaves_nothing_in_doubt() {
    let mut c = Cluster::new(2, &[0, 1]);
    c.promote(0);
    for b in 0..10 {
        c.write(0, b, 4);
    }
    c.settle();
    c.event(0, Event::Control(FromControl::Drain));
    c.settle();
    assert!(c.sites[0].drained);
    let held = c.write(0, 1, 9);
    c.settle();
    assert!(!c.sites[0].answers.contains_key(&held), "held, not failed");
    c.event(0, Event::Control(FromControl::StepDown));
    assert_eq!(c.sites[0].answers[&held], Err(RequestError::NotPrimary));
    c.promote(1);
    c.pass(100);
    assert_eq!(c.view.in_sync, set(&[0, 1]));
    let reconciled = c.sites[1].notes.iter().find_map(|n| match n {
        Note::Reconciled { blocks } => Some(*blocks),
        _ => None,
    });
    assert_eq!(reconciled, Some(0));
    assert_eq!(c.read(1, 1), 4);
}

#[test]
fn odd_offsets_are_patched_and_zeroes_and_flushes_work() {
    let mut c = Cluster::new(2, &[0, 1]);
    c.promote(0);
    c.request(
        0,
        Request::Write {
            offset: 10,
            data: Bytes::from(vec![1; 200]),
            fua: true,
        },
    );
    c.settle();
    c.request(
        0,
        Request::Zero {
            offset: 100,
            len: 3000,
            fua: false,
        },
    );
    c.settle();
    c.request(
        0,
        Request::Write {
            offset: 1000,
            data: Bytes::from(vec![2; 5]),
            fua: false,
        },
    );
    let flush = c.request(0, Request::Flush);
    c.settle();
    assert!(c.acked(0, flush));
    let read = c.request(
        0,
        Request::Read {
            offset: 0,
            len: 4096,
        },
    );
    c.settle();
    let mut want = vec![0u8; 4096];
    want[10..100].fill(1);
    want[1000..1005].fill(2);
    assert!(c.sites[0].answers[&read].as_ref().unwrap()[..] == want[..]);
    c.assert_equal(0, 1);
    let outside = c.request(
        0,
        Request::Read {
            offset: 4000,
            len: 97,
        },
    );
    assert_eq!(c.sites[0].answers[&outside], Err(RequestError::Range));
}

#[test]
fn a_clean_stop_and_start_needs_no_resync() {
    let mut c = Cluster::new(2, &[0, 1]);
    c.promote(0);
    for b in 0..64 {
        c.write(0, b, 6);
    }
    c.settle();
    for n in [0, 1] {
        c.event(n, Event::Control(FromControl::Stop));
        c.settle();
        assert!(c.sites[n].stopped);
    }
    c.kill(0);
    c.kill(1);
    for n in [0, 1] {
        c.sites[n].boot = 2;
        c.start(n);
    }
    c.promote(1);
    c.pass(100);
    assert_eq!(c.view.in_sync, set(&[0, 1]));
    let status = c.sites[1].replica.as_ref().unwrap().status();
    assert_eq!(status.role, Role::Primary);
    assert_eq!(status.peers[0].out_of_sync_bytes, 0);
    assert_eq!(c.read(1, 63), 6);
}

#[test]
fn three_replicas_survive_two_failovers() {
    let mut c = Cluster::new(3, &[0, 1, 2]);
    c.promote(0);
    c.write(0, 1, 1);
    c.settle();
    c.kill(0);
    c.promote(1);
    c.pass(1000);
    assert_eq!(c.view.in_sync, set(&[1, 2]));
    c.write(1, 2, 2);
    c.settle();
    c.kill(1);
    c.promote(2);
    c.pass(1000);
    assert_eq!(c.view.in_sync, set(&[2]));
    c.write(2, 3, 3);
    c.settle();
    c.start(0);
    c.start(1);
    c.pass(3000);
    assert_eq!(c.view.in_sync, set(&[0, 1, 2]));
    c.assert_equal(0, 2);
    c.assert_equal(1, 2);
    assert_eq!((c.read(2, 1), c.read(2, 2), c.read(2, 3)), (1, 2, 3));
}

#[test]
fn verify_finds_what_differs() {
    let mut c = Cluster::new(2, &[0, 1]);
    c.promote(0);
    c.sites[1].disk[64 * 9] = 1;
    let order = VerifyOrder::default();
    c.event(0, Event::Control(FromControl::Verify(order)));
    c.settle();
    let found = c.sites[0].notes.iter().find_map(|n| match n {
        Note::Verified(report) => Some(report.clone()),
        _ => None,
    });
    let found = found.unwrap();
    assert!(found.is_complete());
    assert_eq!(
        found.peers[0].differing,
        vec![holdfast_types::BlockRange::new(9, 1)]
    );
    // Distrust it: removed, compared, taken in again.
    c.event(
        0,
        Event::Control(FromControl::Invalidate { peer: NodeId(1) }),
    );
    c.pass(2000);
    assert_eq!(c.view.in_sync, set(&[0, 1]));
    c.assert_equal(0, 1);
}
