//! The interpreters: a daemon's start and end, what reaches its state machines, and what they want done.
//! Mechanical, exactly as the two contracts say; nothing is decided here.

mod brief;

use crate::check::bounds::Bounds;
use crate::mutation::Mutation;
use crate::node::{CONTROL, Input, Process, REPLICA};
use crate::rng::Ratio;
use crate::scenario::{MS, US};
use crate::world::{CLUSTER, Ev, RESOURCE, VOLUME, World};
use holdfast_control as control;
use holdfast_replicator as rep;
use holdfast_types::{NodeId, Strange};

/// The resource and volume of every world.
const RESOURCE_IX: control::ResourceIx = control::ResourceIx(0);
const VOLUME_IX: control::VolumeIx = control::VolumeIx(0);
/// A control state that is reported durable too early is so after this long.
const FORGOTTEN_NS: u64 = 400 * MS;
/// A stretched lease is longer by this.
const STRETCH_MS: u64 = 4000;
/// What passes between a daemon's threads takes up to this long.
const HOP_NS: u64 = 30 * US;
/// A daemon that finds the claim on its store held tries again after this.
const CLAIM_RETRY_NS: u64 = 20 * MS;

use brief::{brief_event, brief_op, kind_of};

impl World {
    fn control_config(&self, me: NodeId) -> control::Config {
        let nodes = self.nodes.iter().map(|n| control::NodeConfig {
            id: n.id,
            name: format!("n{}", n.id.0),
            voter: true,
        });
        control::Config {
            me,
            nodes: nodes.collect(),
            resources: vec![control::ResourceConfig {
                name: RESOURCE.into(),
                volumes: vec![control::VolumeConfig {
                    name: "v0".into(),
                    size_bytes: self.scenario.geometry.bytes(),
                }],
                data_nodes: (0..self.scenario.data_nodes).map(NodeId).collect(),
                unclean_promotion: if self.scenario.unclean_allow {
                    control::UncleanPromotion::Allow
                } else {
                    control::UncleanPromotion::Wait
                },
                auto_promote: true,
            }],
            timing: control::Timing {
                unclean_wait_ms: 10_000,
                ..control::Timing::default()
            },
            off: self.planted,
        }
    }

    fn replica_config(&self, me: NodeId) -> rep::Config {
        rep::Config {
            me,
            data_nodes: (0..self.scenario.data_nodes).map(NodeId).collect(),
            volume: VOLUME,
            timing: rep::Timing::default(),
            distrust: None,
            off: self.planted,
        }
    }

    // ---- life and death

    /// Starts a daemon, once the old one's disk operations have ended.
    pub(crate) fn start(&mut self, n: usize) {
        if self.nodes[n].up() {
            self.nodes[n].starting = false;
            return;
        }
        if self.nodes[n].disk.as_ref().is_some_and(|d| !d.idle()) {
            self.agenda
                .at(self.now + CLAIM_RETRY_NS, Ev::Start { node: n });
            return;
        }
        self.nodes[n].starting = false;
        self.clear_host(n);
        if self.nodes[n].bad_disk
            && let Some(disk) = &mut self.nodes[n].disk
        {
            // It only ever gets worse: a disk that lost writes at a failed flush does not come back to life.
            disk.errors.write = Ratio::new(1, 1);
            disk.errors.flush = Ratio::new(1, 1);
        }
        let me = self.nodes[n].id;
        let now = self.nodes[n].clock.local(self.now);
        let slots = &self.nodes[n].state;
        let (stored, slots) = match control::durable::choose([&slots[0], &slots[1]]) {
            Ok(chosen) => chosen,
            Err(e) => return self.fail(format!("{me} cannot read its control state: {e}")),
        };
        let random = self.nodes[n].rng.bits();
        let config = self.control_config(me);
        let started = control::Node::start(config, control::Start { stored, random }, now);
        let (control, control_actions) = match started {
            Ok(started) => started,
            Err(e) => return self.fail(format!("the control plane of {me} does not start: {e}")),
        };
        let mut replica_actions = Vec::new();
        let mut replica = None;
        if self.nodes[n].data {
            let recovered = self.read_metadata(n);
            let recovered = match recovered {
                Ok(mut recovered) => {
                    if self.mutation == Some(Mutation::MoreSlots) {
                        recovered.superblock.log_slots = 2 * self.scenario.log_slots[n];
                    }
                    recovered
                }
                Err(e) => return self.fail(format!("{me} cannot read its metadata: {e}")),
            };
            let (mut config, boot_id) = (self.replica_config(me), self.nodes[n].boot_id);
            config.distrust = control.distrusted(RESOURCE_IX, VOLUME_IX);
            match rep::Replica::start(config, recovered, boot_id, now, &mut replica_actions) {
                Ok(started) => replica = Some(started),
                Err(e) => return self.fail(format!("the replica of {me} does not start: {e}")),
            }
        }
        self.trace.news(self.now, me, || "daemon starts".into());
        let node = &mut self.nodes[n];
        node.life += 1;
        node.timers = [None; 2];
        node.inbox_last = [self.now; 2];
        node.stalled = false;
        node.stopping = false;
        node.process = Some(Process {
            control,
            replica,
            slots,
        });
        self.perform_control(n, control_actions);
        self.perform_replica(n, &mut replica_actions);
        for link in 0..self.links.len() {
            if self.links[link].ends.contains(&me) {
                self.want_connection(link);
            }
        }
    }

