//! The primary's side of its sessions with the replicas.

use super::pace::Meter;
use super::{Phase, Primary};
use crate::config::{LAG_BYTES_MAX, LAG_MAX};
use crate::ctx::Ctx;
use crate::rules::Rule;
use crate::{Note, Now, SetChange};
use holdfast_types::{BlockRange, DiskState, Incarnation, NodeId, NodeSet, Run, Seq, SessionId};
use holdfast_wire::{Attach, Frame, Refusal, Stamp};
use std::collections::BTreeMap;

/// A flush that precedes the cut, so that the cut's own one is short: what counts waits for that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stable {
    No,
    Asked { token: u64, at: Now },
    Yes,
}

/// A write on its way to a replica.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sent {
    pub(super) range: BlockRange,
    /// Bytes of data that are kept for it.
    pub(super) bytes: u64,
    /// Its answer clears the peer's bits: no newer write of a block of it was kept from the peer.
    pub(super) clears: bool,
}

/// One session.
#[derive(Clone, Debug)]
pub(super) struct Session {
    pub(super) stamp: Stamp,
    pub(super) attached: bool,
    pub(super) life: (Incarnation, Run),
    pub(super) log_slots: u32,
    /// Writes sent and not answered.
    pub(super) unanswered: BTreeMap<Seq, Sent>,
    /// Bytes of these.
    pub(super) unanswered_bytes: u64,
    /// Where the next resync job looks first.
    pub(super) cursor: u64,
    pub(super) sent_bytes: u64,
    pub(super) zero_blocks: u64,
    pub(super) equal_blocks: u64,
    /// Bytes made equal, over time.
    pub(super) meter: Meter,
    /// What was resynced is on its stable storage.
    pub(super) stable: Stable,
    /// Nothing is known of its blocks: compare all.
    pub(super) strange: bool,
}

impl Session {
    /// A write goes to the peer.
    pub(super) fn sent(&mut self, seq: Seq, sent: Sent) {
        self.unanswered_bytes += sent.bytes;
        if let Some(again) = self.unanswered.insert(seq, sent) {
            self.unanswered_bytes -= again.bytes;
        }
    }

    /// It answered.
    pub(super) fn answered(&mut self, seq: Seq) -> Option<Sent> {
        let sent = self.unanswered.remove(&seq)?;
        self.unanswered_bytes -= sent.bytes;
        Some(sent)
    }

    /// As much is on its way as may be to a peer that does not count.
    pub(super) fn lags(&self) -> bool {
        self.unanswered.len() >= LAG_MAX || self.unanswered_bytes >= LAG_BYTES_MAX
    }
}

impl Primary {
    /// A peer is connected and has said hello, or something changed: take it into a session if that is right now.
    pub(crate) fn consider(&mut self, ctx: &mut Ctx, peer: NodeId) {
        let link = &ctx.links[&peer];
        let Some(hello) = link.hello.clone().filter(|_| link.up) else {
            return;
        };
        if self.sessions.contains_key(&peer) || ctx.disk_failed {
            return;
        }
        if self
            .proposal
            .is_some_and(|p| p.in_sync.has(peer) != self.in_sync.has(peer))
        {
            return; // a member or not: not known now (rule 28)
        }
        let member = self.in_sync.has(peer);
        if member {
            if let Some(why) = self.unfit(ctx, peer, &hello) {
                self.propose_removal(ctx, peer, why);
                return;
            }
        } else if self.phase != Phase::Open
            || matches!(hello.disk, DiskState::Diskless | DiskState::Failed)
            || self.rejoin.get(&peer).is_some_and(|(_, at)| ctx.now < *at)
        {
            return;
        }
        let strange = self.strange(peer, &hello);
        let stamp = Stamp {
            epoch: self.epoch,
            session: SessionId(self.next_session),
        };
        self.next_session += 1;
        let session = Session {
            stamp,
            attached: false,
            life: (hello.incarnation, hello.run),
            log_slots: hello.log_slots,
            unanswered: BTreeMap::new(),
            unanswered_bytes: 0,
            cursor: 0,
            sent_bytes: 0,
            zero_blocks: 0,
            equal_blocks: 0,
            meter: Meter::default(),
            stable: Stable::No,
            strange,
        };
        self.sessions.insert(peer, session);
        ctx.send(
            peer,
            Frame::Attach(Attach {
                stamp,
                generation: self.generation,
                member,
            }),
        );
    }

