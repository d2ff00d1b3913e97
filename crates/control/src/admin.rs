//! What operators ask. A request may come to any node; what another node must do is forwarded to it.
//!
//! Wishes go through the replicated state ([`crate::state::Wanted`]) and are fulfilled by whoever holds the
//! resource, so that a request survives the node it was made at. An answer is given when it is
//! done, when it cannot be done, or in time with what it waits for.

use crate::api::*;
use crate::message::Body;
use crate::node::Node;
use crate::resource::Blocked;
use crate::state::Command;
use holdfast_types::{Incarnation, NodeId, NodeSet};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asker {
    Here(AdminId),
    Node(NodeId, u64),
}

#[derive(Clone, Debug)]
pub(crate) enum Goal {
    Promoted {
        ix: usize,
        node: NodeId,
        forced: bool,
        /// The wish was seen in the record: when it is gone, it was called off.
        seen: bool,
    },
    Demoted {
        ix: usize,
    },
    Resized {
        ix: usize,
        volume: VolumeIx,
        size_bytes: u64,
    },
    Created {
        command: Command,
        ix: usize,
    },
    /// A replica is recorded, or (without a disk) not any more.
    Placed {
        ix: usize,
        volume: VolumeIx,
        node: NodeId,
        disk: Option<Incarnation>,
    },
    /// What the command says is so.
    Kept {
        command: Command,
        ix: usize,
    },
    /// A local disk in use again, or used no more.
    Disk {
        ix: usize,
        v: usize,
        attach: bool,
    },
    Forwarded {
        id: u64,
        to: NodeId,
    },
}

/// A request that is not answered yet.
#[derive(Clone, Debug)]
pub(crate) struct Pending {
    asker: Asker,
    goal: Goal,
    again: Now,
    until: Now,
}

pub(crate) fn refused(message: impl Into<String>) -> AdminReply {
    AdminReply::Refused {
        message: message.into(),
    }
}

impl Node {
    pub(crate) fn on_admin(&mut self, now: Now, id: AdminId, request: AdminRequest) {
        self.ask(now, Asker::Here(id), request);
    }

    pub(crate) fn on_forwarded(&mut self, now: Now, from: NodeId, id: u64, request: AdminRequest) {
        self.ask(now, Asker::Node(from, id), request);
    }

    pub(crate) fn on_forwarded_reply(&mut self, from: NodeId, id: u64, reply: AdminReply) {
        let at = self
            .pending
            .iter()
            .position(|p| matches!(p.goal, Goal::Forwarded { id: i, to } if i == id && to == from));
        if let Some(at) = at {
            let asker = self.pending.remove(at).asker;
            self.answer(asker, reply);
        }
    }

    fn answer(&mut self, asker: Asker, reply: AdminReply) {
        match asker {
            Asker::Here(id) => self.act(Action::Reply { id, reply }),
            Asker::Node(to, id) => {
                let msg = Message(Body::AdminReply {
                    id,
                    reply: Box::new(reply),
                });
                self.act(Action::Send { to, msg });
            }
        }
    }

