//! One replica: its role, and how it goes from one to the other.
//!
//! ```text
//!            Started                Lead (after Promise)
//!  Starting ---------> Follower <------------------------> Primary
//!                         |        StepDown, newer epoch
//!                         | Stop
//!                         v
//!                      Stopping ----> Stopped
//! ```
//! Anything else is refused by the match in [`Replica::handle`].

mod look;
mod placement;

use crate::activity::ActivityLog;
use crate::bits::Bits;
use crate::ctx::{After, Ctx, Link, LogUser, Wake};
use crate::follower::Follower;
use crate::primary::Primary;
use crate::rules::Rule;
use crate::{
    Action, Config, DiskTrouble, Event, FromControl, Note, Now, PeerStatus, Request, RequestError,
    ResyncBounds, ResyncStatus, Status, ToControl, Trouble, VerifyReport, View,
};
use holdfast_meta::{MetaError, Recovered, Unsaved};
use holdfast_types::{DiskState, Epoch, Geometry, NodeId, NodeSet, Role, Run};
use holdfast_wire::{Frame, Hello, Refusal};

/// Do the contents of two replicas belong to different lines of history? One without any joins every line.
pub(crate) fn is_split(ours: u64, theirs: u64) -> bool {
    ours != 0 && theirs != 0 && ours != theirs
}

/// How often time-outs are looked at.
const TICK_MS: u64 = 50;

#[derive(Debug)]
enum State {
    /// Raising the run, turning crash extents into bits.
    Starting {
        flushed: bool,
        saved: bool,
        crashed: bool,
    },
    Follower(Box<Follower>),
    Primary(Box<Primary>),
    /// Turning what is open into bits, then the clean mark.
    Stopping {
        follower: Box<Follower>,
        settled: bool,
        flushed: bool,
        saved: bool,
        clearing: bool,
    },
    Stopped,
}

/// The state machine of one replica. See the contract at the head of the crate's `api`.
#[derive(Debug)]
pub struct Replica {
    ctx: Ctx,
    state: State,
    view: Option<View>,
    /// The run is on disk and may be known.
    started: bool,
    /// What the last hello said of the disk: its state, whether it stopped uncleanly, its room, its line of history.
    told: Option<(DiskState, bool, u64, u64)>,
    next_tick: Now,
    next_save: Now,
}

impl Replica {
    /// Takes a replica into a new run. `recovered` is what [`holdfast_meta`] read from the store, `boot_id`
    /// the identity of the machine's boot: if it is another than the last run's and that run has no clean
    /// mark, unflushed writes may be lost (rule 8). The caller has checked that the disk is this volume's.
    ///
    /// # Errors
    /// If the metadata has no room for bitmaps of all data nodes.
    pub fn start(
        cfg: Config,
        recovered: Recovered,
        boot_id: u128,
        now: Now,
        out: &mut Vec<Action>,
    ) -> Result<Self, MetaError> {
        let Recovered {
            mut superblock,
            layout,
            log,
            bitmaps,
            ..
        } = recovered;
        assert_eq!(superblock.volume, cfg.volume);
        assert_eq!(superblock.node, cfg.me);
        // The boot id on disk is that of the boot since which nothing can be lost; it is renewed only once that holds again.
        let mut unclean = !superblock.clean && superblock.boot_id != boot_id;
        // A write or flush failed in the last run: unflushed data may be gone as after a loss of power. If the
        // disk works again it is compared whole.
        let known = cfg.distrust.filter(|(d, _)| *d == superblock.incarnation);
        let distrust = known.map(|(_, why)| why).filter(|why| why.loses());
        let failed = superblock.disk == DiskState::Failed || distrust == Some(DiskTrouble::Io);
        if failed || distrust.is_some() {
            superblock.disk = DiskState::Syncing;
            superblock.boot_id = 0;
            unclean = true;
        }
        superblock.run = Run(superblock.run.0 + 1);
        superblock.clean = false;
        superblock.found.rotate_right(1);
        superblock.found[0] = log.number;
        if !unclean {
            superblock.boot_id = boot_id;
        }
        let others = cfg.data_nodes.without(cfg.me);
        let new = others.minus(superblock.data_nodes());
        for node in others.iter() {
            superblock.give_slot(node)?;
        }
        let mut bits = Bits::new(&layout, bitmaps, others);
        if failed {
            others.iter().for_each(|node| bits.suspect_all(node));
        }
        let crashed = !log.active.is_empty();
        for &extent in &log.active {
            if cfg.off != Some(Rule::CrashBits) {
                bits.suspect(others, layout.geometry.extent_range(extent));
            }
        }
        let activity = ActivityLog::new(layout.geometry, superblock.log_slots, log.number);
        let mut ctx = Ctx::new(
            cfg, now, boot_id, superblock, layout, bits, activity, unclean,
        );
        ctx.log.set_passing(ctx.off(Rule::SlotsInOrder));
        ctx.slots_are_new(new);
        // First of all the run: whoever hears of this life must be able to tell it from the last.
        ctx.store(After::Start);
        let state = State::Starting {
            flushed: false,
            saved: false,
            crashed,
        };
        let mut replica = Self {
            ctx,
            state,
            view: None,
            started: false,
            told: None,
            next_tick: now,
            next_save: now,
        };
        replica.finish(out);
        Ok(replica)
    }

