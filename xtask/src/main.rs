//! Everything that is done to this repository by command: `cargo xtask test` and its parts.
//!
//! Invariants
//! - the last line of a run is `N passed, N failed, N skipped`, and the exit status is 0 only if none failed;
//! - nothing is skipped silently: every skip is counted and has its reason;
//! - with `CI=true` a skip is a failure, unless its reason is a property of the machine
//!   ([`report::Reason::acceptable_in_ci`]).

#![forbid(unsafe_code)]

mod cargo;
mod catalogue;
mod deny;
mod e2e;
mod fuzz;
mod layers;
mod packages;
mod report;
mod shell;
mod sim;
mod tidy;

use anyhow::{Result, bail};
use report::Report;
use std::process::ExitCode;

const HELP: &str = "\
cargo xtask COMMAND

  test [PART ..]   everything, or the named parts, in this order:
                   packages tidy layers fmt clippy doc deny unit sim e2e
  sim [OPTIONS]    the simulator; options as for `holdfast sim`
  e2e [FILTER ..]  real processes, real clients, network namespaces; scenarios whose name has a FILTER in it
  storm [SECONDS]  ten minutes of kills at random, PostgreSQL and writers on a bare volume on top (root)
  fuzz [SECONDS] [TARGET ..]
                   libFuzzer over every decoder, so long each; needs cargo-fuzz
  deny             cargo-deny only: licences, advisories, sources, bans
  tidy             rules for files and dependencies only

`CI=true cargo xtask test` accepts no skip that installing something would mend.";

type Part = fn(&mut Report) -> Result<()>;

/// The parts of `test`: cheap ones first, so that most mistakes are told early.
const PARTS: [(&str, Part); 10] = [
    ("packages", packages::install),
    ("tidy", tidy::check),
    ("layers", layers::check),
    ("fmt", cargo::fmt),
    ("clippy", cargo::clippy),
    ("doc", cargo::doc),
    ("deny", deny::check),
    ("unit", cargo::test),
    ("sim", sim::seeds),
    ("e2e", e2e::all),
];

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<bool> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (command, rest) = match args.split_first() {
        Some((command, rest)) => (command.as_str(), rest),
        None => ("help", &[][..]),
    };
    std::env::set_current_dir(shell::root())?;
    let mut report = Report::default();
    match command {
        "test" => test(rest, &mut report)?,
        "sim" => return sim::run(rest),
        "e2e" => e2e::run(rest, &mut report)?,
        "storm" => return e2e::storm(rest.first().map(String::as_str)),
        "fuzz" => fuzz::run(rest, &mut report)?,
        "deny" => deny::check(&mut report)?,
        "tidy" => {
            tidy::check(&mut report)?;
            layers::check(&mut report)?;
        }
        "help" | "--help" | "-h" => {
            println!("{HELP}");
            return Ok(true);
        }
        other => bail!("there is no command `{other}`\n\n{HELP}"),
    }
    Ok(report.finish())
}

fn test(names: &[String], report: &mut Report) -> Result<()> {
    if let Some(unknown) = names
        .iter()
        .find(|n| !PARTS.iter().any(|(part, _)| part == n))
    {
        bail!("there is no part `{unknown}`\n\n{HELP}");
    }
    for (name, part) in PARTS {
        if names.is_empty() || names.iter().any(|n| n == name) {
            report.part(name, part);
        }
    }
    Ok(())
}