    fn ask(&mut self, now: Now, asker: Asker, request: AdminRequest) {
        let result = match request {
            AdminRequest::Status => Err(AdminReply::Status(Box::new(self.status(now)))),
            AdminRequest::Promote {
                resource,
                node,
                force,
            } => self.ask_promote(now, asker, resource, node, force),
            AdminRequest::Demote { resource } => {
                self.find(&resource).map(|ix| Some(Goal::Demoted { ix }))
            }
            AdminRequest::Create { resource, volumes } => self.ask_create(&resource, volumes),
            AdminRequest::Resize {
                resource,
                volume,
                size_bytes,
                shrink,
            } => self.ask_resize(&resource, volume, size_bytes, shrink.as_deref()),
            AdminRequest::ReplicaAdd {
                resource,
                volume,
                node,
                incarnation,
            } => self.ask_place(now, asker, &resource, volume, node, Some(incarnation)),
            AdminRequest::ReplicaRemove {
                resource,
                volume,
                node,
            } => self.ask_place(now, asker, &resource, volume, node, None),
            AdminRequest::Attach {
                resource,
                volume,
                node,
            } => self.ask_disk(now, asker, resource, volume, node, true),
            AdminRequest::Detach {
                resource,
                volume,
                node,
            } => self.ask_disk(now, asker, resource, volume, node, false),
            AdminRequest::Invalidate {
                resource,
                volume,
                node,
            } => {
                let request = AdminRequest::Invalidate {
                    resource: resource.clone(),
                    volume,
                    node,
                };
                let msg = FromControl::Invalidate { peer: node };
                let nodes = NodeSet::only(node);
                self.ask_primary(now, asker, &resource, volume, nodes, msg, request)
            }
            AdminRequest::Care {
                resource,
                volume,
                care,
            } => self.ask_care(&resource, volume, care),
            AdminRequest::Verify {
                resource,
                volume,
                order,
            } => {
                let request = AdminRequest::Verify {
                    resource: resource.clone(),
                    volume,
                    order,
                };
                let msg = FromControl::Verify(order);
                self.ask_primary(now, asker, &resource, volume, order.peers, msg, request)
            }
        };
        match result {
            Ok(Some(goal)) => {
                let until = now.plus_ms(self.config.timing.admin_ms);
                self.pending.push(Pending {
                    asker,
                    goal,
                    again: now,
                    until,
                });
            }
            Ok(None) => {} // forwarded
            Err(reply) => self.answer(asker, reply),
        }
    }

    pub(crate) fn find(&self, name: &str) -> Result<usize, AdminReply> {
        self.config
            .resources
            .iter()
            .position(|r| r.name == name)
            .ok_or_else(|| {
                let known: Vec<_> = self
                    .config
                    .resources
                    .iter()
                    .map(|r| r.name.as_str())
                    .collect();
                refused(format!(
                    "there is no resource {name:?}; the configuration names: {}",
                    known.join(", ")
                ))
            })
    }

    pub(crate) fn forward(
        &mut self,
        now: Now,
        asker: Asker,
        to: NodeId,
        request: AdminRequest,
    ) -> Result<Option<Goal>, AdminReply> {
        if matches!(asker, Asker::Node(..)) {
            return Err(refused("the cluster is changing, ask again")); // one hop is enough
        }
        if !self.connected(now, to) {
            return Err(refused(format!(
                "{} is not online",
                self.config.name_of(to)
            )));
        }
        self.next_forward += 1;
        let id = self.next_forward;
        self.send(now, to, Body::Admin { id, request });
        Ok(Some(Goal::Forwarded { id, to }))
    }

    fn ask_promote(
        &mut self,
        now: Now,
        asker: Asker,
        resource: String,
        node: Option<NodeId>,
        force: Option<String>,
    ) -> Result<Option<Goal>, AdminReply> {
        let me = self.me();
        let node = node.unwrap_or(me);
        let ix = self.find(&resource)?;
        let name = self.config.name_of(node);
        if !self.data_nodes(ix).contains(&node) {
            return Err(refused(format!(
                "{name} holds no replica of {resource}: it cannot be its primary"
            )));
        }
        let Some(record) = self.state().resources.get(&ResourceIx(ix as u16)).cloned() else {
            return Err(refused(format!(
                "{resource} is not created yet: run `holdfast create {resource}` first"
            )));
        };
        if record.members().has(node) {
            return Ok(Some(Goal::Promoted {
                ix,
                node,
                forced: false,
                seen: false,
            }));
        }
        let holders = self.names(record.members());
        let lost = format!(
            "{name} is outdated: the newest data of {resource} is on {holders}; promoting {name} gives up \
             every write acknowledged since {name} left the in-sync set"
        );
        if force.as_deref() != Some(FORCE_CONSENT) {
            return Err(refused(format!(
                "{lost}. Wait for {holders}, or, if that data is lost for good, force it: \
                 on {name}, holdfast promote {resource} --force {FORCE_CONSENT:?}"
            )));
        }
        if let Some(primary) = record.primary.filter(|p| self.connected(now, *p))
            && self
                .heard_of(primary, ResourceIx(ix as u16))
                .is_some_and(|h| {
                    matches!(
                        h.phase,
                        PhaseWord::Primary | PhaseWord::Starting | PhaseWord::Leading
                    )
                })
        {
            let primary = self.config.name_of(primary);
            return Err(refused(format!(
                "{resource} runs on {primary} with newer data: nothing needs to be forced; let {name} resync"
            )));
        }
        if node != me {
            let request = AdminRequest::Promote {
                resource,
                node: Some(node),
                force,
            };
            return self.forward(now, asker, node, request);
        }
        if let Err(blocked) = self.fit(ix) {
            return Err(refused(format!(
                "{name} cannot: {}",
                self.blocked_words(blocked)
            )));
        }
        self.resources[ix].force_until = Some(now.plus_ms(self.config.timing.admin_ms));
        Ok(Some(Goal::Promoted {
            ix,
            node,
            forced: true,
            seen: false,
        }))
    }

