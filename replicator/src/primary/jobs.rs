//! Resync, reconciliation and verify: all compare or copy runs of blocks under the range lock, held
//! from read to answer (rule 13).
//!
//! - *Reconcile*: after a promotion blocks in doubt are compared with every member; where they differ
//!   this node's copy is pushed through the write lane. What somebody waits for comes first.
//! - *Resync*: dirty blocks of a syncing peer; suspect ones are compared by hash first.
//! - *Verify*: all blocks are compared with a peer, nothing is changed.
//!
//! Invariants
//! - bits are cleared only when the peer answered that it has the blocks, or its hashes are equal,
//!   under the lock (G4);
//! - a resync job never covers blocks with a write on its way to that peer;
//! - a job stays inside one activity-log extent, and there are never more of them than a quarter of the
//!   smallest log's slots, so that jobs cannot starve a replica of slots (rule 30).

use super::sessions::Stable;
use super::writes::Source;
use super::{Owner, Phase, Primary};
use crate::config::{JOB_BLOCKS_MAX, JOBS_MAX};
use crate::ctx::{Ctx, JobId, RoleIo};
use crate::hash::{hash_blocks, is_zero};
use crate::locks::{LockId, Mode};
use crate::rules::Rule;
use crate::{Note, PeerStatus};
use bytes::Bytes;
use holdfast_types::{BlockRange, DiskState, NodeId, NodeSet, Seq};
use holdfast_wire::Frame;
use std::collections::{BTreeMap, BTreeSet};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Reconcile,
    Resync(NodeId),
    Verify(NodeId),
}

/// One run of blocks being worked on.
#[derive(Clone, Debug)]
pub(super) struct Job {
    kind: Kind,
    range: BlockRange,
    lock: Option<LockId>,
    /// This node's copy, when it is read.
    local: Option<Bytes>,
    /// Whose hashes are to be compared.
    asked: NodeSet,
    hashes: BTreeMap<NodeId, Vec<u128>>,
    token: u64,
    /// Copies or pushes without answer.
    pushed: BTreeSet<Seq>,
    copies: BTreeSet<u64>,
    copying: bool,
}

/// A verify under way.
#[derive(Clone, Debug)]
pub(super) struct Verify {
    pub(super) peer: NodeId,
    next: u64,
    done_blocks: u64,
    differing: Vec<BlockRange>,
}

impl Primary {
    pub(super) fn has_jobs_for(&self, peer: NodeId) -> bool {
        self.jobs.values().any(|j| j.kind == Kind::Resync(peer))
    }

    /// The next run of blocks the peer lacks and that neither a job nor a write on its way takes care of. Blocks in
    /// doubt are left out until they are reconciled: a copy of one would differ from the members that lack it, and
    /// only this node would know.
    pub(super) fn next_lacking(&self, ctx: &Ctx, peer: NodeId) -> Option<BlockRange> {
        let session = self.sessions.get(&peer)?;
        let dirty = ctx.bits.dirty(peer);
        if dirty.is_empty() {
            return None;
        }
        let members = self.members(ctx);
        let busy = |range: BlockRange| {
            let job = self
                .jobs
                .values()
                .filter(|j| j.kind == Kind::Resync(peer))
                .map(|j| j.range);
            let write = session.unanswered.values().map(|s| s.range);
            let doubt = members
                .iter()
                .filter(|&m| !ctx.bits.dirty(m).is_empty())
                .filter_map(|m| next_run(ctx, m, range.first));
            job.chain(write)
                .chain(doubt)
                .filter(|b| b.overlaps(range))
                .map(|b| (b.first, b.end()))
                .min()
        };
        let blocks = ctx.layout.geometry.blocks;
        for (start, end) in [
            (session.cursor.min(blocks), blocks),
            (0, session.cursor.min(blocks)),
        ] {
            let mut from = start;
            while let Some(run) = next_run(ctx, peer, from).filter(|r| r.first < end) {
                match busy(run) {
                    None => return Some(run),
                    Some((first, _)) if first > run.first => {
                        return Some(BlockRange::new(run.first, first - run.first));
                    }
                    Some((_, after)) => from = after,
                }
            }
        }
        None
    }

