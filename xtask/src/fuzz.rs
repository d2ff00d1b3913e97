//! libFuzzer over every decoder: the programs of `fuzz/`, one after another.
//!
//! The committed corpus is only read; what libFuzzer finds worth keeping goes to the target folder, and
//! inputs that make a program fail to `fuzz/artifacts`, from where they are moved to the corpus with the fix.

use crate::report::{Reason, Report};
use crate::shell::{has_program, metadata, output, root, succeeds};
use anyhow::{Context, Result, bail};
use std::path::Path;
use std::process::Command;

/// Seconds for each program unless told otherwise.
const SECONDS: u32 = 60;
/// One allocation at the most, in MiB: twice the largest thing any decoder takes.
const ALLOCATION_MIB_MAX: u32 = 128;
/// All memory of a program at the most, in MiB; the address sanitizer needs most of it.
const MEMORY_MIB_MAX: u32 = 2048;
/// Bytes of an input at the most.
const INPUT_BYTES_MAX: u32 = 16 << 10;

/// `fuzz [SECONDS] [TARGET ..]`.
pub(crate) fn run(options: &[String], report: &mut Report) -> Result<()> {
    let (seconds, names) = match options.split_first() {
        Some((first, rest)) => match first.parse() {
            Ok(seconds) => (seconds, rest),
            Err(_) => (SECONDS, options),
        },
        None => (SECONDS, options),
    };
    if !has_program("cargo-fuzz") {
        report.skip(
            "fuzz",
            Reason::Program,
            "`cargo install --locked cargo-fuzz` installs it; the same bodies run as tests of holdfast-fuzz",
        );
        return Ok(());
    }
    let all = targets()?;
    if let Some(unknown) = names.iter().find(|n| !all.contains(n)) {
        bail!(
            "there is no target `{unknown}`; there are: {}",
            all.join(" ")
        );
    }
    for target in all.iter().filter(|t| names.is_empty() || names.contains(t)) {
        if succeeds(&mut program(target, seconds)?)? {
            report.pass(1);
        } else {
            report.fail(format!("fuzz {target}: see fuzz/artifacts/{target}"));
        }
    }
    Ok(())
}

/// The names of all programs.
fn targets() -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir("fuzz/fuzz_targets").context("fuzz/fuzz_targets")? {
        let path = entry?.path();
        names.extend(path.file_stem().and_then(|n| n.to_str()).map(str::to_owned));
    }
    names.sort_unstable();
    Ok(names)
}

fn program(target: &str, seconds: u32) -> Result<Command> {
    let metadata = metadata()?;
    let folder = metadata["target_directory"]
        .as_str()
        .context("no target directory")?;
    let folder = Path::new(folder).join("fuzz");
    let found = folder.join("corpus").join(target);
    std::fs::create_dir_all(&found)?;
    // The sanitizers need a nightly compiler; without one the programs still run, without them.
    let nightly = has_program("rustup")
        && output(Command::new("rustup").args(["toolchain", "list"]))?.contains("nightly");
    let mut command = if nightly {
        let mut command = Command::new("rustup");
        command.args(["run", "nightly", "cargo"]);
        command
    } else {
        println!("no nightly toolchain: without the address sanitizer");
        Command::new("cargo")
    };
    command.args(["fuzz", "run", "--target-dir"]).arg(&folder);
    if !nightly {
        command.args(["-s", "none"]);
    }
    command
        .arg(target)
        .arg(&found)
        .arg(root().join("fuzz/corpus").join(target));
    if target == "config" {
        command.arg(root().join("fixtures/config/good"));
    }
    command.args([
        "--".to_owned(),
        format!("-max_total_time={seconds}"),
        format!("-malloc_limit_mb={ALLOCATION_MIB_MAX}"),
        format!("-rss_limit_mb={MEMORY_MIB_MAX}"),
        format!("-max_len={INPUT_BYTES_MAX}"),
        "-print_final_stats=1".to_owned(),
        "-verbosity=0".to_owned(),
    ]);
    Ok(command)
}
