//! Virtual IPs: the address that follows the primary.
//!
//! Invariants
//! - adding and removing are idempotent;
//! - an address made here carries a mark (address protocol [`PROTOCOL_MARK`], and an IPv4 label ending in
//!   [`LABEL_MARK`]), so that what a dead daemon left is told from what the operator configured;
//! - `127.0.0.0/8` and `::1` are local everywhere: such a VIP is accepted, and nothing is added or announced.

mod announce;
mod packet;
mod probe;
#[cfg(test)]
mod tests;

use std::io;
use std::net::IpAddr;

pub use announce::{Schedule, announce, keep_announcing};
pub use probe::{Conflict, PROBE_TIME, probe, probe_async};

use crate::netlink::{LinkRow, Netlink, NewAddress};
use crate::{Error, Result};

/// What the kernel keeps beside an address of ours (`ip addr` shows `proto 0x48`), from Linux 5.18 on.
pub const PROTOCOL_MARK: u8 = 0x48;
/// How the label of an IPv4 address of ours ends.
pub const LABEL_MARK: &str = ":hf";
/// Longest label the kernel takes, in bytes.
const LABEL_BYTES_MAX: usize = 15;

/// A virtual IP as configured.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Vip {
    /// The address.
    pub addr: IpAddr,
    /// Prefix length; absent means the single address (32 or 128), which leaves the routes alone.
    pub prefix: Option<u8>,
    /// The interface; absent means the one whose subnet contains the address.
    pub device: Option<String>,
}

impl Vip {
    /// A VIP with everything found by itself.
    pub fn new(addr: IpAddr) -> Self {
        Self {
            addr,
            prefix: None,
            device: None,
        }
    }
    /// The prefix length that is used.
    pub fn prefix(&self) -> u8 {
        self.prefix
            .unwrap_or(if self.addr.is_ipv4() { 32 } else { 128 })
    }
    /// Whether the address is local on every host, so that nothing is added or announced.
    pub fn is_loopback(&self) -> bool {
        self.addr.is_loopback()
    }
}

/// Where a VIP goes on this host, found before anything is changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The address.
    pub addr: IpAddr,
    /// Its prefix length.
    pub prefix: u8,
    /// Name of the interface.
    pub device: String,
    /// Index of the interface; zero for a loopback VIP, for which nothing is done.
    pub ifindex: u32,
}

impl Place {
    /// Nothing is added for this VIP.
    pub fn is_loopback(&self) -> bool {
        self.ifindex == 0
    }
    /// What the fencer needs to remove it; `None` for a loopback VIP.
    pub fn undo(&self) -> Option<crate::fencer::Undo> {
        (!self.is_loopback()).then_some(crate::fencer::Undo::Address {
            ip: self.addr,
            prefix: self.prefix,
            ifindex: self.ifindex,
        })
    }
}

/// An address of ours that is on an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// Address, prefix and interface.
    pub place: Place,
    /// Carries our mark; an unmarked one was configured by somebody else.
    pub marked: bool,
}

fn open() -> Result<Netlink> {
    Netlink::open().map_err(|e| Error::system("open a netlink socket", "route", e))
}

fn links(netlink: &mut Netlink) -> Result<Vec<LinkRow>> {
    let mut links = Vec::new();
    netlink
        .links(|row| links.push(row))
        .map_err(|e| Error::system("list network interfaces", "netlink", e))?;
    Ok(links)
}

/// Whether `ip` is in the subnet `net`/`prefix`.
fn contains(net: IpAddr, prefix: u8, ip: IpAddr) -> bool {
    match (net, ip) {
        (IpAddr::V4(net), IpAddr::V4(ip)) => {
            let differ = net.to_bits() ^ ip.to_bits();
            differ
                .checked_shr(32_u32.saturating_sub(prefix.into()))
                .unwrap_or(0)
                == 0
        }
        (IpAddr::V6(net), IpAddr::V6(ip)) => {
            let differ = net.to_bits() ^ ip.to_bits();
            differ
                .checked_shr(128_u32.saturating_sub(prefix.into()))
                .unwrap_or(0)
                == 0
        }
        _ => false,
    }
}

