//! Real processes: the scenarios of the package `holdfast-tests`, one line each.

use crate::report::{Reason, Report};
use crate::shell::{built, cargo, each_line, succeeds};
use anyhow::{Result, bail};
use std::process::Command;

pub(crate) fn all(report: &mut Report) -> Result<()> {
    run(&[], report)
}

pub(crate) fn run(filters: &[String], report: &mut Report) -> Result<()> {
    if !succeeds(cargo().args([
        "build",
        "--locked",
        "--package",
        "holdfast",
        "--package",
        "holdfast-tests",
    ]))? {
        bail!("the programs do not build");
    }
    let mut lines = Vec::new();
    let mut command = Command::new(built("holdfast-e2e")?);
    command
        .env("HOLDFAST_BIN", built("holdfast")?)
        .args(filters);
    let status = each_line(&mut command, |line| {
        lines.extend(Line::parse(line));
        true
    })?;
    let mut failed = false;
    for line in &lines {
        match line {
            Line::Passed => report.pass(1),
            Line::Failed(name) => {
                failed = true;
                report.fail(format!("e2e {name}"));
            }
            Line::Skipped(name, reason, detail) => {
                report.skip(&format!("e2e {name}"), *reason, detail)
            }
        }
    }
    if lines.is_empty() || (!status.success() && !failed) {
        report.fail(format!(
            "e2e: {} scenarios told, and it ended with {status}",
            lines.len()
        ));
    }
    Ok(())
}

/// Seconds of [`storm`] if nothing else is asked for.
const STORM_SECONDS: &str = "600";

/// Kills at random for long, with PostgreSQL and writers on a bare volume on top; in a release build, as installed.
pub(crate) fn storm(seconds: Option<&str>) -> Result<bool> {
    let seconds = seconds.unwrap_or(STORM_SECONDS);
    let demo = ["demo", "--with", "postgres", "--storm", seconds];
    succeeds(
        cargo()
            .args([
                "run",
                "--locked",
                "--release",
                "--package",
                "holdfast",
                "--",
            ])
            .args(demo),
    )
}

/// A line of the scenario runner.
#[derive(Debug, PartialEq, Eq)]
enum Line {
    /// `PASS name`
    Passed,
    /// `FAIL name: what`
    Failed(String),
    /// `SKIP name: reason: detail`
    Skipped(String, Reason, String),
}

impl Line {
    fn parse(line: &str) -> Option<Self> {
        if line.starts_with("PASS ") {
            return Some(Self::Passed);
        }
        if let Some(rest) = line.strip_prefix("FAIL ") {
            return Some(Self::Failed(rest.to_owned()));
        }
        let rest = line.strip_prefix("SKIP ")?;
        let mut parts = rest.splitn(3, ": ");
        let (name, word, detail) = (
            parts.next()?,
            parts.next().unwrap_or(""),
            parts.next().unwrap_or(""),
        );
        Some(match Reason::from_word(word) {
            Some(reason) => Self::Skipped(name.to_owned(), reason, detail.to_owned()),
            None => Self::Failed(format!(
                "{name}: skipped for a reason that is not known: {word}"
            )),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        assert_eq!(Line::parse("PASS a 12 ms"), Some(Line::Passed));
        assert_eq!(Line::parse("FAIL a: x"), Some(Line::Failed("a: x".into())));
        let skipped = Line::Skipped("a".into(), Reason::Root, "an ordinary user".into());
        assert_eq!(
            Line::parse("SKIP a: no-root: an ordinary user"),
            Some(skipped)
        );
        assert!(matches!(Line::parse("SKIP a: lazy"), Some(Line::Failed(_))));
        assert_eq!(Line::parse("anything else"), None);
    }
}
