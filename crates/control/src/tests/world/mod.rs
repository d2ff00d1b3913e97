//! Virtual time, network, disks, clocks that drift, fake replicas and hosts; and the checks made after every step.

mod checks;
mod replicas;

use crate::durable::{self, Slots};
use crate::rng::Rng;
use crate::*;
use holdfast_types::{DiskState, Epoch, Gen, Incarnation, NodeId, NodeSet, Run, VolumeId};
use std::collections::{BTreeMap, BTreeSet};

pub(in crate::tests) const MS: u64 = 1_000_000;
/// How often fake primaries look after their in-sync sets.
const REPLICA_TICK_MS: u64 = 100;

#[derive(Clone, Debug)]
enum What {
    Wake(u64),
    Deliver {
        from: usize,
        bytes: Vec<u8>,
        link: u64,
    },
    Persisted(Ticket, usize, Vec<u8>),
    Replica(ResourceIx, VolumeIx, ToControl, u64),
    Host(ResourceIx, HostStep, u64),
    Link(usize, bool),
    ReplicaTick,
}

#[derive(Clone, Debug, Default)]
pub(in crate::tests) struct FakeReplica {
    pub(in crate::tests) incarnation: u64,
    pub(in crate::tests) run: u64,
    pub(in crate::tests) unclean: bool,
    promised: Epoch,
    stood: Option<Epoch>,
    leads: Option<Epoch>,
    view: Option<View>,
    pub(in crate::tests) held: bool,
    /// The sizes it was ever told of, in all its runs.
    pub(in crate::tests) sizes: Vec<u64>,
    stopped: bool,
    lost_since: BTreeMap<NodeId, u64>,
    generation: u64,
}

#[derive(Debug)]
pub(in crate::tests) struct Host {
    pub(in crate::tests) config: Config,
    pub(in crate::tests) node: Option<Node>,
    pub(in crate::tests) slots: [Vec<u8>; 2],
    slot_state: Slots,
    /// Clock: local = offset + true * (1 + ppm / 1e6).
    offset: u64,
    ppm: i64,
    life: u64,
    pub(in crate::tests) paused: bool,
    backlog: Vec<What>,
    pub(in crate::tests) replicas: Vec<Vec<FakeReplica>>,
    /// Per resource, the steps that are in effect.
    pub(in crate::tests) effects: Vec<BTreeSet<HostStep>>,
    lease: Vec<Option<Now>>,
    pub(in crate::tests) replies: Vec<(AdminId, AdminReply)>,
    pub(in crate::tests) notes: Vec<(u64, Note)>,
    pub(in crate::tests) stopped: bool,
    pub(in crate::tests) step_fails: Option<HostStep>,
    pub(in crate::tests) blank_wipes: u64,
}

type Fact = (Epoch, Option<NodeId>, Vec<NodeSet>);

#[derive(Debug)]
pub(in crate::tests) struct World {
    pub(in crate::tests) now: u64,
    seq: u64,
    queue: BTreeMap<(u64, u64), (usize, What)>,
    pub(in crate::tests) hosts: Vec<Host>,
    pub(in crate::tests) rng: Rng,
    /// from -> to: cut.
    pub(in crate::tests) cut: BTreeSet<(usize, usize)>,
    pub(in crate::tests) delay: (u64, u64),
    pub(in crate::tests) loss_percent: u64,
    pub(in crate::tests) disk_ms: (u64, u64),
    link_life: BTreeMap<(usize, usize), u64>,
    leaders: BTreeMap<u64, usize>,
    facts: BTreeMap<(ResourceIx, Gen), Fact>,
    primaries: BTreeMap<(ResourceIx, Epoch), NodeId>,
    forced: BTreeSet<(ResourceIx, Gen)>,
    pub(in crate::tests) ticks: u64,
    pub(in crate::tests) grow: bool,
    /// Whose replicas have all the room they are asked for.
    pub(in crate::tests) roomy: BTreeSet<usize>,
    /// Replicas that were removed and are to be closed.
    pub(in crate::tests) forgotten: Vec<(usize, ResourceIx, VolumeIx)>,
    admin: u64,
}

pub(in crate::tests) fn config(me: u8, data: &[u8], resources: u16, volumes: u16) -> Config {
    sized_config(me, (3, 3), data, resources, volumes)
}