    /// The replica starts anew from its disk, under the running daemon.
    pub(crate) fn reopen(&mut self, n: usize, life: u64) {
        let node = &self.nodes[n];
        if node.life != life || !node.up() {
            return;
        }
        if node.paused || node.disk.as_ref().is_some_and(|d| !d.idle()) {
            self.agenda.at(
                self.now + CLAIM_RETRY_NS,
                Ev::Undo(crate::faults::Undo::Reopen { node: n, life }),
            );
            return;
        }
        self.trace.mark("disk taken up again");
        if node.open_epoch.is_some() {
            // The last member's: its clients are cut off, as at a restart of the daemon.
            self.end_daemon(n, false);
            self.start_later(n, CLAIM_RETRY_NS);
            return;
        }
        self.lanes_gone(n, false);
        self.sees_end(n);
        let me = self.nodes[n].id;
        let recovered = match self.read_metadata(n) {
            Ok(recovered) => recovered,
            Err(e) => return self.fail(format!("{me} cannot read its metadata: {e}")),
        };
        let now = self.nodes[n].clock.local(self.now);
        let (mut config, boot_id) = (self.replica_config(me), self.nodes[n].boot_id);
        let Some(process) = &mut self.nodes[n].process else {
            return;
        };
        config.distrust = process.control.distrusted(RESOURCE_IX, VOLUME_IX);
        let mut actions = Vec::new();
        match rep::Replica::start(config, recovered, boot_id, now, &mut actions) {
            Ok(started) => process.replica = Some(started),
            Err(e) => return self.fail(format!("the replica of {me} does not start: {e}")),
        }
        self.perform_replica(n, &mut actions);
        for link in 0..self.links.len() {
            if self.links[link].ends.contains(&me) {
                self.want_connection(link);
            }
        }
    }

    fn read_metadata(&self, n: usize) -> Result<holdfast_meta::Recovered, String> {
        let disk = self.nodes[n].disk.as_ref().ok_or("no disk")?;
        let recovered = crate::check::dirty::decode(disk.cached()).map_err(|e| e.to_string())?;
        recovered
            .superblock
            .check_identity(CLUSTER, VOLUME, self.nodes[n].id)
            .map_err(|e| e.to_string())?;
        Ok(recovered)
    }

