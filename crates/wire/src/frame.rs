//! The frames of the peer protocol.

use bytes::Bytes;
use holdfast_types::{
    BlockRange, DiskState, Epoch, Gen, Geometry, Incarnation, Level, NodeId, NodeSet, RUNS_KEPT,
    Run, Seen, Seq, SessionId, VolumeId,
};

/// Which of a peer's two connections a frame travels on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Lane {
    /// Whatever must stay in order with writes.
    Write,
    /// Bulk: resync blocks and hashes; their order does not matter, the primary's range lock does.
    Bulk,
}

/// What every frame of an attached session carries, so that nothing old is ever taken for new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// The primary's epoch: the fencing token.
    pub epoch: Epoch,
    /// The session given by [`Attach`]; a new one invalidates all frames of the old (rule 21).
    pub session: SessionId,
}

/// First frame of either side on the write lane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Who speaks.
    pub node: NodeId,
    /// Whose data this is about; another id is refused.
    pub volume: VolumeId,
    /// Size and unit; another geometry is refused.
    pub geometry: Geometry,
    /// Identity of this replica's disk.
    pub incarnation: Incarnation,
    /// This life of the replica.
    pub run: Run,
    /// Its last stop was unclean: unflushed writes may be lost (rules 8 to 10).
    pub unclean: bool,
    /// The highest epoch it promised.
    pub promised: Epoch,
    /// What its disk says of itself.
    pub disk: DiskState,
    /// How many activity-log extents it can hold active.
    pub log_slots: u32,
    /// Numbers of its last activity-log transaction at the start of this run, of the one before, and so on (rule 31).
    pub found: [u64; RUNS_KEPT],
    /// The line of history its content belongs to; zero: none yet.
    pub lineage: u64,
}

/// A primary takes a replica into a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attach {
    /// The session's stamp.
    pub stamp: Stamp,
    /// Version of the committed record the primary goes by.
    pub generation: Gen,
    /// The replica is a member of the in-sync set; if not it marks itself Syncing durably first (rule 32).
    pub member: bool,
    /// The primary's line of history; a replica of another one refuses.
    pub lineage: u64,
    /// When its answers to writes may leave.
    pub level: Level,
}

/// Why a replica does not take a session or a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It promised a newer epoch.
    Promised(Epoch),
    /// A frame was missing: sessions have no gaps (rule 27).
    Gap,
    /// Its disk is not usable.
    NoDisk,
    /// Its disk returned an error on write or flush: final for that disk.
    DiskFailed,
    /// Its content belongs to this other line of history: the operator has to say which one is kept.
    Lineage(u64),
}

