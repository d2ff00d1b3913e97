//! Where the nodes live: a machine of namespaces for each on one Ethernet segment, or addresses of the
//! loopback interface.

use super::Voice;
use crate::args::DemoMode;
use anyhow::{Context, bail, ensure};
use holdfast_host::machine::{
    Capability, Lab, Machine, Mode, Port, capability, enter_user_namespace,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::net::{IpAddr, Ipv4Addr};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

/// The nodes: two with data, and a witness. A node is its position here.
pub(super) const NODES: [&str; 3] = ["alpha", "beta", "witness"];
/// Those with data.
pub(super) const DATA: [usize; 2] = [0, 1];
/// The witness.
pub(super) const WITNESS: usize = 2;
/// Length of the network prefix of all addresses, in bits.
pub(super) const PREFIX: u8 = 24;

/// How long the end of a killed daemon is waited for, and how often it is looked at.
const END_TIME_MAX: Duration = Duration::from_secs(5);
const END_LOOK: Duration = Duration::from_millis(2);
/// Last byte of an address: of the machine with the bridge, of the first node, of the virtual IP.
const HOST_LAN: u8 = 1;
const HOST_NODE: u8 = 11;
const HOST_VIP: u8 = 100;
/// The network of the machines, which nobody else can see.
const LAB_NETWORK: [u8; 3] = [10, 77, 0];

/// Looks what kind of site can be had here, says so, and becomes root of a user namespace if that is needed.
pub(super) fn choose(asked: Option<DemoMode>, voice: Voice) -> anyhow::Result<Capability> {
    let mut found = match asked {
        None => capability(),
        Some(DemoMode::Loopback) => as_asked(Mode::Loopback, false),
        Some(DemoMode::Userns) => as_asked(Mode::Userns, true),
        Some(DemoMode::Root) => {
            let found = capability();
            ensure!(
                found.mode == Mode::Root,
                "--mode root is not possible: {}",
                found.reason
            );
            found
        }
    };
    if found.must_enter
        && let Err(error) = enter_user_namespace()
    {
        ensure!(asked.is_none(), "--mode userns is not possible: {error}");
        found = Capability {
            mode: Mode::Loopback,
            reason: error.to_string(),
            must_enter: false,
        };
    }
    let what = match found.mode {
        Mode::Root => {
            "root: a machine of namespaces per node, a real block device (FUSE and loop) with ext4 on it"
        }
        Mode::Userns => {
            "user namespaces: a machine of namespaces per node, the volume through its NBD socket"
        }
        Mode::Loopback => "loopback: an address per node, the volume through its NBD socket",
    };
    voice.say(&format!("mode {what}\n     because: {}", found.reason));
    Ok(found)
}

fn as_asked(mode: Mode, must_enter: bool) -> Capability {
    Capability {
        mode,
        reason: "it was asked for".into(),
        must_enter,
    }
}

#[derive(Debug)]
struct Plugged {
    machine: Machine,
    port: Port,
}

/// The site.
#[derive(Debug)]
pub(super) struct Site {
    mode: Mode,
    network: [u8; 3],
    /// Before the lab: a machine is unplugged before its segment goes.
    machines: [Option<Plugged>; NODES.len()],
    lab: Option<Lab>,
}

impl Site {
    /// Makes it.
    pub(super) fn new(mode: Mode) -> anyhow::Result<Self> {
        let network = match mode {
            Mode::Root | Mode::Userns => LAB_NETWORK,
            Mode::Loopback => {
                // A network of 127/8 for this run alone, so that several run side by side; not one that distributions use.
                let mut random = [0; 2];
                getrandom::fill(&mut random)
                    .map_err(|e| anyhow::anyhow!("no random numbers: {e}"))?;
                [127, 2 + random[0] % 250, random[1]]
            }
        };
        let mut site = Self {
            mode,
            network,
            machines: [None, None, None],
            lab: None,
        };
        if mode != Mode::Loopback {
            site.lab = Some(Lab::new(site.ip(HOST_LAN), PREFIX)?);
            for node in 0..NODES.len() {
                site.power_on(node)?;
            }
        }
        Ok(site)
    }

    fn ip(&self, host: u8) -> IpAddr {
        let [a, b, c] = self.network;
        Ipv4Addr::new(a, b, c, host).into()
    }

    /// What kind it is.
    pub(super) fn mode(&self) -> Mode {
        self.mode
    }
    /// Address of a node.
    pub(super) fn address(&self, node: usize) -> IpAddr {
        self.ip(HOST_NODE + node as u8)
    }
    /// The address that follows the primary.
    pub(super) fn vip(&self) -> IpAddr {
        self.ip(HOST_VIP)
    }
    /// The machine of a node, if it has one.
    pub(super) fn machine(&self, node: usize) -> Option<&Machine> {
        self.machines[node].as_ref().map(|m| &m.machine)
    }
    /// The machine where clients run, if there is one.
    pub(super) fn lan(&self) -> Option<&Machine> {
        self.lab.as_ref().map(Lab::lan)
    }

    /// Starts a command on a node.
    pub(super) fn spawn(&self, node: usize, mut command: Command) -> anyhow::Result<Child> {
        match (&self.lab, &self.machines[node]) {
            (None, _) => Ok(command
                .spawn()
                .with_context(|| format!("starting {command:?}"))?),
            (Some(_), Some(plugged)) => Ok(plugged.machine.spawn(command)?),
            (Some(_), None) => bail!("machine {} is switched off", NODES[node]),
        }
    }

    /// Runs something where clients are. Threads and sockets it makes stay there.
    pub(super) fn in_lan<T: Send>(&self, act: impl FnOnce() -> T + Send) -> anyhow::Result<T> {
        Ok(match &self.lab {
            Some(lab) => lab.lan().in_network(act)?,
            None => act(),
        })
    }

    /// Pulls a node's cable. False: it has none.
    pub(super) fn cut(&self, node: usize) -> anyhow::Result<bool> {
        self.cable(node, Lab::cut)
    }
    /// Plugs it in again. False: it has none.
    pub(super) fn heal(&self, node: usize) -> anyhow::Result<bool> {
        self.cable(node, Lab::heal)
    }
    fn cable(
        &self,
        node: usize,
        act: fn(&Lab, &Port) -> holdfast_host::Result<()>,
    ) -> anyhow::Result<bool> {
        match (&self.lab, &self.machines[node]) {
            (Some(lab), Some(plugged)) => {
                act(lab, &plugged.port)?;
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// Cuts a node's power: everything in its machine dies at once, and then `daemon` is waited for,
    /// without which the machine could not end.
    pub(super) fn power_off(&mut self, node: usize, daemon: Option<&mut Child>) {
        let machine = self.machines[node].take();
        if let Some(plugged) = &machine
            && let Ok(pid) = i32::try_from(plugged.machine.pid())
        {
            // The machine still holds its first process: the number is its own.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        if let Some(daemon) = daemon {
            // Without a machine this is all; with one it is dying already.
            let _ = daemon.kill();
            let end = Instant::now() + END_TIME_MAX;
            // A limit, in case the kernel keeps it waiting for a disk.
            while matches!(daemon.try_wait(), Ok(None)) && Instant::now() < end {
                std::thread::sleep(END_LOOK);
            }
        }
    }

    /// Switches a node's machine on, if this site has machines.
    pub(super) fn power_on(&mut self, node: usize) -> anyhow::Result<()> {
        let address = self.address(node);
        let Some(lab) = &mut self.lab else {
            return Ok(());
        };
        let machine = Machine::new(NODES[node])?;
        let port = lab.attach(&machine, address, PREFIX)?;
        self.machines[node] = Some(Plugged { machine, port });
        Ok(())
    }
}
