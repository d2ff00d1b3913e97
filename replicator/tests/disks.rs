//! Disks that fail, hang, fill up, or cannot read a block: on any node, the primary's included.

mod common;

use common::{BLOCK, Cluster, Fail};
use holdfast_replicator::{
    DiskError, DiskTrouble, Event, FromControl, Note, Request, RequestError, VerifyOrder,
};
use holdfast_types::{DiskState, NodeId, NodeSet};

fn set(nodes: &[u8]) -> NodeSet {
    nodes.iter().map(|&n| NodeId(n)).collect()
}

fn status(c: &Cluster, n: usize) -> holdfast_replicator::Status {
    c.sites[n].replica.as_ref().unwrap().status()
}

/// Three replicas with something on every block, led by 0.
fn three() -> Cluster {
    let mut c = Cluster::new(3, &[0, 1, 2]);
    c.promote(0);
    for b in 0..64 {
        c.write(0, b, 1 + b as u8);
        c.settle();
    }
    c.pass(100);
    c
}

fn flush(c: &mut Cluster, n: usize) -> u64 {
    let flush = c.request(n, Request::Flush);
    c.settle();
    flush
}

#[test]
fn a_failed_write_takes_the_primarys_disk_out_and_the_application_goes_on() {
    let mut c = three();
    c.sites[0].fail = Fail::Writes(DiskError::Io);
    let w = c.write(0, 5, 200);
    c.settle();
    assert!(c.acked(0, w), "no error reaches the application");
    assert_eq!(c.view.in_sync, set(&[1, 2]));
    assert_eq!(status(&c, 0).disk, DiskState::Diskless);
    assert_eq!(status(&c, 0).trouble, Some(DiskTrouble::Io));
    let before = c.sites[0].disk.clone();
    for b in 0..64 {
        assert_eq!(c.read(0, b), if b == 5 { 200 } else { 1 + b as u8 });
    }
    let w = c.write(0, 6, 201);
    let f = flush(&mut c, 0);
    assert!(c.acked(0, w) && c.acked(0, f));
    // Not a whole block: read through a member, then written.
    let patch = c.request(
        0,
        Request::Write {
            offset: 7 * BLOCK as u64 + 3,
            data: vec![9; 5].into(),
            fua: true,
        },
    );
    c.settle();
    assert!(c.acked(0, patch));
    c.assert_equal(1, 2);
    assert_eq!(c.sites[1].disk[7 * BLOCK + 4], 9);
    assert_eq!(c.sites[0].disk, before, "nothing more goes to that disk");
    assert!(status(&c, 0).reads_from.is_some());
}

#[test]
fn nothing_is_acknowledged_before_the_removal_is_committed() {
    let mut c = Cluster::new(2, &[0, 1]);
    c.promote(0);
    c.register_up = false;
    c.sites[0].fail = Fail::Flushes;
    let w = c.write(0, 3, 7);
    c.settle();
    let f = flush(&mut c, 0);
    let after = c.write(0, 4, 8);
    c.pass(3000);
    assert!(c.acked(0, w), "that was before the failure");
    assert!(
        !c.acked(0, f) && !c.acked(0, after),
        "G1: the set names the failed disk"
    );
    assert!(status(&c, 0).held.is_some());
    c.register_up = true;
    c.pass(1000);
    assert!(c.acked(0, f) && c.acked(0, after));
    assert_eq!(c.view.in_sync, set(&[1]));
}

#[test]
fn a_full_file_system_says_so() {
    let mut c = three();
    c.sites[0].fail = Fail::Writes(DiskError::NoSpace);
    let w = c.write(0, 5, 200);
    c.settle();
    assert!(c.acked(0, w));
    assert_eq!(status(&c, 0).trouble, Some(DiskTrouble::NoSpace));
}

#[test]
fn a_hung_disk_costs_its_deadline_and_no_more() {
    let mut c = three();
    c.sites[0].slow = true;
    let w = c.write(0, 5, 200);
    let f = c.request(0, Request::Flush);
    let r = c.request(
        0,
        Request::Read {
            offset: 0,
            len: BLOCK as u32,
        },
    );
    c.pass(1400);
    assert!(!c.acked(0, w) && !c.acked(0, r));
    c.pass(300);
    assert!(c.acked(0, w) && c.acked(0, f) && c.acked(0, r));
    assert_eq!(status(&c, 0).trouble, Some(DiskTrouble::Hung));
    // What comes later is ignored.
    c.sites[0].slow = false;
    c.settle();
    assert_eq!(c.read(0, 5), 200);
    assert_eq!(c.view.in_sync, set(&[1, 2]));
}

