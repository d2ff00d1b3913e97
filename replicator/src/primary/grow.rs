//! Taking a syncing replica into the in-sync set.
//!
//! The order, each step a rule of DESIGN part 4 (Grow):
//! 1. no block is dirty for the peer but what is on its way to it, and nothing is in doubt;
//! 2. the *cut*: from here on the peer counts for every write and flush (rule 5); the bitmaps for
//!    absent peers go to it at this place of the write stream (rule 15);
//! 3. it answers when everything before is applied, flushed, and the bitmaps are saved (rule 6);
//! 4. its dirty bitmap is empty: the proposal. Until its outcome is known the peer counts.

use super::sessions::Stable;
use super::{Phase, Primary};
use crate::config::{CUT_LAG_MAX, Timing};
use crate::ctx::Ctx;
use crate::rules::Rule;
use crate::{Note, Now, SetChange};
use holdfast_types::{BlockRange, Incarnation, NodeId, NodeSet, Run};
use holdfast_wire::Frame;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Cut sent.
    Cutting { token: u64 },
    /// Cut confirmed; writes from before it may be unanswered still.
    Confirmed,
    /// Proposed.
    Proposed,
}

/// A replica on its way into the set.
#[derive(Clone, Copy, Debug)]
pub(super) struct Growing {
    pub(super) peer: NodeId,
    /// Its disk and run when the cut was made.
    pub(super) life: (Incarnation, Run),
    stage: Stage,
    since: Now,
}

impl Growing {
    pub(super) fn is_proposed(&self) -> bool {
        self.stage == Stage::Proposed
    }
}

impl Primary {
    /// Begins the cut if the peer lacks nothing but what is on its way.
    pub(super) fn try_grow(&mut self, ctx: &mut Ctx, peer: NodeId) {
        let ready = self.phase == Phase::Open
            && self.growing.is_none()
            && self.proposal.is_none()
            && self.flush.is_none()
            && self.drain.is_none()
            && !(ctx.disk_failed() && self.in_sync.has(ctx.me()))
            && !self.in_sync.has(peer)
            && !self.invalidate.has(peer)
            && !self.has_jobs_for(peer)
            && self.is_steady(ctx, peer)
            && !self
                .members(ctx)
                .iter()
                .any(|m| !ctx.bits.dirty(m).is_empty());
        let session = self
            .attached_session(peer)
            .filter(|s| ready && s.unanswered.len() <= CUT_LAG_MAX);
        let Some(session) = session else {
            return;
        };
        let (stamp, life) = (session.stamp, session.life);
        match session.stable {
            Stable::Yes => {}
            Stable::No if ctx.off(Rule::GrowFlush) => {}
            Stable::Asked { .. } => return,
            Stable::No => {
                let token = self.token();
                if let Some(session) = self.sessions.get_mut(&peer) {
                    session.stable = Stable::Asked { token, at: ctx.now };
                }
                ctx.send(peer, Frame::Flush { stamp, token });
                return;
            }
        }
        let absent = ctx.others().minus(self.in_sync).without(peer);
        let bitmaps: Vec<(NodeId, Vec<BlockRange>)> = absent
            .iter()
            .map(|n| (n, ctx.bits.dirty(n).to_ranges()))
            .chain(self.own_lacks().map(|own| (ctx.me(), own)))
            .collect();
        let token = self.token();
        self.growing = Some(Growing {
            peer,
            life,
            stage: Stage::Cutting { token },
            since: ctx.now,
        });
        // Closes of earlier writes come before the cut, so that they do not set bits again behind it.
        self.send_closes(ctx);
        ctx.send(
            peer,
            Frame::Cut {
                stamp,
                token,
                bitmaps,
            },
        );
    }

    /// What was resynced is stable on the peer: the cut may come.
    pub(super) fn preflushed(&mut self, ctx: &mut Ctx, peer: NodeId, token: u64) {
        let Some(session) = self.sessions.get_mut(&peer) else {
            return;
        };
        if matches!(session.stable, Stable::Asked { token: asked, .. } if asked == token) {
            session.stable = Stable::Yes;
            self.pump_jobs(ctx);
        }
    }

    /// A peer that counts since its cut and does not answer must not hold up the application (rule 39): it starts over.
    pub(super) fn drop_slow_grow(&mut self, ctx: &mut Ctx, timing: Timing) {
        let Some(growing) = self.growing.filter(|g| !g.is_proposed()) else {
            return;
        };
        let peer = growing.peer;
        let oldest = self
            .oldest_unanswered(peer)
            .map_or(growing.since, |t| t.min(growing.since));
        if ctx.now.ms_since(oldest) >= timing.answer_ms {
            self.delay_rejoin(ctx, peer);
            self.peer_down(ctx, peer);
            ctx.disconnect(peer);
        }
    }

