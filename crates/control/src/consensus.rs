//! The driver around `noraft`: timers, pre-vote, check-quorum, stickiness, compaction, membership.
//!
//! `noraft` decides what is committed; this room carries its log entries' contents beside it, decides when
//! it may ask for votes, and hands out what must be durable. Nothing it sends may leave before the
//! state it was made from is durable: [`Out::sends`] are held back by the node until then. A leader counts its own
//! log at once, but others' answers can only come after its message left, so after its own entry was durable.
//!
//! Invariants
//! - a voter's raft identity is drawn afresh with each blank state, so a wiped voter can never be
//!   counted under the identity of its former life (rule 37);
//! - the applied index never goes back, even when leadership is laid down by a rebuilt `noraft::Node`.

use crate::api::{Now, Timing};
use crate::durable::Stored;
use crate::message::{Body, Entry, Position, RaftId, RaftMessage, WireConfig};
use crate::rng::Rng;
use crate::state::{Applied, ClusterState, Command};
use holdfast_types::NodeId;
use noraft::{LogEntries, LogEntry, LogIndex, LogPosition, Term};
use std::collections::{BTreeMap, BTreeSet};

/// Applied entries that are kept before the state replaces them.
const LOG_KEEP: u64 = 64;
/// Uncommitted entries a leader takes in before it refuses more.
const LOG_PENDING_MAX: u64 = 256;
/// Terms and indexes from outside are below this, so that arithmetic on them cannot overflow.
const NUMBER_MAX: u64 = 1 << 62;

/// What a call brought about; taken by the node.
#[derive(Debug, Default)]
pub(crate) struct Out {
    /// Something durable changed.
    pub(crate) dirty: bool,
    /// Leave once the state is durable.
    pub(crate) sends: Vec<(NodeId, Body)>,
    /// Commands that were carried out.
    pub(crate) applied: Vec<Applied>,
    /// A snapshot replaced the state: anything may have changed.
    pub(crate) replaced: bool,
}

#[derive(Debug)]
pub(crate) struct Consensus {
    id: RaftId,
    raft: noraft::Node,
    commands: BTreeMap<u64, Command>,
    state: ClusterState,
    snapshot: ClusterState,
    applied: u64,
    timing: Timing,
    election_at: Now,
    heartbeat_at: Now,
    round: u64,
    pre_votes: Option<BTreeSet<RaftId>>,
    /// Who leads, and in which term: it says nothing of a later one.
    leader: Option<(NodeId, u64)>,
    leader_heard: Option<Now>,
    replied: BTreeMap<RaftId, Now>,
    was_leader: bool,
    announced: u64,
    broken: bool,
    pub(crate) out: Out,
}

fn position(p: LogPosition) -> Position {
    Position {
        term: p.term.get(),
        index: p.index.get(),
    }
}

fn log_position(p: Position) -> LogPosition {
    LogPosition::new(Term::new(p.term), LogIndex::new(p.index))
}

fn wire_config(config: &noraft::ClusterConfig) -> WireConfig {
    let ids = |set: &BTreeSet<noraft::NodeId>| set.iter().map(|n| RaftId(n.get())).collect();
    WireConfig {
        voters: ids(&config.voters),
        new_voters: ids(&config.new_voters),
        non_voters: ids(&config.non_voters),
    }
}

fn raft_config(config: &WireConfig) -> noraft::ClusterConfig {
    let ids = |list: &[RaftId]| list.iter().map(|n| noraft::NodeId::new(n.0)).collect();
    let mut raft = noraft::ClusterConfig::new();
    raft.voters = ids(&config.voters);
    raft.new_voters = ids(&config.new_voters);
    raft.non_voters = ids(&config.non_voters);
    raft
}

/// The entries as `noraft` sees them; `None` if they cannot be.
fn raft_entries(prev: Position, entries: &[Entry]) -> Option<LogEntries> {
    let mut term = prev.term;
    let mut list = LogEntries::new(log_position(prev));
    for entry in entries {
        list.push(match entry {
            Entry::Term(t) if *t < term || *t >= NUMBER_MAX => return None,
            Entry::Term(t) => {
                term = *t;
                LogEntry::Term(Term::new(*t))
            }
            Entry::Config(c) if c.voters.is_empty() => return None,
            Entry::Config(c) => LogEntry::ClusterConfig(raft_config(c)),
            Entry::Command(_) => LogEntry::Command,
        });
    }
    Some(list)
}

