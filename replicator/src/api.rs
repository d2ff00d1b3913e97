//! What goes into a replica and what comes out: the contract with its interpreters.
//!
//! Two interpreters exist, the daemon's volume loop and the simulator. Both do exactly this:
//! 1. build a [`crate::Replica`] with [`crate::Replica::start`] from the metadata region as read
//!    from the store (data starts at byte 0, metadata is at the end);
//! 2. for each thing that happens call [`crate::Replica::handle`] once, with the time; perform
//!    the returned actions *in order* (a later one may be started before an earlier one has
//!    ended, but frames to one peer and lane leave in the order given);
//! 3. when [`crate::Replica::deadline`] is reached, hand in [`Event::Tick`];
//! 4. answer each [`Action::Disk`] by exactly one [`Event::DiskDone`], in any order.
//!
//! Nothing that decides about data lives in an interpreter.

mod status;

use bytes::Bytes;
use holdfast_types::{
    BlockRange, DiskState, Epoch, Gen, Incarnation, NodeId, NodeSet, Run, Strange, VolumeId,
};
use holdfast_wire::{Frame, Lane};
use serde::{Deserialize, Serialize};

/// Time in nanoseconds on CLOCK_BOOTTIME of this node (or the simulator's clock of it).
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Now(pub u64);

impl Now {
    /// This time and `ms` milliseconds.
    #[must_use]
    pub const fn plus_ms(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms * 1_000_000))
    }
    /// Milliseconds since `earlier`, zero if it is later.
    pub const fn ms_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0) / 1_000_000
    }
}

/// Names one disk operation until its [`Event::DiskDone`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IoId(pub u64);

/// Names one application request until its [`Action::Complete`]; chosen by the interpreter, unique while open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ReqId(pub u64);

/// An application's request, in bytes; any offset and length inside the volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Read `len` bytes, at most [`holdfast_types::REQUEST_BYTES_MAX`].
    Read {
        /// Byte offset.
        offset: u64,
        /// Bytes.
        len: u32,
    },
    /// Write `data`, at most [`holdfast_types::REQUEST_BYTES_MAX`] bytes.
    Write {
        /// Byte offset.
        offset: u64,
        /// The bytes.
        data: Bytes,
        /// Stable on every member before it is answered.
        fua: bool,
    },
    /// Write zeroes (trim means this too: replicas stay identical, rule 29).
    Zero {
        /// Byte offset.
        offset: u64,
        /// Bytes.
        len: u64,
        /// Stable on every member before it is answered.
        fua: bool,
    },
    /// Everything answered before this request came is stable when it is answered.
    Flush,
}

/// Why an application's request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// The disk failed and no other copy could serve.
    #[error("input/output error")]
    Io,
    /// Outside the volume, or too large.
    #[error("request outside the volume")]
    Range,
    /// This node is not (or no longer) the primary.
    #[error("this node is not the primary")]
    NotPrimary,
}

/// Why a disk operation failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskError {
    /// Any error of the device.
    Io,
    /// No space under a sparse backing file.
    NoSpace,
}

/// Why a replica uses its disk no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum DiskTrouble {
    /// A write or flush failed: what it took since its last flush may be gone.
    Io,
    /// The file system under the backing file is full.
    NoSpace,
    /// It did not answer in time; what was asked of it may still happen.
    Hung,
    /// The operator detached it.
    Detached,
}

impl DiskTrouble {
    /// What was answered may be gone from the disk, as after a loss of power. A disk that hung or was detached has
    /// lost nothing: it is like that of a process that was killed.
    pub const fn loses(self) -> bool {
        matches!(self, Self::Io | Self::NoSpace)
    }
}

impl std::fmt::Display for DiskTrouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Io => "a write or flush failed",
            Self::NoSpace => "no space left under the backing file",
            Self::Hung => "it did not answer in time",
            Self::Detached => "detached by the operator",
        })
    }
}

