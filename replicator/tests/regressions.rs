//! Schedules that once broke a rule, kept.

mod common;

use common::{BLOCK, Cluster};
use holdfast_replicator::{Event, FromControl, Request, VerifyOrder};
use holdfast_types::{Epoch, NodeId};

/// A promise + withdraw, then Grown wipes the only trace of an unsettled write.
#[test]
fn withdraw_then_grown() {
    let mut c = Cluster::new(3, &[0, 1, 2]);
    c.promote(0);
    c.pass(100);
    c.sites[2].slow = true;
    c.write(0, 20, 9);
    c.settle();
    // 1 has it, 2 has not. 1 promises epoch 2 (proposal is refused): without the harness's register.
    c.sites[1].slow = true;
    let epoch = Epoch(2);
    c.event(1, Event::Control(FromControl::Promise { epoch }));
    c.sites[1].slow = false;
    // swallow Promised: harness would commit it, so take the promise back before it is stored
    c.event(1, Event::Control(FromControl::Withdraw { epoch }));
    c.settle();
    c.pass(20);
    let s = c.sites[1].replica.as_ref().unwrap().status();
    assert!(
        s.open_writes > 0 || s.peers.iter().all(|p| p.out_of_sync_bytes > 0),
        "G4: no open write, no bits"
    );
}

/// A flush in flight when the drain begins.
#[test]
fn drain_during_flush() {
    let mut c = Cluster::new(2, &[0, 1]);
    c.promote(0);
    c.write(0, 1, 1);
    c.settle();
    c.request(0, Request::Flush);
    c.event(0, Event::Control(FromControl::Drain));
    // let exactly the first round end: site 1 open writes must be zero when drained is said
    c.sites[1].slow = false;
    let mut seen = None;
    c.settle_until(|c| {
        if c.sites[0].drained && seen.is_none() {
            seen = Some(c.sites[1].replica.as_ref().unwrap().status().open_writes);
        }
    });
    assert_eq!(seen, Some(0), "rule 36");
}

fn syncing() -> Cluster {
    let mut c = Cluster::new(2, &[0, 1]);
    c.promote(0);
    c.pass(100);
    c.kill(1);
    while c.view.in_sync.len() > 1 {
        c.pass(10);
    }
    for b in 0..64 {
        c.write(0, b, 2);
        c.settle();
    }
    c.start(1);
    c.now = c.now.plus_ms(150);
    c.event(0, Event::Tick);
    c
}
/// Resync under way, a verify asked for, then the peer leaves.
#[test]
fn verify_and_resync_then_down() {
    for k in 0..200 {
        let mut c = syncing();
        while !c.sites[0].replica.as_ref().unwrap().status().peers[0].attached {
            assert!(c.one());
        }
        let order = VerifyOrder::default();
        c.event(0, Event::Control(FromControl::Verify(order)));
        for _ in 0..k {
            c.one();
        }
        c.cut(1);
        c.settle();
    }
}

/// A stop with a failed disk.
#[test]
fn stop_with_failed_disk() {
    let mut c = Cluster::new(2, &[0, 1]);
    c.promote(0);
    c.fail_next_write(1);
    c.write(0, 1, 1);
    c.settle();
    c.event(1, Event::Control(FromControl::Stop));
    c.settle();
    c.pass(2000);
    assert!(c.sites[1].stopped, "never Stopped");
}

/// Ticks are starved by events.
#[test]
fn ticks_starved() {
    let mut c = Cluster::new(2, &[0, 1]);
    c.promote(0);
    c.pass(200);
    c.kill(1);
    // Events every 60 ms come before the tick: deadline is never reached at the moment it is asked.
    let mut ticks = 0;
    for i in 0..1000 {
        c.now = c.now.plus_ms(60);
        // an event comes first
        c.event(
            0,
            Event::Frame {
                peer: NodeId(1),
                frame: holdfast_wire::Frame::Pong { token: i },
            },
        );
        c.settle();
        if c.sites[0].replica.as_ref().unwrap().deadline() <= c.now {
            ticks += 1;
            c.event(0, Event::Tick);
            c.settle();
        }
    }
    println!("ticks {ticks} in 60 s; in_sync {:?}", c.view.in_sync);
    assert_eq!(c.view.in_sync.len(), 1, "the lost member is never removed");
}
/// A primary whose disk failed removes the good copy.
#[test]
fn failed_primary_removes_last_holder() {
    let mut c = Cluster::new(2, &[0, 1]);
    c.promote(0);
    c.pass(100);
    c.fail_next_write(0);
    c.write(0, 1, 1);
    c.settle();
    c.cut(1); // a blip: pass() connects again at once
    c.pass(1000);
    assert!(
        c.view.in_sync.has(NodeId(1)),
        "the only good copy was removed"
    );
}
/// The superblock of a session not durable, next session answered at once.
#[test]
fn attach_unstored() {
    let mut c = Cluster::new(2, &[0]);
    c.cut(1);
    c.promote(0);
    c.sites[1].slow = true;
    c.connect(0, 1);
    c.settle();
    let a = c.sites[1].replica.as_ref().unwrap().status().peers[0].attached;
    c.cut(1);
    c.connect(0, 1);
    c.settle();
    let b = c.sites[1].replica.as_ref().unwrap().status().peers[0].attached;
    assert!(
        !a && !b,
        "answered before the mark is on disk (rules 1, 32)"
    );
}
/// A syncing peer that counts since its cut hangs: the application must not wait for it.
#[test]
fn growing_hang() {
    let mut c = syncing();
    for _ in 0..100000 {
        let p = c.sites[0].replica.as_ref().unwrap().status();
        if p.peers[0].attached && p.peers[0].out_of_sync_bytes == 0 {
            c.sites[1].slow = true;
            break;
        }
        if !c.one() {
            c.now = c.now.plus_ms(10);
            c.event(0, Event::Tick);
            c.event(1, Event::Tick);
        }
    }
    let w = c.write(0, 3, 3);
    c.pass(60_000);
    assert!(c.acked(0, w), "application stalled 60 s by a non-member");
}
/// The consequence: what a reader has seen changes (G6).
#[test]
fn withdraw_then_grown_g6() {
    let mut c = Cluster::new(3, &[0, 1, 2]);
    c.promote(0);
    c.pass(100);
    c.sites[2].slow = true;
    c.write(0, 60, 9); // last extent
    c.settle();
    c.sites[1].slow = true;
    let epoch = Epoch(2);
    c.event(1, Event::Control(FromControl::Promise { epoch }));
    c.sites[1].slow = false;
    c.event(1, Event::Control(FromControl::Withdraw { epoch }));
    c.settle();
    c.pass(20);
    // 0 dies; 1 is promoted, 2 reports.
    c.kill(0);
    c.sites[2].drop_queue_io();
    c.cut(2);
    c.sites[2].replica = None;
    c.start(2);
    c.promote(1);
    c.pass(2000);
    let v = c.read(1, 60);
    assert!(
        !c.view.in_sync.has(NodeId(2)) || c.sites[2].disk[60 * BLOCK] == v,
        "G6: members differ on a block that was served"
    );
}
/// A member that joined as Outdated is not taken for an outdated one at the next promotion.
#[test]
fn a_hello_is_renewed_when_the_disk_becomes_current() {
    let mut c = Cluster::new(3, &[0, 1]);
    c.promote(0);
    c.pass(3000);
    assert_eq!(c.view.in_sync.len(), 3);
    c.kill(0);
    c.promote(1);
    for _ in 0..30 {
        c.pass(10);
        assert!(
            c.view.in_sync.has(NodeId(2)),
            "the good member was removed first"
        );
    }
}