    fn next_in_doubt(&self, ctx: &Ctx) -> Option<BlockRange> {
        let members = self.members(ctx);
        let busy = |range: BlockRange| {
            self.jobs
                .values()
                .filter(|j| j.kind == Kind::Reconcile)
                .map(|j| j.range)
                .find(|b| b.overlaps(range))
        };
        for wanted in self.awaited() {
            for member in members.iter() {
                let mut from = wanted.first;
                while let Some(run) = next_run(ctx, member, from).filter(|r| r.first < wanted.end())
                {
                    match busy(run) {
                        None => return Some(run),
                        Some(b) => from = b.end(),
                    }
                }
            }
        }
        for member in members.iter() {
            let mut from = 0;
            while let Some(run) = next_run(ctx, member, from) {
                match busy(run) {
                    None => return Some(run),
                    Some(b) => from = b.end(),
                }
            }
        }
        None
    }

    /// Starts jobs while there is room, reconciliation first.
    pub(super) fn pump_jobs(&mut self, ctx: &mut Ctx) {
        if self.phase != Phase::Open || ctx.disk_failed {
            return;
        }
        let jobs_max = JOBS_MAX.min((self.slots_min(ctx) / 4).max(1) as usize);
        let all_here = self
            .members(ctx)
            .iter()
            .all(|m| self.attached_session(m).is_some());
        while self.jobs.len() < jobs_max
            && all_here
            && let Some(range) = self.next_in_doubt(ctx)
        {
            self.start_job(ctx, Kind::Reconcile, range);
        }
        if !self.reconciled_noted
            && self
                .members(ctx)
                .iter()
                .all(|m| ctx.bits.dirty(m).is_empty())
        {
            self.reconciled_noted = true;
            for peer in self.members(ctx).iter() {
                self.confirm_members(ctx, peer);
            }
            ctx.note(Note::Reconciled {
                blocks: self.doubted,
            });
        }
        let syncing: Vec<NodeId> = self
            .sessions
            .iter()
            .filter(|(n, s)| {
                s.attached && !self.in_sync.has(**n) && self.growing.is_none_or(|g| g.peer != **n)
            })
            .map(|(&n, _)| n)
            .collect();
        for peer in syncing {
            while self.jobs.len() < jobs_max {
                let Some(range) = self.next_lacking(ctx, peer) else {
                    self.try_grow(ctx, peer);
                    break;
                };
                if let Some(session) = self.sessions.get_mut(&peer) {
                    session.cursor = range.end();
                    session.stable = Stable::No;
                }
                self.start_job(ctx, Kind::Resync(peer), range);
            }
        }
        self.pump_verify(ctx);
    }

    fn start_job(&mut self, ctx: &mut Ctx, kind: Kind, range: BlockRange) {
        let id = JobId(self.next_job);
        self.next_job += 1;
        let token = self.token();
        let job = Job {
            kind,
            range,
            lock: None,
            local: None,
            asked: NodeSet::EMPTY,
            hashes: BTreeMap::new(),
            token,
            pushed: BTreeSet::new(),
            copies: BTreeSet::new(),
            copying: false,
        };
        self.jobs.insert(id, job);
        let mode = match kind {
            Kind::Verify(_) => Mode::Shared,
            Kind::Reconcile | Kind::Resync(_) => Mode::Exclusive,
        };
        if matches!(kind, Kind::Resync(_)) && ctx.off(Rule::ResyncLock) {
            self.job_locked(ctx, id);
            return;
        }
        let (lock, granted) = self.lock(Owner::Job(id), range, mode);
        self.jobs.get_mut(&id).expect("just added").lock = Some(lock);
        if granted {
            self.job_locked(ctx, id);
        }
    }

