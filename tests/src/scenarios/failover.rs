//! Nodes that die, stop, are cut off or hand over.

use super::Scenario;
use crate::cluster::{Cluster, PATIENCE, RESOURCE, Shape};
use crate::nbd::Volume;
use crate::process::wait;
use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

pub(super) const ALL: &[Scenario] = &[
    Scenario {
        name: "failover-kill-primary",
        needs: &[],
        run: kill_primary,
    },
    Scenario {
        name: "failover-kill-under-load",
        needs: &[],
        run: kill_under_load,
    },
    Scenario {
        name: "failover-stopped-primary-wakes",
        needs: &[],
        run: stopped_primary_wakes,
    },
    Scenario {
        name: "failover-isolated-primary",
        needs: &[],
        run: isolated_primary,
    },
    Scenario {
        name: "failover-planned",
        needs: &[],
        run: planned,
    },
    Scenario {
        name: "failover-witness-lost",
        needs: &[],
        run: witness_lost,
    },
    Scenario {
        name: "failover-all-killed",
        needs: &[],
        run: all_killed,
    },
    Scenario {
        name: "failover-demote-and-back",
        needs: &[],
        run: demote_and_back,
    },
];

/// Waits until `node` serves.
fn serves(cluster: &Cluster, node: &str) -> Result<()> {
    cluster.wait_for(node, "here")
}

fn kill_primary() -> Result<()> {
    let mut cluster = Cluster::started(Shape::default())?;
    Volume::connect(&cluster.nbd_socket("alpha"))?.write(0, 100, 1)?;
    cluster.kill("alpha")?;
    serves(&cluster, "beta")?;
    let mut volume = Volume::connect(&cluster.nbd_socket("beta"))?;
    volume.check(0, 100, 1)?;
    volume.write(50, 100, 2)?;
    cluster.start("alpha")?;
    cluster.wait_for("beta", "synced")?;
    volume.check(0, 50, 1)?;
    volume.check(50, 100, 2)?;
    cluster.ok("beta", &["verify", "data:alpha"])?;
    let history = cluster.ok("beta", &["history", RESOURCE])?;
    ensure!(history.contains("beta"), "{history}");
    Ok(())
}

/// One writer per connection, one block each, counting up. After the kill each block holds the last
/// number acknowledged to its writer, or the one after it (sent, never answered).
fn kill_under_load() -> Result<()> {
    const WRITERS: u64 = 8;
    let mut cluster = Cluster::started(Shape::default())?;
    let enough = Arc::new(AtomicBool::new(false));
    let mut writers = Vec::new();
    for writer in 0..WRITERS {
        let mut volume = Volume::connect(&cluster.nbd_socket("alpha"))?;
        let enough = Arc::clone(&enough);
        writers.push(std::thread::spawn(move || {
            let mut acknowledged = 0;
            while volume.write(writer, 1, acknowledged + 1).is_ok() {
                acknowledged += 1;
                if acknowledged == 200 {
                    enough.store(true, Ordering::Relaxed);
                }
            }
            acknowledged
        }));
    }
    wait("writes", PATIENCE, || Ok(enough.load(Ordering::Relaxed)))?;
    cluster.kill("alpha")?;
    serves(&cluster, "beta")?;
    let mut volume = Volume::connect(&cluster.nbd_socket("beta"))?;
    for (block, writer) in (0..).zip(writers) {
        let last: u64 = writer.join().ok().context("a writer's thread failed")?;
        let there = (last > 0 && volume.has(block, last)?) || volume.has(block, last + 1)?;
        ensure!(
            there || last == 0,
            "block {block} has neither write {last}, which was acknowledged, nor the next"
        );
    }
    Ok(())
}

/// A primary that was stopped for longer than its lease acknowledges nothing when it wakes (G2).
fn stopped_primary_wakes() -> Result<()> {
    let cluster = Cluster::started(Shape::default())?;
    let mut old = Volume::connect(&cluster.nbd_socket("alpha"))?;
    old.write(0, 10, 1)?;
    cluster.signal("alpha", Signal::SIGSTOP)?;
    serves(&cluster, "beta")?;
    let mut new = Volume::connect(&cluster.nbd_socket("beta"))?;
    new.write(0, 10, 2)?;
    cluster.signal("alpha", Signal::SIGCONT)?;
    ensure!(
        old.write(0, 10, 3).is_err(),
        "the old primary acknowledged a write after it woke"
    );
    cluster.wait_for("alpha", "secondary")?;
    cluster.wait_for("beta", "synced")?;
    new.check(0, 10, 2)
}

