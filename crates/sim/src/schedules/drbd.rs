//! What DRBD's own tests (`drbd9-tests`) do to a resource, as far as it applies, done to replicas on the stage. Each
//! ends with everything healed: in sync, equal, and with all that was acknowledged.

use super::disk::{Hold, Keep};
use super::holds;
use super::stage::{GEOMETRY, Stage};
use holdfast_replicator::{FromControl, Note, Repair, VerifyOrder};
use holdfast_types::NodeId;
use holdfast_wire::Lane;

/// Steps after which an interruption strikes.
const STEPS: std::ops::Range<usize> = 0..60;

fn steps(s: &mut Stage, count: usize) {
    for _ in 0..count {
        s.one();
    }
}

/// Bytes that resyncs of this peer sent, as node `n` noted them.
fn resynced_bytes(s: &Stage, n: usize, of: u8) -> Option<u64> {
    s.sites[n].notes.iter().rev().find_map(|note| match note {
        Note::Resynced {
            peer, sent_bytes, ..
        } if *peer == NodeId(of) => Some(*sent_bytes),
        _ => None,
    })
}

/// attach-concurrent: two secondaries come back at the same time.
#[test]
fn drbd_attach_concurrent() {
    holds(3, &[0, 1, 2], |s| {
        s.fail_over(0);
        s.kill(1);
        s.kill(2);
        s.pass(1500);
        for block in 0..32 {
            s.written(0, block);
        }
        s.start(1);
        s.start(2);
        s.pass(3000);
        let both = s.is_member(1) && s.is_member(2);
        s.must(both, "G7: not both are in sync");
    });
}

/// connect-abort: the network dies at any step of the handshake; a promotion is not held up by it.
#[test]
fn drbd_connect_abort() {
    for k in STEPS {
        holds(2, &[0, 1], |s| {
            s.fail_over(0);
            s.written(0, 3);
            s.blip(0, 1);
            s.now = s.now.plus_ms(10);
            s.join_now(0, 1);
            steps(s, k);
            s.part(0, 1);
            s.sites[0].deaf = true;
            s.fail_over(1);
            s.written(1, 4);
        });
    }
}

/// concurrent-disconnect: the links from the primary to both secondaries break in the same instant, under load.
#[test]
fn drbd_concurrent_disconnect() {
    for k in STEPS {
        holds(3, &[0, 1, 2], |s| {
            s.fail_over(0);
            for block in 0..8 {
                s.write(0, block * 4);
            }
            steps(s, k);
            s.blip(0, 1);
            s.blip(0, 2);
            s.pass(200);
        });
    }
}

/// autopromote: a promotion right after the peer has vanished, before anybody has noticed.
#[test]
fn drbd_promote_before_detection() {
    holds(2, &[0, 1], |s| {
        s.fail_over(0);
        s.written(0, 3);
        for (from, to) in [(0, 1), (1, 0)] {
            s.hold(from, to, Lane::Write);
            s.hold(from, to, Lane::Bulk);
        }
        s.write(0, 4);
        s.settle();
        s.sites[0].deaf = true;
        s.fail_over(1);
        s.read(1, 3);
        s.read(1, 4);
    });
}

/// switch-primaries: the role goes to and fro, with writes open each time.
#[test]
fn drbd_switch_primaries() {
    holds(2, &[0, 1], |s| {
        s.fail_over(0);
        for round in 0..8 {
            let (from, to) = (round % 2, 1 - round % 2);
            s.written(from, round as u64);
            s.write(from, 20);
            s.tell(from, FromControl::Drain);
            s.settle();
            s.tell(from, FromControl::StepDown);
            s.fail_over(to);
            s.read(to, round as u64);
        }
    });
}

/// outdate-not-all: only the replica that is cut off is removed.
#[test]
fn drbd_outdate_not_all() {
    holds(3, &[0, 1, 2], |s| {
        s.fail_over(0);
        s.part(0, 2);
        s.pass(1000);
        s.written(0, 3);
        let one = s.is_member(1) && !s.is_member(2);
        s.must(one, "G7: the wrong ones were removed");
    });
}

/// process-wakeup: writers that wait for a lost member wake when its removal is known.
#[test]
fn drbd_blocked_writers_wake() {
    holds(2, &[0, 1], |s| {
        s.fail_over(0);
        s.hold_register = true;
        s.part(0, 1);
        let writes: Vec<u64> = (0..16).map(|b| s.write(0, b)).collect();
        s.pass(3000);
        let none = writes.iter().all(|&w| !s.answered(w));
        s.must(none, "G1: answered while the removal was not known");
        s.commit_held();
        s.pass(1000);
        let all = writes.iter().all(|&w| s.acked(w));
        s.must(all, "liveness: a writer sleeps on");
    });
}

