//! However the demonstration ends, nothing of it is left; and every kind of site shows every fault.

use super::Scenario;
use super::demo::{judge, ordinary};
use crate::cluster::DATA;
use crate::needs::Need::{BlockDevice, Program, Root};
use crate::process::{holdfast, wait};
use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

pub(super) const ALL: &[Scenario] = &[
    Scenario {
        name: "demo-loopback-every-fault",
        needs: &[],
        run: || every_fault(loopback),
    },
    Scenario {
        name: "demo-ordinary-user-every-fault",
        needs: &[Root, Program("setpriv")],
        run: || {
            let folder = tempfile::Builder::new().prefix("hf").tempdir_in("/tmp")?;
            every_fault(|| ordinary(folder.path()))
        },
    },
    Scenario {
        name: "demo-interrupted-leaves-nothing",
        needs: &[],
        run: interrupted,
    },
    Scenario {
        name: "demo-killed-leaves-nothing-running",
        needs: &[],
        run: killed,
    },
];

const PATIENCE: Duration = Duration::from_secs(30);

fn loopback() -> Result<Command> {
    let mut command = Command::new(holdfast()?);
    command.args(["demo", "--mode", "loopback"]);
    Ok(command)
}

fn every_fault(demo: impl Fn() -> Result<Command>) -> Result<()> {
    for fault in ["kill", "stop", "partition", "power"] {
        let mut command = demo()?;
        command.args(["--json", "--seconds", "3", "--fault", fault]);
        let said = judge(&mut command).with_context(|| fault.to_owned())?;
        ensure!(said["fault"] == fault, "{said}");
        if fault == "stop" {
            ensure!(
                said["late_attempts"].as_u64() > Some(0) && said["late_acknowledgements"] == 0,
                "{said}"
            );
        }
    }
    Ok(())
}

/// Runs one with everything in `folder`, and sends it `signal` once it has said `when`. How it ended, and
/// the loop devices it had.
fn cut_short(folder: &Path, when: &str, signal: Signal) -> Result<(ExitStatus, Vec<PathBuf>)> {
    let log = folder.join("said");
    let files = folder.join("files");
    std::fs::create_dir_all(&files)?;
    let mut child = Command::new(holdfast()?)
        .args(["demo", "--seconds", "4"])
        .env("TMPDIR", &files)
        .stdin(Stdio::null())
        .stdout(std::fs::File::create(&log)?)
        .stderr(std::fs::File::create(folder.join("errors"))?)
        .spawn()?;
    wait(when, PATIENCE, || {
        ensure!(child.try_wait()?.is_none(), "it ended before: {when}");
        Ok(std::fs::read_to_string(&log)?.contains(when))
    })?;
    let loops = loops(&files)?;
    kill(Pid::from_raw(i32::try_from(child.id())?), signal)?;
    let mut status = None;
    wait("its end", PATIENCE, || {
        status = child.try_wait()?;
        Ok(status.is_some())
    })?;
    Ok((status.context("it has ended")?, loops))
}

/// The loop devices of the daemons in a folder, by their own word: who is outside their machines cannot
/// see what file is under which.
fn loops(files: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for run in std::fs::read_dir(files)?.flatten() {
        for node in DATA {
            let socket = run.path().join(node).join("api.sock");
            let mut command = Command::new(holdfast()?);
            command.args(["status", "--json", "--socket"]).arg(socket);
            // A node that does not run, or is stopped, has none that could be asked for.
            let Ok(said) = patiently(&mut command) else {
                continue;
            };
            let status: Value = serde_json::from_str(&said)?;
            let ways = status["resources"][0]["volumes"][0]["frontends"].clone();
            let ways = ways.as_array().cloned().unwrap_or_default();
            let devices = ways.iter().filter(|way| way["kind"] == "loop");
            found.extend(devices.filter_map(|way| way["path"].as_str().map(PathBuf::from)));
        }
    }
    Ok(found)
}

/// Runs a command that may never end, for a second.
fn patiently(command: &mut Command) -> Result<String> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let mut status = None;
    let ended = wait("an answer", Duration::from_secs(1), || {
        status = child.try_wait()?;
        Ok(status.is_some())
    });
    if ended.is_err() {
        child.kill()?;
    }
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "no answer");
    Ok(String::from_utf8(output.stdout)?)
}

/// Processes that know this folder, and of these loop devices the attached ones.
fn left(folder: &Path, loops: &[PathBuf]) -> Result<Vec<String>> {
    let needle = folder.to_str().context("a path")?;
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let own = entry
            .file_name()
            .to_str()
            .and_then(|n| n.parse::<u32>().ok());
        if own.is_none_or(|pid| pid == std::process::id()) {
            continue;
        }
        // It may end while it is looked at.
        let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        if command.contains(needle) {
            found.push(command);
        }
    }
    for device in loops {
        let name = device.file_name().context("a device")?;
        let file = Path::new("/sys/block").join(name).join("loop/backing_file");
        if file.exists() {
            found.push(device.display().to_string());
        }
    }
    Ok(found)
}

/// Words the demonstration says on its way.
const STATIONS: [&str; 5] = [
    "three nodes",
    "is primary",
    "FAULT",
    "serves; first write",
    "reading back",
];

fn interrupted() -> Result<()> {
    let mut some_loops = false;
    for (at, station) in STATIONS.into_iter().enumerate() {
        let signal = [Signal::SIGINT, Signal::SIGTERM][at % 2];
        let folder = tempfile::tempdir()?;
        let (status, loops) = cut_short(folder.path(), station, signal)?;
        ensure!(status.code() == Some(130), "{station}: {status}");
        let files = std::fs::read_dir(folder.path().join("files"))?.count();
        ensure!(files == 0, "{station}: {files} folders are left");
        let left = left(folder.path(), &loops)?;
        ensure!(left.is_empty(), "{station}: {left:?}");
        some_loops |= !loops.is_empty();
    }
    let root = nix::unistd::geteuid().is_root() && BlockDevice.lacking().is_none();
    ensure!(some_loops || !root, "no loop device was ever seen");
    Ok(())
}

/// SIGKILL: only files may be left.
fn killed() -> Result<()> {
    for station in STATIONS {
        let folder = tempfile::tempdir()?;
        let (status, loops) = cut_short(folder.path(), station, Signal::SIGKILL)?;
        ensure!(status.signal() == Some(9), "{station}: {status}");
        wait("everything to go", PATIENCE, || {
            Ok(left(folder.path(), &loops)?.is_empty())
        })
        .with_context(|| format!("{station}: {:?}", left(folder.path(), &loops)))?;
    }
    Ok(())
}
