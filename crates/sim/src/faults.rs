//! Faults: what goes wrong, when, and how it ends.
//!
//! The budget: a copy is destroyed (wiped, or its disk fails) only where another member of the committed
//! set is healthy and unharmed, and one machine at a time; one voter per run loses its control state. A disk that lies
//! about flushes counts as harmed, and excuses what is claimed of its stable storage, nothing else; when its machine loses power it
//! is replaced. All else may coincide. If the faults destroy the last good copy all the same, the run ends as unrecoverable.

use crate::disk::{Disk, Errors};
use crate::plan::{Step, What};
use crate::rng::{Ratio, Rng};
use crate::scenario::{Fault, MS, S};
use crate::world::{Ev, World};
use holdfast_control::{self as control, AdminId, AdminRequest, VolumeIx};
use holdfast_meta::BitmapStart;
use holdfast_replicator as rep;
use holdfast_types::NodeId;

/// What ends after a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Undo {
    /// A stopped daemon goes on.
    Resume { node: usize, life: u64 },
    /// A blocked way opens.
    Open { data: bool, from: usize, to: usize },
    /// A slow lane is as fast as before.
    Unclog {
        link: usize,
        way: usize,
        lane: usize,
    },
    /// Control messages are as fast as before.
    UnclogMessages { from: usize, to: usize },
    /// A slow disk is as fast as before.
    Fast { node: usize },
    /// A failed disk is replaced by a blank one.
    Replace { node: usize },
    /// A replica starts anew under its daemon.
    Reopen { node: usize, life: u64 },
    /// A new primary is struck.
    Strike { node: usize, life: u64 },
    /// A daemon has stopped in good order (or takes too long about it).
    Stopped { node: usize, life: u64 },
}

/// A slow disk is this many times slower.
const SLOW_TIMES: u64 = 30;
/// A daemon that does not stop in good order is killed after this.
const STOP_NS: u64 = 5 * S;
/// A disk that ends nothing for so long is reported as stalled.
const STALL_NS: u64 = S;

impl World {
    pub(crate) fn fault_due(&mut self, fault: Fault) {
        if self.healed_at.is_some() {
            return;
        }
        let gap = self
            .scenario
            .faults
            .iter()
            .find(|f| f.0 == fault)
            .map_or(S, |f| f.1);
        let next = self.now + 1 + self.rng.fault.below(2 * gap);
        self.agenda.first(next, Ev::Fault(fault));
        let dice = self.rng.fault.bits();
        self.decide(fault, dice);
    }

    /// A decision of the script is due.
    pub(crate) fn step_due(&mut self, index: usize) {
        let Some(step) = self.script.as_ref().and_then(|s| s.get(index)).copied() else {
            return;
        };
        match step.what {
            What::Strike(fault) if self.healed_at.is_none() => self.decide(fault, step.dice),
            What::Strike(_) => {}
            What::Ask(node) => self.scripted_ask(usize::from(node), step.dice),
        }
    }

    /// A fault strikes. Its details come from the dice, so that they do not depend on what was decided before.
    fn decide(&mut self, fault: Fault, dice: u64) {
        self.decisions.push(Step {
            at: self.now,
            what: What::Strike(fault),
            dice,
        });
        self.with_dice(dice, |w| w.strike_class(fault));
    }

    /// What follows later from faults draws from a stream of its own.
    pub(crate) fn aftermath<R>(&mut self, act: impl FnOnce(&mut Self) -> R) -> R {
        let dice = self.rng.undo.bits();
        self.with_dice(dice, act)
    }

    fn with_dice<R>(&mut self, dice: u64, act: impl FnOnce(&mut Self) -> R) -> R {
        let saved = std::mem::replace(&mut self.rng.fault, Rng::stream(dice, "dice"));
        let result = act(self);
        self.rng.fault = saved;
        result
    }

