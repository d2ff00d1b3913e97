//! Jobs: runs of blocks that are compared or copied under the range lock, held from read to answer (rule 13).
//!
//! - *Reconcile* (`reconcile`): after a promotion blocks in doubt are compared with every member; where they differ
//!   this node's copy is pushed through the write lane. What somebody waits for comes first, and nothing paces it.
//! - *Resync* (`resync`): dirty blocks of a syncing peer; suspect ones are compared by hash first.
//! - *Verify* (`verify`): all blocks are compared with members, nothing is changed.
//! - *Repair* (`repair`): what a verify found is compared again, alone, and made equal.
//!
//! Invariants
//! - bits are cleared only when the peer answered that it has the blocks, or its hashes are equal,
//!   under the lock (G4);
//! - a resync job never touches blocks with a write on its way to that peer;
//! - jobs that write stay inside extents of which there are never more than a quarter of the smallest log's
//!   slots, so that they cannot starve a replica of slots (rule 30);
//! - what the controller granted is given back exactly once, when the job ends.

mod owed;
mod pick;
mod reconcile;
mod repair;
mod resync;
mod status;
mod verify;

use super::fetch::Reader;
use super::{Owner, Phase, Primary};
use crate::Now;
use crate::config::JOBS_MAX;
use crate::ctx::{Ctx, JobId};
use crate::hash::hash_blocks;
use crate::locks::{LockId, Mode};
use crate::rules::Rule;
use bytes::Bytes;
use holdfast_types::{BlockRange, Geometry, NodeId, NodeSet, Seq};
use holdfast_wire::{Frame, UNREADABLE};
use repair::Fix;
use std::collections::{BTreeMap, BTreeSet};
pub(super) use verify::Verify;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Reconcile,
    Resync(NodeId),
    Verify,
    Repair,
}

impl Kind {
    /// Its blocks pass the activity logs of replicas.
    fn writes(self) -> bool {
        !matches!(self, Self::Verify)
    }
}

/// One run of blocks being worked on.
#[derive(Clone, Debug)]
pub(super) struct Job {
    kind: Kind,
    range: BlockRange,
    /// Of a resync: the blocks in `range` that the peer may lack.
    parts: Vec<BlockRange>,
    lock: Option<LockId>,
    /// This node's copy, from when it is read to when it is compared.
    local: Option<Bytes>,
    /// The local disk is reading it.
    reading: bool,
    /// Of a reconciliation without a local disk: the member whose copy counts, and who could not read theirs.
    source: Option<NodeId>,
    tried: NodeSet,
    /// Whose hashes are to be compared.
    asked: NodeSet,
    hashes: BTreeMap<NodeId, Vec<u128>>,
    token: u64,
    /// Pushes without answer.
    pushed: BTreeSet<Seq>,
    /// Copies without answer, and what each is of.
    copies: BTreeMap<u64, BlockRange>,
    /// Blocks that come from another copy than this node's.
    fixes: BTreeMap<u64, Fix>,
    copying: bool,
    /// Bytes the controller granted for it.
    granted: u64,
}

/// All jobs of a primary.
#[derive(Debug, Default)]
pub(super) struct Jobs {
    all: BTreeMap<JobId, Job>,
    next: u64,
    /// Extents with jobs that write, and how many.
    extents: BTreeMap<u32, u32>,
    /// Which job an answer is for.
    tokens: BTreeMap<u64, JobId>,
    /// The peer that was resynced last: the next one comes first.
    turn: Option<NodeId>,
    /// Since when a peer has answered none of the jobs that wait for it.
    owed: BTreeMap<NodeId, Now>,
}

impl Jobs {
    fn count(&self, is: impl Fn(Kind) -> bool) -> usize {
        self.all.values().filter(|j| is(j.kind)).count()
    }

    /// Is there room for one more that writes `range`, with logs of so many slots?
    fn room_for(&self, geometry: Geometry, range: BlockRange, slots_min: u32) -> bool {
        let extent = geometry.extent_of(range.first);
        self.all.len() < JOBS_MAX
            && (self.extents.contains_key(&extent)
                || self.extents.len() < (slots_min / 4).max(1) as usize)
    }

