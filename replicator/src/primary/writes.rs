//! Writes on their way, closes, flush rounds.
//!
//! Invariants
//! - sequences are issued in the order the frames leave, on every lane the same (rule 12);
//! - a write is settled exactly once; its extents are released and its close queued then;
//! - a flush round ends when the local disk and every counted replica flushed after it began.

use super::sessions::Sent;
use super::{Drain, Owner, Phase, Primary};
use crate::config::CLOSE_EVERY;
use crate::ctx::{Ctx, JobId, PieceId, RoleIo};
use crate::rules::Rule;
use crate::{DiskOp, Now, ReqId};
use bytes::Bytes;
use holdfast_types::{BlockRange, NodeId, NodeSet, Seq};
use holdfast_wire::{Frame, Stamp};

/// Where a write comes from, and who hears of its end.
#[derive(Clone, Copy, Debug)]
pub(super) enum Source {
    /// A piece of an application's request.
    Piece(PieceId),
    /// A reconciliation or repair pushes this node's copy: it is on the local disk already.
    Push(JobId),
    /// A repair brings another node's copy.
    Fix(JobId),
}

/// A write that is not settled.
#[derive(Clone, Debug)]
pub(super) struct Write {
    pub(super) range: BlockRange,
    data: Option<Bytes>,
    fua: bool,
    source: Source,
    pub(super) issued: Now,
    pub(super) local: bool,
    /// To whom it was sent.
    pub(super) sent: NodeSet,
    pub(super) answered: NodeSet,
}

/// One round of flushes, for all requests that waited when it began.
#[derive(Clone, Debug)]
pub(super) struct FlushRound {
    token: u64,
    pub(super) started: Now,
    pub(super) local: bool,
    pub(super) waiting: NodeSet,
    requests: Vec<ReqId>,
}

impl Primary {
    fn write_frame(stamp: Stamp, seq: Seq, write: &Write) -> Frame {
        match &write.data {
            Some(data) => Frame::Write {
                stamp,
                seq,
                range: write.range,
                fua: write.fua,
                data: data.clone(),
            },
            None => Frame::Zero {
                stamp,
                seq,
                range: write.range,
                fua: write.fua,
            },
        }
    }

    /// Who counts for acknowledgements besides this node: the members, and a syncing peer from its cut on.
    pub(super) fn counted(&self, ctx: &Ctx) -> NodeSet {
        self.growing
            .as_ref()
            .filter(|_| !ctx.off(Rule::CountEarly))
            .map_or(self.members(ctx), |g| self.members(ctx).with(g.peer))
    }

    /// Starts a write: one frame per session, the local disk, bits for whoever does not count.
    pub(super) fn issue(
        &mut self,
        ctx: &mut Ctx,
        source: Source,
        range: BlockRange,
        data: Option<Bytes>,
        fua: bool,
    ) {
        let seq = self.next_seq;
        self.next_seq = seq.next();
        ctx.bits.mark(ctx.others().minus(self.counted(ctx)), range);
        let push = matches!(source, Source::Push(_));
        let mut write = Write {
            range,
            data,
            fua,
            source,
            issued: ctx.now,
            local: push,
            sent: NodeSet::EMPTY,
            answered: NodeSet::EMPTY,
        };
        self.note_lacking(ctx, Some(range));
        let counted = self.counted(ctx);
        for (&peer, session) in self.sessions.iter_mut().filter(|(_, s)| s.attached) {
            if !counted.has(peer) && session.lags() {
                // It cannot keep up: its bits are set, resync brings the blocks. No older answer may clear them.
                for sent in session
                    .unanswered
                    .values_mut()
                    .filter(|s| s.range.overlaps(range))
                {
                    sent.clears = false;
                }
                continue;
            }
            let bytes = write.data.as_ref().map_or(0, |d| d.len() as u64);
            session.sent(
                seq,
                Sent {
                    range,
                    bytes,
                    at: ctx.now,
                    clears: true,
                },
            );
            write.sent = write.sent.with(peer);
            ctx.send(peer, Self::write_frame(session.stamp, seq, &write));
        }
        if !push {
            let op = ctx.write_op(range, write.data.clone(), fua);
            ctx.role_io(RoleIo::LocalWrite(seq), op);
        }
        self.writes.insert(seq, write);
        if push {
            self.try_settle(ctx, seq);
        }
    }

    pub(super) fn local_written(&mut self, ctx: &mut Ctx, seq: Seq) {
        if let Some(write) = self.writes.get_mut(&seq) {
            write.local = true;
            self.try_settle(ctx, seq);
        }
    }

