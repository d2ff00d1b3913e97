//! What it costs, on volumes of real geometry: blocks of 4 KiB, extents of 4 MiB, sparse disks in memory, every
//! byte read, written and sent counted.

use bytes::Bytes;
use holdfast_meta::{
    BitmapStart, FORMAT_VERSION, Layout, PEERS_MAX, Superblock, initialise, locate,
    superblock_range,
};
use holdfast_replicator::{
    Action, Config, DiskOp, Event, FromControl, IoId, Now, Replica, ReqId, Request, Timing,
    ToControl, View,
};
use holdfast_types::{
    DiskState, Epoch, Gen, Geometry, Incarnation, NodeId, NodeSet, Run, VolumeId,
};
use holdfast_wire::{Encoder, Frame, Lane};
use std::collections::{BTreeMap, VecDeque};

const BLOCK: u64 = 4096;
const MIB: u64 = 1 << 20;
const TIB: u64 = 1 << 40;
const LOG_SLOTS: u32 = 256;

/// A sparse disk.
#[derive(Default)]
struct Disk {
    blocks: BTreeMap<u64, Bytes>,
    data_end: u64,
    /// Bytes of data read and written, metadata not counted.
    read: u64,
    written: u64,
    zeroed: u64,
}

impl Disk {
    fn read(&self, offset: u64, len: u64) -> Bytes {
        let mut out = vec![0; len as usize];
        let blocks = self
            .blocks
            .range(offset / BLOCK..(offset + len).div_ceil(BLOCK));
        for (block, data) in blocks {
            let at = (block * BLOCK - offset) as usize;
            out[at..at + data.len()].copy_from_slice(data);
        }
        out.into()
    }

    fn write(&mut self, offset: u64, data: &Bytes) {
        assert!(offset.is_multiple_of(BLOCK) && (data.len() as u64).is_multiple_of(BLOCK));
        for (i, chunk) in data.chunks(BLOCK as usize).enumerate() {
            let block = offset / BLOCK + i as u64;
            if chunk.iter().all(|b| *b == 0) {
                self.blocks.remove(&block);
            } else {
                self.blocks.insert(block, Bytes::copy_from_slice(chunk));
            }
        }
    }

    fn apply(&mut self, op: &DiskOp) -> Bytes {
        let is_data = |offset: &u64| *offset < self.data_end;
        match op {
            DiskOp::Read { offset, len } => {
                self.read += u64::from(*len) * u64::from(is_data(offset));
                self.read(*offset, u64::from(*len))
            }
            DiskOp::Write { offset, data, .. } => {
                self.written += data.len() as u64 * u64::from(is_data(offset));
                self.write(*offset, data);
                Bytes::new()
            }
            DiskOp::Zero { offset, len, .. } => {
                self.zeroed += len;
                for block in offset / BLOCK..(offset + len) / BLOCK {
                    self.blocks.remove(&block);
                }
                Bytes::new()
            }
            DiskOp::Flush => Bytes::new(),
        }
    }
}

struct Side {
    replica: Option<Replica>,
    disk: Disk,
    queue: VecDeque<(IoId, DiskOp)>,
    store_bytes: u64,
}

/// Two replicas.
struct Pair {
    sides: [Side; 2],
    now: Now,
    view: View,
    connected: bool,
    frames: VecDeque<(usize, Frame)>,
    /// Bytes on the wire since they were last set to zero.
    bulk: u64,
    write_lane: u64,
    next_req: u64,
    answered: u64,
}

fn both() -> NodeSet {
    [NodeId(0), NodeId(1)].into_iter().collect()
}

impl Pair {
    fn new(bytes: u64) -> Self {
        let geometry = Geometry::of_bytes(bytes);
        let mut pair = Self {
            sides: [0, 1].map(|n| Side::new(n, geometry)),
            now: Now(1_000_000_000),
            view: View {
                generation: Gen(1),
                epoch: Epoch(0),
                primary: None,
                in_sync: both(),
                doubtful: NodeSet::EMPTY,
                data_nodes: both(),
                suspect: NodeSet::EMPTY,
                lineage: 1,
            },
            connected: false,
            frames: VecDeque::new(),
            bulk: 0,
            write_lane: 0,
            next_req: 1,
            answered: 0,
        };
        pair.start(0);
        pair.start(1);
        pair.connect();
        let epoch = Epoch(1);
        pair.event(0, Event::Control(FromControl::Promise { epoch }));
        pair.settle();
        let until = Now(u64::MAX);
        pair.event(0, Event::Control(FromControl::Lease { until }));
        pair.settle();
        pair.pass(300);
        pair
    }

    fn start(&mut self, n: usize) {
        let side = &mut self.sides[n];
        let (offset, len) = superblock_range(side.store_bytes).unwrap();
        let located = locate(side.store_bytes, &side.disk.read(offset, len)).unwrap();
        let (from, len) = located.layout.region();
        let recovered = located.recover(&side.disk.read(from, len)).unwrap();
        let cfg = Config {
            me: NodeId(n as u8),
            data_nodes: both(),
            volume: VolumeId(7),
            timing: Timing::default(),
            distrust: None,
            off: None,
        };
        let mut out = Vec::new();
        side.replica = Some(Replica::start(cfg, recovered, 1, self.now, &mut out).unwrap());
        self.perform(n, out);
        self.settle();
        let view = self.view;
        self.event(n, Event::Control(FromControl::View(view)));
        self.settle();
    }

