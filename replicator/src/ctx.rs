//! What every role of a replica needs: time, the list of actions, the disk and its metadata, the
//! bitmaps, the activity log, the links to the peers.
//!
//! Things that end (a disk operation, a saved bitmap, a granted extent) come back as [`Wake`]s from a
//! queue that the replica empties after every event, so no code calls back into its caller.
//!
//! Invariants
//! - one superblock write at a time; each is numbered, and what waits for it is done in order;
//! - `writes_in_flight` counts data writes submitted to the local disk and not ended (rule 18);
//! - a save ends only when every bit set before it began is on disk;
//! - a peer's slot is on disk only after its first bits are.

mod log;

use crate::activity::{ActivityLog, Step};
use crate::bits::Bits;
use crate::config::Config;
use crate::room::{Room, RoomIo};
use crate::rules::Rule;
use crate::{
    Action, DiskError, DiskOp, DiskTrouble, IoId, Note, Now, ResyncBounds, ResyncOrder,
    Save as FileSave, ToControl, Trouble, View,
};
use bytes::Bytes;
use holdfast_meta::{Layout, Superblock, Transaction, Unsaved};
use holdfast_types::{BlockRange, DiskState, Epoch, NodeId, NodeSet, Seen, SessionId};
use holdfast_wire::{Frame, Hello};
use std::collections::{BTreeMap, VecDeque};

/// The most that one look at the clock counts as time in which this process ran, in nanoseconds: twice a tick.
const AWAKE_STEP_NS: u64 = 100_000_000;

/// Names a write that a secondary received.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct RecvId(pub u64);
/// Names a piece of an application's request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PieceId(pub u64);
/// Names a resync, reconcile or verify job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct JobId(pub u64);

/// Names a rewrite of blocks that could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct HealId(pub u64);

/// Counts the roles a replica has had, so that an answer to an earlier one is not taken for the present one's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Life(pub u64);

/// Who waits for activity-log extents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LogUser {
    Piece(PieceId),
    Recv(RecvId),
    /// A repair of the primary's own copy: its token and blocks.
    Fix(u64, BlockRange),
    Heal(HealId),
}

/// What a disk operation of a role was for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RoleIo {
    PieceRead(PieceId),
    LocalWrite(holdfast_types::Seq),
    LocalFlush(u64),
    JobRead(JobId),
    Heal(HealId),
    RecvWrite(RecvId),
    RecvFlush(u64),
    RecvRead(RecvId),
    /// One block of a read that failed as a whole.
    RecvReread(RecvId, u32),
}

impl RoleIo {
    fn is_read(self) -> bool {
        matches!(
            self,
            Self::PieceRead(_) | Self::JobRead(_) | Self::RecvRead(_) | Self::RecvReread(..)
        )
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Purpose {
    Room(RoomIo),
    Superblock,
    LogWrite,
    TraceFlush,
    Page { node: NodeId, page: u32, save: u64 },
    OwnFlush,
    Role { life: Life, io: RoleIo, write: bool },
}

/// What goes on when bits are saved, a superblock is written, or the replica's own flush ended. Each says for
/// whom, so that the end of an earlier write is never taken for that of a later one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum After {
    /// Nothing waits.
    Nothing,
    /// The activity log may evict.
    Trace,
    /// Start-up goes on.
    Start,
    /// The stop goes on.
    Stop,
    /// The promise of this number (the secondary's own) is stored.
    Promise(u64),
    /// This session may be answered.
    Attach(Epoch, SessionId),
    /// The device may open, in this life.
    Open(Life),
    /// The line of history of this save is given up.
    Discard(u64),
    /// The cut of this number (the secondary's own) may be answered.
    Cut(u64),
    /// Nothing, but not to be left out because of a save that began earlier.
    Placed,
    /// What lies past the volume's end is zero, and that is noted.
    Room,
}

/// Something that ended and concerns a role.
#[derive(Clone, Debug)]
pub(crate) enum Wake {
    /// Extents are granted.
    Log(LogUser),
    /// The bits set before the save began are on disk.
    Saved(After),
    /// The superblock is on disk.
    Stored(After),
    /// The replica's own flush ended.
    Flushed,
    /// An activity-log transaction is on disk.
    LogWritten,
    /// A role's disk operation ended.
    Io(RoleIo, Bytes),
    /// A role's read failed.
    ReadFailed(RoleIo),
    /// No data write is in flight any more.
    Drained,
    /// The committed record changed within this node's epoch as primary.
    View(View),
    /// The disk just failed.
    DiskFailed,
}

/// The connection to a peer, whatever the roles.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    pub(crate) up: bool,
    pub(crate) hello: Option<Hello>,
    /// What is wrong with the identity it said hello with.
    pub(crate) trouble: Option<Trouble>,
    /// When something last came.
    pub(crate) heard: Now,
    /// When something was last sent.
    pub(crate) sent: Now,
}

