//! G4 on the level of bytes: a crash in the middle of any metadata write leaves a region that reads as
//! before the write or as after it; no byte of anything makes the reader panic.

use bytes::Bytes;
use holdfast_meta::{
    Bitmap, BitmapStart, COUNTER_MAX, FORMAT_VERSION, LOG_SLOTS_MIN, Layout, Located, MetaError,
    Owner, PEERS_MAX, Recovered, SECTOR_BYTES, Superblock, Transaction, Unsaved, initialise,
    locate, locate_among, recover_log, superblock_range,
};
use holdfast_types::{BlockRange, DiskState, Epoch, Geometry, Incarnation, NodeId, Run, VolumeId};
use proptest::prelude::*;

const SECTOR: usize = SECTOR_BYTES as usize;
const GEOMETRY: Geometry = Geometry {
    block_bytes: 64,
    blocks: 9000,
    extent_blocks: 16,
};
const PEERS: [NodeId; 2] = [NodeId(1), NodeId(2)];

fn superblock(page_bytes: u32) -> Superblock {
    let mut superblock = Superblock {
        version: FORMAT_VERSION,
        cluster: 7,
        volume: VolumeId(8),
        node: NodeId(0),
        geometry: GEOMETRY,
        capacity: GEOMETRY.blocks,
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
        log_slots: 100,
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

/// A store in memory that can tear a write.
struct Store {
    bytes: Vec<u8>,
}

impl Store {
    fn new(layout: &Layout, superblock: &Superblock, garbage: u8) -> Self {
        // What was there before must not matter.
        let mut store = Self {
            bytes: vec![garbage; layout.region_end as usize],
        };
        for (offset, bytes) in initialise(layout, superblock, BitmapStart::Clean).unwrap() {
            store.write(offset, &bytes, u128::MAX);
        }
        store
    }
    /// Writes the sectors whose bit in `arrive` is set.
    fn write(&mut self, offset: u64, bytes: &Bytes, arrive: u128) {
        assert!(offset.is_multiple_of(SECTOR as u64) && bytes.len().is_multiple_of(SECTOR));
        for (i, sector) in bytes
            .chunks(SECTOR)
            .enumerate()
            .filter(|(i, _)| arrive >> i & 1 == 1)
        {
            let at = offset as usize + i * SECTOR;
            self.bytes[at..at + SECTOR].copy_from_slice(sector);
        }
    }
    fn part(&self, (offset, len): (u64, u64)) -> &[u8] {
        &self.bytes[offset as usize..(offset + len) as usize]
    }
    fn locate(&self) -> Result<Located, MetaError> {
        let store_bytes = self.bytes.len() as u64;
        locate(store_bytes, self.part(superblock_range(store_bytes)?))
    }
    fn recover(&self) -> Result<Recovered, MetaError> {
        let located = self.locate()?;
        let region = located.layout.region();
        located.recover(self.part(region))
    }
}

#[derive(Clone, Debug)]
enum Step {
    Superblock {
        epoch: u64,
        clean: bool,
    },
    Log(Vec<u32>),
    Bitmap {
        peer: usize,
        first: u64,
        count: u64,
        set: bool,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..=COUNTER_MAX, any::<bool>())
            .prop_map(|(epoch, clean)| Step::Superblock { epoch, clean }),
        prop::collection::vec(0..563u32, 0..600).prop_map(Step::Log),
        (0..2usize, 0..GEOMETRY.blocks, 1..6000u64, any::<bool>()).prop_map(
            |(peer, first, count, set)| Step::Bitmap {
                peer,
                first,
                count,
                set
            }
        ),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_torn_write_reads_as_before_or_after(
        page_bytes in prop_oneof![Just(512u32), Just(1024), Just(4096), Just(16384)],
        garbage in any::<u8>(),
        steps in prop::collection::vec((step(), any::<bool>(), any::<u128>(), 0..=32u32), 1..30),
    ) {
        let mut superblock = superblock(page_bytes);
        superblock.log_slots = Layout::log_slots_max(page_bytes);
        let need = Layout::bytes_needed_with_page(GEOMETRY, PEERS_MAX, page_bytes);
        let layout = Layout::with_page(GEOMETRY, need, PEERS_MAX, superblock.log_slots, page_bytes).unwrap();
        prop_assert!(layout.region_offset >= GEOMETRY.bytes());
        let mut store = Store::new(&layout, &superblock, garbage);
        let mut bitmaps = [Bitmap::new(&layout), Bitmap::new(&layout)];
        let mut log = Transaction { number: 0, incarnation: superblock.incarnation, run: superblock.run, active: vec![] };

        for (step, prefix, subset, cut) in steps {
            // The sectors that arrive before the crash: a prefix, or any of them.
            let arrive = if prefix { (1u128 << cut) - 1 } else { subset };
            let before = store.recover().unwrap();
            let writes: Vec<(u64, Bytes)> = match &step {
                Step::Superblock { epoch, clean } => {
                    superblock.update += 1;
                    superblock.epoch = Epoch(*epoch);
                    superblock.clean = *clean;
                    vec![superblock.write(&layout)]
                }
                Step::Log(active) => {
                    log.number += 1;
                    // As many as a page holds: several sectors, where a page has several.
                    log.active = active.iter().copied().take(superblock.log_slots as usize).collect();
                    vec![log.write(&layout).unwrap()]
                }
                Step::Bitmap { peer, first, count, set } => {
                    let range = BlockRange::new(*first, *count);
                    let bitmap = &mut bitmaps[*peer];
                    if *set { bitmap.set(range) } else { bitmap.clear(range) };
                    let owner = Owner { incarnation: superblock.incarnation, node: PEERS[*peer] };
                    bitmap
                        .pages_unsaved(Unsaved::Clear)
                        .into_iter()
                        .map(|page| {
                            let bytes = bitmap.begin_save(page, owner).unwrap();
                            bitmap.saved(page);
                            (layout.bitmap_page_offset(*peer as u8, page), bytes)
                        })
                        .collect()
                }
            };
            for (offset, bytes) in &writes {
                store.write(*offset, bytes, arrive);
            }
            let torn = store.recover().unwrap();
            for (offset, bytes) in &writes {
                store.write(*offset, bytes, u128::MAX);
            }
            let after = store.recover().unwrap();

            prop_assert!(torn.superblock == before.superblock || torn.superblock == after.superblock);
            prop_assert!(torn.log == before.log || torn.log == after.log);
            prop_assert_eq!(torn.damaged_sectors, 0);
            for ((torn, before), after) in torn.bitmaps.iter().zip(&before.bitmaps).zip(&after.bitmaps) {
                for block in 0..GEOMETRY.blocks {
                    let bit = torn.1.get(block);
                    prop_assert!(bit == before.1.get(block) || bit == after.1.get(block), "block {}", block);
                }
            }
            prop_assert_eq!(&after.superblock, &superblock);
            prop_assert_eq!(after.log.number, log.number);
            prop_assert_eq!(&after.log.active, &log.active);
            for ((node, bitmap), (expected_node, expected)) in after.bitmaps.iter().zip(PEERS.iter().zip(&bitmaps)) {
                prop_assert_eq!(node, expected_node);
                prop_assert_eq!(bitmap, expected);
            }
        }
    }

    /// Bytes changed at will, checksums of superblocks made right again or not: an answer or an error, never a panic.
    #[test]
    fn no_bytes_make_it_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..40),
        in_superblock in prop::collection::vec((0..508usize, any::<u8>()), 0..6),
        remake in any::<bool>(),
    ) {
        let superblock = superblock(512);
        let need = Layout::bytes_needed_with_page(GEOMETRY, PEERS_MAX, 512);
        let layout = Layout::with_page(GEOMETRY, need, PEERS_MAX, superblock.log_slots, 512).unwrap();
        let mut store = Store::new(&layout, &superblock, 0);
        let (start, len) = layout.region();
        for (index, byte) in changes {
            let at = start as usize + index.index(len as usize);
            store.bytes[at] = byte;
        }
        let at = layout.superblock_slot_offset(superblock.update) as usize;
        for (i, byte) in in_superblock {
            store.bytes[at + i] = byte;
        }
        if remake {
            let crc = crc32fast::hash(&store.bytes[at..at + 508]);
            store.bytes[at + 508..at + 512].copy_from_slice(&crc.to_le_bytes());
        }
        if let Ok(found) = store.locate() {
            let (offset, len) = found.layout.region();
            prop_assert!(offset + len <= store.bytes.len() as u64);
            if let Ok(recovered) = store.recover() {
                prop_assert!(!recovered.to_string().is_empty());
            }
        }
    }
}

