//! A cluster of three daemons in a folder of its own, and everything that is done to them.

use super::files::Files;
use super::patience::{self, Look};
use super::signals::Cancel;
use super::site::{DATA, NODES, Site, WITNESS};
use super::workload::Service;
use crate::args::NBD_VARIABLE;
use crate::client::Client;
use crate::failure::Failure;
use anyhow::{Context, bail, ensure};
use holdfast_config::Profile;
use holdfast_host::machine::Mode;
use holdfast_node::api_types::{
    API_SOCKET, Answer, ClusterStatus, Phase, Progress, Request, ResourceInfo, TimelineEntry,
    VolumeInfo,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// The resource.
pub(super) const RESOURCE: &str = "data";
/// Its volume.
pub(super) const VOLUME: &str = "main";
/// Bytes of the volume.
pub(super) const VOLUME_BYTES: u64 = 1 << 30;
/// The volume that nothing is mounted on.
pub(super) const RAW: &str = "bare";
/// Its bytes.
pub(super) const RAW_BYTES: u64 = 64 << 20;
/// TCP port of the service.
pub(super) const PORT: u16 = 7100;

/// How long a short question may take.
const ASK_TIME_MAX: Duration = Duration::from_secs(5);
/// How long a node may take to answer at its socket for the first time.
const START_TIME_MAX: Duration = Duration::from_secs(20);
/// How long the nodes may take to find each other.
const QUORUM_TIME_MAX: Duration = Duration::from_secs(30);
/// How long a creation or a switch may take.
const CHANGE_TIME_MAX: Duration = Duration::from_secs(90);
/// How long an orderly end of a daemon may take.
const STOP_TIME_MAX: Duration = Duration::from_secs(60);
/// How long what daemons leave behind is waited for after they were killed.
const LEAVINGS_TIME_MAX: Duration = Duration::from_secs(4);

/// What differs between clusters.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    /// Timings.
    pub(super) profile: Profile,
    /// The daemons' stores lose what was not flushed when they die.
    pub(super) lost_cache: bool,
    /// There is a second volume, with nothing mounted on it.
    pub(super) raw: bool,
}

/// The cluster. Dropped: killed, and everything it made removed.
#[derive(Debug)]
pub(super) struct Cluster {
    plan: Plan,
    service: Service,
    daemons: [Option<Child>; NODES.len()],
    site: Site,
    files: Files,
    /// Loop devices that were seen: how the kernel calls their files cannot be read from outside the
    /// machines, so they are known by their names.
    loops: RefCell<BTreeSet<PathBuf>>,
}

impl Cluster {
    /// Makes the folder and the files in it; nothing runs yet.
    pub(super) fn new(
        site: Site,
        plan: Plan,
        service: impl FnOnce(&Site, &Path) -> anyhow::Result<Service>,
    ) -> anyhow::Result<Self> {
        let files = Files::new()?;
        let service = service(&site, &files.mount())?;
        files.write(&site, &plan, &service)?;
        Ok(Self {
            plan,
            service,
            daemons: [None, None, None],
            site,
            files,
            loops: RefCell::default(),
        })
    }

    /// Its volumes, and the bytes of each.
    pub(super) fn volumes(&self) -> Vec<(&'static str, u64)> {
        let mut all = vec![(VOLUME, VOLUME_BYTES)];
        if self.plan.raw {
            all.push((RAW, RAW_BYTES));
        }
        all
    }
    /// Its folder.
    pub(super) fn files(&self) -> &Files {
        &self.files
    }
    /// What the service is.
    pub(super) fn service(&self) -> &str {
        &self.service.what
    }
    /// Where clients reach the service.
    pub(super) fn service_address(&self) -> SocketAddr {
        (self.site.vip(), PORT).into()
    }
    /// Where the nodes live.
    pub(super) fn site(&self) -> &Site {
        &self.site
    }

    // ---- daemons

