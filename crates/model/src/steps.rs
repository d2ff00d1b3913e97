//! What can happen next, and the world in which it happens.
//!
//! A step either does not apply (and then has changed nothing), or changes the world at once as one event of the real
//! code would. Lanes are bounded: a step that would overfill one does not apply yet.

use crate::bounds::Bounds;
use crate::checks::Violation;
use crate::rules::{Rule, Rules};
use crate::state::{
    BLOCKS, Client, Disk, Follower, Frame, NODES, Node, Primary, Register, Role, Set, State, Used,
};

/// Something that can happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // fields: node, primary, its peer, block
pub enum Step {
    /// The process dies; a disk write in flight lands first or never starts.
    Kill { n: usize, landed: bool },
    /// Power is lost; of what is only in the cache these blocks survive.
    Power { n: usize, kept: u8 },
    /// The process starts.
    Restart { n: usize },
    /// The process stops in good order.
    Stop { n: usize },
    /// A primary is told to step down; the record does not change.
    Demote { n: usize },
    /// An extent leaves the activity log: data flushed, bits saved.
    Evict { n: usize, block: usize },
    /// Bits are saved.
    Save { n: usize },
    /// A disk write ends.
    Land { n: usize },
    /// The control plane records a new run.
    Record { n: usize },
    /// A member promises the next epoch and proposes itself.
    Stand { n: usize },
    /// A node's command commits.
    Commit { n: usize },
    /// A candidate takes its promise back.
    Withdraw { n: usize },
    /// A candidate learns that it won.
    Lead { n: usize },
    /// A restarted primary goes on in its old epoch (only without the rule that forbids it).
    Resume { n: usize },
    /// A primary learns the committed record.
    Learn { n: usize },
    /// Every member was heard: the device opens.
    Open { p: usize },
    /// A replica is taken into a session.
    Connect { p: usize, x: usize },
    /// A primary's session ends.
    Disconnect { p: usize, x: usize },
    /// The application writes.
    Write { p: usize, block: usize },
    /// The application flushes.
    Flush { p: usize },
    /// The application reads.
    Read { p: usize, block: usize },
    /// Closes go out.
    Closes { p: usize },
    /// The members are told what syncing peers have got.
    Tell { p: usize },
    /// A member's removal is proposed.
    Remove { p: usize, x: usize },
    /// A syncing peer's cut is sent.
    Cut { p: usize, x: usize },
    /// A block is copied to a syncing peer.
    Resync { p: usize, x: usize, block: usize },
    /// A block in doubt is compared, and pushed if it differs.
    Reconcile { p: usize, block: usize },
    /// A frame of the write lane arrives; out of turn if the rule of order is off.
    Frame { x: usize, place: usize },
    /// A frame of the bulk lane arrives.
    Bulk { x: usize },
    /// An answer arrives.
    Answer { p: usize, x: usize },
    /// The answer to a resync copy arrives.
    Copied { p: usize, x: usize, block: usize },
}

/// The rules, the bounds, and the steps they leave.
#[derive(Clone, Debug)]
pub struct Model {
    /// Rules in force.
    pub rules: Rules,
    /// Limits.
    pub bounds: Bounds,
    /// Clients are told when an unclean member is promoted; losses of what no flush covered are no violations.
    flushed_only: bool,
    steps: Vec<Step>,
}

/// A state that is being changed by a step.
pub(crate) struct World<'m> {
    pub(crate) rules: Rules,
    pub(crate) bounds: &'m Bounds,
    pub(crate) s: State,
    /// A lane had no room: the step does not apply.
    pub(crate) full: bool,
    pub(crate) clients_told: bool,
    pub(crate) broken: Option<Violation>,
}

impl Model {
    /// A model of these rules within these bounds.
    pub fn new(rules: Rules, bounds: Bounds) -> Self {
        let steps = all_steps(rules, &bounds);
        Self {
            rules,
            bounds,
            flushed_only: false,
            steps,
        }
    }

