//! Peers that owe a job an answer. A job holds its range from read to answer (rule 13), so a peer that is there and never
//! answers would hold up the application, and the resync of every other peer.
//!
//! What counts is progress: as long as anything comes from the peer it is slow, not stuck.

use super::{Job, Kind, Primary};
use crate::SetChange;
use crate::config::Timing;
use crate::ctx::Ctx;
use holdfast_types::NodeId;

impl Job {
    fn waits_for(&self, peer: NodeId) -> bool {
        let hashes = self.asked.has(peer) && !self.copying && !self.hashes.contains_key(&peer);
        hashes || (self.kind == Kind::Resync(peer) && !self.copies.is_empty())
    }
}

impl Primary {
    /// A job's question or copy goes to the peer.
    pub(super) fn peer_owes(&mut self, ctx: &Ctx, peer: NodeId) {
        self.jobs.owed.entry(peer).or_insert(ctx.now);
    }

    /// An answer to a job came from the peer.
    pub(super) fn peer_answers(&mut self, ctx: &Ctx, peer: NodeId) {
        if let Some(since) = self.jobs.owed.get_mut(&peer) {
            *since = ctx.now;
        }
    }

    /// A peer that has answered no job for too long: a member is removed, a syncing replica starts over, later.
    pub(in crate::primary) fn drop_stuck(&mut self, ctx: &mut Ctx, timing: Timing) {
        let jobs = &self.jobs.all;
        self.jobs
            .owed
            .retain(|&peer, _| jobs.values().any(|j| j.waits_for(peer)));
        let stuck: Vec<NodeId> = self
            .jobs
            .owed
            .iter()
            .filter(|(_, since)| ctx.now.ms_since(**since) >= timing.answer_ms)
            .map(|(&peer, _)| peer)
            .collect();
        for peer in stuck {
            if self.in_sync.has(peer) {
                self.propose_removal(ctx, peer, SetChange::Slow);
            } else {
                self.delay_rejoin(ctx, peer);
                self.peer_down(ctx, peer);
                ctx.disconnect(peer);
            }
        }
    }
}
