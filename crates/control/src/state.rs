//! The replicated state: what all voters agree on, and how commands change it.
//!
//! Invariants
//! - [`ClusterState::apply`] is a pure function of state and command: every node computes the same;
//! - a record's generation grows with every change of epoch, primary or in-sync set, and every such
//!   command names the generation it was made for. So a proposal's outcome is known, on every node, as
//!   soon as a later generation is seen: it took effect or it never will. Repeating one is harmless;
//! - an in-sync set is never empty: its last member is never removed (rule 23);
//! - only a member of every in-sync set becomes primary, except by a recorded force, which starts a
//!   new lineage (G3).

mod create;

use crate::api::{ResourceIx, SetChange, View, VolumeIx, VolumeSize};
use crate::upkeep::{Care, Upkeep};
use holdfast_types::{Epoch, Gen, Incarnation, NodeId, NodeSet, Run, VolumeId};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};

/// Entries of a resource's history that are kept.
pub const HISTORY_MAX: usize = 48;

/// What all nodes agree on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterState {
    /// The voter identity that counts for each node: grants and fences of another one do not exist.
    pub admitted: BTreeMap<NodeId, u64>,
    /// The created resources.
    pub resources: BTreeMap<ResourceIx, ResourceRecord>,
}

/// What is agreed about a resource.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourceRecord {
    /// Its name.
    pub name: String,
    /// Version: what compare-and-swap compares.
    pub generation: Gen,
    /// Current epoch; zero: never had a primary.
    pub epoch: Epoch,
    /// The primary of this epoch; none before the first and after a demotion.
    pub primary: Option<NodeId>,
    /// What the operator wants.
    pub wanted: Wanted,
    /// Which history the data belongs to; changed by a forced promotion.
    pub lineage: u64,
    /// Its volumes.
    pub volumes: Vec<VolumeRecord>,
    /// Latest changes, oldest first.
    pub history: VecDeque<HistoryEntry>,
}

/// What is agreed about a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeRecord {
    /// Its identity.
    pub id: VolumeId,
    /// Bytes the application sees.
    pub size_bytes: u64,
    /// What it shall grow to, once every member has the room.
    pub target_bytes: Option<u64>,
    /// It shrank: it grows again only when *every* replica has the room, for one that was away has what others gave up.
    pub shrank: bool,
    /// How often it has shrunk.
    pub shrinks: u32,
    /// The replicas that hold every acknowledged write.
    pub in_sync: NodeSet,
    /// All replicas.
    pub replicas: BTreeMap<NodeId, ReplicaRecord>,
    /// The disks of replicas that were removed: what finds its own here is not wanted any more. A node that is only
    /// behind finds nothing, and waits.
    pub departed: BTreeMap<NodeId, Incarnation>,
    /// How it is cared for.
    pub upkeep: Upkeep,
}

/// What is known about a replica.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaRecord {
    /// Identity of its disk.
    pub incarnation: Incarnation,
    /// Latest run seen; zero: none yet.
    pub run: Run,
    /// Random number of that run: a disk that was put back to the state before it starts the same run again.
    pub nonce: u64,
    /// Bytes of the volume it has room for, zero past the volume's end.
    pub room_bytes: u64,
    /// It stopped uncleanly and has not been resynced or promoted since: acknowledged writes may be missing.
    pub unclean: bool,
    /// Its disk was replaced or went back in time, and has not been resynced since.
    pub suspect: bool,
}

/// What the operator wants with a resource.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Wanted {
    /// Run somewhere.
    #[default]
    Auto,
    /// Run on this node (until a failure moves it).
    On(NodeId),
    /// Do not run.
    Stopped,
}

/// One line of a resource's history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryEntry {
    /// Generation after the change.
    pub generation: Gen,
    /// Epoch after the change.
    pub epoch: Epoch,
    /// What changed.
    pub change: Change,
}

