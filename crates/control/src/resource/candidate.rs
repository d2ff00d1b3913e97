//! How a node becomes primary: may it stand, is the old lease over, promise, fences, compare-and-swap.

use super::*;
use holdfast_replicator::Rule;

impl Node {
    /// May this node become primary? The committed sets decide; what a disk says of itself can only forbid.
    pub(crate) fn eligible(
        &self,
        now: Now,
        ix: usize,
        record: &ResourceRecord,
    ) -> Result<(), Blocked> {
        let me = self.me();
        self.fit(ix)?;
        if !record.members().has(me) {
            return Err(Blocked::Outdated);
        }
        let mut unclean = false;
        for (v, local) in self.resources[ix].locals.iter().enumerate() {
            let replica = record
                .replica(VolumeIx(v as u16), me)
                .ok_or(Blocked::NotADataNode)?;
            let Some(started) = local.started else {
                return Err(Blocked::NotStarted);
            };
            if (started.incarnation, started.run, started.nonce)
                != (replica.incarnation, replica.run, replica.nonce)
            {
                return Err(Blocked::NotRecorded);
            }
            if replica.suspect {
                return Err(Blocked::Suspect);
            }
            unclean |= replica.unclean;
        }
        if self.config.off == Some(Rule::CleanFirst) {
            unclean = false;
        }
        if unclean && !self.maybe_clean(ix, record).is_empty() {
            let allowed = self.config.resources[ix].unclean_promotion == UncleanPromotion::Allow;
            let wait = self.config.timing.unclean_wait_ms;
            let waited = self.resources[ix]
                .unclean_since
                .is_some_and(|t| now.ms_since(t) >= wait);
            if !(allowed && waited) {
                return Err(Blocked::Unclean);
            }
        }
        Ok(())
    }

    /// Its replicas run and their disks work.
    pub(crate) fn fit(&self, ix: usize) -> Result<(), Blocked> {
        let r = &self.resources[ix];
        if !self.is_data_node(ix) {
            return Err(Blocked::NotADataNode);
        }
        if r.stalled {
            return Err(Blocked::Stalled);
        }
        for local in &r.locals {
            match local.started {
                None => return Err(Blocked::NotStarted),
                Some(s)
                    if local.failed.is_some()
                        || matches!(s.disk, DiskState::Failed | DiskState::Diskless) =>
                {
                    return Err(Blocked::DiskFailed);
                }
                Some(_) => {}
            }
        }
        Ok(())
    }

    /// Other members that are not known to have stopped uncleanly (or to have lost their disk).
    pub(crate) fn maybe_clean(&self, ix: usize, record: &ResourceRecord) -> NodeSet {
        let volumes = self.resources[ix].locals.len() as u16;
        let lost = |n: NodeId| {
            (0..volumes).any(|v| {
                record
                    .replica(VolumeIx(v), n)
                    .is_some_and(|r| r.unclean || r.suspect)
            })
        };
        record
            .members()
            .without(self.me())
            .iter()
            .filter(|n| !lost(*n))
            .collect()
    }

    /// The primary of the record is not heard of as such.
    pub(super) fn silent(&self, now: Now, ix: usize, primary: NodeId) -> bool {
        let half = self.config.timing.lease_ms / 2;
        let (epoch, since) = self.resources[ix].epoch_since;
        if now.ms_since(since) < half {
            return false;
        }
        let holds = self
            .heard_of(primary, ResourceIx(ix as u16))
            .is_some_and(|h| {
                h.epoch == epoch && !matches!(h.phase, PhaseWord::Secondary | PhaseWord::Candidate)
            });
        !(holds && self.heard_within(now, primary, half))
    }

    pub(super) fn may_stand(&self, now: Now, ix: usize, record: &ResourceRecord) -> Option<bool> {
        let me = self.me();
        let r = &self.resources[ix];
        if self.shutting_down {
            return None;
        }
        if r.force_until.is_some_and(|t| now < t)
            && self.fit(ix).is_ok()
            && !record.members().has(me)
        {
            return Some(true);
        }
        if record.wanted == Wanted::Stopped || self.eligible(now, ix, record).is_err() {
            return None;
        }
        let asked = record.wanted == Wanted::On(me);
        let auto = self.config.resources[ix].auto_promote || asked;
        let stands = match record.primary {
            Some(p) if p == me => now >= r.hold_back,
            Some(_) if r.hint == Some(record.epoch) => true,
            Some(p) => auto && self.silent(now, ix, p),
            None => auto,
        };
        stands.then_some(false)
    }