/// `size`: nodes, of which so many vote.
fn sized_config(me: u8, size: (u8, u8), data: &[u8], resources: u16, volumes: u16) -> Config {
    Config {
        me: NodeId(me),
        nodes: (0..size.0)
            .map(|i| NodeConfig {
                id: NodeId(i),
                name: format!("n{i}"),
                voter: i < size.1,
            })
            .collect(),
        resources: (0..resources)
            .map(|r| {
                let mut nodes: Vec<_> = data.iter().map(|n| NodeId(*n)).collect();
                nodes.rotate_left(usize::from(r) % data.len());
                ResourceConfig {
                    name: format!("r{r}"),
                    volumes: (0..volumes)
                        .map(|v| VolumeConfig {
                            name: format!("v{v}"),
                            size_bytes: 1 << 20,
                        })
                        .collect(),
                    data_nodes: nodes,
                    unclean_promotion: UncleanPromotion::Wait,
                    auto_promote: true,
                }
            })
            .collect(),
        timing: Timing::default(),
        off: None,
    }
}

impl World {
    /// Nodes 0 and 1 hold data, node 2 is the witness.
    pub(in crate::tests) fn new(seed: u64) -> Self {
        Self::with(seed, &[0, 1], 1, 1)
    }

    pub(in crate::tests) fn with(seed: u64, data: &[u8], resources: u16, volumes: u16) -> Self {
        Self::sized(seed, (3, 3), data, resources, volumes)
    }

    /// `size`: nodes, of which so many vote.
    pub(in crate::tests) fn sized(
        seed: u64,
        size: (u8, u8),
        data: &[u8],
        resources: u16,
        volumes: u16,
    ) -> Self {
        let mut rng = Rng::new(seed);
        let hosts = (0..size.0)
            .map(|me| {
                let config = sized_config(me, size, data, resources, volumes);
                let limit = i64::try_from(config.timing.drift_ppm).unwrap_or(0);
                let fake = |_| FakeReplica {
                    incarnation: u64::from(me) + 100,
                    ..FakeReplica::default()
                };
                Host {
                    node: None,
                    slots: [Vec::new(), Vec::new()],
                    slot_state: Slots::default(),
                    offset: rng.between(0, 1 << 40),
                    ppm: rng.between(0, 2 * limit as u64) as i64 - limit,
                    life: 0,
                    paused: false,
                    backlog: Vec::new(),
                    replicas: (0..resources)
                        .map(|_| (0..volumes).map(fake).collect())
                        .collect(),
                    effects: vec![BTreeSet::new(); usize::from(resources)],
                    lease: vec![None; usize::from(resources)],
                    replies: Vec::new(),
                    notes: Vec::new(),
                    stopped: false,
                    step_fails: None,
                    blank_wipes: 0,
                    config,
                }
            })
            .collect();
        let mut world = Self {
            now: 0,
            seq: 0,
            queue: BTreeMap::new(),
            hosts,
            rng,
            cut: BTreeSet::new(),
            delay: (1, 3),
            loss_percent: 0,
            disk_ms: (1, 4),
            link_life: BTreeMap::new(),
            leaders: BTreeMap::new(),
            facts: BTreeMap::new(),
            primaries: BTreeMap::new(),
            forced: BTreeSet::new(),
            ticks: 0,
            grow: true,
            roomy: (0..8).collect(),
            forgotten: Vec::new(),
            admin: 0,
        };
        for n in 0..usize::from(size.0) {
            world.boot(n);
        }
        world.push(world.now + REPLICA_TICK_MS * MS, 0, What::ReplicaTick);
        world
    }

    /// A formed cluster with everything created, in sync and up.
    pub(in crate::tests) fn up(seed: u64) -> Self {
        let mut world = Self::new(seed);
        world.create();
        world.run_until(30_000, |w| w.primary_up(0).is_some());
        world
    }

    fn push(&mut self, at: u64, host: usize, what: What) {
        self.seq += 1;
        self.queue.insert((at, self.seq), (host, what));
    }

    fn local(&self, h: usize) -> Now {
        let host = &self.hosts[h];
        let skew = i128::from(self.now) * i128::from(host.ppm) / 1_000_000;
        Now((i128::from(host.offset) + i128::from(self.now) + skew) as u64)
    }

    fn true_time(&self, h: usize, local: Now) -> u64 {
        let host = &self.hosts[h];
        let elapsed = i128::from(local.0) - i128::from(host.offset);
        let at = elapsed * 1_000_000 / i128::from(1_000_000 + host.ppm);
        (at.max(0) as u64).saturating_add(1)
    }

