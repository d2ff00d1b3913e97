//! The application's requests: cut into pieces, locked, patched to whole blocks, answered.
//!
//! Invariants
//! - every request is answered exactly once;
//! - a piece goes through its stages in order: doubt resolved, range locked, extents durable, disk;
//! - reads wait for overlapping writes, frozen ones included (rule 11);
//! - nothing is answered without a lease.

use super::fetch::Reader;
use super::pace::Class;
use super::writes::Source;
use super::{Owner, Phase, Primary};
use crate::activity::ActivityLog;
use crate::config::{PIECE_BLOCKS_MAX, REQUESTS_MAX};
use crate::ctx::{Ctx, LogUser, PieceId};
use crate::locks::{LockId, Mode};
use crate::rules::Rule;
use crate::{Action, Now, ReqId, Request, RequestError};
use bytes::{Bytes, BytesMut};
use holdfast_types::{BlockRange, REQUEST_BYTES_MAX};

/// A request being worked on.
#[derive(Clone, Debug)]
pub(super) struct Open {
    /// What it is, and when it was taken up: its latency is what resync must spare.
    class: Class,
    since: Now,
    /// It began away from bulk work.
    away: bool,
    /// Pieces not ended.
    left: u32,
    /// Bytes of a write not cut into pieces yet (zeroes are cut as they go, a request may be 4 GiB long).
    rest: Option<(u64, u64, bool)>,
    reply: Bytes,
}

#[derive(Clone, Debug)]
enum Work {
    /// Read the range, answer this part of it.
    Read { skip: usize, len: usize },
    /// Write whole blocks; `None` is zeroes.
    Write { data: Option<Bytes>, fua: bool },
    /// Part of the blocks: read them, lay the bytes over, write them.
    Patch { skip: usize, data: Bytes, fua: bool },
}

/// A part of a request that is locked and done as one.
#[derive(Clone, Debug)]
pub(super) struct Piece {
    req: ReqId,
    range: BlockRange,
    work: Work,
    lock: Option<LockId>,
    /// It holds its extents in the activity log, and will until its write is settled.
    logged: bool,
    /// The local disk is reading its blocks.
    reading: bool,
}

impl Primary {
    pub(crate) fn request(&mut self, ctx: &mut Ctx, req: ReqId, request: Request) {
        if let Err(error) = check(ctx.superblock.geometry.bytes(), &request) {
            ctx.out.push(Action::Complete {
                req,
                result: Err(error),
            });
            return;
        }
        let empty = match &request {
            Request::Read { len, .. } => *len == 0,
            Request::Write { data, .. } => data.is_empty(),
            Request::Zero { len, .. } => *len == 0,
            Request::Flush => false,
        };
        if empty {
            self.answers_held.push_back((req, Ok(Bytes::new())));
            self.release_answers(ctx);
            return;
        }
        self.backlog.push_back((req, request));
        self.pump_requests(ctx);
    }

    /// Starts what may be started.
    pub(super) fn pump_requests(&mut self, ctx: &mut Ctx) {
        while self.phase == Phase::Open
            && self.drain.is_none()
            && self.requests.len() < REQUESTS_MAX
        {
            let Some((req, request)) = self.backlog.pop_front() else {
                break;
            };
            self.start(ctx, req, request);
        }
    }

    fn start(&mut self, ctx: &mut Ctx, req: ReqId, request: Request) {
        let class = match &request {
            Request::Read { .. } => Class::Read,
            Request::Write { .. } | Request::Zero { .. } => Class::Write,
            Request::Flush => Class::Flush,
        };
        let away = self.pace.request_began(ctx.now);
        let mut open = Open {
            class,
            since: ctx.now,
            away,
            left: 0,
            rest: None,
            reply: Bytes::new(),
        };
        match request {
            Request::Flush => {
                self.requests.insert(req, open);
                self.request_flush(ctx, req);
            }
            Request::Read { offset, len } => {
                self.read_bytes += u64::from(len);
                let (range, skip) = covering(ctx, offset, u64::from(len));
                open.left = 1;
                self.requests.insert(req, open);
                self.add_piece(
                    ctx,
                    req,
                    range,
                    Work::Read {
                        skip,
                        len: len as usize,
                    },
                );
            }
            Request::Write { offset, data, fua } => {
                self.written_bytes += data.len() as u64;
                let max = PIECE_BLOCKS_MAX.min(self.write_blocks_max(ctx));
                let cuts = cut(ctx, offset, data.len() as u64, max);
                open.left = cuts.len() as u32;
                self.requests.insert(req, open);
                for (at, len) in cuts {
                    let data = data.slice((at - offset) as usize..(at - offset + len) as usize);
                    self.add_write(ctx, req, at, data, fua);
                }
            }
            Request::Zero { offset, len, fua } => {
                open.rest = Some((offset, len, fua));
                self.requests.insert(req, open);
                self.more_zeroes(ctx, req);
            }
        }
    }

