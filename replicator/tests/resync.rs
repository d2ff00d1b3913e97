//! Resync: by bitmap, thin, resumable, within bounds; what travels is counted.

mod common;

use bytes::Bytes;
use common::{BLOCK, Cluster};
use holdfast_replicator::{Event, FromControl, Note, Request, ResyncOrder};
use holdfast_types::{NodeId, NodeSet};
use holdfast_wire::Frame;

fn set(nodes: &[u8]) -> NodeSet {
    nodes.iter().map(|&n| NodeId(n)).collect()
}

/// Two replicas; the second is gone and lacks these blocks, each of which is `0xD0 + block % 16`.
fn lacking(blocks: impl IntoIterator<Item = u64>) -> Cluster {
    let mut c = Cluster::new(2, &[0, 1]);
    c.promote(0);
    for b in 0..64 {
        c.write(0, b, 1);
        c.settle();
    }
    c.kill(1);
    c.pass(1000);
    for b in blocks {
        c.write(0, b, 0xD0 + (b % 16) as u8);
        c.settle();
    }
    c
}

fn resynced(c: &Cluster, n: usize) -> Option<(u64, u64, u64)> {
    c.sites[n].notes.iter().find_map(|note| match note {
        Note::Resynced {
            sent_bytes,
            zero_blocks,
            equal_blocks,
            ..
        } => Some((*sent_bytes, *zero_blocks, *equal_blocks)),
        _ => None,
    })
}

fn out_of_sync(c: &Cluster, n: usize, peer: u8) -> u64 {
    let status = c.sites[n].replica.as_ref().unwrap().status();
    let peer = status.peers.iter().find(|p| p.node == NodeId(peer));
    peer.unwrap().out_of_sync_bytes / BLOCK as u64
}

fn order(c: &mut Cluster, n: usize, order: ResyncOrder) {
    c.event(n, Event::Control(FromControl::Resync(order)));
    c.settle();
}

/// The ranges and payloads of the resync frames that went.
fn copies(c: &Cluster) -> Vec<(u64, u64, Option<usize>)> {
    let mut found: Vec<_> = c
        .sent
        .iter()
        .filter_map(|(_, _, frame)| match frame {
            Frame::Resync { range, data, .. } => {
                Some((range.first, range.count, data.as_ref().map(Bytes::len)))
            }
            _ => None,
        })
        .collect();
    found.sort_unstable();
    found
}

#[test]
fn a_job_reads_over_small_gaps_and_sends_only_what_is_dirty() {
    // Blocks 8 and 10 lie in one extent: one read, two frames, nothing for block 9.
    let mut c = lacking([8, 10, 40]);
    c.sent.clear();
    c.start(1);
    c.pass(2000);
    c.assert_equal(0, 1);
    let expected: Vec<_> = [8, 10, 40].map(|b| (b, 1, Some(BLOCK))).into();
    assert_eq!(copies(&c), expected);
    // What was in the target's activity log when it died was compared, and found equal.
    let (sent, zeroes, _) = resynced(&c, 0).unwrap();
    assert_eq!((sent, zeroes), (3 * BLOCK as u64, 0));
}

#[test]
fn zeroes_travel_as_zeroes_in_one_piece_and_holes_stay_holes() {
    let mut c = lacking([16]);
    // Blocks 17 to 19 are discarded by three requests, next to one with data.
    for b in 17..20 {
        let zero = Request::Zero {
            offset: b * BLOCK as u64,
            len: BLOCK as u64,
            fua: false,
        };
        c.request(0, zero);
        c.settle();
    }
    c.sent.clear();
    c.start(1);
    c.pass(2000);
    c.assert_equal(0, 1);
    assert_eq!(copies(&c), vec![(16, 1, Some(BLOCK)), (17, 3, None)]);
    let (sent, zeroes, _) = resynced(&c, 0).unwrap();
    assert_eq!((sent, zeroes), (BLOCK as u64, 3));
    let punched = c.sites[1]
        .zeroed
        .contains(&(17 * BLOCK as u64, 3 * BLOCK as u64));
    assert!(
        punched,
        "the target punches one hole: {:?}",
        c.sites[1].zeroed
    );
}

#[test]
fn an_interrupted_resync_goes_on_where_it_was() {
    let mut c = lacking(0..64);
    c.sent.clear();
    let paused = ResyncOrder {
        paused: true,
        ..ResyncOrder::default()
    };
    order(&mut c, 0, paused);
    c.start(1);
    order(&mut c, 0, ResyncOrder::default());
    // Cut off again and again, each time after a few blocks more.
    let mut cuts = 0;
    while out_of_sync(&c, 0, 1) > 0 {
        let goal = out_of_sync(&c, 0, 1).saturating_sub(12);
        while out_of_sync(&c, 0, 1) > goal {
            if !c.one() {
                c.pass_without_settling(20);
            }
        }
        c.cut(1);
        cuts += 1;
        c.connect(0, 1);
        assert!(out_of_sync(&c, 0, 1) <= goal, "a cut takes nothing back");
    }
    assert!(cuts >= 4, "{cuts} interruptions");
    c.pass(2000);
    assert_eq!(c.view.in_sync, set(&[0, 1]));
    c.assert_equal(0, 1);
}

