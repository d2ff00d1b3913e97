//! One machine: clock, disk, control-state file, daemon, fencer, and what stands on its host.

use crate::app::App;
use crate::clock::Clock;
use crate::disk::Disk;
use crate::revert::Told;
use crate::rng::Rng;
use holdfast_control::durable::Slots;
use holdfast_control::{HostStep, Ticket};
use holdfast_replicator as rep;
use holdfast_types::{Incarnation, NodeId, Seen};
use std::collections::VecDeque;

/// What reaches a daemon.
#[derive(Debug)]
pub enum Input {
    /// Its replica.
    Replica(rep::Event),
    /// Its control plane.
    Control(holdfast_control::Event),
}

/// A running daemon.
#[derive(Debug)]
pub struct Process {
    /// Control plane.
    pub control: holdfast_control::Node,
    /// Data nodes: the replica.
    pub replica: Option<rep::Replica>,
    /// Which slot of the state file is next.
    pub slots: Slots,
}

/// What a resource has on a host. All gone when the machine loses power.
#[derive(Clone, Debug, Default)]
pub struct Host {
    /// Device offered.
    pub device: bool,
    /// Filesystem mounted.
    pub mounted: bool,
    /// Services run.
    pub services: bool,
    /// Virtual address present.
    pub vip: bool,
    /// The step that runs, and its number.
    pub step: Option<(u64, HostStep)>,
    /// Steps begun.
    pub steps: u64,
    /// True time at which the fencer clears everything.
    pub deadline: Option<u64>,
    /// A stop that nothing forces is under way.
    pub stopping: bool,
    /// Raised with each new deadline.
    pub deadlines: u64,
}

impl Host {
    /// Is anything there?
    pub fn any(&self) -> bool {
        self.device || self.mounted || self.services || self.vip
    }
    /// Everything is gone.
    pub fn clear(&mut self) {
        self.device = false;
        self.mounted = false;
        self.services = false;
        self.vip = false;
    }
}

/// One machine.
#[derive(Debug)]
pub struct SimNode {
    /// Which.
    pub id: NodeId,
    /// Holds a replica.
    pub data: bool,
    /// Of this boot.
    pub clock: Clock,
    /// Identity of this boot.
    pub boot_id: u128,
    /// The daemon, if it runs.
    pub process: Option<Process>,
    /// Raised whenever a daemon starts or ends.
    pub life: u64,
    /// A start is on the agenda.
    pub starting: bool,
    /// The daemon is stopped (SIGSTOP).
    pub paused: bool,
    /// What waits for a stopped daemon.
    pub backlog: VecDeque<Input>,
    /// Data nodes.
    pub disk: Option<Disk>,
    /// Identity of the disk's content.
    pub incarnation: Incarnation,
    /// The two slots of the control state.
    pub state: [Vec<u8>; 2],
    /// A write of the control state under way: ticket, slot, bytes.
    pub writing: Option<(Ticket, usize, Vec<u8>)>,
    /// Side effects.
    pub host: Host,
    /// The application on this node.
    pub app: App,
    /// Epoch in which this node's device opened, as long as it serves.
    pub open_epoch: Option<u64>,
    /// Lost its power (and not been made good by resync or promotion since).
    pub unclean: bool,
    /// The same, and its cache did lose something.
    pub lossy: bool,
    /// When it last lost its power or got another disk.
    pub lost_at: u64,
    /// When its disk was last replaced.
    pub replaced_at: u64,
    /// When a primary last took it into a session.
    pub attached_at: u64,
    /// Its disk is blank or was replaced, and no commit has taken it in since.
    pub strange_disk: bool,
    /// Its disk was put back to a snapshot at some time; what the others had stored of it then.
    pub put_back: Option<Seen>,
    /// What they were told of it.
    pub told: Told,
    /// When a primary last took it into a session, nothing told that its disk was put back.
    pub beyond_telling: bool,
    /// Its disk as it was when an operator took a snapshot, and when that was.
    pub snapshot: Option<(u64, Vec<u8>)>,
    /// Its replica was removed, and it got a blank disk to be taken in again with.
    pub adding: bool,
    /// Its disk returns errors until replaced.
    pub bad_disk: bool,
    /// True times of the timers on the agenda.
    pub timers: [Option<u64>; 2],
    /// What the replica and the control plane tell each other stays in order.
    pub inbox_last: [u64; 2],
    /// Told that the disk stalls.
    pub stalled: bool,
    /// Stops in good order: start again then.
    pub stopping: bool,
    /// Random numbers of this machine.
    pub rng: Rng,
}

/// Position in [`SimNode::timers`] and [`SimNode::inbox_last`].
pub const REPLICA: usize = 0;
/// The same for the control plane.
pub const CONTROL: usize = 1;

impl SimNode {
    /// Its disk lies about flushes.
    pub fn lying(&self) -> bool {
        self.disk.as_ref().is_some_and(|d| d.lies)
    }
    /// The daemon runs (stopped or not).
    pub fn up(&self) -> bool {
        self.process.is_some()
    }
}
