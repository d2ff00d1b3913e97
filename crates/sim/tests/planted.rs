//! The testers tested: a bug is planted in the replicator, and the checkers must catch it, for the right reason,
//! within a bounded number of seeds.

use holdfast_sim::Outcome;
use holdfast_sim::cli::{SimOptions, run_seed};
use holdfast_sim::mutation::Mutation;
use holdfast_sim::planted;

/// Seeds after which a bug that was not caught has escaped. The rarest are caught in one of about a hundred.
const SEEDS_MAX: u64 = 1200;

fn caught(name: &str) {
    let (bug, guarantees) = planted::ALL
        .into_iter()
        .find(|(bug, _)| format!("{bug:?}") == name)
        .unwrap_or_else(|| panic!("no bug is called {name}"));
    let options = SimOptions {
        planted: Some(bug),
        ..SimOptions::default()
    };
    for seed in 0..SEEDS_MAX {
        if let Outcome::Failed(why) = run_seed(seed, &options).outcome
            && guarantees.iter().any(|g| why.contains(g))
        {
            println!("{name}: seed {seed}: {why}");
            return;
        }
    }
    panic!("{name} escaped {SEEDS_MAX} seeds: no checker of {guarantees:?} saw it");
}

/// The rules of a checker that no single bug of the state machines breaks are broken by a lie of their interpreter.
fn lie_caught(name: &str) {
    let (mutation, text) = Mutation::ALL
        .into_iter()
        .find(|(m, _)| format!("{m:?}") == name)
        .unwrap_or_else(|| panic!("no lie is called {name}"));
    let options = SimOptions {
        mutation: Some(mutation),
        twice: mutation == Mutation::Wobble,
        ..SimOptions::default()
    };
    for seed in 0..SEEDS_MAX {
        if let Outcome::Failed(why) = run_seed(seed, &options).outcome
            && why.contains(text)
        {
            println!("{name}: seed {seed}: {why}");
            return;
        }
    }
    panic!("{name} escaped {SEEDS_MAX} seeds: no checker said {text:?}");
}

macro_rules! lies {
    ($($test:ident: $lie:literal,)*) => {
        $(#[test] fn $test() { lie_caught($lie); })*
        #[test]
        fn every_lie_has_a_test() {
            let tested = [$($lie),*];
            for (lie, _) in Mutation::ALL {
                assert!(tested.contains(&format!("{lie:?}").as_str()), "{lie:?} has no test");
            }
        }
    };
}

lies! {
    wobble: "Wobble",
    early_meta: "EarlyMeta",
    vote_forgotten: "VoteForgotten",
    vip_stays: "VipStays",
    resync_of_nothing: "ResyncOfNothing",
    same_boot: "SameBoot",
    lease_stretched: "LeaseStretched",
    more_slots: "MoreSlots",
    status_lies: "StatusLies",
    bitmaps_kept: "BitmapsKept",
}

macro_rules! caught {
    ($($test:ident: $bug:literal,)*) => {
        $(#[test] fn $test() { caught($bug); })*
        /// A bug added to the list without a test here would never be looked for.
        #[test]
        fn every_planted_bug_has_a_test() {
            let tested = [$($bug),*];
            for (bug, _) in planted::ALL {
                assert!(tested.contains(&format!("{bug:?}").as_str()), "{bug:?} has no test");
            }
        }
    };
}

caught! {
    ack_before_peers: "AckByAll",
    resync_without_lock: "ResyncLock",
    clear_bits_on_attach: "BitsUntilAnswered",
    serve_before_reconcile: "ReconcileFirst",
    evict_without_trace: "EvictTrace",
    grow_without_flush: "GrowFlush",
    read_without_lock: "ReadLock",
    flush_locally: "FlushByAll",
    ack_before_shrink: "ShrinkFirst",
}