    /// The daemon is gone: killed, or with its machine.
    pub(crate) fn end_daemon(&mut self, n: usize, power: bool) {
        let me = self.nodes[n].id;
        if self.nodes[n].process.take().is_some() {
            self.sees_end(n);
            self.checks.writer.lease_over(n);
            self.checks.consensus.gone(me);
            self.lanes_gone(n, power);
        }
        let node = &mut self.nodes[n];
        node.life += 1;
        node.timers = [None; 2];
        node.backlog.clear();
        node.paused = false;
        node.open_epoch = None;
        // A state write under way is there, or not, or torn.
        if let Some((_, slot, mut bytes)) = node.writing.take() {
            match node.rng.below(3) {
                0 => {}
                1 => node.state[slot] = bytes,
                _ => {
                    let torn = node.rng.below(bytes.len() as u64) as usize;
                    bytes.truncate(torn);
                    let old = std::mem::take(&mut node.state[slot]);
                    bytes.extend(old.into_iter().skip(torn));
                    node.state[slot] = bytes;
                }
            }
        }
        self.trace.news(self.now, me, || {
            if power {
                "loses power".into()
            } else {
                "daemon ends".into()
            }
        });
        if power {
            self.clear_host(n);
            if let Some(disk) = &mut self.nodes[n].disk {
                disk.power_cut();
            }
            let node = &mut self.nodes[n];
            if self.mutation != Some(Mutation::SameBoot) {
                node.boot_id = u128::from(node.rng.bits());
            }
            node.clock.zero_at = self.now;
            node.lost_at = self.now;
        } else {
            if let Some(disk) = &mut self.nodes[n].disk {
                disk.kill();
            }
            let life = self.nodes[n].life;
            let at = self.now + self.rng.host.below(50 * MS);
            self.agenda.at(at, Ev::DaemonGone { node: n, life });
        }
        self.mesh_gone(n, power);
    }

    /// A start after `delay`.
    pub(crate) fn start_later(&mut self, n: usize, delay: u64) {
        if !self.nodes[n].starting {
            self.nodes[n].starting = true;
            self.agenda.at(self.now + delay, Ev::Start { node: n });
        }
    }

    // ---- what reaches a daemon

    pub(crate) fn input(&mut self, n: usize, input: Input) {
        if !self.nodes[n].up() {
            return;
        }
        if self.nodes[n].paused {
            self.nodes[n].backlog.push_back(input);
            return;
        }
        match input {
            Input::Replica(event) => self.replica(n, event),
            Input::Control(event) => self.control(n, event),
        }
    }

    /// What a daemon finds when it goes on.
    pub(crate) fn resume(&mut self, n: usize) {
        if !self.nodes[n].up() || !self.nodes[n].paused {
            return;
        }
        self.trace
            .news(self.now, NodeId(n as u8), || "daemon goes on".into());
        self.nodes[n].paused = false;
        let timers_first = self.rng.fault.coin();
        if timers_first {
            self.tick_due(n);
        }
        while let Some(input) = self.nodes[n].backlog.pop_front() {
            self.input(n, input);
            if self.nodes[n].paused || self.outcome.is_some() {
                break;
            }
        }
        self.tick_due(n);
    }

    fn tick_due(&mut self, n: usize) {
        self.nodes[n].timers = [None; 2];
        for which in [REPLICA, CONTROL] {
            self.rearm(n, which);
            if self.nodes[n].timers[which].is_some_and(|at| at <= self.now) {
                let life = self.nodes[n].life;
                self.tick(n, life, which);
            }
        }
    }

    pub(crate) fn tick(&mut self, n: usize, life: u64, which: usize) {
        let node = &mut self.nodes[n];
        if node.life != life || node.timers[which] != Some(self.now) || node.paused {
            return;
        }
        node.timers[which] = None;
        let now = node.clock.local(self.now);
        if self.deadline(n, which).is_none_or(|at| at > now) {
            self.rearm(n, which);
        } else if which == REPLICA {
            self.replica(n, rep::Event::Tick);
        } else {
            self.control(n, control::Event::Tick);
        }
    }

    fn deadline(&self, n: usize, which: usize) -> Option<rep::Now> {
        let process = self.nodes[n].process.as_ref()?;
        if which == REPLICA {
            Some(process.replica.as_ref()?.deadline())
        } else {
            process.control.deadline()
        }
    }

    fn rearm(&mut self, n: usize, which: usize) {
        let Some(deadline) = self.deadline(n, which) else {
            return;
        };
        let node = &mut self.nodes[n];
        let at = node.clock.true_time(deadline).max(self.now);
        if node.timers[which].is_none_or(|t| at < t || t < self.now) {
            node.timers[which] = Some(at);
            self.agenda.at(
                at,
                Ev::Tick {
                    node: n,
                    life: node.life,
                    which,
                },
            );
        }
    }