/// One operation on the local store, in bytes from its start; whole blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskOp {
    /// Read `len` bytes.
    Read {
        /// Byte offset.
        offset: u64,
        /// Bytes.
        len: u32,
    },
    /// Write `data`. The buffer need not be aligned in memory (the store bounces it if need be).
    Write {
        /// Byte offset.
        offset: u64,
        /// The bytes.
        data: Bytes,
        /// On stable storage before it is done.
        durable: bool,
    },
    /// Make the bytes read as zero.
    Zero {
        /// Byte offset.
        offset: u64,
        /// Bytes.
        len: u64,
        /// On stable storage before it is done.
        durable: bool,
    },
    /// All writes done before this was submitted are on stable storage when it is done.
    Flush,
}

/// What can happen to a replica.
#[derive(Clone, Debug)]
pub enum Event {
    /// [`crate::Replica::deadline`] was reached.
    Tick,
    /// The application asks.
    Request {
        /// Its name.
        req: ReqId,
        /// What.
        request: Request,
    },
    /// A disk operation ended. `Ok` carries the bytes of a read, empty otherwise.
    DiskDone {
        /// Which.
        io: IoId,
        /// How.
        result: Result<Bytes, DiskError>,
    },
    /// Both lanes to a peer are connected and authenticated. Follows a [`Event::PeerDown`] if it was up.
    PeerUp {
        /// Who.
        peer: NodeId,
    },
    /// A lane to the peer is gone; the interpreter has closed the other one too and will connect again.
    PeerDown {
        /// Who.
        peer: NodeId,
    },
    /// A frame came from a peer that is up.
    Frame {
        /// From whom.
        peer: NodeId,
        /// What.
        frame: Frame,
    },
    /// The store is this large now, in bytes; `None`: it cannot be made large enough.
    Room {
        /// Bytes.
        store_bytes: Option<u64>,
    },
    /// The control plane says.
    Control(FromControl),
    /// [`Action::Save`] is done: where it is, or why not (then there is no file).
    Saved {
        /// Which.
        save: u64,
        /// In words for the operator.
        result: Result<String, String>,
    },
}

/// What a replica wants done.
#[derive(Clone, Debug)]
pub enum Action {
    /// Do this on the local store.
    Disk {
        /// Name for the answer.
        io: IoId,
        /// What.
        op: DiskOp,
    },
    /// Send a frame on the lane [`Frame::lane`] says.
    Send {
        /// To whom.
        peer: NodeId,
        /// What.
        frame: Frame,
    },
    /// Close the connections to this peer (a [`Event::PeerDown`] follows) and connect anew.
    Disconnect {
        /// Whom.
        peer: NodeId,
    },
    /// Answer the application.
    Complete {
        /// Which request.
        req: ReqId,
        /// The bytes of a read, empty otherwise.
        result: Result<Bytes, RequestError>,
    },
    /// Copy these blocks of the local data into a file of its own, durably, then [`Event::Saved`]. Nothing is written
    /// to them meanwhile.
    Save(Save),
    /// Tell the control plane.
    Control(ToControl),
    /// Make the store at least this large, without changing what it holds. Answered by one [`Event::Room`].
    MakeRoom {
        /// Bytes.
        bytes: u64,
    },
    /// Something an operator or a test may want to know; no effect.
    Note(Note),
}

/// Blocks of a line of history that is about to be given up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Save {
    /// For the answer.
    pub save: u64,
    /// Which blocks; sorted, disjoint.
    pub ranges: Vec<BlockRange>,
    /// The line they belong to.
    pub lost: u64,
    /// The line that is kept.
    pub keep: u64,
    /// Last epoch of the lost line that this replica took part in.
    pub epoch: Epoch,
}

/// The committed record of a resource, as far as it concerns one volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    /// Version of the record: what the next change is compared with.
    pub generation: Gen,
    /// Current epoch.
    pub epoch: Epoch,
    /// Who is primary, if anyone.
    pub primary: Option<NodeId>,
    /// The committed in-sync set of this volume.
    pub in_sync: NodeSet,
    /// All data nodes that hold a replica of it.
    pub data_nodes: NodeSet,
    /// Replicas whose disk is not the one that was recorded, or went back in time: compared whole before they count.
    pub suspect: NodeSet,
    /// The line of history the data belongs to; replicas of another one are refused.
    pub lineage: u64,
    /// Those of them that are known to have stopped uncleanly, or to have lost or changed their disk, and have not
    /// been resynced or promoted since: no answer of theirs counts (rules 8, 9, 23).
    pub doubtful: NodeSet,
}

