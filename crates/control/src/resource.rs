//! The life of a resource on a node: Secondary, candidate, leading, starting, primary, stopping.
//!
//! Everything here is driven by comparing what is committed with what this node does ([`Node::drive`] after
//! every event); messages only bring news. The order of acts is that of the design: promise on the own disks,
//! fences at a majority, compare-and-swap, lead, lease, device, mounts, services, addresses; and backwards.
//!
//! Invariants
//! - a proposal of an epoch is made only after all local replicas stored their promise of it (rule 1);
//! - a promise is taken back only when the proposal was never made or is definitely dead;
//! - host steps are started only under a valid lease, and stopped by force when it ends;
//! - this node releases its lease only when nothing of the resource is left on the host.

use crate::api::*;
use crate::message::{Body, ResourceHello};
use crate::node::Node;
use crate::state::{Command, ResourceRecord};
use holdfast_types::{DiskState, Epoch, Gen, Incarnation, NodeId, NodeSet, Run};
use std::collections::{BTreeMap, BTreeSet};

const START_STEPS: [HostStep; 4] = [
    HostStep::OpenDevice,
    HostStep::Mount,
    HostStep::StartServices,
    HostStep::AddVips,
];
/// A planned stop whose step failed so often is called off.
const STOP_FAILURES_MAX: u32 = 3;

fn stop_steps(forced: bool) -> [HostStep; 4] {
    [
        HostStep::RemoveVips { forced },
        HostStep::StopServices { forced },
        HostStep::Unmount { forced },
        HostStep::CloseDevice { forced },
    ]
}

/// A local replica that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Started {
    pub(crate) incarnation: Incarnation,
    pub(crate) run: Run,
    pub(crate) unclean: bool,
    pub(crate) promised: Epoch,
    pub(crate) disk: DiskState,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Local {
    pub(crate) started: Option<Started>,
    pub(crate) failed: bool,
    stop_sent: bool,
    stopped: bool,
    view_sent: Option<Gen>,
    seen_at: Now,
    /// Promises of its former life were taken back.
    recalled: bool,
}

/// A candidacy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stand {
    pub(crate) epoch: Epoch,
    pub(crate) generation: Gen,
    /// The new lineage, if an operator forces it.
    pub(crate) forced: Option<u64>,
    /// A local replica restarted meanwhile: its promise is not worth anything.
    pub(crate) broken: bool,
}

/// A stop under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stop {
    pub(crate) epoch: Epoch,
    pub(crate) why: StepDownReason,
    pub(crate) forced: bool,
    step: usize,
    retry_at: Option<Now>,
    failures: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Secondary,
    Promising {
        stand: Stand,
        waiting: BTreeSet<VolumeIx>,
        until: Now,
    },
    Fencing {
        stand: Stand,
        fenced: NodeSet,
        again: Now,
        until: Now,
    },
    Proposing {
        stand: Stand,
        again: Now,
    },
    Leading {
        epoch: Epoch,
        waiting: BTreeSet<VolumeIx>,
        lease_by: Now,
    },
    Starting {
        epoch: Epoch,
        step: usize,
        retry_at: Option<Now>,
    },
    Up {
        epoch: Epoch,
    },
    Stopping(Stop),
    Draining {
        stop: Stop,
        waiting: BTreeSet<VolumeIx>,
        until: Now,
    },
}

#[derive(Debug, Default)]
struct Poll {
    nonce: u64,
    at: Now,
    replies: BTreeMap<NodeId, Option<u64>>,
    free_since: Option<Now>,
}

#[derive(Debug)]
pub(crate) struct Resource {
    /// This node holds replicas of it.
    member: bool,
    pub(crate) locals: Vec<Local>,
    pub(crate) phase: Phase,
    pub(crate) stalled: bool,
    lease: Option<Now>,
    /// Since when this node knows of the current epoch.
    epoch_since: (Epoch, Now),
    detected: Option<Epoch>,
    poll: Poll,
    /// The holder of this epoch asked this node to take over.
    hint: Option<Epoch>,
    /// An operator's force counts until then.
    pub(crate) force_until: Option<Now>,
    hold_back: Now,
    /// Handed over in this epoch, and not taken yet.
    handed: Option<(Epoch, NodeId)>,
    /// A wish that could not be fulfilled: taken back.
    refused_wish: Option<NodeId>,
    pub(crate) unclean_since: Option<Now>,
    again: Now,
}