#[test]
fn a_hung_disk_that_is_the_only_one_is_waited_for() {
    let mut c = Cluster::new(2, &[0]);
    c.kill(1);
    c.promote(0);
    c.sites[0].slow = true;
    let w = c.write(0, 5, 200);
    c.pass(10_000);
    assert!(!c.acked(0, w));
    c.sites[0].slow = false;
    c.settle();
    assert!(c.acked(0, w), "there was nobody to go on without it");
}

#[test]
fn a_process_that_was_stopped_has_not_seen_its_disk_hang() {
    let mut c = three();
    c.sites[0].slow = true;
    let w = c.write(0, 5, 200);
    c.settle();
    c.now = c.now.plus_ms(60_000);
    c.event(0, Event::Tick);
    c.sites[0].slow = false;
    c.pass(100);
    assert!(c.acked(0, w));
    assert_eq!(status(&c, 0).trouble, None);
}

#[test]
fn an_unreadable_block_is_read_from_a_member_and_written_anew() {
    let mut c = three();
    c.sites[0].fail = Fail::BadBlock(9);
    c.sites[0].disk[9 * BLOCK..10 * BLOCK].fill(0xEE);
    assert_eq!(c.read(0, 9), 10);
    assert_eq!(c.sites[0].disk[9 * BLOCK], 10, "rewritten");
    assert_eq!(c.sites[0].fail, Fail::No);
    assert_eq!(c.view.in_sync, set(&[0, 1, 2]), "the disk stays");
    let healed = |n: &Note| matches!(n, Note::Healed { range, .. } if range.first == 9);
    assert!(c.sites[0].notes.iter().any(healed));
    assert_eq!(status(&c, 0).read_errors, 1);
}

#[test]
fn a_part_of_an_unreadable_block_can_be_written() {
    let mut c = three();
    c.sites[0].fail = Fail::BadBlock(9);
    let patch = c.request(
        0,
        Request::Write {
            offset: 9 * BLOCK as u64 + 1,
            data: vec![77; 2].into(),
            fua: false,
        },
    );
    c.settle();
    assert!(c.acked(0, patch));
    assert_eq!(c.sites[0].disk[9 * BLOCK..9 * BLOCK + 4], [10, 77, 77, 10]);
    c.assert_equal(0, 1);
}

#[test]
fn a_block_that_nobody_can_read_fails_that_request_only() {
    let mut c = three();
    for n in 0..3 {
        c.sites[n].fail = Fail::Block(9);
    }
    let bad = c.request(
        0,
        Request::Read {
            offset: 9 * BLOCK as u64,
            len: BLOCK as u32,
        },
    );
    c.settle();
    assert_eq!(c.sites[0].answers[&bad], Err(RequestError::Io));
    assert_eq!(c.read(0, 10), 11);
    assert_eq!(c.view.in_sync, set(&[0, 1, 2]));
    assert_eq!(status(&c, 0).trouble, None);
}

#[test]
fn a_rewrite_that_fails_takes_the_disk_out() {
    let mut c = three();
    // The extent is in the log already: the first write is the block itself.
    c.sites[0].fail = Fail::Block(63);
    let read = c.request(
        0,
        Request::Read {
            offset: 63 * BLOCK as u64,
            len: BLOCK as u32,
        },
    );
    while !c.acked(0, read) {
        assert!(c.one());
    }
    c.sites[0].fail = Fail::Writes(DiskError::Io);
    c.settle();
    assert_eq!(c.view.in_sync, set(&[1, 2]));
    assert_eq!(c.read(0, 63), 64);
}

#[test]
fn reads_go_to_another_member_when_one_leaves() {
    let mut c = three();
    c.sites[0].fail = Fail::Writes(DiskError::Io);
    c.write(0, 5, 200);
    c.settle();
    let serving = usize::from(status(&c, 0).reads_from.unwrap().0);
    c.sites[serving].slow = true;
    let read = c.request(
        0,
        Request::Read {
            offset: 5 * BLOCK as u64,
            len: BLOCK as u32,
        },
    );
    c.settle();
    assert!(!c.acked(0, read));
    c.kill(serving);
    c.settle();
    assert_eq!(c.sites[0].answers[&read].as_ref().unwrap()[0], 200);
    c.pass(1000);
    assert_eq!(c.view.in_sync, set(&[3 - serving as u8]));
    // It comes back, and is filled from the other one through the primary; and what the primary's disk lacks is known
    // to it, as it is to the other.
    c.write(0, 6, 201);
    c.sites[serving].slow = false;
    c.start(serving);
    c.pass(2000);
    assert_eq!(c.view.in_sync, set(&[1, 2]));
    c.assert_equal(1, 2);
    for n in [1, 2] {
        let own = status(&c, n)
            .peers
            .into_iter()
            .find(|p| p.node == NodeId(0));
        assert!(
            own.unwrap().out_of_sync_bytes > 0,
            "G4: bits for the primary's disk on {n}"
        );
    }
}

