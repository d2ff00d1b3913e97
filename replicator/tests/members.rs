//! Replicas that come and go while the volume is in use.

mod common;

use common::Cluster;
use common::power::Rng;
use holdfast_replicator::{Event, FromControl, Note, RequestError};
use holdfast_types::{NodeId, NodeSet};

fn set(nodes: &[u8]) -> NodeSet {
    nodes.iter().map(|&n| NodeId(n)).collect()
}

/// Two members and a third node whose replica is made, but not recorded.
fn two_and_a_stranger() -> Cluster {
    let mut c = Cluster::placed(3, &[0, 1], &[0, 1]);
    c.promote(0);
    for b in 0..64 {
        c.write(0, b, 1);
        c.settle();
    }
    c
}

fn resynced(c: &Cluster, n: usize, peer: u8) -> bool {
    let of = |note: &Note| matches!(note, Note::Resynced { peer: p, .. } if *p == NodeId(peer));
    c.sites[n].notes.iter().any(of)
}

#[test]
fn a_replica_that_is_added_is_filled_and_taken_in_under_writes() {
    let mut c = two_and_a_stranger();
    c.place(&[0, 1, 2]);
    for b in 0..32 {
        c.write(0, b, 2);
        c.pass(20);
    }
    c.pass(2000);
    assert_eq!(c.view.in_sync, set(&[0, 1, 2]));
    assert!(resynced(&c, 0, 2));
    c.assert_equal(0, 2);
    c.assert_equal(1, 2);
    // It is as good as the others: it takes over.
    c.kill(0);
    c.pass(1000);
    c.promote(2);
    c.pass(1000);
    assert_eq!(c.read(2, 3), 2);
    assert_eq!(c.read(2, 40), 1);
}

#[test]
fn an_added_replica_is_filled_by_a_primary_that_never_saw_it_before() {
    let mut c = two_and_a_stranger();
    c.kill(2);
    c.place(&[0, 1, 2]);
    c.write(0, 5, 7);
    c.settle();
    c.kill(0);
    c.promote(1);
    c.pass(1000);
    c.start(2);
    c.pass(2000);
    assert!(c.view.in_sync.has(NodeId(2)));
    c.assert_equal(1, 2);
}

#[test]
fn a_crash_right_after_the_addition_loses_no_bit() {
    for steps in 0..40 {
        let mut c = two_and_a_stranger();
        c.cut(2);
        c.place_without_settling(&[0, 1, 2]);
        for _ in 0..steps {
            c.one();
        }
        c.kill(0);
        c.start(0);
        c.promote(0);
        c.pass(3000);
        assert_eq!(c.view.in_sync, set(&[0, 1, 2]), "after {steps} steps");
        c.assert_equal(0, 2);
    }
}

#[test]
fn a_member_that_is_removed_frees_the_writes_that_wait_for_it() {
    let mut c = Cluster::placed(3, &[0, 1, 2], &[0, 1, 2]);
    c.promote(0);
    c.sites[2].slow = true;
    let w = c.write(0, 9, 9);
    c.settle();
    assert!(!c.acked(0, w));
    c.view.in_sync = set(&[0, 1]);
    c.place(&[0, 1]);
    c.settle();
    assert!(c.acked(0, w), "the removal is committed");
    let status = c.sites[0].replica.as_ref().unwrap().status();
    assert_eq!(status.peers.len(), 1);
    c.pass(1000);
    assert_eq!(c.view.in_sync, set(&[0, 1]), "it is not taken in again");
    let w = c.write(0, 10, 9);
    c.settle();
    assert!(c.acked(0, w));
}

#[test]
fn a_replica_removed_while_it_is_being_filled_is_let_go() {
    let mut c = two_and_a_stranger();
    c.sites[2].slow = true;
    c.place(&[0, 1, 2]);
    c.pass(200);
    c.place(&[0, 1]);
    c.pass(500);
    assert_eq!(c.view.in_sync, set(&[0, 1]));
    let w = c.write(0, 1, 3);
    c.settle();
    assert!(c.acked(0, w));
}