impl Consensus {
    /// A blank one: it belongs to no cluster.
    pub(crate) fn blank(id: RaftId, timing: Timing, now: Now, rng: &mut Rng) -> Self {
        Self::new(
            id,
            noraft::Node::start(noraft::NodeId::new(id.0)),
            timing,
            now,
            rng,
        )
    }

    /// One that had a life before.
    pub(crate) fn restore(
        stored: &Stored,
        timing: Timing,
        now: Now,
        rng: &mut Rng,
    ) -> Option<Self> {
        let entries = raft_entries(stored.snapshot_position, &stored.entries)?;
        let log = noraft::Log::new(raft_config(&stored.snapshot_config), entries);
        let raft = noraft::Node::restart(
            noraft::NodeId::new(stored.id.0),
            Term::new(stored.term),
            stored.voted_for.map(|v| noraft::NodeId::new(v.0)),
            log,
        );
        let mut this = Self::new(stored.id, raft, timing, now, rng);
        this.applied = stored.snapshot_position.index;
        this.snapshot = stored.snapshot_state.clone();
        this.state = stored.snapshot_state.clone();
        for (i, entry) in stored.entries.iter().enumerate() {
            if let Entry::Command(command) = entry {
                this.commands
                    .insert(this.applied + 1 + i as u64, command.clone());
            }
        }
        Some(this)
    }

    fn new(id: RaftId, raft: noraft::Node, timing: Timing, now: Now, rng: &mut Rng) -> Self {
        let wait = rng.between(timing.election_min_ms, timing.election_max_ms);
        Self {
            id,
            raft,
            commands: BTreeMap::new(),
            state: ClusterState::default(),
            snapshot: ClusterState::default(),
            applied: 0,
            timing,
            election_at: now.plus_ms(wait),
            heartbeat_at: now,
            round: rng.draw(),
            pre_votes: None,
            leader: None,
            leader_heard: None,
            replied: BTreeMap::new(),
            was_leader: false,
            announced: 0,
            broken: false,
            out: Out::default(),
        }
    }

    /// What must survive.
    pub(crate) fn stored(&self) -> Stored {
        let log = self.raft.log();
        let entries = log
            .entries()
            .iter_with_positions()
            .filter_map(|(at, entry)| self.entry(at.index.get(), &entry))
            .collect();
        Stored {
            id: self.id,
            term: self.raft.current_term().get(),
            voted_for: self.raft.voted_for().map(|v| RaftId(v.get())),
            snapshot_position: position(log.snapshot_position()),
            snapshot_config: wire_config(log.snapshot_config()),
            snapshot_state: self.snapshot.clone(),
            entries,
            fences: Vec::new(),
            distrusted: Vec::new(),
        }
    }

    pub(crate) fn id(&self) -> RaftId {
        self.id
    }
    pub(crate) fn state(&self) -> &ClusterState {
        &self.state
    }
    pub(crate) fn term(&self) -> u64 {
        self.raft.current_term().get()
    }
    pub(crate) fn is_leader(&self) -> bool {
        self.raft.role().is_leader()
    }
    /// Committed as far as this node knows, and a digest-free view of the log for checkers.
    pub(crate) fn commit_index(&self) -> u64 {
        self.raft.commit_index().get().max(self.applied)
    }
    /// It belongs to no cluster and has promised nothing to one.
    pub(crate) fn is_blank(&self) -> bool {
        self.term() == 0 && self.raft.log().last_position() == LogPosition::ZERO
    }
    /// The leader, if one was heard of lately.
    pub(crate) fn leader(&self, now: Now) -> Option<NodeId> {
        if self.is_leader() {
            return Some(self.id.node());
        }
        let fresh = self
            .leader_heard
            .is_some_and(|t| now.ms_since(t) < self.timing.election_max_ms);
        self.leader
            .filter(|&(_, term)| fresh && term == self.term())
            .map(|(leader, _)| leader)
    }
    pub(crate) fn deadline(&self) -> Now {
        match self.broken {
            true => Now(u64::MAX),
            false if self.is_leader() => self.heartbeat_at,
            false => self.election_at,
        }
    }

