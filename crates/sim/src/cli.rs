//! Running many seeds, and telling what came of them.

use crate::mutation::Mutation;
use crate::plan::{Plan, Shape, Step};
use crate::scenario::Scenario;
pub use crate::trace::Telling;
use crate::trace::Trace;
use crate::world::{Outcome, World};
use holdfast_replicator::Rule;
use serde::Serialize;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

/// Threads that run seeds side by side.
const THREADS: usize = 2;
/// Runs spent on making one failure small.
const SHRINK_RUNS_MAX: u32 = 1500;
/// Failures that are told in full.
const FAILURES_SHOWN: usize = 100;

/// What to run.
#[derive(Clone, Debug)]
pub struct SimOptions {
    /// How many seeds.
    pub seeds: u64,
    /// The first one.
    pub seed_start: u64,
    /// Just this one, with its whole story at the end.
    pub one: Option<u64>,
    /// Each fault class is absent from half of the runs.
    pub swarm: bool,
    /// Run each seed twice and compare the hashes of all that happened.
    pub twice: bool,
    /// Go on after a failure.
    pub keep_going: bool,
    /// Print a line per event.
    pub verbose: bool,
    /// Print one JSON object instead of text.
    pub json: bool,
    /// Lie to the state machines in this way (for the tests of the checkers).
    pub mutation: Option<Mutation>,
    /// Failures are made small and written here as traces.
    pub traces: Option<PathBuf>,
    /// Plant this bug (for the tests of the checkers).
    pub planted: Option<Rule>,
    /// Shape the runs as for this bug, without it: what a checker finds then is no merit of the bug.
    pub shaped: Option<Rule>,
}

impl Default for SimOptions {
    fn default() -> Self {
        Self {
            seeds: 100,
            seed_start: 0,
            one: None,
            swarm: true,
            twice: false,
            keep_going: false,
            verbose: false,
            json: false,
            mutation: None,
            traces: None,
            planted: None,
            shaped: None,
        }
    }
}

/// What one seed came to.
#[derive(Clone, Debug)]
pub struct SeedReport {
    /// Which.
    pub seed: u64,
    /// How it ended.
    pub outcome: Outcome,
    /// Hash of all that happened.
    pub hash: u64,
    /// Events handled.
    pub events: u64,
    /// Requests answered.
    pub ops: u64,
    /// Rare things that happened.
    pub marks: BTreeMap<&'static str, u64>,
    /// The last lines of its story.
    pub tail: Vec<String>,
    /// True time of the end, in nanoseconds.
    pub ended_at: u64,
    /// What was run; with its decisions if it failed.
    pub plan: Option<Plan>,
}

impl SeedReport {
    fn nothing(seed: u64) -> Self {
        Self {
            seed,
            outcome: Outcome::Well,
            hash: 0,
            events: 0,
            ops: 0,
            marks: BTreeMap::new(),
            tail: Vec::new(),
            ended_at: 0,
            plan: None,
        }
    }
}

/// What all seeds came to.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Summary {
    /// Seeds run.
    pub seeds: u64,
    /// Of them, failed.
    pub failed: Vec<u64>,
    /// Of them, ended because the faults destroyed the last good copy.
    pub unrecoverable: Vec<u64>,
    /// Events handled.
    pub events: u64,
    /// Requests answered.
    pub ops: u64,
    /// Real time.
    pub seconds: f64,
    /// Rare things, with the number of seeds in which they happened.
    pub marks: BTreeMap<&'static str, u64>,
    /// Rare things that had to be reached and were not.
    pub missing: Vec<&'static str>,
}

/// Runs one seed. A failure is told with its last lines, which costs a second run.
pub fn run_seed(seed: u64, options: &SimOptions) -> SeedReport {
    if options.verbose {
        return run_once(seed, options, Telling::All, false).0;
    }
    let (first, steps) = run_once(seed, options, Telling::Nothing, options.twice);
    if options.twice {
        let (second, again) = run_once(seed, options, Telling::Nothing, true);
        if let Some(report) = diverges(seed, options, (&first, &steps), (&second, &again)) {
            return report;
        }
    }
    if !matches!(first.outcome, Outcome::Failed(_)) {
        return first;
    }
    let (told, _) = run_once(seed, options, Telling::Tail, false);
    diverges(seed, options, (&first, &[]), (&told, &[])).unwrap_or(told)
}

