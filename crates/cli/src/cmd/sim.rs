//! `sim`: see `holdfast_sim`.

use crate::args::SimArgs;
use crate::failure::Failure;
use holdfast_sim::cli::SimOptions;

pub(super) fn run(args: &SimArgs, json: bool) -> Result<(), Failure> {
    let options = SimOptions {
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