/// What changed and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// The resource was created.
    Created,
    /// A new primary.
    Primary {
        /// Who.
        node: NodeId,
        /// Why.
        why: Promotion,
    },
    /// An in-sync set changed.
    Set {
        /// Of which volume.
        volume: VolumeIx,
        /// The new set.
        in_sync: NodeSet,
        /// Who came or went.
        peer: NodeId,
        /// Why.
        why: SetChange,
    },
    /// Stopped by the operator: no primary.
    Vacated,
    /// The primary went on although another node tried to take over.
    Reasserted,
    /// A replica started anew: proposals made before, by it or about it, are dead.
    Restarted {
        /// On which node.
        node: NodeId,
    },
    /// A replica's disk failed.
    DiskFailed {
        /// On which node.
        node: NodeId,
    },
    /// A volume shall grow (or, at its present size, shall not after all).
    Growing {
        /// Which.
        volume: VolumeIx,
        /// To so many bytes.
        size_bytes: u64,
    },
    /// A volume has another size.
    Resized {
        /// Which.
        volume: VolumeIx,
        /// So many bytes.
        size_bytes: u64,
    },
    /// A node got a replica, to be filled by resync.
    ReplicaAdded {
        /// Of which volume.
        volume: VolumeIx,
        /// Which node.
        node: NodeId,
    },
    /// A node's replica was removed.
    ReplicaRemoved {
        /// Of which volume.
        volume: VolumeIx,
        /// Which node.
        node: NodeId,
    },
    /// Copies were found to differ.
    Differed {
        /// Of which volume.
        volume: VolumeIx,
        /// Bytes that differed, over all copies.
        differing_bytes: u64,
        /// Bytes of those that were made equal.
        repaired_bytes: u64,
    },
    /// A voter got a new identity: takeovers under way were called off.
    VoterReplaced {
        /// Which.
        node: NodeId,
    },
}

/// Why a node became primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Promotion {
    /// The former primary is gone.
    Failover,
    /// The same node, after a restart or a lost lease.
    Restart,
    /// There was none, or the operator wished it.
    Planned,
    /// Forced by the operator, without the newest data.
    Forced {
        /// The new history's number.
        lineage: u64,
    },
}

/// A volume as it is recorded at creation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateVolume {
    /// Its identity.
    pub id: VolumeId,
    /// Bytes the application sees.
    pub size_bytes: u64,
    /// The replicas that are equal from the start (all, when all are fresh and read as zero).
    pub in_sync: NodeSet,
    /// The replicas and the identities of their disks.
    pub replicas: Vec<(NodeId, Incarnation)>,
}

/// A change to the replicated state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// A voter's identity counts from now on (rule 37).
    Admit {
        /// Which node.
        node: NodeId,
        /// Its identity.
        voter: u64,
    },
    /// Record a resource.
    Create {
        /// Where.
        resource: ResourceIx,
        /// Its name.
        name: String,
        /// Its volumes.
        volumes: Vec<CreateVolume>,
    },
    /// A new primary.
    Takeover {
        /// Of which resource.
        resource: ResourceIx,
        /// Compared.
        generation: Gen,
        /// The new epoch: the old one and one.
        epoch: Epoch,
        /// Who.
        primary: NodeId,
        /// Forced, with this new lineage: the in-sync sets become the primary alone.
        forced: Option<u64>,
    },
    /// A new in-sync set.
    SetChange {
        /// Of which resource.
        resource: ResourceIx,
        /// Of which volume.
        volume: VolumeIx,
        /// Compared.
        generation: Gen,
        /// The primary's epoch, compared too.
        epoch: Epoch,
        /// The new set.
        in_sync: NodeSet,
        /// Whom it adds or removes.
        peer: NodeId,
        /// The disk and run of the peer that is added; compared too, for one that has started anew since
        /// it was made equal may have lost what it had (rule 8).
        life: Option<(Incarnation, Run)>,
        /// Why.
        why: SetChange,
    },
    /// The primary goes on: takeovers made for this generation are dead.
    Reassert {
        /// Of which resource.
        resource: ResourceIx,
        /// Compared.
        generation: Gen,
        /// Compared.
        epoch: Epoch,
    },
    /// A replica runs anew.
    ReplicaSeen {
        /// Of which resource.
        resource: ResourceIx,
        /// Of which volume.
        volume: VolumeIx,
        /// Where.
        node: NodeId,
        /// Compared: the record this is made for.
        expect: (Incarnation, Run),
        /// Its disk.
        incarnation: Incarnation,
        /// Its run.
        run: Run,
        /// Random number of the run.
        nonce: u64,
        /// Stopped uncleanly before.
        unclean: bool,
        /// Its disk says that its content is not to be trusted: new, or failed in an earlier run.
        outdated: bool,
    },
    /// A replica's disk failed: what it took since its last flush may be gone, and the disk itself may not be able
    /// to keep a mark of that. From here on the replica counts as stopped uncleanly (rules 9, 23).
    ReplicaFailed {
        /// Of which resource.
        resource: ResourceIx,
        /// Of which volume.
        volume: VolumeIx,
        /// Where.
        node: NodeId,
        /// Compared: the disk and run that failed.
        life: (Incarnation, Run),
    },
    /// A node that holds no replica of a volume gets one: blank, with everything to be compared.
    ReplicaAdd {
        /// Of which resource.
        resource: ResourceIx,
        /// Of which volume.
        volume: VolumeIx,
        /// Compared.
        generation: Gen,
        /// Which node.
        node: NodeId,
        /// Identity of its disk.
        incarnation: Incarnation,
    },
    /// A replica is given up: one that is no member. A member leaves the in-sync set first, by its primary's word:
    /// only a primary that serves knows that its copy is good without that one.
    ReplicaRemove {
        /// Of which resource.
        resource: ResourceIx,
        /// Of which volume.
        volume: VolumeIx,
        /// Compared.
        generation: Gen,
        /// Which node.
        node: NodeId,
    },
    /// Another size. It grows when every member has the room; it shrinks at once, and only without a primary.
    Resize {
        /// Of which resource.
        resource: ResourceIx,
        /// Which volume.
        volume: VolumeIx,
        /// Compared.
        generation: Gen,
        /// To so many bytes.
        size_bytes: u64,
        /// It may become smaller.
        shrink: bool,
    },
    /// A replica has room for so much.
    ReplicaRoom {
        /// Of which resource.
        resource: ResourceIx,
        /// Of which volume.
        volume: VolumeIx,
        /// Where.
        node: NodeId,
        /// Compared: its disk.
        incarnation: Incarnation,
        /// Compared: the volume's size when all past that was zero.
        size_bytes: u64,
        /// Compared: how often it had shrunk then, see [`holdfast_replicator::VolumeSize::shrunk`].
        shrunk: u32,
        /// Bytes.
        room_bytes: u64,
    },
    /// What the operator wants.
    Want {
        /// Of which resource.
        resource: ResourceIx,
        /// What.
        wanted: Wanted,
    },
    /// The care of a volume changes.
    Care {
        /// Of which resource.
        resource: ResourceIx,
        /// Of which volume.
        volume: VolumeIx,
        /// How.
        care: Care,
    },
    /// The primary has stopped for good: there is none now.
    Vacate {
        /// Of which resource.
        resource: ResourceIx,
        /// Compared.
        generation: Gen,
        /// Compared.
        epoch: Epoch,
    },
}