    /// A replica has a write on its disk.
    pub(super) fn answered(&mut self, ctx: &mut Ctx, peer: NodeId, seq: Seq) {
        let Some(session) = self.sessions.get_mut(&peer) else {
            return;
        };
        let Some(Sent {
            range, at, clears, ..
        }) = session.answered(seq)
        else {
            return;
        };
        self.answer_took(ctx, peer, at);
        let Some(session) = self.sessions.get_mut(&peer) else {
            return;
        };
        if !self.in_sync.has(peer) && clears {
            // A bit goes only if no newer write of that block is on its way to the peer (rule 21).
            let newer: Vec<BlockRange> = session
                .unanswered
                .range(seq..)
                .map(|(_, s)| s.range)
                .filter(|r| r.overlaps(range))
                .collect();
            if newer.is_empty() {
                ctx.bits.clear(peer, range);
            } else {
                for block in range.first..range.end() {
                    let one = BlockRange::new(block, 1);
                    if !newer.iter().any(|n| n.overlaps(one)) {
                        ctx.bits.clear(peer, one);
                    }
                }
            }
        }
        if let Some(write) = self.writes.get_mut(&seq) {
            write.answered = write.answered.with(peer);
            self.try_settle(ctx, seq);
        }
        self.try_propose_grow(ctx, peer);
    }

    fn must_answer(&self, ctx: &Ctx, write: &Write) -> NodeSet {
        let mut need = self.members(ctx);
        if let Some(growing) = &self.growing
            && (growing.is_proposed() || write.sent.has(growing.peer))
            && !ctx.off(Rule::CountEarly)
        {
            need = need.with(growing.peer);
        }
        if ctx.off(Rule::AckByAll) {
            return NodeSet::EMPTY;
        }
        if ctx.off(Rule::ShrinkFirst) {
            need = need.and(self.sessions.keys().copied().collect());
        }
        need
    }

    fn try_settle(&mut self, ctx: &mut Ctx, seq: Seq) {
        let Some(write) = self.writes.get(&seq) else {
            return;
        };
        if !self.own_part(ctx, write.local)
            || !write.answered.contains(self.must_answer(ctx, write))
        {
            return;
        }
        let write = self.writes.remove(&seq).expect("just seen");
        let mut holders = write.answered.and(self.counted(ctx));
        if !ctx.disk_failed() {
            holders = holders.with(ctx.me());
        }
        assert!(
            ctx.cfg.off.is_some() || holders.contains(self.in_sync),
            "G1: every member holds what is settled"
        );
        self.settled.insert(seq, holders);
        self.queue_closes(ctx);
        match write.source {
            Source::Piece(piece) => {
                ctx.release(write.range);
                self.piece_written(ctx, piece);
            }
            Source::Push(job) => self.job_pushed(ctx, job, seq),
            Source::Fix(job) => {
                ctx.release(write.range);
                self.job_pushed(ctx, job, seq);
            }
        }
        self.pump_drain(ctx);
    }

    /// Membership changed: what waits may be settled now.
    pub(super) fn recheck(&mut self, ctx: &mut Ctx) {
        let all: Vec<Seq> = self.writes.keys().copied().collect();
        for seq in all {
            self.try_settle(ctx, seq);
        }
        if let Some(flush) = &mut self.flush {
            let counted = self.growing.as_ref().map(|g| g.peer);
            flush.waiting = flush
                .waiting
                .iter()
                .filter(|&p| self.in_sync.has(p) || counted == Some(p))
                .collect();
        }
        self.try_end_flush(ctx);
    }

    // ---- closes

    fn queue_closes(&mut self, ctx: &mut Ctx) {
        while let Some(set) = self.settled.remove(&self.closed.next()) {
            self.closed = self.closed.next();
            self.unsent_closes += 1;
            match self.closes.last_mut() {
                Some(last) if last.1 == set => last.0 = self.closed,
                _ => self.closes.push((self.closed, set)),
            }
            if self.close_due.is_none() {
                self.close_due = Some(ctx.now.plus_ms(ctx.cfg.timing.close_ms));
            }
        }
        if self.unsent_closes >= CLOSE_EVERY {
            self.send_closes(ctx);
        }
    }

    pub(super) fn send_closes(&mut self, ctx: &mut Ctx) {
        self.close_due = None;
        self.unsent_closes = 0;
        self.send_synced(ctx);
        for (upto, set) in std::mem::take(&mut self.closes) {
            for (&peer, session) in self.sessions.iter().filter(|(_, s)| s.attached) {
                ctx.send(
                    peer,
                    Frame::Close {
                        stamp: session.stamp,
                        upto,
                        set,
                    },
                );
            }
        }
    }