    /// Is this another disk than the one this node knew, or one that went back in time (rule 31)? Then bits for it mean
    /// nothing.
    fn strange(&mut self, peer: NodeId, hello: &holdfast_wire::Hello) -> bool {
        let now = (hello.incarnation, hello.run, hello.log_number);
        let before = self.known.insert(peer, now);
        before.is_some_and(|(incarnation, run, log)| {
            incarnation != now.0 || now.1 < run || (now.1 > run && now.2 < log)
        })
    }

    /// Why a member cannot go on as one, if it cannot.
    fn unfit(&self, ctx: &Ctx, peer: NodeId, hello: &holdfast_wire::Hello) -> Option<SetChange> {
        match hello.disk {
            DiskState::Diskless | DiskState::Failed => return Some(SetChange::DiskFailed),
            // A member says UpToDate, or Syncing if it has not heard yet that it is one. Outdated: a new or removed disk.
            DiskState::Outdated => return Some(SetChange::Restarted),
            DiskState::Syncing | DiskState::UpToDate => {}
        }
        if ctx.off(Rule::RunsCount) {
            return None;
        }
        match self.member_runs.get(&peer) {
            Some(&life) if life != (hello.incarnation, hello.run) => Some(SetChange::Restarted),
            Some(_) => None,
            // First time in this epoch: fit to reconcile unless it lost its cache; then it is resynced from its log,
            // and counts as clean again when it is taken in (rules 8, 9).
            None if self.phase == Phase::Collecting && !hello.unclean => None,
            None => Some(SetChange::Restarted),
        }
    }

    pub(crate) fn peer_down(&mut self, ctx: &mut Ctx, peer: NodeId) {
        let Some(session) = self.sessions.remove(&peer) else {
            return;
        };
        if session.attached {
            ctx.note(Note::Detached { peer });
        }
        if self.in_sync.has(peer) {
            self.lost_since.entry(peer).or_insert(ctx.now);
            if self.phase == Phase::Collecting {
                self.heard = self.heard.without(peer);
            }
        }
        self.drop_jobs(ctx, peer);
        self.grow_lost(ctx, peer);
        if ctx.off(Rule::ShrinkFirst) {
            self.recheck(ctx);
        }
    }

    pub(crate) fn frame(&mut self, ctx: &mut Ctx, peer: NodeId, frame: Frame) {
        if let Frame::Refuse { why } = frame {
            self.refused(ctx, peer, why);
            return;
        }
        let Some(session) = self.sessions.get_mut(&peer) else {
            return;
        };
        let stamp = session.stamp;
        let attached = session.attached;
        match frame {
            Frame::Attached { stamp: s, report } if s == stamp && !attached => {
                session.attached = true;
                self.attached(ctx, peer, &report);
            }
            Frame::Ack { stamp: s, seq } if s == stamp && attached => self.answered(ctx, peer, seq),
            Frame::Flushed { stamp: s, token } if s == stamp && attached => {
                self.peer_flushed(ctx, peer, token)
            }
            Frame::CutDone { stamp: s, token } if s == stamp && attached => {
                self.cut_done(ctx, peer, token)
            }
            Frame::NeedClose { stamp: s } if s == stamp => self.send_closes(ctx),
            Frame::Resynced { stamp: s, token } if s == stamp && attached => {
                self.resynced(ctx, peer, token)
            }
            Frame::Hashes {
                stamp: s,
                token,
                hashes,
            } if s == stamp && attached => self.hashes(ctx, peer, token, hashes),
            Frame::Fetched {
                stamp: s,
                token,
                data,
                ..
            } if s == stamp && attached => self.fetched(ctx, peer, token, data),
            // Of an older session: void (rules 10, 21).
            _ => {}
        }
    }

    fn refused(&mut self, ctx: &mut Ctx, peer: NodeId, why: Refusal) {
        match why {
            Refusal::DiskFailed | Refusal::NoDisk => {
                if let Some(hello) = ctx.links.get_mut(&peer).and_then(|l| l.hello.as_mut()) {
                    hello.disk = DiskState::Failed;
                }
                self.propose_removal(ctx, peer, SetChange::DiskFailed);
            }
            // It may be a candidate's promise that comes to nothing; the control plane knows. Try again after a new connection.
            Refusal::Promised(_) | Refusal::Gap => {}
        }
        ctx.disconnect(peer);
    }