    pub(in crate::tests) fn boot(&mut self, h: usize) {
        assert!(self.hosts[h].node.is_none());
        let random = self.rng.draw();
        let now = self.local(h);
        let host = &mut self.hosts[h];
        host.life += 1;
        host.stopped = false;
        host.paused = false;
        host.effects.iter_mut().for_each(BTreeSet::clear);
        host.lease.iter_mut().for_each(|l| *l = None);
        let (stored, slots) =
            durable::choose([&host.slots[0], &host.slots[1]]).expect("a slot is sound");
        host.slot_state = slots;
        let start = Start { stored, random };
        let (node, actions) = Node::start(host.config.clone(), start, now).expect("starts");
        host.node = Some(node);
        self.perform(h, actions);
        for other in 0..self.hosts.len() {
            if other != h && self.hosts[other].node.is_some() {
                self.link(h, other, true);
            }
        }
        let data = self.hosts[h].config.resources.clone();
        for (r, resource) in data.iter().enumerate() {
            if !resource.data_nodes.contains(&NodeId(h as u8)) {
                continue;
            }
            for v in 0..resource.volumes.len() {
                let replica = &mut self.hosts[h].replicas[r][v];
                replica.run += 1;
                replica.generation += 1;
                let (stood, promised) = (replica.stood, replica.promised);
                *replica = FakeReplica {
                    stood,
                    promised,
                    sizes: std::mem::take(&mut replica.sizes),
                    incarnation: replica.incarnation,
                    run: replica.run,
                    unclean: replica.unclean,
                    generation: replica.generation,
                    ..FakeReplica::default()
                };
                let msg = ToControl::Started {
                    volume: VolumeId(v as u64 + 1),
                    incarnation: Incarnation(replica.incarnation),
                    run: Run(replica.run),
                    unclean: std::mem::take(&mut replica.unclean),
                    disk: DiskState::UpToDate,
                    promised: replica.promised,
                };
                self.later_replica(h, r, v, msg, 5);
            }
        }
    }

    fn later_replica(&mut self, h: usize, r: usize, v: usize, msg: ToControl, max_ms: u64) {
        let at = self.now + self.rng.between(1, max_ms * MS);
        let life = self.hosts[h].replicas[r][v].generation;
        let what = What::Replica(ResourceIx(r as u16), VolumeIx(v as u16), msg, life);
        self.push(at, h, what);
    }

    /// The process dies (with `power`: the machine, and what its disks had not flushed).
    pub(in crate::tests) fn crash(&mut self, h: usize, power: bool) {
        let host = &mut self.hosts[h];
        host.node = None;
        host.paused = false;
        host.backlog.clear();
        host.life += 1;
        host.effects.iter_mut().for_each(BTreeSet::clear); // the fencer's work
        host.lease.iter_mut().for_each(|l| *l = None);
        for replica in host.replicas.iter_mut().flatten() {
            replica.unclean |= power;
            replica.leads = None;
            replica.generation += 1;
        }
        let keys: Vec<_> = self
            .queue
            .iter()
            .filter(|(_, (n, _))| *n == h)
            .map(|(k, _)| *k)
            .collect();
        for key in keys {
            match self.queue.remove(&key) {
                // A write that was under way leaves a torn slot, or nothing.
                Some((_, What::Persisted(_, slot, mut bytes))) if self.rng.between(0, 1) == 0 => {
                    let cut = self.rng.between(1, bytes.len() as u64 - 1) as usize;
                    bytes.truncate(cut);
                    self.hosts[h].slots[slot] = bytes;
                }
                Some((_, What::ReplicaTick)) => self.push(key.0, 0, What::ReplicaTick),
                _ => {}
            }
        }
        for other in 0..self.hosts.len() {
            if other != h && self.hosts[other].node.is_some() {
                *self.link_life.entry((h, other)).or_default() += 1;
                *self.link_life.entry((other, h)).or_default() += 1;
                let at = self.now + self.rng.between(1, 20 * MS);
                if !self.cut.contains(&(h, other)) {
                    self.push(at, other, What::Link(h, false));
                }
            }
        }
    }

    /// Its control state is gone.
    pub(in crate::tests) fn wipe(&mut self, h: usize) {
        assert!(self.hosts[h].node.is_none());
        self.hosts[h].slots = [Vec::new(), Vec::new()];
        self.hosts[h].blank_wipes += 1;
    }