    pub(super) fn cut_done(&mut self, ctx: &mut Ctx, peer: NodeId, token: u64) {
        if let Some(growing) = self.growing.as_mut()
            && growing.peer == peer
            && growing.stage == (Stage::Cutting { token })
        {
            growing.stage = Stage::Confirmed;
            self.try_propose_grow(ctx, peer);
        }
    }

    /// Proposes the peer when every write from before the cut is settled with it.
    pub(super) fn try_propose_grow(&mut self, ctx: &mut Ctx, peer: NodeId) {
        if !self
            .growing
            .is_some_and(|g| g.peer == peer && g.stage == Stage::Confirmed)
            || self.proposal.is_some()
        {
            return;
        }
        if !ctx.bits.dirty(peer).is_empty() {
            let on_its_way = self
                .sessions
                .get(&peer)
                .map_or(NodeSet::EMPTY, |_| NodeSet::only(peer));
            if on_its_way.is_empty() || self.next_lacking(ctx, peer).is_some() {
                // Something became dirty that no write on its way will mend.
                self.uncount(ctx);
                self.pump_jobs(ctx);
            }
            return;
        }
        if let Some(growing) = &mut self.growing {
            growing.stage = Stage::Proposed;
        }
        self.propose(ctx, self.in_sync.with(peer), peer, SetChange::Synced);
    }

    /// The peer counts no more: bits for everything that is not settled.
    pub(super) fn uncount(&mut self, ctx: &mut Ctx) {
        if let Some(growing) = self.growing.take() {
            self.mark_unsettled(ctx, growing.peer);
            self.recheck(ctx);
        }
    }

    /// The session with a peer ended.
    pub(super) fn grow_lost(&mut self, ctx: &mut Ctx, peer: NodeId) {
        // While proposed it counts, connected or not (rule 5).
        if self
            .growing
            .is_some_and(|g| g.peer == peer && !g.is_proposed())
        {
            self.uncount(ctx);
        }
    }

    /// A proposal to add the peer is known dead.
    pub(super) fn grow_refused(&mut self, ctx: &mut Ctx, peer: NodeId) {
        let Some(growing) = self.growing.as_mut().filter(|g| g.peer == peer) else {
            return;
        };
        growing.stage = Stage::Confirmed;
        if self.attached_session(peer).is_some() {
            self.try_propose_grow(ctx, peer);
        } else {
            self.uncount(ctx);
        }
    }

    /// The peer is a member by commit.
    pub(super) fn grown(&mut self, ctx: &mut Ctx, peer: NodeId) {
        let ours = self.growing.is_some_and(|g| g.peer == peer);
        assert!(ours, "only this primary proposes members in its epoch");
        self.growing = None;
        self.rejoined(ctx, peer);
        self.suspect = self.suspect.without(peer);
        self.distrusted.remove(&peer);
        if let Some(&known) = self.known.get(&peer) {
            ctx.saw(peer, known);
        }
        // It holds everything settled so far, also what was settled without it and is not closed yet.
        for set in self
            .settled
            .values_mut()
            .chain(self.closes.iter_mut().map(|(_, set)| set))
        {
            *set = set.with(peer);
        }
        assert!(
            ctx.bits.dirty(peer).is_empty() || ctx.cfg.off.is_some(),
            "nothing is dirty for a counted peer whose bits were empty at the proposal"
        );
        match self.sessions.get(&peer) {
            Some(session) => {
                self.member_runs.insert(peer, session.life);
                ctx.note(Note::Resynced {
                    peer,
                    sent_bytes: session.sent_bytes,
                    zero_blocks: session.zero_blocks,
                    equal_blocks: session.equal_blocks,
                });
            }
            // It left while the proposal was under way. Its run is unknown: when it is back it is removed and resynced.
            None => {
                self.lost_since.insert(peer, ctx.now);
            }
        }
        // Of members whose record it had not heard of at the cut it thinks that they lack everything.
        if !ctx.off(Rule::MembersBits) {
            self.confirm_members(ctx, peer);
        }
        for (&other, session) in self
            .sessions
            .iter()
            .filter(|(n, s)| **n != peer && s.attached)
        {
            if self.in_sync.has(other) {
                ctx.send(
                    other,
                    Frame::Grown {
                        stamp: session.stamp,
                        node: peer,
                    },
                );
            }
        }
    }
}