#[derive(Clone, Debug)]
struct Save {
    number: u64,
    least: Unsaved,
    after: After,
    left: u32,
}

impl Link {
    fn new(now: Now) -> Self {
        Self {
            up: false,
            hello: None,
            trouble: None,
            heard: now,
            sent: now,
        }
    }
}

pub(crate) struct Ctx {
    pub(crate) cfg: Config,
    pub(crate) now: Now,
    pub(crate) out: Vec<Action>,
    pub(crate) wakes: VecDeque<Wake>,
    pub(crate) layout: Layout,
    /// As it shall be on disk.
    pub(crate) superblock: Superblock,
    pub(crate) boot_id: u128,
    /// The last stop may have lost unflushed writes, and nothing has made up for it yet.
    pub(crate) unclean: bool,
    pub(crate) bits: Bits,
    pub(crate) log: ActivityLog<LogUser>,
    pub(crate) room: Room,
    pub(crate) life: Life,
    pub(crate) links: BTreeMap<NodeId, Link>,
    /// Nodes that are connected and hold no replica by what this node knows.
    pub(crate) strangers: NodeSet,
    /// Bounds of resync by the configuration, and what the operator last said about them.
    pub(crate) resync_configured: ResyncBounds,
    pub(crate) resync_order: ResyncOrder,
    /// What was last heard of the peers' disks (rule 31); every superblock write carries it.
    pub(crate) seen: BTreeMap<NodeId, Seen>,
    /// It says more than the superblock.
    seen_news: bool,
    /// Why the disk is not used any more.
    pub(crate) trouble: Option<DiskTrouble>,
    idle_told: bool,
    /// Activity-log transactions that went to the disk in this run, and the number of the last that is on it.
    pub(crate) log_writes: u64,
    pub(crate) log_number: u64,
    pub(crate) read_errors: u64,
    pub(crate) writes_in_flight: u32,
    /// Each with the time on `awake` when it was submitted.
    ios: BTreeMap<IoId, (Purpose, Now)>,
    /// Runs only while this process does: a process that was stopped has not seen the disk hang.
    awake: Now,
    next_io: u64,
    /// Nodes whose slot is not to be on disk yet, and the save that brings its bits. Until then the slot holds what an
    /// earlier replica of that node lacked, and without the slot the next start takes all for dirty.
    unplaced: BTreeMap<NodeId, u64>,
    superblock_writing: bool,
    superblock_waits: Vec<After>,
    superblock_next: Vec<After>,
    superblock_again: bool,
    saves: VecDeque<Save>,
    next_save: u64,
    trace_flush: bool,
    trace_saved: bool,
    next_barrier: u64,
}

impl std::fmt::Debug for Ctx {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ctx")
            .field("me", &self.cfg.me)
            .field("life", &self.life)
            .finish_non_exhaustive()
    }
}