    /// Looks only for lost flushed data and for replicas that diverge without a trace. Clients are told when an unclean
    /// member is promoted, that is their sessions are broken: without that even the next flush would be wrong (25).
    #[must_use]
    pub fn flushed_only(self) -> Self {
        Self {
            flushed_only: true,
            ..self
        }
    }

    /// Every step that may ever apply.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// Where every schedule begins: node 0 leads the first epoch, all members are attached.
    pub fn initial(&self) -> State {
        let all = Set::first(self.bounds.nodes);
        let in_sync = if self.bounds.absent {
            all.without(usize::from(self.bounds.nodes) - 1)
        } else {
            all
        };
        let disk = Disk {
            promised: 1,
            run: 1,
            ..Disk::default()
        };
        let node = |n: usize| {
            let role = if n == 0 {
                let mut primary = Primary {
                    epoch: 1,
                    generation: 1,
                    in_sync,
                    open: true,
                    heard: in_sync,
                    reconciled: true,
                    ..Primary::default()
                };
                for x in in_sync.without(0).iter() {
                    primary.sessions[x].on = true;
                    primary.runs[x] = 1;
                }
                Role::Primary(primary)
            } else if n < usize::from(self.bounds.nodes) {
                Role::Secondary(Follower {
                    lord: in_sync.has(n).then_some(0),
                    open_epoch: u8::from(in_sync.has(n)),
                    ..Follower::default()
                })
            } else {
                Role::Down
            };
            Node {
                disk,
                bits: [Set::EMPTY; BLOCKS],
                landing: None,
                role,
            }
        };
        State {
            nodes: std::array::from_fn(node),
            register: Register {
                generation: 1,
                epoch: 1,
                primary: 0,
                in_sync,
                runs: [1; NODES],
                unclean: Set::EMPTY,
            },
            proposals: [None; NODES],
            client: Client {
                allowed: [1; BLOCKS],
                gone: [0; BLOCKS],
                issued: [1; BLOCKS],
                inherited: [0; BLOCKS],
            },
            used: Used::default(),
        }
    }

    pub(crate) fn world(&self, s: State) -> World<'_> {
        World {
            rules: self.rules,
            bounds: &self.bounds,
            s,
            full: false,
            clients_told: self.flushed_only,
            broken: None,
        }
    }

    /// The state after a step, if it applies, and what it broke.
    pub fn next(&self, state: &State, step: Step) -> Option<(State, Option<Violation>)> {
        let mut world = self.world(*state);
        let applies = world.step(step).is_some() && !world.full;
        applies.then(|| {
            let broken = world
                .broken
                .filter(|v| !self.flushed_only || v.is_lasting());
            (world.s, broken.or_else(|| self.check(&world.s)))
        })
    }

    /// A step in words, as it happens in this state.
    pub fn describe(&self, state: &State, step: Step) -> String {
        let follower = |x: usize| match &state.nodes[x].role {
            Role::Secondary(f) => Some(*f),
            Role::Primary(_) | Role::Down => None,
        };
        match step {
            Step::Frame { x, place } => {
                let frame = follower(x).and_then(|f| f.lane.get(place));
                format!("n{x} gets {}", frame.map_or("?".into(), |f| words(&f)))
            }
            Step::Bulk { x } => {
                let frame = follower(x).and_then(|f| f.bulk.get(0));
                format!(
                    "n{x} gets, on the bulk lane, {}",
                    frame.map_or("?".into(), |f| words(&f))
                )
            }
            Step::Answer { p, x } => match &state.nodes[p].role {
                Role::Primary(primary) => format!(
                    "n{p} gets {:?} from n{x}",
                    primary.sessions[x].answers.get(0)
                ),
                Role::Secondary(_) | Role::Down => "?".into(),
            },
            Step::Commit { n } => format!("the control plane commits {:?}", state.proposals[n])
                .replace("Some(", &format!("n{n}'s "))
                .replace(')', ""),
            Step::Write { p, block } => {
                format!("n{p} writes v{} to block {block}", state.used.writes + 1)
            }
            Step::Lead { n } => format!("n{n} learns that it leads epoch {}", state.register.epoch),
            Step::Read { p, block } => {
                let value = state.nodes[p].disk.cache[block];
                format!("n{p} serves a read of block {block}: v{value}")
            }
            Step::Stand { n } => {
                let epoch = state.register.epoch + 1;
                format!("n{n} promises epoch {epoch} and proposes itself")
            }
            other => format!("{other:?}"),
        }
    }
}

