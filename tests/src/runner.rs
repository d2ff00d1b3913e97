//! Runs scenarios, each in a process and a process group of its own, so that a hang or a panic of
//! one is the failure of that one.

use crate::process::tail;
use crate::scenarios::{self, Scenario};
use anyhow::{Context, Result};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// No scenario needs as long; it only keeps a hang from being for ever.
const LIMIT: Duration = Duration::from_secs(300);
/// Between two looks at a scenario.
const LOOK: Duration = Duration::from_millis(20);

/// Runs the scenarios whose name contains one of the filters; all if there is none.
pub(crate) fn all(filters: &[&str]) -> ExitCode {
    let chosen = |s: &Scenario| filters.is_empty() || filters.iter().any(|f| s.name.contains(f));
    let mut good = true;
    for scenario in scenarios::all().into_iter().filter(chosen) {
        let name = scenario.name;
        if let Some((reason, detail)) = scenario.needs.iter().find_map(|need| need.lacking()) {
            println!("SKIP {name}: {reason}: {detail}");
            continue;
        }
        let start = Instant::now();
        match apart(name) {
            Ok(None) => println!("PASS {name} ({} ms)", start.elapsed().as_millis()),
            Ok(Some(what)) => {
                good = false;
                println!("{what}");
                println!("FAIL {name}: see above");
            }
            Err(error) => {
                good = false;
                println!("FAIL {name}: {error:#}");
            }
        }
    }
    if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Runs one scenario in its own process; what it said if it failed.
fn apart(name: &str) -> Result<Option<String>> {
    let folder = tempfile::tempdir()?;
    let log = folder.path().join("log");
    let file = File::create(&log)?;
    let mut child = Command::new(std::env::current_exe()?)
        .args(["--one", name])
        .env("TMPDIR", folder.path())
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .process_group(0)
        .spawn()
        .context("starting the scenario")?;
    let group = Pid::from_raw(i32::try_from(child.id())?);
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break Some(status);
        }
        if start.elapsed() > LIMIT {
            break None;
        }
        std::thread::sleep(LOOK);
    };
    // Whatever it started and did not end.
    let _ = killpg(group, Signal::SIGKILL);
    let _ = child.wait();
    Ok(verdict(status, &log))
}

fn verdict(status: Option<ExitStatus>, log: &Path) -> Option<String> {
    match status {
        Some(status) if status.success() => None,
        Some(status) => Some(format!("{}\nended with {status}", tail(log))),
        None => Some(format!(
            "{}\nnot ended after {} s",
            tail(log),
            LIMIT.as_secs()
        )),
    }
}

/// Runs one scenario in this process.
pub(crate) fn one(name: &str) -> ExitCode {
    let Some(scenario) = scenarios::all().into_iter().find(|s| s.name == name) else {
        eprintln!("there is no scenario `{name}`");
        return ExitCode::FAILURE;
    };
    match (scenario.run)() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