    pub(crate) fn replica(&mut self, n: usize, event: rep::Event) {
        let me = self.nodes[n].id;
        self.trace.line(self.now, me, || {
            format!("replica <- {}", brief_event(&event))
        });
        match &event {
            rep::Event::Frame { peer, frame } => self.sees_frame(n, *peer, frame),
            rep::Event::PeerDown { peer } => self.sees_peer_down(n, *peer),
            rep::Event::Control(msg) => self.sees_order(n, msg),
            _ => {}
        }
        let now = self.nodes[n].clock.local(self.now);
        let Some(replica) = self.nodes[n]
            .process
            .as_mut()
            .and_then(|p| p.replica.as_mut())
        else {
            return;
        };
        let mut actions = std::mem::take(&mut self.actions);
        replica.handle(now, event, &mut actions);
        self.perform_replica(n, &mut actions);
        if self.actions.capacity() == 0 {
            self.actions = actions;
        }
    }

    pub(crate) fn control(&mut self, n: usize, event: control::Event) {
        let me = self.nodes[n].id;
        self.trace.line(self.now, me, || match &event {
            control::Event::Message { from, msg } => {
                format!("control <- {} from {from}", msg.word())
            }
            other => format!("control <- {other:?}"),
        });
        let now = self.nodes[n].clock.local(self.now);
        let Some(process) = self.nodes[n].process.as_mut() else {
            return;
        };
        let actions = process.control.handle(now, event);
        self.perform_control(n, actions);
    }

    /// Hands something from one thread of the daemon to the other, in order.
    fn hop(&mut self, n: usize, to: usize, input: Input) {
        let node = &mut self.nodes[n];
        let at = (self.now + self.rng.host.below(HOP_NS)).max(node.inbox_last[to]);
        node.inbox_last[to] = at;
        self.agenda.in_order(
            at,
            Ev::In {
                node: n,
                life: node.life,
                input,
            },
        );
    }

    // ---- what a replica wants

    fn perform_replica(&mut self, n: usize, actions: &mut Vec<rep::Action>) {
        let me = self.nodes[n].id;
        for action in actions.drain(..) {
            match action {
                rep::Action::Disk { io, op } => self.submit(n, io, op),
                rep::Action::Send { peer, frame } => self.send_frame(n, peer, &frame),
                rep::Action::Disconnect { peer } => self.disconnect(n, peer),
                rep::Action::Complete { req, result } => self.complete(n, req, result),
                rep::Action::Control(msg) => {
                    self.trace
                        .line(self.now, me, || format!("replica says {msg:?}"));
                    self.sees_word(n, &msg);
                    self.heard_from_replica(n, &msg);
                    let event = control::Event::Replica {
                        resource: RESOURCE_IX,
                        volume: VOLUME_IX,
                        msg,
                    };
                    self.hop(n, CONTROL, Input::Control(event));
                }
                rep::Action::MakeRoom { .. } => {
                    // Simulated disks have one size; growing is played in the replicator's own tests.
                    let event = rep::Event::Room { store_bytes: None };
                    self.hop(n, REPLICA, Input::Replica(event));
                }
                rep::Action::Note(note) => self.replica_note(n, note),
                rep::Action::Save(save) => {
                    let why = format!("G7: node {n} gives up a line of history unasked: {save:?}");
                    self.fail(why);
                }
            }
        }
        self.rearm(n, REPLICA);
    }

    fn submit(&mut self, n: usize, io: rep::IoId, op: rep::DiskOp) {
        let me = self.nodes[n].id;
        self.trace
            .line(self.now, me, || format!("disk {}: {}", io.0, brief_op(&op)));
        self.sees_submit(n, io, &op);
        let life = self.nodes[n].life;
        let area = self.layout.geometry.bytes();
        let meta = matches!(&op, rep::DiskOp::Write { offset, .. } if *offset >= area);
        if meta && self.mutation == Some(Mutation::EarlyMeta) {
            let event = rep::Event::DiskDone {
                io,
                result: Ok(Default::default()),
            };
            self.hop(n, REPLICA, Input::Replica(event));
        }
        if meta && self.mutation == Some(Mutation::BitmapsKept) && self.bitmap_write_after_heal(&op)
        {
            let event = rep::Event::DiskDone {
                io,
                result: Ok(Default::default()),
            };
            return self.hop(n, REPLICA, Input::Replica(event));
        }
        let Some(disk) = &mut self.nodes[n].disk else {
            return;
        };
        self.trace.mix(io.0 << 2 | kind_of(&op));
        let (key, at) = disk.submit(self.now, life, io, op);
        self.agenda.at(at, Ev::Disk { node: n, key });
    }