    fn ask_create(
        &mut self,
        resource: &str,
        volumes: Vec<CreateVolume>,
    ) -> Result<Option<Goal>, AdminReply> {
        let ix = self.find(resource)?;
        let config = &self.config.resources[ix];
        if self.state().resources.contains_key(&ResourceIx(ix as u16)) {
            return Err(refused(format!("{resource} exists already")));
        }
        if volumes.len() != config.volumes.len() {
            return Err(refused(format!(
                "{resource} has {} volumes in the configuration, not {}",
                config.volumes.len(),
                volumes.len()
            )));
        }
        for (volume, wish) in volumes.iter().zip(&config.volumes) {
            let nodes: holdfast_types::NodeSet = volume.replicas.iter().map(|r| r.0).collect();
            if nodes != config.data_set() || nodes.len() as usize != volume.replicas.len() {
                return Err(refused(format!(
                    "volume {} of {resource} needs one replica on each of its data nodes",
                    wish.name
                )));
            }
            if volume.in_sync.is_empty() || !nodes.contains(volume.in_sync) {
                return Err(refused(format!(
                    "volume {} of {resource}: its in-sync set must name some of its replicas",
                    wish.name
                )));
            }
            if volume.size_bytes != wish.size_bytes {
                return Err(refused(format!(
                    "volume {} of {resource} has {} bytes in the configuration, its replicas {}",
                    wish.name, wish.size_bytes, volume.size_bytes
                )));
            }
        }
        let command = Command::Create {
            resource: ResourceIx(ix as u16),
            name: resource.to_owned(),
            volumes,
        };
        Ok(Some(Goal::Created { command, ix }))
    }

    fn ask_care(
        &mut self,
        resource: &str,
        volume: VolumeIx,
        care: Care,
    ) -> Result<Option<Goal>, AdminReply> {
        let ix = self.find(resource)?;
        let resource_ix = ResourceIx(ix as u16);
        let record = self.state().resources.get(&resource_ix).ok_or_else(|| {
            refused(format!(
                "{resource} is not created yet: run `holdfast create {resource}` first"
            ))
        })?;
        if usize::from(volume.0) >= record.volumes.len() {
            let volumes = record.volumes.len();
            return Err(refused(format!("{resource} has {volumes} volumes")));
        }
        let command = Command::Care {
            resource: resource_ix,
            volume,
            care,
        };
        Ok(Some(Goal::Kept { command, ix }))
    }

    #[allow(clippy::too_many_arguments)]
    fn ask_primary(
        &mut self,
        now: Now,
        asker: Asker,
        resource: &str,
        volume: Option<VolumeIx>,
        nodes: NodeSet,
        msg: FromControl,
        request: AdminRequest,
    ) -> Result<Option<Goal>, AdminReply> {
        let ix = self.find(resource)?;
        let me = self.me();
        let volumes = self.config.resources[ix].volumes.len();
        if volume.is_some_and(|v| usize::from(v.0) >= volumes) {
            return Err(refused(format!("{resource} has {volumes} volumes")));
        }
        let record = self.state().resources.get(&ResourceIx(ix as u16));
        let Some(primary) = record.and_then(|r| r.primary) else {
            return Err(refused(format!(
                "{resource} has no primary to compare with: promote one first"
            )));
        };
        if nodes.has(primary) {
            let name = self.config.name_of(primary);
            return Err(refused(format!(
                "{name} is the primary of {resource}: its copy is the data; promote another node first"
            )));
        }
        if let Some(node) = nodes.iter().find(|n| !self.data_nodes(ix).contains(n)) {
            let name = self.config.name_of(node);
            return Err(refused(format!("{name} holds no replica of {resource}")));
        }
        if primary != me {
            return self.forward(now, asker, primary, request);
        }
        if self.resources[ix].holding().is_none() {
            return Err(refused(format!(
                "{resource} is not running: its primary is not up"
            )));
        }
        for v in 0..volumes {
            if volume.is_none_or(|only| usize::from(only.0) == v) {
                self.tell_one(ix, v, msg.clone());
            }
        }
        Err(AdminReply::Done {
            message: format!("started; `holdfast status {resource}` shows the progress"),
        })
    }

