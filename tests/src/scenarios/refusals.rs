//! What must be refused clearly, with nothing lost.

use super::Scenario;
use crate::cluster::{Cluster, DATA, PATIENCE, RESOURCE, Shape, write_private};
use crate::nbd::Volume;
use crate::process::{Daemon, fails, wait};
use anyhow::{Context, Result, ensure};

pub(super) const ALL: &[Scenario] = &[
    Scenario {
        name: "refuse-bad-configuration",
        needs: &[],
        run: bad_configuration,
    },
    Scenario {
        name: "refuse-unknown-node",
        needs: &[],
        run: unknown_node,
    },
    Scenario {
        name: "refuse-second-daemon",
        needs: &[],
        run: second_daemon,
    },
    Scenario {
        name: "refuse-small-backing",
        needs: &[],
        run: small_backing,
    },
    Scenario {
        name: "refuse-foreign-backing",
        needs: &[],
        run: foreign_backing,
    },
    Scenario {
        name: "refuse-used-backing",
        needs: &[],
        run: used_backing,
    },
    Scenario {
        name: "refuse-wrong-secret",
        needs: &[],
        run: wrong_secret,
    },
    Scenario {
        name: "refuse-outdated-promotion",
        needs: &[],
        run: outdated_promotion,
    },
];

fn bad_configuration() -> Result<()> {
    let cluster = Cluster::new(Shape::default())?;
    let text = cluster.text("secret").replace("state_dir", "statedir");
    write_private(&cluster.config(), &text)?;
    let said = fails(&mut cluster.node_command("alpha")?, 10)?;
    ensure!(
        said.contains("cluster.toml:10:1:") && said.contains("did you mean `state_dir`?"),
        "{said}"
    );
    Ok(())
}

fn unknown_node() -> Result<()> {
    let cluster = Cluster::new(Shape::default())?;
    let said = fails(&mut cluster.node_command("gamma")?, 10)?;
    ensure!(said.contains("gamma") && said.contains("alpha"), "{said}");
    Ok(())
}

fn second_daemon() -> Result<()> {
    let mut cluster = Cluster::new(Shape::default())?;
    cluster.start("alpha")?;
    let mut second = Daemon::start(
        &mut cluster.node_command("alpha")?,
        &cluster.path("second.log"),
    )?;
    let status = second.ended(PATIENCE)?;
    ensure!(!status.success(), "{}", second.tail());
    let folder = cluster.state_dir("alpha").display().to_string();
    ensure!(second.tail().contains(&folder), "{}", second.tail());
    ensure!(cluster.daemon("alpha")?.alive()?, "the first has ended");
    cluster.status("alpha").map(|_| ())
}

fn small_backing() -> Result<()> {
    let mut cluster = Cluster::new(Shape::default())?;
    // A block device cannot grow; a file stands for it when it is there already and not empty.
    std::fs::write(cluster.backing("beta"), vec![0x55; 1 << 20])?;
    cluster.start_all()?;
    cluster.wait_for("alpha", "quorum")?;
    let said = cluster.refused("alpha", &["create", RESOURCE], 11)?;
    ensure!(said.contains("beta"), "{said}");
    ensure!(
        std::fs::read(cluster.backing("beta"))? == vec![0x55; 1 << 20],
        "the file was changed"
    );
    Ok(())
}

/// A replica of another cluster, stopped in good order or not: it is not ours.
fn foreign_backing() -> Result<()> {
    let other = Cluster::started(Shape {
        cluster: "other",
        ..Shape::default()
    })?;
    let mut cluster = Cluster::new(Shape::default())?;
    let bytes = std::fs::read(other.backing("alpha"))?;
    std::fs::write(cluster.backing("alpha"), &bytes)?;
    drop(other);
    cluster.start_all()?;
    cluster.wait_for("alpha", "quorum")?;
    let said = cluster.refused("alpha", &["create", RESOURCE], 11)?;
    ensure!(
        said.contains("alpha") && said.contains("another cluster"),
        "{said}"
    );
    ensure!(
        std::fs::read(cluster.backing("alpha"))? == bytes,
        "the file was changed"
    );
    Ok(())
}

