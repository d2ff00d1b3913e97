//! A cluster as the rest of the program sees it.

use crate::{Secret, Timing};
use holdfast_types::{NodeId, NodeSet};
use serde::Serialize;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

/// A sound configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The file it came from.
    pub file: PathBuf,
    /// Name of the cluster.
    pub cluster: String,
    /// What its nodes share.
    pub secret: Secret,
    /// Profile and overrides put together.
    pub timing: Timing,
    /// Ascending by number.
    pub nodes: Vec<Node>,
    /// In the order of the file.
    pub resources: Vec<Resource>,
}

/// A voter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Node {
    /// Its name, unique.
    pub name: String,
    /// Its number, unique, 1 to 7.
    pub id: NodeId,
    /// Where the others reach it, unique.
    pub address: IpAddr,
    /// TCP port of the control plane.
    pub control_port: u16,
    /// TCP port of the peer lanes.
    pub data_port: u16,
    /// Votes, holds no data.
    pub witness: bool,
    /// Where it keeps control state, sockets and logs; absolute.
    pub state_dir: PathBuf,
}

impl Node {
    /// Where its control plane listens.
    pub fn control_address(&self) -> SocketAddr {
        SocketAddr::new(self.address, self.control_port)
    }
    /// Where its peer lanes listen.
    pub fn data_address(&self) -> SocketAddr {
        SocketAddr::new(self.address, self.data_port)
    }
}

/// What fails over together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Resource {
    /// Its name, unique.
    pub name: String,
    /// The data nodes that hold replicas of its volumes.
    pub nodes: NodeSet,
    /// Which of them should be primary if there is a choice.
    pub preferred: Option<NodeId>,
    /// What happens to I/O without a majority.
    pub on_no_quorum: OnNoQuorum,
    /// What happens when every member of the in-sync set stopped uncleanly.
    pub unclean_promotion: UncleanPromotion,
    /// At least one.
    pub volumes: Vec<Volume>,
    /// In the order they are mounted.
    pub mounts: Vec<Mount>,
    /// In the order they are started.
    pub services: Vec<Service>,
    /// Addresses that follow the primary.
    pub vips: Vec<Vip>,
}

/// What happens to I/O without a majority.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OnNoQuorum {
    /// It waits.
    #[default]
    Hold,
    /// It fails.
    Fail,
}

/// What happens when every member of the in-sync set stopped uncleanly (power failure everywhere).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum UncleanPromotion {
    /// The operator decides.
    #[default]
    Wait,
    /// A member is promoted once all are known to be unclean.
    Allow,
}

/// When a write is acknowledged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub enum Acknowledge {
    /// When it is on the disk of every member of the in-sync set.
    #[default]
    C,
}

/// A replicated block device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Volume {
    /// Its name, unique in the resource.
    pub name: String,
    /// What the application sees; whole blocks.
    pub size_bytes: u64,
    /// File or block device under each replica.
    pub backing: BTreeMap<NodeId, PathBuf>,
    /// When a write is acknowledged.
    pub acknowledge: Acknowledge,
    /// Where NBD clients connect.
    pub nbd: Nbd,
    /// How it becomes a block device.
    pub frontend: Frontend,
    /// Program and arguments, run on the primary when the device has grown. Empty: what the mounted filesystem needs.
    pub on_resize: Vec<String>,
    /// Bounds of its resync, as long as the operator says nothing else at run time.
    pub resync: Resync,
    /// When its copies are compared, without being asked.
    pub scrub: Option<Scrub>,
}

/// Bounds of resync, in bytes per second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Resync {
    /// It goes on at least this fast beside the application. `None`: a few MiB per second.
    pub min: Option<u64>,
    /// It never goes faster. `None`: as fast as it can.
    pub max: Option<u64>,
}

/// Comparisons by the calendar.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Scrub {
    /// From the beginning of one to the beginning of the next, in milliseconds.
    pub every_ms: u64,
    /// Bytes per second at the most.
    pub max_rate: Option<u64>,
    /// Repair what the majority of the in-sync copies says is wrong.
    pub repair: bool,
}

/// Where NBD clients connect.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Nbd {
    /// Unix socket; relative to the node's state directory. `None`: see [`Volume::nbd_socket`].
    pub unix: Option<PathBuf>,
    /// TCP as well, if wanted.
    pub tcp: Option<SocketAddr>,
}

/// How a volume becomes a block device on the primary.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Frontend {
    /// The best this kernel has.
    #[default]
    Auto,
    /// Kernel NBD.
    Nbd,
    /// A FUSE file under a loop device.
    Fuse,
    /// Not at all: the NBD socket is all there is.
    None,
}

/// A file system on a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Mount {
    /// Of this resource.
    pub volume: String,
    /// Where; absolute.
    pub path: PathBuf,
    /// For example `ext4`.
    pub fstype: String,
    /// As for mount -o; may be empty.
    pub options: String,
    /// Make a file system first if the volume holds none.
    pub format_blank: bool,
}

/// A program that runs on the primary.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Service {
    /// Its name, unique in the resource.
    pub name: String,
    /// Program and arguments; the program is an absolute path or found in PATH.
    pub command: Vec<String>,
    /// When it counts as up. `None`: once started.
    pub ready: Option<Ready>,
    /// How long it may take to stop before it is killed.
    pub stop_timeout_ms: u64,
}

/// When a service counts as up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Ready {
    /// When this address accepts a connection.
    Tcp(SocketAddr),
}

/// A virtual IP: an address that follows the primary.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Vip {
    /// The address.
    pub address: IpAddr,
    /// Length of its network prefix, in bits.
    pub prefix: u8,
    /// Network interface. `None`: the one with an address in the same network.
    pub device: Option<String>,
}

impl Config {
    /// The node with this name.
    pub fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.iter().find(|n| n.name == name)
    }
    /// The node with this number.
    pub fn node_by_id(&self, id: NodeId) -> Option<&Node> {
        self.nodes.iter().find(|n| n.id == id)
    }
    /// The resource with this name.
    pub fn resource(&self, name: &str) -> Option<&Resource> {
        self.resources.iter().find(|r| r.name == name)
    }
    /// All voters: every node.
    pub fn voters(&self) -> NodeSet {
        self.nodes.iter().map(|n| n.id).collect()
    }
}

impl Resource {
    /// The volume with this name.
    pub fn volume(&self, name: &str) -> Option<&Volume> {
        self.volumes.iter().find(|v| v.name == name)
    }
}

impl Volume {
    /// The unix socket where `node` offers this volume of `resource` to NBD clients.
    pub fn nbd_socket(&self, resource: &str, node: &Node) -> PathBuf {
        match &self.nbd.unix {
            Some(path) => node.state_dir.join(path),
            None => node.state_dir.join(format!("{resource}-{}.nbd", self.name)),
        }
    }
}
