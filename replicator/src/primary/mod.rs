//! A primary: collects what may be in doubt, opens, serves, keeps its replicas in step.
//!
//! Invariants
//! - nothing is served before every member of the committed set has reported or was removed by
//!   commit (rule 2), and no block before it is equal on all members (G6, rule 33);
//! - a write is settled when the local disk and every counted replica have it; it is answered to the
//!   application only then, and only under a lease;
//! - whoever does not count when a write is issued gets dirty bits at once; whoever stops counting
//!   gets bits for every unsettled write (rules 5, 28);
//! - at most one change of the in-sync set is proposed at a time; until its outcome is known both the
//!   old members and the proposed one count (rules 5, 28);
//! - an answer is taken only in the session it is given in; it stays good as long as the replica runs on, and a
//!   replica that runs anew is removed first (rules 10, 21).

mod diskless;
mod fetch;
mod grow;
mod jobs;
mod pace;
mod patience;
mod requests;
mod sessions;
mod writes;

use crate::config::{DISMISSED_MS, Timing};
use crate::ctx::{After, Ctx, JobId, LogUser, PieceId, RoleIo, Wake};
use crate::locks::RangeLocks;
use crate::rules::Rule;
use crate::{FromControl, Now, ReqId, Request, RequestError, SetChange, ToControl, View};
use bytes::Bytes;
use diskless::Diskless;
use fetch::Fetches;
use holdfast_meta::Unsaved;
use holdfast_types::{
    BlockRange, DiskState, Epoch, Gen, Incarnation, NodeId, NodeSet, Run, Seen, Seq, Strange,
};
use holdfast_wire::Stamp;
use jobs::{Jobs, Verify};
use pace::Pace;
use requests::{Open, Piece};
use sessions::{Session, no_discard};
use std::collections::{BTreeMap, VecDeque};
use writes::{FlushRound, Write};

/// How far a promotion is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Waiting for the members' reports.
    Collecting,
    /// All have reported; the bits are being saved.
    Marking,
    /// Serving; blocks in doubt wait for their reconciliation.
    Open,
}

/// A change of the in-sync set whose outcome is not known.
#[derive(Clone, Copy, Debug)]
struct Proposal {
    generation: Gen,
    in_sync: NodeSet,
    peer: NodeId,
    why: SetChange,
    sent: Now,
}

/// Who owns a range lock.
#[derive(Clone, Copy, Debug)]
enum Owner {
    Piece(PieceId),
    Job(JobId),
}

/// How far a planned hand-over is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Drain {
    /// In-flight requests end.
    Finishing,
    /// Everything is closed; a flush round confirms that the members have the closes (rule 36).
    Confirming,
    Done,
}

/// What a primary remembers.
#[derive(Debug)]
pub(crate) struct Primary {
    epoch: Epoch,
    generation: Gen,
    in_sync: NodeSet,
    /// Members that the record says may lack what was acknowledged.
    doubtful: NodeSet,
    phase: Phase,
    since: Now,
    heard: NodeSet,
    /// The run each member had when it was taken in: an answer of another run does not count (rules 8, 10).
    member_runs: BTreeMap<NodeId, (Incarnation, Run)>,
    sessions: BTreeMap<NodeId, Session>,
    next_session: u64,
    /// Since when a member is without session.
    lost_since: BTreeMap<NodeId, Now>,
    /// How often a node was removed, and when it may be taken in again (rule 39).
    rejoin: BTreeMap<NodeId, patience::Rejoin>,
    /// Milliseconds of the application's time that each member has cost lately.
    spent: BTreeMap<NodeId, u64>,
    /// When each peer last gave a slow answer.
    slow_at: BTreeMap<NodeId, Now>,
    looked: Now,
    invalidate: NodeSet,
    /// What each peer's disk said when this primary took it in; before that, what is stored counts (rule 31).
    known: BTreeMap<NodeId, Seen>,
    /// Peers whose disk is not trusted by the committed record.
    suspect: NodeSet,
    /// Peers that are being compared whole because their disk was strange, and are no members yet.
    distrusted: BTreeMap<NodeId, Strange>,
    /// Peers that were asked to give up their line of history.
    discarding: BTreeMap<NodeId, Stamp>,
    /// What the others were last told of all disks.
    shared: Vec<(NodeId, Seen)>,
    proposal: Option<Proposal>,
    growing: Option<grow::Growing>,

