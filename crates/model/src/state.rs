//! Everything the model knows, in one small value that is copied and hashed millions of times.
//!
//! Blocks hold small numbers: 0 at first, then the number of the write. A block is an extent of its own. Names are those
//! of the code that is modelled: `Node` is a replica with its disk, `Register` the control plane's committed record.

/// Data nodes at most.
pub const NODES: usize = 3;
/// Blocks at most.
pub const BLOCKS: usize = 2;
/// Sequences of one epoch, from 1.
pub const SEQS: usize = 8;
/// Frames on the write lane to one replica.
const WRITE_LANE: usize = 6;
/// Frames on the bulk lane to one replica.
const BULK_LANE: usize = 2;
/// Answers on their way in one session.
const ANSWERS: usize = 4;

/// A set of nodes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Set(pub u8);

impl Set {
    /// No node.
    pub const EMPTY: Self = Self(0);
    /// The first `count` nodes.
    pub fn first(count: u8) -> Self {
        Self((1 << count) - 1)
    }
    /// One node.
    pub fn only(n: usize) -> Self {
        Self(1 << n)
    }
    /// Is it in?
    pub fn has(self, n: usize) -> bool {
        self.0 & (1 << n) != 0
    }
    /// With a node.
    #[must_use]
    pub fn with(self, n: usize) -> Self {
        Self(self.0 | 1 << n)
    }
    /// Without a node.
    #[must_use]
    pub fn without(self, n: usize) -> Self {
        Self(self.0 & !(1 << n))
    }
    /// In either.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
    /// In both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
    /// Not in the other.
    #[must_use]
    pub fn minus(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
    /// Has all of the other.
    pub fn contains(self, other: Self) -> bool {
        other.minus(self).is_empty()
    }
    /// Nobody in it.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
    /// Its nodes.
    pub fn iter(self) -> impl Iterator<Item = usize> {
        (0..NODES).filter(move |&n| self.has(n))
    }
}

impl std::fmt::Debug for Set {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("{")?;
        for (i, n) in self.iter().enumerate() {
            write!(f, "{}n{n}", if i > 0 { " " } else { "" })?;
        }
        f.write_str("}")
    }
}

/// A short queue; what does not fit is not sent yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Queue<T, const C: usize>([Option<T>; C]);

impl<T: Copy, const C: usize> Default for Queue<T, C> {
    fn default() -> Self {
        Self([None; C])
    }
}

impl<T: Copy, const C: usize> Queue<T, C> {
    /// Appends; false if it is full.
    #[must_use]
    pub fn push(&mut self, item: T) -> bool {
        match self.0.iter_mut().find(|i| i.is_none()) {
            Some(slot) => {
                *slot = Some(item);
                true
            }
            None => false,
        }
    }
    /// What stands at this place.
    pub fn get(&self, at: usize) -> Option<T> {
        self.0[at]
    }
    /// Takes out what stands at this place.
    pub fn take(&mut self, at: usize) -> Option<T> {
        let item = self.0[at].take();
        self.0[at..].rotate_left(1);
        item
    }
    /// From the front.
    pub fn iter(&self) -> impl Iterator<Item = T> {
        self.0.iter().map_while(|i| *i)
    }
}

/// From a primary to a replica. All but `Resync` go on the write lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Frame {
    /// A write.
    Write {
        /// Its sequence.
        seq: u8,
        /// Where.
        block: u8,
        /// What.
        value: u8,
    },
    /// Writes up to this one are settled; `set` holds those that no earlier close named.
    Close {
        /// The last.
        upto: u8,
        /// The holders.
        set: Set,
    },
    /// The block is equal on all of `set`.
    Reconciled {
        /// Which.
        block: u8,
        /// The in-sync set.
        set: Set,
    },
    /// Make everything before stable.
    Flush,
    /// From here on the receiver counts: bits of absent peers per block.
    Cut {
        /// Who lacks which block.
        bits: [Set; BLOCKS],
    },
    /// These lack nothing.
    Grown {
        /// The nodes.
        nodes: Set,
    },
    /// These have got the block by resync.
    Synced {
        /// Which.
        block: u8,
        /// The nodes.
        nodes: Set,
    },
    /// A resync copy.
    Resync {
        /// Where.
        block: u8,
        /// What.
        value: u8,
    },
}

/// From a replica to the primary of its session; the answer to a resync copy has its own lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Answer {
    /// A write is on its disk.
    Ack {
        /// Sequence.
        seq: u8,
        /// Where.
        block: u8,
    },
    /// A flush is done.
    Flushed,
    /// A cut is done.
    CutDone,
}

/// What survives the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Disk {
    /// What a read returns.
    pub cache: [u8; BLOCKS],
    /// What a loss of power leaves at least.
    pub stable: [u8; BLOCKS],
    /// Extents in the durable activity log.
    pub log: [bool; BLOCKS],
    /// Who lacks which block, as saved.
    pub bits: [Set; BLOCKS],
    /// Highest epoch promised.
    pub promised: u8,
    /// How often it was started.
    pub run: u8,
    /// Power was lost, and nothing has made up for it since.
    pub unclean: bool,
}

/// A disk write that was submitted and has not ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Landing {
    /// Where.
    pub block: u8,
    /// What.
    pub value: u8,
    /// Whose it is.
    pub of: LandingOf,
}

/// Who waits for the end of a disk write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LandingOf {
    /// Nobody: its session or role is over.
    Nobody,
    /// A process that is dead; the new one does not know of it.
    Former,
    /// This primary's own write.
    Own,
    /// A write of the session.
    Write {
        /// Its sequence.
        seq: u8,
    },
    /// A resync copy of the session.
    Resync,
}