    fn add_write(&mut self, ctx: &mut Ctx, req: ReqId, at: u64, data: Bytes, fua: bool) {
        let (range, skip) = covering(ctx, at, data.len() as u64);
        let whole = ctx.byte_range(range).1 == data.len() as u64;
        let work = if whole {
            Work::Write {
                data: Some(data),
                fua,
            }
        } else {
            Work::Patch { skip, data, fua }
        };
        self.add_piece(ctx, req, range, work);
    }

    /// Blocks a single write may touch so that it always fits the smallest log (rule 29).
    fn write_blocks_max(&self, ctx: &Ctx) -> u64 {
        if ctx.off(Rule::SplitLarge) {
            return ctx.layout.geometry.blocks;
        }
        ActivityLog::<LogUser>::write_blocks_max(self.slots_min(ctx), ctx.layout.geometry)
    }

    /// Cuts the next pieces of a request for zeroes, a few at a time (rule 29).
    fn more_zeroes(&mut self, ctx: &mut Ctx, req: ReqId) {
        let max = self.write_blocks_max(ctx);
        while let Some((offset, len, fua)) = self.requests.get(&req).and_then(|o| o.rest) {
            if self.requests[&req].left >= 4 {
                return;
            }
            let (at, part) = first_part(ctx, offset, len, max);
            let open = self.requests.get_mut(&req).expect("just seen");
            open.rest = (part < len).then(|| (offset + part, len - part, fua));
            open.left += 1;
            let (range, _) = covering(ctx, at, part);
            if ctx.byte_range(range).1 == part {
                self.add_piece(ctx, req, range, Work::Write { data: None, fua });
            } else {
                self.add_write(ctx, req, at, Bytes::from(vec![0; part as usize]), fua);
            }
        }
    }

    fn add_piece(&mut self, ctx: &mut Ctx, req: ReqId, range: BlockRange, work: Work) {
        let id = PieceId(self.next_piece);
        self.next_piece += 1;
        self.pieces.insert(
            id,
            Piece {
                req,
                range,
                work,
                lock: None,
                logged: false,
                reading: false,
            },
        );
        self.begin_piece(ctx, id);
    }

    /// Waits for the reconciliation of its blocks, then for their lock.
    fn begin_piece(&mut self, ctx: &mut Ctx, id: PieceId) {
        let piece = &self.pieces[&id];
        let range = piece.range;
        if self.in_doubt(ctx, range) {
            self.awaiting.push_back(id);
            self.pump_jobs(ctx);
            return;
        }
        let mode = match piece.work {
            Work::Read { .. } => Mode::Shared,
            Work::Write { .. } | Work::Patch { .. } => Mode::Exclusive,
        };
        if mode == Mode::Shared && ctx.off(Rule::ReadLock) {
            self.piece_locked(ctx, id);
            return;
        }
        let (lock, granted) = self.lock(Owner::Piece(id), range, mode);
        self.pieces.get_mut(&id).expect("just seen").lock = Some(lock);
        if granted {
            self.piece_locked(ctx, id);
        }
    }

    /// Blocks were reconciled: those who waited try again.
    pub(super) fn wake_awaiting(&mut self, ctx: &mut Ctx) {
        for id in std::mem::take(&mut self.awaiting) {
            self.begin_piece(ctx, id);
        }
    }

    /// The blocks somebody waits for, to be reconciled first.
    pub(super) fn awaited(&self) -> impl Iterator<Item = BlockRange> {
        self.awaiting.iter().map(|id| self.pieces[id].range)
    }

    pub(super) fn piece_locked(&mut self, ctx: &mut Ctx, id: PieceId) {
        let piece = &self.pieces[&id];
        let range = piece.range;
        match piece.work {
            Work::Read { .. } => self.read_piece(ctx, id, range),
            Work::Write { .. } | Work::Patch { .. } => {
                if ctx.acquire(LogUser::Piece(id), Some(range)) {
                    self.piece_logged(ctx, id);
                } else if ctx.log.starved() {
                    self.send_closes(ctx);
                }
            }
        }
    }

