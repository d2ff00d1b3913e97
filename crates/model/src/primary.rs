//! A primary serves: writes, reads, flushes, closes, reconciliation, and what a new record means for it.

use crate::checks::Violation;
use crate::rules::Rule;
use crate::state::{
    Change, FlushRound, Frame, Growing, Landing, LandingOf, Proposal, SEQS, Set, Stage, Write,
};
use crate::steps::World;

impl World<'_> {
    /// Members besides the primary, and a peer from its cut on.
    pub(crate) fn counted(&self, p: usize) -> Set {
        let Some(primary) = self.primary(p) else {
            return Set::EMPTY;
        };
        let members = primary.in_sync.without(p);
        match primary.growing {
            Some(g) if self.has(Rule::CountFromCut) => members.with(usize::from(g.peer)),
            _ => members,
        }
    }

    pub(crate) fn attached(&self, p: usize) -> Set {
        let primary = self.primary(p);
        let on = |x: &usize| primary.is_some_and(|q| q.sessions[*x].on);
        self.all()
            .iter()
            .filter(on)
            .fold(Set::EMPTY, |set, x| set.with(x))
    }

    /// Is a block not known to be equal on all members?
    pub(crate) fn in_doubt(&self, p: usize, block: usize) -> bool {
        let members = self.primary(p).map_or(Set::EMPTY, |q| q.in_sync.without(p));
        !self.s.nodes[p].bits[block].and(members).is_empty()
    }

    pub(crate) fn open(&mut self, p: usize) -> Option<()> {
        let primary = self.primary(p)?;
        let heard = primary.heard.contains(primary.in_sync) || !self.has(Rule::HearAll);
        if primary.open || primary.proposed.is_some() || !heard {
            return None;
        }
        let durable = self.has(Rule::MarkDurable);
        let node = &mut self.s.nodes[p];
        node.disk.unclean = false;
        if durable {
            node.disk.bits = node.bits;
        }
        self.primary_mut(p)?.open = true;
        self.note_reconciled(p);
        Some(())
    }

    pub(crate) fn write(&mut self, p: usize, block: usize) -> Option<()> {
        let primary = self.primary(p)?;
        let locked = primary.writes[block].is_some()
            || (primary.jobs[block].is_some() && self.has(Rule::ResyncLock));
        let served = primary.open && !locked && usize::from(primary.seq) + 1 < SEQS;
        let left = self.s.used.writes < self.bounds.writes;
        let doubt = self.in_doubt(p, block) && self.has(Rule::ReconcileFirst);
        let busy = self.bounds.in_flight && self.s.nodes[p].landing.is_some();
        if !served || !left || doubt || busy {
            return None;
        }
        self.s.used.writes += 1;
        let value = self.s.used.writes;
        self.s.client.issued[block] |= 1 << value;
        self.s.client.allowed[block] |= 1 << value;
        self.s.nodes[p].disk.log[block] = true;
        self.issue(p, block, value, false);
        Some(())
    }

    /// Starts a write: one frame per session, the local disk, bits for whoever does not count.
    fn issue(&mut self, p: usize, block: usize, value: u8, push: bool) {
        let counted = self.counted(p);
        if self.has(Rule::MarkAbsent) {
            self.mark(p, self.others(p).minus(counted), block);
        }
        let sent = self.attached(p);
        let in_flight = self.bounds.in_flight && !push;
        let Some(primary) = self.primary_mut(p) else {
            return;
        };
        primary.seq += 1;
        let seq = primary.seq;
        for x in sent.iter() {
            primary.sessions[x].unanswered[block] |= 1 << seq;
        }
        primary.writes[block] = Some(Write {
            seq,
            value,
            sent,
            answered: Set::EMPTY,
            local: !in_flight,
            push,
        });
        let block = block as u8;
        for x in sent.iter() {
            self.send(p, x, Frame::Write { seq, block, value });
        }
        let node = &mut self.s.nodes[p];
        if in_flight {
            node.landing = Some(Landing {
                block,
                value,
                of: LandingOf::Own,
            });
        } else {
            node.disk.cache[usize::from(block)] = value;
        }
        self.settle(p);
    }

    /// Who must have a write before it is answered.
    fn must_answer(&self, p: usize, write: &Write) -> Set {
        let Some(primary) = self.primary(p) else {
            return Set::EMPTY;
        };
        let members = primary.in_sync.without(p);
        match primary.growing {
            Some(Growing { peer, stage, .. }) if self.has(Rule::CountFromCut) => {
                let peer = usize::from(peer);
                if stage == Stage::Proposed || write.sent.has(peer) {
                    members.with(peer)
                } else {
                    members
                }
            }
            _ => members,
        }
    }

    /// Settles what everybody who counts has answered, and ends the flush.
    pub(crate) fn settle(&mut self, p: usize) {
        for block in self.blocks() {
            let Some(write) = self.primary(p).and_then(|q| q.writes[block]) else {
                continue;
            };
            if !write.local || !write.answered.contains(self.must_answer(p, &write)) {
                continue;
            }
            let holders = write.answered.and(self.counted(p)).with(p);
            let Some(primary) = self.primary_mut(p) else {
                return;
            };
            primary.writes[block] = None;
            primary.settled[usize::from(write.seq)] = holders;
            while usize::from(primary.closed) + 1 < SEQS
                && !primary.settled[usize::from(primary.closed) + 1].is_empty()
            {
                primary.closed += 1;
            }
            if write.push {
                self.reconciled(p, block);
            } else {
                self.acknowledged(p, block, write.value);
            }
        }
        self.end_flush(p);
    }

    // ---- closes

    pub(crate) fn closes(&mut self, p: usize) -> Option<()> {
        let primary = self.primary(p)?;
        if primary.closes_sent == primary.closed {
            return None;
        }
        self.send_closes(p);
        Some(())
    }

    pub(crate) fn send_closes(&mut self, p: usize) {
        if self.has(Rule::SyncedBeforeClose) {
            self.send_synced(p);
        }
        let attached = self.attached(p);
        loop {
            let Some(primary) = self.primary_mut(p) else {
                return;
            };
            if primary.closes_sent == primary.closed {
                return;
            }
            let first = usize::from(primary.closes_sent) + 1;
            let set = primary.settled[first];
            let mut upto = first;
            while upto < usize::from(primary.closed) && primary.settled[upto + 1] == set {
                upto += 1;
            }
            primary.closes_sent = upto as u8;
            for seq in first..=upto {
                primary.settled[seq] = Set::EMPTY;
            }
            let upto = upto as u8;
            for x in attached.iter() {
                self.send(p, x, Frame::Close { upto, set });
            }
        }
    }

    // ---- flushes

    pub(crate) fn flush(&mut self, p: usize) -> Option<()> {
        let primary = self.primary(p)?;
        if !primary.open || primary.flush.is_some() || self.s.used.flushes == self.bounds.flushes {
            return None;
        }
        let waiting = self.counted(p);
        let to = waiting.and(self.attached(p));
        let client = &self.s.client;
        let past = std::array::from_fn(|b| client.issued[b] & !client.allowed[b]);
        self.s.used.flushes += 1;
        let disk = &mut self.s.nodes[p].disk;
        disk.stable = disk.cache;
        self.primary_mut(p)?.flush = Some(FlushRound { waiting, past });
        for x in to.iter() {
            self.send(p, x, Frame::Flush);
        }
        self.end_flush(p);
        Some(())
    }

    fn end_flush(&mut self, p: usize) {
        let Some(primary) = self.primary_mut(p) else {
            return;
        };
        if let Some(flush) = primary.flush.take_if(|f| f.waiting.is_empty()) {
            self.flushed(p, &flush);
        }
    }

    // ---- reads

    pub(crate) fn read(&mut self, p: usize, block: usize) -> Option<()> {
        let primary = self.primary(p)?;
        let register = &self.s.register;
        // An older primary's reads are the lease's business.
        let leads = register.epoch == primary.epoch && register.primary == p as u8;
        let doubt = self.in_doubt(p, block) && self.has(Rule::ReconcileFirst);
        let locked = primary.writes[block].is_some() && self.has(Rule::ReadsWait);
        if !primary.open || !leads || doubt || locked {
            return None;
        }
        let pending = primary.writes[block].filter(|w| !w.push).map(|w| w.value);
        self.was_read(block, self.s.nodes[p].disk.cache[block], pending)
    }

    // ---- reconciliation

    pub(crate) fn reconcile(&mut self, p: usize, block: usize) -> Option<()> {
        let primary = self.primary(p)?;
        let members = primary.in_sync.without(p);
        let free = primary.open
            && primary.writes[block].is_none()
            && primary.jobs[block].is_none()
            && usize::from(primary.seq) + 1 < SEQS;
        let here = |x: usize| {
            primary.sessions[x].on && self.follower(x).is_some_and(|f| f.lord == Some(p as u8))
        };
        if !free || !self.in_doubt(p, block) || !members.iter().all(here) {
            return None;
        }
        let ours = self.s.nodes[p].disk.cache[block];
        let asked = self.s.nodes[p].bits[block].and(members);
        if asked
            .iter()
            .all(|x| self.s.nodes[x].disk.cache[block] == ours)
        {
            self.reconciled(p, block);
        } else {
            self.issue(p, block, ours, true);
        }
        Some(())
    }

    /// The block is equal on all members.
    fn reconciled(&mut self, p: usize, block: usize) {
        let Some(set) = self.primary(p).map(|q| q.in_sync) else {
            return;
        };
        self.clear(p, set, block);
        for x in self.attached(p).and(set).iter() {
            let block = block as u8;
            self.send(p, x, Frame::Reconciled { block, set });
        }
        self.note_reconciled(p);
    }

    fn note_reconciled(&mut self, p: usize) {
        let doubt = self.blocks().any(|b| self.in_doubt(p, b));
        let Some(primary) = self.primary_mut(p) else {
            return;
        };
        if primary.reconciled || !primary.open || doubt {
            return;
        }
        primary.reconciled = true;
        let members = primary.in_sync.without(p);
        for x in members.iter() {
            self.confirm_members(p, x);
        }
    }

    /// Tells a member that the others lack nothing.
    pub(crate) fn confirm_members(&mut self, p: usize, x: usize) {
        let Some(primary) = self.primary(p) else {
            return;
        };
        if primary.reconciled && primary.sessions[x].on {
            let nodes = primary.in_sync.without(x);
            self.send_grown(p, x, nodes);
        }
    }

    pub(crate) fn send_grown(&mut self, p: usize, x: usize, nodes: Set) {
        if self.has(Rule::GrownLane) {
            self.send(p, x, Frame::Grown { nodes });
        } else {
            self.send_bulk(p, x, Frame::Grown { nodes });
        }
    }

    // ---- changes of the set

    pub(crate) fn remove(&mut self, p: usize, x: usize) -> Option<()> {
        let primary = self.primary(p)?;
        let left = self.s.used.removals < self.bounds.removals;
        if !primary.in_sync.has(x)
            || primary.proposed.is_some()
            || self.s.proposals[p].is_some()
            || !left
        {
            return None;
        }
        let epoch = primary.epoch;
        self.s.proposals[p] = Some(Proposal {
            generation: primary.generation,
            what: Change::Remove {
                peer: x as u8,
                epoch,
            },
        });
        self.s.used.removals += 1;
        self.primary_mut(p)?.proposed = Some(x as u8);
        if self.s.register.generation > self.primary(p)?.generation {
            self.s.proposals[p] = None; // dead already
        }
        if !self.has(Rule::RemovalCommitted) {
            let primary = self.primary_mut(p)?;
            primary.in_sync = primary.in_sync.without(x);
            self.removed(p, x);
            self.settle(p);
        }
        Some(())
    }

    /// The committed record of this primary's own epoch changed.
    pub(crate) fn viewed(&mut self, p: usize) {
        let register = self.s.register;
        let Some(primary) = self.primary_mut(p) else {
            return;
        };
        let gone = primary.in_sync.minus(register.in_sync).without(p);
        let came = register.in_sync.minus(primary.in_sync);
        primary.generation = register.generation;
        primary.in_sync = register.in_sync;
        let decided = primary.proposed.take().map(usize::from);
        for x in came.iter() {
            self.grown(p, x);
        }
        for x in gone.iter() {
            self.removed(p, x);
        }
        if let Some(x) = decided
            && !register.in_sync.has(x)
            && !gone.has(x)
        {
            self.grow_refused(p, x);
        }
        self.recheck(p);
        self.note_reconciled(p);
    }

    /// Membership changed: what waits may be settled now.
    pub(crate) fn recheck(&mut self, p: usize) {
        let counted = self.counted(p);
        if let Some(flush) = self.primary_mut(p).and_then(|q| q.flush.as_mut()) {
            flush.waiting = flush.waiting.and(counted);
        }
        self.settle(p);
    }

    /// A removal is committed: the session ends, every unsettled write becomes bits.
    fn removed(&mut self, p: usize, x: usize) {
        self.mark_unsettled(p, x);
        if let Some(primary) = self.primary_mut(p) {
            primary.runs[x] = 0;
            primary.heard = primary.heard.without(x);
        }
        self.session_lost(p, x);
    }

    /// Whoever stops counting gets bits for every write that is not settled.
    pub(crate) fn mark_unsettled(&mut self, p: usize, x: usize) {
        if !self.has(Rule::MarkUnsettled) {
            return;
        }
        for block in self.blocks() {
            if self.primary(p).is_some_and(|q| q.writes[block].is_some()) {
                self.mark(p, Set::only(x), block);
            }
        }
    }

    // ---- answers

    pub(crate) fn acked(&mut self, p: usize, x: usize, seq: u8, block: usize) {
        let latest = !self.has(Rule::ClearLatest);
        let cumulative = !self.has(Rule::PerFrameAnswers);
        let Some(primary) = self.primary_mut(p) else {
            return;
        };
        let session = &mut primary.sessions[x];
        let was = session.unanswered[block];
        session.unanswered[block] &= !(1 << seq);
        let newer = session.unanswered[block] >> seq != 0;
        let member = primary.in_sync.has(x);
        for write in primary.writes.iter_mut().flatten() {
            if write.seq == seq || (cumulative && write.seq < seq) {
                write.answered = write.answered.with(x);
            }
        }
        if was & (1 << seq) != 0 && !member && (!newer || latest) {
            self.clear(p, Set::only(x), block);
        }
        self.settle(p);
        self.try_propose_grow(p, x);
    }

    pub(crate) fn peer_flushed(&mut self, p: usize, x: usize) {
        if let Some(flush) = self.primary_mut(p).and_then(|q| q.flush.as_mut()) {
            flush.waiting = flush.waiting.without(x);
        }
        self.end_flush(p);
    }

    /// An answer that stood in no one's way: the client has it.
    pub(crate) fn violate(&mut self, violation: Violation) {
        self.broken = self.broken.or(Some(violation));
    }
}
