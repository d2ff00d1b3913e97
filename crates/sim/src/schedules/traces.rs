//! Schedules of durable traces: open writes, closes, eviction, orderly stops.

use super::needs;
use holdfast_replicator::{FromControl, Rule};
use holdfast_wire::Lane;

/// v is on P (0) and S (1), not on C (2). S forgets it with the end of its disk write; P dies, C serves the old content
/// and dies, S serves v.
#[test]
fn schedule_04_open_until_closed() {
    needs(Rule::KeepOpen, &["G6", "G4"], 3, &[0, 1, 2], |s| {
        s.fail_over(0);
        s.hold(0, 2, Lane::Write);
        s.write(0, 3);
        s.settle();
        s.kill(0);
        s.release(0, 2, Lane::Write);
        s.fail_over(2);
        s.read(2, 3);
        s.kill(2);
        s.fail_over(1);
        s.read(1, 3);
    });
}

/// v is closed with the set {P, S} (0, 1); S keeps no bit for C (2). P dies, S is the source, C comes back without v.
#[test]
fn schedule_04_close_names_the_set() {
    needs(Rule::CloseSet, &["G1"], 3, &[0, 1, 2], |s| {
        s.fail_over(0);
        s.kill(2);
        s.pass(1000);
        s.written(0, 3);
        s.pass(100);
        s.kill(0);
        s.fail_over(1);
        s.start(2);
        s.pass(3000);
    });
}

/// Extents leave the log of P (0) before the bits for x (1) under them are saved.
#[test]
fn schedule_04_evict_without_trace() {
    needs(Rule::EvictTrace, &["G4"], 2, &[0, 1], |s| {
        s.fail_over(0);
        s.kill(1);
        s.pass(1000);
        for extent in 0..16 {
            s.written(0, extent * 4);
        }
        s.compare();
    });
}

/// v is open on S (1), and not on C (2), when S stops in good order and marks itself clean.
#[test]
fn schedule_24_clean_stop_with_open_writes() {
    needs(Rule::CleanStop, &["G4"], 3, &[0, 1, 2], |s| {
        s.fail_over(0);
        s.hold(0, 2, Lane::Write);
        s.write(0, 3);
        s.settle();
        s.tell(1, FromControl::Stop);
        s.settle();
        let stopped = s.sites[1].stopped;
        s.must(stopped, "liveness: it does not stop");
        s.compare();
        s.kill(1);
    });
}

/// Bits for x (1) are forgotten when it comes back, instead of one by one as it answers (G4).
#[test]
fn rule_bits_are_cleared_by_answers() {
    needs(Rule::BitsUntilAnswered, &["G1"], 2, &[0, 1], |s| {
        s.fail_over(0);
        s.kill(1);
        s.pass(1000);
        s.written(0, 3);
        s.start(1);
        s.pass(2000);
    });
}
