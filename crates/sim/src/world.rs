//! The world: all machines, both networks, the agenda, and what is true.
//!
//! The interpreters of the two state machines are in [`crate::daemon`]; faults in [`crate::faults`]; the
//! lanes between replicas in [`crate::lanes`]; control messages in [`crate::messages`]; what must hold at
//! the end in [`crate::liveness`].

use crate::agenda::Agenda;
use crate::check::Checks;
use crate::disk::Disk;
use crate::faults::Undo;
use crate::mutation::Mutation;
use crate::net::{Blocks, Link, NODES};
use crate::node::{Input, SimNode};
use crate::plan::Step;
use crate::rng::Rng;
use crate::scenario::{Fault, MS, PAGE_BYTES, Scenario};
use crate::trace::Trace;
use holdfast_meta::{BitmapStart, Layout, Superblock};
use holdfast_replicator::Rule;
use holdfast_types::{Incarnation, NodeId, VolumeId};
use holdfast_wire::{Decoder, Encoded, Encoder, Lane};

/// The volume of every world.
pub const VOLUME: VolumeId = VolumeId(0x00d1_5ea5_e0f0_0d1e);
/// The cluster of every world.
pub const CLUSTER: u64 = 0x00c1_a57e_1234;
/// Name of the resource.
pub const RESOURCE: &str = "r0";
/// Events of one instant; more means that something spins without time passing.
const INSTANT_EVENTS_MAX: u32 = 20_000;

/// What happens.
#[derive(Debug)]
pub(crate) enum Ev {
    /// A state machine's deadline: [`crate::node::REPLICA`] or [`crate::node::CONTROL`].
    Tick {
        node: usize,
        life: u64,
        which: usize,
    },
    /// A disk operation ends.
    Disk { node: usize, key: u64 },
    /// Something reaches a daemon.
    In {
        node: usize,
        life: u64,
        input: Input,
    },
    /// A frame arrives.
    Frame {
        link: usize,
        to: usize,
        conn: u64,
        lane: Lane,
        bytes: Encoded,
    },
    /// An end of a connection learns that it is up or down.
    Peer {
        link: usize,
        end: usize,
        conn: u64,
        up: bool,
    },
    /// A connection attempt.
    Connect { link: usize },
    /// Both ends of a connection give up if it is still blocked.
    LaneTimeout { link: usize, conn: u64 },
    /// A control message arrives.
    Message {
        to: usize,
        from: usize,
        bytes: Vec<u8>,
    },
    /// Control connections are looked after.
    Mesh,
    /// The control state is on disk.
    Persisted { node: usize, life: u64 },
    /// A host step ends.
    Host { node: usize, step: u64 },
    /// The fencer's deadline.
    Fencer { node: usize, deadline: u64 },
    /// The daemon died: its fencer clears the host.
    DaemonGone { node: usize, life: u64 },
    /// The application asks.
    App { node: usize, life: u64 },
    /// Progress of a disk is looked at.
    Stall { node: usize },
    /// A decision of the script is due.
    Step(usize),
    /// A fault of this class is due.
    Fault(Fault),
    /// A fault of limited time ends.
    Undo(Undo),
    /// A daemon starts.
    Start { node: usize },
    /// The operator creates the resource, until it is.
    Create,
    /// Traces are compared with contents.
    Compare,
    /// Faults end.
    Heal,
    /// Is all well again?
    Check,
}

impl Ev {
    /// Kind and place, for the hash.
    fn kind(&self) -> u64 {
        let (kind, place) = match self {
            Self::Tick { node, which, .. } => (1 + *which, *node),
            Self::Disk { node, .. } => (3, *node),
            Self::In { node, .. } => (4, *node),
            Self::Frame { link, to, .. } => (5, link * 2 + to),
            Self::Peer { link, end, .. } => (6, link * 2 + end),
            Self::Connect { link } => (7, *link),
            Self::LaneTimeout { link, .. } => (8, *link),
            Self::Message { to, from, .. } => (9, to * NODES + from),
            Self::Mesh => (10, 0),
            Self::Persisted { node, .. } => (11, *node),
            Self::Host { node, .. } => (12, *node),
            Self::Fencer { node, .. } => (13, *node),
            Self::DaemonGone { node, .. } => (14, *node),
            Self::App { node, .. } => (15, *node),
            Self::Stall { node } => (16, *node),
            Self::Fault(fault) => (17, *fault as usize),
            Self::Undo(_) => (18, 0),
            Self::Start { node } => (19, *node),
            Self::Create => (20, 0),
            Self::Compare => (21, 0),
            Self::Heal => (22, 0),
            Self::Check => (23, 0),
            Self::Step(_) => (24, 0),
        };
        (kind << 8 | place) as u64
    }
}

