//! The node: takes events in, asks its rooms, hands actions out.
//!
//! Invariants
//! - after every event all rooms are driven until nothing changes; what remains to be done later is in
//!   [`Node::deadline`];
//! - at most one write of the state is under way; whatever depends on it is held back until it is durable.

use crate::admin::Pending;
use crate::api::*;
use crate::consensus::Consensus;
use crate::durable::{DurableError, Stored};
use crate::lease::{Fence, Grantor, Holder};
use crate::message::{Body, Hello, RaftId, ResourceHello};
use crate::resource::Resource;
use crate::rng::Rng;
use crate::state::{Applied, ClusterState, Command};
use holdfast_replicator::Rule;
use holdfast_types::{Incarnation, NODES_MAX, NodeId};
use std::collections::{BTreeMap, VecDeque};

/// Rounds of driving after one event; each round but the last changed something.
const SETTLE_ROUNDS_MAX: usize = 64;

/// A tick is never asked for sooner than this, in nanoseconds (0.1 ms).
const TICK_NS_MIN: u64 = 100_000;

/// Why a node does not start.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StartError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The stored state.
    #[error(transparent)]
    Durable(#[from] DurableError),
}

/// Another node as this one hears it.
#[derive(Debug, Default)]
pub(crate) struct Peer {
    pub(crate) up: bool,
    pub(crate) heard: Option<Now>,
    pub(crate) hello: Option<Hello>,
}

/// One node of the control plane.
#[derive(Debug)]
pub struct Node {
    pub(crate) config: Config,
    pub(crate) rng: Rng,
    pub(crate) consensus: Consensus,
    pub(crate) grantor: Grantor,
    pub(crate) holder: Holder,
    pub(crate) peers: Vec<Peer>,
    pub(crate) resources: Vec<Resource>,
    pub(crate) pending: Vec<Pending>,
    pub(crate) next_forward: u64,
    pub(crate) renew_at: Now,
    pub(crate) shutting_down: bool,
    /// Local disks that failed, in this life or an earlier one, and were not made equal since.
    pub(crate) distrusted: BTreeMap<(ResourceIx, VolumeIx), (Incarnation, DiskTrouble)>,
    stopped: bool,
    hello_at: Now,
    wake: Now,
    now: Now,
    leader_noted: (Option<NodeId>, u64),
    /// To leave when everything that changed until now is durable.
    after_durable: Vec<(NodeId, Body)>,
    held: VecDeque<(Ticket, NodeId, Body)>,
    ticket: Ticket,
    writing: bool,
    dirty: bool,
    identity_durable: bool,
    out: Vec<Action>,
}

impl Node {
    /// A node, and what it wants done first.
    ///
    /// # Errors
    /// A configuration that cannot work, or a stored state that cannot be read.
    pub fn start(
        config: Config,
        start: Start,
        now: Now,
    ) -> Result<(Self, Vec<Action>), StartError> {
        config.validate()?;
        let stored = start.stored.as_deref().map(Stored::decode).transpose()?;
        let mut rng = Rng::new(start.random ^ u64::from(config.me.0).wrapping_mul(0x9e37_79b9));
        let timing = config.timing;
        let (consensus, fences, distrusted, known) = match stored {
            None => {
                let fresh = rng.draw();
                let known = config.off == Some(Rule::FreshVoter);
                let id = RaftId::new(config.me, if known { 0 } else { fresh });
                (
                    Consensus::blank(id, timing, now, &mut rng),
                    Vec::new(),
                    Vec::new(),
                    false,
                )
            }
            Some(stored) => {
                if stored.id.node() != config.me {
                    let why = format!("it belongs to {}, not to {}", stored.id.node(), config.me);
                    return Err(DurableError::Malformed(why).into());
                }
                let consensus = Consensus::restore(&stored, timing, now, &mut rng)
                    .ok_or_else(|| DurableError::Malformed("log out of order".into()))?;
                (consensus, stored.fences, stored.distrusted, true)
            }
        };
        let fences = fences
            .into_iter()
            .map(|(resource, epoch, generation)| (resource, Fence { epoch, generation }))
            .collect();
        let distrusted = distrusted
            .into_iter()
            .map(|(resource, volume, disk, why)| ((resource, volume), (disk, why)))
            .collect();
        let mut node = Self {
            rng,
            consensus,
            grantor: Grantor::new(&timing, now, fences),
            holder: Holder::new(config.voters()),
            peers: (0..NODES_MAX).map(|_| Peer::default()).collect(),
            resources: config
                .resources
                .iter()
                .map(|r| Resource::new(r, now))
                .collect(),
            pending: Vec::new(),
            next_forward: 0,
            renew_at: now,
            shutting_down: false,
            distrusted,
            stopped: false,
            hello_at: now,
            wake: now,
            now,
            leader_noted: (None, 0),
            after_durable: Vec::new(),
            held: VecDeque::new(),
            ticket: Ticket(0),
            writing: false,
            dirty: !known,
            identity_durable: known,
            out: Vec::new(),
            config,
        };
        node.settle(now);
        let actions = std::mem::take(&mut node.out);
        Ok((node, actions))
    }