/// A secondary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Follower {
    /// The primary whose session this is in.
    pub lord: Option<u8>,
    /// Open writes per block, a bit for each sequence.
    pub open: [u8; BLOCKS],
    /// The epoch they are of.
    pub open_epoch: u8,
    /// It promised the next epoch and proposed itself; the outcome is not known.
    pub standing: bool,
    /// Frames on their way to it.
    pub lane: Queue<Frame, WRITE_LANE>,
    /// Resync copies on their way to it.
    pub bulk: Queue<Frame, BULK_LANE>,
}

/// A write that is not settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Write {
    /// Its sequence.
    pub seq: u8,
    /// What.
    pub value: u8,
    /// To whom it was sent.
    pub sent: Set,
    /// Who has it on disk.
    pub answered: Set,
    /// This node has.
    pub local: bool,
    /// A reconciliation's copy, not the application's.
    pub push: bool,
}

/// A primary's side of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Session {
    /// There is one.
    pub on: bool,
    /// Writes without answer per block, a bit for each sequence.
    pub unanswered: [u8; BLOCKS],
    /// Answers on their way.
    pub answers: Queue<Answer, ANSWERS>,
    /// Answers to resync copies on their way.
    pub copied: [bool; BLOCKS],
}

/// How far a peer is on its way into the set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// Cut sent.
    Cutting,
    /// Cut confirmed.
    Confirmed,
    /// Proposed.
    Proposed,
}

/// A peer on its way into the set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Growing {
    /// Who.
    pub peer: u8,
    /// Its run at the cut.
    pub run: u8,
    /// How far.
    pub stage: Stage,
}

/// A flush of the application.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlushRound {
    /// Who has not flushed yet.
    pub waiting: Set,
    /// Values that were past for the client when it began.
    pub past: [u8; BLOCKS],
}

/// A primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Primary {
    /// Of this epoch.
    pub epoch: u8,
    /// The version of the record it goes by.
    pub generation: u8,
    /// The set it goes by.
    pub in_sync: Set,
    /// It serves.
    pub open: bool,
    /// Members that have reported.
    pub heard: Set,
    /// The run each member had when it was taken in; zero: not yet.
    pub runs: [u8; NODES],
    /// Nothing has been in doubt since.
    pub reconciled: bool,
    /// The peer whose coming or going is proposed.
    pub proposed: Option<u8>,
    /// The peer on its way in.
    pub growing: Option<Growing>,
    /// Sessions.
    pub sessions: [Session; NODES],
    /// The write in flight per block (its range lock).
    pub writes: [Option<Write>; BLOCKS],
    /// The peer a block is being copied to (its range lock).
    pub jobs: [Option<u8>; BLOCKS],
    /// Who has got a block by resync; the members are not told yet.
    pub synced: [Set; BLOCKS],
    /// Last sequence given.
    pub seq: u8,
    /// Holders of settled writes whose close is not sent.
    pub settled: [Set; SEQS],
    /// All up to here are settled.
    pub closed: u8,
    /// Closes sent up to here.
    pub closes_sent: u8,
    /// The flush in flight.
    pub flush: Option<FlushRound>,
}

/// What runs on a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Nothing.
    Down,
    /// A secondary.
    Secondary(Follower),
    /// A primary, perhaps of an epoch that is over.
    Primary(Primary),
}

/// A replica and its disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Node {
    /// Its disk.
    pub disk: Disk,
    /// Who lacks which block, in memory.
    pub bits: [Set; BLOCKS],
    /// Disk write in flight.
    pub landing: Option<Landing>,
    /// What runs.
    pub role: Role,
}

/// A command on its way to the control plane; it may commit long after, or never.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Proposal {
    /// Compared.
    pub generation: u8,
    /// What it wants.
    pub what: Change,
}

/// What a command changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Change {
    /// The proposer becomes primary of the next epoch.
    Takeover,
    /// A member goes.
    Remove {
        /// Who.
        peer: u8,
        /// The primary's epoch, compared.
        epoch: u8,
    },
    /// A member comes.
    Add {
        /// Who.
        peer: u8,
        /// The primary's epoch, compared.
        epoch: u8,
        /// The peer's run, compared.
        run: u8,
    },
}

/// The committed record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Register {
    /// Grows with every change.
    pub generation: u8,
    /// Current epoch.
    pub epoch: u8,
    /// Its primary.
    pub primary: u8,
    /// The in-sync set.
    pub in_sync: Set,
    /// Latest run seen of each replica.
    pub runs: [u8; NODES],
    /// Replicas known to have stopped uncleanly.
    pub unclean: Set,
}

/// What a client may know; no part of the system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Client {
    /// Values a read may return, a bit for each.
    pub allowed: [u8; BLOCKS],
    /// Values that may never be read again, whatever happens.
    pub gone: [u8; BLOCKS],
    /// Values ever written.
    pub issued: [u8; BLOCKS],
    /// Content of each new primary when its epoch began: what is part of a newer history.
    pub inherited: [u8; BLOCKS],
}

/// How much of the bounds is used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Used {
    /// Writes.
    pub writes: u8,
    /// Flushes.
    pub flushes: u8,
    /// Crashes.
    pub crashes: u8,
    /// Broken connections.
    pub drops: u8,
    /// Candidacies.
    pub promotions: u8,
    /// Removals.
    pub removals: u8,
    /// Cuts.
    pub grows: u8,
    /// Orderly stops.
    pub stops: u8,
    /// Demotions.
    pub demotions: u8,
}

/// The world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct State {
    /// Replicas.
    pub nodes: [Node; NODES],
    /// The committed record.
    pub register: Register,
    /// Each node's command on its way.
    pub proposals: [Option<Proposal>; NODES],
    /// The client's knowledge.
    pub client: Client,
    /// Bounds used.
    pub used: Used,
}