#[test]
fn a_diskless_primary_that_dies_is_followed_by_a_member_and_its_disk_comes_back() {
    let mut c = three();
    c.sites[0].fail = Fail::Writes(DiskError::NoSpace);
    let w = c.write(0, 5, 200);
    c.settle();
    c.write(0, 40, 201);
    c.settle();
    assert!(c.acked(0, w));
    c.kill(0);
    c.promote(1);
    c.pass(1000);
    assert_eq!((c.read(1, 5), c.read(1, 40)), (200, 201));
    // Room was made, and the same disk is attached again.
    c.sites[0].fail = Fail::No;
    c.start(0);
    c.pass(3000);
    assert_eq!(c.view.in_sync, set(&[0, 1, 2]));
    c.assert_equal(0, 1);
    let sent = c.sites[1].notes.iter().find_map(|n| match n {
        Note::Resynced { sent_bytes, .. } => Some(*sent_bytes),
        _ => None,
    });
    assert!(
        sent.unwrap() <= 4 * BLOCK as u64,
        "from log and bits, not all of it: {sent:?}"
    );
}

#[test]
fn blocks_in_doubt_are_reconciled_without_the_primarys_copy() {
    let mut c = Cluster::new(3, &[0, 1, 2]);
    c.promote(0);
    for b in 0..64 {
        c.write(0, b, 1);
        c.settle();
    }
    // On 1 alone, and on the dead primary.
    c.sites[2].slow = true;
    c.write(0, 60, 9);
    c.settle();
    c.kill(0);
    c.sites[2].drop_queue_io();
    c.cut(2);
    c.sites[2].replica = None;
    c.start(2);
    // 1 leads, opens, and its disk is gone before anything is reconciled.
    c.event(
        1,
        Event::Control(FromControl::Promise {
            epoch: c.view.epoch.next(),
        }),
    );
    let mut opened = false;
    for _ in 0..10_000 {
        if c.sites[1].opened.is_some() {
            c.sites[1].fail = Fail::Block(60);
            c.event(1, Event::Control(FromControl::Detach));
            opened = true;
            break;
        }
        if !c.one() {
            c.pass(10);
        }
    }
    assert!(opened);
    c.event(
        1,
        Event::Control(FromControl::Lease {
            until: holdfast_replicator::Now(u64::MAX),
        }),
    );
    c.pass(2000);
    assert_eq!(c.view.in_sync, set(&[2]));
    let seen = c.read(1, 60);
    assert_eq!(c.sites[2].disk[60 * BLOCK], seen, "G6");
    assert_eq!(c.read(1, 59), 1);
}

#[test]
fn the_last_disk_is_never_taken_out() {
    let mut c = Cluster::new(2, &[0, 1]);
    c.promote(0);
    c.kill(1);
    c.pass(1000);
    assert_eq!(c.view.in_sync, set(&[0]));
    c.event(0, Event::Control(FromControl::Detach));
    c.settle();
    assert_eq!(status(&c, 0).trouble, None, "not even by the operator");
    c.sites[0].fail = Fail::Writes(DiskError::Io);
    let w = c.write(0, 5, 200);
    c.pass(1000);
    assert_eq!(c.sites[0].answers[&w], Err(RequestError::Io));
    assert_eq!(c.view.in_sync, set(&[0]));
    assert!(status(&c, 0).held.unwrap().contains("no other member"));
    assert_eq!(c.sites[0].proposed_self, 0);
}

#[test]
fn without_a_member_that_is_there_a_diskless_primary_removes_nobody_and_asks_to_be_relieved() {
    let mut c = three();
    c.sites[0].fail = Fail::Writes(DiskError::Io);
    c.write(0, 5, 200);
    c.settle();
    c.kill(1);
    c.kill(2);
    let w = c.write(0, 6, 201);
    c.pass(3000);
    assert!(
        !c.acked(0, w) && !c.sites[0].answers.contains_key(&w),
        "frozen"
    );
    assert_eq!(
        c.view.in_sync,
        set(&[1, 2]),
        "which is the better copy is not for it to say"
    );
    assert!(c.sites[0].stranded);
    // Both are back, as new runs: a promotion hears both.
    c.start(1);
    c.start(2);
    c.event(0, Event::Control(FromControl::StepDown));
    c.promote(2);
    c.pass(1000);
    assert_eq!(c.view.in_sync, set(&[1, 2]));
    assert_eq!(c.read(2, 5), 200);
    c.assert_equal(1, 2);
}