/// Every node has lost its control state, and somebody creates the resource anew: the copies that
/// served are not taken for leftovers.
fn used_backing() -> Result<()> {
    let mut cluster = Cluster::started(Shape::default())?;
    Volume::connect(&cluster.nbd_socket("alpha"))?.write(0, 10, 1)?;
    for node in ["alpha", "beta", "witness"] {
        cluster.kill(node)?;
        std::fs::remove_dir_all(cluster.state_dir(node))?;
        std::fs::create_dir(cluster.state_dir(node))?;
    }
    let bytes = std::fs::read(cluster.backing("alpha"))?;
    cluster.start_all()?;
    cluster.wait_for("alpha", "quorum")?;
    cluster.refused("alpha", &["create", RESOURCE], 11)?;
    ensure!(
        std::fs::read(cluster.backing("alpha"))? == bytes,
        "the file was changed"
    );
    Ok(())
}

/// Three nodes, one with another secret: it is no member, the others do without it.
fn wrong_secret() -> Result<()> {
    let mut cluster = Cluster::new(Shape::default())?;
    let stranger = cluster.path("stranger.toml");
    write_private(&cluster.path("other"), "ffffffffffffffffffffffffffffffff\n")?;
    write_private(&stranger, &cluster.text("other"))?;
    cluster.start("alpha")?;
    cluster.start("beta")?;
    let mut command = std::process::Command::new(crate::process::holdfast()?);
    command
        .args(["node", "--name", "witness", "--config"])
        .arg(&stranger);
    cluster.start_by("witness", &mut command)?;
    wait("alpha and beta to have a majority", PATIENCE, || {
        Ok(cluster.status("alpha")?["quorum"] == true)
    })?;
    let status = cluster.status("alpha")?;
    let nodes = status["nodes"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    ensure!(
        nodes
            .iter()
            .any(|n| n["name"] == "witness" && n["online"] == false),
        "{status}"
    );
    ensure!(
        cluster.status("witness")?["quorum"] == false,
        "the stranger hears a majority"
    );
    let logs = || -> Result<String> {
        let read = |node: &str| std::fs::read_to_string(cluster.path(&format!("{node}.log")));
        Ok(read("alpha")? + &read("beta")? + &read("witness")?)
    };
    wait("a log to say why", PATIENCE, || {
        Ok(logs()?.contains("secret"))
    })
    .with_context(|| cluster.logs())?;
    let logs = logs()?;
    let shown = logs.contains("ffffffffffffffff") || logs.contains("0123456789abcdef");
    ensure!(!shown, "a log holds a secret");
    Ok(())
}

/// Both data nodes lost in turn, the stale one first to come back: it waits and says for whom, is not
/// promoted on demand, and the other one's data is what counts.
fn outdated_promotion() -> Result<()> {
    let mut cluster = Cluster::started(Shape::default())?;
    Volume::connect(&cluster.nbd_socket("alpha"))?.write(0, 10, 1)?;
    cluster.kill("beta")?;
    // Acknowledged without beta: from here on beta is stale.
    Volume::connect(&cluster.nbd_socket("alpha"))?.write(0, 10, 2)?;
    cluster.kill("alpha")?;
    cluster.start("beta")?;
    wait("beta to be known as stale", PATIENCE, || {
        let why = cluster.resource("beta")?["why"].to_string();
        Ok(why.contains("alpha"))
    })?;
    let said = cluster.refused("beta", &["promote", RESOURCE], 17)?;
    ensure!(said.contains("alpha") && said.contains("--force"), "{said}");
    ensure!(
        cluster.resource("beta")?["primary"] != "beta",
        "beta was promoted"
    );
    cluster.start("alpha")?;
    cluster.wait_for("alpha", "primary")?;
    cluster.wait_for("alpha", "synced")?;
    let primary = cluster.resource("alpha")?["primary"].clone();
    ensure!(DATA.iter().any(|n| primary == *n), "{primary}");
    let primary = DATA.into_iter().find(|n| primary == *n).unwrap_or("alpha");
    Volume::connect(&cluster.nbd_socket(primary))?.check(0, 10, 2)
}