    /// The extents of a write are durable in the activity log.
    pub(super) fn piece_logged(&mut self, ctx: &mut Ctx, id: PieceId) {
        let Some(piece) = self.pieces.get_mut(&id) else {
            return;
        };
        piece.logged = true;
        let range = piece.range;
        match piece.work.clone() {
            Work::Write { data, fua } => self.issue(ctx, Source::Piece(id), range, data, fua),
            Work::Patch { .. } => self.read_piece(ctx, id, range),
            Work::Read { .. } => unreachable!("reads need no extents"),
        }
    }

    fn read_piece(&mut self, ctx: &mut Ctx, id: PieceId, range: BlockRange) {
        if let Some(piece) = self.pieces.get_mut(&id) {
            piece.reading = !ctx.disk_failed();
        }
        self.read_blocks(ctx, Reader::Piece(id), range);
    }

    /// The blocks that the local disk was to read for a piece.
    pub(super) fn piece_range(&mut self, id: PieceId) -> Option<BlockRange> {
        let piece = self.pieces.get_mut(&id)?;
        piece.reading = false;
        Some(piece.range)
    }

    /// Those for whom the local disk was reading; it is not any more.
    pub(super) fn pieces_reading(&mut self) -> Vec<(PieceId, BlockRange)> {
        let reading = self.pieces.iter_mut().filter(|(_, p)| p.reading);
        reading
            .map(|(&id, p)| {
                p.reading = false;
                (id, p.range)
            })
            .collect()
    }

    /// Writes whole blocks anew by itself, so that blocks fetched for it need not be.
    pub(super) fn rewrites(&self, reader: Reader) -> bool {
        match reader {
            Reader::Piece(id) => self
                .pieces
                .get(&id)
                .is_none_or(|p| matches!(p.work, Work::Patch { .. })),
            Reader::Job(_) => false,
        }
    }

    /// Answers a read while its blocks are still being rewritten, under its lock.
    pub(super) fn answer_early(&mut self, ctx: &mut Ctx, id: PieceId, bytes: &Bytes) {
        let Some(piece) = self.pieces.get(&id) else {
            return;
        };
        let req = piece.req;
        if let Work::Read { skip, len } = piece.work
            && self.requests.contains_key(&req)
        {
            self.finish(ctx, req, Ok(bytes.slice(skip..skip + len)));
        }
    }

    pub(super) fn piece_read(&mut self, ctx: &mut Ctx, id: PieceId, bytes: Bytes) {
        let Some(piece) = self.pieces.get_mut(&id) else {
            return;
        };
        piece.reading = false;
        let (req, range) = (piece.req, piece.range);
        match piece.work.clone() {
            Work::Read { skip, len } => {
                if let Some(open) = self.requests.get_mut(&req) {
                    open.reply = bytes.slice(skip..skip + len);
                }
                self.end_piece(ctx, id);
            }
            Work::Patch { skip, data, fua } => {
                let mut whole = BytesMut::from(&bytes[..]);
                whole[skip..skip + data.len()].copy_from_slice(&data);
                self.issue(ctx, Source::Piece(id), range, Some(whole.freeze()), fua);
            }
            Work::Write { .. } => unreachable!("whole blocks are not read first"),
        }
    }

    /// A piece's write is settled.
    pub(super) fn piece_written(&mut self, ctx: &mut Ctx, id: PieceId) {
        self.end_piece(ctx, id);
    }

    /// Its blocks cannot be read, here or on any member.
    pub(super) fn piece_failed(&mut self, ctx: &mut Ctx, id: PieceId) {
        let Some(piece) = self.pieces.get(&id) else {
            return;
        };
        let (req, range) = (piece.req, piece.range);
        if piece.logged {
            ctx.release(range);
        }
        if self.requests.contains_key(&req) {
            self.finish(ctx, req, Err(RequestError::Io));
        }
        self.end_piece(ctx, id);
    }

    /// What waits for blocks that no member can read: fails, and no more than that.
    pub(super) fn fail_awaiting(&mut self, ctx: &mut Ctx, range: BlockRange) {
        let overlaps = |id: &PieceId| self.pieces[id].range.overlaps(range);
        let failed: Vec<PieceId> = self.awaiting.iter().copied().filter(overlaps).collect();
        self.awaiting.retain(|id| !failed.contains(id));
        for id in failed {
            self.piece_failed(ctx, id);
        }
    }