/// Several transactions may be in flight at once: any of them may be lost, the newest whole one counts.
#[test]
fn lost_transactions_fall_back_to_their_predecessor() {
    let superblock = superblock(512);
    let layout = Layout::with_page(GEOMETRY, 1 << 20, PEERS_MAX, 100, 512).unwrap();
    for lost in 0..8u64 {
        let mut store = Store::new(&layout, &superblock, 0);
        for number in 1..=20 {
            let t = Transaction {
                number,
                incarnation: Incarnation(9),
                run: Run(1),
                active: vec![number as u32],
            };
            let (offset, bytes) = t.write(&layout).unwrap();
            if number <= 20 - lost {
                store.write(offset, &bytes, 1);
            }
        }
        let log = store.recover().unwrap().log;
        assert_eq!(
            (log.number, log.active),
            (20 - lost, vec![20 - lost as u32])
        );
    }
}

#[test]
fn void_transactions_do_not_count() {
    let layout = Layout::with_page(GEOMETRY, 1 << 20, PEERS_MAX, 100, 512).unwrap();
    let mut ring = vec![0; layout.log_region().1 as usize];
    let mut put = |number: u64, incarnation| {
        let t = Transaction {
            number,
            incarnation: Incarnation(incarnation),
            run: Run(3),
            active: vec![1],
        };
        let at = (number % 8) as usize * 512;
        ring[at..at + 512].copy_from_slice(&t.encode(512).unwrap());
    };
    put(10, 9);
    put(11, 8);
    assert_eq!(
        recover_log(&ring, &layout, Incarnation(9), 0).number,
        10,
        "another incarnation's counts"
    );
    assert_eq!(
        recover_log(&ring, &layout, Incarnation(9), 9).active,
        vec![1]
    );
    let void = recover_log(&ring, &layout, Incarnation(9), 10);
    assert_eq!((void.number, void.run, void.active), (10, None, vec![]));
    // In a slot that is not its own: a misdirected write.
    ring.rotate_left(512);
    assert_eq!(recover_log(&ring, &layout, Incarnation(9), 0).number, 0);
}

