//! A secondary: takes sessions from primaries, applies their writes in order, keeps what is open.
//!
//! Invariants
//! - frames count only under the stamp of the present session (rules 18, 21);
//! - a session is answered, and a promise given, only when no local write of an older one is in
//!   flight and the promise is on disk (rules 1, 18);
//! - a write is *open* from its receipt until it is both applied and closed; an open write that was
//!   submitted to the disk holds its extents in the activity log (rule 4);
//! - open writes of an older epoch or of a session that does not go on become dirty bits for every
//!   other data node (rule 3);
//! - overlapping writes are applied in the order they came, on all lanes (rule 12).

mod barriers;
mod closes;
mod reread;

use crate::ctx::{After, Ctx, LogUser, RecvId, RoleIo};
use crate::discard::Discard;
use crate::hash::hash_blocks;
use crate::locks::{LockId, Mode, RangeLocks};
use crate::replica::is_split;
use crate::rules::Rule;
use crate::{Note, ToControl, View};
use barriers::Barrier;
use bytes::Bytes;
use holdfast_types::{BlockRange, DiskState, Epoch, Gen, NodeId, NodeSet, Seq, SessionId};
use holdfast_wire::{Attach, Frame, Refusal, Stamp};
use std::collections::{BTreeMap, VecDeque};

/// A write between receipt and close.
#[derive(Clone, Copy, Debug)]
struct Open {
    range: BlockRange,
    applied: bool,
    closed: bool,
    /// Holds its extents in the activity log.
    logged: bool,
}

#[derive(Clone, Debug)]
enum What {
    Write {
        seq: Seq,
        fua: bool,
        data: Option<Bytes>,
    },
    Resync {
        token: u64,
        data: Option<Bytes>,
    },
    Hash {
        token: u64,
    },
    Read {
        token: u64,
    },
    Fetch {
        token: u64,
    },
}

impl What {
    fn is_write(&self) -> bool {
        matches!(self, Self::Write { .. } | Self::Resync { .. })
    }
}

/// A frame that is being worked on.
#[derive(Clone, Debug)]
struct Recv {
    stamp: Stamp,
    what: What,
    range: BlockRange,
    mode: Mode,
    lock: Option<LockId>,
    on_disk: bool,
}

/// What a secondary remembers.
#[derive(Debug)]
pub(crate) struct Follower {
    session: Option<(NodeId, Stamp)>,
    /// A session that is not answered yet: older writes still in flight, or the superblock not written.
    attaching: Option<(NodeId, Attach, bool)>,
    promising: Option<(Epoch, Option<u64>)>,
    open_epoch: Epoch,
    open: BTreeMap<Seq, Open>,
    recv: BTreeMap<RecvId, Recv>,
    locks: RangeLocks<RecvId>,
    barriers: VecDeque<Barrier>,
    /// A cut whose bitmaps are being saved: its number here, stamp and token.
    cut: Option<(u64, Stamp, u64)>,
    /// The record the session went by, if its cut is confirmed: a later one that names this node makes it a member.
    confirmed: Option<Gen>,
    generation: Gen,
    /// Members of which the primary told before the record that names them as replicas came here.
    grown_early: NodeSet,
    next_recv: u64,
    asked_close: bool,
    /// This line of history is being given up.
    discard: Option<Discard>,
    /// Hashes of runs that could not be read as a whole, block by block.
    rereads: BTreeMap<RecvId, reread::Reread>,
}

impl Follower {
    pub(crate) fn new() -> Self {
        Self {
            session: None,
            attaching: None,
            promising: None,
            open_epoch: Epoch(0),
            open: BTreeMap::new(),
            recv: BTreeMap::new(),
            locks: RangeLocks::new(),
            barriers: VecDeque::new(),
            cut: None,
            confirmed: None,
            generation: Gen(0),
            grown_early: NodeSet::EMPTY,
            next_recv: 1,
            asked_close: false,
            discard: None,
            rereads: BTreeMap::new(),
        }
    }

    /// The primary whose session this is in.
    pub(crate) fn primary(&self) -> Option<NodeId> {
        self.session.map(|(p, _)| p)
    }

    pub(crate) fn open_writes(&self) -> usize {
        self.open.len()
    }

