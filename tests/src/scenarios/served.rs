//! A resource with a service that clients use without a break: what they were told holds through
//! planned switch-overs and through the loss of everything at once.

use super::Scenario;
use crate::cluster::{Cluster, DATA, PATIENCE, RESOURCE, Shape, WITNESS, write_private};
use crate::process::{holdfast, run, wait};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::process::Command;
use std::thread::JoinHandle;
use std::time::Duration;

pub(super) const ALL: &[Scenario] = &[
    Scenario {
        name: "served-planned-there-and-back",
        needs: &[],
        run: planned,
    },
    Scenario {
        name: "served-both-data-nodes-killed",
        needs: &[],
        run: both_killed,
    },
    Scenario {
        name: "served-primary-killed-again-and-again",
        needs: &[],
        run: killed_in_turn,
    },
];

/// A cluster whose resource has a record server on its volume, at an address that follows the primary.
struct Served {
    cluster: Cluster,
    address: String,
}

impl Served {
    fn started() -> Result<Self> {
        let cluster = Cluster::new(Shape {
            size_mib: 1024,
            ..Shape::default()
        })?;
        let pid = std::process::id();
        // Beside the nodes' addresses: see `Cluster::text`.
        let vip = format!("127.{}.{}.100", pid >> 8 & 0xff, pid & 0xff);
        let address = format!("{vip}:7100");
        let program = holdfast()?;
        let program = program.to_str().context("the program's path")?;
        let text = cluster.text("secret")
            + &format!(
                "\n[[resource.service]]\nname = \"records\"\nready = \"tcp:{address}\"\n\
                 command = [\"{program}\", \"record-server\", \"--listen\", \"{address}\"]\n\
                 \n[[resource.vip]]\naddress = \"{vip}/24\"\n"
            );
        write_private(&cluster.config(), &text)?;
        let mut served = Self { cluster, address };
        for node in DATA.into_iter().chain([WITNESS]) {
            served.start(node)?;
        }
        served.cluster.create()?;
        Ok(served)
    }

    /// Starts a node; its service finds the volume by a variable.
    fn start(&mut self, node: &'static str) -> Result<()> {
        let mut command = self.cluster.node_command(node)?;
        command.env("HOLDFAST_NBD_UNIX", self.cluster.nbd_socket(node));
        self.cluster.start_by(node, &mut command)
    }

    /// Clients that append for so long, and then ask for everything that was acknowledged to them.
    fn clients(&self, seconds: u64) -> Result<JoinHandle<Result<Value>>> {
        let mut command = Command::new(holdfast()?);
        let patience = PATIENCE.as_secs().to_string();
        command.args(["record-client", "--json", "--connect", &self.address]);
        command.args(["--patience", &patience, "--seconds", &seconds.to_string()]);
        Ok(std::thread::spawn(move || {
            // Its exit status is 0 only if every append was acknowledged in the end and none is lost.
            Ok(serde_json::from_str(&run(&mut command)?)?)
        }))
    }

    /// The node that serves.
    fn primary(&self) -> Result<&'static str> {
        let mut found = None;
        wait("a primary", PATIENCE, || {
            found = DATA.into_iter().find(|node| {
                self.cluster
                    .resource(node)
                    .is_ok_and(|r| r["here"] == "Primary")
            });
            Ok(found.is_some())
        })
        .with_context(|| self.cluster.logs())?;
        found.context("a primary")
    }
}

fn judge(clients: JoinHandle<Result<Value>>, served: &Served) -> Result<()> {
    let said = clients
        .join()
        .map_err(|_| anyhow::anyhow!("the clients' thread failed"))?
        .with_context(|| served.cluster.logs())?;
    ensure!(
        said["lost"] == 0 && said["acknowledged"].as_u64() > Some(0),
        "{said}"
    );
    ensure!(
        said["records"].as_u64() >= said["acknowledged"].as_u64(),
        "{said}"
    );
    Ok(())
}

/// Something is written in between.
fn meanwhile() {
    std::thread::sleep(Duration::from_millis(700));
}

/// Switched over four times while clients append: no append fails, no copy leaves the set.
fn planned() -> Result<()> {
    let served = Served::started()?;
    let clients = served.clients(8)?;
    meanwhile();
    for _ in 0..4 {
        let from = served.primary()?;
        let to = DATA[usize::from(from == DATA[0])];
        served.cluster.ok(to, &["promote", RESOURCE])?;
        ensure!(served.primary()? == to, "{to} does not serve");
        let in_sync = served.cluster.resource(to)?["volumes"][0]["in_sync"].clone();
        ensure!(
            in_sync.as_array().is_some_and(|s| s.len() == DATA.len()),
            "a planned switch-over put a copy out of the set: {in_sync}"
        );
        meanwhile();
    }
    judge(clients, &served)
}

/// Both data nodes killed at once while clients append; the witness remembers who was in the set.
fn both_killed() -> Result<()> {
    let mut served = Served::started()?;
    let clients = served.clients(8)?;
    meanwhile();
    for node in DATA {
        served.cluster.kill(node)?;
    }
    // The other way round: who comes first does not matter.
    for node in DATA.into_iter().rev() {
        served.start(node)?;
    }
    served.primary()?;
    judge(clients, &served)?;
    served.cluster.wait_for("alpha", "synced")
}

/// The primary is killed, comes back, is in sync; then the next one. Nothing is lost over several generations.
fn killed_in_turn() -> Result<()> {
    let mut served = Served::started()?;
    let clients = served.clients(15)?;
    for _ in 0..3 {
        meanwhile();
        let victim = served.primary()?;
        served.cluster.kill(victim)?;
        served.start(victim)?;
        served.primary()?;
        served.cluster.wait_for("alpha", "synced")?;
    }
    judge(clients, &served)
}