/// Why this node cannot become primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Blocked {
    NotADataNode,
    NotStarted,
    DiskFailed,
    Stalled,
    NotRecorded,
    Outdated,
    Suspect,
    Unclean,
}

impl Resource {
    pub(crate) fn new(config: &ResourceConfig, me: NodeId, now: Now) -> Self {
        Self {
            member: config.data_nodes.contains(&me),
            locals: vec![Local::default(); config.volumes.len()],
            phase: Phase::Secondary,
            stalled: false,
            lease: None,
            epoch_since: (Epoch(0), now),
            detected: None,
            poll: Poll::default(),
            hint: None,
            force_until: None,
            hold_back: now,
            handed: None,
            refused_wish: None,
            unclean_since: None,
            again: now,
        }
    }

    /// Nothing of it runs here, the replicas are stopped too.
    pub(crate) fn is_stopped(&self) -> bool {
        self.phase == Phase::Secondary
            && self.handed.is_none()
            && self.locals.iter().all(|l| l.started.is_none() || l.stopped)
    }

    pub(crate) fn word(&self) -> PhaseWord {
        match &self.phase {
            Phase::Secondary => PhaseWord::Secondary,
            Phase::Promising { .. } | Phase::Fencing { .. } | Phase::Proposing { .. } => {
                PhaseWord::Candidate
            }
            Phase::Leading { .. } => PhaseWord::Leading,
            Phase::Starting { .. } => PhaseWord::Starting,
            Phase::Up { .. } => PhaseWord::Primary,
            Phase::Stopping(_) | Phase::Draining { .. } => PhaseWord::Stopping,
        }
    }

    /// The epoch it serves, as long as the lease is to be renewed.
    pub(crate) fn holding(&self) -> Option<Epoch> {
        match &self.phase {
            Phase::Leading { epoch, .. } | Phase::Starting { epoch, .. } | Phase::Up { epoch } => {
                Some(*epoch)
            }
            Phase::Stopping(stop) | Phase::Draining { stop, .. } if !stop.forced => {
                Some(stop.epoch)
            }
            _ => None,
        }
    }

    /// Serving, and not on the way out.
    fn serving(&self) -> Option<Epoch> {
        match &self.phase {
            Phase::Leading { epoch, .. } | Phase::Starting { epoch, .. } | Phase::Up { epoch } => {
                Some(*epoch)
            }
            _ => None,
        }
    }

    fn volumes(&self) -> BTreeSet<VolumeIx> {
        (0..self.locals.len() as u16).map(VolumeIx).collect()
    }
}

impl Node {
    pub(crate) fn resource_hellos(&self) -> Vec<ResourceHello> {
        let state = self.state();
        self.resources
            .iter()
            .enumerate()
            .filter(|(_, r)| r.member)
            .map(|(ix, r)| {
                let resource = ResourceIx(ix as u16);
                let known = state.resources.get(&resource).map_or(Epoch(0), |r| r.epoch);
                let epoch = r.holding().unwrap_or(known);
                let disk = |l: &Local| match l.started {
                    Some(_) if l.failed => Some(DiskState::Failed),
                    started => started.map(|s| s.disk),
                };
                let disks = r.locals.iter().map(disk).collect();
                ResourceHello {
                    resource,
                    phase: r.word(),
                    epoch,
                    disks,
                }
            })
            .collect()
    }

    fn record(&self, ix: usize) -> Option<&ResourceRecord> {
        self.state().resources.get(&ResourceIx(ix as u16))
    }