    /// Bounds of resync by the configuration; what an operator orders goes before them.
    #[must_use]
    pub fn with_resync(mut self, bounds: ResyncBounds) -> Self {
        self.ctx.resync_configured = bounds;
        self
    }

    /// Something happened: appends what is to be done to `out`, in order.
    pub fn handle(&mut self, now: Now, event: Event, out: &mut Vec<Action>) {
        self.ctx.pass(now);
        // Also when events come so thick that nobody finds the time to hand in a tick.
        if self.ctx.now >= self.next_tick && !matches!(event, Event::Tick) {
            self.tick();
        }
        match event {
            Event::Tick => self.tick(),
            Event::Request { req, request } => self.request(req, request),
            Event::DiskDone { io, result } => self.ctx.disk_done(io, result),
            Event::PeerUp { peer } => self.peer_up(peer),
            Event::PeerDown { peer } => self.peer_down(peer),
            Event::Frame { peer, frame } => self.frame(peer, frame),
            Event::Room { store_bytes } => self.ctx.room_made(store_bytes),
            Event::Control(message) => self.control(message),
            Event::Saved { save, result } => {
                if let State::Follower(f) = &mut self.state {
                    f.saved(&mut self.ctx, save, result);
                }
            }
        }
        self.finish(out);
    }

    /// When to hand in [`Event::Tick`] at the latest.
    pub fn deadline(&self) -> Now {
        match &self.state {
            State::Primary(p) => self.next_tick.min(p.deadline(&self.ctx)),
            State::Starting { .. }
            | State::Follower(_)
            | State::Stopping { .. }
            | State::Stopped => self.next_tick,
        }
    }

    fn finish(&mut self, out: &mut Vec<Action>) {
        while let Some(wake) = self.ctx.wakes.pop_front() {
            self.wake(wake);
        }
        self.ctx
            .pump_room(matches!(self.state, State::Primary(_) | State::Follower(_)));
        self.tell_changes();
        self.ctx.tell_idle();
        out.append(&mut self.ctx.out);
        #[cfg(debug_assertions)]
        self.ctx.bits.check();
    }

    // ---- events

    fn tick(&mut self) {
        let now = self.ctx.now;
        let timing = self.ctx.cfg.timing;
        self.next_tick = now.plus_ms(TICK_MS);
        // The only copy is waited for: nobody could go on without it.
        let only = NodeSet::only(self.ctx.cfg.me);
        if self.view.is_none_or(|v| v.in_sync != only) {
            self.ctx.check_disk();
        }
        let links: Vec<(NodeId, Now, Now)> = self
            .ctx
            .links
            .iter()
            .filter(|(_, l)| l.up)
            .map(|(&n, l)| (n, l.heard, l.sent))
            .collect();
        for (peer, heard, sent) in links {
            if now.ms_since(heard) >= timing.silence_ms {
                self.ctx.disconnect(peer);
            } else if now.ms_since(sent) >= timing.ping_ms {
                self.ctx.send(peer, Frame::Ping { token: now.0 });
            }
        }
        if let State::Primary(p) = &mut self.state {
            p.tick(&mut self.ctx);
        }
        if now >= self.next_save
            && matches!(self.state, State::Primary(_) | State::Follower(_))
            && !self.ctx.disk_failed()
        {
            self.next_save = now.plus_ms(timing.save_ms);
            if let State::Primary(p) = &mut self.state {
                p.share_seen(&mut self.ctx);
            }
            self.ctx.save_seen();
            self.ctx.save_bits(Unsaved::Clear, After::Nothing);
        }
    }