    fn connect(&mut self) {
        if !std::mem::replace(&mut self.connected, true) {
            for n in 0..2 {
                let peer = NodeId(1 - n as u8);
                self.event(n, Event::PeerUp { peer });
            }
        }
    }

    fn cut(&mut self) {
        if std::mem::replace(&mut self.connected, false) {
            self.frames.clear();
            for n in 0..2 {
                let peer = NodeId(1 - n as u8);
                self.event(n, Event::PeerDown { peer });
            }
        }
    }

    fn event(&mut self, n: usize, event: Event) {
        let mut out = Vec::new();
        if let Some(replica) = &mut self.sides[n].replica {
            replica.handle(self.now, event, &mut out);
        }
        self.perform(n, out);
    }

    fn perform(&mut self, n: usize, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Disk { io, op } => self.sides[n].queue.push_back((io, op)),
                Action::MakeRoom { .. } => panic!("nobody makes it larger"),
                Action::Send { frame, .. } => {
                    let encoded = Encoder::new(VolumeId(7)).encode(&frame).unwrap();
                    let bytes = encoded.head.len() + encoded.data.map_or(0, |d| d.len());
                    match frame.lane() {
                        Lane::Bulk => self.bulk += bytes as u64,
                        Lane::Write => self.write_lane += bytes as u64,
                    }
                    self.frames.push_back((1 - n, frame));
                }
                Action::Disconnect { .. } => self.cut(),
                Action::Complete { result, .. } => {
                    result.expect("no faults here");
                    self.answered += 1;
                }
                Action::Control(ToControl::ProposeSet {
                    generation,
                    in_sync,
                    ..
                }) if generation == self.view.generation => {
                    self.view.generation = generation.next();
                    self.view.in_sync = in_sync;
                    self.publish();
                }
                Action::Control(ToControl::Promised { epoch }) => {
                    self.view.epoch = epoch;
                    self.view.generation = self.view.generation.next();
                    self.view.primary = Some(NodeId(n as u8));
                    let view = self.view;
                    self.event(n, Event::Control(FromControl::Lead(view)));
                    self.publish();
                }
                Action::Control(_) | Action::Note(_) | Action::Save(_) => {}
            }
        }
    }

    fn publish(&mut self) {
        for n in 0..2 {
            let view = self.view;
            self.event(n, Event::Control(FromControl::View(view)));
        }
    }

    fn settle(&mut self) {
        loop {
            let mut moved = false;
            for n in 0..2 {
                while let Some((io, op)) = self.sides[n].queue.pop_front() {
                    let result = Ok(self.sides[n].disk.apply(&op));
                    self.event(n, Event::DiskDone { io, result });
                    moved = true;
                }
            }
            while let Some((to, frame)) = self.frames.pop_front() {
                let peer = NodeId(1 - to as u8);
                self.event(to, Event::Frame { peer, frame });
                moved = true;
            }
            if !moved {
                return;
            }
        }
    }

    fn pass(&mut self, ms: u64) {
        let end = self.now.plus_ms(ms);
        while self.now < end {
            self.now = self.now.plus_ms(10);
            for n in 0..2 {
                self.event(n, Event::Tick);
            }
            self.settle();
        }
    }

    fn request(&mut self, request: Request) {
        let req = ReqId(self.next_req);
        self.next_req += 1;
        self.event(0, Event::Request { req, request });
        self.settle();
    }

    fn write(&mut self, offset: u64, len: u64, fill: u8) {
        let data = Bytes::from(vec![fill; len as usize]);
        self.request(Request::Write {
            offset,
            data,
            fua: false,
        });
    }

    /// The second replica is out of the set, and reachable again.
    fn lose_second(&mut self) {
        self.cut();
        self.pass(1000);
        assert_eq!(self.view.in_sync, NodeSet::only(NodeId(0)));
    }

    fn resync(&mut self) {
        (self.bulk, self.write_lane) = (0, 0);
        for side in &mut self.sides {
            (side.disk.read, side.disk.written, side.disk.zeroed) = (0, 0, 0);
        }
        self.connect();
        for _ in 0..200 {
            self.pass(50);
            if self.view.in_sync == both() {
                return;
            }
        }
        panic!("not in sync again");
    }
}