    pub(super) fn job_locked(&mut self, ctx: &mut Ctx, id: JobId) {
        let Some(job) = self.jobs.get(&id) else {
            return;
        };
        let range = job.range;
        let asked = match job.kind {
            Kind::Reconcile => self
                .members(ctx)
                .iter()
                .filter(|&m| ctx.bits.dirty(m).any(range))
                .collect(),
            Kind::Verify(peer) => NodeSet::only(peer),
            Kind::Resync(peer) => {
                let on_its_way = self
                    .sessions
                    .get(&peer)
                    .is_none_or(|s| s.unanswered.values().any(|r| r.range.overlaps(range)));
                let planted = ctx.off(Rule::ResyncLock);
                if (on_its_way && !planted) || !ctx.bits.dirty(peer).any(range) {
                    // A write passed while this waited for the lock: its answer clears the bits, or the next job does.
                    self.end_job(ctx, id);
                    return;
                }
                if ctx.bits.any_suspect(peer, range) {
                    NodeSet::only(peer)
                } else {
                    NodeSet::EMPTY
                }
            }
        };
        if matches!(job.kind, Kind::Reconcile) && asked.is_empty() {
            self.reconciled_job(ctx, id);
            return;
        }
        let token = job.token;
        self.jobs.get_mut(&id).expect("just seen").asked = asked;
        ctx.role_io(RoleIo::JobRead(id), ctx.read_op(range));
        for peer in asked.iter() {
            if let Some(stamp) = self.attached_session(peer).map(|s| s.stamp) {
                ctx.send(
                    peer,
                    Frame::Hash {
                        stamp,
                        token,
                        range,
                    },
                );
            }
        }
    }

    pub(super) fn job_read(&mut self, ctx: &mut Ctx, id: JobId, bytes: Bytes) {
        if let Some(job) = self.jobs.get_mut(&id) {
            job.local = Some(bytes);
            self.try_compare(ctx, id);
        }
    }

    pub(super) fn hashes(&mut self, ctx: &mut Ctx, peer: NodeId, token: u64, hashes: Vec<u128>) {
        let found = self
            .jobs
            .iter_mut()
            .find(|(_, j)| j.token == token && j.asked.has(peer));
        if let Some((&id, job)) = found
            && hashes.len() as u64 == job.range.count
        {
            job.hashes.insert(peer, hashes);
            self.try_compare(ctx, id);
        }
    }