    /// Starts a daemon and waits until it answers.
    pub(super) fn start(&mut self, node: usize, cancel: &Cancel) -> anyhow::Result<()> {
        let name = NODES[node];
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.files.log(node))?;
        let mut command = Command::new(program()?);
        command
            .args(["node", "--name", name, "--config"])
            .arg(self.files.config())
            .env_remove("HOLDFAST_CONFIG")
            .env_remove("HOLDFAST_NAME")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .current_dir("/")
            // A terminal's signals are for the demonstration alone.
            .process_group(0);
        if self.site.mode() != Mode::Root {
            // Inherited by its service.
            command.env(NBD_VARIABLE, self.files.nbd_socket(node));
        }
        if self.site.mode() == Mode::Loopback {
            command.arg("--allow-faults");
            command.args(["--parent", &std::process::id().to_string()]);
        }
        if self.plan.lost_cache {
            // A machine that comes back after a loss of power has booted anew.
            command.args(["--boot-id", &holdfast_node::clock::random_u64().to_string()]);
            if node != WITNESS {
                command.args(["--fault-plan", "lost-cache"]);
            }
        }
        self.daemons[node] = Some(self.site.spawn(node, command)?);
        let answers = patience::until(cancel, &format!("{name} answers"), START_TIME_MAX, || {
            if let Some(status) = self.ended(node)? {
                bail!("{name} has ended ({status})");
            }
            Ok(self.status(node).map(|_| ()).map_err(|e| e.to_string()))
        });
        answers.with_context(|| format!("starting {name}"))
    }

    fn ended(&mut self, node: usize) -> anyhow::Result<Option<std::process::ExitStatus>> {
        match &mut self.daemons[node] {
            Some(child) => Ok(child.try_wait()?),
            None => Ok(None),
        }
    }

    /// Sends a daemon a signal.
    pub(super) fn signal(&self, node: usize, signal: Signal) -> anyhow::Result<()> {
        let child = self.daemons[node]
            .as_ref()
            .with_context(|| format!("{} does not run", NODES[node]))?;
        // Not waited for yet: the number is its own.
        kill(Pid::from_raw(i32::try_from(child.id())?), signal)
            .with_context(|| format!("sending {signal} to {}", NODES[node]))
    }

    /// SIGKILL for a daemon, and only for it.
    pub(super) fn kill(&mut self, node: usize) -> anyhow::Result<()> {
        let mut child = self.daemons[node]
            .take()
            .with_context(|| format!("{} does not run", NODES[node]))?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// Cuts a node's power.
    pub(super) fn power_off(&mut self, node: usize) {
        let mut daemon = self.daemons[node].take();
        self.site.power_off(node, daemon.as_mut());
    }

    /// Switches its machine on again; the daemon is to be started.
    pub(super) fn power_on(&mut self, node: usize) -> anyhow::Result<()> {
        self.site.power_on(node)
    }

    /// Cuts a node off from everybody.
    pub(super) fn isolate(&self, node: usize, on: bool) -> anyhow::Result<()> {
        let by_cable = if on {
            self.site.cut(node)?
        } else {
            self.site.heal(node)?
        };
        if !by_cable {
            self.ask(node, &Request::Isolate { on })?;
        }
        Ok(())
    }

    /// Stops all daemons in order: the resource first, so that nothing is handed over.
    pub(super) fn stop_all(&mut self, cancel: &Cancel) -> anyhow::Result<()> {
        let demote = Request::Demote {
            resource: RESOURCE.into(),
        };
        self.ask_long(DATA[0], "the service stops", demote, cancel)?;
        for (node, name) in NODES.into_iter().enumerate() {
            self.ask(node, &Request::Shutdown)?;
            let what = format!("{name} ends");
            let status = patience::until(cancel, &what, STOP_TIME_MAX, || {
                Ok(self.ended(node)?.ok_or_else(String::new))
            })?;
            ensure!(status.success(), "{name} ended with {status}");
            self.daemons[node] = None;
        }
        Ok(())
    }

    // ---- questions

    fn client(&self, node: usize, timeout: Duration) -> Client {
        Client::at(self.files.state_dir(node).join(API_SOCKET)).within(timeout)
    }

    /// Asks a node something short.
    pub(super) fn ask(&self, node: usize, request: &Request) -> Result<Answer, Failure> {
        self.client(node, ASK_TIME_MAX).ask(request, |_| {})
    }

    /// Asks a node something that may take long.
    pub(super) fn ask_long(
        &self,
        node: usize,
        what: &str,
        request: Request,
        cancel: &Cancel,
    ) -> anyhow::Result<Answer> {
        let client = self.client(node, CHANGE_TIME_MAX);
        patience::run(cancel, what, CHANGE_TIME_MAX, move || {
            Ok(client.ask(&request, |_: &Progress| {})?)
        })
        .with_context(|| what.to_owned())
    }

    /// How a node sees things.
    pub(super) fn status(&self, node: usize) -> Result<ClusterStatus, Failure> {
        self.client(node, ASK_TIME_MAX).status()
    }

    /// How a node sees the resource.
    pub(super) fn resource(&self, node: usize) -> anyhow::Result<ResourceInfo> {
        let status = self.status(node)?;
        let found = status.resources.into_iter().find(|r| r.name == RESOURCE);
        found.with_context(|| format!("{} knows no resource {RESOURCE}", NODES[node]))
    }

    /// What happened on a node after entry `after`.
    pub(super) fn timeline(&self, node: usize, after: u64) -> anyhow::Result<Vec<TimelineEntry>> {
        match self.ask(node, &Request::Timeline { after })? {
            Answer::Timeline(entries) => Ok(entries),
            other => Err(crate::client::unexpected(&other).into()),
        }
    }

    // ---- waits

    /// Waits until all nodes hear a majority.
    pub(super) fn wait_for_quorum(&self, cancel: &Cancel) -> anyhow::Result<()> {
        patience::until(cancel, "the nodes find each other", QUORUM_TIME_MAX, || {
            for (node, name) in NODES.into_iter().enumerate() {
                let status = self.status(node)?;
                let all = status.nodes.iter().all(|n| n.online);
                if !(status.quorum && status.leader.is_some() && all) {
                    return Ok(Err(format!("{name}: {}", because(&status.why))));
                }
            }
            Ok(Ok(()))
        })
    }

    /// Makes the volume, and waits until it is served.
    pub(super) fn create(&self, cancel: &Cancel) -> anyhow::Result<usize> {
        let create = Request::Create {
            resource: RESOURCE.into(),
        };
        self.ask_long(DATA[0], "the volume is created", create, cancel)?;
        self.wait_for_primary(&DATA, CHANGE_TIME_MAX, cancel)
    }

    /// Waits until one of these nodes serves the resource with everything up; which.
    pub(super) fn wait_for_primary(
        &self,
        among: &[usize],
        limit: Duration,
        cancel: &Cancel,
    ) -> anyhow::Result<usize> {
        let names: Vec<&str> = among.iter().map(|n| NODES[*n]).collect();
        let what = format!("{} serves everything", names.join(" or "));
        patience::until(cancel, &what, limit, || {
            let mut instead = String::new();
            for node in among {
                match self.resource(*node) {
                    Ok(r) if r.here == Some(Phase::Primary) => {
                        self.note_loops(&r);
                        return Ok(Ok(*node));
                    }
                    Ok(r) => instead = because(&r.why),
                    Err(error) => instead = error.to_string(),
                }
            }
            Ok(Err(instead))
        })
    }

    fn note_loops(&self, resource: &ResourceInfo) {
        let ways = resource.volumes.iter().flat_map(|v| &v.frontends);
        let loops = ways.filter(|way| way.kind == "loop");
        self.loops
            .borrow_mut()
            .extend(loops.map(|way| way.path.clone()));
    }

    /// Which node serves everything at this moment, if one says so.
    pub(super) fn serves_now(&self) -> Option<usize> {
        let serves = |node: &usize| {
            self.resource(*node)
                .is_ok_and(|r| r.here == Some(Phase::Primary))
        };
        DATA.into_iter().find(serves)
    }

    /// Waits until `node`, the primary, sees both copies in sync and connected; its volume then.
    pub(super) fn wait_for_sync(
        &self,
        node: usize,
        limit: Duration,
        cancel: &Cancel,
    ) -> anyhow::Result<VolumeInfo> {
        patience::until(cancel, "both copies are in sync", limit, || {
            let resource = self.resource(node)?;
            let why = because(&resource.why);
            Ok(synced(resource).ok_or(why))
        })
    }

    // ---- what is left

    fn left_behind(&self) -> Look<()> {
        let attached = |device: &&PathBuf| {
            let name = device.file_name().unwrap_or_default();
            let file = Path::new("/sys/block").join(name).join("loop/backing_file");
            file.exists()
        };
        if let Some(device) = self.loops.borrow().iter().find(attached) {
            return Err(format!("{} is attached", device.display()));
        }
        if self.site.mode() == Mode::Loopback
            && let Err(error) = TcpListener::bind(self.service_address())
        {
            return Err(format!("the service ends ({error})"));
        }
        Ok(())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in 0..NODES.len() {
            self.power_off(node);
        }
        // The daemons' fencers, or the end of their machines, take away the rest.
        let waited = patience::until(
            &Cancel::default(),
            "what the daemons made goes",
            LEAVINGS_TIME_MAX,
            || Ok(self.left_behind()),
        );
        if let Err(error) = waited {
            eprintln!("holdfast demo: {error}");
        }
    }
}

/// The volume, if all of it is as it should be.
fn synced(resource: ResourceInfo) -> Option<VolumeInfo> {
    let whole = |volume: &VolumeInfo| {
        let connected = volume
            .local
            .as_ref()
            .is_some_and(|l| l.peers.iter().all(|p| p.attached));
        volume.in_sync.len() == DATA.len() && connected
    };
    let all = resource.volumes.iter().all(whole);
    resource.volumes.into_iter().next().filter(|_| all)
}

fn because(why: &[String]) -> String {
    why.first().cloned().unwrap_or_default()
}

/// This program.
pub(super) fn program() -> anyhow::Result<PathBuf> {
    std::env::current_exe().context("where this program is")
}
