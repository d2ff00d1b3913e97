//! How things are, and why, in sentences.

use crate::api::*;
use crate::node::Node;
use crate::resource::Blocked;
use crate::state::ResourceRecord;
use holdfast_types::{DiskState, Epoch, Gen, NodeId, NodeSet};

impl Node {
    /// The cluster as this node sees it.
    pub fn status(&self, now: Now) -> Status {
        let state = self.state();
        let nodes = self.config.nodes.iter().map(|n| NodeStatus {
            id: n.id,
            name: n.name.clone(),
            voter: n.voter,
            counts: n.voter && state.admitted.contains_key(&n.id) && self.voter_is_admitted(n.id),
            online: self.connected(now, n.id),
        });
        Status {
            node: self.me(),
            leader: self.consensus.leader(now),
            term: self.consensus.term(),
            quorum: self.hears_majority(now),
            waiting: self.cluster_waits(now),
            nodes: nodes.collect(),
            resources: (0..self.config.resources.len())
                .map(|ix| self.resource_status(now, ix))
                .collect(),
        }
    }

    fn voter_is_admitted(&self, node: NodeId) -> bool {
        let admitted = self.state().admitted.get(&node).copied();
        self.consensus
            .voter_of(node)
            .is_some_and(|id| Some(id.0) == admitted)
    }

    fn hears_majority(&self, now: Now) -> bool {
        let online = self
            .config
            .voters()
            .iter()
            .filter(|n| self.connected(now, *n))
            .count();
        online as u32 >= self.config.majority()
    }

    pub(crate) fn names(&self, nodes: NodeSet) -> String {
        let names: Vec<_> = nodes.iter().map(|n| self.config.name_of(n)).collect();
        match names.split_last() {
            None => "no node".into(),
            Some((last, [])) => last.clone(),
            Some((last, rest)) => format!("{} and {last}", rest.join(", ")),
        }
    }

    fn online(&self, now: Now) -> NodeSet {
        self.config
            .nodes
            .iter()
            .map(|n| n.id)
            .filter(|n| self.connected(now, *n))
            .collect()
    }

    /// Why the control plane cannot act.
    pub(crate) fn cluster_waits(&self, now: Now) -> Option<String> {
        let silent = self.config.voters().minus(self.online(now));
        if self.consensus.is_blank() {
            if silent.is_empty() {
                return Some("this node belongs to no cluster yet: it waits to be taken in".into());
            }
            let names = self.names(silent);
            return Some(format!(
                "a new cluster forms when all voters are there: it waits for {names}"
            ));
        }
        if !self.hears_majority(now) {
            let names = self.names(silent);
            return Some(format!(
                "no majority of the voters is there ({names} not heard): nothing can change until one more returns"
            ));
        }
        if self.consensus.leader(now).is_none() {
            return Some("the voters are choosing a leader".into());
        }
        if self.config.voters().has(self.me()) && !self.counts() {
            return Some("this voter lost its state and waits to be taken in as a new one".into());
        }
        None
    }

    fn resource_status(&self, now: Now, ix: usize) -> ResourceStatus {
        let config = &self.config.resources[ix];
        let resource = ResourceIx(ix as u16);
        let record = self.state().resources.get(&resource);
        let nodes = self.data_nodes(ix);
        let nodes = nodes.into_iter().map(|node| ResourceNodeStatus {
            node,
            phase: if node == self.me() {
                self.resources[ix].word()
            } else if self.connected(now, node) {
                self.heard_of(node, resource)
                    .map_or(PhaseWord::Unknown, |h| h.phase)
            } else {
                PhaseWord::Unknown
            },
        });
        let volumes = record.map(|r| {
            r.volumes
                .iter()
                .zip(&config.volumes)
                .enumerate()
                .map(|(v, (volume, named))| VolumeStatus {
                    name: named.name.clone(),
                    id: volume.id,
                    size_bytes: volume.size_bytes,
                    in_sync: volume.in_sync,
                    upkeep: volume.upkeep,
                    replicas: volume
                        .replicas
                        .iter()
                        .map(|(&node, replica)| ReplicaStatus {
                            node,
                            incarnation: replica.incarnation,
                            disk: self.disk_of(resource, v, node, volume.in_sync),
                            trouble: self.trouble_of(resource, v, node),
                        })
                        .collect(),
                })
        });
        ResourceStatus {
            name: config.name.clone(),
            created: record.is_some(),
            generation: record.map_or(Gen(0), |r| r.generation),
            epoch: record.map_or(Epoch(0), |r| r.epoch),
            primary: record.and_then(|r| r.primary),
            wanted: record.map_or(Wanted::Auto, |r| r.wanted),
            waiting: self.resource_waits(now, ix),
            nodes: nodes.collect(),
            volumes: volumes.map(Iterator::collect).unwrap_or_default(),
            history: record
                .map(|r| r.history.iter().copied().collect())
                .unwrap_or_default(),
        }
    }

    /// Committed membership says what is current; of the others, their nodes say more.
    fn disk_of(
        &self,
        resource: ResourceIx,
        volume: usize,
        node: NodeId,
        in_sync: NodeSet,
    ) -> DiskState {
        let told = if node == self.me() {
            let local = self.resources[usize::from(resource.0)].locals.get(volume);
            local.and_then(crate::resource::Local::disk)
        } else {
            self.heard_of(node, resource)
                .and_then(|h| h.disks.get(volume).copied().flatten())
        };
        match told {
            Some(DiskState::Failed | DiskState::Diskless) if in_sync.has(node) => DiskState::Failed,
            Some(DiskState::Failed | DiskState::Diskless) => DiskState::Diskless,
            _ if in_sync.has(node) => DiskState::UpToDate,
            Some(DiskState::Syncing) => DiskState::Syncing,
            _ => DiskState::Outdated,
        }
    }

