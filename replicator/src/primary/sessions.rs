//! The primary's side of its sessions with the replicas.

use super::pace::Meter;
use super::{Phase, Primary};
use crate::config::{LAG_BYTES_MAX, LAG_MAX};
use crate::ctx::Ctx;
use crate::replica::is_split;
use crate::room::served_part;
use crate::rules::Rule;
use crate::{Note, Now, SetChange};
use holdfast_types::{
    BlockRange, DiskState, Incarnation, Level, NodeId, NodeSet, Run, Seen, Seq, SessionId, Strange,
};
use holdfast_wire::{Attach, Frame, Hello, Refusal, Stamp};
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
    pub(super) at: Now,
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
    /// Its disk is not the one that was seen: compare all.
    pub(super) strange: Option<Strange>,
    /// Number of its last durable activity-log transaction.
    pub(super) log: u64,
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
        if self.sessions.contains_key(&peer) || (ctx.disk_failed() && self.phase != Phase::Open) {
            return;
        }
        if self
            .proposal
            .is_some_and(|p| p.in_sync.has(peer) != self.in_sync.has(peer))
        {
            return; // a member or not: not known now (rule 28)
        }
        let member = self.in_sync.has(peer);
        // Where the log is now it says in its answer: this hello may be as old as the connection.
        let strange = self.strange(ctx, peer, &hello, u64::MAX);
        if member {
            let other_line = is_split(ctx.superblock.lineage, hello.lineage);
            let why = (strange.is_some() || other_line).then_some(SetChange::Strange);
            if let Some(why) = why.or_else(|| self.unfit(ctx, peer, &hello)) {
                self.propose_removal(ctx, peer, why);
                return;
            }
        } else if self.phase != Phase::Open
            || hello.geometry.blocks < ctx.served()
            || matches!(hello.disk, DiskState::Diskless | DiskState::Failed)
            || link.trouble.is_some()
            || !self.may_rejoin(ctx, peer)
        {
            return;
        }
        let stamp = self.new_stamp();
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
            log: 0,
        };
        self.sessions.insert(peer, session);
        ctx.send(
            peer,
            Frame::Attach(Attach {
                stamp,
                generation: self.generation,
                member,
                lineage: ctx.superblock.lineage,
                level: Level::C,
            }),
        );
    }

    /// A peer introduced itself anew: perhaps it knows of replicas now that it did not know when they became members.
    pub(crate) fn greeted(&mut self, ctx: &mut Ctx, peer: NodeId) {
        if self.in_sync.has(peer) {
            self.confirm_members(ctx, peer);
        }
    }

    /// Is this another disk than the one this node knew, or one that went back in time (rule 31)? Then bits for it mean
    /// nothing.
    fn strange(&self, ctx: &Ctx, peer: NodeId, hello: &Hello, log: u64) -> Option<Strange> {
        if ctx.off(Rule::SeenDisks) {
            return None;
        }
        let known = self.known.get(&peer).or_else(|| ctx.seen.get(&peer));
        let by_record = self.suspect.has(peer) && !self.distrusted.contains_key(&peer);
        known
            .and_then(|k| k.contradicts(hello.incarnation, hello.run, &hello.found, log))
            .or(by_record.then_some(Strange::Recorded))
    }

    /// All of a peer's copy is compared; what was known of its disk stays stored until it is a member again, so that a
    /// successor of this primary recognises it too.
    fn distrust(&mut self, ctx: &mut Ctx, peer: NodeId, why: Strange) {
        ctx.bits.suspect_all(peer);
        self.distrusted.insert(peer, why);
        ctx.note(Note::Distrusted { peer, why });
    }

    /// The committed record says which disks are not the ones that were recorded.
    pub(super) fn apply_suspect(&mut self, ctx: &mut Ctx) {
        for peer in self.suspect.iter() {
            self.propose_removal(ctx, peer, SetChange::Strange);
        }
    }

    /// The same for those that are being resynced: before any of them is proposed as a member.
    pub(super) fn distrust_suspects(&mut self, ctx: &mut Ctx) {
        for peer in self.suspect.minus(self.in_sync).iter() {
            if self.attached_session(peer).is_some() && !self.distrusted.contains_key(&peer) {
                self.distrust(ctx, peer, Strange::Recorded);
            }
        }
    }

    /// A replica took the session: this is its disk from now on.
    fn take_disk(&mut self, ctx: &mut Ctx, peer: NodeId) {
        let session = &self.sessions[&peer];
        let said = Seen {
            incarnation: session.life.0,
            run: session.life.1,
            log: session.log,
        };
        self.known.insert(peer, said);
        if !self.distrusted.contains_key(&peer) {
            ctx.saw(peer, said);
        }
    }

    /// An answer carries the number of the replica's log. The lanes may pass each other, so a lower one is only older.
    fn heard_log(&mut self, ctx: &mut Ctx, peer: NodeId, log: u64) {
        let Some(session) = self.sessions.get_mut(&peer) else {
            return;
        };
        if log <= session.log {
            return;
        }
        session.log = log;
        if session.attached {
            self.take_disk(ctx, peer);
        }
    }

    /// Tells the others what was heard of all disks, if that is news to them.
    pub(crate) fn share_seen(&mut self, ctx: &mut Ctx) {
        let mut seen: Vec<(NodeId, Seen)> = ctx.seen.iter().map(|(&n, &s)| (n, s)).collect();
        seen.push((ctx.me(), ctx.own_seen()));
        if seen == self.shared {
            return;
        }
        let peers: Vec<NodeId> = self.sessions.keys().copied().collect();
        self.shared = seen;
        for peer in peers {
            self.tell_seen(ctx, peer);
        }
    }

    fn tell_seen(&self, ctx: &mut Ctx, peer: NodeId) {
        if let Some(session) = self.attached_session(peer) {
            ctx.send(
                peer,
                Frame::Seen {
                    stamp: session.stamp,
                    seen: self.shared.clone(),
                },
            );
        }
    }

    /// The operator keeps this line of history: a peer of another one is asked to save what differs and to give it up.
    pub(super) fn ask_discard(&mut self, ctx: &mut Ctx, peer: NodeId) {
        let hello = ctx.links.get(&peer).and_then(|l| l.hello.as_ref());
        let ours = ctx.superblock.lineage;
        let why = match hello.map(|h| h.lineage) {
            _ if self.phase != Phase::Open => "this primary is not open yet",
            None => "it is not connected",
            Some(theirs) if !is_split(ours, theirs) => "it has no other line of history",
            Some(lost) => {
                let stamp = self.new_stamp();
                self.discarding.insert(peer, stamp);
                let ranges = ctx.bits.dirty(peer).to_ranges();
                ctx.send(
                    peer,
                    Frame::Discard {
                        stamp,
                        keep: ours,
                        lost,
                        ranges,
                    },
                );
                return;
            }
        };
        no_discard(ctx, peer, why);
    }

    fn new_stamp(&mut self) -> Stamp {
        let session = SessionId(self.next_session);
        self.next_session += 1;
        Stamp {
            epoch: self.epoch,
            session,
        }
    }

    /// Why a member cannot go on as one, if it cannot.
    fn unfit(&self, ctx: &Ctx, peer: NodeId, hello: &Hello) -> Option<SetChange> {
        match hello.disk {
            DiskState::Diskless | DiskState::Failed => return Some(SetChange::DiskFailed),
            // A member says UpToDate, or Syncing if it has not heard yet that it is one. Outdated: a new or removed disk.
            DiskState::Outdated => return Some(SetChange::Restarted),
            DiskState::Syncing | DiskState::UpToDate => {}
        }
        if ctx.off(Rule::RunsCount) {
            return None;
        }
        if self.doubtful.has(peer) {
            return Some(SetChange::Restarted);
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
        if self.discarding.remove(&peer).is_some() {
            no_discard(ctx, peer, "the connection broke; ask again");
        }
        let Some(session) = self.sessions.remove(&peer) else {
            return;
        };
        if session.attached {
            ctx.note(Note::Detached { peer });
        }
        if self.in_sync.has(peer) {
            // One that fell silent is not waited for a second time.
            let heard = ctx.links[&peer].heard;
            let silent = ctx.now.ms_since(heard) >= ctx.cfg.timing.silence_ms;
            let since = if silent { heard } else { ctx.now };
            self.lost_since.entry(peer).or_insert(since);
            if self.phase == Phase::Collecting {
                self.heard = self.heard.without(peer);
            }
        }
        self.drop_jobs(ctx, peer);
        self.fetch_elsewhere(ctx, peer);
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
        match frame {
            Frame::Discarded { stamp, done, text } => {
                if self.discarding.get(&peer) == Some(&stamp) {
                    self.discarding.remove(&peer);
                    ctx.note(Note::Discarded { peer, done, text });
                }
                return;
            }
            Frame::Discard { stamp, .. } => {
                crate::discard::refuse(
                    ctx,
                    peer,
                    stamp,
                    "it is primary itself; stop it there first",
                );
                return;
            }
            _ => {}
        }
        let Some(session) = self.sessions.get_mut(&peer) else {
            return;
        };
        let stamp = session.stamp;
        let attached = session.attached;
        match frame {
            Frame::Attached {
                stamp: s,
                report,
                log,
            } if s == stamp && !attached => {
                session.log = log;
                self.attached(ctx, peer, &report);
            }
            Frame::Ack { stamp: s, seq, log } if s == stamp && attached => {
                self.heard_log(ctx, peer, log);
                self.answered(ctx, peer, seq);
            }
            Frame::Flushed {
                stamp: s,
                token,
                log,
            } if s == stamp && attached => {
                self.heard_log(ctx, peer, log);
                self.peer_flushed(ctx, peer, token);
            }
            Frame::CutDone {
                stamp: s,
                token,
                log,
            } if s == stamp && attached => {
                self.heard_log(ctx, peer, log);
                self.cut_done(ctx, peer, token);
            }
            Frame::NeedClose { stamp: s } if s == stamp => self.send_closes(ctx),
            Frame::Resynced {
                stamp: s,
                token,
                log,
            } if s == stamp && attached => {
                self.heard_log(ctx, peer, log);
                self.resynced(ctx, peer, token);
            }
            Frame::Hashes {
                stamp: s,
                token,
                hashes,
            } if s == stamp && attached => self.hashes(ctx, peer, token, hashes),
            Frame::ReadDone {
                stamp: s,
                token,
                data,
                ..
            } if s == stamp && attached => self.read_done(ctx, peer, token, data),
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
            Refusal::Promised(_) | Refusal::Gap | Refusal::Lineage(_) => {}
        }
        ctx.disconnect(peer);
    }

    /// A replica took the session.
    fn attached(&mut self, ctx: &mut Ctx, peer: NodeId, report: &[BlockRange]) {
        let member = self.in_sync.has(peer);
        let session = &self.sessions[&peer];
        let life = session.life;
        let hello = ctx.links[&peer].hello.as_ref();
        let strange = session
            .strange
            .or_else(|| self.strange(ctx, peer, hello?, session.log));
        if member && strange.is_some() {
            // Its disk went back: no answer of it counts until it was compared (rule 31).
            self.propose_removal(ctx, peer, SetChange::Strange);
            return;
        }
        if let Some(session) = self.sessions.get_mut(&peer) {
            session.attached = true;
        }
        // What lies past the volume's end is nobody's.
        let report: Vec<BlockRange> = report
            .iter()
            .filter(|r| BlockRange::checked(r.first, r.count, u64::MAX).is_some())
            .filter_map(|&r| served_part(ctx, r))
            .collect();
        if self.phase != Phase::Open {
            if !member {
                return; // removed meanwhile: the session is being closed
            }
            // In doubt on one member: different perhaps from any other data node (rules 3, 16).
            for range in report {
                let whom = if ctx.off(Rule::PromotionBits) {
                    self.members(ctx)
                } else {
                    ctx.others()
                };
                ctx.bits.suspect(whom, range);
            }
            self.take_disk(ctx, peer);
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
            self.pump_fetches(ctx);
            self.go_on_diskless(ctx);
        } else {
            if ctx.off(Rule::BitsUntilAnswered) {
                ctx.bits.replace(peer, &[]);
            }
            for range in report {
                ctx.bits.suspect(NodeSet::only(peer), range);
            }
            if let Some(why) = strange {
                self.distrust(ctx, peer, why);
            }
            self.note_attached(ctx, peer, member);
        }
        self.take_disk(ctx, peer);
        self.share_seen(ctx);
        self.tell_seen(ctx, peer);
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
        // What was last seen of it is what it will be judged by (rule 31).
        self.share_seen(ctx);
        ctx.save_seen();
        if self.sessions.contains_key(&peer) {
            self.peer_down(ctx, peer);
            ctx.disconnect(peer);
        }
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
        self.oldest(peer, false)
    }

    /// The same of those that the local disk has answered: what this peer alone may be holding up.
    pub(super) fn oldest_late(&self, peer: NodeId) -> Option<Now> {
        self.oldest(peer, true)
    }

    fn oldest(&self, peer: NodeId, local: bool) -> Option<Now> {
        let write = self
            .writes
            .values()
            .find(|w| w.sent.has(peer) && !w.answered.has(peer) && (w.local || !local))
            .map(|w| w.issued);
        let flush = self
            .flush
            .as_ref()
            .filter(|f| f.waiting.has(peer) && (f.local || !local))
            .map(|f| f.started);
        let read = self.fetches.oldest(peer);
        [write, flush, read].into_iter().flatten().min()
    }
}

/// A peer's line of history was not given up.
pub(super) fn no_discard(ctx: &mut Ctx, peer: NodeId, why: &str) {
    ctx.note(Note::Discarded {
        peer,
        done: false,
        text: why.to_owned(),
    });
}