impl Ctx {
    #[allow(clippy::too_many_arguments)] // built once, by Replica::start
    pub(crate) fn new(
        cfg: Config,
        now: Now,
        boot_id: u128,
        superblock: Superblock,
        layout: Layout,
        bits: Bits,
        log: ActivityLog<LogUser>,
        unclean: bool,
    ) -> Self {
        let log_number_before = log.durable();
        let links = cfg
            .data_nodes
            .without(cfg.me)
            .iter()
            .map(|n| (n, Link::new(now)))
            .collect();
        let seen = superblock
            .peer_slots
            .iter()
            .zip(superblock.seen)
            .filter_map(|(node, seen)| Some(((*node)?, seen)))
            .filter(|(_, seen)| !seen.is_nothing())
            .collect();
        Self {
            cfg,
            now,
            out: Vec::new(),
            wakes: VecDeque::new(),
            layout,
            superblock,
            boot_id,
            unclean,
            bits,
            log,
            room: Room::default(),
            life: Life(0),
            links,
            strangers: NodeSet::EMPTY,
            resync_configured: ResyncBounds::default(),
            resync_order: ResyncOrder::default(),
            seen,
            seen_news: false,
            trouble: None,
            idle_told: false,
            log_writes: 0,
            log_number: log_number_before,
            read_errors: 0,
            writes_in_flight: 0,
            ios: BTreeMap::new(),
            awake: Now(0),
            next_io: 1,
            unplaced: BTreeMap::new(),
            superblock_writing: false,
            superblock_waits: Vec::new(),
            superblock_next: Vec::new(),
            superblock_again: false,
            saves: VecDeque::new(),
            next_save: 1,
            trace_flush: false,
            trace_saved: false,
            next_barrier: 0,
        }
    }

    pub(crate) fn me(&self) -> NodeId {
        self.cfg.me
    }

    /// Every data node but this one.
    pub(crate) fn others(&self) -> NodeSet {
        self.cfg.data_nodes.without(self.cfg.me)
    }

    /// Goes by another set of data nodes. Whoever came lacks everything until it is compared; whoever went is
    /// forgotten, and its slot is free.
    ///
    /// The role has let go of whoever went.
    pub(crate) fn place(&mut self, data_nodes: NodeSet) {
        let (old, new) = (self.others(), data_nodes.without(self.cfg.me));
        if old == new {
            return;
        }
        for node in old.minus(new).iter() {
            self.disconnect(node);
            self.links.remove(&node);
            self.bits.forget(node);
            self.superblock.free_slot(node);
            self.seen.remove(&node);
            self.unplaced.remove(&node);
        }
        self.cfg.data_nodes = new.with(self.cfg.me);
        for node in new.minus(old).iter() {
            self.superblock
                .give_slot(node)
                .expect("there are as many slots as other nodes");
            self.unplaced.insert(node, self.next_save);
            self.bits.add(node, &self.layout);
            self.links.insert(node, Link::new(self.now));
            if self.strangers.has(node) {
                // It greeted when this node did not know it yet: anew, from the start.
                self.out.push(Action::Disconnect { peer: node });
            }
        }
        self.store(After::Nothing);
        self.save_bits(Unsaved::Set, After::Placed);
    }

    /// A replica just started that knows of these nodes by its configuration only.
    pub(crate) fn slots_are_new(&mut self, nodes: NodeSet) {
        let save = self.next_save;
        self.unplaced.extend(nodes.iter().map(|n| (n, save)));
    }

    /// Is this rule switched off (by a test)?
    pub(crate) fn off(&self, rule: Rule) -> bool {
        self.cfg.off == Some(rule)
    }

    pub(crate) fn send(&mut self, peer: NodeId, frame: Frame) {
        if let Some(link) = self.links.get_mut(&peer)
            && link.up
        {
            link.sent = self.now;
            self.out.push(Action::Send { peer, frame });
        }
    }

    pub(crate) fn control(&mut self, message: ToControl) {
        self.out.push(Action::Control(message));
    }

    pub(crate) fn note(&mut self, note: Note) {
        self.out.push(Action::Note(note));
    }

    /// Ends the connection; the interpreter answers with `PeerDown`.
    pub(crate) fn disconnect(&mut self, peer: NodeId) {
        if self.links.get(&peer).is_some_and(|l| l.up) {
            self.out.push(Action::Disconnect { peer });
        }
    }

    /// The bounds of resync in force.
    pub(crate) fn resync(&self) -> ResyncBounds {
        self.resync_order.over(self.resync_configured)
    }

    /// Saves blocks to a file; ends as an event of its own.
    pub(crate) fn save_file(&mut self, save: FileSave) {
        self.out.push(Action::Save(save));
    }