/// stress-al: writes thrash a log of half as many slots as there are extents; a disk fails in it.
#[test]
fn drbd_stress_activity_log() {
    holds(2, &[0, 1], |s| {
        s.fail_over(0);
        for round in 0..200u64 {
            s.write(0, round * 13 % 64);
            if round % 5 == 0 {
                s.pass(10);
            }
            if round == 120 {
                s.sites[1].disk.broken = true;
            }
        }
        s.pass(3000);
    });
}

/// io-errors: a secondary's disk fails and is used again: it is removed at once, and compared before it counts.
#[test]
fn drbd_io_errors() {
    holds(2, &[0, 1], |s| {
        s.fail_over(0);
        s.written(0, 3);
        s.sites[1].disk.broken = true;
        s.written(0, 4);
        let removed = !s.is_member(1);
        s.must(removed, "G1: a failed disk is a member");
        s.written(0, 5);
        s.kill(1);
        s.sites[1].disk.broken = false;
        s.start(1);
        s.pass(3000);
        let back = s.is_member(1);
        s.must(back, "G7: it does not come back");
    });
}

/// resync: generation after generation, first along a chain, then in a ring; what travels is what was missed.
#[test]
fn drbd_resync_chain_and_ring() {
    holds(3, &[0, 1, 2], |s| {
        s.fail_over(0);
        for round in 0..9usize {
            let (primary, away) = (round % 3, (round + 1) % 3);
            if round > 0 {
                s.fail_over(primary);
                s.pass(500);
            }
            s.kill(away);
            s.pass(1500);
            let base = round as u64 * 5;
            for block in base..base + 5 {
                s.written(primary, block);
            }
            s.start(away);
            // The delay before a member is taken in again has grown with its removals.
            s.pass(4000);
            let back = s.is_member(away);
            s.must(back, "G7: it does not come back");
            let sent = resynced_bytes(s, primary, away as u8);
            s.must(
                sent == Some(5 * 64),
                "G8: other than what it missed has travelled",
            );
        }
    });
}

/// resync-interrupt-variants: resync ends at any step, by the death of its source, of its target, or of the link.
#[test]
fn drbd_resync_interrupt_variants() {
    for k in STEPS {
        for variant in 0..3 {
            holds(3, &[0, 1, 2], |s| {
                s.fail_over(0);
                s.kill(2);
                s.pass(1000);
                for block in 0..16 {
                    s.written(0, block);
                }
                s.now = s.now.plus_ms(200);
                s.start_now(2);
                steps(s, 3 * k);
                match variant {
                    0 => s.kill(0),
                    1 => s.power_cut(2, Keep::Flushed),
                    _ => s.blip(0, 2),
                }
                s.pass(500);
            });
        }
    }
}

/// resync-interrupt-conflict: a frozen resync, a slow disk, overlapping writes, and then the link breaks.
#[test]
fn drbd_resync_interrupt_conflict() {
    holds(2, &[0, 1], |s| {
        s.fail_over(0);
        s.kill(1);
        s.pass(1000);
        for block in 0..8 {
            s.written(0, block);
        }
        s.hold(0, 1, Lane::Bulk);
        s.start(1);
        s.pass(200);
        s.hold_disk(1, Hold::Data);
        for _ in 0..3 {
            for block in 0..12 {
                s.write(0, block);
            }
            s.settle();
        }
        s.deliver_one(0, 1, Lane::Bulk);
        s.land_last(1);
        s.blip(0, 1);
        s.release_disk(1);
        s.release(0, 1, Lane::Bulk);
        s.pass(3000);
    });
}

/// resync-finish: the last answer of a resync is lost; the end is noticed all the same.
#[test]
fn drbd_resync_finish_answer_lost() {
    holds(2, &[0, 1], |s| {
        s.fail_over(0);
        s.kill(1);
        s.pass(1000);
        s.written(0, 3);
        s.start_now(1);
        s.now = s.now.plus_ms(200);
        // What x says from some point on is lost with its link.
        steps(s, 12);
        s.hold(1, 0, Lane::Write);
        s.settle();
        s.blip(0, 1);
        s.release(1, 0, Lane::Write);
        s.pass(3000);
        let back = s.is_member(1);
        s.must(back, "G7: the end of the resync is never noticed");
    });
}

