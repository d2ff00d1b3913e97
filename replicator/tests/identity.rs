//! Disks that are not what they were: reverted, replaced, of another line of history.

mod common;

use common::Cluster;
use holdfast_replicator::{Event, FromControl, Note, Trouble};
use holdfast_types::{BlockRange, NodeId, NodeSet, Strange};

fn set(nodes: &[u8]) -> NodeSet {
    nodes.iter().map(|&n| NodeId(n)).collect()
}

fn trouble(c: &Cluster, at: usize, about: u8) -> Option<Trouble> {
    let status = c.sites[at].replica.as_ref().unwrap().status();
    let peer = status.peers.iter().find(|p| p.node == NodeId(about));
    peer.unwrap().trouble
}

/// Three replicas, all in sync; node 1's disk was copied after the first write, and many were made since.
fn with_snapshot() -> (Cluster, Vec<u8>) {
    let mut c = Cluster::new(3, &[0, 1, 2]);
    c.promote(0);
    c.write(0, 1, 1);
    c.settle();
    let snapshot = c.sites[1].disk.clone();
    for block in (0..64).step_by(4) {
        c.write(0, block, 2);
        c.settle();
    }
    (c, snapshot)
}

fn revert(c: &mut Cluster, n: usize, snapshot: &[u8]) {
    c.kill(n);
    c.sites[n].disk.copy_from_slice(snapshot);
    c.start(n);
}

fn all_in_sync(c: &mut Cluster) {
    c.pass(6000);
    assert_eq!(c.view.in_sync, set(&[0, 1, 2]));
    c.assert_equal(0, 1);
    c.assert_equal(0, 2);
}

#[test]
fn a_disk_put_back_within_one_epoch_is_compared_whole() {
    let (mut c, snapshot) = with_snapshot();
    // Back before anybody missed it.
    revert(&mut c, 1, &snapshot);
    c.pass(50);
    let note = Note::Distrusted {
        peer: NodeId(1),
        why: Strange::WentBack,
    };
    c.pass(400);
    assert!(c.sites[0].notes.contains(&note), "rule 31");
    all_in_sync(&mut c);
    assert_eq!(trouble(&c, 0, 1), None, "it is made equal");
    // And is trusted as it is now, by whoever leads.
    c.kill(1);
    c.start(1);
    all_in_sync(&mut c);
    let distrusted = c.sites[0].notes.iter().filter(|n| **n == note).count();
    assert_eq!(distrusted, 1);
}

#[test]
fn a_disk_put_back_while_it_was_out_is_recognised_after_a_restart_of_the_observer() {
    let (mut c, snapshot) = with_snapshot();
    c.kill(1);
    c.pass(3000);
    assert_eq!(c.view.in_sync, set(&[0, 2]));
    c.kill(0);
    c.start(0);
    c.promote(0);
    c.pass(1000);
    c.sites[1].disk.copy_from_slice(&snapshot);
    c.start(1);
    c.pass(400);
    assert_eq!(
        trouble(&c, 0, 1).or(Some(Trouble::Strange(Strange::WentBack))),
        Some(Trouble::Strange(Strange::WentBack))
    );
    assert!(
        c.sites[0]
            .notes
            .iter()
            .any(|n| matches!(n, Note::Distrusted { .. }))
    );
    all_in_sync(&mut c);
}

#[test]
fn a_disk_put_back_is_recognised_by_the_next_primary() {
    let (mut c, snapshot) = with_snapshot();
    c.kill(1);
    c.pass(3000);
    c.kill(0);
    c.promote(2);
    c.pass(1000);
    c.sites[1].disk.copy_from_slice(&snapshot);
    c.start(1);
    c.pass(400);
    assert!(
        c.sites[2]
            .notes
            .iter()
            .any(|n| matches!(n, Note::Distrusted { .. }))
    );
    c.start(0);
    all_in_sync(&mut c);
}