    fn strike_class(&mut self, fault: Fault) {
        let n = self.rng.fault.below(self.nodes.len() as u64) as usize;
        let d = self.rng.fault.below(self.scenario.data_nodes.into()) as usize;
        match fault {
            Fault::Kill => {
                let n = if self.rng.fault.coin() {
                    self.primary_or(d)
                } else {
                    n
                };
                self.kill(n);
            }
            Fault::PowerCut => {
                let n = if self.rng.fault.coin() {
                    self.primary_or(d)
                } else {
                    n
                };
                let delay = self.downtime();
                self.cut_power(n, delay);
            }
            Fault::PowerAll => {
                // Rarer than its peers: little survives it to look at.
                if self.rng.fault.below(3) == 0 {
                    for n in 0..self.nodes.len() {
                        let delay = self.downtime();
                        self.cut_power(n, delay);
                    }
                    self.trace.mark("all power cut");
                }
            }
            Fault::Pause => {
                let n = if self.rng.fault.coin() {
                    self.primary_or(d)
                } else {
                    n
                };
                self.pause(n);
            }
            Fault::Partition => self.partition(n),
            Fault::LinkBreak => {
                let link = self.rng.fault.below(self.links.len() as u64) as usize;
                self.trace
                    .news(self.now, "net", || format!("connection {link} breaks"));
                self.break_link(link);
            }
            Fault::Clog => self.clog(n),
            Fault::DiskErrors => self.disk_errors(d),
            Fault::DiskHang => {
                let until = self.now + self.rng.fault.between(50 * MS, 6 * S);
                if let Some(disk) = &mut self.nodes[d].disk {
                    disk.hung_until = until;
                }
                self.trace.news(self.now, NodeId(d as u8), || {
                    format!("disk hangs until {:.3} ms", until as f64 / 1e6)
                });
                self.agenda.at(self.now + STALL_NS, Ev::Stall { node: d });
            }
            Fault::DiskSlow => {
                let normal = self.scenario.disks[d];
                if let Some(disk) = &mut self.nodes[d].disk {
                    disk.latency.spread_ns = normal.spread_ns * SLOW_TIMES;
                }
                let at = self.now + self.rng.fault.between(100 * MS, 5 * S);
                self.agenda.at(at, Ev::Undo(Undo::Fast { node: d }));
            }
            Fault::BadSector => self.bad_sector(d),
            Fault::NoSpace => self.no_space(d),
            Fault::LyingFlush => self.lying_flush(d),
            Fault::ClockLeap => self.clock_leap(n),
            Fault::Wipe => self.wipe(d),
            Fault::Revert => self.revert(d),
            Fault::Members => self.change_members(d),
            Fault::StateLoss => self.lose_state(n),
            Fault::Promote => {
                let request = AdminRequest::Promote {
                    resource: crate::world::RESOURCE.into(),
                    node: Some(NodeId(d as u8)),
                    force: None,
                };
                self.admin(n, request);
            }
            Fault::Verify => {
                let (resource, volume, node) = (
                    crate::world::RESOURCE.to_string(),
                    Some(VolumeIx(0)),
                    NodeId(d as u8),
                );
                let request = if self.rng.fault.below(4) == 0 {
                    AdminRequest::Invalidate {
                        resource,
                        volume,
                        node,
                    }
                } else {
                    AdminRequest::Verify {
                        resource,
                        volume,
                        order: self.verify_order(),
                    }
                };
                self.admin(n, request);
            }
            Fault::CleanRestart => self.stop_cleanly(n),
            Fault::Aftermath => self.strike_at_opening = true,
        }
    }

    /// A verify of all members, now and then with repair: in a healthy cluster there is nothing to repair, and nothing
    /// may come of it.
    fn verify_order(&mut self) -> rep::VerifyOrder {
        let repair = match self.rng.fault.below(4) {
            0 => Some(rep::Repair::Majority),
            1 => Some(rep::Repair::Source(NodeId(
                self.rng.fault.below(self.scenario.data_nodes.into()) as u8,
            ))),
            _ => None,
        };
        rep::VerifyOrder {
            repair,
            ..rep::VerifyOrder::default()
        }
    }

    /// A second failure in the middle of a failover.
    pub(crate) fn strike(&mut self, n: usize) {
        if !std::mem::take(&mut self.strike_at_opening) || self.healed_at.is_some() {
            return;
        }
        let delay = self.rng.fault.below(30 * MS);
        let life = self.nodes[n].life;
        self.agenda
            .at(self.now + delay, Ev::Undo(Undo::Strike { node: n, life }));
    }