/// Why a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All is well.
    Well,
    /// The last good copy was destroyed by the faults: nothing to check.
    Unrecoverable,
    /// Something that must hold does not.
    Failed(String),
}

/// The world.
#[derive(Debug)]
pub struct World {
    /// True time.
    pub now: u64,
    pub(crate) agenda: Agenda<Ev>,
    /// What this run is like.
    pub scenario: Scenario,
    /// For so long a primary has served.
    pub(crate) served_ns: u64,
    pub(crate) planted: Option<Rule>,
    pub(crate) mutation: Option<Mutation>,
    /// The decisions to play, instead of drawing them.
    pub(crate) script: Option<Vec<Step>>,
    /// What rotted at the end.
    pub(crate) rot: Option<crate::rot::Rot>,
    /// The decisions made.
    pub decisions: Vec<Step>,
    /// The machines.
    pub nodes: Vec<SimNode>,
    pub(crate) links: Vec<Link>,
    /// Per link: encoders and decoders of the connection, by sending end and lane.
    pub(crate) codecs: Vec<[[(Encoder, Decoder); 2]; 2]>,
    pub(crate) data_blocks: Blocks,
    pub(crate) message_blocks: Blocks,
    /// Further delay of control messages.
    pub(crate) message_clog_ns: [[u64; NODES]; NODES],
    /// Does the first think that its control connection to the second is up?
    pub(crate) mesh: [[bool; NODES]; NODES],
    pub(crate) mesh_bad_since: [[u64; NODES]; NODES],
    pub(crate) rng: Streams,
    /// What is true and what must hold.
    pub checks: Checks,
    /// What happened.
    pub trace: Trace,
    pub(crate) layout: Layout,
    pub(crate) created: bool,
    pub(crate) choice: crate::truth::Choice,
    /// The next node that opens is struck.
    pub(crate) strike_at_opening: bool,
    /// A voter has lost its control state in this run.
    pub(crate) state_lost: bool,
    pub(crate) admin_id: u64,
    pub(crate) healed_at: Option<u64>,
    /// When an operator last tried to relieve a primary without a disk.
    pub(crate) relieved_at: u64,
    /// The application asks nothing more.
    pub(crate) quiet: bool,
    pub(crate) outcome: Option<Outcome>,
    instant: (u64, u32),
    /// For the actions of one event, kept for the next.
    pub(crate) actions: Vec<holdfast_replicator::Action>,
}

/// Streams of randomness that no single machine owns.
#[derive(Debug)]
pub(crate) struct Streams {
    pub(crate) workload: Rng,
    pub(crate) net: Rng,
    /// Decides which faults strike when; while one is carried out, its dice.
    pub(crate) fault: Rng,
    /// What follows from faults later.
    pub(crate) undo: Rng,
    pub(crate) host: Rng,
}