    // ---- what was heard of the peers' disks

    /// Notes what was heard of a peer's disk; stored with the next superblock, in [`Ctx::save_seen`] at the latest.
    pub(crate) fn saw(&mut self, node: NodeId, seen: Seen) {
        self.seen_news |= self.seen.insert(node, seen) != Some(seen);
    }

    /// Stores what is new of it.
    pub(crate) fn save_seen(&mut self) {
        if self.seen_news && !self.disk_failed() {
            self.store(After::Nothing);
        }
    }

    /// Is what was last heard of this peer's disk on stable storage?
    pub(crate) fn is_seen_stored(&self, node: NodeId) -> bool {
        let slot = self.superblock.slot_of(node).map(usize::from);
        let stored = slot.map(|s| self.superblock.seen[s]).unwrap_or_default();
        !self.superblock_writing && self.seen.get(&node).is_none_or(|seen| *seen == stored)
    }

    /// What this replica says of its own disk.
    pub(crate) fn own_seen(&self) -> Seen {
        Seen {
            incarnation: self.superblock.incarnation,
            run: self.superblock.run,
            log: self.log_number,
        }
    }

    // ---- disk

    /// The disk is not used any more.
    pub(crate) fn disk_failed(&self) -> bool {
        self.trouble.is_some()
    }

    /// Time goes on to `now`.
    pub(crate) fn pass(&mut self, now: Now) {
        let step = Now(now.0.saturating_sub(self.now.0));
        self.awake = Now(self.awake.0 + step.0.min(AWAKE_STEP_NS));
        self.now = self.now.max(now);
    }

    /// When a disk that failed owes no answer any more, that is told.
    pub(crate) fn tell_idle(&mut self) {
        if self.disk_failed() && self.ios.is_empty() && !self.idle_told {
            self.idle_told = true;
            self.control(ToControl::DiskIdle);
        }
    }

    /// A disk that does not answer is a failed one (rule 18).
    pub(crate) fn check_disk(&mut self) {
        let limit = self.cfg.timing.disk_ms;
        // Zeroing new room may take long on a disk that is well.
        let patient = |p: &Purpose| matches!(p, Purpose::Room(_));
        let late = self.ios.values().find(|(p, _)| !patient(p)).copied();
        if let Some((purpose, at)) = late.filter(|(_, at)| self.awake.ms_since(*at) >= limit) {
            let ms = self.awake.ms_since(at);
            self.fail_disk(
                DiskTrouble::Hung,
                &format!("{purpose:?}: no answer for {ms} ms"),
            );
        }
    }

    /// Nothing more is asked of a disk that failed.
    pub(crate) fn disk(&mut self, purpose: Purpose, op: DiskOp) {
        if self.disk_failed() {
            return;
        }
        let io = IoId(self.next_io);
        self.next_io += 1;
        if let Purpose::Role { write: true, .. } = purpose {
            self.writes_in_flight += 1;
        }
        self.ios.insert(io, (purpose, self.awake));
        self.out.push(Action::Disk { io, op });
    }

    /// A disk operation of the present role; its end comes as [`Wake::Io`].
    pub(crate) fn role_io(&mut self, io: RoleIo, op: DiskOp) {
        let write = matches!(op, DiskOp::Write { .. } | DiskOp::Zero { .. });
        self.disk(
            Purpose::Role {
                life: self.life,
                io,
                write,
            },
            op,
        );
    }

    pub(crate) fn byte_range(&self, range: BlockRange) -> (u64, u64) {
        let block = u64::from(self.layout.geometry.block_bytes);
        (range.first * block, range.count * block)
    }

    pub(crate) fn read_op(&self, range: BlockRange) -> DiskOp {
        let (offset, len) = self.byte_range(range);
        DiskOp::Read {
            offset,
            len: len as u32,
        }
    }

    pub(crate) fn write_op(&self, range: BlockRange, data: Option<Bytes>, durable: bool) -> DiskOp {
        let (offset, len) = self.byte_range(range);
        match data {
            Some(data) => {
                assert_eq!(data.len() as u64, len);
                DiskOp::Write {
                    offset,
                    data,
                    durable,
                }
            }
            None => DiskOp::Zero {
                offset,
                len,
                durable,
            },
        }
    }

