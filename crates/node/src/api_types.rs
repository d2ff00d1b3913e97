//! What is said on a node's API socket (`STATE_DIR/api.sock`), between the daemon and any client.
//!
//! One connection, one request: the client writes a [`Request`] as one line of JSON; the daemon
//! answers with lines of JSON, each a [`Reply`]: any number of `{"progress": ..}`, then exactly one
//! `{"ok": ..}` or `{"error": ..}`, then it closes. A client that goes away cancels nothing.
//!
//! Invariants
//! - no field carries a secret;
//! - nodes are named by their names; numbers appear only inside the replicator's own [`LocalStatus`];
//! - fields are only ever added: a client ignores what it does not know.

use holdfast_types::{DiskState, Epoch, Gen, Role};
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use std::path::PathBuf;

/// How the replicator of one volume sees itself and its peers.
pub use holdfast_replicator::Status as LocalStatus;

/// Name of the socket in the state directory.
pub const API_SOCKET: &str = "api.sock";
/// Longest line either side may send, in bytes.
pub const LINE_BYTES_MAX: usize = 4 << 20;

/// What a client may ask.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
pub enum Request {
    /// How things are. Answered by [`Answer::Status`].
    Status,
    /// Make the asked node primary of a resource; answered when everything is up there.
    Promote {
        /// Which.
        resource: String,
        /// For a node without the newest data: the consent, typed out word by word
        /// ([`FORCE_CONSENT`]).
        #[serde(default)]
        force: Option<String>,
    },
    /// Stop a resource everywhere until it is promoted again.
    Demote {
        /// Which.
        resource: String,
    },
    /// Initialise the replicas of a resource on all its nodes and record it.
    Create {
        /// Which.
        resource: String,
    },
    /// Compare copies with the primary's, block by block. Answered by [`Answer::Verified`].
    Verify {
        /// Which resource.
        resource: String,
        /// Which volume; `None`: the only one.
        #[serde(default)]
        volume: Option<String>,
        /// Whose copy; `None`: every member's of the in-sync set.
        #[serde(default)]
        peer: Option<String>,
        /// Make equal what differs, after what is right: the name of a node, or [`MAJORITY`].
        #[serde(default)]
        repair: Option<String>,
    },
    /// Keep one of two lines of history: a peer of another one saves what differs to a file on its node, gives its line
    /// up and is resynced. `keep` must be the primary.
    Resolve {
        /// Which resource.
        resource: String,
        /// Which volume; `None`: the only one.
        #[serde(default)]
        volume: Option<String>,
        /// The node whose data is kept.
        keep: String,
        /// Whose line is given up; `None`: the only other one.
        #[serde(default)]
        peer: Option<String>,
    },
    /// Do not trust a peer's copy: compare and resync all of it.
    Resync {
        /// Which resource.
        resource: String,
        /// Which volume; `None`: the only one.
        #[serde(default)]
        volume: Option<String>,
        /// Whose copy; `None`: the only other one.
        #[serde(default)]
        peer: Option<String>,
    },
    /// Give a volume another size; answered when it has it.
    Resize {
        /// Which resource.
        resource: String,
        /// Which volume; `None`: the only one.
        #[serde(default)]
        volume: Option<String>,
        /// Bytes; `None`: as large as the smallest backing allows.
        #[serde(default)]
        size_bytes: Option<u64>,
        /// To make it smaller: the consent, typed out word by word ([`SHRINK_CONSENT`]).
        #[serde(default)]
        shrink: Option<String>,
    },
    /// Give a node that has none a replica of a volume; answered when it is recorded and being filled.
    ReplicaAdd {
        /// Which resource.
        resource: String,
        /// Which volume; `None`: the only one.
        #[serde(default)]
        volume: Option<String>,
        /// Which node.
        node: String,
        /// Where; `None`: where that node's configuration says.
        #[serde(default)]
        backing: Option<PathBuf>,
    },
    /// Give a node's replica up; answered when that is recorded.
    ReplicaRemove {
        /// Which resource.
        resource: String,
        /// Which volume; `None`: the only one.
        #[serde(default)]
        volume: Option<String>,
        /// Which node.
        node: String,
    },
    /// Add a replica on one node, wait until it is in sync, hand over if need be, remove the one on another.
    ReplicaMove {
        /// Which resource.
        resource: String,
        /// Which volume; `None`: the only one.
        #[serde(default)]
        volume: Option<String>,
        /// Whose replica goes.
        from: String,
        /// Who gets one.
        to: String,
        /// Where; `None`: where that node's configuration says.
        #[serde(default)]
        backing: Option<PathBuf>,
    },
    /// Bounds of the resync of a volume, for whoever is primary, now and later. What is left out stays as it is.
    ResyncBounds {
        /// Which resource.
        resource: String,
        /// Which volume; `None`: the only one.
        #[serde(default)]
        volume: Option<String>,
        /// Paused or not.
        #[serde(default)]
        paused: Option<bool>,
        /// At least so many bytes per second beside the application; zero: as configured.
        #[serde(default)]
        min: Option<u64>,
        /// At most so many; zero: as configured.
        #[serde(default)]
        max: Option<u64>,
    },
    /// Who was primary when, and why it changed. Answered by [`Answer::History`].
    History,
    /// What happened on the asked node lately, with times. Answered by [`Answer::Timeline`].
    Timeline {
        /// Only entries with a higher number than this.
        #[serde(default)]
        after: u64,
    },
    /// For tests: drop all traffic with the other nodes while on.
    Isolate {
        /// On or off.
        on: bool,
    },
    /// Hand over what this node is primary of if another can take it, stop cleanly, exit.
    Shutdown,
}

