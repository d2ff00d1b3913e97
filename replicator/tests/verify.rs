//! Verify and repair: bit rot is found where it is, told, and mended only where somebody said who is right.

mod common;

use common::power::Rng;
use common::{BLOCK, Cluster};
use holdfast_replicator::{Event, FromControl, Note, Repair, VerifyOrder, VerifyReport};
use holdfast_types::{BlockRange, NodeId, NodeSet};

fn cluster(nodes: usize) -> Cluster {
    let members: Vec<u8> = (0..nodes as u8).collect();
    let mut c = Cluster::new(nodes, &members);
    c.promote(0);
    for b in 0..64 {
        c.write(0, b, b as u8 + 1);
        c.settle();
    }
    c
}

/// Bulk work goes on at once, without a tick: the application rests.
fn rested(nodes: usize) -> Cluster {
    let mut c = cluster(nodes);
    c.pass(3000);
    c
}

fn rot(c: &mut Cluster, n: usize, block: usize) {
    c.sites[n].disk[block * BLOCK + 5] ^= 0x40;
}

fn start(c: &mut Cluster, repair: Option<Repair>) {
    let order = VerifyOrder {
        repair,
        ..VerifyOrder::default()
    };
    c.event(0, Event::Control(FromControl::Verify(order)));
}

fn report(c: &mut Cluster) -> VerifyReport {
    let found = c.sites[0].notes.iter().rev().find_map(|n| match n {
        Note::Verified(report) => Some(report.clone()),
        _ => None,
    });
    c.sites[0].notes.clear();
    found.expect("a verify ended")
}

fn verify(c: &mut Cluster, repair: Option<Repair>) -> VerifyReport {
    start(c, repair);
    c.pass(2000);
    report(c)
}

#[test]
fn rot_is_found_on_each_copy_and_left_alone() {
    let mut c = cluster(3);
    rot(&mut c, 1, 9);
    rot(&mut c, 1, 10);
    rot(&mut c, 2, 30);
    let before: Vec<Vec<u8>> = c.sites.iter().map(|s| s.disk.clone()).collect();
    let found = verify(&mut c, None);
    assert!(found.is_complete());
    assert_eq!(found.compared_bytes, 64 * BLOCK as u64);
    assert_eq!(found.peers[0].node, NodeId(1));
    assert_eq!(found.peers[0].differing, vec![BlockRange::new(9, 2)]);
    assert_eq!(found.peers[1].differing, vec![BlockRange::new(30, 1)]);
    assert_eq!(found.repaired_blocks(), 0);
    let bytes = 64 * BLOCK;
    for (site, before) in c.sites.iter().zip(before) {
        assert_eq!(site.disk[..bytes], before[..bytes], "nothing is changed");
    }
}

#[test]
fn the_majority_repairs_a_member_and_the_primary_itself() {
    let mut c = cluster(3);
    rot(&mut c, 1, 9);
    rot(&mut c, 0, 20);
    rot(&mut c, 0, 21);
    let found = verify(&mut c, Some(Repair::Majority));
    assert!(found.is_complete());
    // The primary's rot shows on both others.
    assert_eq!(found.peers[0].differing_blocks, 3);
    assert_eq!(found.peers[0].repaired_blocks, 3);
    assert_eq!(found.peers[1].differing, vec![BlockRange::new(20, 2)]);
    for b in [9, 20, 21] {
        assert_eq!(c.read(0, b), b as u8 + 1);
    }
    c.assert_equal(0, 1);
    c.assert_equal(0, 2);
    let again = verify(&mut c, None);
    assert_eq!(again.differing_blocks(), 0);
}

#[test]
fn three_different_copies_have_no_majority() {
    let mut c = cluster(3);
    c.sites[1].disk[7 * BLOCK] = 0xAA;
    c.sites[2].disk[7 * BLOCK] = 0xBB;
    let found = verify(&mut c, Some(Repair::Majority));
    assert_eq!(found.repaired_blocks(), 0);
    assert_eq!(found.peers[0].undecided_blocks, 1);
    assert_eq!(c.sites[1].disk[7 * BLOCK], 0xAA);
    let found = verify(&mut c, Some(Repair::Source(NodeId(2))));
    assert!(found.repaired_blocks() > 0);
    assert_eq!(c.sites[0].disk[7 * BLOCK], 0xBB);
    c.assert_equal(0, 1);
    c.assert_equal(0, 2);
}

#[test]
fn two_copies_need_a_named_side() {
    let mut c = cluster(2);
    rot(&mut c, 1, 3);
    let refused = verify(&mut c, Some(Repair::Majority));
    assert!(refused.refused.unwrap().contains("--source"));
    let found = verify(&mut c, Some(Repair::Source(NodeId(0))));
    assert_eq!(found.repaired_blocks(), 1);
    assert_eq!(c.sites[1].disk[3 * BLOCK + 5], 4);
    c.assert_equal(0, 1);
    // The other side: the primary's copy is overwritten, and read so.
    rot(&mut c, 0, 5);
    let found = verify(&mut c, Some(Repair::Source(NodeId(1))));
    assert_eq!(found.repaired_blocks(), 1);
    assert_eq!(c.read(0, 5), 6);
    c.assert_equal(0, 1);
}