    pub(in crate::tests) fn pause(&mut self, h: usize, paused: bool) {
        self.hosts[h].paused = paused;
        if !paused {
            for what in std::mem::take(&mut self.hosts[h].backlog) {
                let at = self.now + 1;
                self.push(at, h, what);
            }
        }
    }

    fn link(&mut self, a: usize, b: usize, up: bool) {
        for (x, y) in [(a, b), (b, a)] {
            let at = self.now + self.rng.between(1, 3 * MS);
            self.push(at, x, What::Link(y, up));
        }
    }

    /// Nothing passes from `a` to `b` any more (nobody is told: links die by silence).
    pub(in crate::tests) fn cut_one(&mut self, a: usize, b: usize) {
        self.cut.insert((a, b));
    }

    pub(in crate::tests) fn isolate(&mut self, h: usize) {
        for other in 0..self.hosts.len() {
            if other != h {
                self.cut.insert((h, other));
                self.cut.insert((other, h));
            }
        }
    }

    pub(in crate::tests) fn heal(&mut self) {
        self.cut.clear();
    }

    fn reachable(&self, a: usize, b: usize) -> bool {
        !self.cut.contains(&(a, b)) && !self.cut.contains(&(b, a))
    }

    pub(in crate::tests) fn create(&mut self) {
        self.run_until(30_000, |w| {
            w.hosts.iter().all(|h| {
                let voter = h.config.voters().has(h.config.me);
                h.node
                    .as_ref()
                    .is_some_and(|n| n.counts() || (!voter && !n.state().admitted.is_empty()))
            })
        });
        let resources = self.hosts[0].config.resources.clone();
        for resource in &resources {
            let replica = |n: &NodeId| (*n, Incarnation(u64::from(n.0) + 100));
            let volumes = (0..resource.volumes.len())
                .map(|v| CreateVolume {
                    id: VolumeId(v as u64 + 1),
                    size_bytes: 1 << 20,
                    in_sync: resource.data_set(),
                    replicas: resource.data_nodes.iter().map(replica).collect(),
                })
                .collect();
            let request = AdminRequest::Create {
                resource: resource.name.clone(),
                volumes,
            };
            let reply = self.ask(0, request, 10_000);
            assert!(matches!(reply, AdminReply::Done { .. }), "{reply:?}");
        }
    }

    pub(in crate::tests) fn post(&mut self, h: usize, request: AdminRequest) -> AdminId {
        self.admin += 1;
        let id = AdminId(self.admin);
        self.event(h, Event::Admin { id, request });
        id
    }

    /// Asks and waits for the answer.
    pub(in crate::tests) fn ask(&mut self, h: usize, request: AdminRequest, ms: u64) -> AdminReply {
        let id = self.post(h, request);
        let find = move |w: &Self| {
            w.hosts[h]
                .replies
                .iter()
                .find(|(i, _)| *i == id)
                .map(|(_, r)| r.clone())
        };
        self.run_until(ms, |w| find(w).is_some());
        find(self).expect("answered")
    }

    pub(in crate::tests) fn promote(
        &mut self,
        h: usize,
        node: u8,
        force: Option<&str>,
    ) -> AdminReply {
        let request = AdminRequest::Promote {
            resource: "r0".into(),
            node: Some(NodeId(node)),
            force: force.map(str::to_owned),
        };
        self.ask(h, request, 70_000)
    }

    pub(in crate::tests) fn status(&self, h: usize) -> Status {
        let now = self.local(h);
        self.hosts[h].node.as_ref().expect("alive").status(now)
    }

    /// Where everything of a resource is up.
    pub(in crate::tests) fn primary_up(&self, r: usize) -> Option<usize> {
        (0..self.hosts.len()).find(|&h| {
            let host = &self.hosts[h];
            host.effects[r].len() == 4
                && host
                    .node
                    .as_ref()
                    .is_some_and(|n| n.resources[r].word() == PhaseWord::Primary)
        })
    }

    pub(in crate::tests) fn record(&self, h: usize) -> &ResourceRecord {
        &self.hosts[h]
            .node
            .as_ref()
            .expect("alive")
            .state()
            .resources[&ResourceIx(0)]
    }

    /// When a note was made last, in true time.
    pub(in crate::tests) fn noted(&self, h: usize, is: impl Fn(&Note) -> bool) -> Option<u64> {
        self.hosts[h]
            .notes
            .iter()
            .rev()
            .find(|(_, n)| is(n))
            .map(|(t, _)| *t)
    }