fn words(frame: &Frame) -> String {
    match frame {
        Frame::Write { seq, block, value } => {
            format!("write {seq}: v{value} to block {block}")
        }
        Frame::Close { upto, set } => format!("close of writes to {upto}, held by {set:?}"),
        Frame::Resync { block, value } => format!("a resync copy: v{value} to block {block}"),
        other => format!("{other:?}"),
    }
}

fn all_steps(rules: Rules, bounds: &Bounds) -> Vec<Step> {
    let nodes = usize::from(bounds.nodes);
    let blocks = usize::from(bounds.blocks);
    let places = if rules.has(Rule::ReplicaOrder) { 1 } else { 2 };
    let mut steps = Vec::new();
    for n in 0..nodes {
        let (p, x) = (n, n);
        steps.extend((0..places).map(|place| Step::Frame { x, place }));
        steps.extend([
            Step::Bulk { x },
            Step::Land { n },
            Step::Learn { n },
            Step::Lead { n },
            Step::Commit { n },
            Step::Open { p },
            Step::Flush { p },
            Step::Closes { p },
            Step::Tell { p },
            Step::Record { n },
            Step::Stand { n },
            Step::Withdraw { n },
            Step::Restart { n },
        ]);
        if !rules.has(Rule::RestartNewEpoch) {
            steps.push(Step::Resume { n });
        }
        if bounds.kills {
            steps.extend([true, false].map(|landed| Step::Kill { n, landed }));
        }
        if bounds.power {
            steps.extend((0..1 << blocks).map(|kept| Step::Power { n, kept }));
        }
        if bounds.stops > 0 {
            steps.push(Step::Stop { n });
        }
        if bounds.demotions > 0 {
            steps.push(Step::Demote { n });
        }
        if bounds.saves {
            steps.push(Step::Save { n });
        }
        for block in 0..blocks {
            steps.extend([
                Step::Write { p, block },
                Step::Read { p, block },
                Step::Reconcile { p, block },
                Step::Evict { n, block },
            ]);
        }
        for x in (0..nodes).filter(|&x| x != p) {
            steps.extend([
                Step::Answer { p, x },
                Step::Connect { p, x },
                Step::Disconnect { p, x },
                Step::Remove { p, x },
                Step::Cut { p, x },
            ]);
            for block in 0..blocks {
                steps.extend([Step::Resync { p, x, block }, Step::Copied { p, x, block }]);
            }
        }
    }
    steps
}