#[test]
fn every_repair_is_told() {
    let mut c = cluster(3);
    rot(&mut c, 2, 40);
    start(&mut c, Some(Repair::Majority));
    c.pass(1000);
    let told: Vec<_> = c.sites[0]
        .notes
        .iter()
        .filter_map(|n| match n {
            Note::Repaired {
                range,
                source,
                wrong,
            } => Some((*range, *source, *wrong)),
            _ => None,
        })
        .collect();
    let expected = (BlockRange::new(40, 1), NodeId(0), NodeSet::only(NodeId(2)));
    assert_eq!(told, vec![expected]);
}

#[test]
fn blocks_being_written_are_no_findings() {
    let mut c = cluster(3);
    for round in 0..40u64 {
        start(&mut c, (round % 2 == 0).then_some(Repair::Majority));
        // Writes at every stage while it goes through.
        for i in 0..200u64 {
            if i % 3 == 0 {
                c.write(0, (i * 5 + round) % 64, (i % 250) as u8);
            }
            for _ in 0..round % 7 {
                c.one();
            }
        }
        c.pass(1000);
        let found = report(&mut c);
        assert!(found.is_complete());
        assert_eq!(found.differing_blocks(), 0, "round {round}");
    }
    c.assert_equal(0, 1);
    c.assert_equal(0, 2);
}

#[test]
fn a_member_that_leaves_ends_its_comparison_only() {
    for steps in 0..150 {
        let mut c = cluster(3);
        rot(&mut c, 1, 63);
        start(&mut c, None);
        for _ in 0..steps {
            c.one();
        }
        c.cut(2);
        c.pass(200);
        let found = report(&mut c);
        let of = |n: u8| found.peers.iter().find(|p| p.node == NodeId(n)).unwrap();
        assert!(of(1).complete, "{steps}");
        assert_eq!(of(1).differing_blocks, 1, "{steps}");
    }
}

#[test]
fn a_repair_that_is_interrupted_leaves_no_half_done_block_behind() {
    for steps in 0..200 {
        let mut c = cluster(3);
        for b in [3, 4, 30] {
            rot(&mut c, 0, b);
            rot(&mut c, 1, b + 1);
        }
        start(&mut c, Some(Repair::Source(NodeId(2))));
        for _ in 0..steps {
            c.one();
        }
        match steps % 3 {
            0 => c.cut(2),
            1 => c.cut(1),
            _ => {
                c.kill(0);
                c.settle();
                c.start(0);
                c.promote(0);
            }
        }
        c.pass(3000);
        assert_eq!(c.view.in_sync.len(), 3, "{steps}");
        c.sites[0].notes.clear();
        let _ = verify(&mut c, Some(Repair::Source(NodeId(2))));
        c.assert_equal(0, 2);
        c.assert_equal(1, 2);
    }
}

#[test]
fn a_repair_whose_members_are_lost_is_given_up_and_the_volume_serves_on() {
    for steps in (0..400).step_by(7) {
        let mut c = rested(2);
        (0..48).for_each(|b| rot(&mut c, 1, b));
        start(&mut c, Some(Repair::Source(NodeId(0))));
        for _ in 0..steps {
            c.one();
        }
        c.kill(1);
        c.pass(3000);
        report(&mut c);
        for b in 0..64 {
            let w = c.write(0, b, 7);
            c.settle();
            assert!(c.acked(0, w), "block {b} after {steps} steps");
        }
    }
}

/// The primary's blocks 8 and 10 come from member 1, which is lost when one of them is on its way to the disk. The
/// application's next write of that block must come after it.
#[test]
fn a_repair_under_way_keeps_its_blocks_when_the_source_of_others_is_lost() {
    for seed in 0..600 {
        let mut c = cluster(3);
        c.write(0, 8, 9);
        c.settle();
        c.pass(3000);
        rot(&mut c, 0, 8);
        rot(&mut c, 2, 9);
        rot(&mut c, 0, 10);
        let mut rng = Rng(seed);
        let before = rng.below(120);
        c.chance = Some(rng);
        start(&mut c, Some(Repair::Majority));
        for _ in 0..before {
            c.any();
        }
        c.kill(1);
        let writes = [c.write(0, 8, 0xEE), c.write(0, 10, 0xEE)];
        c.pass(1500);
        assert!(writes.iter().all(|&w| c.acked(0, w)), "seed {seed}");
        for b in [8, 10] {
            assert_eq!(c.read(0, b), 0xEE, "seed {seed}: block {b} of the primary");
            assert_eq!(c.sites[2].disk[b as usize * BLOCK + 5], 0xEE, "seed {seed}");
        }
    }
}

#[test]
fn what_was_not_fetched_is_not_told_as_repaired() {
    let mut c = rested(2);
    (0..8).for_each(|b| rot(&mut c, 0, b));
    start(&mut c, Some(Repair::Source(NodeId(1))));
    // Its answers to the questions for hashes go out, those to the fetches do not.
    while !c.fetching() {
        assert!(c.one());
    }
    c.kill(1);
    c.pass(3000);
    let told = report(&mut c);
    let rotten = (0..8).filter(|b| c.sites[0].disk[b * BLOCK + 5] != *b as u8 + 1);
    assert_eq!(told.repaired_blocks(), 8 - rotten.count() as u64);
}
