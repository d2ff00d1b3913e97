//! Real processes: each scenario starts real daemons (or the demonstration, or the record server),
//! breaks them, and looks from outside whether what was promised is so.
//!
//! `holdfast-e2e [FILTER ..]` runs the scenarios whose name contains a filter, each in a process of
//! its own, and prints one line for each:
//! ```text
//! PASS name (milliseconds)
//! FAIL name: what
//! SKIP name: reason: detail
//! ```
//!
//! Invariants
//! - a scenario leaves nothing behind: its processes die with it, its files are in its own folder;
//! - it touches no network but loopback addresses and namespaces it made itself;
//! - nothing in it depends on how fast the machine is: limits of time only keep it from hanging.

#![forbid(unsafe_code)]

mod cluster;
mod nbd;
mod needs;
mod process;
mod runner;
mod scenarios;

use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args
        .iter()
        .map(String::as_str)
        .collect::<Vec<_>>()
        .as_slice()
    {
        ["--one", name] => runner::one(name),
        ["--list"] => {
            for scenario in scenarios::all() {
                println!("{}", scenario.name);
            }
            ExitCode::SUCCESS
        }
        filters => runner::all(filters),
    }
}