    /// A replica took the session.
    fn attached(&mut self, ctx: &mut Ctx, peer: NodeId, report: &[BlockRange]) {
        let member = self.in_sync.has(peer);
        let life = self.sessions[&peer].life;
        let blocks = ctx.layout.geometry.blocks;
        let report = report
            .iter()
            .filter(|r| BlockRange::checked(r.first, r.count, blocks).is_some());
        if self.phase != Phase::Open {
            if !member {
                return; // removed meanwhile: the session is being closed
            }
            // In doubt on one member: different perhaps from any other data node (rules 3, 16).
            for &range in report {
                let whom = if ctx.off(Rule::PromotionBits) {
                    self.members(ctx)
                } else {
                    ctx.others()
                };
                ctx.bits.suspect(whom, range);
            }
            self.heard = self.heard.with(peer);
            self.member_runs.insert(peer, life);
            self.lost_since.remove(&peer);
            self.note_attached(ctx, peer, member);
            self.try_open(ctx);
            return;
        }
        self.set_log_limit(ctx);
        if member {
            self.lost_since.remove(&peer);
            self.note_attached(ctx, peer, member);
            self.resend(ctx, peer);
            self.confirm_members(ctx, peer);
        } else {
            if ctx.off(Rule::BitsUntilAnswered) {
                ctx.bits.replace(peer, &[]);
            }
            for &range in report {
                ctx.bits.suspect(NodeSet::only(peer), range);
            }
            if self.sessions[&peer].strange {
                ctx.bits.suspect_all(peer);
            }
            self.note_attached(ctx, peer, member);
        }
        self.pump_jobs(ctx);
    }

    fn note_attached(&self, ctx: &mut Ctx, peer: NodeId, member: bool) {
        let dirty_blocks = ctx.bits.dirty(peer).count();
        ctx.note(Note::Attached {
            peer,
            member,
            dirty_blocks,
        });
    }

    /// A removal is committed: the session ends, every unsettled write becomes bits.
    pub(super) fn removed(&mut self, ctx: &mut Ctx, peer: NodeId) {
        self.mark_unsettled(ctx, peer);
        self.member_runs.remove(&peer);
        self.lost_since.remove(&peer);
        self.heard = self.heard.without(peer);
        self.delay_rejoin(ctx, peer);
        if self.sessions.contains_key(&peer) {
            self.peer_down(ctx, peer);
            ctx.disconnect(peer);
        }
    }

    /// It may be taken in again only after a while, longer each time (rule 39).
    pub(super) fn delay_rejoin(&mut self, ctx: &Ctx, peer: NodeId) {
        let (times, before) = self.rejoin.get(&peer).copied().unwrap_or_default();
        let timing = ctx.cfg.timing;
        let mut delay = (timing.rejoin_ms << times.min(16)).min(timing.rejoin_max_ms);
        if ctx.off(Rule::Damping) {
            delay = 0;
        }
        self.rejoin
            .insert(peer, (times + 1, before.max(ctx.now.plus_ms(delay))));
    }

    /// Whoever stops counting gets bits for every write that is not settled.
    pub(super) fn mark_unsettled(&mut self, ctx: &mut Ctx, peer: NodeId) {
        for write in self.writes.values() {
            ctx.bits.mark(NodeSet::only(peer), write.range);
        }
    }

    /// Extents in use here never need more slots than the smallest replica has (rule 30); half of them, so that
    /// resync, which passes the target's log too, finds room.
    pub(super) fn set_log_limit(&mut self, ctx: &mut Ctx) {
        let slots = self.slots_min(ctx);
        ctx.log.set_limit(if self.sessions.is_empty() {
            slots
        } else {
            slots / 2
        });
    }

    /// Activity-log slots of the replica that has the fewest.
    pub(super) fn slots_min(&self, ctx: &Ctx) -> u32 {
        let own = ctx.superblock.log_slots;
        self.sessions
            .values()
            .map(|s| s.log_slots)
            .fold(own, u32::min)
    }

    pub(super) fn attached_session(&self, peer: NodeId) -> Option<&Session> {
        self.sessions.get(&peer).filter(|s| s.attached)
    }

    /// When the oldest write or flush went to this peer unanswered.
    pub(super) fn oldest_unanswered(&self, peer: NodeId) -> Option<Now> {
        let write = self
            .writes
            .values()
            .find(|w| w.sent.has(peer) && !w.answered.has(peer))
            .map(|w| w.issued);
        let flush = self
            .flush
            .as_ref()
            .filter(|f| f.waiting.has(peer))
            .map(|f| f.started);
        [write, flush].into_iter().flatten().min()
    }
}
