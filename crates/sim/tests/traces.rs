//! Regression traces: every `fixtures/sim/*.trace` is a run that failed once, made small. One without a rule or a lie is of a bug
//! that is mended and must end well; one with must still fail as it says, and end well without.
//!
//! And the shrinker itself: what it makes of a failing run fails in the same way, and is small.

use holdfast_sim::Outcome;
use holdfast_sim::cli::{SimOptions, Telling, run_plan, run_seed, shrink_failure};
use holdfast_sim::mutation::Mutation;
use holdfast_sim::plan::{Plan, kind};
use holdfast_sim::planted;
use std::path::Path;

fn traces() -> Vec<(String, Plan)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/sim");
    let mut all = Vec::new();
    for entry in std::fs::read_dir(&dir).expect("fixtures/sim is there") {
        let path = entry.expect("readable").path();
        if path.extension().is_some_and(|e| e == "trace") {
            let name = path.display().to_string();
            let text = std::fs::read_to_string(&path).expect("readable");
            let plan = text.parse().unwrap_or_else(|e| panic!("{name}: {e}"));
            all.push((name, plan));
        }
    }
    assert!(!all.is_empty());
    all
}

#[test]
fn regression_traces_hold() {
    for (name, plan) in traces() {
        let outcome = run_plan(&plan, Telling::Nothing).outcome;
        if plan.rule.is_none() && plan.lie.is_none() {
            assert_eq!(outcome, Outcome::Well, "{name}");
            continue;
        }
        let Outcome::Failed(why) = outcome else {
            panic!("{name}: found {:?} once, now nothing", plan.found);
        };
        assert_eq!(kind(&why), kind(&plan.found), "{name}: {why}");
    }
}

#[test]
fn a_recorded_run_is_played_again_as_it_was() {
    let options = SimOptions {
        mutation: Some(Mutation::VipStays),
        ..SimOptions::default()
    };
    let mut played = 0;
    for seed in 0..20 {
        let report = run_seed(seed, &options);
        let Outcome::Failed(why) = &report.outcome else {
            continue;
        };
        let plan = report.plan.as_ref().expect("a failure has its decisions");
        let again = run_plan(plan, Telling::Nothing);
        assert_eq!(again.outcome, Outcome::Failed(why.clone()), "seed {seed}");
        assert_eq!(
            (again.ops, again.ended_at),
            (report.ops, report.ended_at),
            "seed {seed}"
        );
        played += 1;
    }
    assert!(played > 3);
}

/// The first seed that fails in the way wanted, made small with so many runs.
fn small(options: &SimOptions, wanted: &str, runs: u32, steps_max: usize) {
    for seed in 0..400 {
        let report = run_seed(seed, options);
        let Outcome::Failed(why) = &report.outcome else {
            continue;
        };
        if kind(why) != wanted {
            continue;
        }
        let small = shrink_failure(&report, runs).expect("it failed");
        let text: Plan = small
            .to_string()
            .parse()
            .expect("what is written can be read");
        let Outcome::Failed(again) = run_plan(&text, Telling::Nothing).outcome else {
            panic!("seed {seed}: the small trace does not fail:\n{small}");
        };
        assert_eq!(kind(&again), wanted, "seed {seed}");
        assert!(
            small.steps.len() < steps_max,
            "seed {seed}: {} steps are left:\n{small}",
            small.steps.len()
        );
        return;
    }
    panic!("no seed fails with {wanted}");
}

#[test]
fn a_flush_that_leaves_out_the_peers_shrinks() {
    let rule = planted::find("FlushByAll");
    assert!(rule.is_some());
    let options = SimOptions {
        planted: rule,
        ..SimOptions::default()
    };
    small(&options, "G1", 250, 30);
}

#[test]
fn metadata_reported_too_early_shrinks() {
    let options = SimOptions {
        mutation: Some(Mutation::EarlyMeta),
        ..SimOptions::default()
    };
    small(&options, "order", 150, 10);
}
