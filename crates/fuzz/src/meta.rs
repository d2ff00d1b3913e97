//! What a disk can hold where a replica's metadata should be: rot, another program's data, an attacker's image.

use crate::switches;
use holdfast_meta::{
    Bitmap, BitmapStart, FORMAT_VERSION, LOG_TRANSACTIONS, Layout, Owner, PEERS_MAX, SECTOR_BYTES,
    SUPERBLOCK_SLOT_BYTES, SlotState, Superblock, Transaction, Unsaved, choose, initialise, locate,
    recover_log, superblock_range,
};
use holdfast_replicator::{Action, Config, DiskOp, Now, Replica, Timing};
use holdfast_types::{
    BlockRange, DiskState, Epoch, Geometry, Incarnation, NodeId, NodeSet, Run, VolumeId,
};

/// Switch: checksums and magic are made right first.
pub(crate) const DRESS: u8 = 1;
const SECTOR: usize = SECTOR_BYTES as usize;
/// Bits of a bitmap sector; its last 8 bytes are mark and checksum.
const SECTOR_BITS: u64 = 63 * 64;
/// Bytes of the store of every image.
pub(crate) const STORE_BYTES: u64 = 64 << 10;
const VOLUME: VolumeId = VolumeId(8);
const INCARNATION: Incarnation = Incarnation(9);
const GEOMETRY: Geometry = Geometry {
    block_bytes: 64,
    blocks: 256,
    extent_blocks: 4,
};

/// The superblock that every image starts from.
pub(crate) fn base() -> Superblock {
    let mut superblock = Superblock {
        version: FORMAT_VERSION,
        cluster: 7,
        volume: VOLUME,
        node: NodeId(0),
        geometry: GEOMETRY,
        capacity: GEOMETRY.blocks,
        tail_unknown: false,
        page_bytes: 512,
        incarnation: INCARNATION,
        run: Run(3),
        boot_id: 10,
        clean: false,
        promised: Epoch(4),
        epoch: Epoch(4),
        disk: DiskState::UpToDate,
        lineage: 11,
        log_slots: 16,
        log_floor: 0,
        peer_slots: [None; PEERS_MAX as usize],
        seen: Default::default(),
        found: Default::default(),
        update: 1,
    };
    for node in [1, 2] {
        superblock.give_slot(NodeId(node)).expect("room for two");
    }
    superblock
}

/// Makes the checksum of a superblock's sector right.
fn dress_superblock(sector: &mut [u8]) {
    sector[..8].copy_from_slice(b"HOLDFAST");
    sector[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
    let crc = crc32fast::hash(&sector[..SECTOR - 4]);
    sector[SECTOR - 4..SECTOR].copy_from_slice(&crc.to_le_bytes());
}

/// Makes the checksum of a transaction right, if its count can be.
fn dress_transaction(page: &mut [u8]) {
    page[..4].copy_from_slice(b"HFAL");
    let count = u32::from_le_bytes([page[32], page[33], page[34], page[35]]) as usize;
    if let Some(body) = count
        .checked_mul(4)
        .and_then(|n| page.get(8..n.checked_add(40)?))
    {
        let crc = crc32fast::hash(body);
        page[4..8].copy_from_slice(&crc.to_le_bytes());
    }
}

/// Makes the mark and the checksum of a bitmap sector right.
fn dress_bitmap(bytes: &mut [u8], owner: Owner, sector: u64) {
    bytes[SECTOR - 8..SECTOR - 4].copy_from_slice(b"HFBM");
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&owner.incarnation.0.to_le_bytes());
    hasher.update(&[owner.node.0]);
    hasher.update(&sector.to_le_bytes());
    hasher.update(&bytes[..SECTOR - 4]);
    let crc = hasher.finalize();
    bytes[SECTOR - 4..SECTOR].copy_from_slice(&crc.to_le_bytes());
}

