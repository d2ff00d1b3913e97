//! Schedules of the in-sync set: who counts, who is taken in, in which state.

use super::disk::{Hold, Keep};
use super::needs;
use super::stage::Stage;
use holdfast_replicator::{FromControl, Note, Rule};
use holdfast_types::DiskState;
use holdfast_wire::Lane;

/// Primary on node 0; node 1 was removed, and `blocks` were written since.
fn without_x(s: &mut Stage, blocks: &[u64]) {
    s.fail_over(0);
    s.kill(1);
    s.pass(1000);
    for &block in blocks {
        s.written(0, block);
    }
}

/// P (0) proposes x (1) as a member, acknowledges a write without it, and then the proposal commits.
#[test]
fn schedule_05_grow_commits_before_the_primary_knows() {
    needs(Rule::CountEarly, &["G1"], 2, &[0, 1], |s| {
        without_x(s, &[3]);
        s.hold_register = true;
        s.start(1);
        s.pass(500);
        s.hold(0, 1, Lane::Write);
        s.write(0, 5);
        s.settle();
        s.commit_held();
    });
}

/// v is flushed on P (0) and resynced into the cache of x (1), which becomes a member without a flush.
#[test]
fn schedule_06_grow_without_a_flush() {
    needs(Rule::GrowFlush, &["G1"], 2, &[0, 1], |s| {
        without_x(s, &[3]);
        s.flush(0);
        s.start(1);
        s.pass(2000);
        s.power_cut(0, Keep::Flushed);
        s.power_cut(1, Keep::Flushed);
    });
}

/// S (1) loses power and with it v; P (0) counts it on; a flush is acknowledged.
#[test]
fn schedule_08_unclean_member_counts_on() {
    needs(Rule::RunsCount, &["G1"], 2, &[0, 1], |s| {
        s.fail_over(0);
        s.written(0, 3);
        s.power_cut(1, Keep::Flushed);
        s.start(1);
        s.flush(0);
    });
}

/// N (2) pushes its copy over v; S (1) answers, loses power and the push, and is back with v; T (0) answers. N takes the
/// answer of the former run of S for good.
#[test]
fn schedule_10_answers_of_an_earlier_run() {
    needs(Rule::RunsCount, &["G4", "G6", "G7"], 3, &[0, 1, 2], |s| {
        s.fail_over(0);
        s.hold(0, 2, Lane::Write);
        s.write(0, 3);
        s.settle();
        s.kill(0);
        s.kill(1);
        s.release(0, 2, Lane::Write);
        // A start flushes: v is stable on both.
        s.start(0);
        s.start(1);
        s.hold_disk(0, Hold::Data);
        s.promote(2);
        s.power_cut(1, Keep::Flushed);
        s.start(1);
        s.release_disk(0);
        s.pass(3000);
        s.compare();
        s.read(2, 3);
    });
}

/// W1 and W2 of one block are both in flight to x (1), which is not waited for; its disk lands W2 first.
#[test]
fn schedule_12_overlap_at_a_syncing_replica() {
    needs(Rule::ReplicaOrder, &["G1"], 2, &[0, 1], |s| {
        without_x(s, &[20]);
        s.hold(0, 1, Lane::Bulk);
        s.start(1);
        s.pass(200);
        s.hold_disk(1, Hold::Data);
        s.written(0, 3);
        s.written(0, 3);
        s.land_last(1);
        s.release_disk(1);
        s.release(0, 1, Lane::Bulk);
        s.pass(2000);
    });
}

/// v1 waits in the bulk lane, v2 passes it in the write lane, v1 lands last.
#[test]
fn schedule_13_resync_against_a_live_write() {
    needs(Rule::ResyncLock, &["G1"], 2, &[0, 1], |s| {
        without_x(s, &[3]);
        s.hold(0, 1, Lane::Bulk);
        s.start(1);
        s.pass(200);
        s.write(0, 3);
        s.settle();
        s.release(0, 1, Lane::Bulk);
        s.pass(2000);
    });
}

/// A resynced block is answered from the cache of x (1), its bit goes and that is durable; nothing else names it.
#[test]
fn schedule_14_resync_answer_clears_a_bit() {
    needs(Rule::ResyncLogged, &["G4"], 2, &[0, 1], |s| {
        without_x(s, &[40, 3]);
        s.hold_disk(1, Hold::Data);
        s.start(1);
        s.pass(200);
        s.land_last(1);
        s.pass(2600);
        // The extent of block 40 leaves the log of P.
        for extent in 1..8 {
            s.written(0, extent * 4);
        }
        s.compare();
        s.power_cut(1, Keep::Flushed);
        s.compare();
    });
}

/// x (1) becomes a member without the bits for C (2), and is the source when P (0) is dead.
#[test]
fn schedule_15_bitmap_copy() {
    needs(Rule::CopyBits, &["G1"], 3, &[0, 1, 2], |s| {
        s.fail_over(0);
        s.kill(2);
        s.kill(1);
        s.pass(1500);
        s.written(0, 3);
        s.start(1);
        s.pass(2000);
        s.kill(0);
        s.fail_over(1);
        s.start(2);
        s.pass(3000);
    });
}

