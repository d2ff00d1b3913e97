//! Running programs.

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

/// The repository's root.
pub(crate) fn root() -> &'static Path {
    // This package lies directly below it.
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap_or(Path::new("."))
}

/// The cargo that runs this.
pub(crate) fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// Runs to the end, output going where ours goes; true if it went well.
pub(crate) fn succeeds(command: &mut Command) -> Result<bool> {
    println!("$ {}", shown(command));
    let status = command.status().with_context(|| shown(command))?;
    Ok(status.success())
}

/// What no step needs; a test that hangs ends then, and is seen as failed.
const STEP_TIME_MAX: Duration = Duration::from_secs(20 * 60);

/// Runs to the end; hands every line of standard output to `line`, and prints it if that says so.
pub(crate) fn each_line(
    command: &mut Command,
    mut line: impl FnMut(&str) -> bool,
) -> Result<ExitStatus> {
    println!("$ {}", shown(command));
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| shown(command))?;
    let stdout = child.stdout.take().context("standard output was piped")?;
    let pid = child.id();
    let (done, ended) = channel::<()>();
    let watchdog = std::thread::spawn(move || {
        if ended.recv_timeout(STEP_TIME_MAX) == Err(RecvTimeoutError::Timeout) {
            println!(
                "not ended after {} minutes: killed",
                STEP_TIME_MAX.as_secs() / 60
            );
            kill_family(pid);
        }
    });
    for text in BufReader::new(stdout).split(b'\n') {
        let text = String::from_utf8_lossy(&text?).into_owned();
        if line(&text) {
            println!("{text}");
        }
    }
    drop(done);
    let status = child.wait()?;
    watchdog
        .join()
        .map_err(|_| anyhow::anyhow!("the watchdog failed"))?;
    Ok(status)
}

/// SIGKILL to a process of ours and to all that descend from it.
fn kill_family(root: u32) {
    let mut parents = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|n| n.parse::<u32>().ok())
        else {
            continue;
        };
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        // The name in brackets may hold anything; state and parent follow the last bracket.
        let parent = stat
            .rsplit(')')
            .next()
            .and_then(|rest| rest.split_whitespace().nth(1)?.parse::<u32>().ok());
        parents.extend(parent.map(|parent| (pid, parent)));
    }
    let mut family = vec![root];
    let mut next = 0;
    while let Some(&parent) = family.get(next) {
        family.extend(
            parents
                .iter()
                .filter(|(_, p)| *p == parent)
                .map(|(pid, _)| *pid),
        );
        next += 1;
    }
    for pid in family.into_iter().filter_map(|p| i32::try_from(p).ok()) {
        // One that has just ended by itself is no matter.
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
}

/// Standard output of a program that must go well.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| shown(command))?;
    if !output.status.success() {
        bail!("{} ended with {}", shown(command), output.status);
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// Is there a program of this name?
pub(crate) fn has_program(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Administrative programs are there for ordinary users too, but not in their PATH.
    let more = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path)
        .chain(more)
        .any(|folder| folder.join(name).is_file())
}

/// Are we root?
pub(crate) fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// `cargo metadata`, the workspace's own packages and all they need.
pub(crate) fn metadata() -> Result<serde_json::Value> {
    let text = output(cargo().args(["metadata", "--format-version", "1", "--locked"]))?;
    Ok(serde_json::from_str(&text)?)
}

/// Where programs of the profile used by all tests are built.
pub(crate) fn built(program: &str) -> Result<PathBuf> {
    let metadata = metadata()?;
    let folder = metadata["target_directory"]
        .as_str()
        .context("no target directory")?;
    Ok(Path::new(folder).join("debug").join(program))
}

fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words
        .map(|w| w.to_string_lossy().into_owned())
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_is_killed_to_the_last() {
        let mut command = Command::new("sh");
        let mut child = command
            .args(["-c", "sleep 1000 | cat"])
            .spawn()
            .expect("sh");
        // Both ends of the pipe are there once the shell has children of its own.
        let pid = child.id();
        let tasks = format!("/proc/{pid}/task/{pid}/children");
        while std::fs::read_to_string(&tasks)
            .unwrap_or_default()
            .split_whitespace()
            .count()
            < 2
        {}
        let children = std::fs::read_to_string(&tasks).expect("children");
        kill_family(pid);
        assert!(!child.wait().expect("wait").success());
        for child in children.split_whitespace() {
            let gone = || {
                std::fs::read_to_string(format!("/proc/{child}/stat"))
                    .map_or(true, |s| s.contains(") Z "))
            };
            while !gone() {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
}
