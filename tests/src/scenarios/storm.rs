//! A storm of kills over the demonstration's cluster, judged by its own JSON: no acknowledged write of PostgreSQL or of
//! the writers on the bare volume is lost, and the replicas end up identical.
//!
//! Here it rages for a short while; `cargo xtask storm` does the same for ten minutes.

use super::Scenario;
use crate::needs::Need::{BlockDevice, Program, Root};
use crate::process::{holdfast, output};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::process::Command;

pub(super) const ALL: &[Scenario] = &[
    Scenario {
        name: "storm-records",
        needs: &[],
        run: || storm(&["--mode", "loopback"], 20),
    },
    Scenario {
        name: "storm-postgres",
        needs: &[Root, BlockDevice, Program("psql")],
        run: || storm(&["--with", "postgres"], 90),
    },
];

fn storm(arguments: &[&str], seconds: u32) -> Result<()> {
    let mut command = Command::new(holdfast()?);
    command
        .args(["demo", "--json", "--storm", &seconds.to_string()])
        .args(arguments);
    let output = output(&mut command)?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success(),
        "ended with {}\n{text}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    let said: Value =
        serde_json::from_str(&text).with_context(|| format!("one JSON object:\n{text}"))?;
    for nothing in ["lost_writes", "raw_lost_blocks"] {
        ensure!(said[nothing] == 0, "{said}");
    }
    for something in ["kills", "acknowledged_writes", "raw_acknowledged_writes"] {
        ensure!(said[something].as_u64() > Some(0), "{said}");
    }
    ensure!(said["replicas_identical"] == true, "{said}");
    Ok(())
}
