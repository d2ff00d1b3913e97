//! G4 on the level of bytes, at every write point: real sequences of metadata writes, several under way at
//! once, are cut off after each step with every subset of the sectors that are not stable yet. What is then
//! read is exactly one of the states that were stable or under way, piece by piece; and whatever differs
//! from a peer is named by an extent of the log or a bit.
//!
//! The writer here keeps the order the replicator keeps: data only under an extent whose transaction has
//! ended; an extent leaves only after the bits under it are stable. Each fault that [`Fault`] names breaks
//! one of these rules, and must be found.

mod power;

use holdfast_meta::{
    Bitmap, BitmapStart, FORMAT_VERSION, Layout, MetaError, Owner, PEERS_MAX, Recovered,
    SECTOR_BYTES, Superblock, Transaction, Unsaved, initialise, locate, superblock_range,
};
use holdfast_types::{BlockRange, DiskState, Epoch, Geometry, Incarnation, NodeId, Run, VolumeId};
use power::{Disk, EXHAUSTIVE_MAX, Rng};
use std::collections::BTreeSet;

const PEERS: [NodeId; 2] = [NodeId(1), NodeId(2)];
/// Extents of the log: few, so that they are evicted all the time.
const SLOTS: usize = 4;

/// The same as [`EXHAUSTIVE_MAX`] where sectors are cut into pieces: beside the point, so not all.
const TEARING_EXHAUSTIVE_MAX: usize = 6;

/// A rule that the writer breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// The transaction that drops extents does not wait for the bits under them.
    EvictBeforeBits,
    /// Bits are taken for stable when they are only written.
    BitsWithoutFlush,
    /// Data is written before the transaction that names its extent has ended.
    DataBeforeLog,
    /// Every superblock goes to the same slot.
    SuperblockInPlace,
    /// Every transaction goes to the same place of the ring.
    LogInPlace,
    /// A page is written while an earlier write of it is under way.
    PageTwice,
    /// The superblock of a new replica does not wait for the rest.
    SuperblockFirst,
}

/// What is under way.
#[derive(Clone, Debug)]
enum Flight {
    Superblock(Box<Superblock>),
    Log(Transaction),
    Page {
        peer: usize,
        page: u32,
        version: Bitmap,
    },
}

struct Writer {
    rng: Rng,
    fault: Option<Fault>,
    layout: Layout,
    disk: Disk,
    next: u64,
    flights: Vec<(u64, Flight)>,
    superblock: Superblock,
    stable_superblock: Superblock,
    log: Transaction,
    stable_log: Transaction,
    bits: [Bitmap; 2],
    /// As they are stable, and each version of a page that is under way stands in `flights`.
    stable_bits: [Bitmap; 2],
    /// Blocks of the data that the first peer lacks.
    differs: BTreeSet<u64>,
    images: u64,
    /// The disk keeps less than its promise: sectors themselves tear.
    tears: bool,
}

fn superblock(geometry: Geometry, page_bytes: u32) -> Superblock {
    let mut superblock = Superblock {
        version: FORMAT_VERSION,
        cluster: 7,
        volume: VolumeId(8),
        node: NodeId(0),
        geometry,
        capacity: geometry.blocks,
        tail_unknown: false,
        page_bytes,
        incarnation: Incarnation(9),
        run: Run(1),
        boot_id: 10,
        clean: true,
        promised: Epoch(0),
        epoch: Epoch(0),
        disk: DiskState::UpToDate,
        lineage: 11,
        log_slots: SLOTS as u32,
        log_floor: 0,
        peer_slots: [None; PEERS_MAX as usize],
        seen: Default::default(),
        found: Default::default(),
        update: 1,
    };
    for node in PEERS {
        superblock.give_slot(node).unwrap();
    }
    superblock
}

fn recover(image: &[u8]) -> Result<Recovered, MetaError> {
    let bytes = image.len() as u64;
    let part = |(at, len): (u64, u64)| &image[at as usize..(at + len) as usize];
    let located = locate(bytes, part(superblock_range(bytes)?))?;
    let region = located.layout.region();
    located.recover(part(region))
}