/// The guard of determinism: two runs of one seed must be the same, event by event.
fn diverges(
    seed: u64,
    options: &SimOptions,
    (first, steps): (&SeedReport, &[u64]),
    (second, again): (&SeedReport, &[u64]),
) -> Option<SeedReport> {
    if first.hash == second.hash && first.events == second.events && steps == again {
        return None;
    }
    let same = steps.iter().zip(again).take_while(|(a, b)| a == b).count() as u64;
    let mut report = second.clone();
    let around = same.saturating_sub(2)..same + 2;
    report.tail = run_once(seed, options, Telling::Events(around), false)
        .0
        .tail;
    report.outcome = Outcome::Failed(format!(
        "determinism: two runs of seed {seed} differ: the first {same} events are the same, event {same} is not \
         ({:016x} after {} events, {:016x} after {})",
        first.hash, first.events, second.hash, second.events
    ));
    Some(report)
}

fn run_once(
    seed: u64,
    options: &SimOptions,
    telling: Telling,
    steps: bool,
) -> (SeedReport, Vec<u64>) {
    let mut scenario = Scenario::draw(seed, options.swarm);
    if let Some(planted) = options.planted.or(options.shaped) {
        if !crate::planted::suits(planted, &scenario) {
            return (SeedReport::nothing(seed), Vec::new());
        }
        crate::planted::provoke(planted, &mut scenario);
    }
    let plan = Plan {
        seed,
        swarm: options.swarm,
        rule: options.planted,
        lie: options.mutation,
        shape: Shape::of(&scenario),
        found: String::new(),
        steps: Vec::new(),
    };
    play(plan, scenario, None, telling, steps)
}

/// Plays the decisions of a plan.
pub fn run_plan(plan: &Plan, telling: Telling) -> SeedReport {
    let mut scenario = Scenario::draw(plan.seed, plan.swarm);
    if let Some(rule) = plan.rule {
        crate::planted::provoke(rule, &mut scenario);
    }
    plan.shape.apply(&mut scenario);
    play(
        plan.clone(),
        scenario,
        Some(plan.steps.clone()),
        telling,
        false,
    )
    .0
}

fn play(
    mut plan: Plan,
    scenario: Scenario,
    script: Option<Vec<Step>>,
    telling: Telling,
    steps: bool,
) -> (SeedReport, Vec<u64>) {
    let mut world = World::new(scenario, plan.rule, Trace::new(telling, steps), script);
    world.mutation = plan.lie;
    SEED.set(Some(plan.seed));
    // An assertion of a state machine is a finding as any other.
    let ended = catch_unwind(AssertUnwindSafe(|| world.run()));
    SEED.set(None);
    let outcome = ended.unwrap_or_else(|panic| {
        let text = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("without a message");
        Outcome::Failed(format!("panic at {:.3} ms: {text}", world.now as f64 / 1e6))
    });
    let steps = world.trace.steps();
    if let Outcome::Failed(why) = &outcome {
        plan.found.clone_from(why);
        plan.steps = std::mem::take(&mut world.decisions);
    }
    let report = SeedReport {
        seed: plan.seed,
        outcome,
        hash: world.trace.hash(),
        events: world.trace.events,
        ops: world.trace.ops,
        marks: world.trace.marks().clone(),
        tail: world.trace.tail(),
        ended_at: world.now,
        plan: Some(plan),
    };
    (report, steps)
}

/// The smallest plan that fails as this failed run does.
pub fn shrink_failure(report: &SeedReport, runs_max: u32) -> Option<Plan> {
    let plan = report.plan.as_ref().filter(|p| !p.found.is_empty())?;
    let mut run = |candidate: &Plan| {
        let report = run_plan(candidate, Telling::Nothing);
        match report.outcome {
            Outcome::Failed(why) => Some((why, report.ended_at)),
            Outcome::Well | Outcome::Unrecoverable => None,
        }
    };
    Some(crate::shrink::shrink(plan, runs_max, &mut run))
}

/// Plays a trace, tells what comes of it; false if it fails.
pub fn replay(plan: &Plan, verbose: bool) -> bool {
    let telling = if verbose { Telling::All } else { Telling::Tail };
    let report = run_plan(plan, telling);
    match &report.outcome {
        Outcome::Failed(why) => {
            if !verbose {
                report.tail.iter().for_each(|line| println!("{line}"));
            }
            println!(
                "{} decisions of seed {}: {why}",
                plan.steps.len(),
                plan.seed
            );
            false
        }
        outcome => {
            println!(
                "{} decisions of seed {}: {outcome:?}",
                plan.steps.len(),
                plan.seed
            );
            true
        }
    }
}

