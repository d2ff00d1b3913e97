//! A small cluster without faults of its own: memory disks, perfect lanes, a register as control plane.
//! Scenarios drive it step by step; random schedules are the simulator's business.
#![allow(dead_code)] // each test file uses its part

#[path = "../../../crates/meta/tests/power/mod.rs"]
pub mod power;
mod site;
mod size;

use bytes::Bytes;
use holdfast_meta::{
    BitmapStart, FORMAT_VERSION, Layout, Superblock, initialise, locate_among, superblock_range,
};
use holdfast_replicator::{
    Action, Config, DiskError, DiskOp, DiskTrouble, Event, FromControl, IoId, Note, Now, Replica,
    ReqId, Request, RequestError, Rule, Timing, ToControl, View, VolumeSize,
};
use holdfast_types::{
    DiskState, Epoch, Gen, Geometry, Incarnation, NodeId, NodeSet, Run, VolumeId,
};
use std::collections::{BTreeMap, VecDeque};

pub const BLOCK: usize = 64;
pub const GEOMETRY: Geometry = Geometry {
    block_bytes: 64,
    blocks: 64,
    extent_blocks: 4,
};
const STORE_BYTES: usize = 64 * 64 + 64 * 1024;

/// What a disk does not do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fail {
    No,
    /// Writes, zeroes and flushes.
    Writes(DiskError),
    Flushes,
    /// All reads.
    Reads,
    /// Reads of this block.
    Block(u64),
    /// Reads of this block, until it is written.
    BadBlock(u64),
}

pub struct Site {
    pub replica: Option<Replica>,
    pub disk: Vec<u8>,
    /// Where its metadata was last known to end.
    pub end: u64,
    /// Its store may not become larger than this.
    pub most: u64,
    /// The room it says it has.
    pub room: u64,
    pub answers: BTreeMap<u64, Result<Bytes, RequestError>>,
    pub notes: Vec<Note>,
    pub opened: Option<Epoch>,
    pub drained: bool,
    pub stopped: bool,
    pub boot: u128,
    /// Disk operations wait here while `slow`.
    pub slow: bool,
    /// Zeroes do not end as long as this is so.
    pub late_zeroes: bool,
    late: VecDeque<(IoId, DiskOp)>,
    /// Where zeroes were written, in bytes.
    pub zeroed: Vec<(u64, u64)>,
    /// What was saved, and how the next save ends.
    pub saved: Vec<holdfast_replicator::Save>,
    pub save_answer: Result<String, String>,
    /// SIGSTOP: nothing is handled, all of it waits.
    pub frozen: bool,
    inbox: VecDeque<Event>,
    /// Which disk operations fail, and how.
    pub fail: Fail,
    /// As its control plane remembers it.
    pub distrust: Option<DiskTrouble>,
    pub proposed_self: u32,
    pub stranded: bool,
    queue: VecDeque<(IoId, DiskOp)>,
    /// The same disk with a cache that a loss of power takes; `None`: nobody looks.
    pub power: Option<power::Disk>,
    /// Starts so far, so that operations of different runs have different names.
    starts: u64,
    /// What has been told to others, and must therefore be on disk.
    pub told: Told,
}

/// What a replica has said of itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct Told {
    pub promised: Epoch,
    pub run: Run,
    /// It took a session as no member.
    pub syncing: bool,
}

type Watch = Box<dyn FnMut(&Cluster)>;

pub struct Cluster {
    pub sites: Vec<Site>,
    pub now: Now,
    pub view: View,
    pub size: Option<VolumeSize>,
    /// Hears nothing of the register.
    pub deaf: Option<usize>,
    /// It shrank: all replicas are waited for before it grows again.
    shrank: bool,
    shrinks: u32,
    pub links: NodeSetPairs,
    frames: VecDeque<(usize, usize, holdfast_wire::Frame)>,
    /// Every frame that was sent, from whom and to whom.
    pub sent: Vec<(usize, usize, holdfast_wire::Frame)>,
    next_req: u64,
    /// Disks that were replaced.
    blanks: u64,
    pub register_up: bool,
    pub off: Option<Rule>,
    /// Disks and frames take turns by chance, and disk operations end in any order.
    pub chance: Option<power::Rng>,
    /// Looks at everything after each event.
    pub watch: Option<Watch>,
}

#[derive(Default)]
pub struct NodeSetPairs(Vec<(usize, usize)>);

