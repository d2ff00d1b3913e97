//! What goes into the control plane of a node and what comes out: the contract with its interpreters.
//!
//! Two interpreters exist, the daemon's control loop and the simulator. Both do exactly this:
//! 1. read the two slots of the state file, [`crate::durable::choose`] one, and build a
//!    [`crate::Node`] with [`crate::Node::start`]. Before that, everything a former life left
//!    behind on this host (virtual IPs, mounts, services, devices) has been removed;
//! 2. for each thing that happens call [`crate::Node::handle`] once, with the time; perform the
//!    returned actions *in order* (a later one may be started before an earlier one has ended);
//! 3. when [`crate::Node::deadline`] is reached, hand in [`Event::Tick`];
//! 4. answer each [`Action::Persist`] by [`Event::Persisted`] once the bytes are durable, written to
//!    the slot [`crate::durable::Slots`] names. At most one is outstanding; messages that depend on it
//!    are held back inside the node. If it cannot be written, stop the daemon: there is no answer "failed";
//! 5. answer each [`Action::Host`] by exactly one [`Event::HostDone`] with the same step. A stop step
//!    cancels a start step that still runs (that one's answer may then be left out; a late one is ignored).
//!    Every step may be repeated and does nothing where nothing is to be done. A start step looks at the
//!    latest [`Action::LeaseDeadline`] right before each act, and fails once that has passed: a process
//!    that was paused in between must not add an address whose lease is over;
//! 6. hand every [`Action::Replica`] to that replica as its `Event::Control`, and every
//!    `replicator::Action::Control` back as [`Event::Replica`], keeping the order on both ways;
//! 7. messages may be lost, delayed, duplicated and reordered; nothing is resent below this level.
//!    Messages to this node itself never appear.
//!
//! Messages wait in no queue of an interpreter while a link is down: they are dropped.
//! Nothing that decides about roles, leases or members lives in an interpreter.

use holdfast_types::{DiskState, Epoch, Gen, Incarnation, NodeId, NodeSet, VolumeId};
use serde::{Deserialize, Serialize};

pub use crate::config::{
    Config, ConfigError, NodeConfig, ResourceConfig, Timing, UncleanPromotion, VolumeConfig,
};
pub use crate::message::{MESSAGE_BYTES_MAX, Message};
pub use crate::state::{Change, CreateVolume, HistoryEntry, ResourceRecord, Wanted};
pub use crate::upkeep::{Care, Upkeep, Verified};
pub use holdfast_replicator::{
    DiskTrouble, FromControl, Now, Repair, ResyncOrder, SetChange, ToControl, VerifyOrder, View,
    VolumeSize,
};

/// Position of a resource in [`Config::resources`]; the same on every node.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
pub struct ResourceIx(pub u16);

/// Position of a volume in [`ResourceConfig::volumes`].
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
pub struct VolumeIx(pub u16);

/// Names one [`Action::Persist`]; grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(pub u64);

/// Names one administrative request until its [`Action::Reply`]; chosen by the interpreter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct AdminId(pub u64);

/// What a node starts from, besides its configuration.
#[derive(Clone, Debug)]
pub struct Start {
    /// The state of its former life: what [`crate::durable::choose`] returned. `None`: never lived.
    pub stored: Option<Vec<u8>>,
    /// Fresh random bits at every start: voter identity of a new node, jitter of timeouts, nonces.
    pub random: u64,
}

/// What can happen to a node.
#[derive(Clone, Debug)]
pub enum Event {
    /// [`crate::Node::deadline`] was reached.
    Tick,
    /// A message came.
    Message {
        /// From whom (authenticated by the transport).
        from: NodeId,
        /// What.
        msg: Message,
    },
    /// The control connection to a node is up.
    LinkUp {
        /// Which node.
        node: NodeId,
    },
    /// The control connection to a node is gone.
    LinkDown {
        /// Which node.
        node: NodeId,
    },
    /// The bytes of this ticket are durable.
    Persisted {
        /// Which.
        ticket: Ticket,
    },
    /// A local replica says.
    Replica {
        /// Of which resource.
        resource: ResourceIx,
        /// Of which of its volumes.
        volume: VolumeIx,
        /// What.
        msg: ToControl,
    },
    /// A host step ended.
    HostDone {
        /// Of which resource.
        resource: ResourceIx,
        /// Which.
        step: HostStep,
        /// How; the error in words.
        result: Result<(), String>,
    },
    /// [`Action::Reopen`] came to nothing; when it succeeds, the replica says [`ToControl::Started`].
    NotReopened {
        /// Of which resource.
        resource: ResourceIx,
        /// Which of its volumes.
        volume: VolumeIx,
        /// Why, in words.
        error: String,
    },
    /// Whether the local disks of a resource make progress. While stalled its lease is not renewed.
    DiskStalled {
        /// Which resource.
        resource: ResourceIx,
        /// No write or flush has finished for too long.
        stalled: bool,
    },
    /// Stop in good order: hand over or stop what runs here, stop the replicas (rule 24).
    /// Ends with [`Action::Stopped`]; the interpreter goes on serving the node until then.
    Stop,
    /// An operator asks.
    Admin {
        /// Its name.
        id: AdminId,
        /// What.
        request: AdminRequest,
    },
}

