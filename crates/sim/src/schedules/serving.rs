//! Schedules of a primary that serves: acknowledgements, reads, flushes, leases, slots, the hand-over.

use super::disk::Hold;
use super::needs;
use holdfast_replicator::{FromControl, Note, Rule};
use holdfast_wire::Lane;

/// A write is acknowledged before S (1) has it.
#[test]
fn rule_write_is_acknowledged_by_all() {
    needs(Rule::AckByAll, &["G1"], 2, &[0, 1], |s| {
        s.fail_over(0);
        s.hold(0, 1, Lane::Write);
        s.write(0, 3);
        s.settle();
    });
}

/// A flush is acknowledged before S (1) has flushed.
#[test]
fn rule_flush_is_acknowledged_by_all() {
    needs(Rule::FlushByAll, &["G1"], 2, &[0, 1], |s| {
        s.fail_over(0);
        s.written(0, 3);
        s.hold(0, 1, Lane::Write);
        s.flush(0);
    });
}

/// P (0) reads v while v is in flight; P dies, S (1) never got it.
#[test]
fn schedule_11_read_of_a_write_in_flight() {
    needs(Rule::ReadLock, &["G6"], 2, &[0, 1], |s| {
        s.fail_over(0);
        s.hold(0, 1, Lane::Write);
        s.write(0, 3);
        s.settle();
        s.read(0, 3);
        s.kill(0);
        s.fail_over(1);
        s.read(1, 3);
    });
}

/// The disk of the only member (0) fails: the set goes on naming it.
#[test]
fn schedule_23_empty_set() {
    needs(Rule::LastMember, &["G3"], 2, &[0], |s| {
        s.fail_over(0);
        s.written(0, 3);
        s.sites[0].disk.broken = true;
        let req = s.write(0, 5);
        s.settle();
        let failed = s.answered(req) && !s.acked(req);
        s.must(failed, "liveness: the request neither fails nor ends");
    });
}

/// The connection breaks with a write on it and comes back: without sending it again both are connected for ever, and
/// the write hangs until S (1) is thrown out as slow.
#[test]
fn schedule_27_reconnect_without_removal() {
    needs(Rule::Resend, &["liveness"], 2, &[0, 1], |s| {
        s.fail_over(0);
        s.hold(0, 1, Lane::Write);
        let req = s.write(0, 3);
        s.settle();
        s.blip(0, 1);
        s.release(0, 1, Lane::Write);
        s.pass(500);
        let mended = s.acked(req) && s.is_member(1);
        s.must(
            mended,
            "liveness: the write hangs although both are connected",
        );
    });
}

/// A request larger than the activity log: it needs more slots than there are.
#[test]
fn schedule_29_request_larger_than_the_log() {
    needs(Rule::SplitLarge, &["liveness"], 2, &[0, 1], |s| {
        s.fail_over(0);
        s.written(0, 3);
        let req = s.zero(0, 0, 64);
        s.pass(500);
        let done = s.acked(req);
        s.must(done, "liveness: a large request never ends");
    });
}

/// On S (1) two writes wait for slots, and others that need none pass them and keep theirs: they cannot be closed before
/// the two, and the second never gets its slots.
#[test]
fn schedule_30_starvation_of_the_log() {
    needs(Rule::SlotsInOrder, &["liveness"], 2, &[0, 1], |s| {
        s.fail_over(0);
        for extent in 0..8 {
            s.written(0, extent * 4);
        }
        s.pass(100);
        s.hold_disk(1, Hold::Flush);
        s.write(0, 32);
        s.settle();
        let two_extents = s.zero(0, 39, 2);
        s.settle();
        for extent in 1..8 {
            s.write(0, extent * 4);
            s.settle();
        }
        s.release_disk(1);
        s.pass(500);
        let done = s.acked(two_extents) && s.is_member(1);
        s.must(done, "liveness: a write never gets its slots");
    });
}

/// P (0) is cut off and its lease is over; it answers a read while S (1) serves.
#[test]
fn schedule_35_read_after_the_lease() {
    needs(Rule::LeaseCheck, &["G5"], 2, &[0, 1], |s| {
        s.fail_over(0);
        s.written(0, 3);
        s.sites[0].deaf = true;
        s.part(0, 1);
        s.fail_over(1);
        s.written(1, 3);
        s.read(0, 3);
    });
}

/// A planned switch-over from 0 to 1: nothing is left to reconcile.
#[test]
fn schedule_36_planned_switch_over() {
    needs(Rule::DrainFirst, &["G8"], 2, &[0, 1], |s| {
        s.fail_over(0);
        s.written(0, 3);
        s.tell(0, FromControl::Drain);
        s.settle();
        let drained = s.sites[0].drained;
        s.must(drained, "liveness: the hand-over never ends");
        s.tell(0, FromControl::StepDown);
        s.fail_over(1);
        let nothing = |n: &Note| *n == Note::Reconciled { blocks: 0 };
        let clean = s.sites[1].notes.iter().any(nothing);
        s.must(clean, "G8: a planned hand-over pays for a reconciliation");
    });
}