    fn bitmap_write_after_heal(&self, op: &rep::DiskOp) -> bool {
        let rep::DiskOp::Write { offset, .. } = op else {
            return false;
        };
        let (log, len) = self.layout.log_region();
        self.healed_at.is_some()
            && *offset < self.layout.superblock_offset
            && !(log..log + len).contains(offset)
    }

    pub(crate) fn disk_ends(&mut self, n: usize, key: u64) {
        let held = self.sees_landing(n, key);
        let meta = self.mutation == Some(Mutation::EarlyMeta)
            && self.nodes[n]
                .disk
                .as_ref()
                .and_then(|d| d.lands(self.now, key))
                .is_some_and(|l| l.offset >= self.layout.geometry.bytes());
        let Some(disk) = &mut self.nodes[n].disk else {
            return;
        };
        match disk.end(self.now, key) {
            Err(later) => self.agenda.at(later, Ev::Disk { node: n, key }),
            Ok(None) => {}
            Ok(Some(done)) => {
                if let Ok(bytes) = &done.result {
                    self.trace.mix_bytes(bytes);
                }
                self.sees_landed(n, held);
                if done.life == self.nodes[n].life {
                    self.checks.nodes[n].order.ended(done.io);
                    self.checks.nodes[n].bounds.ended(done.io);
                    self.refresh_stored(n);
                    if meta {
                        return;
                    }
                    let event = rep::Event::DiskDone {
                        io: done.io,
                        result: done.result,
                    };
                    self.input(n, Input::Replica(event));
                }
            }
        }
    }

    /// What a replica says is the earliest anybody knows of it.
    fn heard_from_replica(&mut self, n: usize, msg: &rep::ToControl) {
        match msg {
            rep::ToControl::Opened { epoch } => self.opened(n, epoch.0),
            rep::ToControl::DiskFailed { .. } => self.trace.mark("disk failed"),
            rep::ToControl::DiskIdle => self.trace.mark("failed disk is idle"),
            rep::ToControl::Stranded { .. } => self.trace.mark("stranded"),
            rep::ToControl::ProposeSet { why, .. } => self.trace.mark(match why {
                rep::SetChange::Lost => "member lost",
                rep::SetChange::Slow => "member slow",
                rep::SetChange::DiskFailed => "member's disk failed",
                rep::SetChange::Restarted => "member restarted",
                rep::SetChange::Strange => "member's disk strange",
                rep::SetChange::Invalidated => "member invalidated",
                rep::SetChange::Dismissed => "member dismissed",
                rep::SetChange::Synced => "member synced",
            }),
            rep::ToControl::Stopped => self.trace.mark("replica stopped in good order"),
            rep::ToControl::Started { .. }
            | rep::ToControl::Promised { .. }
            | rep::ToControl::Drained { .. }
            | rep::ToControl::Deposed { .. }
            | rep::ToControl::Room { .. }
            | rep::ToControl::NoRoom { .. } => {}
        }
    }

