//! A replica as such: its disk and activity log, its frames as a secondary, its crashes and starts.

use crate::rules::Rule;
use crate::state::{Answer, Disk, Follower, Frame, Landing, LandingOf, Role, Set};
use crate::steps::World;

impl World<'_> {
    // ---- sessions

    /// The session is over: what has not reached the disk is dropped, what has goes on to its end unanswered.
    pub(crate) fn end_session(&mut self, x: usize) {
        self.orphan_landing(x);
        let keep = !self.has(Rule::SessionStamp);
        let Some(follower) = self.follower_mut(x) else {
            return;
        };
        follower.lord = None;
        follower.lane = Default::default();
        if !keep {
            follower.bulk = Default::default();
        }
    }

    /// No disk write of this process is in flight.
    pub(crate) fn drained(&self, n: usize) -> bool {
        let landing = self.s.nodes[n].landing;
        landing.is_none_or(|l| l.of == LandingOf::Former) || !self.has(Rule::Drain)
    }

    pub(crate) fn orphan_landing(&mut self, n: usize) {
        let landing = self.s.nodes[n].landing.as_mut();
        if let Some(landing) = landing.filter(|l| l.of != LandingOf::Former) {
            landing.of = LandingOf::Nobody;
        }
    }

    /// Open writes become dirty bits; their extents may be evicted from now on.
    pub(crate) fn open_to_bits(&mut self, x: usize, in_sync: Set) {
        let others = if self.has(Rule::DoubtBits) {
            self.others(x)
        } else {
            self.others(x).and(in_sync)
        };
        for block in self.blocks() {
            let Some(follower) = self.follower_mut(x) else {
                return;
            };
            let open = std::mem::take(&mut follower.open[block]);
            if open != 0 && self.has(Rule::ReportAlways) {
                self.mark(x, others, block);
            }
        }
    }

    /// A primary takes this replica into a session.
    pub(crate) fn taken(&mut self, p: usize, x: usize, member: bool, epoch: u8) {
        self.step_down(x);
        self.end_session(x);
        let all = self.all();
        let stands = !self.has(Rule::DefiniteWithdraw);
        let goes_on = member && self.follower(x).is_some_and(|f| f.open_epoch == epoch);
        if !goes_on {
            self.open_to_bits(x, all);
        }
        self.s.nodes[x].disk.promised = epoch;
        if let Some(follower) = self.follower_mut(x) {
            follower.lord = Some(p as u8);
            follower.open_epoch = epoch;
            // It is overtaken; one that took its promise back too early may still come to lead.
            follower.standing &= stands;
        }
    }

    fn reply(&mut self, x: usize, answer: Answer) {
        let Some(p) = self.follower(x).and_then(|f| f.lord) else {
            return;
        };
        if let Some(primary) = self.primary_mut(usize::from(p))
            && primary.sessions[x].on
        {
            let room = primary.sessions[x].answers.push(answer);
            self.full |= !room;
        }
    }

    // ---- frames

    pub(crate) fn frame(&mut self, x: usize, place: usize) -> Option<()> {
        let follower = self.follower(x)?;
        let frame = follower.lane.get(place)?;
        if place > 0 && self.has(Rule::ReplicaOrder) {
            return None;
        }
        if place > 0 {
            // Out of turn: only a write past another one.
            let writes = follower.lane.iter().take(place + 1);
            if !writes.into_iter().all(|f| matches!(f, Frame::Write { .. })) {
                return None;
            }
        }
        let writing = self.s.nodes[x].landing.is_some();
        if writing
            && matches!(
                frame,
                Frame::Write { .. } | Frame::Flush | Frame::Cut { .. }
            )
        {
            return None; // one write at a time; flushes wait for it
        }
        let frame = self.follower_mut(x)?.lane.take(place)?;
        match frame {
            Frame::Write { seq, block, value } => self.receive_write(x, seq, block, value),
            Frame::Close { upto, set } => self.close(x, upto, set),
            Frame::Reconciled { block, set } => {
                let block = usize::from(block);
                if self.has(Rule::ReconcileSet) {
                    self.mark(x, self.others(x).minus(set), block);
                }
                self.clear(x, set, block);
            }
            Frame::Flush => {
                let disk = &mut self.s.nodes[x].disk;
                disk.stable = disk.cache;
                self.reply(x, Answer::Flushed);
            }
            Frame::Cut { bits } => {
                let node = &mut self.s.nodes[x];
                if self.rules.has(Rule::CutBitmaps) {
                    node.bits = bits;
                } else {
                    node.bits = Default::default();
                }
                if self.rules.has(Rule::FlushAtCut) {
                    node.disk.stable = node.disk.cache;
                }
                if self.rules.has(Rule::CutDurable) {
                    node.disk.bits = node.bits;
                }
                node.disk.unclean = false;
                self.reply(x, Answer::CutDone);
            }
            Frame::Grown { nodes } => self.lack_nothing(x, nodes),
            Frame::Synced { block, nodes } => self.clear(x, nodes, usize::from(block)),
            Frame::Resync { .. } => {}
        }
        Some(())
    }

    fn lack_nothing(&mut self, x: usize, nodes: Set) {
        for block in self.blocks() {
            self.clear(x, nodes, block);
        }
    }

    fn receive_write(&mut self, x: usize, seq: u8, block: u8, value: u8) {
        let at = usize::from(block);
        if let Some(follower) = self.follower_mut(x) {
            follower.open[at] |= 1 << seq;
        }
        let node = &mut self.s.nodes[x];
        node.disk.log[at] = true;
        if self.bounds.in_flight {
            let of = LandingOf::Write { seq };
            node.landing = Some(Landing { block, value, of });
        } else {
            node.disk.cache[at] = value;
            self.reply(x, Answer::Ack { seq, block });
        }
    }

    pub(crate) fn bulk(&mut self, x: usize) -> Option<()> {
        let frame = self.follower(x)?.bulk.get(0)?;
        self.follower(x)?.lord?;
        if let (Frame::Resync { .. }, Some(_)) = (frame, self.s.nodes[x].landing) {
            return None;
        }
        match self.follower_mut(x)?.bulk.take(0)? {
            Frame::Resync { block, value } => {
                let at = usize::from(block);
                let logged = self.has(Rule::ResyncLogged);
                let node = &mut self.s.nodes[x];
                node.disk.log[at] |= logged;
                if self.bounds.in_flight {
                    let of = LandingOf::Resync;
                    node.landing = Some(Landing { block, value, of });
                } else {
                    node.disk.cache[at] = value;
                    self.resynced(x, at);
                }
            }
            Frame::Grown { nodes } => self.lack_nothing(x, nodes),
            _ => {}
        }
        Some(())
    }

    fn resynced(&mut self, x: usize, block: usize) {
        let Some(p) = self.follower(x).and_then(|f| f.lord) else {
            return;
        };
        if let Some(primary) = self.primary_mut(usize::from(p)) {
            primary.sessions[x].copied[block] |= primary.sessions[x].on;
        }
    }

    fn close(&mut self, x: usize, upto: u8, set: Set) {
        let others = self.others(x);
        let upto = ((1_u16 << (upto + 1)) - 1) as u8;
        for block in self.blocks() {
            let Some(follower) = self.follower_mut(x) else {
                return;
            };
            let closing = follower.open[block] & upto;
            follower.open[block] &= !upto;
            if closing == 0 {
                continue;
            }
            if self.has(Rule::CloseSet) {
                self.mark(x, others.minus(set), block);
            }
            if set.has(x) {
                self.clear(x, set, block);
            }
        }
    }

    // ---- the disk

    /// A disk write ends.
    pub(crate) fn land(&mut self, n: usize) -> Option<()> {
        let landing = self.s.nodes[n].landing.take()?;
        let block = usize::from(landing.block);
        self.s.nodes[n].disk.cache[block] = landing.value;
        match landing.of {
            LandingOf::Nobody | LandingOf::Former => {}
            LandingOf::Own => {
                if let Some(write) = self.primary_mut(n)?.writes[block].as_mut() {
                    write.local = true;
                }
                self.settle(n);
            }
            LandingOf::Write { seq } => self.reply(
                n,
                Answer::Ack {
                    seq,
                    block: landing.block,
                },
            ),
            LandingOf::Resync => self.resynced(n, block),
        }
        Some(())
    }

    /// Does an open write hold the extent?
    fn held(&self, n: usize, block: usize) -> bool {
        let node = &self.s.nodes[n];
        let landing = node.landing.is_some_and(|l| usize::from(l.block) == block);
        match &node.role {
            Role::Down => true,
            Role::Primary(p) => p.writes[block].is_some_and(|w| !w.push),
            Role::Secondary(f) => (f.open[block] != 0 && self.has(Rule::HoldOpen)) || landing,
        }
    }

    pub(crate) fn evict(&mut self, n: usize, block: usize) -> Option<()> {
        if !self.s.nodes[n].disk.log[block] || self.held(n, block) {
            return None;
        }
        let node = &mut self.s.nodes[n];
        node.disk.stable = node.disk.cache;
        node.disk.bits = node.bits;
        node.disk.log[block] = false;
        Some(())
    }

    pub(crate) fn save(&mut self, n: usize) -> Option<()> {
        let node = &mut self.s.nodes[n];
        if node.role == Role::Down || node.disk.bits == node.bits {
            return None;
        }
        node.disk.bits = node.bits;
        Some(())
    }

    // ---- ends and starts

    fn crash(&mut self) -> Option<()> {
        let left = self.s.used.crashes < self.bounds.crashes && self.fault_left();
        left.then(|| self.s.used.crashes += 1)
    }

    /// Nothing in memory is left; not even what matters to nobody while the process is down.
    fn gone(&mut self, n: usize) {
        let node = &mut self.s.nodes[n];
        node.role = Role::Down;
        node.bits = Default::default();
    }

    pub(crate) fn kill(&mut self, n: usize, landed: bool) -> Option<()> {
        let landing = self.s.nodes[n].landing;
        if !self.up(n) || (landing.is_none() && landed) {
            return None;
        }
        self.crash()?;
        if let Some(landing) = landing {
            let node = &mut self.s.nodes[n];
            if landed {
                node.disk.cache[usize::from(landing.block)] = landing.value;
            }
            if landed || self.rules.has(Rule::StoreClaim) {
                node.landing = None;
            }
        }
        if let Some(landing) = &mut self.s.nodes[n].landing {
            landing.of = LandingOf::Former;
        }
        self.gone(n);
        Some(())
    }

    pub(crate) fn power(&mut self, n: usize, kept: u8) -> Option<()> {
        let Disk { cache, stable, .. } = self.s.nodes[n].disk;
        let loose = |b: usize| cache[b] != stable[b];
        let something = self.up(n) || self.blocks().any(loose);
        let sensible = self.blocks().all(|b| kept & (1 << b) == 0 || loose(b));
        if !something || !sensible {
            return None;
        }
        self.crash()?;
        let blocks = self.blocks();
        let node = &mut self.s.nodes[n];
        node.landing = None;
        node.disk.unclean = true;
        for block in blocks {
            if kept & (1 << block) == 0 {
                node.disk.cache[block] = stable[block];
            }
        }
        node.disk.stable = node.disk.cache;
        self.gone(n);
        self.settle_losses();
        Some(())
    }

    /// A new run: extents of the log become durable bits, then the log is empty.
    pub(crate) fn restart(&mut self, n: usize) -> Option<()> {
        if self.up(n) {
            return None;
        }
        let others = self.others(n);
        let crash_bits = self.has(Rule::CrashExtents);
        let blocks = self.blocks();
        let node = &mut self.s.nodes[n];
        node.bits = node.disk.bits;
        for block in blocks {
            if node.disk.log[block] && crash_bits {
                node.bits[block] = node.bits[block].or(others);
            }
            node.disk.log[block] = false;
        }
        node.disk.run += 1;
        node.disk.stable = node.disk.cache;
        node.disk.bits = node.bits;
        node.role = Role::Secondary(Follower::default());
        Some(())
    }

    /// An orderly stop: open writes to bits, data flushed, bits saved, an empty log, the clean mark.
    pub(crate) fn stop(&mut self, n: usize) -> Option<()> {
        let left = self.s.used.stops < self.bounds.stops && self.fault_left();
        if !self.up(n) || self.s.nodes[n].landing.is_some() || !left {
            return None;
        }
        self.s.used.stops += 1;
        self.step_down(n);
        if self.has(Rule::CleanStopBits) {
            let all = self.all();
            self.open_to_bits(n, all);
        }
        let node = &mut self.s.nodes[n];
        node.disk.stable = node.disk.cache;
        node.disk.bits = node.bits;
        node.disk.log = Default::default();
        self.gone(n);
        Some(())
    }
}