/// How large a volume is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeSize {
    /// The committed size, in bytes.
    pub size_bytes: u64,
    /// What there shall be room for: the committed size, or the larger one that is to be.
    pub room_bytes: u64,
    /// It shrank and has not grown since: how often it has shrunk, zero otherwise. Who hears of that for the first time
    /// gives up what lies past the size, whatever size it went by: it may have missed that it grew before.
    pub shrunk: u32,
}

/// What the control plane tells a replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromControl {
    /// The committed record, at start and at every change. While a set change is proposed, a view
    /// with a later generation ends it: it took effect if the set is the proposed one, else it is dead.
    View(View),
    /// How large the volume is and shall be, at start and at every change. Answered by [`ToControl::Room`] once
    /// there is the room and what lies past the volume's end is zero.
    Size(VolumeSize),
    /// Store the promise of this epoch: end all local writes of older epochs, answer no older frame.
    /// Answered by [`ToControl::Promised`].
    Promise {
        /// The epoch to be proposed.
        epoch: Epoch,
    },
    /// The proposal of this epoch is definitely refused: the promise is taken back (rule 1).
    Withdraw {
        /// The epoch that will not be.
        epoch: Epoch,
    },
    /// This node won the epoch it promised: collect, reconcile, then [`ToControl::Opened`].
    Lead(View),
    /// Completions may leave before this time; after it they are held.
    Lease {
        /// End of the lease on this node's clock.
        until: Now,
    },
    /// Planned hand-over: take no more I/O (hold it), finish what is in flight, close it, have the
    /// closes confirmed, then [`ToControl::Drained`].
    Drain,
    /// The hand-over is off: serve on.
    Resume,
    /// This node is primary no longer: fail held requests, become Secondary.
    StepDown,
    /// The daemon stops in good order (after [`FromControl::StepDown`] if it was primary): turn open writes
    /// into durable bits, set the clean mark (rule 24). Answered by [`ToControl::Stopped`]; nothing but
    /// [`Event::PeerDown`] may follow.
    Stop,
    /// Do not trust that peer's copy: remove it from the in-sync set and compare all of it.
    Invalidate {
        /// Whose copy.
        peer: NodeId,
    },
    /// Let that member go: its replica is to be removed. It leaves the in-sync set, and is not taken in again soon.
    Dismiss {
        /// Whose replica.
        peer: NodeId,
    },
    /// The operator keeps this primary's line of history: the peer, which has another one, is to save what it has in
    /// the blocks that may differ, and to give its line up. Answered by [`Note::Discarded`].
    Discard {
        /// Whose line.
        peer: NodeId,
    },
    /// Compare all blocks by hash. Answered by [`Note::Verified`].
    Verify(VerifyOrder),
    /// What the operator wants of resync takes the place of what the configuration says.
    Resync(ResyncOrder),
    /// Use the local disk no more in this run, as if it had failed. The last member's is kept (rule 23).
    Detach,
}

/// Bounds of resync for one volume, shared by all peers that are being resynced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResyncBounds {
    /// It goes on at least this fast beside the application, in bytes per second.
    pub min: u64,
    /// It never goes faster; `None`: as fast as it can.
    pub max: Option<u64>,
    /// It does not go on at all. New writes still reach the peers.
    pub paused: bool,
}

impl Default for ResyncBounds {
    fn default() -> Self {
        Self {
            min: 4 << 20,
            max: None,
            paused: false,
        }
    }
}

/// What an operator said about resync; `None`: as configured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResyncOrder {
    /// In place of the configured [`ResyncBounds::min`].
    pub min: Option<u64>,
    /// In place of the configured [`ResyncBounds::max`].
    pub max: Option<u64>,
    /// Paused.
    pub paused: bool,
}

impl ResyncOrder {
    /// The bounds that follow, where nothing else is said from those of the configuration.
    pub fn over(&self, configured: ResyncBounds) -> ResyncBounds {
        let max = self.max.or(configured.max);
        let min = self.min.unwrap_or(configured.min);
        ResyncBounds {
            min: max.map_or(min, |max| min.min(max)),
            max,
            paused: self.paused,
        }
    }
}