    fn replica_note(&mut self, n: usize, note: rep::Note) {
        let primary = self.checks.promotion.committed().and_then(|v| v.primary);
        if let rep::Note::Attached { peer, .. } = &note
            && primary == Some(self.nodes[n].id)
        {
            let beyond_telling = self.is_beyond_telling(usize::from(peer.0));
            let node = &mut self.nodes[usize::from(peer.0)];
            node.attached_at = self.now;
            node.beyond_telling = beyond_telling;
        }
        if let rep::Note::Verified(report) = &note {
            self.verified(n, report);
        }
        if let rep::Note::Repaired { range, wrong, .. } = &note {
            self.repaired(*range, *wrong);
        }
        match &note {
            rep::Note::Attached { member: true, .. } => self.trace.mark("member attached"),
            rep::Note::Attached { member: false, .. } => self.trace.mark("non-member attached"),
            rep::Note::Detached { .. } => self.trace.mark("session ended"),
            rep::Note::Resynced { equal_blocks, .. } if *equal_blocks > 0 => {
                self.trace.mark("resync found equal blocks");
            }
            rep::Note::Resynced { .. } => self.trace.mark("resync complete"),
            rep::Note::Distrusted { why, .. } => self.trace.mark(match why {
                Strange::Replaced => "other disk distrusted",
                Strange::WentBack => "disk that went back distrusted",
                Strange::Recorded => "disk distrusted by the record",
            }),
            rep::Note::Discarded { .. } => self.trace.mark("a line of history given up"),
            rep::Note::Split { .. } => self.trace.mark("two lines of history met"),
            rep::Note::Reconciled { blocks: 0 } => self.trace.mark("nothing to reconcile"),
            rep::Note::Reconciled { .. } => {
                self.mark_reconciled();
                self.trace.mark("reconciled");
            }
            rep::Note::Verified(report) if report.refused.is_some() => {
                self.trace.mark("verify refused");
            }
            rep::Note::Verified(report) if report.is_complete() => self.trace.mark("verify ended"),
            rep::Note::Verified(_) => self.trace.mark("verify cut short"),
            rep::Note::Repaired { .. } => self.trace.mark("repaired"),
            rep::Note::Resized { .. } => self.trace.mark("resized"),
            rep::Note::DiskFailed { .. } => self.trace.mark("disk failure noted"),
            rep::Note::Unreadable { .. } => self.trace.mark("unreadable block"),
            rep::Note::Healed { .. } => self.trace.mark("unreadable block healed"),
            rep::Note::Protocol { .. } => self.trace.mark("protocol note"),
        }
        if let rep::Note::Distrusted {
            peer,
            why: Strange::WentBack,
        } = &note
            && self.nodes[usize::from(peer.0)].put_back.is_none()
        {
            let why = format!("G8: node {n} takes the disk of {peer} for one that went back");
            self.fail(why);
        }
        if let rep::Note::Protocol { peer, what } = &note {
            let why = format!("G7: node {n} finds {peer} at fault: {what}");
            self.fail(why);
        }
        self.trace
            .news(self.now, NodeId(n as u8), || format!("{note:?}"));
    }

    // ---- what a control plane wants

    fn perform_control(&mut self, n: usize, actions: Vec<control::Action>) {
        let me = self.nodes[n].id;
        for action in actions {
            match action {
                control::Action::Persist { ticket, bytes } => self.persist(n, ticket, &bytes),
                control::Action::Send { to, msg } => self.send_message(n, to, &msg),
                control::Action::Replica { mut msg, .. } => {
                    if let control::FromControl::Lease { until } = &mut msg
                        && self.mutation == Some(Mutation::LeaseStretched)
                    {
                        *until = until.plus_ms(STRETCH_MS);
                    }
                    self.trace
                        .line(self.now, me, || format!("control says {msg:?}"));
                    if let control::FromControl::View(view) | control::FromControl::Lead(view) =
                        &msg
                    {
                        self.committed(n, *view);
                    }
                    self.lease_news(n, &msg);
                    self.hop(n, REPLICA, Input::Replica(rep::Event::Control(msg)));
                }
                control::Action::Host { step, .. } => self.host_step(n, step),
                control::Action::LeaseDeadline { until, .. } => self.lease_deadline(n, until),
                control::Action::Forget { .. } => {
                    self.trace.mark("removed replica forgotten");
                    if let Some(process) = &mut self.nodes[n].process {
                        process.replica = None;
                    }
                }
                control::Action::Reopen { .. } => {
                    let life = self.nodes[n].life;
                    self.agenda.in_order(
                        self.now,
                        Ev::Undo(crate::faults::Undo::Reopen { node: n, life }),
                    );
                }
                control::Action::Reply { reply, .. } => self.admin_reply(n, &reply),
                control::Action::Note(note) => self.control_note(n, &note),
                control::Action::Stopped => {
                    let life = self.nodes[n].life;
                    self.agenda.in_order(
                        self.now,
                        Ev::Undo(crate::faults::Undo::Stopped { node: n, life }),
                    );
                }
            }
        }
        self.rearm(n, CONTROL);
    }