    /// A member of the same run is back: closes are repeated, unanswered frames go again in order before new ones (rule 27).
    pub(super) fn resend(&mut self, ctx: &mut Ctx, peer: NodeId) {
        if ctx.off(Rule::Resend) {
            return;
        }
        // News of resync first: it must not clear what the repeated close sets.
        self.send_synced(ctx);
        let Some(session) = self.sessions.get_mut(&peer) else {
            return;
        };
        let stamp = session.stamp;
        if self.closed.0 > 0 {
            // With today's set: whoever joined since holds what was settled before (it was resynced), whoever left gets bits too many.
            ctx.send(
                peer,
                Frame::Close {
                    stamp,
                    upto: self.closed,
                    set: self.in_sync,
                },
            );
        }
        for (&seq, write) in self
            .writes
            .iter_mut()
            .filter(|(_, w)| !w.answered.has(peer))
        {
            let sent = Sent {
                range: write.range,
                bytes: write.data.as_ref().map_or(0, |d| d.len() as u64),
                at: ctx.now,
                clears: true,
            };
            session.sent(seq, sent);
            write.sent = write.sent.with(peer);
            write.issued = ctx.now;
            ctx.send(peer, Self::write_frame(stamp, seq, write));
        }
        if let Some(flush) = self.flush.as_mut().filter(|f| f.waiting.has(peer)) {
            flush.started = ctx.now;
            ctx.send(
                peer,
                Frame::Flush {
                    stamp,
                    token: flush.token,
                },
            );
        }
    }

    // ---- flushes

    pub(super) fn request_flush(&mut self, ctx: &mut Ctx, req: ReqId) {
        self.flush_next.push(req);
        self.pump_flush(ctx);
    }

    pub(super) fn pump_flush(&mut self, ctx: &mut Ctx) {
        if self.flush.is_some()
            || (self.flush_next.is_empty() && self.drain != Some(Drain::Confirming))
        {
            return;
        }
        let token = self.token();
        let planted = ctx.off(Rule::FlushByAll);
        let waiting = if planted {
            NodeSet::EMPTY
        } else {
            self.counted(ctx)
        };
        self.flush = Some(FlushRound {
            token,
            started: ctx.now,
            local: false,
            waiting,
            requests: std::mem::take(&mut self.flush_next),
        });
        for peer in waiting.iter() {
            if let Some(stamp) = self.attached_session(peer).map(|s| s.stamp) {
                ctx.send(peer, Frame::Flush { stamp, token });
            }
        }
        ctx.role_io(RoleIo::LocalFlush(token), DiskOp::Flush);
        self.try_end_flush(ctx);
    }

    pub(super) fn local_flushed(&mut self, ctx: &mut Ctx, token: u64) {
        if let Some(flush) = self.flush.as_mut().filter(|f| f.token == token) {
            flush.local = true;
            self.try_end_flush(ctx);
        }
    }

    pub(super) fn peer_flushed(&mut self, ctx: &mut Ctx, peer: NodeId, token: u64) {
        self.preflushed(ctx, peer, token);
        if let Some(flush) = self.flush.as_mut().filter(|f| f.token == token) {
            flush.waiting = flush.waiting.without(peer);
            self.try_end_flush(ctx);
        }
    }

    fn try_end_flush(&mut self, ctx: &mut Ctx) {
        let done = |f: &FlushRound| self.own_part(ctx, f.local) && f.waiting.is_empty();
        if !self.flush.as_ref().is_some_and(done) {
            return;
        }
        let flush = self.flush.take().expect("just seen");
        // Not one that a hand-over asks for only now, because this round was its last request.
        let confirming = self.drain == Some(Drain::Confirming);
        for req in flush.requests {
            self.finish(ctx, req, Ok(Bytes::new()));
        }
        if confirming {
            self.drain = Some(Drain::Done);
            ctx.control(crate::ToControl::Drained { epoch: self.epoch });
        }
        // A cut goes between two rounds: the next one counts the new replica.
        self.pump_jobs(ctx);
        self.pump_flush(ctx);
    }

    /// The requests that wait for flushes are being failed with the others.
    pub(super) fn fail_flushes(&mut self) {
        self.flush_next.clear();
        if let Some(flush) = &mut self.flush {
            flush.requests.clear();
        }
    }

    // ---- planned hand-over

    /// Goes on with a hand-over when nothing is in flight any more.
    pub(super) fn pump_drain(&mut self, ctx: &mut Ctx) {
        if self.drain != Some(Drain::Finishing) || self.phase != Phase::Open {
            return;
        }
        if self.requests.is_empty()
            && self.writes.is_empty()
            && self.answers_held.is_empty()
            && !self.fetches.healing()
            && self.flush.is_none()
        {
            self.drain = Some(Drain::Confirming);
            self.send_closes(ctx);
            self.pump_flush(ctx);
        }
    }

    /// Takes a range for a piece or job.
    pub(super) fn lock(
        &mut self,
        owner: Owner,
        range: BlockRange,
        mode: crate::locks::Mode,
    ) -> (crate::locks::LockId, bool) {
        self.locks.acquire(owner, range, mode)
    }
}