#[test]
fn a_replica_that_is_added_again_starts_from_nothing() {
    let mut c = two_and_a_stranger();
    c.place(&[0, 1, 2]);
    c.pass(2000);
    assert_eq!(c.view.in_sync, set(&[0, 1, 2]));
    c.view.in_sync = set(&[0, 1]);
    c.place(&[0, 1]);
    c.pass(100);
    // Another disk in its place: blank, whatever the others' slots once said.
    c.kill(2);
    c.blank(2);
    c.kill(0);
    c.start(0);
    c.promote(0);
    c.place(&[0, 1, 2]);
    c.start(2);
    c.pass(2000);
    assert_eq!(c.view.in_sync, set(&[0, 1, 2]));
    c.assert_equal(0, 2);
    let sent = c.sites[0].notes.iter().rev().find_map(|n| match n {
        Note::Resynced { sent_bytes, .. } => Some(*sent_bytes),
        _ => None,
    });
    assert_eq!(sent, Some(64 * 64), "all of it");
}

#[test]
fn a_removed_replica_stops_in_good_order() {
    let mut c = Cluster::placed(3, &[0, 1, 2], &[0, 1, 2]);
    c.promote(0);
    c.view.in_sync = set(&[0, 1]);
    c.place(&[0, 1]);
    c.event(2, Event::Control(FromControl::Stop));
    c.settle();
    assert!(c.sites[2].stopped);
    let refused = c.write(2, 1, 1);
    assert_eq!(c.sites[2].answers[&refused], Err(RequestError::NotPrimary));
}

#[test]
fn a_dismissed_member_leaves_the_set_and_stays_out() {
    let mut c = Cluster::new(3, &[0, 1, 2]);
    c.promote(0);
    let peer = NodeId(2);
    c.event(0, Event::Control(FromControl::Dismiss { peer }));
    c.settle();
    assert_eq!(c.view.in_sync, set(&[0, 1]));
    c.pass(1000);
    assert_eq!(c.view.in_sync, set(&[0, 1]));
    // Nobody removed it after all.
    c.pass(10_000);
    assert_eq!(c.view.in_sync, set(&[0, 1, 2]));
    let me = NodeId(0);
    c.event(0, Event::Control(FromControl::Dismiss { peer: me }));
    c.settle();
    assert!(c.view.in_sync.has(me), "never the primary itself");
}

/// Member 2 stopped cleanly, left, and lacks everything that was written since. It came back, and most of that is
/// resynced: the members are about to be told. Then it goes again.
fn most_of_it_is_resynced(c: &mut Cluster) {
    c.promote(0);
    c.event(2, Event::Control(FromControl::Stop));
    c.settle();
    c.kill(2);
    c.pass(1000);
    for b in 0..64 {
        c.write(0, b, 1);
        c.settle();
    }
    c.pass(3000);
    c.start_without_settling(2);
    let lacking = |c: &Cluster| {
        let status = c.sites[0].replica.as_ref().unwrap().status();
        let of = status.peers.iter().find(|p| p.node == NodeId(2)).unwrap();
        of.out_of_sync_bytes / 64
    };
    while lacking(c) > 8 {
        assert!(c.one());
    }
    c.kill(2);
    assert_eq!(c.sites[2].disk[0], 1, "block 0 was resynced");
}

/// News of what was resynced is older than the close that a member gets when it reconnects (rule 17).
#[test]
fn a_member_that_reconnects_keeps_the_bits_of_the_latest_closes() {
    let mut c = Cluster::new(3, &[0, 1, 2]);
    most_of_it_is_resynced(&mut c);
    let w = c.write(0, 0, 9);
    c.settle();
    assert!(c.acked(0, w));
    c.cut(1);
    c.connect(0, 1);
    c.settle();
    c.pass(200);
    c.kill(0);
    c.promote(1);
    c.pass(1000);
    c.start(2);
    c.pass(3000);
    assert!(c.view.in_sync.has(NodeId(2)));
    let bytes = 64 * 64;
    assert!(c.sites[1].disk[..bytes] == c.sites[2].disk[..bytes]);
}