    /// Makes everything written so far stable, for the replica itself; ends as [`Wake::Flushed`].
    pub(crate) fn own_flush(&mut self) {
        self.disk(Purpose::OwnFlush, DiskOp::Flush);
    }

    pub(crate) fn disk_done(&mut self, io: IoId, result: Result<Bytes, DiskError>) {
        let (purpose, _) = self.ios.remove(&io).expect("an operation ends once");
        self.ended(purpose, result);
        if let Purpose::Role { write: true, .. } = purpose {
            self.writes_in_flight -= 1;
            if self.writes_in_flight == 0 {
                // After the write's own wake: whoever waits for this finds it accounted for.
                self.wakes.push_back(Wake::Drained);
            }
        }
    }

    fn ended(&mut self, purpose: Purpose, result: Result<Bytes, DiskError>) {
        let bytes = match result {
            Ok(bytes) => bytes,
            Err(error) => {
                if self.disk_failed() {
                    return;
                }
                match purpose {
                    Purpose::Page { node, page, .. } => self.bits.end_save(node, page, false),
                    // What a read error means depends on whether there is another copy.
                    Purpose::Role {
                        life,
                        io,
                        write: false,
                    } if io.is_read() => {
                        if life == self.life {
                            self.read_errors += 1;
                            self.wakes.push_back(Wake::ReadFailed(io));
                        }
                        return;
                    }
                    _ => {}
                }
                let trouble = match error {
                    DiskError::Io => DiskTrouble::Io,
                    DiskError::NoSpace => DiskTrouble::NoSpace,
                };
                self.fail_disk(trouble, &format!("{purpose:?}: {error:?}"));
                return;
            }
        };
        if self.disk_failed() {
            return; // a failed disk's later successes change nothing
        }
        match purpose {
            Purpose::Room(io) => self.room_io(io),
            Purpose::Superblock => {
                self.superblock_writing = false;
                for after in std::mem::take(&mut self.superblock_waits) {
                    self.wakes.push_back(Wake::Stored(after));
                }
                if std::mem::take(&mut self.superblock_again) {
                    let next = std::mem::take(&mut self.superblock_next);
                    self.write_superblock(next);
                }
            }
            Purpose::LogWrite => self.log_written(),
            Purpose::TraceFlush => {
                self.trace_flush = false;
                self.try_evict();
            }
            Purpose::Page { node, page, save } => {
                self.bits.end_save(node, page, true);
                if let Some(s) = self.saves.front_mut().filter(|s| s.number == save) {
                    s.left -= 1;
                }
                self.pump_saves();
            }
            Purpose::OwnFlush => self.wakes.push_back(Wake::Flushed),
            Purpose::Role { life, io, .. } => {
                if life == self.life {
                    self.wakes.push_back(Wake::Io(io, bytes));
                }
            }
        }
    }

    /// An error on write or flush is final for the disk in this run (rule 23, fsync rule).
    pub(crate) fn fail_disk(&mut self, why: DiskTrouble, what: &str) {
        if self.disk_failed() {
            return;
        }
        self.trouble = Some(why);
        self.note(Note::DiskFailed {
            why,
            what: what.to_owned(),
        });
        self.control(ToControl::DiskFailed { why });
        self.wakes.push_back(Wake::DiskFailed);
        // The log goes on in memory, where it bounds what is in flight (rule 30): its steps end at once.
        if self.log.is_tracing() {
            let step = self.log.traced();
            self.log_step(step);
        } else if !self.log.is_idle() {
            self.log_written();
        } else {
            // It may have waited for the metadata to move.
            self.pump_log();
        }
    }

    // ---- superblock

    /// Is the superblock on disk as it is here?
    pub(crate) fn is_stored(&self) -> bool {
        !self.superblock_writing && !self.superblock_again
    }

    /// Numbers the barriers of all lives, so that what an earlier life waited for is not taken for a later one's.
    pub(crate) fn barrier_number(&mut self) -> u64 {
        self.next_barrier += 1;
        self.next_barrier
    }

