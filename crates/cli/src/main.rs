//! `holdfast`, the binary: one for the daemon, its operators, the simulator and the demonstration.
//!
//! Rooms: `args` (the command line), `cmd` (one file per command), `client` (talks to a daemon),
//! `render` (status for people), `demo` (the demonstration), `record` (the record server and its client), `failure` (what can
//! go wrong, and the exit status for it).
//!
//! Invariant: the exit status is 0 only if what was asked for is so.

#![forbid(unsafe_code)]

mod args;
mod client;
mod cmd;
mod demo;
mod failure;
mod record;
mod render;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    let args = args::Args::parse();
    let json = args.json;
    match cmd::run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            failure.tell(json);
            ExitCode::from(failure.exit_status())
        }
    }
}