impl Cluster {
    /// `members` are in sync from the start; the other replicas are blank.
    pub fn new(nodes: usize, members: &[u8]) -> Self {
        let all: Vec<u8> = (0..nodes as u8).collect();
        Self::placed(nodes, &all, members)
    }

    /// Only `placed` are recorded as data nodes; the others have a blank replica that knows of all.
    pub fn placed(nodes: usize, placed: &[u8], members: &[u8]) -> Self {
        let mut cluster = Self::unstarted(nodes, placed, members);
        for n in 0..nodes {
            cluster.start(n);
        }
        cluster
    }

    /// The same, not started yet.
    pub fn unstarted(nodes: usize, placed: &[u8], members: &[u8]) -> Self {
        let all: NodeSet = (0..nodes as u8).map(NodeId).collect();
        let placed: NodeSet = placed.iter().map(|&m| NodeId(m)).collect();
        let in_sync: NodeSet = members.iter().map(|&m| NodeId(m)).collect();
        Self {
            sites: (0..nodes)
                .map(|n| {
                    let me = NodeId(n as u8);
                    let known = if placed.has(me) { placed } else { all };
                    Site::new(n, known, in_sync.has(me))
                })
                .collect(),
            now: Now(1_000_000_000),
            view: View {
                generation: Gen(1),
                epoch: Epoch(0),
                primary: None,
                in_sync,
                data_nodes: placed,
                suspect: NodeSet::EMPTY,
                lineage: 1,
                doubtful: NodeSet::EMPTY,
            },
            size: None,
            deaf: None,
            shrank: false,
            shrinks: 0,
            links: NodeSetPairs::default(),
            frames: VecDeque::new(),
            sent: Vec::new(),
            next_req: 1,
            blanks: 0,
            register_up: true,
            off: None,
            chance: None,
            watch: None,
        }
    }

    /// A site with this disk, not started.
    pub fn site(n: usize, all: NodeSet, disk: Vec<u8>) -> Site {
        Site {
            disk,
            ..Site::new(n, all, false)
        }
    }

    pub fn start(&mut self, n: usize) {
        self.start_without_settling(n);
        self.settle();
    }

    /// It runs and greets the others.
    pub fn start_without_settling(&mut self, n: usize) {
        let distrust = self.sites[n].distrust.take();
        let site = &mut self.sites[n];
        // Where it was last known to end, and where the store ends now: a daemon remembers no more.
        let ends = [site.end, site.disk.len() as u64];
        let tails: Vec<(u64, &[u8])> = ends
            .iter()
            .map(|&end| {
                let (offset, len) = superblock_range(end).unwrap();
                (end, &site.disk[offset as usize..(offset + len) as usize])
            })
            .collect();
        let located = locate_among(&tails).unwrap();
        site.end = located.layout.region_end;
        let (from, len) = located.layout.region();
        let recovered = located
            .recover(&site.disk[from as usize..(from + len) as usize])
            .unwrap();
        let located_nodes = recovered.superblock.data_nodes();
        let cfg = Config {
            me: NodeId(n as u8),
            data_nodes: located_nodes,
            volume: VolumeId(7),
            timing: Timing::default(),
            distrust: distrust.map(|why| (Incarnation(100 + n as u64), why)),
            off: self.off,
        };
        site.starts += 1;
        let mut out = Vec::new();
        site.replica = Some(Replica::start(cfg, recovered, site.boot, self.now, &mut out).unwrap());
        self.perform(n, out);
        self.settle();
        if let Some(size) = self.size {
            self.event(n, Event::Control(FromControl::Size(size)));
        }
        self.event(n, Event::Control(FromControl::View(self.view)));
        for other in 0..self.sites.len() {
            self.connect(n, other);
        }
    }

    /// Commits other data nodes (and the in-sync set as it stands in the view).
    pub fn place(&mut self, nodes: &[u8]) {
        self.place_without_settling(nodes);
        self.settle();
    }

    pub fn place_without_settling(&mut self, nodes: &[u8]) {
        self.view.data_nodes = nodes.iter().map(|&n| NodeId(n)).collect();
        self.view.generation = self.view.generation.next();
        self.publish();
    }

    /// Another disk, with a blank replica that knows of all.
    pub fn blank(&mut self, n: usize) {
        let all: NodeSet = (0..self.sites.len() as u8).map(NodeId).collect();
        self.blanks += 1;
        let incarnation = Incarnation(1000 + self.blanks);
        self.sites[n] = Site::made(n, all, false, incarnation);
    }