/// In place of a node's name: what more than half of the in-sync set has is right.
pub const MAJORITY: &str = "majority";

/// What must be typed to promote a node that lacks data which another node has.
pub const FORCE_CONSENT: &str = "lose newer data";

/// What must be typed to make a volume smaller.
pub const SHRINK_CONSENT: &str = "lose the end";

/// One line from the daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// It goes on.
    Progress(Progress),
    /// It is done.
    Ok(Answer),
    /// It is not.
    Error(ApiError),
}

/// How far something is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// What goes on or what is waited for, in a sentence.
    pub what: String,
    /// Bytes done, if it is a matter of bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub done_bytes: Option<u64>,
    /// Bytes in all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_bytes: Option<u64>,
}

/// The answer to a request that went well.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// Done.
    Done {
        /// What, in a sentence.
        message: String,
    },
    /// To [`Request::Status`].
    Status(Box<ClusterStatus>),
    /// To [`Request::Verify`].
    Verified {
        /// Bytes that differ; zero is what one hopes for.
        differing_bytes: u64,
        /// Where, as byte offset and length; at most [`DIFFERING_RANGES_MAX`] of them.
        differing: Vec<(u64, u64)>,
        /// The same for each copy that was compared.
        #[serde(default)]
        peers: Vec<VerifiedPeer>,
    },
    /// To [`Request::History`], oldest first.
    History(Vec<HistoryLine>),
    /// To [`Request::Timeline`], oldest first.
    Timeline(Vec<TimelineEntry>),
}

/// A copy that was compared with the primary's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifiedPeer {
    /// Whose.
    pub node: String,
    /// Bytes that differed.
    pub differing_bytes: u64,
    /// Bytes of those that are equal now.
    pub repaired_bytes: u64,
    /// Bytes of those where no copy could be said to be right.
    pub undecided_bytes: u64,
    /// Where they differed, as byte offset and length; at most [`DIFFERING_RANGES_MAX`] of them.
    pub differing: Vec<(u64, u64)>,
}

/// Differing ranges reported by one verify at the most.
pub const DIFFERING_RANGES_MAX: usize = 1000;

