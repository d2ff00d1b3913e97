//! The simulator, by the binary that is built anyway.

use crate::report::Report;
use crate::shell::{built, cargo, succeeds};
use anyhow::{Result, bail};
use std::process::Command;

/// Seeds of a full run, each played twice and compared; enough that every rare branch must have been reached.
const SEEDS: u32 = 1000;

pub(crate) fn seeds(report: &mut Report) -> Result<()> {
    let count = SEEDS.to_string();
    let options = ["--seeds", &count, "--swarm", "--twice"].map(str::to_owned);
    if run(&options)? {
        report.pass(1);
    } else {
        report.fail(format!("sim: one of {count} seeds broke a rule"));
    }
    Ok(())
}

/// Runs `holdfast sim` with these options.
pub(crate) fn run(options: &[String]) -> Result<bool> {
    if !succeeds(cargo().args(["build", "--locked", "--package", "holdfast"]))? {
        bail!("holdfast does not build");
    }
    succeeds(Command::new(built("holdfast")?).arg("sim").args(options))
}
