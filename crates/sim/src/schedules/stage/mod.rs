//! The stage: replicas on disks and lanes that do what the script says, a register as control plane, and the
//! simulator's checkers looking on.
//!
//! The register is what the control plane is to a replica: compare-and-swap on the generation, a new run ends what
//! was proposed about the old one, an unclean member is promoted only when all are known unclean. Proposals may be
//! held and commit late. What belongs to a rule's interpreter (lanes, the claim on the store) is switched off here.

mod app;
mod register;

use super::disk::{Disk, Hold, Keep};
use crate::app::Asked;
use crate::check::history::{CELL_BYTES, History, stamp};
use crate::check::promotion::Promotion;
use crate::check::writer::Writer;
use crate::check::{convergence, dirty};
use bytes::Bytes;
use holdfast_meta::{BitmapStart, FORMAT_VERSION, Layout, Superblock, initialise};
use holdfast_replicator::{
    Action, Config, Event, FromControl, Note, Now, Replica, ReqId, Request, RequestError, Rule,
    Timing, ToControl, View,
};
use holdfast_types::{
    DiskState, Epoch, Gen, Geometry, Incarnation, NodeId, NodeSet, Run, VolumeId,
};
use holdfast_wire::{Frame, Lane};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

pub(super) const GEOMETRY: Geometry = Geometry {
    block_bytes: 64,
    blocks: 64,
    extent_blocks: 4,
};
/// Activity-log slots of every replica: half of the extents.
const LOG_SLOTS: u32 = 8;
const CELLS_PER_BLOCK: u64 = GEOMETRY.block_bytes as u64 / CELL_BYTES;
const STORE_BYTES: usize = 64 * 64 + 64 * 1024;
const VOLUME: VolumeId = VolumeId(7);
/// Every event takes this long, so that no two are at the same time.
const STEP_NS: u64 = 1_000;
/// Events between two instructions of the script; more means that something spins.
const EVENTS_MAX: usize = 200_000;
/// Time the cluster is given to be well again at the end of a schedule.
const HEAL_MS: u64 = 8_000;

/// What strikes a stage at some step of whatever goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Blow {
    /// SIGKILL.
    Kill(usize),
    /// SIGKILL, and a new daemon at once.
    Restart(usize),
    /// Its machine loses power.
    PowerCut(usize, Keep),
    /// It is alone: from its peers and its control plane.
    CutOff(usize),
    /// A connection breaks and comes back.
    Blip(usize, usize),
    /// A connection breaks and stays away.
    Part(usize, usize),
    /// Commits are held from now on; or what was held is committed late.
    Commits,
    /// Its disk ends no write of data any more.
    Hang(usize),
    /// Its disk fails every write.
    Fail(usize),
}

pub(super) struct Site {
    pub(super) replica: Option<Replica>,
    pub(super) disk: Disk,
    pub(super) notes: Vec<Note>,
    pub(super) drained: bool,
    pub(super) stopped: bool,
    /// Its control plane is cut off: it hears of no record, and nothing it proposes arrives.
    pub(super) deaf: bool,
    boot: u128,
    lost_at: u64,
    open: Option<u64>,
    asked: BTreeMap<ReqId, (u64, Asked)>,
    /// It promised this epoch, and the outcome is open.
    promised: Option<Epoch>,
}

pub(super) struct Stage {
    pub(super) off: Option<Rule>,
    pub(super) sites: Vec<Site>,
    pub(super) now: Now,
    /// The committed record.
    pub(super) view: View,
    /// Proposals wait for the script.
    pub(super) hold_register: bool,
    held_proposals: VecDeque<(usize, ToControl)>,
    runs: BTreeMap<NodeId, (Incarnation, Run)>,
    unclean: NodeSet,
    /// Commits so far.
    pub(super) commits: u64,
    linked: BTreeSet<(usize, usize)>,
    apart: BTreeSet<(usize, usize)>,
    lanes: BTreeMap<(usize, usize, Lane), VecDeque<Frame>>,
    held_lanes: BTreeSet<(usize, usize, Lane)>,
    next_req: u64,
    answers: BTreeMap<u64, Result<(), RequestError>>,
    history: History,
    promotion: Promotion,
    writer: Writer,
    /// What strikes next, after how many steps.
    pub(super) blows: Vec<(usize, Blow)>,
    /// The newest primary had lost its cache, as had all others.
    unclean_lead: bool,
    /// What a checker found first.
    pub(super) failure: Option<String>,
}