    fn request(&mut self, req: crate::ReqId, request: Request) {
        match &mut self.state {
            State::Primary(p) if p.no_copy(&self.ctx) => {
                self.ctx.out.push(Action::Complete {
                    req,
                    result: Err(RequestError::Io),
                });
            }
            State::Primary(p) => p.request(&mut self.ctx, req, request),
            State::Starting { .. }
            | State::Follower(_)
            | State::Stopping { .. }
            | State::Stopped => {
                self.ctx.out.push(Action::Complete {
                    req,
                    result: Err(RequestError::NotPrimary),
                });
            }
        }
    }

    fn peer_up(&mut self, peer: NodeId) {
        let now = self.ctx.now;
        let Some(link) = self.ctx.links.get_mut(&peer) else {
            self.ctx.strangers = self.ctx.strangers.with(peer);
            return;
        };
        link.up = true;
        link.hello = None;
        (link.heard, link.sent) = (now, now);
        // While starting, the run is not durable yet: hello follows then.
        if self.started {
            self.hello(peer);
        }
    }

    /// What a peer was told when it connected may not hold any more: a member that joined as Outdated must not be
    /// taken for an outdated one at the next promotion.
    fn tell_changes(&mut self) {
        let now = (
            self.disk_state(),
            self.ctx.unclean,
            self.ctx.takes(),
            self.ctx.superblock.lineage,
        );
        if self.started && self.told != Some(now) {
            self.told = Some(now);
            let up: Vec<NodeId> = self
                .ctx
                .links
                .iter()
                .filter(|(_, l)| l.up)
                .map(|(&n, _)| n)
                .collect();
            for peer in up {
                self.hello(peer);
            }
        }
    }

    /// A disk that is not used is Failed as long as the in-sync set names it, Diskless from then on.
    fn disk_state(&self) -> DiskState {
        let named = self.view.is_some_and(|v| v.in_sync.has(self.ctx.cfg.me));
        match self.ctx.trouble {
            None => self.ctx.superblock.disk,
            Some(_) if named => DiskState::Failed,
            Some(_) => DiskState::Diskless,
        }
    }

    fn hello(&mut self, peer: NodeId) {
        let s = &self.ctx.superblock;
        let hello = Hello {
            node: self.ctx.cfg.me,
            volume: s.volume,
            geometry: Geometry {
                blocks: self.ctx.takes(),
                ..self.ctx.layout.geometry
            },
            incarnation: s.incarnation,
            run: s.run,
            unclean: self.ctx.unclean,
            promised: s.promised,
            disk: self.disk_state(),
            log_slots: s.log_slots,
            found: s.found,
            lineage: s.lineage,
        };
        self.ctx.send(peer, Frame::Hello(hello));
    }

    fn peer_down(&mut self, peer: NodeId) {
        self.ctx.strangers = self.ctx.strangers.without(peer);
        let Some(link) = self.ctx.links.get_mut(&peer) else {
            return;
        };
        link.up = false;
        link.hello = None;
        link.trouble = None;
        match &mut self.state {
            State::Primary(p) => p.peer_down(&mut self.ctx, peer),
            State::Follower(f) => f.peer_down(&mut self.ctx, peer),
            State::Starting { .. } | State::Stopping { .. } | State::Stopped => {}
        }
    }

    fn frame(&mut self, peer: NodeId, frame: Frame) {
        let Some(link) = self.ctx.links.get_mut(&peer) else {
            return;
        };
        link.heard = self.ctx.now;
        match frame {
            Frame::Ping { token } => self.ctx.send(peer, Frame::Pong { token }),
            Frame::Pong { .. } => {}
            Frame::Hello(hello) => self.greeted(peer, hello),
            frame => self.role_frame(peer, frame),
        }
    }