    /// Nothing received is under way: a promise has ended the session, or there was none.
    pub(crate) fn is_quiet(&self) -> bool {
        self.session.is_none() && self.recv.is_empty() && self.attaching.is_none()
    }

    // ---- sessions

    /// The session is over: what has not reached the disk is dropped, what has goes on to its end unanswered.
    fn end_session(&mut self, ctx: &mut Ctx) {
        self.session = None;
        self.attaching = None;
        self.discard = None;
        self.barriers.clear();
        self.cut = None;
        self.confirmed = None;
        self.grown_early = NodeSet::EMPTY;
        self.rereads.clear();
        ctx.log.cancel_waiting();
        let dropped: Vec<RecvId> = self
            .recv
            .iter()
            .filter(|(_, r)| !(r.on_disk && r.what.is_write()))
            .map(|(&id, _)| id)
            .collect();
        for id in dropped {
            let recv = self.recv.remove(&id).expect("listed");
            match recv.what {
                What::Write { seq, .. } => {
                    if self.open.get(&seq).is_some_and(|o| !o.applied) {
                        // Never on this disk. Whoever has it reports it; a primary that lives sends it again.
                        let open = self.open.remove(&seq).expect("just seen");
                        if open.logged {
                            ctx.release(open.range);
                        }
                    }
                }
                What::Resync { .. } if recv.lock.is_some() && !ctx.off(Rule::ResyncLogged) => {
                    ctx.release(recv.range);
                }
                What::Resync { .. }
                | What::Hash { .. }
                | What::Read { .. }
                | What::Fetch { .. } => {}
            }
            if let Some(lock) = recv.lock {
                // Without waking anybody: those behind are dropped too, or on disk already.
                let _ = self.locks.release(lock);
            }
        }
    }

    /// Open writes become dirty bits for every other data node (or, for a test, for some only); their extents may be
    /// evicted from now on.
    fn open_to_bits(&mut self, ctx: &mut Ctx, only: Option<NodeSet>) {
        let whom = ctx.others().and(only.unwrap_or(ctx.others()));
        for open in std::mem::take(&mut self.open).into_values() {
            ctx.bits.suspect(whom, open.range);
        }
        ctx.log.forget_users();
    }

    pub(crate) fn peer_down(&mut self, ctx: &mut Ctx, peer: NodeId) {
        if self.discard.as_ref().is_some_and(|d| d.peer() == peer) {
            self.discard = None;
        }
        if self.session.is_some_and(|(p, _)| p == peer)
            || self.attaching.as_ref().is_some_and(|(p, ..)| *p == peer)
        {
            self.end_session(ctx);
        }
    }

    /// Part of the volume was given up, which happens only without a primary: what is still on its way from a former
    /// one may be meant for that part. A new one attaches anew.
    pub(crate) fn shrunk(&mut self, ctx: &mut Ctx) {
        let attaching = self.attaching.as_ref().map(|(p, ..)| *p);
        for peer in self.primary().into_iter().chain(attaching) {
            ctx.disconnect(peer);
        }
        self.end_session(ctx);
    }

    /// A primary takes this replica into a session.
    pub(crate) fn attach(&mut self, ctx: &mut Ctx, peer: NodeId, attach: Attach) {
        let epoch = attach.stamp.epoch;
        if epoch < ctx.superblock.promised {
            ctx.send(
                peer,
                Frame::Refuse {
                    why: Refusal::Promised(ctx.superblock.promised),
                },
            );
            return;
        }
        let ours = ctx.superblock.lineage;
        if is_split(ours, attach.lineage) {
            ctx.send(
                peer,
                Frame::Refuse {
                    why: Refusal::Lineage(ours),
                },
            );
            return;
        }
        if ctx.disk_failed() {
            ctx.send(
                peer,
                Frame::Refuse {
                    why: Refusal::NoDisk,
                },
            );
            return;
        }
        self.end_session(ctx);
        // A promise that was under way is overtaken by a primary that holds at least that epoch.
        self.promising = None;
        self.attaching = Some((peer, attach, false));
        self.drained(ctx);
    }