    fn tell(&mut self, ix: usize, msg: &FromControl) {
        for volume in 0..self.resources[ix].locals.len() {
            if self.resources[ix].locals[volume].started.is_some() {
                self.tell_one(ix, volume, msg.clone());
            }
        }
    }

    pub(crate) fn tell_one(&mut self, ix: usize, volume: usize, msg: FromControl) {
        let (resource, volume) = (ResourceIx(ix as u16), VolumeIx(volume as u16));
        self.act(Action::Replica {
            resource,
            volume,
            msg,
        });
    }

    /// Compares what is committed with what this node does, and acts.
    pub(crate) fn drive(&mut self, now: Now, ix: usize) {
        let Some(record) = self.record(ix).cloned() else {
            self.drive_shutdown(ix);
            return;
        };
        self.grantor.prune(ResourceIx(ix as u16), &record);
        self.drive_handed(now, ix);
        if self.resources[ix].epoch_since.0 != record.epoch {
            self.resources[ix].epoch_since = (record.epoch, now);
        }
        if !self.resources[ix].member {
            return;
        }
        self.drive_seen(now, ix, &record);
        self.drive_phase(now, ix, &record);
        self.drive_views(ix, &record);
        self.drive_shutdown(ix);
    }

    /// A hand-over is over when the successor says it has taken it, or after a while.
    fn drive_handed(&mut self, now: Now, ix: usize) {
        let Some((epoch, to)) = self.resources[ix].handed else { return };
        let at = self.resources[ix].hold_back;
        let taken = self.heard_of(to, ResourceIx(ix as u16)).is_some_and(|h| h.epoch > epoch);
        if taken || now >= at {
            self.resources[ix].handed = None;
        } else {
            self.wake(at);
        }
    }

    fn drive_phase(&mut self, now: Now, ix: usize, record: &ResourceRecord) {
        self.check_holding(now, ix, record);
        match self.resources[ix].phase.clone() {
            Phase::Secondary => self.drive_secondary(now, ix, record),
            Phase::Promising { stand, until, .. } => {
                if record.generation != stand.generation
                    || now >= until
                    || self.unwanted_here(record)
                {
                    self.withdraw(now, ix, stand);
                } else {
                    self.wake(until);
                }
            }
            Phase::Fencing {
                stand,
                again,
                until,
                ..
            } => {
                if record.generation != stand.generation
                    || now >= until
                    || self.unwanted_here(record)
                {
                    self.withdraw(now, ix, stand);
                } else if now >= again {
                    self.send_fences(now, ix, stand);
                } else {
                    self.wake(again.min(until));
                }
            }
            Phase::Proposing { stand, again } => {
                self.drive_proposing(now, ix, record, stand, again)
            }
            Phase::Leading {
                waiting,
                lease_by,
                epoch,
            } => {
                if self.resources[ix].lease.is_none() {
                    self.wake(lease_by);
                } else if waiting.is_empty() {
                    self.start_step(ix, epoch, 0);
                }
            }
            Phase::Starting {
                epoch,
                step,
                retry_at: Some(at),
            } => {
                if now >= at {
                    self.start_step(ix, epoch, step);
                } else {
                    self.wake(at);
                }
            }
            Phase::Starting { .. } | Phase::Up { .. } => {}
            Phase::Stopping(stop) => match stop.retry_at {
                Some(at) if now >= at => self.stop_step(
                    ix,
                    Stop {
                        retry_at: None,
                        ..stop
                    },
                ),
                Some(at) => self.wake(at),
                None => {}
            },
            Phase::Draining { stop, until, .. } => {
                if now >= until {
                    self.call_off_stop(now, ix, stop);
                } else {
                    self.wake(until);
                }
            }
        }
    }