    fn add(&mut self, geometry: Geometry, kind: Kind, range: BlockRange, token: u64) -> JobId {
        self.next += 1;
        let id = JobId(self.next);
        if kind.writes() {
            *self
                .extents
                .entry(geometry.extent_of(range.first))
                .or_default() += 1;
        }
        self.tokens.insert(token, id);
        self.all.insert(
            id,
            Job {
                kind,
                range,
                parts: Vec::new(),
                lock: None,
                local: None,
                reading: false,
                source: None,
                tried: NodeSet::EMPTY,
                asked: NodeSet::EMPTY,
                hashes: BTreeMap::new(),
                token,
                pushed: BTreeSet::new(),
                copies: BTreeMap::new(),
                fixes: BTreeMap::new(),
                copying: false,
                granted: 0,
            },
        );
        id
    }

    fn remove(&mut self, geometry: Geometry, id: JobId) -> Option<Job> {
        let job = self.all.remove(&id)?;
        if job.kind.writes() {
            let extent = geometry.extent_of(job.range.first);
            let left = self.extents.get_mut(&extent).expect("counted when added");
            *left -= 1;
            if *left == 0 {
                self.extents.remove(&extent);
            }
        }
        self.tokens.remove(&job.token);
        for token in job.copies.keys().chain(job.fixes.keys()) {
            self.tokens.remove(token);
        }
        Some(job)
    }
}

impl Primary {
    /// Starts jobs while there is room, reconciliation first.
    pub(super) fn pump_jobs(&mut self, ctx: &mut Ctx) {
        self.pace.clear_due();
        if self.phase != Phase::Open || (ctx.disk_failed() && self.in_sync.has(ctx.me())) {
            return; // or not before this node's removal is known
        }
        if ctx.served() < ctx.layout.geometry.blocks {
            // Past the volume's end nobody lacks anything.
            ctx.bits.clip(ctx.served());
        }
        self.pump_reconcile(ctx);
        self.pump_resync(ctx);
        self.pump_verify(ctx);
    }

    fn start_job(&mut self, ctx: &mut Ctx, kind: Kind, range: BlockRange, granted: u64) {
        let token = self.token();
        let id = self.jobs.add(ctx.layout.geometry, kind, range, token);
        self.jobs.all.get_mut(&id).expect("just added").granted = granted;
        let mode = match kind {
            Kind::Verify => Mode::Shared,
            Kind::Reconcile | Kind::Resync(_) | Kind::Repair => Mode::Exclusive,
        };
        if matches!(kind, Kind::Resync(_)) && ctx.off(Rule::ResyncLock) {
            self.job_locked(ctx, id);
            return;
        }
        let (lock, now) = self.lock(Owner::Job(id), range, mode);
        self.jobs.all.get_mut(&id).expect("just added").lock = Some(lock);
        if now {
            self.job_locked(ctx, id);
        }
    }

