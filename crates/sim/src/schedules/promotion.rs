//! Schedules of promotions: what a new primary must have promised, heard and ended before it serves.

use super::disk::Hold;
use super::stage::Stage;
use super::{holds, needs};
use holdfast_replicator::{FromControl, Rule};
use holdfast_wire::Lane;

/// A primary on node 0, everything at rest.
fn serving(s: &mut Stage) {
    s.fail_over(0);
}

/// P (0) writes v to S (1); S is a candidate, its promise not stored; S answers v under the old epoch.
#[test]
fn schedule_01_promise_after_cas() {
    needs(Rule::PromiseFirst, &["G2"], 2, &[0, 1], |s| {
        serving(s);
        s.hold_register = true;
        s.hold(0, 1, Lane::Write);
        s.write(0, 3);
        s.settle();
        s.promote(1);
        s.release(0, 1, Lane::Write);
        s.commit_held();
        s.pass(1000);
        s.read(1, 3);
    });
}

/// P (0) has v alone; S (1) takes over, cannot reach P, opens and serves the old; S dies, P is promoted and serves v.
#[test]
fn schedule_02_opening_with_an_unheard_member() {
    needs(Rule::HearAll, &["G6"], 2, &[0, 1], |s| {
        serving(s);
        s.hold(0, 1, Lane::Write);
        s.write(0, 3);
        s.settle();
        s.sites[0].deaf = true;
        s.part(0, 1);
        s.promote(1);
        s.read(1, 3);
        s.kill(1);
        if s.promote(0) {
            s.pass(1000);
            s.read(0, 3);
        }
    });
}

/// P (0) is cut off with a write of its own in flight, and steps down in good order. S (1) serves without it. P comes
/// back, reports nothing, becomes a member; S dies; P serves its write after all.
#[test]
fn schedule_03_report_after_a_clean_step_down() {
    needs(Rule::ReportAlways, &["G6", "G4"], 2, &[0, 1], |s| {
        serving(s);
        s.hold(0, 1, Lane::Write);
        s.write(0, 3);
        s.settle();
        s.sites[0].deaf = true;
        s.part(0, 1);
        s.fail_over(1);
        s.read(1, 3);
        s.tell(0, FromControl::StepDown);
        s.sites[0].deaf = false;
        s.release(0, 1, Lane::Write);
        s.join(0, 1);
        s.pass(3000);
        let back = s.is_member(0);
        s.must(back, "G7: it does not come back");
        s.kill(1);
        s.fail_over(0);
        s.read(0, 3);
    });
}

/// P (0) restarts and goes on in its own epoch. Its sequences begin anew, S (1) takes a new write for one it has open
/// already, and keeps no trace of it; C (2) never gets it.
#[test]
fn schedule_07_resume_of_the_same_epoch() {
    needs(Rule::NewEpoch, &["G4"], 3, &[0, 1, 2], |s| {
        serving(s);
        s.written(0, 0);
        s.kill(0);
        s.start(0);
        s.fail_over(0);
        s.hold(0, 2, Lane::Write);
        s.write(0, 40);
        s.settle();
        s.compare();
    });
}

/// v is on P (0) and N (1) and answered, its close never came; C (2) is absent. N is promoted and marks what was open
/// for the members only; P never returns; C comes back without v.
#[test]
fn schedule_16_bits_for_an_absent_third_at_promotion() {
    needs(Rule::PromotionBits, &["G1"], 3, &[0, 1, 2], |s| {
        serving(s);
        s.kill(2);
        s.pass(1000);
        s.written(0, 3);
        s.kill(0);
        s.fail_over(1);
        s.start(2);
        s.pass(3000);
    });
}

/// P (0) crashes with v on its disk alone and comes back as primary. The extents of its log are not turned into bits:
/// v is served, and not after the next failover.
#[test]
fn schedule_16_crash_extents_become_bits() {
    needs(Rule::CrashBits, &["G6", "G4"], 2, &[0, 1], |s| {
        serving(s);
        s.hold(0, 1, Lane::Write);
        s.write(0, 3);
        s.settle();
        s.kill(0);
        s.release(0, 1, Lane::Write);
        s.start(0);
        s.fail_over(0);
        s.read(0, 3);
        s.kill(0);
        s.fail_over(1);
        s.read(1, 3);
    });
}

/// v is on its way to the disk of S (1) when S promises, leads and serves the old content; v lands later.
#[test]
fn schedule_18_disk_write_in_flight_across_epochs() {
    needs(Rule::EndOldWrites, &["G6"], 2, &[0, 1], |s| {
        serving(s);
        s.hold_disk(1, Hold::Data);
        s.write(0, 3);
        s.settle();
        s.sites[0].deaf = true;
        s.part(0, 1);
        s.promote(1);
        s.pass(1000);
        s.read(1, 3);
        s.release_disk(1);
        s.pass(1000);
        s.read(1, 3);
    });
}

/// P (0) is killed with v on its way to the disk; the new run starts at once, serves the old content, and v lands.
#[test]
fn schedule_19_old_runs_disk_write_after_the_new_start() {
    needs(Rule::Claim, &["G6"], 2, &[0, 1], |s| {
        serving(s);
        s.hold(0, 1, Lane::Write);
        s.hold_disk(0, Hold::Data);
        s.write(0, 3);
        s.settle();
        s.kill_in_flight(0);
        s.release(0, 1, Lane::Write);
        s.start(0);
        s.fail_over(0);
        s.read(0, 3);
        s.sites[0].disk.land_orphans();
        s.read(0, 3);
    });
}

/// S (1) answered v before its promise; its answer reaches P (0) when the newer epoch exists. That is harmless: v is
/// in the newer history.
#[test]
fn schedule_22_late_completion_is_in_the_history() {
    holds(2, &[0, 1], |s| {
        serving(s);
        s.hold(1, 0, Lane::Write);
        s.write(0, 3);
        s.settle();
        s.sites[0].deaf = true;
        s.promote(1);
        s.release(1, 0, Lane::Write);
        s.pass(1000);
        s.read(1, 3);
    });
}

/// v is on S (1) and not on N (2), among other blocks that are compared first. N opens and serves the block before it is
/// made equal; N dies, S serves v.
#[test]
fn schedule_33_second_failure_during_reconciliation() {
    needs(Rule::ReconcileFirst, &["G6"], 3, &[0, 1, 2], |s| {
        serving(s);
        s.hold(0, 2, Lane::Write);
        for extent in 0..3 {
            s.write(0, extent * 4);
        }
        s.settle();
        s.kill(0);
        s.release(0, 2, Lane::Write);
        s.hold(2, 1, Lane::Bulk);
        s.fail_over(2);
        s.read(2, 8);
        s.kill(2);
        s.fail_over(1);
        s.read(1, 8);
    });
}