    fn lease_news(&mut self, n: usize, msg: &control::FromControl) {
        match msg {
            control::FromControl::Lease { until } => {
                let until = self.nodes[n].clock.true_time(*until);
                let result = self.checks.writer.lease(self.now, n, until);
                self.must(result);
            }
            control::FromControl::StepDown => {
                self.checks.writer.lease_over(n);
                let planned = self.nodes[n].host.stopping;
                let result = self.checks.services.steps_down(n, planned);
                self.must(result);
            }
            _ => {}
        }
    }

    fn persist(&mut self, n: usize, ticket: control::Ticket, bytes: &[u8]) {
        self.trace.mix_bytes(bytes);
        self.must(Bounds::state(bytes.len()));
        if self.mutation == Some(Mutation::VoteForgotten) {
            self.nodes[n].writing = None;
            let event = control::Event::Persisted { ticket };
            self.hop(n, CONTROL, Input::Control(event));
        }
        let node = &mut self.nodes[n];
        if node.writing.is_some() {
            return self.fail(format!("node {n} persists its control state twice at once"));
        }
        let Some(process) = &mut node.process else {
            return;
        };
        let (slot, bytes) = process.slots.next(bytes);
        node.writing = Some((ticket, slot, bytes));
        let mut delay = 50 * US + node.rng.below(3 * MS);
        if self.mutation == Some(Mutation::VoteForgotten) {
            delay += FORGOTTEN_NS;
        }
        self.agenda.at(
            self.now + delay,
            Ev::Persisted {
                node: n,
                life: node.life,
            },
        );
    }

    pub(crate) fn persisted(&mut self, n: usize, life: u64) {
        let node = &mut self.nodes[n];
        if node.life != life {
            return;
        }
        if let Some((ticket, slot, bytes)) = node.writing.take() {
            node.state[slot] = bytes;
            if self.mutation == Some(Mutation::VoteForgotten) {
                return;
            }
            self.input(n, Input::Control(control::Event::Persisted { ticket }));
        }
    }

    fn control_note(&mut self, n: usize, note: &control::Note) {
        let me = self.nodes[n].id;
        match note {
            // What others believe of a leader may be of an older term; what it says of itself must be true.
            control::Note::Leader { leader, term } if *leader == Some(me) => {
                let result = self.checks.consensus.leader(me, *term);
                self.must(result);
            }
            control::Note::VoterAdmitted { .. } if self.state_lost => {
                self.trace.mark("voter admitted anew");
            }
            control::Note::Candidate { .. } => self.trace.mark("candidate"),
            control::Note::Withdrawn { .. } => self.trace.mark("candidate withdrawn"),
            control::Note::SteppingDown { why, .. } => {
                self.nodes[n].host.stopping = false;
                self.trace.mark(match why {
                    control::StepDownReason::LeaseLost => "stepped down: lease lost",
                    control::StepDownReason::Deposed => "stepped down: deposed",
                    control::StepDownReason::HandOver { .. } => "stepped down: handed over",
                    control::StepDownReason::Demoted => "stepped down: demoted",
                    control::StepDownReason::DiskFailed => "stepped down: disk failed",
                    control::StepDownReason::Restarted => "stepped down: replica restarted",
                    control::StepDownReason::Shutdown => "stepped down: shutdown",
                });
            }
            control::Note::Protocol { from, what } => {
                self.trace.mark("control protocol note");
                self.trace.line(self.now, me, || {
                    format!("control finds {from} at fault: {what}")
                });
            }
            control::Note::Formed
            | control::Note::Leader { .. }
            | control::Note::VoterAdmitted { .. }
            | control::Note::Detected { .. }
            | control::Note::Promoted { .. }
            | control::Note::Opened { .. }
            | control::Note::Step { .. }
            | control::Note::StepFailed { .. }
            | control::Note::Up { .. }
            | control::Note::SteppedDown { .. }
            | control::Note::SetChanged { .. } => {}
        }
        // What is applied again after a start is no news.
        let stale = matches!(
            note,
            control::Note::VoterAdmitted { .. }
                | control::Note::Promoted { .. }
                | control::Note::SetChanged { .. }
        );
        if stale {
            self.trace.line(self.now, me, || format!("{note:?}"));
        } else {
            self.trace.news(self.now, me, || format!("{note:?}"));
        }
    }
}
