//! The schedules of `safety.md`, played: each step by step, once with every rule on, when all checkers must be
//! content, and once with its rule off, when one of the named checkers must not.
//!
//! The names carry the schedule's number; `docs/SCENARIOS.md` lists them all. P is the primary, S and C are secondaries,
//! x is the replica that is removed or added, N the new primary: node numbers are said in each schedule.

mod disk;
mod drbd;
mod membership;
mod promotion;
mod serving;
mod stage;
mod sweeps;
mod traces;

use holdfast_replicator::Rule;
use stage::Stage;

/// Plays a schedule and lets the cluster heal; what a checker found, if anything.
fn play(
    off: Option<Rule>,
    nodes: usize,
    members: &[u8],
    script: impl Fn(&mut Stage),
) -> Option<String> {
    let mut stage = Stage::new(off, nodes, members);
    script(&mut stage);
    if stage.failure.is_none() {
        stage.heal();
    }
    stage.failure
}

/// With every rule on all is well.
fn holds(nodes: usize, members: &[u8], script: impl Fn(&mut Stage)) {
    if let Some(found) = play(None, nodes, members, script) {
        panic!("with every rule on: {found}");
    }
}

/// With every rule on all is well; without `rule`, one of the checkers named in `by` says what is lost.
fn needs(rule: Rule, by: &[&str], nodes: usize, members: &[u8], script: impl Fn(&mut Stage)) {
    holds(nodes, members, &script);
    match play(Some(rule), nodes, members, &script) {
        None => panic!("without {rule:?} no checker found anything"),
        Some(found) => assert!(
            by.iter().any(|name| found.contains(name)),
            "without {rule:?} found by another checker than {by:?}: {found}"
        ),
    }
}