/// Why something was not done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// For programs.
    pub code: ErrorCode,
    /// What is wrong, in a sentence.
    pub message: String,
    /// What to do about it, if there is something.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
}

/// Kinds of errors; each has its exit status in the command line's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The request is not one, or names something that does not exist.
    BadRequest,
    /// Against the rules as things are; nothing changed.
    Refused,
    /// This node lacks newer data which another node has; a force would give that up.
    NoUpToDateData,
    /// No majority of voters can be heard.
    NoQuorum,
    /// Not done in time; it may still come to be.
    TimedOut,
    /// A disk or a file does not do what it should.
    Storage,
    /// A mistake in the daemon.
    Internal,
}

/// The cluster as one node sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterStatus {
    /// Name of the cluster.
    pub cluster: String,
    /// The node that tells.
    pub node: String,
    /// Version of its program.
    pub version: String,
    /// It hears a majority of voters.
    pub quorum: bool,
    /// Leader of the control plane, if known.
    pub leader: Option<String>,
    /// All nodes, ascending by number.
    pub nodes: Vec<NodeInfo>,
    /// All resources, in the order of the configuration.
    pub resources: Vec<ResourceInfo>,
    /// Why the cluster as a whole is not as one would wish; empty: it is.
    pub why: Vec<String>,
}

/// A node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInfo {
    /// Its name.
    pub name: String,
    /// Its number.
    pub id: u8,
    /// Where it is reached.
    pub address: IpAddr,
    /// Votes, holds no data.
    pub witness: bool,
    /// Heard of lately (itself: always).
    pub online: bool,
    /// Its vote counts: it has its state, or was admitted anew after losing it.
    pub votes: bool,
}

/// What a node does for a resource, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Phase {
    /// Not heard of.
    Unknown,
    /// Holds a copy.
    Secondary,
    /// Tries to become primary.
    Candidate,
    /// Won the epoch; hears the members, reconciles.
    Leading,
    /// Starts device, mounts, services, addresses.
    Starting,
    /// Everything is up.
    Primary,
    /// Stops.
    Stopping,
}

impl Phase {
    /// The role this amounts to; `None` if it is not known.
    pub const fn role(self) -> Option<Role> {
        match self {
            Self::Unknown => None,
            Self::Secondary | Self::Candidate => Some(Role::Secondary),
            Self::Leading | Self::Starting | Self::Primary | Self::Stopping => Some(Role::Primary),
        }
    }
}

/// A resource.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourceInfo {
    /// Its name.
    pub name: String,
    /// Its replicas were initialised and recorded.
    pub created: bool,
    /// Version of its committed record.
    pub generation: Gen,
    /// Current epoch.
    pub epoch: Epoch,
    /// Primary of that epoch.
    pub primary: Option<String>,
    /// What the operator wants is that it stays stopped.
    pub stopped: bool,
    /// What the telling node does for it. `None`: it holds no copy.
    pub here: Option<Phase>,
    /// Time left on the telling node's lease, if it holds one, in milliseconds.
    pub lease_left_ms: Option<u64>,
    /// What its data nodes do, as last heard.
    pub nodes: Vec<ResourceNode>,
    /// Its volumes.
    pub volumes: Vec<VolumeInfo>,
    /// Its mounts on the telling node.
    pub mounts: Vec<Item>,
    /// Its services on the telling node.
    pub services: Vec<Item>,
    /// Its virtual IPs on the telling node.
    pub vips: Vec<Item>,
    /// Why it is not as one would wish, a sentence each; empty: all is well.
    pub why: Vec<String>,
}

/// A resource on a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourceNode {
    /// Which node.
    pub node: String,
    /// What it does.
    pub phase: Phase,
}