#[test]
fn an_extent_outside_the_volume_is_refused() {
    let superblock = superblock(512);
    let layout = Layout::with_page(GEOMETRY, 1 << 20, PEERS_MAX, 100, 512).unwrap();
    let mut store = Store::new(&layout, &superblock, 0);
    let extent = GEOMETRY.extents() as u32;
    let t = Transaction {
        number: 1,
        incarnation: Incarnation(9),
        run: Run(1),
        active: vec![0, extent],
    };
    let (offset, bytes) = t.write(&layout).unwrap();
    store.write(offset, &bytes, 1);
    let expected = MetaError::Field {
        field: "activity-log extent",
        value: extent.into(),
    };
    assert_eq!(store.recover(), Err(expected));
}

#[test]
fn a_transaction_holds_what_the_layout_says() {
    for page_bytes in [512, 4096] {
        let max = Layout::log_slots_max(page_bytes);
        let mut t = Transaction {
            number: 1,
            incarnation: Incarnation(9),
            run: Run(1),
            active: (0..max).collect(),
        };
        let page = t.encode(page_bytes).unwrap();
        assert_eq!(page.len(), page_bytes as usize);
        assert_eq!(Transaction::decode(&page).as_ref(), Some(&t));
        t.active.push(max);
        assert_eq!(
            t.encode(page_bytes),
            Err(MetaError::TooManyExtents {
                count: max as usize + 1,
                max
            })
        );
    }
}

