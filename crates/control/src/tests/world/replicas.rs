//! Replicas that do at once what they are told, and look after their in-sync sets.

use super::*;

impl World {
    pub(super) fn replica(&mut self, h: usize, r: usize, v: usize, msg: FromControl) {
        let replica = &mut self.hosts[h].replicas[r][v];
        assert!(!replica.stopped, "a stopped replica is left alone: {msg:?}");
        match msg {
            FromControl::View(view) => replica.view = Some(view),
            FromControl::Promise { epoch } => {
                assert!(
                    epoch > replica.promised,
                    "{epoch} after {}",
                    replica.promised
                );
                replica.stood = Some(epoch);
                replica.promised = epoch;
                self.later_replica(h, r, v, ToControl::Promised { epoch }, 10);
            }
            FromControl::Withdraw { epoch } => {
                assert_eq!(replica.stood, Some(epoch));
                replica.stood = None;
                replica.promised = Epoch(epoch.0 - 1);
            }
            FromControl::Lead(view) => {
                assert_eq!(replica.stood, Some(view.epoch), "leads what it promised");
                assert_eq!(view.primary, Some(NodeId(h as u8)));
                replica.leads = Some(view.epoch);
                replica.stood = None;
                replica.view = Some(view);
                replica.held = false;
                self.later_replica(h, r, v, ToControl::Opened { epoch: view.epoch }, 30);
            }
            FromControl::Drain => {
                replica.held = true;
                if let Some(epoch) = replica.leads {
                    self.later_replica(h, r, v, ToControl::Drained { epoch }, 30);
                }
            }
            FromControl::Resume => replica.held = false,
            FromControl::StepDown => replica.leads = None,
            FromControl::Stop => {
                replica.stopped = true;
                self.later_replica(h, r, v, ToControl::Stopped, 10);
            }
            FromControl::Dismiss { peer } => {
                if let (Some(epoch), Some(view)) = (replica.leads, replica.view) {
                    let msg = ToControl::ProposeSet {
                        epoch,
                        generation: view.generation,
                        in_sync: view.in_sync.without(peer),
                        peer,
                        life: None,
                        why: SetChange::Dismissed,
                    };
                    self.later_replica(h, r, v, msg, 5);
                }
            }
            FromControl::Size(size) => {
                replica.sizes.push(size.size_bytes);
                if self.roomy.contains(&h) {
                    let msg = ToControl::Room {
                        size_bytes: size.size_bytes,
                        shrunk: size.shrunk,
                        room_bytes: size.room_bytes,
                        store_bytes: size.room_bytes,
                    };
                    self.later_replica(h, r, v, msg, 10);
                }
            }
            FromControl::Lease { .. }
            | FromControl::Invalidate { .. }
            | FromControl::Verify(_)
            | FromControl::Discard { .. }
            | FromControl::Resync(_)
            | FromControl::Detach => {}
        }
    }

    /// Fake primaries remove members that are away and take in others that are there.
    pub(super) fn replica_tick(&mut self) {
        for h in 0..self.hosts.len() {
            if self.hosts[h].node.is_none() || self.hosts[h].paused {
                continue;
            }
            for r in 0..self.hosts[h].replicas.len() {
                for v in 0..self.hosts[h].replicas[r].len() {
                    let replica = &self.hosts[h].replicas[r][v];
                    let (Some(epoch), Some(view)) = (replica.leads, replica.view) else {
                        continue;
                    };
                    if view.epoch != epoch || replica.held {
                        continue;
                    }
                    let me = NodeId(h as u8);
                    for peer in view.data_nodes.without(me).iter() {
                        let p = usize::from(peer.0);
                        let there = self.hosts[p].node.is_some()
                            && !self.hosts[p].paused
                            && self.reachable(h, p)
                            && self.hosts[p].replicas[r][v].promised <= epoch
                            && !self.hosts[p].replicas[r][v].stopped;
                        let now = self.now;
                        let lost = &mut self.hosts[h].replicas[r][v].lost_since;
                        let since = *lost.entry(peer).or_insert(now);
                        if there == view.in_sync.has(peer) {
                            lost.insert(peer, now);
                            continue;
                        }
                        if now - since < 300 * MS || (there && !self.grow) {
                            continue;
                        }
                        let (in_sync, why) = if there {
                            (view.in_sync.with(peer), SetChange::Synced)
                        } else {
                            (view.in_sync.without(peer), SetChange::Lost)
                        };
                        let generation = view.generation;
                        let other = &self.hosts[p].replicas[r][v];
                        let life =
                            there.then_some((Incarnation(other.incarnation), Run(other.run)));
                        let msg = ToControl::ProposeSet {
                            epoch,
                            generation,
                            in_sync,
                            peer,
                            life,
                            why,
                        };
                        self.later_replica(h, r, v, msg, 5);
                    }
                }
            }
        }
    }
}