#[test]
fn the_target_may_be_killed_and_resync_goes_on() {
    let mut c = lacking(0..64);
    c.start(1);
    while out_of_sync(&c, 0, 1) > 20 {
        if !c.one() {
            c.pass(10);
        }
    }
    let left = out_of_sync(&c, 0, 1);
    c.kill(1);
    c.pass(1000);
    c.sent.clear();
    c.start(1);
    c.pass(3000);
    assert_eq!(c.view.in_sync, set(&[0, 1]));
    c.assert_equal(0, 1);
    // What it had when it died is in its activity log: compared, not sent again unless it differs.
    let blocks: u64 = copies(&c).iter().map(|(_, count, _)| count).sum();
    assert!(blocks <= left, "{blocks} blocks sent, {left} were left");
}

#[test]
fn a_new_primary_goes_on_with_the_resync_of_the_old_one() {
    let mut c = Cluster::new(3, &[0, 1, 2]);
    c.promote(0);
    for b in 0..64 {
        c.write(0, b, 1);
        c.settle();
    }
    c.kill(2);
    c.pass(1000);
    for b in 0..64 {
        c.write(0, b, 2);
        c.settle();
    }
    assert_eq!(c.view.in_sync, set(&[0, 1]));
    c.pass(100);
    c.start(2);
    while out_of_sync(&c, 0, 2) > 8 {
        if !c.one() {
            c.pass(10);
        }
    }
    c.pass_without_settling(60);
    // The member knows what the third has got by now.
    while c.one() {}
    c.kill(0);
    c.promote(1);
    let known = out_of_sync(&c, 1, 2);
    assert!(known < 32, "{known} blocks, of 64, to be done again");
    c.pass(3000);
    assert!(c.view.in_sync.contains(set(&[1, 2])));
    c.assert_equal(1, 2);
}

#[test]
fn paused_means_no_block_moves_and_resumed_that_they_do() {
    let mut c = lacking(0..32);
    let paused = ResyncOrder {
        paused: true,
        ..ResyncOrder::default()
    };
    order(&mut c, 0, paused);
    c.start(1);
    c.sent.clear();
    let before = out_of_sync(&c, 0, 1);
    assert!(before >= 32);
    c.pass(3000);
    assert_eq!(copies(&c), vec![]);
    assert_eq!(out_of_sync(&c, 0, 1), before);
    let status = c.sites[0].replica.as_ref().unwrap().status();
    assert!(status.resync.bounds.paused);
    // New writes reach it all the same.
    c.write(0, 40, 9);
    c.settle();
    assert_eq!(c.sites[1].disk[40 * BLOCK], 9);
    order(&mut c, 0, ResyncOrder::default());
    c.pass(1000);
    assert_eq!(c.view.in_sync, set(&[0, 1]));
    c.assert_equal(0, 1);
}

#[test]
fn a_ceiling_holds_and_survives_a_change_of_role() {
    let mut c = lacking(0..64);
    // Four blocks per second.
    let slow = ResyncOrder {
        min: None,
        max: Some(4 * BLOCK as u64),
        paused: false,
    };
    order(&mut c, 0, slow);
    order(&mut c, 1, slow);
    c.start(1);
    c.pass(4000);
    let done = 64 - out_of_sync(&c, 0, 1);
    assert!((4..=32).contains(&done), "{done} blocks in four seconds");
    let status = c.sites[0].replica.as_ref().unwrap().status();
    assert_eq!(status.resync.held_to, Some(4 * BLOCK as u64));
    assert!(status.peers[0].resync_bytes_per_second > 0);
    order(&mut c, 0, ResyncOrder::default());
    c.pass(2000);
    assert_eq!(c.view.in_sync, set(&[0, 1]));
}

#[test]
fn what_is_on_its_way_to_a_syncing_replica_is_bounded() {
    let mut c = lacking(0..64);
    c.start(1);
    let pause = ResyncOrder {
        paused: true,
        ..ResyncOrder::default()
    };
    order(&mut c, 0, pause);
    c.pass(500);
    c.sites[1].slow = true;
    c.sent.clear();
    // More writes than may lag; the application does not wait for them.
    let mut last = 0;
    for i in 0..600u64 {
        last = c.write(0, i % 64, i as u8);
        c.settle();
    }
    assert!(c.acked(0, last));
    let went = c
        .sent
        .iter()
        .filter(|(_, to, f)| *to == 1 && matches!(f, Frame::Write { .. }));
    assert!(went.count() <= 512);
    c.sites[1].slow = false;
    order(&mut c, 0, ResyncOrder::default());
    c.pass(3000);
    assert_eq!(c.view.in_sync, set(&[0, 1]));
    c.assert_equal(0, 1);
}

#[test]
fn full_write_load_does_not_keep_a_resync_from_its_end() {
    let mut c = lacking(0..64);
    c.start(1);
    let mut rounds = 0u64;
    while c.view.in_sync != set(&[0, 1]) {
        for i in 0..8 {
            c.write(0, (rounds * 13 + i * 7) % 64, (rounds % 200) as u8 + 1);
        }
        c.pass(10);
        rounds += 1;
        assert!(rounds < 2000, "not in sync after {rounds} rounds");
    }
    c.pass(100);
    c.assert_equal(0, 1);
}