/// What a node wants done.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Make these bytes durable (the whole state, a few KB), replacing the older slot.
    Persist {
        /// Name for the answer.
        ticket: Ticket,
        /// What.
        bytes: Vec<u8>,
    },
    /// Send a message.
    Send {
        /// To whom.
        to: NodeId,
        /// What.
        msg: Message,
    },
    /// Tell a local replica.
    Replica {
        /// Of which resource.
        resource: ResourceIx,
        /// Of which of its volumes.
        volume: VolumeIx,
        /// What.
        msg: FromControl,
    },
    /// Do something on the host.
    Host {
        /// For which resource.
        resource: ResourceIx,
        /// What.
        step: HostStep,
    },
    /// For the fencer: at `until` it begins to take away the side effects of the resource, by force, and has
    /// [`Timing::margin_ms`] for it. `None`: there are none any more.
    LeaseDeadline {
        /// Which resource.
        resource: ResourceIx,
        /// On this node's clock.
        until: Option<Now>,
    },
    /// The local replica was removed from the record and has stopped: close it and do not open it again. What is on
    /// its disk is nobody's any more.
    Forget {
        /// Of which resource.
        resource: ResourceIx,
        /// Which of its volumes.
        volume: VolumeIx,
    },
    /// Close the local replica without waiting for it, then start it anew from its disk, as at the start of the
    /// daemon: with what [`crate::Node::distrusted`] says.
    Reopen {
        /// Of which resource.
        resource: ResourceIx,
        /// Which of its volumes.
        volume: VolumeIx,
    },
    /// Answer an operator.
    Reply {
        /// Which request.
        id: AdminId,
        /// What.
        reply: AdminReply,
    },
    /// [`Event::Stop`] is done: the daemon may exit.
    Stopped,
    /// Something an operator or a test may want to know; no effect.
    Note(Note),
}

/// One step on the host. A start goes through the first four in order, a stop through the last four.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum HostStep {
    /// Offer the volumes as devices.
    OpenDevice,
    /// Mount the filesystems.
    Mount,
    /// Start the services.
    StartServices,
    /// Add the virtual IPs and announce them.
    AddVips,
    /// Remove the virtual IPs.
    RemoveVips {
        /// No lease any more: do not wait, kill.
        forced: bool,
    },
    /// Stop the services.
    StopServices {
        /// No lease any more: do not wait, kill.
        forced: bool,
    },
    /// Unmount the filesystems.
    Unmount {
        /// I/O is failed already: detach lazily if need be.
        forced: bool,
    },
    /// Take the devices away.
    CloseDevice {
        /// I/O is failed already.
        forced: bool,
    },
}

