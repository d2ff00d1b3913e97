//! Replicas that are added, moved and removed while the volume is written to.

use super::Scenario;
use crate::cluster::{Cluster, DATA, PATIENCE, Shape, WITNESS};
use crate::nbd::Volume;
use crate::process::wait;
use anyhow::{Context, Result, ensure};

pub(super) const ALL: &[Scenario] = &[Scenario {
    name: "members-add-move-remove",
    needs: &[],
    run: add_move_remove,
}];

/// The third node may hold data too.
const THIRD: &str = WITNESS;

fn in_sync(cluster: &Cluster, node: &str, wanted: &[&str]) -> Result<()> {
    wait("the in-sync set", PATIENCE, || {
        let set = cluster.resource(node)?["volumes"][0]["in_sync"].clone();
        let mut names: Vec<&str> = set
            .as_array()
            .context("a list")?
            .iter()
            .filter_map(|n| n.as_str())
            .collect();
        names.sort_unstable();
        Ok(names == wanted)
    })
    .with_context(|| cluster.logs())
}

fn add_move_remove() -> Result<()> {
    let mut cluster = Cluster::started(Shape {
        third_holds: true,
        ..Shape::default()
    })?;
    let mut volume = Volume::connect(&cluster.nbd_socket("alpha"))?;
    volume.write(0, 4000, 1)?;

    // Its configuration names no place.
    let said = cluster.refused("beta", &["replica", "add", "data", THIRD], 11)?;
    ensure!(said.contains("--backing"), "{said}");
    let place = |name: &str| cluster.path(name).display().to_string();
    let (third, again) = (place("third.img"), place("beta-again.img"));
    let add = ["replica", "add", "data/main", THIRD, "--backing", &third];
    cluster.ok("beta", &add)?;
    volume.write(1000, 500, 2)?;
    in_sync(&cluster, "alpha", &["alpha", "beta", THIRD])?;
    let why = cluster.resource("alpha")?["why"].to_string();
    ensure!(why.contains("cluster.toml"), "{why}");

    // One goes, from a node that is neither it nor the primary.
    cluster.ok(THIRD, &["replica", "remove", "data", "beta"])?;
    in_sync(&cluster, "alpha", &["alpha", THIRD])?;
    volume.write(2000, 500, 3)?;
    let said = cluster.refused("alpha", &["replica", "remove", "data", "alpha"], 11)?;
    ensure!(said.contains("promote another"), "{said}");
    // What was there is not taken for a new one.
    let old = place("beta.img");
    let said = cluster.refused(
        "alpha",
        &["replica", "add", "data", "beta", "--backing", &old],
        11,
    )?;
    ensure!(said.contains("not recorded any more"), "{said}");

    // The primary's replica moves: it hands over by itself.
    drop(volume);
    let shift = [
        "replica",
        "move",
        "data",
        "alpha",
        "beta",
        "--backing",
        &again,
    ];
    cluster.ok(THIRD, &shift)?;
    in_sync(&cluster, "beta", &["beta", THIRD])?;
    cluster.wait_for("beta", "here")?;
    let mut volume = Volume::connect(&cluster.nbd_socket("beta"))?;
    volume.check(0, 1000, 1)?;
    volume.check(1000, 500, 2)?;
    volume.check(2000, 500, 3)?;
    volume.write(3000, 500, 4)?;
    drop(volume);

    // A restart finds everything where it is by now.
    cluster.kill(THIRD)?;
    cluster.start(THIRD)?;
    wait("the third node to be attached", PATIENCE, || {
        let peer = cluster.peer("beta")?;
        Ok(peer["attached"] == true && peer["disk"] == "UpToDate")
    })?;
    in_sync(&cluster, "beta", &["beta", THIRD])?;
    cluster.ok("beta", &["verify", "data"])?;
    for node in [DATA[0], THIRD, "beta"] {
        cluster.ok(node, &["stop"])?;
        let status = cluster.daemon(node)?.ended(PATIENCE)?;
        ensure!(status.success(), "{node}: {status}\n{}", cluster.logs());
    }
    let size = usize::try_from(cluster.size_bytes())?;
    let (a, b) = (std::fs::read(&third)?, std::fs::read(&again)?);
    ensure!(a[..size] == b[..size], "the replicas differ");
    Ok(())
}