    fn struck(&mut self, n: usize) {
        self.trace.mark("struck while opening");
        match self.rng.fault.below(3) {
            0 => self.kill(n),
            1 => {
                let delay = self.downtime();
                self.cut_power(n, delay);
            }
            _ => self.pause(n),
        }
    }

    fn primary_or(&mut self, other: usize) -> usize {
        self.nodes
            .iter()
            .position(|n| n.open_epoch.is_some())
            .unwrap_or(other)
    }

    pub(crate) fn downtime(&mut self) -> u64 {
        let longest = *self.rng.fault.pick(&[200 * MS, 2 * S, 8 * S]);
        self.rng.fault.between(10 * MS, longest)
    }

    fn kill(&mut self, n: usize) {
        if !self.nodes[n].up() {
            return;
        }
        self.trace.mark("killed");
        self.compare_now();
        self.end_daemon(n, false);
        let delay = self.downtime();
        self.start_later(n, delay);
    }

    pub(crate) fn cut_power(&mut self, n: usize, delay: u64) {
        self.trace.mark("power cut");
        self.compare_now();
        self.lose_power(n);
        self.start_later(n, delay);
        self.compare_now();
    }

    fn lose_power(&mut self, n: usize) {
        if self.nodes[n].lying() {
            if self.expendable(n) {
                return self.exchange_disk(n);
            }
            // It must not be lost: it was lucky.
            if let Some(disk) = &mut self.nodes[n].disk {
                disk.come_clean();
            }
        }
        let node = &self.nodes[n];
        // A daemon that stopped in good order has nothing to lose.
        let stopped_clean = node.process.is_none() && node.data && self.clean_mark(n);
        let had = self.caches_data(n);
        let node = &mut self.nodes[n];
        if !stopped_clean {
            node.unclean = node.data;
            node.lossy |= had;
        }
        self.end_daemon(n, true);
        // A later start may have been on its way to the disk: it comes back as one that was running.
        let started = stopped_clean && !self.clean_mark(n);
        self.nodes[n].unclean |= started;
    }

    /// Has the disk data in its cache, or on its way, that would be lost with its power?
    fn caches_data(&self, n: usize) -> bool {
        let area = self.layout.geometry.bytes() as usize;
        let differs = |d: &crate::disk::Disk| d.cached()[..area] != d.stable()[..area];
        self.nodes[n]
            .disk
            .as_ref()
            .is_some_and(|d| differs(d) || !d.idle())
    }

    fn clean_mark(&self, n: usize) -> bool {
        self.nodes[n]
            .disk
            .as_ref()
            .and_then(|d| crate::check::dirty::decode(d.stable()).ok())
            .is_some_and(|r| r.superblock.clean)
    }

    fn pause(&mut self, n: usize) {
        if !self.nodes[n].up() || self.nodes[n].paused {
            return;
        }
        self.trace.mark("paused");
        self.nodes[n].paused = true;
        let longest = *self.rng.fault.pick(&[300 * MS, 3 * S, 10 * S]);
        let length = self.rng.fault.between(10 * MS, longest);
        self.trace.news(self.now, NodeId(n as u8), || {
            format!("daemon is stopped for {} ms", length / MS)
        });
        let life = self.nodes[n].life;
        self.agenda
            .at(self.now + length, Ev::Undo(Undo::Resume { node: n, life }));
    }

