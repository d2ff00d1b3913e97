//! What the checkers see: every frame, disk operation and word of a replica, as it passes between the state machine and the world.
//!
//! Only here do checkers and marks meet the interpreters. Nothing here acts on the world but to fail the run.

use crate::check::bounds::Bounds;
use crate::check::dirty::Replica;
use crate::check::durability::Member;
use crate::check::observability::Truth;
use crate::check::order::{self, Stored};
use crate::check::{convergence, direction, landing};
use crate::mutation::Mutation;
use crate::scenario::S;
use crate::world::World;
use holdfast_control as control;
use holdfast_meta::LOG_TRANSACTIONS;
use holdfast_replicator as rep;
use holdfast_types::{DiskState, NodeId, NodeSet};
use holdfast_wire::{Frame, Refusal};

/// A resync that moved within this time is under way.
const UNDER_WAY_NS: u64 = 2 * S;

impl World {
    /// What the stable storage of a node's disk says, read anew when it changed.
    pub(crate) fn refresh_stored(&mut self, n: usize) -> bool {
        let Some(disk) = &self.nodes[n].disk else {
            return false;
        };
        let checks = &mut self.checks.nodes[n];
        if checks.stored_version == Some(disk.meta_version()) && checks.stored.is_some() {
            return true;
        }
        checks.stored_version = Some(disk.meta_version());
        let read = Stored::read(&self.layout, disk.stable());
        let result = match read {
            Ok(stored) => {
                let result = checks.direction.stored(&stored);
                let news = checks
                    .stored
                    .as_ref()
                    .is_none_or(|old| old.log_number != stored.log_number);
                checks.stored = Some(stored);
                if news {
                    result.and_then(|()| self.log_landed(n))
                } else {
                    result
                }
            }
            Err(e) => Err(format!(
                "order: the metadata of node {n} cannot be read: {e}"
            )),
        };
        self.must(result);
        self.outcome.is_none()
    }

    fn log_landed(&mut self, n: usize) -> Result<(), String> {
        let checks = &self.checks.nodes[n];
        let Some(stored) = &checks.stored else {
            return Ok(());
        };
        if stored.log_number > u64::from(LOG_TRANSACTIONS) {
            self.trace.mark("log wrap");
        }
        checks
            .bounds
            .log_landed(stored, self.scenario.log_slots[n])?;
        checks.order.log_landed(stored)
    }

    /// A replica sends a frame.
    pub(crate) fn sees_send(&mut self, n: usize, peer: NodeId, frame: &Frame) {
        self.mark_send(n, peer, frame);
        if !self.refresh_stored(n) {
            return;
        }
        let g = self.layout.geometry;
        let checks = &mut self.checks.nodes[n];
        checks.seen.sends(peer, frame);
        let mut result = checks.bounds.sends(peer, frame);
        if let (Some(disk), Some(stored)) = (&self.nodes[n].disk, &checks.stored)
            && !self.nodes[n].bad_disk
            && !self.nodes[n].lying()
        {
            let disk = order::Disk {
                cached: disk.cached(),
                stable: disk.stable(),
                oldest_unstable: disk.oldest_unstable(),
                stored,
            };
            result =
                result.and_then(|()| checks.order.sends(frame, &g, disk, &self.checks.history));
        }
        if let Frame::Resync {
            stamp, range, data, ..
        } = frame
        {
            let me = self.nodes[n].id;
            let committed = self.checks.promotion.committed();
            let leads = committed.is_some_and(|v| v.epoch == stamp.epoch && v.primary == Some(me));
            if leads {
                let history = &self.checks.history;
                result = result
                    .and_then(|()| direction::sends(history, &g, me, peer, *range, data.as_ref()));
            }
        }
        self.must(result);
    }

    fn mark_send(&mut self, n: usize, peer: NodeId, frame: &Frame) {
        let all = self.scenario.data_nodes;
        match frame {
            Frame::Refuse {
                why: Refusal::Promised(_),
            } => self.trace.mark("promise refused a frame"),
            Frame::Close { set, .. } if set.len() < u32::from(all) => {
                self.trace.mark("close with a smaller set");
            }
            Frame::Cut { bitmaps, .. } if bitmaps.iter().any(|(_, ranges)| !ranges.is_empty()) => {
                self.trace.mark("bitmap hand-over");
            }
            Frame::Grown { .. } => self.trace.mark("grown told to a third node"),
            Frame::Attached { .. } => self.checks.nodes[n].attached_at = Some(self.now),
            Frame::NeedClose { .. } => self.trace.mark("slot starvation"),
            Frame::Resync { data: None, .. } => self.trace.mark("resync of zeroes"),
            Frame::Write { stamp, seq, .. } | Frame::Zero { stamp, seq, .. } => {
                let now = (stamp.epoch.0, seq.0);
                let last = self.checks.nodes[n].last_sent.entry(peer).or_default();
                let again = *last >= now;
                *last = now.max(*last);
                if again {
                    self.trace.mark("reconnect resend");
                }
            }
            _ => {}
        }
    }