thread_local! {
    /// The seed this thread runs: for the report of a panic, which in a release build is the end of the program.
    static SEED: std::cell::Cell<Option<u64>> = const { std::cell::Cell::new(None) };
}

/// A panic names the seed that replays it.
fn name_seed_in_panics() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            usual(info);
            if let Some(seed) = SEED.get() {
                eprintln!("repro: holdfast sim --seed {seed}");
            }
        }));
    });
}

/// Runs the seeds, prints what came of them; false if any failed.
pub fn run(options: SimOptions) -> bool {
    name_seed_in_panics();
    let began = Instant::now();
    let seeds = options
        .one
        .map_or((options.seed_start, options.seeds), |seed| (seed, 1));
    let threads = if options.verbose || options.one.is_some() {
        1
    } else {
        THREADS
    };
    let next = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    let summary = Mutex::new(Summary::default());
    let show = !options.json;
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= seeds.1 {
                        break;
                    }
                    let report = run_seed(seeds.0 + n, &options);
                    let Ok(mut summary) = summary.lock() else {
                        break;
                    };
                    let failed = summary.add(&report);
                    if failed && show && summary.failed.len() <= FAILURES_SHOWN {
                        print_failure(&report, &options);
                    }
                    if failed && !options.keep_going {
                        stop.store(true, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    let mut summary = summary.into_inner().unwrap_or_default();
    summary.seconds = began.elapsed().as_secs_f64();
    let whole =
        options.swarm && options.mutation.is_none() && options.planted.or(options.shaped).is_none();
    if whole && summary.failed.is_empty() && summary.seeds >= crate::marks::SEEDS_MIN {
        summary.missing = crate::marks::missing(&summary.marks);
    }
    if options.json {
        println!("{}", serde_json::to_string(&summary).unwrap_or_default());
    } else {
        summary.print();
    }
    summary.failed.is_empty() && summary.missing.is_empty()
}

fn print_failure(report: &SeedReport, options: &SimOptions) {
    if let Outcome::Failed(why) = &report.outcome {
        if !options.verbose {
            for line in &report.tail {
                println!("{line}");
            }
        }
        println!("seed {} failed: {why}", report.seed);
        println!(
            "repro: holdfast sim --seed {}{}",
            report.seed,
            if options.swarm { "" } else { " --no-swarm" }
        );
        if let Some(dir) = &options.traces {
            write_trace(report, dir);
        }
    }
}

/// Makes a failure small and keeps it.
fn write_trace(report: &SeedReport, dir: &std::path::Path) {
    let Some(small) = shrink_failure(report, SHRINK_RUNS_MAX) else {
        return;
    };
    let path = dir.join(format!("seed-{}.trace", report.seed));
    match std::fs::write(&path, small.to_string()) {
        Ok(()) => println!(
            "{} of {} decisions are enough; replay: holdfast sim --replay {}",
            small.steps.len(),
            report.plan.as_ref().map_or(0, |p| p.steps.len()),
            path.display()
        ),
        Err(e) => println!("the trace cannot be written to {}: {e}", path.display()),
    }
}

impl Summary {
    fn add(&mut self, report: &SeedReport) -> bool {
        self.seeds += 1;
        self.events += report.events;
        self.ops += report.ops;
        for name in report.marks.keys() {
            *self.marks.entry(name).or_default() += 1;
        }
        match report.outcome {
            Outcome::Well => false,
            Outcome::Unrecoverable => {
                self.unrecoverable.push(report.seed);
                false
            }
            Outcome::Failed(_) => {
                self.failed.push(report.seed);
                true
            }
        }
    }

    fn print(&self) {
        println!("what happened, in how many of the seeds:");
        for (name, count) in &self.marks {
            println!("  {count:>6}  {name}");
        }
        println!(
            "{} seeds in {:.1} s ({:.1} per second), {} requests answered, {} events; {} failed, {} unrecoverable",
            self.seeds,
            self.seconds,
            self.seeds as f64 / self.seconds.max(0.001),
            self.ops,
            self.events,
            self.failed.len(),
            self.unrecoverable.len()
        );
        if !self.failed.is_empty() {
            println!("failed: {:?}", self.failed);
        }
        if !self.missing.is_empty() {
            println!(
                "not reached, so that nothing is proven about it: {:?}",
                self.missing
            );
        }
    }
}