/// One message between two replicas of one volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    // ---- write lane, both ways
    /// Opens a connection.
    Hello(Hello),
    /// The session ends.
    Refuse {
        /// Why.
        why: Refusal,
    },
    /// Keeps an idle session alive.
    Ping {
        /// Returned as it came.
        token: u64,
    },
    /// Answers [`Frame::Ping`].
    Pong {
        /// The ping's.
        token: u64,
    },

    // ---- write lane, primary to replica
    /// Takes the replica into a session.
    Attach(Attach),
    /// Write these blocks.
    Write {
        /// Session.
        stamp: Stamp,
        /// Place in the epoch's order.
        seq: Seq,
        /// Where.
        range: BlockRange,
        /// Stable before the answer.
        fua: bool,
        /// The bytes, `range.count` blocks.
        data: Bytes,
    },
    /// Write zeroes there.
    Zero {
        /// Session.
        stamp: Stamp,
        /// Place in the epoch's order.
        seq: Seq,
        /// Where.
        range: BlockRange,
        /// Stable before the answer.
        fua: bool,
    },
    /// All writes of this epoch up to `upto` that are not closed yet are settled, and `set` holds them.
    Close {
        /// Session.
        stamp: Stamp,
        /// Cumulative.
        upto: Seq,
        /// Who holds them; everyone else gets dirty bits.
        set: NodeSet,
    },
    /// In-doubt blocks of older epochs have been made equal on `set` (rules 16 and 33).
    Reconciled {
        /// Session.
        stamp: Stamp,
        /// Which blocks.
        ranges: Vec<BlockRange>,
        /// On whom they are equal; everyone else gets dirty bits.
        set: NodeSet,
    },
    /// Make everything before this stable.
    Flush {
        /// Session.
        stamp: Stamp,
        /// To match the answer.
        token: u64,
    },
    /// The cut of the write stream at which a syncing replica starts to count (rules 5, 6, 15).
    Cut {
        /// Session.
        stamp: Stamp,
        /// To match the answer.
        token: u64,
        /// The primary's dirty bits for each other data node that is absent; they replace the replica's.
        bitmaps: Vec<(NodeId, Vec<BlockRange>)>,
    },
    /// `node` is a member of the in-sync set: bits for it can go (rule 17).
    Grown {
        /// Session.
        stamp: Stamp,
        /// The new member.
        node: NodeId,
    },
    /// `node`, which is being resynced, has these blocks: bits for it can go. Without it a resync would begin
    /// anew when the primary is lost (rule 17).
    Synced {
        /// Session.
        stamp: Stamp,
        /// Who has them.
        node: NodeId,
        /// Which blocks; exactly these.
        ranges: Vec<BlockRange>,
    },

    /// Read these blocks for the primary, whose own disk cannot.
    Read {
        /// Session.
        stamp: Stamp,
        /// To match the answer.
        token: u64,
        /// Which.
        range: BlockRange,
    },
    /// What the primary last heard of each replica's disk, its own included: whoever leads later recognises one that
    /// went back in time (rule 31).
    Seen {
        /// Session.
        stamp: Stamp,
        /// Each node at most once.
        seen: Vec<(NodeId, Seen)>,
    },
    /// The operator keeps the primary's line of history: the replica saves what it has in the blocks that may differ,
    /// then gives up its own line. Not within a session: a replica of another line has none.
    Discard {
        /// The primary's epoch; the number matches the answer.
        stamp: Stamp,
        /// The line that is kept.
        keep: u64,
        /// The line that is given up; another one is not meant.
        lost: u64,
        /// Blocks the primary holds dirty for the replica.
        ranges: Vec<BlockRange>,
    },

    // ---- write lane, replica to primary
    /// Answers [`Frame::Read`].
    ReadDone {
        /// Session.
        stamp: Stamp,
        /// The question's.
        token: u64,
        /// The question's.
        range: BlockRange,
        /// The blocks, or `None`: they cannot be read here either.
        data: Option<Bytes>,
    },
    /// Answers [`Frame::Discard`].
    Discarded {
        /// The question's.
        stamp: Stamp,
        /// Saved and given up; else nothing has changed.
        done: bool,
        /// Where it is saved, or why it is not; at most [`crate::codec::TEXT_BYTES_MAX`] bytes.
        text: String,
    },
    /// The session is taken: promise stored, older writes ended, and this may differ.
    Attached {
        /// Session.
        stamp: Stamp,
        /// Blocks that may differ between the replica and the primary: the bits it holds for the primary, which
        /// crash extents and open writes of older epochs have become by now (rule 3).
        report: Vec<BlockRange>,
        /// Number of the replica's last durable activity-log transaction (rule 31); the same in all answers.
        log: u64,
    },
    /// The write with this number is on the replica's disk.
    Ack {
        /// Session.
        stamp: Stamp,
        /// Which.
        seq: Seq,
        /// See [`Frame::Attached`].
        log: u64,
    },
    /// Answers [`Frame::Flush`].
    Flushed {
        /// Session.
        stamp: Stamp,
        /// The flush's.
        token: u64,
        /// See [`Frame::Attached`].
        log: u64,
    },
    /// Answers [`Frame::Cut`]: bitmaps durable, data flushed.
    CutDone {
        /// Session.
        stamp: Stamp,
        /// The cut's.
        token: u64,
        /// See [`Frame::Attached`].
        log: u64,
    },
    /// The replica's activity log is short of slots: please close what is settled (rule 30).
    NeedClose {
        /// Session.
        stamp: Stamp,
    },

    // ---- bulk lane
    /// Primary to replica: these blocks, from resync or repair. Without data: zeroes.
    Resync {
        /// Session.
        stamp: Stamp,
        /// To match the answer.
        token: u64,
        /// Where.
        range: BlockRange,
        /// The bytes, or `None` for zeroes.
        data: Option<Bytes>,
    },
    /// Replica to primary: written.
    Resynced {
        /// Session.
        stamp: Stamp,
        /// The block's.
        token: u64,
        /// See [`Frame::Attached`].
        log: u64,
    },
    /// Primary to replica: hash these blocks.
    Hash {
        /// Session.
        stamp: Stamp,
        /// To match the answer.
        token: u64,
        /// Which.
        range: BlockRange,
    },
    /// Replica to primary: one hash per block.
    Hashes {
        /// Session.
        stamp: Stamp,
        /// The question's.
        token: u64,
        /// xxh3-128 of each block, in order; [`UNREADABLE`] for one that cannot be read.
        hashes: Vec<u128>,
    },
    /// Primary to replica: send these blocks, for a repair of other copies.
    Fetch {
        /// Session.
        stamp: Stamp,
        /// To match the answer.
        token: u64,
        /// Which.
        range: BlockRange,
    },
    /// Replica to primary: the blocks.
    Fetched {
        /// Session.
        stamp: Stamp,
        /// The question's.
        token: u64,
        /// Which.
        range: BlockRange,
        /// The bytes.
        data: Bytes,
    },
}

/// Stands in [`Frame::Hashes`] for a block that the replica cannot read: it counts as different from any other.
pub const UNREADABLE: u128 = u128::MAX;

impl Frame {
    /// The lane it travels on.
    pub fn lane(&self) -> Lane {
        match self {
            Self::Resync { .. }
            | Self::Resynced { .. }
            | Self::Hash { .. }
            | Self::Hashes { .. }
            | Self::Fetch { .. }
            | Self::Fetched { .. } => Lane::Bulk,
            Self::Hello(_)
            | Self::Refuse { .. }
            | Self::Ping { .. }
            | Self::Pong { .. }
            | Self::Attach(_)
            | Self::Write { .. }
            | Self::Zero { .. }
            | Self::Close { .. }
            | Self::Reconciled { .. }
            | Self::Flush { .. }
            | Self::Cut { .. }
            | Self::Grown { .. }
            | Self::Synced { .. }
            | Self::Attached { .. }
            | Self::Ack { .. }
            | Self::Flushed { .. }
            | Self::CutDone { .. }
            | Self::NeedClose { .. }
            | Self::Seen { .. }
            | Self::Discard { .. }
            | Self::Discarded { .. }
            | Self::Read { .. }
            | Self::ReadDone { .. } => Lane::Write,
        }
    }
}
