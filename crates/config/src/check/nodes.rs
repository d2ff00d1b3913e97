//! The nodes: names, numbers, addresses, ports, voters.

use super::name;
use crate::error::Collector;
use crate::model::Node;
use crate::raw;
use holdfast_types::{NODES_MAX, NodeId};
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use toml::Spanned;

/// TCP port of the control plane unless said otherwise.
const CONTROL_PORT: u16 = 7780;
/// TCP port of the peer lanes unless said otherwise.
const DATA_PORT: u16 = 7790;
/// State directory unless said otherwise.
const STATE_DIR: &str = "/var/lib/holdfast";
/// Fewest voters that survive a loss.
const VOTERS_MIN: usize = 3;
/// Most voters.
const VOTERS_MAX: usize = 7;

/// The nodes, as far as they are sound.
#[derive(Debug)]
pub(super) struct Nodes {
    /// Ascending by number.
    pub(super) all: Vec<Node>,
}

impl Nodes {
    pub(super) fn by_name(&self, name: &str) -> Option<&Node> {
        self.all.iter().find(|n| n.name == name)
    }
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.all.iter().map(|n| n.name.as_str())
    }
}

pub(super) fn nodes(raw: &[Spanned<raw::Node>], problems: &mut Collector<'_>) -> Nodes {
    let mut all: Vec<Node> = Vec::new();
    for entry in raw {
        let node = node(entry.get_ref(), problems);
        let raw = entry.get_ref();
        if let Some(other) = all.iter().find(|n| n.name == node.name) {
            problems.at(
                raw.name.span(),
                format!(
                    "two nodes are called `{}` (numbers {} and {})",
                    node.name, other.id.0, node.id.0
                ),
                "give each node its own name",
            );
        }
        if let Some(other) = all.iter().find(|n| n.id == node.id) {
            problems.at(
                raw.id.span(),
                format!(
                    "the nodes `{}` and `{}` have the same number {}",
                    other.name, node.name, node.id.0
                ),
                "give each node its own id from 1 to 7",
            );
        }
        if let Some(other) = all.iter().find(|n| n.address == node.address) {
            problems.at(
                raw.address.span(),
                format!(
                    "the nodes `{}` and `{}` have the same address {}",
                    other.name, node.name, node.address
                ),
                "each node is a machine of its own: give its own address",
            );
        }
        all.push(node);
    }
    voters(raw, problems);
    all.sort_by_key(|n| n.id);
    Nodes { all }
}

fn voters(raw: &[Spanned<raw::Node>], problems: &mut Collector<'_>) {
    let count = raw.len();
    let Some(last) = raw.last() else {
        problems.whole(
            "there are no nodes",
            "add three [[node]] tables: two data nodes and a witness",
        );
        return;
    };
    if count.is_multiple_of(2) {
        problems.at(
            last.span(),
            format!(
                "{count} voters: an even number survives no more losses than {}",
                count - 1
            ),
            "add a [[node]] with witness = true on a third machine (3, 5 or 7 voters in all)",
        );
    } else if count < VOTERS_MIN {
        problems.at(
            last.span(),
            "one voter survives no loss",
            "add a second data node, and a [[node]] with witness = true on a third machine",
        );
    } else if count > VOTERS_MAX {
        problems.at(
            last.span(),
            format!("{count} voters are too many"),
            "keep 3, 5 or 7 nodes",
        );
    }
}

fn node(raw: &raw::Node, problems: &mut Collector<'_>) -> Node {
    name(&raw.name, "node", problems);
    let id = *raw.id.get_ref();
    if id == 0 || id >= u64::from(NODES_MAX) {
        problems.at(
            raw.id.span(),
            format!("{id} is not a number for a node"),
            "a number from 1 to 7",
        );
    }
    let address = address(&raw.address, problems);
    let control_port = port(raw.control_port.as_ref(), CONTROL_PORT, problems);
    let data_port = port(raw.data_port.as_ref(), DATA_PORT, problems);
    if control_port == data_port {
        let place = raw
            .data_port
            .as_ref()
            .or(raw.control_port.as_ref())
            .map_or(raw.name.span(), Spanned::span);
        problems.at(
            place,
            format!("control_port and data_port are both {data_port}"),
            "two different ports",
        );
    }
    let state_dir = PathBuf::from(raw.state_dir.as_ref().map_or(STATE_DIR, |s| s.get_ref()));
    if let Some(given) = &raw.state_dir
        && !state_dir.is_absolute()
    {
        problems.at(
            given.span(),
            format!(
                "the state directory `{}` is not an absolute path",
                state_dir.display()
            ),
            format!("for example {STATE_DIR}"),
        );
    }
    Node {
        name: raw.name.get_ref().clone(),
        id: NodeId(u8::try_from(id).unwrap_or(u8::MAX)),
        address,
        control_port,
        data_port,
        witness: raw.witness,
        state_dir,
    }
}

fn address(raw: &Spanned<String>, problems: &mut Collector<'_>) -> IpAddr {
    let text = raw.get_ref();
    match text.parse::<IpAddr>() {
        Ok(ip)
            if ip.is_unspecified()
                || ip.is_multicast()
                || ip == IpAddr::V4(Ipv4Addr::BROADCAST) =>
        {
            problems.at(
                raw.span(),
                format!("{ip} is not the address of one machine"),
                "the address the other nodes reach it at",
            );
            ip
        }
        Ok(ip) => ip,
        Err(_) => {
            problems.at(
                raw.span(),
                format!("`{text}` is not an IP address"),
                "an address like 10.0.0.1 or fd00::1, not a host name: a cluster must not depend on DNS",
            );
            IpAddr::V4(Ipv4Addr::UNSPECIFIED)
        }
    }
}

fn port(raw: Option<&Spanned<u64>>, default: u16, problems: &mut Collector<'_>) -> u16 {
    let Some(given) = raw else { return default };
    match u16::try_from(*given.get_ref()) {
        Ok(port) if port > 0 => port,
        _ => {
            problems.at(
                given.span(),
                format!("{} is not a port", given.get_ref()),
                "a number from 1 to 65535",
            );
            default
        }
    }
}