    pub(in crate::tests) fn run(&mut self, ms: u64) {
        let end = self.now + ms * MS;
        while let Some((&(at, seq), _)) = self.queue.first_key_value() {
            if at > end {
                break;
            }
            self.step((at, seq));
        }
        self.now = end;
        self.fencers();
        self.check();
    }

    pub(in crate::tests) fn run_until(&mut self, ms: u64, done: impl Fn(&Self) -> bool) {
        let end = self.now + ms * MS;
        while !done(self) {
            match self.queue.first_key_value() {
                Some((&key, _)) if key.0 <= end => self.step(key),
                _ => panic!("not reached in {ms} ms: {:#?}", self.picture()),
            }
        }
    }

    fn step(&mut self, key: (u64, u64)) {
        let Some((h, what)) = self.queue.remove(&key) else {
            return;
        };
        self.now = self.now.max(key.0);
        self.fencers();
        self.happen(h, what);
        self.check();
    }

    fn event(&mut self, h: usize, event: Event) {
        let now = self.local(h);
        if let Some(node) = &mut self.hosts[h].node {
            let actions = node.handle(now, event);
            self.perform(h, actions);
        }
    }

    pub(in crate::tests) fn stop(&mut self, h: usize) {
        self.event(h, Event::Stop);
    }

    pub(in crate::tests) fn stall(&mut self, h: usize, stalled: bool) {
        self.event(
            h,
            Event::DiskStalled {
                resource: ResourceIx(0),
                stalled,
            },
        );
    }

    pub(in crate::tests) fn disk_fails(&mut self, h: usize) {
        let (resource, volume) = (ResourceIx(0), VolumeIx(0));
        self.event(
            h,
            Event::Replica {
                resource,
                volume,
                msg: ToControl::DiskFailed {
                    why: DiskTrouble::Io,
                },
            },
        );
    }

    /// Its primary replica has no member left to read from.
    pub(in crate::tests) fn stranded(&mut self, h: usize) {
        let epoch = self.record(h).epoch;
        let (resource, volume) = (ResourceIx(0), VolumeIx(0));
        let msg = ToControl::Stranded { epoch };
        self.event(
            h,
            Event::Replica {
                resource,
                volume,
                msg,
            },
        );
    }

    pub(in crate::tests) fn step_done(&mut self, h: usize, step: HostStep) {
        let (resource, result) = (ResourceIx(0), Ok(()));
        self.event(
            h,
            Event::HostDone {
                resource,
                step,
                result,
            },
        );
    }

    /// A fence, as if a candidate had asked for it.
    pub(in crate::tests) fn fence(
        &mut self,
        h: usize,
        from: NodeId,
        epoch: Epoch,
        generation: Gen,
    ) {
        let resource = ResourceIx(0);
        let msg = Message(crate::message::Body::Fence {
            resource,
            epoch,
            generation,
        });
        self.event(h, Event::Message { from, msg });
    }

    fn happen(&mut self, h: usize, what: What) {
        if matches!(what, What::ReplicaTick) {
            self.replica_tick();
            let at = self.now + REPLICA_TICK_MS * MS;
            return self.push(at, 0, What::ReplicaTick);
        }
        if self.hosts[h].node.is_none() {
            return;
        }
        if self.hosts[h].paused {
            if let What::Persisted(_, slot, bytes) = &what {
                self.hosts[h].slots[*slot].clone_from(bytes);
            }
            return self.hosts[h].backlog.push(what);
        }
        match what {
            What::Wake(life) => {
                self.ticks += 1;
                if life == self.hosts[h].life {
                    let now = self.local(h);
                    let due = self.hosts[h].node.as_ref().and_then(Node::deadline);
                    if due.is_some_and(|d| d <= now) {
                        self.event(h, Event::Tick);
                    }
                }
            }
            What::Deliver { from, bytes, link } => {
                let life = self.link_life.get(&(from, h)).copied().unwrap_or(0);
                if link == life && !self.cut.contains(&(from, h)) {
                    let msg = Message::decode(&bytes).expect("decodes");
                    self.event(
                        h,
                        Event::Message {
                            from: NodeId(from as u8),
                            msg,
                        },
                    );
                }
            }
            What::Persisted(ticket, slot, bytes) => {
                self.hosts[h].slots[slot] = bytes;
                self.event(h, Event::Persisted { ticket });
            }
            What::Replica(resource, volume, msg, life) => {
                let replica =
                    &self.hosts[h].replicas[usize::from(resource.0)][usize::from(volume.0)];
                if replica.generation == life {
                    self.event(
                        h,
                        Event::Replica {
                            resource,
                            volume,
                            msg,
                        },
                    );
                }
            }
            What::Host(resource, step, life) => {
                if life != self.hosts[h].life {
                    return;
                }
                let local = self.local(h);
                let host = &mut self.hosts[h];
                let lease = host.lease[usize::from(resource.0)];
                let effects = &mut host.effects[usize::from(resource.0)];
                let late = step <= HostStep::AddVips && lease.is_none_or(|l| local >= l);
                let failed = late || host.step_fails == Some(step);
                let ends = match step {
                    HostStep::RemoveVips { .. } => Some(HostStep::AddVips),
                    HostStep::StopServices { .. } => Some(HostStep::StartServices),
                    HostStep::Unmount { .. } => Some(HostStep::Mount),
                    HostStep::CloseDevice { .. } => Some(HostStep::OpenDevice),
                    _ => None,
                };
                let result = match (failed, ends) {
                    (true, _) => Err("it is busy".to_owned()),
                    (false, Some(ended)) => {
                        effects.remove(&ended);
                        Ok(())
                    }
                    (false, None) => {
                        effects.insert(step);
                        Ok(())
                    }
                };
                self.event(
                    h,
                    Event::HostDone {
                        resource,
                        step,
                        result,
                    },
                );
            }
            What::Link(other, up) => {
                let node = NodeId(other as u8);
                self.event(
                    h,
                    if up {
                        Event::LinkUp { node }
                    } else {
                        Event::LinkDown { node }
                    },
                );
            }
            What::ReplicaTick => {}
        }
    }