    /// The disk of a local replica that failed and was not made equal since. The replica must be told when it starts:
    /// the disk itself may have forgotten.
    pub fn distrusted(
        &self,
        resource: ResourceIx,
        volume: VolumeIx,
    ) -> Option<(Incarnation, DiskTrouble)> {
        self.distrusted.get(&(resource, volume)).copied()
    }

    /// Remembers whether a local disk is to be trusted, durably.
    pub(crate) fn trust(
        &mut self,
        resource: ResourceIx,
        volume: VolumeIx,
        failed: Option<(Incarnation, DiskTrouble)>,
    ) {
        let key = (resource, volume);
        let changed = match failed {
            Some(new) => self.distrusted.insert(key, new) != Some(new),
            None => self.distrusted.remove(&key).is_some(),
        };
        self.dirty |= changed;
    }

    /// Takes in what happened.
    pub fn handle(&mut self, now: Now, event: Event) -> Vec<Action> {
        let now = now.max(self.now);
        self.now = now;
        // Before anything else is begun: what has ended while nobody looked.
        for ix in 0..self.resources.len() {
            self.check_lease(now, ix);
        }
        match event {
            Event::Tick => {}
            Event::Message { from, msg } => self.receive(now, from, msg.0),
            Event::LinkUp { node } => {
                if let Some(peer) = self.peers.get_mut(usize::from(node.0)) {
                    peer.up = true;
                    self.hello(now, node);
                }
            }
            Event::LinkDown { node } => {
                if let Some(peer) = self.peers.get_mut(usize::from(node.0)) {
                    *peer = Peer::default();
                }
            }
            Event::Persisted { ticket } => self.persisted(now, ticket),
            Event::Replica {
                resource,
                volume,
                msg,
            } => self.on_replica(now, resource, volume, msg),
            Event::HostDone {
                resource,
                step,
                result,
            } => self.on_host(now, resource, step, result),
            Event::NotReopened {
                resource,
                volume,
                error,
            } => self.not_reopened(now, resource, volume, error),
            Event::DiskStalled { resource, stalled } => {
                if let Some(r) = self.resources.get_mut(usize::from(resource.0)) {
                    r.stalled = stalled;
                }
            }
            Event::Stop => self.shutting_down = true,
            Event::Admin { id, request } => self.on_admin(now, id, request),
        }
        self.settle(now);
        std::mem::take(&mut self.out)
    }

    /// When [`Event::Tick`] is due.
    pub fn deadline(&self) -> Option<Now> {
        Some(self.wake)
    }

    /// Its configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The replicated state as far as this node has applied it.
    pub fn state(&self) -> &ClusterState {
        self.consensus.state()
    }

    /// For checkers: term, whether it leads that term, commit index.
    pub fn consensus_facts(&self) -> (u64, bool, u64) {
        (
            self.consensus.term(),
            self.consensus.is_leader(),
            self.consensus.commit_index(),
        )
    }

    pub(crate) fn me(&self) -> NodeId {
        self.config.me
    }

    pub(crate) fn act(&mut self, action: Action) {
        self.out.push(action);
    }

    pub(crate) fn note(&mut self, note: Note) {
        self.out.push(Action::Note(note));
    }

    /// Something is to be done at that time.
    pub(crate) fn wake(&mut self, at: Now) {
        self.wake = self.wake.min(at);
    }

    pub(crate) fn propose(&mut self, now: Now, command: Command) {
        self.consensus.propose(now, command, &mut self.rng);
    }

    /// Sends what depends on nothing durable; to this node itself: at once.
    pub(crate) fn send(&mut self, now: Now, to: NodeId, body: Body) {
        if to == self.me() {
            self.receive(now, to, body);
        } else {
            self.out.push(Action::Send {
                to,
                msg: Message(body),
            });
        }
    }

    /// Sends when everything that changed until now is durable.
    pub(crate) fn send_durable(&mut self, to: NodeId, body: Body, changed: bool) {
        self.dirty |= changed;
        self.after_durable.push((to, body));
    }

    pub(crate) fn tell_voters(&mut self, now: Now, body: &Body) {
        for voter in self.config.voters().iter() {
            self.send(now, voter, body.clone());
        }
    }

