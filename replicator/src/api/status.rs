//! One replica, and its peers, as status shows them.

use super::*;

/// One replica as status shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Role in the data path.
    pub role: holdfast_types::Role,
    /// Device open for the application.
    pub open: bool,
    /// Completions are held (no lease, drain, or waiting for members): the reason.
    pub held: Option<String>,
    /// State of the local disk.
    pub disk: DiskState,
    /// Why the local disk is not used, if it is not.
    pub trouble: Option<DiskTrouble>,
    /// Without a local disk: the member that served the latest read.
    pub reads_from: Option<NodeId>,
    /// Reads of the local disk that failed in this run.
    pub read_errors: u64,
    /// Epoch it goes by.
    pub epoch: Epoch,
    /// In-sync set it goes by.
    pub in_sync: NodeSet,
    /// Identity of the local disk.
    pub incarnation: Incarnation,
    /// This run.
    pub run: Run,
    /// Bytes the application sees.
    pub size_bytes: u64,
    /// Requests in flight.
    pub requests: u32,
    /// Writes not yet settled.
    pub open_writes: u32,
    /// Bytes written by the application.
    pub written_bytes: u64,
    /// Bytes read by the application.
    pub read_bytes: u64,
    /// Activity-log transactions written.
    pub log_writes: u64,
    /// How resync goes in general; of a secondary: as it would.
    pub resync: ResyncStatus,
    /// A verify that is under way.
    pub verify: Option<VerifyStatus>,
    /// The other data nodes.
    pub peers: Vec<PeerStatus>,
}

/// The controller of resync as status shows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResyncStatus {
    /// The bounds in force.
    pub bounds: ResyncBounds,
    /// It goes beside an application that is busy, and is held to this many bytes per second (or by the ceiling).
    pub held_to: Option<u64>,
}

/// A verify under way as status shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyStatus {
    /// What was asked for.
    pub order: VerifyOrder,
    /// Bytes compared.
    pub done_bytes: u64,
    /// Of late.
    pub bytes_per_second: u64,
    /// Bytes that differ, over all peers.
    pub differing_bytes: u64,
}

/// A peer as status shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// Who.
    pub node: NodeId,
    /// Both lanes connected.
    pub connected: bool,
    /// In a session.
    pub attached: bool,
    /// State of its disk as this node knows it.
    pub disk: DiskState,
    /// What is wrong with its identity, if anything.
    pub trouble: Option<Trouble>,
    /// Bytes that may differ.
    pub out_of_sync_bytes: u64,
    /// Payload bytes sent by the running or last resync.
    pub resync_sent_bytes: u64,
    /// Bytes of the running or last resync that went as zeroes.
    pub resync_zero_bytes: u64,
    /// Bytes of the running or last resync compared by hash and found equal.
    pub resync_equal_bytes: u64,
    /// Bytes per second made equal of late, however that was done.
    pub resync_bytes_per_second: u64,
    /// A verify is running: bytes done.
    pub verify_done_bytes: Option<u64>,
}

/// What is wrong with the identity of a peer's replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Trouble {
    /// Its disk is not the one that was seen before: all of it is being compared.
    Strange(Strange),
    /// Its content belongs to another line of history.
    Split {
        /// The peer's line.
        theirs: u64,
        /// This replica's.
        ours: u64,
    },
    /// It says that its disk is the one which another node has: a copy.
    Cloned {
        /// The node that had it first.
        of: NodeId,
    },
}