    pub(super) fn drive_secondary(&mut self, now: Now, ix: usize, record: &ResourceRecord) {
        let me = self.me();
        let resource = ResourceIx(ix as u16);
        let eligible = self.eligible(now, ix, record);
        self.resources[ix].unclean_since = match eligible {
            Err(Blocked::Unclean) => {
                let since = self.resources[ix].unclean_since.unwrap_or(now);
                if self.config.resources[ix].unclean_promotion == UncleanPromotion::Allow {
                    self.wake(
                        since
                            .plus_ms(self.config.timing.unclean_wait_ms)
                            .max(Now(now.0 + 1)),
                    );
                }
                Some(since)
            }
            Ok(()) => self.resources[ix].unclean_since,
            Err(_) => None,
        };
        if let Some(until) = self.resources[ix].force_until {
            if now >= until || record.members().has(me) {
                self.resources[ix].force_until = None;
            } else {
                self.wake(until);
            }
        }
        if record.primary == Some(me) {
            if record.wanted == Wanted::Stopped {
                let (generation, epoch) = (record.generation, record.epoch);
                self.repeat(
                    now,
                    ix,
                    Command::Vacate {
                        resource,
                        generation,
                        epoch,
                    },
                );
            } else if eligible.is_err() && now >= self.resources[ix].again {
                // It will not go on here: nobody need wait for the lease of its former life.
                self.resources[ix].again = now.plus_ms(self.config.timing.heartbeat_ms);
                self.tell_voters(
                    now,
                    &Body::Release {
                        resource,
                        epoch: record.epoch,
                    },
                );
            }
            let again = self.resources[ix].again;
            if eligible.is_err() && again > now {
                self.wake(again);
            }
            if now < self.resources[ix].hold_back {
                self.wake(self.resources[ix].hold_back);
            }
        }
        self.detect(now, ix, record);
        let Some(forced) = self.may_stand(now, ix, record) else {
            self.resources[ix].poll.free_since = None;
            return;
        };
        if now >= self.resources[ix].poll.at {
            let nonce = self.rng.draw();
            let at = now.plus_ms(self.config.timing.heartbeat_ms);
            let free_since = self.resources[ix].poll.free_since;
            self.resources[ix].poll = Poll {
                nonce,
                at,
                replies: BTreeMap::new(),
                free_since,
            };
            let (epoch, generation) = (record.epoch.next(), record.generation);
            self.tell_voters(
                now,
                &Body::Poll {
                    nonce,
                    resource,
                    epoch,
                    generation,
                },
            );
        }
        self.judge_poll(now, ix, record, forced);
    }

    pub(super) fn detect(&mut self, now: Now, ix: usize, record: &ResourceRecord) {
        let Some(holder) = record.primary.filter(|p| *p != self.me()) else {
            return;
        };
        if self.resources[ix].detected == Some(record.epoch) {
            return;
        }
        if self.silent(now, ix, holder) {
            self.resources[ix].detected = Some(record.epoch);
            self.note(Note::Detected {
                resource: ResourceIx(ix as u16),
                holder,
            });
        } else {
            let since = self.resources[ix].epoch_since.1;
            let half = self.config.timing.lease_ms / 2;
            let heard = self.peers[usize::from(holder.0)].heard.unwrap_or(since);
            self.wake(since.max(heard).plus_ms(half).max(Now(now.0 + 1_000_000)));
        }
    }

    /// How long better candidates are given.
    pub(super) fn rank_delay_ms(
        &self,
        now: Now,
        ix: usize,
        record: &ResourceRecord,
        forced: bool,
    ) -> u64 {
        let me = self.me();
        let r = &self.resources[ix];
        let timing = &self.config.timing;
        if forced
            || record.primary == Some(me)
            || record.wanted == Wanted::On(me)
            || r.hint == Some(record.epoch)
        {
            return 0;
        }
        let list = self.data_nodes(ix).into_iter();
        let better = list.take_while(|n| *n != me).filter(|n| {
            record.members().has(*n) && record.primary != Some(*n) && self.connected(now, *n)
        });
        let wish = match record.wanted {
            Wanted::On(n) if record.primary != Some(n) && self.connected(now, n) => {
                timing.handover_ms
            }
            _ => 0,
        };
        better.count() as u64 * timing.rank_delay_ms + wish
    }

    pub(super) fn judge_poll(
        &mut self,
        now: Now,
        ix: usize,
        record: &ResourceRecord,
        forced: bool,
    ) {
        let majority = self.config.majority() as usize;
        let delay = self.rank_delay_ms(now, ix, record, forced);
        let poll = &mut self.resources[ix].poll;
        let mut waits: Vec<u64> = poll.replies.values().flatten().copied().collect();
        waits.sort_unstable();
        match waits.get(majority - 1) {
            Some(0) => {
                let since = *poll.free_since.get_or_insert(now);
                let at = since.plus_ms(delay);
                if now >= at {
                    self.begin_stand(now, ix, record, forced);
                    return;
                }
                poll.at = poll.at.min(at);
            }
            Some(&wait) => {
                poll.free_since = None;
                poll.at = poll.at.min(Now(now.0.saturating_add(wait)));
                // Judged once; the next poll asks anew.
                poll.replies.clear();
            }
            None => {}
        }
        let at = self.resources[ix].poll.at;
        self.wake(at);
    }