    /// Compares when everything that was asked for is here.
    fn try_compare(&mut self, ctx: &mut Ctx, id: JobId) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        let Some(local) = job.local.clone().filter(|_| !job.copying) else {
            return;
        };
        if !job.asked.iter().all(|p| job.hashes.contains_key(&p)) {
            return;
        }
        job.copying = true;
        let (kind, range) = (job.kind, job.range);
        let ours = if job.hashes.is_empty() {
            Vec::new()
        } else {
            hash_blocks(&local, ctx.layout.geometry.block_bytes)
        };
        let hashes = std::mem::take(&mut job.hashes);
        let differs = |i: usize| hashes.values().any(|h| h[i] != ours[i]);
        match kind {
            Kind::Verify(peer) => {
                let runs = runs(range, differs);
                if let Some(verify) = self.verify.as_mut().filter(|v| v.peer == peer) {
                    verify.done_blocks += range.count;
                    verify.differing.extend(runs);
                }
                self.end_job(ctx, id);
            }
            Kind::Resync(peer) => {
                // Not compared: all is copied. Compared: what is equal is done.
                let copy = if hashes.is_empty() {
                    vec![range]
                } else {
                    runs(range, differs)
                };
                self.copy(ctx, id, peer, &local, &copy);
            }
            Kind::Reconcile => {
                let push = runs(range, differs);
                self.push(ctx, id, &local, &push);
            }
        }
    }

    fn part(ctx: &Ctx, range: BlockRange, local: &Bytes, part: BlockRange) -> Bytes {
        let block = ctx.layout.geometry.block_bytes as usize;
        let from = (part.first - range.first) as usize * block;
        local.slice(from..from + part.count as usize * block)
    }

    // ---- resync

    fn copy(&mut self, ctx: &mut Ctx, id: JobId, peer: NodeId, local: &Bytes, copy: &[BlockRange]) {
        let range = self.jobs[&id].range;
        let dirty: u64 = ctx.bits.dirty(peer).count_in(range);
        let copied: u64 = copy.iter().map(|r| r.count).sum();
        if self.attached_session(peer).is_none() {
            self.end_job(ctx, id);
            return;
        }
        let mut frames = Vec::new();
        for &part in copy {
            let data = Self::part(ctx, range, local, part);
            let token = self.token();
            self.jobs
                .get_mut(&id)
                .expect("at work")
                .copies
                .insert(token);
            frames.push((token, part, (!is_zero(&data)).then_some(data)));
        }
        let session = self.sessions.get_mut(&peer).expect("just seen");
        session.equal_blocks += dirty.saturating_sub(copied);
        for (token, part, data) in frames {
            session.sent_bytes += data.as_ref().map_or(0, |d| d.len() as u64);
            ctx.send(
                peer,
                Frame::Resync {
                    stamp: session.stamp,
                    token,
                    range: part,
                    data,
                },
            );
        }
        self.try_end_copy(ctx, id, peer);
    }

    pub(super) fn resynced(&mut self, ctx: &mut Ctx, peer: NodeId, token: u64) {
        let found = self
            .jobs
            .iter_mut()
            .find(|(_, j)| j.kind == Kind::Resync(peer) && j.copies.contains(&token));
        if let Some((&id, job)) = found {
            job.copies.remove(&token);
            self.try_end_copy(ctx, id, peer);
        }
    }

    fn try_end_copy(&mut self, ctx: &mut Ctx, id: JobId, peer: NodeId) {
        if self.jobs[&id].copies.is_empty() {
            ctx.bits.clear(peer, self.jobs[&id].range);
            self.end_job(ctx, id);
        }
    }

    // ---- reconciliation

    fn push(&mut self, ctx: &mut Ctx, id: JobId, local: &Bytes, push: &[BlockRange]) {
        let range = self.jobs[&id].range;
        // All sequences first: a push may be settled at once when the set has shrunk to this node.
        let first = self.next_seq.0;
        let seqs = (first..first + push.len() as u64).map(Seq);
        self.jobs.get_mut(&id).expect("at work").pushed.extend(seqs);
        if push.is_empty() {
            self.reconciled_job(ctx, id);
            return;
        }
        for &part in push {
            let data = Self::part(ctx, range, local, part);
            self.issue(ctx, Source::Push(id), part, Some(data), false);
        }
    }

    pub(super) fn job_pushed(&mut self, ctx: &mut Ctx, id: JobId, seq: Seq) {
        if let Some(job) = self.jobs.get_mut(&id) {
            job.pushed.remove(&seq);
            if job.pushed.is_empty() {
                self.reconciled_job(ctx, id);
            }
        }
    }

    /// The blocks are equal on all members, so members need no bits any more. Whoever is outside got bits when the
    /// reports were collected, here and by this frame on the members (rules 16, 33).
    fn reconciled_job(&mut self, ctx: &mut Ctx, id: JobId) {
        let range = self.jobs[&id].range;
        let set = self.in_sync;
        for member in self.members(ctx).iter() {
            ctx.bits.clear(member, range);
        }
        for (&peer, session) in self.sessions.iter().filter(|(_, s)| s.attached) {
            if set.has(peer) {
                ctx.send(
                    peer,
                    Frame::Reconciled {
                        stamp: session.stamp,
                        ranges: vec![range],
                        set,
                    },
                );
            }
        }
        self.end_job(ctx, id);
        self.wake_awaiting(ctx);
    }

    /// Tells a member that the others lack nothing: bits it may hold for them are of the past (rule 34).
    pub(super) fn confirm_members(&self, ctx: &mut Ctx, peer: NodeId) {
        let Some(stamp) = self
            .attached_session(peer)
            .map(|s| s.stamp)
            .filter(|_| self.reconciled_noted)
        else {
            return;
        };
        for node in self.in_sync.without(peer).iter() {
            ctx.send(peer, Frame::Grown { stamp, node });
        }
    }

    // ---- verify

    pub(super) fn start_verify(&mut self, ctx: &mut Ctx, peer: NodeId) {
        if self.verify.is_some() || self.attached_session(peer).is_none() {
            ctx.note(Note::Verified {
                peer,
                differing: None,
            });
            return;
        }
        self.verify = Some(Verify {
            peer,
            next: 0,
            done_blocks: 0,
            differing: Vec::new(),
        });
        self.pump_verify(ctx);
    }

    fn pump_verify(&mut self, ctx: &mut Ctx) {
        let blocks = ctx.layout.geometry.blocks;
        while let Some(verify) = self.verify.as_mut() {
            let peer = verify.peer;
            let running = self
                .jobs
                .values()
                .filter(|j| j.kind == Kind::Verify(peer))
                .count();
            if running >= JOBS_MAX / 2 || (verify.next >= blocks && running > 0) {
                return;
            }
            if verify.next >= blocks {
                let differing = merge(std::mem::take(&mut verify.differing));
                self.verify = None;
                ctx.note(Note::Verified {
                    peer,
                    differing: Some(differing),
                });
                return;
            }
            let range = BlockRange::new(verify.next, JOB_BLOCKS_MAX.min(blocks - verify.next));
            verify.next = range.end();
            self.start_job(ctx, Kind::Verify(peer), range);
        }
    }

    // ---- ends

    fn end_job(&mut self, ctx: &mut Ctx, id: JobId) {
        let job = self.jobs.remove(&id).expect("ends once");
        if let Some(lock) = job.lock {
            self.unlock(ctx, lock);
        }
        self.pump_jobs(ctx);
    }

    /// Its blocks cannot be read here: they stay dirty, and are tried again by and by.
    pub(super) fn job_failed(&mut self, ctx: &mut Ctx, id: JobId) {
        let Some(job) = self.jobs.remove(&id) else {
            return;
        };
        if let Some(lock) = job.lock {
            self.unlock(ctx, lock);
        }
    }

    /// A session ended: its jobs start over in the next one; a reconciliation waits for it or its removal.
    pub(super) fn drop_jobs(&mut self, ctx: &mut Ctx, peer: NodeId) {
        let gone: Vec<JobId> = self
            .jobs
            .iter()
            .filter(|(_, j)| match j.kind {
                Kind::Resync(p) | Kind::Verify(p) => p == peer,
                Kind::Reconcile => j.asked.has(peer) && !j.copying,
            })
            .map(|(&id, _)| id)
            .collect();
        if self.verify.as_ref().is_some_and(|v| v.peer == peer) {
            self.verify = None;
            ctx.note(Note::Verified {
                peer,
                differing: None,
            });
        }
        for id in gone {
            // Unlocking one may have ended another.
            let Some(job) = self.jobs.remove(&id) else {
                continue;
            };
            if let Some(lock) = job.lock {
                self.unlock(ctx, lock);
            }
        }
    }

    pub(crate) fn peer_status(&self, ctx: &Ctx, node: NodeId) -> PeerStatus {
        let block = u64::from(ctx.layout.geometry.block_bytes);
        let link = &ctx.links[&node];
        let session = self.sessions.get(&node);
        let attached = session.is_some_and(|s| s.attached);
        let disk = if self.in_sync.has(node) {
            DiskState::UpToDate
        } else if attached {
            DiskState::Syncing
        } else {
            match link.hello.as_ref().map(|h| h.disk) {
                Some(d @ (DiskState::Diskless | DiskState::Failed)) => d,
                _ => DiskState::Outdated,
            }
        };
        PeerStatus {
            node,
            connected: link.up,
            attached,
            disk,
            out_of_sync_bytes: ctx.bits.dirty(node).count() * block,
            resync_sent_bytes: session.map_or(0, |s| s.sent_bytes),
            resync_equal_bytes: session.map_or(0, |s| s.equal_blocks * block),
            verify_done_bytes: self
                .verify
                .as_ref()
                .filter(|v| v.peer == node)
                .map(|v| v.done_blocks * block),
        }
    }
}

/// The next run of blocks that `node` may lack, within one job's bounds.
fn next_run(ctx: &Ctx, node: NodeId, from: u64) -> Option<BlockRange> {
    let geometry = ctx.layout.geometry;
    let run = ctx.bits.dirty(node).next_run(from, JOB_BLOCKS_MAX)?;
    let extent_end = geometry.extent_range(geometry.extent_of(run.first)).end();
    Some(BlockRange::new(
        run.first,
        run.count.min(extent_end - run.first),
    ))
}

/// The runs of blocks of `range` whose index satisfies `differs`.
fn runs(range: BlockRange, differs: impl Fn(usize) -> bool) -> Vec<BlockRange> {
    let all = (0..range.count)
        .filter(|&i| differs(i as usize))
        .map(|i| BlockRange::new(range.first + i, 1))
        .collect();
    merge(all)
}

/// Sorted, with neighbours joined.
fn merge(mut ranges: Vec<BlockRange>) -> Vec<BlockRange> {
    ranges.sort_unstable();
    let mut merged: Vec<BlockRange> = Vec::new();
    for range in ranges {
        match merged.last_mut() {
            Some(last) if last.end() == range.first => last.count += range.count,
            _ => merged.push(range),
        }
    }
    merged
}