/// A verify that is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyOrder {
    /// With whom the primary's copy is compared; empty: with every other member of the in-sync set.
    pub peers: NodeSet,
    /// Make equal what differs.
    pub repair: Option<Repair>,
    /// Bytes per second at the most.
    pub max_rate: Option<u64>,
    /// By the calendar, not by an operator.
    pub scrub: bool,
}

/// Who is right where copies differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Repair {
    /// What more than half of the in-sync set has; what has no majority stays as it is.
    Majority,
    /// This node, which is the primary or a member.
    Source(NodeId),
}

/// How a verify ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyReport {
    /// What was asked for.
    pub order: VerifyOrder,
    /// It did not begin, for this reason.
    pub refused: Option<String>,
    /// Bytes of the primary's copy that were compared.
    pub compared_bytes: u64,
    /// With whom, and what was found.
    pub peers: Vec<VerifyPeer>,
}

impl VerifyReport {
    /// All of every copy was compared.
    pub fn is_complete(&self) -> bool {
        self.refused.is_none() && self.peers.iter().all(|p| p.complete)
    }
    /// Blocks that differed, over all peers.
    pub fn differing_blocks(&self) -> u64 {
        self.peers.iter().map(|p| p.differing_blocks).sum()
    }
    /// Blocks that were made equal, over all peers.
    pub fn repaired_blocks(&self) -> u64 {
        self.peers.iter().map(|p| p.repaired_blocks).sum()
    }
}

/// What a verify found on one peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyPeer {
    /// Who.
    pub node: NodeId,
    /// It stayed until the end.
    pub complete: bool,
    /// Where it differed from the primary, in order, neighbours joined; cut short after
    /// [`VERIFY_RANGES_MAX`].
    pub differing: Vec<holdfast_types::BlockRange>,
    /// Blocks that differed.
    pub differing_blocks: u64,
    /// Blocks of those that are equal now.
    pub repaired_blocks: u64,
    /// Blocks of those where nobody had a majority, or the source could not be asked.
    pub undecided_blocks: u64,
}

/// Ranges that a verify reports per peer at the most.
pub const VERIFY_RANGES_MAX: usize = 4096;

/// What a replica tells the control plane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToControl {
    /// It runs: run counter durable, crash extents turned into bits.
    Started {
        /// Its volume.
        volume: VolumeId,
        /// Its disk's identity.
        incarnation: Incarnation,
        /// This run.
        run: Run,
        /// The last stop may have lost unflushed writes.
        unclean: bool,
        /// What its disk says of itself.
        disk: DiskState,
        /// Highest epoch promised.
        promised: Epoch,
    },
    /// [`FromControl::Promise`] is durable and older writes have ended.
    Promised {
        /// Which.
        epoch: Epoch,
    },
    /// Change the in-sync set by compare-and-swap on `generation`. Repeated until a later view comes.
    ProposeSet {
        /// The primary's epoch.
        epoch: Epoch,
        /// The version compared with.
        generation: Gen,
        /// The new set.
        in_sync: NodeSet,
        /// Whom it adds or removes.
        peer: NodeId,
        /// The disk and run of the peer that is added: if the committed record knows of another, the peer
        /// has started anew since and the proposal is dead. `None` for a removal.
        life: Option<(Incarnation, Run)>,
        /// For the history.
        why: SetChange,
    },
    /// Every member was heard, in-doubt blocks are marked, the device may open.
    Opened {
        /// In this epoch.
        epoch: Epoch,
    },
    /// [`FromControl::Drain`] is done.
    Drained {
        /// In this epoch.
        epoch: Epoch,
    },
    /// A newer epoch exists: this node's is over.
    Deposed {
        /// The newer one.
        epoch: Epoch,
    },
    /// There is room for a volume of so many bytes, and all past its present size is zero.
    Room {
        /// The committed size that was gone by.
        size_bytes: u64,
        /// The [`VolumeSize::shrunk`] that was gone by.
        shrunk: u32,
        /// Bytes of the volume there is room for.
        room_bytes: u64,
        /// Where the replica's metadata ends on its store: to be remembered, for that is where it is found.
        store_bytes: u64,
    },
    /// The store cannot be made so large; it is tried again now and then.
    NoRoom {
        /// Bytes the store must have.
        store_bytes: u64,
    },
    /// The local disk is not used any more in this run.
    DiskFailed {
        /// Why.
        why: DiskTrouble,
    },
    /// The local disk that failed owes no answer any more: a new run may take it up.
    DiskIdle,
    /// This primary has no disk and for some time no member to serve it: let a member lead (rules 25, 38). Repeated
    /// as long as it is so.
    Stranded {
        /// In this epoch.
        epoch: Epoch,
    },
    /// [`FromControl::Stop`] is done: the clean mark is durable (or the disk failed).
    Stopped,
}