/// What happened, for the log and the timeline. Resource roles as this node sees them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Note {
    /// This node formed a new cluster of blank voters.
    Formed,
    /// The leader of the control plane changed.
    Leader {
        /// Who, if known.
        leader: Option<NodeId>,
        /// In which term.
        term: u64,
    },
    /// A voter that had lost its state counts again, as a new member.
    VoterAdmitted {
        /// Who.
        node: NodeId,
    },
    /// The holder of a resource has not renewed its lease for half its length (or its link broke).
    Detected {
        /// Which resource.
        resource: ResourceIx,
        /// The silent holder.
        holder: NodeId,
    },
    /// This node tries to become primary.
    Candidate {
        /// Of which resource.
        resource: ResourceIx,
        /// In the epoch to be.
        epoch: Epoch,
    },
    /// The candidacy came to nothing.
    Withdrawn {
        /// Of which resource.
        resource: ResourceIx,
        /// The epoch that was not to be.
        epoch: Epoch,
    },
    /// A change of primary was committed.
    Promoted {
        /// Of which resource.
        resource: ResourceIx,
        /// The new epoch.
        epoch: Epoch,
        /// The new primary.
        node: NodeId,
    },
    /// All volumes are reconciled as far as opening needs it.
    Opened {
        /// Of which resource.
        resource: ResourceIx,
        /// In this epoch.
        epoch: Epoch,
    },
    /// A host step ended well.
    Step {
        /// For which resource.
        resource: ResourceIx,
        /// Which.
        step: HostStep,
    },
    /// A host step failed; it is tried again.
    StepFailed {
        /// For which resource.
        resource: ResourceIx,
        /// Which.
        step: HostStep,
        /// Why, in words.
        error: String,
    },
    /// Everything is up on this node.
    Up {
        /// Which resource.
        resource: ResourceIx,
        /// In this epoch.
        epoch: Epoch,
    },
    /// This node stops being primary.
    SteppingDown {
        /// Of which resource.
        resource: ResourceIx,
        /// Of this epoch.
        epoch: Epoch,
        /// Why.
        why: StepDownReason,
    },
    /// Nothing of the resource is left on this node's host.
    SteppedDown {
        /// Which resource.
        resource: ResourceIx,
        /// Of this epoch.
        epoch: Epoch,
    },
    /// An in-sync set changed.
    SetChanged {
        /// Of which resource.
        resource: ResourceIx,
        /// Of which volume.
        volume: VolumeIx,
        /// The new set.
        in_sync: NodeSet,
        /// Why.
        why: SetChange,
    },
    /// A message or a local event made no sense; it was ignored.
    Protocol {
        /// From whom.
        from: NodeId,
        /// What was wrong.
        what: String,
    },
}

/// Why a primary stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StepDownReason {
    /// The lease could not be renewed in time.
    LeaseLost,
    /// Another node leads a newer epoch.
    Deposed,
    /// Planned: another node takes over.
    HandOver {
        /// Who.
        to: NodeId,
    },
    /// The operator wants it stopped.
    Demoted,
    /// The local disk failed and another node holds the data.
    DiskFailed,
    /// A local replica started anew under the running primary.
    Restarted,
    /// The daemon stops in good order.
    Shutdown,
}

/// What an operator may ask, at any node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AdminRequest {
    /// How things are.
    Status,
    /// Make a node the primary; answered when it is, with everything up, or when it cannot be.
    Promote {
        /// Name of the resource.
        resource: String,
        /// Which node; `None`: the asked one.
        node: Option<NodeId>,
        /// For a node without the newest data: the consent, word by word
        /// ([`FORCE_CONSENT`]). Everything newer on other nodes is given up.
        force: Option<String>,
    },
    /// Stop the resource everywhere until it is promoted again.
    Demote {
        /// Name of the resource.
        resource: String,
    },
    /// Record a resource whose replicas have been initialised on their nodes.
    Create {
        /// Name of the resource.
        resource: String,
        /// Its volumes, in the order of the configuration.
        volumes: Vec<CreateVolume>,
    },
    /// Give a volume another size; answered when it has it.
    Resize {
        /// Name of the resource.
        resource: String,
        /// Which volume.
        volume: VolumeIx,
        /// Bytes; whole blocks.
        size_bytes: u64,
        /// To make it smaller: the consent, word by word ([`SHRINK_CONSENT`]).
        shrink: Option<String>,
    },
    /// Record a replica that was made on a node which had none; it is filled by resync.
    ReplicaAdd {
        /// Name of the resource.
        resource: String,
        /// Which volume.
        volume: VolumeIx,
        /// Which node.
        node: NodeId,
        /// Identity of its disk.
        incarnation: Incarnation,
    },
    /// Give a node's replica up; answered when that is committed.
    ReplicaRemove {
        /// Name of the resource.
        resource: String,
        /// Which volume.
        volume: VolumeIx,
        /// Which node.
        node: NodeId,
    },
    /// Take up a disk again that is not used; answered when its replica runs, or why it cannot.
    Attach {
        /// Name of the resource.
        resource: String,
        /// Which volume.
        volume: VolumeIx,
        /// On which node.
        node: NodeId,
    },
    /// Use a node's disk no more, until it is attached again; answered when it is so.
    Detach {
        /// Name of the resource.
        resource: String,
        /// Which volume.
        volume: VolumeIx,
        /// On which node.
        node: NodeId,
    },
    /// Do not trust a node's copy: all of it is compared with the primary's.
    Invalidate {
        /// Name of the resource.
        resource: String,
        /// Which volume; `None`: all.
        volume: Option<VolumeIx>,
        /// Whose copy.
        node: NodeId,
    },
    /// Compare copies with the primary's by hash, block by block; answered when started.
    Verify {
        /// Name of the resource.
        resource: String,
        /// Which volume; `None`: all.
        volume: Option<VolumeIx>,
        /// Whose, and what to do with what differs.
        order: VerifyOrder,
    },
    /// Record something about the care of a volume; answered when it is committed.
    Care {
        /// Name of the resource.
        resource: String,
        /// Which volume.
        volume: VolumeIx,
        /// What.
        care: Care,
    },
}

