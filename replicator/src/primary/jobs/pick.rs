//! Which blocks the next job is about.

use super::{Kind, Primary};
use crate::config::{JOB_BLOCKS_MAX, JOB_BLOCKS_SHORT, JOB_GAP_MAX};
use crate::ctx::Ctx;
use crate::rules::Rule;
use holdfast_types::{BlockRange, NodeId};

impl Primary {
    /// The next run of blocks the peer lacks and that neither a job nor a write on its way takes care of. Blocks in
    /// doubt are left out until they are reconciled: a copy of one would differ from the members that lack it, and
    /// only this node would know.
    pub(in crate::primary) fn next_lacking(&self, ctx: &Ctx, peer: NodeId) -> Option<BlockRange> {
        let session = self.sessions.get(&peer)?;
        if ctx.bits.dirty(peer).is_empty() {
            return None;
        }
        let members = self.members(ctx);
        let busy = |range: BlockRange| {
            let job = self
                .jobs
                .all
                .values()
                .filter(|j| j.kind == Kind::Resync(peer))
                .map(|j| j.range);
            let write = session.unanswered.values().map(|s| s.range);
            let doubt = members
                .iter()
                .filter(|&m| !ctx.bits.dirty(m).is_empty())
                .filter_map(|m| next_run(ctx, m, range.first, JOB_BLOCKS_MAX));
            job.chain(write)
                .chain(doubt)
                .filter(|b| b.overlaps(range))
                .map(|b| (b.first, b.end()))
                .min()
        };
        let geometry = ctx.superblock.geometry;
        let max = (self.pace.job_bytes(ctx.now) / u64::from(geometry.block_bytes))
            .clamp(1, JOB_BLOCKS_MAX);
        let cursor = session.cursor.min(geometry.blocks);
        for (start, end) in [(cursor, geometry.blocks), (0, cursor)] {
            let mut from = start;
            while let Some(run) = next_run(ctx, peer, from, max).filter(|r| r.first < end) {
                match busy(run) {
                    None => return Some(self.widened(ctx, peer, run, max, busy)),
                    Some((first, _)) if first > run.first => {
                        return Some(BlockRange::new(run.first, first - run.first));
                    }
                    Some((_, after)) => from = after,
                }
            }
        }
        None
    }

    /// A short run with those that follow it closely: one read for all of them, one frame for each.
    fn widened(
        &self,
        ctx: &Ctx,
        peer: NodeId,
        run: BlockRange,
        max: u64,
        busy: impl Fn(BlockRange) -> Option<(u64, u64)>,
    ) -> BlockRange {
        let geometry = ctx.superblock.geometry;
        let extent = geometry.extent_range(geometry.extent_of(run.first));
        let limit = extent.end().min(run.first + max);
        let mut end = run.end();
        while end < limit {
            let Some(next) = next_run(ctx, peer, end, limit - end)
                .filter(|n| n.first - end <= JOB_GAP_MAX && n.end() <= limit)
            else {
                break;
            };
            end = next.end();
        }
        let wide = BlockRange::new(run.first, end - run.first);
        if busy(wide).is_none() { wide } else { run }
    }

    /// The blocks of `range` that the peer may lack now, without those that a write on its way brings.
    pub(super) fn lacking_in(&self, ctx: &Ctx, peer: NodeId, range: BlockRange) -> Vec<BlockRange> {
        let Some(session) = self.sessions.get(&peer) else {
            return Vec::new();
        };
        let mut coming: Vec<BlockRange> = session
            .unanswered
            .values()
            .map(|s| s.range)
            .filter(|r| r.overlaps(range) && !ctx.off(Rule::ResyncLock))
            .collect();
        coming.sort_unstable();
        let mut parts = Vec::new();
        let mut from = range.first;
        while from < range.end() {
            let run = ctx.bits.dirty(peer).next_run(from, range.end() - from);
            let Some(run) = run.filter(|r| r.first < range.end()) else {
                break;
            };
            let (mut first, end) = (run.first, run.end().min(range.end()));
            for write in coming.iter().filter(|w| w.overlaps(run)) {
                if write.first > first {
                    parts.push(BlockRange::new(first, write.first.min(end) - first));
                }
                first = first.max(write.end());
            }
            if first < end {
                parts.push(BlockRange::new(first, end - first));
            }
            from = end;
        }
        parts
    }

    /// The next run of blocks that is in doubt on a member and that no job takes care of, what somebody waits for first.
    pub(super) fn next_in_doubt(&self, ctx: &Ctx) -> Option<BlockRange> {
        let members = self.members(ctx);
        let busy = |range: BlockRange| {
            self.jobs
                .all
                .values()
                .filter(|j| j.kind == Kind::Reconcile)
                .map(|j| j.range)
                .find(|b| b.overlaps(range))
        };
        let free = |member: NodeId, mut from: u64, end: u64| {
            while let Some(run) =
                next_run(ctx, member, from, JOB_BLOCKS_SHORT).filter(|r| r.first < end)
            {
                match busy(run) {
                    None => return Some(run),
                    Some(b) => from = b.end(),
                }
            }
            None
        };
        let awaited = self
            .awaited()
            .find_map(|w| members.iter().find_map(|m| free(m, w.first, w.end())));
        awaited.or_else(|| members.iter().find_map(|m| free(m, 0, u64::MAX)))
    }
}

/// The next run of blocks that `node` may lack, of at most `max` blocks and inside one extent.
fn next_run(ctx: &Ctx, node: NodeId, from: u64, max: u64) -> Option<BlockRange> {
    let geometry = ctx.layout.geometry;
    let run = ctx.bits.dirty(node).next_run(from, max)?;
    let extent_end = geometry.extent_range(geometry.extent_of(run.first)).end();
    Some(BlockRange::new(
        run.first,
        run.count.min(extent_end - run.first),
    ))
}
