//! Programs that are run, and daemons that die with their scenario.

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

/// Between two looks at something that is waited for.
const LOOK: Duration = Duration::from_millis(20);

/// The `holdfast` binary: `HOLDFAST_BIN`, else beside this one.
pub(crate) fn holdfast() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("HOLDFAST_BIN") {
        return Ok(path.into());
    }
    let beside = std::env::current_exe()?.with_file_name("holdfast");
    ensure!(
        beside.is_file(),
        "{} is not built: run `cargo xtask e2e`",
        beside.display()
    );
    Ok(beside)
}

/// Runs a program that must go well; its standard output.
pub(crate) fn run(command: &mut Command) -> Result<String> {
    let output = output(command)?;
    ensure!(output.status.success(), "{}", describe(command, &output));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a program that must end with this status; what it said on both channels.
pub(crate) fn fails(command: &mut Command, status: i32) -> Result<String> {
    let output = output(command)?;
    ensure!(
        output.status.code() == Some(status),
        "not status {status}: {}",
        describe(command, &output)
    );
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(text(&output.stdout) + &text(&output.stderr))
}

/// Runs a program, however it ends.
pub(crate) fn output(command: &mut Command) -> Result<Output> {
    command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{command:?}"))
}

fn describe(command: &Command, output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    format!(
        "{command:?} ended with {}\n{}\n{}",
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    )
}

/// A daemon. Killed when dropped.
#[derive(Debug)]
pub(crate) struct Daemon {
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts it, with standard output and error appended to `log`.
    pub(crate) fn start(command: &mut Command, log: &Path) -> Result<Self> {
        let file = File::options().create(true).append(true).open(log)?;
        command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file);
        let child = command.spawn().with_context(|| format!("{command:?}"))?;
        Ok(Self {
            child,
            log: log.into(),
        })
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id())?;
        kill(Pid::from_raw(pid), signal).with_context(|| format!("{signal} to process {pid}"))
    }

    /// SIGKILL, and waits for its end.
    pub(crate) fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Waits for its end.
    pub(crate) fn ended(&mut self, patience: Duration) -> Result<ExitStatus> {
        let child = &mut self.child;
        let mut status = None;
        wait("the daemon's end", patience, || {
            status = child.try_wait()?;
            Ok(status.is_some())
        })?;
        status.context("it has ended")
    }

    /// Is it still there?
    pub(crate) fn alive(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// The last lines it wrote.
    pub(crate) fn tail(&self) -> String {
        tail(&self.log)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may be stopped: SIGKILL works then too.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The last lines of a file.
pub(crate) fn tail(path: &Path) -> String {
    /// Enough to see what went on.
    const LINES: usize = 40;
    let text = std::fs::read(path)
        .map(|b| String::from_utf8_lossy(&b).into_owned())
        .unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}

/// Looks again and again until `so` is true.
pub(crate) fn wait(
    what: &str,
    patience: Duration,
    mut so: impl FnMut() -> Result<bool>,
) -> Result<()> {
    let start = Instant::now();
    while !so()? {
        if start.elapsed() > patience {
            bail!("waited {} s for {what}", patience.as_secs());
        }
        std::thread::sleep(LOOK);
    }
    Ok(())
}