/// What a command did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    /// Nothing: its comparison failed, or it said nothing new.
    Nothing,
    /// A voter's identity was admitted; all generations grew.
    Admitted(NodeId),
    /// This resource changed.
    Changed(ResourceIx),
    /// This resource has a new primary.
    Promoted(ResourceIx),
    /// This volume's in-sync set changed.
    Set(ResourceIx, VolumeIx, SetChange),
}

impl VolumeRecord {
    /// As its replicas are told.
    pub fn size(&self) -> VolumeSize {
        VolumeSize {
            size_bytes: self.size_bytes,
            room_bytes: self.target_bytes.unwrap_or(self.size_bytes),
            shrunk: if self.shrank { self.shrinks } else { 0 },
        }
    }

    /// The replicas that must have room before it grows.
    pub fn waited_for(&self) -> NodeSet {
        if self.shrank {
            self.data_nodes()
        } else {
            self.in_sync
        }
    }

    /// Replicas that may lack what was acknowledged.
    pub fn doubtful(&self) -> NodeSet {
        let lacking = |r: &ReplicaRecord| r.unclean || r.suspect;
        let replicas = self.replicas.iter();
        replicas
            .filter(|(_, r)| lacking(r))
            .map(|(&n, _)| n)
            .collect()
    }
    /// All nodes with replicas.
    pub fn data_nodes(&self) -> NodeSet {
        self.replicas.keys().copied().collect()
    }
}

impl VolumeRecord {
    fn suspect(&self) -> NodeSet {
        let suspect = self.replicas.iter().filter(|(_, r)| r.suspect);
        suspect.map(|(&n, _)| n).collect()
    }
}

impl ResourceRecord {
    /// The record as one volume's replica sees it.
    pub fn view(&self, volume: VolumeIx) -> Option<View> {
        let record = self.volumes.get(usize::from(volume.0))?;
        Some(View {
            generation: self.generation,
            epoch: self.epoch,
            primary: self.primary,
            in_sync: record.in_sync,
            data_nodes: record.data_nodes(),
            suspect: record.suspect(),
            lineage: self.lineage,
            doubtful: record.doubtful(),
        })
    }