    /// The control plane asks for a promise.
    pub(crate) fn promise(&mut self, ctx: &mut Ctx, epoch: Epoch) {
        if ctx.disk_failed() {
            return; // nothing can be stored: the control plane gives up, and knows why
        }
        let attached = self.session.map(|(_, s)| s.epoch);
        let attaching = self.attaching.as_ref().map(|(_, a, _)| a.stamp.epoch);
        let newest = attached.max(attaching).unwrap_or(Epoch(0));
        if epoch < ctx.superblock.promised || epoch <= newest {
            // Somebody leads that epoch, or a newer one, already; the control plane has not heard of it yet.
            ctx.control(ToControl::Deposed {
                epoch: newest.max(ctx.superblock.promised),
            });
            return;
        }
        if ctx.off(Rule::PromiseFirst) {
            ctx.promise(epoch);
            ctx.control(ToControl::Promised { epoch });
            return;
        }
        if let Some((peer, _)) = self.session {
            // It shall know that it is not answered any more, and attach anew should the promise be taken back.
            ctx.send(
                peer,
                Frame::Refuse {
                    why: Refusal::Promised(epoch),
                },
            );
        }
        self.end_session(ctx);
        self.promising = Some((epoch, None));
        // Answer no older frame from here on, also while the promise is on its way to the disk.
        ctx.promise(epoch);
        self.drained(ctx);
    }

    /// No local write is in flight: what waited for that goes on.
    pub(crate) fn drained(&mut self, ctx: &mut Ctx) {
        if ctx.writes_in_flight > 0 && !ctx.off(Rule::EndOldWrites) {
            return;
        }
        if self.promising.is_some_and(|(_, storing)| storing.is_none()) {
            // What is open stays open: the promise may be taken back, and then the primary goes on where it was.
            let number = ctx.barrier_number();
            let (_, storing) = self.promising.as_mut().expect("just seen");
            *storing = Some(number);
            ctx.store(After::Promise(number));
            return;
        }
        if self.discard.as_ref().is_some_and(Discard::is_draining) {
            self.open_to_bits(ctx, None);
            if let Some(discard) = &mut self.discard {
                discard.drained(ctx);
            }
            return;
        }
        let Some((_, attach, storing)) = self.attaching.as_mut() else {
            return;
        };
        if *storing {
            return;
        }
        *storing = true;
        let (stamp, member, lineage) = (attach.stamp, attach.member, attach.lineage);
        let epoch = stamp.epoch;
        // A member whose primary lives goes on with what is open: the primary sends again what it has no answer to (rule 27).
        if !(member && epoch == self.open_epoch) {
            self.open_to_bits(ctx, None);
        }
        let disk = match (member, ctx.superblock.disk) {
            (false, disk) if ctx.off(Rule::MarkSyncing) => disk,
            (false, _) => DiskState::Syncing,
            // It became a member and stopped before it heard of that.
            (true, DiskState::Syncing) => DiskState::UpToDate,
            (true, disk) => disk,
        };
        let unchanged = (
            ctx.superblock.promised,
            ctx.superblock.epoch,
            ctx.superblock.disk,
            ctx.superblock.lineage,
        ) == (epoch, epoch, disk, lineage);
        ctx.superblock.promised = epoch;
        ctx.superblock.epoch = epoch;
        ctx.superblock.disk = disk;
        ctx.superblock.lineage = lineage;
        if unchanged && ctx.is_stored() {
            self.attached(ctx, stamp.epoch, stamp.session);
        } else {
            ctx.store(After::Attach(stamp.epoch, stamp.session));
        }
    }

    /// The promise of this number is stored. (Not just of this epoch: one that was withdrawn and made again meanwhile may find
    /// the write of the withdrawal.)
    pub(crate) fn promised(&mut self, ctx: &mut Ctx, number: u64) {
        if let Some((epoch, Some(storing))) = self.promising
            && storing == number
        {
            self.promising = None;
            ctx.control(ToControl::Promised { epoch });
        }
    }

    /// The superblock of a session is on disk: answer it.
    pub(crate) fn attached(&mut self, ctx: &mut Ctx, epoch: Epoch, session: SessionId) {
        let Some((peer, attach, true)) = self.attaching.clone() else {
            return;
        };
        if (attach.stamp.epoch, attach.stamp.session) != (epoch, session) {
            return; // of a session that another one has taken the place of
        }
        self.attaching = None;
        self.session = Some((peer, attach.stamp));
        self.open_epoch = attach.stamp.epoch;
        self.asked_close = false;
        self.generation = attach.generation;
        let report = ctx.bits.dirty(peer).to_ranges();
        ctx.send(
            peer,
            Frame::Attached {
                stamp: attach.stamp,
                report,
                log: ctx.log.durable(),
            },
        );
        ctx.note(Note::Attached {
            peer,
            member: attach.member,
            dirty_blocks: ctx.bits.dirty(peer).count(),
        });
    }