    /// Linked and heard of lately.
    pub(crate) fn connected(&self, now: Now, node: NodeId) -> bool {
        node == self.me() || self.heard_within(now, node, self.config.timing.peer_timeout_ms)
    }

    pub(crate) fn heard_within(&self, now: Now, node: NodeId, ms: u64) -> bool {
        self.peers
            .get(usize::from(node.0))
            .is_some_and(|p| p.up && p.heard.is_some_and(|t| now.ms_since(t) < ms))
    }

    /// What a node said last of a resource.
    pub(crate) fn heard_of(&self, node: NodeId, resource: ResourceIx) -> Option<&ResourceHello> {
        let hello = self.peers.get(usize::from(node.0))?.hello.as_ref()?;
        hello.resources.iter().find(|r| r.resource == resource)
    }

    /// This node votes, and its identity counts.
    pub(crate) fn counts(&self) -> bool {
        let me = self.me();
        self.state().admitted.get(&me) == Some(&self.consensus.id().0)
            && self.config.voters().has(me)
    }

    fn hello(&mut self, now: Now, to: NodeId) {
        let me = self.me();
        if !self.identity_durable || to == me {
            return;
        }
        let hello = Hello {
            id: self.consensus.id(),
            blank: self.consensus.is_blank(),
            echo: self.peers[usize::from(to.0)].hello.as_ref().map(|h| h.id),
            resources: self.resource_hellos(),
        };
        self.send(now, to, Body::Hello(hello));
    }

    fn on_hello(&mut self, now: Now, from: NodeId, hello: Hello) {
        if hello.id.node() != from {
            let what = format!("its identity says it is {}", hello.id.node());
            self.note(Note::Protocol { from, what });
            return;
        }
        let peer = &mut self.peers[usize::from(from.0)];
        let fresh = peer.hello.as_ref().is_none_or(|h| h.id != hello.id);
        peer.up = true;
        peer.heard = Some(now);
        peer.hello = Some(hello);
        if fresh {
            self.hello(now, from);
        }
        self.form(now);
    }

    /// A new cluster begins when the lowest voter knows from all others, in answer to its own identity, that
    /// they are blank too.
    fn form(&mut self, now: Now) {
        let me = self.me();
        let voters = self.config.voters();
        if !self.consensus.is_blank() || !self.identity_durable || voters.iter().next() != Some(me)
        {
            return;
        }
        let my_id = self.consensus.id();
        let mut ids = vec![my_id];
        for voter in voters.without(me).iter() {
            let peer = &self.peers[usize::from(voter.0)];
            match &peer.hello {
                Some(h) if h.blank && h.echo == Some(my_id) && self.connected(now, voter) => {
                    ids.push(h.id)
                }
                _ => return,
            }
        }
        self.consensus.form(now, &ids, &mut self.rng);
        self.note(Note::Formed);
    }

    pub(crate) fn receive(&mut self, now: Now, from: NodeId, body: Body) {
        if !self.config.nodes.iter().any(|n| n.id == from) {
            self.note(Note::Protocol {
                from,
                what: "not a node of this cluster".into(),
            });
            return;
        }
        let claimed = match &body {
            Body::Raft { from, .. }
            | Body::Snapshot { from, .. }
            | Body::PreVote { from, .. }
            | Body::PreVoteReply { from, .. } => Some(from.node()),
            _ => None,
        };
        if claimed.is_some_and(|c| c != from) {
            self.note(Note::Protocol {
                from,
                what: "speaks for another node".into(),
            });
            return;
        }
        let rng = &mut self.rng;
        let result = match body {
            Body::Hello(hello) => {
                self.on_hello(now, from, hello);
                Ok(())
            }
            Body::Raft { from, to, msg } => self.consensus.message(now, from, to, &msg, rng),
            Body::Snapshot {
                from,
                to,
                term,
                last,
                config,
                state,
            } => self
                .consensus
                .install(now, (from, to, term), last, &config, &state, rng),
            Body::PreVote {
                from,
                to,
                round,
                last,
            } => {
                self.consensus.pre_vote(now, from, to, round, last);
                Ok(())
            }
            Body::PreVoteReply { from, to, round } => {
                self.consensus.pre_vote_reply(now, from, to, round, rng);
                Ok(())
            }
            Body::Propose(command) => {
                // A leader logs it; others drop it, so that nothing circles.
                if self.consensus.is_leader() {
                    self.propose(now, command);
                }
                Ok(())
            }
            body => {
                self.on_lease_body(now, from, body);
                Ok(())
            }
        };
        if let Err(what) = result {
            self.note(Note::Protocol {
                from,
                what: what.into(),
            });
        }
    }

