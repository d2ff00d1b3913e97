//! The replicas on this node: what they say, what they are told.

use super::*;

impl Node {
    pub(crate) fn on_replica(
        &mut self,
        now: Now,
        resource: ResourceIx,
        volume: VolumeIx,
        msg: ToControl,
    ) {
        let ix = usize::from(resource.0);
        let v = usize::from(volume.0);
        if self.resources.get(ix).is_none_or(|r| v >= r.locals.len()) {
            return;
        }
        match msg {
            ToControl::Started {
                incarnation,
                run,
                unclean,
                disk,
                promised,
                ..
            } => {
                let nonce = self.rng.draw();
                let local = &mut self.resources[ix].locals[v];
                let again = local.started.is_some_and(|s| s.run != run);
                let started = Some(Started {
                    incarnation,
                    run,
                    nonce,
                    unclean,
                    promised,
                    disk,
                });
                *local = Local {
                    started,
                    seen_at: now,
                    ..Local::default()
                };
                if again {
                    self.replica_restarted(now, ix);
                }
            }
            ToControl::Promised { epoch } => {
                let beat = self.config.timing.lease_ms;
                if let Phase::Promising { stand, waiting, .. } = &mut self.resources[ix].phase
                    && stand.epoch == epoch
                {
                    waiting.remove(&volume);
                    if waiting.is_empty() {
                        let stand = *stand;
                        let until = now.plus_ms(beat);
                        self.resources[ix].phase = Phase::Fencing {
                            stand,
                            fenced: NodeSet::EMPTY,
                            again: now,
                            until,
                        };
                    }
                }
            }
            ToControl::ProposeSet {
                epoch,
                generation,
                in_sync,
                peer,
                life,
                why,
            } => {
                if self.resources[ix].holding() == Some(epoch) {
                    self.propose(
                        now,
                        Command::SetChange {
                            resource,
                            volume,
                            generation,
                            epoch,
                            in_sync,
                            peer,
                            life,
                            why,
                        },
                    );
                }
            }
            ToControl::Opened { epoch } => {
                if let Phase::Leading {
                    epoch: mine,
                    waiting,
                    ..
                } = &mut self.resources[ix].phase
                    && *mine == epoch
                    && waiting.remove(&volume)
                    && waiting.is_empty()
                {
                    self.note(Note::Opened { resource, epoch });
                }
            }
            ToControl::Drained { epoch } => {
                if let Phase::Draining { stop, waiting, .. } = &mut self.resources[ix].phase
                    && stop.epoch == epoch
                {
                    waiting.remove(&volume);
                    if waiting.is_empty() {
                        let stop = *stop;
                        self.finish_stop(now, ix, stop);
                    }
                }
            }
            ToControl::Deposed { epoch } => match self.resources[ix].phase {
                // Its replica has met a primary of that epoch already: the record will follow.
                Phase::Promising { stand, .. } if epoch >= stand.epoch => {
                    self.withdraw(now, ix, stand);
                }
                _ => {
                    if let Some(mine) = self.resources[ix].holding()
                        && epoch > mine
                    {
                        self.stop(now, ix, mine, StepDownReason::Deposed, true);
                    }
                }
            },
            ToControl::Room {
                size_bytes,
                shrunk,
                room_bytes,
                ..
            } => {
                let local = &mut self.resources[ix].locals[v];
                local.room = Some(((size_bytes, shrunk), room_bytes));
                local.room_at = now;
            }
            ToControl::NoRoom { store_bytes } => {
                self.resources[ix].locals[v].no_room = Some(store_bytes);
            }
            ToControl::DiskFailed { why } => self.disk_failed(now, ix, v, why),
            ToControl::DiskIdle => self.resources[ix].locals[v].attach.idle = true,
            ToControl::Stranded { epoch } => self.stranded(now, ix, epoch),
            ToControl::Stopped => {
                self.resources[ix].locals[v].stopped = true;
                if self.departed(ix, v) {
                    self.resources[ix].locals[v] = Local::default();
                    self.act(Action::Forget { resource, volume });
                }
            }
        }
    }