    fn partition(&mut self, n: usize) {
        let networks = match self.rng.fault.below(3) {
            0 => vec![true],
            1 => vec![false],
            _ => vec![true, false],
        };
        let all = 0..self.nodes.len();
        // One pair, one machine from all others, or two sides.
        let mut pairs: Vec<(usize, usize)> = match self.rng.fault.below(3) {
            0 => {
                let other = (n + 1 + self.rng.fault.below(self.nodes.len() as u64 - 1) as usize)
                    % self.nodes.len();
                vec![(n, other)]
            }
            1 => all.clone().filter(|&m| m != n).map(|m| (n, m)).collect(),
            _ => {
                let side = self.rng.fault.bits();
                let of = |m: usize| side >> m & 1 == 1;
                all.clone()
                    .flat_map(|a| all.clone().map(move |b| (a, b)))
                    .filter(|&(a, b)| of(a) && !of(b))
                    .collect()
            }
        };
        match self.rng.fault.below(3) {
            0 => {}
            1 => pairs.iter_mut().for_each(|p| *p = (p.1, p.0)),
            _ => pairs.extend(pairs.clone().into_iter().map(|(a, b)| (b, a))),
        }
        let longest = *self.rng.fault.pick(&[500 * MS, 3 * S, 10 * S]);
        let end = self.now + self.rng.fault.between(20 * MS, longest);
        self.trace.news(self.now, "net", || {
            format!(
                "{} blocked until {:.3} ms: {pairs:?}",
                if networks.len() == 2 {
                    "all"
                } else if networks[0] {
                    "data"
                } else {
                    "control"
                },
                end as f64 / 1e6
            )
        });
        self.trace.mark("partition");
        for &data in &networks {
            for &(from, to) in &pairs {
                let blocks = if data {
                    &mut self.data_blocks
                } else {
                    &mut self.message_blocks
                };
                blocks.block(from, to);
                self.agenda.at(end, Ev::Undo(Undo::Open { data, from, to }));
                if data && let Some(link) = self.link_of(NodeId(from as u8), NodeId(to as u8)) {
                    let conn = self.links[link].conn;
                    self.give_up_later(link, conn);
                }
            }
        }
    }

    fn clog(&mut self, n: usize) {
        let length = self.rng.fault.between(20 * MS, 4 * S);
        let by = self.rng.fault.between(MS, 800 * MS);
        if self.rng.fault.coin() {
            let link = self.rng.fault.below(self.links.len() as u64) as usize;
            let (way, lane) = (
                self.rng.fault.below(2) as usize,
                self.rng.fault.below(2) as usize,
            );
            self.links[link].ways[way].clog_ns[lane] = by;
            self.agenda.at(
                self.now + length,
                Ev::Undo(Undo::Unclog { link, way, lane }),
            );
        } else {
            let to = self.rng.fault.below(self.nodes.len() as u64) as usize;
            self.message_clog_ns[n][to] = by;
            self.agenda.at(
                self.now + length,
                Ev::Undo(Undo::UnclogMessages { from: n, to }),
            );
        }
    }

    /// May the copy on `n` be destroyed? See the budget above.
    pub(crate) fn expendable(&self, n: usize) -> bool {
        let members = self.checks.promotion.in_sync();
        let unharmed = |m: &crate::node::SimNode| {
            m.data
                && !m.bad_disk
                && !m.strange_disk
                && !m.unclean
                && !m.lying()
                && members.has(m.id)
        };
        let harmed = self
            .nodes
            .iter()
            .any(|m| m.bad_disk || m.strange_disk || m.lying());
        let primary = self.checks.promotion.committed().and_then(|v| v.primary);
        let me = self.nodes[n].id;
        self.created
            && !harmed
            && primary != Some(me)
            && self
                .nodes
                .iter()
                .any(|m| m.id != me && m.up() && unharmed(m))
    }

    /// May the disk of `n` fail? Its copy is lost then.
    pub(crate) fn may_fail(&self, n: usize) -> bool {
        // The primary's disk may fail as well, as long as it is not the last.
        let members = self.checks.promotion.in_sync();
        let harmed = self
            .nodes
            .iter()
            .any(|m| m.bad_disk || m.strange_disk || m.unclean || m.lying());
        let last = !self.expendable(n) && (harmed || members.len() < 2);
        !last && self.nodes[n].up()
    }

    fn disk_errors(&mut self, n: usize) {
        if !self.may_fail(n) {
            return;
        }
        let kinds = [
            Errors {
                write: Ratio::new(1, 1),
                flush: Ratio::new(1, 1),
                read: Ratio::NEVER,
            },
            Errors {
                write: Ratio::new(1, 20),
                ..Errors::NONE
            },
            Errors {
                flush: Ratio::new(1, 2),
                ..Errors::NONE
            },
            Errors {
                read: Ratio::new(1, 10),
                ..Errors::NONE
            },
        ];
        let errors = *self.rng.fault.pick(&kinds);
        self.trace.mark("disk errors");
        self.fail_disk(n, errors, |_| {});
    }