fn pair(a: usize, b: usize) -> (usize, usize) {
    (a.min(b), a.max(b))
}

fn node(n: usize) -> NodeId {
    NodeId(n as u8)
}

impl Stage {
    /// `members` are in sync from the start, the other replicas are blank and off.
    pub(super) fn new(off: Option<Rule>, nodes: usize, members: &[u8]) -> Self {
        let all: NodeSet = (0..nodes).map(node).collect();
        let in_sync: NodeSet = members.iter().map(|&m| NodeId(m)).collect();
        let view = View {
            generation: Gen(1),
            epoch: Epoch(0),
            primary: None,
            in_sync,
            data_nodes: all,
            suspect: NodeSet::EMPTY,
            lineage: 1,
            doubtful: NodeSet::EMPTY,
        };
        let mut stage = Self {
            off,
            sites: (0..nodes)
                .map(|n| Site::new(n, all, in_sync.has(node(n))))
                .collect(),
            now: Now(1_000_000_000),
            view,
            hold_register: false,
            held_proposals: VecDeque::new(),
            runs: BTreeMap::new(),
            unclean: NodeSet::EMPTY,
            commits: 0,
            linked: BTreeSet::new(),
            apart: BTreeSet::new(),
            lanes: BTreeMap::new(),
            held_lanes: BTreeSet::new(),
            next_req: 1,
            answers: BTreeMap::new(),
            history: History::new(GEOMETRY.bytes() / CELL_BYTES),
            promotion: Promotion::default(),
            writer: Writer::new(true),
            blows: Vec::new(),
            unclean_lead: false,
            failure: None,
        };
        let result = stage.promotion.applied(view).map(|_| ());
        stage.checked(result);
        for &m in members {
            stage.start(usize::from(m));
        }
        stage
    }

    // ---- what checkers say

    /// Something that must hold, in the script's words.
    pub(super) fn must(&mut self, holds: bool, what: &str) {
        if !holds {
            self.checked(Err(what.to_owned()));
        }
    }

    fn checked(&mut self, result: Result<(), String>) {
        if let (Err(why), None) = (result, &self.failure) {
            self.failure = Some(why);
        }
    }

    /// Where replicas differ, a durable trace says so (G4).
    pub(super) fn compare(&mut self) {
        let replicas: Vec<_> = self
            .sites
            .iter()
            .enumerate()
            .filter_map(|(n, site)| {
                Some(dirty::Replica {
                    node: node(n),
                    cached: &site.disk.cached,
                    stable: &site.disk.stable,
                    meta: dirty::decode(&site.disk.stable).ok()?,
                })
            })
            .collect();
        let mut result = Ok(());
        if replicas.len() < self.sites.len() {
            result = Err("G4: the metadata of a replica cannot be read".into());
        }
        for member in replicas.iter().filter(|r| self.view.in_sync.has(r.node)) {
            for other in replicas.iter().filter(|r| r.node != member.node) {
                result = result.and_then(|()| dirty::compare(&GEOMETRY, member, other));
            }
        }
        self.checked(result);
    }

    /// What a disk says of itself, on stable storage.
    pub(super) fn disk_state(&self, n: usize) -> Option<DiskState> {
        let meta = dirty::decode(&self.sites[n].disk.stable).ok()?;
        Some(meta.superblock.disk)
    }

    // ---- life and death

    /// A daemon starts, once it has the claim on its store.
    pub(super) fn start(&mut self, n: usize) {
        self.start_now(n);
        self.settle();
    }