    /// The identity that votes for a node in the latest configuration.
    pub(crate) fn voter_of(&self, node: NodeId) -> Option<RaftId> {
        self.raft
            .config()
            .voters
            .iter()
            .map(|v| RaftId(v.get()))
            .find(|v| v.node() == node)
    }

    /// Makes a new cluster of these voters.
    pub(crate) fn form(&mut self, now: Now, voters: &[RaftId], rng: &mut Rng) {
        let ids: Vec<_> = voters.iter().map(|v| noraft::NodeId::new(v.0)).collect();
        self.raft.create_cluster(&ids);
        self.drain(now, None, rng);
    }

    /// Brings a command on its way. It may get lost: whoever needs its effect repeats it until a later generation is seen.
    pub(crate) fn propose(&mut self, now: Now, command: Command, rng: &mut Rng) {
        if !self.is_leader() {
            if let Some(leader) = self.leader(now) {
                self.out.sends.push((leader, Body::Propose(command)));
            }
            return;
        }
        let commit = self.commit_index();
        let last = self.raft.log().last_position().index.get();
        let twice = self
            .commands
            .range(commit + 1..)
            .any(|(_, c)| *c == command);
        if twice || last - commit >= LOG_PENDING_MAX || !self.state.may_apply(&command) {
            return;
        }
        let at = self.raft.propose_command();
        if !at.is_invalid() {
            self.commands.insert(at.index.get(), command);
        }
        self.drain(now, None, rng);
    }

    /// Leader: takes the identities in use for the configured nodes into the configuration.
    pub(crate) fn reconcile(&mut self, now: Now, nodes: &[(RaftId, bool)], rng: &mut Rng) {
        if !self.is_leader() || self.raft.config().is_joint_consensus() {
            return;
        }
        let config = self.raft.config().clone();
        let known = |id: RaftId| config.contains(noraft::NodeId::new(id.0));
        let of = |set: &BTreeSet<noraft::NodeId>, node: NodeId| -> Vec<noraft::NodeId> {
            set.iter()
                .copied()
                .filter(|v| RaftId(v.get()).node() == node)
                .collect()
        };
        let unknown = nodes
            .iter()
            .find(|(id, _)| !known(*id) && id.node() != self.id.node());
        if let Some(&(id, voter)) = unknown {
            let fresh = noraft::NodeId::new(id.0);
            let new = if voter {
                let old = of(&config.voters, id.node());
                config.to_joint_consensus(&[fresh], &old)
            } else {
                let mut new = config.clone();
                for old in of(&config.non_voters, id.node()) {
                    new.non_voters.remove(&old);
                }
                new.non_voters.insert(fresh);
                new
            };
            self.raft.propose_config(new);
            self.drain(now, None, rng);
            return;
        }
        // Voters whose identity is settled in the log, but does not count yet.
        if self.raft.commit_index() < self.raft.log().last_position().index {
            return;
        }
        for id in config.voters.iter().map(|v| RaftId(v.get())) {
            if self.state.admitted.get(&id.node()) != Some(&id.0) {
                self.propose(
                    now,
                    Command::Admit {
                        node: id.node(),
                        voter: id.0,
                    },
                    rng,
                );
            }
        }
    }

    pub(crate) fn tick(&mut self, now: Now, rng: &mut Rng) {
        if self.broken {
            return;
        }
        if self.is_leader() {
            if !self.hears_quorum(now) {
                self.lay_down(now, rng);
            } else if now >= self.heartbeat_at || self.announced < self.raft.commit_index().get() {
                // Followers learn at once of what was committed.
                self.announced = self.raft.commit_index().get();
                self.raft.heartbeat();
                self.drain(now, None, rng);
                self.heartbeat_at = now.plus_ms(self.timing.heartbeat_ms);
            }
        } else if now >= self.election_at {
            self.rearm_election(now, rng);
            let me = noraft::NodeId::new(self.id.0);
            let config = self.raft.config();
            if !config.voters.contains(&me) && !config.new_voters.contains(&me) {
                return;
            }
            self.round = self.round.wrapping_add(1);
            self.pre_votes = Some([self.id].into());
            let last = position(self.raft.log().last_position());
            let targets: Vec<_> = config
                .voters
                .union(&config.new_voters)
                .map(|v| RaftId(v.get()))
                .collect();
            for to in targets.into_iter().filter(|to| *to != self.id) {
                let body = Body::PreVote {
                    from: self.id,
                    to,
                    round: self.round,
                    last,
                };
                self.out.sends.push((to.node(), body));
            }
        }
    }