impl Side {
    fn new(n: usize, geometry: Geometry) -> Self {
        let store_bytes = Layout::bytes_needed(geometry, PEERS_MAX);
        let layout = Layout::new(geometry, store_bytes, PEERS_MAX, LOG_SLOTS).unwrap();
        let mut superblock = Superblock {
            version: FORMAT_VERSION,
            cluster: 1,
            volume: VolumeId(7),
            node: NodeId(n as u8),
            geometry,
            capacity: geometry.blocks,
            tail_unknown: false,
            page_bytes: layout.page_bytes,
            incarnation: Incarnation(100 + n as u64),
            run: Run(0),
            boot_id: 0,
            clean: true,
            promised: Epoch(0),
            epoch: Epoch(0),
            disk: DiskState::UpToDate,
            lineage: 0,
            log_slots: LOG_SLOTS,
            log_floor: 0,
            peer_slots: [None; 7],
            seen: Default::default(),
            found: Default::default(),
            update: 0,
        };
        superblock.give_slot(NodeId(1 - n as u8)).unwrap();
        let mut disk = Disk {
            data_end: geometry.bytes(),
            ..Disk::default()
        };
        for (offset, bytes) in initialise(&layout, &superblock, BitmapStart::Clean).unwrap() {
            disk.write(offset, &bytes);
        }
        Self {
            replica: None,
            disk,
            queue: VecDeque::new(),
            store_bytes,
        }
    }
}

/// A small deterministic stream of numbers.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (self.0 >> 33) % n
    }
}

#[test]
fn a_tebibyte_with_64_mib_dirty_costs_64_mib() {
    let mut pair = Pair::new(TIB);
    pair.lose_second();
    // In 64 places all over the volume.
    let dirty = 64 * MIB;
    for i in 0..64 {
        pair.write(i * (TIB / 64) + i * 12 * BLOCK, MIB, i as u8 + 1);
    }
    pair.resync();
    let source = &pair.sides[0].disk;
    let target = &pair.sides[1].disk;
    assert!(
        source.read <= dirty + dirty / 20,
        "{} bytes read",
        source.read
    );
    assert_eq!(target.read, 0, "what is known to differ is not compared");
    assert_eq!(target.written, dirty);
    assert!(
        pair.bulk <= dirty + dirty / 20,
        "{} bytes for {dirty}",
        pair.bulk
    );
    // Runs of what is dirty, hellos, closes, the cut: not a bitmap of 32 MiB.
    assert!(
        pair.write_lane < 64 * 1024,
        "{} bytes of handshake",
        pair.write_lane
    );
    let data = |n: usize| pair.sides[n].disk.blocks.range(..TIB / BLOCK);
    assert!(data(0).eq(data(1)));
}

#[test]
fn scattered_blocks_cost_five_percent_more_than_they_are() {
    let mut pair = Pair::new(1 << 30);
    pair.lose_second();
    let mut numbers = Numbers(5);
    let mut dirty = std::collections::BTreeSet::new();
    for i in 0..3000u64 {
        let block = numbers.below((1 << 30) / BLOCK);
        pair.write(block * BLOCK, BLOCK, i as u8 | 1);
        dirty.insert(block);
    }
    let dirty = dirty.len() as u64 * BLOCK;
    pair.resync();
    assert_eq!(pair.sides[1].disk.written, dirty);
    assert!(
        pair.bulk * 100 <= dirty * 105,
        "{} bytes for {dirty}",
        pair.bulk
    );
}

#[test]
fn discarded_gibibytes_travel_as_a_few_frames() {
    let mut pair = Pair::new(16 << 30);
    for i in 0..64 {
        pair.write(i * 200 * MIB, MIB, 7);
    }
    pair.lose_second();
    pair.request(Request::Zero {
        offset: 0,
        len: 12 << 30,
        fua: false,
    });
    pair.resync();
    assert_eq!(pair.sides[1].disk.written, 0);
    assert_eq!(pair.sides[1].disk.zeroed, 12 << 30);
    assert!(pair.bulk < 4 * MIB, "{} bytes", pair.bulk);
    assert!(
        pair.sides[1]
            .disk
            .blocks
            .range(..(12 << 30) / BLOCK)
            .next()
            .is_none()
    );
}

#[test]
fn a_hot_spot_writes_the_activity_log_once_in_hundred_writes_at_most() {
    let mut pair = Pair::new(64 << 30);
    let mut numbers = Numbers(11);
    let log_writes =
        |pair: &Pair, n: usize| pair.sides[n].replica.as_ref().unwrap().status().log_writes;
    let mut round = |pair: &mut Pair, writes: u64| {
        for i in 0..writes {
            // 98 of 100 into a hot 400 MiB, the rest anywhere.
            let block = if numbers.below(1000) < 998 {
                numbers.below(400 * MIB / BLOCK)
            } else {
                numbers.below((64 << 30) / BLOCK)
            };
            pair.write(block * BLOCK, BLOCK, i as u8);
        }
        pair.pass(100);
    };
    round(&mut pair, 5000);
    let before = [0, 1].map(|n| log_writes(&pair, n));
    round(&mut pair, 20_000);
    for (n, before) in before.into_iter().enumerate() {
        let more = log_writes(&pair, n) - before;
        assert!(
            more <= 200,
            "replica {n}: {more} log writes for 20000 writes"
        );
    }
}

#[test]
fn metadata_takes_40_mib_per_tebibyte_and_peer_at_most() {
    for peers in 1..=7u8 {
        let geometry = Geometry::of_bytes(TIB);
        let metadata = Layout::bytes_needed(geometry, peers) - TIB;
        assert!(
            metadata <= u64::from(peers) * 40 * MIB,
            "{metadata} bytes for {peers} peers"
        );
    }
}