    /// A frame reaches a replica.
    pub(crate) fn sees_frame(&mut self, n: usize, peer: NodeId, frame: &Frame) {
        let done = self.nodes[n].disk.as_ref().map_or(0, |d| d.done_writes());
        let process = self.nodes[n].process.as_ref();
        let replica = process.and_then(|p| p.replica.as_ref());
        let placed = match (frame, replica) {
            (Frame::Cut { .. }, Some(r)) => r.status().peers.iter().map(|p| p.node).collect(),
            _ => NodeSet::EMPTY,
        };
        let checks = &mut self.checks.nodes[n];
        checks.order.received(frame, done, placed);
        checks.bounds.received(peer, frame);
        if let Frame::Resync { .. } = frame {
            checks.resync_at = Some(self.now);
        }
    }

    /// A replica learns that a connection is gone.
    pub(crate) fn sees_peer_down(&mut self, n: usize, peer: NodeId) {
        if self.checks.nodes[n].bounds.peer_down(peer) {
            self.trace.mark("resync interrupted");
        }
    }

    /// A replica gives its disk an operation.
    pub(crate) fn sees_submit(&mut self, n: usize, io: rep::IoId, op: &rep::DiskOp) {
        if !self.refresh_stored(n) {
            return;
        }
        let layout = &self.layout;
        let checks = &mut self.checks.nodes[n];
        let Some(stored) = &checks.stored else {
            return;
        };
        if let rep::DiskOp::Write { offset, .. } = op {
            let (log, len) = layout.log_region();
            checks.seen.log_writes += u64::from((log..log + len).contains(offset));
        }
        let result = checks.bounds.submits(layout, io, op);
        let result = result.and_then(|()| checks.order.submits(&layout.geometry, io, op, stored));
        self.must(result);
    }

    /// A disk operation is about to end.
    pub(crate) fn sees_landing(&mut self, n: usize, key: u64) -> Option<(u64, Vec<u8>)> {
        let disk = self.nodes[n].disk.as_ref()?;
        let landing = disk.lands(self.now, key)?;
        if landing.life != self.nodes[n].life {
            self.trace.mark(if landing.partly {
                "late write landed in part"
            } else {
                "write landed after its daemon died"
            });
        }
        if landing.offset >= self.layout.geometry.bytes() || self.nodes[n].bad_disk {
            return None;
        }
        let member = self.checks.promotion.in_sync().has(self.nodes[n].id);
        let resync =
            landing.life == self.nodes[n].life && self.checks.nodes[n].order.is_resync(landing.io);
        if (!member || self.nodes[n].strange_disk) && !resync {
            return None;
        }
        let at = landing.offset as usize;
        Some((landing.offset, disk.cached()[at..at + landing.len].to_vec()))
    }

    /// It has ended; `held` is what lay there before.
    pub(crate) fn sees_landed(&mut self, n: usize, held: Option<(u64, Vec<u8>)>) {
        let (Some((offset, held)), Some(disk)) = (held, &self.nodes[n].disk) else {
            return;
        };
        let at = offset as usize;
        let lies = &disk.cached()[at..at + held.len()];
        let result = landing::landed(&self.checks.history, offset, lies, &held);
        self.must(result.map_err(|e| format!("{e} (on node {n})")));
    }

    /// A replica tells its control plane something.
    pub(crate) fn sees_word(&mut self, n: usize, msg: &rep::ToControl) {
        if let rep::ToControl::ProposeSet { why, .. } = msg {
            self.checks.nodes[n].proposing = Some(*why);
        }
        if !self.refresh_stored(n) {
            return;
        }
        let failed = self.nodes[n].bad_disk;
        let checks = &mut self.checks.nodes[n];
        if let Some(stored) = &checks.stored {
            let result = checks.order.says(msg, stored, failed);
            self.must(result);
        }
    }

    /// A node's daemon is about to end; `power` if with its machine.
    pub(crate) fn sees_end(&mut self, n: usize) {
        let checks = &mut self.checks.nodes[n];
        match checks.proposing.take() {
            Some(rep::SetChange::Synced) => self.trace.mark("crash during grow"),
            Some(_) => self.trace.mark("crash during shrink"),
            None => {}
        }
        let syncing = checks
            .stored
            .as_ref()
            .is_some_and(|s| s.superblock.disk == DiskState::Syncing);
        let moved = checks
            .resync_at
            .is_some_and(|at| at + UNDER_WAY_NS > self.now);
        if syncing && moved {
            self.trace.mark("crash of a syncing replica");
        }
        checks.order.gone();
        checks.bounds.gone();
        checks.seen.gone();
        checks.last_sent.clear();
        checks.resync_at = None;
        checks.attached_at = None;
        self.checks.services.gone(n);
    }

    /// A new primary is committed.
    pub(crate) fn mark_promotion(&mut self, view: &rep::View) {
        let under_way = (0..self.nodes.len()).any(|m| {
            let recent = self.checks.nodes[m]
                .resync_at
                .is_some_and(|at| at + UNDER_WAY_NS > self.now);
            recent && !view.in_sync.has(NodeId(m as u8))
        });
        if under_way {
            self.trace.mark("failover during resync");
        }
    }