    /// SIGKILL: memory is gone, the disk and what was submitted to it stay.
    pub fn kill(&mut self, n: usize) {
        self.sites[n].flush_queue();
        self.sites[n].replica = None;
        self.cut(n);
    }

    /// SIGCONT.
    pub fn thaw(&mut self, n: usize) {
        self.sites[n].frozen = false;
        for event in std::mem::take(&mut self.sites[n].inbox) {
            self.event(n, event);
        }
        self.settle();
    }

    /// Power is cut: what was submitted to the disk and had not ended is there or not, by turns.
    pub fn crash(&mut self, n: usize) {
        let mut keep = false;
        self.sites[n].queue.retain(|_| {
            keep = !keep;
            keep
        });
        self.kill(n);
    }

    pub fn cut(&mut self, n: usize) {
        for other in 0..self.sites.len() {
            let pair = (n.min(other), n.max(other));
            if let Some(i) = self.links.0.iter().position(|&p| p == pair) {
                self.links.0.remove(i);
                self.frames
                    .retain(|&(a, b, _)| (a.min(b), a.max(b)) != pair);
                self.event(
                    n,
                    Event::PeerDown {
                        peer: NodeId(other as u8),
                    },
                );
                self.event(
                    other,
                    Event::PeerDown {
                        peer: NodeId(n as u8),
                    },
                );
            }
        }
    }

    pub fn connect(&mut self, a: usize, b: usize) {
        let pair = (a.min(b), a.max(b));
        if a == b
            || self.links.0.contains(&pair)
            || self.sites[a].frozen
            || self.sites[b].frozen
            || self.sites[a].replica.is_none()
            || self.sites[b].replica.is_none()
        {
            return;
        }
        self.links.0.push(pair);
        self.event(
            a,
            Event::PeerUp {
                peer: NodeId(b as u8),
            },
        );
        self.event(
            b,
            Event::PeerUp {
                peer: NodeId(a as u8),
            },
        );
    }

    pub fn event(&mut self, n: usize, event: Event) {
        if self.sites[n].frozen {
            self.sites[n].inbox.push_back(event);
            return;
        }
        let now = self.now;
        let mut out = Vec::new();
        if let Some(replica) = &mut self.sites[n].replica {
            replica.handle(now, event, &mut out);
        }
        self.perform(n, out);
        if let Some(mut watch) = self.watch.take() {
            watch(self);
            self.watch = Some(watch);
        }
    }