    pub(super) fn replica_restarted(&mut self, now: Now, ix: usize) {
        if let Some(epoch) = self.resources[ix].holding() {
            self.stop(now, ix, epoch, StepDownReason::Restarted, true);
            return;
        }
        match &mut self.resources[ix].phase {
            Phase::Proposing { stand, .. } => stand.broken = true,
            Phase::Promising { stand, .. } | Phase::Fencing { stand, .. } => {
                let stand = *stand;
                self.withdraw(now, ix, stand);
            }
            _ => {}
        }
    }

    /// Was the replica that runs here removed from the record? Told by the identity of its disk, so that a node which
    /// has not heard of its own addition yet does not take itself for removed.
    fn departed(&self, ix: usize, v: usize) -> bool {
        let local = &self.resources[ix].locals[v];
        let record = self.record(ix).and_then(|r| r.volumes.get(v));
        match (local.started, record) {
            (Some(started), Some(volume)) => {
                !volume.replicas.contains_key(&self.me())
                    && volume.departed.get(&self.me()) == Some(&started.incarnation)
            }
            _ => false,
        }
    }

    /// A replica that was removed stops; then it is forgotten.
    pub(super) fn drive_departed(&mut self, ix: usize, record: &ResourceRecord) {
        for v in 0..record.volumes.len().min(self.resources[ix].locals.len()) {
            if self.departed(ix, v) && !self.resources[ix].locals[v].stop_sent {
                self.resources[ix].locals[v].stop_sent = true;
                self.tell_one(ix, v, FromControl::Stop);
            }
        }
    }

    /// Every replica knows the latest record.
    pub(super) fn drive_views(&mut self, ix: usize, record: &ResourceRecord) {
        let node = self.me();
        for v in 0..self.resources[ix].locals.len() {
            let local = &mut self.resources[ix].locals[v];
            if local.started.is_none() {
                continue;
            }
            let order = record.volumes.get(v).map(|r| r.upkeep.resync);
            if let Some(order) = order.filter(|o| *o != local.resync_sent.unwrap_or_default()) {
                local.resync_sent = Some(order);
                self.tell_one(ix, v, FromControl::Resync(order));
            }
            let local = &mut self.resources[ix].locals[v];
            if local.view_sent == Some(record.generation) {
                continue;
            }
            local.view_sent = Some(record.generation);
            // After a start the record is as old as the last snapshot, perhaps from before the volume grew, and a replica
            // gives up what lies past the size it is told. A record that names this very run is as new as what the
            // replica went by before.
            let started = local.started;
            let known = record
                .replica(VolumeIx(v as u16), node)
                .is_some_and(|r| started.is_some_and(|s| s.is(r)));
            let size = record.volumes.get(v).map(|r| r.size());
            let local = &mut self.resources[ix].locals[v];
            if let Some(size) = size.filter(|s| known && local.size_sent != Some(*s)) {
                local.size_sent = Some(size);
                self.tell_one(ix, v, FromControl::Size(size));
            }
            if let Some(view) = record.view(VolumeIx(v as u16)) {
                self.tell_one(ix, v, FromControl::View(view));
            }
        }
    }