    /// The nodes that are members of every volume's in-sync set: who may be promoted.
    pub fn members(&self) -> NodeSet {
        self.volumes
            .iter()
            .map(|v| v.in_sync)
            .reduce(NodeSet::and)
            .unwrap_or_default()
    }

    /// All nodes with a replica of any of its volumes.
    pub fn data_nodes(&self) -> NodeSet {
        self.volumes
            .iter()
            .map(VolumeRecord::data_nodes)
            .fold(NodeSet::EMPTY, NodeSet::union)
    }

    /// A replica's record.
    pub fn replica(&self, volume: VolumeIx, node: NodeId) -> Option<&ReplicaRecord> {
        self.volumes.get(usize::from(volume.0))?.replicas.get(&node)
    }

    pub(crate) fn changed(&mut self, change: Change) {
        self.generation = self.generation.next();
        self.history.push_back(HistoryEntry {
            generation: self.generation,
            epoch: self.epoch,
            change,
        });
        while self.history.len() > HISTORY_MAX {
            self.history.pop_front();
        }
    }

    fn takeover(&mut self, epoch: Epoch, primary: NodeId, forced: Option<u64>) -> bool {
        let known = self
            .volumes
            .iter()
            .all(|v| v.replicas.contains_key(&primary));
        if epoch != self.epoch.next()
            || !known
            || (forced.is_none() && !self.members().has(primary))
        {
            return false;
        }
        let why = match (forced, self.primary) {
            (Some(lineage), _) => Promotion::Forced { lineage },
            (None, Some(old)) if old == primary => Promotion::Restart,
            (None, None) => Promotion::Planned,
            (None, Some(_)) if self.wanted == Wanted::On(primary) => Promotion::Planned,
            (None, Some(_)) => Promotion::Failover,
        };
        if let Some(lineage) = forced {
            self.lineage = lineage;
        }
        if matches!(self.wanted, Wanted::On(node) if node != primary) {
            self.wanted = Wanted::Auto; // never back by itself
        }
        for volume in &mut self.volumes {
            if forced.is_some() {
                volume.in_sync = NodeSet::only(primary);
            }
            if let Some(replica) = volume.replicas.get_mut(&primary) {
                // From now on its copy is the data.
                replica.unclean = false;
                replica.suspect = false;
            }
        }
        self.epoch = epoch;
        self.primary = Some(primary);
        self.changed(Change::Primary { node: primary, why });
        true
    }

    fn set_change(
        &mut self,
        volume: VolumeIx,
        in_sync: NodeSet,
        peer: NodeId,
        life: Option<(Incarnation, Run)>,
        why: SetChange,
    ) -> bool {
        let Some(record) = self.volumes.get_mut(usize::from(volume.0)) else {
            return false;
        };
        let grows = in_sync == record.in_sync.with(peer) && !record.in_sync.has(peer);
        let shrinks = in_sync == record.in_sync.without(peer) && record.in_sync.has(peer);
        if !(grows || shrinks) || in_sync.is_empty() {
            return false;
        }
        let Some(replica) = record.replicas.get_mut(&peer) else {
            return false;
        };
        if grows {
            if life != Some((replica.incarnation, replica.run)) {
                return false;
            }
            replica.unclean = false;
            replica.suspect = false;
        }
        record.in_sync = in_sync;
        self.changed(Change::Set {
            volume,
            in_sync,
            peer,
            why,
        });
        // Perhaps the one that left was the one without room.
        self.grow(volume);
        true
    }
}