/// The same copy, not durable on x (1) when it becomes a member, while its log has moved on from the block.
#[test]
fn schedule_15_bitmap_copy_durable() {
    needs(Rule::CopyDurable, &["G4"], 3, &[0, 1, 2], |s| {
        s.fail_over(0);
        s.kill(2);
        s.kill(1);
        s.pass(1500);
        s.written(0, 3);
        s.written(0, 63);
        s.hold(0, 1, Lane::Bulk);
        s.start(1);
        s.pass(200);
        s.deliver_one(0, 1, Lane::Bulk);
        for extent in 5..14 {
            s.written(0, extent * 4);
        }
        s.written(0, 62);
        s.hold_disk(1, Hold::Meta);
        s.release(0, 1, Lane::Bulk);
        s.compare();
    });
}

/// The news that x (2) is in sync reaches S (1) late, past the next removal of x, and clears a new bit.
#[test]
fn schedule_17_clearing_news_in_another_lane() {
    needs(Rule::GrownInOrder, &["G1"], 3, &[0, 1, 2], |s| {
        s.fail_over(0);
        s.kill(2);
        s.pass(1000);
        s.written(0, 3);
        s.pass(50);
        s.hold(0, 1, Lane::Bulk);
        s.start(2);
        s.pass(2000);
        let back = s.is_member(2);
        s.must(back, "G7: it does not come back");
        s.kill(2);
        s.pass(1000);
        s.written(0, 40);
        s.pass(50);
        s.release(0, 1, Lane::Bulk);
        s.kill(0);
        s.fail_over(1);
        s.start(2);
        s.pass(3000);
    });
}

/// The removal of x (1) is proposed and its outcome unknown; P (0) acknowledges without x, and x is promoted.
#[test]
fn schedule_28_removal_with_unknown_outcome() {
    needs(Rule::ShrinkFirst, &["G1"], 2, &[0, 1], |s| {
        s.fail_over(0);
        s.hold_register = true;
        s.part(0, 1);
        s.write(0, 3);
        s.pass(1000);
        s.sites[0].deaf = true;
        s.hold_register = false;
        s.fail_over(1);
        s.read(1, 3);
    });
}

/// The disk of S (1) is put back to a snapshot of the same epoch: it lacks what was acknowledged since, and nobody has
/// bits for that.
#[test]
fn schedule_31_disk_put_back() {
    needs(Rule::SeenDisks, &["G1", "G4"], 2, &[0, 1], |s| {
        s.fail_over(0);
        s.written(0, 3);
        s.pass(100);
        let image = s.sites[1].disk.cached.clone();
        for extent in 0..16 {
            s.written(0, extent * 4);
        }
        s.pass(100);
        s.kill(1);
        s.sites[1].disk.revert(&image);
        s.start(1);
        s.pass(3000);
    });
}

/// x (1) is half resynced when everything stops: its disk says so, for whoever forces it to serve.
#[test]
fn schedule_32_half_synced_replica() {
    needs(Rule::MarkSyncing, &["G3"], 2, &[0, 1], |s| {
        without_x(s, &[3, 40]);
        s.hold(0, 1, Lane::Bulk);
        s.start(1);
        s.pass(200);
        s.deliver_one(0, 1, Lane::Bulk);
        s.power_cut(1, Keep::All);
        s.power_cut(0, Keep::All);
        let disk = s.disk_state(1);
        let says_so = disk == Some(DiskState::Syncing);
        s.must(
            says_so,
            "G3: a half-synced replica takes itself for a whole one",
        );
    });
}

/// The former primary (0) has bits for both others; it becomes a member and keeps them. Its primary dies before it can tell
/// it that the members lack nothing, and it takes over with blocks in doubt that are equal everywhere.
#[test]
fn schedule_34_stale_bits_between_members() {
    needs(Rule::MembersBits, &["G8"], 3, &[0, 1, 2], |s| {
        s.fail_over(0);
        s.hold(0, 1, Lane::Write);
        s.hold(0, 2, Lane::Write);
        s.write(0, 3);
        s.settle();
        s.sites[0].deaf = true;
        s.part(0, 1);
        s.part(0, 2);
        s.fail_over(1);
        s.tell(0, FromControl::StepDown);
        s.sites[0].deaf = false;
        s.release(0, 1, Lane::Write);
        s.release(0, 2, Lane::Write);
        s.hold_register = true;
        s.join(0, 1);
        s.join(0, 2);
        s.pass(800);
        s.hold(1, 0, Lane::Write);
        s.commit_held();
        s.kill(1);
        s.release(1, 0, Lane::Write);
        s.fail_over(0);
        let last = s.sites[0].notes.iter().rev().find_map(|n| match n {
            Note::Reconciled { blocks } => Some(*blocks),
            _ => None,
        });
        let none = last == Some(0);
        s.must(none, "G8: blocks that are equal everywhere are in doubt");
    });
}

/// Commits of thirty cycles of a link that comes and goes.
const FLAPPING_COMMITS_MAX: u64 = 24;

/// x (1) is lost and found thirty times: the control plane is not written each time.
#[test]
fn schedule_39_flapping() {
    needs(Rule::Damping, &["G8"], 2, &[0, 1], |s| {
        s.fail_over(0);
        for _ in 0..30 {
            s.part(0, 1);
            s.pass(400);
            s.join(0, 1);
            s.pass(400);
        }
        let few = s.commits <= FLAPPING_COMMITS_MAX;
        s.must(few, "G8: a flapping link is a commit per flap");
        // The longest delay passes.
        s.pass(20_000);
    });
}
