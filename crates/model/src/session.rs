//! Sessions of a primary with its replicas: connect and resend, resync, the cut and the grow.

use crate::rules::Rule;
use crate::state::{Answer, Change, Frame, Growing, Proposal, Session, Set, Stage};
use crate::steps::World;

impl World<'_> {
    // ---- connect

    /// Hello, attach and its answer in one: between them nothing happens that could not happen before or after.
    pub(crate) fn connect(&mut self, p: usize, x: usize) -> Option<()> {
        let primary = self.primary(p)?;
        let epoch = primary.epoch;
        let node = &self.s.nodes[x];
        let over = self.primary(x).is_some_and(|q| q.epoch >= epoch);
        let drained = self.drained(x);
        if primary.sessions[x].on
            || !self.up(x)
            || over
            || node.disk.promised > epoch
            || !drained
            || primary.proposed == Some(x as u8)
        {
            return None;
        }
        let member = primary.in_sync.has(x);
        let known = primary.runs[x];
        let same_run = if known == 0 {
            !primary.open && (!node.disk.unclean || !self.has(Rule::CleanFirst))
        } else {
            known == node.disk.run
        };
        let fit = if member {
            same_run || !self.has(Rule::MemberRuns)
        } else {
            primary.open
        };
        if !fit {
            return None;
        }
        let in_sync = primary.in_sync;
        self.taken(p, x, member, epoch);
        let run = self.s.nodes[x].disk.run;
        let primary = self.primary_mut(p)?;
        primary.sessions[x] = Session {
            on: true,
            ..Session::default()
        };
        if member {
            primary.runs[x] = run;
        }
        let open = primary.open;
        if !open {
            primary.heard = primary.heard.with(x);
        }
        for block in self.blocks() {
            if !self.s.nodes[x].bits[block].has(p) {
                continue;
            }
            // In doubt on one member: different perhaps from any other data node.
            let marked = match (open, self.has(Rule::DoubtBits)) {
                (true, _) => Set::only(x).minus(in_sync),
                (false, true) => self.others(p),
                (false, false) => self.others(p).and(in_sync),
            };
            self.mark(p, marked, block);
        }
        if open && member {
            self.resend(p, x);
            self.confirm_members(p, x);
        }
        Some(())
    }

    /// A member of the same run is back: closes are repeated, unanswered frames go again in order before new ones.
    fn resend(&mut self, p: usize, x: usize) {
        let Some(primary) = self.primary(p).copied() else {
            return;
        };
        if self.has(Rule::SyncedBeforeResend) {
            self.send_synced(p);
        }
        if primary.closed > 0 {
            let (upto, set) = (primary.closed, primary.in_sync);
            self.send(p, x, Frame::Close { upto, set });
        }
        let mut again: Vec<(u8, u8, u8)> = self
            .blocks()
            .filter_map(|b| Some((b as u8, primary.writes[b]?)))
            .filter(|(_, w)| !w.answered.has(x) && self.has(Rule::PerFrameAnswers))
            .map(|(b, w)| (w.seq, b, w.value))
            .collect();
        again.sort_unstable();
        for (seq, block, value) in again {
            if let Some(q) = self.primary_mut(p) {
                q.sessions[x].unanswered[usize::from(block)] |= 1 << seq;
                if let Some(write) = &mut q.writes[usize::from(block)] {
                    write.sent = write.sent.with(x);
                }
            }
            self.send(p, x, Frame::Write { seq, block, value });
        }
        if primary.flush.is_some_and(|f| f.waiting.has(x)) {
            self.send(p, x, Frame::Flush);
        }
    }

    /// A session ends on the primary's side: a fault, or because the replica is not in it any more.
    pub(crate) fn disconnect(&mut self, p: usize, x: usize) -> Option<()> {
        if !self.primary(p)?.sessions[x].on {
            return None;
        }
        let alive = self.follower(x).is_some_and(|f| f.lord == Some(p as u8));
        if alive {
            if self.s.used.drops == self.bounds.drops || !self.fault_left() {
                return None;
            }
            self.s.used.drops += 1;
        }
        self.session_lost(p, x);
        self.recheck(p);
        Some(())
    }

    /// Answers on their way are void; frames sent may still arrive.
    pub(crate) fn session_lost(&mut self, p: usize, x: usize) {
        let Some(primary) = self.primary_mut(p) else {
            return;
        };
        if !primary.sessions[x].on {
            return;
        }
        primary.sessions[x] = Session::default();
        if primary.in_sync.has(x) && !primary.open {
            primary.heard = primary.heard.without(x);
        }
        for job in &mut primary.jobs {
            *job = job.filter(|&to| to != x as u8);
        }
        let uncounted = primary
            .growing
            .take_if(|g| g.peer == x as u8 && g.stage != Stage::Proposed);
        if uncounted.is_some() {
            self.mark_unsettled(p, x);
        }
    }

    // ---- answers

    pub(crate) fn answer(&mut self, p: usize, x: usize) -> Option<()> {
        let answer = self.primary_mut(p)?.sessions[x].answers.take(0)?;
        match answer {
            Answer::Ack { seq, block } => self.acked(p, x, seq, usize::from(block)),
            Answer::Flushed => self.peer_flushed(p, x),
            Answer::CutDone => {
                let growing = self.primary_mut(p)?.growing.as_mut();
                if let Some(g) = growing.filter(|g| g.peer == x as u8 && g.stage == Stage::Cutting)
                {
                    g.stage = Stage::Confirmed;
                    self.try_propose_grow(p, x);
                }
            }
        }
        Some(())
    }

    // ---- resync

    pub(crate) fn resync(&mut self, p: usize, x: usize, block: usize) -> Option<()> {
        let primary = self.primary(p)?;
        let syncing = primary.sessions[x].on
            && !primary.in_sync.has(x)
            && primary.growing.is_none_or(|g| g.peer != x as u8);
        let free = primary.writes[block].is_none() && primary.sessions[x].unanswered[block] == 0;
        if !primary.open
            || !syncing
            || primary.jobs[block].is_some()
            || (!free && self.has(Rule::ResyncLock))
            || (self.in_doubt(p, block) && self.has(Rule::ResyncSettled))
            || !self.s.nodes[p].bits[block].has(x)
        {
            return None;
        }
        self.primary_mut(p)?.jobs[block] = Some(x as u8);
        let value = self.s.nodes[p].disk.cache[block];
        let block = block as u8;
        self.send_bulk(p, x, Frame::Resync { block, value });
        Some(())
    }

    pub(crate) fn copied(&mut self, p: usize, x: usize, block: usize) -> Option<()> {
        let primary = self.primary_mut(p)?;
        if !primary.sessions[x].copied[block] {
            return None;
        }
        primary.sessions[x].copied[block] = false;
        if primary.jobs[block] == Some(x as u8) {
            primary.jobs[block] = None;
            if primary.reconciled && !primary.in_sync.without(p).is_empty() {
                primary.synced[block] = primary.synced[block].with(x);
            }
            self.clear(p, Set::only(x), block);
        }
        Some(())
    }

    pub(crate) fn tell(&mut self, p: usize) -> Option<()> {
        let primary = self.primary(p)?;
        if primary.synced.iter().all(|s| s.is_empty()) {
            return None;
        }
        self.send_synced(p);
        Some(())
    }

    /// Tells the members what syncing peers have got.
    pub(crate) fn send_synced(&mut self, p: usize) {
        for block in self.blocks() {
            let Some(primary) = self.primary_mut(p) else {
                return;
            };
            let nodes = std::mem::take(&mut primary.synced[block]);
            let members = primary.in_sync.without(p);
            if nodes.is_empty() {
                continue;
            }
            for x in members.and(self.attached(p)).iter() {
                let block = block as u8;
                self.send(p, x, Frame::Synced { block, nodes });
            }
        }
    }

    // ---- grow

    pub(crate) fn cut(&mut self, p: usize, x: usize) -> Option<()> {
        let primary = self.primary(p)?;
        let session = &primary.sessions[x];
        let ready = primary.open
            && session.on
            && !primary.in_sync.has(x)
            && primary.growing.is_none()
            && primary.proposed.is_none()
            && self.s.proposals[p].is_none()
            && primary.flush.is_none()
            && primary.reconciled;
        let left = self.s.used.grows < self.bounds.grows;
        let lacks = |b: usize| {
            let on_its_way = session.unanswered[b] != 0;
            primary.jobs[b] == Some(x as u8)
                || self.in_doubt(p, b)
                || (self.s.nodes[p].bits[b].has(x) && !on_its_way)
        };
        if !ready || !left || self.blocks().any(lacks) {
            return None;
        }
        let absent = self.others(p).minus(primary.in_sync).without(x);
        self.s.used.grows += 1;
        let run = self.s.nodes[x].disk.run;
        self.primary_mut(p)?.growing = Some(Growing {
            peer: x as u8,
            run,
            stage: Stage::Cutting,
        });
        // Closes of earlier writes come before the cut, so that they do not set bits again behind it.
        self.send_closes(p);
        let bits = self.s.nodes[p].bits.map(|b| b.and(absent));
        self.send(p, x, Frame::Cut { bits });
        Some(())
    }

    /// Proposes the peer when every write from before the cut is settled with it.
    pub(crate) fn try_propose_grow(&mut self, p: usize, x: usize) {
        let Some(primary) = self.primary(p).copied() else {
            return;
        };
        let growing = primary
            .growing
            .filter(|g| g.peer == x as u8 && g.stage == Stage::Confirmed);
        let Some(growing) = growing else {
            return;
        };
        if primary.proposed.is_some() || self.s.proposals[p].is_some() {
            return;
        }
        let dirty = |b: usize| self.s.nodes[p].bits[b].has(x);
        let session = &primary.sessions[x];
        if self.blocks().any(dirty) {
            let mended = |b: usize| session.on && session.unanswered[b] != 0;
            if self.blocks().any(|b| dirty(b) && !mended(b)) {
                self.uncount(p);
            }
            return;
        }
        if let Some(q) = self.primary_mut(p) {
            q.growing = Some(Growing {
                stage: Stage::Proposed,
                ..growing
            });
            q.proposed = Some(x as u8);
        }
        // Compared with an older version it is dead at once; the primary does not know yet.
        if primary.generation == self.s.register.generation {
            self.s.proposals[p] = Some(Proposal {
                generation: primary.generation,
                what: Change::Add {
                    peer: x as u8,
                    epoch: primary.epoch,
                    run: growing.run,
                },
            });
        }
    }

    /// The peer counts no more: bits for everything that is not settled.
    fn uncount(&mut self, p: usize) {
        let Some(growing) = self.primary_mut(p).and_then(|q| q.growing.take()) else {
            return;
        };
        self.mark_unsettled(p, usize::from(growing.peer));
        self.recheck(p);
    }

    /// A proposal to add the peer is known dead.
    pub(crate) fn grow_refused(&mut self, p: usize, x: usize) {
        let Some(primary) = self.primary_mut(p) else {
            return;
        };
        let on = primary.sessions[x].on;
        let Some(growing) = primary.growing.as_mut().filter(|g| g.peer == x as u8) else {
            return;
        };
        growing.stage = Stage::Confirmed;
        if on {
            self.try_propose_grow(p, x);
        } else {
            self.uncount(p);
        }
    }

    /// The peer is a member by commit.
    pub(crate) fn grown(&mut self, p: usize, x: usize) {
        let Some(primary) = self.primary_mut(p) else {
            return;
        };
        let run = primary.growing.take().map_or(0, |g| g.run);
        // It holds everything settled so far, also what was settled without it and is not closed yet.
        let from = usize::from(primary.closes_sent) + 1;
        for set in primary.settled[from..].iter_mut().filter(|s| !s.is_empty()) {
            *set = set.with(x);
        }
        if primary.sessions[x].on {
            primary.runs[x] = run;
        }
        let others = primary.in_sync.without(p).without(x);
        for y in others.iter() {
            if self.primary(p).is_some_and(|q| q.sessions[y].on) {
                self.send_grown(p, y, Set::only(x));
            }
        }
    }
}