#[test]
fn a_member_put_back_during_a_failover_does_not_count() {
    let (mut c, snapshot) = with_snapshot();
    // What the primary tells the others now and then: node 2 knows of node 1's disk.
    c.pass(3000);
    revert(&mut c, 1, &snapshot);
    c.kill(0);
    c.promote(2);
    c.pass(3000);
    for block in (0..64).step_by(4) {
        assert_eq!(c.read(2, block), 2, "G1");
    }
    assert!(
        c.sites[2]
            .notes
            .iter()
            .any(|n| matches!(n, Note::Distrusted { .. }))
    );
    c.start(0);
    all_in_sync(&mut c);
}

#[test]
fn a_power_cut_is_not_a_disk_that_went_back() {
    let (mut c, _) = with_snapshot();
    c.pass(3000);
    for n in [1, 2] {
        c.kill(n);
        c.sites[n].boot += 1;
        c.start(n);
    }
    c.pass(200);
    c.kill(0);
    c.sites[0].boot += 1;
    c.start(0);
    c.promote(0);
    all_in_sync(&mut c);
    for site in &c.sites {
        assert!(
            !site
                .notes
                .iter()
                .any(|n| matches!(n, Note::Distrusted { .. }))
        );
    }
}

#[test]
fn replicas_of_two_lines_of_history_leave_each_other_alone() {
    let mut c = Cluster::new(2, &[0, 1]);
    c.promote(0);
    c.write(0, 1, 1);
    c.settle();
    c.kill(1);
    c.pass(1000);
    c.write(0, 1, 2);
    c.settle();
    // The operator forces node 1, which lacks that write.
    c.kill(0);
    c.view.in_sync = set(&[1]);
    c.view.lineage = 2;
    c.start(1);
    c.promote(1);
    c.write(1, 2, 3);
    c.pass(100);
    c.start(0);
    c.pass(20_000);
    let split = Trouble::Split { theirs: 1, ours: 2 };
    assert_eq!(trouble(&c, 1, 0), Some(split));
    assert_eq!(
        trouble(&c, 0, 1),
        Some(Trouble::Split { theirs: 2, ours: 1 })
    );
    assert_eq!(c.view.in_sync, set(&[1]));
    let at = common::BLOCK;
    assert_eq!(c.sites[0].disk[at], 2, "both keep their data");
    assert_eq!(c.sites[1].disk[at], 1);

    // The operator keeps node 1's; there is no room to save node 0's.
    let discard = |c: &mut Cluster| {
        c.event(1, Event::Control(FromControl::Discard { peer: NodeId(0) }));
        c.settle();
        c.pass(3000);
        c.sites[1].notes.last().cloned()
    };
    c.sites[0].save_answer = Err("no space".into());
    let told = |done: bool, text: &str| Note::Discarded {
        peer: NodeId(0),
        done,
        text: text.into(),
    };
    assert_eq!(discard(&mut c), Some(told(false, "no space")));
    assert_eq!(trouble(&c, 1, 0), Some(split));
    assert_eq!(c.sites[0].disk[at], 2, "nothing is lost");

    c.sites[0].save_answer = Ok("file".into());
    discard(&mut c);
    assert!(c.sites[1].notes.contains(&told(true, "file")));
    let saved = c.sites[0].saved.last().unwrap();
    assert_eq!((saved.lost, saved.keep), (1, 2));
    for block in [1, 2] {
        let one = BlockRange::new(block, 1);
        assert!(
            saved.ranges.iter().any(|r| r.contains(one)),
            "what either wrote since: {saved:?}"
        );
    }
    c.pass(3000);
    assert_eq!(c.view.in_sync, set(&[0, 1]));
    c.assert_equal(0, 1);
    assert_eq!(c.sites[0].disk[at], 1, "the kept line");
    let sent = c.sites[1].notes.iter().find_map(|n| match n {
        Note::Resynced { sent_bytes, .. } => Some(*sent_bytes),
        _ => None,
    });
    assert!(
        sent.is_some_and(|b| b <= 16 * common::BLOCK as u64),
        "by bitmap, not in full: {sent:?}"
    );
}