impl World<'_> {
    fn step(&mut self, step: Step) -> Option<()> {
        match step {
            Step::Kill { n, landed } => self.kill(n, landed),
            Step::Power { n, kept } => self.power(n, kept),
            Step::Restart { n } => self.restart(n),
            Step::Stop { n } => self.stop(n),
            Step::Demote { n } => self.demote(n),
            Step::Evict { n, block } => self.evict(n, block),
            Step::Save { n } => self.save(n),
            Step::Land { n } => self.land(n),
            Step::Record { n } => self.record(n),
            Step::Stand { n } => self.stand(n),
            Step::Commit { n } => self.commit(n),
            Step::Withdraw { n } => self.withdraw(n),
            Step::Lead { n } => self.lead(n),
            Step::Resume { n } => self.resume(n),
            Step::Learn { n } => self.learn(n),
            Step::Open { p } => self.open(p),
            Step::Connect { p, x } => self.connect(p, x),
            Step::Disconnect { p, x } => self.disconnect(p, x),
            Step::Write { p, block } => self.write(p, block),
            Step::Flush { p } => self.flush(p),
            Step::Read { p, block } => self.read(p, block),
            Step::Closes { p } => self.closes(p),
            Step::Tell { p } => self.tell(p),
            Step::Remove { p, x } => self.remove(p, x),
            Step::Cut { p, x } => self.cut(p, x),
            Step::Resync { p, x, block } => self.resync(p, x, block),
            Step::Reconcile { p, block } => self.reconcile(p, block),
            Step::Frame { x, place } => self.frame(x, place),
            Step::Bulk { x } => self.bulk(x),
            Step::Answer { p, x } => self.answer(p, x),
            Step::Copied { p, x, block } => self.copied(p, x, block),
        }
    }

    // ---- what all steps use

    pub(crate) fn has(&self, rule: Rule) -> bool {
        self.rules.has(rule)
    }

    pub(crate) fn all(&self) -> Set {
        Set::first(self.bounds.nodes)
    }

    pub(crate) fn others(&self, n: usize) -> Set {
        self.all().without(n)
    }

    pub(crate) fn blocks(&self) -> std::ops::Range<usize> {
        0..usize::from(self.bounds.blocks)
    }

    pub(crate) fn up(&self, n: usize) -> bool {
        self.s.nodes[n].role != Role::Down
    }

    pub(crate) fn primary(&self, p: usize) -> Option<&Primary> {
        match &self.s.nodes[p].role {
            Role::Primary(primary) => Some(primary),
            Role::Secondary(_) | Role::Down => None,
        }
    }

    pub(crate) fn primary_mut(&mut self, p: usize) -> Option<&mut Primary> {
        match &mut self.s.nodes[p].role {
            Role::Primary(primary) => Some(primary),
            Role::Secondary(_) | Role::Down => None,
        }
    }

    pub(crate) fn follower(&self, x: usize) -> Option<&Follower> {
        match &self.s.nodes[x].role {
            Role::Secondary(follower) => Some(follower),
            Role::Primary(_) | Role::Down => None,
        }
    }

    pub(crate) fn follower_mut(&mut self, x: usize) -> Option<&mut Follower> {
        match &mut self.s.nodes[x].role {
            Role::Secondary(follower) => Some(follower),
            Role::Primary(_) | Role::Down => None,
        }
    }

    /// Is there room for one more fault?
    pub(crate) fn fault_left(&self) -> bool {
        let u = &self.s.used;
        u.crashes + u.drops + u.promotions + u.stops + u.demotions < self.bounds.faults
    }

    /// Puts a frame on the write lane, if the receiver is still in the sender's session.
    pub(crate) fn send(&mut self, p: usize, x: usize, frame: Frame) {
        let room = match self.follower_mut(x) {
            Some(f) if f.lord == Some(p as u8) => f.lane.push(frame),
            _ => true,
        };
        self.full |= !room;
    }

    /// Puts a frame on the bulk lane.
    pub(crate) fn send_bulk(&mut self, p: usize, x: usize, frame: Frame) {
        let room = match self.follower_mut(x) {
            Some(f) if f.lord == Some(p as u8) => f.bulk.push(frame),
            _ => true,
        };
        self.full |= !room;
    }

    pub(crate) fn mark(&mut self, n: usize, nodes: Set, block: usize) {
        let bits = &mut self.s.nodes[n].bits[block];
        *bits = bits.or(nodes);
    }

    pub(crate) fn clear(&mut self, n: usize, nodes: Set, block: usize) {
        let bits = &mut self.s.nodes[n].bits[block];
        *bits = bits.minus(nodes);
    }
}