/// One or two superblock slots, on a store of any size.
pub(crate) fn superblock(input: &[u8]) {
    let (switches, rest) = switches(input);
    let mut sectors = [[0; SECTOR]; 2];
    for (to, from) in sectors.as_flattened_mut().iter_mut().zip(rest) {
        *to = *from;
    }
    if switches & DRESS != 0 {
        sectors.iter_mut().for_each(|s| dress_superblock(s));
    }
    let valid = sectors.each_ref().map(|s| match Superblock::decode(s) {
        SlotState::Valid(superblock) => Some(*superblock),
        SlotState::Invalid(error) => {
            assert!(!error.to_string().is_empty());
            None
        }
        SlotState::Blank | SlotState::Foreign | SlotState::Damaged | SlotState::Version(_) => None,
    });
    for superblock in valid.iter().flatten() {
        let again = superblock.encode();
        assert_eq!(
            Superblock::decode(&again),
            SlotState::Valid(Box::new(superblock.clone()))
        );
        // A layout for it, if there is one, keeps every part apart and inside the store.
        let store_bytes = 1_u64 << (16 + (switches >> 3));
        if let Ok(layout) = Layout::with_page(
            superblock.geometry,
            store_bytes,
            PEERS_MAX,
            superblock.log_slots,
            superblock.page_bytes,
        ) {
            check_layout(&layout, store_bytes);
        }
    }
    match choose(&sectors[0], &sectors[1]) {
        Ok(chosen) => {
            let newest = valid.iter().flatten().map(|s| s.update).max();
            assert_eq!(Some(chosen.update), newest);
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

fn check_layout(layout: &Layout, store_bytes: u64) {
    assert!(layout.geometry.bytes() <= layout.region_offset);
    let pages = layout.bitmap_pages();
    let last = layout.bitmap_page_offset(PEERS_MAX - 1, pages - 1) + u64::from(layout.page_bytes);
    assert!(layout.region_offset < last && last <= layout.log_offset);
    let (log, len) = layout.log_region();
    assert!(log + len <= layout.superblock_offset);
    let slots = layout.superblock_offset + 2 * u64::from(SUPERBLOCK_SLOT_BYTES);
    assert!(slots <= layout.region_end && layout.region_end <= store_bytes);
}

/// The ring of transactions.
pub(crate) fn activity_log(input: &[u8]) {
    let (switches, rest) = switches(input);
    let layout = Layout::with_page(GEOMETRY, STORE_BYTES, PEERS_MAX, 16, 512).expect("fits");
    let mut ring = rest.to_vec();
    if switches & DRESS != 0 {
        ring.chunks_exact_mut(SECTOR).for_each(dress_transaction);
    }
    let whole: Vec<Transaction> = ring
        .chunks(SECTOR)
        .filter_map(Transaction::decode)
        .collect();
    for transaction in &whole {
        let again = transaction.encode(512).expect("what was decoded encodes");
        assert_eq!(Transaction::decode(&again).as_ref(), Some(transaction));
    }
    let floor = u64::from(switches >> 3);
    let log = recover_log(&ring, &layout, INCARNATION, floor);
    assert!(log.number >= floor);
    match log.run {
        // What is said was said by somebody, whole.
        Some(run) => assert!(whole.iter().any(|t| {
            (t.number, t.run, &t.active, t.incarnation)
                == (log.number, run, &log.active, INCARNATION)
        })),
        None => assert!(log.number == floor && log.active.is_empty()),
    }
}

/// Pages of a bitmap.
pub(crate) fn bitmap(input: &[u8]) {
    let (switches, rest) = switches(input);
    let page_bytes = [512_u32, 1024][usize::from(switches >> 1 & 1)];
    // A number that ends in the middle of a word.
    let blocks = 9_001;
    let owner = Owner {
        incarnation: INCARNATION,
        node: NodeId(1),
    };
    let mut bitmap = Bitmap::with_blocks(blocks, page_bytes);
    let mut bytes = rest.to_vec();
    bytes.resize(bitmap.pages() as usize * page_bytes as usize, 0);
    if switches & DRESS != 0 {
        for (i, sector) in bytes.chunks_exact_mut(SECTOR).enumerate() {
            // All but those named, which stay damaged.
            if switches >> 4 & 1 == 0 || i != usize::from(switches >> 5) {
                dress_bitmap(sector, owner, i as u64);
            }
        }
    }
    let mut damaged = 0;
    for (page, bytes) in (0..).zip(bytes.chunks_exact(page_bytes as usize)) {
        damaged += bitmap
            .load_page(page, owner, bytes)
            .expect("inside")
            .damaged_sectors;
    }
    assert_eq!(
        bitmap.to_ranges().iter().map(|r| r.count).sum::<u64>(),
        bitmap.count()
    );
    assert!(bitmap.to_ranges().iter().all(|r| r.end() <= blocks));
    let sectors = blocks.div_ceil(SECTOR_BITS);
    for (i, sector) in (0..sectors).zip(bytes.chunks_exact(SECTOR)) {
        let mut right = sector.to_vec();
        dress_bitmap(&mut right, owner, i);
        let first = i * SECTOR_BITS;
        let range = BlockRange::new(first, SECTOR_BITS.min(blocks - first));
        if right == sector {
            for block in range.first..range.end() {
                let bit = (block - first) as usize;
                assert_eq!(
                    bitmap.get(block),
                    sector[bit / 8] >> (bit % 8) & 1 == 1,
                    "{block}"
                );
            }
        } else {
            assert!(bitmap.all(range), "a damaged sector is all dirty");
            damaged -= 1;
        }
    }
    assert_eq!(damaged, 0, "damage that is none");
    assert!(bitmap.pages_unsaved(Unsaved::Clear).len() <= bitmap.pages() as usize);
    // What was read is written as it was read, but for what was damaged.
    let mut again = Bitmap::with_blocks(blocks, page_bytes);
    for page in 0..bitmap.pages() {
        let loaded = again.load_page(page, owner, &bitmap.page(page, owner));
        assert_eq!(loaded.expect("inside").damaged_sectors, 0);
    }
    assert_eq!(again, bitmap);
    assert!(bitmap.load_page(bitmap.pages(), owner, &bytes).is_err());
}

/// A store with a good replica on it, patched; then all of it is read, and a replica started from it.
///
/// The input is a list of patches: place in the region (2 bytes), length (1 byte), that many bytes.
pub(crate) fn region(input: &[u8]) {
    let (switches, mut rest) = switches(input);
    let superblock = base();
    let layout = Layout::with_page(GEOMETRY, STORE_BYTES, PEERS_MAX, superblock.log_slots, 512)
        .expect("fits");
    let mut store = vec![0; STORE_BYTES as usize];
    for (offset, bytes) in initialise(&layout, &superblock, BitmapStart::Clean).expect("one layout")
    {
        store[offset as usize..offset as usize + bytes.len()].copy_from_slice(&bytes);
    }
    let (start, len) = layout.region();
    while let Some((head, after)) = rest.split_first_chunk::<3>() {
        let (bytes, after) = after.split_at(after.len().min(head[2].into()));
        let at = usize::from(u16::from_le_bytes([head[0], head[1]])) % len as usize;
        let room = &mut store[start as usize + at..][..len as usize - at];
        for (to, from) in room.iter_mut().zip(bytes) {
            *to = *from;
        }
        rest = after;
    }
    if switches & DRESS != 0 {
        dress_region(&mut store, &layout, switches);
    }
    let (at, len) = superblock_range(STORE_BYTES).expect("large enough");
    let located = match locate(STORE_BYTES, &store[at as usize..(at + len) as usize]) {
        Ok(located) => located,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    check_layout(&located.layout, STORE_BYTES);
    let found = located.superblock.clone();
    let (at, len) = located.layout.region();
    let recovered = match located.recover(&store[at as usize..(at + len) as usize]) {
        Ok(recovered) => recovered,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    assert!(!recovered.to_string().is_empty());
    let peers: NodeSet = recovered.bitmaps.iter().map(|(node, _)| *node).collect();
    assert_eq!(
        peers.len() as usize,
        recovered.bitmaps.len(),
        "a peer twice"
    );
    assert!(!peers.has(found.node), "bits about itself");
    // The caller of a replica checks these; everything else is the replica's to bear.
    if found.check_identity(7, VOLUME, NodeId(0)).is_ok() && found.geometry == GEOMETRY {
        let cfg = Config {
            me: NodeId(0),
            data_nodes: [NodeId(0), NodeId(1), NodeId(2)]
                .into_iter()
                .collect::<NodeSet>(),
            volume: VOLUME,
            timing: Timing::default(),
            distrust: None,
            off: None,
        };
        let mut out = Vec::new();
        match Replica::start(cfg, recovered, 10, Now(1), &mut out) {
            Ok(replica) => assert!(replica.status().run > found.run),
            Err(error) => assert!(!error.to_string().is_empty()),
        }
        for action in out {
            if let Action::Disk {
                op: DiskOp::Write { offset, data, .. },
                ..
            } = action
            {
                assert!(offset >= start && offset + data.len() as u64 <= STORE_BYTES);
            }
        }
    }
}

/// Switches 2, 4 and 8: superblocks, transactions, bitmap sectors are made right.
fn dress_region(store: &mut [u8], layout: &Layout, switches: u8) {
    if switches & 2 != 0 {
        for update in 0..2 {
            let at = layout.superblock_slot_offset(update) as usize;
            let sector = &mut store[at..at + SECTOR];
            if sector.iter().any(|&b| b != 0) {
                dress_superblock(sector);
            }
        }
    }
    if switches & 4 != 0 {
        for number in 0..u64::from(LOG_TRANSACTIONS) {
            let at = layout.transaction_offset(number) as usize;
            if store[at..at + SECTOR].iter().any(|&b| b != 0) {
                dress_transaction(&mut store[at..at + SECTOR]);
            }
        }
    }
    if switches & 8 != 0 {
        for slot in 0..2 {
            let owner = Owner {
                incarnation: INCARNATION,
                node: NodeId(slot + 1),
            };
            let at = layout.bitmap_page_offset(slot, 0) as usize;
            dress_bitmap(&mut store[at..at + SECTOR], owner, 0);
        }
    }
}

/// A patch of [`region`] for bytes at an absolute place of the store.
pub(crate) fn patch(out: &mut Vec<u8>, at: u64, bytes: &[u8]) {
    let superblock = base();
    let layout = Layout::with_page(GEOMETRY, STORE_BYTES, PEERS_MAX, superblock.log_slots, 512)
        .expect("fits");
    /// Bytes of one patch at the most.
    const PATCH_BYTES_MAX: usize = 255;
    for (i, part) in bytes.chunks(PATCH_BYTES_MAX).enumerate() {
        let place = at - layout.region().0 + (i * PATCH_BYTES_MAX) as u64;
        out.extend_from_slice(&(place as u16).to_le_bytes());
        out.push(part.len() as u8);
        out.extend_from_slice(part);
    }
}

/// The layout of [`region`]'s images.
pub(crate) fn layout() -> Layout {
    Layout::with_page(GEOMETRY, STORE_BYTES, PEERS_MAX, 16, 512).expect("fits")
}

/// A transaction of [`region`]'s disk.
pub(crate) fn transaction(number: u64, active: Vec<u32>) -> Transaction {
    Transaction {
        number,
        incarnation: INCARNATION,
        run: Run(3),
        active,
    }
}

/// A bitmap page of [`bitmap`]'s owner with these blocks.
pub(crate) fn page(blocks: &[BlockRange]) -> Vec<u8> {
    let mut bitmap = Bitmap::with_blocks(9_001, 512);
    bitmap.set_ranges(blocks);
    let owner = Owner {
        incarnation: INCARNATION,
        node: NodeId(1),
    };
    (0..bitmap.pages())
        .flat_map(|page| bitmap.page(page, owner).to_vec())
        .collect()
}
