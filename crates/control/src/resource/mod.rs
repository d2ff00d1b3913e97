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

mod candidate;
mod disk;
mod local;
mod primary;

use crate::api::*;
use crate::message::{Body, ResourceHello};
use crate::node::Node;
use crate::state::{Command, ReplicaRecord, ResourceRecord};
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
    /// Drawn at its start; see [`crate::state::ReplicaRecord::nonce`].
    pub(crate) nonce: u64,
    pub(crate) unclean: bool,
    pub(crate) promised: Epoch,
    pub(crate) disk: DiskState,
}

impl Started {
    /// Is this run the one that the record names?
    fn is(&self, replica: &ReplicaRecord) -> bool {
        (self.incarnation, self.run, self.nonce)
            == (replica.incarnation, replica.run, replica.nonce)
    }
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Local {
    pub(crate) started: Option<Started>,
    /// Why its disk is not used any more.
    pub(crate) failed: Option<DiskTrouble>,
    /// Taking it up again.
    pub(crate) attach: disk::Attach,
    stop_sent: bool,
    stopped: bool,
    view_sent: Option<Gen>,
    /// What it was told of resync last; nothing is what a new one goes by.
    resync_sent: Option<ResyncOrder>,
    size_sent: Option<VolumeSize>,
    /// The volume's size it went by (and how often it had shrunk), and the room it has.
    room: Option<((u64, u32), u64)>,
    room_at: Now,
    /// Bytes its store would need and cannot have.
    pub(crate) no_room: Option<u64>,
    seen_at: Now,
    /// Promises of its former life were taken back.
    recalled: bool,
}

impl Local {
    /// What its node says of its disk.
    pub(crate) fn disk(&self) -> Option<DiskState> {
        match self.started {
            Some(_) if self.failed.is_some() => Some(DiskState::Failed),
            started => started.map(|s| s.disk),
        }
    }
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
    pub(crate) fn new(config: &ResourceConfig, now: Now) -> Self {
        Self {
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
            .filter(|(ix, _)| self.is_data_node(*ix))
            .map(|(ix, r)| {
                let resource = ResourceIx(ix as u16);
                let known = state.resources.get(&resource).map_or(Epoch(0), |r| r.epoch);
                let epoch = r.holding().unwrap_or(known);
                let disks = r.locals.iter().map(Local::disk).collect();
                let troubles = r.locals.iter().map(|l| l.failed).collect();
                ResourceHello {
                    resource,
                    phase: r.word(),
                    epoch,
                    disks,
                    troubles,
                }
            })
            .collect()
    }

    /// The nodes with replicas, the preferred primary first: those of the record once there is one, whatever the
    /// configuration says.
    pub(crate) fn data_nodes(&self, ix: usize) -> Vec<NodeId> {
        let configured = &self.config.resources[ix].data_nodes;
        let Some(record) = self.record(ix) else {
            return configured.clone();
        };
        let recorded = record.data_nodes();
        configured
            .iter()
            .copied()
            .filter(|n| recorded.has(*n))
            .chain(recorded.iter().filter(|n| !configured.contains(n)))
            .collect()
    }

    /// This node holds replicas of it.
    pub(crate) fn is_data_node(&self, ix: usize) -> bool {
        self.data_nodes(ix).contains(&self.me())
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
        self.drive_departed(ix, &record);
        if !self.is_data_node(ix) && self.resources[ix].phase == Phase::Secondary {
            self.drive_shutdown(ix);
            return;
        }
        self.drive_seen(now, ix, &record);
        self.drive_phase(now, ix, &record);
        self.drive_views(ix, &record);
        self.drive_room(now, ix, &record);
        self.drive_reopen(now, ix, &record);
        self.drive_shutdown(ix);
    }

    /// A hand-over is over when the successor says it has taken it, or after a while.
    fn drive_handed(&mut self, now: Now, ix: usize) {
        let Some((epoch, to)) = self.resources[ix].handed else {
            return;
        };
        let at = self.resources[ix].hold_back;
        let taken = self
            .heard_of(to, ResourceIx(ix as u16))
            .is_some_and(|h| h.epoch > epoch);
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

    /// Stops what is served without a lease. True while the lease lasts.
    pub(crate) fn check_lease(&mut self, now: Now, ix: usize) -> bool {
        let Some(epoch) = self.resources[ix].holding() else {
            return false;
        };
        let end = match (self.resources[ix].lease, &self.resources[ix].phase) {
            (Some(until), _) => until,
            (None, Phase::Leading { lease_by, .. }) => *lease_by,
            (None, _) => now, // started without a lease: cannot be, and ends at once if it is
        };
        if now >= end {
            self.stop(now, ix, epoch, StepDownReason::LeaseLost, true);
            return false;
        }
        self.wake(end);
        true
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
        if !self.check_lease(now, ix) {
            return;
        }
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
        // A primary that is open goes on through the members. One that is not never will be.
        let failed = matches!(&self.resources[ix].phase, Phase::Leading { waiting, .. } if
            waiting.iter().any(|v| self.resources[ix].locals[usize::from(v.0)].failed.is_some()));
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
        self.data_nodes(ix)
            .into_iter()
            .filter(|n| members.has(*n) && self.connected(now, *n))
            .collect()
    }

    fn unwanted_here(&self, record: &ResourceRecord) -> bool {
        self.shutting_down || record.wanted == Wanted::Stopped
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
}