    /// The record knows the run of every replica here.
    pub(super) fn drive_seen(&mut self, now: Now, ix: usize, record: &ResourceRecord) {
        let node = self.me();
        for v in 0..self.resources[ix].locals.len() {
            let volume = VolumeIx(v as u16);
            let local = &self.resources[ix].locals[v];
            let (Some(started), Some(replica)) = (local.started, record.replica(volume, node))
            else {
                continue;
            };
            let life = (replica.incarnation, replica.run);
            let member = record.volumes[v].in_sync.has(node);
            let equal = member && local.failed.is_none() && !replica.unclean && !replica.suspect;
            let other = self
                .distrusted
                .get(&(ResourceIx(ix as u16), volume))
                .is_some_and(|(disk, _)| *disk != started.incarnation);
            if other || (equal && (started.incarnation, started.run) == life) {
                self.trust(ResourceIx(ix as u16), volume, None);
            }
            let local = &self.resources[ix].locals[v];
            if started.is(replica) {
                if local.failed.is_some_and(DiskTrouble::loses)
                    && !replica.unclean
                    && now >= local.seen_at
                {
                    let at = now.plus_ms(self.config.timing.heartbeat_ms);
                    self.resources[ix].locals[v].seen_at = at;
                    let resource = ResourceIx(ix as u16);
                    self.propose(
                        now,
                        Command::ReplicaFailed {
                            resource,
                            volume,
                            node,
                            life,
                        },
                    );
                    self.wake(at);
                }
                let local = &self.resources[ix].locals[v];
                // Recording this run has moved the generation past any proposal of the former life,
                // so a promise that it made and nobody won is definitely dead (rule 1).
                let recall = !local.recalled && started.promised > record.epoch;
                self.resources[ix].locals[v].recalled = true;
                if recall {
                    // It goes back to the epoch of the record, so it must know that first.
                    self.drive_views(ix, record);
                    self.tell_one(
                        ix,
                        v,
                        FromControl::Withdraw {
                            epoch: started.promised,
                        },
                    );
                }
                continue;
            }
            if now >= local.seen_at {
                let at = now.plus_ms(self.config.timing.heartbeat_ms);
                self.resources[ix].locals[v].seen_at = at;
                self.propose(
                    now,
                    Command::ReplicaSeen {
                        resource: ResourceIx(ix as u16),
                        volume,
                        node,
                        expect: (replica.incarnation, replica.run),
                        incarnation: started.incarnation,
                        run: started.run,
                        nonce: started.nonce,
                        unclean: started.unclean,
                        outdated: started.disk == DiskState::Outdated,
                    },
                );
            }
            let at = self.resources[ix].locals[v].seen_at;
            self.wake(at);
        }
    }

    /// The record knows what room there is here.
    pub(super) fn drive_room(&mut self, now: Now, ix: usize, record: &ResourceRecord) {
        let node = self.me();
        for (v, of) in record.volumes.iter().enumerate() {
            let Some(local) = self.resources[ix].locals.get_mut(v) else {
                return;
            };
            let (Some(started), Some(((size_bytes, shrunk), room_bytes)), Some(replica)) =
                (local.started, local.room, of.replicas.get(&node))
            else {
                continue;
            };
            let size = of.size();
            let news = (size_bytes, shrunk) == (size.size_bytes, size.shrunk)
                && room_bytes > replica.room_bytes
                && started.incarnation == replica.incarnation;
            if !news {
                continue;
            }
            local.no_room = None;
            if now >= local.room_at {
                let at = now.plus_ms(self.config.timing.heartbeat_ms);
                local.room_at = at;
                self.propose(
                    now,
                    Command::ReplicaRoom {
                        resource: ResourceIx(ix as u16),
                        volume: VolumeIx(v as u16),
                        node,
                        incarnation: started.incarnation,
                        size_bytes,
                        shrunk,
                        room_bytes,
                    },
                );
            }
            let at = self.resources[ix].locals[v].room_at;
            self.wake(at);
        }
    }

    /// The daemon stops: when nothing is served any more, the replicas stop.
    pub(super) fn drive_shutdown(&mut self, ix: usize) {
        let r = &self.resources[ix];
        if !self.shutting_down || r.phase != Phase::Secondary || r.handed.is_some() {
            return;
        }
        for v in 0..self.resources[ix].locals.len() {
            let local = &mut self.resources[ix].locals[v];
            if local.started.is_some() && !local.stop_sent {
                local.stop_sent = true;
                self.tell_one(ix, v, FromControl::Stop);
            }
        }
    }
}