/// A block in doubt was copied to a syncing replica while a member was away: that member then differed from the
/// copy, and only the primary knew (found by the model).
#[test]
fn resync_of_a_block_in_doubt() {
    let mut c = Cluster::new(3, &[0, 1, 2]);
    c.promote(0);
    c.pass(100);
    c.kill(1);
    while c.view.in_sync.has(NodeId(1)) {
        c.pass(10);
    }
    // Only 0 has this write.
    c.cut(2);
    c.write(0, 20, 9);
    c.settle();
    c.kill(0);
    c.start(0);
    let epoch = Epoch(2);
    c.event(0, Event::Control(FromControl::Promise { epoch }));
    while c.sites[0].opened != Some(Epoch(2)) {
        assert!(c.one());
    }
    // In doubt still when the member is cut off; 1 comes back.
    c.cut(2);
    c.start(1);
    c.settle();
    c.event(1, Event::Control(FromControl::Stop));
    c.settle();
    assert!(c.sites[1].stopped);
    c.kill(1);
    // 0 is gone for good: what 2 has is the data.
    c.kill(0);
    c.promote(2);
    while c.sites[2].opened != Some(Epoch(3)) {
        c.pass(10);
    }
    c.start(1);
    while !c.view.in_sync.has(NodeId(1)) {
        c.pass(10);
    }
    assert_eq!(c.read(2, 20), 0);
    c.assert_equal(1, 2);
}

/// What a syncing replica had got was told to a member after a close that a reconnect repeats, and cleared the bits that
/// this close had set (found by the model).
#[test]
fn a_repeated_close_comes_after_the_news_of_resync() {
    let mut c = Cluster::new(3, &[0, 1, 2]);
    c.promote(0);
    c.pass(100);
    c.kill(2);
    while c.view.in_sync.has(NodeId(2)) {
        c.pass(10);
    }
    for block in 0..64 {
        c.write(0, block, 1);
        c.settle();
    }
    c.pass(100);
    c.start(2);
    c.now = c.now.plus_ms(150);
    c.event(0, Event::Tick);
    let copied = |c: &Cluster| {
        let has = |b: &u64| c.sites[2].disk[*b as usize * BLOCK] == 1;
        (0..64).filter(has).collect::<Vec<u64>>()
    };
    while copied(&c).len() < 8 {
        assert!(c.one());
    }
    // What is on its way arrives; the news of it waits for a tick or a close.
    for _ in 0..6 {
        c.one();
    }
    c.cut(2);
    let again = copied(&c);
    assert!(again.len() < 32, "all closes wait");
    for &block in &again {
        c.write(0, block, 2);
    }
    c.settle();
    c.cut(1);
    c.connect(0, 1);
    c.settle();
    c.now = c.now.plus_ms(60);
    c.event(0, Event::Tick);
    c.settle();
    c.event(2, Event::Control(FromControl::Stop));
    c.settle();
    assert!(c.sites[2].stopped);
    c.kill(2);
    // Only what 1 knows is left.
    c.kill(0);
    c.promote(1);
    while c.sites[1].opened != Some(Epoch(2)) {
        c.pass(10);
    }
    c.start(2);
    while !c.view.in_sync.has(NodeId(2)) {
        c.pass(10);
    }
    for &block in &again {
        assert_eq!(c.read(1, block), 2);
    }
    assert!(c.sites[1].disk[..64 * BLOCK] == c.sites[2].disk[..64 * BLOCK]);
}
