//! A primary whose local disk failed goes on through the members (rule 23).
//!
//! Invariants
//! - as long as the committed set names this node, nothing is settled that its disk would have to hold: first its
//!   removal is committed;
//! - it removes itself or another only while a member that stays is attached: the last holder is never removed, and
//!   which of several that are not here is the best copy is for a promotion to find out (rules 2, 9);
//! - what is written from then on, and what the disk may not have kept, is known as lacking on it, and goes to a
//!   replica that joins with its cut (rule 15);
//! - without an attached member I/O is frozen, and after a while another node is asked to lead (rules 25, 38);
//!   when there is no copy left that works, I/O fails.

use super::{Phase, Primary};
use crate::config::Timing;
use crate::ctx::Ctx;
use crate::rules::Rule;
use crate::{Now, SetChange, ToControl};
use holdfast_meta::Bitmap;
use holdfast_types::{BlockRange, DiskState, NodeId, NodeSet};

/// What a primary without a disk remembers beyond the others.
#[derive(Debug, Default)]
pub(super) struct Diskless {
    /// What the own disk may lack.
    lacks: Option<Bitmap>,
    /// Since when no member is attached, and when the control plane was told.
    alone: Option<(Now, Option<Now>)>,
}

impl Primary {
    /// The local disk is used no more.
    pub(super) fn disk_lost(&mut self, ctx: &mut Ctx) {
        self.note_lacking(ctx, None);
        if self.phase != Phase::Open {
            return; // it never opens: the control plane hands over
        }
        self.fetch_all(ctx);
        self.go_on_diskless(ctx);
        self.recheck(ctx);
        self.pump_jobs(ctx);
    }

    /// Everything that a primary without a disk has to look after again and again.
    pub(super) fn go_on_diskless(&mut self, ctx: &mut Ctx) {
        if !ctx.disk_failed() || self.phase != Phase::Open {
            return;
        }
        if self.no_copy(ctx) {
            if ctx.off(Rule::LastMember) && self.in_sync.has(ctx.me()) {
                self.remove_itself(ctx);
            }
            self.fail_all(ctx);
        } else if self.in_sync.has(ctx.me()) && self.someone_stays(ctx.me()) {
            let set = self.in_sync.without(ctx.me());
            self.propose(ctx, set, ctx.me(), SetChange::DiskFailed);
        }
    }

    /// A member other than `gone` is attached.
    fn someone_stays(&self, gone: NodeId) -> bool {
        let staying = self.in_sync.without(gone);
        staying.iter().any(|m| self.attached_session(m).is_some())
    }

    /// May a member's removal be proposed? With the local disk gone the others are the copies.
    pub(super) fn may_remove(&self, ctx: &Ctx, peer: NodeId) -> bool {
        !ctx.disk_failed()
            || (self.phase == Phase::Open
                && !self.in_sync.has(ctx.me())
                && self.someone_stays(peer))
    }

    /// No disk here, and every member's failed as well.
    pub(crate) fn no_copy(&self, ctx: &Ctx) -> bool {
        let failed = |m: NodeId| {
            let hello = ctx.links.get(&m).and_then(|l| l.hello.as_ref());
            hello.is_some_and(|h| matches!(h.disk, DiskState::Failed | DiskState::Diskless))
        };
        ctx.disk_failed() && self.members(ctx).iter().all(failed)
    }

    /// This node's part of a write or flush is done: on its disk, or it is no member any more.
    pub(super) fn own_part(&self, ctx: &Ctx, local: bool) -> bool {
        if ctx.disk_failed() {
            !self.in_sync.has(ctx.me())
        } else {
            local
        }
    }

    /// A write that the own disk does not get; `None`: what it may not have kept.
    pub(super) fn note_lacking(&mut self, ctx: &Ctx, range: Option<BlockRange>) {
        if !ctx.disk_failed() {
            return;
        }
        let lacks = self.diskless.lacks.get_or_insert_with(|| {
            let mut lacks = Bitmap::new(&ctx.layout);
            for extent in ctx.log.extents() {
                lacks.set(ctx.layout.geometry.extent_range(extent));
            }
            lacks
        });
        if let Some(range) = range {
            lacks.set(range);
        }
    }

    /// What the own disk may lack, if it failed.
    pub(super) fn own_lacks(&self) -> Option<Vec<BlockRange>> {
        self.diskless.lacks.as_ref().map(Bitmap::to_ranges)
    }

    /// Without a disk and without a member for too long: another node had better lead.
    pub(super) fn check_stranded(&mut self, ctx: &mut Ctx, timing: Timing) {
        let me = NodeSet::only(ctx.me());
        let served = !ctx.disk_failed()
            || self.phase != Phase::Open
            || self.in_sync == me
            || self.someone_stays(ctx.me());
        if served {
            self.diskless.alone = None;
            return;
        }
        let (since, told) = self.diskless.alone.get_or_insert((ctx.now, None));
        let again = told.is_none_or(|at| ctx.now.ms_since(at) >= timing.propose_ms);
        if again && ctx.now.ms_since(*since) >= timing.grace_ms {
            *told = Some(ctx.now);
            let epoch = self.epoch;
            ctx.control(ToControl::Stranded { epoch });
        }
    }

    /// Why nothing goes on, if it is for want of a disk.
    pub(super) fn held_diskless(&self, ctx: &Ctx) -> Option<String> {
        if !ctx.disk_failed() {
            return None;
        }
        if self.no_copy(ctx) {
            return Some("the local disk is gone and no other member has a working one".into());
        }
        if !self.someone_stays(ctx.me()) {
            let members = self.members(ctx);
            return Some(format!(
                "the local disk is gone; waiting for {members:?}, which hold the data"
            ));
        }
        (self.in_sync.has(ctx.me()) && !self.writes.is_empty()).then(|| {
            "waiting for the commit that takes the failed local disk out of the in-sync set".into()
        })
    }
}
