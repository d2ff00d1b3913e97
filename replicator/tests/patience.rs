//! What a slow or stopped replica may cost the application, in virtual time.

mod common;

use common::Cluster;
use holdfast_replicator::Timing;
use holdfast_types::{NodeId, NodeSet};

fn set(nodes: &[u8]) -> NodeSet {
    nodes.iter().map(|&n| NodeId(n)).collect()
}

/// Writes one block and lets time pass until it is answered: how long that took.
fn timed_write(c: &mut Cluster, block: u64) -> u64 {
    let began = c.now;
    let write = c.write(0, block, 7);
    c.settle();
    while !c.acked(0, write) {
        c.pass(10);
        assert!(c.now.ms_since(began) < 60_000, "never answered");
    }
    c.now.ms_since(began)
}

#[test]
fn a_stopped_replica_costs_the_application_two_seconds_at_most_and_once() {
    let mut c = Cluster::new(3, &[0, 1, 2]);
    c.promote(0);
    c.pass(500);
    c.sites[1].frozen = true;
    let first = timed_write(&mut c, 1);
    assert!(first <= 2000, "{first} ms");
    assert_eq!(c.view.in_sync, set(&[0, 2]));
    for block in 2..20 {
        assert_eq!(timed_write(&mut c, block), 0, "once");
        c.pass(100);
    }
    c.thaw(1);
    c.pass(3000);
    assert_eq!(c.view.in_sync, set(&[0, 1, 2]));
    c.assert_equal(0, 1);
}

#[test]
fn a_replica_that_trickles_does_not_slow_the_application_for_ever() {
    let mut c = Cluster::new(2, &[0, 1]);
    c.promote(0);
    c.pass(500);
    let mut spent = 0;
    for round in 0..30 {
        // Every answer comes, and each only after 1.4 seconds.
        c.sites[1].slow = true;
        let began = c.now;
        let write = c.write(0, round, 7);
        c.settle();
        while c.now.ms_since(began) < 1400 {
            if !c.acked(0, write) {
                spent += 10;
            }
            c.pass(10);
        }
        c.sites[1].slow = false;
        c.settle();
        assert!(c.acked(0, write));
    }
    assert!(c.view.in_sync == set(&[0]), "it is let go");
    assert!(spent <= 6000, "{spent} ms of 42 s");
    // It answers quickly again: redundancy is back.
    for round in 0..40 {
        c.write(0, round, 8);
        c.pass(500);
    }
    assert_eq!(c.view.in_sync, set(&[0, 1]));
    c.assert_equal(0, 1);
}

#[test]
fn good_behaviour_is_remembered_too() {
    let mut c = Cluster::new(2, &[0, 1]);
    c.promote(0);
    // How long it takes until a replica that was away for a moment counts again.
    let away = |c: &mut Cluster| {
        c.sites[1].frozen = true;
        while c.view.in_sync.len() > 1 {
            c.write(0, 1, 1);
            c.pass(50);
        }
        let began = c.now;
        c.thaw(1);
        while c.view.in_sync.len() < 2 {
            c.pass(50);
            assert!(c.now.ms_since(began) <= 2 * Timing::default().rejoin_max_ms);
        }
        c.now.ms_since(began)
    };
    let first = away(&mut c);
    let mut worst = first;
    for _ in 0..12 {
        worst = away(&mut c);
    }
    assert!(
        worst >= Timing::default().rejoin_max_ms,
        "each time longer: {worst} ms"
    );
    c.pass(10 * Timing::default().rejoin_forget_ms);
    let again = away(&mut c);
    assert!(
        again <= first + 500,
        "{again} ms after good behaviour, {first} at first"
    );
}