#[test]
fn a_detached_disk_of_a_secondary_leaves_the_set_and_its_node_stays_connected() {
    let mut c = three();
    c.event(2, Event::Control(FromControl::Detach));
    c.pass(100);
    assert_eq!(c.view.in_sync, set(&[0, 1]));
    assert_eq!(status(&c, 2).disk, DiskState::Diskless);
    let seen = status(&c, 0)
        .peers
        .into_iter()
        .find(|p| p.node == NodeId(2))
        .unwrap();
    assert!(seen.connected && !seen.attached);
    assert_eq!(seen.disk, DiskState::Diskless);
}

#[test]
fn a_secondary_that_cannot_read_a_block_gets_it_anew() {
    let mut c = Cluster::new(2, &[0, 1]);
    c.promote(0);
    for b in 0..64 {
        c.write(0, b, 3);
        c.settle();
    }
    c.pass(100);
    c.sites[1].fail = Fail::BadBlock(9);
    c.sites[1].disk[9 * BLOCK..10 * BLOCK].fill(0xEE);
    let order = VerifyOrder {
        peers: set(&[1]),
        repair: None,
        max_rate: None,
        scrub: false,
    };
    c.event(0, Event::Control(FromControl::Verify(order)));
    c.pass(1000);
    let found = c.sites[0].notes.iter().find_map(|n| match n {
        Note::Verified(report) => Some(report.peers[0].differing.clone()),
        _ => None,
    });
    assert_eq!(
        found.unwrap(),
        vec![holdfast_types::BlockRange::new(9, 1)],
        "that one only"
    );
    c.event(
        0,
        Event::Control(FromControl::Invalidate { peer: NodeId(1) }),
    );
    c.pass(3000);
    assert_eq!(c.view.in_sync, set(&[0, 1]));
    assert_eq!(status(&c, 1).trouble, None);
    c.assert_equal(0, 1);
}

#[test]
fn a_member_that_the_record_doubts_is_removed_without_a_session_saying_so() {
    let mut c = three();
    c.cut(2);
    c.view.doubtful = set(&[2]);
    c.view.generation = c.view.generation.next();
    let view = c.view;
    c.event(0, Event::Control(FromControl::View(view)));
    c.settle();
    assert_eq!(
        c.view.in_sync,
        set(&[0, 1]),
        "at once, not after the time to reconnect"
    );
}

#[test]
fn a_rewrite_keeps_its_lock_when_the_job_it_was_for_is_given_up() {
    for seed in 0..30 {
        let mut c = Cluster::new(3, &[0, 1]);
        c.promote(0);
        c.pass(3000);
        assert_eq!(c.view.in_sync, set(&[0, 1, 2]));
        c.kill(2);
        c.pass(2000);
        c.write(0, 9, 50);
        c.settle();
        // Resync of what the third one missed finds the block unreadable here, and it is fetched and written anew.
        c.sites[0].fail = Fail::BadBlock(9);
        c.start_without_settling(2);
        let fetched = |c: &Cluster| {
            let done =
                |f: &holdfast_wire::Frame| matches!(f, holdfast_wire::Frame::ReadDone { .. });
            c.sent.iter().any(|(_, to, f)| *to == 0 && done(f))
        };
        for _ in 0..1000 {
            if !c.one() {
                c.pass_without_settling(10);
            }
            if fetched(&c) {
                break;
            }
        }
        assert!(fetched(&c), "{seed}");
        c.sites[0].slow = true;
        c.sites[0].fail = Fail::No;
        while c.one() {}
        // Its target is gone, and the application writes the block.
        c.cut(2);
        let w = c.write(0, 9, 60);
        c.sites[0].slow = false;
        c.chance = Some(common::power::Rng(seed + 1));
        c.settle();
        c.chance = None;
        c.pass(2000);
        assert!(c.acked(0, w), "{seed}");
        assert_eq!(c.sites[0].disk[9 * BLOCK], 60, "{seed}");
    }
}

#[test]
fn rewrites_that_a_failing_disk_interrupts_give_their_log_slots_back() {
    let mut c = three();
    c.sites[0].fail = Fail::Reads;
    for b in (0..64).step_by(4) {
        c.request(
            0,
            Request::Read {
                offset: b * BLOCK as u64,
                len: BLOCK as u32,
            },
        );
    }
    // The reads have failed and been answered by members, the rewrites are under way.
    for _ in 0..16 {
        c.one();
    }
    c.sites[0].slow = true;
    while c.one() {}
    c.sites[0].fail = Fail::Writes(DiskError::Io);
    c.sites[0].slow = false;
    c.pass(500);
    assert_eq!(c.view.in_sync, set(&[1, 2]));
    for b in (0..64).step_by(4) {
        let w = c.write(0, b, 7);
        c.pass(50);
        assert!(c.acked(0, w), "block {b}");
    }
}