    /// What ends a primary: a newer record, the end of the lease, the operator's wish, a stop of the daemon, a failed disk.
    fn check_holding(&mut self, now: Now, ix: usize, record: &ResourceRecord) {
        let me = self.me();
        let Some(epoch) = self.resources[ix].holding() else {
            return;
        };
        if record.epoch > epoch || (record.epoch == epoch && record.primary != Some(me)) {
            self.stop(now, ix, epoch, StepDownReason::Deposed, true);
            return;
        }
        let end = match (self.resources[ix].lease, &self.resources[ix].phase) {
            (Some(until), _) => until,
            (None, Phase::Leading { lease_by, .. }) => *lease_by,
            (None, _) => now, // started without a lease: cannot be, and ends at once if it is
        };
        if now >= end {
            self.stop(now, ix, epoch, StepDownReason::LeaseLost, true);
            return;
        }
        self.wake(end);
        if self.resources[ix].serving().is_none() {
            return;
        }
        let others = self.successors(now, ix, record);
        let refused = self.resources[ix].refused_wish;
        if refused.is_some_and(|wish| record.wanted == Wanted::On(wish)) {
            self.repeat(
                now,
                ix,
                Command::Want {
                    resource: ResourceIx(ix as u16),
                    wanted: Wanted::Auto,
                },
            );
        } else {
            self.resources[ix].refused_wish = None;
        }
        let failed = self.resources[ix].locals.iter().any(|l| l.failed);
        let why = match record.wanted {
            _ if self.shutting_down => StepDownReason::Shutdown,
            Wanted::Stopped => StepDownReason::Demoted,
            Wanted::On(to) if to != me && refused != Some(to) && others.contains(&to) => {
                StepDownReason::HandOver { to }
            }
            _ if failed && !others.is_empty() => StepDownReason::DiskFailed,
            _ => return,
        };
        self.stop(now, ix, epoch, why, false);
    }

    /// Connected members that could take over, the preferred first.
    fn successors(&self, now: Now, ix: usize, record: &ResourceRecord) -> Vec<NodeId> {
        let members = record.members().without(self.me());
        let preferred = self.config.resources[ix].data_nodes.iter().copied();
        preferred
            .filter(|n| members.has(*n) && self.connected(now, *n))
            .collect()
    }

    fn unwanted_here(&self, record: &ResourceRecord) -> bool {
        self.shutting_down || record.wanted == Wanted::Stopped
    }