impl Writer {
    /// A new replica on a store that held `garbage`; its making is cut off at every point too.
    fn new(seed: u64, page_bytes: u32, unit: usize, fault: Option<Fault>) -> Result<Self, String> {
        // Two pages of bits at the small size, one of eight sectors at the large one.
        let geometry = Geometry {
            block_bytes: 64,
            blocks: 8000,
            extent_blocks: 500,
        };
        let superblock = superblock(geometry, page_bytes);
        let need = Layout::bytes_needed_with_page(geometry, PEERS_MAX, page_bytes);
        let layout =
            Layout::with_page(geometry, need, PEERS_MAX, SLOTS as u32, page_bytes).unwrap();
        let mut rng = Rng(seed);
        let garbage = [0, 0xff, rng.next() as u8][rng.below(3) as usize];
        let data_end = layout.region_offset as usize;
        let disk = Disk::new(vec![garbage; need as usize], unit, data_end, unit);
        let log = Transaction {
            number: 0,
            incarnation: superblock.incarnation,
            run: superblock.run,
            active: vec![],
        };
        let bits = [Bitmap::new(&layout), Bitmap::new(&layout)];
        let mut writer = Self {
            rng,
            fault,
            layout,
            disk,
            next: 0,
            flights: Vec::new(),
            stable_superblock: superblock.clone(),
            superblock,
            stable_log: log.clone(),
            log,
            stable_bits: bits.clone(),
            bits,
            differs: BTreeSet::new(),
            images: 0,
            tears: unit < SECTOR_BYTES as usize,
        };
        writer.make()?;
        Ok(writer)
    }

    /// The first writes: all but the last in any order, then the superblock. Until that has ended there is no
    /// replica, or the whole one.
    fn make(&mut self) -> Result<(), String> {
        let mut writes = initialise(&self.layout, &self.superblock, BitmapStart::Clean).unwrap();
        let last = writes.pop().expect("the superblock");
        let mut under_way = Vec::new();
        for (offset, bytes) in writes {
            let write = self.submit(offset, &bytes);
            under_way.push(write);
            self.blank_or_new()?;
            if self.rng.one_in(2) {
                let ended = under_way.swap_remove(self.rng.below(under_way.len() as u64) as usize);
                self.disk.written(ended, false);
            }
        }
        under_way.iter().for_each(|&w| self.disk.written(w, false));
        if self.fault != Some(Fault::SuperblockFirst) {
            self.disk.flush(u64::MAX);
            self.blank_or_new()?;
            self.disk.flushed(u64::MAX);
        }
        let write = self.submit(last.0, &last.1);
        self.blank_or_new()?;
        self.disk.written(write, true);
        self.check()
    }

    fn blank_or_new(&mut self) -> Result<(), String> {
        let mut wrong = None;
        let mut rng = self.rng.clone();
        self.disk.images(EXHAUSTIVE_MAX, &mut rng, |image| {
            let new = match recover(image) {
                Err(MetaError::Blank | MetaError::Foreign | MetaError::Damaged) => return,
                Err(other) => Err(format!("a half-made replica reads as {other}")),
                Ok(found) if found.damaged_sectors > 0 || !found.log.active.is_empty() => {
                    Err(format!("a half-made replica is one:\n{found}"))
                }
                Ok(_) => Ok(()),
            };
            wrong = wrong.take().or(new.err());
        });
        wrong.map_or(Ok(()), Err)
    }

    fn submit(&mut self, offset: u64, bytes: &[u8]) -> u64 {
        self.next += 1;
        self.disk.write(self.next, offset, bytes);
        self.next
    }

    fn fly(&mut self, offset: u64, bytes: &[u8], flight: Flight) {
        let write = self.submit(offset, bytes);
        self.flights.push((write, flight));
    }

    fn flying(&self, is: impl Fn(&Flight) -> bool) -> bool {
        self.flights.iter().any(|(_, f)| is(f))
    }

    /// One step: something begins, or something ends. Then the power may fail.
    fn step(&mut self) -> Result<(), String> {
        match self.rng.below(8) {
            0 => self.change_superblock(),
            1 | 2 => self.activate(),
            3 => self.write_data(),
            4 => self.clear_bits(),
            5 => self.save(Unsaved::Clear),
            _ if !self.flights.is_empty() => self.end_one(),
            _ => self.other_peer(),
        }
        self.check()
    }

    /// A promise, a new run, a mark, another state: one superblock write at a time.
    fn change_superblock(&mut self) {
        if self.flying(|f| matches!(f, Flight::Superblock(_))) {
            return;
        }
        let s = &mut self.superblock;
        match self.rng.below(5) {
            0 => s.promised.0 += 1,
            1 => s.run.0 += 1,
            2 => s.clean = !s.clean,
            3 => s.epoch = s.promised,
            _ => {
                let states = [DiskState::Syncing, DiskState::UpToDate, DiskState::Outdated];
                s.disk = states[self.rng.below(3) as usize];
            }
        }
        s.update += if self.fault == Some(Fault::SuperblockInPlace) {
            2
        } else {
            1
        };
        let (offset, bytes) = s.write(&self.layout);
        let flight = Flight::Superblock(Box::new(s.clone()));
        self.fly(offset, &bytes, flight);
    }