    fn perform(&mut self, h: usize, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Persist { ticket, bytes } => {
                    let (slot, bytes) = self.hosts[h].slot_state.next(&bytes);
                    let at = self.now + self.rng.between(self.disk_ms.0 * MS, self.disk_ms.1 * MS);
                    self.push(at, h, What::Persisted(ticket, slot, bytes));
                }
                Action::Send { to, msg } => {
                    let to = usize::from(to.0);
                    assert_ne!(to, h, "a message to itself");
                    self.check_durable(h, to, &msg);
                    let bytes = msg.encode().expect("encodes");
                    let link = self.link_life.get(&(h, to)).copied().unwrap_or(0);
                    for _ in 0..=u64::from(self.loss_percent > 0 && self.rng.between(0, 19) == 0) {
                        if self.cut.contains(&(h, to))
                            || self.rng.between(0, 99) < self.loss_percent
                        {
                            continue;
                        }
                        let at = self.now + self.rng.between(self.delay.0 * MS, self.delay.1 * MS);
                        self.push(
                            at,
                            to,
                            What::Deliver {
                                from: h,
                                bytes: bytes.clone(),
                                link,
                            },
                        );
                    }
                }
                Action::Replica {
                    resource,
                    volume,
                    msg,
                } => {
                    self.replica(h, usize::from(resource.0), usize::from(volume.0), msg);
                }
                Action::Host { resource, step } => {
                    let life = self.hosts[h].life;
                    let lease = self.hosts[h].lease[usize::from(resource.0)];
                    let begins = step <= HostStep::AddVips;
                    assert!(
                        !begins || lease.is_some_and(|l| self.local(h) < l),
                        "no lease"
                    );
                    // A stop step cancels a start step under way.
                    if step > HostStep::AddVips {
                        self.queue.retain(|_, (n, w)| {
                            !(*n == h && matches!(w, What::Host(r, s, _) if *r == resource && *s <= HostStep::AddVips))
                        });
                    }
                    let at = self.now + self.rng.between(MS, 20 * MS);
                    self.push(at, h, What::Host(resource, step, life));
                }
                Action::Reopen { .. } => unreachable!("no disk of these tests hangs"),
                Action::Forget { resource, volume } => self.forgotten.push((h, resource, volume)),
                Action::LeaseDeadline { resource, until } => {
                    self.hosts[h].lease[usize::from(resource.0)] = until;
                }
                Action::Reply { id, reply } => self.hosts[h].replies.push((id, reply)),
                Action::Stopped => self.hosts[h].stopped = true,
                Action::Note(note) => {
                    let now = self.now;
                    self.hosts[h].notes.push((now, note));
                }
            }
        }
        if let Some(at) = self.hosts[h].node.as_ref().and_then(Node::deadline) {
            let life = self.hosts[h].life;
            let at = self.true_time(h, at).max(self.now + 1);
            self.push(at, h, What::Wake(life));
        }
    }
}