/// A mount, service or virtual IP on the telling node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    /// Its path, name or address.
    pub name: String,
    /// Up here.
    pub up: bool,
    /// Why it is not, where it should be; or the process number of a service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// A volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeInfo {
    /// Its name.
    pub name: String,
    /// Bytes the application sees.
    pub size_bytes: u64,
    /// The committed in-sync set.
    pub in_sync: Vec<String>,
    /// Its replicas as the control plane knows them.
    pub replicas: Vec<ReplicaInfo>,
    /// The telling node's own replica, if it holds one.
    pub local: Option<LocalStatus>,
    /// Resyncs and verifies that run, as the primary sees them.
    pub transfers: Vec<Transfer>,
    /// What holds for its resyncs, as the primary sees it.
    #[serde(default)]
    pub resync: Option<ResyncInfo>,
    /// The last verify or scrub that went through.
    #[serde(default)]
    pub verified: Option<VerifiedInfo>,
    /// When the next scrub is due, in milliseconds since 1970; `None`: there are no scrubs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scrub_due_ms: Option<u64>,
    /// Where applications get at it on the telling node.
    pub frontends: Vec<FrontendInfo>,
}

/// A replica.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaInfo {
    /// On which node.
    pub node: String,
    /// State of its disk.
    pub disk: DiskState,
}

/// How the resyncs of a volume go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResyncInfo {
    /// The operator has paused them.
    pub paused: bool,
    /// They go on at least this fast beside the application, in bytes per second.
    pub min_bytes_per_second: u64,
    /// They never go faster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_bytes_per_second: Option<u64>,
    /// What they are held to at present: beside a busy application, or by the ceiling.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_to_bytes_per_second: Option<u64>,
}

/// How the last verify of a volume went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifiedInfo {
    /// When it ended, in milliseconds since 1970.
    pub ended_ms: u64,
    /// It was a scrub.
    pub scrub: bool,
    /// Bytes of the primary's copy that were compared.
    pub compared_bytes: u64,
    /// Bytes that differed, over all copies.
    pub differing_bytes: u64,
    /// Bytes of those that were made equal.
    pub repaired_bytes: u64,
}

/// A resync or verify.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transfer {
    /// With whom.
    pub peer: String,
    /// Which of the two.
    pub kind: TransferKind,
    /// Bytes compared or copied.
    pub done_bytes: u64,
    /// Bytes in all, as far as known now.
    pub total_bytes: u64,
    /// Of late; zero if not known yet.
    pub bytes_per_second: u64,
}

impl Transfer {
    /// Time left at the present rate, if that can be said.
    pub fn eta_seconds(&self) -> Option<u64> {
        let left = self.total_bytes.saturating_sub(self.done_bytes);
        (self.bytes_per_second > 0).then(|| left.div_ceil(self.bytes_per_second))
    }
}

/// Kinds of [`Transfer`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TransferKind {
    /// Makes a copy equal.
    Resync,
    /// Looks whether it is.
    Verify,
}

/// A way into a volume on the telling node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FrontendInfo {
    /// `nbd-unix`, `nbd-tcp`, `fuse`, `loop` or `device`.
    pub kind: String,
    /// Path or address.
    pub path: PathBuf,
    /// Clients connected, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clients: Option<u32>,
}

/// One change in the life of a resource.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryLine {
    /// Which resource.
    pub resource: String,
    /// Version of the record it made.
    pub generation: Gen,
    /// Epoch it was made in.
    pub epoch: Epoch,
    /// What changed and why, in a sentence.
    pub what: String,
}

/// One thing that happened on a node since its daemon started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimelineEntry {
    /// Counts up from 1.
    pub number: u64,
    /// When, on CLOCK_BOOTTIME, in nanoseconds: comparable between daemons of one machine.
    pub at_ns: u64,
    /// When, in milliseconds since 1970, for people.
    pub wall_ms: u64,
    /// The resource; empty for the node itself.
    pub resource: String,
    /// A fixed word, for programs.
    pub kind: String,
    /// A sentence, for people.
    pub text: String,
}