    // ---- Secondary and candidate

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
            if (started.incarnation, started.run) != (replica.incarnation, replica.run) {
                return Err(Blocked::NotRecorded);
            }
            if replica.suspect {
                return Err(Blocked::Suspect);
            }
            unclean |= replica.unclean;
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
        if !r.member {
            return Err(Blocked::NotADataNode);
        }
        if r.stalled {
            return Err(Blocked::Stalled);
        }
        for local in &r.locals {
            match local.started {
                None => return Err(Blocked::NotStarted),
                Some(s)
                    if local.failed
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
    fn silent(&self, now: Now, ix: usize, primary: NodeId) -> bool {
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

    fn may_stand(&self, now: Now, ix: usize, record: &ResourceRecord) -> Option<bool> {
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

    fn drive_secondary(&mut self, now: Now, ix: usize, record: &ResourceRecord) {
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
                self.to_voters(
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
            self.to_voters(
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

    fn detect(&mut self, now: Now, ix: usize, record: &ResourceRecord) {
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
    fn rank_delay_ms(&self, now: Now, ix: usize, record: &ResourceRecord, forced: bool) -> u64 {
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
        let list = self.config.resources[ix].data_nodes.iter().copied();
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

    fn judge_poll(&mut self, now: Now, ix: usize, record: &ResourceRecord, forced: bool) {
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

    fn begin_stand(&mut self, now: Now, ix: usize, record: &ResourceRecord, forced: bool) {
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

    fn send_fences(&mut self, now: Now, ix: usize, stand: Stand) {
        let again = now.plus_ms(self.config.timing.heartbeat_ms);
        if let Phase::Fencing { again: at, .. } = &mut self.resources[ix].phase {
            *at = again;
        }
        self.wake(again);
        let (resource, epoch, generation) = (ResourceIx(ix as u16), stand.epoch, stand.generation);
        self.to_voters(
            now,
            &Body::Fence {
                resource,
                epoch,
                generation,
            },
        );
    }

    /// Never proposed, or definitely dead.
    fn withdraw(&mut self, now: Now, ix: usize, stand: Stand) {
        self.tell(ix, &FromControl::Withdraw { epoch: stand.epoch });
        self.note(Note::Withdrawn {
            resource: ResourceIx(ix as u16),
            epoch: stand.epoch,
        });
        self.to_secondary(now, ix);
    }

    fn to_secondary(&mut self, now: Now, ix: usize) {
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

    fn drive_proposing(
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
                self.to_secondary(now, ix); // as after a restart: takes the epoch after this one
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

    // ---- Primary

    fn lead(&mut self, now: Now, ix: usize, record: &ResourceRecord) {
        let r = &mut self.resources[ix];
        r.lease = None;
        r.hint = None;
        r.force_until = None;
        r.refused_wish = None;
        let waiting = r.volumes();
        let lease_by = now.plus_ms(self.config.timing.handover_ms);
        r.phase = Phase::Leading {
            epoch: record.epoch,
            waiting,
            lease_by,
        };
        for volume in 0..self.resources[ix].locals.len() {
            if let Some(view) = record.view(VolumeIx(volume as u16)) {
                self.resources[ix].locals[volume].view_sent = Some(record.generation);
                self.tell_one(ix, volume, FromControl::Lead(view));
            }
        }
        self.renew_at = now;
        self.renew(now);
        self.wake(lease_by);
    }

    /// Asks for the leases of everything held here, once per heartbeat.
    pub(crate) fn renew(&mut self, now: Now) {
        let held: Vec<_> = self
            .resources
            .iter()
            .enumerate()
            .filter(|(_, r)| !r.stalled)
            .filter_map(|(ix, r)| Some((ResourceIx(ix as u16), r.holding()?)))
            .collect();
        if held.is_empty() {
            return;
        }
        if now >= self.renew_at {
            self.renew_at = now.plus_ms(self.config.timing.heartbeat_ms);
            let nonce = self.rng.draw();
            self.holder.ask(now, nonce, held.clone());
            self.to_voters(
                now,
                &Body::LeaseRequest {
                    nonce,
                    entries: held,
                },
            );
        }
        self.wake(self.renew_at);
    }

    /// A majority granted a request sent at `sent`.
    pub(crate) fn lease_extended(
        &mut self,
        now: Now,
        resource: ResourceIx,
        epoch: Epoch,
        sent: Now,
    ) {
        let ix = usize::from(resource.0);
        let timing = &self.config.timing;
        let until = sent.plus_ms(timing.lease_ms - timing.margin_ms);
        let r = &mut self.resources[ix];
        if r.holding() != Some(epoch) || until <= now || r.lease.is_some_and(|l| l >= until) {
            return;
        }
        if r.lease.is_some_and(|l| now >= l) {
            return; // it had ended before: too late
        }
        r.lease = Some(until);
        self.tell(ix, &FromControl::Lease { until });
        self.act(Action::LeaseDeadline {
            resource,
            until: Some(until),
        });
    }

    fn start_step(&mut self, ix: usize, epoch: Epoch, step: usize) {
        self.resources[ix].phase = Phase::Starting {
            epoch,
            step,
            retry_at: None,
        };
        let resource = ResourceIx(ix as u16);
        self.act(Action::Host {
            resource,
            step: START_STEPS[step],
        });
    }

    /// Stops being primary. Planned: host first, then drain. Forced: I/O first.
    pub(crate) fn stop(
        &mut self,
        now: Now,
        ix: usize,
        epoch: Epoch,
        why: StepDownReason,
        forced: bool,
    ) {
        let resource = ResourceIx(ix as u16);
        self.note(Note::SteppingDown {
            resource,
            epoch,
            why,
        });
        if forced {
            self.tell(ix, &FromControl::StepDown);
        }
        let phase = self.resources[ix].phase.clone();
        let mut stop = Stop {
            epoch,
            why,
            forced,
            step: 0,
            retry_at: None,
            failures: 0,
        };
        match phase {
            Phase::Leading { .. } => self.finish_stop(now, ix, stop), // nothing was started
            Phase::Draining { .. } => self.finish_stop(now, ix, stop), // everything was stopped
            Phase::Stopping(old) => {
                stop.step = old.step;
                self.stop_step(ix, stop);
            }
            _ => self.stop_step(ix, stop),
        }
    }

    fn stop_step(&mut self, ix: usize, stop: Stop) {
        self.resources[ix].phase = Phase::Stopping(stop);
        let step = stop_steps(stop.forced)[stop.step];
        self.act(Action::Host {
            resource: ResourceIx(ix as u16),
            step,
        });
    }

    /// A planned stop that cannot be carried out: goes on serving.
    fn call_off_stop(&mut self, now: Now, ix: usize, stop: Stop) {
        let why = stop.why;
        if matches!(
            why,
            StepDownReason::Shutdown | StepDownReason::Demoted | StepDownReason::DiskFailed
        ) {
            self.stop(now, ix, stop.epoch, why, true); // there is no way back: as if the lease had ended
            return;
        }
        if let StepDownReason::HandOver { to } = why {
            self.resources[ix].refused_wish = Some(to);
        }
        self.tell(ix, &FromControl::Resume);
        self.start_step(ix, stop.epoch, 0);
    }

    /// Nothing is left on the host.
    fn finish_stop(&mut self, now: Now, ix: usize, stop: Stop) {
        let resource = ResourceIx(ix as u16);
        if !stop.forced {
            self.tell(ix, &FromControl::StepDown);
        }
        self.act(Action::LeaseDeadline {
            resource,
            until: None,
        });
        self.to_secondary(now, ix);
        self.note(Note::SteppedDown {
            resource,
            epoch: stop.epoch,
        });
        self.to_voters(
            now,
            &Body::Release {
                resource,
                epoch: stop.epoch,
            },
        );
        let successor = match stop.why {
            StepDownReason::HandOver { to } => Some(to),
            StepDownReason::Shutdown | StepDownReason::DiskFailed => {
                let record = self.record(ix).cloned();
                record.and_then(|r| self.successors(now, ix, &r).first().copied())
            }
            _ => None,
        };
        if let Some(to) = successor {
            self.resources[ix].handed = Some((stop.epoch, to));
            self.resources[ix].hold_back = now.plus_ms(self.config.timing.handover_ms);
            self.send(
                now,
                to,
                Body::HandOver {
                    resource,
                    epoch: stop.epoch,
                },
            );
        }
    }

    pub(crate) fn on_host(
        &mut self,
        now: Now,
        resource: ResourceIx,
        step: HostStep,
        result: Result<(), String>,
    ) {
        let ix = usize::from(resource.0);
        let Some(r) = self.resources.get(ix) else {
            return;
        };
        let retry = now.plus_ms(self.config.timing.step_retry_ms);
        match (r.phase.clone(), result) {
            (
                Phase::Starting {
                    epoch,
                    step: at,
                    retry_at: None,
                },
                result,
            ) if START_STEPS[at] == step => match result {
                Ok(()) => {
                    self.note(Note::Step { resource, step });
                    if at + 1 < START_STEPS.len() {
                        self.start_step(ix, epoch, at + 1);
                    } else {
                        self.resources[ix].phase = Phase::Up { epoch };
                        self.note(Note::Up { resource, epoch });
                    }
                }
                Err(error) => {
                    self.note(Note::StepFailed {
                        resource,
                        step,
                        error,
                    });
                    let retry_at = Some(retry);
                    self.resources[ix].phase = Phase::Starting {
                        epoch,
                        step: at,
                        retry_at,
                    };
                }
            },
            (Phase::Stopping(stop), result)
                if stop.retry_at.is_none() && stop_steps(stop.forced)[stop.step] == step =>
            {
                match result {
                    Ok(()) => {
                        self.note(Note::Step { resource, step });
                        if stop.step + 1 < 4 {
                            self.stop_step(
                                ix,
                                Stop {
                                    step: stop.step + 1,
                                    failures: 0,
                                    ..stop
                                },
                            );
                        } else if stop.forced {
                            self.finish_stop(now, ix, stop);
                        } else {
                            self.drain(now, ix, stop);
                        }
                    }
                    Err(error) => {
                        self.note(Note::StepFailed {
                            resource,
                            step,
                            error,
                        });
                        let failures = stop.failures + 1;
                        if !stop.forced && failures >= STOP_FAILURES_MAX {
                            self.call_off_stop(now, ix, stop);
                        } else {
                            let stop = Stop {
                                failures,
                                retry_at: Some(retry),
                                ..stop
                            };
                            self.resources[ix].phase = Phase::Stopping(stop);
                        }
                    }
                }
            }
            _ => {} // of a step that was given up
        }
    }

    fn drain(&mut self, now: Now, ix: usize, stop: Stop) {
        let waiting = self.resources[ix].volumes();
        let until = now.plus_ms(self.config.timing.handover_ms);
        self.resources[ix].phase = Phase::Draining {
            stop,
            waiting,
            until,
        };
        self.tell(ix, &FromControl::Drain);
    }

    // ---- replicas

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
                let local = &mut self.resources[ix].locals[v];
                let again = local.started.is_some_and(|s| s.run != run);
                let started = Some(Started {
                    incarnation,
                    run,
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
            ToControl::Deposed { epoch } => {
                if let Some(mine) = self.resources[ix].holding()
                    && epoch > mine
                {
                    self.stop(now, ix, mine, StepDownReason::Deposed, true);
                }
            }
            ToControl::DiskFailed => self.resources[ix].locals[v].failed = true,
            ToControl::Stopped => self.resources[ix].locals[v].stopped = true,
        }
    }

    fn replica_restarted(&mut self, now: Now, ix: usize) {
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

    /// Every replica knows the latest record.
    fn drive_views(&mut self, ix: usize, record: &ResourceRecord) {
        for v in 0..self.resources[ix].locals.len() {
            let local = &mut self.resources[ix].locals[v];
            if local.started.is_none() || local.view_sent == Some(record.generation) {
                continue;
            }
            local.view_sent = Some(record.generation);
            if let Some(view) = record.view(VolumeIx(v as u16)) {
                self.tell_one(ix, v, FromControl::View(view));
            }
        }
    }

    /// The record knows the run of every replica here.
    fn drive_seen(&mut self, now: Now, ix: usize, record: &ResourceRecord) {
        let node = self.me();
        for v in 0..self.resources[ix].locals.len() {
            let volume = VolumeIx(v as u16);
            let local = &self.resources[ix].locals[v];
            let (Some(started), Some(replica)) = (local.started, record.replica(volume, node))
            else {
                continue;
            };
            if (started.incarnation, started.run) == (replica.incarnation, replica.run) {
                // Recording this run has moved the generation past any proposal of the former life,
                // so a promise that it made and nobody won is definitely dead (rule 1).
                let recall = !local.recalled && started.promised > record.epoch;
                self.resources[ix].locals[v].recalled = true;
                if recall {
                    self.tell_one(ix, v, FromControl::Withdraw { epoch: started.promised });
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
                        unclean: started.unclean,
                    },
                );
            }
            let at = self.resources[ix].locals[v].seen_at;
            self.wake(at);
        }
    }

    /// The daemon stops: when nothing is served any more, the replicas stop.
    fn drive_shutdown(&mut self, ix: usize) {
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

    /// Proposes once per heartbeat, until the record shows it.
    fn repeat(&mut self, now: Now, ix: usize, command: Command) {
        if now >= self.resources[ix].again {
            self.resources[ix].again = now.plus_ms(self.config.timing.heartbeat_ms);
            self.propose(now, command);
        }
        let at = self.resources[ix].again;
        self.wake(at);
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