#[test]
fn what_is_on_the_store_is_named() {
    let superblock = superblock(4096);
    let layout = Layout::new(GEOMETRY, 4 << 20, PEERS_MAX, 100).unwrap();
    let good = Store::new(&layout, &superblock, 0);
    let located = good.locate().unwrap();
    assert!(!located.other_slot_damaged);
    assert_eq!((&located.superblock, located.layout), (&superblock, layout));
    let slot = layout.superblock_slot_offset(superblock.update) as usize;
    let other = layout.superblock_slot_offset(superblock.update + 1) as usize;

    let with = |change: &dyn Fn(&mut [u8])| {
        let mut store = Store {
            bytes: good.bytes.clone(),
        };
        change(&mut store.bytes);
        store.locate()
    };
    assert_eq!(with(&|b| b.fill(0)), Err(MetaError::Blank));
    assert_eq!(with(&|b| b.fill(0x55)), Err(MetaError::Foreign));
    assert_eq!(with(&|b| b[slot + 20] ^= 1), Err(MetaError::Damaged));
    let later = |b: &mut [u8], at: usize| {
        b.copy_within(slot..slot + 512, at);
        b[at + 8] = 99;
        let crc = crc32fast::hash(&b[at..at + 508]);
        b[at + 508..at + 512].copy_from_slice(&crc.to_le_bytes());
    };
    let version = Err(MetaError::Version {
        found: 99,
        known: FORMAT_VERSION,
    });
    assert_eq!(with(&|b| later(b, slot)), version);
    assert_eq!(
        with(&|b| later(b, other)),
        version,
        "a newer program's superblock beside an older one of ours"
    );
    // Rubbish in the other slot is told, and not in the way.
    assert!(with(&|b| b[other + 9] = 1).unwrap().other_slot_damaged);

    assert_eq!(superblock.check_identity(7, VolumeId(8), NodeId(0)), Ok(()));
    assert!(matches!(
        superblock.check_identity(6, VolumeId(8), NodeId(0)),
        Err(MetaError::OtherCluster { .. })
    ));
    assert!(matches!(
        superblock.check_identity(7, VolumeId(9), NodeId(0)),
        Err(MetaError::OtherVolume { .. })
    ));
    assert!(matches!(
        superblock.check_identity(7, VolumeId(8), NodeId(1)),
        Err(MetaError::OtherNode { .. })
    ));
}

/// Whole superblocks that no replica can run on, found by fuzzing.
#[test]
fn what_no_replica_can_be_is_refused() {
    let layout = Layout::new(GEOMETRY, 4 << 20, PEERS_MAX, 100).unwrap();
    let refused = |change: &dyn Fn(&mut Superblock)| {
        let mut store = Store::new(&layout, &superblock(4096), 0);
        let mut superblock = superblock(4096);
        change(&mut superblock);
        let (offset, bytes) = superblock.write(&layout);
        store.write(offset, &bytes, u128::MAX);
        store.locate()
    };
    assert!(refused(&|s| s.log_slots = LOG_SLOTS_MIN).is_ok());
    let few = refused(&|s| s.log_slots = LOG_SLOTS_MIN - 1);
    assert!(
        matches!(few, Err(MetaError::Impossible { value: 3, .. })),
        "{few:?}"
    );
    let last = refused(&|s| s.run = Run(COUNTER_MAX + 1));
    assert!(
        matches!(last, Err(MetaError::Field { field: "run", .. })),
        "{last:?}"
    );
    for peer in [NodeId(1), NodeId(0)] {
        let twice = refused(&|s| s.peer_slots[5] = Some(peer));
        assert!(matches!(twice, Err(MetaError::Field { .. })), "{twice:?}");
    }
}

#[test]
fn a_store_too_small_is_told_how_much_it_needs() {
    let geometry = Geometry::of_bytes(1 << 30);
    let needed = Layout::bytes_needed(geometry, PEERS_MAX);
    assert_eq!(
        Layout::new(geometry, needed - 1, PEERS_MAX, 127),
        Err(MetaError::TooSmall {
            have: needed - 1,
            needed
        })
    );
    let layout = Layout::new(geometry, needed, PEERS_MAX, 127).unwrap();
    assert_eq!(layout.region_offset, geometry.bytes());
    // Bytes after the last whole superblock slot are not used.
    assert_eq!(
        Layout::new(geometry, needed + 4095, PEERS_MAX, 127).unwrap(),
        layout
    );
}

