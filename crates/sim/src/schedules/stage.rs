//! The stage: replicas on disks and lanes that do what the script says, a register as control plane, and the
//! simulator's checkers looking on.
//!
//! The register is what the control plane is to a replica: compare-and-swap on the generation, a new run ends what
//! was proposed about the old one, an unclean member is promoted only when all are known unclean. Proposals may be
//! held and commit late. What belongs to a rule's interpreter (lanes, the claim on the store) is switched off here.

use super::disk::{Disk, Hold, Keep};
use crate::app::Asked;
use crate::check::exclusive::Exclusive;
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
    exclusive: Exclusive,
    promotion: Promotion,
    writer: Writer,
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
            exclusive: Exclusive::new(true),
            promotion: Promotion::default(),
            writer: Writer::default(),
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

    // ---- life and death

    /// A daemon starts, once it has the claim on its store.
    pub(super) fn start(&mut self, n: usize) {
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
        self.settle();
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
                Action::Note(note) => self.sites[n].notes.push(note),
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

    /// One thing happens; false if there is none.
    pub(super) fn one(&mut self) -> bool {
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

    /// Time goes by.
    pub(super) fn pass(&mut self, ms: u64) {
        let end = self.now.plus_ms(ms);
        self.settle();
        while self.now < end {
            self.now = self.now.plus_ms(10);
            for n in 0..self.sites.len() {
                let due = |r: &Replica| r.deadline() <= self.now;
                if self.sites[n].replica.as_ref().is_some_and(due) {
                    self.event(n, Event::Tick);
                }
                for other in 0..n {
                    self.connect(n, other);
                }
            }
            self.settle();
        }
    }

    // ---- the register

    fn control(&mut self, n: usize, message: ToControl) {
        match message {
            ToControl::Started {
                incarnation,
                run,
                unclean,
                ..
            } => self.seen(n, (incarnation, run), unclean),
            ToControl::ProposeSet { .. } | ToControl::Promised { .. } => {
                if let ToControl::Promised { epoch } = message {
                    self.sites[n].promised = Some(epoch);
                }
                if self.hold_register {
                    self.held_proposals.push_back((n, message));
                } else if !self.sites[n].deaf {
                    self.commit(n, &message);
                }
            }
            ToControl::Opened { epoch } => {
                let result = self.exclusive.opened(n, epoch.0);
                self.checked(result);
                self.history.opened(self.now.0, epoch.0);
                self.sites[n].open = Some(epoch.0);
            }
            ToControl::Drained { .. } => self.sites[n].drained = true,
            ToControl::Stopped => self.sites[n].stopped = true,
            ToControl::Deposed { .. } | ToControl::DiskFailed => {}
        }
    }

    /// A new run is recorded; whatever was proposed about the old one is dead.
    fn seen(&mut self, n: usize, life: (Incarnation, Run), unclean: bool) {
        let before = self.runs.insert(node(n), life);
        if unclean {
            self.unclean = self.unclean.with(node(n));
        }
        if before.is_some() && self.off != Some(Rule::NewEpoch) {
            self.view.generation = self.view.generation.next();
            self.publish();
        }
    }

    fn commit(&mut self, n: usize, message: &ToControl) {
        match *message {
            ToControl::ProposeSet {
                epoch,
                generation,
                in_sync,
                peer,
                life,
                ..
            } => {
                let grows = in_sync.has(peer);
                let known = !grows || life == self.runs.get(&peer).copied();
                let last = in_sync.is_empty() && self.off != Some(Rule::LastMember);
                if (generation, epoch) != (self.view.generation, self.view.epoch) || !known || last
                {
                    return;
                }
                self.view.in_sync = in_sync;
                if grows {
                    self.unclean = self.unclean.without(peer);
                    let disk = &self.sites[usize::from(peer.0)].disk;
                    let result = self.history.holds_all(&disk.cached, &disk.stable);
                    self.checked(
                        result.map_err(|e| format!("G1: {peer} becomes a member, but {e}")),
                    );
                }
            }
            ToControl::Promised { epoch } => {
                if epoch != self.view.epoch.next() || !self.view.in_sync.has(node(n)) {
                    return;
                }
                self.view.epoch = epoch;
                self.view.primary = Some(node(n));
                self.unclean = self.unclean.without(node(n));
            }
            _ => return,
        }
        self.view.generation = self.view.generation.next();
        self.commits += 1;
        let result = self.promotion.applied(self.view).map(|_| ());
        self.checked(result);
        if let ToControl::Promised { epoch } = *message {
            self.sites[n].promised = None;
            if !self.sites[n].deaf && self.view.epoch == epoch {
                self.lead(n);
            }
        }
        self.publish();
    }

    fn lead(&mut self, n: usize) {
        // The lease of whoever led before is over by now; that much it knows by itself.
        for other in (0..self.sites.len()).filter(|&m| m != n) {
            let until = self.now;
            self.tell(other, FromControl::Lease { until });
        }
        self.tell(n, FromControl::Lead(self.view));
        let until = Now(u64::MAX);
        self.tell(n, FromControl::Lease { until });
    }

    fn publish(&mut self) {
        let view = self.view;
        for n in 0..self.sites.len() {
            if !self.sites[n].deaf {
                self.tell(n, FromControl::View(view));
            }
        }
    }

    /// What was proposed and held is committed now, as far as it still can be.
    pub(super) fn commit_held(&mut self) {
        self.hold_register = false;
        for (n, message) in std::mem::take(&mut self.held_proposals) {
            self.commit(n, &message);
        }
        self.settle();
    }

    /// Makes a node primary, if the control plane may choose it.
    pub(super) fn promote(&mut self, n: usize) -> bool {
        let (me, members) = (node(n), self.view.in_sync);
        let clean = members.minus(self.unclean);
        let fit = self.sites[n].replica.is_some()
            && members.has(me)
            && (!self.unclean.has(me) || clean.is_empty());
        if !fit {
            return false;
        }
        self.sites[n].deaf = false;
        if self.off == Some(Rule::NewEpoch) && self.view.primary == Some(me) {
            self.lead(n);
        } else {
            let epoch = self.view.epoch.next();
            self.tell(n, FromControl::Promise { epoch });
        }
        self.settle();
        true
    }

    /// The same, and time to remove members that are silent.
    pub(super) fn fail_over(&mut self, n: usize) {
        let may = self.promote(n);
        self.must(may, "G7: a member cannot be promoted");
        self.pass(1000);
        let opened = self.is_open(n);
        self.must(opened, "liveness: the new primary never opens");
    }

    pub(super) fn is_open(&self, n: usize) -> bool {
        self.sites[n].open == Some(self.view.epoch.0)
    }

    pub(super) fn is_member(&self, n: usize) -> bool {
        self.view.in_sync.has(node(n))
    }

    // ---- the application

    fn request(&mut self, n: usize, request: Request, asked: Asked) -> u64 {
        let req = ReqId(self.next_req);
        self.next_req += 1;
        let epoch = self.sites[n].open.unwrap_or(self.view.epoch.0);
        self.sites[n].asked.insert(req, (epoch, asked));
        self.event(n, Event::Request { req, request });
        req.0
    }

    /// Writes a block.
    pub(super) fn write(&mut self, n: usize, block: u64) -> u64 {
        self.now.0 += STEP_NS;
        let (first, cells) = (block * CELLS_PER_BLOCK, CELLS_PER_BLOCK);
        let epoch = self.sites[n].open.unwrap_or(self.view.epoch.0);
        let id = self.history.begin(self.now.0, epoch, first, cells, false);
        let data: Vec<u8> = (first..first + cells).flat_map(|c| stamp(id, c)).collect();
        let request = Request::Write {
            offset: first * CELL_BYTES,
            data: data.into(),
            fua: false,
        };
        self.request(n, request, Asked::Write { id, fua: false })
    }

    /// Writes a block and waits for the answer.
    pub(super) fn written(&mut self, n: usize, block: u64) {
        let req = self.write(n, block);
        self.settle();
        let acked = self.acked(req);
        self.must(acked, "liveness: a write is not answered");
    }

    /// Zeroes blocks.
    pub(super) fn zero(&mut self, n: usize, block: u64, count: u64) -> u64 {
        self.now.0 += STEP_NS;
        let (first, cells) = (block * CELLS_PER_BLOCK, count * CELLS_PER_BLOCK);
        let epoch = self.sites[n].open.unwrap_or(self.view.epoch.0);
        let id = self.history.begin(self.now.0, epoch, first, cells, true);
        let request = Request::Zero {
            offset: first * CELL_BYTES,
            len: cells * CELL_BYTES,
            fua: false,
        };
        self.request(n, request, Asked::Write { id, fua: false })
    }

    /// Reads a block; what comes of it is the checkers' business.
    pub(super) fn read(&mut self, n: usize, block: u64) -> u64 {
        self.now.0 += STEP_NS;
        let asked = Asked::Read {
            begun: self.now.0,
            first: block * CELLS_PER_BLOCK,
            len: GEOMETRY.block_bytes,
        };
        let request = Request::Read {
            offset: block * u64::from(GEOMETRY.block_bytes),
            len: GEOMETRY.block_bytes,
        };
        let req = self.request(n, request, asked);
        self.settle();
        req
    }

    /// Flushes.
    pub(super) fn flush(&mut self, n: usize) -> u64 {
        self.now.0 += STEP_NS;
        let covered = self.history.flush_begins();
        let req = self.request(n, Request::Flush, Asked::Flush { covered });
        self.settle();
        req
    }

    pub(super) fn acked(&self, req: u64) -> bool {
        self.answers.get(&req) == Some(&Ok(()))
    }

    pub(super) fn answered(&self, req: u64) -> bool {
        self.answers.contains_key(&req)
    }

    fn complete(&mut self, n: usize, req: ReqId, result: Result<Bytes, RequestError>) {
        let Some((epoch, asked)) = self.sites[n].asked.remove(&req) else {
            return;
        };
        self.answers.insert(req.0, result.clone().map(|_| ()));
        let Ok(bytes) = result else {
            if let Asked::Write { id, .. } = asked {
                self.history.forget(self.now.0, id);
            }
            return;
        };
        let now = self.now.0;
        let result = self.exclusive.completes(n, epoch);
        self.checked(result);
        let result = match asked {
            Asked::Read { begun, first, .. } => self.history.read(now, begun, first, &bytes),
            Asked::Write { id, .. } => {
                let one = self.writer.acks(n, epoch);
                let acked = one.and_then(|()| self.history.ack(now, id));
                let begun = self.history.begun(id);
                acked.and_then(|()| self.of_members(begun, |h, disk| h.holds(id, &disk.cached)))
            }
            Asked::Flush { covered } => {
                let held = self.of_members(now, |h, disk| h.holds_flushed(&covered, &disk.stable));
                self.history.flushed(&covered);
                held
            }
        };
        self.checked(result);
    }

    /// Checks every member's disk that has not lost its cache since `begun`.
    fn of_members(
        &self,
        begun: u64,
        holds: impl Fn(&History, &Disk) -> Result<(), String>,
    ) -> Result<(), String> {
        for m in self.view.in_sync.iter() {
            let site = &self.sites[usize::from(m.0)];
            if site.lost_at < begun {
                holds(&self.history, &site.disk)
                    .map_err(|e| format!("G1: acknowledged, but member {m} lacks it: {e}"))?;
            }
        }
        Ok(())
    }

    // ---- the end

    /// Nothing is held any more, every node is up: the cluster must come to full redundancy (G7), with everything that
    /// was acknowledged.
    pub(super) fn heal(&mut self) {
        self.held_lanes.clear();
        self.apart.clear();
        self.commit_held();
        for n in 0..self.sites.len() {
            self.sites[n].deaf = false;
            self.release_disk(n);
            if std::mem::take(&mut self.sites[n].disk.broken) || self.sites[n].stopped {
                self.kill(n);
                self.sites[n].stopped = false;
            }
            self.start(n);
        }
        self.publish();
        for _ in 0..HEAL_MS / 500 {
            let serves = (0..self.sites.len()).any(|n| {
                self.view.primary == Some(node(n))
                    && self.sites[n].open.is_some()
                    && self.is_open(n)
            });
            if !serves {
                let _ = (0..self.sites.len()).any(|n| self.promote(n));
            }
            self.pass(500);
        }
        self.compare();
        if self.view.in_sync != self.view.data_nodes {
            let what = format!("G7: in sync are only {:?} in the end", self.view.in_sync);
            return self.checked(Err(what));
        }
        self.all_equal();
    }

    fn all_equal(&mut self) {
        let area = GEOMETRY.bytes() as usize;
        let first = self.sites[0].disk.cached[..area].to_vec();
        let result = self.history.check_image(self.now.0, &first);
        self.checked(result.map_err(|e| format!("at the end: {e}")));
        for n in 1..self.sites.len() {
            let own = &self.sites[n].disk.cached[..area];
            if let Some(block) = convergence::differ(&first, own, GEOMETRY.block_bytes as usize) {
                let what = format!("G7: block {block} differs between nodes 0 and {n} in the end");
                self.checked(Err(what));
            }
        }
        for n in 0..self.sites.len() {
            let bits = dirty::decode(&self.sites[n].disk.cached)
                .ok()
                .and_then(|r| convergence::dirty(&r));
            if let Some((peer, block)) = bits {
                let what = format!("G7: node {n} calls block {block} dirty for {peer} in the end");
                self.checked(Err(what));
            }
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