    fn persisted(&mut self, now: Now, ticket: Ticket) {
        if !self.writing || ticket != self.ticket {
            return;
        }
        self.writing = false;
        self.identity_durable = true;
        while self.held.front().is_some_and(|(t, ..)| *t <= ticket) {
            if let Some((_, to, body)) = self.held.pop_front() {
                self.send(now, to, body);
            }
        }
    }

    /// Drives everything until nothing changes, then starts a write if need be.
    fn settle(&mut self, now: Now) {
        for _ in 0..SETTLE_ROUNDS_MAX {
            self.wake = Now(u64::MAX);
            self.consensus.tick(now, &mut self.rng);
            self.timers(now);
            for ix in 0..self.resources.len() {
                self.drive(now, ix);
            }
            self.drive_admin(now);
            let out = std::mem::take(&mut self.consensus.out);
            let again = out.replaced || !out.applied.is_empty();
            self.dirty |= out.dirty;
            self.after_durable.extend(out.sends);
            for applied in out.applied {
                self.on_applied(applied);
            }
            if !again {
                break;
            }
        }
        self.note_leader(now);
        self.drive_stop();
        self.wake(self.consensus.deadline());
        self.write(now);
        self.wake = self.wake.max(Now(now.0 + TICK_NS_MIN));
    }

    fn write(&mut self, now: Now) {
        let must_wait = self.dirty || self.writing;
        if self.dirty && !self.writing {
            self.ticket.0 += 1;
            self.writing = true;
            self.dirty = false;
            let mut stored = self.consensus.stored();
            let fences = self.grantor.fences.iter();
            stored.fences = fences.map(|(r, f)| (*r, f.epoch, f.generation)).collect();
            let distrusted = self.distrusted.iter();
            stored.distrusted = distrusted.map(|(k, d)| (k.0, k.1, d.0, d.1)).collect();
            self.out.push(Action::Persist {
                ticket: self.ticket,
                bytes: stored.encode(),
            });
        }
        // What is dirty while a write is under way goes with the next one.
        let need = Ticket(self.ticket.0 + u64::from(self.dirty));
        for (to, body) in std::mem::take(&mut self.after_durable) {
            if must_wait {
                self.held.push_back((need, to, body));
            } else {
                self.send(now, to, body);
            }
        }
    }

    fn timers(&mut self, now: Now) {
        let beat = self.config.timing.heartbeat_ms;
        if now >= self.hello_at {
            self.hello_at = now.plus_ms(beat);
            for node in self.config.nodes.iter().map(|n| n.id).collect::<Vec<_>>() {
                self.hello(now, node);
            }
            let nodes: Vec<_> = self
                .config
                .nodes
                .iter()
                .filter(|n| n.id != self.me() && self.connected(now, n.id))
                .filter_map(|n| {
                    let hello = self.peers[usize::from(n.id.0)].hello.as_ref()?;
                    (hello.echo == Some(self.consensus.id())).then_some((hello.id, n.voter))
                })
                .collect();
            self.consensus.reconcile(now, &nodes, &mut self.rng);
        }
        self.wake(self.hello_at);
        self.renew(now);
    }

    fn on_applied(&mut self, applied: Applied) {
        match applied {
            Applied::Nothing | Applied::Changed(_) => {}
            Applied::Admitted(node) => self.note(Note::VoterAdmitted { node }),
            Applied::Promoted(resource) => {
                if let Some((epoch, Some(node))) = self
                    .state()
                    .resources
                    .get(&resource)
                    .map(|r| (r.epoch, r.primary))
                {
                    self.note(Note::Promoted {
                        resource,
                        epoch,
                        node,
                    });
                }
            }
            Applied::Set(resource, volume, why) => {
                let record = self.state().resources.get(&resource);
                if let Some(view) = record.and_then(|r| r.view(volume)) {
                    let in_sync = view.in_sync;
                    self.note(Note::SetChanged {
                        resource,
                        volume,
                        in_sync,
                        why,
                    });
                }
            }
        }
    }

    fn note_leader(&mut self, now: Now) {
        let leader = self.consensus.leader(now);
        let seen = (leader, self.consensus.term());
        if leader.is_some() && seen != self.leader_noted {
            self.leader_noted = seen;
            self.note(Note::Leader {
                leader,
                term: seen.1,
            });
        }
    }

    fn drive_stop(&mut self) {
        if self.shutting_down && !self.stopped && self.resources.iter().all(Resource::is_stopped) {
            self.stopped = true;
            self.out.push(Action::Stopped);
        }
    }
}