    /// The same, and nothing moves yet once it is connected.
    pub(super) fn start_now(&mut self, n: usize) {
        if self.sites[n].replica.is_some() {
            return;
        }
        if self.off != Some(Rule::Claim) {
            self.sites[n].disk.land_orphans();
        }
        let cfg = Config {
            me: node(n),
            data_nodes: self.view.data_nodes,
            volume: VOLUME,
            timing: Timing::default(),
            distrust: None,
            off: self.off,
        };
        let site = &mut self.sites[n];
        let recovered = match dirty::decode(&site.disk.cached) {
            Ok(recovered) => recovered,
            Err(e) => return self.checked(Err(format!("G4: metadata cannot be read: {e}"))),
        };
        let mut out = Vec::new();
        match Replica::start(cfg, recovered, site.boot, self.now, &mut out) {
            Ok(replica) => site.replica = Some(replica),
            Err(e) => return self.checked(Err(format!("node {n} does not start: {e}"))),
        }
        self.perform(n, out);
        self.settle();
        self.tell(n, FromControl::View(self.view));
        for other in 0..self.sites.len() {
            self.connect(n, other);
        }
    }

    fn end_process(&mut self, n: usize) {
        self.sites[n].replica = None;
        self.sites[n].open = None;
        self.sites[n].promised = None;
        for other in 0..self.sites.len() {
            self.disconnect(n, other);
        }
        for (_, (_, asked)) in std::mem::take(&mut self.sites[n].asked) {
            if let Asked::Write { id, .. } = asked {
                self.history.forget(self.now.0, id);
            }
        }
        self.compare();
    }

    /// SIGKILL. What it had submitted to its disk lands.
    pub(super) fn kill(&mut self, n: usize) {
        self.kill_in_flight(n);
        self.sites[n].disk.land_orphans();
    }

    /// SIGKILL. What it had submitted to its disk is still on its way.
    pub(super) fn kill_in_flight(&mut self, n: usize) {
        self.sites[n].disk.orphan();
        self.end_process(n);
    }

    /// Its machine loses power.
    pub(super) fn power_cut(&mut self, n: usize, keep: Keep) {
        let site = &mut self.sites[n];
        site.disk.power_cut(keep);
        site.boot += 1;
        site.lost_at = self.now.0;
        self.end_process(n);
    }

    // ---- lanes

    fn connect(&mut self, a: usize, b: usize) {
        let up = |n: usize| self.sites[n].replica.is_some();
        if a == b
            || !up(a)
            || !up(b)
            || self.apart.contains(&pair(a, b))
            || !self.linked.insert(pair(a, b))
        {
            return;
        }
        self.event(a, Event::PeerUp { peer: node(b) });
        self.event(b, Event::PeerUp { peer: node(a) });
    }

    fn disconnect(&mut self, a: usize, b: usize) {
        if !self.linked.remove(&pair(a, b)) {
            return;
        }
        self.lanes
            .retain(|&(from, to, _), _| pair(from, to) != pair(a, b));
        self.event(a, Event::PeerDown { peer: node(b) });
        self.event(b, Event::PeerDown { peer: node(a) });
    }

    /// The connection breaks, with everything on it; it comes back with time.
    pub(super) fn blip(&mut self, a: usize, b: usize) {
        self.disconnect(a, b);
    }

    /// The connection breaks and stays away.
    pub(super) fn part(&mut self, a: usize, b: usize) {
        self.apart.insert(pair(a, b));
        self.disconnect(a, b);
    }

    /// They connect, and nothing moves yet.
    pub(super) fn join_now(&mut self, a: usize, b: usize) {
        self.apart.remove(&pair(a, b));
        self.connect(a, b);
    }

    /// They may connect again.
    pub(super) fn join(&mut self, a: usize, b: usize) {
        self.apart.remove(&pair(a, b));
        self.connect(a, b);
        self.settle();
    }

    /// Frames of this lane wait for the script.
    pub(super) fn hold(&mut self, from: usize, to: usize, lane: Lane) {
        self.held_lanes.insert((from, to, lane));
    }