    fn ask_disk(
        &mut self,
        now: Now,
        asker: Asker,
        resource: String,
        volume: VolumeIx,
        node: NodeId,
        attach: bool,
    ) -> Result<Option<Goal>, AdminReply> {
        let ix = self.find(&resource)?;
        let v = usize::from(volume.0);
        let name = self.config.name_of(node);
        let record = self.state().resources.get(&ResourceIx(ix as u16));
        let held = record.and_then(|r| r.replica(volume, node)).is_some();
        if !held || v >= self.resources[ix].locals.len() {
            return Err(refused(format!("{name} holds no replica of it")));
        }
        let alone = record
            .and_then(|r| r.volumes.get(v))
            .is_some_and(|r| r.in_sync == holdfast_types::NodeSet::only(node));
        if node != self.me() {
            let request = if attach {
                AdminRequest::Attach {
                    resource,
                    volume,
                    node,
                }
            } else {
                AdminRequest::Detach {
                    resource,
                    volume,
                    node,
                }
            };
            return self.forward(now, asker, node, request);
        }
        if attach && self.attached(ix, v) {
            return Err(refused(format!("the disk of {name} is in use already")));
        }
        if attach && self.resources[ix].holding().is_some() && !alone {
            return Err(refused(format!(
                "{name} is the primary of {resource} and goes on through the other members: promote one of them first \
                 (`holdfast promote {resource}` there), then attach the disk here"
            )));
        }
        if !attach && alone {
            return Err(refused(format!(
                "{name} is the last member of the in-sync set: its disk holds the only current copy. Let another \
                 replica resync first"
            )));
        }
        if attach {
            let attach = &mut self.resources[ix].locals[v].attach;
            attach.asked = true;
            attach.error = None;
        } else {
            self.tell_one(ix, v, FromControl::Detach);
        }
        Ok(Some(Goal::Disk { ix, v, attach }))
    }

    /// Looks after requests that are not answered yet.
    pub(crate) fn drive_admin(&mut self, now: Now) {
        let mut open = Vec::new();
        for mut pending in std::mem::take(&mut self.pending) {
            if let Goal::Promoted { ix, node, seen, .. } = &mut pending.goal {
                let record = self
                    .consensus
                    .state()
                    .resources
                    .get(&ResourceIx(*ix as u16));
                *seen |= record.is_some_and(|r| r.wanted == Wanted::On(*node));
            }
            let answer = self.reached(now, &pending.goal).or_else(|| {
                (now >= pending.until).then(|| AdminReply::TimedOut {
                    message: self.waits_for(now, &pending.goal),
                })
            });
            if let Some(reply) = answer {
                self.answer(pending.asker, reply);
                continue;
            }
            if now >= pending.again {
                pending.again = now.plus_ms(self.config.timing.heartbeat_ms);
                self.pursue(now, &pending.goal);
            }
            self.wake(pending.again.min(pending.until));
            open.push(pending);
        }
        self.pending.extend(open);
    }