    fn greeted(&mut self, peer: NodeId, hello: Hello) {
        let ours = &self.ctx.superblock;
        // A replica may have room for more, or for less until it has caught up.
        let unit = |g: holdfast_types::Geometry| (g.block_bytes, g.extent_blocks);
        if hello.node != peer
            || hello.volume != ours.volume
            || unit(hello.geometry) != unit(ours.geometry)
        {
            let what = format!(
                "{peer} says it is {} with volume {} of {} bytes; expected {peer} with volume {} of {} bytes",
                hello.node,
                hello.volume,
                hello.geometry.bytes(),
                ours.volume,
                ours.geometry.bytes()
            );
            self.ctx.note(Note::Protocol { peer, what });
            self.ctx.disconnect(peer);
            return;
        }
        let cloned = (hello.incarnation == ours.incarnation)
            .then_some(self.ctx.cfg.me)
            .or_else(|| {
                let same = |l: &Link| {
                    l.hello
                        .as_ref()
                        .is_some_and(|h| h.incarnation == hello.incarnation)
                };
                let twin = |(n, l): &(&NodeId, &Link)| **n != peer && same(l);
                self.ctx.links.iter().find(twin).map(|(&n, _)| n)
            });
        let theirs = hello.lineage;
        let split = is_split(ours.lineage, theirs);
        let ours = ours.lineage;
        if let Some(link) = self.ctx.links.get_mut(&peer) {
            link.trouble = cloned.map(|of| Trouble::Cloned { of });
            if split && link.trouble.is_none() {
                link.trouble = Some(Trouble::Split { theirs, ours });
            }
            link.hello = Some(hello);
        }
        if split {
            self.ctx.note(Note::Split { peer, ours, theirs });
        }
        if let State::Primary(p) = &mut self.state {
            p.consider(&mut self.ctx, peer);
            p.greeted(&mut self.ctx, peer);
        }
    }

    fn role_frame(&mut self, peer: NodeId, frame: Frame) {
        if let State::Primary(p) = &mut self.state {
            match frame {
                Frame::Attach(attach) if attach.stamp.epoch > p.epoch() => {
                    // A newer epoch exists: this one is over, here and now (G2).
                    self.ctx.control(ToControl::Deposed {
                        epoch: attach.stamp.epoch,
                    });
                    self.step_down();
                    if let State::Follower(f) = &mut self.state {
                        f.attach(&mut self.ctx, peer, attach);
                    }
                }
                Frame::Attach(_) => {
                    let why = Refusal::Promised(p.epoch());
                    self.ctx.send(peer, Frame::Refuse { why });
                }
                frame => p.frame(&mut self.ctx, peer, frame),
            }
        } else if let State::Follower(f) = &mut self.state {
            f.frame(&mut self.ctx, peer, frame);
        }
    }

    fn control(&mut self, message: FromControl) {
        if let FromControl::Resync(order) = message {
            self.ctx.resync_order = order;
        }
        match (&mut self.state, message) {
            (State::Stopping { .. } | State::Stopped, _) => {}
            (_, FromControl::View(view)) => self.viewed(view),
            (_, FromControl::Size(size)) => {
                if self.ctx.sized(size) {
                    if let State::Follower(f) = &mut self.state
                        && self.ctx.gives_up()
                    {
                        f.shrunk(&mut self.ctx);
                    }
                    self.resized();
                }
            }
            (State::Primary(_), FromControl::StepDown) => self.step_down(),
            (State::Primary(p), FromControl::Promise { epoch }) if epoch > p.epoch() => {
                self.step_down();
                self.control(FromControl::Promise { epoch });
            }
            (_, FromControl::Stop) => self.stop(),
            (State::Primary(_) | State::Follower(_), FromControl::Detach) => self.detach(),
            (State::Primary(p), message) => p.control(&mut self.ctx, message),
            (State::Follower(f), FromControl::Promise { epoch }) => f.promise(&mut self.ctx, epoch),
            (State::Follower(f), FromControl::Withdraw { epoch }) => {
                let committed = self.view.map_or(Epoch(0), |v| v.epoch);
                f.withdraw(&mut self.ctx, epoch, committed);
            }
            (State::Follower(_), FromControl::Lead(view)) => self.lead(view),
            (State::Follower(_), FromControl::Discard { peer }) => {
                let text = "this node is not the primary".to_owned();
                let done = false;
                self.ctx.note(Note::Discarded { peer, done, text });
            }
            (State::Follower(_), FromControl::Verify(order)) => {
                self.ctx.note(Note::Verified(VerifyReport {
                    order,
                    refused: Some("this node is not the primary".into()),
                    compared_bytes: 0,
                    peers: Vec::new(),
                }));
            }
            (State::Follower(_) | State::Starting { .. }, _) => {}
        }
    }