    /// Writes the superblock as it is now; `after` comes back as [`Wake::Stored`].
    pub(crate) fn store(&mut self, after: After) {
        if self.superblock_writing || self.is_moving() {
            self.superblock_again = true;
            self.superblock_next.push(after);
        } else {
            self.write_superblock(vec![after]);
        }
    }

    fn write_superblock(&mut self, waits: Vec<After>) {
        assert!(!self.superblock_writing);
        let superblock = self.next_superblock();
        self.superblock_writing = true;
        self.superblock_waits = waits;
        let (offset, data) = superblock.write(&self.layout);
        self.disk(
            Purpose::Superblock,
            DiskOp::Write {
                offset,
                data,
                durable: true,
            },
        );
    }

    /// The superblock as it goes to disk next.
    pub(crate) fn next_superblock(&mut self) -> Superblock {
        self.superblock.update += 1;
        self.seen_news = false;
        for (&node, &seen) in &self.seen {
            if let Some(slot) = self.superblock.slot_of(node) {
                self.superblock.seen[usize::from(slot)] = seen;
            }
        }
        let mut superblock = self.superblock.clone();
        for &node in self.unplaced.keys() {
            superblock.free_slot(node);
        }
        superblock
    }

    /// The content is trusted again: nothing lost at an unclean stop is missing any more.
    pub(crate) fn trust(&mut self, disk: DiskState, after: After) {
        self.unclean = false;
        self.superblock.boot_id = self.boot_id;
        self.superblock.disk = disk;
        self.store(after);
    }

    /// Stores the highest epoch promised.
    pub(crate) fn promise(&mut self, epoch: Epoch) {
        self.superblock.promised = epoch;
    }

    // ---- bitmaps

    /// Saves bitmap pages; `after` comes back as [`Wake::Saved`] when all bits set until now are on disk.
    pub(crate) fn save_bits(&mut self, least: Unsaved, after: After) {
        if after == After::Nothing && self.saves.iter().any(|s| s.after == After::Nothing) {
            return;
        }
        let number = self.next_save;
        self.next_save += 1;
        self.saves.push_back(Save {
            number,
            least,
            after,
            left: u32::MAX,
        });
        self.pump_saves();
    }

    /// No metadata write is under way or waits.
    pub(crate) fn is_still(&self) -> bool {
        !self.superblock_writing && self.log.is_idle() && !self.trace_flush && self.saves.is_empty()
    }

    /// The metadata has moved: what waited for that goes on.
    pub(crate) fn resume_metadata(&mut self) {
        if std::mem::take(&mut self.superblock_again) {
            let next = std::mem::take(&mut self.superblock_next);
            self.write_superblock(next);
        }
        self.pump_saves();
        self.pump_log();
        // A stop that waited for the log looks again.
        self.wakes.push_back(Wake::Drained);
    }

    fn pump_saves(&mut self) {
        if self.is_moving() {
            return;
        }
        while let Some(save) = self.saves.front().cloned() {
            if save.left == 0 {
                self.saves.pop_front();
                let slots = self.unplaced.len();
                self.unplaced.retain(|_, bits| *bits > save.number);
                if self.unplaced.len() < slots {
                    self.store(After::Nothing);
                }
                self.wakes.push_back(Wake::Saved(save.after));
                continue;
            }
            if save.left != u32::MAX {
                return;
            }
            // Its turn: saves run one after another, so no page of it is being saved by an earlier one.
            let mut left = 0;
            while let Some((node, page, data)) = self
                .bits
                .begin_save(save.least, self.superblock.incarnation)
            {
                let slot = self
                    .superblock
                    .slot_of(node)
                    .expect("every data node has one");
                let offset = self.layout.bitmap_page_offset(slot, page);
                self.disk(
                    Purpose::Page {
                        node,
                        page,
                        save: save.number,
                    },
                    DiskOp::Write {
                        offset,
                        data,
                        durable: true,
                    },
                );
                left += 1;
            }
            self.saves.front_mut().expect("just looked").left = left;
        }
    }
}