impl World {
    /// The world of a scenario, all daemons about to start.
    pub fn new(
        scenario: Scenario,
        planted: Option<Rule>,
        trace: Trace,
        script: Option<Vec<Step>>,
    ) -> Self {
        let seed = scenario.seed;
        let g = scenario.geometry;
        let bytes = Layout::bytes_needed_with_page(g, holdfast_meta::PEERS_MAX, PAGE_BYTES);
        let layout = Layout::with_page(
            g,
            bytes,
            holdfast_meta::PEERS_MAX,
            scenario.log_slots[0],
            PAGE_BYTES,
        )
        .unwrap_or_else(|e| panic!("a drawn geometry is possible: {e}"));
        let mut world = Self {
            now: 0,
            agenda: Agenda::new(Rng::stream(seed, "schedule")),
            nodes: Vec::new(),
            links: Vec::new(),
            codecs: Vec::new(),
            data_blocks: Blocks::default(),
            message_blocks: Blocks::default(),
            message_clog_ns: Default::default(),
            mesh: Default::default(),
            mesh_bad_since: [[u64::MAX; NODES]; NODES],
            rng: Streams {
                workload: Rng::stream(seed, "workload"),
                net: Rng::stream(seed, "net"),
                fault: Rng::stream(seed, "fault"),
                undo: Rng::stream(seed, "undo"),
                host: Rng::stream(seed, "host"),
            },
            checks: Checks::new(&scenario),
            trace,
            layout,
            created: false,
            choice: crate::truth::Choice::default(),
            strike_at_opening: false,
            state_lost: false,
            admin_id: 0,
            healed_at: None,
            relieved_at: 0,
            quiet: false,
            outcome: None,
            instant: (0, 0),
            actions: Vec::new(),
            planted,
            mutation: None,
            script,
            rot: None,
            decisions: Vec::new(),
            scenario,
            served_ns: 0,
        };
        for n in 0..world.scenario.nodes() {
            let node = world.machine(n);
            world.nodes.push(node);
            world.agenda.at(n as u64 * MS, Ev::Start { node: n });
        }
        let data = world.scenario.data_nodes;
        for a in 0..data {
            for b in a + 1..data {
                world.links.push(Link::new(NodeId(a), NodeId(b)));
                let codecs = world.new_codecs();
                world.codecs.push(codecs);
            }
        }
        for n in 0..usize::from(data) {
            world.initialise(n, BitmapStart::Clean);
        }
        for (fault, gap) in world.scenario.faults.clone() {
            let first = world.rng.fault.below(2 * gap);
            if world.script.is_none() {
                world.agenda.first(3000 * MS + first, Ev::Fault(fault));
            }
        }
        let steps = world
            .script
            .iter()
            .flatten()
            .map(|s| s.at)
            .collect::<Vec<_>>();
        for (index, at) in steps.into_iter().enumerate() {
            world.agenda.first(at, Ev::Step(index));
        }
        world.agenda.at(50 * MS, Ev::Mesh);
        world.agenda.at(1500 * MS, Ev::Create);
        world.agenda.at(1000 * MS, Ev::Compare);
        let safety = 3000 * MS + world.scenario.safety_ns;
        world.agenda.at(safety, Ev::Heal);
        world
    }

    fn machine(&mut self, n: usize) -> SimNode {
        let seed = self.scenario.seed;
        let data = n < usize::from(self.scenario.data_nodes);
        let mut rng = Rng::stream(seed, &format!("node {n}"));
        let clock = crate::clock::Clock {
            zero_at: 0,
            ahead_ns: 0,
            drift_ppm: self.scenario.drift_ppm[n],
        };
        let disk = data.then(|| {
            let l = self.layout;
            let store = l.region_end;
            Disk::blank(
                store,
                l.geometry.bytes(),
                self.scenario.disks[n],
                Rng::stream(seed, &format!("disk {n}")),
            )
        });
        SimNode {
            id: NodeId(n as u8),
            data,
            clock,
            boot_id: u128::from(rng.bits()),
            process: None,
            life: 0,
            starting: true,
            paused: false,
            backlog: Default::default(),
            disk,
            incarnation: Incarnation(rng.bits()),
            state: Default::default(),
            writing: None,
            host: Default::default(),
            app: Default::default(),
            open_epoch: None,
            unclean: false,
            lossy: false,
            lost_at: 0,
            replaced_at: 0,
            attached_at: 0,
            strange_disk: false,
            put_back: None,
            told: Default::default(),
            beyond_telling: false,
            snapshot: None,
            adding: false,
            bad_disk: false,
            timers: [None; 2],
            inbox_last: [0; 2],
            stalled: false,
            stopping: false,
            rng,
        }
    }

    pub(crate) fn new_codecs(&self) -> [[(Encoder, Decoder); 2]; 2] {
        let g = self.scenario.geometry;
        let codec = |lane| (Encoder::new(VOLUME), Decoder::new(VOLUME, g, lane));
        std::array::from_fn(|_| [codec(Lane::Write), codec(Lane::Bulk)])
    }

