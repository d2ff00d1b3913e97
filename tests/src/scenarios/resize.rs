//! Volumes that grow while they are written to.

use super::Scenario;
use crate::cluster::{Cluster, PATIENCE, Shape};
use crate::nbd::{BLOCK, Volume};
use crate::process::wait;
use anyhow::{Result, ensure};

pub(super) const ALL: &[Scenario] = &[Scenario {
    name: "resize-grow-and-fail-over",
    needs: &[],
    run: grow,
}];

fn size(cluster: &Cluster, node: &str) -> Result<u64> {
    let volume = &cluster.resource(node)?["volumes"][0];
    Ok(volume["size_bytes"].as_u64().unwrap_or(0))
}

fn grow() -> Result<()> {
    const NEW: u64 = 300 << 20;
    let mut cluster = Cluster::started(Shape::default())?;
    let old = cluster.size_bytes() / BLOCK;
    let mut volume = Volume::connect(&cluster.nbd_socket("alpha"))?;
    volume.write(0, 4000, 1)?;
    ensure!(size(&cluster, "beta")? == cluster.size_bytes());
    let said = cluster.refused("alpha", &["resize", "data", "32MiB"], 11)?;
    ensure!(said.contains("lose the end"), "{said}");

    // The client that is there goes on; whoever comes sees the new size.
    cluster.ok("beta", &["resize", "data", "300MiB"])?;
    volume.write(1000, 100, 2)?;
    drop(volume);
    ensure!(
        size(&cluster, "alpha")? == NEW,
        "{}",
        size(&cluster, "alpha")?
    );
    let last = NEW / BLOCK - 100;
    let mut volume = Volume::connect(&cluster.nbd_socket("alpha"))?;
    volume.check(1000, 100, 2)?;
    volume.check_zero(old, 4000)?;
    volume.write(last, 100, 3)?;
    drop(volume);

    // One that is away while it grows once more.
    cluster.kill("beta")?;
    wait("beta to be removed", PATIENCE, || {
        let set = cluster.resource("alpha")?["volumes"][0]["in_sync"].clone();
        Ok(set.as_array().is_some_and(|s| s.len() == 1))
    })?;
    cluster.ok("alpha", &["resize", "data", "400MiB"])?;
    let mut volume = Volume::connect(&cluster.nbd_socket("alpha"))?;
    volume.write(100_000, 100, 4)?;
    drop(volume);
    cluster.start_synced("beta")?;

    // The other one has all of it.
    cluster.kill("alpha")?;
    cluster.wait_for("beta", "here")?;
    let mut volume = Volume::connect(&cluster.nbd_socket("beta"))?;
    volume.check(0, 1000, 1)?;
    volume.check(last, 100, 3)?;
    volume.check(100_000, 100, 4)?;
    volume.check_zero(old, 4000)?;
    drop(volume);
    cluster.start_synced("alpha")?;
    cluster.ok("beta", &["verify", "data"])?;

    // Smaller only while nobody uses it, and what is gone is gone.
    let shrink = ["resize", "data", "64MiB", "--force-shrink", "lose the end"];
    let said = cluster.refused("beta", &shrink, 11)?;
    ensure!(said.contains("demote"), "{said}");
    cluster.ok("beta", &["demote", "data"])?;
    cluster.ok("beta", &shrink)?;
    cluster.ok("beta", &["resize", "data", "300MiB"])?;
    cluster.ok("beta", &["promote", "data"])?;
    let mut volume = Volume::connect(&cluster.nbd_socket("beta"))?;
    volume.check(0, 1000, 1)?;
    volume.check_zero(last, 100)?;
    drop(volume);
    cluster.wait_for("beta", "synced")?;
    cluster.ok("beta", &["verify", "data"])?;
    Ok(())
}
