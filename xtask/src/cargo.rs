//! The steps that are cargo's own. All share the dev profile, so that nothing is built twice.

use crate::report::{Reason, Report};
use crate::shell::{cargo, each_line, succeeds};
use anyhow::Result;
use std::process::Command;

pub(crate) fn fmt(report: &mut Report) -> Result<()> {
    one(report, "fmt", cargo().args(["fmt", "--all", "--check"]))
}

pub(crate) fn clippy(report: &mut Report) -> Result<()> {
    let args = [
        "clippy",
        "--locked",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ];
    one(report, "clippy", cargo().args(args))
}

pub(crate) fn doc(report: &mut Report) -> Result<()> {
    let args = [
        "doc",
        "--locked",
        "--workspace",
        "--no-deps",
        "--document-private-items",
    ];
    one(
        report,
        "doc",
        cargo().env("RUSTDOCFLAGS", "-D warnings").args(args),
    )
}

fn one(report: &mut Report, what: &str, command: &mut Command) -> Result<()> {
    if succeeds(command)? {
        report.pass(1);
    } else {
        report.fail(what.to_owned());
    }
    Ok(())
}

/// Unit, property and integration tests of every crate.
pub(crate) fn test(report: &mut Report) -> Result<()> {
    let mut seen = Seen::default();
    let mut command = cargo();
    command.args(["test", "--locked", "--workspace", "--no-fail-fast"]);
    // A test that cannot run here says so in its output, which is hidden otherwise when it passes.
    command.args(["--", "--show-output"]);
    let status = each_line(&mut command, |line| seen.line(line))?;
    report.pass(seen.passed);
    for name in &seen.failed {
        report.fail(format!("test {name}"));
    }
    for (what, detail) in &seen.skipped {
        report.skip(what, reason(detail), detail);
    }
    if seen.ignored > 0 {
        report.fail(format!(
            "{} tests are marked to be ignored: mend or remove them",
            seen.ignored
        ));
    }
    if !status.success() && seen.failed.is_empty() {
        report.fail(format!("cargo test ended with {status}"));
    }
    Ok(())
}

/// The reason behind what a test says. A program can be installed; all else is as the machine is.
fn reason(detail: &str) -> Reason {
    if detail.contains("Debian package") || detail.contains("not installed") {
        Reason::Program
    } else if detail.contains("namespace") {
        Reason::Namespaces
    } else if detail.contains("root") {
        Reason::Root
    } else {
        Reason::Device
    }
}

/// What the lines of the test harness say.
#[derive(Debug, Default, PartialEq, Eq)]
struct Seen {
    passed: u64,
    ignored: u64,
    failed: Vec<String>,
    /// What, and why.
    skipped: Vec<(String, String)>,
    /// Inside the output of tests that passed.
    quiet: bool,
}

impl Seen {
    /// Takes a line in; true if it is worth showing.
    fn line(&mut self, line: &str) -> bool {
        match line {
            "successes:" => self.quiet = true,
            "failures:" => self.quiet = false,
            _ if line.starts_with("test result: ") => self.quiet = false,
            _ => {}
        }
        let skip = ["SKIP ", "skip: "]
            .iter()
            .find_map(|word| line.strip_prefix(word));
        if let Some(rest) = skip {
            let (what, detail) = rest.split_once(": ").unwrap_or((rest, "no reason given"));
            self.skipped
                .push((format!("test {what}"), detail.to_owned()));
        }
        if let Some(name) = line
            .strip_prefix("test ")
            .and_then(|l| l.strip_suffix(" ... FAILED"))
        {
            self.failed.push(name.to_owned());
        }
        let Some(rest) = line.strip_prefix("test result: ") else {
            return !self.quiet;
        };
        for part in rest.split(['.', ';']) {
            let mut words = part.split_whitespace();
            let (Some(Ok(count)), Some(what)) = (words.next().map(str::parse::<u64>), words.next())
            else {
                continue;
            };
            match what {
                "passed" => self.passed += count,
                "ignored" => self.ignored += count,
                _ => {}
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_counted() {
        let mut seen = Seen::default();
        let shown: Vec<bool> = [
            "test a::b ... ok",
            "test a::c ... FAILED",
            "successes:",
            "SKIP fio: fio not found (Debian package fio)",
            "failures:",
            "---- a::c stdout ----",
            "test result: FAILED. 3 passed; 1 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.10s",
            "test result: ok. 4 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s",
        ]
        .into_iter()
        .map(|line| seen.line(line))
        .collect();
        assert_eq!(shown, [true, true, false, false, true, true, true, true]);
        let skipped = vec![(
            "test fio".to_owned(),
            "fio not found (Debian package fio)".to_owned(),
        )];
        let expected = Seen {
            passed: 7,
            ignored: 2,
            failed: vec!["a::c".into()],
            skipped,
            quiet: false,
        };
        assert_eq!(seen, expected);
    }

    #[test]
    fn a_program_that_could_be_installed_is_told_from_the_rest() {
        assert_eq!(
            reason("fio not found (Debian package fio)"),
            Reason::Program
        );
        assert!(reason("/dev/fuse cannot be opened").acceptable_in_ci());
    }
}
