//! Golden bytes: a program of any later version must still read what this one wrote.
//! `HOLDFAST_REWRITE_FIXTURES=1` writes the files anew.

use holdfast_meta::{
    Bitmap, FORMAT_VERSION, Layout, Owner, SlotState, Superblock, Transaction, initialise, locate,
    superblock_range,
};
use holdfast_types::{
    BlockRange, DiskState, Epoch, Geometry, Incarnation, NodeId, Run, Seen, VolumeId,
};
use std::path::PathBuf;

const BYTES_PER_LINE: usize = 32;

fn superblock() -> Superblock {
    let mut peer_slots = [None; 7];
    peer_slots[0] = Some(NodeId(1));
    peer_slots[2] = Some(NodeId(4));
    let mut seen = [Seen::default(); 7];
    seen[2] = Seen {
        incarnation: Incarnation(0x7172_7374_7576_7778),
        run: Run(0x8182),
        log: 0x9192,
    };
    Superblock {
        version: FORMAT_VERSION,
        cluster: 0x0102_0304_0506_0708,
        volume: VolumeId(0x1112_1314_1516_1718),
        node: NodeId(3),
        geometry: Geometry {
            block_bytes: 4096,
            blocks: 262_144,
            extent_blocks: 1024,
        },
        capacity: 262_144,
        tail_unknown: false,
        page_bytes: 4096,
        incarnation: Incarnation(0x2122_2324_2526_2728),
        run: Run(9),
        boot_id: 0x3132_3334_3536_3738_393a_3b3c_3d3e_3f40,
        clean: true,
        promised: Epoch(18),
        epoch: Epoch(17),
        disk: DiskState::Outdated,
        lineage: 0x4142_4344_4546_4748,
        log_slots: 127,
        log_floor: 0x5152,
        peer_slots,
        seen,
        found: [0xa8, 0xa7, 0xa6, 0xa5, 0xa4, 0xa3, 0xa2, 0xa1],
        update: 0x6163,
    }
}

/// Compares with the file, or writes it. Trailing zeroes are not in the file.
fn golden(name: &str, bytes: &[u8]) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../fixtures/meta")
        .join(name);
    let end = bytes.iter().rposition(|&b| b != 0).map_or(0, |i| i + 1);
    let hex: String = bytes[..end]
        .chunks(BYTES_PER_LINE)
        .map(|line| line.iter().map(|b| format!("{b:02x}")).collect::<String>() + "\n")
        .collect();
    if std::env::var_os("HOLDFAST_REWRITE_FIXTURES").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &hex).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{name}: {e}"));
    assert_eq!(
        hex, expected,
        "{name}: the format on disk changed; raise FORMAT_VERSION"
    );
}

#[test]
fn superblock_bytes() {
    let bytes = superblock().encode();
    assert_eq!(bytes.len(), 4096);
    golden("superblock.hex", &bytes);
    assert_eq!(
        Superblock::decode(&bytes),
        SlotState::Valid(Box::new(superblock()))
    );
}

#[test]
fn transaction_bytes() {
    let transaction = Transaction {
        number: 0x0102_0304,
        incarnation: Incarnation(0x2122_2324_2526_2728),
        run: Run(9),
        active: vec![0, 7, 255, 0x0a0b_0c0d],
    };
    let bytes = transaction.encode(4096).unwrap();
    assert_eq!(bytes.len(), 4096);
    golden("transaction.hex", &bytes);
    assert_eq!(Transaction::decode(&bytes), Some(transaction));
}

#[test]
fn bitmap_bytes() {
    let layout = Layout::new(superblock().geometry, 2 << 30, 7, 127).unwrap();
    let owner = Owner {
        incarnation: Incarnation(0x2122_2324_2526_2728),
        node: NodeId(4),
    };
    let mut bitmap = Bitmap::new(&layout);
    // In page 1, across the border of its first two sectors.
    let first = layout.page_bits() + 4000;
    bitmap.set(BlockRange::new(first, 100));
    let bytes = bitmap.page(1, owner);
    assert_eq!(bytes.len(), 4096);
    golden("bitmap-page.hex", &bytes);
    let mut loaded = Bitmap::new(&layout);
    assert_eq!(
        loaded.load_page(1, owner, &bytes).unwrap().damaged_sectors,
        0
    );
    assert_eq!(loaded, bitmap);
}

#[test]
fn places() {
    let layout = Layout::new(superblock().geometry, 2 << 30, 7, 127).unwrap();
    // 9 pages of 32256 bits per peer, 8 transactions, 2 superblocks.
    assert_eq!(layout.bitmap_pages(), 9);
    assert_eq!(layout.superblock_offset, (2 << 30) - 8192);
    assert_eq!(layout.log_offset, layout.superblock_offset - 8 * 4096);
    assert_eq!(layout.region_offset, layout.log_offset - 7 * 9 * 4096);
    assert_eq!(
        layout.region(),
        (layout.region_offset, (2 << 30) - layout.region_offset)
    );
}

#[test]
fn dump_is_for_people() {
    let superblock = superblock();
    let store = 2 << 30;
    let layout = Layout::new(superblock.geometry, store, 7, superblock.log_slots).unwrap();
    let (start, len) = layout.region();
    let mut region = vec![0; len as usize];
    for (offset, bytes) in
        initialise(&layout, &superblock, holdfast_meta::BitmapStart::Clean).unwrap()
    {
        let at = (offset - start) as usize;
        region[at..at + bytes.len()].copy_from_slice(&bytes);
    }
    let (tail, _) = superblock_range(store).unwrap();
    let found = locate(store, &region[(tail - start) as usize..])
        .unwrap()
        .recover(&region)
        .unwrap();
    let text = found.to_string();
    for part in [
        "volume 1112131415161718, node 3",
        "1073741824 bytes",
        "stopped cleanly",
        "node 4 lacks 0 of 262144 blocks",
    ] {
        assert!(text.contains(part), "no {part:?} in:\n{text}");
    }
}