#[test]
fn slots_that_were_never_written_are_all_dirty() {
    let mut superblock = superblock(512);
    let layout = Layout::with_page(GEOMETRY, 1 << 20, PEERS_MAX, 100, 512).unwrap();
    let mut store = Store::new(&layout, &superblock, 0);
    assert_eq!(superblock.give_slot(NodeId(5)), Ok(2));
    superblock.update += 1;
    let (offset, bytes) = superblock.write(&layout);
    store.write(offset, &bytes, 1);
    let counts: Vec<_> = store
        .recover()
        .unwrap()
        .bitmaps
        .iter()
        .map(|(n, b)| (n.0, b.count()))
        .collect();
    assert_eq!(counts, vec![(1, 0), (2, 0), (5, GEOMETRY.blocks)]);
}

/// A store that was a replica before, with a longer life: nothing of it shines through.
#[test]
fn an_earlier_replica_is_forgotten() {
    for old_update in [40, 41] {
        let mut old = superblock(512);
        old.update = old_update;
        old.incarnation = Incarnation(1);
        let layout = Layout::with_page(GEOMETRY, 1 << 20, PEERS_MAX, 100, 512).unwrap();
        let mut store = Store::new(&layout, &old, 0);
        let t = Transaction {
            number: 99,
            incarnation: Incarnation(1),
            run: Run(1),
            active: vec![5],
        };
        let (offset, bytes) = t.write(&layout).unwrap();
        store.write(offset, &bytes, 1);

        let new = superblock(512);
        for (offset, bytes) in initialise(&layout, &new, BitmapStart::AllDirty).unwrap() {
            store.write(offset, &bytes, u128::MAX);
        }
        let found = store.recover().unwrap();
        assert_eq!(found.superblock, new);
        assert!(!found.other_slot_damaged);
        assert_eq!((found.log.number, found.log.active), (0, vec![]));
        assert!(
            found
                .bitmaps
                .iter()
                .all(|(_, b)| b.count() == GEOMETRY.blocks),
            "the old replica's clean bits"
        );
    }
}

/// A second region at the store's new end counts exactly from the moment its superblock is whole.
#[test]
fn of_two_regions_the_newer_superblock_counts() {
    const PAGE: u32 = 512;
    const SLOTS: u32 = 8;
    let store = Layout::bytes_needed_with_page(GEOMETRY, PEERS_MAX, PAGE);
    let old_layout = Layout::with_page(GEOMETRY, store, PEERS_MAX, SLOTS, PAGE).unwrap();
    let mut old = superblock(PAGE);
    old.log_slots = SLOTS;
    old.update = 6;
    let blocks = GEOMETRY.blocks * 8;
    let end = old_layout.bytes_to_grow(blocks);
    let new_layout =
        Layout::with_page(Geometry { blocks, ..GEOMETRY }, end, PEERS_MAX, SLOTS, PAGE).unwrap();
    assert!(new_layout.region_offset >= old_layout.region_end);
    assert!(new_layout.region_offset >= blocks * u64::from(GEOMETRY.block_bytes));
    let mut disk = vec![0xA5; end as usize];
    for (offset, bytes) in initialise(&old_layout, &old, BitmapStart::Clean).unwrap() {
        disk[offset as usize..offset as usize + bytes.len()].copy_from_slice(&bytes);
    }
    let found = |disk: &[u8]| {
        let tails: Vec<(u64, &[u8])> = [store, end]
            .iter()
            .map(|&e| {
                let (at, len) = superblock_range(e).unwrap();
                (e, &disk[at as usize..(at + len) as usize])
            })
            .collect();
        locate_among(&tails).unwrap()
    };
    assert_eq!(found(&disk).layout, old_layout);
    let mut new = old.clone();
    new.capacity = blocks;
    new.tail_unknown = true;
    new.update = 7;
    let (offset, bytes) = new.write(&new_layout);
    // Torn anywhere within its sector's write: the old one still counts.
    disk[offset as usize] = bytes[0];
    assert_eq!(found(&disk).layout, old_layout);
    disk[offset as usize..offset as usize + bytes.len()].copy_from_slice(&bytes);
    let now = found(&disk);
    assert_eq!((now.layout, &now.superblock), (new_layout, &new));
    // The old one may be written over from here on.
    let (at, len) = old_layout.region();
    disk[at as usize..(at + len) as usize].fill(0);
    assert_eq!(found(&disk).layout, new_layout);
}