    /// The promise is taken back: the epoch will not be. The primary's session was ended for it, so connect anew.
    pub(crate) fn withdraw(&mut self, ctx: &mut Ctx, epoch: Epoch, committed: Epoch) {
        let attached = ctx.superblock.epoch >= epoch
            || self
                .attaching
                .as_ref()
                .is_some_and(|(_, a, _)| a.stamp.epoch >= epoch);
        if ctx.superblock.promised != epoch || committed >= epoch || attached {
            return; // somebody else leads that epoch, or a newer one
        }
        self.promising = None;
        ctx.promise(committed.max(ctx.superblock.epoch));
        ctx.store(After::Nothing);
        for peer in ctx.others().iter() {
            ctx.disconnect(peer);
        }
    }

    /// The committed record changed: the replica may have become a member.
    pub(crate) fn view(&mut self, ctx: &mut Ctx, view: &View) {
        // A replica that is new in this record counts as lacking everything, but these the primary has made equal since.
        for node in self.grown_early.and(view.in_sync).and(ctx.others()).iter() {
            ctx.bits.replace(node, &[]);
            self.grown_early = self.grown_early.without(node);
        }
        if view.in_sync.has(ctx.me())
            && ctx.superblock.disk == DiskState::Syncing
            && self.confirmed.is_some_and(|g| view.generation > g)
        {
            ctx.superblock.disk = DiskState::UpToDate;
            ctx.store(After::Nothing);
        }
    }

    /// What this replica gives up is in a file, or is not.
    pub(crate) fn saved(&mut self, ctx: &mut Ctx, save: u64, result: Result<String, String>) {
        if let Some(discard) = &mut self.discard
            && !discard.saved(ctx, save, result)
        {
            self.discard = None;
        }
    }

    /// Its superblock says that it gave up its line.
    pub(crate) fn discarded(&mut self, ctx: &mut Ctx, save: u64) {
        if self.discard.as_ref().is_some_and(|d| d.stored(ctx, save)) {
            self.discard = None;
        }
    }

    // ---- frames

    pub(crate) fn frame(&mut self, ctx: &mut Ctx, peer: NodeId, frame: Frame) {
        let session = self.session;
        let ours = |stamp: Stamp| session == Some((peer, stamp));
        match frame {
            Frame::Attach(attach) => self.attach(ctx, peer, attach),
            Frame::Discard {
                stamp,
                keep,
                lost,
                ranges,
            } => {
                if self.session.is_some() || self.attaching.is_some() || self.promising.is_some() {
                    let why = "it follows a primary of its own line of history";
                    crate::discard::refuse(ctx, peer, stamp, why);
                } else {
                    self.discard = Discard::begin(ctx, peer, stamp, (keep, lost), ranges);
                    self.drained(ctx);
                }
            }
            Frame::Write {
                stamp,
                seq,
                range,
                fua,
                data,
            } if ours(stamp) => {
                self.receive_write(ctx, stamp, seq, range, fua, Some(data));
            }
            Frame::Zero {
                stamp,
                seq,
                range,
                fua,
            } if ours(stamp) => {
                self.receive_write(ctx, stamp, seq, range, fua, None);
            }
            Frame::Close { stamp, upto, set } if ours(stamp) => self.close(ctx, upto, set),
            Frame::Reconciled { stamp, ranges, set } if ours(stamp) => {
                Self::reconciled(ctx, &ranges, set)
            }
            Frame::Flush { stamp, token } if ours(stamp) => self.barrier(ctx, stamp, token, false),
            Frame::Cut {
                stamp,
                token,
                bitmaps,
            } if ours(stamp) => {
                if !ctx.off(Rule::CopyBits) {
                    self.take_bitmaps(ctx, &bitmaps);
                }
                self.barrier(ctx, stamp, token, true);
            }
            Frame::Grown { stamp, node } if ours(stamp) && ctx.others().has(node) => {
                ctx.bits.replace(node, &[]);
            }
            Frame::Grown { stamp, node } if ours(stamp) && node != ctx.me() => {
                self.grown_early = self.grown_early.with(node);
            }
            Frame::Synced {
                stamp,
                node,
                ranges,
            } if ours(stamp) && ctx.others().has(node) => {
                for range in ranges {
                    ctx.bits.clear(node, range);
                }
            }
            Frame::Fetch {
                stamp,
                token,
                range,
            } if ours(stamp) => {
                self.receive(ctx, stamp, range, Mode::Shared, What::Fetch { token });
            }
            Frame::Seen { stamp, seen } if ours(stamp) => {
                for (node, seen) in seen {
                    if ctx.others().has(node) {
                        ctx.saw(node, seen);
                    }
                }
            }
            Frame::Resync {
                stamp,
                token,
                range,
                data,
            } if ours(stamp) => {
                self.receive(
                    ctx,
                    stamp,
                    range,
                    Mode::Exclusive,
                    What::Resync { token, data },
                );
            }
            Frame::Hash {
                stamp,
                token,
                range,
            } if ours(stamp) => {
                self.receive(ctx, stamp, range, Mode::Shared, What::Hash { token });
            }
            Frame::Read {
                stamp,
                token,
                range,
            } if ours(stamp) => {
                self.receive(ctx, stamp, range, Mode::Shared, What::Read { token });
            }
            // Of an older session, or an answer to a primary this node no longer is: void (rule 21).
            _ => {}
        }
    }

