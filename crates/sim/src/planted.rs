//! Bugs planted to test the checkers: each switches one rule off, and the run must say so.

use crate::scenario::{Fault, MS, S, Scenario, US};
use holdfast_replicator::Rule;

/// Every bug, with the guarantees whose checkers may be the ones to catch it.
pub const ALL: [(Rule, &[&str]); 9] = [
    (Rule::AckByAll, &["G1"]),
    (Rule::ResyncLock, &["landing"]),
    (Rule::BitsUntilAnswered, &["G1", "G4"]),
    (Rule::ReconcileFirst, &["G1", "G6"]),
    (Rule::EvictTrace, &["G1", "G4"]),
    (Rule::GrowFlush, &["G1", "G4", "order"]),
    (Rule::ReadLock, &["G1", "G6"]),
    (Rule::FlushByAll, &["G1"]),
    (Rule::ShrinkFirst, &["G1", "G2"]),
];

/// The bug of this name.
pub fn find(name: &str) -> Option<Rule> {
    ALL.iter()
        .map(|(p, _)| *p)
        .find(|p| format!("{p:?}") == name)
}

/// Has the bug any effect in a cluster of this kind?
pub fn suits(planted: Rule, scenario: &Scenario) -> bool {
    match planted {
        // In doubt between members that are both there: with two data nodes one of them is gone.
        Rule::ReconcileFirst => scenario.data_nodes >= 3,
        _ => true,
    }
}

/// Shapes a scenario so that a bug that needs a rare constellation has its chance. The faults stay drawn from the
/// seed; only which there are, and how dense the load is, is set.
pub fn provoke(planted: Rule, scenario: &mut Scenario) {
    let busy = |scenario: &mut Scenario| {
        scenario.mix.reads = 45;
        scenario.mix.hot = 90;
        scenario.mix.blocks_max = 1;
        scenario.mix.zeroes = 0;
        scenario.mix.ragged = 0;
        scenario.mix.burst_max = 16;
        scenario.mix.depth_max = 32;
        scenario.mix.gap_ns = 2 * MS;
        scenario.host_ns = 200 * US;
    };
    match planted {
        Rule::ReadLock => {
            busy(scenario);
            scenario.faults = vec![(Fault::PowerCut, S)];
            scenario.frame_delay.spread_ns = 3 * MS;
        }
        Rule::ReconcileFirst => {
            busy(scenario);
            scenario.faults = vec![(Fault::PowerCut, S), (Fault::Aftermath, S)];
            scenario.frame_delay.spread_ns = 3 * MS;
        }
        _ => {}
    }
}
