//! Fresh seeds, each run twice: everything holds, and the same seed is the same run.

use holdfast_sim::Outcome;
use holdfast_sim::cli::{SimOptions, run, run_seed};
use holdfast_sim::mutation::Mutation;

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
    let wanted = [
        "promoted",
        "reconciled",
        "resync complete",
        "resync found equal blocks",
        "member lost",
        "member synced",
        "member restarted",
        "an unclean member serves",
        "disk failed",
        "disk replaced",
        "disk stalled",
        "fencer acted",
        "candidate withdrawn",
        "stepped down: lease lost",
        "stepped down: handed over",
        "replica stopped in good order",
        "struck while opening",
        "voter admitted anew",
        "verify ended",
        "member dismissed",
        "removed replica forgotten",
        "replica added again",
    ];
    let mut missing = wanted.to_vec();
    let options = SimOptions::default();
    for seed in 0..400 {
        let report = run_seed(seed, &options);
        assert!(
            !matches!(report.outcome, Outcome::Failed(_)),
            "seed {seed}: {:?}",
            report.outcome
        );
        missing.retain(|mark| !report.marks.contains_key(mark));
        if missing.is_empty() {
            return;
        }
    }
    panic!("400 seeds never reached {missing:?}");
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