/// A primary that hears nobody steps down by itself; the other goes on; it comes back as Secondary.
fn isolated_primary() -> Result<()> {
    let cluster = Cluster::started(Shape::default())?;
    Volume::connect(&cluster.nbd_socket("alpha"))?.write(0, 10, 1)?;
    cluster.ok("alpha", &["isolate", "on"])?;
    serves(&cluster, "beta")?;
    Volume::connect(&cluster.nbd_socket("beta"))?.write(0, 10, 2)?;
    wait("alpha to step down", PATIENCE, || {
        let status = cluster.status("alpha")?;
        Ok(status["quorum"] == false && status["resources"][0]["here"] != "Primary")
    })?;
    cluster.ok("alpha", &["isolate", "off"])?;
    cluster.wait_for("beta", "synced")?;
    cluster.wait_for("alpha", "secondary")?;
    Volume::connect(&cluster.nbd_socket("beta"))?.check(0, 10, 2)
}

/// A planned switch-over there and back, with every write answered well or on the other node.
fn planned() -> Result<()> {
    let cluster = Cluster::started(Shape::default())?;
    Volume::connect(&cluster.nbd_socket("alpha"))?.write(0, 10, 1)?;
    for (round, node) in ["beta", "alpha", "beta"].into_iter().enumerate() {
        let before = cluster.resource(node)?["epoch"].as_u64();
        cluster.ok(node, &["promote", RESOURCE])?;
        ensure!(
            cluster.ok(node, &["role", RESOURCE])?.trim() == "Primary",
            "{node} is not Primary"
        );
        ensure!(
            cluster.resource(node)?["epoch"].as_u64() > before,
            "the epoch did not grow"
        );
        // No copy fell out of the set.
        let in_sync = cluster.resource(node)?["volumes"][0]["in_sync"].clone();
        ensure!(
            in_sync.as_array().is_some_and(|s| s.len() == 2),
            "{in_sync}"
        );
        let mut volume = Volume::connect(&cluster.nbd_socket(node))?;
        volume.check(0, 10, round as u64 + 1)?;
        volume.write(0, 10, round as u64 + 2)?;
    }
    Ok(())
}

/// Without the witness nothing stops; without it and one data node writes wait, and go on when one is back.
fn witness_lost() -> Result<()> {
    let mut cluster = Cluster::started(Shape::default())?;
    cluster.kill("witness")?;
    let mut volume = Volume::connect(&cluster.nbd_socket("alpha"))?;
    volume.write(0, 10, 1)?;
    wait("alpha to miss the witness", PATIENCE, || {
        let nodes = cluster.status("alpha")?["nodes"].clone();
        let nodes = nodes
            .as_array()
            .map(Vec::as_slice)
            .unwrap_or_default()
            .to_vec();
        Ok(nodes
            .iter()
            .any(|n| n["name"] == "witness" && n["online"] == false))
    })?;
    volume.write(0, 10, 2)?;
    cluster.start("witness")?;
    cluster.kill("beta")?;
    volume.write(0, 10, 3)?;
    volume.check(0, 10, 3)
}

/// All three killed at once, as by a power failure of the room (without loss of caches).
fn all_killed() -> Result<()> {
    let mut cluster = Cluster::started(Shape::default())?;
    Volume::connect(&cluster.nbd_socket("alpha"))?.write(0, 200, 1)?;
    for node in ["alpha", "beta", "witness"] {
        cluster.kill(node)?;
    }
    cluster.start_all()?;
    cluster.wait_for("alpha", "primary")?;
    cluster.wait_for("alpha", "synced")?;
    let primary = cluster.resource("alpha")?["primary"].clone();
    let primary = primary.as_str().context("a primary")?;
    Volume::connect(&cluster.nbd_socket(primary))?.check(0, 200, 1)
}

fn demote_and_back() -> Result<()> {
    let cluster = Cluster::started(Shape::default())?;
    Volume::connect(&cluster.nbd_socket("alpha"))?.write(0, 10, 1)?;
    cluster.ok("beta", &["demote", RESOURCE])?;
    cluster.wait_for("alpha", "secondary")?;
    cluster.wait_for("beta", "secondary")?;
    cluster.ok("beta", &["promote", RESOURCE])?;
    serves(&cluster, "beta")?;
    Volume::connect(&cluster.nbd_socket("beta"))?.check(0, 10, 1)
}
