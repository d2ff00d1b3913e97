//! Every rule is needed: with it switched off the model finds a schedule that breaks a guarantee. With the rule in
//! force the same schedule cannot be played to that end. `-- --nocapture` prints the schedules.

use holdfast_model::{Bounds, Model, Rule, Rules, explore};

/// States after which a search is given up.
const STATES_MAX: usize = 1_500_000;

fn bounds(words: &str) -> Bounds {
    let mut bounds = Bounds {
        kills: false,
        crashes: 0,
        promotions: 0,
        removals: 0,
        grows: 0,
        ..Bounds::default()
    };
    for word in words.split_whitespace() {
        let (name, value) = word.split_once('=').unwrap_or((word, "1"));
        bounds.set(name, value.parse().unwrap()).unwrap();
    }
    bounds
}

fn needed(rule: Rule, words: &str) {
    let bounds = bounds(words);
    let off = Model::new(Rules::all().without(rule), bounds);
    let report = explore(&off, STATES_MAX);
    let number = rule.number();
    let trace = report.trace.unwrap_or_else(|| {
        let states = report.states;
        panic!("{rule:?} ({number}) is off and nothing breaks in {states} states of: {words}")
    });
    println!(
        "without {rule:?} ({number}), {} states\n{trace}",
        report.states
    );

    let on = Model::new(Rules::all(), bounds);
    let mut state = on.initial();
    for &step in &trace.steps {
        match on.next(&state, step) {
            Some((after, broken)) => {
                assert_eq!(broken, None, "{rule:?} is in force and does not help");
                state = after;
            }
            None => return, // what the rule forbids
        }
    }
}

macro_rules! needed {
    ($($name:ident $rule:ident $words:literal)*) => {
        $(#[test] fn $name() { needed(Rule::$rule, $words); })*
    };
}

needed! {
    rule_01_promise_first PromiseFirst "writes=2 promotions removals"
    rule_01_definite_withdraw DefiniteWithdraw "writes=2 promotions removals"
    rule_02_hear_all HearAll "promotions"
    rule_03_report_always ReportAlways "promotions"
    rule_04_hold_open HoldOpen "replicas=3"
    rule_04_close_set CloseSet "replicas=3 removals"
    rule_05_count_from_cut CountFromCut "removals grows"
    rule_06_flush_at_cut FlushAtCut "absent flushes grows"
    rule_07_restart_new_epoch RestartNewEpoch "absent crashes kills grows"
    rule_08_member_runs MemberRuns "crashes power flushes drops removals grows"
    rule_08_grow_life GrowLife "absent crashes power grows promotions"
    rule_09_clean_first CleanFirst "writes=2 crashes power promotions removals"
    rule_11_reads_wait ReadsWait "promotions"
    rule_12_replica_order ReplicaOrder "absent writes=2 grows"
    rule_13_resync_lock ResyncLock "absent writes=2 grows"
    rule_14_resync_logged ResyncLogged "absent crashes power"
    rule_15_cut_bitmaps CutBitmaps "replicas=3 absent removals grows"
    rule_15_cut_durable CutDurable "replicas=3 absent removals grows"
    rule_16_doubt_bits DoubtBits "replicas=3 absent promotions"
    rule_16_crash_extents CrashExtents "crashes kills"
    rule_17_grown_lane GrownLane "replicas=3 promotions removals drops"
    rule_18_drain Drain "in-flight promotions"
    rule_19_store_claim StoreClaim "in-flight crashes kills promotions"
    rule_21_session_stamp SessionStamp "absent writes=2 drops"
    rule_21_clear_latest ClearLatest "absent writes=2"
    rule_24_clean_stop_bits CleanStopBits "replicas=3 stops"
    rule_27_per_frame_answers PerFrameAnswers "blocks=2 writes=2 drops"
    rule_28_removal_committed RemovalCommitted "removals"
    rule_28_mark_unsettled MarkUnsettled "removals"
    rule_28_mark_absent MarkAbsent "absent"
    rule_33_reconcile_first ReconcileFirst "promotions=2"
    rule_40_resync_settled ResyncSettled "replicas=3 absent crashes kills promotions"
    rule_41_synced_before_close SyncedBeforeClose "replicas=3 absent writes=2"
    rule_41_synced_before_resend SyncedBeforeResend "replicas=3 absent writes=2 drops"
}

/// Kept as defence: nothing in these bounds breaks without them, so no test and no proof rests on them.
#[test]
fn every_other_rule_is_listed_as_defence() {
    let defence = [Rule::MarkDurable, Rule::ReconcileSet];
    for rule in defence {
        let off = Model::new(
            Rules::all().without(rule),
            bounds("replicas=3 absent promotions"),
        );
        let report = explore(&off, STATES_MAX);
        assert!(
            report.complete && report.trace.is_none(),
            "{rule:?} is needed: give it a test"
        );
    }
    // Two rules of defence, the others above.
    assert_eq!(Rule::ALL.len(), defence.len() + 34);
}

/// Open question 1: the policy `unclean_promotion = allow`. What it can lose was never flushed.
#[test]
fn flushed_data_survives_the_promotion_of_an_unclean_member() {
    let rules = Rules::all().without(Rule::CleanFirst);
    let bounds = bounds("writes=1 flushes=1 crashes=2 power promotions removals grows");
    let strict = explore(&Model::new(rules, bounds), STATES_MAX);
    assert!(strict.trace.is_some(), "an unflushed write can be lost");
    let report = explore(&Model::new(rules, bounds).flushed_only(), STATES_MAX);
    if let Some(trace) = report.trace {
        panic!("{trace}");
    }
    assert!(report.complete, "{} states are not all", report.states);
    println!("{} states", report.states);
}