    pub(super) fn job_locked(&mut self, ctx: &mut Ctx, id: JobId) {
        let Some(job) = self.jobs.all.get(&id) else {
            return;
        };
        let (range, tried) = (job.range, job.tried);
        let asked = match job.kind {
            Kind::Reconcile => {
                let asked: NodeSet = if ctx.disk_failed() {
                    // Any member's copy will do: nobody has read these blocks since they are in doubt.
                    let Some(source) = self.source(self.members(ctx).minus(tried)) else {
                        self.unreadable_job(ctx, id);
                        return;
                    };
                    self.jobs.all.get_mut(&id).expect("just seen").source = Some(source);
                    self.members(ctx).without(source)
                } else {
                    self.members(ctx)
                        .iter()
                        .filter(|&m| ctx.bits.dirty(m).any(range))
                        .collect()
                };
                if asked.is_empty() {
                    self.reconciled_job(ctx, id);
                    return;
                }
                asked
            }
            Kind::Verify => self.verified_now(),
            Kind::Repair => {
                let here = self.attached_members(ctx);
                if here.is_empty() {
                    // Nobody left to compare with since the verify found it.
                    if let Some(job) = self.take_job(ctx, id) {
                        self.repair_given_up(&job);
                    }
                    return;
                }
                here
            }
            Kind::Resync(peer) => {
                let parts = self.lacking_in(ctx, peer, range);
                let (Some(first), Some(last)) = (parts.first(), parts.last()) else {
                    // A write passed while this waited for the lock: its answer clears the bits, or the next job does.
                    self.end_job(ctx, id);
                    return;
                };
                let hull = BlockRange::new(first.first, last.end() - first.first);
                let job = self.jobs.all.get_mut(&id).expect("just seen");
                (job.range, job.parts) = (hull, parts);
                if ctx.bits.any_suspect(peer, hull) {
                    NodeSet::only(peer)
                } else {
                    NodeSet::EMPTY
                }
            }
        };
        let job = self.jobs.all.get_mut(&id).expect("just seen");
        job.asked = asked;
        let (range, token) = (job.range, job.token);
        self.read_source(ctx, id);
        for peer in asked.iter() {
            if let Some(stamp) = self.attached_session(peer).map(|s| s.stamp) {
                self.peer_owes(ctx, peer);
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

    /// Where the blocks of a job come from: their bytes go to [`Self::job_read`].
    fn read_source(&mut self, ctx: &mut Ctx, id: JobId) {
        let failed = ctx.disk_failed();
        let job = self.jobs.all.get_mut(&id).expect("at work");
        job.reading = !failed;
        match (job.source, job.range) {
            (Some(source), range) => {
                self.fetch_blocks(ctx, Reader::Job(id), range, Some(source));
            }
            (None, range) => self.read_blocks(ctx, Reader::Job(id), range),
        }
    }

    /// The blocks that the local disk was to read for a job.
    pub(super) fn job_range(&mut self, id: JobId) -> Option<BlockRange> {
        let job = self.jobs.all.get_mut(&id)?;
        job.reading = false;
        Some(job.range)
    }

    /// The local disk failed: who waits for it starts over with a member's copy. A verify is over, for it compared
    /// with that disk.
    pub(super) fn jobs_diskless(&mut self, ctx: &mut Ctx) {
        self.end_verify(ctx);
        let reading: Vec<JobId> = self
            .jobs
            .all
            .iter()
            .filter(|(_, j)| j.reading)
            .map(|(&id, _)| id)
            .collect();
        for id in reading {
            self.restart_job(ctx, id);
        }
    }

    fn restart_job(&mut self, ctx: &mut Ctx, id: JobId) {
        let token = self.token();
        let Some(job) = self.jobs.all.get_mut(&id) else {
            return;
        };
        if matches!(job.kind, Kind::Verify | Kind::Repair) {
            self.take_job(ctx, id);
            return;
        }
        // Answers to what was asked before do not count.
        let old = std::mem::replace(&mut job.token, token);
        job.reading = false;
        job.source = None;
        job.asked = NodeSet::EMPTY;
        job.hashes.clear();
        self.jobs.tokens.remove(&old);
        self.jobs.tokens.insert(token, id);
        self.job_locked(ctx, id);
    }

    pub(super) fn job_read(&mut self, ctx: &mut Ctx, id: JobId, bytes: Bytes) {
        if let Some(job) = self.jobs.all.get_mut(&id) {
            job.reading = false;
            job.local = Some(bytes);
            self.try_compare(ctx, id);
        }
    }

    pub(super) fn hashes(&mut self, ctx: &mut Ctx, peer: NodeId, token: u64, hashes: Vec<u128>) {
        self.peer_answers(ctx, peer);
        let Some(&id) = self.jobs.tokens.get(&token) else {
            return;
        };
        if let Some(job) = self.jobs.all.get_mut(&id)
            && job.token == token
            && job.asked.has(peer)
            && hashes.len() as u64 == job.range.count
        {
            job.hashes.insert(peer, hashes);
            self.try_compare(ctx, id);
        }
    }

    /// Compares when everything that was asked for is here.
    fn try_compare(&mut self, ctx: &mut Ctx, id: JobId) {
        let Some(job) = self.jobs.all.get_mut(&id) else {
            return;
        };
        if job.copying || !job.asked.iter().all(|p| job.hashes.contains_key(&p)) {
            return;
        }
        let Some(local) = job.local.take() else {
            return;
        };
        job.copying = true;
        let hashes = std::mem::take(&mut job.hashes);
        let ours = if hashes.is_empty() {
            Vec::new()
        } else {
            hash_blocks(&local, ctx.layout.geometry.block_bytes)
        };
        let compared = Compared {
            range: job.range,
            local,
            ours,
            hashes,
        };
        match job.kind {
            Kind::Verify => self.verify_compared(ctx, id, &compared),
            Kind::Resync(peer) => self.resync_compared(ctx, id, peer, &compared),
            Kind::Reconcile => self.reconcile_compared(ctx, id, &compared),
            Kind::Repair => self.repair_compared(ctx, id, &compared),
        }
    }

    /// A push of this job is on every member.
    pub(super) fn job_pushed(&mut self, ctx: &mut Ctx, id: JobId, seq: Seq) {
        let Some(job) = self.jobs.all.get_mut(&id) else {
            return;
        };
        job.pushed.remove(&seq);
        if !job.pushed.is_empty() {
            return;
        }
        match job.kind {
            Kind::Repair => self.try_end_repair(ctx, id),
            Kind::Reconcile | Kind::Resync(_) | Kind::Verify => self.reconciled_job(ctx, id),
        }
    }

    // ---- ends

    /// Takes a job out and gives back what it holds.
    fn take_job(&mut self, ctx: &mut Ctx, id: JobId) -> Option<Job> {
        let job = self.jobs.remove(ctx.layout.geometry, id)?;
        self.forget_fetch(Reader::Job(id));
        if job.granted > 0 {
            self.pace.returned(ctx.now, job.granted);
        }
        if let Some(lock) = job.lock
            && !self.fetches.keep_lock(id, lock)
        {
            self.unlock(ctx, lock);
        }
        Some(job)
    }

    fn end_job(&mut self, ctx: &mut Ctx, id: JobId) {
        let job = self.take_job(ctx, id);
        assert!(job.is_some(), "a job ends once");
        self.pump_jobs(ctx);
    }

    /// Its blocks cannot be read here, nor where they were to be fetched from.
    pub(super) fn job_failed(&mut self, ctx: &mut Ctx, id: JobId) {
        match self.jobs.all.get_mut(&id) {
            Some(job) if job.source.is_some() => {
                job.tried = job.source.map_or(job.tried, |s| job.tried.with(s));
                self.restart_job(ctx, id);
            }
            _ => self.unreadable_job(ctx, id),
        }
    }

    /// No copy of its blocks can be read: they stay as they are, and are tried again by and by.
    fn unreadable_job(&mut self, ctx: &mut Ctx, id: JobId) {
        if let Some(job) = self.take_job(ctx, id) {
            if job.kind == Kind::Reconcile {
                self.fail_awaiting(ctx, job.range);
            }
            self.repair_given_up(&job);
        }
    }

    /// A session ended: its jobs start over in the next one; a reconciliation waits for it or its removal.
    pub(super) fn drop_jobs(&mut self, ctx: &mut Ctx, peer: NodeId) {
        self.verify_lost(ctx, peer);
        self.jobs.owed.remove(&peer);
        let gone: Vec<JobId> = self
            .jobs
            .all
            .iter()
            .filter(|(_, j)| match j.kind {
                Kind::Resync(p) => p == peer,
                Kind::Verify => false,
                Kind::Reconcile | Kind::Repair => {
                    (j.asked.has(peer) || j.source == Some(peer)) && !j.copying
                }
            })
            .map(|(&id, _)| id)
            .collect();
        for id in gone {
            // Unlocking one may have ended another.
            if let Some(job) = self.take_job(ctx, id) {
                self.repair_given_up(&job);
            }
        }
        self.fetches_lost(ctx, peer);
    }
}

/// What was read and heard of a job's blocks.
struct Compared {
    range: BlockRange,
    local: Bytes,
    /// Hashes of this node's copy; empty if none were asked for.
    ours: Vec<u128>,
    hashes: BTreeMap<NodeId, Vec<u128>>,
}

impl Compared {
    /// Place of a block in the hashes.
    fn at(&self, block: u64) -> usize {
        (block - self.range.first) as usize
    }

    /// Does any peer's block differ from this node's?
    fn differs(&self, block: u64) -> bool {
        let i = self.at(block);
        let bad = |h: u128| h != self.ours[i] || h == UNREADABLE;
        self.hashes.values().any(|h| bad(h[i]))
    }

    /// This node's copy of a part.
    fn bytes(&self, ctx: &Ctx, part: BlockRange) -> Bytes {
        let block = ctx.layout.geometry.block_bytes as usize;
        let from = self.at(part.first) * block;
        self.local.slice(from..from + part.count as usize * block)
    }
}

/// The runs of blocks of `range` that are alike in what `of` says of them.
fn runs_by<T: PartialEq>(range: BlockRange, mut of: impl FnMut(u64) -> T) -> Vec<(BlockRange, T)> {
    let mut found: Vec<(BlockRange, T)> = Vec::new();
    for block in range.first..range.end() {
        let what = of(block);
        match found.last_mut() {
            Some((last, same)) if *same == what => last.count += 1,
            _ => found.push((BlockRange::new(block, 1), what)),
        }
    }
    found
}

/// Sorted, with neighbours joined.
fn merge(mut ranges: Vec<BlockRange>) -> Vec<BlockRange> {
    ranges.sort_unstable();
    let mut merged: Vec<BlockRange> = Vec::new();
    for range in ranges {
        match merged.last_mut() {
            Some(last) if last.end() >= range.first => {
                last.count = last.end().max(range.end()) - last.first;
            }
            _ => merged.push(range),
        }
    }
    merged
}