    /// The operator wants the disk no more. The last member's holds the data (rule 23).
    fn detach(&mut self) {
        let me = NodeSet::only(self.ctx.cfg.me);
        if self.view.is_none_or(|v| v.in_sync != me) {
            self.ctx
                .fail_disk(DiskTrouble::Detached, "the operator's wish");
        }
    }

    fn viewed(&mut self, view: View) {
        if self.view.is_some_and(|v| v.generation >= view.generation) {
            return;
        }
        self.view = Some(view);
        match &mut self.state {
            State::Primary(p)
                if view.epoch == p.epoch() && view.primary == Some(self.ctx.cfg.me) =>
            {
                self.ctx.wakes.push_back(Wake::View(view)); // the primary may end by itself in the meantime
            }
            State::Primary(_) => {
                self.step_down();
                self.place(view);
            }
            State::Follower(_) => {
                self.place(view);
                if let State::Follower(f) = &mut self.state {
                    f.view(&mut self.ctx, &view);
                }
            }
            State::Starting { .. } | State::Stopping { .. } | State::Stopped => {}
        }
    }

    fn lead(&mut self, view: View) {
        let State::Follower(f) = &mut self.state else {
            return;
        };
        if self.ctx.off(Rule::PromiseFirst) {
            f.quiesce(&mut self.ctx);
        }
        let fits = self.ctx.superblock.promised == view.epoch
            && view.primary == Some(self.ctx.cfg.me)
            && (self.ctx.off(Rule::EndOldWrites) || f.is_quiet() && self.ctx.writes_in_flight == 0);
        if !fits || self.ctx.disk_failed() {
            return; // a newer promise or session came between: the control plane hears of it
        }
        self.view = Some(view);
        self.place(view);
        if let State::Follower(f) = &mut self.state {
            f.end(&mut self.ctx, view.in_sync);
        }
        self.ctx.life.0 += 1;
        self.state = State::Primary(Box::new(Primary::lead(&mut self.ctx, view)));
    }

    fn step_down(&mut self) {
        if let State::Primary(p) = &mut self.state {
            p.end(&mut self.ctx);
            self.ctx.life.0 += 1;
            self.state = State::Follower(Box::new(Follower::new()));
        }
    }

    // ---- what ended

    fn wake(&mut self, wake: Wake) {
        if let Wake::Saved(After::Trace) = wake {
            self.ctx.trace_saved();
            return;
        }
        if let Wake::Stored(After::Room) = wake {
            self.ctx.tail_noted();
            self.resized();
            return;
        }
        if let Wake::Saved(After::Placed) = wake {
            return;
        }
        match &mut self.state {
            State::Starting { .. } => self.starting(&wake),
            State::Stopping { .. } => self.stopping(wake),
            State::Stopped => {}
            State::Primary(p) => match wake {
                Wake::View(view) => p.control(&mut self.ctx, FromControl::View(view)),
                wake => p.wake(&mut self.ctx, wake),
            },
            State::Follower(f) => match wake {
                Wake::Log(LogUser::Recv(id)) => f.logged(&mut self.ctx, id),
                Wake::Io(io, bytes) => f.io(&mut self.ctx, io, bytes),
                Wake::Drained => f.drained(&mut self.ctx),
                Wake::Stored(After::Promise(number)) => f.promised(&mut self.ctx, number),
                Wake::Stored(After::Attach(epoch, session)) => {
                    f.attached(&mut self.ctx, epoch, session)
                }
                Wake::Stored(After::Discard(save)) => f.discarded(&mut self.ctx, save),
                Wake::Saved(After::Cut(id)) => f.cut_saved(&mut self.ctx, id),
                Wake::LogWritten => f.log_written(&mut self.ctx),
                Wake::DiskFailed => f.disk_failed(&mut self.ctx),
                Wake::ReadFailed(io) => f.read_failed(&mut self.ctx, io),
                Wake::Saved(_)
                | Wake::Stored(_)
                | Wake::Flushed
                | Wake::View(_)
                | Wake::Log(LogUser::Piece(_) | LogUser::Fix(..) | LogUser::Heal(_)) => {}
            },
        }
    }