    pub(super) fn begin_stand(
        &mut self,
        now: Now,
        ix: usize,
        record: &ResourceRecord,
        forced: bool,
    ) {
        let forced = forced.then(|| self.rng.draw());
        let stand = Stand {
            epoch: record.epoch.next(),
            generation: record.generation,
            forced,
            broken: false,
        };
        let waiting = self.resources[ix].volumes();
        let until = now.plus_ms(self.config.timing.handover_ms);
        self.resources[ix].phase = Phase::Promising {
            stand,
            waiting,
            until,
        };
        self.resources[ix].poll = Poll::default();
        self.note(Note::Candidate {
            resource: ResourceIx(ix as u16),
            epoch: stand.epoch,
        });
        self.tell(ix, &FromControl::Promise { epoch: stand.epoch });
        self.wake(until);
    }

    pub(super) fn send_fences(&mut self, now: Now, ix: usize, stand: Stand) {
        let again = now.plus_ms(self.config.timing.heartbeat_ms);
        if let Phase::Fencing { again: at, .. } = &mut self.resources[ix].phase {
            *at = again;
        }
        self.wake(again);
        let (resource, epoch, generation) = (ResourceIx(ix as u16), stand.epoch, stand.generation);
        self.tell_voters(
            now,
            &Body::Fence {
                resource,
                epoch,
                generation,
            },
        );
    }

    /// Never proposed, or definitely dead.
    pub(super) fn withdraw(&mut self, now: Now, ix: usize, stand: Stand) {
        self.tell(ix, &FromControl::Withdraw { epoch: stand.epoch });
        self.note(Note::Withdrawn {
            resource: ResourceIx(ix as u16),
            epoch: stand.epoch,
        });
        self.become_secondary(now, ix);
    }

    pub(super) fn become_secondary(&mut self, now: Now, ix: usize) {
        let at = now.plus_ms(self.config.timing.heartbeat_ms);
        let r = &mut self.resources[ix];
        r.phase = Phase::Secondary;
        r.lease = None;
        r.poll = Poll {
            at,
            ..Poll::default()
        };
        self.wake(at);
    }

    pub(super) fn drive_proposing(
        &mut self,
        now: Now,
        ix: usize,
        record: &ResourceRecord,
        stand: Stand,
        again: Now,
    ) {
        let me = self.me();
        if record.generation > stand.generation {
            let won = record.epoch == stand.epoch && record.primary == Some(me);
            if won && stand.broken {
                self.become_secondary(now, ix); // as after a restart: takes the epoch after this one
            } else if won {
                self.lead(now, ix, record);
            } else {
                self.withdraw(now, ix, stand);
            }
        } else if now >= again {
            let at = now.plus_ms(self.config.timing.heartbeat_ms);
            self.resources[ix].phase = Phase::Proposing { stand, again: at };
            self.wake(at);
            self.propose(
                now,
                Command::Takeover {
                    resource: ResourceIx(ix as u16),
                    generation: stand.generation,
                    epoch: stand.epoch,
                    primary: me,
                    forced: stand.forced,
                },
            );
        } else {
            self.wake(again);
        }
    }

    /// News about candidacies.
    pub(crate) fn on_poll_reply(
        &mut self,
        from: NodeId,
        resource: ResourceIx,
        nonce: u64,
        free_in: Option<u64>,
    ) {
        if let Some(r) = self.resources.get_mut(usize::from(resource.0))
            && r.poll.nonce == nonce
            && self.config.voters().has(from)
        {
            r.poll.replies.insert(from, free_in);
        }
    }

    pub(crate) fn on_fenced(
        &mut self,
        now: Now,
        from: NodeId,
        resource: ResourceIx,
        epoch: Epoch,
        generation: Gen,
    ) {
        let majority = self.config.majority();
        let voter = self.config.voters().has(from);
        let Some(r) = self.resources.get_mut(usize::from(resource.0)) else {
            return;
        };
        if let Phase::Fencing { stand, fenced, .. } = &mut r.phase
            && voter
            && (stand.epoch, stand.generation) == (epoch, generation)
        {
            *fenced = fenced.with(from);
            if fenced.len() >= majority {
                r.phase = Phase::Proposing {
                    stand: *stand,
                    again: now,
                };
            }
        }
    }

    pub(crate) fn on_hand_over(&mut self, resource: ResourceIx, epoch: Epoch) {
        if let Some(r) = self.resources.get_mut(usize::from(resource.0)) {
            r.hint = Some(epoch);
            r.poll.at = Now(0);
        }
    }
}
