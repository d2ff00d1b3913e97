//! A cluster of real daemons on this machine: two data nodes and a witness on loopback addresses,
//! one resource `data` with one volume `main`, used through its NBD socket.

use crate::process::{self, Daemon, holdfast};
use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use tempfile::TempDir;

/// How long anything may take here; a limit against hanging only.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// The data nodes.
pub(crate) const DATA: [&str; 2] = ["alpha", "beta"];
/// The third voter.
pub(crate) const WITNESS: &str = "witness";
/// The resource.
pub(crate) const RESOURCE: &str = "data";

/// What differs between clusters.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    /// Name of the cluster.
    pub(crate) cluster: &'static str,
    /// Size of the volume in MiB.
    pub(crate) size_mib: u64,
    /// More lines for the volume.
    pub(crate) volume: &'static str,
    /// The third voter is no mere witness: it may be given a replica.
    pub(crate) third_holds: bool,
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            cluster: "e2e",
            size_mib: 64,
            volume: "",
            third_holds: false,
        }
    }
}

/// The cluster.
#[derive(Debug)]
pub(crate) struct Cluster {
    nodes: BTreeMap<&'static str, Daemon>,
    folder: TempDir,
    shape: Shape,
}

impl Cluster {
    /// Files and configuration; nothing runs yet.
    pub(crate) fn new(shape: Shape) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("hf").tempdir()?;
        let cluster = Self {
            nodes: BTreeMap::new(),
            folder,
            shape,
        };
        for node in DATA.into_iter().chain([WITNESS]) {
            std::fs::create_dir(cluster.state_dir(node))?;
        }
        write_private(
            &cluster.path("secret"),
            "0123456789abcdef0123456789abcdef\n",
        )?;
        write_private(&cluster.config(), &cluster.text("secret"))?;
        Ok(cluster)
    }

    /// The same, with all nodes running and the resource created and served.
    pub(crate) fn started(shape: Shape) -> Result<Self> {
        let mut cluster = Self::new(shape)?;
        cluster.start_all()?;
        cluster.create()?;
        Ok(cluster)
    }

    /// The text of the configuration with this secret file.
    pub(crate) fn text(&self, secret: &str) -> String {
        // Addresses of this process alone, so that scenarios can run side by side.
        let pid = std::process::id();
        let (b, c) = (pid >> 8 & 0xff, pid & 0xff);
        let mut text = format!(
            "[cluster]\nname = \"{}\"\nsecret_file = \"{secret}\"\nprofile = \"fast\"\n",
            self.shape.cluster
        );
        for (i, name) in DATA.into_iter().chain([WITNESS]).enumerate() {
            text += &format!(
                "\n[[node]]\nname = \"{name}\"\nid = {}\naddress = \"127.{b}.{c}.{}\"\nstate_dir = \"{}\"\n{}",
                i + 1,
                i + 11,
                self.state_dir(name).display(),
                if name == WITNESS && !self.shape.third_holds {
                    "witness = true\n"
                } else {
                    ""
                }
            );
        }
        let backing = |node| self.backing(node).display().to_string();
        text += &format!(
            "\n[[resource]]\nname = \"{RESOURCE}\"\nnodes = [\"alpha\", \"beta\"]\npreferred = \"alpha\"\n\n\
             [[resource.volume]]\nname = \"main\"\nsize = \"{}MiB\"\nfrontend = \"none\"\n\
             backing = {{ alpha = \"{}\", beta = \"{}\" }}\n{}\n",
            self.shape.size_mib,
            backing("alpha"),
            backing("beta"),
            self.shape.volume
        );
        text
    }

    /// A path in the scenario's folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
    /// The configuration.
    pub(crate) fn config(&self) -> PathBuf {
        self.path("cluster.toml")
    }
    /// State directory of a node.
    pub(crate) fn state_dir(&self, node: &str) -> PathBuf {
        self.path(node)
    }
    /// Backing file of a node.
    pub(crate) fn backing(&self, node: &str) -> PathBuf {
        self.path(&format!("{node}.img"))
    }
    /// NBD socket of the volume on a node.
    pub(crate) fn nbd_socket(&self, node: &str) -> PathBuf {
        self.state_dir(node).join("data-main.nbd")
    }
    /// Bytes of the volume.
    pub(crate) fn size_bytes(&self) -> u64 {
        self.shape.size_mib << 20
    }

    /// The command that runs a node.
    pub(crate) fn node_command(&self, node: &str) -> Result<Command> {
        let mut command = Command::new(holdfast()?);
        command
            .args(["node", "--allow-faults", "--name", node, "--config"])
            .arg(self.config());
        Ok(command)
    }

    /// Starts a node and waits until it answers.
    pub(crate) fn start(&mut self, node: &'static str) -> Result<()> {
        let command = &mut self.node_command(node)?;
        self.start_by(node, command)
    }

    /// The same by a command of its own.
    pub(crate) fn start_by(&mut self, node: &'static str, command: &mut Command) -> Result<()> {
        let mut daemon = Daemon::start(command, &self.path(&format!("{node}.log")))?;
        let answers = process::wait(&format!("{node} to answer"), PATIENCE, || {
            ensure!(daemon.alive()?, "{node} has ended");
            Ok(self.status(node).is_ok())
        });
        answers.with_context(|| daemon.tail())?;
        self.nodes.insert(node, daemon);
        Ok(())
    }

    /// Starts all nodes.
    pub(crate) fn start_all(&mut self) -> Result<()> {
        for node in DATA.into_iter().chain([WITNESS]) {
            self.start(node)?;
        }
        Ok(())
    }

    /// Creates the resource and waits until it is served with both copies in sync.
    pub(crate) fn create(&self) -> Result<()> {
        self.wait_for("alpha", "quorum")?;
        self.ok("alpha", &["create", RESOURCE])?;
        self.wait_for("alpha", "primary")?;
        self.wait_for("alpha", "synced")
    }

    /// SIGKILL. Returns once the other data node has noticed, so that what it says afterwards is news.
    pub(crate) fn kill(&mut self, node: &str) -> Result<()> {
        self.nodes
            .remove(node)
            .with_context(|| format!("{node} does not run"))?
            .kill()?;
        let other = DATA
            .into_iter()
            .find(|n| *n != node && DATA.contains(&node));
        if let Some(other) = other.filter(|n| self.nodes.contains_key(n)) {
            process::wait("the connection's end to be noticed", PATIENCE, || {
                Ok(self.peer(other)?["connected"] != true)
            })?;
        }
        Ok(())
    }

    /// Starts a data node again and waits until both copies are attached and in sync.
    pub(crate) fn start_synced(&mut self, node: &'static str) -> Result<()> {
        self.start(node)?;
        process::wait("both copies to be attached", PATIENCE, || {
            let attached = |n| anyhow::Ok(self.peer(n)?["attached"] == true);
            Ok(attached("alpha")? && attached("beta")?)
        })
        .with_context(|| self.logs())?;
        self.wait_for("alpha", "synced")
    }

    /// How a data node sees the other one's copy; null before its own is open.
    pub(crate) fn peer(&self, node: &str) -> Result<Value> {
        Ok(self.resource(node)?["volumes"][0]["local"]["peers"][0].clone())
    }

    /// Another signal.
    pub(crate) fn signal(&self, node: &str, signal: Signal) -> Result<()> {
        self.nodes
            .get(node)
            .with_context(|| format!("{node} does not run"))?
            .signal(signal)
    }

    /// The running daemon of a node.
    pub(crate) fn daemon(&mut self, node: &str) -> Result<&mut Daemon> {
        self.nodes
            .get_mut(node)
            .with_context(|| format!("{node} does not run"))
    }

    /// An operator's command at a node.
    pub(crate) fn command(&self, node: &str, args: &[&str]) -> Result<Command> {
        let mut command = Command::new(holdfast()?);
        command
            .args(args)
            .arg("--socket")
            .arg(self.state_dir(node).join("api.sock"));
        Ok(command)
    }

    /// One that must go well.
    pub(crate) fn ok(&self, node: &str, args: &[&str]) -> Result<String> {
        process::run(&mut self.command(node, args)?).with_context(|| self.logs())
    }

    /// One that must end with this status.
    pub(crate) fn refused(&self, node: &str, args: &[&str], status: i32) -> Result<String> {
        process::fails(&mut self.command(node, args)?, status).with_context(|| self.logs())
    }

    /// How a node sees the cluster.
    pub(crate) fn status(&self, node: &str) -> Result<Value> {
        let text = process::run(&mut self.command(node, &["status", "--json"])?)?;
        serde_json::from_str(&text).context("status --json")
    }

    /// How a node sees the resource.
    pub(crate) fn resource(&self, node: &str) -> Result<Value> {
        Ok(self.status(node)?["resources"][0].clone())
    }

    /// Waits with `holdfast wait`.
    pub(crate) fn wait_for(&self, node: &str, what: &str) -> Result<()> {
        let seconds = PATIENCE.as_secs().to_string();
        self.ok(
            node,
            &["wait", RESOURCE, "--for", what, "--timeout", &seconds],
        )
        .map(|_| ())
    }

    /// The last lines of all nodes, for a message.
    pub(crate) fn logs(&self) -> String {
        let logs = DATA.into_iter().chain([WITNESS]);
        logs.map(|n| {
            format!(
                "-- {n}\n{}\n",
                process::tail(&self.path(&format!("{n}.log")))
            )
        })
        .collect()
    }

    /// The data of both replicas, without their metadata, must be equal. Nothing may run.
    pub(crate) fn replicas_are_equal(&self) -> Result<()> {
        ensure!(
            self.nodes.keys().all(|n| !DATA.contains(n)),
            "data nodes still run"
        );
        let size = usize::try_from(self.size_bytes())?;
        let read = |node| -> Result<Vec<u8>> {
            let bytes = std::fs::read(self.backing(node))?;
            ensure!(
                bytes.len() >= size,
                "the backing of {node} has {} bytes only",
                bytes.len()
            );
            Ok(bytes[..size].to_vec())
        };
        let (alpha, beta) = (read("alpha")?, read("beta")?);
        if let Some(at) = alpha.iter().zip(&beta).position(|(a, b)| a != b) {
            anyhow::bail!("the replicas differ, first at byte {at}");
        }
        Ok(())
    }
}

/// Writes a file that only its owner may read.
pub(crate) fn write_private(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text)?;
    std::fs::set_permissions(path, Permissions::from_mode(0o600))?;
    Ok(())
}
