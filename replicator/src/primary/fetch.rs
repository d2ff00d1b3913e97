//! Blocks that the local disk does not give: fetched from a member, and written anew where the disk still works.
//!
//! The reader (a piece of a request, or a job) holds the range lock all the time, so every write of these blocks is
//! settled: any member has them, and all members have the same.
//!
//! Invariants
//! - blocks are fetched only from members, in their present session (rule 10);
//! - who left is asked no more, another member is; who cannot read them is not asked again for this reader;
//! - a rewrite passes the activity log like any write, and ends before the lock is given back.

use super::Primary;
use crate::config::PIECE_BLOCKS_MAX;
use crate::ctx::{Ctx, HealId, JobId, LogUser, PieceId, RoleIo};
use crate::locks::LockId;
use crate::{Note, Now};
use bytes::{Bytes, BytesMut};
use holdfast_types::{BlockRange, NodeId, NodeSet};
use holdfast_wire::Frame;
use std::collections::BTreeMap;

/// A member whose speed is not known is taken for this fast, in nanoseconds per read.
const LATENCY_GUESS_NS: u64 = 1_000_000;
/// A new measurement counts one in so many.
const LATENCY_WEIGHT: u64 = 8;

/// Who wants blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reader {
    Piece(PieceId),
    Job(JobId),
}

/// Blocks on their way from a member.
#[derive(Debug)]
struct Fetch {
    reader: Reader,
    range: BlockRange,
    /// Whom to ask: these and nobody else. `None`: any member.
    only: Option<NodeId>,
    /// Who could not read them.
    tried: NodeSet,
    /// Who is asked, and since when.
    from: Option<(NodeId, Now)>,
    /// Parts that are asked for.
    parts: BTreeMap<u64, BlockRange>,
    got: BTreeMap<u64, Bytes>,
}

/// A rewrite of blocks that could not be read here.
#[derive(Debug)]
struct Heal {
    reader: Reader,
    range: BlockRange,
    from: NodeId,
    bytes: Bytes,
    /// Its extents are granted.
    logged: bool,
    /// The range lock of a job that was given up meanwhile: kept until the disk has answered.
    lock: Option<LockId>,
}

/// What is being fetched and rewritten.
#[derive(Debug, Default)]
pub(super) struct Fetches {
    open: BTreeMap<u64, Fetch>,
    heals: BTreeMap<HealId, Heal>,
    /// Rewrites that are over and whose extents are still to be granted.
    orphans: BTreeMap<HealId, BlockRange>,
    next: u64,
    /// Smoothed time a read takes, per member, in nanoseconds.
    latency: BTreeMap<NodeId, u64>,
    /// Who answered the latest read.
    served: Option<NodeId>,
}

impl Fetches {
    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Rewrites are under way.
    pub(super) fn healing(&self) -> bool {
        !self.heals.is_empty()
    }

    /// The range lock of a job that is given up passes to its rewrite; false if there is none.
    pub(super) fn keep_lock(&mut self, job: JobId, lock: LockId) -> bool {
        let mut heals = self.heals.values_mut();
        let heal = heals.find(|h| h.reader == Reader::Job(job));
        heal.map(|h| h.lock = Some(lock)).is_some()
    }

    /// When the oldest read that this member has not answered was sent.
    pub(super) fn oldest(&self, peer: NodeId) -> Option<Now> {
        let asked = self.open.values().filter_map(|f| f.from);
        asked.filter(|(n, _)| *n == peer).map(|(_, at)| at).min()
    }

    fn load(&self, peer: NodeId) -> u64 {
        let asked = self.open.values().filter_map(|f| f.from);
        asked.filter(|(n, _)| *n == peer).count() as u64
    }

    fn latency_ns(&self, peer: NodeId) -> u64 {
        self.latency.get(&peer).copied().unwrap_or(LATENCY_GUESS_NS)
    }
}

impl Primary {
    /// Reads blocks for a reader that holds their lock: from the local disk, or from a member if there is none.
    pub(super) fn read_blocks(&mut self, ctx: &mut Ctx, reader: Reader, range: BlockRange) {
        if ctx.disk_failed() {
            self.fetch_blocks(ctx, reader, range, None);
            return;
        }
        let io = match reader {
            Reader::Piece(id) => RoleIo::PieceRead(id),
            Reader::Job(id) => RoleIo::JobRead(id),
        };
        ctx.role_io(io, ctx.read_op(range));
    }