/// A replica is added where an earlier one of the same node was, whose bitmap is still on the disk and says that it
/// lacks nothing. Whatever else stores the superblock in the meantime, and whatever of it a loss of power leaves.
#[test]
fn a_slot_is_on_disk_only_after_its_bits() {
    for seed in 0..200 {
        let mut c = Cluster::new(2, &[0, 1]);
        c.promote(0);
        c.event(1, Event::Control(FromControl::Stop));
        c.settle();
        c.kill(1);
        c.view.in_sync = set(&[0]);
        c.place(&[0]);
        for b in 0..64 {
            c.write(0, b, 5);
            c.settle();
        }
        let mut rng = Rng(seed);
        let steps = rng.below(12);
        c.chance = Some(rng);
        c.place_without_settling(&[0, 1]);
        let epoch = c.view.epoch.next();
        c.event(0, Event::Control(FromControl::Promise { epoch }));
        for _ in 0..steps {
            c.any();
        }
        c.sites[0].drop_queue_io();
        c.kill(0);
        c.chance = None;
        c.start(0);
        c.promote(0);
        c.start(1);
        c.pass(3000);
        assert_eq!(c.view.in_sync, set(&[0, 1]), "seed {seed}");
        let bytes = 64 * 64;
        assert!(
            c.sites[0].disk[..bytes] == c.sites[1].disk[..bytes],
            "seed {seed}: the added replica lacks what nobody knows of"
        );
    }
}

#[test]
fn a_member_that_hears_late_of_a_new_one_does_not_call_it_dirty_for_ever() {
    let mut c = Cluster::placed(3, &[0, 1], &[0, 1]);
    c.promote(0);
    c.pass(100);
    // Only the primary and the new one know.
    c.view.data_nodes = set(&[0, 1, 2]);
    c.view.generation = c.view.generation.next();
    let view = c.view;
    for n in [0, 2] {
        c.event(n, Event::Control(FromControl::View(view)));
    }
    c.deaf = Some(1);
    c.pass(2000);
    assert_eq!(c.view.in_sync, set(&[0, 1, 2]));
    let view = c.view;
    c.deaf = None;
    c.event(1, Event::Control(FromControl::View(view)));
    c.pass(2000);
    let status = c.sites[1].replica.as_ref().unwrap().status();
    let of = |p: &&holdfast_replicator::PeerStatus| p.node == NodeId(2);
    assert_eq!(status.peers.iter().find(of).unwrap().out_of_sync_bytes, 0);
}

/// A replica is added while another one is on its way into the set. The primary hears of it after that one made its cut:
/// the bitmaps that came with the cut say nothing of it, and a member without bits for it would take it for equal.
#[test]
fn a_cut_that_knows_nothing_of_an_added_replica_is_made_again() {
    let mut c = Cluster::new(3, &[0, 2]);
    c.kill(1);
    c.promote(0);
    c.event(2, Event::Control(FromControl::Stop));
    c.settle();
    c.kill(2);
    c.view.in_sync = set(&[0]);
    c.place(&[0, 1]);
    for b in 0..64 {
        c.write(0, b, 5);
        c.settle();
    }
    c.pass(3000);
    c.start_without_settling(1);
    // Recorded, and the syncing replica is the first to hear of it.
    c.view.data_nodes = set(&[0, 1, 2]);
    c.view.generation = c.view.generation.next();
    c.event(1, Event::Control(FromControl::View(c.view)));
    c.pass(400);
    assert_eq!(c.view.in_sync, set(&[0]), "proposed for an older record");
    c.place(&[0, 1, 2]);
    c.pass(1000);
    assert_eq!(c.view.in_sync, set(&[0, 1]));
    c.kill(0);
    c.promote(1);
    c.start(2);
    c.pass(3000);
    assert!(c.view.in_sync.has(NodeId(2)));
    let bytes = 64 * 64;
    assert!(c.sites[1].disk[..bytes] == c.sites[2].disk[..bytes]);
}

/// What was seen of a removed replica's disk says nothing of the one that gets its slot.
#[test]
fn a_replica_in_the_slot_of_another_is_not_taken_for_a_changed_disk() {
    let mut c = Cluster::placed(4, &[0, 1, 2], &[0, 1, 2]);
    c.kill(3);
    c.promote(0);
    c.write(0, 1, 1);
    c.settle();
    c.pass(3000);
    c.view.in_sync = set(&[0, 1]);
    c.place(&[0, 1]);
    c.kill(2);
    c.place(&[0, 1, 3]);
    c.kill(0);
    c.start(0);
    c.promote(0);
    c.start(3);
    c.pass(3000);
    assert_eq!(c.view.in_sync, set(&[0, 1, 3]));
    let distrusted = |n: &&Note| matches!(n, Note::Distrusted { .. });
    assert_eq!(c.sites[0].notes.iter().find(distrusted), None);
}
