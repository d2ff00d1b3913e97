//! The register: compare-and-swap, held proposals, who may be promoted.

use super::*;

impl Stage {
    pub(in crate::schedules) fn control(&mut self, n: usize, message: ToControl) {
        match message {
            ToControl::Started {
                incarnation,
                run,
                unclean,
                ..
            } => self.seen(n, (incarnation, run), unclean),
            ToControl::ProposeSet { .. } | ToControl::Promised { .. } => {
                if let ToControl::Promised { epoch } = message {
                    self.sites[n].promised = Some(epoch);
                }
                if self.hold_register {
                    self.held_proposals.push_back((n, message));
                } else if !self.sites[n].deaf {
                    self.commit(n, &message);
                }
            }
            ToControl::Opened { epoch } => {
                let result = self.writer.opened(n, epoch.0);
                self.checked(result);
                self.history.opened(self.now.0, epoch.0);
                if std::mem::take(&mut self.unclean_lead) {
                    self.history.rollback();
                }
                self.sites[n].open = Some(epoch.0);
            }
            ToControl::Drained { .. } => self.sites[n].drained = true,
            ToControl::Stopped => self.sites[n].stopped = true,
            ToControl::Deposed { .. }
            | ToControl::DiskIdle
            | ToControl::DiskFailed { .. }
            | ToControl::Stranded { .. }
            | ToControl::Room { .. }
            | ToControl::NoRoom { .. } => {}
        }
    }

    /// A new run is recorded; whatever was proposed about the old one is dead.
    pub(in crate::schedules) fn seen(&mut self, n: usize, life: (Incarnation, Run), unclean: bool) {
        let before = self.runs.insert(node(n), life);
        if unclean {
            self.unclean = self.unclean.with(node(n));
        }
        if before.is_some() && self.off != Some(Rule::NewEpoch) {
            self.view.generation = self.view.generation.next();
            self.publish();
        }
    }

    pub(in crate::schedules) fn commit(&mut self, n: usize, message: &ToControl) {
        match *message {
            ToControl::ProposeSet {
                epoch,
                generation,
                in_sync,
                peer,
                life,
                ..
            } => {
                let grows = in_sync.has(peer);
                let known = !grows || life == self.runs.get(&peer).copied();
                let last = in_sync.is_empty() && self.off != Some(Rule::LastMember);
                if (generation, epoch) != (self.view.generation, self.view.epoch) || !known || last
                {
                    return;
                }
                self.view.in_sync = in_sync;
                if grows {
                    self.unclean = self.unclean.without(peer);
                    let disk = &self.sites[usize::from(peer.0)].disk;
                    let result = self.history.holds_all(&disk.cached, &disk.stable);
                    self.checked(
                        result.map_err(|e| format!("G1: {peer} becomes a member, but {e}")),
                    );
                }
            }
            ToControl::Promised { epoch } => {
                if epoch != self.view.epoch.next() || !self.view.in_sync.has(node(n)) {
                    return;
                }
                self.view.epoch = epoch;
                self.view.primary = Some(node(n));
                self.unclean_lead = self.unclean.has(node(n));
                self.unclean = self.unclean.without(node(n));
            }
            _ => return,
        }
        self.view.generation = self.view.generation.next();
        self.commits += 1;
        let result = self.promotion.applied(self.view).map(|_| ());
        self.checked(result);
        if let ToControl::Promised { epoch } = *message {
            self.sites[n].promised = None;
            if !self.sites[n].deaf && self.view.epoch == epoch {
                self.lead(n);
            }
        }
        self.publish();
    }

    pub(in crate::schedules) fn lead(&mut self, n: usize) {
        // The lease of whoever led before is over by now; that much it knows by itself.
        for other in (0..self.sites.len()).filter(|&m| m != n) {
            let until = self.now;
            self.tell(other, FromControl::Lease { until });
        }
        self.tell(n, FromControl::Lead(self.view));
        let until = Now(u64::MAX);
        self.tell(n, FromControl::Lease { until });
    }

    pub(in crate::schedules) fn publish(&mut self) {
        let view = self.view;
        for n in 0..self.sites.len() {
            if !self.sites[n].deaf {
                self.tell(n, FromControl::View(view));
            }
        }
    }

    /// What was proposed and held is committed now, as far as it still can be.
    pub(in crate::schedules) fn commit_held(&mut self) {
        self.hold_register = false;
        for (n, message) in std::mem::take(&mut self.held_proposals) {
            self.commit(n, &message);
        }
        self.settle();
    }

    /// Makes a node primary, if the control plane may choose it.
    pub(in crate::schedules) fn promote(&mut self, n: usize) -> bool {
        let (me, members) = (node(n), self.view.in_sync);
        let clean = members.minus(self.unclean);
        let fit = self.sites[n].replica.is_some()
            && members.has(me)
            && (!self.unclean.has(me) || clean.is_empty());
        if !fit {
            return false;
        }
        self.sites[n].deaf = false;
        if self.off == Some(Rule::NewEpoch) && self.view.primary == Some(me) {
            self.lead(n);
        } else {
            let epoch = self.view.epoch.next();
            self.tell(n, FromControl::Promise { epoch });
        }
        self.settle();
        true
    }

    /// The same, and time to remove members that are silent.
    pub(in crate::schedules) fn fail_over(&mut self, n: usize) {
        let may = self.promote(n);
        self.must(may, "G7: a member cannot be promoted");
        self.pass(1000);
        let opened = self.is_open(n);
        self.must(opened, "liveness: the new primary never opens");
    }

    pub(in crate::schedules) fn is_open(&self, n: usize) -> bool {
        self.sites[n].open == Some(self.view.epoch.0)
    }

    pub(in crate::schedules) fn is_member(&self, n: usize) -> bool {
        self.view.in_sync.has(node(n))
    }
}