    fn receive_write(
        &mut self,
        ctx: &mut Ctx,
        stamp: Stamp,
        seq: Seq,
        range: BlockRange,
        fua: bool,
        data: Option<Bytes>,
    ) {
        self.open.entry(seq).or_insert(Open {
            range,
            applied: false,
            closed: false,
            logged: false,
        });
        self.receive(
            ctx,
            stamp,
            range,
            Mode::Exclusive,
            What::Write { seq, fua, data },
        );
    }

    /// Takes a frame in: first its turn and its extents in the activity log, in order of arrival, then the range
    /// lock. So a frame that holds slots waits only for earlier ones, which hold theirs (rule 30).
    fn receive(&mut self, ctx: &mut Ctx, stamp: Stamp, range: BlockRange, mode: Mode, what: What) {
        let id = RecvId(self.next_recv);
        self.next_recv += 1;
        let extents = match what {
            What::Hash { .. } | What::Read { .. } | What::Fetch { .. } => None,
            // Sent again: the first one holds the extents still.
            What::Write { seq, .. } => {
                (!self.open.get(&seq).is_some_and(|o| o.logged)).then_some(range)
            }
            What::Resync { .. } => (!ctx.off(Rule::ResyncLogged)).then_some(range),
        };
        self.recv.insert(
            id,
            Recv {
                stamp,
                what,
                range,
                mode,
                lock: None,
                on_disk: false,
            },
        );
        if ctx.acquire(LogUser::Recv(id), extents) {
            self.logged(ctx, id);
        } else {
            self.ask_close(ctx);
        }
    }

    /// The extents are durable in the log: get the range.
    pub(crate) fn logged(&mut self, ctx: &mut Ctx, id: RecvId) {
        let Some(recv) = self.recv.get_mut(&id) else {
            return;
        };
        if let What::Write { seq, .. } = recv.what
            && let Some(open) = self.open.get_mut(&seq)
        {
            open.logged = true;
        }
        if ctx.off(Rule::ReplicaOrder) {
            self.locked(ctx, id);
            return;
        }
        let (lock, granted) = self.locks.acquire(id, recv.range, recv.mode);
        recv.lock = Some(lock);
        if granted {
            self.locked(ctx, id);
        }
    }

    /// Short of slots that only closes can free: ask (rule 30).
    fn ask_close(&mut self, ctx: &mut Ctx) {
        if let Some((peer, stamp)) = self.session
            && ctx.log.starved()
            && !self.asked_close
        {
            self.asked_close = true;
            ctx.send(peer, Frame::NeedClose { stamp });
        }
    }