/// Finds the interface a VIP goes on; the error says what to configure.
pub fn locate(vip: &Vip) -> Result<Place> {
    let (addr, prefix) = (vip.addr, vip.prefix());
    let most = if addr.is_ipv4() { 32 } else { 128 };
    if prefix > most || prefix == 0 {
        return Err(Error::BadPrefix {
            vip: addr,
            prefix,
            most,
        });
    }
    if vip.is_loopback() {
        return Ok(Place {
            addr,
            prefix,
            device: "lo".into(),
            ifindex: 0,
        });
    }
    let mut netlink = open()?;
    let links = links(&mut netlink)?;
    if let Some(name) = &vip.device {
        let link = links.iter().find(|l| l.name_str() == name);
        let link = link.ok_or_else(|| Error::NoSuchDevice { name: name.clone() })?;
        return Ok(Place {
            addr,
            prefix,
            device: name.clone(),
            ifindex: link.index,
        });
    }
    // The narrowest subnet wins; another VIP's /32 is no subnet.
    let mut best: Option<(u8, u32)> = None;
    let mut look = |row: crate::netlink::AddressRow| {
        let ours = row.protocol == PROTOCOL_MARK || row.labelled;
        if !ours
            && row.ip != addr
            && contains(row.ip, row.prefix, addr)
            && best.is_none_or(|(p, _)| row.prefix > p)
        {
            best = Some((row.prefix, row.ifindex));
        }
    };
    netlink
        .addresses(&mut look)
        .map_err(|e| Error::system("list addresses", "netlink", e))?;
    let found = best.and_then(|(_, index)| {
        links
            .iter()
            .find(|l| l.index == index && !l.is_loopback() && l.is_up())
    });
    let link = found.ok_or(Error::NoDeviceFor { vip: addr })?;
    Ok(Place {
        addr,
        prefix,
        device: link.name_str().to_string(),
        ifindex: link.index,
    })
}

/// Puts a VIP on its interface. Returns false when it was there already (or is a loopback address).
pub fn add(place: &Place) -> Result<bool> {
    if place.is_loopback() {
        return Ok(false);
    }
    let label = format!("{}{LABEL_MARK}", place.device);
    let new = NewAddress {
        ip: place.addr,
        prefix: place.prefix,
        ifindex: place.ifindex,
        protocol: PROTOCOL_MARK,
        label: (label.len() <= LABEL_BYTES_MAX).then_some(label.as_str()),
    };
    match open()?.add_address(&new) {
        Ok(()) => Ok(true),
        Err(e) if e.raw_os_error() == Some(libc::EEXIST) => Ok(false),
        Err(e) => Err(Error::system(
            "add the virtual IP",
            format!("{} on {}", place.addr, place.device),
            e,
        )),
    }
}

/// Takes a VIP off its interface. Returns false when it was not there.
pub fn remove(place: &Place) -> Result<bool> {
    if place.is_loopback() {
        return Ok(false);
    }
    remove_raw(&mut open()?, place.addr, place.prefix, place.ifindex).map_err(|e| {
        Error::system(
            "remove the virtual IP",
            format!("{} from {}", place.addr, place.device),
            e,
        )
    })
}

/// The same for the fencer: no allocation.
pub(crate) fn remove_raw(
    netlink: &mut Netlink,
    ip: IpAddr,
    prefix: u8,
    ifindex: u32,
) -> io::Result<bool> {
    match netlink.remove_address(ip, prefix, ifindex) {
        Ok(()) => Ok(true),
        Err(e) if matches!(e.raw_os_error(), Some(libc::EADDRNOTAVAIL | libc::ENODEV)) => Ok(false),
        Err(e) => Err(e),
    }
}

/// Whether the address is on any interface of this network namespace.
pub fn is_held(addr: IpAddr) -> Result<bool> {
    Ok(addr.is_loopback()
        || held(|row| row.place.addr == addr)?
            .into_iter()
            .next()
            .is_some())
}

/// Every address that carries our mark.
pub fn list_ours() -> Result<Vec<Held>> {
    held(|row| row.marked)
}

/// Removes what an earlier life of this node left: every address equal to a configured VIP, whoever put it there,
/// because a VIP must be nowhere before a lease is held. Marked addresses that are not configured here may be another
/// cluster's on this host; they are left and reported by [`list_ours`].
pub fn remove_leftovers(configured: &[Vip]) -> Result<Vec<Held>> {
    let found = held(|row| {
        !row.place.addr.is_loopback() && configured.iter().any(|v| v.addr == row.place.addr)
    })?;
    for held in &found {
        remove(&held.place)?;
    }
    Ok(found)
}

fn held(mut wanted: impl FnMut(&Held) -> bool) -> Result<Vec<Held>> {
    let mut netlink = open()?;
    let links = links(&mut netlink)?;
    let mut rows = Vec::new();
    netlink
        .addresses(|row| rows.push(row))
        .map_err(|e| Error::system("list addresses", "netlink", e))?;
    let mut out = Vec::new();
    for row in rows {
        let device = links
            .iter()
            .find(|l| l.index == row.ifindex)
            .map_or("?", LinkRow::name_str);
        let held = Held {
            place: Place {
                addr: row.ip,
                prefix: row.prefix,
                device: device.to_string(),
                ifindex: row.ifindex,
            },
            marked: row.protocol == PROTOCOL_MARK || row.labelled,
        };
        if wanted(&held) {
            out.push(held);
        }
    }
    Ok(out)
}