    fn perform(&mut self, n: usize, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Disk { io, op } => self.sites[n].submit(io, op),
                Action::Send { peer, frame } => {
                    if let holdfast_wire::Frame::Attached { stamp, .. } = &frame {
                        let told = &mut self.sites[n].told.promised;
                        *told = (*told).max(stamp.epoch);
                    }
                    let to = usize::from(peer.0);
                    self.sent.push((n, to, frame.clone()));
                    self.frames.push_back((n, to, frame));
                }
                Action::Disconnect { peer } => {
                    let other = usize::from(peer.0);
                    let pair = (n.min(other), n.max(other));
                    self.links.0.retain(|&p| p != pair);
                    self.frames
                        .retain(|&(a, b, _)| (a.min(b), a.max(b)) != pair);
                    self.event(n, Event::PeerDown { peer });
                    self.event(
                        other,
                        Event::PeerDown {
                            peer: NodeId(n as u8),
                        },
                    );
                }
                Action::Complete { req, result } => {
                    assert!(
                        self.sites[n].answers.insert(req.0, result).is_none(),
                        "answered twice"
                    );
                }
                Action::Control(message) => self.control(n, message),
                Action::MakeRoom { bytes } => {
                    let site = &mut self.sites[n];
                    let enough = bytes <= site.most;
                    if enough && bytes > site.disk.len() as u64 {
                        // What a store holds where nobody wrote is not known.
                        site.disk.resize(bytes as usize, 0xE7);
                    }
                    let store_bytes = enough.then_some(site.disk.len() as u64);
                    self.event(n, Event::Room { store_bytes });
                }
                Action::Save(save) => {
                    let result = self.sites[n].save_answer.clone();
                    let number = save.save;
                    self.sites[n].saved.push(save);
                    self.event(
                        n,
                        Event::Saved {
                            save: number,
                            result,
                        },
                    );
                }
                Action::Note(note) => {
                    // A primary says it too, of its peers.
                    if let Note::Attached { peer, member, .. } = note
                        && self.view.primary == Some(peer)
                    {
                        self.sites[n].told.syncing = !member;
                    }
                    self.sites[n].notes.push(note);
                }
            }
        }
    }

    fn control(&mut self, n: usize, message: ToControl) {
        match message {
            ToControl::ProposeSet {
                epoch,
                generation,
                in_sync,
                peer,
                ..
            } => {
                self.sites[n].proposed_self += u32::from(usize::from(peer.0) == n);
                if self.register_up
                    && generation == self.view.generation
                    && epoch == self.view.epoch
                {
                    self.view.generation = generation.next();
                    self.view.in_sync = in_sync;
                    self.publish();
                }
            }
            ToControl::Promised { epoch } => {
                let told = &mut self.sites[n].told.promised;
                *told = (*told).max(epoch);
                assert_eq!(epoch, self.view.epoch.next());
                self.view.epoch = epoch;
                self.view.generation = self.view.generation.next();
                self.view.primary = Some(NodeId(n as u8));
                let view = self.view;
                self.event(n, Event::Control(FromControl::Lead(view)));
                self.publish();
            }
            ToControl::Opened { epoch } => self.sites[n].opened = Some(epoch),
            ToControl::Drained { .. } => self.sites[n].drained = true,
            ToControl::Stopped => self.sites[n].stopped = true,
            ToControl::Started { run, .. } => self.sites[n].told.run = run,
            ToControl::Room {
                size_bytes,
                shrunk,
                room_bytes,
                store_bytes,
            } => {
                self.sites[n].end = store_bytes;
                if self
                    .size
                    .is_some_and(|s| (s.size_bytes, s.shrunk) == (size_bytes, shrunk))
                {
                    self.sites[n].room = room_bytes;
                }
                self.try_resize();
            }
            ToControl::DiskFailed { why } => self.sites[n].distrust = Some(why),
            ToControl::Stranded { .. } => self.sites[n].stranded = true,
            ToControl::NoRoom { .. } | ToControl::DiskIdle | ToControl::Deposed { .. } => {}
        }
    }

    fn publish(&mut self) {
        let view = self.view;
        for n in view.in_sync.iter() {
            self.sites[usize::from(n.0)].told.syncing = false;
        }
        for n in (0..self.sites.len())
            .filter(|n| self.deaf != Some(*n))
            .collect::<Vec<_>>()
        {
            self.event(n, Event::Control(FromControl::View(view)));
        }
    }

    pub fn promote(&mut self, n: usize) {
        let epoch = self.view.epoch.next();
        self.event(n, Event::Control(FromControl::Promise { epoch }));
        self.settle();
        self.event(
            n,
            Event::Control(FromControl::Lease {
                until: Now(u64::MAX),
            }),
        );
        self.settle();
    }

    /// Runs disks and lanes until nothing moves.
    pub fn settle(&mut self) {
        if self.chance.is_some() {
            while self.any() {}
            return;
        }
        loop {
            let mut moved = false;
            for n in 0..self.sites.len() {
                while !self.sites[n].slow
                    && let Some((io, op)) = self.sites[n].queue.pop_front()
                {
                    let result = self.sites[n].run(io, &op);
                    self.event(n, Event::DiskDone { io, result });
                    moved = true;
                }
            }
            if let Some((from, to, frame)) = self.frames.pop_front() {
                self.event(
                    to,
                    Event::Frame {
                        peer: NodeId(from as u8),
                        frame,
                    },
                );
                moved = true;
            }
            for n in 0..self.sites.len() {
                if !moved
                    && !self.sites[n].late_zeroes
                    && let Some((io, op)) = self.sites[n].late.pop_front()
                {
                    let result = Ok(self.sites[n].apply(io, &op));
                    self.event(n, Event::DiskDone { io, result });
                    moved = true;
                }
            }
            if !moved {
                return;
            }
        }
    }

    /// Runs until nothing moves, and looks after each step.
    pub fn settle_until(&mut self, mut f: impl FnMut(&Self)) {
        loop {
            let mut moved = false;
            for n in 0..self.sites.len() {
                if let Some((io, op)) = self.sites[n].queue.pop_front() {
                    let result = Ok(self.sites[n].apply(io, &op));
                    self.event(n, Event::DiskDone { io, result });
                    f(self);
                    moved = true;
                }
            }
            if let Some((from, to, frame)) = self.frames.pop_front() {
                self.event(
                    to,
                    Event::Frame {
                        peer: NodeId(from as u8),
                        frame,
                    },
                );
                f(self);
                moved = true;
            }
            if !moved {
                return;
            }
        }
    }
    /// One step of whatever may come next, by chance; false if nothing moved.
    pub fn any(&mut self) -> bool {
        let mut ready: Vec<usize> = (0..self.sites.len())
            .filter(|&n| !self.sites[n].slow && !self.sites[n].queue.is_empty())
            .collect();
        if !self.frames.is_empty() {
            ready.push(usize::MAX);
        }
        let rng = self.chance.as_mut().expect("by chance");
        if ready.is_empty() {
            return false;
        }
        let n = ready[rng.below(ready.len() as u64) as usize];
        if n == usize::MAX {
            let (from, to, frame) = self.frames.pop_front().expect("not empty");
            let peer = NodeId(from as u8);
            self.event(to, Event::Frame { peer, frame });
        } else {
            let i = rng.below(self.sites[n].queue.len() as u64) as usize;
            let (io, op) = self.sites[n].queue.remove(i).expect("inside");
            let result = Ok(self.sites[n].apply(io, &op));
            self.event(n, Event::DiskDone { io, result });
        }
        true
    }

    /// Is a question for blocks on its way?
    pub fn fetching(&self) -> bool {
        let fetch = |f: &holdfast_wire::Frame| matches!(f, holdfast_wire::Frame::Fetch { .. });
        self.frames.iter().any(|(_, _, frame)| fetch(frame))
    }

    /// One step; false if nothing moved.
    pub fn one(&mut self) -> bool {
        for n in 0..self.sites.len() {
            if !self.sites[n].slow
                && let Some((io, op)) = self.sites[n].queue.pop_front()
            {
                let result = self.sites[n].run(io, &op);
                self.event(n, Event::DiskDone { io, result });
                return true;
            }
        }
        if let Some((from, to, frame)) = self.frames.pop_front() {
            self.event(
                to,
                Event::Frame {
                    peer: NodeId(from as u8),
                    frame,
                },
            );
            return true;
        }
        false
    }
    pub fn fail_next_write(&mut self, n: usize) {
        self.sites[n].fail = Fail::Writes(DiskError::Io);
    }

    /// Lets time pass, with ticks.
    pub fn pass(&mut self, ms: u64) {
        let end = self.now.plus_ms(ms);
        while self.now < end {
            self.now = self.now.plus_ms(10);
            for n in 0..self.sites.len() {
                let due = |s: &Site| s.replica.as_ref().is_some_and(|r| r.deadline() <= self.now);
                if !self.sites[n].frozen && due(&self.sites[n]) {
                    self.event(n, Event::Tick);
                }
            }
            for a in 0..self.sites.len() {
                for b in 0..a {
                    self.connect(a, b);
                }
            }
            self.settle();
        }
    }

    /// Lets time pass with ticks, but lanes and disks stand still.
    pub fn pass_without_settling(&mut self, ms: u64) {
        let end = self.now.plus_ms(ms);
        while self.now < end {
            self.now = self.now.plus_ms(10);
            for n in 0..self.sites.len() {
                self.event(n, Event::Tick);
            }
        }
    }

    pub fn request(&mut self, n: usize, request: Request) -> u64 {
        let id = self.next_req;
        self.next_req += 1;
        self.event(
            n,
            Event::Request {
                req: ReqId(id),
                request,
            },
        );
        id
    }

    pub fn write(&mut self, n: usize, block: u64, value: u8) -> u64 {
        let data = Bytes::from(vec![value; BLOCK]);
        self.request(
            n,
            Request::Write {
                offset: block * BLOCK as u64,
                data,
                fua: false,
            },
        )
    }

    pub fn read(&mut self, n: usize, block: u64) -> u8 {
        let req = self.request(
            n,
            Request::Read {
                offset: block * BLOCK as u64,
                len: BLOCK as u32,
            },
        );
        self.settle();
        let bytes = self.sites[n].answers[&req].clone().expect("read");
        assert!(bytes.iter().all(|b| *b == bytes[0]));
        bytes[0]
    }

    pub fn acked(&self, n: usize, req: u64) -> bool {
        matches!(self.sites[n].answers.get(&req), Some(Ok(_)))
    }

    pub fn assert_equal(&self, a: usize, b: usize) {
        let size = self.size.map_or(GEOMETRY.bytes(), |s| s.size_bytes);
        let bytes = size as usize;
        assert_eq!(self.sites[a].disk[..bytes], self.sites[b].disk[..bytes]);
    }
}