    requests: BTreeMap<ReqId, Open>,
    backlog: VecDeque<(ReqId, Request)>,
    pieces: BTreeMap<PieceId, Piece>,
    awaiting: VecDeque<PieceId>,
    next_piece: u64,
    locks: RangeLocks<Owner>,
    lease: Now,
    answers_held: VecDeque<(ReqId, Result<Bytes, RequestError>)>,
    drain: Option<Drain>,

    writes: BTreeMap<Seq, Write>,
    next_seq: Seq,
    settled: BTreeMap<Seq, NodeSet>,
    closed: Seq,
    closes: Vec<(Seq, NodeSet)>,
    unsent_closes: u32,
    close_due: Option<Now>,
    flush: Option<FlushRound>,
    flush_next: Vec<ReqId>,
    next_token: u64,

    fetches: Fetches,
    diskless: Diskless,
    jobs: Jobs,
    pace: Pace,
    /// Blocks that peers have got and the members were not told of yet.
    synced: BTreeMap<NodeId, Vec<BlockRange>>,
    verify: Option<Verify>,
    doubted: u64,
    reconciled_noted: bool,

    pub(crate) written_bytes: u64,
    pub(crate) read_bytes: u64,
}

impl Primary {
    /// The control plane made this node primary of the epoch it promised.
    pub(crate) fn lead(ctx: &mut Ctx, view: View) -> Self {
        assert_eq!(view.epoch, ctx.superblock.promised);
        assert_eq!(view.primary, Some(ctx.me()));
        assert!(
            ctx.writes_in_flight == 0 || ctx.off(Rule::EndOldWrites),
            "older writes have ended before the promise (rule 18)"
        );
        let mut primary = Self {
            epoch: view.epoch,
            generation: view.generation,
            in_sync: view.in_sync,
            doubtful: view.doubtful,
            phase: Phase::Collecting,
            since: ctx.now,
            heard: NodeSet::only(ctx.me()),
            member_runs: BTreeMap::new(),
            sessions: BTreeMap::new(),
            next_session: 1,
            lost_since: BTreeMap::new(),
            rejoin: BTreeMap::new(),
            spent: BTreeMap::new(),
            slow_at: BTreeMap::new(),
            looked: ctx.now,
            invalidate: NodeSet::EMPTY,
            known: BTreeMap::new(),
            suspect: view.suspect.without(ctx.me()),
            distrusted: BTreeMap::new(),
            discarding: BTreeMap::new(),
            shared: Vec::new(),
            proposal: None,
            growing: None,
            requests: BTreeMap::new(),
            backlog: VecDeque::new(),
            pieces: BTreeMap::new(),
            awaiting: VecDeque::new(),
            next_piece: 1,
            locks: RangeLocks::new(),
            lease: Now(0),
            answers_held: VecDeque::new(),
            drain: None,
            writes: BTreeMap::new(),
            next_seq: Seq(1),
            settled: BTreeMap::new(),
            closed: Seq(0),
            closes: Vec::new(),
            unsent_closes: 0,
            close_due: None,
            flush: None,
            flush_next: Vec::new(),
            next_token: 1,
            fetches: Fetches::default(),
            diskless: Diskless::default(),
            jobs: Jobs::default(),
            pace: Pace::new(ctx.now, ctx.resync()),
            synced: BTreeMap::new(),
            verify: None,
            doubted: 0,
            reconciled_noted: false,
            written_bytes: 0,
            read_bytes: 0,
        };
        ctx.superblock.epoch = view.epoch;
        // A forced promotion: from here on this is another line of history.
        ctx.superblock.lineage = view.lineage;
        ctx.log.set_passing(true);
        for peer in primary.members(ctx).iter() {
            primary.lost_since.insert(peer, ctx.now);
        }
        for peer in ctx.others().iter() {
            primary.consider(ctx, peer);
        }
        primary.try_open(ctx);
        primary
    }