/// Why the in-sync set changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SetChange {
    /// Not connected for too long.
    Lost,
    /// Connected, but did not answer in time.
    Slow,
    /// Its disk failed.
    DiskFailed,
    /// It started anew: it is resynced from its log before it counts again (rule 8).
    Restarted,
    /// Its disk is another one, or went back to an earlier state: all of it is compared (rule 31).
    Strange,
    /// The operator does not trust it.
    Invalidated,
    /// The operator removes it.
    Dismissed,
    /// Resync is complete.
    Synced,
}

/// Things worth telling.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Note {
    /// A peer was attached; so many blocks were dirty for it.
    Attached {
        /// Who.
        peer: NodeId,
        /// Member of the in-sync set.
        member: bool,
        /// Blocks to compare or copy.
        dirty_blocks: u64,
    },
    /// The session with a peer ended.
    Detached {
        /// Who.
        peer: NodeId,
    },
    /// A peer's disk is not the one that was seen before: all of it is compared.
    Distrusted {
        /// Who.
        peer: NodeId,
        /// Why.
        why: Strange,
    },
    /// A peer's content belongs to another line of history: it is left alone until the operator says which is kept.
    Split {
        /// Who.
        peer: NodeId,
        /// This replica's line.
        ours: u64,
        /// The peer's.
        theirs: u64,
    },
    /// A peer's line of history was given up after it was saved there, or not.
    Discarded {
        /// Who.
        peer: NodeId,
        /// It was; it is resynced now.
        done: bool,
        /// Where it is saved, or why nothing was done.
        text: String,
    },
    /// Resync of a peer is complete.
    Resynced {
        /// Who.
        peer: NodeId,
        /// Payload bytes sent.
        sent_bytes: u64,
        /// Blocks that went as zeroes, without payload.
        zero_blocks: u64,
        /// Blocks compared by hash and found equal.
        equal_blocks: u64,
    },
    /// Reconciliation after a promotion is complete.
    Reconciled {
        /// In-doubt blocks looked at.
        blocks: u64,
    },
    /// A verify ended, or did not begin.
    Verified(VerifyReport),
    /// A verify made these blocks equal on all members.
    Repaired {
        /// Which.
        range: holdfast_types::BlockRange,
        /// Whose copy was right.
        source: NodeId,
        /// Whose copies were overwritten.
        wrong: NodeSet,
    },
    /// A peer or a client sent something that is against the protocol; it was disconnected.
    Protocol {
        /// Who.
        peer: NodeId,
        /// What was wrong.
        what: String,
    },
    /// The volume has another size on this replica.
    Resized {
        /// Bytes.
        size_bytes: u64,
    },
    /// The local disk is used no more.
    DiskFailed {
        /// Why.
        why: DiskTrouble,
        /// On what.
        what: String,
    },
    /// Blocks of the local disk could not be read.
    Unreadable {
        /// Which.
        range: holdfast_types::BlockRange,
    },
    /// Blocks that could not be read were fetched from a member and written anew.
    Healed {
        /// Which.
        range: holdfast_types::BlockRange,
        /// From whom.
        from: NodeId,
    },
}

pub use status::{PeerStatus, ResyncStatus, Status, Trouble, VerifyStatus};

/// So that interpreters need only this crate's name for it.
pub use holdfast_wire::Frame as PeerFrame;
/// The lane a frame travels on.
pub type FrameLane = Lane;