    /// Another extent becomes active; one leaves for it, once the bits under it are stable.
    fn activate(&mut self) {
        if self.flying(|f| matches!(f, Flight::Log(_))) {
            return;
        }
        let extent = self.rng.below(self.layout.geometry.extents()) as u32;
        let mut active = self.stable_log.active.clone();
        if active.contains(&extent) {
            return;
        }
        if active.len() == SLOTS {
            let leaving = active.remove(self.rng.below(SLOTS as u64) as usize);
            let range = self.layout.geometry.extent_range(leaving);
            let lacking: Vec<u64> = self
                .differs
                .iter()
                .copied()
                .filter(|b| (range.first..range.end()).contains(b))
                .collect();
            for block in lacking {
                self.bits[0].set(BlockRange::new(block, 1));
            }
            if self.fault != Some(Fault::EvictBeforeBits) && !self.bits[0].is_durable_in(range) {
                // Now they are saved; the extent leaves another time.
                return self.save(Unsaved::Set);
            }
        }
        active.push(extent);
        self.log.active = active;
        self.log.number += if self.fault == Some(Fault::LogInPlace) {
            8
        } else {
            1
        };
        let (offset, bytes) = self.log.write(&self.layout).unwrap();
        let flight = Flight::Log(self.log.clone());
        self.fly(offset, &bytes, flight);
    }

    /// A block that the first peer does not get.
    fn write_data(&mut self) {
        let log = if self.fault == Some(Fault::DataBeforeLog) {
            &self.log
        } else {
            &self.stable_log
        };
        // Not into an extent that is just leaving.
        let stays = |e: &&u32| self.log.active.contains(e);
        let Some(&extent) = log.active.iter().filter(stays).max() else {
            return;
        };
        let range = self.layout.geometry.extent_range(extent);
        self.differs
            .insert(range.first + self.rng.below(range.count));
    }

    /// The peer has got some blocks: bits are cleared, in memory first.
    fn clear_bits(&mut self) {
        let first = self.rng.below(self.layout.geometry.blocks);
        let range = BlockRange::new(first, 1 + self.rng.below(900));
        self.bits[0].clear(range);
        self.differs
            .retain(|b| !(range.first..range.end()).contains(b));
    }

    fn other_peer(&mut self) {
        let first = self.rng.below(self.layout.geometry.blocks);
        let range = BlockRange::new(first, 1 + self.rng.below(5000));
        if self.rng.one_in(2) {
            self.bits[1].set(range);
        } else {
            self.bits[1].clear(range);
        }
    }

    fn save(&mut self, least: Unsaved) {
        for (peer, node) in PEERS.into_iter().enumerate() {
            for page in self.bits[peer].pages_unsaved(least) {
                if self.fault == Some(Fault::PageTwice) {
                    self.bits[peer].saved(page);
                }
                let owner = Owner {
                    incarnation: self.superblock.incarnation,
                    node,
                };
                let Some(bytes) = self.bits[peer].begin_save(page, owner) else {
                    continue; // under way
                };
                let offset = self.layout.bitmap_page_offset(peer as u8, page);
                let version = self.bits[peer].clone();
                self.fly(
                    offset,
                    &bytes,
                    Flight::Page {
                        peer,
                        page,
                        version,
                    },
                );
            }
        }
    }

    /// One of the writes under way ends.
    fn end_one(&mut self) {
        let i = self.rng.below(self.flights.len() as u64) as usize;
        let (write, flight) = self.flights.remove(i);
        let lazy =
            matches!(flight, Flight::Page { .. }) && self.fault == Some(Fault::BitsWithoutFlush);
        self.disk.written(write, !lazy);
        match flight {
            Flight::Superblock(superblock) => self.stable_superblock = *superblock,
            Flight::Log(log) => self.stable_log = log,
            Flight::Page {
                peer,
                page,
                version,
            } => {
                self.bits[peer].saved(page);
                let owner = Owner {
                    incarnation: self.superblock.incarnation,
                    node: PEERS[peer],
                };
                let bytes = version.page(page, owner);
                self.stable_bits[peer]
                    .load_page(page, owner, &bytes)
                    .unwrap();
            }
        }
    }

    /// The power fails now.
    fn check(&mut self) -> Result<(), String> {
        let mut result = Ok(());
        let mut images = 0;
        let mut rng = self.rng.clone();
        let exhaustive = if self.tears {
            TEARING_EXHAUSTIVE_MAX
        } else {
            EXHAUSTIVE_MAX
        };
        self.disk.images(exhaustive, &mut rng, |image| {
            images += 1;
            if result.is_ok() {
                result = self.legal(image);
            }
        });
        self.images += images;
        result
    }