    /// The operator's `create`, or the replacement of a disk: a blank replica with a new identity.
    pub(crate) fn initialise(&mut self, n: usize, bitmaps: BitmapStart) {
        let data = self.scenario.data_nodes;
        let node = &mut self.nodes[n];
        node.incarnation = Incarnation(node.rng.bits());
        let mut superblock = Superblock {
            version: holdfast_meta::FORMAT_VERSION,
            cluster: CLUSTER,
            volume: VOLUME,
            node: node.id,
            geometry: self.layout.geometry,
            capacity: self.layout.geometry.blocks,
            tail_unknown: false,
            page_bytes: PAGE_BYTES,
            incarnation: node.incarnation,
            run: Default::default(),
            boot_id: node.boot_id,
            clean: true,
            promised: Default::default(),
            epoch: Default::default(),
            disk: match bitmaps {
                BitmapStart::Clean => holdfast_types::DiskState::UpToDate,
                BitmapStart::AllDirty => holdfast_types::DiskState::Outdated,
            },
            lineage: 0,
            log_slots: self.scenario.log_slots[n],
            log_floor: 0,
            peer_slots: Default::default(),
            seen: Default::default(),
            found: Default::default(),
            update: 1,
        };
        for peer in (0..data).map(NodeId).filter(|&p| p != node.id) {
            superblock
                .give_slot(peer)
                .unwrap_or_else(|e| panic!("there are slots for all: {e}"));
        }
        let layout = Layout {
            log_slots: self.scenario.log_slots[n],
            ..self.layout
        };
        let writes = holdfast_meta::initialise(&layout, &superblock, bitmaps)
            .unwrap_or_else(|e| panic!("the layout is this superblock's: {e}"));
        if let Some(disk) = &mut node.disk {
            for (offset, bytes) in writes {
                disk.put(offset, &bytes);
            }
        }
    }

    /// Index of the link between two data nodes.
    pub(crate) fn link_of(&self, a: NodeId, b: NodeId) -> Option<usize> {
        let ends = [a.min(b), a.max(b)];
        self.links.iter().position(|l| l.ends == ends)
    }

    /// Runs to the end.
    pub fn run(&mut self) -> Outcome {
        while self.step() {}
        self.outcome.clone().unwrap_or(Outcome::Well)
    }

    /// One event; false if the run has ended.
    pub(crate) fn step(&mut self) -> bool {
        if self.outcome.is_some() {
            return false;
        }
        let Some((at, event)) = self.agenda.next() else {
            self.fail("nothing is left to happen");
            return false;
        };
        if at > self.instant.0 {
            self.instant = (at, 0);
        }
        self.instant.1 += 1;
        if self.instant.1 > INSTANT_EVENTS_MAX {
            self.fail(format!("time stands still: {event:?}"));
            return false;
        }
        self.now = at;
        self.trace.event(at, || format!("{event:?}"));
        self.trace.mix(event.kind());
        self.dispatch(event);
        self.trace.event_ends();
        true
    }

    /// Something that must hold does not.
    pub(crate) fn fail(&mut self, why: impl Into<String>) {
        if self.outcome.is_none() {
            let why = why.into();
            self.trace.news(self.now, "FAILURE", || why.clone());
            self.outcome = Some(Outcome::Failed(why));
        }
    }

    /// The same for a checker's answer.
    pub(crate) fn must(&mut self, result: Result<(), String>) {
        if let Err(why) = result {
            self.fail(why);
        }
    }

    fn dispatch(&mut self, event: Ev) {
        match event {
            Ev::Tick { node, life, which } => self.tick(node, life, which),
            Ev::Disk { node, key } => self.disk_ends(node, key),
            Ev::In { node, life, input } => {
                if self.nodes[node].life == life {
                    self.input(node, input);
                }
            }
            Ev::Frame {
                link,
                to,
                conn,
                lane,
                bytes,
            } => self.frame_arrives(link, to, conn, lane, bytes),
            Ev::Peer {
                link,
                end,
                conn,
                up,
            } => self.peer_learns(link, end, conn, up),
            Ev::Connect { link } => self.try_connect(link),
            Ev::LaneTimeout { link, conn } => self.lane_timeout(link, conn),
            Ev::Message { to, from, bytes } => self.message_arrives(to, from, &bytes),
            Ev::Mesh => self.look_after_mesh(),
            Ev::Persisted { node, life } => self.persisted(node, life),
            Ev::Host { node, step } => self.host_step_ends(node, step),
            Ev::Fencer { node, deadline } => self.fencer(node, deadline),
            Ev::DaemonGone { node, life } => self.daemon_gone(node, life),
            Ev::App { node, life } => self.app_asks(node, life),
            Ev::Stall { node } => self.look_for_stall(node),
            Ev::Fault(fault) => self.fault_due(fault),
            Ev::Step(index) => self.step_due(index),
            Ev::Undo(undo) => self.aftermath(|w| w.undo(undo)),
            Ev::Start { node } => self.start(node),
            Ev::Create => self.create(),
            Ev::Compare => self.compare(),
            Ev::Heal => self.aftermath(Self::heal),
            Ev::Check => self.aftermath(Self::check_well),
        }
    }
}
