//! `sim`: see `holdfast_sim`.

use crate::args::SimArgs;
use crate::failure::Failure;
use holdfast_sim::cli::SimOptions;

pub(super) fn run(args: &SimArgs, json: bool) -> Result<(), Failure> {
    if let Some(path) = &args.replay {
        let unreadable = |e: &dyn std::fmt::Display| {
            Failure::CheckFailed(format!("{} cannot be replayed: {e}", path.display()))
        };
        let text = std::fs::read_to_string(path).map_err(|e| unreadable(&e))?;
        let plan = text
            .parse()
            .map_err(|e: holdfast_sim::plan::TraceError| unreadable(&e))?;
        if holdfast_sim::cli::replay(&plan, args.verbose) {
            return Ok(());
        }
        return Err(Failure::CheckFailed("the trace breaks a rule".into()));
    }
    let options = SimOptions {
        traces: Some(args.traces.clone()),
        seeds: args.seeds,
        seed_start: args.from,
        one: args.seed,
        swarm: args.swarm || !args.no_swarm,
        twice: args.twice,
        keep_going: args.keep_going,
        verbose: args.verbose,
        json,
        ..SimOptions::default()
    };
    if holdfast_sim::cli::run(options) {
        return Ok(());
    }
    let message = if json {
        "a seed broke a rule"
    } else {
        "a seed broke a rule: the line that begins with `repro` replays it"
    };
    Err(Failure::CheckFailed(message.into()))
}
