//! How long a member is waited for, and when one that left may come back (rule 39).
//!
//! Invariants
//! - a member that is silent is disconnected after `silence_ms` and removed as soon as that is committed; one that is
//!   there and does not answer is removed after `answer_ms`. So neither holds up the application for longer, once;
//! - a member that answers, but late, spends a budget: the application is not slowed for ever. What is spent is
//!   forgiven ten times slower than it is spent;
//! - a removed replica comes back after a delay that doubles with each removal up to a bound, and half of its removals
//!   are forgotten after each long enough time as a member; a slow one comes back only when its answers are quick.

use super::{Phase, Primary};
use crate::config::Timing;
use crate::ctx::Ctx;
use crate::rules::Rule;
use crate::{Now, SetChange};
use holdfast_types::NodeId;

/// What a slow member spends is forgiven so many times slower.
const FORGIVE: u64 = 10;
/// Time between two looks that is charged at the most, in milliseconds: this node may have been stopped itself.
const LOOK_MAX_MS: u64 = 200;
/// Doublings of the delay that are counted.
const REMOVALS_MAX: u32 = 16;
/// A syncing replica that gave a slow answer joins after so many times `slow_ms` without another one.
const STEADY: u64 = 10;

/// The removals of a node.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rejoin {
    /// So many count.
    times: u32,
    /// It is not taken in before.
    pub(super) until: Now,
    /// The time from which its good behaviour is counted: when it became a member, or some were forgotten.
    good_since: Now,
}

impl Primary {
    pub(super) fn remove_slow(&mut self, ctx: &mut Ctx, timing: Timing) {
        let passed = ctx.now.ms_since(self.looked).min(LOOK_MAX_MS);
        self.looked = ctx.now;
        for peer in self.members(ctx).iter() {
            if let Some(&since) = self.lost_since.get(&peer) {
                if ctx.now.ms_since(since) >= timing.grace_ms {
                    self.let_go(ctx, peer, SetChange::Lost);
                }
                continue;
            }
            let ago = |at: Option<Now>| at.map_or(0, |at| ctx.now.ms_since(at));
            let unanswered = ago(self.oldest_unanswered(peer));
            let late = ago(self.oldest_late(peer));
            let spent = self.spent.entry(peer).or_insert(0);
            *spent = if late >= timing.slow_ms {
                *spent + passed
            } else {
                spent.saturating_sub(passed.div_ceil(FORGIVE))
            };
            if unanswered >= timing.answer_ms || *spent >= timing.slow_budget_ms {
                self.let_go(ctx, peer, SetChange::Slow);
            }
        }
    }

    /// Proposes the removal of a member that is silent; by what was last heard of its disk it will be judged when it is
    /// back, so that is stored first (rule 31).
    pub(super) fn let_go(&mut self, ctx: &mut Ctx, peer: NodeId, why: SetChange) {
        // Without a disk here, the members that stay have it.
        if ctx.disk_failed() || ctx.is_seen_stored(peer) {
            self.propose_removal(ctx, peer, why);
        } else {
            ctx.save_seen();
        }
    }

    /// A superblock is on disk: a removal may have waited for that.
    pub(super) fn seen_stored(&mut self, ctx: &mut Ctx) {
        let timing = ctx.cfg.timing;
        match self.phase {
            Phase::Collecting => self.remove_silent(ctx, timing),
            Phase::Open => self.remove_slow(ctx, timing),
            Phase::Marking => {}
        }
    }

    /// A member left the set, or a syncing replica held up the application: it may be taken in again only after a while.
    pub(super) fn delay_rejoin(&mut self, ctx: &Ctx, peer: NodeId) {
        let (times, before) = self
            .rejoin
            .get(&peer)
            .map_or((0, Now(0)), |r| (r.times, r.until));
        let timing = ctx.cfg.timing;
        let mut delay = (timing.rejoin_ms << times.min(REMOVALS_MAX)).min(timing.rejoin_max_ms);
        if ctx.off(Rule::Damping) {
            delay = 0;
        }
        self.spent.remove(&peer);
        self.rejoin.insert(
            peer,
            Rejoin {
                times: (times + 1).min(REMOVALS_MAX),
                until: before.max(ctx.now.plus_ms(delay)),
                good_since: ctx.now,
            },
        );
    }

    /// It is not taken in before `until`, whatever it did.
    pub(super) fn hold_back(&mut self, ctx: &Ctx, peer: NodeId, until: Now) {
        let rejoin = self.rejoin.entry(peer).or_insert(Rejoin {
            times: 0,
            until,
            good_since: ctx.now,
        });
        rejoin.until = until;
    }

    pub(super) fn may_rejoin(&self, ctx: &Ctx, peer: NodeId) -> bool {
        self.rejoin.get(&peer).is_none_or(|r| ctx.now >= r.until)
    }

    /// It is a member: from now on it behaves well.
    pub(super) fn rejoined(&mut self, ctx: &Ctx, peer: NodeId) {
        if let Some(r) = self.rejoin.get_mut(&peer) {
            r.good_since = ctx.now;
        }
    }

    /// Good behaviour is remembered too.
    pub(super) fn forgive(&mut self, ctx: &Ctx, timing: Timing) {
        let members = self.members(ctx);
        for (&peer, r) in &mut self.rejoin {
            let good = members.has(peer) && !self.lost_since.contains_key(&peer);
            if good && ctx.now.ms_since(r.good_since) >= timing.rejoin_forget_ms {
                r.times /= 2;
                r.good_since = ctx.now;
            }
        }
        self.rejoin.retain(|_, r| r.times > 0 || ctx.now < r.until);
    }

    /// An answer to a write came so long after it was sent.
    pub(super) fn answer_took(&mut self, ctx: &Ctx, peer: NodeId, sent: Now) {
        if ctx.now.ms_since(sent) >= ctx.cfg.timing.slow_ms {
            self.slow_at.insert(peer, ctx.now);
        }
    }

    /// Its answers have been quick for a while.
    pub(super) fn is_steady(&self, ctx: &Ctx, peer: NodeId) -> bool {
        let quiet = STEADY * ctx.cfg.timing.slow_ms;
        self.slow_at
            .get(&peer)
            .is_none_or(|at| ctx.now.ms_since(*at) >= quiet)
    }
}
