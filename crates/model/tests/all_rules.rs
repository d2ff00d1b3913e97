//! With all rules in force nothing breaks: every schedule within these bounds is walked. Larger ones on demand:
//! `cargo run --release -p holdfast-model --example explore -- --replicas 3 --writes 2 ...`

use holdfast_model::{Bounds, Model, Report, Rules, explore};

/// More states than any of these searches has; one that needs more does not belong here.
const STATES_MAX: usize = 1_000_000;

fn walk(bounds: Bounds) -> Report {
    let report = explore(&Model::new(Rules::all(), bounds), STATES_MAX);
    println!(
        "{} states, depth {}: {bounds:?}",
        report.states, report.depth
    );
    report
}

fn holds(bounds: Bounds) {
    let report = walk(bounds);
    if let Some(trace) = &report.trace {
        panic!("{bounds:?}\n{trace}");
    }
    assert!(report.complete, "{bounds:?}: there are more states");
}

#[test]
fn two_replicas_two_writes_a_crash_a_drop_a_promotion() {
    holds(Bounds {
        writes: 2,
        drops: 1,
        ..Bounds::default()
    });
}

#[test]
fn two_replicas_lose_power_twice_around_a_flush() {
    holds(Bounds {
        flushes: 1,
        crashes: 2,
        kills: false,
        power: true,
        ..Bounds::default()
    });
}

#[test]
fn a_replica_joins_and_power_is_lost_twice() {
    holds(Bounds {
        absent: true,
        flushes: 1,
        crashes: 2,
        kills: false,
        power: true,
        ..Bounds::default()
    });
}

#[test]
fn three_replicas_a_promotion_a_removal_a_grow() {
    holds(Bounds {
        nodes: 3,
        crashes: 0,
        ..Bounds::default()
    });
}

#[test]
fn three_replicas_one_absent_and_a_crash() {
    holds(Bounds {
        nodes: 3,
        absent: true,
        removals: 0,
        ..Bounds::default()
    });
}

#[test]
fn disk_writes_that_land_late() {
    holds(Bounds {
        drops: 1,
        in_flight: true,
        ..Bounds::default()
    });
}

#[test]
fn two_blocks_and_a_broken_connection() {
    holds(Bounds {
        blocks: 2,
        writes: 2,
        crashes: 0,
        drops: 1,
        removals: 0,
        ..Bounds::default()
    });
}

#[test]
fn orderly_stops_with_one_absent() {
    holds(Bounds {
        nodes: 3,
        absent: true,
        crashes: 0,
        promotions: 0,
        stops: 1,
        ..Bounds::default()
    });
}

#[test]
fn a_primary_steps_down_and_comes_back() {
    holds(Bounds {
        writes: 2,
        crashes: 0,
        drops: 1,
        demotions: 1,
        promotions: 2,
        faults: 3,
        ..Bounds::default()
    });
}

#[test]
fn bitmaps_saved_at_any_time() {
    holds(Bounds {
        nodes: 3,
        crashes: 1,
        promotions: 0,
        saves: true,
        ..Bounds::default()
    });
}

#[test]
fn the_same_search_twice_is_the_same() {
    let bounds = Bounds {
        drops: 1,
        ..Bounds::default()
    };
    let (a, b) = (walk(bounds), walk(bounds));
    assert_eq!((a.states, a.depth), (b.states, b.depth));
    assert!(
        a.states > 10_000,
        "{} states are too few to be true",
        a.states
    );
}

/// The bounds are real: what must be reachable for these searches to mean something is reached.
#[test]
fn the_searches_reach_what_they_are_about() {
    use holdfast_model::state::{Role, State};
    let reached = |bounds: Bounds, what: fn(&State) -> bool| {
        let model = Model::new(Rules::all(), bounds);
        let mut level = vec![model.initial()];
        let mut seen = std::collections::HashSet::from([model.initial()]);
        while !level.is_empty() && !level.iter().any(what) {
            let mut next = Vec::new();
            for (state, &step) in level
                .iter()
                .flat_map(|s| model.steps().iter().map(move |step| (s, step)))
            {
                if let Some((after, _)) = model.next(state, step)
                    && seen.insert(after)
                {
                    next.push(after);
                }
            }
            level = next;
        }
        !level.is_empty()
    };
    let failover = Bounds::default();
    let joins = Bounds {
        absent: true,
        crashes: 0,
        ..Bounds::default()
    };
    let serves_epoch_2 = |s: &State| matches!(&s.nodes[1].role, Role::Primary(p) if p.open && p.reconciled && p.epoch == 2);
    assert!(reached(failover, serves_epoch_2), "a failover");
    assert!(
        reached(joins, |s| s.register.in_sync.has(1)
            && s.nodes[1].disk.cache[0] == 1),
        "a join with data"
    );
    assert!(
        reached(failover, |s| s.nodes[1].disk.promised == 1
            && s.register.runs[1] == 2
            && s.used.promotions == 1),
        "a promise taken back by a new run"
    );
}
