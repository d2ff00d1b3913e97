//! Repair: what a verify found is compared once more, alone, and each block is decided: by the majority of the
//! in-sync copies, or by the side the operator named. Losers are overwritten through the write lane and the
//! activity log, as by any write; the primary's own copy too, with blocks fetched from the right one.

use super::{Compared, Job, Kind, Primary, runs_by};
use crate::config::{JOB_BLOCKS_SHORT, PUSH_JOBS_MAX};
use crate::ctx::{Ctx, JobId, LogUser};
use crate::primary::writes::Source;
use crate::{Note, Repair};
use bytes::Bytes;
use holdfast_types::{BlockRange, NodeId, NodeSet};
use holdfast_wire::{Frame, UNREADABLE};
use std::collections::BTreeMap;

/// Blocks that are fetched from the copy that is right.
#[derive(Clone, Debug)]
pub(super) struct Fix {
    pub(super) from: NodeId,
    range: BlockRange,
    /// Whose copies differ from it.
    wrong: NodeSet,
    /// What the fetched blocks must hash to.
    hashes: Vec<u128>,
    data: Option<Bytes>,
}

/// What is to be done with a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Equal,
    /// This copy is right.
    From(NodeId, NodeSet),
    Undecided(NodeSet),
}

impl Primary {
    pub(super) fn pump_repair(&mut self, ctx: &mut Ctx) {
        let geometry = ctx.layout.geometry;
        loop {
            let running = self.jobs.count(|k| k == Kind::Repair);
            let Some(verify) = self.verify.as_mut() else {
                return;
            };
            let Some(&wrong) = verify.wrong.front().filter(|_| running < PUSH_JOBS_MAX) else {
                return;
            };
            let extent = geometry.extent_range(geometry.extent_of(wrong.first));
            let count = wrong
                .count
                .min(JOB_BLOCKS_SHORT)
                .min(extent.end() - wrong.first);
            let range = BlockRange::new(wrong.first, count);
            let slots = self.slots_min(ctx);
            if !self.jobs.room_for(geometry, range, slots) {
                return;
            }
            let verify = self.verify.as_mut().expect("just seen");
            verify.wrong.pop_front();
            if range.end() < wrong.end() {
                let rest = BlockRange::new(range.end(), wrong.end() - range.end());
                verify.wrong.push_front(rest);
            }
            self.start_job(ctx, Kind::Repair, range, 0);
        }
    }

    fn verdict(&self, ctx: &Ctx, compared: &Compared, block: u64, repair: Repair) -> Verdict {
        let i = compared.at(block);
        let mut holders: BTreeMap<u128, NodeSet> = BTreeMap::new();
        let theirs = compared.hashes.iter().map(|(&n, h)| (n, h[i]));
        for (node, hash) in theirs.chain([(ctx.me(), compared.ours[i])]) {
            let set = holders.entry(hash).or_default();
            *set = set.with(node);
        }
        // Copies that cannot be read are wrong, and not equal to each other.
        let bad = holders.remove(&UNREADABLE).unwrap_or_default();
        if holders.len() == 1 && bad.is_empty() {
            return Verdict::Equal;
        }
        let all: NodeSet = holders.values().fold(bad, |a, &s| a.union(s));
        let right = match repair {
            Repair::Source(node) => holders.values().find(|s| s.has(node)),
            // Of the whole set: a copy that is not heard of is not taken for one that agrees.
            Repair::Majority => holders.values().find(|s| s.len() * 2 > self.in_sync.len()),
        };
        match right {
            None => Verdict::Undecided(all),
            Some(set) if set.has(ctx.me()) => Verdict::From(ctx.me(), all.minus(*set)),
            Some(set) => {
                let from = set.iter().next().expect("holders are not empty");
                Verdict::From(from, all.minus(*set))
            }
        }
    }

    pub(super) fn repair_compared(&mut self, ctx: &mut Ctx, id: JobId, compared: &Compared) {
        let Some(repair) = self.verify.as_ref().and_then(|v| v.order.repair) else {
            self.end_job(ctx, id);
            return;
        };
        let mut push = Vec::new();
        let mut fetch = Vec::new();
        for (run, verdict) in runs_by(compared.range, |b| self.verdict(ctx, compared, b, repair)) {
            match verdict {
                Verdict::Equal => {}
                Verdict::Undecided(among) => self.judged(ctx, among, run, false),
                Verdict::From(source, wrong) if source == ctx.me() => {
                    push.push(run);
                    self.repaired(ctx, run, source, wrong);
                }
                Verdict::From(source, wrong) => fetch.push((source, run, wrong)),
            }
        }
        for (from, run, wrong) in fetch {
            self.fetch(ctx, id, run, (from, wrong), compared);
        }
        self.push(ctx, id, compared, &push);
        self.try_end_repair(ctx, id);
    }

    /// A write is on its way that makes these blocks equal.
    fn repaired(&mut self, ctx: &mut Ctx, range: BlockRange, source: NodeId, wrong: NodeSet) {
        self.judged(ctx, wrong, range, true);
        ctx.note(Note::Repaired {
            range,
            source,
            wrong,
        });
    }

