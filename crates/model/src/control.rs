//! The committed record, candidates, and how nodes learn of it.
//!
//! The control plane is an atomic register here: consensus is not modelled, but a command can commit at any time after it
//! was proposed, also when its proposer is dead, and never once the record has a later generation.

use crate::rules::Rule;
use crate::state::{Change, Follower, Primary, Proposal, Register, Role};
use crate::steps::World;

impl World<'_> {
    /// The record changed: whatever was compared with an older one is dead.
    fn record_changed(&mut self) {
        self.s.register.generation += 1;
        let now = self.s.register.generation;
        for proposal in &mut self.s.proposals {
            if proposal.is_some_and(|p| p.generation < now) {
                *proposal = None;
            }
        }
        self.settle_losses();
    }

    pub(crate) fn record(&mut self, n: usize) -> Option<()> {
        let disk = self.s.nodes[n].disk;
        if !self.up(n) || self.s.register.runs[n] == disk.run {
            return None;
        }
        self.s.register.runs[n] = disk.run;
        if disk.unclean {
            self.s.register.unclean = self.s.register.unclean.with(n);
        }
        self.record_changed();
        Some(())
    }

    /// May this node be promoted?
    fn eligible(&self, n: usize) -> bool {
        let r = &self.s.register;
        let clean = !r.unclean.has(n)
            || !self.has(Rule::CleanFirst)
            || r.unclean.contains(r.in_sync.without(n));
        r.in_sync.has(n) && r.runs[n] == self.s.nodes[n].disk.run && clean
    }

    pub(crate) fn stand(&mut self, n: usize) -> Option<()> {
        let node = &self.s.nodes[n];
        let epoch = self.s.register.epoch + 1;
        let drained = self.drained(n);
        let free = self.follower(n).is_some_and(|f| !f.standing)
            && self.s.proposals[n].is_none()
            && node.disk.promised <= epoch;
        let left = self.s.used.promotions < self.bounds.promotions && self.fault_left();
        if !(drained && free && left && self.eligible(n)) {
            return None;
        }
        self.s.used.promotions += 1;
        self.s.proposals[n] = Some(Proposal {
            generation: self.s.register.generation,
            what: Change::Takeover,
        });
        let promise = self.has(Rule::PromiseFirst);
        if promise {
            self.end_session(n);
            self.s.nodes[n].disk.promised = epoch;
        }
        self.follower_mut(n)?.standing = true;
        Some(())
    }

    pub(crate) fn commit(&mut self, n: usize) -> Option<()> {
        let proposal = self.s.proposals[n]?;
        let register = &mut self.s.register;
        match proposal.what {
            Change::Takeover => {
                register.epoch += 1;
                register.primary = n as u8;
                // From now on its copy is the data.
                register.unclean = register.unclean.without(n);
                self.inherit(n);
                if self.clients_told && self.s.nodes[n].disk.unclean {
                    self.unflushed_may_be_lost();
                }
            }
            Change::Remove { peer, epoch } => {
                if epoch != register.epoch {
                    return None;
                }
                register.in_sync = register.in_sync.without(usize::from(peer));
            }
            Change::Add { peer, epoch, run } => {
                let peer = usize::from(peer);
                let same = register.runs[peer] == run || !self.rules.has(Rule::GrowLife);
                if epoch != register.epoch || !same {
                    return None;
                }
                register.in_sync = register.in_sync.with(peer);
                register.unclean = register.unclean.without(peer);
            }
        }
        self.s.proposals[n] = None;
        self.record_changed();
        Some(())
    }

    /// The candidate knows its proposal dead: it was refused, or it is of a former run and the new one is recorded.
    /// Without the rule it takes the promise back though the proposal may still commit, and leads if it does.
    pub(crate) fn withdraw(&mut self, n: usize) -> Option<()> {
        let Register { epoch, runs, .. } = self.s.register;
        let disk = self.s.nodes[n].disk;
        let dead = self.s.proposals[n].is_none();
        let standing = self.follower(n)?.standing;
        let won = self.s.register.primary == n as u8 && epoch == disk.promised;
        if dead {
            let recalled = runs[n] == disk.run && disk.promised > epoch;
            if won || !(standing || recalled) {
                return None;
            }
            self.follower_mut(n)?.standing = false;
        } else if self.has(Rule::DefiniteWithdraw) || !standing || disk.promised <= epoch {
            return None;
        }
        self.s.nodes[n].disk.promised = disk.promised.min(epoch);
        Some(())
    }

    pub(crate) fn lead(&mut self, n: usize) -> Option<()> {
        let register = self.s.register;
        let promised = self.s.nodes[n].disk.promised;
        let loose = !(self.has(Rule::PromiseFirst) && self.has(Rule::DefiniteWithdraw));
        let kept = promised == register.epoch || (loose && promised < register.epoch);
        let won = self.s.proposals[n].is_none() && register.primary == n as u8;
        if !(self.follower(n)?.standing && won && kept) {
            return None;
        }
        self.begin_epoch(n);
        Some(())
    }

    /// Without its rule: the primary of the record goes on where it was, and reconciles.
    pub(crate) fn resume(&mut self, n: usize) -> Option<()> {
        let register = self.s.register;
        if self.has(Rule::RestartNewEpoch)
            || self.follower(n)?.standing
            || register.primary != n as u8
            || register.epoch != self.s.nodes[n].disk.promised
        {
            return None;
        }
        self.begin_epoch(n);
        Some(())
    }

    fn begin_epoch(&mut self, n: usize) {
        let register = self.s.register;
        self.end_session(n);
        self.open_to_bits(n, register.in_sync);
        if self.has(Rule::PromiseFirst) {
            self.s.nodes[n].disk.promised = register.epoch;
        }
        self.s.nodes[n].role = Role::Primary(Primary {
            epoch: register.epoch,
            generation: register.generation,
            in_sync: register.in_sync,
            heard: crate::state::Set::only(n),
            ..Primary::default()
        });
    }

    /// A newer epoch exists: its history is what this node has.
    fn inherit(&mut self, n: usize) {
        for block in self.blocks() {
            let held = self.s.nodes[n].disk.cache[block];
            self.s.client.inherited[block] |= 1 << held;
        }
    }

    pub(crate) fn learn(&mut self, n: usize) -> Option<()> {
        let register = self.s.register;
        let primary = self.primary(n)?;
        if primary.generation == register.generation {
            return None;
        }
        if primary.epoch == register.epoch && register.primary == n as u8 {
            self.viewed(n);
        } else {
            self.step_down(n);
        }
        Some(())
    }

    /// The lease ran out, or the operator wished it: the record still names this node.
    pub(crate) fn demote(&mut self, n: usize) -> Option<()> {
        let left = self.s.used.demotions < self.bounds.demotions && self.fault_left();
        if !left {
            return None;
        }
        self.primary(n)?;
        self.s.used.demotions += 1;
        self.step_down(n);
        Some(())
    }

    /// It leads no more: unsettled writes stay in doubt.
    pub(crate) fn step_down(&mut self, p: usize) {
        let Some(primary) = self.primary(p).copied() else {
            return;
        };
        if self.has(Rule::ReportAlways) {
            for block in self.blocks().filter(|&b| primary.writes[b].is_some()) {
                self.mark(p, self.others(p), block);
            }
        }
        self.orphan_landing(p);
        self.s.nodes[p].role = Role::Secondary(Follower::default());
    }
}
