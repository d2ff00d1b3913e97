//! The demonstration, judged by its own JSON, as root and as an ordinary user.

use super::Scenario;
use crate::needs::Need::{BlockDevice, Program, Root};
use crate::needs::{find, user_namespaces};
use crate::process::{holdfast, output};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

pub(super) const ALL: &[Scenario] = &[
    Scenario {
        name: "demo-kill",
        needs: &[],
        run: || demo(&["--fault", "kill"]),
    },
    Scenario {
        name: "demo-stop",
        needs: &[],
        run: || demo(&["--fault", "stop"]),
    },
    Scenario {
        name: "demo-partition",
        needs: &[],
        run: || demo(&["--fault", "partition"]),
    },
    Scenario {
        name: "demo-power",
        needs: &[],
        run: || demo(&["--fault", "power"]),
    },
    Scenario {
        name: "demo-postgres",
        needs: &[Root, BlockDevice, Program("psql")],
        run: || demo(&["--with", "postgres"]),
    },
    Scenario {
        name: "demo-ordinary-user",
        needs: &[Root, Program("setpriv")],
        run: ordinary_user,
    },
];

/// Seconds of workload.
const SECONDS: &str = "6";

fn demo(arguments: &[&str]) -> Result<()> {
    let mut command = Command::new(holdfast()?);
    let said = judge(
        command
            .args(["demo", "--json", "--seconds", SECONDS])
            .args(arguments),
    )?;
    if nix::unistd::geteuid().is_root() {
        ensure!(
            said["mode"] == "root",
            "as root it should use real devices: {}",
            said["mode"]
        );
    }
    Ok(())
}

/// The demonstration as nobody, from a folder of his own: the binary may lie where only root may look.
pub(super) fn ordinary(folder: &Path) -> Result<Command> {
    const NOBODY: &str = "65534";
    let open = |path: &Path| std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755));
    let binary = folder.join("holdfast");
    if !binary.exists() {
        std::fs::copy(holdfast()?, &binary)?;
    }
    open(&binary)?;
    open(folder)?;
    let home = folder.join("tmp");
    std::fs::create_dir_all(&home)?;
    nix::unistd::chown(
        &home,
        Some(NOBODY.parse::<u32>()?.into()),
        Some(NOBODY.parse::<u32>()?.into()),
    )?;
    let mut command = Command::new(find("setpriv").context("setpriv")?);
    command
        .args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"])
        .arg(&binary);
    command
        .arg("demo")
        .env("TMPDIR", &home)
        .env("HOME", &home)
        .current_dir(&home);
    Ok(command)
}

fn ordinary_user() -> Result<()> {
    let folder = tempfile::Builder::new().prefix("hf").tempdir_in("/tmp")?;
    let said = judge(ordinary(folder.path())?.args(["--json", "--seconds", SECONDS]))?;
    // Whether the kernel lets nobody make namespaces can only be told as nobody: either is right there.
    let modes: &[&str] = if user_namespaces() {
        &["userns", "loopback"]
    } else {
        &["loopback"]
    };
    ensure!(
        said["mode"].as_str().is_some_and(|m| modes.contains(&m)),
        "mode {}",
        said["mode"]
    );
    Ok(())
}

/// Runs it, and holds it to its own words.
pub(super) fn judge(command: &mut Command) -> Result<Value> {
    let output = output(command)?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(
        output.status.success(),
        "ended with {}\n{text}\n{errors}",
        output.status
    );
    let said: Value =
        serde_json::from_str(&text).with_context(|| format!("one JSON object:\n{text}"))?;
    ensure!(said["lost_writes"] == 0, "{said}");
    ensure!(said["replicas_identical"] == true, "{said}");
    ensure!(said["acknowledged_writes"].as_u64() > Some(0), "{said}");
    ensure!(said["failover_ms"].as_f64().is_some(), "{said}");
    ensure!(
        said["timeline"].as_array().is_some_and(|t| !t.is_empty()),
        "{said}"
    );
    Ok(said)
}