    /// Counts for the report. A wrong primary counts with the peers that showed it.
    fn judged(&mut self, ctx: &Ctx, wrong: NodeSet, run: BlockRange, repaired: bool) {
        let Some(verify) = self.verify.as_mut() else {
            return;
        };
        for (node, found) in &mut verify.found {
            if wrong.has(*node) || wrong.has(ctx.me()) {
                if repaired {
                    found.repaired += run.count;
                } else {
                    found.undecided += run.count;
                }
            }
        }
    }

    fn fetch(
        &mut self,
        ctx: &mut Ctx,
        id: JobId,
        run: BlockRange,
        (from, wrong): (NodeId, NodeSet),
        compared: &Compared,
    ) {
        let Some(stamp) = self.attached_session(from).map(|s| s.stamp) else {
            self.judged(ctx, wrong, run, false);
            return;
        };
        let at = compared.at(run.first);
        let hashes = compared.hashes[&from][at..at + run.count as usize].to_vec();
        let token = self.token();
        self.jobs.tokens.insert(token, id);
        let fix = Fix {
            from,
            range: run,
            wrong,
            hashes,
            data: None,
        };
        let job = self.jobs.all.get_mut(&id).expect("at work");
        job.fixes.insert(token, fix);
        ctx.send(
            from,
            Frame::Fetch {
                stamp,
                token,
                range: run,
            },
        );
    }

    /// The blocks of the right copy are here: they go to this node's disk and to all members.
    pub(in crate::primary) fn fetched(
        &mut self,
        ctx: &mut Ctx,
        peer: NodeId,
        token: u64,
        data: Bytes,
    ) {
        let fix = self
            .jobs
            .tokens
            .get(&token)
            .and_then(|id| self.jobs.all.get_mut(id))
            .and_then(|job| job.fixes.get_mut(&token))
            .filter(|fix| fix.from == peer && fix.data.is_none());
        let Some(fix) = fix else { return };
        let range = fix.range;
        let hashes = crate::hash::hash_blocks(&data, ctx.layout.geometry.block_bytes);
        if hashes != fix.hashes {
            // Its disk does not say twice the same: not a copy to repair from.
            if let Some(id) = self.unfetched(ctx, token) {
                self.try_end_repair(ctx, id);
            }
            return;
        }
        fix.data = Some(data);
        if ctx.acquire(LogUser::Fix(token, range), Some(range)) {
            self.fix_logged(ctx, token, range);
        } else if ctx.log.starved() {
            self.send_closes(ctx);
        }
    }

    /// The extents of a fix are durable in the activity log.
    pub(in crate::primary) fn fix_logged(&mut self, ctx: &mut Ctx, token: u64, range: BlockRange) {
        let id = self.jobs.tokens.remove(&token);
        let job = id.and_then(|id| Some((id, self.jobs.all.get_mut(&id)?)));
        let fix = job.and_then(|(id, job)| Some((id, job.fixes.remove(&token)?)));
        let Some((
            id,
            Fix {
                from,
                wrong,
                data: Some(data),
                ..
            },
        )) = fix
        else {
            ctx.release(range);
            return;
        };
        self.repaired(ctx, range, from, wrong);
        let seq = self.next_seq;
        let job = self.jobs.all.get_mut(&id).expect("just seen");
        job.pushed.insert(seq);
        self.issue(ctx, Source::Fix(id), range, Some(data), false);
    }

    /// These blocks do not come: they stay as they are. Whose job it was; its other blocks go on.
    fn unfetched(&mut self, ctx: &Ctx, token: u64) -> Option<JobId> {
        let id = self.jobs.tokens.remove(&token)?;
        let fix = self.jobs.all.get_mut(&id)?.fixes.remove(&token)?;
        self.judged(ctx, fix.wrong, fix.range, false);
        Some(id)
    }

    /// The session with a peer ended: what has not come from it does not come. A job of which a write is on its way
    /// keeps its lock until that is settled.
    pub(super) fn fetches_lost(&mut self, ctx: &mut Ctx, peer: NodeId) {
        let lost: Vec<u64> = self
            .jobs
            .all
            .values()
            .flat_map(|job| &job.fixes)
            .filter(|(_, fix)| fix.from == peer && fix.data.is_none())
            .map(|(&token, _)| token)
            .collect();
        for token in lost {
            if let Some(id) = self.unfetched(ctx, token)
                && self.repair_is_done(id)
            {
                // Without a pump: the session that ended is still being taken apart.
                self.take_job(ctx, id);
            }
        }
    }

    fn repair_is_done(&self, id: JobId) -> bool {
        self.jobs
            .all
            .get(&id)
            .is_some_and(|j| j.copying && j.pushed.is_empty() && j.fixes.is_empty())
    }

    pub(super) fn try_end_repair(&mut self, ctx: &mut Ctx, id: JobId) {
        if self.repair_is_done(id) {
            self.end_job(ctx, id);
        }
    }

    /// A repair came to nothing: its blocks stay as they are.
    pub(super) fn repair_given_up(&mut self, job: &Job) {
        if job.kind == Kind::Repair
            && !job.copying
            && let Some(verify) = self.verify.as_mut()
        {
            for found in verify.found.values_mut() {
                found.undecided += job.range.count;
            }
        }
    }
}