    /// The other members of the in-sync set.
    fn members(&self, ctx: &Ctx) -> NodeSet {
        self.in_sync.without(ctx.me())
    }

    fn token(&mut self) -> u64 {
        self.next_token += 1;
        self.next_token
    }

    pub(crate) fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }

    pub(crate) fn epoch(&self) -> Epoch {
        self.epoch
    }

    pub(crate) fn in_sync(&self) -> NodeSet {
        self.in_sync
    }

    /// Why completions or requests are held, if they are.
    pub(crate) fn held(&self, ctx: &Ctx) -> Option<String> {
        if self.phase != Phase::Open {
            let silent = self.in_sync.minus(self.heard);
            return Some(format!("waiting for the report of {silent:?}"));
        }
        if self.drain.is_some() {
            return Some("being handed over".into());
        }
        if ctx.now >= self.lease {
            return Some("no lease".into());
        }
        if let Some(why) = self.held_diskless(ctx) {
            return Some(why);
        }
        let waiting: NodeSet = self.lost_since.keys().copied().collect();
        if !self.writes.is_empty() && !waiting.is_empty() {
            return Some(format!(
                "waiting for {waiting:?} or for its removal from the in-sync set"
            ));
        }
        None
    }

    pub(crate) fn request_count(&self) -> usize {
        self.requests.len() + self.backlog.len()
    }

    pub(crate) fn open_writes(&self) -> usize {
        self.writes.len()
    }

    // ---- promotion

    /// Opens when every member has reported and the bits are on disk.
    fn try_open(&mut self, ctx: &mut Ctx) {
        let mut awaited = self.in_sync;
        if ctx.off(Rule::HearAll) {
            let reachable = ctx.links.iter().filter(|(_, l)| l.up).map(|(&n, _)| n);
            awaited = awaited.and(reachable.collect());
        }
        if self.phase != Phase::Collecting
            || self.proposal.is_some()
            || !self.heard.contains(awaited)
        {
            return;
        }
        self.phase = Phase::Marking;
        if ctx.unclean {
            // Members are clean or were removed; or nobody is, and the operator's policy let this one go on (rule 9).
            ctx.trust(DiskState::UpToDate, After::Nothing);
        } else {
            ctx.superblock.disk = DiskState::UpToDate;
            ctx.store(After::Nothing);
        }
        ctx.save_bits(Unsaved::Set, After::Open(ctx.life));
    }

    /// The in-doubt bits are on disk: the device may open (rule 16).
    pub(crate) fn marked(&mut self, ctx: &mut Ctx) {
        if self.phase != Phase::Marking {
            return;
        }
        self.phase = Phase::Open;
        self.doubted = self
            .members(ctx)
            .iter()
            .map(|m| ctx.bits.dirty(m).count())
            .max()
            .unwrap_or(0);
        self.set_log_limit(ctx);
        ctx.control(ToControl::Opened { epoch: self.epoch });
        for peer in ctx.others().iter() {
            self.consider(ctx, peer);
        }
        self.pump_jobs(ctx);
        self.pump_requests(ctx);
    }

    /// Is a block of `range` not yet known to be equal on all members?
    fn in_doubt(&self, ctx: &Ctx, range: BlockRange) -> bool {
        !ctx.off(Rule::ReconcileFirst) && ctx.bits.any(self.members(ctx), range)
    }

    // ---- the control plane

    pub(crate) fn control(&mut self, ctx: &mut Ctx, message: FromControl) {
        match message {
            FromControl::View(view) => self.view(ctx, view),
            FromControl::Lease { until } => {
                self.lease = until;
                self.release_answers(ctx);
            }
            FromControl::Drain if ctx.off(Rule::DrainFirst) => {
                self.drain = Some(Drain::Done);
                ctx.control(ToControl::Drained { epoch: self.epoch });
            }
            FromControl::Drain => {
                if self.drain.is_none() {
                    self.drain = Some(Drain::Finishing);
                }
                self.pump_drain(ctx);
            }
            FromControl::Resume => {
                self.drain = None;
                self.pump_requests(ctx);
            }
            FromControl::Invalidate { peer } => {
                if ctx.others().has(peer) {
                    self.invalidate = self.invalidate.with(peer);
                    self.apply_invalidate(ctx);
                }
            }
            FromControl::Dismiss { peer } => {
                if self.in_sync.has(peer) && peer != ctx.me() {
                    let at = ctx.now.plus_ms(DISMISSED_MS);
                    self.hold_back(ctx, peer, at);
                    self.propose_removal(ctx, peer, SetChange::Dismissed);
                }
            }
            FromControl::Verify(order) => self.start_verify(ctx, order),
            FromControl::Discard { peer } => self.ask_discard(ctx, peer),
            FromControl::Resync(_) => {
                self.pace.set_bounds(ctx.resync());
                self.pump_jobs(ctx);
            }
            FromControl::Lead(_)
            | FromControl::Size(_)
            | FromControl::Promise { .. }
            | FromControl::Withdraw { .. }
            | FromControl::StepDown
            | FromControl::Detach
            | FromControl::Stop => {}
        }
    }

    /// A newer committed record of an epoch that is still this node's.
    fn view(&mut self, ctx: &mut Ctx, view: View) {
        if view.generation <= self.generation {
            return;
        }
        assert_eq!(
            view.epoch, self.epoch,
            "the replica handles a newer epoch itself"
        );
        self.generation = view.generation;
        let gone = self.in_sync.minus(view.in_sync).without(ctx.me());
        let came = view.in_sync.minus(self.in_sync);
        self.in_sync = view.in_sync;
        self.suspect = view.suspect.without(ctx.me());
        self.doubtful = view.doubtful;
        let decided = self.proposal.take();
        self.follow_placement(ctx, view.data_nodes);
        for peer in came.iter() {
            self.grown(ctx, peer);
        }
        for peer in gone.and(ctx.others()).iter() {
            self.removed(ctx, peer);
        }
        self.distrust_suspects(ctx);
        if let Some(proposal) = decided
            && proposal.in_sync != view.in_sync
            && proposal.why == SetChange::Synced
        {
            self.grow_refused(ctx, proposal.peer);
        }
        self.set_log_limit(ctx);
        self.go_on_diskless(ctx);
        self.recheck(ctx);
        self.remove_doubtful(ctx);
        self.try_open(ctx);
        self.apply_invalidate(ctx);
        self.apply_suspect(ctx);
        // With a member gone, blocks that were in doubt on it alone are in doubt no more.
        self.wake_awaiting(ctx);
        self.pump_fetches(ctx);
        for peer in ctx.others().iter() {
            self.consider(ctx, peer);
        }
        self.pump_jobs(ctx);
    }

    /// Lets go of replicas that were removed from the record, and takes note of those that came.
    fn follow_placement(&mut self, ctx: &mut Ctx, data_nodes: NodeSet) {
        for peer in ctx.others().minus(data_nodes).iter() {
            if self.growing.is_some_and(|g| g.peer == peer) {
                self.growing = None;
                self.recheck(ctx);
            }
            self.peer_down(ctx, peer);
            self.member_runs.remove(&peer);
            self.lost_since.remove(&peer);
            self.rejoin.remove(&peer);
            self.known.remove(&peer);
            self.distrusted.remove(&peer);
            self.spent.remove(&peer);
            self.slow_at.remove(&peer);
            self.heard = self.heard.without(peer);
            self.invalidate = self.invalidate.without(peer);
            // It says nothing of a replica that takes its place.
            self.synced.remove(&peer);
        }
        // The cut said nothing of whoever came, and its receiver may have known of it: another cut is needed (rule 15).
        let came = data_nodes.minus(ctx.others().with(ctx.me()));
        if !came.is_empty() && self.growing.is_some_and(|g| !self.in_sync.has(g.peer)) {
            self.uncount(ctx);
        }
        ctx.place(data_nodes);
    }

    /// More or less of the volume is served now: who has no room for it has to make some first.
    pub(crate) fn resized(&mut self, ctx: &mut Ctx) {
        let served = ctx.served();
        let small: Vec<NodeId> = self
            .sessions
            .keys()
            .copied()
            .filter(|peer| {
                let hello = ctx.links.get(peer).and_then(|l| l.hello.as_ref());
                hello.is_some_and(|h| h.geometry.blocks < served)
            })
            .collect();
        for peer in small {
            self.peer_down(ctx, peer);
            ctx.disconnect(peer);
        }
        self.pump_jobs(ctx);
    }

    /// What the record says of a member counts, whether or not a session says so too (rules 8, 9).
    fn remove_doubtful(&mut self, ctx: &mut Ctx) {
        if let Some(peer) = self.members(ctx).and(self.doubtful).iter().next() {
            self.propose_removal(ctx, peer, SetChange::Restarted);
        }
    }

    /// Proposes a change of the in-sync set, unless one is under way.
    fn propose(&mut self, ctx: &mut Ctx, in_sync: NodeSet, peer: NodeId, why: SetChange) {
        if self.proposal.is_some() {
            return;
        }
        assert!(
            in_sync.has(ctx.me())
                || (ctx.disk_failed() && !in_sync.is_empty())
                || ctx.off(Rule::LastMember),
            "the last holder is never removed (rule 23)"
        );
        self.proposal = Some(Proposal {
            generation: self.generation,
            in_sync,
            peer,
            why,
            sent: ctx.now,
        });
        self.send_proposal(ctx);
    }

    fn send_proposal(&mut self, ctx: &mut Ctx) {
        let Some(p) = &mut self.proposal else { return };
        p.sent = ctx.now;
        ctx.control(ToControl::ProposeSet {
            epoch: self.epoch,
            generation: p.generation,
            in_sync: p.in_sync,
            peer: p.peer,
            life: self.growing.filter(|g| g.peer == p.peer).map(|g| g.life),
            why: p.why,
        });
    }

    fn propose_removal(&mut self, ctx: &mut Ctx, peer: NodeId, why: SetChange) {
        if self.in_sync.has(peer) && self.may_remove(ctx, peer) {
            self.propose(ctx, self.in_sync.without(peer), peer, why);
        }
    }

    /// For a test: the last member leaves when its disk has failed.
    pub(crate) fn remove_itself(&mut self, ctx: &mut Ctx) {
        let (me, rest) = (ctx.me(), self.in_sync.without(ctx.me()));
        self.propose(ctx, rest, me, SetChange::DiskFailed);
    }

    fn apply_invalidate(&mut self, ctx: &mut Ctx) {
        for peer in self.invalidate.iter() {
            if self.in_sync.has(peer) {
                self.propose_removal(ctx, peer, SetChange::Invalidated);
            } else if self.growing.as_ref().is_none_or(|g| g.peer != peer) {
                self.invalidate = self.invalidate.without(peer);
                ctx.bits.suspect_all(peer);
                self.pump_jobs(ctx);
            }
        }
    }

    // ---- time

    pub(crate) fn tick(&mut self, ctx: &mut Ctx) {
        let timing: Timing = ctx.cfg.timing;
        if self.close_due.is_some_and(|due| ctx.now >= due) {
            self.send_closes(ctx);
        }
        if self
            .proposal
            .is_some_and(|p| ctx.now.ms_since(p.sent) >= timing.propose_ms)
        {
            self.send_proposal(ctx);
        }
        if self.phase == Phase::Collecting {
            self.remove_silent(ctx, timing);
        } else {
            self.go_on_diskless(ctx);
            self.check_stranded(ctx, timing);
            self.remove_slow(ctx, timing);
            self.drop_slow_grow(ctx, timing);
            self.drop_stuck(ctx, timing);
        }
        self.forgive(ctx, timing);
        if self.pace.due().is_some_and(|at| ctx.now >= at) {
            self.pace.clear_due(); // set anew if there is anything to wait for
        }
        self.remove_doubtful(ctx);
        for peer in ctx.others().iter() {
            self.consider(ctx, peer);
        }
        self.send_synced(ctx);
        self.pump_jobs(ctx);
    }

    /// While collecting: a member that is not connected is not waited for, a connected one only so long (rule 2).
    fn remove_silent(&mut self, ctx: &mut Ctx, timing: Timing) {
        let waited = ctx.now.ms_since(self.since);
        let silent: NodeSet = self
            .in_sync
            .minus(self.heard)
            .iter()
            .filter(|p| {
                waited
                    >= if ctx.links[p].up {
                        timing.collect_ms
                    } else {
                        timing.collect_ms.min(timing.ping_ms)
                    }
            })
            .collect();
        if let Some(first) = silent.iter().next() {
            // One at a time: each removal is a commit of its own.
            self.let_go(ctx, first, SetChange::Lost);
        }
    }

    /// The earliest time something has to be done.
    pub(crate) fn deadline(&self, ctx: &Ctx) -> Now {
        let tick = ctx.now.plus_ms(50);
        // A time nobody will act on would be reached again and again.
        let bulk = self.phase == Phase::Open && !(ctx.disk_failed() && self.in_sync.has(ctx.me()));
        let paced = [self.pace.due(), self.verify_due()].map(|due| due.filter(|_| bulk));
        paced
            .into_iter()
            .chain([self.close_due])
            .flatten()
            .fold(tick, Now::min)
    }

    // ---- things that ended

    pub(crate) fn wake(&mut self, ctx: &mut Ctx, wake: Wake) {
        match wake {
            Wake::Log(LogUser::Piece(piece)) => self.piece_logged(ctx, piece),
            Wake::Log(LogUser::Fix(token, range)) => self.fix_logged(ctx, token, range),
            Wake::Log(LogUser::Heal(heal)) => self.heal_logged(ctx, heal),
            Wake::Saved(After::Open(life)) if life == ctx.life => self.marked(ctx),
            Wake::Io(io, bytes) => match io {
                RoleIo::PieceRead(piece) => self.piece_read(ctx, piece, bytes),
                RoleIo::LocalWrite(seq) => self.local_written(ctx, seq),
                RoleIo::LocalFlush(token) => self.local_flushed(ctx, token),
                RoleIo::JobRead(job) => self.job_read(ctx, job, bytes),
                RoleIo::Heal(heal) => self.healed(ctx, heal),
                RoleIo::RecvWrite(_)
                | RoleIo::RecvFlush(_)
                | RoleIo::RecvRead(_)
                | RoleIo::RecvReread(..) => {}
            },
            Wake::ReadFailed(io) => self.read_failed(ctx, io),
            Wake::DiskFailed => self.disk_lost(ctx),
            Wake::Stored(_) => self.seen_stored(ctx),
            Wake::LogWritten
            | Wake::Log(LogUser::Recv(_))
            | Wake::Saved(_)
            | Wake::Flushed
            | Wake::Drained
            | Wake::View(_) => {}
        }
    }

    fn unlock(&mut self, ctx: &mut Ctx, lock: crate::locks::LockId) {
        for owner in self.locks.release(lock) {
            match owner {
                Owner::Piece(piece) => self.piece_locked(ctx, piece),
                Owner::Job(job) => self.job_locked(ctx, job),
            }
        }
    }

    // ---- the end

    /// This node is primary no longer: unsettled writes become dirty bits for all, requests fail.
    pub(crate) fn end(&mut self, ctx: &mut Ctx) {
        for write in std::mem::take(&mut self.writes).into_values() {
            if !ctx.off(Rule::ReportAlways) {
                ctx.bits.suspect(ctx.others(), write.range);
            }
        }
        for peer in std::mem::take(&mut self.discarding).into_keys() {
            no_discard(ctx, peer, "this node is primary no longer");
        }
        // Settled but perhaps not heard of as closed by everyone: they are equal on all members, nothing to mark.
        ctx.log.forget_users();
        ctx.log.set_limit(u32::MAX);
        ctx.log.set_passing(ctx.off(Rule::SlotsInOrder));
        let open: Vec<ReqId> = std::mem::take(&mut self.requests).into_keys().collect();
        let queued = std::mem::take(&mut self.backlog)
            .into_iter()
            .map(|(r, _)| r);
        let flushes = std::mem::take(&mut self.answers_held)
            .into_iter()
            .map(|(r, _)| r);
        for req in open.into_iter().chain(queued).chain(flushes) {
            ctx.out.push(crate::Action::Complete {
                req,
                result: Err(RequestError::NotPrimary),
            });
        }
        self.end_verify(ctx);
    }
}
