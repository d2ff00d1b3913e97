//! Copies that fall behind, are blank or are distrusted, and become equal again.

use super::Scenario;
use crate::cluster::{Cluster, PATIENCE, RESOURCE, Shape};
use crate::nbd::{BLOCK, Volume};
use crate::process::wait;
use anyhow::{Result, ensure};

pub(super) const ALL: &[Scenario] = &[
    Scenario {
        name: "resync-what-changed",
        needs: &[],
        run: what_changed,
    },
    Scenario {
        name: "resync-unknown-content",
        needs: &[],
        run: unknown_content,
    },
    Scenario {
        name: "resync-blank-replica",
        needs: &[],
        run: blank_replica,
    },
    Scenario {
        name: "resync-distrusted",
        needs: &[],
        run: distrusted,
    },
    Scenario {
        name: "verify-finds-differences",
        needs: &[],
        run: verify_finds_differences,
    },
];

/// Stops all nodes and compares the files.
fn compare(mut cluster: Cluster) -> Result<()> {
    for node in ["beta", "alpha", "witness"] {
        cluster.ok(node, &["stop"])?;
        let status = cluster.daemon(node)?.ended(PATIENCE)?;
        ensure!(status.success(), "{node}: {status}\n{}", cluster.logs());
        let _ = cluster.kill(node);
    }
    cluster.replicas_are_equal()
}

/// A secondary that was away gets what changed, not the volume (G8).
fn what_changed() -> Result<()> {
    const CHANGED: u64 = 100;
    let mut cluster = Cluster::started(Shape::default())?;
    let mut volume = Volume::connect(&cluster.nbd_socket("alpha"))?;
    volume.write(0, 4000, 1)?;
    cluster.kill("beta")?;
    volume.write(1000, CHANGED, 2)?;
    volume.zero(9000, 64)?;
    cluster.start_synced("beta")?;
    let sent =
        cluster.resource("alpha")?["volumes"][0]["local"]["peers"][0]["resync_sent_bytes"].clone();
    // What changed, and what the activity log held when beta died: a few extents, compared by hash.
    let most = (CHANGED + 64) * BLOCK * 2;
    ensure!(
        sent.as_u64()
            .is_some_and(|s| s >= CHANGED * BLOCK && s <= most),
        "{sent} bytes sent, {most} allowed"
    );
    volume.check(0, 1000, 1)?;
    volume.check(1000, CHANGED, 2)?;
    volume.check_zero(9000, 64)?;
    drop(volume);
    compare(cluster)
}

/// A backing that may hold anything between its zeroes: one copy is made the truth, the other filled.
fn unknown_content() -> Result<()> {
    let mut cluster = Cluster::new(Shape::default())?;
    let mut bytes = vec![0; usize::try_from(cluster.size_bytes())? + (64 << 20)];
    bytes[40 << 20..41 << 20].fill(0x77);
    std::fs::write(cluster.backing("beta"), &bytes)?;
    cluster.start_all()?;
    cluster.create()?;
    Volume::connect(&cluster.nbd_socket("alpha"))?.check_zero(10_000, 512)?;
    compare(cluster)
}

/// A disk that was wiped is recognised, never taken for the old one, and filled.
fn blank_replica() -> Result<()> {
    let mut cluster = Cluster::started(Shape::default())?;
    let mut volume = Volume::connect(&cluster.nbd_socket("alpha"))?;
    volume.write(0, 2000, 1)?;
    cluster.kill("beta")?;
    std::fs::remove_file(cluster.backing("beta"))?;
    cluster.start_synced("beta")?;
    volume.check(0, 2000, 1)?;
    drop(volume);
    compare(cluster)
}

fn distrusted() -> Result<()> {
    let cluster = Cluster::started(Shape::default())?;
    Volume::connect(&cluster.nbd_socket("alpha"))?.write(0, 500, 1)?;
    let before = cluster.ok("alpha", &["history", RESOURCE])?.lines().count();
    cluster.ok("alpha", &["resync", "data:beta"])?;
    // Out of the set, and in again.
    wait("beta to leave and come back", PATIENCE, || {
        Ok(cluster.ok("alpha", &["history", RESOURCE])?.lines().count() >= before + 2)
    })?;
    cluster.wait_for("alpha", "synced")?;
    cluster.ok("alpha", &["verify", "data:beta"])?;
    compare(cluster)
}

/// A block changed behind our back: verify says where, resync mends it.
fn verify_finds_differences() -> Result<()> {
    use std::os::unix::fs::FileExt;
    let mut cluster = Cluster::started(Shape::default())?;
    Volume::connect(&cluster.nbd_socket("alpha"))?.write(0, 500, 1)?;
    cluster.ok("alpha", &["verify", "data:beta"])?;
    cluster.kill("beta")?;
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(cluster.backing("beta"))?;
    // Far from anything that was written lately, so that no log covers it.
    let at = 50 << 20;
    file.write_all_at(&[0xee; 512], at)?;
    file.sync_all()?;
    cluster.start_synced("beta")?;
    let said = cluster.refused("alpha", &["verify", "data:beta"], 1)?;
    ensure!(
        said.contains("4 KiB") && said.contains(&at.to_string()),
        "{said}"
    );
    cluster.ok("alpha", &["resync", "data:beta"])?;
    wait("the difference to be mended", PATIENCE, || {
        cluster.wait_for("alpha", "synced")?;
        Ok(cluster.ok("alpha", &["verify", "data:beta"]).is_ok())
    })?;
    compare(cluster)
}