/// resync-finish2, resync-double-target: of two targets the first that is done does not harm the slower one.
#[test]
fn drbd_resync_two_targets() {
    holds(3, &[0, 1, 2], |s| {
        s.fail_over(0);
        s.kill(1);
        s.kill(2);
        s.pass(1500);
        for block in 0..16 {
            s.written(0, block);
        }
        s.hold(0, 2, Lane::Bulk);
        s.start(1);
        s.start(2);
        s.pass(2500);
        let first = s.is_member(1) && !s.is_member(2);
        s.must(first, "G7: the faster one waits for the slower one");
        s.written(0, 40);
        s.release(0, 2, Lane::Bulk);
        s.pass(2000);
        let both = s.is_member(2);
        s.must(both, "G7: the slower one never gets there");
    });
}

/// switch-sync-source: the source dies, a target that is done takes over and brings the other one up.
#[test]
fn drbd_switch_sync_source() {
    holds(3, &[0, 1, 2], |s| {
        s.fail_over(0);
        s.kill(1);
        s.kill(2);
        s.pass(1500);
        for block in 0..16 {
            s.written(0, block);
        }
        s.hold(0, 2, Lane::Bulk);
        s.start(1);
        s.start(2);
        s.pass(2500);
        s.kill(0);
        s.fail_over(1);
        s.pass(3000);
        let up = s.is_member(2);
        s.must(up, "G7: the other target is left behind");
    });
}

/// resync-upstream-downstream: three versions of the data, the older ones come back in either order.
#[test]
fn drbd_three_versions_in_each_order() {
    for order in [[1, 2], [2, 1]] {
        holds(3, &[0, 1, 2], |s| {
            s.fail_over(0);
            s.kill(2);
            s.pass(1000);
            s.written(0, 3);
            s.kill(1);
            s.pass(1000);
            s.written(0, 4);
            s.written(0, 3);
            for n in order {
                s.start(n);
                s.pass(2000);
            }
        });
    }
}

/// write-during-resync: writes to all blocks go on while one is resynced, and the source changes in the middle.
#[test]
fn drbd_write_during_resync() {
    holds(3, &[0, 1, 2], |s| {
        s.fail_over(0);
        s.kill(2);
        s.pass(1000);
        for block in 0..64 {
            s.written(0, block);
        }
        s.start_now(2);
        for round in 0..64u64 {
            s.write(0, round * 7 % 64);
            steps(s, 4);
        }
        s.kill(0);
        s.fail_over(1);
        for round in 0..64u64 {
            s.write(1, round * 11 % 64);
            steps(s, 4);
        }
        s.pass(2000);
    });
}

/// resync-reconciliation: the primary dies with its secondaries at different places of the stream; any of them takes over.
#[test]
fn drbd_reconciliation_at_different_positions() {
    for successor in [1, 2, 3] {
        holds(4, &[0, 1, 2, 3], |s| {
            s.fail_over(0);
            s.written(0, 0);
            for n in 1..4 {
                s.hold(0, n, Lane::Write);
            }
            for block in [1, 2, 8] {
                s.write(0, block);
            }
            s.settle();
            for (n, frames) in [(1, 3), (2, 1), (3, 2)] {
                for _ in 0..frames {
                    s.deliver_one(0, n, Lane::Write);
                }
            }
            s.kill(0);
            for n in 1..4 {
                s.release(0, n, Lane::Write);
            }
            s.fail_over(successor);
            for block in [0, 1, 2, 8] {
                s.read(successor, block);
            }
            s.kill(successor);
            let next = successor % 3 + 1;
            s.fail_over(next);
            for block in [0, 1, 2, 8] {
                s.read(next, block);
            }
        });
    }
}

/// lost-primary-after-no-writes: nothing was written, so nothing travels when the old primary is back.
#[test]
fn drbd_lost_primary_after_no_writes() {
    holds(2, &[0, 1], |s| {
        s.fail_over(0);
        s.kill(0);
        s.fail_over(1);
        s.start(0);
        s.pass(2000);
        let sent = resynced_bytes(s, 1, 0);
        s.must(
            sent == Some(0),
            "G8: something travels although nothing was written",
        );
    });
}

/// last-man-standing: of three replicas one is left, and serves; the others come back.
#[test]
fn drbd_last_man_standing() {
    holds(3, &[0, 1, 2], |s| {
        s.fail_over(0);
        s.kill(2);
        s.pass(1000);
        s.written(0, 1);
        s.kill(0);
        s.fail_over(1);
        s.written(1, 2);
        s.start(2);
        s.start(0);
        s.pass(3000);
        s.read(1, 1);
        s.read(1, 2);
    });
}

