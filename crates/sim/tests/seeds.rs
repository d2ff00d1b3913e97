//! Fresh seeds, each run twice: everything holds, and the same seed is the same run.

use holdfast_sim::cli::{SimOptions, run, run_seed};
use holdfast_sim::mutation::Mutation;
use holdfast_sim::{Outcome, marks};
use std::collections::BTreeMap;

#[test]
fn a_hundred_seeds_hold_and_are_deterministic() {
    assert!(run(SimOptions {
        seeds: 100,
        twice: true,
        ..SimOptions::default()
    }));
}

#[test]
fn every_fault_class_at_once() {
    assert!(run(SimOptions {
        seeds: 20,
        swarm: false,
        ..SimOptions::default()
    }));
}

#[test]
fn the_swarm_reaches_what_matters() {
    // A simulator whose runs never get to the interesting places proves nothing.
    let options = SimOptions::default();
    let mut reached = BTreeMap::new();
    for seed in 0..marks::SEEDS_MIN {
        let report = run_seed(seed, &options);
        assert!(
            !matches!(report.outcome, Outcome::Failed(_)),
            "seed {seed}: {:?}",
            report.outcome
        );
        reached.extend(report.marks);
        if marks::missing(&reached).is_empty() {
            return;
        }
    }
    let missing = marks::missing(&reached);
    panic!("{} seeds never reached {missing:?}", marks::SEEDS_MIN);
}

#[test]
fn the_guard_of_determinism_names_the_first_event_that_differs() {
    let report = run_seed(
        3,
        &SimOptions {
            twice: true,
            mutation: Some(Mutation::Wobble),
            ..SimOptions::default()
        },
    );
    let Outcome::Failed(why) = report.outcome else {
        panic!("a run that depends on more than its seed went unnoticed");
    };
    assert!(why.contains("determinism"), "{why}");
    assert!(
        report.tail.iter().any(|l| l.starts_with("event ")),
        "{:?}",
        report.tail
    );
}
