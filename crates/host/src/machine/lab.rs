//! A segment of Ethernet: one machine with a bridge, others plugged into it.
//!
//! The bridge has an address, so that clients outside the cluster live in the bridge's machine. Cutting a link takes
//! down the bridge's end of the cable: the machine sees its carrier go, as with a pulled plug.

use std::net::IpAddr;

use super::Machine;
use crate::netlink::{Netlink, NewAddress};
use crate::{Error, Result};

/// Name of the bridge.
const BRIDGE: &str = "lan0";
/// Name of a machine's interface.
const INTERFACE: &str = "eth0";

/// The segment.
#[derive(Debug)]
pub struct Lab {
    lan: Machine,
    ports: u32,
}

/// A cable between the bridge and a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    name: String,
}

fn fail(what: &'static str, place: &str) -> impl FnOnce(std::io::Error) -> Error {
    let place = place.to_string();
    move |e| Error::system(what, place, e)
}

impl Lab {
    /// Lays the segment; its bridge has `addr`/`prefix`.
    pub fn new(addr: IpAddr, prefix: u8) -> Result<Self> {
        let lan = Machine::new("lan")?;
        lan.in_network(|| {
            let mut netlink = Netlink::open()?;
            netlink.add_bridge(BRIDGE)?;
            give_address(&mut netlink, BRIDGE, addr, prefix)
        })?
        .map_err(fail("make a bridge", BRIDGE))?;
        Ok(Self { lan, ports: 0 })
    }

    /// The machine the bridge is in: clients run here.
    pub fn lan(&self) -> &Machine {
        &self.lan
    }

    /// Plugs a machine in, with `addr`/`prefix` on its interface `eth0`. Works once per machine.
    pub fn attach(&mut self, machine: &Machine, addr: IpAddr, prefix: u8) -> Result<Port> {
        self.ports += 1;
        let port = Port {
            name: format!("port{}", self.ports),
        };
        let there = machine.network_fd();
        let name = port.name.as_str();
        self.lan
            .in_network(|| {
                let mut netlink = Netlink::open()?;
                netlink.add_veth(name, INTERFACE, there)?;
                let bridge = index_of(&mut netlink, BRIDGE)?;
                let own = index_of(&mut netlink, name)?;
                netlink.set_master(own, bridge)?;
                netlink.set_up(own, true)
            })?
            .map_err(fail("plug a machine in", machine.name()))?;
        machine
            .in_network(|| give_address(&mut Netlink::open()?, INTERFACE, addr, prefix))?
            .map_err(fail("give a machine its address", machine.name()))?;
        Ok(port)
    }

    /// Pulls the cable.
    pub fn cut(&self, port: &Port) -> Result<()> {
        self.set(port, false)
    }

    /// Plugs it in again.
    pub fn heal(&self, port: &Port) -> Result<()> {
        self.set(port, true)
    }

    fn set(&self, port: &Port, up: bool) -> Result<()> {
        self.lan
            .in_network(|| {
                let mut netlink = Netlink::open()?;
                let index = index_of(&mut netlink, &port.name)?;
                netlink.set_up(index, up)
            })?
            .map_err(fail("switch a link", &port.name))
    }
}

fn index_of(netlink: &mut Netlink, name: &str) -> std::io::Result<u32> {
    netlink
        .link(name)?
        .map(|l| l.index)
        .ok_or_else(|| std::io::Error::from_raw_os_error(libc::ENODEV))
}

fn give_address(netlink: &mut Netlink, name: &str, ip: IpAddr, prefix: u8) -> std::io::Result<()> {
    let ifindex = index_of(netlink, name)?;
    netlink.set_up(ifindex, true)?;
    netlink.add_address(&NewAddress {
        ip,
        prefix,
        ifindex,
        protocol: 0,
        label: None,
    })
}