    /// The local disk cannot read them.
    pub(super) fn read_failed(&mut self, ctx: &mut Ctx, io: RoleIo) {
        let (reader, range) = match io {
            RoleIo::PieceRead(id) => (Reader::Piece(id), self.piece_range(id)),
            RoleIo::JobRead(id) => (Reader::Job(id), self.job_range(id)),
            _ => return,
        };
        if let Some(range) = range {
            ctx.note(Note::Unreadable { range });
            self.fetch_blocks(ctx, reader, range, None);
        }
    }

    /// Asks a member for blocks; `only`: that one and no other.
    pub(super) fn fetch_blocks(
        &mut self,
        ctx: &mut Ctx,
        reader: Reader,
        range: BlockRange,
        only: Option<NodeId>,
    ) {
        let id = self.fetches.number();
        let fetch = Fetch {
            reader,
            range,
            only,
            tried: NodeSet::EMPTY,
            from: None,
            parts: BTreeMap::new(),
            got: BTreeMap::new(),
        };
        self.fetches.open.insert(id, fetch);
        self.send_fetch(ctx, id);
    }

    /// The attached one of these that answers soonest.
    pub(super) fn source(&self, able: NodeSet) -> Option<NodeId> {
        able.iter()
            .filter(|&n| self.attached_session(n).is_some())
            .min_by_key(|&n| (self.fetches.load(n) + 1) * self.fetches.latency_ns(n))
    }

    fn send_fetch(&mut self, ctx: &mut Ctx, id: u64) {
        let members = self.members(ctx);
        let Some(fetch) = self.fetches.open.get(&id) else {
            return;
        };
        let able = fetch.only.map_or(members, NodeSet::only).minus(fetch.tried);
        if able.is_empty() {
            let reader = fetch.reader;
            self.fetches.open.remove(&id);
            match reader {
                Reader::Piece(piece) => self.piece_failed(ctx, piece),
                Reader::Job(job) => self.job_failed(ctx, job),
            }
            return;
        }
        let Some(peer) = self.source(able) else {
            return; // until one of them is attached, or the set changes
        };
        let Some(stamp) = self.attached_session(peer).map(|s| s.stamp) else {
            return;
        };
        let range = fetch.range;
        let mut parts = BTreeMap::new();
        let mut first = range.first;
        while first < range.end() {
            let part = BlockRange::new(first, PIECE_BLOCKS_MAX.min(range.end() - first));
            first = part.end();
            let token = self.token();
            parts.insert(token, part);
            let range = part;
            ctx.send(
                peer,
                Frame::Read {
                    stamp,
                    token,
                    range,
                },
            );
        }
        if let Some(fetch) = self.fetches.open.get_mut(&id) {
            fetch.from = Some((peer, ctx.now));
            fetch.parts = parts;
            fetch.got.clear();
        }
    }

    /// Asks for everything that waits for somebody to ask.
    pub(super) fn pump_fetches(&mut self, ctx: &mut Ctx) {
        let waiting: Vec<u64> = self
            .fetches
            .open
            .iter()
            .filter(|(_, f)| f.from.is_none())
            .map(|(&id, _)| id)
            .collect();
        for id in waiting {
            self.send_fetch(ctx, id);
        }
    }

    /// A session ended: what was asked of it is asked of another.
    pub(super) fn fetch_elsewhere(&mut self, ctx: &mut Ctx, peer: NodeId) {
        for fetch in self.fetches.open.values_mut() {
            if fetch.from.is_some_and(|(n, _)| n == peer) {
                fetch.from = None;
                fetch.parts.clear();
            }
        }
        self.pump_fetches(ctx);
    }

    /// The reader is gone.
    pub(super) fn forget_fetch(&mut self, reader: Reader) {
        self.fetches.open.retain(|_, f| f.reader != reader);
    }

    /// A member has read, or could not.
    pub(super) fn read_done(
        &mut self,
        ctx: &mut Ctx,
        peer: NodeId,
        token: u64,
        data: Option<Bytes>,
    ) {
        let found =
            self.fetches.open.iter_mut().find(|(_, f)| {
                f.from.is_some_and(|(n, _)| n == peer) && f.parts.contains_key(&token)
            });
        let Some((&id, fetch)) = found else {
            return;
        };
        let part = fetch.parts.remove(&token).expect("just seen");
        let bytes = ctx.byte_range(part).1;
        match data.filter(|d| d.len() as u64 == bytes) {
            None => {
                fetch.tried = fetch.tried.with(peer);
                fetch.from = None;
                fetch.parts.clear();
                self.send_fetch(ctx, id);
            }
            Some(data) => {
                fetch.got.insert(part.first, data);
                if fetch.parts.is_empty() {
                    self.arrived(ctx, id);
                }
            }
        }
    }

