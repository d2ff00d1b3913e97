//! Flushes and cuts on a secondary: both wait for every write that came before them.

use super::Follower;
use crate::ctx::{After, Ctx, RecvId, RoleIo};
use crate::rules::Rule;
use holdfast_meta::Unsaved;
use holdfast_types::DiskState;
use holdfast_wire::{Frame, Stamp};

#[derive(Clone, Debug)]
pub(super) struct Barrier {
    id: u64,
    stamp: Stamp,
    token: u64,
    /// All writes received before this one have to be applied first.
    before: RecvId,
    cut: bool,
    running: bool,
}

impl Follower {
    pub(super) fn barrier(&mut self, ctx: &mut Ctx, stamp: Stamp, token: u64, cut: bool) {
        let (before, id) = (RecvId(self.next_recv), ctx.barrier_number());
        self.barriers.push_back(Barrier {
            id,
            stamp,
            token,
            before,
            cut,
            running: false,
        });
        self.pump_barriers(ctx);
    }

    pub(super) fn pump_barriers(&mut self, ctx: &mut Ctx) {
        let Some(front) = self.barriers.front_mut() else {
            return;
        };
        if front.running || self.cut.is_some() {
            return;
        }
        let before = front.before;
        if self.recv.range(..before).any(|(_, r)| r.what.is_write()) {
            return;
        }
        front.running = true;
        let id = front.id;
        if front.cut && ctx.off(Rule::GrowFlush) {
            self.flushed(ctx, id);
        } else {
            ctx.role_io(RoleIo::RecvFlush(id), crate::DiskOp::Flush);
        }
    }

    pub(super) fn flushed(&mut self, ctx: &mut Ctx, id: u64) {
        if self.barriers.front().is_none_or(|b| b.id != id) {
            return; // of an ended session
        }
        let barrier = self.barriers.pop_front().expect("just seen");
        if barrier.cut {
            self.cut = Some((barrier.id, barrier.stamp, barrier.token));
            if ctx.unclean {
                ctx.trust(DiskState::Syncing, After::Nothing);
            }
            if ctx.off(Rule::CopyDurable) {
                ctx.save_bits(Unsaved::Clear, After::Nothing);
                self.cut_saved(ctx, barrier.id);
                return;
            }
            ctx.save_bits(Unsaved::Clear, After::Cut(barrier.id));
        } else {
            self.answer(
                ctx,
                barrier.stamp,
                Frame::Flushed {
                    stamp: barrier.stamp,
                    token: barrier.token,
                    log: ctx.log.durable(),
                },
            );
            self.pump_barriers(ctx);
        }
    }

    /// The bitmaps of a cut are on disk.
    pub(crate) fn cut_saved(&mut self, ctx: &mut Ctx, id: u64) {
        if let Some((_, stamp, token)) = self.cut.take_if(|(cut, ..)| *cut == id) {
            self.confirmed = Some(self.generation);
            let log = ctx.log.durable();
            self.answer(ctx, stamp, Frame::CutDone { stamp, token, log });
            self.pump_barriers(ctx);
        }
    }
}