    /// And go on.
    pub(super) fn release(&mut self, from: usize, to: usize, lane: Lane) {
        self.held_lanes.remove(&(from, to, lane));
        self.settle();
    }

    /// One held frame arrives.
    pub(super) fn deliver_one(&mut self, from: usize, to: usize, lane: Lane) {
        let frame = self
            .lanes
            .get_mut(&(from, to, lane))
            .and_then(VecDeque::pop_front);
        if let Some(frame) = frame {
            let peer = node(from);
            self.event(to, Event::Frame { peer, frame });
        }
        self.settle();
    }

    fn lane_of(&self, frame: &Frame) -> Lane {
        match frame {
            Frame::Grown { .. } if self.off == Some(Rule::GrownInOrder) => Lane::Bulk,
            frame => frame.lane(),
        }
    }

    // ---- what happens

    fn event(&mut self, n: usize, event: Event) {
        self.now.0 += STEP_NS;
        let now = self.now;
        let mut out = Vec::new();
        if let Some(replica) = &mut self.sites[n].replica {
            replica.handle(now, event, &mut out);
        }
        self.perform(n, out);
    }

    /// The control plane says something to a replica.
    pub(super) fn tell(&mut self, n: usize, message: FromControl) {
        if message == FromControl::StepDown {
            self.sites[n].open = None;
        }
        self.event(n, Event::Control(message));
    }

    fn perform(&mut self, n: usize, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Disk { io, op } => self.sites[n].disk.submit(io, op),
                Action::Send { peer, frame } => {
                    self.answers_in_time(n, &frame);
                    let key = (n, usize::from(peer.0), self.lane_of(&frame));
                    self.lanes.entry(key).or_default().push_back(frame);
                }
                Action::Disconnect { peer } => self.disconnect(n, usize::from(peer.0)),
                Action::Complete { req, result } => self.complete(n, req, result),
                Action::Control(message) => self.control(n, message),
                // Stores of one size.
                Action::MakeRoom { .. } => self.event(n, Event::Room { store_bytes: None }),
                Action::Note(note) => self.sites[n].notes.push(note),
                Action::Save(save) => {
                    unreachable!("nobody gives up a line of history here: {save:?}")
                }
            }
        }
    }

    /// G2, as rule 1 states it: who promised a newer epoch answers nothing of an older one.
    fn answers_in_time(&mut self, n: usize, frame: &Frame) {
        let (Frame::Ack { stamp, .. } | Frame::Flushed { stamp, .. }, Some(promised)) =
            (frame, self.sites[n].promised)
        else {
            return;
        };
        if stamp.epoch < promised {
            let what = format!(
                "G2: node {n} answers a frame of epoch {} after it promised epoch {promised}",
                stamp.epoch
            );
            self.checked(Err(what));
        }
    }

    /// Runs disks and lanes until nothing moves but what the script holds.
    pub(super) fn settle(&mut self) {
        for _ in 0..EVENTS_MAX {
            if !self.one() {
                return;
            }
        }
        self.checked(Err("liveness: the replicas never come to rest".into()));
    }

    fn strike(&mut self) {
        let Some((left, blow)) = self.blows.first_mut() else {
            return;
        };
        if *left > 0 {
            *left -= 1;
            return;
        }
        let blow = *blow;
        self.blows.remove(0);
        match blow {
            Blow::Kill(n) => self.kill(n),
            Blow::Restart(n) => {
                self.kill(n);
                self.start_now(n);
            }
            Blow::PowerCut(n, keep) => self.power_cut(n, keep),
            Blow::CutOff(n) => {
                self.sites[n].deaf = true;
                for other in (0..self.sites.len()).filter(|&m| m != n) {
                    self.part(n, other);
                }
            }
            Blow::Blip(a, b) => self.blip(a, b),
            Blow::Part(a, b) => self.part(a, b),
            Blow::Commits if self.hold_register => self.commit_held(),
            Blow::Commits => self.hold_register = true,
            Blow::Hang(n) => self.hold_disk(n, Hold::Data),
            Blow::Fail(n) => self.sites[n].disk.broken = true,
        }
    }

    /// One thing happens; false if there is none.
    pub(super) fn one(&mut self) -> bool {
        self.strike();
        for n in 0..self.sites.len() {
            if let Some((io, result)) = self.sites[n].disk.next() {
                self.event(n, Event::DiskDone { io, result });
                return true;
            }
        }
        let held = &self.held_lanes;
        let next = self
            .lanes
            .iter_mut()
            .filter(|(key, _)| !held.contains(key))
            .find_map(|(&(from, to, _), queue)| Some((from, to, queue.pop_front()?)));
        let Some((from, to, frame)) = next else {
            return false;
        };
        let peer = node(from);
        self.event(to, Event::Frame { peer, frame });
        true
    }

    /// Disk operations wait for the script.
    pub(super) fn hold_disk(&mut self, n: usize, hold: Hold) {
        self.sites[n].disk.hold = hold;
    }

    /// And go on.
    pub(super) fn release_disk(&mut self, n: usize) {
        self.sites[n].disk.hold = Hold::Nothing;
        self.settle();
    }

    /// Of the held operations the last one ends first.
    pub(super) fn land_last(&mut self, n: usize) {
        if let Some((io, result)) = self.sites[n].disk.land_last() {
            self.event(n, Event::DiskDone { io, result });
        }
        self.settle();
    }

    fn is_due(&self, n: usize) -> bool {
        let replica = self.sites[n].replica.as_ref();
        replica.is_some_and(|r| r.deadline() <= self.now)
    }

    /// Time goes by.
    pub(super) fn pass(&mut self, ms: u64) {
        let end = self.now.plus_ms(ms);
        self.settle();
        while self.now < end {
            self.now = self.now.plus_ms(10);
            for n in 0..self.sites.len() {
                if self.is_due(n) {
                    self.event(n, Event::Tick);
                    let again = self.is_due(n);
                    self.must(!again, "liveness: it wants to be ticked without an end");
                }
                for other in 0..n {
                    self.connect(n, other);
                }
            }
            self.settle();
        }
    }
}

