//! Walks the model within bounds given on the command line, and prints what it found as one line of JSON and, if
//! something broke, the schedule. Run with `--help` for the bounds and rules.

use holdfast_model::{Bounds, Model, Rule, Rules, explore};
use std::process::ExitCode;
use std::time::Instant;

const HELP: &str = "explore [--BOUND NUMBER]... [--without RULE]... [--states MAX] [--flushed-only 1]
bounds: replicas blocks absent writes flushes crashes kills power drops promotions removals grows stops demotions faults in-flight saves
exit status: 0 nothing broke, 1 a guarantee does not hold, 2 usage";

/// States after which a search is cut off unless told otherwise.
const STATES_MAX: usize = 20_000_000;

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(wrong) => {
            eprintln!("{wrong}\n{HELP}");
            eprintln!("rules: {:?}", Rule::ALL);
            ExitCode::from(2)
        }
    }
}

fn run() -> Result<bool, String> {
    let mut args = std::env::args().skip(1);
    let (mut rules, mut bounds, mut states) = (Rules::all(), Bounds::default(), STATES_MAX);
    let mut flushed_only = false;
    let mut words = Vec::new();
    while let Some(arg) = args.next() {
        let value = args.next().ok_or("an option without its value")?;
        words.push(format!("{arg} {value}"));
        match arg.as_str() {
            "--without" => {
                let rule = Rule::named(&value).ok_or_else(|| format!("no rule {value}"))?;
                rules = rules.without(rule);
            }
            "--states" => states = value.parse().map_err(|e| format!("{value}: {e}"))?,
            "--flushed-only" => flushed_only = value == "1",
            name => {
                let name = name.strip_prefix("--").ok_or_else(|| name.to_owned())?;
                let value = value.parse().map_err(|e| format!("{value}: {e}"))?;
                bounds.set(name, value)?;
            }
        }
    }
    let start = Instant::now();
    let mut model = Model::new(rules, bounds);
    if flushed_only {
        model = model.flushed_only();
    }
    let report = explore(&model, states);
    let broken = report.trace.as_ref().map(|t| format!("{:?}", t.violation));
    println!(
        r#"{{"bounds":"{}","states":{},"depth":{},"complete":{},"seconds":{:.1},"violation":"{}"}}"#,
        words.join(" "),
        report.states,
        report.depth,
        report.complete,
        start.elapsed().as_secs_f64(),
        broken.as_deref().unwrap_or("none"),
    );
    if let Some(trace) = &report.trace {
        println!("{trace}");
    }
    Ok(report.trace.is_none())
}