    fn arrived(&mut self, ctx: &mut Ctx, id: u64) {
        let fetch = self.fetches.open.remove(&id).expect("just seen");
        let (reader, range) = (fetch.reader, fetch.range);
        let Some((from, at)) = fetch.from else {
            return;
        };
        let old = self.fetches.latency_ns(from);
        let took = ctx.now.0.saturating_sub(at.0);
        let smooth = (old * (LATENCY_WEIGHT - 1) + took) / LATENCY_WEIGHT;
        self.fetches.latency.insert(from, smooth.max(1));
        self.fetches.served = Some(from);
        let bytes = match fetch.got.len() {
            1 => fetch.got.into_values().next().unwrap_or_default(),
            _ => {
                let mut whole = BytesMut::with_capacity(ctx.byte_range(range).1 as usize);
                fetch.got.values().for_each(|b| whole.extend_from_slice(b));
                whole.freeze()
            }
        };
        if ctx.disk_failed() || self.rewrites(reader) {
            self.give(ctx, reader, bytes);
            return;
        }
        // The application need not wait for the disk.
        if let Reader::Piece(piece) = reader {
            self.answer_early(ctx, piece, &bytes);
        }
        let heal = HealId(self.fetches.number());
        let entry = Heal {
            reader,
            range,
            from,
            bytes,
            logged: false,
            lock: None,
        };
        self.fetches.heals.insert(heal, entry);
        if ctx.acquire(LogUser::Heal(heal), Some(range)) {
            self.heal_logged(ctx, heal);
        } else if ctx.log.starved() {
            self.send_closes(ctx);
        }
    }

    fn give(&mut self, ctx: &mut Ctx, reader: Reader, bytes: Bytes) {
        match reader {
            Reader::Piece(piece) => self.piece_read(ctx, piece, bytes),
            Reader::Job(job) => self.job_read(ctx, job, bytes),
        }
    }

    /// The extents of a rewrite are durable in the activity log.
    pub(super) fn heal_logged(&mut self, ctx: &mut Ctx, id: HealId) {
        let Some(heal) = self.fetches.heals.get_mut(&id) else {
            if let Some(range) = self.fetches.orphans.remove(&id) {
                ctx.release(range);
            }
            return;
        };
        heal.logged = true;
        let op = ctx.write_op(heal.range, Some(heal.bytes.clone()), false);
        ctx.role_io(RoleIo::Heal(id), op);
    }

    /// Blocks are written anew; or the disk failed over it.
    pub(super) fn healed(&mut self, ctx: &mut Ctx, id: HealId) {
        let Some(heal) = self.fetches.heals.remove(&id) else {
            return;
        };
        if heal.logged {
            ctx.release(heal.range);
        } else {
            self.fetches.orphans.insert(id, heal.range);
        }
        if !ctx.disk_failed() {
            ctx.note(Note::Healed {
                range: heal.range,
                from: heal.from,
            });
        }
        match heal.reader {
            Reader::Piece(piece) => self.end_piece(ctx, piece),
            Reader::Job(job) => self.job_read(ctx, job, heal.bytes),
        }
        if let Some(lock) = heal.lock {
            self.unlock(ctx, lock);
        }
        self.pump_drain(ctx);
    }

    /// The disk failed: rewrites are over, and who read from it reads from a member.
    pub(super) fn fetch_all(&mut self, ctx: &mut Ctx) {
        for id in self.fetches.heals.keys().copied().collect::<Vec<_>>() {
            self.healed(ctx, id);
        }
        for (piece, range) in self.pieces_reading() {
            self.fetch_blocks(ctx, Reader::Piece(piece), range, None);
        }
        self.jobs_diskless(ctx);
    }

    /// Who serves reads instead of the local disk.
    pub(crate) fn reads_from(&self, ctx: &Ctx) -> Option<NodeId> {
        let member = self.fetches.served.filter(|n| self.in_sync.has(*n));
        member
            .or_else(|| self.source(self.members(ctx)))
            .filter(|_| ctx.disk_failed())
    }
}
