//! Resync: what a syncing peer lacks goes to it, in parallel runs, beside the writes.
//!
//! Progress is kept block by block: a bit goes with the answer for its block, so that whatever interrupts a
//! resync, it goes on where it was. Members hear of it too ([`Frame::Synced`]), so that this holds when the
//! primary itself is lost.

use super::super::sessions::Stable;
use super::{Compared, Kind, Primary, merge, runs_by};
use crate::config::SYNCED_RANGES_MAX;
use crate::ctx::{Ctx, JobId};
use crate::hash::is_zero;
use holdfast_types::{BlockRange, NodeId};
use holdfast_wire::Frame;

impl Primary {
    pub(in crate::primary) fn has_jobs_for(&self, peer: NodeId) -> bool {
        self.jobs.all.values().any(|j| j.kind == Kind::Resync(peer))
    }

    pub(super) fn pump_resync(&mut self, ctx: &mut Ctx) {
        let mut syncing: Vec<NodeId> = self
            .sessions
            .iter()
            .filter(|(n, s)| {
                s.attached && !self.in_sync.has(**n) && self.growing.is_none_or(|g| g.peer != **n)
            })
            .map(|(&n, _)| n)
            .collect();
        // All share one window: whoever comes after the last one served is first.
        let turn = self.jobs.turn;
        syncing.sort_by_key(|&n| (Some(n) <= turn, n));
        while !syncing.is_empty() {
            syncing.retain(|&peer| self.resync_one(ctx, peer));
        }
    }

    /// Starts one job for the peer; false if there is none to start now.
    fn resync_one(&mut self, ctx: &mut Ctx, peer: NodeId) -> bool {
        let Some(range) = self.next_lacking(ctx, peer) else {
            self.try_grow(ctx, peer);
            return false;
        };
        let geometry = ctx.layout.geometry;
        let bytes = ctx.bits.dirty(peer).count_in(range) * u64::from(geometry.block_bytes);
        if self.pace.bounds().paused
            || !self.jobs.room_for(geometry, range, self.slots_min(ctx))
            || !self.pace.grant(ctx.now, bytes)
        {
            return false;
        }
        if let Some(session) = self.sessions.get_mut(&peer) {
            session.cursor = range.end();
            session.stable = Stable::No;
        }
        self.jobs.turn = Some(peer);
        self.start_job(ctx, Kind::Resync(peer), range, bytes);
        true
    }

    /// The blocks are read, and the peer's hashes are here if any were asked for: what differs goes.
    pub(super) fn resync_compared(
        &mut self,
        ctx: &mut Ctx,
        id: JobId,
        peer: NodeId,
        compared: &Compared,
    ) {
        if self.attached_session(peer).is_none() {
            self.end_job(ctx, id);
            return;
        }
        let block = ctx.layout.geometry.block_bytes as usize;
        let parts = std::mem::take(&mut self.jobs.all.get_mut(&id).expect("at work").parts);
        for part in parts {
            // Not compared: all is copied. Runs of zeroes go as zeroes, and stay holes.
            let runs = runs_by(part, |b| {
                if !compared.hashes.is_empty() && !compared.differs(b) {
                    return None;
                }
                let at = compared.at(b) * block;
                Some(is_zero(&compared.local[at..at + block]))
            });
            for (run, what) in runs {
                match what {
                    None => self.equal(ctx, peer, run),
                    Some(zero) => {
                        let data = (!zero).then(|| compared.bytes(ctx, run));
                        self.copy(ctx, id, peer, run, data);
                    }
                }
            }
        }
        self.try_end_copy(ctx, id);
    }

    /// The peer has these blocks already.
    fn equal(&mut self, ctx: &mut Ctx, peer: NodeId, run: BlockRange) {
        if let Some(session) = self.sessions.get_mut(&peer) {
            session.equal_blocks += run.count;
        }
        self.synced(ctx, peer, run);
    }

    fn copy(
        &mut self,
        ctx: &mut Ctx,
        id: JobId,
        peer: NodeId,
        run: BlockRange,
        data: Option<bytes::Bytes>,
    ) {
        let token = self.token();
        self.peer_owes(ctx, peer);
        self.jobs.tokens.insert(token, id);
        let job = self.jobs.all.get_mut(&id).expect("at work");
        job.copies.insert(token, run);
        let session = self.sessions.get_mut(&peer).expect("seen by the caller");
        match &data {
            Some(data) => session.sent_bytes += data.len() as u64,
            None => session.zero_blocks += run.count,
        }
        ctx.send(
            peer,
            Frame::Resync {
                stamp: session.stamp,
                token,
                range: run,
                data,
            },
        );
    }

    /// The peer has a copy on its disk.
    pub(in crate::primary) fn resynced(&mut self, ctx: &mut Ctx, peer: NodeId, token: u64) {
        self.peer_answers(ctx, peer);
        let Some(&id) = self.jobs.tokens.get(&token) else {
            return;
        };
        let Some(job) = self.jobs.all.get_mut(&id) else {
            return;
        };
        if job.kind != Kind::Resync(peer) {
            return;
        }
        if let Some(run) = job.copies.remove(&token) {
            self.jobs.tokens.remove(&token);
            self.synced(ctx, peer, run);
            self.try_end_copy(ctx, id);
        }
    }

    fn try_end_copy(&mut self, ctx: &mut Ctx, id: JobId) {
        if self.jobs.all[&id].copies.is_empty() {
            self.end_job(ctx, id);
        }
    }

    /// The peer is known to have these blocks; the job's lock is still held, so no write of them is on its way.
    fn synced(&mut self, ctx: &mut Ctx, peer: NodeId, run: BlockRange) {
        let bytes = run.count * u64::from(ctx.layout.geometry.block_bytes);
        ctx.bits.clear(peer, run);
        if let Some(session) = self.sessions.get_mut(&peer) {
            session.meter.add(ctx.now, bytes);
        }
        // A member may differ from this node's copy as long as anything is in doubt; its bits stay then.
        let members = self.members(ctx);
        let in_doubt = |m: NodeId| !ctx.bits.dirty(m).is_empty();
        if !self.reconciled_noted || members.is_empty() || members.iter().any(in_doubt) {
            return;
        }
        let handed = self.synced.entry(peer).or_default();
        match handed.last_mut() {
            Some(last) if last.end() == run.first => last.count += run.count,
            _ => handed.push(run),
        }
        if handed.len() >= SYNCED_RANGES_MAX {
            self.send_synced(ctx);
        }
    }

    /// Tells the members what peers have got. Before every close: a write that is closed after its block was resynced
    /// sets bits that this must not clear.
    pub(in crate::primary) fn send_synced(&mut self, ctx: &mut Ctx) {
        for (node, ranges) in std::mem::take(&mut self.synced) {
            let ranges = merge(ranges);
            for (&peer, session) in self.sessions.iter().filter(|(_, s)| s.attached) {
                if peer == node || !self.in_sync.has(peer) {
                    continue;
                }
                ctx.send(
                    peer,
                    Frame::Synced {
                        stamp: session.stamp,
                        node,
                        ranges: ranges.clone(),
                    },
                );
            }
        }
    }
}