impl Site {
    fn new(n: usize, all: NodeSet, member: bool) -> Self {
        let layout = Layout::with_page(GEOMETRY, STORE_BYTES as u64, 7, LOG_SLOTS, 512)
            .unwrap_or_else(|e| panic!("the stage's geometry is possible: {e}"));
        let mut superblock = Superblock {
            version: FORMAT_VERSION,
            cluster: 1,
            volume: VOLUME,
            node: node(n),
            geometry: GEOMETRY,
            capacity: GEOMETRY.blocks,
            tail_unknown: false,
            page_bytes: 512,
            incarnation: Incarnation(100 + n as u64),
            run: Run(0),
            boot_id: 0,
            clean: true,
            promised: Epoch(0),
            epoch: Epoch(0),
            disk: if member {
                DiskState::UpToDate
            } else {
                DiskState::Outdated
            },
            lineage: 0,
            log_slots: LOG_SLOTS,
            log_floor: 0,
            peer_slots: [None; 7],
            seen: Default::default(),
            found: Default::default(),
            update: 0,
        };
        for peer in all.without(node(n)).iter() {
            let given = superblock.give_slot(peer);
            given.unwrap_or_else(|e| panic!("there are slots for all: {e}"));
        }
        let start = if member {
            BitmapStart::Clean
        } else {
            BitmapStart::AllDirty
        };
        let mut disk = Disk::new(STORE_BYTES);
        let writes = initialise(&layout, &superblock, start);
        for (offset, bytes) in writes.unwrap_or_else(|e| panic!("the layout fits: {e}")) {
            disk.put(offset, &bytes);
        }
        Self {
            replica: None,
            disk,
            notes: Vec::new(),
            drained: false,
            stopped: false,
            deaf: false,
            boot: 1,
            lost_at: 0,
            open: None,
            asked: BTreeMap::new(),
            promised: None,
        }
    }
}
