//! Reconciliation: what is in doubt after a promotion is made equal on all members (rules 16, 33).

use super::{Compared, Kind, Primary, runs_by};
use crate::Note;
use crate::config::PUSH_JOBS_MAX;
use crate::ctx::{Ctx, JobId};
use crate::primary::writes::Source;
use holdfast_types::{BlockRange, NodeId, NodeSet, Seq};
use holdfast_wire::Frame;

impl Primary {
    pub(super) fn pump_reconcile(&mut self, ctx: &mut Ctx) {
        let all_here = self.attached_members(ctx) == self.members(ctx);
        while all_here
            && self.jobs.count(|k| k == Kind::Reconcile) < PUSH_JOBS_MAX
            && let Some(range) = self.next_in_doubt(ctx)
            && self
                .jobs
                .room_for(ctx.layout.geometry, range, self.slots_min(ctx))
        {
            self.start_job(ctx, Kind::Reconcile, range, 0);
        }
        let nothing = |m: NodeId| ctx.bits.dirty(m).is_empty();
        if !self.reconciled_noted && self.members(ctx).iter().all(nothing) {
            self.reconciled_noted = true;
            for peer in self.members(ctx).iter() {
                self.confirm_members(ctx, peer);
            }
            ctx.note(Note::Reconciled {
                blocks: self.doubted,
            });
        }
    }

    /// The members that are in a session.
    pub(super) fn attached_members(&self, ctx: &Ctx) -> NodeSet {
        self.members(ctx)
            .iter()
            .filter(|&m| self.attached_session(m).is_some())
            .collect()
    }

    pub(super) fn reconcile_compared(&mut self, ctx: &mut Ctx, id: JobId, compared: &Compared) {
        let push: Vec<BlockRange> = runs_by(compared.range, |b| compared.differs(b))
            .into_iter()
            .filter_map(|(run, differs)| differs.then_some(run))
            .collect();
        if push.is_empty() {
            self.reconciled_job(ctx, id);
        } else {
            self.push(ctx, id, compared, &push);
        }
    }

    /// Sends this node's copy of `push` to all through the write lane.
    pub(super) fn push(
        &mut self,
        ctx: &mut Ctx,
        id: JobId,
        compared: &Compared,
        push: &[BlockRange],
    ) {
        // All sequences first: a push may be settled at once when the set has shrunk to this node.
        let first = self.next_seq.0;
        let seqs = (first..first + push.len() as u64).map(Seq);
        let job = self.jobs.all.get_mut(&id).expect("at work");
        job.pushed.extend(seqs);
        for &part in push {
            let data = compared.bytes(ctx, part);
            self.issue(ctx, Source::Push(id), part, Some(data), false);
        }
    }

    /// The blocks are equal on all members, so members need no bits any more. Whoever is outside got bits when the
    /// reports were collected, here and by this frame on the members (rules 16, 33).
    pub(super) fn reconciled_job(&mut self, ctx: &mut Ctx, id: JobId) {
        let range = self.jobs.all[&id].range;
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
    pub(in crate::primary) fn confirm_members(&self, ctx: &mut Ctx, peer: NodeId) {
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
}