    /// A disk begins to fail; some time later somebody sees to it.
    pub(crate) fn fail_disk(&mut self, n: usize, errors: Errors, how: impl FnOnce(&mut Disk)) {
        self.trace.news(self.now, NodeId(n as u8), || {
            format!("disk fails: {errors:?}")
        });
        self.nodes[n].bad_disk = true;
        if let Some(disk) = &mut self.nodes[n].disk {
            disk.errors = errors;
            how(disk);
        }
        let at = self.now + self.rng.fault.between(S, 8 * S);
        self.agenda.at(at, Ev::Undo(Undo::Replace { node: n }));
    }

    fn wipe(&mut self, n: usize) {
        if self.expendable(n) && self.rng.fault.coin() {
            let delay = self.downtime();
            self.replace_disk(n, delay);
        }
    }

    /// An operator removes a replica, or adds one.
    fn change_members(&mut self, n: usize) {
        let Some(view) = self.checks.promotion.committed() else {
            return;
        };
        if !view.data_nodes.has(NodeId(n as u8)) {
            return self.take_in(n);
        }
        let asked = self.rng.fault.below(self.nodes.len() as u64) as usize;
        let request = AdminRequest::ReplicaRemove {
            resource: crate::world::RESOURCE.into(),
            volume: VolumeIx(0),
            node: NodeId(n as u8),
        };
        self.admin(asked, request);
    }

    /// A machine whose replica was removed gets a blank disk, and the operator has it taken in again. Repeated until it is.
    fn take_in(&mut self, n: usize) {
        if !self.nodes[n].adding {
            self.nodes[n].adding = true;
            self.trace.mark("replica added again");
            let delay = self.downtime();
            self.replace_disk(n, delay);
        }
        let request = AdminRequest::ReplicaAdd {
            resource: crate::world::RESOURCE.into(),
            volume: VolumeIx(0),
            node: NodeId(n as u8),
            incarnation: self.nodes[n].incarnation,
        };
        let asked = self.primary_or(n);
        self.admin(asked, request);
    }

    /// In the end every machine has a replica.
    pub(crate) fn take_in_all(&mut self) {
        let Some(view) = self.checks.promotion.committed() else {
            return;
        };
        for n in 0..usize::from(self.scenario.data_nodes) {
            if !view.data_nodes.has(NodeId(n as u8)) {
                self.take_in(n);
            }
        }
    }

    /// The machine is switched off, gets a blank disk, and comes back.
    pub(crate) fn replace_disk(&mut self, n: usize, delay: u64) {
        self.exchange_disk(n);
        self.start_later(n, delay);
    }

    fn exchange_disk(&mut self, n: usize) {
        self.trace.mark("disk replaced");
        self.trace
            .news(self.now, NodeId(n as u8), || "gets a blank disk".into());
        self.end_daemon(n, true);
        let node = &mut self.nodes[n];
        if let Some(disk) = &mut node.disk {
            disk.wipe();
        }
        node.bad_disk = false;
        node.strange_disk = true;
        node.snapshot = None; // of another disk
        node.replaced_at = self.now;
        node.unclean = true;
        node.lossy = true;
        self.initialise(n, BitmapStart::AllDirty);
        self.checks.nodes[n].direction.exchanged();
    }

    /// An operator sees to a failed disk: replaces it, unless it holds what no other disk holds for sure. Then he waits for
    /// better times, and in the end repairs it: what it has not failed to write is still there.
    fn mend_disk(&mut self, n: usize) {
        let committed = self.checks.promotion.committed();
        let members = self.checks.promotion.in_sync();
        let me = self.nodes[n].id;
        let whole = |m: &crate::node::SimNode| !m.bad_disk && !m.strange_disk && !m.unclean;
        let others = self
            .nodes
            .iter()
            .any(|m| m.id != me && members.has(m.id) && whole(m));
        let primary = committed.and_then(|v| v.primary) == Some(me);
        let delay = self.downtime();
        if !members.has(me) || (others && !primary) {
            self.replace_disk(n, delay);
        } else if self.healed_at.is_none() {
            self.agenda
                .at(self.now + S, Ev::Undo(Undo::Replace { node: n }));
        } else {
            self.trace.mark("failed disk repaired");
            self.trace
                .news(self.now, me, || "failed disk is repaired".into());
            // With the machine off. (A disk that resets under a living machine is an unclean stop that nobody sees: what
            // the cluster does not hear of before, it cannot remember.)
            self.lose_power(n);
            self.nodes[n].bad_disk = false;
            if let Some(disk) = &mut self.nodes[n].disk {
                disk.repair();
            }
            self.start_later(n, delay);
        }
    }

