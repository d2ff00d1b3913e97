//! The steps that are cargo's own. All share the dev profile, so that nothing is built twice.

use crate::report::Report;
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
    let status = each_line(&mut command, |line| seen.line(line))?;
    report.pass(seen.passed);
    for name in &seen.failed {
        report.fail(format!("test {name}"));
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

/// What the lines of the test harness say.
#[derive(Debug, Default, PartialEq, Eq)]
struct Seen {
    passed: u64,
    ignored: u64,
    failed: Vec<String>,
}

impl Seen {
    fn line(&mut self, line: &str) {
        if let Some(name) = line
            .strip_prefix("test ")
            .and_then(|l| l.strip_suffix(" ... FAILED"))
        {
            self.failed.push(name.to_owned());
        }
        let Some(rest) = line.strip_prefix("test result: ") else {
            return;
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
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_counted() {
        let mut seen = Seen::default();
        for line in [
            "test a::b ... ok",
            "test a::c ... FAILED",
            "test result: FAILED. 3 passed; 1 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.10s",
            "test result: ok. 4 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s",
        ] {
            seen.line(line);
        }
        assert_eq!(
            seen,
            Seen {
                passed: 7,
                ignored: 2,
                failed: vec!["a::c".into()]
            }
        );
    }
}