    fn reached(&self, now: Now, goal: &Goal) -> Option<AdminReply> {
        let done = |message: String| Some(AdminReply::Done { message });
        match goal {
            Goal::Created { ix, .. } => {
                let name = &self.config.resources[*ix].name;
                self.state().resources.get(&ResourceIx(*ix as u16))?;
                done(format!("{name} is created"))
            }
            Goal::Kept { command, ix } => {
                let name = &self.config.resources[*ix].name;
                (!self.state().may_apply(command)).then(|| AdminReply::Done {
                    message: format!("recorded for {name}"),
                })
            }
            Goal::Resized {
                ix,
                volume,
                size_bytes,
            } => {
                let record = self.state().resources.get(&ResourceIx(*ix as u16))?;
                let of = record.volumes.get(usize::from(volume.0))?;
                if of.size_bytes == *size_bytes && of.target_bytes.is_none() {
                    return done(format!(
                        "{} volume {} has {size_bytes} bytes",
                        record.name, volume.0
                    ));
                }
                let running = *size_bytes < of.size_bytes && record.primary.is_some();
                running.then(|| refused(format!("{} was started meanwhile", record.name)))
            }
            Goal::Placed {
                ix,
                volume,
                node,
                disk,
            } => {
                let record = self.state().resources.get(&ResourceIx(*ix as u16))?;
                let of = record.volumes.get(usize::from(volume.0))?;
                let (name, held) = (self.config.name_of(*node), of.replicas.get(node));
                let resource = &record.name;
                match (disk, held) {
                    (Some(disk), Some(held)) if held.incarnation == *disk => {
                        done(format!("{name} holds a replica of {resource}"))
                    }
                    (Some(_), Some(_)) => Some(refused(format!(
                        "{name} got another replica of {resource} meanwhile"
                    ))),
                    (Some(_), None) => None,
                    (None, None) => done(format!("{name} holds no replica of {resource} any more")),
                    (None, Some(_)) => self.keeps(record.primary, of, *node).map(refused),
                }
            }
            Goal::Disk { ix, v, attach } => {
                let error = &self.resources[*ix].locals[*v].attach.error;
                let name = self.config.name_of(self.me());
                if let Some(error) = error.as_ref().filter(|_| *attach) {
                    return Some(refused(error.clone()));
                }
                (self.attached(*ix, *v) == *attach).then(|| AdminReply::Done {
                    message: if *attach {
                        format!("the disk of {name} is in use again; it is resynced now")
                    } else {
                        format!("the disk of {name} is used no more; `holdfast attach` takes it up again")
                    },
                })
            }
            Goal::Demoted { ix } => {
                let record = self.state().resources.get(&ResourceIx(*ix as u16));
                let name = &self.config.resources[*ix].name;
                let Some(record) = record else {
                    return Some(refused(format!("{name} is not created yet")));
                };
                (record.primary.is_none() && record.wanted == Wanted::Stopped).then(|| {
                    AdminReply::Done {
                        message: format!("{name} is stopped everywhere"),
                    }
                })
            }
            Goal::Promoted {
                ix,
                node,
                forced,
                seen,
            } => {
                let resource = ResourceIx(*ix as u16);
                let record = self.state().resources.get(&resource)?;
                let (name, node_name) =
                    (&self.config.resources[*ix].name, self.config.name_of(*node));
                let up = if *node == self.me() {
                    self.resources[*ix].word() == PhaseWord::Primary
                } else {
                    self.heard_of(*node, resource)
                        .is_some_and(|h| h.phase == PhaseWord::Primary && h.epoch == record.epoch)
                };
                if record.primary == Some(*node) && up {
                    return done(format!(
                        "{name} runs on {node_name} (epoch {})",
                        record.epoch
                    ));
                }
                if !*forced && !record.members().has(*node) {
                    return Some(refused(format!(
                        "{node_name} is no longer up to date: let it resync first"
                    )));
                }
                if *seen && record.wanted != Wanted::On(*node) && record.primary != Some(*node) {
                    return Some(refused(format!(
                        "called off: {name} could not be stopped where it runs, or somebody wished otherwise; \
                         the log of its node says more"
                    )));
                }
                if !self.connected(now, *node) && record.primary != Some(*node) {
                    return Some(refused(format!("{node_name} is not online")));
                }
                None
            }
            Goal::Forwarded { to, .. } => (!self.connected(now, *to)).then(|| {
                refused(format!(
                    "{} went offline before it answered",
                    self.config.name_of(*to)
                ))
            }),
        }
    }