    pub(crate) fn pre_vote(
        &mut self,
        now: Now,
        from: RaftId,
        to: RaftId,
        round: u64,
        last: Position,
    ) {
        let served = self.is_leader() || self.leader_is_fresh(now);
        if to == self.id && !served && last >= position(self.raft.log().last_position()) {
            let body = Body::PreVoteReply {
                from: self.id,
                to: from,
                round,
            };
            self.out.sends.push((from.node(), body));
        }
    }

    pub(crate) fn pre_vote_reply(
        &mut self,
        now: Now,
        from: RaftId,
        to: RaftId,
        round: u64,
        rng: &mut Rng,
    ) {
        if to != self.id || round != self.round || self.is_leader() {
            return;
        }
        let Some(votes) = &mut self.pre_votes else {
            return;
        };
        votes.insert(from);
        let config = self.raft.config();
        let most = |set: &BTreeSet<noraft::NodeId>| {
            let n = set
                .iter()
                .filter(|v| votes.contains(&RaftId(v.get())))
                .count();
            set.is_empty() || n > set.len() / 2
        };
        if most(&config.voters) && most(&config.new_voters) {
            self.pre_votes = None;
            self.raft.handle_election_timeout();
            self.drain(now, None, rng);
        }
    }

    /// A raft message. An error says what was wrong with it.
    pub(crate) fn message(
        &mut self,
        now: Now,
        from: RaftId,
        to: RaftId,
        msg: &RaftMessage,
        rng: &mut Rng,
    ) -> Result<(), &'static str> {
        if to != self.id || self.broken {
            return Ok(());
        }
        let sender = noraft::NodeId::new(from.0);
        let mut incoming = None;
        let raft = match msg {
            RaftMessage::Vote { term, last } => {
                check(&[*term, last.term, last.index])?;
                if *term > self.term() && (self.is_leader() || self.leader_is_fresh(now)) {
                    return Ok(()); // stickiness: a leader that is heard is not voted out
                }
                let last_position = log_position(*last);
                noraft::Message::RequestVoteCall {
                    from: sender,
                    term: Term::new(*term),
                    last_position,
                }
            }
            RaftMessage::VoteReply { term, granted } => {
                check(&[*term])?;
                let (term, vote_granted) = (Term::new(*term), *granted);
                noraft::Message::RequestVoteReply {
                    from: sender,
                    term,
                    vote_granted,
                }
            }
            RaftMessage::Append {
                term,
                commit,
                prev,
                entries,
            } => {
                check(&[*term, *commit, prev.term, prev.index])?;
                let list = raft_entries(*prev, entries).ok_or("log entries out of order")?;
                if *term >= self.term() {
                    self.heard_leader(now, from.node(), *term);
                }
                incoming = Some((*prev, entries.as_slice()));
                noraft::Message::AppendEntriesCall {
                    from: sender,
                    term: Term::new(*term),
                    commit_index: LogIndex::new(*commit),
                    entries: list,
                }
            }
            RaftMessage::AppendReply { term, last } => {
                check(&[*term, last.term, last.index])?;
                if *term == self.term() {
                    self.replied.insert(from, now);
                }
                let last_position = log_position(*last);
                noraft::Message::AppendEntriesReply {
                    from: sender,
                    term: Term::new(*term),
                    last_position,
                }
            }
        };
        self.feed(now, &raft, incoming, rng)
    }

    /// The leader's whole state.
    pub(crate) fn install(
        &mut self,
        now: Now,
        (from, to, term): (RaftId, RaftId, u64),
        last: Position,
        config: &WireConfig,
        state: &ClusterState,
        rng: &mut Rng,
    ) -> Result<(), &'static str> {
        check(&[term, last.term, last.index])?;
        if to != self.id || self.broken || term < self.term() || config.voters.is_empty() {
            return Ok(());
        }
        self.heard_leader(now, from.node(), term);
        let call = noraft::Message::AppendEntriesCall {
            from: noraft::NodeId::new(from.0),
            term: Term::new(term),
            commit_index: LogIndex::ZERO,
            entries: LogEntries::new(log_position(last)),
        };
        // First so that the term is known; its answer tells the old position and is of no use.
        self.feed(now, &call, None, rng)?;
        if last.index > self.applied
            && self
                .raft
                .handle_snapshot_installed(log_position(last), raft_config(config))
        {
            self.commands = self.commands.split_off(&(last.index + 1));
            self.snapshot = state.clone();
            self.state = state.clone();
            self.applied = last.index;
            self.out.dirty = true;
            self.out.replaced = true;
        }
        self.feed(now, &call, None, rng)
    }

    fn feed(
        &mut self,
        now: Now,
        msg: &noraft::Message,
        incoming: Option<(Position, &[Entry])>,
        rng: &mut Rng,
    ) -> Result<(), &'static str> {
        let result = self.raft.handle_message(msg);
        self.drain(now, incoming, rng);
        if result.is_err() {
            self.broken = true;
            return Err(
                "the leader's log contradicts this node's state: it takes no part any more",
            );
        }
        Ok(())
    }

    fn heard_leader(&mut self, now: Now, leader: NodeId, term: u64) {
        self.leader = Some((leader, term));
        self.leader_heard = Some(now);
        self.pre_votes = None;
    }

    fn leader_is_fresh(&self, now: Now) -> bool {
        self.leader_heard
            .is_some_and(|t| now.ms_since(t) < self.timing.election_min_ms)
    }

    /// Leader: a majority answered within the longest election timeout.
    pub(crate) fn hears_quorum(&self, now: Now) -> bool {
        let config = self.raft.config();
        let fresh = |v: &&noraft::NodeId| {
            v.get() == self.id.0
                || self
                    .replied
                    .get(&RaftId(v.get()))
                    .is_some_and(|t| now.ms_since(*t) < self.timing.election_max_ms)
        };
        let most = |set: &BTreeSet<noraft::NodeId>| {
            set.is_empty() || set.iter().filter(fresh).count() > set.len() / 2
        };
        most(&config.voters) && most(&config.new_voters)
    }

    /// Check-quorum: a leader that is not answered becomes a follower of the same term.
    fn lay_down(&mut self, now: Now, rng: &mut Rng) {
        self.raft = noraft::Node::restart(
            self.raft.id(),
            self.raft.current_term(),
            self.raft.voted_for(),
            self.raft.log().clone(),
        );
        self.leader = None;
        self.drain(now, None, rng);
    }

    fn rearm_election(&mut self, now: Now, rng: &mut Rng) {
        let wait = rng.between(self.timing.election_min_ms, self.timing.election_max_ms);
        self.election_at = now.plus_ms(wait);
    }

    /// Takes what `noraft` wants done.
    fn drain(&mut self, now: Now, incoming: Option<(Position, &[Entry])>, rng: &mut Rng) {
        let actions: Vec<_> = self.raft.actions_mut().collect();
        for action in actions {
            match action {
                noraft::Action::SetElectionTimeout if self.is_leader() => {
                    self.heartbeat_at = now.plus_ms(self.timing.heartbeat_ms);
                }
                noraft::Action::SetElectionTimeout => self.rearm_election(now, rng),
                noraft::Action::SaveCurrentTerm | noraft::Action::SaveVotedFor => {
                    self.out.dirty = true;
                }
                noraft::Action::AppendLogEntries(entries) => {
                    self.out.dirty = true;
                    if let Some((prev, list)) = incoming {
                        self.adopt(&entries, prev, list);
                    }
                }
                noraft::Action::BroadcastMessage(msg) => {
                    for to in self.raft.peers().collect::<Vec<_>>() {
                        self.send(to, &msg);
                    }
                }
                noraft::Action::SendMessage(to, msg) => self.send(to, &msg),
                noraft::Action::InstallSnapshot(to) => {
                    let to = RaftId(to.get());
                    let log = self.raft.log();
                    let body = Body::Snapshot {
                        from: self.id,
                        to,
                        term: self.term(),
                        last: position(log.snapshot_position()),
                        config: wire_config(log.snapshot_config()),
                        state: Box::new(self.snapshot.clone()),
                    };
                    self.out.sends.push((to.node(), body));
                }
            }
        }
        // Entries that were cut off take their contents with them.
        let last = self.raft.log().last_position().index.get();
        self.commands.split_off(&(last + 1));
        if self.is_leader() && !self.was_leader {
            self.leader = Some((self.id.node(), self.term()));
            self.replied = self.raft.peers().map(|p| (RaftId(p.get()), now)).collect();
        }
        self.was_leader = self.is_leader();
        self.apply();
    }

    /// Keeps the contents of entries that were appended from a leader's message.
    fn adopt(&mut self, appended: &LogEntries, prev: Position, list: &[Entry]) {
        let first = appended.prev_position().index.get() + 1;
        self.commands.split_off(&first);
        for index in first..=appended.last_position().index.get() {
            let at = (index - prev.index - 1) as usize;
            if let Some(Entry::Command(command)) = list.get(at) {
                self.commands.insert(index, command.clone());
            }
        }
    }

    fn entry(&self, index: u64, entry: &LogEntry) -> Option<Entry> {
        Some(match entry {
            LogEntry::Term(term) => Entry::Term(term.get()),
            LogEntry::ClusterConfig(config) => Entry::Config(wire_config(config)),
            LogEntry::Command => Entry::Command(self.commands.get(&index)?.clone()),
        })
    }

    fn send(&mut self, to: noraft::NodeId, msg: &noraft::Message) {
        let msg = match msg {
            noraft::Message::RequestVoteCall {
                term,
                last_position,
                ..
            } => RaftMessage::Vote {
                term: term.get(),
                last: position(*last_position),
            },
            noraft::Message::RequestVoteReply {
                term, vote_granted, ..
            } => RaftMessage::VoteReply {
                term: term.get(),
                granted: *vote_granted,
            },
            noraft::Message::AppendEntriesCall {
                term,
                commit_index,
                entries,
                ..
            } => {
                let list: Option<Vec<_>> = entries
                    .iter_with_positions()
                    .map(|(at, entry)| self.entry(at.index.get(), &entry))
                    .collect();
                let Some(list) = list else { return };
                RaftMessage::Append {
                    term: term.get(),
                    commit: commit_index.get(),
                    prev: position(entries.prev_position()),
                    entries: list,
                }
            }
            noraft::Message::AppendEntriesReply {
                term,
                last_position,
                ..
            } => RaftMessage::AppendReply {
                term: term.get(),
                last: position(*last_position),
            },
        };
        let to = RaftId(to.get());
        self.out.sends.push((
            to.node(),
            Body::Raft {
                from: self.id,
                to,
                msg,
            },
        ));
    }

    fn apply(&mut self) {
        while self.applied < self.raft.commit_index().get() {
            let index = self.applied + 1;
            match self.raft.log().entries().get_entry(LogIndex::new(index)) {
                None => break,
                Some(LogEntry::Command) => {
                    let Some(command) = self.commands.get(&index) else {
                        break;
                    };
                    self.out.applied.push(self.state.apply(command));
                }
                Some(_) => {}
            }
            self.applied = index;
        }
        let log = self.raft.log();
        if self.applied < log.snapshot_position().index.get() + LOG_KEEP {
            return;
        }
        let at = log.get_position_and_config(LogIndex::new(self.applied));
        let Some((at, config)) = at.map(|(at, config)| (at, config.clone())) else {
            return;
        };
        if self.raft.handle_snapshot_installed(at, config) {
            self.snapshot = self.state.clone();
            self.commands = self.commands.split_off(&(self.applied + 1));
            self.out.dirty = true;
        }
    }
}

fn check(numbers: &[u64]) -> Result<(), &'static str> {
    if numbers.iter().all(|n| *n < NUMBER_MAX) {
        Ok(())
    } else {
        Err("a number beyond its limit")
    }
}