    /// Start-up: run durable; then, after a crash, data flushed and bits saved, then an empty log.
    fn starting(&mut self, wake: &Wake) {
        let State::Starting {
            flushed,
            saved,
            crashed,
        } = &mut self.state
        else {
            return;
        };
        match wake {
            Wake::Stored(After::Start) => {
                self.ctx.own_flush();
                self.ctx.save_bits(Unsaved::Set, After::Start);
                return;
            }
            Wake::Flushed => *flushed = true,
            Wake::Saved(After::Start) => *saved = true,
            Wake::LogWritten => *crashed = false,
            Wake::DiskFailed => {
                // The run is not on the disk: it must not become known (rules 8, 31). The failure is.
                self.state = State::Follower(Box::new(Follower::new()));
                return;
            }
            Wake::Log(_)
            | Wake::ReadFailed(..)
            | Wake::Saved(_)
            | Wake::Stored(_)
            | Wake::Io(..)
            | Wake::Drained
            | Wake::View(_) => return,
        }
        if *flushed && *saved && *crashed && self.ctx.log.is_idle() {
            let step = self.ctx.log.clear();
            self.ctx.log_step(step);
        } else if *flushed && *saved && !*crashed {
            self.started();
        }
    }

    fn started(&mut self) {
        self.state = State::Follower(Box::new(Follower::new()));
        if let Some(view) = self.view {
            self.place(view);
        }
        let s = &self.ctx.superblock;
        let message = ToControl::Started {
            volume: s.volume,
            incarnation: s.incarnation,
            run: s.run,
            unclean: self.ctx.unclean,
            disk: self.disk_state(),
            promised: s.promised,
        };
        self.started = true;
        self.ctx.control(message); // and the peers, by `tell_changes`
    }

    fn stop(&mut self) {
        self.step_down();
        if self.ctx.disk_failed() {
            self.state = State::Stopped;
            self.ctx.control(ToControl::Stopped);
            return;
        }
        match std::mem::replace(&mut self.state, State::Stopped) {
            State::Follower(mut follower) => {
                follower.quiesce(&mut self.ctx);
                self.ctx.life.0 += 1;
                self.state = State::Stopping {
                    follower,
                    settled: false,
                    flushed: false,
                    saved: false,
                    clearing: false,
                };
                self.stopping(Wake::Drained);
            }
            // Not started: nothing of this run needs a mark; the next start looks at the log again.
            _ => self.ctx.control(ToControl::Stopped),
        }
    }

    /// The stop: open writes to bits, data flushed, bits saved, an empty log, the clean mark (rule 24).
    fn stopping(&mut self, wake: Wake) {
        let State::Stopping {
            follower,
            settled,
            flushed,
            saved,
            clearing,
        } = &mut self.state
        else {
            return;
        };
        match wake {
            Wake::Drained if self.ctx.writes_in_flight == 0 && !*settled => {
                *settled = true;
                follower.settle(&mut self.ctx);
                self.ctx.own_flush();
                self.ctx.save_bits(Unsaved::Clear, After::Stop);
            }
            Wake::Flushed => *flushed = true,
            Wake::Saved(After::Stop) => *saved = true,
            Wake::LogWritten if *clearing => {
                self.ctx.superblock.clean = !self.ctx.unclean;
                self.ctx.store(After::Stop);
            }
            Wake::Stored(After::Stop) | Wake::DiskFailed => {
                self.state = State::Stopped;
                self.ctx.control(ToControl::Stopped);
                return;
            }
            _ => {}
        }
        if *flushed && *saved && !*clearing && self.ctx.log.is_idle() && !self.ctx.is_moving() {
            *clearing = true;
            let step = self.ctx.log.clear();
            self.ctx.log_step(step);
        }
    }
}
