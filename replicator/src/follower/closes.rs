//! How a received write ends: applied, answered, closed; and what closes and bitmaps from the primary do to the bits.

use super::*;

impl Follower {
    /// A frame has been worked on: the answer, and the next in line for its blocks.
    pub(super) fn done(&mut self, ctx: &mut Ctx, id: RecvId, answer: Frame) {
        let Some(recv) = self.recv.remove(&id) else {
            return;
        };
        if let Some((peer, stamp)) = self.session
            && stamp == recv.stamp
        {
            ctx.send(peer, answer);
        }
        if let Some(lock) = recv.lock {
            for next in self.locks.release(lock) {
                self.locked(ctx, next);
            }
        }
        self.pump_barriers(ctx);
    }

    /// Forgets an open write that is applied and closed.
    pub(super) fn retire(&mut self, ctx: &mut Ctx, seq: Seq) {
        let open = self.open[&seq];
        if open.applied && open.closed {
            self.open.remove(&seq);
            if open.logged {
                ctx.release(open.range);
            }
        }
    }

    pub(super) fn close(&mut self, ctx: &mut Ctx, upto: Seq, set: NodeSet) {
        self.asked_close = false;
        self.grown_early = self.grown_early.and(set);
        let closing: Vec<Seq> = self
            .open
            .range(..=upto)
            .filter(|(_, o)| !o.closed)
            .map(|(&s, _)| s)
            .collect();
        for seq in closing {
            let open = self.open.get_mut(&seq).expect("listed");
            open.closed = true;
            // Before the extents can go: whoever does not hold it gets bits.
            if !ctx.off(Rule::CloseSet) {
                ctx.bits.mark(ctx.others().minus(set), open.range);
            }
            if set.has(ctx.me()) {
                // These blocks are equal on all of the set; a later write of them is open by itself.
                for node in ctx.others().and(set).iter() {
                    ctx.bits.clear(node, open.range);
                }
            }
            self.retire(ctx, seq);
        }
        self.ask_close(ctx);
    }

    pub(super) fn reconciled(ctx: &mut Ctx, ranges: &[BlockRange], set: NodeSet) {
        for &range in ranges {
            ctx.bits.suspect(ctx.others().minus(set), range);
            for node in ctx.others().and(set).iter() {
                ctx.bits.clear(node, range);
            }
        }
    }

    /// The primary's bits for the absent take the place of this replica's own; members lack nothing (rules 15, 34).
    pub(super) fn take_bitmaps(&mut self, ctx: &mut Ctx, bitmaps: &[(NodeId, Vec<BlockRange>)]) {
        for node in ctx.others().iter() {
            let copied = bitmaps.iter().find(|(n, _)| *n == node);
            if copied.is_none() && ctx.off(Rule::MembersBits) {
                continue;
            }
            ctx.bits.replace(node, copied.map_or(&[][..], |(_, r)| r));
        }
    }

    pub(super) fn answer(&mut self, ctx: &mut Ctx, stamp: Stamp, frame: Frame) {
        if let Some((peer, now)) = self.session
            && now == stamp
        {
            ctx.send(peer, frame);
        }
    }
}