    pub(super) fn end_piece(&mut self, ctx: &mut Ctx, id: PieceId) {
        let piece = self.pieces.remove(&id).expect("ends once");
        if let Some(lock) = piece.lock {
            self.unlock(ctx, lock);
        }
        let Some(open) = self.requests.get_mut(&piece.req) else {
            return;
        };
        open.left -= 1;
        if open.rest.is_some() {
            self.more_zeroes(ctx, piece.req);
        } else if open.left == 0 {
            let reply = std::mem::take(&mut open.reply);
            self.finish(ctx, piece.req, Ok(reply));
        }
    }

    /// Answers a request, as soon as there is a lease.
    pub(super) fn finish(
        &mut self,
        ctx: &mut Ctx,
        req: ReqId,
        result: Result<Bytes, RequestError>,
    ) {
        if let Some(open) = self.requests.remove(&req) {
            self.pace
                .request_ended(ctx.now, open.class, open.since, open.away);
        }
        if self.may_answer(ctx) {
            ctx.out.push(Action::Complete { req, result });
        } else {
            self.answers_held.push_back((req, result));
        }
        self.pump_requests(ctx);
        self.pump_drain(ctx);
    }

    fn may_answer(&self, ctx: &Ctx) -> bool {
        ctx.now < self.lease || ctx.off(Rule::LeaseCheck)
    }

    pub(super) fn release_answers(&mut self, ctx: &mut Ctx) {
        if self.may_answer(ctx) {
            for (req, result) in std::mem::take(&mut self.answers_held) {
                ctx.out.push(Action::Complete { req, result });
            }
            self.pump_drain(ctx);
        }
    }

    /// The only copy cannot be read or written: fail what waits (rule 23).
    pub(crate) fn fail_all(&mut self, ctx: &mut Ctx) {
        for open in self.requests.values() {
            self.pace
                .request_ended(ctx.now, open.class, open.since, open.away);
        }
        let open: Vec<ReqId> = std::mem::take(&mut self.requests).into_keys().collect();
        let queued: Vec<ReqId> = std::mem::take(&mut self.backlog)
            .into_iter()
            .map(|(r, _)| r)
            .collect();
        self.fail_flushes();
        for req in open.into_iter().chain(queued) {
            self.answers_held.push_back((req, Err(RequestError::Io)));
        }
        self.release_answers(ctx);
    }
}

/// Refuses what is outside the volume or too large.
fn check(volume_bytes: u64, request: &Request) -> Result<(), RequestError> {
    let (offset, len, max) = match request {
        Request::Read { offset, len } => (*offset, u64::from(*len), u64::from(REQUEST_BYTES_MAX)),
        Request::Write { offset, data, .. } => {
            (*offset, data.len() as u64, u64::from(REQUEST_BYTES_MAX))
        }
        Request::Zero { offset, len, .. } => (*offset, *len, u64::MAX),
        Request::Flush => return Ok(()),
    };
    let inside = offset
        .checked_add(len)
        .is_some_and(|end| end <= volume_bytes);
    if inside && len <= max {
        Ok(())
    } else {
        Err(RequestError::Range)
    }
}

/// The blocks that cover some bytes, and where in them the bytes start.
fn covering(ctx: &Ctx, offset: u64, len: u64) -> (BlockRange, usize) {
    let block = u64::from(ctx.layout.geometry.block_bytes);
    let first = offset / block;
    let end = (offset + len).div_ceil(block);
    (
        BlockRange::new(first, end - first),
        (offset % block) as usize,
    )
}

/// The first of the parts that bytes are cut into: at most `max` blocks, ending on a block border if it can, so that
/// only edges are patched.
fn first_part(ctx: &Ctx, at: u64, len: u64, max: u64) -> (u64, u64) {
    let block = u64::from(ctx.layout.geometry.block_bytes);
    let end = at + len;
    let head = at % block;
    let to = if head != 0 {
        (at - head + block).min(end)
    } else if len < block {
        end
    } else {
        (at + max * block).min(end - end % block)
    };
    (at, to - at)
}

/// All the parts.
fn cut(ctx: &Ctx, offset: u64, len: u64, max: u64) -> Vec<(u64, u64)> {
    let mut parts = Vec::new();
    let (mut at, end) = (offset, offset + len);
    while at < end {
        let (from, part) = first_part(ctx, at, end - at, max);
        parts.push((from, part));
        at += part;
    }
    parts
}
