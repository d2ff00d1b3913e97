//! Runs seeds without building the daemon: `cargo run --release -p holdfast-sim --example seeds -- [START] COUNT`, or
//! `... -- =SEED` for one seed with a line per event. Options: `twice`, `all` (go on after a failure), `no-swarm`,
//! `plant=NAME` (a bug for the checkers to catch), `shape=NAME` (runs as for that bug, without it), `lie=NAME` (of an interpreter),
//! `traces=DIR` (failures made small), `replay=FILE` (one of those).

use holdfast_sim::cli::{SimOptions, run};

fn main() {
    let mut options = SimOptions {
        seeds: 100,
        ..SimOptions::default()
    };
    let mut numbers = Vec::new();
    for arg in std::env::args().skip(1) {
        match arg.as_str() {
            "twice" => options.twice = true,
            "all" => options.keep_going = true,
            "no-swarm" => options.swarm = false,
            "json" => options.json = true,
            _ if arg.starts_with("traces=") => options.traces = Some(arg["traces=".len()..].into()),
            _ if arg.starts_with("replay=") => {
                let text = std::fs::read_to_string(&arg["replay=".len()..]).expect("a file");
                let plan = text.parse().expect("a trace");
                std::process::exit(i32::from(!holdfast_sim::cli::replay(
                    &plan,
                    options.verbose,
                )));
            }
            "verbose" => options.verbose = true,
            _ if arg.starts_with("shape=") => {
                options.shaped = holdfast_sim::planted::find(&arg["shape=".len()..]);
                assert!(options.shaped.is_some(), "no bug of that name");
            }
            _ if arg.starts_with("lie=") => {
                options.mutation = holdfast_sim::mutation::Mutation::find(&arg["lie=".len()..]);
                assert!(options.mutation.is_some(), "no lie of that name");
            }
            _ if arg.starts_with("plant=") => {
                options.planted = holdfast_sim::planted::find(&arg["plant=".len()..]);
                assert!(options.planted.is_some(), "no bug of that name");
            }
            _ => match (arg.strip_prefix('=').map(str::parse), arg.parse()) {
                (Some(Ok(seed)), _) => {
                    options.one = Some(seed);
                    options.verbose = true;
                }
                (_, Ok(number)) => numbers.push(number),
                _ => {
                    eprintln!("not a seed or an option: {arg}");
                    std::process::exit(2);
                }
            },
        }
    }
    match numbers[..] {
        [] => {}
        [count] => options.seeds = count,
        [start, count, ..] => {
            options.seed_start = start;
            options.seeds = count;
        }
    }
    if !run(options) {
        std::process::exit(1);
    }
}