    fn legal(&self, image: &[u8]) -> Result<(), String> {
        let found = recover(image).map_err(|e| format!("cannot be read: {e}"))?;
        if found.damaged_sectors > 0 && !self.tears {
            return Err(format!("{} damaged sectors", found.damaged_sectors));
        }
        // The superblock: the stable one or the one under way. No promise, run or mark is lost or invented.
        let under_way = |f: &Flight| matches!(f, Flight::Superblock(s) if **s == found.superblock);
        if found.superblock != self.stable_superblock && !self.flying(under_way) {
            return Err(format!(
                "superblock {:?}, stable is {:?}",
                found.superblock, self.stable_superblock
            ));
        }
        // The log: the stable transaction or the one under way.
        let log = (found.log.number, &found.log.active);
        let under_way = |f: &Flight| matches!(f, Flight::Log(t) if (t.number, &t.active) == log);
        if log != (self.stable_log.number, &self.stable_log.active) && !self.flying(under_way) {
            return Err(format!("log {log:?}, stable is {:?}", self.stable_log));
        }
        // The bits: every sector as it is stable or as it is under way.
        for (peer, (_, bits)) in found.bitmaps.iter().enumerate() {
            if *bits != self.stable_bits[peer] {
                self.legal_bits(peer, bits)?;
            }
        }
        // G4: what differs is named.
        let extent = |block: &u64| self.layout.geometry.extent_of(*block);
        match self
            .differs
            .iter()
            .find(|&b| !found.log.active.contains(&extent(b)) && !found.bitmaps[0].1.get(*b))
        {
            Some(block) => Err(format!("G4: block {block} differs without a trace")),
            None => Ok(()),
        }
    }

    fn legal_bits(&self, peer: usize, bits: &Bitmap) -> Result<(), String> {
        /// Bits of one sector.
        const SECTOR_BITS: u64 = 63 * 64;
        let blocks = bits.blocks();
        for first in (0..blocks).step_by(SECTOR_BITS as usize) {
            let sector = BlockRange::new(first, SECTOR_BITS.min(blocks - first));
            let same = |other: &Bitmap| sector_runs(bits, sector).eq(sector_runs(other, sector));
            let page = bits.page_of(first);
            let under_way = |f: &Flight| matches!(f, Flight::Page { peer: p, page: q, version } if *p == peer && *q == page && same(version));
            // A torn sector is seen, and counts as all dirty.
            let torn = self.tears && bits.all(sector);
            if !same(&self.stable_bits[peer]) && !self.flying(under_way) && !torn {
                return Err(format!("bits of {} from {first}: {bits:?}", PEERS[peer]));
            }
        }
        Ok(())
    }
}

/// The runs of set bits of a sector.
fn sector_runs(bits: &Bitmap, sector: BlockRange) -> impl Iterator<Item = (u64, u64)> + '_ {
    let mut from = sector.first;
    std::iter::from_fn(move || {
        let run = bits.next_set_run(from).filter(|r| r.first < sector.end())?;
        from = run.end();
        Some((run.first, run.end().min(sector.end())))
    })
}

/// Runs a writer for some steps; the number of images looked at.
fn run(
    seed: u64,
    page_bytes: u32,
    unit: usize,
    steps: u32,
    fault: Option<Fault>,
) -> Result<u64, String> {
    let mut writer = Writer::new(seed, page_bytes, unit, fault)?;
    for _ in 0..steps {
        writer.step()?;
    }
    Ok(writer.images)
}

#[test]
fn every_subset_of_sectors_at_every_write_point_is_a_legal_state() {
    let mut images = 0;
    for seed in 0..8 {
        for (page_bytes, unit, steps) in [
            (512, 512, 300),
            (4096, 4096, 300),
            (4096, 512, 40),
            (512, 128, 60),
        ] {
            images += run(seed, page_bytes, unit, steps, None).unwrap_or_else(|e| {
                panic!("seed {seed}, pages of {page_bytes}, units of {unit}: {e}")
            });
        }
    }
    assert!(images > 10_000, "{images}");
}

#[test]
fn every_planted_fault_is_found() {
    use Fault::*;
    let faults = [
        (EvictBeforeBits, "G4"),
        (BitsWithoutFlush, "bits"),
        (DataBeforeLog, "G4"),
        (SuperblockInPlace, "cannot be read"),
        (LogInPlace, "log"),
        (PageTwice, "bits"),
        (SuperblockFirst, "half-made"),
    ];
    for (fault, what) in faults {
        // A superblock and a transaction of few extents are one sector: only one that tears shows these two.
        let unit = match fault {
            SuperblockInPlace => 128,
            LogInPlace => 32,
            _ => 512,
        };
        let found = (0..20).find_map(|seed| run(seed, 512, unit, 300, Some(fault)).err());
        let found = found.unwrap_or_else(|| panic!("{fault:?} was not found"));
        println!("{fault:?}: {found}");
        assert!(found.contains(what), "{fault:?} was found as: {found}");
    }
}