    /// The range is this frame's: to the disk.
    fn locked(&mut self, ctx: &mut Ctx, id: RecvId) {
        let Some(recv) = self.recv.get_mut(&id) else {
            return;
        };
        recv.on_disk = true;
        let range = recv.range;
        let (io, op) = match &recv.what {
            What::Write { fua, data, .. } => (
                RoleIo::RecvWrite(id),
                ctx.write_op(range, data.clone(), *fua),
            ),
            What::Resync { data, .. } => (
                RoleIo::RecvWrite(id),
                ctx.write_op(range, data.clone(), false),
            ),
            What::Hash { .. } | What::Read { .. } | What::Fetch { .. } => {
                (RoleIo::RecvRead(id), ctx.read_op(range))
            }
        };
        ctx.role_io(io, op);
    }

    /// A disk operation ended.
    pub(crate) fn io(&mut self, ctx: &mut Ctx, io: RoleIo, bytes: Bytes) {
        match io {
            RoleIo::RecvWrite(id) | RoleIo::RecvRead(id) => self.applied(ctx, id, bytes),
            RoleIo::RecvReread(id, block) => self.reread(ctx, id, block, Some(&bytes)),
            RoleIo::RecvFlush(id) => self.flushed(ctx, id),
            RoleIo::PieceRead(_)
            | RoleIo::LocalWrite(_)
            | RoleIo::LocalFlush(_)
            | RoleIo::Heal(_)
            | RoleIo::JobRead(_) => {}
        }
    }

    fn applied(&mut self, ctx: &mut Ctx, id: RecvId, bytes: Bytes) {
        let Some(recv) = self.recv.get(&id) else {
            return;
        };
        let log = ctx.log.durable();
        let answer = match recv.what {
            What::Write { seq, .. } => {
                let stamp = recv.stamp;
                if let Some(open) = self.open.get_mut(&seq) {
                    open.applied = true;
                    open.closed |= ctx.off(Rule::KeepOpen);
                    self.retire(ctx, seq);
                }
                Frame::Ack { stamp, seq, log }
            }
            What::Resync { token, .. } => {
                // The extents stay in the log until they are evicted, which flushes (rule 14).
                if !ctx.off(Rule::ResyncLogged) {
                    ctx.release(recv.range);
                }
                Frame::Resynced {
                    stamp: recv.stamp,
                    token,
                    log,
                }
            }
            What::Hash { token } => Frame::Hashes {
                stamp: recv.stamp,
                token,
                hashes: hash_blocks(&bytes, ctx.layout.geometry.block_bytes),
            },
            What::Fetch { token } => Frame::Fetched {
                stamp: recv.stamp,
                token,
                range: recv.range,
                data: bytes,
            },
            What::Read { token } => Frame::ReadDone {
                stamp: recv.stamp,
                token,
                range: recv.range,
                data: Some(bytes),
            },
        };
        self.done(ctx, id, answer);
    }

    /// Slots may have become free or short.
    pub(crate) fn log_written(&mut self, ctx: &mut Ctx) {
        self.ask_close(ctx);
    }

    /// The disk is gone: say so to the primary, and take nothing more.
    pub(crate) fn disk_failed(&mut self, ctx: &mut Ctx) {
        if let Some((peer, _)) = self.session {
            ctx.send(
                peer,
                Frame::Refuse {
                    why: Refusal::DiskFailed,
                },
            );
        }
        self.end_session(ctx);
    }

    /// An orderly stop begins: nothing new.
    pub(crate) fn quiesce(&mut self, ctx: &mut Ctx) {
        self.end_session(ctx);
        self.promising = None;
    }

    /// This node leads now: what is open is in doubt (rule 3).
    pub(crate) fn end(&mut self, ctx: &mut Ctx, members: NodeSet) {
        assert!(ctx.off(Rule::EndOldWrites) || self.is_quiet());
        let outside = ctx.off(Rule::PromotionBits).then_some(members);
        self.open_to_bits(ctx, outside);
    }

    /// The stop goes on when no write is in flight: all that is open becomes bits (rule 24).
    pub(crate) fn settle(&mut self, ctx: &mut Ctx) {
        assert_eq!(ctx.writes_in_flight, 0);
        let none = ctx.off(Rule::CleanStop).then_some(NodeSet::EMPTY);
        self.open_to_bits(ctx, none);
    }
}