/// quorum-isolate-primary: a frozen primary is left behind and comes back as a resync, not as a split brain; what it
/// wrote alone is gone.
#[test]
fn drbd_isolated_primary_comes_back() {
    holds(3, &[0, 1, 2], |s| {
        s.fail_over(0);
        s.written(0, 3);
        s.sites[0].deaf = true;
        s.part(0, 1);
        s.part(0, 2);
        let alone = s.write(0, 3);
        s.pass(2000);
        let none = !s.answered(alone);
        s.must(none, "G2: an isolated primary acknowledges");
        s.fail_over(1);
        s.written(1, 4);
        s.sites[0].deaf = false;
        s.join(0, 1);
        s.join(0, 2);
        s.pass(3000);
        s.read(1, 3);
        let back = s.is_member(0);
        s.must(back, "G7: it does not come back");
    });
}

/// disk-timeout: the disk of a resync target hangs with a block on its way; the application's write of that block does
/// not hang with it.
#[test]
fn drbd_resync_target_hangs() {
    holds(2, &[0, 1], |s| {
        s.fail_over(0);
        s.kill(1);
        s.pass(1000);
        s.written(0, 3);
        s.hold_disk(1, Hold::Data);
        s.start(1);
        s.pass(200);
        let req = s.write(0, 3);
        s.pass(3000);
        let done = s.acked(req);
        s.must(
            done,
            "liveness: the application waits for a replica that is no member",
        );
    });
}

/// The same at a promotion: a member takes the session and answers no comparison; the block is served without it.
#[test]
fn drbd_reconciliation_peer_hangs() {
    holds(3, &[0, 1, 2], |s| {
        s.fail_over(0);
        s.hold(0, 2, Lane::Write);
        s.write(0, 3);
        s.settle();
        s.kill(0);
        s.release(0, 2, Lane::Write);
        s.hold(1, 2, Lane::Bulk);
        s.fail_over(2);
        let req = s.read(2, 3);
        s.pass(4000);
        let done = s.acked(req);
        s.must(
            done,
            "liveness: the application waits for a member that does not compare",
        );
    });
}

/// io-errors: the disk of the last member fails at any moment of a resync beside an application: nothing is due any more.
#[test]
fn drbd_io_errors_during_resync() {
    for k in 0..40 {
        holds(2, &[0, 1], |s| {
            s.fail_over(0);
            s.kill(1);
            s.pass(1000);
            for block in 0..64 {
                s.written(0, block);
            }
            s.hold_disk(1, Hold::Data);
            s.start(1);
            for round in 0..k {
                s.write(0, round % 64);
                s.pass(60);
            }
            s.sites[0].disk.broken = true;
            s.write(0, 5);
            s.pass(300);
        });
    }
}

/// verify: what rots on a disk, neighbours too, is found under load; here it is repaired as well, by the majority,
/// whether a member's copy rotted or the primary's own; an interruption at any step leaves the rest for another time.
#[test]
fn drbd_verify_finds_rot_and_the_majority_repairs_it() {
    const REPAIR: FromControl = FromControl::Verify(VerifyOrder {
        peers: holdfast_types::NodeSet::EMPTY,
        repair: Some(Repair::Majority),
        max_rate: None,
        scrub: false,
    });
    for k in STEPS {
        holds(3, &[0, 1, 2], |s| {
            s.fail_over(0);
            for block in 0..32 {
                s.written(0, block);
            }
            for (n, block) in [(1, 5), (1, 6), (2, 20), (0, 30)] {
                let at = block * GEOMETRY.block_bytes as usize;
                let disk = &mut s.sites[n].disk;
                for image in [&mut disk.cached, &mut disk.stable] {
                    image[at + 3] ^= 0x10;
                }
            }
            s.tell(0, REPAIR);
            for i in 0..k {
                if i % 4 == 0 {
                    s.write(0, 40 + (i as u64 % 8));
                }
                s.one();
            }
            s.blip(0, 1 + k % 2);
            s.pass(2000);
            // Whatever was left.
            s.tell(0, REPAIR);
            s.pass(500);
            let found = s.sites[0].notes.iter().rev().find_map(|note| match note {
                Note::Verified(report) => Some(report.clone()),
                _ => None,
            });
            s.must(
                found.is_some_and(|r| r.is_complete()),
                "a verify ends when its peers stay",
            );
        });
    }
}