/// What must be typed to promote a node that lacks data which another node has.
pub const FORCE_CONSENT: &str = "lose newer data";

/// What must be typed to make a volume smaller: what lies past its new end is gone.
pub const SHRINK_CONSENT: &str = "lose the end";

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AdminReply {
    /// To [`AdminRequest::Status`].
    Status(Box<Status>),
    /// Done.
    Done {
        /// What, in a sentence.
        message: String,
    },
    /// Refused, nothing changed.
    Refused {
        /// Why and what to do, in a sentence.
        message: String,
    },
    /// Not done in time; it may still come to be.
    TimedOut {
        /// What it waits for, in a sentence.
        message: String,
    },
}

/// The cluster as one node sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Who tells.
    pub node: NodeId,
    /// The leader of the control plane, if known.
    pub leader: Option<NodeId>,
    /// Its term.
    pub term: u64,
    /// This node hears a majority of voters.
    pub quorum: bool,
    /// If the control plane cannot act: why, in a sentence.
    pub waiting: Option<String>,
    /// All nodes.
    pub nodes: Vec<NodeStatus>,
    /// All resources of the configuration.
    pub resources: Vec<ResourceStatus>,
}

/// A node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Which.
    pub id: NodeId,
    /// Its name.
    pub name: String,
    /// Votes by configuration.
    pub voter: bool,
    /// Its vote counts (it has its state, or was admitted anew).
    pub counts: bool,
    /// Heard of lately (itself: always).
    pub online: bool,
}

/// A resource.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourceStatus {
    /// Its name.
    pub name: String,
    /// Its replicas are recorded.
    pub created: bool,
    /// Version of the record.
    pub generation: Gen,
    /// Current epoch.
    pub epoch: Epoch,
    /// The primary of that epoch.
    pub primary: Option<NodeId>,
    /// What the operator wants.
    pub wanted: Wanted,
    /// What it waits for and why, in a sentence; `None`: all is well.
    pub waiting: Option<String>,
    /// What its data nodes do, as last heard.
    pub nodes: Vec<ResourceNodeStatus>,
    /// Its volumes.
    pub volumes: Vec<VolumeStatus>,
    /// Latest changes, oldest first.
    pub history: Vec<HistoryEntry>,
}

/// A resource on a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourceNodeStatus {
    /// Which node.
    pub node: NodeId,
    /// What it does.
    pub phase: PhaseWord,
}

/// What a node does for a resource, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum PhaseWord {
    /// Not heard of.
    Unknown,
    /// Holds a copy.
    Secondary,
    /// Tries to become primary.
    Candidate,
    /// Won the epoch; hears the members, reconciles.
    Leading,
    /// Starts device, mounts, services, addresses.
    Starting,
    /// Everything is up.
    Primary,
    /// Stops.
    Stopping,
}

/// A volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeStatus {
    /// Its name.
    pub name: String,
    /// Its identity.
    pub id: VolumeId,
    /// Bytes the application sees.
    pub size_bytes: u64,
    /// The committed in-sync set.
    pub in_sync: NodeSet,
    /// Its replicas.
    pub replicas: Vec<ReplicaStatus>,
    /// How it is cared for.
    pub upkeep: Upkeep,
}

/// A replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaStatus {
    /// On which node.
    pub node: NodeId,
    /// Identity of its disk as recorded.
    pub incarnation: Incarnation,
    /// State of its disk: committed membership, or what its node says of itself.
    pub disk: DiskState,
    /// Why its disk is not used, if its node says that it is not.
    pub trouble: Option<DiskTrouble>,
}