    /// Why a node uses its disk no more, as it says.
    fn trouble_of(&self, resource: ResourceIx, volume: usize, node: NodeId) -> Option<DiskTrouble> {
        if node == self.me() {
            let local = self.resources[usize::from(resource.0)].locals.get(volume);
            return local.and_then(|l| l.failed);
        }
        self.heard_of(node, resource)
            .and_then(|h| h.troubles.get(volume).copied().flatten())
    }

    /// What a resource waits for, and why.
    pub(crate) fn resource_waits(&self, now: Now, ix: usize) -> Option<String> {
        let name = &self.config.resources[ix].name;
        let Some(record) = self.state().resources.get(&ResourceIx(ix as u16)) else {
            return Some(format!("not created yet: run `holdfast create {name}`"));
        };
        if record.primary.is_none() && record.wanted == Wanted::Stopped {
            return Some(format!(
                "stopped by the operator: `holdfast promote {name}` starts it"
            ));
        }
        if !self.hears_majority(now) {
            return self.cluster_waits(now);
        }
        let phase = record.primary.map(|p| (p, self.phase_of(now, ix, p)));
        match phase {
            Some((_, PhaseWord::Primary)) => self
                .room_waits(ix, record)
                .or_else(|| self.redundancy_waits(now, record)),
            Some((p, PhaseWord::Leading)) => Some(format!(
                "{} is primary and hears the other replicas before it opens",
                self.config.name_of(p)
            )),
            Some((p, PhaseWord::Starting)) => Some(format!(
                "{} starts device, mounts, services and addresses",
                self.config.name_of(p)
            )),
            Some((p, PhaseWord::Stopping)) => Some(format!("{} stops it", self.config.name_of(p))),
            _ => Some(self.promotion_waits(now, ix, record)),
        }
    }

    fn phase_of(&self, now: Now, ix: usize, node: NodeId) -> PhaseWord {
        if node == self.me() {
            return self.resources[ix].word();
        }
        if !self.connected(now, node) {
            return PhaseWord::Unknown;
        }
        self.heard_of(node, ResourceIx(ix as u16))
            .map_or(PhaseWord::Unknown, |h| h.phase)
    }

    /// A volume that shall grow waits for the room.
    fn room_waits(&self, ix: usize, record: &ResourceRecord) -> Option<String> {
        record.volumes.iter().enumerate().find_map(|(v, of)| {
            let target = of.target_bytes?;
            let short: NodeSet = of
                .waited_for()
                .iter()
                .filter(|n| of.replicas.get(n).is_none_or(|r| r.room_bytes < target))
                .collect();
            let named = self.config.resources[ix].volumes.get(v)?;
            let mut text = format!(
                "volume {} grows to {target} bytes when {} made room",
                named.name,
                match short.len() {
                    1 => format!("{} has", self.names(short)),
                    _ => format!("{} have", self.names(short)),
                }
            );
            let local = self.resources[ix].locals.get(v);
            if let Some(bytes) = local.and_then(|l| l.no_room) {
                text += &format!(
                    "; the backing on {} must have {bytes} bytes for that: make it larger, or call it off with the present size",
                    self.config.name_of(self.me())
                );
            }
            Some(text)
        })
    }

    fn redundancy_waits(&self, now: Now, record: &ResourceRecord) -> Option<String> {
        let missing = record.data_nodes().minus(record.members());
        if missing.is_empty() {
            return None;
        }
        let offline = missing.minus(self.online(now));
        Some(if offline.is_empty() {
            format!("it runs, {} is being resynced", self.names(missing))
        } else {
            format!("it runs without {}: not online", self.names(offline))
        })
    }

    fn promotion_waits(&self, now: Now, ix: usize, record: &ResourceRecord) -> String {
        let name = &self.config.resources[ix].name;
        let online = self.online(now);
        let members = record.members();
        let here = members.and(online);
        if members.is_empty() {
            return "no node has the newest data of all its volumes: one volume at a time must be resynced".into();
        }
        if here.is_empty() {
            let holders = self.names(members);
            let is = if members.len() == 1 { "is" } else { "are" };
            let stale = record.data_nodes().minus(members).and(online);
            let mut text = format!(
                "the newest data is on {holders}, which {is} not online: it waits for {holders}"
            );
            if let Some(node) = stale.iter().next() {
                let node = self.config.name_of(node);
                text += &format!(
                    ". {} outdated and not promoted; to give up the newer data for good: \
                     on {node}, holdfast promote {name} --force {FORCE_CONSENT:?}",
                    if stale.len() == 1 {
                        format!("{node} is")
                    } else {
                        format!("{} are", self.names(stale))
                    },
                );
            }
            return text;
        }
        if record.primary.is_none()
            && record.wanted == Wanted::Auto
            && !self.config.resources[ix].auto_promote
        {
            return format!(
                "nobody is promoted by itself here (auto_promote is off): holdfast promote {name}"
            );
        }
        if here.has(self.me()) {
            match self.eligible(now, ix, record) {
                Ok(()) => {}
                Err(Blocked::Unclean) => {
                    let others = self.names(self.maybe_clean(ix, record));
                    return format!(
                        "{} stopped uncleanly and may lack acknowledged writes: it waits for {others}",
                        self.config.name_of(self.me())
                    );
                }
                Err(blocked) => {
                    let me = self.config.name_of(self.me());
                    return format!("{me} cannot take over: {}", self.blocked_words(blocked));
                }
            }
        }
        let next = self.names(here);
        match record.primary {
            Some(p) if p != self.me() => {
                format!(
                    "waits for the lease of {} to end; then {next} can take over",
                    self.config.name_of(p)
                )
            }
            _ => format!("a promotion is under way; {next} can take over"),
        }
    }
}