impl ClusterState {
    /// Carries out a committed command.
    pub fn apply(&mut self, command: &Command) -> Applied {
        match command {
            Command::Admit { node, voter } => {
                if self.admitted.insert(*node, *voter) == Some(*voter) {
                    return Applied::Nothing;
                }
                // The new identity knows nothing of fences its predecessor recorded: whatever was built
                // on them must not commit any more.
                for record in self.resources.values_mut() {
                    record.changed(Change::VoterReplaced { node: *node });
                }
                Applied::Admitted(*node)
            }
            Command::Create {
                resource,
                name,
                volumes,
            } => self.create(*resource, name, volumes),
            Command::Takeover {
                resource,
                generation,
                epoch,
                primary,
                forced,
            } => self
                .on(*resource, Some(*generation), |r| {
                    r.takeover(*epoch, *primary, *forced)
                })
                .map_or(Applied::Nothing, |()| Applied::Promoted(*resource)),
            Command::SetChange {
                resource,
                volume,
                generation,
                epoch,
                in_sync,
                peer,
                life,
                why,
            } => self
                .on(*resource, Some(*generation), |r| {
                    r.epoch == *epoch && r.set_change(*volume, *in_sync, *peer, *life, *why)
                })
                .map_or(Applied::Nothing, |()| {
                    Applied::Set(*resource, *volume, *why)
                }),
            Command::Reassert {
                resource,
                generation,
                epoch,
            } => self
                .on(*resource, Some(*generation), |r| {
                    let mine = r.epoch == *epoch && r.primary.is_some();
                    if mine {
                        r.changed(Change::Reasserted);
                    }
                    mine
                })
                .map_or(Applied::Nothing, |()| Applied::Changed(*resource)),
            Command::ReplicaSeen {
                resource,
                volume,
                node,
                expect,
                incarnation,
                run,
                nonce,
                unclean,
                outdated,
            } => {
                let seen = ReplicaRecord {
                    incarnation: *incarnation,
                    run: *run,
                    nonce: *nonce,
                    room_bytes: 0,
                    unclean: *unclean,
                    suspect: *outdated,
                };
                self.on(*resource, None, |r| {
                    r.replica_seen(*volume, *node, *expect, seen)
                })
                .map_or(Applied::Nothing, |()| Applied::Changed(*resource))
            }
            Command::ReplicaFailed {
                resource,
                volume,
                node,
                life,
            } => self
                .on(*resource, None, |r| r.replica_failed(*volume, *node, *life))
                .map_or(Applied::Nothing, |()| Applied::Changed(*resource)),
            Command::ReplicaAdd {
                resource,
                volume,
                generation,
                node,
                incarnation,
            } => self
                .on(*resource, Some(*generation), |r| {
                    r.replica_add(*volume, *node, *incarnation)
                })
                .map_or(Applied::Nothing, |()| Applied::Changed(*resource)),
            Command::ReplicaRemove {
                resource,
                volume,
                generation,
                node,
            } => self
                .on(*resource, Some(*generation), |r| {
                    r.replica_remove(*volume, *node)
                })
                .map_or(Applied::Nothing, |()| Applied::Changed(*resource)),
            Command::Resize {
                resource,
                volume,
                generation,
                size_bytes,
                shrink,
            } => self
                .on(*resource, Some(*generation), |r| {
                    r.resize(*volume, *size_bytes, *shrink)
                })
                .map_or(Applied::Nothing, |()| Applied::Changed(*resource)),
            Command::ReplicaRoom {
                resource,
                volume,
                node,
                incarnation,
                size_bytes,
                shrunk,
                room_bytes,
            } => self
                .on(*resource, None, |r| {
                    let went_by = (*size_bytes, *shrunk);
                    r.replica_room(*volume, *node, *incarnation, went_by, *room_bytes)
                })
                .map_or(Applied::Nothing, |()| Applied::Changed(*resource)),
            Command::Want { resource, wanted } => self
                .on(*resource, None, |r| {
                    std::mem::replace(&mut r.wanted, *wanted) != *wanted
                })
                .map_or(Applied::Nothing, |()| Applied::Changed(*resource)),
            Command::Care {
                resource,
                volume,
                care,
            } => self
                .on(*resource, None, |r| r.care(*volume, *care))
                .map_or(Applied::Nothing, |()| Applied::Changed(*resource)),
            Command::Vacate {
                resource,
                generation,
                epoch,
            } => self
                .on(*resource, Some(*generation), |r| {
                    let mine = r.epoch == *epoch && r.primary.is_some();
                    if mine {
                        r.primary = None;
                        r.changed(Change::Vacated);
                    }
                    mine
                })
                .map_or(Applied::Nothing, |()| Applied::Changed(*resource)),
        }
    }

    /// Could this command still take effect? A leader does not log what cannot.
    pub fn may_apply(&self, command: &Command) -> bool {
        self.clone().apply(command) != Applied::Nothing
    }

    fn on(
        &mut self,
        resource: ResourceIx,
        generation: Option<Gen>,
        change: impl FnOnce(&mut ResourceRecord) -> bool,
    ) -> Option<()> {
        let record = self.resources.get_mut(&resource)?;
        if generation.is_some_and(|g| g != record.generation) {
            return None;
        }
        change(record).then_some(())
    }
}