    /// The committed record changed.
    pub(crate) fn mark_record(&mut self, view: &rep::View) {
        self.checks.sets.insert(view.in_sync);
        if view.in_sync.len() == 1 && view.data_nodes.len() > 2 {
            self.trace.mark("all absent peers at once");
        }
    }

    /// Reconciliation has ended.
    pub(crate) fn mark_reconciled(&mut self) {
        if self.checks.promotion.in_sync().len() == 2 && self.scenario.data_nodes > 2 {
            self.trace.mark("reconcile with two survivors");
        }
    }

    /// What a control plane tells its replica.
    pub(crate) fn sees_order(&mut self, n: usize, msg: &control::FromControl) {
        if let control::FromControl::View(_) | control::FromControl::StepDown = msg {
            self.checks.nodes[n].proposing = None;
        }
    }

    /// The members whose disks the faults have not harmed since `begun`.
    pub(crate) fn sound_members(&self, begun: Option<u64>) -> impl Iterator<Item = Member<'_>> {
        let members = self.checks.promotion.in_sync();
        let sound = move |m: &&crate::node::SimNode| match begun {
            _ if m.lying() => false,
            Some(begun) => m.lost_at < begun,
            None => !m.strange_disk,
        };
        let held = self
            .nodes
            .iter()
            .filter(move |m| members.has(m.id))
            .filter(sound);
        held.filter_map(|m| {
            let disk = m.disk.as_ref()?;
            Some(Member {
                node: m.id,
                cached: disk.cached(),
                stable: disk.stable(),
            })
        })
    }

    /// Is what the replicas say of themselves true?
    pub(crate) fn check_status(&mut self) {
        for n in 0..self.nodes.len() {
            if self.nodes[n].paused || self.nodes[n].bad_disk || !self.refresh_stored(n) {
                continue;
            }
            let node = &self.nodes[n];
            let Some(replica) = node.process.as_ref().and_then(|p| p.replica.as_ref()) else {
                continue;
            };
            let mut status = replica.status();
            if self.mutation == Some(Mutation::StatusLies) {
                status
                    .peers
                    .iter_mut()
                    .for_each(|p| p.out_of_sync_bytes = 0);
            }
            let checks = &self.checks.nodes[n];
            let Some(stored) = &checks.stored else {
                continue;
            };
            let connected = self
                .links
                .iter()
                .filter(|l| l.ends.contains(&node.id))
                .map(|l| {
                    let end = l.end_of(node.id);
                    (l.ends[1 - end], l.up[end].is_some())
                });
            let truth = Truth {
                node: node.id,
                stored,
                open: node.open_epoch,
                size: self.layout.geometry.bytes(),
                connected: connected.collect(),
                sets: &self.checks.sets,
                lacking: self.lacking(n, &status),
            };
            let result = checks
                .seen
                .check(&status, &truth)
                .and_then(|()| Bounds::status(&status));
            self.must(result);
        }
    }

    /// Bytes that attached peers outside of the set lack, but for extents that are being written.
    fn lacking(&self, n: usize, status: &rep::Status) -> Vec<(NodeId, u64)> {
        let (Some(own), Some(stored)) = (&self.nodes[n].disk, &self.checks.nodes[n].stored) else {
            return Vec::new();
        };
        let g = self.layout.geometry;
        let outside = status
            .peers
            .iter()
            .filter(|p| status.open && p.attached && !status.in_sync.has(p.node));
        let known = outside.filter_map(|p| {
            let peer = &self.nodes[usize::from(p.node.0)];
            let log = &self.checks.nodes[usize::from(p.node.0)]
                .stored
                .as_ref()?
                .active;
            // A session of another life of it, of whose end the primary cannot know yet.
            let taken = self.checks.nodes[usize::from(p.node.0)].attached_at?;
            if peer.attached_at < taken {
                return None;
            }
            // The record tells before it counts.
            if peer.strange_disk && peer.beyond_telling {
                return None;
            }
            let disk = peer.disk.as_ref().filter(|_| !peer.bad_disk && peer.up())?;
            let quiet = |block: &u64| {
                let extent = g.extent_of(*block);
                !stored.active.contains(&extent) && !log.contains(&extent)
            };
            let blocks = convergence::differing(own.cached(), disk.cached(), &g)
                .filter(quiet)
                .count();
            Some((p.node, blocks as u64 * u64::from(g.block_bytes)))
        });
        known.collect()
    }

    /// A replica's images and metadata, for the comparison of all.
    pub(crate) fn replica_of(&self, n: usize) -> Option<Result<Replica<'_>, String>> {
        let node = &self.nodes[n];
        let disk = node.disk.as_ref()?;
        if node.bad_disk || node.strange_disk || node.lying() {
            return None;
        }
        let meta = crate::check::dirty::decode(disk.stable());
        Some(
            meta.map(|meta| Replica {
                node: node.id,
                cached: disk.cached(),
                stable: disk.stable(),
                meta,
            })
            .map_err(|e| format!("G4: the metadata of {} cannot be read: {e}", node.id)),
        )
    }
}
