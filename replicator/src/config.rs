//! Settings of one replica, and limits.

use crate::DiskTrouble;
use crate::rules::Rule;
use holdfast_types::{Incarnation, NodeId, NodeSet, VolumeId};

/// Requests an application may have in flight before further ones wait inside the replica.
pub const REQUESTS_MAX: usize = 1024;
/// Largest piece a write or read is cut into for locking and sending, in blocks (1 MiB of 4 KiB blocks).
pub const PIECE_BLOCKS_MAX: u64 = 256;
/// Blocks of one resync job (1 MiB of 4 KiB blocks).
pub const JOB_BLOCKS_MAX: u64 = 256;
/// Blocks of a job that somebody may have to wait for: reconciliation, verify, repair (256 KiB of 4 KiB blocks).
pub const JOB_BLOCKS_SHORT: u64 = 64;
/// Blocks that lack nothing and are read over rather than begin another job.
pub const JOB_GAP_MAX: u64 = 8;
/// Resync, reconcile, verify and repair jobs in flight at once; bytes in flight are the controller's business.
pub const JOBS_MAX: usize = 256;
/// Jobs that reconcile or repair at once.
pub const PUSH_JOBS_MAX: usize = 8;
/// Ranges of a resynced peer that the members are told of in one go.
pub const SYNCED_RANGES_MAX: usize = 64;
/// Writes a syncing replica may leave unanswered; further ones are not sent to it but left to resync.
pub const LAG_MAX: usize = 512;
/// Bytes of writes a syncing replica may leave unanswered; they are held in memory for it.
pub const LAG_BYTES_MAX: u64 = 16 << 20;
/// Writes a syncing replica may have unanswered when it begins to count.
pub const CUT_LAG_MAX: usize = 64;
/// How long a member that the operator dismissed is not taken in again, should its removal not be recorded, in milliseconds.
pub const DISMISSED_MS: u64 = 5_000;
/// Settled writes after which a close is sent at once rather than by timer.
pub const CLOSE_EVERY: u32 = 32;

/// How one replica is set up. The same on every data node but for `me`.
#[derive(Clone, Debug)]
pub struct Config {
    /// This node.
    pub me: NodeId,
    /// All data nodes of the volume, this one included.
    pub data_nodes: NodeSet,
    /// The volume; the disk must carry the same id.
    pub volume: VolumeId,
    /// Times.
    pub timing: Timing,
    /// The disk that was given up in an earlier run, as the node's control plane remembers; the disk itself may not.
    pub distrust: Option<(Incarnation, DiskTrouble)>,
    /// Test only: a rule that is switched off so that a checker can be seen to catch it.
    pub off: Option<Rule>,
}

/// Times in milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// A session idle for this long is pinged.
    pub ping_ms: u64,
    /// A peer from which nothing came for this long is disconnected.
    pub silence_ms: u64,
    /// A member not connected for this long is removed from the in-sync set.
    pub grace_ms: u64,
    /// A member that does not answer a write or flush for this long is removed.
    pub answer_ms: u64,
    /// An answer that comes this much later than it is wanted counts as slow.
    pub slow_ms: u64,
    /// A member that has cost so much time by slow answers lately is removed (a tenth is forgiven in the same time).
    pub slow_budget_ms: u64,
    /// A new primary waits this long for a connected member to report, before it removes it.
    pub collect_ms: u64,
    /// A proposal without outcome is repeated after this long.
    pub propose_ms: u64,
    /// Closes are sent at the latest after this long.
    pub close_ms: u64,
    /// Dirty bitmap pages are saved in the background every so often.
    pub save_ms: u64,
    /// First delay before a removed member may be taken in again; doubles with each removal (rule 39).
    pub rejoin_ms: u64,
    /// Longest such delay.
    pub rejoin_max_ms: u64,
    /// After so long as a member, half of its removals are forgotten.
    pub rejoin_forget_ms: u64,
    /// An operation of the local disk that takes longer, while this process runs, makes the disk a failed one.
    pub disk_ms: u64,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            ping_ms: 250,
            silence_ms: 1000,
            grace_ms: 300,
            answer_ms: 1500,
            slow_ms: 500,
            slow_budget_ms: 2000,
            collect_ms: 500,
            propose_ms: 500,
            close_ms: 20,
            save_ms: 2000,
            rejoin_ms: 100,
            rejoin_max_ms: 20_000,
            rejoin_forget_ms: 60_000,
            disk_ms: 1500,
        }
    }
}