    pub(crate) fn lose_state(&mut self, n: usize) {
        if self.state_lost || !self.created || !self.nodes.iter().all(|m| m.up() && !m.paused) {
            return;
        }
        self.state_lost = true;
        self.trace.mark("control state lost");
        self.end_daemon(n, false);
        self.nodes[n].state = Default::default();
        let delay = self.downtime();
        self.start_later(n, delay);
    }

    pub(crate) fn stop_cleanly(&mut self, n: usize) {
        let node = &self.nodes[n];
        if !node.up() || node.paused || node.stopping {
            return;
        }
        self.trace.mark("orderly stop");
        self.nodes[n].stopping = true;
        let life = self.nodes[n].life;
        self.agenda.at(
            self.now + STOP_NS,
            Ev::Undo(Undo::Stopped { node: n, life }),
        );
        self.control(n, control::Event::Stop);
    }

    pub(crate) fn undo(&mut self, undo: Undo) {
        match undo {
            Undo::Resume { node, life } => {
                if self.nodes[node].life == life {
                    self.resume(node);
                }
            }
            Undo::Open { data, from, to } => self.open_way(data, from, to),
            Undo::Unclog { link, way, lane } => self.links[link].ways[way].clog_ns[lane] = 0,
            Undo::UnclogMessages { from, to } => self.message_clog_ns[from][to] = 0,
            Undo::Fast { node } => {
                let normal = self.scenario.disks[node];
                if let Some(disk) = &mut self.nodes[node].disk {
                    disk.latency = normal;
                }
            }
            Undo::Replace { node } => {
                if self.nodes[node].bad_disk {
                    self.mend_disk(node);
                }
            }
            Undo::Reopen { node, life } => self.reopen(node, life),
            Undo::Strike { node, life } => {
                if self.nodes[node].life == life && self.healed_at.is_none() {
                    self.struck(node);
                }
            }
            Undo::Stopped { node, life } => {
                if self.nodes[node].life == life {
                    self.end_daemon(node, false);
                    let delay = self.downtime();
                    self.start_later(node, delay);
                }
            }
        }
    }

    fn open_way(&mut self, data: bool, from: usize, to: usize) {
        if !data {
            self.message_blocks.open(from, to);
            return;
        }
        if self.data_blocks.open(from, to)
            && let Some(link) = self.link_of(NodeId(from as u8), NodeId(to as u8))
        {
            let end = self.links[link].end_of(NodeId(from as u8));
            self.release_held(link, end);
        }
    }

    pub(crate) fn look_for_stall(&mut self, n: usize) {
        let Some(disk) = &self.nodes[n].disk else {
            return;
        };
        let hangs = self.now < disk.hung_until;
        let stalled = hangs && !disk.idle();
        if hangs {
            let again = (self.now + STALL_NS / 4).min(disk.hung_until);
            self.agenda.at(again, Ev::Stall { node: n });
        }
        if stalled != self.nodes[n].stalled && self.nodes[n].up() {
            self.nodes[n].stalled = stalled;
            self.trace.mark("disk stalled");
            let resource = control::ResourceIx(0);
            self.input(
                n,
                crate::node::Input::Control(control::Event::DiskStalled { resource, stalled }),
            );
        }
    }

    pub(crate) fn admin(&mut self, n: usize, request: AdminRequest) {
        self.admin_id += 1;
        let id = AdminId(self.admin_id);
        self.trace.news(self.now, NodeId(n as u8), || {
            format!("operator: {request:?}")
        });
        self.input(
            n,
            crate::node::Input::Control(control::Event::Admin { id, request }),
        );
    }
}