    fn pursue(&mut self, now: Now, goal: &Goal) {
        match goal {
            Goal::Created { command, .. } | Goal::Kept { command, .. } => {
                self.propose(now, command.clone());
            }
            Goal::Resized {
                ix,
                volume,
                size_bytes,
            } => {
                let (resource, volume, size_bytes) = (ResourceIx(*ix as u16), *volume, *size_bytes);
                let Some(record) = self.state().resources.get(&resource) else {
                    return;
                };
                let of = record.volumes.get(usize::from(volume.0));
                if of.is_some_and(|v| v.target_bytes == Some(size_bytes)) {
                    return; // the replicas make room
                }
                let generation = record.generation;
                self.propose(
                    now,
                    Command::Resize {
                        resource,
                        volume,
                        generation,
                        size_bytes,
                        // Consented to when it was asked for.
                        shrink: true,
                    },
                );
            }
            Goal::Placed {
                ix,
                volume,
                node,
                disk,
            } => {
                let (resource, volume, node, at) = (ResourceIx(*ix as u16), *volume, *node, *ix);
                let Some(record) = self.state().resources.get(&resource) else {
                    return;
                };
                let generation = record.generation;
                let of = record.volumes.get(usize::from(volume.0));
                if disk.is_none() && of.is_some_and(|v| v.in_sync.has(node)) {
                    if self.resources[at].holding().is_some() {
                        let msg = FromControl::Dismiss { peer: node };
                        self.tell_one(at, usize::from(volume.0), msg);
                    }
                    return;
                }
                let command = match *disk {
                    Some(incarnation) => Command::ReplicaAdd {
                        resource,
                        volume,
                        generation,
                        node,
                        incarnation,
                    },
                    None => Command::ReplicaRemove {
                        resource,
                        volume,
                        generation,
                        node,
                    },
                };
                self.propose(now, command);
            }
            Goal::Demoted { ix } => self.want(now, *ix, Wanted::Stopped),
            // Once only: who cannot fulfil the wish takes it back.
            Goal::Promoted { seen: true, .. } => {}
            Goal::Promoted { ix, node, .. } => self.want(now, *ix, Wanted::On(*node)),
            Goal::Forwarded { .. } | Goal::Disk { .. } => {}
        }
    }

    fn want(&mut self, now: Now, ix: usize, wanted: Wanted) {
        let resource = ResourceIx(ix as u16);
        if self
            .state()
            .resources
            .get(&resource)
            .is_some_and(|r| r.wanted != wanted)
        {
            self.propose(now, Command::Want { resource, wanted });
        }
    }

    fn waits_for(&self, now: Now, goal: &Goal) -> String {
        let ix = match goal {
            Goal::Forwarded { to, .. } => {
                return format!("{} has not answered", self.config.name_of(*to));
            }
            Goal::Disk { attach: true, .. } => {
                return "the old run of the replica still waits for an answer of the disk".into();
            }
            Goal::Disk { ix, .. }
            | Goal::Promoted { ix, .. }
            | Goal::Demoted { ix }
            | Goal::Placed { ix, .. }
            | Goal::Kept { ix, .. }
            | Goal::Resized { ix, .. }
            | Goal::Created { ix, .. } => *ix,
        };
        self.cluster_waits(now)
            .or_else(|| self.resource_waits(now, ix))
            .unwrap_or_else(|| {
                "it takes longer than expected; `holdfast status` shows how far it is".into()
            })
    }

    pub(crate) fn blocked_words(&self, blocked: Blocked) -> &'static str {
        match blocked {
            Blocked::NotADataNode => "it holds no replica",
            Blocked::NotStarted => "its replica is not running",
            Blocked::DiskFailed => "its disk failed",
            Blocked::Stalled => "its disk does not make progress",
            Blocked::NotRecorded => "its start is not recorded by the cluster yet",
            Blocked::Outdated => "its copy is outdated",
            Blocked::Suspect => "its disk was replaced or went back in time; it must be resynced",
            Blocked::Unclean => "it stopped uncleanly, and another member may have what it lost",
        }
    }
}
